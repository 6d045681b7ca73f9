//! The writer's side of the store: one transaction at a time, taken back or committed as a whole.

use crate::base::error::Error;
use crate::base::ids::Revision;
use crate::mvcc::backend::{BackendError, Bucket, Op};
use crate::mvcc::cache::RowCache;
use crate::mvcc::compact::{self, CompactProgress, CutOff, Job, Look, Looked};
use crate::mvcc::counts::Tally;
use crate::mvcc::index::{Head, KeyEntry, Keys};
use crate::mvcc::read::{ReadError, Reader, Slot};
use crate::mvcc::row::{REVISION_LEN, Row, key_in_row, revision_key, tombstone_key};
use crate::mvcc::shared::Shared;
use crate::mvcc::size::{KeyCost, row_cost};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The user key; shares the row's bytes.
    pub key: Bytes,
    /// The stored row.
    pub row: Bytes,
    /// Whether the key was deleted.
    pub delete: bool,
    /// The lease that the key now hangs on, or 0.
    pub lease: i64,
}

/// A live key as the transaction sees it.
pub struct Current<'a> {
    shared: &'a Shared,
    head: arc_swap::Guard<Arc<Head>>,
}

impl Current<'_> {
    /// Revision that created the key.
    pub fn create_revision(&self) -> i64 {
        self.head.create_revision
    }

    /// Revision of the newest version.
    pub fn mod_revision(&self) -> i64 {
        self.head.revision.main
    }

    /// Writes since the creation.
    pub fn version(&self) -> i64 {
        self.head.version
    }

    /// Encoded `mvccpb.KeyValue`.
    pub fn row(&self) -> Result<Bytes, BackendError> {
        match &self.head.row {
            Some(row) => Ok(row.clone()),
            None => self.shared.row(self.head.revision),
        }
    }
}

/// A row is below the request limit, far from this bound.
pub(super) fn cost_in_head(cost: u64) -> u32 {
    u32::try_from(cost).unwrap_or(u32::MAX)
}

/// The store. Changes become visible to readers at [`Store::publish`].
pub struct Store {
    pub(super) shared: Arc<Shared>,
    /// Where readers find `shared`.
    pub(super) slot: Arc<Slot>,
    pub(super) cache: RowCache,
    /// Revision of the last committed transaction.
    pub(super) revision: i64,
    pub(super) changes: Vec<Change>,
    pub(super) ops: Vec<Op>,
    /// For each change its key's entry and old head, to take it back.
    pub(super) undo: Vec<(Arc<KeyEntry>, Option<Arc<Head>>)>,
    pub(super) jobs: VecDeque<Job>,
    /// Revision of the job that a look has taken along.
    pub(super) looking: Option<i64>,
    /// What the last compaction step has cut off.
    pub(super) cut_off: CutOff,
    pub(super) finished: i64,
    pub(super) cost: KeyCost,
    /// Operations of the open transaction.
    pub(super) tally: Cell<Tally>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn set_head(
        &mut self,
        key: &[u8],
        entry: Option<Arc<KeyEntry>>,
        head: Head,
    ) -> (Arc<KeyEntry>, Option<Arc<Head>>) {
        let (revision, cached) = (head.revision, head.row.is_some());
        let head = Arc::new(head);
        let (entry, old) = match entry {
            Some(entry) => {
                let old = entry.swap(Arc::clone(&head));
                (entry, Some(old))
            }
            None => {
                (self.shared.index.insert(Bytes::copy_from_slice(key), Arc::clone(&head)), None)
            }
        };
        self.cache.replaced(old.as_deref(), Some(&head));
        if cached {
            self.cache.holds(Arc::clone(&entry), revision);
        }
        (entry, old)
    }

    /// Counts a new version of a key: whether there is one key more or less, its cost, and when it
    /// and the one before will be compacted away: a version once another has taken its place, a
    /// tombstone by any compaction above it.
    pub(super) fn cost_of_version(
        &mut self,
        at: i64,
        cost: u64,
        tombstone: bool,
        before: Option<&Head>,
    ) {
        let was_live = before.is_some_and(|before| !before.tombstone);
        let keys = i64::from(!tombstone) - i64::from(was_live);
        if keys != 0 {
            self.shared.counts.keys.fetch_add(keys, Ordering::Relaxed);
        }
        let cost = u64::from(cost_in_head(cost));
        self.cost.add(cost);
        if tombstone {
            self.cost.dies(at + 1, cost);
        }
        if let Some(before) = before.filter(|before| !before.tombstone) {
            self.cost.dies(at, u64::from(before.cost));
        }
    }

    /// Tells readers the size of the store: of the file, and the part in use.
    pub fn publish_size(&self, on_disk: u64, in_use: u64) {
        self.shared.on_disk.store(on_disk, Ordering::Relaxed);
        self.shared.in_use.store(in_use, Ordering::Relaxed);
    }

