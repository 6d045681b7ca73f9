//! etcd's database file, by itself and against the log.

use super::super::bbolt::{self, Db, Direction, Item, Source};
use super::super::wal::Inspected;
use super::{Check, Report, Result, Verdict, io};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file that is sound.
pub(super) struct Database<'a> {
    pub path: PathBuf,
    pub file: &'a File,
    pub db: Db<&'a File>,
    /// The entry it has reached.
    pub index: u64,
    /// Its newest revision.
    pub revision: i64,
    /// Rows of revisions up to here may be gone.
    pub compacted: i64,
}

/// Tells how much of a file has been read.
struct Watched<'a, 'b> {
    file: &'a File,
    read: Cell<u64>,
    total: u64,
    report: RefCell<&'b mut dyn Report>,
}

impl Source for Watched<'_, '_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.read.set(self.read.get() + buf.len() as u64);
        self.report.borrow_mut().progress("database", self.read.get().min(self.total), self.total);
        Source::read_exact_at(&self.file, buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        Source::len(&self.file)
    }
}

pub(super) fn check<'a>(
    check: &mut Check<'_>,
    path: &Path,
    file: &'a File,
    log: &Inspected,
    snapshot: u64,
) -> Result<Option<Database<'a>>> {
    let found = match read(check, file) {
        Ok(found) => found,
        Err(Refusal::File(bbolt::Error::Io { source, .. })) => return Err(io(path)(source)),
        Err(Refusal::File(error)) => {
            check.find(Verdict::Damaged, path, error.to_string());
            return Ok(None);
        }
        Err(Refusal::Rows(reason)) => {
            check.find(Verdict::Damaged, path, reason);
            return Ok(None);
        }
    };
    let (db, totals, meta, revision) = found;
    let number = |name: &str| meta.get(name).copied().unwrap_or(0);
    let (index, term) = (number("consistent_index"), number("term"));
    let (last, commit) = (log.bounds.1, log.hard_state.commit);
    let wrong = if index > last {
        Some(format!("has applied entry {index}, but the log ends at {last}: it was cut"))
    } else if index > 0 && term > 0 && log.term(index).is_some_and(|found| found != term) {
        Some(format!("has applied entry {index} in term {term}, the log's is another"))
    } else if index < snapshot && !path.with_file_name(snap_db(snapshot)).exists() {
        Some(format!("has applied entry {index}, but the log begins after snapshot {snapshot}"))
    } else if index + 1 < log.bounds.0 && index >= snapshot {
        Some(format!("has applied entry {index}, but the log begins at {}", log.bounds.0))
    } else {
        None
    };
    if let Some(text) = wrong {
        check.find(Verdict::Damaged, path, text);
        return Ok(None);
    }
    if index < snapshot {
        let text = format!("is before snapshot {snapshot}, whose database lies beside it");
        check.find(Verdict::Repairable, path, text);
    }
    let ahead = if index > commit { ", ahead of the log's commit index" } else { "" };
    let text = format!(
        "{} rows in {} buckets, {} of {} pages free, up to entry {index}{ahead} and revision \
         {revision}",
        totals.rows,
        totals.buckets,
        totals.free_pages,
        db.meta().pages
    );
    check.find(Verdict::Sound, path, text);
    let compacted = compacted(&meta);
    Ok(Some(Database { path: path.to_owned(), file, db, index, revision, compacted }))
}

/// Up to which revision rows may be gone.
fn compacted(meta: &BTreeMap<String, u64>) -> i64 {
    let number = |name: &str| meta.get(name).copied().unwrap_or(0);
    number("scheduledCompactRev").max(number("finishedCompactRev")) as i64
}

/// The file by itself, checked as a whole.
pub(super) fn open<'a>(
    check: &mut Check<'_>,
    path: &Path,
    file: &'a File,
) -> std::result::Result<Database<'a>, Refusal> {
    let (db, _, meta, revision) = read(check, file)?;
    let index = meta.get("consistent_index").copied().unwrap_or(0);
    let compacted = compacted(&meta);
    Ok(Database { path: path.to_owned(), file, db, index, revision, compacted })
}

/// The file that came with a snapshot from a leader.
fn snap_db(index: u64) -> String {
    format!("{index:016x}.snap.db")
}

/// Why a file is not to be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It is not what bbolt writes.
    #[error(transparent)]
    File(bbolt::Error),
    /// Nor what etcd does.
    #[error("{0}")]
    Rows(String),
}

impl From<bbolt::Error> for Refusal {
    fn from(error: bbolt::Error) -> Refusal {
        Refusal::File(error)
    }
}

type Found<'a> = (Db<&'a File>, bbolt::Totals, BTreeMap<String, u64>, i64);

/// The file as a whole, the numbers of its bucket `meta`, and its newest revision.
fn read<'a>(check: &mut Check<'_>, file: &'a File) -> std::result::Result<Found<'a>, Refusal> {
    let db = Db::open(file)?;
    let total = u64::from(db.meta().page_bytes) * db.meta().pages;
    let report = RefCell::new(&mut *check.report);
    let totals = Db::open(Watched { file, read: Cell::new(0), total, report })?.check()?;
    let missing = || Refusal::Rows("there is no bucket meta".to_owned());
    let numbers = db.bucket(b"meta")?.ok_or_else(missing)?;
    let mut meta = BTreeMap::new();
    for item in db.walk(&numbers, Direction::Forward) {
        let Item::Row(key, value) = item? else { continue };
        let name = String::from_utf8_lossy(&key).into_owned();
        let number = match name.as_str() {
            "consistent_index" | "term" => value.get(..8).filter(|_| value.len() == 8),
            // A revision: its first part is what counts.
            "scheduledCompactRev" | "finishedCompactRev" => value.get(..8),
            _ => continue,
        };
        let Some(number) = number.and_then(|bytes| bytes.try_into().ok()) else {
            return Err(Refusal::Rows(format!("{name} has {} bytes", value.len())));
        };
        meta.insert(name, u64::from_be_bytes(number));
    }
    // A backup without the store has no bucket of keys.
    let keys = db.bucket(b"key")?;
    let newest = keys.and_then(|keys| db.walk(&keys, Direction::Backward).next());
    let revision = match newest {
        Some(Ok(Item::Row(key, _))) => super::rows::main(&key).map_err(Refusal::Rows)?,
        Some(Ok(Item::Bucket(..))) => return Err(Refusal::Rows("a bucket among keys".to_owned())),
        Some(Err(error)) => return Err(error.into()),
        None => 0,
    };
    Ok((db, totals, meta, revision))
}
