//! The hub between a real StoreActor and streams: nothing is lost or doubled, whoever is slow and
//! whatever panics.

use super::*;
use crate::actors::checkpointer::{CheckpointerHandle, Trigger};
use crate::actors::core::Shared;
use crate::actors::inbox::Inbox;
use crate::actors::store::{
    Apply, Install, Installed, Merged, Pace, SnapshotParts, Snapshots, Waiter,
};
use crate::apply::{Machine, Options, Reply};
use crate::base::clock::SystemClock;
use crate::base::ids::{ClusterId, MemberId};
use crate::base::limits::{WATCH_STREAM_BYTES_MAX, WATCH_STREAM_RESPONSES_MAX};
use crate::cluster::members::Members;
use crate::cluster::state::Cluster;
use crate::mvcc::backend::{BackendError, MemBackend};
use crate::mvcc::watch::{Refusal, Spec};
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::{Entry, Snapshot, SnapshotMetadata};
use actix::Actor as _;
use actix_rt::{Arbiter, System};
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::oneshot;

/// A store and a hub.
pub(crate) struct World {
    store: Addr<StoreActor>,
    hub: WatchHubAddr,
    pub(crate) streams: WatchHandle,
    index: u64,
}

/// No member is behind.
struct Nobody;

impl Snapshots for Nobody {
    fn send(&self, _: Merged) {
        panic!("nobody asked for a snapshot");
    }
}

/// Panics the hub, as a failpoint would.
#[derive(Message)]
#[rtype(result = "()")]
struct Break;

impl Handles<Break> for WatchHub {
    fn handle(&mut self, _: Break, _: &mut Life<'_, Self>) {
        panic!("on purpose");
    }
}

impl World {
    pub(crate) fn new() -> World {
        let machine = Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
        let reader = machine.reader();
        let (member, cluster) = (MemberId(1), ClusterId(2));
        let members = Members::default();
        let (inbox, _) = Inbox::new();
        let (unix, alarms) = (Duration::ZERO, Vec::new());
        let shared = Shared::new(member, cluster, unix, 0, members, alarms, inbox);
        let clock = Arc::new(SystemClock);
        let pace = Pace {
            compact_rows: 10,
            compact_pause: Duration::ZERO,
            slow_apply: Duration::from_secs(60),
            clock: clock.clone(),
        };
        let store = StoreActor::start_in_arbiter(&Arbiter::new().handle(), move |_| {
            let provider = Arc::new(crate::actors::auth::Provider::Nobody);
            let trigger = Trigger::new(CheckpointerHandle::default(), u64::MAX, 0);
            let view = Box::new(|| Err(BackendError("there is no engine".to_owned())));
            let parts = SnapshotParts { trigger, view, snapshots: Box::new(Nobody) };
            StoreActor::new(machine, Cluster::default(), Arc::new(shared), provider, pace, parts)
        });
        let (table, hub_store) = (Arc::default(), store.clone());
        let hub = rt::supervise(&Arbiter::new().handle(), clock, move || {
            WatchHub::new(Arc::clone(&table), reader.clone(), hub_store.clone())
        });
        World { store, streams: WatchHandle::new(hub.clone()), hub, index: 0 }
    }

    /// Applies requests as one batch and waits for the last answer: the store's revision.
    pub(crate) async fn apply(&mut self, requests: Vec<rpc::InternalRaftRequest>) -> Reply {
        let mut entries = Vec::new();
        for request in requests {
            self.index += 1;
            let header = Some(rpc::RequestHeader { id: self.index, ..Default::default() });
            let data = rpc::InternalRaftRequest { header, ..request }.encode_to_vec().into();
            entries.push(Entry { index: self.index, term: 1, data, ..Entry::default() });
        }
        let (waiter, answer): (Waiter, _) = oneshot::channel();
        self.store.do_send(Apply { waiters: vec![(self.index, waiter)], entries });
        answer.await.unwrap().unwrap()
    }

    /// The revision that readers see.
    async fn store_revision(&mut self) -> i64 {
        let mut watching = self.streams.open();
        watching.create(1, 0, prefix(b"nothing", b""));
        created(&mut watching).await.1
    }

    pub(crate) async fn put(&mut self, key: &'static [u8], value: Bytes) {
        self.apply(vec![put(key, value)]).await;
    }
}

fn put(key: &'static [u8], value: Bytes) -> rpc::InternalRaftRequest {
    let put = rpc::PutRequest { key: key.into(), value, ..Default::default() };
    rpc::InternalRaftRequest { put: Some(put), ..Default::default() }
}

pub(crate) fn compaction(revision: i64) -> rpc::InternalRaftRequest {
    let compaction = Some(rpc::CompactionRequest { revision, physical: true });
    rpc::InternalRaftRequest { compaction, ..Default::default() }
}

fn prefix(start: &[u8], end: &[u8]) -> Result<Spec, Refusal> {
    Spec::new(start, end, false, false)
}

async fn next(watching: &mut Watching) -> Notice {
    let waited = tokio::time::timeout(Duration::from_secs(20), watching.next()).await;
    waited.expect("a notice comes").expect("the hub lives")
}

