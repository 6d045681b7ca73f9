//! Leases across panics, followers, dead leaders and leaders that were asleep.

use super::daemon::{Member, cluster, leader, single};
use super::load::{Load, assert_all_there, read};
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::lease_client::LeaseClient;
use rusd::pb::v3lockpb as lockpb;
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(30);
/// What a promotion adds to every lease: the election timeout.
const EXTENSION: i64 = 1;

/// Grants a lease with a key on it.
async fn grant(member: &Member, id: i64, ttl: i64) {
    let granted = member.lease().lease_grant(rpc::LeaseGrantRequest { id, ttl }).await.unwrap();
    assert_eq!(granted.into_inner().ttl, ttl);
    let put = rpc::PutRequest { key: key(id).into(), lease: id, ..Default::default() };
    member.kv().put(put).await.unwrap();
}

fn key(id: i64) -> String {
    format!("leased/{id}")
}

/// Renews once, on a stream of its own: the TTL told, 0 for a lease that is gone.
async fn renew(member: &Member, id: i64) -> Result<i64, tonic::Status> {
    let request = tokio_stream::iter([rpc::LeaseKeepAliveRequest { id }]);
    let mut answers = member.lease().lease_keep_alive(request).await?.into_inner();
    let answer = answers.message().await?;
    Ok(answer.ok_or_else(|| tonic::Status::unavailable("no answer"))?.ttl)
}

/// The rest of a lease's time; −1 when it is gone.
async fn remaining(member: &Member, id: i64) -> i64 {
    let request = rpc::LeaseTimeToLiveRequest { id, keys: true };
    let answer = member.lease().lease_time_to_live(request).await.unwrap().into_inner();
    if answer.ttl >= 0 {
        assert_eq!(answer.keys, [key(id)]);
    }
    answer.ttl
}

async fn is_there(member: &Member, id: i64) -> bool {
    !read(member, &key(id)).await.is_empty()
}

