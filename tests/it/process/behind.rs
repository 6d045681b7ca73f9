//! Members that are so far behind that the others have released the log they need: they get a
//! snapshot, whatever breaks on the way, and are then as if they had been there all along.

use super::checkpoint::verify;
use super::daemon::{Member, joiner, leader, members, start};
use super::membership::{id, once_healthy, try_add};
use super::watch::{read, watch};
use rusd::pb::authpb;
use rusd::pb::etcdserverpb as rpc;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Generous: the machine, and its disk, may be busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a member must not be behind by.
const FLAGS: &[&str] =
    &["--snapshot-count", "20", "--experimental-snapshot-catchup-entries", "5", "--max-wals", "1"];
/// The log is not kept for those who have just got a snapshot, so that a test has many of them.
const BRIEF: &str = "log-kept=return(EIO)";
const APPLIED: &str = "\"applied snapshot\"";

async fn put(member: &Member, key: &str) -> i64 {
    put_bytes(member, key, 500).await
}

async fn put_bytes(member: &Member, key: &str, bytes: usize) -> i64 {
    let value = vec![b'v'; bytes].into();
    let put = rpc::PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    let started = Instant::now();
    loop {
        match member.kv().put(put.clone()).await {
            Ok(done) => return done.into_inner().header.unwrap().revision,
            Err(status) => assert!(started.elapsed() < PATIENCE, "{status}"),
        }
    }
}

/// Where the log that a member sends begins: the newest that it has logged.
fn log_begins(member: &Member) -> u64 {
    let log = member.log();
    let last = log.lines().rev().find(|line| line.contains("\"compacted Raft logs\""));
    let index = last.and_then(|line| line.split("\"compact-index\":").nth(1));
    index.map_or(0, |index| index.trim_end_matches('}').parse().unwrap())
}

/// Writes until who has nothing of it needs a snapshot.
async fn put_many(member: &Member) {
    let (index, started) = (member.status().await.raft_index, Instant::now());
    for number in 0..100 {
        put(member, &format!("watched/{}", number % 7)).await;
    }
    // A snapshot file waits for the database file, which rests after each time.
    while log_begins(member) <= index {
        put(member, "watched/more").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(started.elapsed() < PATIENCE, "the log is not released:\n{}", member.log());
    }
}

