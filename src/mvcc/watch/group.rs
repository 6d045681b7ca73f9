//! Watchers by what they watch.

use super::ranges::Ranges;
use super::{Span, Spec};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Finds the watchers of a key without looking at the others.
#[derive(Debug, Default)]
pub(super) struct Group {
    keys: BTreeMap<Bytes, BTreeSet<u32>>,
    ranges: Ranges,
}

impl Group {
    /// Adds a watcher that is not in the group.
    pub(super) fn insert(&mut self, spec: &Spec, watcher: u32) {
        match &spec.span {
            Span::One(key) => {
                let fresh = self.keys.entry(key.clone()).or_default().insert(watcher);
                assert!(fresh, "watcher {watcher} is added once");
            }
            Span::Range(start, end) => self.ranges.insert(start, end.as_ref(), watcher),
        }
    }

    /// Takes out a watcher that is in the group.
    pub(super) fn remove(&mut self, spec: &Spec, watcher: u32) {
        match &spec.span {
            Span::One(key) => {
                let watchers = self.keys.get_mut(key);
                let watchers = watchers.expect("a watcher of the group has its key there");
                let removed = watchers.remove(&watcher);
                assert!(removed, "watcher {watcher} is under its key");
                if watchers.is_empty() {
                    self.keys.remove(key);
                }
            }
            Span::Range(start, end) => self.ranges.remove(start, end.as_ref(), watcher),
        }
    }

    /// Visits the watchers of a key.
    pub(super) fn visit(&self, key: &[u8], mut visit: impl FnMut(u32)) {
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().for_each(|&watcher| visit(watcher));
        }
        self.ranges.visit(key, &mut visit);
    }
}
