//! Maintenance.Snapshot: etcd's database file of one moment, and a member that begins from one.
//! The first test passes with etcd 3.5.17 (`RUSD_IT_BINARY`).

use super::daemon::{Member, single};
use bytes::Bytes;
use prost::Message as _;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::mvccpb::KeyValue;
use rusd::storage::bbolt::{Db, Direction, Item};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the digest behind the file.
const DIGEST: usize = 32;

async fn put(member: &Member, key: String, bytes: usize) -> i64 {
    let value = vec![b'x'; bytes].into();
    let put = rpc::PutRequest { key: key.into(), value, ..Default::default() };
    member.kv().put(put).await.unwrap().into_inner().header.unwrap().revision
}

/// The file, its digest left out.
pub async fn snapshot(member: &Member) -> Bytes {
    let request = rpc::SnapshotRequest {};
    let mut stream = member.maintenance().snapshot(request).await.unwrap().into_inner();
    let mut file = Vec::new();
    let mut announced = None;
    while let Some(message) = stream.message().await.unwrap() {
        let left = announced.unwrap_or(message.remaining_bytes + message.blob.len() as u64);
        let digest = left == 0;
        assert_eq!(message.blob.len() == DIGEST, digest);
        let left = if digest { 0 } else { left - message.blob.len() as u64 };
        assert_eq!(message.remaining_bytes, left);
        announced = Some(left);
        file.extend_from_slice(&message.blob);
    }
    file.truncate(file.len() - DIGEST);
    assert_eq!(file.len() % 4096, 0);
    file.into()
}

/// Keys by revision, in order.
fn rows(file: &Bytes) -> Vec<(i64, String)> {
    let db = Db::open(file.clone()).unwrap();
    db.check().unwrap();
    let bucket = db.bucket(b"key").unwrap().unwrap();
    db.walk(&bucket, Direction::Forward)
        .map(|item| {
            let Item::Row(_, value) = item.unwrap() else { panic!("a bucket") };
            let row = KeyValue::decode(value).unwrap();
            (row.mod_revision, String::from_utf8(row.key.to_vec()).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn a_snapshot_has_what_was_acknowledged_and_no_holes() {
    let member = Arc::new(single("").await);
    for i in 0..50 {
        put(&member, format!("before/{i}"), 3000).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (member, stop) = (member.clone(), stop.clone());
            tokio::spawn(async move {
                let mut i = 0;
                while !stop.load(Ordering::Relaxed) {
                    put(&member, format!("writer/{writer}/{i}"), 200).await;
                    i += 1;
                }
            })
        })
        .collect();
    for round in 0..10 {
        let acknowledged = put(&member, format!("round/{round}"), 1).await;
        let rows = rows(&snapshot(&member).await);
        let revisions: Vec<i64> = rows.iter().map(|(revision, _)| *revision).collect();
        let newest = *revisions.last().unwrap();
        assert!(newest >= acknowledged, "{newest} is older than {acknowledged}");
        assert_eq!(revisions, Vec::from_iter(2..=newest));
        let keys: BTreeSet<String> = rows.into_iter().map(|(_, key)| key).collect();
        assert!((0..=round).all(|round| keys.contains(&format!("round/{round}"))));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_member_begins_from_a_database_and_its_log() {
    let mut member = single("").await;
    for i in 0..300 {
        put(&member, format!("key/{}", i % 70), i).await;
    }
    let file = snapshot(&member).await;
    let revision = put(&member, "after".to_owned(), 10).await;
    let before = member.hash_kv(revision).await;
    member.kill();
    // As an etcd leaves it that was killed: its database behind its log, and no engine.
    let data = member.data_dir().join("member");
    let database = data.join("snap/db");
    std::fs::write(&database, &file).unwrap();
    std::fs::remove_dir_all(data.join("fjall")).unwrap();
    member.start("");
    member.ready().await;
    assert!(member.log().contains("imported etcd's database"));
    assert_eq!(member.hash_kv(revision).await.hash, before.hash);
    let revision = put(&member, "again".to_owned(), 10).await;
    let before = member.hash_kv(revision).await;
    member.kill();
    member.start("");
    member.ready().await;
    assert_eq!(member.log().matches("imported etcd's database").count(), 1);
    assert_eq!(member.hash_kv(revision).await.hash, before.hash);
    member.kill();

    // With nothing else to begin from.
    let mut damaged = file.to_vec();
    damaged[3 * 4096 + 8] = 0x40;
    std::fs::write(&database, &damaged).unwrap();
    std::fs::remove_dir_all(data.join("fjall")).unwrap();
    member.start("");
    assert_eq!(member.ended().await, Some(1));
    assert!(member.log().contains("snap/db: bbolt: page 3: is of unknown kind"));
    std::fs::write(&database, &file).unwrap();
    member.start("");
    member.ready().await;
    assert_eq!(member.hash_kv(revision).await.hash, before.hash);
}
