//! What a growth must know of the file, read from it.

use super::super::Error;
use super::super::page::{Kind, Meta, Node, parse_bucket, parse_freelist};
use super::super::reader::{Db, LEVELS_MAX, Metas, Seen, Source};
use super::super::tree::{Children, Pages, Run, Tree};
use super::runs::Runs;
use super::space::Space;
use super::{Disk, GrowError, Grower, Result, RootRow, growing_fill};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;

/// Bytes of the root bucket's rows: etcd has ten, each at most a quarter of a page and a little.
const ROOT_BYTES_MAX: usize = 1 << 20;

fn unfit<T>(reason: impl Into<String>) -> Result<T> {
    Err(GrowError::Unfit(reason.into()))
}

/// See [`Grower::open`].
pub(super) fn open<D: Disk>(disk: D, name: &[u8]) -> Result<Grower<D>> {
    let len = disk.len()?;
    let metas = Metas::read(&disk, len)?;
    let (slot, meta) = metas.newest()?;
    let older = metas.get(1 - slot);
    let bytes = meta.pages.checked_mul(u64::from(meta.page_bytes));
    if bytes.is_none_or(|bytes| bytes > len) {
        return unfit(format!("it has {len} bytes, too few for its {} pages", meta.pages));
    }
    // Pages from `meta.pages` on are written without asking further. An older state some of whose
    // pages the file has no more is none.
    let is_whole = |pages: u64| pages.saturating_mul(u64::from(meta.page_bytes)) <= len;
    if older.is_some_and(|older| older.pages > meta.pages && is_whole(older.pages)) {
        return unfit("its older meta page has more pages than its newer");
    }
    let txid = meta.txid.max(older.map_or(0, |older| older.txid));
    if txid > u64::MAX - 2 {
        return unfit("there is no greater transaction");
    }
    let db = Db::at(&disk, meta, len);
    let (root, root_runs) = read_root(&db)?;
    let tree = match root.get(name) {
        Some(row) if row.bucket => resume(&db, &row.value)?,
        Some(_) => return unfit("a row stands where the growing bucket belongs"),
        None => Tree::new(growing_fill(meta.page_bytes as usize)),
    };
    let (freelist, free) = read_free(&db)?;
    let name = name.to_vec();
    let space = Space::new(disk, &meta, free);
    Ok(Grower { space, meta, slot, txid, name, tree, root, root_runs, freelist })
}

fn malformed(page: u64) -> impl Fn(String) -> Error {
    move |reason| Error::Malformed { page, reason }
}

type Root = (BTreeMap<Vec<u8>, RootRow>, Vec<Run>);

