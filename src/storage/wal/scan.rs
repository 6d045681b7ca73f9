//! The pass over the whole log at its opening: every record is checked, and what a crash may have
//! left at the very end is told from damage.

use super::reader::{Frame, Frames, Segment, Sparse};
use super::record::{self, CRC, ENTRY, METADATA, SNAPSHOT, STATE};
use super::{Metadata, WalError};
use crate::pb::raftpb::HardState;
use std::sync::Arc;

/// Where the records of a segment end.
#[derive(Clone, Copy, Default)]
pub(super) struct SegmentEnd {
    pub(super) offset: u64,
    pub(super) torn: bool,
}

/// What the open pass gathers.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) crc: u32,
    pub(super) metadata: Option<Metadata>,
    pub(super) state: HardState,
    pub(super) sparse: Sparse,
    pub(super) term_runs: Vec<(u64, u64)>,
    pub(super) snapshots: Vec<(u64, u64)>,
    /// Index and term of a snapshot that came from a leader and that the log does not lead up to.
    /// It replaces the log when something follows that knows it as committed; a stop may have come
    /// before.
    pub(super) ahead: Option<(u64, u64)>,
}

impl Scan {
    pub(super) fn segment(
        &mut self,
        segment: &Arc<Segment>,
        last: bool,
    ) -> Result<SegmentEnd, WalError> {
        let mut frames = Frames::new(segment.clone(), 0, u64::MAX)?;
        let mut records = 0u64;
        let torn = loop {
            let at = frames.offset();
            match frames.next()? {
                Frame::End => break false,
                Frame::Short { length, payload } => {
                    let torn =
                        record::length_agrees(at + record::FRAME_BYTES as u64, length, payload);
                    if !last || !torn {
                        return Err(segment.corrupt(at, "record reaches past the end of the file"));
                    }
                    break true;
                }
                Frame::Record { offset, bytes, payload } => {
                    if payload.len() - bytes.len() != record::padding(bytes.len()) {
                        return Err(segment.corrupt(offset, "wrong padding"));
                    }
                    if let Err(reason) = self.record(segment, offset, bytes, records == 0) {
                        let data_at = offset + record::FRAME_BYTES as u64;
                        let torn = last
                            && reason.may_be_torn
                            && record::length_agrees(data_at, bytes.len() as u64, payload)
                            && record::is_torn(data_at, payload);
                        if !torn {
                            return Err(segment.corrupt(offset, reason.text));
                        }
                        // The offset is needed below, so the frame is taken back.
                        frames.seek(offset);
                        break true;
                    }
                    records += 1;
                }
            }
        };
        // A segment gets its name after its head is durable, so no crash leaves it without.
        if records == 0 {
            return Err(segment.corrupt(0, "no record at the head of the segment"));
        }
        Ok(SegmentEnd { offset: frames.offset(), torn })
    }

    fn restart_if(&mut self, follows: impl FnOnce(u64, u64) -> bool) {
        if let Some(snapshot) = self.ahead.filter(|ahead| follows(ahead.0, ahead.1)) {
            self.ahead = None;
            if self.is_ahead(snapshot) {
                self.sparse.restart(snapshot.0);
                self.term_runs.clear();
            }
        }
    }

    /// Whether the log does not reach the snapshot, or has another entry there than it.
    fn is_ahead(&self, (index, term): (u64, u64)) -> bool {
        let runs = self.term_runs.partition_point(|run| run.0 <= index);
        let there = runs.checked_sub(1).map(|run| self.term_runs[run].1);
        index > self.sparse.last || there.is_some_and(|there| there != term)
    }

    fn record(
        &mut self,
        segment: &Arc<Segment>,
        offset: u64,
        bytes: &[u8],
        head: bool,
    ) -> Result<(), Bad> {
        let record = record::record(bytes).ok_or(Bad::torn("malformed record"))?;
        if head && record.kind != CRC {
            return Err(Bad::sure("segment does not begin with a crc record"));
        }
        if record.kind == CRC {
            // A log whose beginning was released starts with the checksum of what was there.
            if self.crc != 0 && record.crc != self.crc {
                return Err(Bad::sure("crc chain is broken between segments"));
            }
            self.crc = record.crc;
            return Ok(());
        }
        let before = self.crc;
        let crc = crc32c::crc32c_append(before, record.data);
        if crc != record.crc {
            return Err(Bad::torn("crc mismatch"));
        }
        match record.kind {
            ENTRY => {
                let entry = record::entry_head(record.data).ok_or(Bad::sure("malformed entry"))?;
                self.restart_if(|index, term| entry.index > index && entry.term >= term);
                // There is an index behind each.
                let lawful = (1..u64::MAX).contains(&entry.index);
                if !lawful || !self.sparse.note(entry.index, segment, offset, before) {
                    return Err(Bad::sure("entry does not follow the log"));
                }
                while self.term_runs.last().is_some_and(|run| run.0 >= entry.index) {
                    self.term_runs.pop();
                }
                if self.term_runs.last().is_none_or(|run| run.1 != entry.term) {
                    self.term_runs.push((entry.index, entry.term));
                }
            }
            STATE => {
                self.state = record::state(record.data).ok_or(Bad::sure("malformed hard state"))?;
                let commit = self.state.commit;
                self.restart_if(|index, _| commit >= index);
            }
            METADATA => {
                let (node_id, cluster_id) =
                    record::pair(record.data).ok_or(Bad::sure("malformed metadata"))?;
                let metadata = Metadata { node_id, cluster_id };
                if self.metadata.is_some_and(|known| known != metadata) {
                    return Err(Bad::sure("conflicting metadata"));
                }
                self.metadata = Some(metadata);
            }
            SNAPSHOT => {
                let snapshot =
                    record::pair(record.data).ok_or(Bad::sure("malformed snapshot record"))?;
                if snapshot.0 == u64::MAX {
                    return Err(Bad::sure("malformed snapshot record"));
                }
                self.ahead = self.is_ahead(snapshot).then_some(snapshot);
                self.snapshots.push(snapshot);
            }
            _ => return Err(Bad::sure("unknown kind of record")),
        }
        self.crc = crc;
        Ok(())
    }
}

/// Why a record is refused.
struct Bad {
    text: &'static str,
    /// Whether a write that never finished can look like this.
    may_be_torn: bool,
}

impl Bad {
    fn torn(text: &'static str) -> Self {
        Bad { text, may_be_torn: true }
    }

    fn sure(text: &'static str) -> Self {
        Bad { text, may_be_torn: false }
    }
}
