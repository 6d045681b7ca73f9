//! An image of the store as one bbolt file, made while it is read: Maintenance.Snapshot, and
//! whatever else wants etcd's `db` of this moment.
//!
//! The first bytes of the file say how many pages it has and where its root is, so there are two
//! passes over the same view: one that writes into nothing and makes the plan, one that writes.
//! Why not a temporary file: see docs/decisions/0006-snapshot-in-two-passes.md.

use super::bbolt::{FIRST_PAGE, Plan, WriteError, Writer};
use super::engine::{Rows, View};
use crate::mvcc::BUCKETS;
use crate::mvcc::backend::BackendError;
use bytes::Bytes;

/// Why an image cannot be made, or not be made to its end.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] BackendError),
    /// A row does not fit into the format.
    #[error(transparent)]
    Row(#[from] WriteError),
    /// Two passes over one view differ: a bug of this program or of the engine.
    #[error("image: {found} pages were made, {planned} were planned")]
    Unplanned {
        /// In the first pass.
        planned: u64,
        /// In the second.
        found: u64,
    },
}

/// One pass over all buckets, a row at a time.
struct Pass<W> {
    view: View,
    /// The next bucket to begin.
    bucket: usize,
    rows: Option<Rows>,
    writer: Writer<W>,
}

impl<W: std::io::Write> Pass<W> {
    fn new(view: View, out: W) -> Pass<W> {
        Self::at(view, out, FIRST_PAGE)
    }

    fn at(view: View, out: W, first: u64) -> Pass<W> {
        Pass { view, bucket: 0, rows: None, writer: Writer::at(out, first) }
    }

    /// Takes a row, or begins a bucket; false at the end.
    fn step(&mut self) -> Result<bool, ImageError> {
        if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
            let (key, value) = row?;
            self.writer.row(&key, &value)?;
            return Ok(true);
        }
        let Some((name, bucket)) = BUCKETS.get(self.bucket) else { return Ok(false) };
        // Every bucket is there, empty or not: etcd's tools end when one is missing.
        self.writer.bucket(name.as_bytes())?;
        self.rows = Some(self.view.rows(*bucket));
        self.bucket += 1;
        Ok(true)
    }
}

