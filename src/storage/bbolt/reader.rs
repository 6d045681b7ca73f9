//! Reading: the newest valid meta page, and buckets row by row in either direction.

use super::page::{Header, Kind, Meta, Node, PAGE_BYTES_MAX, PAGE_BYTES_MIN, parse_bucket};
use super::{Error, Result};
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Levels that a tree may have. Each page of a branch has two children or more in what bbolt
/// writes, so this is out of reach of any file.
pub(super) const LEVELS_MAX: usize = 32;
/// Bytes of one page with the pages that belong to it: far more than the largest rows that etcd
/// takes, and the most memory that one page may ask for.
const RUN_BYTES_MAX: u64 = 512 << 20;
/// Enough of a page for its header or a whole meta page.
const META_READ_BYTES: usize = 80;

/// Where a file's bytes come from.
pub trait Source {
    /// Fills `buf` from `offset`; an end before that is an error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
    /// Bytes there are.
    fn len(&self) -> std::io::Result<u64>;
    /// Whether there are none.
    fn is_empty(&self) -> std::io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

impl Source for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl<S: Source> Source for &S {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        (*self).read_exact_at(buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        (*self).len()
    }
}

impl<S: Source> Source for Arc<S> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.as_ref().read_exact_at(buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.as_ref().len()
    }
}

impl Source for Bytes {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buf.len());
        let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        buf.copy_from_slice(self.get(start..end).ok_or_else(short)?);
        Ok(())
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(Bytes::len(self) as u64)
    }
}

/// Which way a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the lowest key up.
    Forward,
    /// From the highest key down.
    Backward,
}

/// A bucket, ready to be walked.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The page it begins in, or the one whose row holds it.
    pub(super) page: u64,
    /// Its one page if it is inline.
    pub(super) inline: Option<Node>,
}

/// A row of a bucket. Its bytes keep the page alive that they lie in.
#[derive(Clone, Debug)]
pub enum Item {
    /// A key and its value.
    Row(Bytes, Bytes),
    /// A bucket in the bucket.
    Bucket(Bytes, Bucket),
}

/// The pages that a walk has reached, one bit each.
#[derive(Debug, Default)]
pub(super) struct Seen {
    words: Vec<u64>,
    pages: u64,
}

impl Seen {
    pub(super) fn new(pages: u64) -> Seen {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or_default();
        Seen { words: vec![0; words], pages }
    }

    /// False if the page was marked before or does not exist.
    pub(super) fn mark(&mut self, page: u64) -> bool {
        let Some(word) = usize::try_from(page / 64).ok().and_then(|at| self.words.get_mut(at))
        else {
            return false;
        };
        let bit = 1 << (page % 64);
        let fresh = page < self.pages && *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Whether the page was marked.
    pub(super) fn has(&self, page: u64) -> bool {
        let at = usize::try_from(page / 64).ok();
        at.and_then(|at| self.words.get(at)).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Pages never marked, and the first of them.
    pub(super) fn unmarked(&self) -> (u64, Option<u64>) {
        let marked: u64 = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
        (self.pages - marked.min(self.pages), (0..self.pages).find(|page| !self.has(*page)))
    }
}

/// A bbolt file. See the module.
#[derive(Debug)]
pub struct Db<S> {
    source: S,
    meta: Meta,
    /// Pages that are both below the meta page's mark and in the file.
    pages: u64,
}

fn malformed<T>(page: u64, reason: impl Into<String>) -> Result<T> {
    Err(Error::Malformed { page, reason: reason.into() })
}

impl<S: Source> Db<S> {
    /// Picks the newest valid meta page.
    pub fn open(source: S) -> Result<Self> {
        let len = source.len().map_err(|source| Error::Io { page: 0, source })?;
        let (_, meta) = Metas::read(&source, len)?.newest()?;
        Ok(Db::at(source, meta, len))
    }

    /// The state that a meta page names, in a file of so many bytes.
    pub(super) fn at(source: S, meta: Meta, len: u64) -> Self {
        let pages = meta.pages.min(len / u64::from(meta.page_bytes));
        Db { source, meta, pages }
    }

    /// The state that is read.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The bucket that holds all others.
    pub fn root(&self) -> Bucket {
        Bucket { page: self.meta.root, inline: None }
    }

    /// Goes through a bucket's rows in the order of their keys. Ends after the first error.
    pub fn walk(&self, bucket: &Bucket, direction: Direction) -> Walk<'_, S> {
        self.walk_seeing(bucket, direction, Seen::new(self.pages))
    }

    pub(super) fn walk_seeing(
        &self,
        bucket: &Bucket,
        direction: Direction,
        seen: Seen,
    ) -> Walk<'_, S> {
        let start = Some(bucket.clone());
        Walk { db: self, direction, start, frames: Vec::new(), seen, failed: false }
    }

