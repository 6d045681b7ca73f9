//! What brings lagging watchers back: the passes, from the table's side.

use super::watchers::{Batch, Flight, Offer, Recent, State, Watchers};
use super::{Outcome, Pass, StreamId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Stale places in the queue beyond which it is made anew.
const QUEUE_SLACK: usize = 1024;

impl Watchers {
    /// Ends the lagging watchers that want compacted revisions: their streams and ids.
    pub fn compacted(&mut self, compacted: i64) -> Vec<(StreamId, i64)> {
        let mut ended = Vec::new();
        while let Some(&(next, slot)) = self.ready.first()
            && next < compacted
        {
            self.leave(slot);
            ended.push(self.end(slot));
        }
        ended
    }

    fn end(&mut self, slot: u32) -> (StreamId, i64) {
        self.enter(slot, State::Compacted);
        let watcher = self.held(slot);
        (watcher.stream, watcher.id)
    }

    /// The next pass, if one is worth while and none is under way. What is compacted must have been
    /// ended before.
    pub fn start_pass(&mut self) -> Option<Pass> {
        let head = self.head?;
        if self.flight.is_some() {
            return None;
        }
        if self.queue.len() > 2 * self.ready.len() + QUEUE_SLACK {
            self.queue = self.ready.iter().map(|&(_, slot)| slot).collect();
            for watcher in self.slots.iter_mut().flatten() {
                watcher.queued = watcher.state == State::Ready;
            }
        }
        let first = loop {
            let slot = self.queue.pop_front()?;
            let Some(watcher) = self.slots[slot as usize].as_mut() else {
                continue;
            };
            watcher.queued = false;
            if watcher.state != State::Ready {
                continue;
            }
            let (stream, next) = (watcher.stream, watcher.next);
            if next <= head && !self.stream(stream).full {
                break slot;
            }
            self.leave(slot);
            self.settle(slot, head);
        };
        let from = self.held(first).next;
        let to = head.min(from.saturating_add(self.limits.pass_revisions - 1));
        let others = self.ready.range((from, 0)..=(to, u32::MAX)).map(|&(_, slot)| slot);
        let others = others.filter(|&slot| slot != first).take(self.limits.pass_watchers - 1);
        let slots: Vec<u32> = std::iter::once(first).chain(others).collect();
        let mut members = Vec::with_capacity(slots.len());
        let mut taken = Vec::with_capacity(slots.len());
        for slot in slots {
            self.leave(slot);
            let stream = self.held(slot).stream;
            if self.stream(stream).full {
                self.enter(slot, State::Waiting);
                continue;
            }
            self.enter(slot, State::Reading);
            let watcher = self.held(slot);
            members.push((Arc::clone(&watcher.spec), watcher.next));
            taken.push((slot, watcher.serial));
        }
        self.passes += 1;
        let recent = (to == head).then(Recent::default);
        self.flight = Some(Flight { number: self.passes, members: taken, to, recent });
        let bytes_max = self.limits.pass_bytes;
        Some(Pass { number: self.passes, from, to, bytes_max, members })
    }

    /// The pass under way failed; its watchers wait for another.
    pub fn pass_failed(&mut self) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        for (slot, serial) in flight.members {
            if self.watcher(slot).is_some_and(|watcher| watcher.serial == serial) {
                self.leave(slot);
                self.lag(slot);
            }
        }
    }

    /// Hands on what a pass found; gives the watchers that ended, as [`Watchers::compacted`] does.
    /// The outcome of a pass that is not under way is ignored.
    pub fn finish_pass(&mut self, outcome: Outcome, offer: Offer<'_>) -> Vec<(StreamId, i64)> {
        let flight = self.flight.take_if(|flight| flight.number == outcome.number);
        let (Some(flight), Some(head)) = (flight, self.head) else {
            return Vec::new();
        };
        let through = outcome.through;
        let recent = flight.recent.filter(|_| through == flight.to).map(|recent| recent.events);
        let reached = if recent.is_some() { head } else { through };
        let mut ended = Vec::new();
        let mut found: BTreeMap<StreamId, Batch> = BTreeMap::new();
        for ((slot, serial), mut events) in flight.members.into_iter().zip(outcome.batches) {
            let Some(watcher) = self.watcher(slot).filter(|watcher| watcher.serial == serial)
            else {
                continue;
            };
            assert_eq!(watcher.state, State::Reading, "a member of the pass waits for it");
            let (stream, spec, next) = (watcher.stream, Arc::clone(&watcher.spec), watcher.next);
            self.leave(slot);
            if next < outcome.compacted {
                ended.push(self.end(slot));
                continue;
            }
            let recent = recent.iter().flatten();
            events.extend(recent.filter(|event| spec.matches(event)).cloned());
            if events.is_empty() {
                self.held(slot).next = next.max(reached + 1);
                self.settle(slot, head);
                continue;
            }
            // Until it is handed over it lags from where it was.
            self.enter(slot, State::Reading);
            found.entry(stream).or_default().push((slot, events));
        }
        for (stream, batch) in found {
            let slots: Vec<u32> = batch.iter().map(|&(slot, _)| slot).collect();
            let taken = self.deliver(stream, head, batch, offer);
            for slot in slots {
                self.leave(slot);
                if taken {
                    self.held(slot).next = reached + 1;
                }
                self.settle(slot, head);
            }
        }
        ended
    }
}
