//! Files made by bbolt itself, round trips, and files that nobody made; the last two for as many
//! cases as `PROPTEST_CASES` says.

use super::page::{HEADER_BYTES, checksum};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<Vec<u8>, Rows>;

/// Files of `testdata/bbolt`, which its generator describes.
const FIXTURES: [(&str, &[u8]); 4] = [
    ("etcd.db", include_bytes!("../../../testdata/bbolt/etcd.db")),
    ("array.db", include_bytes!("../../../testdata/bbolt/array.db")),
    ("hashmap.db", include_bytes!("../../../testdata/bbolt/hashmap.db")),
    ("empty.db", include_bytes!("../../../testdata/bbolt/empty.db")),
];
const FIXTURE_ROWS: &str = include_str!("../../../testdata/bbolt/rows.txt");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every row of every bucket below `bucket`, as `rows.txt` has them.
fn listed(
    db: &Db<Bytes>,
    bucket: &Bucket,
    path: &str,
    direction: Direction,
    out: &mut Vec<String>,
) -> Result<()> {
    for item in db.walk(bucket, direction) {
        match item? {
            Item::Row(key, value) => {
                let sum = crc32c::crc32c(&value);
                out.push(format!("{path} {} {} {sum:08x}", hex(&key), value.len()));
            }
            Item::Bucket(key, below) => {
                let slash = if path.is_empty() { "" } else { "/" };
                let path = format!("{path}{slash}{}", hex(&key));
                listed(db, &below, &path, direction, out)?;
            }
        }
    }
    Ok(())
}

fn fixture(name: &str) -> Bytes {
    Bytes::from_static(FIXTURES.iter().find(|(found, _)| *found == name).unwrap().1)
}

#[test]
fn reads_what_bbolt_wrote() {
    for (name, bytes) in FIXTURES {
        let db = Db::open(Bytes::from_static(bytes)).unwrap();
        let expected: Vec<&str> = FIXTURE_ROWS
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{name} ")))
            .collect();
        let mut rows = Vec::new();
        listed(&db, &db.root(), "", Direction::Forward, &mut rows).unwrap();
        assert_eq!(rows, expected, "{name}");
        let mut rows = Vec::new();
        listed(&db, &db.root(), "", Direction::Backward, &mut rows).unwrap();
        rows.reverse();
        assert_eq!(rows, expected, "{name}");
        let totals = db.check().unwrap();
        assert_eq!(totals.rows, expected.len() as u64, "{name}");
        let (buckets, free) = match name {
            "empty.db" => (0, false),
            "etcd.db" => (10, true),
            _ => (6, true),
        };
        assert_eq!((totals.buckets, totals.free_pages > 0), (buckets, free), "{name}");
        assert_eq!(db.meta().freelist.is_some(), name != "etcd.db");
    }
    let db = Db::open(fixture("etcd.db")).unwrap();
    let meta = db.bucket(b"meta").unwrap().unwrap();
    assert_eq!(db.walk(&meta, Direction::Forward).count(), 2);
    assert!(db.bucket(b"metal").unwrap().is_none());
    assert!(db.bucket(b"zzz").unwrap().is_none());
}

#[test]
fn takes_the_newest_valid_meta_page() {
    let whole = fixture("array.db");
    let newest = Db::open(whole.clone()).unwrap();
    let size = newest.meta().page_bytes as usize;
    for (page, name) in [(0, "page 0"), (1, "page 1")] {
        let mut bytes = whole.to_vec();
        bytes[page * size + HEADER_BYTES + 50] ^= 1;
        let other = Db::open(Bytes::from(bytes.clone())).unwrap();
        assert_eq!(other.meta().page_bytes, newest.meta().page_bytes, "{name}");
        other.check().unwrap();
        let start = (1 - page) * size + HEADER_BYTES;
        bytes[start..start + 64].fill(0);
        let error = Db::open(Bytes::from(bytes)).unwrap_err().to_string();
        assert!(error.contains("page 0: "), "{error}");
    }
}

fn write(buckets: &Buckets) -> Bytes {
    let mut writer = Writer::new(Vec::new());
    for (name, rows) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in rows {
            writer.row(key, value).unwrap();
        }
    }
    let (plan, pages) = writer.finish().unwrap();
    let file = [plan.meta_pages(6), pages].concat();
    assert_eq!(file.len() as u64, plan.file_bytes());
    Bytes::from(file)
}

fn read(file: &Bytes) -> Result<Buckets> {
    let db = Db::open(file.clone())?;
    let mut buckets = Buckets::new();
    for item in db.walk(&db.root(), Direction::Forward) {
        let Item::Bucket(name, bucket) = item? else { panic!("a row among the buckets") };
        let rows = buckets.entry(name.to_vec()).or_default();
        for item in db.walk(&bucket, Direction::Backward) {
            let Item::Row(key, value) = item? else { panic!("a bucket among the rows") };
            rows.insert(key.to_vec(), value.to_vec());
        }
    }
    Ok(buckets)
}

