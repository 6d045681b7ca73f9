//! The key index: one entry per user key, its versions newest first. One thread writes; readers
//! take no lock.

use crate::base::ids::Revision;
use arc_swap::ArcSwap;
use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use std::ops::Bound;
use std::sync::Arc;

/// Where a key's history stands now.
#[derive(Debug)]
pub(crate) struct Head {
    /// Revision of the newest version.
    pub revision: Revision,
    /// Revision that created the key; meaningless for a tombstone.
    pub create_revision: i64,
    /// Writes since the creation, from 1; meaningless for a tombstone.
    pub version: i64,
    /// Whether the newest version is a deletion.
    pub tombstone: bool,
    /// What the row adds to the size of the store, in bytes.
    pub cost: u32,
    /// The stored row, while the byte budget lasts.
    pub row: Option<Bytes>,
    /// The versions before it.
    pub older: Option<Arc<Node>>,
}

/// An older version. `jump` skips back over a run of them, so that a search is logarithmic.
#[derive(Debug)]
pub(crate) struct Node {
    revision: Revision,
    tombstone: bool,
    depth: u32,
    prev: Option<Arc<Node>>,
    jump: Option<Arc<Node>>,
}

impl Node {
    fn push(revision: Revision, tombstone: bool, prev: Option<Arc<Self>>) -> Arc<Self> {
        let (depth, jump) = match &prev {
            None => (0, None),
            Some(top) => {
                let middle = top.jump.as_ref().unwrap_or(top);
                let bottom = middle.jump.as_ref().unwrap_or(middle);
                let even = top.depth - middle.depth == middle.depth - bottom.depth;
                (top.depth + 1, Some(Arc::clone(if even { bottom } else { top })))
            }
        };
        Arc::new(Self { revision, tombstone, depth, prev, jump })
    }
}

impl Drop for Node {
    /// Takes the chain apart in a loop: a million versions must not need a million stack frames.
    fn drop(&mut self) {
        // A jump's target is still held by the chain below, so dropping a jump ends nothing.
        self.jump = None;
        let mut next = self.prev.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            node.jump = None;
            next = node.prev.take();
        }
    }
}

/// A version as a search finds it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Its revision.
    pub revision: Revision,
    /// Whether it is a deletion.
    pub tombstone: bool,
    /// The row, if the index holds it.
    pub row: Option<Bytes>,
}

impl Head {
    /// The newest version with `main <= at`.
    pub(crate) fn find(&self, at: i64) -> Option<Found> {
        if self.revision.main <= at {
            let (revision, tombstone) = (self.revision, self.tombstone);
            return Some(Found { revision, tombstone, row: self.row.clone() });
        }
        let mut node = self.older.as_deref()?;
        while node.revision.main > at {
            node = match node.jump.as_deref() {
                Some(jump) if jump.revision.main > at => jump,
                _ => node.prev.as_deref()?,
            };
        }
        Some(Found { revision: node.revision, tombstone: node.tombstone, row: None })
    }

    /// The head without the versions before the newest one with `main <= at`; that one stays if
    /// `keep`. `None` if nothing is left.
    fn trimmed(&self, at: i64, keep: bool) -> Option<Self> {
        if self.revision.main <= at {
            return keep.then(|| self.with(self.row.clone(), None));
        }
        let mut newer = Vec::new();
        let mut node = self.older.as_deref();
        while let Some(this) = node.filter(|this| this.revision.main > at) {
            newer.push((this.revision, this.tombstone));
            node = this.prev.as_deref();
        }
        let base = node.filter(|_| keep).map(|n| Node::push(n.revision, n.tombstone, None));
        let older = newer
            .into_iter()
            .rev()
            .fold(base, |prev, (revision, tombstone)| Some(Node::push(revision, tombstone, prev)));
        Some(self.with(self.row.clone(), older))
    }

    /// The same version with another row and history.
    pub(crate) fn with(&self, row: Option<Bytes>, older: Option<Arc<Node>>) -> Self {
        let Self { revision, create_revision, version, tombstone, cost, .. } = *self;
        Self { revision, create_revision, version, tombstone, cost, row, older }
    }

    /// The chain that a newer version continues.
    pub(crate) fn history(&self) -> Arc<Node> {
        Node::push(self.revision, self.tombstone, self.older.clone())
    }

    fn has_history(&self) -> bool {
        self.older.is_some()
    }
}

/// One user key.
#[derive(Debug)]
pub(crate) struct KeyEntry {
    head: ArcSwap<Head>,
}

impl KeyEntry {
    /// The newest version, published or not.
    pub(crate) fn head(&self) -> arc_swap::Guard<Arc<Head>> {
        self.head.load()
    }

    /// Replaces the head and gives the old one. Writer only.
    pub(crate) fn swap(&self, head: Arc<Head>) -> Arc<Head> {
        self.head.swap(head)
    }
}

/// All keys in order.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: SkipMap<Bytes, Arc<KeyEntry>>,
}

/// A half-open range of keys, in etcd's notation of `range_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys<'a> {
    /// One key.
    One(&'a [u8]),
    /// All keys from this one.
    From(&'a [u8]),
    /// From the first, up to and without the second; empty if they are in the wrong order.
    Between(&'a [u8], &'a [u8]),
}

impl<'a> Keys<'a> {
    /// Empty `range_end`: one key; a zero byte: to the end.
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }
}

