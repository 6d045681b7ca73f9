//! etcd's write-ahead log, byte for byte: it is the raft log, and etcd's own tools read it.
//! Uses: base, obs, pb

mod files;
#[cfg(test)]
mod fuzz;
mod inspect;
mod reader;
mod record;
mod release;
mod scan;
#[cfg(test)]
mod tests;

use crate::base::clock::{Clock, SystemClock};
use crate::base::failpoint;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{Entry, HardState};
use files::{create_segment, keep_broken, open_segments, preallocate, segment_name, sync_dir};
use parking_lot::RwLock;
use reader::{Segment, Sparse};
use record::{CRC, ENTRY, METADATA, SNAPSHOT, STATE};
use scan::{Scan, SegmentEnd};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use inspect::{Inspected, inspect};
pub use reader::WalReader;
pub use release::Released;

/// Preallocated size of a segment; the one that passes it is cut (etcd v3.5.17
/// `server/wal/wal.go` SegmentSizeBytes).
const SEGMENT_BYTES: u64 = 64 * 1000 * 1000;
/// Mode of the directories.
const DIR_MODE: u32 = 0o700;
/// Buffer capacity that is kept from one save to the next.
const KEPT_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Name under which the next segment is prepared.
const NEXT_SEGMENT: &str = "0.tmp";

/// Whose log it is; recorded at the head of each segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The member.
    pub node_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused.
    #[error("wal: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes that no crash explains.
    #[error("wal: {file} is damaged at offset {offset}: {reason}")]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where the record begins that fails.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process (or another part of this one) has the log open.
    #[error("wal: {0} is locked by another process")]
    Locked(PathBuf),
    /// There is no log here.
    #[error("wal: no log in {0}")]
    Missing(PathBuf),
    /// There is one already.
    #[error("wal: {0} already exists")]
    Exists(PathBuf),
    /// The log does not hold all of the entries asked for.
    #[error("wal: entries {lo}..{hi} asked for, the log holds {first}..={last}")]
    OutOfRange {
        /// First index asked for.
        lo: u64,
        /// The index after the last one asked for.
        hi: u64,
        /// First index there is.
        first: u64,
        /// Last index there is.
        last: u64,
    },
    /// An entry to save does not follow the log.
    #[error("wal: entry {index} does not follow {last}")]
    Gap {
        /// Index of the entry.
        index: u64,
        /// Last index of the log.
        last: u64,
    },
    /// An earlier write failed; what the disk holds is unknown, so nothing more is accepted.
    #[error("wal: an earlier write failed: {0}")]
    Poisoned(String),
    /// For a visitor of [`WalReader::for_each`] that ends the walk.
    #[error("wal: reading was stopped: {0}")]
    Stopped(String),
}

/// What [`Wal::open`] found.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The last hard state; zeros if none was saved.
    pub hard_state: HardState,
    /// First index of the log; 1 unless the beginning was released.
    pub first_index: u64,
    /// Last index of the log; `first_index` - 1 when it is empty.
    pub last_index: u64,
    /// (first index, term) of each run of entries of one term, in order.
    pub term_runs: Vec<(u64, u64)>,
    /// Entries above the commit index.
    pub tail: Vec<Entry>,
    /// (index, term) of the snapshot records, in order.
    pub snapshots: Vec<(u64, u64)>,
    /// Offset in the last segment where a torn write was cut off, if there was one.
    pub repaired_at: Option<u64>,
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    dir_file: File,
    metadata: Metadata,
    /// The last hard state that was not empty; a new segment repeats it.
    state: HardState,
    /// All live segments in order; their descriptors hold the locks. Never empty.
    segments: Vec<Arc<Segment>>,
    tail: Arc<Segment>,
    /// Where the next record goes.
    offset: u64,
    /// Checksum of the last record.
    crc: u32,
    /// Bytes written since it was opened.
    written: u64,
    /// Commit index of the newest hard state that is synced.
    commit_durable: u64,
    segment_bytes: u64,
    /// `--unsafe-no-fsync`: records are written, but nobody waits for the disk.
    no_fsync: bool,
    sparse: Arc<RwLock<Sparse>>,
    buf: Vec<u8>,
    scratch: Vec<u8>,
    poisoned: Option<String>,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WalError + '_ {
    move |source| WalError::Io { path: path.to_owned(), source }
}

