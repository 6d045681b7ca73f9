//! Reads at a revision: etcd's Range with its filters, orders and limits.

use crate::base::error::{Error, Result};
use crate::base::ids::{LeaseId, Revision};
use crate::mvcc::backend::BackendError;
use crate::mvcc::corrupt::KvHash;
use crate::mvcc::counts::{Counts, Tally};
use crate::mvcc::hash;
use crate::mvcc::index::Keys;
use crate::mvcc::row::{Row, key_only};
use crate::mvcc::shared::Shared;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a read gave nothing.
#[derive(Clone, Debug)]
pub enum ReadError {
    /// The answer is this error.
    Refused(Error),
    /// The engine failed or lost a row.
    Damage(BackendError),
}

impl From<BackendError> for ReadError {
    fn from(damage: BackendError) -> Self {
        Self::Damage(damage)
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(error) => error,
            ReadError::Damage(_) => Self::Corrupt,
        }
    }
}

struct Item {
    revision: Revision,
    row: Option<Bytes>,
}

impl Shared {
    fn rows(&self, items: Vec<Item>) -> std::result::Result<Vec<Bytes>, BackendError> {
        let mut cold: Vec<(Revision, usize)> = Vec::new();
        let mut rows: Vec<Bytes> = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            match item.row {
                Some(row) => rows.push(row),
                None => {
                    cold.push((item.revision, at));
                    rows.push(Bytes::new());
                }
            }
        }
        // The rows of the engine lie in revision order.
        cold.sort_unstable();
        for (revision, at) in cold {
            rows[at] = self.row(revision)?;
        }
        Ok(rows)
    }

    /// Answers a range with `current` as the newest revision.
    pub(crate) fn range(
        &self,
        request: &rpc::RangeRequest,
        current: i64,
    ) -> std::result::Result<rpc::RangeResponse, ReadError> {
        if request.revision > current {
            return Err(ReadError::Refused(Error::FutureRev));
        }
        let at = if request.revision > 0 { request.revision } else { current };
        if at < self.compacted.load(Ordering::Acquire) {
            return Err(ReadError::Refused(Error::Compacted));
        }

        let (min_mod, max_mod) = (request.min_mod_revision, request.max_mod_revision);
        let (min_create, max_create) = (request.min_create_revision, request.max_create_revision);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        // An order that etcd does not know lifts the limit like any other, and sorts nothing.
        let order = match SortOrder::try_from(request.sort_order) {
            Ok(SortOrder::None) if target != SortTarget::Key => SortOrder::Ascend,
            Ok(order) => order,
            Err(_) => SortOrder::None,
        };
        let filtered = min_mod != 0 || max_mod != 0 || min_create != 0 || max_create != 0;
        // As in etcd, the target alone does not lift the limit before sorting; the order does.
        let fetch_max = match usize::try_from(request.limit) {
            Ok(limit) if limit > 0 && request.sort_order == 0 && !filtered => limit + 1,
            _ => usize::MAX,
        };

        let mut count = 0;
        let mut items: Vec<Item> = Vec::new();
        self.index.visit_at(Keys::new(&request.key, &request.range_end), at, |_, found| {
            count += 1;
            if !request.count_only && items.len() < fetch_max {
                items.push(Item { revision: found.revision, row: found.row });
            }
            true
        });
        if min_mod != 0 || max_mod != 0 {
            items.retain(|item| within(item.revision.main, min_mod, max_mod));
        }
        // Nothing below changes which rows come first: do not fetch the one that only tells `more`.
        let mut more = false;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        if limit > 0 && order == SortOrder::None && min_create == 0 && max_create == 0 {
            more = items.len() > limit;
            items.truncate(limit);
        }
        let mut rows = self.rows(items)?;
        if min_create != 0 || max_create != 0 {
            let mut kept = Vec::with_capacity(rows.len());
            for row in rows {
                if within(Row::parse(&row)?.create_revision, min_create, max_create) {
                    kept.push(row);
                }
            }
            rows = kept;
        }
        if order != SortOrder::None {
            rows = sorted(rows, target, order)?;
        }
        if limit > 0 && rows.len() > limit {
            rows.truncate(limit);
            more = true;
        }
        if request.keys_only {
            for row in &mut rows {
                *row = key_only(row)?;
            }
        }
        Ok(rpc::RangeResponse { header: Some(header(current)), kvs: rows, more, count })
    }
}

/// A response header with the revision; the edge fills in the rest.
pub(crate) fn header(revision: i64) -> rpc::ResponseHeader {
    rpc::ResponseHeader { revision, ..Default::default() }
}

fn within(revision: i64, min: i64, max: i64) -> bool {
    (min == 0 || revision >= min) && (max == 0 || revision <= max)
}

