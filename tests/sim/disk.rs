//! A member's disk: a log of records of which a crash keeps what is synced and a part of the rest,
//! and the store's rows, which are never synced and of which a crash may lose the newest batches.

use crate::chance::Chance;
use bytes::Bytes;
use rusd::cluster::state::Cluster;
use rusd::mvcc::BUCKETS;
use rusd::mvcc::backend::{Backend, BackendError, Batch, Bucket, MemBackend};
use rusd::pb::raftpb::{Entry, HardState};
use rusd::raft::log::Archive;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Newest batches of the store that a crash may lose.
const BATCHES_LOST_MAX: u64 = 40;

/// A record is whole after a crash, or gone: the real log cuts a torn one off.
#[derive(Clone, Debug)]
enum Record {
    Entry(Entry),
    State(HardState),
    /// A leader's snapshot: index and term. It takes the place of the log once it is committed.
    Installed(u64, u64),
}

/// The state after the entry at an index: what `.snap` and database hold together.
#[derive(Clone, Debug)]
pub struct State {
    pub index: u64,
    pub term: u64,
    pub engine: Arc<Engine>,
    pub cluster: Cluster,
}

#[derive(Debug, Default)]
struct Log {
    records: Vec<Record>,
    /// Number of records that a crash keeps, and from when on (in microseconds).
    synced: Vec<(u64, usize)>,
    entries: BTreeMap<u64, Entry>,
    state: HardState,
    /// A leader's snapshot that is written down and not committed yet.
    pending: Option<(u64, u64)>,
    /// Index and term of the newest that is.
    installed: (u64, u64),
    /// Entries up to this index are gone.
    released: u64,
    /// Of this member's own snapshots the newest, and the databases that leaders sent.
    own: Option<State>,
    received: BTreeMap<u64, State>,
}

impl Log {
    fn take(&mut self, record: Record) {
        match &record {
            Record::Entry(entry) => {
                self.entries.split_off(&entry.index);
                self.entries.insert(entry.index, entry.clone());
            }
            Record::State(state) => {
                self.state = *state;
                if let Some(snapshot) = self.pending.take_if(|at| at.0 <= state.commit) {
                    if self.entries.get(&snapshot.0).is_none_or(|e| e.term != snapshot.1) {
                        self.entries.clear();
                    }
                    self.installed = snapshot;
                }
            }
            Record::Installed(index, term) => self.pending = Some((*index, *term)),
        }
        self.records.push(record);
        let released = self.released;
        self.entries.retain(|index, _| *index > released);
    }
}

/// The log. Its handles share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Log>>);

impl Disk {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends entries, then the hard state; synced from the moment `done` on, if at all.
    pub fn save(&self, state: Option<&HardState>, entries: &[Entry], done: Option<u64>) {
        let mut log = self.log();
        for entry in entries {
            log.take(Record::Entry(entry.clone()));
        }
        if let Some(state) = state {
            log.take(Record::State(*state));
        }
        if let Some(done) = done {
            let count = log.records.len();
            log.synced.push((done, count));
        }
    }

    /// What is on disk for good at a moment: the newest entry of it.
    pub fn synced_index(&self, now: u64) -> u64 {
        let log = self.log();
        let kept = kept(&log, now);
        let newest = |record: &Record| match record {
            Record::Entry(entry) => Some(entry.index),
            Record::Installed(index, _) => Some(*index),
            Record::State(_) => None,
        };
        log.records[..kept].iter().rev().find_map(newest).unwrap_or(0)
    }

    /// The machine loses power: what is not synced is kept up to some record.
    pub fn crash(&self, now: u64, chance: &mut Chance) {
        let mut log = self.log();
        let kept = kept(&log, now);
        let more = chance.below((log.records.len() - kept) as u64 + 1) as usize;
        let records = std::mem::take(&mut log.records);
        let Log { released, own, received, .. } = std::mem::take(&mut *log);
        *log = Log { released, own, received, ..Log::default() };
        for record in records.into_iter().take(kept + more) {
            log.take(record);
        }
        let count = log.records.len();
        log.synced.push((0, count));
    }

    /// What a start reads.
    pub fn read(&self) -> (HardState, Vec<Entry>) {
        let log = self.log();
        (log.state, log.entries.values().cloned().collect())
    }