async fn created(watching: &mut Watching) -> (i64, i64) {
    match next(watching).await {
        Notice::Created { id: Ok(id), revision } => (id, revision),
        other => panic!("{other:?}"),
    }
}

/// Reads events until `last`, which must come in order, each once, from `from` on.
async fn read_through(watching: &mut Watching, id: i64, from: i64, last: i64) {
    let mut expected = from;
    while expected <= last {
        match next(watching).await {
            Notice::Events(delivery) => {
                for event in delivery.items.iter().filter(|i| i.id == id).flat_map(|i| &i.events) {
                    assert_eq!(event.mod_revision, expected);
                    expected += 1;
                }
            }
            other => panic!("{other:?} before revision {expected}"),
        }
    }
    assert_eq!(expected, last + 1);
}

#[test]
fn put_then_watch_from_now_shows_only_what_comes_after() {
    System::new().block_on(async {
        let mut world = World::new();
        let mut watching = world.streams.open();
        for round in 0..100 {
            world.put(b"k", Bytes::from_static(b"before")).await;
            watching.create(0, 0, prefix(b"k", b""));
            let (id, revision) = created(&mut watching).await;
            assert_eq!(revision, 2 + 2 * round);
            world.put(b"k", Bytes::from_static(b"after")).await;
            read_through(&mut watching, id, revision + 1, revision + 1).await;
            watching.cancel(id);
            assert!(matches!(next(&mut watching).await, Notice::Canceled { .. }));
        }
        watching.cancel(77);
        assert!(matches!(next(&mut watching).await, Notice::Done));
    });
}

