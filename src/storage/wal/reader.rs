//! Reading: frames out of a segment file through a large buffer, the sparse index over live
//! entries, and the handle that reads ranges of the log.

use super::WalError;
use super::record::{self, ENTRY, FRAME_BYTES, Record};
use crate::pb::raftpb::Entry;
use parking_lot::RwLock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// How much one read asks of the file; a record that is larger grows the buffer for itself.
const READ_BYTES: usize = 1024 * 1024;
/// Read size for short ranges, so that fetching one entry does not read a megabyte.
const READ_BYTES_SMALL: usize = 64 * 1024;
/// Distance between positions in the sparse index.
pub(super) const SPARSE_BYTES: u64 = 32 * 1024;

/// One segment file; the same descriptor serves reads, writes and the lock (see `lock` in the
/// parent module for why there must be only one).
#[derive(Debug)]
pub(super) struct Segment {
    pub file: File,
    pub path: PathBuf,
    pub seq: u64,
}

impl Segment {
    pub fn io(&self, source: std::io::Error) -> WalError {
        WalError::Io { path: self.path.clone(), source }
    }

    pub fn corrupt(&self, offset: u64, reason: impl Into<String>) -> WalError {
        WalError::Corrupt { file: self.path.clone(), offset, reason: reason.into() }
    }
}

/// What stands at a place in a segment.
pub(super) enum Frame<'a> {
    /// A whole frame: its offset, the record's bytes, and record with padding.
    Record { offset: u64, bytes: &'a [u8], payload: &'a [u8] },
    /// Zeros or the end of the file.
    End,
    /// The length field reaches past the end of the file; what there is of the record.
    Short { length: u64, payload: &'a [u8] },
}

/// A forward reader over the frames of one segment.
pub(super) struct Frames {
    segment: Arc<Segment>,
    size: u64,
    /// File offset of `buf[0]`.
    base: u64,
    buf: Vec<u8>,
    /// Bytes of `buf` that are filled, and how far they are consumed.
    filled: usize,
    at: usize,
    chunk: usize,
}

impl Frames {
    pub fn new(segment: Arc<Segment>, offset: u64, expected: u64) -> Result<Self, WalError> {
        let size = segment.file.metadata().map_err(|e| segment.io(e))?.len();
        let chunk = if expected >= READ_BYTES as u64 { READ_BYTES } else { READ_BYTES_SMALL };
        Ok(Frames { segment, size, base: offset, buf: Vec::new(), filled: 0, at: 0, chunk })
    }

    /// Offset of the next frame.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Goes to another frame, within the buffer if it is there.
    pub fn seek(&mut self, offset: u64) {
        match offset.checked_sub(self.base) {
            Some(at) if at <= self.filled as u64 => self.at = at as usize,
            _ => {
                self.base = offset;
                self.filled = 0;
                self.at = 0;
            }
        }
    }

    /// Makes `want` bytes available at `at`, or as many as the file has.
    fn fill(&mut self, want: usize) -> Result<usize, WalError> {
        if self.filled - self.at >= want {
            return Ok(want);
        }
        self.buf.copy_within(self.at..self.filled, 0);
        self.filled -= self.at;
        self.base += self.at as u64;
        self.at = 0;
        let goal = want.max(self.chunk);
        if self.buf.len() < goal {
            self.buf.resize(goal, 0);
        }
        while self.filled < want {
            let read = self
                .segment
                .file
                .read_at(&mut self.buf[self.filled..], self.base + self.filled as u64)
                .map_err(|e| self.segment.io(e))?;
            if read == 0 {
                break;
            }
            self.filled += read;
        }
        Ok(self.filled.min(want))
    }

