//! The engine of the store: [`Backend`] on fjall, with an overlay of rows that are submitted but
//! not yet written. It is a cache of the log: anything doubtful about it is thrown away and made
//! again from the log, loudly.
//! Uses: base, mvcc, obs

mod load;
mod open;
mod origin;
#[cfg(test)]
mod tests;
mod view;

pub use load::Put;
pub use open::{EngineError, OpenKind, Opened};
pub use view::{Rows, View};

use crate::base::clock::{Clock, SystemClock};
use crate::base::failpoint;
use crate::base::limits::OVERLAY_BYTES_MAX;
use crate::mvcc::backend::{Backend, BackendError, Batch, Bucket};
use crate::obs::metrics::metrics;
use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use fjall::{Database, Keyspace, PersistMode, Readable};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Journals of the engine; they are replayed at each open at some 45 MB/s.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Rows in memory before the engine writes a table; little in tests, so that they get tables.
const MEMTABLE_BYTES: u64 = if cfg!(test) { 128 * 1024 } else { 16 * 1024 * 1024 };
/// Size of a table: it is synced in one go, and the log's own syncs wait behind that. A directory
/// keeps the size that it was made with.
const TABLE_BYTES: u64 = 8 * 1024 * 1024;
/// fjall's threads. The first never merges tables: a request to do so it puts back into the queue,
/// and takes it out again, until another thread is free. With two, fjall's choice on two cores,
/// that keeps the one busy for as long as the other merges; of four, one is free.
const ENGINE_THREADS: usize = 4;
/// Cache of blocks.
const BLOCK_CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes that the writer puts into one engine batch, so that none holds the journal for long.
const WRITE_BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the writer lets batches gather, so that one commit carries them all (etcd v3.5.17
/// `--backend-batch-interval`). Nothing durable waits for it: that is the log's part.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// How often, and how many times, a compaction looks whether fjall has written its memory to
/// tables: 30 seconds. After that it compacts what there is.
const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(10);
const FLUSH_LOOKS_MAX: usize = 3_000;
/// What a batch costs in the queue beside its rows.
const BATCH_OVERHEAD_BYTES: usize = 96;
/// What a row costs in the overlay beside its key and value.
const ROW_OVERHEAD_BYTES: usize = 96;
/// Overlay rows dropped under one lock, so that readers are not kept waiting.
const DROP_ROWS_PER_LOCK: usize = 512;
/// File that says the engine found damage; the next open starts over.
const DAMAGED_MARKER: &str = "DAMAGED";
/// The one keyspace.
const KEYSPACE: &str = "rows";

/// Bucket byte of rows that are the engine's own and that no scan of a [`Bucket`] shows.
const PRIVATE: u8 = 0xF0;
/// Private row: node id and cluster id, big-endian.
const IDENTITY_ROW: &[u8] = b"identity";
/// Private row: the store revision and the size told with it, big-endian.
const REVISION_ROW: &[u8] = b"revision";
/// Private rows: `seq/` and the big-endian number of an engine batch. Batch n inserts its own and
/// removes that of batch n - 1, so exactly one is there unless a batch in the middle was lost.
const SEQ_ROWS: &[u8] = b"seq/";
/// etcd's rows in [`Bucket::Meta`].
const CONSISTENT_INDEX_ROW: &[u8] = b"consistent_index";
const TERM_ROW: &[u8] = b"term";

/// Called with a reason when the engine fails while running. It should end the process.
pub type OnFatal = Box<dyn Fn(&str) + Send + Sync>;

fn row_key(bucket: u8, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(1 + key.len());
    row.put_u8(bucket);
    row.put_slice(key);
    row.freeze()
}

fn seq_key(seq: u64) -> Bytes {
    row_key(PRIVATE, &[SEQ_ROWS, &seq.to_be_bytes()].concat())
}

/// A row that is not yet known to be in fjall; `None` hides what fjall has.
#[derive(Debug)]
struct Row {
    seq: u64,
    value: Option<Bytes>,
}

#[derive(Debug, Default)]
struct Overlay {
    rows: BTreeMap<Bytes, Row>,
    /// Of the newest batch. Its rows are read from here, so they need no place in `rows`.
    position: Position,
}

/// A batch on its way to fjall.
#[derive(Debug)]
struct Pending {
    seq: u64,
    rows: Vec<(Bytes, Option<Bytes>)>,
    bytes: usize,
    position: Position,
}

/// What a batch brings the state to; written as rows once per commit, of its last batch.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    consistent_index: u64,
    term: u64,
    revision: i64,
    /// As [`Backend::size_bytes`] tells it.
    size_bytes: u64,
}