/// Children of each branch page, and bytes in use of each leaf page, of a sound file.
fn shape(file: &Bytes) -> (Vec<usize>, Vec<usize>) {
    let (mut branches, mut leaves) = (Vec::new(), Vec::new());
    let mut at = 2 * PAGE_BYTES;
    while at < file.len() {
        let header = page::Header::parse(&file[at..]).unwrap();
        let run = (header.overflow as usize + 1) * PAGE_BYTES;
        at += run;
        if header.kind == page::Kind::Freelist {
            continue;
        }
        let node = page::Node::parse(file.slice(at - run..at), &header).unwrap();
        if node.is_leaf() {
            let data: usize =
                (0..node.count()).map(|i| 16 + node.key(i).len() + node.value(i).len()).sum();
            leaves.push(data + HEADER_BYTES);
        } else {
            branches.push(node.count());
        }
    }
    (branches, leaves)
}

#[test]
fn no_branch_has_a_single_child() {
    for rows in (1..400).chain([5_000, 40_000]) {
        let key = |n: u32| [b"a key with some length/".as_slice(), &n.to_be_bytes()].concat();
        let rows: Rows = (0..rows).map(|n| (key(n), vec![7; 300])).collect();
        let count = rows.len();
        let file = write(&Buckets::from([(b"key".to_vec(), rows.clone())]));
        let (branches, leaves) = shape(&file);
        assert!(branches.iter().all(|children| *children >= 2), "{count} rows: {branches:?}");
        // The last leaf of the bucket, and the root bucket's, hold what is left.
        let full = leaves.iter().filter(|bytes| **bytes > PAGE_BYTES * 7 / 10).count();
        assert!(full + 2 >= leaves.len(), "{count} rows: {leaves:?}");
        let db = Db::open(file.clone()).unwrap();
        assert_eq!(db.check().unwrap(), Totals { buckets: 1, rows: count as u64, free_pages: 0 });
        assert_eq!(read(&file).unwrap()[b"key".as_slice()], rows);
    }
}

#[test]
fn small_buckets_are_inline() {
    // As bbolt counts: headers of 16 bytes for the page and each row, up to a quarter of a page.
    for (value, inline) in [(1024 - 33, true), (1024 - 32, false)] {
        let rows = Rows::from([(b"k".to_vec(), vec![1; value])]);
        let file =
            write(&Buckets::from([(b"a".to_vec(), rows.clone()), (b"b".to_vec(), Rows::new())]));
        let db = Db::open(file.clone()).unwrap();
        let bucket = db.bucket(b"a").unwrap().unwrap();
        assert_eq!(bucket.inline.is_some(), inline, "{value}");
        assert!(db.bucket(b"b").unwrap().unwrap().inline.is_some());
        assert_eq!(file.len(), if inline { 4 } else { 5 } * PAGE_BYTES);
    }
    assert_eq!(write(&Buckets::new()).len(), 4 * PAGE_BYTES);
}

#[test]
fn meta_pages_name_the_newer_transaction() {
    for txid in [0, 1, 2, 7, 8] {
        let (plan, pages) = Writer::new(Vec::new()).finish().unwrap();
        let metas = plan.meta_pages(txid);
        let db = Db::open(Bytes::from([metas.clone(), pages].concat())).unwrap();
        assert_eq!(db.meta().txid, txid.max(1));
        let newest = (db.meta().txid % 2) as usize * PAGE_BYTES;
        let meta = Meta::parse(&metas[newest..]).unwrap();
        assert_eq!(meta, *db.meta());
    }
}

#[test]
fn the_writer_refuses_what_the_format_does_not_hold() {
    let mut writer = Writer::new(Vec::new());
    let refused = |result: std::result::Result<(), WriteError>| result.unwrap_err().to_string();
    assert!(refused(writer.row(b"k", b"v")).contains("no bucket"));
    writer.bucket(b"b").unwrap();
    writer.row(b"k", b"v").unwrap();
    for key in [b"k".as_slice(), b"j"] {
        assert_eq!(
            refused(writer.row(key, b"v")),
            "bbolt: bucket \"b\": a key is not behind the one before it"
        );
    }
    assert!(refused(writer.row(b"", b"v")).contains("empty"));
    assert!(refused(writer.row(&[b'z'; 32_769], b"v")).contains("too large"));
    assert!(refused(writer.bucket(b"a")).contains("not behind"));
}

