//! The table of watchers: events in, deliveries out.
//!
//! Each watcher has `next`: it was given every event below that it wants, and none from there on.
//! While it is synced, `next` may lie behind, since nothing below the head is left for it.

use super::group::Group;
use super::{Delivery, Event, Item, Refusal, Spec, StreamId, Written};
use crate::base::limits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How much is done at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Revisions of one pass.
    pub pass_revisions: i64,
    /// Watchers that share one pass.
    pub pass_watchers: usize,
    /// Bytes of events after which a pass ends with the revision it is in.
    pub pass_bytes: usize,
    /// Bytes of events kept during a pass.
    pub recent_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pass_revisions: limits::WATCH_PASS_REVISIONS_MAX,
            pass_watchers: limits::WATCH_PASS_WATCHERS_MAX,
            pass_bytes: limits::WATCH_PASS_BYTES_MAX,
            recent_bytes: limits::WATCH_RECENT_BYTES_MAX,
        }
    }
}

/// Events for each of a stream's watchers, by slot.
pub(super) type Batch = Vec<(u32, Vec<Arc<Event>>)>;

/// Takes a delivery, or refuses it because the stream has no room.
pub(super) type Offer<'a> = &'a mut dyn FnMut(StreamId, Delivery) -> bool;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In the group; gets events as they happen.
    Synced,
    /// Lags, and waits for a pass.
    Ready,
    /// Lags, and its stream has no room.
    Waiting,
    /// Lags; the pass under way reads for it.
    Reading,
    /// Over, because what it wanted is compacted. Its id stays taken until it is canceled (etcd
    /// v3.5.17 `server/mvcc/watchable_store.go` cancelWatcher).
    Compacted,
}

impl State {
    fn lags(self) -> bool {
        matches!(self, State::Ready | State::Waiting | State::Reading)
    }
}

#[derive(Debug)]
pub(super) struct Watcher {
    /// Tells apart watchers that had the same slot.
    pub(super) serial: u64,
    pub(super) stream: StreamId,
    pub(super) id: i64,
    pub(super) spec: Arc<Spec>,
    pub(super) next: i64,
    pub(super) state: State,
    /// Has a place in the queue.
    pub(super) queued: bool,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) watchers: BTreeMap<i64, u32>,
    pub(super) waiting: BTreeSet<u32>,
    /// The id the next watcher gets unless it is taken.
    pub(super) next_id: i64,
    pub(super) lagging: usize,
    pub(super) compacted: usize,
    /// It refused a delivery and has not drained since.
    pub(super) full: bool,
    pub(super) progress_wanted: bool,
}

/// The pass under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) members: Vec<(u32, u64)>,
    pub(super) to: i64,
    /// The events since the pass began, if it reads up to the head: with them its watchers are up
    /// to date at once, however fast revisions come.
    pub(super) recent: Option<Recent>,
}

#[derive(Debug, Default)]
pub(super) struct Recent {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Watchers {
    pub(super) limits: Limits,
    pub(super) slots: Vec<Option<Watcher>>,
    pub(super) free: Vec<u32>,
    pub(super) serial: u64,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    pub(super) synced: Group,
    /// The watchers in [`State::Ready`], by where they go on.
    pub(super) ready: BTreeSet<(i64, u32)>,
    /// Their turns, with places among them that no longer mean anything.
    pub(super) queue: VecDeque<u32>,
    /// The newest revision whose events were told; `None` while nobody tells.
    pub(super) head: Option<i64>,
    pub(super) flight: Option<Flight>,
    pub(super) passes: u64,
    /// Streams that caught up while a progress notice was wanted.
    pub(super) caught_up: Vec<StreamId>,
    pub(super) count: usize,
    pub(super) lagging: usize,
}

impl Watchers {
    /// No watchers.
    pub fn new(limits: Limits) -> Watchers {
        Watchers { limits, ..Watchers::default() }
    }