impl Position {
    fn revision_row(self) -> Bytes {
        let mut row = BytesMut::with_capacity(16);
        row.put_i64(self.revision);
        row.put_u64(self.size_bytes);
        row.freeze()
    }

    fn rows(self) -> [(Bytes, Option<Bytes>); 3] {
        let meta = Bucket::Meta as u8;
        let number = |n: [u8; 8]| Some(Bytes::copy_from_slice(&n));
        [
            (row_key(meta, CONSISTENT_INDEX_ROW), number(self.consistent_index.to_be_bytes())),
            (row_key(meta, TERM_ROW), number(self.term.to_be_bytes())),
            (row_key(PRIVATE, REVISION_ROW), Some(self.revision_row())),
        ]
    }
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Pending>,
    /// Bytes submitted and not yet dropped from the overlay.
    bytes: usize,
    submitted: u64,
    written: u64,
    /// Somebody waits for the writer: it does not wait for more.
    hurry: bool,
    closed: bool,
    failed: Option<String>,
}

impl Queue {
    /// Asks the writer not to wait for more.
    fn hurry(&mut self, work: &Condvar) {
        self.hurry = true;
        work.notify_one();
    }

    fn is_over(&self) -> bool {
        self.closed || self.failed.is_some()
    }
}

struct Shared {
    dir: PathBuf,
    db: Database,
    rows: Keyspace,
    /// Held for a lookup, for inserting or dropping a few rows, or for copying a range (the values
    /// are reference counted); never across I/O or a caller's code.
    overlay: RwLock<Overlay>,
    /// Guards the way from `submit` to the writer thread. Taken before `overlay`, never after.
    queue: Mutex<Queue>,
    /// The writer waits here for batches.
    work: Condvar,
    /// `submit` waits here for room, `flush` for its turn.
    done: Condvar,
    on_fatal: OnFatal,
}

/// See the module.
pub struct Engine {
    shared: Arc<Shared>,
    /// Taken once, by `close` or by dropping.
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The engine that is in use. A leader's snapshot puts another into its place, and whoever reads
/// the one before goes on with that.
#[derive(Clone, Debug)]
pub struct Current(Arc<ArcSwap<Engine>>);

impl Current {
    /// This one, until it is replaced.
    pub fn new(engine: Arc<Engine>) -> Current {
        Current(Arc::new(ArcSwap::new(engine)))
    }

    /// The one that is in use now.
    pub fn now(&self) -> Arc<Engine> {
        self.0.load_full()
    }

