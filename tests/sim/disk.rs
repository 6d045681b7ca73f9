//! A member's disk: a log of records of which a crash keeps what is synced and a part of the rest,
//! and the store's rows, which are never synced and of which a crash may lose the newest batches.

use crate::chance::Chance;
use bytes::Bytes;
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
}

#[derive(Debug, Default)]
struct Log {
    records: Vec<Record>,
    /// Number of records that a crash keeps, and from when on (in microseconds).
    synced: Vec<(u64, usize)>,
    entries: BTreeMap<u64, Entry>,
    state: HardState,
}

impl Log {
    fn take(&mut self, record: Record) {
        match &record {
            Record::Entry(entry) => {
                self.entries.split_off(&entry.index);
                self.entries.insert(entry.index, entry.clone());
            }
            Record::State(state) => self.state = *state,
        }
        self.records.push(record);
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
        *log = Log::default();
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
}

impl Engine {
    fn batches(&self) -> MutexGuard<'_, Vec<Batch>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a crash leaves: everything but some of the newest batches.
    pub fn after_crash(&self, chance: &mut Chance) -> Engine {
        let batches = self.batches();
        let lost = chance.below(BATCHES_LOST_MAX.min(batches.len() as u64) + 1) as usize;
        let left = Engine::default();
        batches[..batches.len() - lost].iter().for_each(|batch| left.submit(batch.clone()));
        left
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
