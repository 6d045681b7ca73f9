//! Growing a file as bbolt grows it: what changed is written to pages that nothing reaches, then
//! one meta page makes it the file's state. It costs what changed and not what there is.
//!
//! One bucket, etcd's `key`, only gets rows behind all others, so only the right edge of its tree
//! is written anew; each other bucket that changed is written whole. [`Grower`] keeps the right
//! edge, the root bucket's rows and the free pages in memory, and can begin from any sound file.
//!
//! # Crashes
//! At every instant the file is its state before a growth or after it, whatever part of the writes
//! since the last sync has reached the disk, in any order, and each of them whole or torn:
//! * A growth writes only to pages that *neither* meta page reaches. bbolt is content with those
//!   that the newer does not reach; then a file whose newer meta page is damaged later has no other
//!   state to go back to. A page that a growth frees is reached by a meta page until the growth
//!   after it has ended, so it is used by the one after that.
//! * The pages are synced before the meta page is written, in the place of the older one; its
//!   checksum tells when it is torn. The meta page is synced before the next growth begins.
//!
//! Failure of a growth, or its end without a commit, leaves the state before it. It consumes the
//! grower, since nobody knows what was written: open the file again.
//!
//! # What it leaves to its caller
//! When to grow; that no other reads or writes the file at the same time; that the pages which are
//! dead, or rows that are, do not become too many (then write the whole file anew); and that what
//! cannot be grown is written anew as well: see [`GrowError`].
//! Uses: nothing

mod open;
mod runs;
mod space;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

use super::page::Meta;
use super::reader::Source;
use super::tree::{Fill, Run, Tree, refused};
use super::{Error, WriteError};
use space::Space;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file that can be written.
pub trait Disk: Source {
    /// Writes all of `bytes` at `offset`; the file becomes longer if it ends before.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written, and the file's length, is on the disk.
    fn sync(&self) -> io::Result<()>;
}

impl Disk for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl<D: Disk> Disk for &D {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (*self).write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        (*self).sync()
    }
}

impl<D: Disk> Disk for Arc<D> {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.as_ref().write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.as_ref().sync()
    }
}

/// Why a file does not grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The file cannot be read, or is damaged.
    #[error(transparent)]
    Read(#[from] Error),
    /// The disk refused. After a failed sync nobody knows what is on it.
    #[error("bbolt: {0}")]
    Io(#[from] io::Error),
    /// A row of the growing bucket is not behind all others. The file must be written anew.
    #[error("bbolt: bucket {bucket:?}: a key is not behind the last one, so the file cannot grow")]
    NotNext {
        /// The bucket's name.
        bucket: String,
    },
    /// The format has no place for this row, or the rows of a bucket come out of order.
    #[error(transparent)]
    Row(WriteError),
    /// The file is sound, but not one to go on from. It must be written anew.
    #[error("bbolt: the file cannot grow: {0}")]
    Unfit(String),
}

impl From<WriteError> for GrowError {
    fn from(error: WriteError) -> GrowError {
        match error {
            WriteError::Io(error) => GrowError::Io(error),
            row @ WriteError::Row { .. } => GrowError::Row(row),
        }
    }
}

type Result<T> = std::result::Result<T, GrowError>;

/// Pages of the growing bucket are filled to the brim, since none of its rows ever changes; its
/// branches as the writer fills them. Large rows each have a leaf of their own: it would be
/// written again for the next.
fn growing_fill(page_bytes: usize) -> Fill {
    Fill { leaf_bytes: page_bytes, leaf_rows_min: 1, branch_bytes: page_bytes * 9 / 10 }
}

/// For buckets that are written whole.
fn whole_fill(page_bytes: usize) -> Fill {
    Fill { leaf_bytes: page_bytes * 9 / 10, leaf_rows_min: 2, branch_bytes: page_bytes * 9 / 10 }
}

/// A row of the root bucket.
#[derive(Clone, Debug)]
struct RootRow {
    bucket: bool,
    value: Vec<u8>,
}

/// A file between two growths. See the module.
#[derive(Debug)]
pub struct Grower<D> {
    space: Space<D>,
    meta: Meta,
    /// The page of `meta`.
    slot: u64,
    /// The highest transaction of both meta pages.
    txid: u64,
    /// The bucket that grows, and its tree.
    name: Vec<u8>,
    tree: Tree,
    root: BTreeMap<Vec<u8>, RootRow>,
    /// Pages of the root bucket.
    root_runs: Vec<Run>,
    freelist: Option<Run>,
}

impl<D: Disk> Grower<D> {
    /// Reads what growing needs: the root bucket, the right edge of the bucket `name`, which may
    /// only get rows behind its last, and the free list. A file without a free list, as etcd
    /// leaves it, is read and checked as a whole to find what is free.
    pub fn open(disk: D, name: &[u8]) -> Result<Self> {
        open::open(disk, name)
    }

    /// The state that the file has.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The highest key of the growing bucket.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.tree.last_key()
    }

    /// Pages of the file; bytes with [`Meta::page_bytes`].
    pub fn pages(&self) -> u64 {
        self.space.pages()
    }

    /// Pages among them that hold nothing. Growths use them again.
    pub fn dead_pages(&self) -> u64 {
        self.space.dead()
    }

    /// Begins a growth.
    pub fn begin(self) -> Growth<D> {
        let start = self.space.written();
        Growth { grower: self, open: Open::Nothing, done: BTreeSet::new(), grew: false, start }
    }
}

/// What the rows of a growth go to.
#[derive(Debug)]
enum Open {
    Nothing,
    Growing,
    Whole(Vec<u8>, Tree),
}