#[test]
fn progress_covers_every_answered_write_and_comes_after_its_events() {
    System::new().block_on(async {
        let mut world = World::new();
        world.put(b"k", Bytes::new()).await;
        let mut watching = world.streams.open();
        watching.progress();
        assert!(matches!(next(&mut watching).await, Notice::Done), "an empty stream gets none");
        watching.create(5, 1, prefix(b"k", b"l"));
        watching.progress();
        assert_eq!(created(&mut watching).await.0, 5);
        assert!(matches!(next(&mut watching).await, Notice::Done));
        read_through(&mut watching, 5, 2, 2).await;
        let notice = next(&mut watching).await;
        assert!(matches!(notice, Notice::Progress { id: EVERY_WATCHER, revision: 2 }));
        for revision in 3..50 {
            world.put(b"k", Bytes::new()).await;
            watching.progress_of(5);
            read_through(&mut watching, 5, revision, revision).await;
            match next(&mut watching).await {
                Notice::Progress { id: 5, revision: told } => assert_eq!(told, revision),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_stream_nobody_reads_holds_little_slows_nobody_and_loses_nothing() {
    System::new().block_on(async {
        const WRITES: i64 = 600;
        let mut world = World::new();
        let (mut stalled, mut quick) = (world.streams.open(), world.streams.open());
        for watching in [&mut stalled, &mut quick] {
            watching.create(0, 0, prefix(b"a", b"\0"));
            created(watching).await;
        }
        let value = Bytes::from(vec![b'v'; 3 * WATCH_STREAM_BYTES_MAX / WRITES as usize]);
        for revision in 2..2 + WRITES {
            world.put(b"k", value.clone()).await;
            read_through(&mut quick, 0, revision, revision).await;
        }
        let (responses, bytes) = stalled.waiting();
        assert!(responses <= WATCH_STREAM_RESPONSES_MAX);
        assert!(bytes <= WATCH_STREAM_BYTES_MAX, "{bytes} bytes wait for a stream nobody reads");
        read_through(&mut stalled, 0, 2, 1 + WRITES).await;
        world.put(b"k", value).await;
        read_through(&mut stalled, 0, 2 + WRITES, 2 + WRITES).await;
    });
}

#[test]
fn what_piled_up_comes_as_one_but_not_past_an_answer() {
    System::new().block_on(async {
        let mut world = World::new();
        let (mut slow, mut quick) = (world.streams.open(), world.streams.open());
        for watching in [&mut slow, &mut quick] {
            for id in 1..4 {
                let key: &[u8] = if id == 3 { b"l" } else { b"k" };
                watching.create(id, 0, prefix(key, b""));
                created(watching).await;
            }
        }
        world.put(b"k", Bytes::new()).await;
        world.put(b"l", Bytes::new()).await;
        world.put(b"k", Bytes::new()).await;
        slow.cancel(1);
        // Both streams' notices are sent by the time that one stream has its own.
        quick.progress();
        while !matches!(next(&mut quick).await, Notice::Progress { revision: 4, .. }) {}
        world.put(b"k", Bytes::new()).await;
        let Notice::Events(delivery) = next(&mut slow).await else { panic!("events come first") };
        let revisions = |id: i64| -> Vec<i64> {
            let items = delivery.items.iter().filter(|item| item.id == id);
            items.flat_map(|item| &item.events).map(|event| event.mod_revision).collect()
        };
        assert_eq!((revisions(1), revisions(2), revisions(3)), (vec![2, 4], vec![2, 4], vec![3]));
        let told: Vec<i64> = delivery.items.iter().map(|item| item.revision).collect();
        assert_eq!(told, [4, 4, 3], "each as of its own newest event");
        assert!(matches!(next(&mut slow).await, Notice::Canceled { id: 1, .. }));
        let Notice::Events(delivery) = next(&mut slow).await else { panic!("the rest follows") };
        assert_eq!((delivery.items[0].revision, delivery.items.len()), (5, 1));
    });
}

#[test]
fn compacted_watchers_end_and_others_go_on() {
    System::new().block_on(async {
        let mut world = World::new();
        for _ in 0..10 {
            world.put(b"k", Bytes::new()).await;
        }
        world.apply(vec![compaction(8)]).await;
        let mut watching = world.streams.open();
        watching.create(1, 7, prefix(b"k", b""));
        assert_eq!(created(&mut watching).await.0, 1);
        let notice = next(&mut watching).await;
        assert!(matches!(notice, Notice::Compacted { id: 1, compact_revision: 8 }), "{notice:?}");
        watching.create(2, 8, prefix(b"k", b""));
        assert_eq!(created(&mut watching).await.0, 2);
        read_through(&mut watching, 2, 8, 11).await;
        watching.create(1, 0, prefix(b"k", b""));
        let notice = next(&mut watching).await;
        let taken = Err(Refusal::DuplicateId);
        assert!(matches!(notice, Notice::Created { id, revision: 11 } if id == taken));
    });
}

#[test]
fn a_panic_of_the_hub_loses_and_doubles_nothing() {
    System::new().block_on(async {
        let mut world = World::new();
        let mut watching = world.streams.open();
        watching.create(0, 0, prefix(b"k", b""));
        created(&mut watching).await;
        let mut last = 1;
        for round in 0..4 {
            // In the middle of a burst, so that the hub breaks between its messages.
            world.apply((0..50).map(|_| put(b"k", Bytes::new())).collect()).await;
            world.hub.do_send(Break);
            world.apply((0..50).map(|_| put(b"k", Bytes::new())).collect()).await;
            read_through(&mut watching, 0, last + 1, last + 100).await;
            last += 100;
            watching.create(0, last - 10, prefix(b"k", b"l"));
            let (id, _) = created(&mut watching).await;
            assert_eq!(id, round + 1);
            read_through(&mut watching, id, last - 10, last).await;
            watching.cancel(id);
            assert!(matches!(next(&mut watching).await, Notice::Canceled { .. }));
        }
    });
}

/// A machine to which so many puts were applied, by entries from 1 on.
fn machine_of(puts: u64) -> Machine {
    let mut machine = Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
    for index in 1..=puts {
        machine.apply(index, 1, &put(b"k", Bytes::new())).result.unwrap();
    }
    machine
}

#[test]
fn watchers_see_what_a_leaders_snapshot_has_skipped() {
    System::new().block_on(async {
        let mut world = World::new();
        let mut watching = world.streams.open();
        for id in 1..=2 {
            watching.create(id, 0, prefix(if id == 1 { b"k" } else { b"other" }, b""));
            created(&mut watching).await;
        }
        for _ in 0..3 {
            world.put(b"k", Bytes::new()).await;
        }
        read_through(&mut watching, 1, 2, 4).await;
        let tree = br#"{"Root":{"Path":"/","Children":{}}}"#;
        let metadata = Some(SnapshotMetadata { index: 50, term: 1, ..Default::default() });
        let snapshot = Snapshot { data: Bytes::from_static(tree), metadata };
        world.store.do_send(Install(snapshot));
        // What follows the snapshot waits for it.
        world.index = 50;
        let (store, machine) = (world.store.clone(), machine_of(50));
        actix_rt::spawn(async move {
            actix_rt::time::sleep(Duration::from_millis(50)).await;
            store.do_send(Installed { index: 50, machine });
        });
        for revision in 52..60 {
            world.put(b"k", Bytes::new()).await;
            assert_eq!(world.store_revision().await, revision);
        }
        read_through(&mut watching, 1, 5, 59).await;
        world.put(b"other", Bytes::new()).await;
        read_through(&mut watching, 2, 60, 60).await;
        let mut later = world.streams.open();
        later.create(9, 40, prefix(b"k", b""));
        assert_eq!(created(&mut later).await, (9, 60));
        read_through(&mut later, 9, 40, 59).await;
    });
}

#[test]
fn what_was_written_while_nobody_watched_comes_from_history() {
    System::new().block_on(async {
        let mut world = World::new();
        {
            let mut watching = world.streams.open();
            watching.create(0, 0, prefix(b"k", b""));
            created(&mut watching).await;
        }
        world.put(b"k", Bytes::new()).await;
        let mut later = world.streams.open();
        later.create(0, 1, prefix(b"k", b""));
        created(&mut later).await;
        read_through(&mut later, 0, 2, 2).await;
    });
}
