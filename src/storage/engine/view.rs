//! The engine as of one moment, for whoever reads all of it at leisure.

use super::{CONSISTENT_INDEX_ROW, Engine, Shared, row_key};
use crate::mvcc::backend::{Backend, BackendError, Bucket};
use bytes::Bytes;
use fjall::Readable;
use std::sync::Arc;

/// Every row as of one moment. Later writes go on and are not seen; the versions that are seen
/// stay on the disk for as long as the value, or rows of it, live.
#[derive(Clone)]
pub struct View {
    shared: Arc<Shared>,
    snapshot: fjall::Snapshot,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("seqno", &self.snapshot.seqno()).finish()
    }
}

impl Engine {
    /// What was submitted before the call, and perhaps later batches, all of them whole: the
    /// overlay is written first (a moment, if the disk is well), and from there on fjall's snapshot
    /// is enough, since each of its batches is of whole ones of ours and brings their position.
    pub fn view(&self) -> Result<View, BackendError> {
        self.flush()?;
        Ok(View { shared: self.shared.clone(), snapshot: self.shared.db.snapshot() })
    }
}

impl View {
    /// A bucket's rows in key order.
    pub fn rows(&self, bucket: Bucket) -> Rows {
        self.rows_from(bucket, b"")
    }

    /// Those from a key on.
    pub fn rows_from(&self, bucket: Bucket, from: &[u8]) -> Rows {
        let (low, high) = (row_key(bucket as u8, from), row_key(bucket as u8 + 1, b""));
        let rows = self.snapshot.range(&self.shared.rows, &low[..]..&high[..]);
        Rows { shared: self.shared.clone(), rows }
    }

    /// A row.
    pub fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        let key = row_key(bucket as u8, key);
        let row = self.snapshot.get(&self.shared.rows, &key[..]);
        let row = row.map_err(|error| self.shared.fatal("view", &error))?;
        Ok(row.map(Bytes::from))
    }

    /// The raft index that the rows have reached.
    pub fn consistent_index(&self) -> Result<u64, BackendError> {
        let row = self.get(Bucket::Meta, CONSISTENT_INDEX_ROW)?;
        Ok(row.and_then(|row| row[..].try_into().ok()).map_or(0, u64::from_be_bytes))
    }
}

/// See [`View::rows`].
pub struct Rows {
    shared: Arc<Shared>,
    rows: fjall::Iter,
}

impl Iterator for Rows {
    /// Key and value.
    type Item = Result<(Bytes, Bytes), BackendError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match self.rows.next()?.into_inner() {
            Ok((key, value)) => Ok((Bytes::from(key).slice(1..), Bytes::from(value))),
            Err(error) => Err(self.shared.fatal("view", &error)),
        };
        Some(row)
    }
}
