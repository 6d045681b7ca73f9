//! How large etcd's file would be with the rows of this store: an estimate in bbolt's pages, kept
//! up with each row. It depends on the log alone, so that it is the same on all members: rows count
//! until the entry that compacts them, no matter when this member removes them.

use crate::base::limits::PAGE_BYTES;
use std::collections::VecDeque;

/// What bbolt writes at the head of a page, and for each row of it (bbolt v1.3.11 `page.go`).
const PAGE_HEADER: u64 = 16;
const ELEMENT_HEADER: u64 = 16;
/// Bytes of a leaf that are filled before the next begins: etcd sets 0.9 of a page.
const LEAF_FILL: u64 = PAGE_BYTES * 9 / 10;
/// Rows that share a leaf however large they are (bbolt `node.go` minKeysPerPage).
const LEAF_ROWS_MIN: u64 = 2;
/// A leaf's share of its branch page: an element with a key of 17 bytes.
const BRANCH_SHARE: u64 = ELEMENT_HEADER + 17;
/// Pages of an empty store: two meta pages, the free list, and the root with the buckets in it.
const BASE_PAGES: u64 = 4;
/// A bucket below this lives in the root page (bbolt: a quarter of a page).
const INLINE_BYTES_MAX: u64 = PAGE_BYTES / 4;
/// Pages of a commit that wait to be free: what was changed is copied, never overwritten.
const COPY_PAGES: u64 = 1;

/// A row's part of its leaf, in bytes: a full leaf of such rows costs a page, and its share above.
pub fn row_cost(key_len: usize, value_len: usize) -> u64 {
    let element = ELEMENT_HEADER + (key_len + value_len) as u64;
    let rows = (LEAF_FILL - PAGE_HEADER) / element;
    if rows >= LEAF_ROWS_MIN {
        return (PAGE_BYTES + BRANCH_SHARE) / rows;
    }
    let leaf = (PAGE_HEADER + LEAF_ROWS_MIN * element).next_multiple_of(PAGE_BYTES);
    (leaf + BRANCH_SHARE) / LEAF_ROWS_MIN
}

/// Bytes in use when the buckets' rows cost so much, whole pages.
pub fn in_use(buckets: impl Iterator<Item = u64>) -> u64 {
    let pages = |cost: u64| if cost < INLINE_BYTES_MAX { 0 } else { cost.div_ceil(PAGE_BYTES) };
    (BASE_PAGES + buckets.map(pages).sum::<u64>()) * PAGE_BYTES
}

/// Bytes of a file that holds so much; it never shrinks below what it was.
pub fn on_disk(in_use: u64, before: u64) -> u64 {
    before.max(in_use + COPY_PAGES * PAGE_BYTES)
}

/// The cost of bucket Key.
#[derive(Debug)]
pub(crate) struct KeyCost {
    live: u64,
    compacted: i64,
    /// What a compaction of each revision above `compacted` sets free, in order.
    dying: VecDeque<u64>,
}

impl KeyCost {
    /// No rows, compacted so far (−1: never).
    pub(crate) fn new(compacted: i64) -> Self {
        Self { live: 0, compacted: compacted.max(0), dying: VecDeque::new() }
    }

    /// Bytes of the rows that the newest compaction keeps.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// A row is there.
    pub(crate) fn add(&mut self, cost: u64) {
        self.live += cost;
    }

    /// A row goes with the first compaction at or above `revision`.
    pub(crate) fn dies(&mut self, revision: i64, cost: u64) {
        let Ok(ahead) = usize::try_from(revision - self.compacted - 1) else {
            self.live -= cost;
            return;
        };
        if ahead >= self.dying.len() {
            self.dying.resize(ahead + 1, 0);
        }
        self.dying[ahead] += cost;
    }

    /// A compaction was accepted.
    pub(crate) fn compact(&mut self, revision: i64) {
        let ahead = usize::try_from(revision - self.compacted).unwrap_or_default();
        for cost in self.dying.drain(..ahead.min(self.dying.len())) {
            self.live -= cost;
        }
        self.compacted = self.compacted.max(revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one size in bucket Key; the sizes in use are those of etcd 3.5.17 after as many
    /// puts by its benchmark tool with sequential keys.
    #[test]
    fn costs_are_near_bbolts_pages() {
        for (rows, key, value, etcd) in [
            (1_000, 8, 100, 208_896),
            (10_000, 16, 256, 3_796_992),
            (5_000, 16, 1_000, 6_926_336),
            (2_000, 16, 2_500, 8_265_728),
            (500, 16, 20_000, 10_362_880),
            (60, 16, 1_000_000, 63_111_168),
        ] {
            // Fields of a row: lengths, three revisions of up to 3 bytes.
            let row = key + value + 14;
            let ours = in_use([row_cost(17, row) * rows].into_iter());
            let off = ours.abs_diff(etcd) * 100 / etcd;
            assert!(off <= 10, "{rows} rows of {value}: {ours}, etcd {etcd}");
        }
        assert_eq!(
            (in_use([0, 200].into_iter()), on_disk(in_use([0].into_iter()), 0)),
            (16_384, 20_480)
        );
    }

    #[test]
    fn rows_count_until_they_are_compacted() {
        let mut cost = KeyCost::new(-1);
        cost.add(100);
        cost.dies(3, 100);
        cost.add(50);
        cost.dies(9, 50);
        cost.compact(2);
        assert_eq!(cost.live(), 150);
        cost.compact(4);
        assert_eq!(cost.live(), 50);
        cost.add(7);
        cost.dies(4, 7);
        cost.compact(20);
        assert_eq!((cost.live(), cost.dying.len()), (0, 0));
        cost.dies(22, 0);
        assert_eq!(cost.dying.len(), 2);
    }
}