/// Rows of mixed sizes: many small, some over several pages.
fn rows() -> impl Strategy<Value = Rows> {
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let size = prop_oneof![8 => 0usize..60, 3 => 200usize..1500, 1 => 4000usize..20_000];
    let rows = prop::collection::btree_map(key, (any::<u8>(), size), 0..120);
    rows.prop_map(|rows| {
        rows.into_iter().map(|(key, (fill, size))| (key, vec![fill; size])).collect()
    })
}

fn buckets() -> impl Strategy<Value = Buckets> {
    prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..30), rows(), 0..12)
}

/// A change of a file by somebody who does not know what it means.
#[derive(Clone, Debug)]
enum Harm {
    Byte {
        at: u32,
        value: u8,
    },
    /// Of a page's first bytes, where a change goes furthest.
    Head {
        page: u16,
        at: u8,
        value: u8,
    },
    Number {
        page: u16,
        at: u8,
        value: u32,
    },
    Copy {
        from: u16,
        to: u16,
    },
    Cut(u32),
    /// Makes what was changed of the meta pages count.
    Resum,
}

fn harm() -> impl Strategy<Value = Harm> {
    let small = prop_oneof![0u32..200, any::<u32>()];
    prop_oneof![
        2 => (any::<u32>(), any::<u8>()).prop_map(|(at, value)| Harm::Byte { at, value }),
        4 => (any::<u16>(), 0u8..80, any::<u8>())
            .prop_map(|(page, at, value)| Harm::Head { page, at, value }),
        4 => (any::<u16>(), 0u8..20, small)
            .prop_map(|(page, at, value)| Harm::Number { page, at, value }),
        2 => (any::<u16>(), any::<u16>()).prop_map(|(from, to)| Harm::Copy { from, to }),
        1 => any::<u32>().prop_map(Harm::Cut),
        4 => Just(Harm::Resum),
    ]
}

