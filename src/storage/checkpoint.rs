//! The checkpoint: etcd's database file, `member/snap/db`, made from the engine's rows, so that an
//! etcd, its tools and a start without an engine find in the directory what they need.
//!
//! A rewrite puts a whole new tree where the file has room, beside the one in use or behind it, and
//! then names it in the older meta page, as bbolt's own transactions do: the file is valid at every
//! instant, and it stays the same file, so that whoever waits for its lock waits for the right one.
//! A replacement writes another file and renames it; that is how the first one comes, and how room
//! that is no longer needed is given back. A growth writes what changed and no more
//! (`checkpoint/grow.rs`).

mod grow;

use super::bbolt::{Db, FIRST_PAGE, Meta, PAGE_BYTES, Plan, WriteError};
use super::datadir::flock;
use super::engine::{Engine, View};
use super::fingerprint;
use super::image::{self, ImageError};
use super::import::{self, ImportError};
use crate::base::failpoint;
use crate::mvcc::backend::BackendError;
use bytes::Bytes;
use grow::{Growing, Grown, Refusal};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are written before they are synced: a sync of the log that comes meanwhile waits for
/// no more than these.
const CHUNK_BYTES: usize = 1024 * 1024;
/// etcd removes files whose names begin so when it starts.
const TEMPORARY: &str = "db.tmp.rusd";
/// Mode of the file (etcd v3.5.17 `backend.go` newBackend).
const FILE_MODE: u32 = 0o600;
/// Pages that a rewrite in the room before the tree in use must find beyond that tree's own number.
const ROOM_PAGES_MIN: u64 = 16;
/// And of that tree, one in so many.
const ROOM_SHARE: u64 = 8;