    /// Puts another into its place.
    pub fn replace(&self, engine: Arc<Engine>) {
        self.0.store(engine);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Shared {
    /// The engine cannot be trusted any more.
    fn fatal(&self, what: &str, error: &dyn std::fmt::Display) -> BackendError {
        let reason = format!("{what}: {error}");
        tracing::error!(dir = %self.dir.display(), %reason, "the engine failed");
        if let Err(error) = open::write_marker(&self.dir, &reason) {
            tracing::error!(%error, "cannot mark the engine as damaged");
        }
        {
            let mut queue = self.queue.lock();
            queue.failed.get_or_insert_with(|| reason.clone());
            self.done.notify_all();
            self.work.notify_all();
        }
        (self.on_fatal)(&reason);
        BackendError(reason)
    }

    /// The writer thread: takes what is queued, commits it as one fjall batch, drops the rows.
    fn write_loop(&self, mut seq: u64) {
        loop {
            let mut taken = Vec::new();
            {
                let mut queue = self.queue.lock();
                while queue.batches.is_empty() && !queue.is_over() {
                    self.work.wait(&mut queue);
                }
                while !queue.hurry && !queue.is_over() && queue.bytes < WRITE_BATCH_BYTES_MAX {
                    if self.work.wait_for(&mut queue, COMMIT_INTERVAL).timed_out() {
                        break;
                    }
                }
                queue.hurry = false;
                if queue.failed.is_some() || queue.batches.is_empty() {
                    return;
                }
                let mut bytes = 0;
                while bytes < WRITE_BATCH_BYTES_MAX {
                    let Some(batch) = queue.batches.pop_front() else { break };
                    bytes += batch.bytes;
                    taken.push(batch);
                }
            }
            seq += 1;
            let committed = std::panic::catch_unwind(AssertUnwindSafe(|| self.commit(seq, &taken)));
            match committed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.fatal("commit", &error);
                    return;
                }
                Err(_) => {
                    self.fatal("commit", &"the engine panicked");
                    return;
                }
            }
            self.drop_rows(&taken);
            let mut queue = self.queue.lock();
            for batch in &taken {
                queue.bytes -= batch.bytes;
                queue.written = batch.seq;
            }
            self.done.notify_all();
        }
    }

    /// Commits batches as one, with the number `seq`.
    fn commit(&self, seq: u64, batches: &[Pending]) -> fjall::Result<()> {
        failpoint::io(failpoint::ENGINE_COMMIT)?;
        // One write per row: the last one wins.
        let mut rows: BTreeMap<&Bytes, &Option<Bytes>> = BTreeMap::new();
        for batch in batches {
            rows.extend(batch.rows.iter().map(|(key, value)| (key, value)));
        }
        let position = batches.last().map_or_else(Position::default, |last| last.position).rows();
        rows.extend(position.iter().map(|(key, value)| (key, value)));
        let mut batch = self.db.batch();
        for (key, value) in rows {
            // Copied: a value may be a slice of a whole request, which the memtable would keep.
            match value {
                Some(value) => batch.insert(&self.rows, &key[..], &value[..]),
                None => batch.remove(&self.rows, &key[..]),
            }
        }
        batch.insert(&self.rows, &seq_key(seq)[..], &[][..]);
        batch.remove(&self.rows, &seq_key(seq - 1)[..]);
        let begin = SystemClock.now();
        let result = batch.commit();
        let took = begin.elapsed().as_secs_f64();
        metrics().backend_commit.observe(took);
        metrics().backend_commit_write.observe(took);
        result
    }

    /// Drops the overlay's rows of batches that are in fjall, unless a later batch replaced them.
    fn drop_rows(&self, batches: &[Pending]) {
        for batch in batches {
            for rows in batch.rows.chunks(DROP_ROWS_PER_LOCK) {
                let mut overlay = self.overlay.write();
                for (key, _) in rows {
                    if overlay.rows.get(key).is_some_and(|row| row.seq <= batch.seq) {
                        overlay.rows.remove(key);
                    }
                }
            }
        }
    }
}

impl Engine {
    /// Opens the engine in a directory of its own, or makes it; what cannot be trusted is removed
    /// and made anew, empty. Reads every row once, so that a damaged table shows here.
    pub fn open(
        dir: &Path,
        identity: super::wal::Metadata,
        on_fatal: OnFatal,
    ) -> Result<Opened, EngineError> {
        open::open(dir, identity, on_fatal)
    }

