//! The store from the rows of the engine.

use crate::base::limits::INDEX_ROW_BYTES_MAX;
use crate::mvcc::backend::{Backend, BackendError, Bucket};
use crate::mvcc::cache::RowCache;
use crate::mvcc::compact::{self, CutOff, Job};
use crate::mvcc::counts::Counts;
use crate::mvcc::index::{Head, Index};
use crate::mvcc::row::{Row, parse_revision_key};
use crate::mvcc::shared::Shared;
use crate::mvcc::size::{KeyCost, row_cost};
use crate::mvcc::store::{Store, cost_in_head};
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

impl Store {
    /// Builds the index by one scan of bucket Key. Also gives the live keys that hang on leases.
    pub fn open(backend: Arc<dyn Backend>) -> Result<(Self, BTreeMap<Bytes, i64>), BackendError> {
        let read = |name: &[u8]| match backend.get(Bucket::Meta, name)? {
            Some(value) => parse_revision_key(&value).map(|(revision, _)| revision.main),
            None => Ok(-1),
        };
        let (scheduled, finished) = (read(compact::SCHEDULED)?, read(compact::FINISHED)?);
        let compacted = scheduled.max(finished);
        let shared = Arc::new(Shared {
            index: Index::default(),
            backend: Arc::clone(&backend),
            revision: AtomicI64::new(1),
            compacted: AtomicI64::new(compacted),
            hashes: ArcSwap::default(),
            on_disk: AtomicU64::default(),
            in_use: AtomicU64::default(),
            counts: Arc::new(Counts::default()),
        });
        let mut store = Self {
            slot: Arc::new(ArcSwap::new(shared.clone())),
            shared,
            cache: RowCache::new(INDEX_ROW_BYTES_MAX),
            revision: compacted.max(1),
            changes: Vec::new(),
            ops: Vec::new(),
            undo: Vec::new(),
            jobs: VecDeque::new(),
            looking: None,
            cut_off: CutOff::default(),
            finished,
            cost: KeyCost::new(compacted),
            tally: Cell::default(),
        };
        if scheduled > finished {
            store.jobs.push_back(Job::new(scheduled, finished, false));
        }
        let mut leased = BTreeMap::new();
        backend.try_scan(Bucket::Key, &[], None, &mut |key, value| {
            store.restore(key, value, compacted, &mut leased)?;
            Ok(ControlFlow::Continue(()))
        })?;
        store.publish();
        Ok((store, leased))
    }

    fn restore(
        &mut self,
        key: &[u8],
        value: &Bytes,
        compacted: i64,
        leased: &mut BTreeMap<Bytes, i64>,
    ) -> Result<(), BackendError> {
        let (revision, tombstone) = parse_revision_key(key)?;
        if revision.main > compacted.max(1) {
            if revision.main > self.revision + 1 {
                return Err(BackendError(format!(
                    "hole: revision {} follows {} in bucket key",
                    revision.main, self.revision
                )));
            }
            self.revision = revision.main;
        }
        let row = Row::parse(value)?;
        let entry = self.shared.index.get(row.key);
        let cost = row_cost(key.len(), value.len());
        let head = entry.as_ref().map(|entry| entry.head());
        self.cost_of_version(revision.main, cost, tombstone, head.as_deref().map(Arc::as_ref));
        if tombstone {
            leased.remove(row.key);
            if entry.is_none() {
                // The deletion of a key whose other versions are compacted.
                return Ok(());
            }
        } else if row.lease != 0 {
            leased.insert(Bytes::copy_from_slice(row.key), row.lease);
        } else {
            leased.remove(row.key);
        }
        let head = Head {
            revision,
            create_revision: row.create_revision,
            version: row.version,
            tombstone,
            cost: cost_in_head(cost),
            row: (!tombstone).then(|| Bytes::copy_from_slice(value)),
            older: entry.as_ref().map(|entry| entry.head().history()),
        };
        self.set_head(row.key, entry, head);
        self.cache.evict();
        Ok(())
    }
}