impl Index {
    /// The entry of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<KeyEntry>> {
        self.keys.get(key).map(|entry| Arc::clone(entry.value()))
    }

    /// Adds a key that is not there. Writer only.
    pub(crate) fn insert(&self, key: Bytes, head: Arc<Head>) -> Arc<KeyEntry> {
        let entry = Arc::new(KeyEntry { head: ArcSwap::new(head) });
        self.keys.insert(key, Arc::clone(&entry));
        entry
    }

    /// Forgets a key. Writer only.
    pub(crate) fn remove(&self, key: &[u8]) {
        self.keys.remove(key);
    }

    /// Visits keys in order until `visit` gives false.
    pub(crate) fn visit(
        &self,
        keys: Keys<'_>,
        mut visit: impl FnMut(&Bytes, &Arc<KeyEntry>) -> bool,
    ) {
        let (from, to) = match keys {
            Keys::One(key) => {
                if let Some(entry) = self.keys.get(key) {
                    visit(entry.key(), entry.value());
                }
                return;
            }
            Keys::From(from) => (from, Bound::Unbounded),
            Keys::Between(from, to) if from < to => (from, Bound::Excluded(to)),
            Keys::Between(..) => return,
        };
        for entry in self.keys.range::<[u8], _>((Bound::Included(from), to)) {
            if !visit(entry.key(), entry.value()) {
                return;
            }
        }
    }

    /// Visits the versions visible at a revision, in key order, until `visit` gives false.
    pub(crate) fn visit_at(
        &self,
        keys: Keys<'_>,
        at: i64,
        mut visit: impl FnMut(&Bytes, Found) -> bool,
    ) {
        self.visit(keys, |key, entry| match entry.head().find(at) {
            Some(found) if !found.tombstone => visit(key, found),
            _ => true,
        });
    }

    /// Whether any key exists at a revision, or was deleted exactly there if `or_deleted`.
    pub(crate) fn any_at(&self, at: i64, or_deleted: bool) -> bool {
        let mut any = false;
        self.visit(Keys::From(&[]), |_, entry| {
            any = entry
                .head()
                .find(at)
                .is_some_and(|f| !f.tombstone || or_deleted && f.revision.main == at);
            !any
        });
        any
    }

    /// Drops the versions of a key that a compaction at `at` makes unreachable; the newest one with
    /// `main <= at` stays if `keep`. Writer only. Gives the old and new head if something changed.
    pub(crate) fn trim(
        &self,
        key: &[u8],
        at: i64,
        keep: bool,
    ) -> Option<(Arc<Head>, Option<Arc<Head>>)> {
        let entry = self.get(key)?;
        let head = entry.head.load_full();
        if keep && !head.has_history() {
            return None;
        }
        match head.trimmed(at, keep) {
            Some(new) => {
                let new = Arc::new(new);
                entry.head.store(Arc::clone(&new));
                Some((head, Some(new)))
            }
            None => {
                self.keys.remove(key);
                Some((head, None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(main: i64, older: Option<Arc<Node>>) -> Head {
        Head {
            revision: Revision { main, sub: 0 },
            create_revision: 1,
            version: 1,
            tombstone: false,
            cost: 0,
            row: None,
            older,
        }
    }

    fn chain(len: i64) -> Head {
        (2..=len).fold(head(2, None), |h, i| head(2 * i, Some(h.history())))
    }

    #[test]
    fn finds_every_revision_in_few_steps() {
        let h = chain(1000);
        for at in 0..2010 {
            let expected = match at {
                0..2 => None,
                2..4 => Some(2),
                _ => Some((at / 2 * 2).min(2000)),
            };
            assert_eq!(h.find(at).map(|f| f.revision.main), expected, "at {at}");
        }
        let mut node = h.older.as_deref().unwrap();
        let mut steps = 0;
        while node.revision.main > 2 {
            node = node
                .jump
                .as_deref()
                .filter(|j| j.revision.main > 2)
                .unwrap_or_else(|| node.prev.as_deref().unwrap());
            steps += 1;
        }
        assert!(steps < 40, "{steps}");
    }

    #[test]
    fn a_million_versions_drop_without_a_deep_stack() {
        let h = chain(1_000_000);
        let held = h.older.clone().unwrap().jump.clone();
        drop(h);
        drop(held);
    }

    #[test]
    fn trim_keeps_the_newest_at_the_revision_and_all_above() {
        let h = chain(100);
        let t = h.trimmed(101, true).unwrap();
        assert_eq!(t.find(99).map(|f| f.revision.main), None);
        for at in 100..=200 {
            assert_eq!(t.find(at).unwrap().revision.main, at / 2 * 2);
        }
        let t = h.trimmed(101, false).unwrap();
        assert!(t.find(101).is_none());
        assert_eq!(t.find(102).unwrap().revision.main, 102);
        assert!(h.trimmed(500, false).is_none());
        assert_eq!(h.trimmed(500, true).unwrap().find(500).unwrap().revision.main, 200);
        assert!(h.trimmed(500, true).unwrap().find(199).is_none());
    }
}
