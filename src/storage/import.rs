//! Import: an engine filled from etcd's database file.

use super::bbolt::{self, Db, Direction, Item};
use super::engine::Engine;
use super::fingerprint;
use crate::base::clock::{Clock, SystemClock};
use crate::mvcc::BUCKETS;
use crate::mvcc::backend::{Backend, BackendError, Batch, Bucket, Op};
use bytes::Bytes;
use std::fs::File;
use std::time::{Duration, Instant};

/// Bytes of rows that go to the engine at a time.
const BATCH_BYTES: usize = 1024 * 1024;
/// Rows after which it looks whether to say so.
const TELL_ROWS: u64 = 1024;
/// How often the log says how far an import has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Row of the raft index that a file has reached.
const CONSISTENT_INDEX: &[u8] = b"consistent_index";

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is not what bbolt writes.
    #[error(transparent)]
    File(#[from] bbolt::Error),
    /// Its state cannot be told.
    #[error(transparent)]
    Fingerprint(#[from] fingerprint::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] BackendError),
    /// bbolt wrote it, but not for etcd.
    #[error("import: {0}")]
    NotEtcd(String),
}

/// Checks the file as a whole, then copies every row of etcd's buckets into the engine, which must
/// be empty, and leaves the file's fingerprint and its position in the log there with the last of
/// them. Keys go straight to the engine's tables. Memory is bounded by a table's index and by the
/// engine's overlay.
pub fn import(file: &File, engine: &Engine) -> Result<(), ImportError> {
    let begun = SystemClock.now();
    let origin = fingerprint::whole(file)?;
    let db = Db::open(file)?;
    let bytes = u64::from(db.meta().page_bytes) * db.meta().pages;
    tracing::info!(bytes, "importing etcd's database: checking it");
    let totals = db.check()?;
    let mut import = Import {
        engine,
        total: totals.rows,
        rows: 0,
        pending: Batch::default(),
        pending_bytes: 0,
        position: Batch::default(),
        told: begun,
    };
    import.keys(&db)?;
    for (name, bucket) in BUCKETS.into_iter().filter(|(_, bucket)| *bucket != Bucket::Key) {
        match db.bucket(name.as_bytes())? {
            Some(found) => {
                for item in db.walk(&found, Direction::Forward) {
                    let Item::Row(key, value) = item? else {
                        let reason = format!("bucket {name} holds a bucket");
                        return Err(ImportError::NotEtcd(reason));
                    };
                    import.row(bucket, key, value)?;
                }
            }
            None if bucket == Bucket::Meta => {
                return Err(ImportError::NotEtcd(format!("there is no bucket {name}")));
            }
            None => {}
        }
    }
    let (rows, index) = (import.rows, import.position.consistent_index);
    import.finish(origin)?;
    tracing::info!(
        rows,
        "consistent-index" = index,
        took = ?SystemClock.now().duration_since(begun),
        "imported etcd's database"
    );
    Ok(())
}

/// Checks the file as a whole, as an import does: the raft index that it has reached.
pub fn check(file: &File) -> Result<u64, ImportError> {
    let db = Db::open(file)?;
    db.check()?;
    for name in ["key", "meta"] {
        if db.bucket(name.as_bytes())?.is_none() {
            return Err(ImportError::NotEtcd(format!("there is no bucket {name}")));
        }
    }
    consistent_index(file)
}

/// The raft index that a file has reached: what its row says, 0 without one.
pub fn consistent_index(file: &File) -> Result<u64, ImportError> {
    let db = Db::open(file)?;
    let Some(meta) = db.bucket(b"meta")? else { return Ok(0) };
    for item in db.walk(&meta, Direction::Forward) {
        if let Item::Row(key, value) = item?
            && key[..] == *CONSISTENT_INDEX
        {
            let wrong = || ImportError::NotEtcd(format!("{key:?} has {} bytes", value.len()));
            return Ok(u64::from_be_bytes(value[..].try_into().map_err(|_| wrong())?));
        }
    }
    Ok(0)
}

struct Import<'a> {
    engine: &'a Engine,
    total: u64,
    rows: u64,
    pending: Batch,
    pending_bytes: usize,
    /// Where the last batch brings the engine; those before it bring it nowhere.
    position: Batch,
    told: Instant,
}

