//! What the writer and the readers of the store share.

use crate::base::ids::Revision;
use crate::mvcc::backend::{Backend, BackendError, Bucket};
use crate::mvcc::counts::Counts;
use crate::mvcc::index::Index;
use crate::mvcc::row::revision_key;
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The hash of all rows up to a revision, after a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    pub hash: u32,
    /// The revision.
    pub revision: i64,
    /// What was compacted then.
    pub compact_revision: i64,
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    pub(crate) index: Index,
    pub(crate) backend: Arc<dyn Backend>,
    /// Newest revision that readers may see. Stored after everything it covers.
    pub(crate) revision: AtomicI64,
    /// Newest compacted revision, −1 before the first. Stored before anything is dropped.
    pub(crate) compacted: AtomicI64,
    /// Hashes that finished compactions computed on the way, oldest first.
    pub(crate) hashes: ArcSwap<Vec<KvHash>>,
    /// Size of etcd's file with these rows, and the part in use.
    pub(crate) on_disk: AtomicU64,
    pub(crate) in_use: AtomicU64,
    pub(crate) counts: Arc<Counts>,
}

impl Shared {
    /// Newest compacted revision, −1 before the first.
    pub(crate) fn compact_revision(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    /// The stored row of a version.
    pub(crate) fn row(&self, revision: Revision) -> Result<Bytes, BackendError> {
        self.backend.get(Bucket::Key, &revision_key(revision))?.ok_or_else(|| {
            BackendError(format!("no row for revision {}/{}", revision.main, revision.sub))
        })
    }
}
