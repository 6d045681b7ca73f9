//! Who watches what, and which events they still have to get. Pure: told of events in order, it
//! says what goes to which stream; what it can no longer hand on at once it reads back from
//! history.
//!
//! A watcher is *synced* while it gets events as they happen. One that starts in the past, or whose
//! stream had no room, *lags*: it keeps only the revision it has to go on from, so a slow client
//! costs a number and not a queue. Passes over the history bring lagging watchers up to date.
//! Uses: base

mod event;
mod group;
mod history;
mod passes;
mod ranges;
#[cfg(test)]
mod tests;
mod watchers;

pub use event::{Event, Written};
pub use history::{Outcome, Pass};
pub use watchers::{Limits, Watchers};

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A client's watch stream on this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Why a watcher was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The end is not above the key.
    EmptyRange,
    /// The stream has a watcher of this id.
    DuplicateId,
}

/// The keys of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// One key.
    One(Bytes),
    /// From the first key to below the second, or to the end of all keys.
    Range(Bytes, Option<Bytes>),
}

impl Span {
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Span::One(own) => own == key,
            Span::Range(start, end) => {
                start <= key && end.as_ref().is_none_or(|end| key < &end[..])
            }
        }
    }
}

/// What a watcher wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its keys.
    pub span: Span,
    /// Leaves out puts.
    pub no_put: bool,
    /// Leaves out deletions.
    pub no_delete: bool,
}

impl Spec {
    /// Reads a request's key and range end (etcd v3.5.17 `v3rpc/watch.go` recvLoop): no key is the
    /// smallest one, no end is one key, a zero byte is no bound. Copies both, since they outlive
    /// the request.
    pub fn new(
        key: &[u8],
        range_end: &[u8],
        no_put: bool,
        no_delete: bool,
    ) -> Result<Spec, Refusal> {
        let key =
            if key.is_empty() { Bytes::from_static(&[0]) } else { Bytes::copy_from_slice(key) };
        let span = match range_end {
            [] => Span::One(key),
            [0] => Span::Range(key, None),
            end if &key[..] >= end => return Err(Refusal::EmptyRange),
            end => Span::Range(key, Some(Bytes::copy_from_slice(end))),
        };
        Ok(Spec { span, no_put, no_delete })
    }

    fn wants(&self, delete: bool) -> bool {
        if delete { !self.no_delete } else { !self.no_put }
    }

    fn matches(&self, event: &Event) -> bool {
        self.wants(event.delete) && self.span.contains(&event.key)
    }
}

/// Events for watchers of one stream.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// One for each watcher that gets something.
    pub items: Vec<Item>,
}

/// Events for one watcher: whole revisions, in order.
#[derive(Clone, Debug)]
pub struct Item {
    /// The watcher.
    pub id: i64,
    /// The store's revision when it was made; everything in it is at or below.
    pub revision: i64,
    /// Shared with everyone else who gets them.
    pub events: Vec<Arc<Event>>,
}

impl Item {
    fn join(&mut self, later: Item) {
        self.revision = later.revision;
        self.events.extend(later.events);
    }
}

impl Delivery {
    /// Puts later deliveries to the same stream, in order, behind this one: each watcher keeps one
    /// item.
    pub fn join(&mut self, later: Vec<Delivery>) {
        let mut places: Option<BTreeMap<i64, usize>> = None;
        for delivery in later {
            for (at, item) in delivery.items.into_iter().enumerate() {
                // Most often it is the same watchers that get something, in the same order.
                if let Some(own) = self.items.get_mut(at)
                    && own.id == item.id
                {
                    own.join(item);
                    continue;
                }
                let places = places.get_or_insert_with(|| {
                    self.items.iter().enumerate().map(|(at, item)| (item.id, at)).collect()
                });
                match places.get(&item.id) {
                    Some(&own) => self.items[own].join(item),
                    None => {
                        places.insert(item.id, self.items.len());
                        self.items.push(item);
                    }
                }
            }
        }
    }

    /// Bytes of all events; one that goes to several watchers counts for each.
    pub fn bytes(&self) -> usize {
        let sizes = self.items.iter().flat_map(|item| &item.events).map(|e| e.encoded().len());
        sizes.sum()
    }
}
