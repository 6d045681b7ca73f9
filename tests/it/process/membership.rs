//! Members come and go while others write: nothing acknowledged is lost, and all agree on who is
//! left.

use super::daemon::{Member, cluster, joiner, leader, single};
use super::load::{Load, assert_all_there};
use rusd::pb::etcdserverpb as rpc;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const REMOVED: &str = "the member has been permanently removed from the cluster";

async fn list(member: &Member) -> Vec<rpc::Member> {
    let request = rpc::MemberListRequest { linearizable: true };
    member.cluster().member_list(request).await.unwrap().into_inner().members
}

pub(super) async fn id(member: &Member) -> u64 {
    member.status().await.header.unwrap().member_id
}

pub(super) async fn try_add(at: &Member, url: &str, is_learner: bool) -> Result<u64, Status> {
    let request = rpc::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    let added = at.cluster().member_add(request).await?.into_inner();
    let member = added.member.unwrap();
    assert_eq!((&member.peer_ur_ls[..], member.is_learner), (&[url.to_owned()][..], is_learner));
    assert!(added.members.contains(&member), "{:?}", added.members);
    Ok(member.id)
}

async fn try_remove(at: &Member, id: u64) -> Result<Vec<rpc::Member>, Status> {
    let request = rpc::MemberRemoveRequest { id };
    Ok(at.cluster().member_remove(request).await?.into_inner().members)
}

