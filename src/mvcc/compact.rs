//! Compaction: rows that no revision above the compacted one can see go away, in batches. A batch
//! has two parts: any thread may look at the rows, since those at or below the compacted revision
//! change only by compaction; the writer then takes the rows out.

use crate::base::ids::Revision;
use crate::mvcc::backend::{BackendError, Bucket, Op};
use crate::mvcc::hash::{HASHES_MAX, Hasher, is_newest_at};
use crate::mvcc::index::Head;
use crate::mvcc::row::{Row, parse_revision_key, revision_key};
use crate::mvcc::shared::{KvHash, Shared};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Whether a compaction still has rows to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactProgress {
    /// Every scheduled compaction is finished.
    Done,
    /// Call again.
    More,
}

/// Histories that a compaction has cut off. A key's may be long, so that whoever has better things
/// to do lets another thread drop them.
#[derive(Default)]
pub struct CutOff(pub(crate) Vec<Arc<Head>>);

impl CutOff {
    /// Whether there is nothing to drop.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Meta row of the newest compaction that was asked for.
pub const SCHEDULED: &[u8] = b"scheduledCompactRev";
/// Meta row of the newest compaction that is complete.
pub const FINISHED: &[u8] = b"finishedCompactRev";

/// One scheduled compaction.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) revision: i64,
    previous: i64,
    /// Whether the hash covers all since the compaction before: not after an interruption.
    hash_is_whole: bool,
    progress: Option<Progress>,
}

#[derive(Debug)]
struct Progress {
    hasher: Hasher,
    next: Bytes,
}

/// What a step found to do.
pub(crate) struct Step {
    /// Changes for the engine.
    pub(crate) ops: Vec<Op>,
    /// User keys whose history ends at the job's revision, and whether its newest version stays.
    pub(crate) trims: Vec<(Bytes, bool)>,
    /// Whether the job is complete.
    pub(crate) finished: bool,
    /// The hash over all that the job left, if it is complete and has seen all.
    pub(crate) hash: Option<KvHash>,
}

/// The look at the next rows of a compaction: for any thread, and to be handed back to the writer
/// (`compacted`). It reads the engine, which now and then makes its readers wait for its disk.
pub struct Look {
    pub(crate) job: Job,
    pub(crate) shared: Arc<Shared>,
    pub(crate) limit: usize,
}

/// What a [`Look`] found.
pub struct Looked {
    pub(crate) job: Job,
    pub(crate) step: Result<Step, BackendError>,
}

impl Looked {
    /// The revision that is compacted.
    pub fn revision(&self) -> i64 {
        self.job.revision
    }
}

impl Look {
    /// Reads up to the limit of rows.
    pub fn run(mut self) -> Looked {
        let step = self.job.step(&self.shared, self.limit);
        Looked { job: self.job, step }
    }
}

impl Job {
    pub(crate) fn new(revision: i64, previous: i64, hash_is_whole: bool) -> Self {
        Self { revision, previous, hash_is_whole, progress: None }
    }

    /// Looks at up to `limit` rows. What it found must be done before the next call.
    fn step(&mut self, shared: &Shared, limit: usize) -> Result<Step, BackendError> {
        let (revision, previous) = (self.revision, self.previous);
        let progress = self.progress.get_or_insert_with(|| Progress {
            hasher: Hasher::new(previous, shared.index.any_at(revision, true)),
            next: Bytes::new(),
        });
        let limit = limit.max(1);
        let mut step = Step { ops: Vec::new(), trims: Vec::new(), finished: false, hash: None };
        let end = revision_key(Revision { main: revision + 1, sub: 0 });
        let mut seen = 0;
        let mut next = None;
        let from = progress.next.clone();
        shared.backend.try_scan(Bucket::Key, &from, Some(&end), &mut |key, value| {
            if seen == limit {
                next = Some(Bytes::copy_from_slice(key));
                return Ok(ControlFlow::Break(()));
            }
            seen += 1;
            let at @ (row, tombstone) = parse_revision_key(key)?;
            // A start does not bring a deletion into the index whose key has no other row any more,
            // which a compaction that was interrupted may have left; it stays all the same.
            let newest = is_newest_at(&shared.index, revision, row, value)?
                || tombstone && row.main == revision && !has_version_of(shared, revision, value)?;
            let keep = newest && (!tombstone || row.main == revision);
            if newest {
                step.trims.push((Bytes::copy_from_slice(Row::parse(value)?.key), keep));
            }
            if !keep {
                step.ops.push((Bucket::Key, Bytes::copy_from_slice(key), None));
            }
            progress.hasher.row(key, value, at, || Ok(keep))?;
            Ok(ControlFlow::Continue(()))
        })?;
        match next {
            Some(next) => progress.next = next,
            None => {
                step.finished = true;
                step.ops.push(meta(FINISHED, revision));
                // As in etcd, even a compaction of revision 0 is remembered, although 0 then stops
                // to mean "now" for HashKV: members must agree.
                if self.hash_is_whole {
                    let hash = progress.hasher.sum();
                    step.hash = Some(KvHash { hash, revision, compact_revision: previous });
                }
            }
        }
        Ok(step)
    }
}

/// Whether the index has a version of the row's key that a revision made.
fn has_version_of(shared: &Shared, revision: i64, value: &[u8]) -> Result<bool, BackendError> {
    let entry = shared.index.get(Row::parse(value)?.key);
    let found = entry.and_then(|entry| entry.head().find(revision));
    Ok(found.is_some_and(|found| found.revision.main == revision))
}

/// A Meta row that holds a revision.
pub(crate) fn meta(name: &'static [u8], revision: i64) -> Op {
    let value = revision_key(Revision { main: revision, sub: 0 });
    (Bucket::Meta, Bytes::from_static(name), Some(Bytes::copy_from_slice(&value)))
}

/// Writer only.
pub(crate) fn remember(shared: &Shared, hash: KvHash) {
    let mut hashes = shared.hashes.load().as_ref().clone();
    hashes.push(hash);
    hashes.sort_by_key(|h| h.revision);
    let surplus = hashes.len().saturating_sub(HASHES_MAX);
    hashes.drain(..surplus);
    shared.hashes.store(Arc::new(hashes));
}
