//! Writing: a whole file from rows in key order, front to back, in one pass.
//!
//! A page is written as soon as it is full, with the next free number, and leaves its first key and
//! its number with the page above. So each level holds one page, and a branch page comes behind the
//! pages that it names. Only the meta pages know more than what came before them: their number of
//! pages and their root are the [`Plan`] that a pass ends with. Where the file can be written at
//! any place they are written last; where it is a stream, a first pass into nothing makes the plan.

use super::PAGE_BYTES;
use super::page::{
    BUCKET_BYTES, ELEMENT_BYTES, ELEMENTS_MAX, HEADER_BYTES, Header, KEY_BYTES_MAX, Kind, Meta,
    VALUE_BYTES_MAX, branch_element, bucket_value, leaf_element,
};
use std::io::Write;

/// Bytes of a page after which the next begins: etcd fills nine tenths when it defragments
/// (etcd v3.5.17 `server/mvcc/backend/backend.go` defragdb), so that a later change of a row finds
/// room.
const FILL_BYTES: usize = PAGE_BYTES * 9 / 10;
/// Elements that a page gets however large they are. bbolt panics on a branch with a single child
/// when it removes that child's rows (bbolt `node.go` minKeysPerPage, rebalance).
const ELEMENTS_MIN: usize = 2;
/// A bucket up to this size lives in its row (bbolt `bucket.go` maxInlineBucketSize).
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// The first page behind the meta pages.
const FIRST_PAGE: u64 = 2;

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What takes the bytes refused them.
    #[error("bbolt: {0}")]
    Io(#[from] std::io::Error),
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
            let page_bytes = PAGE_BYTES as u32;
            Meta { page_bytes, root: self.root, freelist: None, pages: self.pages, txid }.page(id)
        };
        [page(0), page(1)].concat()
    }
}

/// A leaf page in the making.
#[derive(Debug, Default)]
struct Leaf {
    /// Whether it is a bucket, and the lengths of key and value.
    rows: Vec<(bool, u32, u32)>,
    data: Vec<u8>,
}

impl Leaf {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.rows.len() * ELEMENT_BYTES + self.data.len()
    }

    fn first_key(&self) -> &[u8] {
        let key = self.rows.first().map_or(0, |row| row.1 as usize);
        &self.data[..key]
    }

    /// The last key's place in `data`.
    fn last_key(&self) -> Option<&[u8]> {
        let (_, key, value) = *self.rows.last()?;
        let start = self.data.len() - (key + value) as usize;
        Some(&self.data[start..start + key as usize])
    }

    fn has_room(&self, key: usize, value: usize) -> bool {
        let more = ELEMENT_BYTES + key + value;
        self.rows.len() < ELEMENTS_MIN
            || (self.bytes() + more <= FILL_BYTES && self.rows.len() < ELEMENTS_MAX)
    }

    /// The page without padding; the elements stand before the data.
    fn encode(&self, id: u64, overflow: u32) -> Vec<u8> {
        let count = self.rows.len() as u16;
        let mut page = Vec::with_capacity(self.bytes().next_multiple_of(PAGE_BYTES));
        page.extend_from_slice(&Header { id, kind: Kind::Leaf, count, overflow }.bytes());
        let mut pos = (self.rows.len() * ELEMENT_BYTES) as u32;
        for (bucket, key, value) in &self.rows {
            page.extend_from_slice(&leaf_element(*bucket, pos, *key, *value));
            pos = (pos - ELEMENT_BYTES as u32).wrapping_add(key + value);
        }
        page.extend_from_slice(&self.data);
        page
    }
}

/// A branch page in the making: first keys and numbers of the pages below.
#[derive(Debug, Default)]
struct Branch {
    children: Vec<(Vec<u8>, u64)>,
}

impl Branch {
    fn bytes(children: &[(Vec<u8>, u64)]) -> usize {
        let elements = children.iter().map(|(key, _)| ELEMENT_BYTES + key.len());
        HEADER_BYTES + elements.sum::<usize>()
    }

    /// Children that make a full page and leave enough for the page behind it.
    fn full(&self) -> Option<usize> {
        let count = self.children.len().checked_sub(ELEMENTS_MIN)?;
        let full = Branch::bytes(&self.children[..count + 1]) > FILL_BYTES;
        (count >= ELEMENTS_MIN && (full || count == ELEMENTS_MAX)).then_some(count)
    }

    fn encode(children: &[(Vec<u8>, u64)], id: u64, overflow: u32) -> Vec<u8> {
        let count = children.len() as u16;
        let mut page = Header { id, kind: Kind::Branch, count, overflow }.bytes().to_vec();
        let mut pos = (children.len() * ELEMENT_BYTES) as u32;
        for (key, child) in children {
            page.extend_from_slice(&branch_element(pos, key.len() as u32, *child));
            pos = pos - ELEMENT_BYTES as u32 + key.len() as u32;
        }
        for (key, _) in children {
            page.extend_from_slice(key);
        }
        page
    }
}

/// The end of the file being written.
#[derive(Debug)]
struct Tail<W> {
    out: W,
    next: u64,
}

impl<W: Write> Tail<W> {
    /// Writes a page of so many bytes, made by `encode` from its number and the pages that follow
    /// as part of it.
    fn page(&mut self, bytes: usize, encode: impl FnOnce(u64, u32) -> Vec<u8>) -> Result<u64> {
        let id = self.next;
        let run = bytes.div_ceil(PAGE_BYTES);
        let mut page = encode(id, run as u32 - 1);
        debug_assert_eq!(page.len(), bytes);
        page.resize(run * PAGE_BYTES, 0);
        self.out.write_all(&page)?;
        self.next += run as u64;
        Ok(id)
    }
}