/// Repeats a change that is refused while the others have not been connected for long enough.
pub(super) async fn once_healthy<T>(mut change: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let started = Instant::now();
    loop {
        match change().await {
            Ok(done) => return done,
            Err(status) => {
                let waits = ["etcdserver: unhealthy cluster", "etcdserver: no leader"];
                assert!(waits.contains(&status.message()), "{status}");
                assert!(started.elapsed() < PATIENCE, "{status}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Adds a member, and starts it.
async fn grow(members: &mut Vec<Member>, name: &str) {
    let others: Vec<&Member> = members.iter().collect();
    let mut new = joiner(name, &others);
    once_healthy(async || try_add(&members[0], &new.peer_url, false).await).await;
    new.start("");
    new.ready().await;
    members.push(new);
}

async fn assert_alike(members: &[&Member]) {
    let (expected, hash) = (list(members[0]).await, members[0].hash_kv(0).await);
    let revision = hash.header.unwrap().revision;
    for member in members {
        assert_eq!(list(member).await, expected);
        assert_eq!(member.hash_kv(revision).await.hash, hash.hash);
    }
}

#[tokio::test]
async fn membership_grows_from_one_to_three_and_shrinks_under_writers() {
    let mut members = vec![single("").await];
    let load = Load::start(&members[0]);
    grow(&mut members, "m1").await;
    grow(&mut members, "m2").await;
    let more = Load::start(&members[2]);
    let gone = id(&members[1]).await;
    once_healthy(async || try_remove(&members[0], gone).await).await;
    assert_eq!(members[1].ended().await, Some(0), "{}", members[1].log());
    assert!(members[1].log().contains(REMOVED), "{}", members[1].log());
    let mut acknowledged = load.finish().await;
    acknowledged.extend(more.finish().await);
    for member in [&members[0], &members[2]] {
        assert_all_there(member, &acknowledged).await;
    }
    assert_eq!(list(&members[0]).await.len(), 2);
    assert_alike(&[&members[0], &members[2]]).await;
    // It stays outside, and the others know each other after a start.
    members[1].start("");
    assert_eq!(members[1].ended().await, Some(0), "{}", members[1].log());
    let table = list(&members[0]).await;
    for at in [0, 2] {
        members[at].kill();
    }
    for at in [0, 2] {
        members[at].start("");
    }
    for at in [0, 2] {
        members[at].ready().await;
        assert_eq!(list(&members[at]).await, table);
        assert_all_there(&members[at], &acknowledged).await;
    }
    assert_alike(&[&members[0], &members[2]]).await;
}

#[tokio::test]
async fn membership_without_its_leader_goes_on() {
    let mut members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let gone = id(&members[at]).await;
    let left = once_healthy(async || try_remove(&members[at], gone).await).await;
    assert_eq!(left.len(), 2);
    assert_eq!(members[at].ended().await, Some(0), "{}", members[at].log());
    let others = [(at + 1) % 3, (at + 2) % 3];
    leader(&members, &others).await;
    let load = Load::start(&members[others[0]]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let acknowledged = load.finish().await;
    assert_all_there(&members[others[1]], &acknowledged).await;
    assert_alike(&[&members[others[0]], &members[others[1]]]).await;
}

/// A dead member is replaced on its address; one that dies in the middle of joining goes on.
#[tokio::test]
async fn membership_replaces_a_dead_member_on_its_address() {
    let mut members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let dead = (at + 1) % 3;
    let gone = id(&members[dead]).await;
    let load = Load::start(&members[at]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    members[dead].kill();
    once_healthy(async || try_remove(&members[at], gone).await).await;
    let again = try_remove(&members[at], gone).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::NotFound, "etcdserver: member not found"));
    // With its data it would be told that it is gone; without, it is refused until it is added.
    members[dead].wipe();
    members[dead].more("--initial-cluster-state", "existing");
    members[dead].start("");
    assert_eq!(members[dead].ended().await, Some(1));
    assert!(members[dead].log().contains("member count is unequal"), "{}", members[dead].log());
    let url = members[dead].peer_url.clone();
    let new = once_healthy(async || try_add(&members[at], &url, false).await).await;
    assert_ne!(new, gone);
    members[dead].start("");
    tokio::time::sleep(Duration::from_millis(100)).await;
    members[dead].kill();
    members[dead].start("");
    members[dead].ready().await;
    assert_eq!(id(&members[dead]).await, new);
    let acknowledged = load.finish().await;
    for member in &members {
        assert_all_there(member, &acknowledged).await;
    }
    assert_alike(&members.iter().collect::<Vec<_>>()).await;
    // One that has lost its data does not begin a new cluster beside the one that it is in.
    let lost = (at + 2) % 3;
    members[lost].kill();
    members[lost].wipe();
    members[lost].start("");
    assert_eq!(members[lost].ended().await, Some(1));
    assert!(members[lost].log().contains("has already been bootstrapped"));
}

#[tokio::test]
async fn membership_refuses_what_etcd_refuses() {
    let mut members = cluster(3, "").await;
    leader(&members, &[0, 1, 2]).await;
    let at = &members[0];
    let taken = members[1].peer_url.clone();
    let add = |urls: &[&str]| {
        let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
        let request = rpc::MemberAddRequest { peer_ur_ls, is_learner: false };
        let mut client = at.cluster();
        async move { client.member_add(request).await.unwrap_err() }
    };
    for urls in [&[][..], &["http://a"], &["http://a:1", "garbage"], &["ftp://a:1"]] {
        let refused = add(urls).await;
        let text = "etcdserver: given member URLs are invalid";
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text));
    }
    let early = add(&["http://127.0.0.1:1"]).await;
    let text = "etcdserver: unhealthy cluster";
    assert_eq!((early.code(), early.message()), (Code::Unavailable, text));
    let started = Instant::now();
    let exists = loop {
        let refused = add(&[&taken]).await;
        if refused.message() != text {
            break refused;
        }
        assert!(started.elapsed() < PATIENCE, "{refused}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let text = "etcdserver: Peer URLs already exists";
    assert_eq!((exists.code(), exists.message()), (Code::FailedPrecondition, text));
    let update = |id, url: &str| {
        let request = rpc::MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
        let mut client = at.cluster();
        async move { client.member_update(request).await }
    };
    let unknown = update(7, "http://127.0.0.1:1").await.unwrap_err();
    assert_eq!(unknown.message(), "etcdserver: member not found");
    let own = id(at).await;
    assert_eq!(update(own, &taken).await.unwrap_err().message(), text);
    let bad = update(own, "garbage").await.unwrap_err();
    assert_eq!(bad.message(), "etcdserver: given member URLs are invalid");
    let request = rpc::MemberPromoteRequest { id: own };
    let voter = at.cluster().member_promote(request).await.unwrap_err();
    let text = "etcdserver: can only promote a learner member";
    assert_eq!((voter.code(), voter.message()), (Code::FailedPrecondition, text));
    let request = rpc::MemberPromoteRequest { id: 7 };
    let unknown = at.cluster().member_promote(request).await.unwrap_err();
    assert_eq!(unknown.message(), "etcdserver: member not found");
    // Two of three are a quorum that must not lose one more.
    members[2].kill();
    let (at, other) = (&members[0], id(&members[1]).await);
    let started = Instant::now();
    while try_remove(at, other).await.unwrap_err().message() != "etcdserver: unhealthy cluster" {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn membership_of_a_single_member_is_not_given_up() {
    for strict in ["true", "false"] {
        let mut member = super::daemon::members(1, &[]).remove(0);
        member.more(&format!("--strict-reconfig-check={strict}"), "--log-level=info");
        member.start("");
        member.ready().await;
        let own = id(&member).await;
        let refused = try_remove(&member, own).await.unwrap_err();
        let text = "etcdserver: re-configuration failed due to not enough started members";
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, text));
        let load = Load::start(&member);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_all_there(&member, &load.finish().await).await;
        member.signal(Signal::TERM);
        assert_eq!(member.ended().await, Some(0));
    }
}

#[tokio::test]
async fn membership_makes_a_learner_a_voter_once_it_has_caught_up() {
    let mut members = cluster(3, "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    let follower = (at + 1) % 3;
    let load = Load::start(&members[at]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let acknowledged = load.finish().await;
    let mut learner = joiner("m3", &members.iter().collect::<Vec<_>>());
    let new =
        once_healthy(async || try_add(&members[follower], &learner.peer_url, true).await).await;
    let second = try_add(&members[at], "http://127.0.0.1:9", true).await.unwrap_err();
    assert_eq!(second.message(), "etcdserver: too many learner members in cluster");
    let promote = |member: &Member| {
        let mut client = member.cluster();
        async move { client.member_promote(rpc::MemberPromoteRequest { id: new }).await }
    };
    for member in &members {
        let early = promote(member).await.unwrap_err();
        let text = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!((early.code(), early.message()), (Code::FailedPrecondition, text));
    }
    learner.start("");
    learner.logged("ready to serve client requests").await;
    assert!(learner.status().await.is_learner);
    let put = rpc::PutRequest { key: "a".into(), ..Default::default() };
    let read = |serializable| rpc::RangeRequest {
        key: "a".into(),
        serializable,
        ..rpc::RangeRequest::default()
    };
    let request = rpc::MemberListRequest { linearizable: false };
    let refused = [
        learner.kv().put(put.clone()).await.unwrap_err(),
        learner.kv().range(read(false)).await.unwrap_err(),
        learner.cluster().member_list(request).await.unwrap_err(),
        promote(&learner).await.unwrap_err(),
    ];
    for status in refused {
        let text = "etcdserver: rpc not supported for learner";
        assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
    }
    learner.kv().range(read(true)).await.unwrap();
    let started = Instant::now();
    while let Err(status) = promote(&members[follower]).await {
        assert!(status.message().contains("in sync with leader"), "{status}");
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let again = promote(&members[follower]).await.unwrap_err();
    assert_eq!(again.message(), "etcdserver: can only promote a learner member");
    learner.ready().await;
    learner.kv().put(put).await.unwrap();
    members.push(learner);
    assert_all_there(&members[3], &acknowledged).await;
    assert_alike(&members.iter().collect::<Vec<_>>()).await;
    // A voter that is needed: without two of four, the others cannot do without it.
    members[3].kill();
    members[3].start("");
    members[3].ready().await;
    members[follower].kill();
    let others = [at, (at + 2) % 3, 3];
    leader(&members, &others).await;
    members[3].ready().await;
}
