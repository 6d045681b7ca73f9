//! Writing: a whole file from rows in key order, in one pass.
//!
//! Pages are numbered as they are written, so each tree holds one page of each level, and a branch
//! page comes behind the pages that it names. Only the meta pages know more than what came before
//! them: their number of pages, their root and their free list are the [`Plan`] that a pass ends
//! with. Where the file can be written at any place they are written last; where it is a stream, a
//! first pass into nothing makes the plan.
//!
//! Nothing is free in such a file, and it has a free list that says so: who opens it need not go
//! through it to find out.

use super::PAGE_BYTES;
use super::page::{HEADER_BYTES, Header, Kind, Meta};
use super::tree::{Fill, Pages, Run, Tree, refused};
use std::io::{self, Write};

/// etcd fills nine tenths when it defragments (etcd v3.5.17 `server/mvcc/backend/backend.go`
/// defragdb), so that a later change of a row finds room.
const FILL: Fill =
    Fill { leaf_bytes: PAGE_BYTES * 9 / 10, leaf_rows_min: 2, branch_bytes: PAGE_BYTES * 9 / 10 };
/// The first page behind the meta pages.
pub const FIRST_PAGE: u64 = 2;

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What takes the bytes refused them.
    #[error("bbolt: {0}")]
    Io(#[from] io::Error),
    /// The format has no place for this row, or it comes out of order.
    #[error("bbolt: bucket {bucket:?}: {reason}")]
    Row {
        /// The bucket's name.
        bucket: String,
        /// What is wrong with the row.
        reason: String,
    },
}

type Result<T> = std::result::Result<T, WriteError>;

/// What the meta pages say of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// First page of the root bucket.
    pub root: u64,
    /// The page of the free list.
    pub freelist: u64,
    /// Pages, meta pages included.
    pub pages: u64,
}

impl Plan {
    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// Pages 0 and 1, which go before what the [`Writer`] writes. `txid` is the transaction of the
    /// newer of them, at least 1: it names the page that bbolt would have written, so that its next
    /// transaction overwrites the older one.
    pub fn meta_pages(&self, txid: u64) -> Vec<u8> {
        let txid = txid.max(1);
        let page = |id: u64| {
            let txid = if txid % 2 == id { txid } else { txid - 1 };
            let (page_bytes, freelist) = (PAGE_BYTES as u32, Some(self.freelist));
            Meta { page_bytes, root: self.root, freelist, pages: self.pages, txid }.page(id)
        };
        [page(0), page(1)].concat()
    }

    /// The meta page that makes transaction `txid` the state of a file whose older one stays: its
    /// number and its bytes. What is free besides no list says.
    pub fn meta_page(&self, txid: u64) -> (u64, Vec<u8>) {
        let (id, page_bytes) = (txid % 2, PAGE_BYTES as u32);
        let Plan { root, pages, .. } = *self;
        (id, Meta { page_bytes, root, freelist: None, pages, txid }.page(id))
    }
}

/// The end of the file being written.
#[derive(Debug)]
struct Tail<W> {
    out: W,
    next: u64,
}

impl<W: Write> Pages for Tail<W> {
    fn page_bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn put(&mut self, bytes: usize, encode: impl FnOnce(u64, u32) -> Vec<u8>) -> io::Result<Run> {
        let page = self.next;
        let pages = bytes.div_ceil(PAGE_BYTES);
        let mut run = encode(page, pages as u32 - 1);
        debug_assert_eq!(run.len(), bytes);
        run.resize(pages * PAGE_BYTES, 0);
        self.out.write_all(&run)?;
        self.next += pages as u64;
        Ok(Run { page, pages: pages as u64 })
    }

    /// No tree is settled before its end, so nothing is ever given back.
    fn free(&mut self, run: Run) {
        debug_assert!(false, "{run:?} is written and given back");
    }
}

/// Makes a file. See the module.
#[derive(Debug)]
pub struct Writer<W> {
    tail: Tail<W>,
    /// The buckets that are done.
    root: Tree,
    open: Option<(Vec<u8>, Tree)>,
}

impl<W: Write> Writer<W> {
    /// `out` takes the pages behind the meta pages, in order.
    pub fn new(out: W) -> Self {
        Self::at(out, FIRST_PAGE)
    }

    /// `out` takes pages from number `first` on: others of the file are in use or free.
    pub fn at(out: W, first: u64) -> Self {
        Writer { tail: Tail { out, next: first }, root: Tree::new(FILL), open: None }
    }

    /// What the pages go to.
    pub fn out(&mut self) -> &mut W {
        &mut self.tail.out
    }

    /// Ends the bucket at hand and begins the next, whose name must be greater.
    pub fn bucket(&mut self, name: &[u8]) -> Result<()> {
        self.end_bucket()?;
        self.root.check(name, name, &[])?;
        self.open = Some((name.to_vec(), Tree::new(FILL)));
        Ok(())
    }

    /// Adds a row to the bucket at hand; its key must be greater than the one before.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some((name, tree)) = &mut self.open else {
            return Err(refused(b"", "no bucket has begun"));
        };
        tree.check(name, key, value)?;
        Ok(tree.row(&mut self.tail, false, key, value)?)
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<(Plan, W)> {
        self.end_bucket()?;
        let freelist = self.tail.put(HEADER_BYTES, |id, overflow| {
            Header { id, kind: Kind::Freelist, count: 0, overflow }.bytes().to_vec()
        })?;
        let root = self.root.settle(&mut self.tail)?;
        Ok((Plan { root, freelist: freelist.page, pages: self.tail.next }, self.tail.out))
    }

    fn end_bucket(&mut self) -> Result<()> {
        let Some((name, mut tree)) = self.open.take() else { return Ok(()) };
        let value = tree.bucket_value(&mut self.tail)?;
        Ok(self.root.row(&mut self.tail, true, &name, &value)?)
    }
}
