//! Opening the engine: what is there is checked, and what cannot be trusted is removed.

use super::{
    BLOCK_CACHE_BYTES, CONSISTENT_INDEX_ROW, DAMAGED_MARKER, ENGINE_THREADS, Engine, IDENTITY_ROW,
    JOURNAL_BYTES_MAX, KEYSPACE, MEMTABLE_BYTES, OnFatal, PRIVATE, Position, REVISION_ROW,
    SEQ_ROWS, TABLE_BYTES, TERM_ROW, row_key, seq_key,
};
use crate::mvcc::backend::Bucket;
use crate::storage::wal::Metadata;
use fjall::compaction::Leveled;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Errors of the system that say nothing about the data: EMFILE and ENFILE.
const TOO_MANY_FILES: [i32; 2] = [24, 23];

/// Why the engine cannot be opened even empty.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another process has it open.
    #[error("engine: {0} is in use by another process")]
    Locked(PathBuf),
    /// The system refused.
    #[error("engine: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A new, empty engine could not be made.
    #[error("engine: cannot make a new one in {0}: {1}")]
    Create(PathBuf, String),
}

/// How the engine was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenKind {
    /// There was none: it is empty.
    Fresh,
    /// It has what it had, up to its position.
    Existing,
    /// It was not to be trusted for this reason: it is empty and must be filled from the log.
    Rebuilt(String),
}

/// An open engine, and how it was found.
#[derive(Debug)]
pub struct Opened {
    /// The engine.
    pub engine: Engine,
    /// How it was found.
    pub kind: OpenKind,
}

/// What stands in the way of using what is there.
enum Refused {
    /// The data: start over.
    Damaged(String),
    /// The system: say so.
    Error(EngineError),
}

/// What an engine holds, as far as opening wants to know.
struct Found {
    handles: (Database, Keyspace),
    seq: u64,
    position: Position,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> EngineError + '_ {
    move |source| EngineError::Io { path: path.to_owned(), source }
}

/// Leaves the marker, durably.
pub(super) fn write_marker(dir: &Path, reason: &str) -> Result<(), EngineError> {
    let path = dir.join(DAMAGED_MARKER);
    std::fs::write(&path, reason).map_err(io(&path))?;
    for path in [path.as_path(), dir] {
        std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(io(path))?;
    }
    Ok(())
}

/// Reads every row.
pub(super) fn verify(db: &Database, rows: &Keyspace) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        for guard in db.snapshot().iter(rows) {
            guard.into_inner().map_err(|e| format!("a row cannot be read: {e}"))?;
        }
        Ok(())
    }))
    .unwrap_or_else(|_| Err("reading the rows panicked".into()))
}

pub(super) fn open(
    dir: &Path,
    identity: Metadata,
    on_fatal: OnFatal,
) -> Result<Opened, EngineError> {
    let aside = aside_path(dir);
    remove_dir(&aside)?;
    if std::fs::symlink_metadata(dir).is_ok_and(|found| !found.is_dir()) {
        tracing::warn!(dir = %dir.display(), "the engine's directory is a file: it is removed");
        std::fs::remove_file(dir).map_err(io(dir))?;
    }
    let empty = is_missing_or_empty(dir)?;
    let kind = if empty {
        OpenKind::Fresh
    } else {
        match open_existing(dir, identity) {
            Ok(found) => {
                let engine =
                    Engine::start(dir, found.handles, found.seq, found.position, on_fatal)?;
                return Ok(Opened { engine, kind: OpenKind::Existing });
            }
            Err(Refused::Error(error)) => return Err(error),
            Err(Refused::Damaged(reason)) => {
                tracing::warn!(
                    dir = %dir.display(),
                    reason,
                    "the engine cannot be trusted: it is removed and will be rebuilt from the log"
                );
                OpenKind::Rebuilt(reason)
            }
        }
    };
    if !empty {
        // Renamed first, so that no crash leaves half of it under its name.
        std::fs::rename(dir, &aside).map_err(io(dir))?;
        remove_dir(&aside)?;
    }
    let handles = std::panic::catch_unwind(AssertUnwindSafe(|| create(dir, identity)))
        .unwrap_or_else(|_| Err("it panicked".into()))
        .map_err(|reason| EngineError::Create(dir.to_owned(), reason))?;
    let engine = Engine::start(dir, handles, 0, Position::default(), on_fatal)?;
    Ok(Opened { engine, kind })
}

impl Engine {
    /// Opens an engine that is there, reading every row, for a look at it: what cannot be trusted
    /// is the inner error, and stays as it is.
    pub fn inspect(dir: &Path, identity: Metadata) -> Result<Result<Engine, String>, EngineError> {
        if is_missing_or_empty(dir)? {
            return Ok(Err("it is empty".to_owned()));
        }
        match open_existing(dir, identity) {
            // Whoever looks gets the error itself.
            Ok(Found { handles, seq, position }) => {
                Engine::start(dir, handles, seq, position, Box::new(|_| {})).map(Ok)
            }
            Err(Refused::Error(error)) => Err(error),
            Err(Refused::Damaged(reason)) => Ok(Err(reason)),
        }
    }
}

fn aside_path(dir: &Path) -> PathBuf {
    let mut aside = dir.as_os_str().to_owned();
    aside.push(".removing");
    aside.into()
}

fn remove_dir(dir: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io(dir)(e)),
        _ => Ok(()),
    }
}