/// Why a checkpoint was not written. The file is what it was.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("checkpoint: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The rows cannot be read or do not fit into the format.
    #[error("checkpoint: {0}")]
    Image(#[from] ImageError),
    /// The engine failed.
    #[error("checkpoint: {0}")]
    Engine(#[from] BackendError),
    /// The file that is there is none of bbolt's.
    #[error("checkpoint: {0}")]
    File(#[from] ImportError),
    /// The same, when its state is asked for.
    #[error("checkpoint: {0}")]
    Fingerprint(#[from] fingerprint::Error),
    /// The file must be rewritten.
    #[error("checkpoint: the file cannot grow: {0}")]
    CannotGrow(String),
    /// Whoever paces the writes has ended it.
    #[error("checkpoint: the member is stopping")]
    Stopped,
}

type Result<T> = std::result::Result<T, CheckpointError>;

/// Called after each bytes that were written and synced; says whether to go on.
pub type Pace<'a> = &'a mut dyn FnMut() -> bool;

/// Whether the file stays the one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A new tree in the same file.
    Rewrite,
    /// Another file under the same name, no larger than it has to be.
    Replace,
    /// What changed is added to the file, if there is one.
    Grow,
}

/// The file as it is.
#[derive(Debug)]
struct Current {
    /// Open for as long as it has the name: its lock is the directory's, for etcd.
    file: Arc<File>,
    meta: Meta,
    /// Pages among which all of the tree's are.
    span: Range<u64>,
    /// The raft index that it has reached.
    index: u64,
    /// Nobody knows which meta page the disk has: both trees must stay.
    in_doubt: bool,
    /// What growing goes on from, if it has begun.
    growing: Option<Growing>,
    /// The file cannot grow as it is.
    unfit: bool,
}

impl Current {
    fn new(file: Arc<File>, meta: Meta, span: Range<u64>, index: u64) -> Current {
        Current { file, meta, span, index, in_doubt: false, growing: None, unfit: false }
    }
}

/// See the module. One thread owns it.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    current: Option<Current>,
}

/// A tree that is on the disk and that no meta page names yet.
#[derive(Debug)]
pub struct Prepared {
    index: u64,
    bytes: u64,
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    /// A whole one in the same file, and its pages.
    Beside(Plan, Range<u64>),
    /// A whole one in a file that gets the name.
    Other(Plan, Range<u64>, File),
    /// What changed.
    Grown(Box<Grown>),
}

impl Prepared {
    /// The raft index that the tree has reached.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Bytes that were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Checkpoint {
    /// Of the directory `dir`, which has no database file.
    pub fn none(dir: &Path) -> Checkpoint {
        Checkpoint { dir: dir.to_owned(), current: None }
    }

    /// Of the directory `dir`, whose database file is `file`, locked.
    pub fn of(dir: &Path, file: File) -> Result<Checkpoint> {
        let index = import::consistent_index(&file)?;
        let meta = *Db::open(&file).map_err(ImportError::File)?.meta();
        let span = FIRST_PAGE..meta.pages;
        let current = Some(Current::new(Arc::new(file), meta, span, index));
        Ok(Checkpoint { dir: dir.to_owned(), current })
    }

    /// The raft index that the file has reached; `None` without one.
    pub fn index(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.index)
    }

    /// Bytes that a growth will about take beside the new rows; `None` if the file cannot grow.
    pub fn growth_bytes(&self) -> Option<u64> {
        let current = self.current.as_ref().filter(|current| current.can_grow())?;
        Some(current.growing.as_ref().map_or(0, Growing::overhead))
    }

    /// Bytes of the file that hold something; with what was compacted away since it was rewritten.
    pub fn used_bytes(&self) -> u64 {
        let growing = self.current.as_ref().and_then(|current| current.growing.as_ref());
        growing.map_or(0, |growing| {
            let (pages, dead) = growing.pages();
            (pages - dead) * PAGE_BYTES as u64
        })
    }

    /// Bytes that a rewrite or replacement will about take.
    pub fn bytes(&self) -> u64 {
        let pages =
            self.current.as_ref().map_or(0, |current| current.span.end - current.span.start);
        pages * PAGE_BYTES as u64
    }

    fn path(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// Writes a tree of the engine's rows as they are, where nothing that is in use stands.
    pub fn prepare(&mut self, engine: &Engine, way: Way, pace: Pace<'_>) -> Result<Prepared> {
        let view = engine.view()?;
        let index = view.consistent_index()?;
        let Some(current) = self.current.as_mut().filter(|_| way != Way::Replace) else {
            return self.prepare_other(view, index, pace);
        };
        if current.meta.page_bytes as usize != PAGE_BYTES || current.in_doubt {
            return self.prepare_other(view, index, pace);
        }
        // IMPORTANT: before the first page, which changes the file's size and time.
        engine.writing_origin(fingerprint::state(&current.file)?)?;
        match way {
            Way::Grow => current.grow(&view, index, pace),
            _ => self.prepare_beside(view, index, pace),
        }
    }

    fn prepare_beside(&mut self, view: View, index: u64, pace: Pace<'_>) -> Result<Prepared> {
        let Some(current) = &mut self.current else { unreachable!("it is there") };
        // It knows nothing of the pages that are about to be used.
        current.growing = None;
        let current = &*current;
        let (pages, room) =
            (current.span.end - current.span.start, current.span.start - FIRST_PAGE);
        if room >= pages + pages / ROOM_SHARE + ROOM_PAGES_MIN {
            let limits = FIRST_PAGE..current.span.start;
            if let Some(written) = write(&current.file, view.clone(), limits, pace)? {
                return Ok(written.beside(index));
            }
        }
        let limits = current.meta.pages.max(current.span.end)..u64::MAX;
        let written = write(&current.file, view, limits, pace)?;
        Ok(written.unwrap_or_else(|| unreachable!("there is room behind the end")).beside(index))
    }

    fn prepare_other(&self, view: View, index: u64, pace: Pace<'_>) -> Result<Prepared> {
        let path = self.dir.join(TEMPORARY);
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let options = &mut OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(FILE_MODE);
        let file = options.open(&path).map_err(io)?;
        // IMPORTANT: locked before it gets the name, so that nobody opens it in between.
        flock(&file, &path).map_err(io::Error::other).map_err(io)?;
        let written = write(&file, view, FIRST_PAGE..u64::MAX, pace)?;
        let Written { plan, span, bytes } =
            written.unwrap_or_else(|| unreachable!("the file has no end"));
        let metas = plan.meta_pages(self.next_txid());
        file.write_all_at(&metas, 0).and_then(|()| file.sync_all()).map_err(io)?;
        let bytes = bytes + metas.len() as u64;
        Ok(Prepared { index, bytes, tree: Tree::Other(plan, span, file) })
    }

    /// Never lower than before: tools tell the newer of two states by it.
    fn next_txid(&self) -> u64 {
        self.current.as_ref().map_or(1, |current| current.meta.txid + 1)
    }

    /// Makes the tree the file's state, and has the engine remember that it did. To be called only
    /// when a hard state that commits the tree's index is on the disk.
    pub fn publish(&mut self, prepared: Prepared, engine: &Engine) -> Result<()> {
        let index = prepared.index;
        match prepared.tree {
            Tree::Other(plan, span, file) => self.rename(file, plan, span, index, engine)?,
            Tree::Beside(plan, span) => self.flip(plan, span, index, engine)?,
            Tree::Grown(grown) => self.flip_grown(*grown, index, engine)?,
        }
        if let Some(current) = &self.current {
            engine.wrote_origin(fingerprint::whole(&current.file)?);
        }
        Ok(())
    }

    fn rename(
        &mut self,
        file: File,
        plan: Plan,
        span: Range<u64>,
        index: u64,
        engine: &Engine,
    ) -> Result<()> {
        let path = self.path();
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        let before = match &self.current {
            Some(current) => fingerprint::state(&current.file)?,
            None => Bytes::new(),
        };
        let after = fingerprint::state(&file)?;
        engine.writing_origin([before, after].concat().into())?;
        failpoint::io(failpoint::CHECKPOINT_RENAME).map_err(io)?;
        std::fs::rename(self.dir.join(TEMPORARY), &path).map_err(io)?;
        let Plan { root, pages, .. } = plan;
        let txid = self.next_txid();
        let meta = Meta { page_bytes: PAGE_BYTES as u32, root, freelist: None, pages, txid };
        // The lock of the file before ends here: whoever waited for it has a file without a name.
        self.current = Some(Current::new(Arc::new(file), meta, span, index));
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        if let (Err(_), Some(current)) = (&dir, &mut self.current) {
            (current.in_doubt, current.index) = (true, 0);
        }
        dir.map_err(|source| CheckpointError::Io { path: self.dir.clone(), source })
    }

    fn flip(&mut self, plan: Plan, span: Range<u64>, index: u64, engine: &Engine) -> Result<()> {
        let (path, txid) = (self.path(), self.next_txid());
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        let Some(current) = &mut self.current else { unreachable!("it was prepared in a file") };
        // Every page in use is below the mark, those of the tree before included: it may be the
        // state again if the disk loses this meta page.
        let (id, page) = plan.meta_page(txid);
        current.remember(id, &page, engine)?;
        failpoint::io(failpoint::CHECKPOINT_FLIP).map_err(io)?;
        let at = id * PAGE_BYTES as u64;
        current.file.write_all_at(&page, at).and_then(|()| current.file.sync_data()).map_err(io)?;
        let Plan { root, pages, .. } = plan;
        let shrinks = pages < current.meta.pages;
        current.meta = Meta { root, pages, txid, freelist: None, ..current.meta };
        (current.span, current.index, current.in_doubt) = (span, index, false);
        current.unfit = false;
        if shrinks {
            current.file.set_len(pages * PAGE_BYTES as u64).map_err(io)?;
        }
        Ok(())
    }

    fn flip_grown(&mut self, grown: Grown, index: u64, engine: &Engine) -> Result<()> {
        let path = self.path();
        let io = |source| CheckpointError::Io { path: path.clone(), source };
        let Some(current) = &mut self.current else { unreachable!("it was grown in a file") };
        let (id, page) = grown.meta_page();
        current.remember(id, &page, engine)?;
        failpoint::io(failpoint::CHECKPOINT_FLIP).map_err(io)?;
        let growing = grown.commit().map_err(|error| io(io::Error::other(error)))?;
        current.meta = *growing.meta();
        // Its pages may be anywhere.
        (current.span, current.index) = (FIRST_PAGE..current.meta.pages, index);
        (current.in_doubt, current.growing) = (false, Some(growing));
        Ok(())
    }
}

/// A whole tree on the disk.
struct Written {
    plan: Plan,
    span: Range<u64>,
    bytes: u64,
}

impl Written {
    fn beside(self, index: u64) -> Prepared {
        Prepared { index, bytes: self.bytes, tree: Tree::Beside(self.plan, self.span) }
    }
}

/// Writes a whole tree into pages within `limits`; `None` if they are not enough.
fn write(file: &File, view: View, limits: Range<u64>, pace: Pace<'_>) -> Result<Option<Written>> {
    let page_bytes = PAGE_BYTES as u64;
    let (begin, end) = (limits.start * page_bytes, limits.end.saturating_mul(page_bytes));
    let mut at = begin;
    let (mut full, mut stopped) = (false, false);
    let mut sink = |bytes: &[u8]| -> io::Result<()> {
        let next = at + bytes.len() as u64;
        full = next > end;
        if full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        failpoint::io(failpoint::CHECKPOINT_WRITE)?;
        file.write_all_at(bytes, at)?;
        file.sync_data()?;
        at = next;
        stopped = !pace();
        if stopped { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    let written = image::write(view, limits.start, CHUNK_BYTES, &mut sink);
    let plan = match written {
        Ok(plan) => plan,
        Err(_) if full => return Ok(None),
        Err(_) if stopped => return Err(CheckpointError::Stopped),
        Err(error) => return Err(error.into()),
    };
    let span = limits.start..plan.pages;
    Ok(Some(Written { plan, span, bytes: at - begin }))
}

impl Current {
    /// Has the engine remember the state before and after the meta page is written. Until that is
    /// done nobody knows which of them the file is in.
    fn remember(&mut self, id: u64, page: &[u8], engine: &Engine) -> Result<()> {
        let before = fingerprint::state(&self.file)?;
        let after = fingerprint::state_with(&self.file, id, page)?;
        engine.writing_origin([before, after].concat().into())?;
        self.in_doubt = true;
        Ok(())
    }

    fn can_grow(&self) -> bool {
        self.meta.page_bytes as usize == PAGE_BYTES && !self.in_doubt && !self.unfit
    }

    /// Writes what changed.
    fn grow(&mut self, view: &View, index: u64, pace: Pace<'_>) -> Result<Prepared> {
        failpoint::io(failpoint::CHECKPOINT_WRITE)
            .map_err(|error| ImageError::Row(WriteError::Io(error)))?;
        let growing = self.growing.take();
        let grown = growing.map_or_else(|| Growing::open(&self.file), Ok);
        match grown.and_then(|growing| growing.grow(view, pace)) {
            Ok(grown) => {
                Ok(Prepared { index, bytes: grown.bytes(), tree: Tree::Grown(grown.into()) })
            }
            Err(Refusal::Unfit(reason)) => {
                self.unfit = true;
                Err(CheckpointError::CannotGrow(reason))
            }
            Err(Refusal::Error(error)) => Err(error),
        }
    }
}

/// Whether the database file is in a state that the engine's rows go with: not touched since rusd
/// wrote or imported it. A rewrite that a stop interrupted is no touch.
pub fn is_known(file: &File, engine: &Engine) -> Result<bool> {
    if engine.origin()? == Some(fingerprint::whole(file)?) {
        return Ok(true);
    }
    let Some(states) = engine.origin_writing()? else { return Ok(false) };
    Ok(fingerprint::contains(&states, &fingerprint::state(file)?))
}

/// Whether the file has seen no transaction since, though its size or its time differ: it was
/// copied, or touched, or damaged, or it is another one that came about in the same steps.
pub fn has_known_state(file: &File, engine: &Engine) -> Result<bool> {
    let state = fingerprint::state(file)?;
    Ok(engine.origin()?.is_some_and(|whole| fingerprint::has_state(&whole, &state)))
}

/// What is left of a replacement that was not finished, or of a leader's database.
pub fn remove_temporary(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