fn sorted(
    rows: Vec<Bytes>,
    target: SortTarget,
    order: SortOrder,
) -> std::result::Result<Vec<Bytes>, BackendError> {
    let mut parsed = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        parsed.push((Row::parse(row)?, at));
    }
    parsed.sort_by(|(a, _), (b, _)| {
        let ascending = match target {
            SortTarget::Key => a.key.cmp(b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(b.value),
        };
        if order == SortOrder::Descend { ascending.reverse() } else { ascending }
    });
    Ok(parsed.iter().map(|&(_, at)| rows[at].clone()).collect())
}

/// The published store, for any number of readers on any thread.
#[derive(Clone)]
pub struct Reader {
    /// Another one takes its place when the member gets a leader's snapshot.
    slot: Arc<Slot>,
}

/// Where readers find the store.
pub(crate) type Slot = ArcSwap<Shared>;

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        Self { slot }
    }

    /// The store as it is now, for several looks that must be at the same one. What is read of its
    /// rows may go away with a compaction.
    pub(crate) fn shared(&self) -> Guard<Arc<Shared>> {
        self.slot.load()
    }

    /// The newest published revision; 1 in an empty store.
    pub fn revision(&self) -> i64 {
        self.shared().revision.load(Ordering::Acquire)
    }

    /// What the store has done.
    pub fn counts(&self) -> Arc<Counts> {
        self.shared().counts.clone()
    }

    /// Counts a transaction that only read.
    pub(crate) fn end_tally(&self, tally: Tally) {
        self.shared().counts.end(tally);
    }

    /// Bytes that etcd's file would have with this store's history, from the log alone.
    pub fn size_bytes(&self) -> u64 {
        self.shared().on_disk.load(Ordering::Relaxed)
    }

    /// The part of [`Reader::size_bytes`] that holds rows.
    pub fn size_in_use_bytes(&self) -> u64 {
        self.shared().in_use.load(Ordering::Relaxed)
    }

    /// The newest compacted revision; −1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.shared().compact_revision()
    }

    /// etcd's Range. The header holds the current revision only. [`Error::Corrupt`] stands for an
    /// engine that failed or lost a row.
    pub fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        self.end_tally(Tally { ranges: 1, ..Tally::default() });
        self.range_of_txn(request)
    }

    /// [`Reader::range`] without counting it.
    pub(crate) fn range_of_txn(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        loop {
            let shared = self.shared();
            let current = shared.revision.load(Ordering::Acquire);
            let answer = shared.range(request, current);
            // A compaction may have dropped rows while they were collected.
            let asked = if request.revision > 0 { request.revision } else { current };
            if asked < shared.compact_revision() {
                if request.revision > 0 {
                    return Err(match answer {
                        Err(ReadError::Refused(error)) => error,
                        _ => Error::Compacted,
                    });
                }
                continue;
            }
            return answer.map_err(Error::from);
        }
    }

    /// The lease of a live key, or 0.
    pub fn lease_of(&self, key: &[u8]) -> Result<LeaseId> {
        let request = rpc::RangeRequest { key: Bytes::copy_from_slice(key), ..Default::default() };
        match self.range_of_txn(&request)?.kvs.first() {
            Some(row) => Ok(LeaseId(Row::parse(row).map_err(|_| Error::Corrupt)?.lease)),
            None => Ok(LeaseId(0)),
        }
    }

    /// etcd's HashKV: the hash of all rows up to `revision` (0: the current one), the current
    /// revision, and the compact revision that the hash belongs to.
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64)> {
        // Not a guard: it is held for long.
        let shared = self.slot.load_full();
        let now = || shared.revision.load(Ordering::Acquire);
        if let Some(known) = shared.hashes.load().iter().find(|h| h.revision == revision) {
            return Ok((known.hash, now(), known.compact_revision));
        }
        loop {
            let (compacted, current) = (shared.compact_revision(), now());
            if revision > 0 && revision < compacted {
                return Err(Error::Compacted);
            }
            if revision > current {
                return Err(Error::FutureRev);
            }
            let upto = if revision == 0 { current } else { revision };
            let hash = hash::rows_upto(&shared, compacted, upto);
            if shared.compact_revision() == compacted {
                return Ok((hash.map_err(|_| Error::Corrupt)?, current, compacted));
            }
        }
    }

    /// What finished compactions have hashed, oldest first, at most ten.
    pub fn hashes(&self) -> Vec<KvHash> {
        self.shared().hashes.load().as_ref().clone()
    }

    /// etcd's Hash: over all buckets.
    pub fn hash(&self) -> Result<u32> {
        hash::all_buckets(&*self.slot.load_full().backend).map_err(|_| Error::Corrupt)
    }
}