    pub fn next(&mut self) -> Result<Frame<'_>, WalError> {
        let offset = self.offset();
        let have = self.fill(FRAME_BYTES)?;
        let Some(head) = self.buf[self.at..self.filled].first_chunk::<FRAME_BYTES>() else {
            // Fewer than eight bytes: nothing, or a length field cut short.
            let at = self.at;
            return Ok(if self.buf[at..at + have].iter().all(|byte| *byte == 0) {
                Frame::End
            } else {
                Frame::Short { length: 0, payload: &self.buf[at..at] }
            });
        };
        let field = u64::from_le_bytes(*head);
        if field == 0 {
            return Ok(Frame::End);
        }
        let (length, pad) = record::unframe(field);
        // Checked against the file before anything is allocated for it.
        let room = self.size.saturating_sub(offset + FRAME_BYTES as u64);
        if length + pad > room {
            let want = FRAME_BYTES + room.min(READ_BYTES_SMALL as u64) as usize;
            let have = self.fill(want)?;
            let from = (self.at + FRAME_BYTES).min(self.filled);
            return Ok(Frame::Short { length, payload: &self.buf[from..self.at + have] });
        }
        let whole = FRAME_BYTES + (length + pad) as usize;
        let have = self.fill(whole)?;
        let from = self.at + FRAME_BYTES;
        if have < whole {
            return Ok(Frame::Short { length, payload: &self.buf[from..self.at + have] });
        }
        let until = self.at + whole;
        self.at = until;
        Ok(Frame::Record {
            offset,
            bytes: &self.buf[from..from + length as usize],
            payload: &self.buf[from..until],
        })
    }
}

/// Where a live entry is. Entries from here to the next point follow each other in the file.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub index: u64,
    pub segment: Arc<Segment>,
    pub offset: u64,
    /// Checksum of the record before it, so that reading can start here and still check.
    pub crc: u32,
}

/// The sparse index.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    points: Vec<Point>,
    /// First and last live entry; last < first when there is none.
    pub first: u64,
    pub last: u64,
}

impl Sparse {
    /// An empty log whose next entry is 1.
    pub fn new() -> Self {
        Sparse { points: Vec::new(), first: 1, last: 0 }
    }

    /// Notes that entry `index` is at the place. False if it leaves a gap.
    pub fn note(&mut self, index: u64, segment: &Arc<Segment>, offset: u64, crc: u32) -> bool {
        if self.points.is_empty() {
            self.first = index;
        } else if index > self.last + 1 {
            return false;
        }
        let follows = index == self.last + 1;
        if !follows {
            let keep = self.points.partition_point(|p| p.index < index);
            self.points.truncate(keep);
            if keep == 0 {
                self.first = index;
            }
        }
        let near = follows
            && self
                .points
                .last()
                .is_some_and(|p| p.segment.seq == segment.seq && offset - p.offset < SPARSE_BYTES);
        if !near {
            self.points.push(Point { index, segment: segment.clone(), offset, crc });
        }
        self.last = index;
        true
    }

    /// A snapshot replaced the log: the next entry is `index` + 1.
    pub fn restart(&mut self, index: u64) {
        self.points.clear();
        self.first = index + 1;
        self.last = index;
    }

    /// Segments before `seq` are gone, and with them entries that nobody asks for.
    pub fn release(&mut self, seq: u64) {
        let keep = self.points.partition_point(|point| point.segment.seq < seq);
        self.points.drain(..keep);
        self.first = self.points.first().map_or(self.last + 1, |point| point.index);
    }

    /// The points that cover `lo..hi`, each with the index where it ends.
    fn cover(&self, lo: u64, hi: u64) -> Vec<(Point, u64)> {
        let from = self.points.partition_point(|p| p.index <= lo).saturating_sub(1);
        let mut runs = Vec::new();
        for (i, point) in self.points.iter().enumerate().skip(from) {
            if point.index >= hi {
                break;
            }
            let end = self.points.get(i + 1).map_or(self.last + 1, |p| p.index);
            runs.push((point.clone(), end));
        }
        runs
    }
}

/// Reads live entries of the log; any number of them beside the one writer.
#[derive(Clone, Debug)]
pub struct WalReader {
    /// A lock, held for a lookup or an append of a few words, never across I/O.
    pub(super) sparse: Arc<RwLock<Sparse>>,
}