    /// What the rows of bucket Key add to the size of etcd's file, in bytes. Compacted ones do not
    /// count, removed or not.
    pub fn key_cost(&self) -> u64 {
        self.cost.live()
    }

    /// Another byte budget for the rows in the index.
    pub fn set_row_bytes_max(&mut self, bytes: usize) {
        self.cache.set_bytes_max(bytes);
    }

    /// A handle for readers.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.slot))
    }

    /// Takes the place of another store: its readers find this one from now on, and its counters
    /// go on.
    pub fn replace(&mut self, before: &Store) {
        self.shared.counts.go_on(&before.shared.counts);
        self.slot = Arc::clone(&before.slot);
        self.slot.store(Arc::clone(&self.shared));
    }

    /// Revision of the last committed transaction.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Revision as the open transaction sees it: one more once it changed something.
    pub fn txn_revision(&self) -> i64 {
        self.revision + i64::from(!self.changes.is_empty())
    }

    /// Newest compacted revision, −1 before the first.
    pub fn compact_revision(&self) -> i64 {
        self.shared.compacted.load(Ordering::Relaxed)
    }

    /// Newest revision whose compaction is complete, −1 before the first.
    pub fn finished_compact_revision(&self) -> i64 {
        self.finished
    }

    /// A live key, with the open transaction's changes.
    pub fn current(&self, key: &[u8]) -> Option<Current<'_>> {
        let entry = self.shared.index.get(key)?;
        let head = entry.head();
        (!head.tombstone).then_some(Current { shared: &self.shared, head })
    }

    /// Visits the live keys of a range until `visit` gives false.
    pub fn visit_current(
        &self,
        key: &[u8],
        range_end: &[u8],
        mut visit: impl FnMut(Current<'_>) -> bool,
    ) {
        self.shared.index.visit(Keys::new(key, range_end), |_, entry| {
            let head = entry.head();
            head.tombstone || visit(Current { shared: &self.shared, head })
        });
    }

    /// Adds ranges to what the open transaction is counted with.
    pub fn count_ranges(&self, ranges: u64) {
        let tally = self.tally.get();
        self.tally.set(Tally { ranges: tally.ranges + ranges, ..tally });
    }

    /// Counts what the transaction did so far as one of its own, as etcd does with the compares.
    pub fn end_tally(&self) {
        self.shared.counts.end(self.tally.take());
    }

    /// etcd's Range, with the open transaction's changes.
    pub fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse, ReadError> {
        self.count_ranges(1);
        self.shared.range(request, self.txn_revision())
    }

    fn next_revision(&self) -> Revision {
        Revision { main: self.revision + 1, sub: self.changes.len() as i64 }
    }

    /// Writes a key in the open transaction and gives the transaction's revision.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> i64 {
        let revision = self.next_revision();
        let tally = self.tally.get_mut();
        tally.puts += 1;
        tally.put_bytes += (key.len() + value.len()) as u64;
        let entry = self.shared.index.get(key);
        let mut create_revision = revision.main;
        let mut version = 1;
        let mut older = None;
        if let Some(entry) = &entry {
            let head = entry.head();
            if !head.tombstone {
                create_revision = head.create_revision;
                version = head.version + 1;
            }
            older = Some(head.history());
        }
        let mod_revision = revision.main;
        let row = Row { key, create_revision, mod_revision, version, value, lease }.encode();
        let head = Head {
            revision,
            create_revision,
            version,
            tombstone: false,
            cost: cost_in_head(row_cost(REVISION_LEN, row.len())),
            row: Some(row.clone()),
            older,
        };
        let undo = self.set_head(key, entry, head);
        self.undo.push(undo);
        self.ops.push((
            Bucket::Key,
            Bytes::copy_from_slice(&revision_key(revision)),
            Some(row.clone()),
        ));
        let key = key_in_row(&row, key.len());
        self.changes.push(Change { key, row, delete: false, lease });
        revision.main
    }

    /// Deletes the live keys of a range in the open transaction and gives their number.
    pub fn delete_range(&mut self, key: &[u8], range_end: &[u8]) -> i64 {
        self.tally.get_mut().deletes += 1;
        let mut doomed = Vec::new();
        self.shared.index.visit(Keys::new(key, range_end), |key, entry| {
            if !entry.head().tombstone {
                doomed.push((key.clone(), Arc::clone(entry)));
            }
            true
        });
        let count = doomed.len() as i64;
        for (key, entry) in doomed {
            let revision = self.next_revision();
            let older = Some(entry.head().history());
            let row = Row { key: &key, ..Row::default() }.encode();
            let head = Head {
                revision,
                create_revision: 0,
                version: 0,
                tombstone: true,
                cost: cost_in_head(row_cost(REVISION_LEN + 1, row.len())),
                row: None,
                older,
            };
            let undo = self.set_head(&key, Some(entry), head);
            self.undo.push(undo);
            self.ops.push((
                Bucket::Key,
                Bytes::copy_from_slice(&tombstone_key(revision)),
                Some(row.clone()),
            ));
            self.changes.push(Change { key, row, delete: true, lease: 0 });
        }
        count
    }

    /// Closes the transaction: what the engine has to write, and what changed. Readers see it after
    /// [`Store::publish`], which must follow the engine's `submit`.
    pub fn commit(&mut self) -> (Vec<Op>, Vec<Change>) {
        if !self.changes.is_empty() {
            self.revision += 1;
        }
        self.end_tally();
        let undo = std::mem::take(&mut self.undo);
        for ((_, old), at) in undo.iter().zip(0..) {
            let change = &self.changes[at];
            let (delete, cost) = (change.delete, row_cost(self.ops[at].1.len(), change.row.len()));
            self.cost_of_version(self.revision, cost, delete, old.as_deref());
        }
        (std::mem::take(&mut self.ops), std::mem::take(&mut self.changes))
    }

    /// Takes back everything since the last commit.
    pub fn rollback(&mut self) {
        self.end_tally();
        self.ops.clear();
        while let (Some((entry, old)), Some(change)) = (self.undo.pop(), self.changes.pop()) {
            match old {
                Some(old) => {
                    let dropped = entry.swap(Arc::clone(&old));
                    self.cache.replaced(Some(&dropped), Some(&old));
                }
                None => {
                    self.shared.index.remove(&change.key);
                    let head = entry.head();
                    self.cache.replaced(Some(&head), None);
                }
            }
        }
    }

    /// Lets readers see all commits.
    pub fn publish(&mut self) {
        self.shared.revision.store(self.revision, Ordering::Release);
        self.cache.evict();
    }

    /// Accepts a compaction: the op that schedules it. Older revisions are gone for readers at
    /// once.
    pub fn schedule_compaction(&mut self, revision: i64) -> Result<Op, Error> {
        let compacted = self.compact_revision();
        if revision <= compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRev);
        }
        self.shared.compacted.store(revision, Ordering::SeqCst);
        self.cost.compact(revision);
        let is_only = self.compaction_pending().is_none();
        self.jobs.push_back(Job::new(revision, compacted, is_only));
        Ok(compact::meta(compact::SCHEDULED, revision))
    }

    /// The next look at rows, up to `limit`, of the oldest scheduled compaction. None while one is
    /// on its way, and when nothing is scheduled.
    pub fn compaction_look(&mut self, limit: usize) -> Option<Look> {
        if self.looking.is_some() {
            return None;
        }
        let job = self.jobs.pop_front()?;
        self.looking = Some(job.revision);
        Some(Look { job, shared: Arc::clone(&self.shared), limit })
    }

    /// Takes out what a look has found. The ops must be submitted before the next look.
    pub fn compacted(
        &mut self,
        looked: Looked,
    ) -> Result<(Vec<Op>, CompactProgress), BackendError> {
        let revision = looked.job.revision;
        let step = looked.step?;
        let removed = step.ops.iter().filter(|op| op.0 == Bucket::Key).count() as u64;
        self.shared.counts.compacted_rows.fetch_add(removed, Ordering::Relaxed);
        self.cut_off.0.clear();
        for (key, keep) in step.trims {
            if let Some((old, new)) = self.shared.index.trim(&key, revision, keep) {
                self.cache.replaced(Some(&old), new.as_deref());
                self.cut_off.0.push(old);
            }
        }
        if let Some(hash) = step.hash {
            compact::remember(&self.shared, hash);
        }
        self.looking = None;
        if step.finished {
            self.finished = revision;
        } else {
            self.jobs.push_front(looked.job);
        }
        let progress =
            if self.jobs.is_empty() { CompactProgress::Done } else { CompactProgress::More };
        Ok((step.ops, progress))
    }

    /// A look and what comes of it, at once.
    #[cfg(test)]
    pub fn compact_step(
        &mut self,
        limit: usize,
    ) -> Result<(Vec<Op>, CompactProgress), BackendError> {
        match self.compaction_look(limit) {
            Some(look) => self.compacted(look.run()),
            None => Ok((Vec::new(), CompactProgress::Done)),
        }
    }

    /// What the last step has cut off; the next one drops it otherwise.
    pub fn take_cut_off(&mut self) -> CutOff {
        std::mem::take(&mut self.cut_off)
    }

    /// The revision up to which there is work.
    pub fn compaction_pending(&self) -> Option<i64> {
        self.jobs.back().map(|job| job.revision).or(self.looking)
    }
}
