//! Looks at members whose stores are real and whose network is not.

use super::*;
use crate::actors::core::Shared;
use crate::actors::handle::Answer;
use crate::actors::inbox::{Ask, Inbox, Outlet};
use crate::apply::{Machine, Options};
use crate::base::error::Error;
use crate::base::ids::{ClusterId, MemberId};
use crate::cluster::members::Members;
use crate::mvcc::backend::MemBackend;
use crate::mvcc::corrupt::Told;
use crate::mvcc::{CompactProgress, Reader};
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::{ConfChange, ConfChangeType};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;

/// Members by their URLs; one without a reader does not answer.
struct Network(HashMap<String, Option<Reader>>);

impl PeerHashes for Network {
    fn ask(&self, url: String, revision: i64) -> Answer<'static, Result<Told, AskError>> {
        let reader = self.0[&url].clone();
        Box::pin(async move {
            let reader = reader.ok_or_else(|| AskError::Other("silence".to_owned()))?;
            match reader.hash_kv(revision) {
                Ok((hash, revision, compact_revision)) => {
                    Ok(Told { hash, compact_revision, revision })
                }
                Err(Error::Compacted) => Err(AskError::Compacted),
                Err(Error::FutureRev) => Err(AskError::FutureRev),
                Err(error) => Err(AskError::Other(format!("{error:?}"))),
            }
        })
    }
}

struct Store {
    machine: Machine,
    index: u64,
}

impl Store {
    /// With 9 values of one key, revisions 2 to 10.
    fn new(value: &'static str) -> Store {
        Store::upto(value, 10)
    }

    fn upto(value: &'static str, revision: i64) -> Store {
        let machine = Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
        let mut store = Store { machine, index: 0 };
        for _ in 2..=revision {
            let put =
                rpc::PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
            store.apply(rpc::InternalRaftRequest { put: Some(put), ..Default::default() });
        }
        store
    }

    fn apply(&mut self, request: rpc::InternalRaftRequest) {
        self.index += 1;
        self.machine.apply(self.index, 1, &request).result.unwrap();
    }

    fn compact(&mut self, revision: i64) {
        let compaction = Some(rpc::CompactionRequest { revision, physical: false });
        self.apply(rpc::InternalRaftRequest { compaction, ..Default::default() });
        while self.machine.compact_step(3).unwrap() == CompactProgress::More {}
    }
}

fn url(id: u64) -> String {
    format!("http://m{id}:1")
}

/// Member 1's view of a cluster.
struct World {
    checker: Checker,
    outlet: Outlet,
}

impl World {
    /// Member 1 has the first store, the others those that follow.
    fn new(own: &Store, others: &[Option<&Store>]) -> World {
        let mut members = Members::default();
        let mut network = HashMap::new();
        for id in 1..=others.len() as u64 + 1 {
            let context = format!(r#"{{"id":{id},"peerURLs":["{}"]}}"#, url(id));
            let change_type = ConfChangeType::AddNode as i32;
            let context = context.into();
            let change = ConfChange { node_id: id, change_type, context, ..Default::default() };
            members.apply(&change).unwrap();
        }
        for (id, store) in (2..).zip(others) {
            network.insert(url(id), store.map(|store| store.machine.reader()));
        }
        let (inbox, outlet) = Inbox::new();
        let ids = (MemberId(1), ClusterId(2));
        let shared = Shared::new(ids.0, ids.1, Duration::ZERO, 0, members, Vec::new(), inbox);
        let checker = Checker {
            reader: own.machine.reader(),
            shared: Arc::new(shared),
            peers: Arc::new(Network(network)),
            request_timeout: Duration::from_secs(7),
        };
        World { checker, outlet }
    }

    /// Looks at the whole store; whether an alarm was raised.
    async fn store(&mut self) -> bool {
        let checker = self.checker.clone();
        let look = tokio::spawn(async move { checker.store().await });
        let mut raised = false;
        while !look.is_finished() {
            raised |= self.raised();
            tokio::task::yield_now().await;
        }
        assert_eq!(look.await.unwrap(), Ok(()));
        raised | self.raised()
    }

    /// Answers who asked for a read index; whether an alarm was proposed.
    fn raised(&mut self) -> bool {
        let mut raised = false;
        while let Some(ask) = self.outlet.take() {
            match ask {
                Ask::ReadIndex(reply) => reply.send(Ok(0)).unwrap(),
                Ask::Propose(propose) => {
                    let request = rpc::InternalRaftRequest::decode(propose.data).unwrap();
                    let alarm = request.alarm.unwrap();
                    let told = (alarm.action, alarm.member_id, alarm.alarm);
                    assert_eq!(told, (1, 0, rpc::AlarmType::Corrupt as i32));
                    raised = true;
                }
                _ => panic!("asked something else"),
            }
        }
        raised
    }
}

#[tokio::test]
async fn stores_are_compared() {
    let (own, same, other) = (Store::new("v"), Store::new("v"), Store::new("w"));
    assert!(!World::new(&own, &[Some(&same), None]).store().await);
    assert!(World::new(&own, &[Some(&same), Some(&other)]).store().await);
    let mut compacted = Store::new("w");
    compacted.compact(5);
    // It has done what the leader has not heard of.
    assert!(World::new(&own, &[Some(&compacted)]).store().await);
    let mut leader = Store::new("v");
    leader.compact(5);
    assert!(!World::new(&leader, &[Some(&other)]).store().await, "nothing to compare");
    assert!(World::new(&leader, &[Some(&compacted)]).store().await);
    assert!(!World::new(&own, &[]).store().await);
}

#[tokio::test]
async fn a_member_with_another_store_does_not_start() {
    let (own, same, other) = (Store::new("v"), Store::new("v"), Store::new("w"));
    let at_start =
        async |others: &[Option<&Store>]| World::new(&own, others).checker.at_start().await;
    assert_eq!(at_start(&[Some(&same), None]).await, Ok(()));
    let error = at_start(&[None, Some(&same), Some(&other)]).await.unwrap_err();
    assert_eq!(error, "1 found data inconsistency with peers");
    let mut compacted = Store::new("w");
    compacted.compact(5);
    assert_eq!(at_start(&[Some(&compacted)]).await, Ok(()));
}

#[tokio::test]
async fn compactions_are_compared() {
    let compacted = |value| {
        let mut store = Store::new(value);
        store.compact(4);
        store.compact(7);
        store
    };
    let (own, same, other) = (compacted("v"), compacted("v"), compacted("w"));
    let mut world = World::new(&own, &[Some(&same), Some(&same)]);
    assert_eq!(world.checker.compactions(0).await, 7);
    assert_eq!(world.checker.compactions(7).await, 7);
    assert!(!world.raised());
    let mut world = World::new(&own, &[Some(&same), None]);
    assert_eq!(world.checker.compactions(0).await, 0, "one has said nothing");
    assert!(!world.raised());
    let mut world = World::new(&own, &[Some(&same), Some(&other)]);
    assert_eq!(world.checker.compactions(0).await, 0);
    assert!(world.raised());
    // One that has not compacted yet hashes the rows; one without them has the older hash.
    let mut behind = Store::new("v");
    behind.compact(4);
    let world = World::new(&own, &[Some(&behind)]);
    assert_eq!(world.checker.compactions(0).await, 7);
    let mut behind = Store::upto("v", 6);
    behind.compact(4);
    let mut world = World::new(&own, &[Some(&behind)]);
    assert_eq!(world.checker.compactions(0).await, 4);
    assert!(!world.raised());
    assert_eq!(World::new(&own, &[]).checker.compactions(0).await, 0);
}