impl WalReader {
    /// First and last index of the log; last < first when it is empty.
    pub fn bounds(&self) -> (u64, u64) {
        let sparse = self.sparse.read();
        (sparse.first, sparse.last)
    }

    /// Entries `lo..hi`, stopping after `max_bytes` of data but at least one.
    pub fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, WalError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0u64;
        self.walk(lo, hi, max_bytes, &mut |entry| {
            let size = entry.data.len() as u64;
            if !entries.is_empty() && bytes.saturating_add(size) > max_bytes {
                return Ok(false);
            }
            bytes += size;
            entries.push(entry);
            Ok(bytes < max_bytes)
        })?;
        Ok(entries)
    }

    /// Streams entries `lo..=hi` in order; memory stays bounded by one read and one entry.
    pub fn for_each(
        &self,
        lo: u64,
        hi: u64,
        visit: &mut dyn FnMut(Entry) -> Result<(), WalError>,
    ) -> Result<(), WalError> {
        self.walk(lo, hi.saturating_add(1), u64::MAX, &mut |entry| visit(entry).map(|()| true))
    }

    /// The one read loop; `visit` says whether to go on.
    fn walk(
        &self,
        lo: u64,
        hi: u64,
        expected: u64,
        visit: &mut dyn FnMut(Entry) -> Result<bool, WalError>,
    ) -> Result<(), WalError> {
        if lo >= hi {
            return Ok(());
        }
        let runs = {
            let sparse = self.sparse.read();
            if lo < sparse.first || hi > sparse.last + 1 {
                let (first, last) = (sparse.first, sparse.last);
                return Err(WalError::OutOfRange { lo, hi, first, last });
            }
            sparse.cover(lo, hi)
        };
        let mut open: Option<(u64, Frames)> = None;
        for (point, end) in runs {
            let mut frames = match open.take() {
                Some((seq, mut frames)) if seq == point.segment.seq => {
                    frames.seek(point.offset);
                    frames
                }
                _ => Frames::new(point.segment.clone(), point.offset, expected)?,
            };
            let mut crc = point.crc;
            let mut next = point.index;
            while next < end.min(hi) {
                let (entry, sum) = next_entry(&mut frames, &point.segment, crc, next, lo)?;
                crc = sum;
                let Some(entry) = entry else { continue };
                next += 1;
                if let Some(entry) = entry.filter(|e| e.index >= lo)
                    && !visit(entry)?
                {
                    return Ok(());
                }
            }
            open = Some((point.segment.seq, frames));
        }
        Ok(())
    }
}

/// Reads one record: `None` if it is no entry, `Some(None)` for an entry below `lo`. With it the
/// checksum reached.
#[allow(clippy::type_complexity)]
fn next_entry(
    frames: &mut Frames,
    segment: &Segment,
    crc: u32,
    index: u64,
    lo: u64,
) -> Result<(Option<Option<Entry>>, u32), WalError> {
    let at = frames.offset();
    let Frame::Record { offset, bytes, .. } = frames.next()? else {
        return Err(segment.corrupt(at, format!("entry {index} is missing")));
    };
    let Some(Record { kind, crc: stored, data }) = record::record(bytes) else {
        return Err(segment.corrupt(offset, "malformed record"));
    };
    let sum = crc32c::crc32c_append(crc, data);
    if sum != stored {
        return Err(segment.corrupt(offset, "crc mismatch"));
    }
    if kind != ENTRY {
        return Ok((None, sum));
    }
    let Some(head) = record::entry_head(data) else {
        return Err(segment.corrupt(offset, "malformed entry"));
    };
    if head.index != index {
        let reason = format!("entry {} where {index} was expected", head.index);
        return Err(segment.corrupt(offset, reason));
    }
    if index < lo {
        return Ok((Some(None), sum));
    }
    match record::entry(data) {
        Some(entry) => Ok((Some(Some(entry)), sum)),
        None => Err(segment.corrupt(offset, "malformed entry")),
    }
}