    /// The newest snapshot that a start finds, if there is one.
    pub fn snapshot(&self) -> Option<State> {
        let log = self.log();
        let received = log.received.get(&log.installed.0).cloned();
        received.into_iter().chain(log.own.clone()).max_by_key(|state| state.index)
    }

    /// A snapshot of this member's own is on disk for good, and the log begins behind `released`.
    pub fn snapped(&self, state: State, released: u64) {
        let mut log = self.log();
        log.received.retain(|index, _| *index >= state.index);
        log.own = Some(state);
        log.released = log.released.max(released);
        log.entries.retain(|index, _| *index > released);
    }

    /// A leader's database is on disk for good.
    pub fn received(&self, state: State) {
        self.log().received.insert(state.index, state);
    }

    /// That database.
    pub fn database(&self, index: u64) -> State {
        self.log().received[&index].clone()
    }

    /// Writes down a leader's snapshot, synced from the moment `done` on.
    pub fn install(&self, index: u64, term: u64, done: u64) {
        let mut log = self.log();
        log.take(Record::Installed(index, term));
        let count = log.records.len();
        log.synced.push((done, count));
    }
}

fn kept(log: &Log, now: u64) -> usize {
    log.synced.iter().filter(|(done, _)| *done <= now).map(|(_, count)| *count).max().unwrap_or(0)
}

impl Archive for Disk {
    fn entries(&self, low: u64, high: u64, _: u64) -> Result<Vec<Entry>, String> {
        Ok(self.log().entries.range(low..high).map(|(_, entry)| entry.clone()).collect())
    }
}

/// The store's rows, and the batches that made them.
#[derive(Debug, Default)]
pub struct Engine {
    rows: MemBackend,
    batches: Mutex<Vec<Batch>>,
    /// The first of them, which a crash does not lose: they came with a snapshot.
    imported: usize,
}

impl Engine {
    fn batches(&self) -> MutexGuard<'_, Vec<Batch>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a crash leaves: everything but some of the newest batches.
    pub fn after_crash(&self, chance: &mut Chance) -> Engine {
        let batches = self.batches();
        let newest = (batches.len() - self.imported) as u64;
        let lost = chance.below(BATCHES_LOST_MAX.min(newest) + 1) as usize;
        let left = Engine { imported: self.imported, ..Engine::default() };
        batches[..batches.len() - lost].iter().for_each(|batch| left.submit(batch.clone()));
        left
    }

    /// All rows as they are, but those of a bucket.
    pub fn copy(&self, without: Option<Bucket>) -> Engine {
        let mut ops = Vec::new();
        for (_, bucket) in BUCKETS.into_iter().filter(|(_, bucket)| Some(*bucket) != without) {
            let mut visit = |key: &[u8], value: &Bytes| {
                ops.push((bucket, Bytes::copy_from_slice(key), Some(value.clone())));
                ControlFlow::Continue(())
            };
            self.scan(bucket, &[], None, &mut visit).expect("rows in memory can be read");
        }
        let (consistent_index, term) = self.position();
        let size_bytes = self.size_bytes();
        let copy = Engine { imported: 1, ..Engine::default() };
        copy.submit(Batch { ops, consistent_index, term, size_bytes, ..Batch::default() });
        copy
    }

    /// A hash of every row.
    pub fn hash(&self) -> u32 {
        let mut hash = 0;
        for (_, bucket) in BUCKETS {
            let mut visit = |key: &[u8], value: &Bytes| {
                hash = crc32c::crc32c_append(hash, &[bucket as u8]);
                hash = crc32c::crc32c_append(hash, key);
                hash = crc32c::crc32c_append(hash, value);
                ControlFlow::Continue(())
            };
            self.scan(bucket, &[], None, &mut visit).expect("rows in memory can be read");
        }
        hash
    }
}

impl Backend for Engine {
    fn submit(&self, batch: Batch) {
        self.batches().push(batch.clone());
        self.rows.submit(batch);
    }

    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        self.rows.get(bucket, key)
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        self.rows.scan(bucket, from, to, visit)
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.rows.flush()
    }

    fn position(&self) -> (u64, u64) {
        self.rows.position()
    }

    fn size_bytes(&self) -> u64 {
        self.rows.size_bytes()
    }
}
