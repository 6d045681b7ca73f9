//! A checkpoint that costs what changed: bbolt's file grows by the engine's new rows, and small
//! buckets that are others than before are written anew.
//!
//! Rows that a compaction took out of the engine stay in the file until it is rewritten. It says so
//! itself, in etcd's own words: its compaction is scheduled and not finished, so that whoever takes
//! the file over goes on with it. That is sound as long as the file has every row up to the
//! compacted revision: a deletion that came after the file's last row, and that is compacted away
//! before the file gets it, would leave the key there for ever.

use super::{CHUNK_BYTES, CheckpointError, Pace, Result};
use crate::mvcc::backend::Bucket;
use crate::mvcc::{BUCKETS, FINISHED_COMPACTION, SCHEDULED_COMPACTION};
use crate::storage::bbolt::{
    Db, Direction, GrowError, Grower, Growth, Item, Meta, Settled, WriteError,
};
use crate::storage::engine::View;
use crate::storage::image::ImageError;
use crate::storage::import::ImportError;
use bytes::Bytes;
use ring::digest::{Context, SHA256};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

/// The one bucket whose rows never change.
const GROWING: &[u8] = b"key";
/// What a row takes in a page beside its key and value (bbolt `page.go`).
const ELEMENT_BYTES: u64 = 16;
/// The least that is expected of a growth: the right edge of the tree, the root, the free list, a
/// meta page.
const OVERHEAD_BYTES_MIN: u64 = 8 * 4096;

/// What is known of a file that grows.
#[derive(Debug)]
pub(super) struct Growing {
    grower: Grower<Arc<File>>,
    /// The compaction that the file's rows go with.
    compacted: i64,
    /// The compaction whose rows it is rid of, as its row says.
    finished: Option<Bytes>,
    /// Digests of the small buckets' rows as they are in the file, as far as they are known.
    written: BTreeMap<&'static str, Bytes>,
    /// Bytes of the newest growth that were no new rows.
    overhead: u64,
}

/// A growth that is on the disk and that no meta page names yet.
#[derive(Debug)]
pub(super) struct Grown {
    settled: Settled<Arc<File>>,
    compacted: i64,
    finished: Option<Bytes>,
    written: BTreeMap<&'static str, Bytes>,
    overhead: u64,
}

/// The file is written anew if it cannot grow.
pub(super) enum Refusal {
    /// For this reason.
    Unfit(String),
    /// Neither helps.
    Error(CheckpointError),
}

impl From<GrowError> for Refusal {
    fn from(error: GrowError) -> Refusal {
        match error {
            GrowError::Io(error) | GrowError::Row(WriteError::Io(error)) => {
                Refusal::Error(ImageError::Row(WriteError::Io(error)).into())
            }
            GrowError::Row(error) => Refusal::Error(ImageError::Row(error).into()),
            GrowError::Read(_) | GrowError::NotNext { .. } | GrowError::Unfit(_) => {
                Refusal::Unfit(error.to_string())
            }
        }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Refusal {
        Refusal::Error(error.into())
    }
}

impl Growing {
    /// Reads what growing needs; the whole file if it has no list of what is free.
    pub(super) fn open(file: &Arc<File>) -> std::result::Result<Growing, Refusal> {
        let unreadable = |error| Refusal::Unfit(ImportError::File(error).to_string());
        let marks = marks(file).map_err(unreadable)?;
        let compacted = compacted(|name| marks.get(name).cloned());
        let finished = marks.get(FINISHED_COMPACTION).cloned();
        let grower = Grower::open(file.clone(), GROWING)?;
        let (written, overhead) = (BTreeMap::new(), OVERHEAD_BYTES_MIN);
        Ok(Growing { grower, compacted, finished, written, overhead })
    }

    /// Pages of the file, and of these, how many hold nothing.
    pub(super) fn pages(&self) -> (u64, u64) {
        (self.grower.pages(), self.grower.dead_pages())
    }

    /// The state that the file has.
    pub(super) fn meta(&self) -> &Meta {
        self.grower.meta()
    }

