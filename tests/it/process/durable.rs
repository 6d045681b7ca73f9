//! A failure of what owns durable state ends the process with 1 and says why; the next start has
//! everything that was acknowledged.

use super::daemon::{cluster, leader, single};
use super::load::{Load, assert_all_there};
use std::time::Duration;

/// Loads a member until its failpoint ends it, and starts it again without.
async fn ends_and_loses_nothing(failpoints: &str, said: &[&str]) {
    let mut member = single(failpoints).await;
    let load = Load::start(&member);
    assert_eq!(member.ended().await, Some(1), "{}", member.log());
    let log = member.log();
    for text in said {
        assert!(log.contains(text), "no {text:?} in the log:\n{log}");
    }
    let acknowledged = load.finish().await;
    member.start("");
    member.ready().await;
    assert_all_there(&member, &acknowledged).await;
    // The log's records and the rebuilt store go on to work.
    let load = Load::start(&member);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let more = load.finish().await;
    assert_all_there(&member, &more).await;
}

#[tokio::test]
async fn raft_actor_panics() {
    let said = ["fatal: the member stops", "RaftActor panicked: failpoint raft-flush panic"];
    ends_and_loses_nothing("raft-flush=500*off->panic", &said).await;
}

#[tokio::test]
async fn store_actor_panics() {
    let said = ["fatal: the member stops", "StoreActor panicked: failpoint store-apply panic"];
    ends_and_loses_nothing("store-apply=500*off->panic", &said).await;
}

#[tokio::test]
async fn an_entry_is_written_and_the_member_ends_before_the_sync() {
    let said = ["RaftActor panicked: failpoint wal-written panic"];
    ends_and_loses_nothing("wal-written=200*off->panic", &said).await;
}

#[tokio::test]
async fn a_sync_of_the_log_fails() {
    let said = ["fatal: the member stops", "failed to write the WAL", "Input/output error"];
    ends_and_loses_nothing("wal-sync=200*off->return(EIO)", &said).await;
}

#[tokio::test]
async fn the_disk_is_full() {
    let said = ["fatal: the member stops", "failed to write the WAL", "No space left on device"];
    ends_and_loses_nothing("wal-write=200*off->return(ENOSPC)", &said).await;
}

#[tokio::test]
async fn a_commit_of_the_engine_fails() {
    let said = ["the engine failed", "fatal: the member stops", "Input/output error"];
    ends_and_loses_nothing("engine-commit=50*off->return(EIO)", &said).await;
}

/// A disk that takes longer than a heartbeat interval costs time and no leader.
#[tokio::test]
async fn a_slow_disk_starts_no_election() {
    let members = cluster(3, "wal-sync=sleep(150)").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let term = members[at].status().await.raft_term;
    let load = Load::start(&members[at]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let acknowledged = load.finish().await;
    for member in &members {
        assert_all_there(member, &acknowledged).await;
        assert_eq!(member.status().await.raft_term, term, "{}", member.log());
    }
}
