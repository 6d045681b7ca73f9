//! The table and its passes against a naive model: every watcher gets exactly the events it wants,
//! once, in order, whole revisions at a time.

use super::ranges::Ranges;
use super::{Delivery, Limits, Outcome, Pass, Refusal, Span, Spec, StreamId, Watchers, Written};
use crate::mvcc::backend::{Backend, Batch, Bucket, MemBackend};
use crate::mvcc::{Reader, Store, kv_deleted};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const STREAMS: u64 = 3;

#[derive(Clone, Debug)]
enum Op {
    /// A transaction of puts and single-key deletions.
    Write(Vec<(u8, bool)>),
    /// Stream, id, key, range end, start relative to the revision, filters.
    Create(u64, i64, u8, Option<u8>, i64, (bool, bool)),
    Cancel(u64, i64),
    /// Everything that waits for the client, or one delivery of it.
    Drain(u64, bool),
    StartPass,
    ReadPass,
    FinishPass,
    FailPass,
    Compact(i64),
    Reopen(u64),
    Panic,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..6u8;
    let stream = 0..STREAMS;
    let writes = prop::collection::vec((key.clone(), prop::bool::weighted(0.3)), 1..4);
    prop_oneof![
        8 => writes.prop_map(Op::Write),
        4 => (stream.clone(), 0..4i64, key, prop::option::of(0..8u8), -12..4i64,
            (prop::bool::weighted(0.1), prop::bool::weighted(0.1)))
            .prop_map(|(s, id, k, end, at, f)| Op::Create(s, id, k, end, at, f)),
        1 => (stream.clone(), 0..4i64).prop_map(|(s, id)| Op::Cancel(s, id)),
        3 => (stream.clone(), any::<bool>()).prop_map(|(s, all)| Op::Drain(s, all)),
        4 => Just(Op::StartPass),
        4 => Just(Op::ReadPass),
        4 => Just(Op::FinishPass),
        1 => Just(Op::FailPass),
        1 => (-8..1i64).prop_map(Op::Compact),
        1 => stream.prop_map(Op::Reopen),
        1 => Just(Op::Panic),
    ]
}

/// (revision, key, is a deletion), as the model and the clients see an event.
type Seen = (i64, Bytes, bool);

#[derive(Debug)]
struct Client {
    spec: Spec,
    start: i64,
    seen: Vec<Seen>,
    compacted: bool,
}

struct World {
    store: Store,
    backend: Arc<MemBackend>,
    reader: Reader,
    index: u64,
    watchers: Watchers,
    history: Vec<Seen>,
    clients: BTreeMap<(u64, i64), Client>,
    queues: BTreeMap<u64, VecDeque<Delivery>>,
    refused: BTreeMap<u64, bool>,
    pass: Option<Pass>,
    outcome: Option<Outcome>,
    queue_max: usize,
}

fn key(number: u8) -> Bytes {
    Bytes::from(vec![b'a' + number])
}

impl World {
    fn new(queue_max: usize) -> World {
        let backend = Arc::new(MemBackend::default());
        let (store, _) = Store::open(backend.clone()).unwrap();
        let limits =
            Limits { pass_revisions: 5, pass_watchers: 3, pass_bytes: 60, recent_bytes: 60 };
        let mut watchers = Watchers::new(limits);
        (0..STREAMS).for_each(|stream| watchers.open(StreamId(stream)));
        watchers.live(store.revision());
        World {
            reader: store.reader(),
            store,
            backend,
            index: 0,
            watchers,
            history: Vec::new(),
            clients: BTreeMap::new(),
            queues: (0..STREAMS).map(|stream| (stream, VecDeque::new())).collect(),
            refused: BTreeMap::new(),
            pass: None,
            outcome: None,
            queue_max,
        }
    }

    fn submit(&mut self, ops: Vec<(Bucket, Bytes, Option<Bytes>)>) {
        self.index += 1;
        let revision = self.store.revision();
        let (consistent_index, term, size_bytes) = (self.index, 1, 0);
        self.backend.submit(Batch { ops, consistent_index, term, revision, size_bytes });
    }

