//! etcd's hashes of the store: HashKV over revisions, Hash over buckets.

use crate::base::ids::Revision;
use crate::mvcc::backend::{Backend, BackendError, Bucket};
use crate::mvcc::index::Index;
use crate::mvcc::row::{Row, parse_revision_key, revision_key};
use crate::mvcc::shared::Shared;
use crc32c::crc32c_append;
use std::ops::ControlFlow;

/// Hashes of finished compactions that are remembered (etcd v3.5.17 hashStorageMaxSize).
pub(crate) const HASHES_MAX: usize = 10;

/// Folds rows into a HashKV value.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    crc: u32,
    /// Rows up to here count only if the compaction keeps them.
    compacted: i64,
    /// Whether the compaction keeps anything at all; if not, etcd skips nothing.
    keeps_any: bool,
}

impl Hasher {
    pub(crate) fn new(compacted: i64, keeps_any: bool) -> Self {
        Self { crc: crc32c_append(0, b"key"), compacted, keeps_any }
    }

    /// `kept` tells whether a compaction keeps the row; it is asked only where that matters.
    pub(crate) fn row(
        &mut self,
        key: &[u8],
        value: &[u8],
        (revision, tombstone): (Revision, bool),
        kept: impl FnOnce() -> Result<bool, BackendError>,
    ) -> Result<(), BackendError> {
        if revision.main <= self.compacted && self.keeps_any && !kept()? {
            return Ok(());
        }
        // Older etcd drops a tombstone at the compact revision, newer keeps it: neither hashes it.
        if revision.main == self.compacted && tombstone {
            return Ok(());
        }
        self.crc = crc32c_append(crc32c_append(self.crc, key), value);
        Ok(())
    }

    pub(crate) fn sum(&self) -> u32 {
        self.crc
    }
}

/// Whether the row is the version of its key that is newest at `at`.
pub(crate) fn is_newest_at(
    index: &Index,
    at: i64,
    revision: Revision,
    value: &[u8],
) -> Result<bool, BackendError> {
    let key = Row::parse(value)?.key;
    Ok(index
        .get(key)
        .and_then(|entry| entry.head().find(at))
        .is_some_and(|found| found.revision == revision))
}

/// HashKV by one scan.
pub(crate) fn rows_upto(shared: &Shared, compacted: i64, upto: i64) -> Result<u32, BackendError> {
    let keeps_any = compacted >= 0 && shared.index.any_at(upto, false);
    let mut hasher = Hasher::new(compacted, keeps_any);
    if upto < 0 {
        return Ok(hasher.sum());
    }
    let end = revision_key(Revision { main: upto + 1, sub: 0 });
    shared.backend.try_scan(Bucket::Key, &[], Some(&end), &mut |key, value| {
        let at @ (revision, tombstone) = parse_revision_key(key)?;
        hasher.row(key, value, at, || {
            Ok(!tombstone && is_newest_at(&shared.index, upto, revision, value)?)
        })?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(hasher.sum())
}

/// etcd's buckets in the order of their names, which is that of its file.
pub const BUCKETS: [(&str, Bucket); 10] = [
    ("alarm", Bucket::Alarm),
    ("auth", Bucket::Auth),
    ("authRoles", Bucket::AuthRoles),
    ("authUsers", Bucket::AuthUsers),
    ("cluster", Bucket::Cluster),
    ("key", Bucket::Key),
    ("lease", Bucket::Lease),
    ("members", Bucket::Members),
    ("members_removed", Bucket::MembersRemoved),
    ("meta", Bucket::Meta),
];

/// The hash over everything but the position in the log.
pub(crate) fn all_buckets(backend: &dyn Backend) -> Result<u32, BackendError> {
    let mut crc = 0;
    for (name, bucket) in BUCKETS {
        crc = crc32c_append(crc, name.as_bytes());
        backend.scan(bucket, &[], None, &mut |key, value| {
            if bucket != Bucket::Meta || !matches!(key, b"consistent_index" | b"term") {
                crc = crc32c_append(crc32c_append(crc, key), value);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_the_order_of_their_names() {
        assert!(BUCKETS.is_sorted_by_key(|(name, _)| name.as_bytes()));
    }
}
