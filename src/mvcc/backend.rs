//! What the store asks of the engine below it; `storage::engine` implements it on fjall, and
//! [`MemBackend`] in memory for tests.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;

/// etcd's buckets; the byte is the prefix of their rows in the engine's one keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bucket {
    /// Revision (17 or 18 bytes) → `mvccpb.KeyValue`.
    Key = 1,
    /// `consistent_index`, `term`, `confState`, `scheduledCompactRev`, `finishedCompactRev`.
    Meta = 2,
    /// Big-endian lease id → `leasepb.Lease`.
    Lease = 3,
    /// Marshalled `AlarmMember` → empty.
    Alarm = 4,
    /// `clusterVersion`, `downgrade`.
    Cluster = 5,
    /// Hex member id → member JSON.
    Members = 6,
    /// Hex member id → `removed`.
    MembersRemoved = 7,
    /// `authEnabled`, `authRevision`.
    Auth = 8,
    /// User name → `authpb.User`.
    AuthUsers = 9,
    /// Role name → `authpb.Role`.
    AuthRoles = 10,
}

/// One change: `None` removes the row.
pub type Op = (Bucket, Bytes, Option<Bytes>);

/// The changes of one log entry (or of several, coalesced), committed together with the position
/// they bring the state to.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In order; a later change of the same row wins.
    pub ops: Vec<Op>,
    /// Raft index that the state has reached.
    pub consistent_index: u64,
    /// Raft term of that entry.
    pub term: u64,
    /// Store revision after the batch.
    pub revision: i64,
    /// What [`Backend::size_bytes`] gives from now on.
    pub size_bytes: u64,
}

/// The engine failed or found damage. The member must stop: a restart rebuilds it from the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("engine: {0}")]
pub struct BackendError(pub String);

/// A visitor of rows that may fail.
pub type TryVisit<'a> = dyn FnMut(&[u8], &Bytes) -> Result<ControlFlow<()>, BackendError> + 'a;

/// Ordered rows in buckets, written in batches by one writer and read by anyone.
pub trait Backend: Send + Sync + 'static {
    /// Hands a batch over. It is visible to reads when this returns; it reaches the disk in order,
    /// later. May wait while the bounded overlay is full.
    fn submit(&self, batch: Batch);
    /// One row, submitted batches included.
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, BackendError>;
    /// Rows with `from <= key < to` in key order, submitted batches included; `to` of `None` is the
    /// end of the bucket. The rows seen are those of one moment.
    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), BackendError>;
    /// [`Backend::scan`] with a visitor that may fail, which ends the scan.
    fn try_scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut TryVisit<'_>,
    ) -> Result<(), BackendError> {
        let mut failed = None;
        self.scan(bucket, from, to, &mut |key, value| {
            visit(key, value).unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            })
        })?;
        failed.map_or(Ok(()), Err)
    }
    /// Waits until everything submitted so far is in the engine (not necessarily synced).
    fn flush(&self) -> Result<(), BackendError>;
    /// The newest position that was submitted: (consistent index, term). (0, 0) when empty.
    fn position(&self) -> (u64, u64);
    /// The size of etcd's file as the newest batch gave it, 0 when there is none. Kept for the
    /// machine: the size that a file once had does not follow from its rows.
    fn size_bytes(&self) -> u64;
}

/// A backend in memory.
#[derive(Debug, Default)]
pub struct MemBackend {
    /// Guards rows and position together; tests only, so a lock is simpler than a message.
    state: Mutex<MemState>,
}

#[derive(Debug, Default)]
struct MemState {
    rows: BTreeMap<(Bucket, Vec<u8>), Bytes>,
    position: (u64, u64),
    size_bytes: u64,
}

impl MemBackend {
    fn lock(&self) -> std::sync::MutexGuard<'_, MemState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Backend for MemBackend {
    fn submit(&self, batch: Batch) {
        let mut state = self.lock();
        for (bucket, key, value) in batch.ops {
            match value {
                Some(value) => state.rows.insert((bucket, key.to_vec()), value),
                None => state.rows.remove(&(bucket, key.to_vec())),
            };
        }
        state.position = (batch.consistent_index, batch.term);
        state.size_bytes = batch.size_bytes;
    }

    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        Ok(self.lock().rows.get(&(bucket, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        let rows: Vec<(Vec<u8>, Bytes)> = self
            .lock()
            .rows
            .range((bucket, from.to_vec())..)
            .take_while(|((b, key), _)| *b == bucket && to.is_none_or(|to| key.as_slice() < to))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in &rows {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn position(&self) -> (u64, u64) {
        self.lock().position
    }

    fn size_bytes(&self) -> u64 {
        self.lock().size_bytes
    }
}