/// Writes a view's pages, numbered from `first` on, in one pass. `sink` is handed them in order,
/// some `chunk` bytes at a time.
pub(super) fn write(
    view: View,
    first: u64,
    chunk: usize,
    sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<Plan, ImageError> {
    let refused = |error| ImageError::Row(WriteError::Io(error));
    let mut pass = Pass::at(view, Vec::new(), first);
    while pass.step()? {
        let made = pass.writer.out();
        if made.len() >= chunk {
            sink(made).map_err(refused)?;
            made.clear();
        }
    }
    let (plan, rest) = pass.writer.finish()?;
    sink(&rest).map_err(refused)?;
    Ok(plan)
}

/// The first pass, in slices, so that whoever waits for it can give up between them.
pub struct Sizing {
    pass: Pass<std::io::Sink>,
    txid: u64,
}

/// The second pass.
pub struct Image {
    /// Gone when the last page is written.
    pass: Option<Pass<Vec<u8>>>,
    plan: Plan,
    /// Bytes made and not read: `made[taken..]`.
    made: Vec<u8>,
    taken: usize,
    left: u64,
}

/// How far sizing has come.
pub enum Sized {
    /// There is more to read.
    More(Sizing),
    /// The plan is made.
    Done(Image),
}

impl Sizing {
    /// Begins an image of a view.
    pub fn new(view: View) -> Result<Sizing, ImageError> {
        let txid = view.consistent_index()?;
        Ok(Sizing { pass: Pass::new(view, std::io::sink()), txid })
    }

    /// Looks at `rows` more rows.
    pub fn advance(mut self, rows: usize) -> Result<Sized, ImageError> {
        for _ in 0..rows {
            if !self.pass.step()? {
                return Ok(Sized::Done(self.end()?));
            }
        }
        Ok(Sized::More(self))
    }

    /// Goes on to the end.
    pub fn finish(mut self) -> Result<Image, ImageError> {
        while self.pass.step()? {}
        self.end()
    }

    fn end(self) -> Result<Image, ImageError> {
        let view = self.pass.view;
        let (plan, _) = self.pass.writer.finish()?;
        Ok(Image {
            pass: Some(Pass::new(view, Vec::new())),
            plan,
            made: plan.meta_pages(self.txid),
            taken: 0,
            left: plan.file_bytes(),
        })
    }
}

impl Image {
    /// Bytes of the file that have not been read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next `bytes` bytes of the file; fewer at its end, and then none.
    pub fn read(&mut self, bytes: usize) -> Result<Bytes, ImageError> {
        while self.made.len() - self.taken < bytes && self.make()? {}
        let end = self.made.len().min(self.taken + bytes);
        let read = Bytes::copy_from_slice(&self.made[self.taken..end]);
        self.taken = end;
        self.left -= read.len() as u64;
        Ok(read)
    }

    /// Makes more of the file; false at its end.
    fn make(&mut self) -> Result<bool, ImageError> {
        let Some(pass) = &mut self.pass else { return Ok(false) };
        let more = pass.step()?;
        if more && pass.writer.out().is_empty() {
            return Ok(true);
        }
        self.made.drain(..self.taken);
        self.taken = 0;
        if more {
            self.made.append(pass.writer.out());
            return Ok(true);
        }
        if let Some(pass) = self.pass.take() {
            let (plan, mut rest) = pass.writer.finish()?;
            if plan != self.plan {
                let (planned, found) = (self.plan.pages, plan.pages);
                return Err(ImageError::Unplanned { planned, found });
            }
            self.made.append(&mut rest);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::backend::{Backend, Batch, Bucket};
    use crate::storage::bbolt::{Db, Direction, Item};
    use crate::storage::engine::Engine;
    use crate::storage::wal::Metadata;
    use std::collections::BTreeMap;

    fn engine(dir: &std::path::Path) -> Engine {
        let id = Metadata { node_id: 7, cluster_id: 9 };
        Engine::open(dir, id, Box::new(|reason| panic!("{reason}"))).unwrap().engine
    }

    fn put(engine: &Engine, index: u64, bucket: Bucket, key: &[u8], value: Vec<u8>) {
        let row = (bucket, Bytes::copy_from_slice(key), Some(value.into()));
        let revision = index as i64;
        let ops = vec![row];
        engine.submit(Batch { ops, consistent_index: index, term: 3, revision, size_bytes: 0 });
    }

    type Found = BTreeMap<String, Vec<(Bytes, Bytes)>>;

    fn file(mut image: Image, bytes: usize) -> (Bytes, Found) {
        let total = image.left();
        let mut file = Vec::new();
        loop {
            let part = image.read(bytes).unwrap();
            assert!(part.len() == bytes || image.left() == 0);
            if part.is_empty() {
                break;
            }
            file.extend_from_slice(&part);
            assert_eq!(image.left(), total - file.len() as u64);
        }
        assert_eq!(file.len() as u64, total);
        let file = Bytes::from(file);
        let db = Db::open(file.clone()).unwrap();
        db.check().unwrap();
        let mut found = Found::new();
        for item in db.walk(&db.root(), Direction::Forward) {
            let Item::Bucket(name, bucket) = item.unwrap() else { panic!("a row") };
            let rows = db.walk(&bucket, Direction::Forward).map(|item| match item.unwrap() {
                Item::Row(key, value) => (key, value),
                Item::Bucket(..) => panic!("a bucket"),
            });
            found.insert(String::from_utf8(name.to_vec()).unwrap(), rows.collect());
        }
        (file, found)
    }

    #[test]
    fn an_image_is_of_one_moment() {
        let tmp = tempfile::tempdir().unwrap();
        let engine = engine(tmp.path());
        for n in 1..=3_000u64 {
            put(&engine, n, Bucket::Key, &n.to_be_bytes(), vec![n as u8; 1 + (n % 400) as usize]);
        }
        put(&engine, 3_001, Bucket::Lease, b"lease", vec![1; 30]);
        put(&engine, 3_002, Bucket::Key, &4_000u64.to_be_bytes(), vec![9; 100_000]);
        let view = engine.view().unwrap();
        assert_eq!(view.consistent_index().unwrap(), 3_002);
        let mut sizing = Sizing::new(view.clone()).unwrap();
        // Neither what is changed, nor removed, nor added while the image is made, shows in it.
        let mut image = loop {
            put(&engine, 3_003, Bucket::Key, &1u64.to_be_bytes(), vec![0; 9_000]);
            match sizing.advance(100).unwrap() {
                Sized::More(more) => sizing = more,
                Sized::Done(image) => break image,
            }
        };
        put(&engine, 3_004, Bucket::Auth, b"later", vec![1]);
        let (expected, found) = file(Sizing::new(view).unwrap().finish().unwrap(), 32 * 1024);
        assert_eq!(image.read(10).unwrap(), expected[..10]);
        let (_, same) = file_after(image, expected.slice(..10));
        assert_eq!(found, same);
        assert_eq!(found.len(), 10);
        assert_eq!(found["key"].len(), 3_001);
        assert_eq!(found["key"][0].1, vec![1u8; 2]);
        assert_eq!(found["lease"], [(Bytes::from("lease"), Bytes::from(vec![1; 30]))]);
        assert!(found["auth"].is_empty());
        let index = (Bytes::from("consistent_index"), Bytes::from(3_002u64.to_be_bytes().to_vec()));
        assert_eq!(found["meta"][0], index);
        engine.close().unwrap();
    }

    fn file_after(mut image: Image, begun: Bytes) -> (Bytes, Found) {
        image.left += begun.len() as u64;
        image.taken -= begun.len();
        file(image, 1_000)
    }

    #[test]
    fn an_empty_store_has_all_buckets() {
        let tmp = tempfile::tempdir().unwrap();
        let engine = engine(tmp.path());
        let image = Sizing::new(engine.view().unwrap()).unwrap().finish().unwrap();
        let (bytes, found) = file(image, 4096);
        assert_eq!((bytes.len(), found.len()), (4 * 4096, 10));
        assert!(found.values().all(Vec::is_empty));
    }

    #[test]
    fn a_row_that_bbolt_cannot_hold_is_an_error() {
        let tmp = tempfile::tempdir().unwrap();
        let engine = engine(tmp.path());
        put(&engine, 1, Bucket::AuthUsers, &[b'u'; 40_000], vec![1]);
        let sizing = Sizing::new(engine.view().unwrap()).unwrap();
        let error = sizing.finish().err().unwrap().to_string();
        assert!(error.contains("bucket \"authUsers\": a row of 40000"), "{error}");
    }
}