impl Import<'_> {
    /// Bucket `key`, which is all of a store but for a few rows; a backup without the store
    /// (`etcdctl backup`) has none.
    fn keys(&mut self, db: &Db<&File>) -> Result<(), ImportError> {
        let Some(keys) = db.bucket(b"key")? else { return Ok(()) };
        let engine = self.engine;
        engine.load(Bucket::Key, |put| {
            for item in db.walk(&keys, Direction::Forward) {
                let Item::Row(key, value) = item? else {
                    return Err(ImportError::NotEtcd("bucket key holds a bucket".to_owned()));
                };
                let Some((main, _)) = key.split_first_chunk::<8>() else {
                    let reason = format!("a key of {} bytes is no revision", key.len());
                    return Err(ImportError::NotEtcd(reason));
                };
                self.position.revision = i64::from_be_bytes(*main);
                put(&key, &value)?;
                self.rows += 1;
                if self.rows.is_multiple_of(TELL_ROWS) {
                    self.tell();
                }
            }
            Ok(())
        })
    }

    fn row(&mut self, bucket: Bucket, key: Bytes, value: Bytes) -> Result<(), ImportError> {
        self.rows += 1;
        let number = |what: &str| {
            let wrong = || ImportError::NotEtcd(format!("{what} has {} bytes", value.len()));
            Ok::<u64, ImportError>(u64::from_be_bytes(value[..].try_into().map_err(|_| wrong())?))
        };
        match (bucket, &key[..]) {
            // The engine writes these itself, with each batch.
            (Bucket::Meta, key) if key == CONSISTENT_INDEX => {
                self.position.consistent_index = number("consistent_index")?;
                return Ok(());
            }
            (Bucket::Meta, b"term") => {
                self.position.term = number("term")?;
                return Ok(());
            }
            _ => {}
        }
        self.pending_bytes += key.len() + value.len();
        let op: Op = (bucket, key, Some(value));
        self.pending.ops.push(op);
        if self.pending_bytes >= BATCH_BYTES {
            self.pending_bytes = 0;
            self.engine.submit(std::mem::take(&mut self.pending));
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        let now = SystemClock.now();
        if now.duration_since(self.told) >= PROGRESS_INTERVAL {
            self.told = now;
            let percent = self.rows * 100 / self.total.max(1);
            tracing::info!(rows = self.rows, percent, "importing etcd's database");
        }
    }

    fn finish(self, origin: Bytes) -> Result<(), ImportError> {
        let last = Batch { ops: self.pending.ops, ..self.position };
        Ok(self.engine.submit_origin(last, origin)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::bbolt::Writer;
    use crate::storage::wal::Metadata;
    use std::io::Write;
    use std::ops::ControlFlow;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn engine(dir: &Path) -> Engine {
        let id = Metadata { node_id: 7, cluster_id: 9 };
        Engine::open(dir, id, Box::new(|reason| panic!("{reason}"))).unwrap().engine
    }

    fn file(path: &Path, buckets: &[(&str, Pairs)]) -> File {
        let mut writer = Writer::new(Vec::new());
        for (name, rows) in buckets {
            writer.bucket(name.as_bytes()).unwrap();
            for (key, value) in rows {
                writer.row(key, value).unwrap();
            }
        }
        let (plan, pages) = writer.finish().unwrap();
        let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.write_all(&plan.meta_pages(1)).unwrap();
        file.write_all(&pages).unwrap();
        file
    }

    fn keys(count: u64) -> Pairs {
        let key = |n: u64| [&n.to_be_bytes()[..], b"_", &[0; 8]].concat();
        (2..2 + count).map(|n| (key(n), vec![n as u8; 700])).collect()
    }

    fn meta() -> Pairs {
        let row = |key: &str, n: u64| (key.as_bytes().to_vec(), n.to_be_bytes().to_vec());
        vec![row("consistent_index", 44), row("term", 3)]
    }

    fn count(engine: &Engine, bucket: Bucket) -> usize {
        let mut rows = 0;
        let visit = &mut |_: &[u8], _: &Bytes| {
            rows += 1;
            ControlFlow::Continue(())
        };
        engine.scan(bucket, b"", None, visit).unwrap();
        rows
    }

    #[test]
    fn an_import_brings_rows_position_and_fingerprint() {
        let tmp = tempfile::tempdir().unwrap();
        let lease = vec![(vec![0; 8], vec![1])];
        let buckets = [("key", keys(9_000)), ("lease", lease), ("meta", meta()), ("other", vec![])];
        let db = file(&tmp.path().join("db"), &buckets);
        let dir = tmp.path().join("fjall");
        let filled = engine(&dir);
        assert_eq!(filled.origin().unwrap(), None);
        import(&db, &filled).unwrap();
        assert_eq!((filled.position(), filled.revision()), ((44, 3), 9_001));
        filled.close().unwrap();
        drop(filled);
        let filled = engine(&dir);
        assert_eq!((filled.position(), filled.revision()), ((44, 3), 9_001));
        let rows = [Bucket::Key, Bucket::Lease, Bucket::Meta].map(|bucket| count(&filled, bucket));
        assert_eq!(rows, [9_000, 1, 2]);
        let origin = fingerprint::whole(&db).unwrap();
        assert_eq!(filled.origin().unwrap(), Some(origin.clone()));
        let same = File::open(tmp.path().join("db")).unwrap();
        assert_eq!(fingerprint::whole(&same).unwrap(), origin);
        // As after one transaction more.
        db.write_all_at(&7u64.to_le_bytes(), 4096 + 16 + 48).unwrap();
        assert_ne!(fingerprint::whole(&db).unwrap(), origin);
    }

    #[test]
    fn a_backup_without_the_store_is_empty() {
        let tmp = tempfile::tempdir().unwrap();
        let db = file(&tmp.path().join("db"), &[("members", vec![]), ("meta", meta())]);
        let filled = engine(&tmp.path().join("fjall"));
        import(&db, &filled).unwrap();
        assert_eq!((filled.position(), filled.revision()), ((44, 3), 0));
    }

    #[test]
    fn what_is_not_etcds_is_refused_and_leaves_no_fingerprint() {
        let tmp = tempfile::tempdir().unwrap();
        let short = vec![(b"consistent_index".to_vec(), vec![1])];
        let odd = vec![(b"odd".to_vec(), vec![1])];
        let cases = [
            (vec![("key", keys(5))], "no bucket meta"),
            (vec![("key", keys(5)), ("meta", short)], "consistent_index has 1 bytes"),
            (vec![("key", odd), ("meta", meta())], "no revision"),
        ];
        for (i, (buckets, reason)) in cases.into_iter().enumerate() {
            let db = file(&tmp.path().join(format!("db{i}")), &buckets);
            let filled = engine(&tmp.path().join(format!("fjall{i}")));
            let error = import(&db, &filled).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            filled.flush().unwrap();
            assert_eq!((filled.origin().unwrap(), filled.position()), (None, (0, 0)));
        }
    }

    #[test]
    fn a_damaged_file_is_refused_before_anything_is_copied() {
        let tmp = tempfile::tempdir().unwrap();
        let db = file(&tmp.path().join("db"), &[("key", keys(9_000)), ("meta", meta())]);
        let pages = db.metadata().unwrap().len() / 4096;
        db.write_all_at(&[0xff; 30], (pages / 2) * 4096 + 8).unwrap();
        let filled = engine(&tmp.path().join("fjall"));
        let error = import(&db, &filled).unwrap_err().to_string();
        assert!(error.starts_with(&format!("bbolt: page {}: ", pages / 2)), "{error}");
        assert_eq!(count(&filled, Bucket::Key), 0);
    }
}