/// A growth that is on the disk and that no meta page names.
#[derive(Debug)]
pub struct Settled<D> {
    /// As it will be.
    grower: Grower<D>,
    start: u64,
}

impl<D: Disk> Settled<D> {
    /// The meta page that is to be written: its number and its bytes.
    pub fn meta_page(&self) -> (u64, Vec<u8>) {
        (self.grower.slot, self.grower.meta.page(self.grower.slot))
    }

    /// Bytes that were written.
    pub fn bytes(&self) -> u64 {
        self.grower.space.written() - self.start
    }

    /// Makes it the file's state: when this returns, that is durable.
    pub fn commit(mut self) -> Result<Grower<D>> {
        let (slot, meta) = (self.grower.slot, self.grower.meta);
        self.grower.space.commit(slot, &meta)?;
        Ok(self.grower)
    }
}

/// A growth, fed like a [`Writer`](super::Writer): bucket by bucket, in any order, each at most
/// once. Buckets that are not named stay as they are. It holds at most 1 MiB and one page of what
/// it was given; most is written, to pages that nothing reaches, before the commit.
#[derive(Debug)]
pub struct Growth<D> {
    grower: Grower<D>,
    open: Open,
    done: BTreeSet<Vec<u8>>,
    /// Whether the growing bucket has changed.
    grew: bool,
    /// Bytes that were written before.
    start: u64,
}

impl<D: Disk> Growth<D> {
    /// Ends the bucket at hand and begins another: the growing one, whose rows are added behind
    /// those that are there, or one whose rows take the place of all that are there.
    pub fn bucket(&mut self, name: &[u8]) -> Result<()> {
        self.end_bucket()?;
        if name.is_empty() || !self.done.insert(name.to_vec()) {
            return Err(refused(name, "is named twice, or has no name").into());
        }
        if *name == *self.grower.name {
            self.grew |= !self.grower.root.contains_key(name);
            self.open = Open::Growing;
            return Ok(());
        }
        if self.grower.root.get(name).is_some_and(|row| !row.bucket) {
            return Err(GrowError::Unfit("a row stands where a bucket belongs".to_owned()));
        }
        let fill = whole_fill(self.grower.meta.page_bytes as usize);
        self.open = Open::Whole(name.to_vec(), Tree::new(fill));
        Ok(())
    }

    /// Adds a row to the bucket at hand; its key must be greater than the one before.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let growing = matches!(self.open, Open::Growing);
        let (tree, name) = match &mut self.open {
            Open::Nothing => return Err(refused(b"", "no bucket has begun").into()),
            Open::Growing if !self.grower.tree.is_next(key) && !key.is_empty() => {
                let bucket = String::from_utf8_lossy(&self.grower.name).into_owned();
                return Err(GrowError::NotNext { bucket });
            }
            Open::Growing => (&mut self.grower.tree, &self.grower.name),
            Open::Whole(name, tree) => (tree, &*name),
        };
        tree.check(name, key, value)?;
        self.grew |= growing;
        Ok(tree.row(&mut self.grower.space, false, key, value)?)
    }

    /// Bytes that this growth has written or gathered to write; without those of its commit, which
    /// are a few pages.
    pub fn bytes(&self) -> u64 {
        self.grower.space.written() - self.start
    }

    /// Makes what was written durable, so that a sync which somebody waits for has less to do.
    pub fn sync(&mut self) -> Result<()> {
        self.grower.space.sync()
    }

    /// Writes what is left and makes it the file's state: when this returns, it is durable.
    pub fn commit(self) -> Result<Grower<D>> {
        self.settle()?.commit()
    }

    /// Writes what is left, durably. The file's state is the one before.
    pub fn settle(mut self) -> Result<Settled<D>> {
        self.end_bucket()?;
        let Grower { mut space, meta, slot, txid, name, mut tree, mut root, root_runs, freelist } =
            self.grower;
        if self.grew {
            let value = tree.bucket_value(&mut space)?;
            root.insert(name.clone(), RootRow { bucket: true, value });
        }
        for run in root_runs.into_iter().chain(freelist) {
            super::tree::Pages::free(&mut space, run);
        }
        let mut collect = open::Collect { space: &mut space, runs: Vec::new() };
        let mut root_tree = Tree::new(whole_fill(meta.page_bytes as usize));
        for (name, row) in &root {
            root_tree.check(b"", name, &row.value)?;
            root_tree.row(&mut collect, row.bucket, name, &row.value)?;
        }
        let first = root_tree.settle(&mut collect)?;
        let root_runs = collect.runs;
        let freelist = space.write_freelist()?;
        let slot = 1 - slot;
        // bbolt finds the older meta page by the transaction's parity; what etcd copied may have
        // them the other way round.
        let txid = if (txid + 1) % 2 == slot { txid + 1 } else { txid + 2 };
        let (pages, listed) = (space.pages(), freelist.map(|run| run.page));
        let meta = Meta { root: first, freelist: listed, pages, txid, ..meta };
        space.sync()?;
        let grower = Grower { space, meta, slot, txid, name, tree, root, root_runs, freelist };
        Ok(Settled { grower, start: self.start })
    }

    fn end_bucket(&mut self) -> Result<()> {
        let open = std::mem::replace(&mut self.open, Open::Nothing);
        let Open::Whole(name, mut tree) = open else { return Ok(()) };
        let grower = &mut self.grower;
        let value = tree.bucket_value(&mut grower.space)?;
        let before = grower.root.insert(name, RootRow { bucket: true, value });
        if let Some(row) = before {
            open::free_bucket(&mut grower.space, &grower.meta, row.value)?;
        }
        Ok(())
    }
}
