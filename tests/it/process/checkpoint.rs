//! etcd's database file, snapshot files and the log's released segments: at every instant what an
//! etcd would need is there, and so is what this member needs when its store is gone.

use super::daemon::{Member, members, start};
use super::load::{Load, assert_all_there, read};
use rusd::pb::etcdserverpb as rpc;
use rusd::storage::bbolt::Db;
use rusd::storage::wal::Wal;
use rusd::storage::{import, snap};
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn names(member: &Member, dir: &str, suffix: &str) -> Vec<PathBuf> {
    names_in(&member.data_dir(), dir, suffix)
}

fn names_in(data: &Path, dir: &str, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("member").join(dir)).unwrap();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.to_str().unwrap().ends_with(suffix));
    names.sort();
    names
}

/// What etcd's own check at its start asks of a directory whose member is down: the file is whole,
/// not ahead of the log's commit index and not behind its newest snapshot (etcd v3.5.17
/// `server/verify/verify.go`). The file's index and that of the snapshot.
pub(super) fn verify(member: &Member) -> (u64, u64) {
    let dir = member.data_dir().join("member");
    let file = File::open(dir.join("snap/db")).unwrap();
    let db = Db::open(&file).unwrap();
    db.check().unwrap();
    let index = import::consistent_index(&file).unwrap();
    let (_, replay) = Wal::open(&dir.join("wal")).unwrap();
    let commit = replay.hard_state.commit;
    assert!(index <= commit, "the file is at {index}, the log commits {commit}");
    let recorded: Vec<(u64, u64)> =
        replay.snapshots.into_iter().filter(|(at, _)| *at <= commit).collect();
    let newest = recorded.iter().map(|(at, _)| *at).max().unwrap_or(0);
    assert!(index >= newest, "the file is at {index}, a snapshot at {newest}");
    let found = snap::newest(&dir.join("snap"), &recorded).unwrap();
    assert_eq!(found.map_or(0, |snap| snap.index), newest);
    (index, newest)
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn put(member: &Member, key: &str, bytes: usize) -> i64 {
    let value = vec![b'x'; bytes].into();
    let put = rpc::PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    member.kv().put(put).await.unwrap().into_inner().header.unwrap().revision
}

fn single(extra: &[&str]) -> Member {
    members(1, extra).remove(0)
}

#[tokio::test]
async fn kills_leave_a_directory_that_an_etcd_would_take() {
    let mut member = single(&["--snapshot-count", "70", "--max-snapshots", "2"]);
    let mut snapped = 0;
    for round in 0..6 {
        member.start("");
        member.ready().await;
        assert!(member.data_dir().join("member/snap/db").exists());
        let load = Load::start(&member);
        let before = names(&member, "snap", ".snap").pop();
        let dir = member.data_dir();
        eventually("a new snapshot", || names_in(&dir, "snap", ".snap").pop() > before).await;
        // The log records it a moment after its file is there.
        tokio::time::sleep(Duration::from_millis(300 + 170 * round)).await;
        member.kill();
        let acknowledged = load.finish().await;
        let (index, newest) = verify(&member);
        assert!(newest > snapped && index > newest - 1, "{newest} after {snapped}");
        snapped = newest;
        if round % 2 == 1 {
            fs::remove_dir_all(member.data_dir().join("member/fjall")).unwrap();
        }
        let imports = member.log().matches("imported etcd's database").count() as u64;
        assert_eq!(imports, round / 2, "only where the store was gone");
        member.start("");
        member.ready().await;
        assert_all_there(&member, &acknowledged).await;
        member.kill();
    }
    assert!(names(&member, "snap", ".snap").len() <= 3, "two, and one that came last");
}

#[tokio::test]
async fn a_clean_stop_leaves_nothing_to_be_fed() {
    let mut member = single(&[]);
    member.start("");
    member.ready().await;
    for i in 0..20 {
        put(&member, &format!("key/{i}"), 100).await;
    }
    member.signal(Signal::TERM);
    assert_eq!(member.ended().await, Some(0));
    let (index, _) = verify(&member);
    let (_, replay) = Wal::open(&member.data_dir().join("member/wal")).unwrap();
    assert_eq!((index, index), (replay.last_index, replay.hard_state.commit));
}

#[tokio::test]
async fn a_full_disk_costs_the_checkpoint_and_not_the_member() {
    let mut member = single(&["--snapshot-count", "20"]);
    let failing = "checkpoint-write=4*off->2*return(ENOSPC)->off;snap-write=1*return(ENOSPC)->off";
    member.start(failing);
    member.ready().await;
    for i in 0..60 {
        put(&member, &format!("key/{i}"), 100).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    member.logged("failed to write a checkpoint").await;
    let dir = member.data_dir();
    eventually("a snapshot", || !names_in(&dir, "snap", ".snap").is_empty()).await;
    // The file may change while it is read: then it is read again.
    let file = || File::open(dir.join("member/snap/db")).unwrap();
    eventually("a checkpoint", || import::consistent_index(&file()).is_ok_and(|at| at >= 60)).await;
    // The log records a snapshot a moment after its file is there.
    tokio::time::sleep(Duration::from_millis(500)).await;
    member.kill();
    let (index, newest) = verify(&member);
    assert!(index >= 60 && newest >= 20, "{index}, {newest}");
    assert!(member.log().contains("No space left on device"));
}

#[tokio::test]
async fn released_segments_are_not_missed_when_the_store_is_gone() {
    const VALUE_BYTES: usize = 512 * 1024;
    let few = ["--experimental-snapshot-catchup-entries", "10", "--max-wals", "1"];
    let mut member = single(&[&["--snapshot-count", "50"], &few[..]].concat());
    member.start("");
    member.ready().await;
    put(&member, "first", 10).await;
    let first = names(&member, "wal", ".wal").remove(0);
    for i in 0..400 {
        let revision = put(&member, &format!("big/{}", i % 8), VALUE_BYTES).await;
        if i % 20 == 19 {
            // So that the store, and with it the checkpoint, stays small.
            let compaction = rpc::CompactionRequest { revision, physical: true };
            member.kv().compact(compaction).await.unwrap();
        }
    }
    eventually("the first segment goes", || !first.exists()).await;
    let hash = member.hash_kv(0).await;
    member.kill();
    verify(&member);
    fs::remove_dir_all(member.data_dir().join("member/fjall")).unwrap();
    member.start("");
    member.ready().await;
    assert_eq!(member.hash_kv(hash.header.unwrap().revision).await.hash, hash.hash);
    member.kill();
    // Without the checkpoint the log is not enough: said, not served.
    fs::remove_dir_all(member.data_dir().join("member/fjall")).unwrap();
    fs::remove_file(member.data_dir().join("member/snap/db")).unwrap();
    member.start("");
    assert_eq!(member.ended().await, Some(1));
    assert!(member.log().contains("the database is an older one"), "{}", member.log());
}

/// The file grows by new rows. A row of it whose deletion came and was compacted away between two
/// growths must not stay as if nothing had happened.
#[tokio::test]
async fn a_deletion_that_is_compacted_at_once_stays_one() {
    let mut member = single(&[]);
    member.start("");
    member.ready().await;
    for i in 0..40 {
        put(&member, &format!("load/{i:02}"), 300).await;
    }
    for round in 0..6u64 {
        // In the file, or about to be.
        tokio::time::sleep(Duration::from_millis(70 * round)).await;
        let key = format!("load/{round:02}");
        let delete = rpc::DeleteRangeRequest { key: key.into(), ..Default::default() };
        let deleted = member.kv().delete_range(delete).await.unwrap().into_inner();
        let revision = deleted.header.unwrap().revision;
        let compaction = rpc::CompactionRequest { revision, physical: true };
        member.kv().compact(compaction).await.unwrap();
        if round % 3 == 1 {
            put(&member, "load/99", 10).await;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        let hash = member.hash_kv(0).await;
        member.kill();
        verify(&member);
        fs::remove_dir_all(member.data_dir().join("member/fjall")).unwrap();
        member.start("");
        member.ready().await;
        let keys = read(&member, "load/").await.len() as u64;
        assert_eq!(keys, 40 - (round + 1) + u64::from(round > 0));
        // Of the newest revision: that of one which was compacted is told as it was before.
        let now = member.hash_kv(0).await;
        let revision = |hash: &rpc::HashKvResponse| hash.header.unwrap().revision;
        assert_eq!((revision(&now), now.hash), (revision(&hash), hash.hash));
    }
}

#[tokio::test]
async fn a_cluster_goes_on_through_snapshots_and_kills() {
    let mut members = start(members(3, &["--snapshot-count", "100"]), "").await;
    for round in 0..3 {
        let load = Load::start(&members[(round + 1) % 3]);
        tokio::time::sleep(Duration::from_millis(600)).await;
        members[round].kill();
        tokio::time::sleep(Duration::from_millis(600)).await;
        let acknowledged = load.finish().await;
        verify(&members[round]);
        members[round].start("");
        members[round].ready().await;
        for member in &members {
            assert_all_there(member, &acknowledged).await;
        }
    }
}