/// Waits until a lease's key is gone: after how long.
async fn expires(member: &Member, id: i64) -> Duration {
    let started = Instant::now();
    while is_there(member, id).await {
        assert!(started.elapsed() < PATIENCE, "lease {id} does not expire: {}", member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn lease_keeper_panics_and_is_made_anew() {
    // A look every 500 ms: it panics two seconds after the start.
    let member = single("lease-look=4*off->1*panic").await;
    let load = Load::start(&member);
    grant(&member, 1, 3).await;
    grant(&member, 2, 3).await;
    let restarts = async || member.metric("rusd_actor_restarts_total{actor=\"LeaseKeeper\"}").await;
    assert_eq!(restarts().await.as_deref(), Some("0"));
    member.logged("an actor panicked and is made anew").await;
    member.logged("failpoint lease-look panic").await;
    assert_eq!(restarts().await.as_deref(), Some("1"));
    // Both have their whole time again and one election timeout more.
    assert!((2..=3 + EXTENSION).contains(&remaining(&member, 1).await));

    let renewals = Instant::now();
    let mut gone_after = None;
    while renewals.elapsed() < Duration::from_secs(8) {
        assert_eq!(renew(&member, 2).await.unwrap(), 3);
        if gone_after.is_none() && !is_there(&member, 1).await {
            gone_after = Some(renewals.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let gone_after = gone_after.expect("the lease that nobody renews expires");
    assert!(gone_after > Duration::from_secs(2), "{gone_after:?}: before its time");
    assert!(is_there(&member, 2).await);
    expires(&member, 2).await;
    let acknowledged = load.finish().await;
    assert_all_there(&member, &acknowledged).await;
}

/// Keeps a lease alive on one stream after the other, each until it fails.
async fn keep_alive(member: Channel, id: i64, renewals: Arc<AtomicU64>) {
    loop {
        let asks = tokio_stream::iter(std::iter::repeat_n(rpc::LeaseKeepAliveRequest { id }, 1000));
        let asks = asks.throttle(Duration::from_millis(20));
        let Ok(answers) = LeaseClient::new(member.clone()).lease_keep_alive(asks).await else {
            continue;
        };
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            assert!(answer.ttl > 0, "lease {id} is gone");
            renewals.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn lease_keeper_panics_and_locks_stay_with_their_holders() {
    const SESSIONS: i64 = 20;
    let member = single("lease-look=2*off->1*panic->3*off->1*panic").await;
    let load = Load::start(&member);
    let renewals = Arc::new(AtomicU64::new(0));
    let mut kept = Vec::new();
    for id in 1..=SESSIONS {
        let request = rpc::LeaseGrantRequest { id, ttl: 2 };
        member.lease().lease_grant(request).await.unwrap();
        kept.push(tokio::spawn(keep_alive(member.channel(), id, renewals.clone())));
    }
    let take = |lease: i64| {
        let mut lock = member.lock();
        let request = lockpb::LockRequest { name: "held".into(), lease };
        tokio::spawn(async move { lock.lock(request).await.map(|held| held.into_inner().key) })
    };
    assert_eq!(take(1).await.unwrap().unwrap(), "held/1");
    let mut waiters = Vec::new();
    for id in 2..=SESSIONS {
        waiters.push(take(id));
        while read(&member, "held/").await.len() < id as usize {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let restarts = async || member.metric("rusd_actor_restarts_total{actor=\"LeaseKeeper\"}").await;
    let started = Instant::now();
    while restarts().await.as_deref() != Some("2") {
        assert!(started.elapsed() < PATIENCE, "{}", member.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Longer than any lease lives without its renewals, the extension included.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = renewals.load(Ordering::Relaxed);
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "held/1 is still the holder");
    assert_eq!(read(&member, "held/").await.len(), SESSIONS as usize);
    // The holder dies: its lease ends, and the next one in line has the lock.
    kept.remove(0).abort();
    assert_eq!(waiters.remove(0).await.unwrap().unwrap(), "held/2");
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    assert!(renewals.load(Ordering::Relaxed) > before, "the others are renewed");
    kept.iter().for_each(tokio::task::JoinHandle::abort);
    assert_all_there(&member, &load.finish().await).await;
}

#[tokio::test]
async fn lease_calls_wait_for_a_leader_and_say_that_there_is_none() {
    let members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let others = [(at + 1) % 3, (at + 2) % 3];
    grant(&members[at], 4, 60).await;
    let alone = &members[others[0]];
    for i in [at, others[1]] {
        members[i].signal(Signal::STOP);
    }
    let started = Instant::now();
    let request = rpc::LeaseTimeToLiveRequest { id: 4, keys: false };
    let mut lease = alone.lease();
    let (renewed, asked) = tokio::join!(renew(alone, 4), lease.lease_time_to_live(request));
    let took = started.elapsed();
    for refused in [renewed.unwrap_err(), asked.unwrap_err()] {
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert_eq!(refused.message(), "etcdserver: no leader");
    }
    assert!((6..10).contains(&took.as_secs()), "{took:?}: the request timeout");
    // A call that is under way when a leader comes back is answered by it.
    let waiting = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        members[others[1]].signal(Signal::CONT);
    };
    let (renewed, ()) = tokio::join!(renew(alone, 4), waiting);
    assert_eq!(renewed.unwrap(), 60);
    members[at].signal(Signal::CONT);
    assert!(remaining(alone, 4).await > 50);
}

#[tokio::test]
async fn a_lease_keeper_that_always_panics_ends_the_member() {
    let mut member = single("lease-look=panic").await;
    assert_eq!(member.ended().await, Some(1));
    let log = member.log();
    assert!(log.contains("fatal: the member stops") && log.contains("made anew 5 times"), "{log}");
}

#[tokio::test]
async fn followers_forward_and_an_expiry_happens_once() {
    let members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let (one, other) = (&members[(at + 1) % 3], &members[(at + 2) % 3]);
    grant(one, 5, 4).await;
    for member in &members {
        assert_eq!(renew(member, 5).await.unwrap(), 4);
        assert!((3..=4).contains(&remaining(member, 5).await));
        assert_eq!(renew(member, 6).await.unwrap(), 0, "no such lease");
        assert_eq!(remaining(member, 6).await, -1);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(remaining(other, 5).await <= 1);
    assert_eq!(renew(other, 5).await.unwrap(), 4);
    let before = members[at].status().await.header.unwrap().revision;
    assert!(expires(one, 5).await > Duration::from_secs(3), "renewed through a follower");
    // Long enough for a second revoke, which the keeper proposes after 3 s.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for member in &members {
        assert_eq!(member.status().await.header.unwrap().revision, before + 1);
        assert_eq!(remaining(member, 5).await, -1);
    }
}

#[tokio::test]
async fn a_new_leader_extends_leases() {
    let mut members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let rest = [(at + 1) % 3, (at + 2) % 3];
    grant(&members[at], 8, 5).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(remaining(&members[at], 8).await <= 1);
    members[at].kill();
    let next = leader(&members, &rest).await;
    let follower = if next == rest[0] { rest[1] } else { rest[0] };
    assert!(remaining(&members[follower], 8).await > 1, "its whole time begins again");
    let took = expires(&members[follower], 8).await;
    assert!(took > Duration::from_secs(3), "{took:?}: before its time");
    assert!(took < Duration::from_secs(10), "{took:?}: long after its time");
}

/// A leader that slept through an election must not revoke what its successor has renewed, nor have
/// its successor do it (etcd#15247). The failpoint lets the election reach RaftActor between the
/// keeper's look, in which it still leads, and its proposal.
#[tokio::test]
async fn a_leader_that_was_asleep_revokes_nothing() {
    let members = cluster(3, "lease-revoke=sleep(1000)").await;
    for id in 20..22 {
        let at = leader(&members, &[0, 1, 2]).await;
        let rest = [(at + 1) % 3, (at + 2) % 3];
        grant(&members[at], id, 2).await;
        members[at].signal(Signal::STOP);
        let next = leader(&members, &rest).await;
        let asleep = Instant::now();
        while asleep.elapsed() < Duration::from_secs(4) {
            assert_eq!(renew(&members[next], id).await.unwrap(), 2);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        members[at].signal(Signal::CONT);
        let awake = Instant::now();
        while awake.elapsed() < Duration::from_secs(4) {
            assert_eq!(renew(&members[next], id).await.unwrap(), 2, "{}", members[at].log());
            assert!(is_there(&members[next], id).await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        expires(&members[next], id).await;
    }
}
