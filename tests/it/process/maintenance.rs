//! Defragmenting under load, leadership handed over on request and by a stop, compactions that a
//! leader makes by itself, alarms of several members across a restart.

use super::daemon::{Member, cluster, leader, members, single};
use super::load::{Load, assert_all_there};
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::alarm_request::AlarmAction;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tonic::Code;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

async fn put(member: &Member, key: &str, bytes: usize) -> Result<i64, tonic::Status> {
    let value = vec![b'x'; bytes].into();
    let put = rpc::PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    Ok(member.kv().put(put).await?.into_inner().header.unwrap().revision)
}

async fn member_id(member: &Member) -> u64 {
    member.status().await.header.unwrap().member_id
}

#[tokio::test]
async fn a_defragment_shrinks_the_size_while_writes_go_on() {
    let member = single("").await;
    let mut revision = 0;
    for i in 0..100 {
        revision = put(&member, &format!("old/{}", i % 3), 64 * 1024).await.unwrap();
    }
    let compaction = rpc::CompactionRequest { revision, physical: true };
    member.kv().compact(compaction).await.unwrap();
    let before = member.status().await;
    assert!(before.db_size > 4 * before.db_size_in_use, "{before:?}");
    let load = Load::start(&member);
    for _ in 0..3 {
        member.maintenance().defragment(rpc::DefragmentRequest {}).await.unwrap();
    }
    let after = member.status().await;
    assert!(after.db_size < before.db_size / 2, "{before:?} {after:?}");
    let acknowledged = load.finish().await;
    assert_all_there(&member, &acknowledged).await;
    let count = member.metric("etcd_disk_backend_defrag_duration_seconds_count").await;
    assert_eq!(count.as_deref(), Some("3"));
    assert_eq!(member.metric("etcd_disk_defrag_inflight").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn leadership_moves_to_a_voter_and_no_write_is_lost() {
    let members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let (to, other) = ((at + 1) % 3, (at + 2) % 3);
    let target = member_id(&members[to]).await;
    let ask = async |member: &Member, target_id: u64| {
        let request = rpc::MoveLeaderRequest { target_id };
        member.maintenance().move_leader(request).await.map(drop)
    };
    let refused = ask(&members[other], target).await.unwrap_err();
    let told = (refused.code(), refused.message().to_owned());
    assert_eq!(told, (Code::FailedPrecondition, "etcdserver: not leader".to_owned()));
    let refused = ask(&members[at], 77).await.unwrap_err();
    let told = (refused.code(), refused.message().to_owned());
    assert_eq!(told, (Code::FailedPrecondition, "etcdserver: bad leader transferee".to_owned()));

    let load = Load::start(&members[at]);
    ask(&members[at], target).await.unwrap();
    assert_eq!(leader(&members, &[0, 1, 2]).await, to);
    ask(&members[to], target).await.unwrap();
    let written = put(&members[at], "after", 1).await.unwrap();
    let acknowledged = load.finish().await;
    assert!(written > 1);
    assert_all_there(&members[to], &acknowledged).await;
}

#[tokio::test]
async fn a_leader_that_stops_hands_over() {
    let mut members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let rest = [(at + 1) % 3, (at + 2) % 3];
    let term = members[rest[0]].status().await.raft_term;
    members[at].signal(Signal::TERM);
    assert_eq!(members[at].ended().await, Some(0), "{}", members[at].log());
    assert!(members[at].log().contains("leadership transfer finished"), "{}", members[at].log());
    leader(&members, &rest).await;
    // One election, and that at once: a vote that failed would have taken another term.
    assert_eq!(members[rest[0]].status().await.raft_term, term + 1);
    put(&members[rest[1]], "after", 1).await.unwrap();
}

#[tokio::test]
async fn a_leader_compacts_by_itself() {
    let extra = ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1s"];
    let mut member = members(1, &extra).remove(0);
    member.start("");
    member.ready().await;
    let first = put(&member, "k", 1).await.unwrap();
    let started = Instant::now();
    let mut gone = false;
    while !gone {
        assert!(started.elapsed() < PATIENCE, "nothing was compacted: {}", member.log());
        put(&member, "k", 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let old = rpc::RangeRequest { key: "k".into(), revision: first, ..Default::default() };
        gone = match member.kv().range(old).await {
            Ok(_) => false,
            Err(status) => {
                let text = "etcdserver: mvcc: required revision has been compacted";
                assert_eq!(status.message(), text);
                true
            }
        };
    }
    assert!(started.elapsed() > Duration::from_millis(900), "kept for a second");
    member.logged("completed auto periodic compaction").await;
    member.logged("finished scheduled compaction").await;
}

#[tokio::test]
async fn alarms_of_several_members_outlive_a_restart() {
    let mut members = cluster(3, "").await;
    let alarm = async |member: &Member, action: AlarmAction, member_id: u64, kind: i32| {
        let request = rpc::AlarmRequest { action: action as i32, member_id, alarm: kind };
        member.maintenance().alarm(request).await.unwrap().into_inner().alarms
    };
    let mut raised = Vec::new();
    for (at, kind) in [(0, 1), (1, 1), (2, 2)] {
        let member_id = member_id(&members[at]).await;
        alarm(&members[at], AlarmAction::Activate, member_id, kind).await;
        raised.push(rpc::AlarmMember { member_id, alarm: kind });
    }
    raised.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
    for member in &mut members {
        member.kill();
        member.start("");
    }
    for member in &members {
        // With Corrupt raised, what goes through the log is refused, and reads are not.
        member.ready().await;
        assert_eq!(alarm(member, AlarmAction::Get, 0, 0).await, raised);
        let refused = put(member, "k", 1).await.unwrap_err();
        let told = (refused.code(), refused.message().to_owned());
        assert_eq!(told, (Code::DataLoss, "etcdserver: corrupt cluster".to_owned()));
    }
    for gone in &raised {
        let answer = alarm(&members[0], AlarmAction::Deactivate, gone.member_id, gone.alarm).await;
        assert_eq!(answer, [*gone]);
    }
    members[0].logged("alarm disarmed").await;
    put(&members[1], "k", 1).await.unwrap();
    assert_eq!(alarm(&members[2], AlarmAction::Get, 0, 0).await, []);
}
