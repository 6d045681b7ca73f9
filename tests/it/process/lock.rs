//! Locks and elections: who waits wins in time, who goes away leaves nothing behind.

use super::daemon::{Member, cluster, leader, single};
use super::load::read;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::v3electionpb as electionpb;
use rusd::pb::v3lockpb as lockpb;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::{Response, Status};

const PATIENCE: Duration = Duration::from_secs(30);
/// A waiter wins within this time of the holder's lease going.
const WIN: Duration = Duration::from_secs(1);
/// Leases that end only when they are revoked.
const LONG: i64 = 600;

async fn grant(member: &Member, id: i64, ttl: i64) {
    member.lease().lease_grant(rpc::LeaseGrantRequest { id, ttl }).await.unwrap();
}

async fn revoke(member: &Member, id: i64) {
    member.lease().lease_revoke(rpc::LeaseRevokeRequest { id }).await.unwrap();
}

type Locking = JoinHandle<Result<Response<lockpb::LockResponse>, Status>>;

fn lock(member: &Member, lease: i64) -> Locking {
    let mut lock = member.lock();
    let request = lockpb::LockRequest { name: "lock".into(), lease };
    tokio::spawn(async move { lock.lock(request).await })
}

/// Waits until the keys below `lock/` are those of these leases.
async fn holds(member: &Member, leases: &[i64]) {
    let wanted: Vec<String> = leases.iter().map(|lease| format!("lock/{lease:x}")).collect();
    let started = Instant::now();
    loop {
        let keys: Vec<_> = read(member, "lock/").await.into_iter().map(|kv| kv.key).collect();
        if keys == wanted {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{keys:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn lock_is_won_when_the_holders_lease_goes() {
    let members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let (one, other) = (&members[(at + 1) % 3], &members[(at + 2) % 3]);
    for id in [1, 2, 4] {
        grant(one, id, LONG).await;
    }
    grant(one, 3, 2).await;
    assert_eq!(lock(one, 1).await.unwrap().unwrap().into_inner().key, "lock/1");
    let second = lock(other, 2);
    holds(one, &[1, 2]).await;
    let third = lock(one, 3);
    holds(one, &[1, 2, 3]).await;
    let fourth = lock(&members[at], 4);
    holds(one, &[1, 2, 3, 4]).await;
    revoke(one, 1).await;
    let gone = Instant::now();
    assert_eq!(second.await.unwrap().unwrap().into_inner().key, "lock/2");
    assert!(gone.elapsed() < WIN, "{:?}", gone.elapsed());
    // The third has expired meanwhile, which does not make the fourth the holder.
    holds(one, &[2, 4]).await;
    assert!(!fourth.is_finished());
    let unlock = lockpb::UnlockRequest { key: "lock/2".into() };
    one.lock().unlock(unlock).await.unwrap();
    let gone = Instant::now();
    assert_eq!(fourth.await.unwrap().unwrap().into_inner().key, "lock/4");
    assert!(gone.elapsed() < WIN, "{:?}", gone.elapsed());
    let expired = third.await.unwrap().unwrap_err();
    assert_eq!(expired.message(), "mutex: session is expired");
}

#[tokio::test]
async fn lock_calls_that_end_early_leave_no_key() {
    const WAITERS: i64 = 100;
    let member = single("").await;
    grant(&member, 1, LONG).await;
    lock(&member, 1).await.unwrap().unwrap();
    let mut waiters = Vec::new();
    for id in 2..2 + WAITERS {
        grant(&member, id, LONG).await;
        waiters.push(lock(&member, id));
    }
    let last = waiters.pop().unwrap();
    holds_count(&member, 1 + WAITERS as usize).await;
    // Some go while they wait, some with their deadline.
    let mut request = tonic::Request::new(lockpb::LockRequest { name: "lock".into(), lease: 0 });
    request.set_timeout(Duration::from_millis(300));
    let late = member.lock().lock(request).await.unwrap_err();
    // The client's library and the server race to be the first to say so.
    let ended = [tonic::Code::DeadlineExceeded, tonic::Code::Cancelled];
    assert!(ended.contains(&late.code()), "{late}");
    for waiter in waiters {
        waiter.abort();
    }
    holds(&member, &[1, 1 + WAITERS]).await;
    let series = "etcd_debugging_mvcc_watcher_total";
    let started = Instant::now();
    while member.metric(series).await.as_deref() != Some("1") {
        let now = member.metric(series).await;
        assert!(started.elapsed() < PATIENCE, "{now:?} watchers, one call waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    revoke(&member, 1).await;
    last.await.unwrap().unwrap();
}

async fn holds_count(member: &Member, count: usize) {
    let started = Instant::now();
    while read(member, "lock/").await.len() != count {
        assert!(started.elapsed() < PATIENCE, "{}", read(member, "lock/").await.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn lock_elections_pass_on_and_observers_see_each_leader() {
    let member = single("").await;
    let request = electionpb::LeaderRequest { name: "e".into() };
    let mut seen = member.election().observe(request.clone()).await.unwrap().into_inner();
    let campaign = |lease: i64, value: &'static str| {
        let mut election = member.election();
        let request = electionpb::CampaignRequest { name: "e".into(), lease, value: value.into() };
        tokio::spawn(async move { election.campaign(request).await })
    };
    for id in [1, 2] {
        grant(&member, id, LONG).await;
    }
    let first = campaign(1, "one").await.unwrap().unwrap().into_inner().leader.unwrap();
    let second = campaign(2, "two");
    let started = Instant::now();
    while read(&member, "e/").await.len() < 2 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let proclaim =
        electionpb::ProclaimRequest { leader: Some(first.clone()), value: "more".into() };
    member.election().proclaim(proclaim).await.unwrap();
    let leader = member.election().leader(request).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((&leader.key[..], &leader.value[..]), (&b"e/1"[..], &b"more"[..]));
    let resign = electionpb::ResignRequest { leader: Some(first) };
    member.election().resign(resign).await.unwrap();
    let gone = Instant::now();
    second.await.unwrap().unwrap();
    assert!(gone.elapsed() < WIN, "{:?}", gone.elapsed());
    for value in ["one", "more", "two"] {
        let news = tokio::time::timeout(PATIENCE, seen.message()).await.unwrap();
        assert_eq!(news.unwrap().unwrap().kv.unwrap().value, value);
    }
}