    /// The bucket of this name in the root bucket, found on the way from the root down.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>> {
        for item in self.walk(&self.root(), Direction::Forward) {
            match item? {
                Item::Bucket(key, bucket) if key == name => return Ok(Some(bucket)),
                Item::Row(key, _) | Item::Bucket(key, _) if key[..] > *name => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Pages that can be reached.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Reads a page with those that belong to it, and marks them.
    pub(super) fn run(
        &self,
        page: u64,
        kinds: &[Kind],
        seen: &mut Seen,
    ) -> Result<(Header, Bytes)> {
        if page >= self.meta.pages {
            return malformed(page, format!("is not below the mark, page {}", self.meta.pages));
        }
        if page >= self.pages {
            return malformed(page, format!("the file ends after page {}", self.pages));
        }
        let size = u64::from(self.meta.page_bytes);
        let io = |source| Error::Io { page, source };
        let mut bytes = vec![0; self.meta.page_bytes as usize];
        self.source.read_exact_at(&mut bytes, page * size).map_err(io)?;
        let header = Header::parse(&bytes).map_err(|reason| Error::Malformed { page, reason })?;
        if header.id != page {
            return malformed(page, format!("says that it is page {}", header.id));
        }
        if !kinds.contains(&header.kind) {
            return malformed(page, format!("is a {:?} page where none belongs", header.kind));
        }
        let run = u64::from(header.overflow) + 1;
        if page + run > self.pages {
            return malformed(page, format!("goes on for {run} pages, beyond the end"));
        }
        if run * size > RUN_BYTES_MAX {
            return malformed(page, format!("goes on for {run} pages, too many for one"));
        }
        for part in page..page + run {
            if !seen.mark(part) {
                return malformed(page, format!("reaches page {part}, which was reached before"));
            }
        }
        let Ok(whole) = usize::try_from(run * size) else {
            return malformed(page, "is too large for this machine");
        };
        if run > 1 {
            let read = bytes.len();
            bytes.resize(whole, 0);
            self.source.read_exact_at(&mut bytes[read..], (page + 1) * size).map_err(io)?;
        }
        Ok((header, Bytes::from(bytes)))
    }
}

/// Both meta pages, or what is wrong with them.
pub(super) struct Metas([std::result::Result<Meta, String>; 2]);

impl Metas {
    pub(super) fn read<S: Source>(source: &S, len: u64) -> Result<Metas> {
        let first = meta_at(source, len, 0, 0)?;
        let second = match &first {
            Ok(meta) => {
                let at = u64::from(meta.page_bytes);
                let same_size = |second: Meta| match second.page_bytes == meta.page_bytes {
                    true => Ok(second),
                    false => Err("is of another page size than page 0".to_owned()),
                };
                meta_at(source, len, 1, at)?.and_then(same_size)
            }
            Err(_) => second_meta(source, len)?,
        };
        Ok(Metas([first, second]))
    }

    /// The page of the newest valid one, and what it says.
    pub(super) fn newest(&self) -> Result<(u64, Meta)> {
        match &self.0 {
            [Ok(first), Ok(second)] if second.txid > first.txid => Ok((1, *second)),
            [Ok(meta), _] => Ok((0, *meta)),
            [Err(_), Ok(meta)] => Ok((1, *meta)),
            [Err(first), Err(second)] => {
                Err(Error::NoMeta { first: first.clone(), second: second.clone() })
            }
        }
    }

    /// What the page says, if it is valid.
    pub(super) fn get(&self, page: u64) -> Option<&Meta> {
        self.0.get(usize::try_from(page).ok()?)?.as_ref().ok()
    }
}

fn meta_at<S: Source>(
    source: &S,
    len: u64,
    page: u64,
    offset: u64,
) -> Result<std::result::Result<Meta, String>> {
    let mut bytes = [0; META_READ_BYTES];
    if offset + META_READ_BYTES as u64 > len {
        return Ok(Err("the file ends before it".to_owned()));
    }
    source.read_exact_at(&mut bytes, offset).map_err(|source| Error::Io { page, source })?;
    Ok(Meta::parse(&bytes))
}

/// Page 1 when page 0 does not tell where it is.
fn second_meta<S: Source>(source: &S, len: u64) -> Result<std::result::Result<Meta, String>> {
    let mut size = PAGE_BYTES_MIN;
    while size <= PAGE_BYTES_MAX {
        if let Ok(meta) = meta_at(source, len, 1, size as u64)?
            && meta.page_bytes as usize == size
        {
            return Ok(Ok(meta));
        }
        size *= 2;
    }
    Ok(Err("is at none of the places where it could be".to_owned()))
}

/// A page on the way from a bucket's first page to the row at hand.
#[derive(Debug)]
struct Frame {
    page: u64,
    node: Node,
    /// Elements that are done, counted in the direction of the walk.
    done: usize,
    /// Keys of the page and below it are less than this.
    high: Option<Bytes>,
}

impl Frame {
    /// `low` is the key by which the branch above names the page, `high` the next one there.
    fn new(page: u64, node: Node, low: Option<Bytes>, high: Option<Bytes>) -> Result<Frame> {
        // Keys ascend within the page, so its ends are enough.
        if let Some(last) = node.count().checked_sub(1) {
            if low.as_ref().is_some_and(|low| node.key(0) < *low) {
                return malformed(page, "begins before the key of its branch");
            }
            if high.as_ref().is_some_and(|high| node.key(last) >= *high) {
                return malformed(page, "goes beyond the next key of its branch");
            }
        }
        Ok(Frame { page, node, done: 0, high })
    }
}

/// Rows in order. See [`Db::walk`].
#[derive(Debug)]
pub struct Walk<'a, S> {
    db: &'a Db<S>,
    direction: Direction,
    /// Where to begin, until it has begun.
    start: Option<Bucket>,
    frames: Vec<Frame>,
    seen: Seen,
    failed: bool,
}

impl<S: Source> Walk<'_, S> {
    /// The pages reached.
    pub(super) fn into_seen(self) -> Seen {
        self.seen
    }

