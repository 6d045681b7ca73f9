//! A bucket's tree in the making, from the lowest key to the highest: one page of each level is
//! open, all others are written.
//!
//! A page is written as soon as it is full and leaves its first key and its number with the page
//! above. What is open can be *settled*: written as it stands, so that there is a whole tree, and
//! filled further afterwards; then the pages it was written to are given back. A tree of a file can
//! be resumed from its right edge.

use super::WriteError;
use super::page::{
    ELEMENT_BYTES, ELEMENTS_MAX, HEADER_BYTES, Header, KEY_BYTES_MAX, Kind, Node, VALUE_BYTES_MAX,
    branch_element, bucket_value, leaf_element,
};
use std::io;

/// Children that a branch gets however large they are. bbolt panics on a branch with a single child
/// when it removes that child's rows (bbolt `node.go` minKeysPerPage, rebalance).
const CHILDREN_MIN: usize = 2;
/// A bucket up to this part of a page lives in its row (bbolt `bucket.go` maxInlineBucketSize).
const INLINE_PART: usize = 4;

/// Pages in a row that are written and freed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first.
    pub page: u64,
    /// How many, at least 1.
    pub pages: u64,
}

/// Where a tree's pages go.
pub(super) trait Pages {
    /// Bytes of a page.
    fn page_bytes(&self) -> usize;
    /// Writes a page of so many bytes and those that belong to it, made by `encode` from its number
    /// and how many follow.
    fn put(&mut self, bytes: usize, encode: impl FnOnce(u64, u32) -> Vec<u8>) -> io::Result<Run>;
    /// Takes pages back whose rows stand elsewhere from now on.
    fn free(&mut self, run: Run);
}

/// When a page is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    /// Bytes of a leaf that no further row may exceed.
    pub leaf_bytes: usize,
    /// Rows that a leaf gets however large they are, at least 1.
    pub leaf_rows_min: usize,
    /// Bytes of a branch that no further child may exceed.
    pub branch_bytes: usize,
}

/// A leaf page in the making.
#[derive(Debug, Default)]
struct Leaf {
    /// Whether it is a bucket, and the lengths of key and value.
    rows: Vec<(bool, u32, u32)>,
    data: Vec<u8>,
    /// Where its rows were written, if they were.
    stored: Option<Run>,
    /// Whether there are more rows than those.
    changed: bool,
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