/// A bucket in the making: one page of each level.
#[derive(Debug, Default)]
struct Tree {
    leaf: Leaf,
    /// From the level above the leaves up.
    branches: Vec<Branch>,
    /// The newest row's key.
    last: Option<Vec<u8>>,
}

impl Tree {
    fn row<W: Write>(
        &mut self,
        tail: &mut Tail<W>,
        bucket: bool,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if !self.leaf.has_room(key.len(), value.len()) {
            self.last = self.leaf.last_key().map(<[u8]>::to_vec);
            self.end_leaf(tail)?;
        }
        self.leaf.rows.push((bucket, key.len() as u32, value.len() as u32));
        self.leaf.data.extend_from_slice(key);
        self.leaf.data.extend_from_slice(value);
        Ok(())
    }

    /// Whether `key` is behind all rows so far.
    fn is_next(&self, key: &[u8]) -> bool {
        let last = self.leaf.last_key().or(self.last.as_deref());
        last.is_none_or(|last| last < key)
    }

    fn end_leaf<W: Write>(&mut self, tail: &mut Tail<W>) -> Result<()> {
        let leaf = &self.leaf;
        let id = tail.page(leaf.bytes(), |id, overflow| leaf.encode(id, overflow))?;
        let first = leaf.first_key().to_vec();
        self.leaf.rows.clear();
        self.leaf.data.clear();
        self.child(tail, 0, first, id)
    }

    /// Enters a page that was written with the level above it.
    fn child<W: Write>(
        &mut self,
        tail: &mut Tail<W>,
        mut level: usize,
        mut key: Vec<u8>,
        mut id: u64,
    ) -> Result<()> {
        loop {
            if level == self.branches.len() {
                self.branches.push(Branch::default());
            }
            let branch = &mut self.branches[level];
            branch.children.push((key, id));
            let Some(count) = branch.full() else { return Ok(()) };
            let rest = branch.children.split_off(count);
            let full = std::mem::replace(&mut branch.children, rest);
            id = end_branch(tail, &full)?;
            key = full.into_iter().next().unwrap_or_default().0;
            level += 1;
        }
    }

    /// Writes what is open; the number of the bucket's first page.
    fn end<W: Write>(mut self, tail: &mut Tail<W>) -> Result<u64> {
        if self.branches.is_empty() {
            let leaf = &self.leaf;
            return tail.page(leaf.bytes(), |id, overflow| leaf.encode(id, overflow));
        }
        self.end_leaf(tail)?;
        let mut level = 0;
        loop {
            let children = std::mem::take(&mut self.branches[level].children);
            let id = end_branch(tail, &children)?;
            if level + 1 == self.branches.len() {
                return Ok(id);
            }
            let key = children.into_iter().next().unwrap_or_default().0;
            level += 1;
            self.child(tail, level, key, id)?;
        }
    }
}

fn end_branch<W: Write>(tail: &mut Tail<W>, children: &[(Vec<u8>, u64)]) -> Result<u64> {
    let bytes = Branch::bytes(children);
    tail.page(bytes, |id, overflow| Branch::encode(children, id, overflow))
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
        Writer { tail: Tail { out, next: FIRST_PAGE }, root: Tree::default(), open: None }
    }

    /// What the pages go to.
    pub fn out(&mut self) -> &mut W {
        &mut self.tail.out
    }

    /// Ends the bucket at hand and begins the next, whose name must be greater.
    pub fn bucket(&mut self, name: &[u8]) -> Result<()> {
        self.end_bucket()?;
        check(&self.root, name, name, &[])?;
        self.open = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds a row to the bucket at hand; its key must be greater than the one before.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some((name, tree)) = &mut self.open else {
            return Err(refused(b"", "no bucket has begun"));
        };
        check(tree, name, key, value)?;
        tree.row(&mut self.tail, false, key, value)
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<(Plan, W)> {
        self.end_bucket()?;
        let root = self.root.end(&mut self.tail)?;
        Ok((Plan { root, pages: self.tail.next }, self.tail.out))
    }

    fn end_bucket(&mut self) -> Result<()> {
        let Some((name, tree)) = self.open.take() else { return Ok(()) };
        let value = if tree.branches.is_empty() && tree.leaf.bytes() <= INLINE_BYTES_MAX {
            bucket_value(0, &tree.leaf.encode(0, 0))
        } else {
            bucket_value(tree.end(&mut self.tail)?, &[])
        };
        debug_assert!(value.len() >= BUCKET_BYTES);
        self.root.row(&mut self.tail, true, &name, &value)
    }
}

fn refused(bucket: &[u8], reason: &str) -> WriteError {
    let bucket = String::from_utf8_lossy(bucket).into_owned();
    WriteError::Row { bucket, reason: reason.to_owned() }
}

fn check(tree: &Tree, bucket: &[u8], key: &[u8], value: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(refused(bucket, "a key is empty"));
    }
    if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
        let (key, value) = (key.len(), value.len());
        return Err(refused(bucket, &format!("a row of {key} and {value} bytes is too large")));
    }
    if !tree.is_next(key) {
        return Err(refused(bucket, "a key is not behind the one before it"));
    }
    Ok(())
}
