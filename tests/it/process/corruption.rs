//! Members that compare their stores. The tests in which a leader finds a changed one pass with
//! etcd 3.5.17 (`RUSD_IT_BINARY`); an etcd that has taken no snapshot knows nobody to ask at its
//! start.

use super::daemon::{Member, leader, members, start};
use super::snapshot::snapshot;
use bytes::Bytes;
use prost::Message as _;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::alarm_request::AlarmAction;
use rusd::pb::mvccpb::KeyValue;
use rusd::storage::bbolt::{Bucket, Db, Direction, Item, Writer};
use std::fs;
use std::time::{Duration, Instant};

/// How long an alarm may take.
const PATIENCE: Duration = Duration::from_secs(20);

async fn put(member: &Member, value: &str) {
    let put =
        rpc::PutRequest { key: "k".into(), value: value.to_owned().into(), ..Default::default() };
    member.kv().put(put).await.unwrap();
}

async fn alarms(member: &Member) -> Vec<(u64, i32)> {
    let get = rpc::AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
    let alarms = member.maintenance().alarm(get).await.unwrap().into_inner().alarms;
    alarms.into_iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect()
}

async fn raised(member: &Member) {
    let begun = Instant::now();
    while alarms(member).await != [(0, rpc::AlarmType::Corrupt as i32)] {
        assert!(begun.elapsed() < PATIENCE, "no alarm; the log:\n{}", member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A database file with every user value changed.
fn corrupted(file: Bytes) -> Vec<u8> {
    let db = Db::open(file).unwrap();
    let root: Bucket = db.root();
    let mut names = Vec::new();
    for item in db.walk(&root, Direction::Forward) {
        let Item::Bucket(name, bucket) = item.unwrap() else { panic!("a row") };
        names.push((name, bucket));
    }
    let mut writer = Writer::new(Vec::new());
    for (name, bucket) in names {
        writer.bucket(&name).unwrap();
        for item in db.walk(&bucket, Direction::Forward) {
            let Item::Row(key, value) = item.unwrap() else { panic!("a bucket") };
            if &name[..] == b"key" {
                let mut row = KeyValue::decode(value).unwrap();
                row.value = [&b"corrupt "[..], &row.value].concat().into();
                writer.row(&key, &row.encode_to_vec()).unwrap();
            } else {
                writer.row(&key, &value).unwrap();
            }
        }
    }
    let (plan, pages) = writer.finish().unwrap();
    [plan.meta_pages(1 << 20), pages].concat()
}

/// Stops a member and changes its store behind its back.
async fn corrupt(member: &mut Member) {
    let file = corrupted(snapshot(member).await);
    member.kill();
    fs::write(member.data_dir().join("member/snap/db"), file).unwrap();
}

const EVERY: &str = "--experimental-corrupt-check-time=300ms";

#[tokio::test]
async fn a_changed_store_is_found_by_the_leader() {
    let mut members = start(members(3, &[EVERY]), "").await;
    for i in 0..10 {
        put(&members[i % 3], &i.to_string()).await;
    }
    let leads = leader(&members, &[0, 1, 2]).await;
    members[leads].logged("finished peer corruption check").await;
    assert_eq!(alarms(&members[0]).await, []);
    let victim = (leads + 1) % 3;
    corrupt(&mut members[victim]).await;
    members[victim].start("");
    raised(&members[leads]).await;
    members[leads].logged("same compact revision then hashes must match").await;
}

#[tokio::test]
async fn a_changed_store_is_found_by_its_member_and_looks_outlive_a_panic() {
    let failpoint = "corruption-look=1*off->1*panic(on purpose)->off";
    let mut members = start(members(3, &[EVERY]), failpoint).await;
    for i in 0..10 {
        put(&members[i % 3], &i.to_string()).await;
    }
    for member in &members {
        member.logged("an actor panicked and is made anew").await;
    }
    // Two flags that take no value of their own.
    members[0].more("--experimental-initial-corrupt-check", "--pre-vote=true");
    members[0].kill();
    members[0].start("");
    members[0].logged("initial corruption checking passed; no corruption").await;
    members[0].ready().await;
    corrupt(&mut members[0]).await;
    members[0].start("");
    assert_eq!(members[0].ended().await, Some(1));
    members[0].logged("found data inconsistency with peers").await;
    let leads = leader(&members, &[1, 2]).await;
    assert_eq!(alarms(&members[leads]).await, []);
    members[leads].logged("finished peer corruption check").await;
}

#[tokio::test]
async fn a_changed_store_is_found_after_a_compaction() {
    let flags = [
        "--experimental-compact-hash-check-enabled",
        "--experimental-compact-hash-check-time=300ms",
    ];
    let mut members = start(members(3, &flags), "").await;
    for i in 0..10 {
        put(&members[0], &i.to_string()).await;
    }
    let compact = async |member: &Member, revision| {
        let request = rpc::CompactionRequest { revision, physical: true };
        member.kv().compact(request).await.unwrap();
    };
    compact(&members[1], 4).await;
    let leads = leader(&members, &[0, 1, 2]).await;
    members[leads].logged("successfully checked hash on whole cluster").await;
    let victim = (leads + 1) % 3;
    corrupt(&mut members[victim]).await;
    members[victim].start("");
    members[victim].ready().await;
    assert_eq!(alarms(&members[victim]).await, []);
    compact(&members[leads], 9).await;
    raised(&members[leads]).await;
    members[leads].logged("failed compaction hash check").await;
}