    pub(super) fn seen_mut(&mut self) -> &mut Seen {
        &mut self.seen
    }

    fn load(&mut self, page: u64, low: Option<Bytes>, high: Option<Bytes>) -> Result<()> {
        if self.frames.len() >= LEVELS_MAX {
            return malformed(page, format!("lies below {LEVELS_MAX} levels of branches"));
        }
        let kinds = [Kind::Branch, Kind::Leaf];
        let (header, bytes) = self.db.run(page, &kinds, &mut self.seen)?;
        let node =
            Node::parse(bytes, &header).map_err(|reason| Error::Malformed { page, reason })?;
        self.frames.push(Frame::new(page, node, low, high)?);
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        if let Some(start) = self.start.take() {
            match start.inline {
                Some(node) => self.frames.push(Frame::new(start.page, node, None, None)?),
                None => self.load(start.page, None, None)?,
            }
        }
        while let Some(frame) = self.frames.last_mut() {
            let count = frame.node.count();
            if frame.done == count {
                self.frames.pop();
                continue;
            }
            let at = match self.direction {
                Direction::Forward => frame.done,
                Direction::Backward => count - 1 - frame.done,
            };
            frame.done += 1;
            let key = frame.node.key(at);
            if frame.node.is_leaf() {
                let value = frame.node.value(at);
                if !frame.node.is_bucket(at) {
                    return Ok(Some(Item::Row(key, value)));
                }
                let page = frame.page;
                let (root, inline) =
                    parse_bucket(&value).map_err(|reason| Error::Malformed { page, reason })?;
                let page = if inline.is_some() { page } else { root };
                return Ok(Some(Item::Bucket(key, Bucket { page, inline })));
            }
            let high = match at + 1 < count {
                true => Some(frame.node.key(at + 1)),
                false => frame.high.clone(),
            };
            let child = frame.node.child(at);
            self.load(child, Some(key), high)?;
        }
        Ok(None)
    }
}

impl<S: Source> Iterator for Walk<'_, S> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance();
        self.failed = item.is_err();
        item.transpose()
    }
}
