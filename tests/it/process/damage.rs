//! Files damaged while a member is down: a torn tail is cut off, a damaged log is refused with file
//! and offset, a damaged store is made again. Nothing acknowledged is lost, nothing served short.

use super::daemon::{Member, single};
use prost::Message as _;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::mvccpb::KeyValue;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Of values that fill the store's tables and journals soon.
const BIG_VALUE_BYTES: usize = 512 * 1024;
/// So many do not fit into one journal.
const BIG_VALUES_MAX: usize = 500;

/// What must be there after every restart: revisions by key, and the store's hash.
#[derive(Debug, PartialEq)]
struct State {
    keys: Vec<(Vec<u8>, i64)>,
    hash: u32,
}

/// Bytes that do not compress, as the store would make little of others.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(next).collect()
}

async fn put(member: &Member, key: String, value: Vec<u8>) {
    let put = rpc::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    member.kv().put(put).await.unwrap();
}

/// Puts, some overwritten, some deleted; then what there is.
async fn write(member: &Member, count: usize) {
    let mut kv = member.kv();
    for i in 0..count {
        let key = format!("damage/{:03}", i % (count - count / 4));
        put(member, key, noise(i as u64, 100)).await;
        if i % 20 == 19 {
            let key = format!("damage/{:03}", i / 2);
            let delete = rpc::DeleteRangeRequest { key: key.into(), ..Default::default() };
            kv.delete_range(delete).await.unwrap();
        }
    }
}

async fn state(member: &Member, revision: i64) -> State {
    let all = rpc::RangeRequest {
        key: "damage/".into(),
        range_end: "damage0".into(),
        keys_only: true,
        ..Default::default()
    };
    let kvs = member.kv().range(all).await.unwrap().into_inner().kvs;
    let rows = kvs.into_iter().map(|kv| KeyValue::decode(kv).unwrap());
    let keys = rows.map(|kv| (kv.key.to_vec(), kv.mod_revision)).collect();
    State { keys, hash: member.hash_kv(revision).await.hash }
}

async fn revision(member: &Member) -> i64 {
    member.status().await.header.unwrap().revision
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The offset behind the last byte that is not zero.
fn data_end(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1)
}

/// The middle of what is written, at a byte that counts: what pads a record is zero.
fn middle(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let half = data_end(path) / 2;
    (half..).find(|at| bytes[*at as usize] != 0).unwrap()
}