    fn start(
        dir: &Path,
        (db, rows): (Database, Keyspace),
        seq: u64,
        position: Position,
        on_fatal: OnFatal,
    ) -> Result<Engine, EngineError> {
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            db,
            rows,
            overlay: RwLock::new(Overlay { rows: BTreeMap::new(), position }),
            queue: Mutex::new(Queue::default()),
            work: Condvar::new(),
            done: Condvar::new(),
            on_fatal,
        });
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let shared = shared.clone();
                move || shared.write_loop(seq)
            })
            .map_err(|source| EngineError::Io { path: dir.to_owned(), source })?;
        Ok(Engine { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Store revision of the newest batch; 0 when there is none.
    pub fn revision(&self) -> i64 {
        self.shared.overlay.read().position.revision
    }

    /// Has the next open throw the engine away and start over.
    pub fn mark_damaged(&self, reason: &str) -> Result<(), EngineError> {
        tracing::warn!(dir = %self.shared.dir.display(), reason, "marking the engine as damaged");
        open::write_marker(&self.shared.dir, reason)
    }

    /// Reads every row, checking every block.
    pub fn verify(&self) -> Result<(), BackendError> {
        open::verify(&self.shared.db, &self.shared.rows).map_err(BackendError)
    }

    /// Rewrites the tables without what was removed or replaced. Reads and writes go on meanwhile,
    /// only fjall's own compactions wait. Needs room for the tables a second time, and a failure,
    /// for lack of it say, leaves them as they are.
    pub fn compact(&self) -> Result<(), BackendError> {
        self.flush()?;
        let rows = &self.shared.rows;
        let compact = || {
            // What was removed lately is in memory only, where a compaction does not see it.
            rows.rotate_memtable()?;
            for _ in 0..FLUSH_LOOKS_MAX {
                if rows.sealed_memtable_count() == 0 {
                    break;
                }
                std::thread::sleep(FLUSH_LOOK_INTERVAL);
            }
            rows.major_compact()
        };
        match std::panic::catch_unwind(AssertUnwindSafe(compact)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BackendError(format!("compact: {error}"))),
            Err(_) => Err(self.shared.fatal("compact", &"the engine panicked")),
        }
    }

    /// Bytes that the engine takes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.rows.disk_space()
    }

    /// Waits until everything submitted so far is on the disk for good.
    pub fn sync(&self) -> Result<(), BackendError> {
        self.flush()?;
        self.shared.db.persist(PersistMode::SyncAll).map_err(|e| self.shared.fatal("sync", &e))
    }

    /// Writes and syncs everything and ends the writer thread. Later batches are refused.
    pub fn close(&self) -> Result<(), BackendError> {
        let flushed = self.flush();
        self.stop();
        flushed?;
        self.shared.db.persist(PersistMode::SyncAll).map_err(|e| self.shared.fatal("sync", &e))
    }

    /// Ends it and removes its directory, unless somebody still reads it, or its views: then it is
    /// given back.
    pub fn remove(self: Arc<Engine>) -> Result<(), Arc<Engine>> {
        // The writer thread holds one of the inner references.
        if Arc::strong_count(&self) > 1 || Arc::strong_count(&self.shared) > 2 {
            return Err(self);
        }
        let dir = self.shared.dir.clone();
        drop(self);
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "failed to remove an old engine");
        }
        Ok(())
    }

    fn stop(&self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            self.shared.work.notify_all();
            self.shared.done.notify_all();
        }
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the store-writer thread panicked");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine {
    /// [`Backend::submit`], with rows of the engine's own.
    fn submit_with(&self, batch: Batch, private: Vec<(Bytes, Option<Bytes>)>) {
        let ops = batch.ops.into_iter();
        let rows = ops.map(|(bucket, key, value)| (row_key(bucket as u8, &key), value));
        let position = Position {
            consistent_index: batch.consistent_index,
            term: batch.term,
            revision: batch.revision,
            size_bytes: batch.size_bytes,
        };
        self.submit_rows(rows.chain(private).collect(), Some(position));
    }

    /// Submits rows that bring the state to a position, or that leave it where it is.
    fn submit_rows(&self, rows: Vec<(Bytes, Option<Bytes>)>, position: Option<Position>) {
        let row_bytes = rows.iter().map(|(key, value)| {
            ROW_OVERHEAD_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len)
        });
        let bytes = BATCH_OVERHEAD_BYTES + row_bytes.sum::<usize>();
        let shared = &*self.shared;
        let mut queue = shared.queue.lock();
        // A batch larger than the whole overlay goes alone.
        while queue.bytes != 0 && queue.bytes + bytes > OVERLAY_BYTES_MAX && queue.failed.is_none()
        {
            queue.hurry(&shared.work);
            shared.done.wait(&mut queue);
        }
        if queue.failed.is_some() || queue.closed {
            // The process is ending; the log has what this batch held.
            let index = position.map(|position| position.consistent_index);
            tracing::warn!(index, "the engine has stopped, batch dropped");
            return;
        }
        queue.submitted += 1;
        queue.bytes += bytes;
        let seq = queue.submitted;
        let position = {
            // In one go, so that no scan sees half a batch.
            let mut overlay = shared.overlay.write();
            let position = position.unwrap_or(overlay.position);
            for (key, value) in &rows {
                overlay.rows.insert(key.clone(), Row { seq, value: value.clone() });
            }
            overlay.position = position;
            position
        };
        queue.batches.push_back(Pending { seq, rows, bytes, position });
        // The first starts the interval, and a full commit ends it.
        if queue.batches.len() == 1 || queue.bytes >= WRITE_BATCH_BYTES_MAX {
            shared.work.notify_one();
        }
    }
}