fn is_empty(state: &HardState) -> bool {
    state.term == 0 && state.vote == 0 && state.commit == 0
}

impl Wal {
    /// Whether a directory holds a log.
    pub fn exists(dir: &Path) -> bool {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                Path::new(&entry.file_name()).extension().is_some_and(|ext| ext == "wal")
            })
        })
    }

    /// Makes a log. It appears under its name only when it is whole.
    pub fn create(dir: &Path, metadata: Metadata) -> Result<Wal, WalError> {
        Self::create_sized(dir, metadata, SEGMENT_BYTES)
    }

    fn create_sized(dir: &Path, metadata: Metadata, segment_bytes: u64) -> Result<Wal, WalError> {
        if Self::exists(dir) {
            return Err(WalError::Exists(dir.to_owned()));
        }
        let mut tmp = dir.as_os_str().to_owned();
        tmp.push(".tmp");
        let tmp = PathBuf::from(tmp);
        for stale in [&tmp, dir] {
            match std::fs::remove_dir_all(stale) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(stale)(e)),
                _ => {}
            }
        }
        DirBuilder::new().mode(DIR_MODE).recursive(true).create(&tmp).map_err(io(&tmp))?;
        let name = segment_name(0, 0);
        let file = create_segment(&tmp.join(&name), segment_bytes)?;
        let (mut buf, mut scratch) = (Vec::new(), Vec::new());
        let mut crc = record::put_record(&mut buf, &mut scratch, 0, CRC, |_| {});
        crc = record::put_record(&mut buf, &mut scratch, crc, METADATA, |out| {
            record::put_metadata(out, metadata);
        });
        crc = record::put_record(&mut buf, &mut scratch, crc, SNAPSHOT, |out| {
            record::put_snapshot(out, 0, 0);
        });
        file.write_all_at(&buf, 0).map_err(io(&tmp))?;
        file.sync_data().map_err(io(&tmp))?;
        sync_dir(&tmp)?;
        std::fs::rename(&tmp, dir).map_err(io(dir))?;
        if let Some(parent) = dir.parent() {
            sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
        }
        let tail = Arc::new(Segment { file, path: dir.join(name), seq: 0 });
        Ok(Wal {
            dir: dir.to_owned(),
            dir_file: sync_dir(dir)?,
            metadata,
            state: HardState::default(),
            segments: vec![tail.clone()],
            tail,
            offset: buf.len() as u64,
            crc,
            written: 0,
            commit_durable: 0,
            segment_bytes,
            no_fsync: false,
            sparse: Arc::new(RwLock::new(Sparse::new())),
            buf,
            scratch,
            poisoned: None,
        })
    }

    /// Opens a log and reads it through once, checking every record. A torn write at its very end
    /// is cut off as etcd cuts it off (a copy stays as `.broken`); any other damage is an error.
    pub fn open(dir: &Path) -> Result<(Wal, Replay), WalError> {
        Self::open_sized(dir, SEGMENT_BYTES)
    }

    fn open_sized(dir: &Path, segment_bytes: u64) -> Result<(Wal, Replay), WalError> {
        let segments = open_segments(dir)?;
        let Some(tail) = segments.last().cloned() else {
            return Err(WalError::Missing(dir.to_owned()));
        };
        let mut scan = Scan { sparse: Sparse::new(), ..Scan::default() };
        let mut end = SegmentEnd::default();
        for segment in &segments {
            end = scan.segment(segment, segment.seq == tail.seq)?;
        }
        let Some(metadata) = scan.metadata else {
            return Err(tail.corrupt(end.offset, "no metadata record in the log"));
        };
        if end.torn {
            tracing::warn!(
                path = %tail.path.display(),
                offset = end.offset,
                "repairing a torn write at the end of the write-ahead log"
            );
            keep_broken(&tail)?;
        }
        // Behind the tail there may be parts of writes that never finished. They were never
        // acknowledged; left there, they would follow a later, shorter write.
        tail.file.set_len(end.offset).map_err(|e| tail.io(e))?;
        preallocate(&tail.file, &tail.path, segment_bytes.max(end.offset))?;
        tail.file.sync_all().map_err(|e| tail.io(e))?;

        let (first_index, last_index) = (scan.sparse.first, scan.sparse.last);
        let wal = Wal {
            dir: dir.to_owned(),
            dir_file: sync_dir(dir)?,
            metadata,
            state: scan.state,
            segments,
            tail,
            offset: end.offset,
            crc: scan.crc,
            written: 0,
            commit_durable: scan.state.commit,
            segment_bytes,
            no_fsync: false,
            sparse: Arc::new(RwLock::new(scan.sparse)),
            buf: Vec::new(),
            scratch: Vec::new(),
            poisoned: None,
        };
        let tail_from = first_index.max(scan.state.commit.saturating_add(1));
        let tail = wal.reader().entries(tail_from, last_index + 1, u64::MAX)?;
        let replay = Replay {
            metadata,
            hard_state: scan.state,
            first_index,
            last_index,
            term_runs: scan.term_runs,
            tail,
            snapshots: scan.snapshots,
            repaired_at: end.torn.then_some(end.offset),
        };
        Ok((wal, replay))
    }

    /// Appends entries, then the hard state; with `sync` they are on the disk when this returns.
    /// Without it they are in the file, so that readers see them, and become durable with the next
    /// sync. A segment that has passed its size is cut, which syncs in any case.
    pub fn save(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        sync: bool,
    ) -> Result<(), WalError> {
        self.check_poison()?;
        let hard_state = hard_state.filter(|state| !is_empty(state));
        if hard_state.is_none() && entries.is_empty() {
            return if sync { self.sync() } else { Ok(()) };
        }
        self.check_order(entries)?;
        let result = self.append(hard_state, entries, sync);
        self.poison_on_error(result)
    }

    /// Makes everything saved durable.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_poison()?;
        let result = self.sync_tail();
        self.poison_on_error(result)
    }

    /// From now on records are not synced (etcd v3.5.17 `server/wal/wal.go` SetUnsafeNoFsync).
    /// What happens once, at opening and to names in the directory, still is.
    pub fn stop_syncing(&mut self) {
        self.no_fsync = true;
    }

    /// A handle that reads the log, for any thread. The locks last as long as any handle.
    pub fn reader(&self) -> WalReader {
        WalReader { sparse: self.sparse.clone() }
    }

    /// Where the log ends: the last segment and the offset behind its last record.
    pub fn end(&self) -> (&Path, u64) {
        (&self.tail.path, self.offset)
    }

    /// Whose log it is.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    fn check_poison(&self) -> Result<(), WalError> {
        match &self.poisoned {
            Some(reason) => Err(WalError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    fn poison_on_error(&mut self, result: Result<(), WalError>) -> Result<(), WalError> {
        if let Err(error) = &result {
            tracing::error!(%error, "the write-ahead log failed; nothing more is written");
            self.poisoned = Some(error.to_string());
        }
        result
    }

    /// Refuses entries that would leave a gap, before anything is written.
    fn check_order(&self, entries: &[Entry]) -> Result<(), WalError> {
        let (first, mut last) = {
            let sparse = self.sparse.read();
            (sparse.first, sparse.last)
        };
        for (i, entry) in entries.iter().enumerate() {
            let lowest = if i == 0 { first } else { last + 1 };
            if entry.index < lowest || entry.index > last + 1 {
                return Err(WalError::Gap { index: entry.index, last });
            }
            last = entry.index;
        }
        Ok(())
    }

    fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        sync: bool,
    ) -> Result<(), WalError> {
        self.buf.clear();
        let mut places = Vec::with_capacity(entries.len());
        let mut crc = self.crc;
        for entry in entries {
            places.push((entry.index, self.offset + self.buf.len() as u64, crc));
            crc = record::put_record(&mut self.buf, &mut self.scratch, crc, ENTRY, |out| {
                record::put_entry(out, entry);
            });
        }
        if let Some(state) = hard_state {
            crc = record::put_record(&mut self.buf, &mut self.scratch, crc, STATE, |out| {
                record::put_state(out, state);
            });
            self.state = *state;
        }
        let buf = std::mem::take(&mut self.buf);
        let written = self.write_at_end(&buf, crc);
        self.buf = buf;
        written?;
        {
            let mut sparse = self.sparse.write();
            for (index, offset, crc) in places {
                sparse.note(index, &self.tail, offset, crc);
            }
        }
        self.buf.shrink_to(KEPT_BUFFER_BYTES);
        self.scratch.shrink_to(KEPT_BUFFER_BYTES);
        if self.offset >= self.segment_bytes {
            self.cut()
        } else if sync {
            self.sync_tail()
        } else {
            Ok(())
        }
    }

    /// Writes records behind the last one, the newest with this checksum.
    fn write_at_end(&mut self, buf: &[u8], crc: u32) -> Result<(), WalError> {
        let begin = SystemClock.now();
        failpoint::io(failpoint::WAL_WRITE)
            .and_then(|()| self.tail.file.write_all_at(buf, self.offset))
            .map_err(|e| self.tail.io(e))?;
        failpoint::hit(failpoint::WAL_WRITTEN);
        metrics().wal_write.observe(begin.elapsed().as_secs_f64());
        metrics().wal_write_bytes.add(buf.len() as i64);
        self.offset += buf.len() as u64;
        self.written += buf.len() as u64;
        self.crc = crc;
        Ok(())
    }

    fn sync_tail(&mut self) -> Result<(), WalError> {
        if self.no_fsync {
            self.commit_durable = self.state.commit;
            return Ok(());
        }
        let begin = SystemClock.now();
        let result = failpoint::io(failpoint::WAL_SYNC)
            .and_then(|()| self.tail.file.sync_data())
            .map_err(|e| self.tail.io(e));
        metrics().wal_fsync.observe(begin.elapsed().as_secs_f64());
        result?;
        self.commit_durable = self.state.commit;
        Ok(())
    }

    /// Closes the segment and goes on in a new one, which gets its name only when its head is
    /// durable.
    fn cut(&mut self) -> Result<(), WalError> {
        self.tail.file.set_len(self.offset).map_err(|e| self.tail.io(e))?;
        self.sync_tail()?;
        let last = self.sparse.read().last;
        let seq = self.tail.seq + 1;
        let path = self.dir.join(segment_name(seq, last + 1));
        let tmp = self.dir.join(NEXT_SEGMENT);
        let file = create_segment(&tmp, self.segment_bytes)?;
        self.buf.clear();
        let mut crc = record::put_record(&mut self.buf, &mut self.scratch, self.crc, CRC, |_| {});
        let metadata = self.metadata;
        crc = record::put_record(&mut self.buf, &mut self.scratch, crc, METADATA, |out| {
            record::put_metadata(out, metadata);
        });
        if !is_empty(&self.state) {
            let state = &self.state;
            crc = record::put_record(&mut self.buf, &mut self.scratch, crc, STATE, |out| {
                record::put_state(out, state);
            });
        }
        file.write_all_at(&self.buf, 0).map_err(io(&tmp))?;
        file.sync_data().map_err(io(&tmp))?;
        std::fs::rename(&tmp, &path).map_err(io(&path))?;
        self.dir_file.sync_all().map_err(io(&self.dir))?;
        tracing::info!(path = %path.display(), "created a new WAL segment");
        self.tail = Arc::new(Segment { file, path, seq });
        self.segments.push(self.tail.clone());
        self.offset = self.buf.len() as u64;
        self.crc = crc;
        Ok(())
    }
}
