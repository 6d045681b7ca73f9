//! Snapshots that the log records, and segments that are no longer needed after one.

use super::files::first_index;
use super::reader::Segment;
use super::record::{self, SNAPSHOT};
use super::{Wal, WalError, io};
use crate::base::failpoint;
use crate::pb::raftpb::ConfState;
use std::path::PathBuf;
use std::sync::Arc;

/// A segment that the log has let go of. Its lock lasts as long as the value.
#[derive(Debug)]
pub struct Released {
    segment: Arc<Segment>,
    dir: PathBuf,
}

impl Released {
    /// Removes the file. Older ones must go first: a log with a gap is no log.
    pub fn remove(&self) -> Result<(), WalError> {
        let path = &self.segment.path;
        failpoint::io(failpoint::WAL_REMOVE).map_err(io(path))?;
        std::fs::remove_file(path).map_err(io(path))?;
        super::files::sync_dir(&self.dir)?;
        tracing::info!(path = %path.display(), "purged a WAL segment");
        Ok(())
    }
}

impl Wal {
    /// Records, durably, that a file holds the state at an index: whoever opens the log may begin
    /// there. The file must be durable already (etcd v3.5.17 `server/wal/wal.go` SaveSnapshot).
    pub fn save_snapshot(
        &mut self,
        index: u64,
        term: u64,
        conf_state: &ConfState,
    ) -> Result<(), WalError> {
        self.check_poison()?;
        let mut buf = Vec::new();
        let crc = record::put_record(&mut buf, &mut self.scratch, self.crc, SNAPSHOT, |out| {
            record::put_snapshot(out, index, term);
            record::put_conf_state(out, conf_state);
        });
        let result = self.write_at_end(&buf, crc).and_then(|()| self.sync_tail());
        self.poison_on_error(result)
    }

    /// Records, durably, that a leader's snapshot takes the place of the log from when a hard state
    /// follows that commits its index; here it does from now on, so that one must follow before
    /// anything else does.
    pub fn install_snapshot(
        &mut self,
        index: u64,
        term: u64,
        conf_state: &ConfState,
    ) -> Result<(), WalError> {
        self.save_snapshot(index, term, conf_state)?;
        self.sparse.write().restart(index);
        Ok(())
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Lets go of the oldest segments, down to `keep` of them, that a log which begins at `index`
    /// does not need: every entry in them is below it, and the segment before the first that begins
    /// at or behind it stays (etcd v3.5.17 `wal.go` ReleaseLockTo). Oldest first.
    pub fn release(&mut self, index: u64, keep: usize) -> Vec<Released> {
        let begins = |segment: &Arc<Segment>| first_index(segment).unwrap_or(0) >= index;
        let behind = self.segments.iter().position(begins).unwrap_or(self.segments.len());
        let count = behind.saturating_sub(1).min(self.segments.len().saturating_sub(keep.max(1)));
        let released = self.segments.drain(..count);
        let dir = &self.dir;
        let released =
            released.map(|segment| Released { segment, dir: dir.clone() }).collect::<Vec<_>>();
        if let Some(first) = self.segments.first().filter(|_| count > 0) {
            self.sparse.write().release(first.seq);
        }
        released
    }

    /// First index of the log.
    pub fn first_index(&self) -> u64 {
        self.sparse.read().first
    }

    /// Commit index of the newest hard state that is on the disk for good.
    pub fn commit_durable(&self) -> u64 {
        self.commit_durable
    }

    /// Bytes that were written since it was opened.
    pub fn written_bytes(&self) -> u64 {
        self.written
    }
}