/// Waits until a member's store is that of another.
async fn assert_same(member: &Member, other: &Member) {
    let expected = other.hash_kv(0).await;
    let revision = expected.header.as_ref().unwrap().revision;
    let started = Instant::now();
    loop {
        let request = rpc::HashKvRequest { revision };
        match member.maintenance().hash_kv(request).await.map(tonic::Response::into_inner) {
            Ok(found) if found.compact_revision == expected.compact_revision => {
                return assert_eq!(found.hash, expected.hash);
            }
            told => assert!(started.elapsed() < PATIENCE, "{told:?}; its log:\n{}", member.log()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A cluster whose member that is given by number is down, and the log it needs is released.
async fn one_behind() -> (Vec<Member>, usize, usize) {
    let mut members = start(self::members(3, FLAGS), BRIEF).await;
    let at = leader(&members, &[0, 1, 2]).await;
    let behind = (at + 1) % 3;
    put(&members[at], "watched/0").await;
    members[behind].kill();
    put_many(&members[at]).await;
    (members, at, behind)
}

#[tokio::test]
async fn behind_member_has_everything_that_the_others_have() {
    let (mut members, at, behind) = one_behind().await;
    let lease = rpc::LeaseGrantRequest { id: 77, ttl: 600 };
    members[at].lease().lease_grant(lease).await.unwrap();
    let held = rpc::PutRequest { key: "held".into(), lease: 77, ..Default::default() };
    members[at].kv().put(held).await.unwrap();
    let user = rpc::AuthUserAddRequest {
        name: "alice".into(),
        password: "secret".into(),
        options: Some(authpb::UserAddOptions::default()),
        ..Default::default()
    };
    members[at].auth().user_add(user).await.unwrap();
    let compaction = rpc::CompactionRequest { revision: 50, physical: true };
    members[at].kv().compact(compaction).await.unwrap();
    put_many(&members[at]).await;
    members[behind].start(BRIEF);
    members[behind].logged(APPLIED).await;
    members[behind].ready().await;
    for life in 0..3 {
        assert_same(&members[behind], &members[at]).await;
        let request = rpc::LeaseTimeToLiveRequest { id: 77, keys: true };
        let told = members[behind].lease().lease_time_to_live(request).await.unwrap();
        assert_eq!(told.get_ref().granted_ttl, 600);
        assert_eq!(told.get_ref().keys, ["held"]);
        let request = rpc::AuthUserListRequest {};
        let users = members[behind].auth().user_list(request).await.unwrap().into_inner().users;
        assert_eq!(users, ["alice"]);
        put_many(&members[behind]).await;
        if life == 0 {
            members[behind].kill();
            verify(&members[behind]);
        } else {
            members[behind].signal(Signal::TERM);
            assert_eq!(members[behind].ended().await, Some(0));
            let engine = members[behind].data_dir().join("member/fjall");
            assert!(!engine.exists(), "the engine before is gone");
        }
        members[behind].start(BRIEF);
        members[behind].ready().await;
    }
    let log = members[at].log();
    let sent = log.matches("\"sent database snapshot\"").count();
    assert!(sent >= 1, "{log}");
    // What it has is enough to lead.
    members[at].kill();
    let others = [behind, 3 - at - behind];
    leader(&members, &others).await;
    put_many(&members[behind]).await;
    assert_same(&members[others[1]], &members[behind]).await;
    members[at].start(BRIEF);
    members[at].ready().await;
    assert_same(&members[at], &members[behind]).await;
}

#[tokio::test]
async fn behind_member_that_was_asleep_tells_its_watchers_everything() {
    let members = start(self::members(3, FLAGS), BRIEF).await;
    let at = leader(&members, &[0, 1, 2]).await;
    let behind = (at + 1) % 3;
    let mut answers = watch(&members[behind], 0).await;
    let first = put(&members[at], "watched/k").await;
    read(&mut answers, first, first).await;
    let lives = members[at].log().matches("lost TCP streaming connection").count();
    members[behind].signal(Signal::STOP);
    // What is on its way to a member that sleeps it reads when it wakes up: until its connections
    // are given up.
    let started = Instant::now();
    while members[at].log().matches("lost TCP streaming connection").count() < lives + 2 {
        put(&members[at], "watched/k").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(started.elapsed() < PATIENCE);
    }
    let (index, started) = (members[at].status().await.raft_index, Instant::now());
    while log_begins(&members[at]) <= index {
        put(&members[at], "watched/k").await;
        assert!(started.elapsed() < PATIENCE, "{}", members[at].log());
    }
    members[behind].signal(Signal::CONT);
    let mut last = put(&members[at], "watched/k").await;
    read(&mut answers, first + 1, last).await;
    assert!(members[behind].log().contains(APPLIED), "{}", members[behind].log());
    for _ in 0..30 {
        last = put(&members[behind], "watched/k").await;
    }
    read(&mut answers, last - 29, last).await;
    assert_same(&members[behind], &members[at]).await;
}

#[tokio::test]
async fn behind_member_crashes_at_every_step_and_recovers() {
    let (mut members, at, behind) = one_behind().await;
    let steps = [
        "install-save",
        "snap-write",
        "install-recorded",
        "install-rename",
        "install-import",
        "install-swap",
    ];
    for step in steps {
        members[behind].start(&format!("{BRIEF};{step}=panic"));
        assert_eq!(members[behind].ended().await, Some(1), "{step}");
        // The start after it may find everything there, or be behind again.
        members[behind].start(BRIEF);
        members[behind].ready().await;
        assert_same(&members[behind], &members[at]).await;
        members[behind].kill();
        verify(&members[behind]);
        put_many(&members[at]).await;
    }
    // Errors on the way are tried again.
    for fault in ["snap-receive=2*return(EIO)->off", "snap-received=1*panic->off"] {
        members[behind].start(&format!("{BRIEF};{fault}"));
        members[behind].ready().await;
        assert_same(&members[behind], &members[at]).await;
        members[behind].kill();
        put_many(&members[at]).await;
    }
}

#[tokio::test]
async fn behind_member_survives_the_end_of_who_sends() {
    let faults = "snap-send=1*return(EIO)->off;snap-sending=2*off->1*return(EIO)->3*off->pause";
    let mut members = start(self::members(3, FLAGS), &format!("{BRIEF};{faults}")).await;
    let at = leader(&members, &[0, 1, 2]).await;
    let (behind, third) = ((at + 1) % 3, (at + 2) % 3);
    members[behind].kill();
    // Many parts.
    for _ in 0..4 {
        put_bytes(&members[at], "large", 1_000_000).await;
    }
    put_many(&members[at]).await;
    members[behind].start(BRIEF);
    // It fails, fails in the middle, and then hangs in the middle.
    let started = Instant::now();
    while members[at].log().matches("failed to send database snapshot").count() < 2 {
        assert!(started.elapsed() < PATIENCE, "{}", members[at].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!members[behind].log().contains(APPLIED));
    members[third].kill();
    members[third].start(BRIEF);
    members[third].ready().await;
    members[at].kill();
    leader(&members, &[behind, third]).await;
    members[behind].ready().await;
    assert_same(&members[behind], &members[third]).await;
    members[at].start(BRIEF);
    members[at].ready().await;
    assert_same(&members[at], &members[third]).await;
}

#[tokio::test]
async fn behind_are_those_who_join_after_the_log_was_released() {
    let mut cluster = members(1, FLAGS);
    cluster[0].start(BRIEF);
    cluster[0].ready().await;
    put_many(&cluster[0]).await;
    for (name, is_learner) in [("m1", false), ("m2", true)] {
        let mut new = joiner(name, &cluster.iter().collect::<Vec<_>>());
        once_healthy(async || try_add(&cluster[0], &new.peer_url, is_learner).await).await;
        FLAGS.chunks(2).for_each(|pair| new.more(pair[0], pair[1]));
        new.start(BRIEF);
        new.logged(APPLIED).await;
        new.logged("ready to serve client requests").await;
        if !is_learner {
            assert_same(&new, &cluster[0]).await;
        }
        cluster.push(new);
        put_many(&cluster[0]).await;
    }
    // A start from the snapshot's file has the same members, with the same votes.
    cluster[2].kill();
    cluster[2].start(BRIEF);
    cluster[2].logged("the log follows a snapshot").await;
    cluster[2].logged("ready to serve client requests").await;
    assert!(cluster[2].status().await.is_learner);
    let started = Instant::now();
    let request = rpc::MemberPromoteRequest { id: id(&cluster[2]).await };
    while let Err(status) = cluster[1].cluster().member_promote(request).await {
        assert!(started.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster[2].ready().await;
    put_many(&cluster[2]).await;
    assert_same(&cluster[2], &cluster[0]).await;
}