fn damage(file: &mut Vec<u8>, page_bytes: usize, harms: &[Harm]) {
    for harm in harms {
        let pages = file.len() / page_bytes;
        if pages == 0 {
            return;
        }
        let page_at = |page: u16| usize::from(page) % pages * page_bytes;
        match *harm {
            Harm::Byte { at, value } => {
                let at = at as usize % file.len();
                file[at] = value;
            }
            Harm::Head { page, at, value } => file[page_at(page) + usize::from(at)] = value,
            Harm::Number { page, at, value } => {
                let at = page_at(page) + usize::from(at) * 4;
                file[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            Harm::Copy { from, to } => {
                let from = page_at(from);
                file.copy_within(from..from + page_bytes, page_at(to));
            }
            Harm::Cut(at) => file.truncate(at as usize % file.len()),
            Harm::Resum => {
                for page in 0..pages.min(2) {
                    let at = page * page_bytes + HEADER_BYTES;
                    let sum = checksum(&file[at..at + 56]);
                    file[at + 56..at + 64].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }
}

/// Reads all there is to read, and gives what it came to.
fn survive(file: Vec<u8>) {
    let bytes = file.len();
    let Ok(db) = Db::open(Bytes::from(file)) else { return };
    let checked = db.check();
    for direction in [Direction::Forward, Direction::Backward] {
        let mut rows = Vec::new();
        let read = listed(&db, &db.root(), "", direction, &mut rows);
        // A row takes 17 bytes of the file, and no byte is read twice.
        assert!(rows.len() <= bytes / 17 * 16, "{} rows", rows.len());
        if let Ok(totals) = &checked {
            read.unwrap();
            assert_eq!(rows.len() as u64, totals.rows);
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(buckets in buckets()) {
        let file = write(&buckets);
        let totals = Db::open(file.clone()).unwrap().check().unwrap();
        let rows = buckets.values().map(|rows| rows.len() as u64).sum();
        prop_assert_eq!(totals, Totals { buckets: buckets.len() as u64, rows, free_pages: 0 });
        prop_assert_eq!(read(&file).unwrap(), buckets);
        prop_assert!(shape(&file).0.iter().all(|children| *children >= 2));
    }

    #[test]
    fn damage_is_an_error(
        which in 0..FIXTURES.len(),
        harms in prop::collection::vec(harm(), 1..8),
    ) {
        let (_, bytes) = FIXTURES[which];
        let page_bytes = Db::open(Bytes::from_static(bytes)).unwrap().meta().page_bytes as usize;
        let mut file = bytes.to_vec();
        damage(&mut file, page_bytes, &harms);
        survive(file);
    }

    #[test]
    fn noise_is_an_error(
        pages in 2usize..12,
        kinds in prop::collection::vec(prop::sample::select(vec![1u8, 2, 4, 16]), 12),
        numbers in prop::collection::vec(prop_oneof![0u32..40, 3000u32..5000, any::<u32>()], 120),
    ) {
        // Pages that say who they are, with numbers where headers and elements lie.
        let pages_all = pages as u64;
        let plan = Plan { root: 2, freelist: pages_all - 1, pages: pages_all };
        let mut file = plan.meta_pages(1);
        file.resize(pages * PAGE_BYTES, 0);
        for page in 2..pages {
            let at = page * PAGE_BYTES;
            for (i, number) in numbers[(page - 2) * 10..page * 10].iter().enumerate() {
                file[at + 16 + i * 4..at + 20 + i * 4].copy_from_slice(&number.to_le_bytes());
            }
            file[at] = page as u8;
            file[at + 8] = kinds[page];
            file[at + 10] = (numbers[page] % 5) as u8;
            file[at + 12] = (numbers[page + 1] % 3) as u8;
        }
        survive(file);
    }
}

/// A sound file of three levels, to be changed in one place.
fn three_levels() -> Vec<u8> {
    let rows = (0..20_000u32).map(|n| (n.to_be_bytes().to_vec(), vec![1; 20])).collect();
    write(&Buckets::from([(b"b".to_vec(), rows)])).to_vec()
}

type Change<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;

fn number_at(file: &mut [u8], at: usize) -> &mut [u8] {
    &mut file[at..at + 8]
}

#[test]
fn errors_name_page_and_reason() {
    let sound = three_levels();
    let root_page = sound.len() - PAGE_BYTES;
    // Between them stands the free list.
    let bucket_page = root_page - 2 * PAGE_BYTES;
    let page = |at: usize| (at / PAGE_BYTES) as u64;
    let first_branch =
        (2 * PAGE_BYTES..sound.len()).step_by(PAGE_BYTES).find(|at| sound[at + 8] == 1).unwrap();
    let branch = page(first_branch);
    let set = |at: usize, to: u64| -> Change<'_> {
        Box::new(move |file| number_at(file, at).copy_from_slice(&to.to_le_bytes()))
    };
    let child = HEADER_BYTES + 8;
    let cases: Vec<(Change<'_>, u64, &str)> = vec![
        (set(bucket_page + child, page(bucket_page)), page(bucket_page), "reached before"),
        (set(first_branch + child, 3), 3, "goes beyond"),
        (set(first_branch + child + 16, 2), 2, "reached before"),
        (set(first_branch + child, 1 << 40), 1 << 40, "not below the mark"),
        (set(first_branch + child, 0), 0, "is a Meta page"),
        (set(first_branch, 7), branch, "says that it is page 7"),
        (set(2 * PAGE_BYTES + 8, 0xFFFF_FFFF_0001_0002), 2, "beyond the end"),
        (set(2 * PAGE_BYTES + 8, 0xFFFF_0002), 2, "too small for its 65535"),
        (set(2 * PAGE_BYTES + 8, 0x0001), 2, "without elements"),
        (set(2 * PAGE_BYTES + 8, 0x0044), 2, "unknown kind"),
        (set(2 * PAGE_BYTES + 8, 0x0001_0010), 2, "where none belongs"),
        (set(2 * PAGE_BYTES + 24, 0), 2, "a key of 0 bytes"),
        (set(2 * PAGE_BYTES + 16, 5000 << 32), 2, "lies outside"),
        (Box::new(|file| file.truncate(bucket_page)), page(root_page), "the file ends"),
    ];
    for (change, page, reason) in cases {
        let mut file = sound.clone();
        change(&mut file);
        let db = Db::open(Bytes::from(file)).unwrap();
        match db.check() {
            Err(Error::Malformed { page: named, reason: found }) => {
                assert_eq!(named, page, "{found}");
                assert!(found.contains(reason), "{found}, not {reason}");
            }
            other => panic!("{reason}: {other:?}"),
        }
    }
}

/// Branches in a row, each with one child, as deep as the file has pages.
#[test]
fn depth_is_bounded() {
    let pages = 2000;
    let mut file = Plan { root: 2, freelist: pages - 1, pages }.meta_pages(1);
    for id in 2..pages {
        let header = page::Header { id, kind: page::Kind::Branch, count: 1, overflow: 0 };
        file.extend_from_slice(&header.bytes());
        file.extend_from_slice(&page::branch_element(16, 1, id + 1));
        file.push(b'a');
        file.resize((id as usize + 1) * PAGE_BYTES, 0);
    }
    let error = Db::open(Bytes::from(file)).unwrap().check().unwrap_err().to_string();
    assert!(error.contains("below 32 levels"), "{error}");
}

#[test]
fn sizes_that_a_file_claims_ask_for_nothing() {
    let mut file = Plan { root: 3, freelist: 2, pages: u64::MAX }.meta_pages(1);
    file.extend(write(&Buckets::new()).slice(2 * PAGE_BYTES..));
    let db = Db::open(Bytes::from(file)).unwrap();
    assert_eq!(db.check().unwrap(), Totals::default());
}
