//! What the histories of `testdata/v2` do not say.

use super::*;
use std::sync::Arc;

const NOW: Time = Time(1_700_000_000_000_000_000);

fn set(store: &mut Store, path: &str, value: &str) {
    store.set(path.as_bytes(), Some(value.as_bytes()), Expiry::default(), NOW).unwrap();
}

fn end(seconds: i64) -> Expiry {
    Expiry { at: Some(Time(NOW.0 + seconds * 1_000_000_000)), refresh: false }
}

#[test]
fn an_image_stays_as_it_was() {
    let mut store = Store::new();
    set(&mut store, "/1/a/b", "x");
    set(&mut store, "/1/a/c", "y");
    let image = store.image();
    let before = image.json();
    set(&mut store, "/1/a/b", "z");
    store.delete(b"/1/a/c", false, false, NOW).unwrap();
    store.delete(b"/1/a", true, true, NOW).unwrap();
    assert_eq!((image.json(), image.index()), (before.clone(), 2));
    assert_ne!(store.image().json(), before);
    let again = Store::from_json(&before).unwrap();
    assert_eq!(again.image().json(), before);
    assert_eq!(again.value("/1/a/c").as_deref(), Some(&b"y"[..]));
}

#[test]
fn nodes_end_in_order_and_with_all_below_them() {
    let mut store = Store::new();
    let make = |store: &mut Store, path: &str, seconds| {
        store.create(path.as_bytes(), Some(b""), false, end(seconds), NOW).unwrap();
    };
    store.create(b"/1/dir", None, false, end(3), NOW).unwrap();
    make(&mut store, "/1/dir/later", 9);
    make(&mut store, "/1/b", 2);
    make(&mut store, "/1/a", 1);
    let mut store = Store::from_json(&store.image().json()).unwrap();
    assert!(store.has_ttl_keys());
    store.delete_expired(Time(NOW.0 + 2_999_999_999), NOW);
    assert_eq!((store.names("/1").len(), store.stats().expire_count), (1, 2));
    let gone = store.history().scan(b"/1", true, 5).unwrap().unwrap();
    assert_eq!((gone.action, &gone.node.key[..]), (Action::Expire, &b"/1/a"[..]));
    store.delete_expired(Time(NOW.0 + 3_000_000_000), NOW);
    assert_eq!((store.names("/1").len(), store.stats().expire_count), (0, 3));
    assert!(!store.has_ttl_keys());
}

#[test]
fn history_finds_what_concerns_a_key() {
    let mut store = Store::new();
    let find = |store: &Store, key: &str, recursive, index| {
        let found = store.history().scan(key.as_bytes(), recursive, index).unwrap();
        found.map(|event: Arc<Event>| event.node.modified_index)
    };
    assert_eq!(find(&store, "/1/a", true, 1), None);
    set(&mut store, "/1/a/b", "x");
    set(&mut store, "/1/c", "x");
    let again = Expiry { refresh: true, ..end(5) };
    store.set(b"/1/c", Some(b""), again, NOW).unwrap();
    store.delete(b"/1/a", true, true, NOW).unwrap();
    assert_eq!(find(&store, "/1/a", false, 1), Some(4));
    assert_eq!(find(&store, "/1/a", true, 1), Some(1));
    assert_eq!(find(&store, "/", true, 2), Some(2));
    // A refresh is nobody's concern; a directory's end is that of all below it.
    assert_eq!(find(&store, "/1/c", false, 3), None);
    assert_eq!(find(&store, "/1/a/b", false, 2), Some(4));
    // In etcd also of those that only begin like it.
    assert_eq!(find(&store, "/1/ab", false, 2), Some(4));
    assert_eq!(find(&store, "/1/a", true, 9), None);
    for i in 0..1000 {
        set(&mut store, "/1/x", &i.to_string());
    }
    assert_eq!(find(&store, "/1/x", false, 5), Some(5));
    let error = store.history().scan(b"/1/x", false, 4).unwrap_err();
    assert_eq!(error.code(), Some(Code::EventIndexCleared));
}

#[test]
fn deep_paths_are_refused_and_the_deepest_are_read_back() {
    let mut store = Store::new();
    let path = |levels| "/d".repeat(levels);
    set(&mut store, &path(LEVELS_MAX), "x");
    let index = store.index();
    let deeper = path(LEVELS_MAX + 1);
    let made = store.create(deeper.as_bytes(), None, false, Expiry::default(), NOW);
    assert_eq!(made.unwrap_err(), Error::TooDeep);
    let made = store.create(path(LEVELS_MAX).as_bytes(), Some(b""), true, Expiry::default(), NOW);
    assert!(made.is_err());
    assert_eq!(store.index(), index);
    let json = store.image().json();
    let mut again = Store::from_json(&json).unwrap();
    assert_eq!(again.image().json(), json);
    assert_eq!(again.value(&path(LEVELS_MAX)).as_deref(), Some(&b"x"[..]));
    assert_eq!(again.get(b"/", true, NOW).unwrap().node.nodes.len(), 3);
    let open = [r#"{"Root":{"Children":{"d":"#, &r#"{"Children":{"d":"#.repeat(100_000)].concat();
    assert!(Store::from_json(open.as_bytes()).unwrap_err().contains("levels"));
    let open = "[".repeat(1_000_000);
    assert!(Store::from_json(open.as_bytes()).unwrap_err().contains("levels"));
}

#[test]
fn what_is_no_tree_is_an_error() {
    let tree = String::from_utf8(Store::new().image().json()).unwrap();
    for json in ["", "{}", r#"{"Root":3}"#, &format!("{tree}x"), &tree[..tree.len() - 1]] {
        assert!(Store::from_json(json.as_bytes()).is_err(), "{json}");
    }
    for (before, after) in [
        ("\"/1\"", "\"/2\""),
        ("\"Capacity\":1000", "\"Capacity\":999"),
        ("\"Size\":0", "\"Size\":1"),
        ("\"Back\":0", "\"Back\":1000"),
        ("0001-01-01", "0001-13-01"),
    ] {
        assert!(tree.contains(before));
        assert!(Store::from_json(tree.replace(before, after).as_bytes()).is_err(), "{after}");
    }
    let bare = Store::from_json(br#"{"Root":{"Children":null}}"#).unwrap();
    assert_eq!(bare.image().json(), tree.as_bytes());
}