    fn with_offer<T>(
        &mut self,
        body: impl FnOnce(&mut Watchers, &mut dyn FnMut(StreamId, Delivery) -> bool) -> T,
    ) -> T {
        let World { watchers, queues, refused, queue_max, .. } = self;
        body(watchers, &mut |StreamId(stream), delivery| {
            let queue = queues.get_mut(&stream).unwrap();
            let room = queue.len() < *queue_max;
            if room {
                queue.push_back(delivery);
            } else {
                refused.insert(stream, true);
            }
            room
        })
    }

    fn write(&mut self, keys: &[(u8, bool)]) {
        let mut done = std::collections::BTreeSet::new();
        for &(number, delete) in keys {
            if !done.insert(number) {
                continue;
            }
            if delete {
                self.store.delete_range(&key(number), b"");
            } else {
                self.store.put(&key(number), b"value", 0);
            }
        }
        let (ops, changes) = self.store.commit();
        if changes.is_empty() {
            return;
        }
        let revision = self.store.revision();
        self.submit(ops);
        self.store.publish();
        let written: Vec<Written> = changes
            .into_iter()
            .map(|change| {
                self.history.push((revision, change.key.clone(), change.delete));
                let kv = if change.delete { kv_deleted(&change.key, revision) } else { change.row };
                Written { key: change.key, delete: change.delete, kv }
            })
            .collect();
        self.with_offer(|watchers, offer| watchers.events(revision, &written, offer));
    }

    fn drain(&mut self, stream: u64, all: bool) {
        let queue = self.queues.get_mut(&stream).unwrap();
        if all && queue.len() > 1 {
            // What has piled up comes as one.
            let mut later: Vec<Delivery> = queue.drain(..).collect();
            let mut first = later.remove(0);
            first.join(later);
            queue.push_back(first);
        }
        while let Some(delivery) = self.queues.get_mut(&stream).unwrap().pop_front() {
            for item in delivery.items {
                // What was on the way when it was canceled is dropped, as the edge does.
                let Some(client) = self.clients.get_mut(&(stream, item.id)) else { continue };
                let last = client.seen.last().map_or(i64::MIN, |seen| seen.0);
                assert!(item.events[0].mod_revision > last, "a revision was taken apart");
                for event in item.events {
                    assert!(event.mod_revision <= item.revision);
                    client.seen.push((event.mod_revision, event.key.clone(), event.delete));
                }
            }
            if !all {
                break;
            }
        }
        if self.queues[&stream].len() < self.queue_max && self.refused.remove(&stream).is_some() {
            self.watchers.drained(StreamId(stream));
        }
    }

    fn ended(&mut self, ended: Vec<(StreamId, i64)>) {
        for (StreamId(stream), id) in ended {
            self.clients.get_mut(&(stream, id)).unwrap().compacted = true;
        }
    }

    fn start_pass(&mut self) {
        let ended = self.watchers.compacted(self.reader.compact_revision());
        self.ended(ended);
        if let Some(pass) = self.watchers.start_pass() {
            (self.pass, self.outcome) = (Some(pass), None);
        }
    }