fn edit(path: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// A journal may have nothing in it yet: then it gets a byte that means nothing.
fn flip(path: &Path, at: u64) {
    let (file, mut byte) = (edit(path), [0]);
    let read = file.read_at(&mut byte, at).unwrap();
    assert!(read == 1 || at == 0, "nothing at {at}");
    file.write_all_at(&[byte[0] ^ 0x41], at).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

fn last_segment(member: &Member) -> PathBuf {
    files(&member.data_dir().join("member/wal"))
        .into_iter()
        .rfind(|file| file.extension().is_some_and(|extension| extension == "wal"))
        .unwrap()
}

/// Where each record of a segment begins and ends: eight bytes of length, the highest of which says
/// how many bytes of padding follow, and the rest.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut frames, mut at) = (Vec::new(), 0);
    loop {
        let head = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        if head == 0 {
            return frames;
        }
        let padding = if head >> 63 == 1 { head >> 56 & 7 } else { 0 };
        let next = at + 8 + ((head & 0xff_ffff_ffff_ffff) + padding) as usize;
        frames.push((at, next));
        at = next;
    }
}

#[tokio::test]
async fn a_torn_tail_of_the_log_is_cut_off() {
    let mut member = single("").await;
    write(&member, 40).await;
    let revision = revision(&member).await;
    let before = state(&member, revision).await;
    member.kill();
    let segment = last_segment(&member);
    // What a crash leaves of a record: its length and half of it.
    let bytes = fs::read(&segment).unwrap();
    let frames = frames(&bytes);
    let (start, next) = frames[frames.len() / 2];
    let half = &bytes[start..start + (next - start) / 2];
    let end = frames[frames.len() - 1].1;
    let file = edit(&segment);
    file.set_len((end + half.len()) as u64).unwrap();
    file.write_all_at(half, end as u64).unwrap();
    member.start("");
    member.ready().await;
    assert_eq!(state(&member, revision).await, before);
    write(&member, 4).await;
    let after = state(&member, revision + 4).await;
    member.kill();
    member.start("");
    member.ready().await;
    assert_eq!(state(&member, revision + 4).await, after);
}

#[tokio::test]
async fn a_byte_flipped_in_the_middle_of_the_log_stops_the_start() {
    let mut member = single("").await;
    write(&member, 200).await;
    member.kill();
    let segment = last_segment(&member);
    let at = middle(&segment);
    flip(&segment, at);
    for _ in 0..2 {
        member.start("");
        assert_eq!(member.ended().await, Some(1), "{}", member.log());
    }
    let log = member.log();
    let name = segment.file_name().unwrap().to_str().unwrap();
    let said = |line: &&str| line.contains(name) && line.contains("is damaged at offset");
    let line = log.lines().find(said).unwrap_or_else(|| panic!("{log}"));
    let (_, rest) = line.split_once("at offset ").unwrap();
    let offset: u64 = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    assert!(offset <= at && at - offset < 400, "{offset} is named, {at} was flipped");
    flip(&segment, at);
    member.start("");
    member.ready().await;
}

#[tokio::test]
async fn a_damaged_store_is_made_again() {
    let mut member = single("").await;
    let data = member.data_dir();
    let (store, good) = (data.join("member/fjall"), data.with_extension("good"));
    let journals = || -> Vec<PathBuf> {
        let is_journal = |file: &PathBuf| file.extension().is_some_and(|kind| kind == "jnl");
        files(&store).into_iter().filter(is_journal).collect()
    };
    // A sealed journal is there until the rows of it are in tables: killed as soon as one is seen.
    write(&member, 40).await;
    let small = state(&member, 0).await.keys.len();
    let mut big = 0;
    loop {
        assert!(big < BIG_VALUES_MAX, "no sealed journal is seen");
        put(&member, format!("damage/big/{big:03}"), noise(big as u64, BIG_VALUE_BYTES)).await;
        big += 1;
        if journals().len() > 1 {
            member.kill();
            if journals().len() > 1 {
                break;
            }
            member.start("");
            member.ready().await;
        }
    }
    copy(&store, &good);
    member.start("");
    member.ready().await;
    let revision = revision(&member).await;
    let before = state(&member, revision).await;
    assert_eq!(before.keys.len(), small + big);
    member.kill();
    copy(&good, &store);
    let (all, journals) = (files(&store), journals());
    let table = all.iter().find(|file| file.parent().is_some_and(|dir| dir.ends_with("tables")));
    let table = table.unwrap_or_else(|| panic!("no table in {all:?}"));
    assert!(journals.len() > 1, "no sealed journal in {all:?}");
    let (sealed, active) = (&journals[0], &journals[journals.len() - 1]);
    let cut = |file: &Path| edit(file).set_len(data_end(file) / 2).unwrap();
    let hole = |file: &Path| edit(file).write_all_at(&[0; 4096], data_end(file) / 2).unwrap();
    let damages: [(&str, &dyn Fn()); 10] = [
        ("the active journal flipped", &|| flip(active, data_end(active) / 2)),
        ("the active journal cut", &|| cut(active)),
        ("the active journal with a hole", &|| hole(active)),
        ("the active journal deleted", &|| fs::remove_file(active).unwrap()),
        ("a sealed journal flipped", &|| flip(sealed, data_end(sealed) / 2)),
        ("a sealed journal cut", &|| cut(sealed)),
        ("a sealed journal deleted", &|| fs::remove_file(sealed).unwrap()),
        ("a table flipped", &|| flip(table, data_end(table) / 2)),
        ("a table with a hole", &|| hole(table)),
        ("the directory deleted", &|| fs::remove_dir_all(&store).unwrap()),
    ];
    for (what, damage) in damages {
        copy(&good, &store);
        damage();
        member.start("");
        member.ready().await;
        assert_eq!(state(&member, revision).await, before, "{what}: {}", member.log());
        member.kill();
    }
}