    /// Bytes of the newest growth that were no new rows.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Writes what the view has and the file lacks.
    pub(super) fn grow(self, view: &View, pace: Pace<'_>) -> std::result::Result<Grown, Refusal> {
        let Growing { grower, compacted: before, finished, mut written, .. } = self;
        let last = grower.last_key().map(<[u8]>::to_vec);
        let mut marks = BTreeMap::new();
        for name in [SCHEDULED_COMPACTION, FINISHED_COMPACTION] {
            let row = view.get(Bucket::Meta, name).map_err(ImageError::from)?;
            marks.extend(row.map(|row| (name, row)));
        }
        let compacted = compacted(|name| marks.get(name).cloned());
        if compacted > before.max(last.as_deref().map_or(0, main)) {
            let reason = format!("it ends before revision {compacted}, which was compacted since");
            return Err(Refusal::Unfit(reason));
        }
        let mut feed = Feed { growth: grower.begin(), pace, synced: 0 };
        let mut rows = 0;
        for (name, bucket) in BUCKETS {
            if bucket == Bucket::Key {
                feed.growth.bucket(GROWING)?;
                // The key behind the last.
                let from = last.as_ref().map(|last| [&last[..], &[0]].concat());
                for row in view.rows_from(bucket, &from.clone().unwrap_or_default()) {
                    let (key, value) = row.map_err(ImageError::from)?;
                    rows += ELEMENT_BYTES + (key.len() + value.len()) as u64;
                    feed.row(&key, &value)?;
                }
                continue;
            }
            let digest = digest(view, bucket).map_err(Refusal::Error)?;
            if written.get(name) == Some(&digest) {
                continue;
            }
            feed.growth.bucket(name.as_bytes())?;
            for row in view.rows(bucket) {
                let (key, value) = row.map_err(ImageError::from)?;
                match bucket == Bucket::Meta && key[..] == *FINISHED_COMPACTION {
                    true => {
                        if let Some(finished) = &finished {
                            feed.row(&key, finished)?;
                        }
                    }
                    false => feed.row(&key, &value)?,
                }
            }
            written.insert(name, digest);
        }
        let settled = feed.growth.settle()?;
        let overhead = settled.bytes().saturating_sub(rows).max(OVERHEAD_BYTES_MIN);
        Ok(Grown { settled, compacted, finished, written, overhead })
    }
}

impl Grown {
    pub(super) fn bytes(&self) -> u64 {
        self.settled.bytes()
    }

    pub(super) fn meta_page(&self) -> (u64, Vec<u8>) {
        self.settled.meta_page()
    }

    /// Makes it the file's state.
    pub(super) fn commit(self) -> std::result::Result<Growing, GrowError> {
        let Grown { settled, compacted, finished, written, overhead } = self;
        Ok(Growing { grower: settled.commit()?, compacted, finished, written, overhead })
    }
}

/// Rows on their way, written and synced in parts.
struct Feed<'a> {
    growth: Growth<Arc<File>>,
    pace: Pace<'a>,
    synced: u64,
}

impl Feed<'_> {
    fn row(&mut self, key: &[u8], value: &[u8]) -> std::result::Result<(), Refusal> {
        self.growth.row(key, value)?;
        if self.growth.bytes() - self.synced >= CHUNK_BYTES as u64 {
            self.growth.sync()?;
            self.synced = self.growth.bytes();
            if !(self.pace)() {
                return Err(Refusal::Error(CheckpointError::Stopped));
            }
        }
        Ok(())
    }
}

/// The file's rows about compactions, which are revisions.
fn marks(file: &File) -> crate::storage::bbolt::Result<BTreeMap<Bytes, Bytes>> {
    let db = Db::open(file)?;
    let mut marks = BTreeMap::new();
    let Some(meta) = db.bucket(b"meta")? else { return Ok(marks) };
    for item in db.walk(&meta, Direction::Forward) {
        match item? {
            Item::Row(key, value)
                if [SCHEDULED_COMPACTION, FINISHED_COMPACTION].contains(&&key[..]) =>
            {
                marks.insert(key, value);
            }
            _ => {}
        }
    }
    Ok(marks)
}

/// The newest compaction, whether it is finished or not.
fn compacted(mark: impl Fn(&'static [u8]) -> Option<Bytes>) -> i64 {
    let marks = [SCHEDULED_COMPACTION, FINISHED_COMPACTION].map(mark);
    marks.into_iter().flatten().map(|revision| main(&revision)).max().unwrap_or(0)
}

/// The first part of a revision.
fn main(revision: &[u8]) -> i64 {
    revision.first_chunk().map_or(0, |main| i64::from_be_bytes(*main))
}

/// Tells a bucket's rows from others.
fn digest(view: &View, bucket: Bucket) -> Result<Bytes> {
    let mut sum = Context::new(&SHA256);
    for row in view.rows(bucket) {
        let (key, value) = row?;
        for part in [key, value] {
            sum.update(&(part.len() as u64).to_be_bytes());
            sum.update(&part);
        }
    }
    Ok(Bytes::copy_from_slice(sum.finish().as_ref()))
}