impl Backend for Engine {
    fn submit(&self, batch: Batch) {
        self.submit_with(batch, Vec::new());
    }

    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, BackendError> {
        let shared = &*self.shared;
        let key = row_key(bucket as u8, key);
        if let Some(row) = shared.overlay.read().rows.get(&key) {
            return Ok(row.value.clone());
        }
        // A row leaves the overlay only after it is in fjall, so what was not in the overlay a
        // moment ago is in fjall now, in that version or a later one.
        match shared.rows.get(&key[..]) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) => Err(shared.fatal("get", &error)),
        }
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        let shared = &*self.shared;
        let low = row_key(bucket as u8, from);
        let high = match to {
            Some(to) => row_key(bucket as u8, to),
            None => row_key(bucket as u8 + 1, b""),
        };
        if low >= high {
            return Ok(());
        }
        // Why this is one moment, the one in which the lock was held: submit inserts a whole batch
        // under the write lock, so the overlay has whole batches only. A row leaves the overlay
        // under the write lock and after fjall has its batch; the snapshot is taken under the
        // read lock, so a row that is not in the overlay is in the snapshot as it was last
        // submitted. A row that is in both is as new or newer in the overlay: it wins. fjall
        // never has a row that is newer than the overlay's, since all come through the overlay.
        let (overlay, snapshot) = {
            let guard = shared.overlay.read();
            let range = (Bound::Included(&low), Bound::Excluded(&high));
            let rows: Vec<(Bytes, Option<Bytes>)> = guard
                .rows
                .range::<Bytes, _>(range)
                .map(|(key, row)| (key.clone(), row.value.clone()))
                .collect();
            (rows, shared.db.snapshot())
        };
        let mut overlay = overlay.into_iter().peekable();
        for guard in snapshot.range(&shared.rows, &low[..]..&high[..]) {
            let (key, value) = guard.into_inner().map_err(|e| shared.fatal("scan", &e))?;
            while let Some((over, value)) = overlay.next_if(|(over, _)| over[..] < key[..]) {
                if let Some(value) = value
                    && visit(&over[1..], &value).is_break()
                {
                    return Ok(());
                }
            }
            let value = match overlay.next_if(|(over, _)| over[..] == key[..]) {
                Some((_, Some(value))) => value,
                Some((_, None)) => continue,
                None => Bytes::from(value),
            };
            if visit(&key[1..], &value).is_break() {
                return Ok(());
            }
        }
        for (over, value) in overlay {
            if let Some(value) = value
                && visit(&over[1..], &value).is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        let mut queue = self.shared.queue.lock();
        let target = queue.submitted;
        loop {
            if let Some(reason) = &queue.failed {
                return Err(BackendError(reason.clone()));
            }
            if queue.written >= target {
                return Ok(());
            }
            queue.hurry(&self.shared.work);
            self.shared.done.wait(&mut queue);
        }
    }

    fn position(&self) -> (u64, u64) {
        let position = self.shared.overlay.read().position;
        (position.consistent_index, position.term)
    }

    fn size_bytes(&self) -> u64 {
        self.shared.overlay.read().position.size_bytes
    }
}
