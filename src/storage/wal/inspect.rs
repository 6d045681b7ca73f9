//! The log as it stands: read through and checked as at opening, and nothing repaired.

use super::files::open_segments;
use super::reader::{Segment, Sparse};
use super::scan::{Scan, SegmentEnd};
use super::{Metadata, WalError};
use crate::pb::raftpb::HardState;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes behind the tail that are looked at in one read.
const READ_BYTES: usize = 1 << 20;

/// What [`inspect`] found. Holds the locks of all segments for as long as it lives.
#[derive(Debug)]
pub struct Inspected {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The last hard state; zeros if none was saved.
    pub hard_state: HardState,
    /// First and last index of the entries; last < first if there is none.
    pub bounds: (u64, u64),
    /// (first index, term) of each run of entries of one term, in order.
    pub term_runs: Vec<(u64, u64)>,
    /// (index, term) of the snapshot records, in order.
    pub snapshots: Vec<(u64, u64)>,
    /// The last segment, and the offset behind its last record.
    pub end: (PathBuf, u64),
    /// Whether a write that never finished stands there, which opening the log cuts off.
    pub torn: bool,
    /// Whether there are other bytes than zeros further on.
    pub dirty: bool,
    /// How many segments there are; their descriptors hold the locks.
    pub segments: usize,
    _locks: Vec<Arc<Segment>>,
}

impl Inspected {
    /// The term of an entry that the log has.
    pub fn term(&self, index: u64) -> Option<u64> {
        let inside = index >= self.bounds.0 && index <= self.bounds.1;
        let after = self.term_runs.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).filter(|_| inside).map(|run| self.term_runs[run].1)
    }
}

/// Takes the locks and reads the log through. `progress` gets bytes done and bytes in all.
pub fn inspect(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Inspected, WalError> {
    let segments = open_segments(dir)?;
    let Some(tail) = segments.last() else { return Err(WalError::Missing(dir.to_owned())) };
    let mut sizes = Vec::new();
    for segment in &segments {
        sizes.push(segment.file.metadata().map_err(|e| segment.io(e))?.len());
    }
    let total = sizes.iter().sum();
    let mut scan = Scan { sparse: Sparse::new(), ..Scan::default() };
    let (mut end, mut done) = (SegmentEnd::default(), 0);
    for (segment, size) in segments.iter().zip(sizes) {
        progress(done, total);
        end = scan.segment(segment, segment.seq == tail.seq)?;
        done += size;
    }
    let Some(metadata) = scan.metadata else {
        return Err(tail.corrupt(end.offset, "no metadata record in the log"));
    };
    Ok(Inspected {
        metadata,
        hard_state: scan.state,
        bounds: (scan.sparse.first, scan.sparse.last),
        term_runs: scan.term_runs,
        snapshots: scan.snapshots,
        end: (tail.path.clone(), end.offset),
        torn: end.torn,
        dirty: !end.torn && is_dirty(tail, end.offset)?,
        segments: segments.len(),
        _locks: segments,
    })
}

fn is_dirty(segment: &Segment, mut offset: u64) -> Result<bool, WalError> {
    let mut buf = vec![0; READ_BYTES];
    loop {
        let read = segment.file.read_at(&mut buf, offset).map_err(|e| segment.io(e))?;
        if read == 0 {
            return Ok(false);
        }
        if buf[..read].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        offset += read as u64;
    }
}
