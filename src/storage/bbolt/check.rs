//! The whole file at once: every page is part of exactly one tree, or free.

use super::page::{Kind, parse_freelist};
use super::reader::{Bucket, Db, Direction, Item, Seen, Source};
use super::{Error, Result};

/// Buckets within buckets that a check follows; etcd has none below its top level.
const NESTING_MAX: usize = 16;

/// What a check counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Buckets at all levels.
    pub buckets: u64,
    /// Rows that are no buckets.
    pub rows: u64,
    /// Pages that nothing reaches.
    pub free_pages: u64,
}

impl<S: Source> Db<S> {
    /// Reads everything and checks it as a whole, as bbolt's `Tx.Check` does: no page in two
    /// places, none both free and in use, none neither.
    pub fn check(&self) -> Result<Totals> {
        Ok(self.reach()?.0)
    }

    /// [`Db::check`], and the pages that are in use or on the free list.
    pub(super) fn reach(&self) -> Result<(Totals, Seen)> {
        let mut seen = Seen::new(self.pages());
        for meta in 0..2 {
            seen.mark(meta);
        }
        let mut totals = Totals::default();
        let mut seen = self.check_bucket(&self.root(), seen, &mut totals, 0)?;
        if let Some(page) = self.meta().freelist {
            let (header, bytes) = self.run(page, &[Kind::Freelist], &mut seen)?;
            let malformed = |reason| Error::Malformed { page, reason };
            for free in parse_freelist(&bytes, &header).map_err(malformed)? {
                if !seen.mark(free) {
                    return Err(malformed(format!("lists page {free}, which is not free")));
                }
                totals.free_pages += 1;
            }
            if let (count, Some(page)) = seen.unmarked() {
                let reason = format!("is one of {count} that are neither in use nor free");
                return Err(Error::Malformed { page, reason });
            }
        }
        totals.free_pages += seen.unmarked().0;
        Ok((totals, seen))
    }

    fn check_bucket(
        &self,
        bucket: &Bucket,
        seen: Seen,
        totals: &mut Totals,
        depth: usize,
    ) -> Result<Seen> {
        let mut walk = self.walk_seeing(bucket, Direction::Forward, seen);
        while let Some(item) = walk.next() {
            match item? {
                Item::Row(..) => totals.rows += 1,
                Item::Bucket(_, below) => {
                    if depth == NESTING_MAX {
                        let reason = format!("holds buckets more than {NESTING_MAX} deep");
                        return Err(Error::Malformed { page: below.page, reason });
                    }
                    totals.buckets += 1;
                    let seen = std::mem::take(walk.seen_mut());
                    *walk.seen_mut() = self.check_bucket(&below, seen, totals, depth + 1)?;
                }
            }
        }
        Ok(walk.into_seen())
    }
}
