//! The rows of the database file against those of the engine, both in key order.

use super::super::bbolt::{self, Direction, Item};
use super::super::checkpoint;
use super::super::engine::Engine;

use super::database::Database;
use super::{Check, Result, Verdict, other};
use crate::mvcc::BUCKETS;
use crate::mvcc::backend::{Backend, Bucket};
use bytes::Bytes;
use std::cmp::Ordering;
use std::path::Path;

/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 4_096;

type Row = (Bytes, Bytes);

/// The first part of a revision's key.
pub(super) fn main(key: &[u8]) -> std::result::Result<i64, String> {
    let main = key.first_chunk::<8>().filter(|_| matches!(key.len(), 17 | 18));
    let main = main.ok_or_else(|| format!("a key of {} bytes is no revision", key.len()))?;
    Ok(i64::from_be_bytes(*main))
}

/// Which rows may be on one side only.
struct Allowed {
    /// Up to here they may be gone by compaction.
    compacted: i64,
    /// Beyond, one side may not have come.
    common: i64,
}

/// Compares the rows of a file that the engine's go with.
pub(super) fn compare(
    check: &mut Check<'_>,
    dir: &Path,
    engine: &Engine,
    database: &Database<'_>,
) -> Result<()> {
    let known = checkpoint::is_known(database.file, engine);
    if !known.map_err(|error| other(&database.path, error))? {
        let text =
            "was made from another state of the database file; the next start makes it again";
        check.find(Verdict::Repairable, dir, text);
        return Ok(());
    }
    let progress = &mut |at, end| check.report.progress("rows", at, end);
    let (rows, differences) = differences(dir, engine, database, progress)?;
    if differences.is_empty() {
        let text = format!("{rows} rows compared: the database file and the engine agree");
        check.find(Verdict::Sound, dir, text);
    }
    for difference in differences {
        let text = format!(
            "{difference}: differs from {}; one of them is damaged",
            database.path.display()
        );
        check.find(Verdict::Damaged, dir, text);
    }
    Ok(())
}

/// Compares what both must have. The engine goes on from the file's state, so up to the older of
/// both revisions they have the same rows, but for what either has compacted; and all the same rows
/// in the other buckets if they have reached the same entry. How many rows were compared, and the
/// first of each bucket that differs.
pub(super) fn differences(
    dir: &Path,
    engine: &Engine,
    database: &Database<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(u64, Vec<String>)> {
    let failed = |error| other(dir, error);
    let revision = |name: &[u8]| -> Result<i64> {
        let row = engine.get(Bucket::Meta, name).map_err(failed)?;
        Ok(row.and_then(|row| Some(i64::from_be_bytes(*row.first_chunk()?))).unwrap_or(0))
    };
    let compacted = [revision(b"scheduledCompactRev")?, revision(b"finishedCompactRev")?];
    let allowed = Allowed {
        compacted: compacted.into_iter().fold(database.compacted, i64::max),
        common: database.revision.min(engine.revision()),
    };
    let view = engine.view().map_err(failed)?;
    let same_entry = engine.position().0 == database.index;
    let (mut rows, mut differences) = (0, Vec::new());
    for (name, bucket) in BUCKETS {
        // `meta` holds positions and marks of compactions, which each side has of its own.
        if bucket == Bucket::Meta || (bucket != Bucket::Key && !same_entry) {
            continue;
        }
        let found = database.db.bucket(name.as_bytes());
        let found = found.map_err(|error| other(&database.path, error))?;
        let walk = found.iter().flat_map(|found| database.db.walk(found, Direction::Forward));
        let mut ours = view.rows(bucket);
        let mut theirs = walk.filter_map(|item| match item {
            Ok(Item::Row(key, value)) => Some(Ok((key, value))),
            Ok(Item::Bucket(..)) => None,
            Err(error) => Some(Err(error)),
        });
        let end = allowed.common;
        let different = differing(&mut ours, &mut theirs, dir, database, |key, ours| {
            rows += 1;
            if rows % PROGRESS_ROWS == 0 && bucket == Bucket::Key {
                let at = main(key).unwrap_or(0).clamp(0, end);
                progress(at as u64, end as u64);
            }
            match bucket {
                Bucket::Key => {
                    main(key).is_ok_and(|main| main <= allowed.compacted || main > allowed.common)
                }
                // A start writes what membership must have left and an older file lacks.
                _ => ours,
            }
        })?;
        differences.extend(different.map(|key| {
            let key = key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            format!("bucket {name}, key {key}")
        }));
    }
    Ok((rows, differences))
}

/// The first key that differs and may not: `may_miss` tells whether it may be on one side only,
/// ours or theirs.
fn differing<E: std::fmt::Display>(
    ours: &mut dyn Iterator<Item = std::result::Result<Row, E>>,
    theirs: &mut dyn Iterator<Item = bbolt::Result<Row>>,
    dir: &Path,
    database: &Database<'_>,
    mut may_miss: impl FnMut(&[u8], bool) -> bool,
) -> Result<Option<Bytes>> {
    let mut next_ours = || ours.next().transpose().map_err(|error| other(dir, error));
    let mut next_theirs =
        || theirs.next().transpose().map_err(|error| other(&database.path, error));
    let (mut a, mut b) = (next_ours()?, next_theirs()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.0.cmp(&b.0),
        };
        let row = if order == Ordering::Greater { &b } else { &a };
        let Some((key, _)) = row else { return Ok(None) };
        let miss = may_miss(key, order == Ordering::Less);
        let fine = match order {
            Ordering::Equal => a.as_ref().map(|row| &row.1) == b.as_ref().map(|row| &row.1),
            _ => miss,
        };
        if !fine {
            return Ok(Some(key.clone()));
        }
        if order != Ordering::Greater {
            a = next_ours()?;
        }
        if order != Ordering::Less {
            b = next_theirs()?;
        }
    }
}