    /// Watchers on all streams, the compacted ones included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Watchers that are behind.
    pub fn lagging(&self) -> usize {
        self.lagging
    }

    /// The newest revision whose events were told; `None` while nobody tells.
    pub fn head(&self) -> Option<i64> {
        self.head
    }

    pub(super) fn watcher(&self, slot: u32) -> Option<&Watcher> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn held(&mut self, slot: u32) -> &mut Watcher {
        self.slots[slot as usize].as_mut().expect("the slot is taken")
    }

    pub(super) fn stream(&mut self, id: StreamId) -> &mut Stream {
        self.streams.get_mut(&id).expect("a watcher's stream is open")
    }

    /// A stream without watchers.
    pub fn open(&mut self, stream: StreamId) {
        let old = self.streams.insert(stream, Stream::default());
        assert!(old.is_none(), "stream {stream:?} is opened once");
    }

    /// Forgets a stream and its watchers.
    pub fn close(&mut self, stream: StreamId) {
        let Some(closing) = self.streams.get(&stream) else {
            return;
        };
        let slots: Vec<u32> = closing.watchers.values().copied().collect();
        for slot in slots {
            self.remove(slot);
        }
        self.streams.remove(&stream);
    }

    /// A watcher that gets the events from `start` on; the id it got. An id of 0 asks for one.
    pub fn create(
        &mut self,
        stream: StreamId,
        id: i64,
        spec: Spec,
        start: i64,
    ) -> Result<i64, Refusal> {
        let home = self.streams.get_mut(&stream).expect("watchers are made on open streams");
        let id = match id {
            0 => {
                while home.watchers.contains_key(&home.next_id) {
                    home.next_id += 1;
                }
                home.next_id += 1;
                home.next_id - 1
            }
            id if home.watchers.contains_key(&id) => return Err(Refusal::DuplicateId),
            id => id,
        };
        self.serial += 1;
        let watcher = Watcher {
            serial: self.serial,
            stream,
            id,
            spec: Arc::new(spec),
            next: start,
            state: State::Compacted,
            queued: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).expect("fewer watchers than u32 counts")
            }
        };
        self.slots[slot as usize] = Some(watcher);
        self.stream(stream).watchers.insert(id, slot);
        self.count += 1;
        if self.head.is_some_and(|head| start > head) {
            self.enter(slot, State::Synced);
        } else {
            self.lag(slot);
        }
        Ok(id)
    }

    /// Whether there was such a watcher.
    pub fn cancel(&mut self, stream: StreamId, id: i64) -> bool {
        let slot = self.streams.get(&stream).and_then(|home| home.watchers.get(&id).copied());
        let Some(slot) = slot else {
            return false;
        };
        self.remove(slot);
        true
    }

    fn remove(&mut self, slot: u32) {
        self.leave(slot);
        let watcher = self.slots[slot as usize].take().expect("the slot is taken");
        let home = self.stream(watcher.stream);
        home.watchers.remove(&watcher.id);
        if watcher.state == State::Compacted {
            home.compacted -= 1;
        }
        self.free.push(slot);
        self.count -= 1;
        self.look_caught_up(watcher.stream);
    }

    /// Takes a watcher out of what its state keeps it in; the state itself stays.
    pub(super) fn leave(&mut self, slot: u32) {
        let watcher = self.slots[slot as usize].as_ref().expect("the slot is taken");
        let (stream, state, next) = (watcher.stream, watcher.state, watcher.next);
        match state {
            State::Synced => self.synced.remove(&watcher.spec, slot),
            State::Ready => {
                let removed = self.ready.remove(&(next, slot));
                assert!(removed, "a ready watcher is in the order");
            }
            State::Waiting => {
                let removed = self.stream(stream).waiting.remove(&slot);
                assert!(removed, "a waiting watcher is known to its stream");
            }
            State::Reading | State::Compacted => {}
        }
        if state.lags() {
            self.stream(stream).lagging -= 1;
            self.lagging -= 1;
        }
    }

    /// Puts a watcher that has left its state into another.
    pub(super) fn enter(&mut self, slot: u32, state: State) {
        let watcher = self.held(slot);
        watcher.state = state;
        let (stream, next, spec) = (watcher.stream, watcher.next, Arc::clone(&watcher.spec));
        if state.lags() {
            self.stream(stream).lagging += 1;
            self.lagging += 1;
        }
        match state {
            State::Synced => self.synced.insert(&spec, slot),
            State::Ready => {
                self.ready.insert((next, slot));
                if !std::mem::replace(&mut self.held(slot).queued, true) {
                    self.queue.push_back(slot);
                }
            }
            State::Waiting => {
                self.stream(stream).waiting.insert(slot);
            }
            State::Compacted => self.stream(stream).compacted += 1,
            State::Reading => {}
        }
    }

    pub(super) fn lag(&mut self, slot: u32) {
        let stream = self.held(slot).stream;
        let full = self.stream(stream).full;
        self.enter(slot, if full { State::Waiting } else { State::Ready });
    }

    /// For a watcher that has left its state: synced if nothing is left for it, else lagging.
    pub(super) fn settle(&mut self, slot: u32, head: i64) {
        let watcher = self.held(slot);
        let stream = watcher.stream;
        if watcher.next > head {
            self.enter(slot, State::Synced);
            self.look_caught_up(stream);
        } else {
            self.lag(slot);
        }
    }

    fn look_caught_up(&mut self, stream: StreamId) {
        let home = self.stream(stream);
        if home.progress_wanted && home.lagging == 0 {
            home.progress_wanted = false;
            self.caught_up.push(stream);
        }
    }

    /// From now on the events after `revision` are told.
    pub fn live(&mut self, revision: i64) {
        self.head = Some(revision);
        let current: Vec<u32> =
            self.ready.range((revision + 1, 0)..).map(|&(_, slot)| slot).collect();
        for slot in current {
            self.leave(slot);
            self.settle(slot, revision);
        }
    }

    /// Nobody tells events any more. There must be no watcher.
    pub fn idle(&mut self) {
        assert_eq!(self.count, 0, "events are told while there are watchers");
        self.head = None;
    }

    /// After a panic in the middle of anything: every watcher goes on from what it has been given,
    /// once events are told again.
    pub fn recover(&mut self) {
        let head = self.head.take();
        self.synced = Group::default();
        self.ready.clear();
        self.queue.clear();
        self.flight = None;
        self.caught_up.clear();
        self.lagging = 0;
        self.free.clear();
        for home in self.streams.values_mut() {
            home.watchers.clear();
            home.waiting.clear();
            (home.lagging, home.compacted, home.full) = (0, 0, false);
        }
        self.count = 0;
        for at in 0..self.slots.len() {
            let slot = u32::try_from(at).expect("fewer watchers than u32 counts");
            let Some(watcher) = &mut self.slots[at] else {
                self.free.push(slot);
                continue;
            };
            let Some(home) = self.streams.get_mut(&watcher.stream) else {
                self.slots[at] = None;
                self.free.push(slot);
                continue;
            };
            home.watchers.insert(watcher.id, slot);
            self.count += 1;
            watcher.queued = false;
            if let (State::Synced, Some(head)) = (watcher.state, head) {
                watcher.next = watcher.next.max(head + 1);
            }
            let state = watcher.state;
            self.enter(slot, if state == State::Compacted { state } else { State::Ready });
        }
    }

    /// The store moved to `revision` by these changes, in order. Nothing while nobody tells.
    pub fn events(&mut self, revision: i64, changes: &[Written], offer: Offer<'_>) {
        let Some(head) = self.head else {
            return;
        };
        assert_eq!(revision, head + 1, "every revision is told once, in order");
        let mut events: Vec<Option<Arc<Event>>> = vec![None; changes.len()];
        let mut matched: Vec<(StreamId, u32, usize)> = Vec::new();
        for (at, change) in changes.iter().enumerate() {
            self.synced.visit(&change.key, |slot| {
                let watcher = self.slots[slot as usize].as_ref().expect("the slot is taken");
                if watcher.next <= revision && watcher.spec.wants(change.delete) {
                    matched.push((watcher.stream, slot, at));
                }
            });
        }
        matched.sort_unstable();
        let mut event = |at: usize| {
            let made =
                events[at].get_or_insert_with(|| Arc::new(Event::new(&changes[at], revision)));
            Arc::clone(made)
        };
        if let Some(recent) = self.flight.as_mut().and_then(|flight| flight.recent.as_mut()) {
            for at in 0..changes.len() {
                let event = event(at);
                recent.bytes += event.encoded().len();
                recent.events.push(event);
            }
            if recent.bytes > self.limits.recent_bytes {
                self.flight.as_mut().expect("it was there").recent = None;
            }
        }
        let batches: Vec<(StreamId, Batch)> = matched
            .chunk_by(|a, b| a.0 == b.0)
            .map(|of_stream| {
                let items = of_stream.chunk_by(|a, b| a.1 == b.1);
                let items = items.map(|of_watcher| {
                    (of_watcher[0].1, of_watcher.iter().map(|&(_, _, at)| event(at)).collect())
                });
                (of_stream[0].0, items.collect())
            })
            .collect();
        for (stream, batch) in batches {
            let slots: Vec<u32> = batch.iter().map(|&(slot, _)| slot).collect();
            if self.deliver(stream, revision, batch, offer) {
                for slot in slots {
                    self.held(slot).next = revision + 1;
                }
            } else {
                for slot in slots {
                    self.leave(slot);
                    self.held(slot).next = revision;
                    self.lag(slot);
                }
            }
        }
        self.head = Some(revision);
    }

    pub(super) fn deliver(
        &mut self,
        stream: StreamId,
        revision: i64,
        batch: Batch,
        offer: Offer<'_>,
    ) -> bool {
        let items = batch.into_iter().map(|(slot, events)| {
            let id = self.held(slot).id;
            Item { id, revision, events }
        });
        let taken = offer(stream, Delivery { items: items.collect() });
        if !taken {
            self.stream(stream).full = true;
        }
        taken
    }

    /// A stream that refused has room again.
    pub fn drained(&mut self, stream: StreamId) {
        let Some(home) = self.streams.get_mut(&stream) else {
            return;
        };
        home.full = false;
        let waiting: Vec<u32> = home.waiting.iter().copied().collect();
        for slot in waiting {
            self.leave(slot);
            self.enter(slot, State::Ready);
        }
    }

    /// Asks for a progress notice on behalf of all watchers of a stream: the revision, if they are
    /// synced. If some lag, the stream turns up in [`Watchers::take_caught_up`] later. A stream
    /// with no watcher, or with an ended one that is not canceled, gets none (as in etcd).
    pub fn progress(&mut self, stream: StreamId) -> Option<i64> {
        let home = self.streams.get_mut(&stream)?;
        if home.watchers.is_empty() || home.compacted > 0 {
            return None;
        }
        if home.lagging > 0 {
            home.progress_wanted = true;
            return None;
        }
        self.head
    }

    /// The revision up to which a watcher has everything, if it is synced.
    pub fn progress_of(&self, stream: StreamId, id: i64) -> Option<i64> {
        let slot = self.streams.get(&stream)?.watchers.get(&id)?;
        let synced = self.watcher(*slot).is_some_and(|watcher| watcher.state == State::Synced);
        self.head.filter(|_| synced)
    }

    /// Streams whose wanted progress notice is due, with its revision.
    pub fn take_caught_up(&mut self) -> Vec<(StreamId, i64)> {
        let streams = std::mem::take(&mut self.caught_up);
        streams.into_iter().filter_map(|id| Some((id, self.progress(id)?))).collect()
    }
}