fn read_root<S: Source>(db: &Db<S>) -> Result<Root> {
    let (mut root, mut runs, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
    visit(db, db.meta().root, |run, node| {
        runs.push(run);
        for i in (0..node.count()).filter(|_| node.is_leaf()) {
            bytes += node.key(i).len() + node.value(i).len();
            let row = RootRow { bucket: node.is_bucket(i), value: node.value(i).to_vec() };
            root.insert(node.key(i).to_vec(), row);
        }
        match bytes > ROOT_BYTES_MAX {
            true => unfit("its root bucket is too large"),
            false => Ok(()),
        }
    })?;
    Ok((root, runs))
}

/// Goes through the pages of a tree, in no particular order.
fn visit<S: Source>(
    db: &Db<S>,
    root: u64,
    mut each: impl FnMut(Run, &Node) -> Result<()>,
) -> Result<()> {
    let mut seen = Seen::new(db.pages());
    let mut pages = vec![root];
    while let Some(page) = pages.pop() {
        let (run, node) = read(db, page, &mut seen)?;
        pages.extend((0..node.count()).filter(|_| !node.is_leaf()).map(|i| node.child(i)));
        each(run, &node)?;
    }
    Ok(())
}

fn read<S: Source>(db: &Db<S>, page: u64, seen: &mut Seen) -> Result<(Run, Node)> {
    let (header, bytes) = db.run(page, &[Kind::Branch, Kind::Leaf], seen)?;
    let node = Node::parse(bytes, &header).map_err(malformed(page))?;
    Ok((Run { page, pages: u64::from(header.overflow) + 1 }, node))
}

/// The right edge of a bucket.
fn resume<S: Source>(db: &Db<S>, value: &[u8]) -> Result<Tree> {
    let fill = growing_fill(db.meta().page_bytes as usize);
    let value = Bytes::copy_from_slice(value);
    let (root, inline) = parse_bucket(&value).map_err(malformed(db.meta().root))?;
    if let Some(leaf) = inline {
        return Ok(Tree::resume(fill, Vec::new(), &leaf, None));
    }
    let mut seen = Seen::new(db.pages());
    let mut branches: Vec<(Children, Run)> = Vec::new();
    let (mut page, mut low) = (root, Bytes::new());
    loop {
        let (run, node) = read(db, page, &mut seen)?;
        let Some(last) = node.count().checked_sub(1) else {
            // bbolt removes such a page, but for the only one.
            return match branches.is_empty() {
                true => Ok(Tree::resume(fill, branches, &node, Some(run))),
                false => unfit("the last page of its growing bucket is empty"),
            };
        };
        if node.key(0) < low {
            return Err(malformed(page)("begins before the key of its branch".to_owned()).into());
        }
        if node.is_leaf() {
            return Ok(Tree::resume(fill, branches, &node, Some(run)));
        }
        if branches.len() == LEVELS_MAX {
            return Err(malformed(page)(format!("lies below {LEVELS_MAX} branches")).into());
        }
        let children = (0..last).map(|i| (node.key(i).to_vec(), node.child(i))).collect();
        branches.push((children, run));
        (page, low) = (node.child(last), node.key(last));
    }
}

/// The free list's pages, and those that are free.
fn read_free<S: Source>(db: &Db<S>) -> Result<(Option<Run>, Runs)> {
    let mut free = Runs::default();
    let Some(page) = db.meta().freelist else {
        let (_, used) = db.reach()?;
        for page in (0..db.pages()).filter(|page| !used.has(*page)) {
            free.insert(Run { page, pages: 1 });
        }
        return Ok((None, free));
    };
    let mut own = Seen::new(db.pages());
    let (header, bytes) = db.run(page, &[Kind::Freelist], &mut own)?;
    for listed in parse_freelist(&bytes, &header).map_err(malformed(page))? {
        let outside = listed < 2 || listed >= db.pages() || own.has(listed);
        if outside || !free.insert(Run { page: listed, pages: 1 }) {
            let reason = format!("lists page {listed}, which is not free");
            return Err(malformed(page)(reason).into());
        }
    }
    Ok((Some(Run { page, pages: u64::from(header.overflow) + 1 }), free))
}

/// Gives back the pages of a bucket whose row has this value.
pub(super) fn free_bucket<D: Disk>(
    space: &mut Space<D>,
    meta: &Meta,
    value: Vec<u8>,
) -> Result<()> {
    let (root, inline) = parse_bucket(&Bytes::from(value)).map_err(malformed(meta.root))?;
    if inline.is_some() {
        return Ok(());
    }
    let mut runs = Vec::new();
    let disk = space.disk();
    visit(&Db::at(disk, *meta, disk.len()?), root, |run, node| {
        runs.push(run);
        match (0..node.count()).any(|i| node.is_leaf() && node.is_bucket(i)) {
            true => unfit("a bucket that is to be replaced has buckets in it"),
            false => Ok(()),
        }
    })?;
    for run in runs {
        space.free(run);
    }
    Ok(())
}

/// Pages that are remembered, to be given back by the next growth.
pub(super) struct Collect<'a, D> {
    pub space: &'a mut Space<D>,
    pub runs: Vec<Run>,
}

impl<D: Disk> Pages for Collect<'_, D> {
    fn page_bytes(&self) -> usize {
        self.space.page_bytes()
    }

    fn put(&mut self, bytes: usize, encode: impl FnOnce(u64, u32) -> Vec<u8>) -> io::Result<Run> {
        let run = self.space.put(bytes, encode)?;
        self.runs.push(run);
        Ok(run)
    }

    fn free(&mut self, run: Run) {
        self.space.free(run);
    }
}