fn is_missing_or_empty(dir: &Path) -> Result<bool, EngineError> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(io(dir)(e)),
    }
}

fn handles(dir: &Path) -> fjall::Result<(Database, Keyspace)> {
    let db = Database::builder(dir)
        .max_journaling_size(JOURNAL_BYTES_MAX)
        .cache_size(BLOCK_CACHE_BYTES)
        .worker_threads(ENGINE_THREADS)
        .open()?;
    let rows = db.keyspace(KEYSPACE, || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES)
            .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
    })?;
    Ok((db, rows))
}

/// Makes an empty engine; batch 0 says whose it is and is durable.
fn create(dir: &Path, identity: Metadata) -> Result<(Database, Keyspace), String> {
    let text = |e: fjall::Error| e.to_string();
    let (db, rows) = handles(dir).map_err(text)?;
    let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(&rows, &row_key(PRIVATE, IDENTITY_ROW)[..], &identity_value(identity)[..]);
    batch.insert(&rows, &seq_key(0)[..], &[][..]);
    batch.commit().map_err(text)?;
    Ok((db, rows))
}

fn identity_value(identity: Metadata) -> Vec<u8> {
    [identity.node_id.to_be_bytes(), identity.cluster_id.to_be_bytes()].concat()
}

fn open_existing(dir: &Path, identity: Metadata) -> Result<Found, Refused> {
    let damaged = |reason: String| Err(Refused::Damaged(reason));
    let marker = dir.join(DAMAGED_MARKER);
    if marker.exists() {
        let reason = std::fs::read_to_string(marker).unwrap_or_default();
        return damaged(format!("it was marked as damaged: {reason}"));
    }
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| handles(dir)));
    let (db, rows) = match opened {
        Ok(Ok(handles)) => handles,
        Ok(Err(fjall::Error::Locked)) => {
            return Err(Refused::Error(EngineError::Locked(dir.to_owned())));
        }
        Ok(Err(fjall::Error::Io(source))) if !is_about_data(&source) => {
            return Err(Refused::Error(EngineError::Io { path: dir.to_owned(), source }));
        }
        Ok(Err(error)) => return damaged(format!("it does not open: {error}")),
        Err(_) => return damaged("opening it panicked".into()),
    };
    let checked = std::panic::catch_unwind(AssertUnwindSafe(|| check(&db, &rows, identity)));
    match checked {
        Ok(Ok((seq, position))) => Ok(Found { handles: (db, rows), seq, position }),
        Ok(Err(reason)) => damaged(reason),
        Err(_) => damaged("reading it panicked".into()),
    }
}

/// Whether an error may come from missing or short files rather than from the system's limits.
fn is_about_data(error: &std::io::Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::OutOfMemory
            | ErrorKind::QuotaExceeded
    ) && !error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code))
}

/// The number of the last batch and the position it reached.
fn check(db: &Database, rows: &Keyspace, identity: Metadata) -> Result<(u64, Position), String> {
    verify(db, rows)?;
    // Everything is read as scans read it, through a snapshot, and point reads must agree: with its
    // journal gone, fjall opens with a sequence number below that of its rows, so that snapshots do
    // not see what point reads see. Rows that every batch writes show that.
    let snapshot = db.snapshot();
    let get = |bucket: u8, key: &[u8]| {
        let key = row_key(bucket, key);
        let unreadable = |e: fjall::Error| format!("a row cannot be read: {e}");
        let value = snapshot.get(rows, &key[..]).map_err(unreadable)?;
        if value != rows.get(&key[..]).map_err(unreadable)? {
            return Err("its newest rows are not visible".to_owned());
        }
        Ok(value)
    };
    match get(PRIVATE, IDENTITY_ROW)? {
        Some(value) if value[..] == identity_value(identity)[..] => {}
        Some(_) => return Err("it belongs to another member".into()),
        None => return Err("it does not say whose it is".into()),
    }
    let mut seqs = Vec::new();
    for guard in snapshot.prefix(rows, &row_key(PRIVATE, SEQ_ROWS)[..]) {
        let key = guard.key().map_err(|e| e.to_string())?;
        let number = key[1 + SEQ_ROWS.len()..].try_into().map_err(|_| "malformed batch number")?;
        seqs.push(u64::from_be_bytes(number));
    }
    let [seq] = seqs[..] else {
        return Err(format!("batches are missing in the middle (ends at {seqs:?})"));
    };
    let number = |bucket: u8, key: &[u8]| -> Result<u64, String> {
        match get(bucket, key)? {
            Some(value) => value[..]
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| "malformed position row".into()),
            None if seq == 0 => Ok(0),
            None => Err("it has batches but no position".into()),
        }
    };
    let consistent_index = number(Bucket::Meta as u8, CONSISTENT_INDEX_ROW)?;
    let term = number(Bucket::Meta as u8, TERM_ROW)?;
    let row = get(PRIVATE, REVISION_ROW)?;
    let (revision, size_bytes) = match row.as_deref().map(<[u8]>::as_chunks::<8>) {
        Some(([revision, size], [])) => (i64::from_be_bytes(*revision), u64::from_be_bytes(*size)),
        None if seq == 0 => (0, 0),
        _ => return Err("malformed position row".into()),
    };
    Ok((seq, Position { consistent_index, term, revision, size_bytes }))
}