    fn push(&mut self, bucket: bool, key: &[u8], value: &[u8]) {
        self.rows.push((bucket, key.len() as u32, value.len() as u32));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn has_room(&self, key: usize, value: usize, fill: &Fill) -> bool {
        let more = ELEMENT_BYTES + key + value;
        self.rows.len() < fill.leaf_rows_min
            || (self.bytes() + more <= fill.leaf_bytes && self.rows.len() < ELEMENTS_MAX)
    }

    /// The page without padding; the elements stand before the data.
    fn encode(&self, id: u64, overflow: u32) -> Vec<u8> {
        let count = self.rows.len() as u16;
        let mut page = Vec::with_capacity(self.bytes());
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

/// First keys and numbers of the pages below a branch.
pub(super) type Children = Vec<(Vec<u8>, u64)>;

/// A branch page in the making, without the open page below it.
#[derive(Debug, Default)]
struct Branch {
    children: Children,
    /// Where it was written, if it was.
    stored: Option<Run>,
}

impl Branch {
    fn bytes(children: &[(Vec<u8>, u64)]) -> usize {
        let elements = children.iter().map(|(key, _)| ELEMENT_BYTES + key.len());
        HEADER_BYTES + elements.sum::<usize>()
    }

    /// Children that make a full page and leave enough for the page behind it.
    fn full(&self, fill: &Fill) -> Option<usize> {
        let count = self.children.len().checked_sub(CHILDREN_MIN)?;
        let full = Branch::bytes(&self.children[..count + 1]) > fill.branch_bytes;
        (count >= CHILDREN_MIN && (full || count == ELEMENTS_MAX)).then_some(count)
    }

    fn put(children: &[(Vec<u8>, u64)], pages: &mut impl Pages) -> io::Result<Run> {
        pages.put(Branch::bytes(children), |id, overflow| {
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
        })
    }
}

/// A bucket in the making. See the module.
#[derive(Debug)]
pub(super) struct Tree {
    fill: Fill,
    leaf: Leaf,
    /// From the level above the leaves up.
    branches: Vec<Branch>,
    /// The newest key of the leaves that are closed.
    last: Option<Vec<u8>>,
}

impl Tree {
    pub(super) fn new(fill: Fill) -> Tree {
        Tree { fill, leaf: Leaf::default(), branches: Vec::new(), last: None }
    }

    /// A tree that is in a file: the branches on its right edge from the root down, each without
    /// its last child, and its last leaf, which has no page if the bucket is inline.
    pub(super) fn resume(
        fill: Fill,
        branches: Vec<(Children, Run)>,
        leaf: &Node,
        stored: Option<Run>,
    ) -> Tree {
        let mut tree = Tree::new(fill);
        for i in 0..leaf.count() {
            tree.leaf.push(leaf.is_bucket(i), &leaf.key(i), &leaf.value(i));
        }
        tree.leaf.stored = stored;
        let branch = |(children, run)| Branch { children, stored: Some(run) };
        tree.branches = branches.into_iter().rev().map(branch).collect();
        tree
    }

    /// Adds a row behind all others; see [`Tree::is_next`].
    pub(super) fn row(
        &mut self,
        pages: &mut impl Pages,
        bucket: bool,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<()> {
        if !self.leaf.has_room(key.len(), value.len(), &self.fill) {
            self.close_leaf(pages)?;
        }
        self.leaf.push(bucket, key, value);
        self.leaf.changed = true;
        Ok(())
    }

    /// Whether `key` is behind all rows so far.
    pub(super) fn is_next(&self, key: &[u8]) -> bool {
        self.last_key().is_none_or(|last| last < key)
    }

    /// The highest key.
    pub(super) fn last_key(&self) -> Option<&[u8]> {
        self.leaf.last_key().or(self.last.as_deref())
    }

    /// Writes what is open and changed, so that there is a whole tree; its first page.
    pub(super) fn settle(&mut self, pages: &mut impl Pages) -> io::Result<u64> {
        let mut id = self.store_leaf(pages)?;
        let mut key = self.leaf.first_key().to_vec();
        for branch in &mut self.branches {
            branch.children.push((key, id));
            if let Some(run) = branch.stored.take() {
                pages.free(run);
            }
            let run = Branch::put(&branch.children, pages)?;
            branch.stored = Some(run);
            let open = branch.children.pop().unwrap_or_default();
            key = branch.children.first().map_or(open.0, |(first, _)| first.clone());
            id = run.page;
        }
        Ok(id)
    }

    /// The value of the bucket's row: settled, or inline if it is small.
    pub(super) fn bucket_value(&mut self, pages: &mut impl Pages) -> io::Result<Vec<u8>> {
        let inline_bytes_max = pages.page_bytes() / INLINE_PART;
        let small = self.branches.is_empty() && self.leaf.bytes() <= inline_bytes_max;
        if small && self.leaf.stored.is_none() {
            return Ok(bucket_value(0, &self.leaf.encode(0, 0)));
        }
        Ok(bucket_value(self.settle(pages)?, &[]))
    }

    fn store_leaf(&mut self, pages: &mut impl Pages) -> io::Result<u64> {
        if let Some(run) = self.leaf.stored {
            if !self.leaf.changed {
                return Ok(run.page);
            }
            pages.free(run);
        }
        let leaf = &self.leaf;
        let run = pages.put(leaf.bytes(), |id, overflow| leaf.encode(id, overflow))?;
        self.leaf.stored = Some(run);
        self.leaf.changed = false;
        Ok(run.page)
    }

    fn close_leaf(&mut self, pages: &mut impl Pages) -> io::Result<()> {
        let id = self.store_leaf(pages)?;
        let first = self.leaf.first_key().to_vec();
        self.last = self.leaf.last_key().map(<[u8]>::to_vec);
        self.leaf.rows.clear();
        self.leaf.data.clear();
        self.leaf.stored = None;
        self.child(pages, first, id)
    }

    /// Enters a page that is closed with the level above it.
    fn child(&mut self, pages: &mut impl Pages, mut key: Vec<u8>, mut id: u64) -> io::Result<()> {
        for level in 0.. {
            if level == self.branches.len() {
                self.branches.push(Branch::default());
            }
            let branch = &mut self.branches[level];
            branch.children.push((key, id));
            let Some(count) = branch.full(&self.fill) else { break };
            let rest = branch.children.split_off(count);
            let full = std::mem::replace(&mut branch.children, rest);
            if let Some(run) = branch.stored.take() {
                pages.free(run);
            }
            id = Branch::put(&full, pages)?.page;
            key = full.into_iter().next().unwrap_or_default().0;
        }
        Ok(())
    }

    /// Whether the format has a place for this row behind all others.
    pub(super) fn check(&self, bucket: &[u8], key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        if key.is_empty() {
            return Err(refused(bucket, "a key is empty"));
        }
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            let (key, value) = (key.len(), value.len());
            return Err(refused(bucket, &format!("a row of {key} and {value} bytes is too large")));
        }
        if !self.is_next(key) {
            return Err(refused(bucket, "a key is not behind the one before it"));
        }
        Ok(())
    }
}

pub(super) fn refused(bucket: &[u8], reason: &str) -> WriteError {
    let bucket = String::from_utf8_lossy(bucket).into_owned();
    WriteError::Row { bucket, reason: reason.to_owned() }
}
