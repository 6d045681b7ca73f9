//! A compaction that a kill interrupts goes on after the restart.

use super::daemon::{Member, members, single};
use rusd::mvcc::backend::{Backend as _, Bucket};
use rusd::pb::etcdserverpb as rpc;
use rusd::storage::engine::Engine;
use rusd::storage::wal::Wal;
use rustix::process::Signal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Rows of the history; a compaction looks at 1,000 in a step.
const ROWS: usize = 3_500;
const PUTS_PER_TXN: usize = 100;

/// The same history on every member: keys are overwritten, some deleted.
async fn fill(member: &Member) -> i64 {
    let mut kv = member.kv();
    let mut revision = 0;
    for round in 0..ROWS / PUTS_PER_TXN {
        let put = |i: usize| rpc::RequestOp {
            request: Some(rpc::request_op::Request::RequestPut(rpc::PutRequest {
                key: format!("key/{i:03}").into(),
                value: format!("{round}").into(),
                ..Default::default()
            })),
        };
        let success = (0..PUTS_PER_TXN).map(put).collect();
        kv.txn(rpc::TxnRequest { success, ..Default::default() }).await.unwrap();
        let delete = rpc::DeleteRangeRequest { key: "key/007".into(), ..Default::default() };
        let header = kv.delete_range(delete).await.unwrap().into_inner().header;
        revision = header.unwrap().revision;
    }
    revision
}

fn compaction(revision: i64) -> rpc::CompactionRequest {
    rpc::CompactionRequest { revision, physical: true }
}

#[tokio::test]
async fn a_killed_compaction_goes_on() {
    let plain = single("").await;
    let revision = fill(&plain).await;
    plain.kv().compact(compaction(revision)).await.unwrap();

    // The first step is the one that looks for interrupted compactions at the start.
    let mut member = single("compact-step=3*off->pause").await;
    assert_eq!(fill(&member).await, revision);
    let mut kv = member.kv();
    let waiting = tokio::spawn(async move { kv.compact(compaction(revision)).await });
    // StoreActor stands still at its failpoint from here on: nothing more is applied.
    let started = Instant::now();
    while !stands_still(&member).await {
        assert!(started.elapsed() < Duration::from_secs(20), "{}", member.log());
    }
    assert!(!waiting.is_finished(), "a physical compaction is answered at its end");
    member.signal(Signal::KILL);
    assert_eq!(member.ended().await, None);
    waiting.abort();

    member.start("");
    member.ready().await;
    let old = rpc::RangeRequest { key: "key/001".into(), revision: 5, ..Default::default() };
    let refused = member.kv().range(old).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: required revision has been compacted",
        "the compaction was in the log"
    );
    for member in [&plain, &member] {
        member.kv().put(rpc::PutRequest { key: "z".into(), ..Default::default() }).await.unwrap();
    }
    for asked in [revision + 1, 0] {
        let (one, other) = (plain.hash_kv(asked).await, member.hash_kv(asked).await);
        assert_eq!((one.hash, one.compact_revision), (other.hash, other.compact_revision));
    }
    let mut plain = plain;
    let wanted = rows(&mut plain).await;
    // Time for the steps that were left; a stop in the middle of them is a case of its own.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if rows(&mut member).await == wanted {
            return;
        }
        member.start("");
        member.ready().await;
    }
    panic!("the interrupted compaction left rows: {}", member.log());
}

#[tokio::test]
async fn a_physical_compaction_may_take_longer_than_a_request() {
    let mut member = members(1, &["--experimental-compaction-sleep-interval", "2500ms"]).remove(0);
    member.start("");
    member.ready().await;
    let revision = fill(&member).await;
    let begun = Instant::now();
    member.kv().compact(compaction(revision)).await.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(7), "{:?}", begun.elapsed());
    let rows = rows(&mut member).await.len();
    assert_eq!(rows, PUTS_PER_TXN, "all but what lives, and one tombstone, are gone");
}

/// Stops a member; the keys of all rows of its store.
async fn rows(member: &mut Member) -> Vec<Vec<u8>> {
    member.signal(Signal::TERM);
    assert_eq!(member.ended().await, Some(0), "{}", member.log());
    let dir = member.data_dir().join("member");
    let (_, replay) = Wal::open(&dir.join("wal")).unwrap();
    let fatal = Box::new(|reason: &str| panic!("{reason}"));
    let engine = Engine::open(&dir.join("fjall"), replay.metadata, fatal).unwrap().engine;
    let mut rows = Vec::new();
    let visit = &mut |key: &[u8], _: &_| {
        rows.push(key.to_vec());
        ControlFlow::Continue(())
    };
    engine.scan(Bucket::Key, &[], None, visit).unwrap();
    rows
}

/// A write gets no answer.
async fn stands_still(member: &Member) -> bool {
    let put = rpc::PutRequest { key: "probe".into(), lease: 77, ..Default::default() };
    tokio::time::timeout(Duration::from_millis(500), member.kv().put(put)).await.is_err()
}
