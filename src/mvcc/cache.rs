//! Which keys hold their newest row in the index.

use crate::base::ids::Revision;
use crate::mvcc::index::{Head, KeyEntry};
use std::collections::VecDeque;
use std::sync::Arc;

/// Newest rows kept in the index, first in first out, within a byte budget.
pub(crate) struct RowCache {
    bytes: usize,
    bytes_max: usize,
    rows: usize,
    queue: VecDeque<(Arc<KeyEntry>, Revision)>,
}

impl RowCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, rows: 0, queue: VecDeque::new() }
    }

    /// Another budget.
    pub(crate) fn set_bytes_max(&mut self, bytes: usize) {
        self.bytes_max = bytes;
        self.evict();
    }

    /// The entry's head of this revision holds its row.
    pub(crate) fn holds(&mut self, entry: Arc<KeyEntry>, revision: Revision) {
        self.queue.push_back((entry, revision));
    }

    /// Counts a head that took another's place.
    pub(crate) fn replaced(&mut self, old: Option<&Head>, new: Option<&Head>) {
        if let Some(row) = old.and_then(|head| head.row.as_ref()) {
            self.bytes -= row.len();
            self.rows -= 1;
        }
        if let Some(row) = new.and_then(|head| head.row.as_ref()) {
            self.bytes += row.len();
            self.rows += 1;
        }
    }

    /// Takes rows out until the budget holds.
    pub(crate) fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some((entry, revision)) = self.queue.pop_front()
        {
            let head = entry.head();
            if head.revision == revision && head.row.is_some() {
                let bare = Arc::new(head.with(None, head.older.clone()));
                drop(head);
                let old = entry.swap(bare);
                self.replaced(Some(&old), None);
            }
        }
        // A key that is overwritten again and again leaves stale places in the queue.
        if self.queue.len() > 2 * self.rows + 1024 {
            self.queue.retain(|(entry, revision)| {
                let head = entry.head();
                head.revision == *revision && head.row.is_some()
            });
        }
    }
}