    fn read_pass(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.outcome = Some(pass.read(&self.reader).unwrap());
        }
    }

    fn finish_pass(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            let ended = self.with_offer(|watchers, offer| watchers.finish_pass(outcome, offer));
            self.ended(ended);
        }
    }

    fn compact(&mut self, revision: i64) {
        if let Ok(op) = self.store.schedule_compaction(revision) {
            self.submit(vec![op]);
            while self.store.compaction_pending().is_some() {
                let (ops, _) = self.store.compact_step(3).unwrap();
                self.submit(ops);
            }
        }
    }

    fn forget(&mut self, stream: u64, id: i64) {
        self.clients.remove(&(stream, id));
        // An id that is used again must not get the old one's events: the queue keeps the order
        // of answers and events, so the client sees the cancel between them.
        for delivery in self.queues.get_mut(&stream).unwrap() {
            delivery.items.retain(|item| item.id != id);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write(keys) => self.write(&keys),
            Op::Create(stream, id, first, end, at, (no_put, no_delete)) => {
                let end = match end {
                    None => Bytes::new(),
                    Some(7) => Bytes::from_static(&[0]),
                    Some(end) => key(end),
                };
                let Ok(spec) = Spec::new(&key(first), &end, no_put, no_delete) else { return };
                let start = self.store.revision() + at;
                let made = self.watchers.create(StreamId(stream), id, spec.clone(), start);
                let taken = self.clients.contains_key(&(stream, id));
                match made {
                    Err(refusal) => assert!(taken && refusal == Refusal::DuplicateId),
                    Ok(made) => {
                        assert!(id == 0 || id == made);
                        let client = Client { spec, start, seen: Vec::new(), compacted: false };
                        let old = self.clients.insert((stream, made), client);
                        assert!(old.is_none());
                    }
                }
            }
            Op::Cancel(stream, id) => {
                let was = self.clients.contains_key(&(stream, id));
                assert_eq!(self.watchers.cancel(StreamId(stream), id), was);
                self.forget(stream, id);
            }
            Op::Drain(stream, all) => self.drain(stream, all),
            Op::StartPass => self.start_pass(),
            Op::ReadPass => self.read_pass(),
            Op::FinishPass => self.finish_pass(),
            Op::FailPass => {
                if self.pass.take().is_some() {
                    self.watchers.pass_failed();
                }
            }
            Op::Compact(at) => self.compact(self.store.revision() + at),
            Op::Reopen(stream) => {
                self.watchers.close(StreamId(stream));
                self.watchers.open(StreamId(stream));
                self.clients.retain(|&(of, _), _| of != stream);
                self.queues.insert(stream, VecDeque::new());
                self.refused.remove(&stream);
            }
            Op::Panic => {
                self.watchers.recover();
                self.refused.clear();
                self.watchers.live(self.store.revision());
            }
        }
    }

    fn settle(&mut self) {
        let mut rounds = 0;
        while self.watchers.lagging() > 0 {
            (0..STREAMS).for_each(|stream| self.drain(stream, true));
            self.start_pass();
            self.read_pass();
            self.finish_pass();
            rounds += 1;
            assert!(rounds < 10_000, "watchers lag forever");
        }
        (0..STREAMS).for_each(|stream| self.drain(stream, true));
    }

    fn check(&self) {
        assert_eq!(self.watchers.count(), self.clients.len());
        for (id, client) in &self.clients {
            let wanted = |(revision, key, delete): &&Seen| {
                let within = match &client.spec.span {
                    Span::One(own) => own == key,
                    Span::Range(start, end) => {
                        start <= key && end.as_ref().is_none_or(|end| key < end)
                    }
                };
                let filtered = if *delete { client.spec.no_delete } else { client.spec.no_put };
                *revision >= client.start && within && !filtered
            };
            let wanted: Vec<Seen> = self.history.iter().filter(wanted).cloned().collect();
            if client.compacted {
                assert!(wanted.starts_with(&client.seen), "{id:?} {client:?}");
                assert!(client.start < self.reader.compact_revision());
            } else {
                assert_eq!(client.seen, wanted, "{id:?} {client:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn watchers_get_what_they_want_once_and_in_order(
        ops in prop::collection::vec(op(), 1..120),
        queue_max in 1..4usize,
    ) {
        let mut world = World::new(queue_max);
        for op in ops {
            world.run(op);
        }
        world.settle();
        world.check();
    }

    #[test]
    fn ranges_find_what_a_scan_finds(
        ops in prop::collection::vec((0..12u8, prop::option::of(0..14u8), any::<bool>()), 1..200),
    ) {
        let mut ranges = Ranges::default();
        let mut model: Vec<(Bytes, Option<Bytes>, u32)> = Vec::new();
        for (number, (start, end, remove)) in ops.into_iter().enumerate() {
            if remove && !model.is_empty() {
                let (start, end, watcher) = model.swap_remove(start as usize % model.len());
                ranges.remove(&start, end.as_ref(), watcher);
            } else {
                let (start, end) = (key(start), end.map(key));
                ranges.insert(&start, end.as_ref(), number as u32);
                model.push((start, end, number as u32));
            }
            for at in 0..14 {
                let at = key(at);
                let mut found = Vec::new();
                ranges.visit(&at, &mut |watcher| found.push(watcher));
                found.sort_unstable();
                let mut expected: Vec<u32> = model
                    .iter()
                    .filter(|(start, end, _)| *start <= at && end.as_ref().is_none_or(|e| at < *e))
                    .map(|&(_, _, watcher)| watcher)
                    .collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn ranges_stay_shallow_whatever_the_order() {
    let mut ranges = Ranges::default();
    for number in 0..20_000u32 {
        let start = Bytes::copy_from_slice(&number.to_be_bytes());
        let end = Bytes::copy_from_slice(&(number + 1).to_be_bytes());
        ranges.insert(&start, Some(&end), number);
    }
    assert!(ranges.depth() < 60, "{}", ranges.depth());
    let mut found = Vec::new();
    ranges.visit(&777u32.to_be_bytes(), &mut |watcher| found.push(watcher));
    assert_eq!(found, [777]);
}

#[test]
fn ids_are_given_out_as_etcd_does() {
    let mut watchers = Watchers::new(Limits::default());
    let stream = StreamId(1);
    watchers.open(stream);
    let spec = || Spec::new(b"", b"", false, false).unwrap();
    assert_eq!(spec().span, Span::One(Bytes::from_static(&[0])));
    assert_eq!(watchers.create(stream, 0, spec(), 1), Ok(0));
    assert_eq!(watchers.create(stream, 1, spec(), 1), Ok(1));
    assert_eq!(watchers.create(stream, 1, spec(), 1), Err(Refusal::DuplicateId));
    assert_eq!(watchers.create(stream, -1, spec(), 1), Ok(-1));
    assert_eq!(watchers.create(stream, 0, spec(), 1), Ok(2), "1 is taken");
    assert!(watchers.cancel(stream, 0));
    assert!(!watchers.cancel(stream, 0));
    assert_eq!(watchers.create(stream, 0, spec(), 1), Ok(3), "0 is not given out again");
    for (end, refused) in [(&b"a"[..], true), (b"b", true), (b"c", false), (b"\0", false)] {
        let made = Spec::new(b"b", end, false, false);
        assert_eq!(made.err(), refused.then_some(Refusal::EmptyRange), "{end:?}");
    }
}

#[test]
fn progress_waits_for_lagging_watchers_and_never_comes_on_an_empty_stream() {
    let mut world = World::new(10);
    world.write(&[(0, false)]);
    let stream = StreamId(0);
    assert_eq!(world.watchers.progress(stream), None);
    world.run(Op::Create(0, 1, 0, None, -1, (false, false)));
    assert_eq!(world.watchers.progress_of(stream, 1), None);
    assert_eq!(world.watchers.progress(stream), None);
    assert_eq!(world.watchers.take_caught_up(), []);
    world.settle();
    assert_eq!(world.watchers.take_caught_up(), [(stream, 2)]);
    assert_eq!(world.watchers.take_caught_up(), []);
    assert_eq!(world.watchers.progress(stream), Some(2));
    assert_eq!(world.watchers.progress_of(stream, 1), Some(2));
}

#[test]
fn a_watcher_far_behind_does_not_hold_up_one_that_is_near() {
    let mut world = World::new(100);
    for _ in 0..200 {
        world.write(&[(0, false)]);
    }
    world.run(Op::Create(0, 1, 0, None, -198, (false, false)));
    world.run(Op::Create(1, 1, 0, None, -1, (false, false)));
    for _ in 0..2 {
        world.start_pass();
        world.read_pass();
        world.finish_pass();
    }
    world.drain(1, true);
    assert_eq!(world.clients[&(1, 1)].seen.len(), 2);
    assert_eq!(world.watchers.lagging(), 1);
    world.settle();
    world.check();
}

#[test]
fn after_a_panic_a_watcher_is_not_behind_what_did_not_concern_it() {
    let mut world = World::new(10);
    world.run(Op::Create(0, 1, 0, None, 1, (false, false)));
    for _ in 0..5 {
        world.write(&[(1, false)]);
    }
    world.compact(world.store.revision());
    world.run(Op::Panic);
    world.write(&[(0, false)]);
    world.settle();
    assert!(!world.clients[&(0, 1)].compacted);
    assert_eq!(world.clients[&(0, 1)].seen.len(), 1);
    world.check();
}
