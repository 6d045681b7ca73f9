//! etcd's write-ahead log, byte for byte: it is the raft log, and etcd's own tools read it.
//! Uses: base, pb

mod reader;
mod record;
#[cfg(test)]
mod tests;

use crate::base::failpoint;
use crate::pb::raftpb::{Entry, HardState};
use parking_lot::RwLock;
use reader::{Frame, Frames, Segment, Sparse};
use record::{CRC, ENTRY, METADATA, SNAPSHOT, STATE};
use rustix::fs::{FallocateFlags, FlockOperation};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use reader::WalReader;

/// Preallocated size of a segment; the one that passes it is cut (etcd v3.5.17
/// `server/wal/wal.go` SegmentSizeBytes).
const SEGMENT_BYTES: u64 = 64 * 1000 * 1000;
/// Mode of the files (etcd v3.5.17 `client/pkg/fileutil` PrivateFileMode).
const FILE_MODE: u32 = 0o600;
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
    segment_bytes: u64,
    sparse: Arc<RwLock<Sparse>>,
    buf: Vec<u8>,
    scratch: Vec<u8>,
    poisoned: Option<String>,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WalError + '_ {
    move |source| WalError::Io { path: path.to_owned(), source }
}

fn segment_name(seq: u64, index: u64) -> String {
    format!("{seq:016x}-{index:016x}.wal")
}

/// (sequence, first index) of a segment's file name.
fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (seq, index) = name.strip_suffix(".wal")?.split_once('-')?;
    if seq.len() != 16 || index.len() != 16 {
        return None;
    }
    Some((u64::from_str_radix(seq, 16).ok()?, u64::from_str_radix(index, 16).ok()?))
}

/// Takes the exclusive lock on a segment.
///
/// etcd takes an open-file-description write lock (F_OFD_SETLK). No safe wrapper offers that, so
/// this takes two that together do the same: a POSIX write lock over the whole file, which
/// conflicts with etcd's in both directions, and a flock, which also excludes a second log in this
/// process. A POSIX lock ends when *any* descriptor of the file is closed in this process: a segment
/// is opened once and all reading goes through that descriptor.
fn lock(file: &File, path: &Path) -> Result<(), WalError> {
    for attempt in [
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive),
        rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive),
    ] {
        match attempt {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                return Err(WalError::Locked(path.to_owned()));
            }
            Err(errno) => return Err(io(path)(errno.into())),
        }
    }
    Ok(())
}

/// Makes the file `size` bytes long with zeros behind its end.
fn preallocate(file: &File, path: &Path, size: u64) -> Result<(), WalError> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INTR) => {
            file.set_len(size).map_err(io(path))
        }
        Err(errno) => Err(io(path)(errno.into())),
    }
}

fn create_segment(path: &Path, size: u64) -> Result<File, WalError> {
    // Removed first, not truncated: opening and closing could drop someone's lock, and what a
    // crash left in a temporary file must not come back behind the tail.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(path)(e)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(io(path))?;
    lock(&file, path)?;
    preallocate(&file, path, size)?;
    Ok(file)
}

fn sync_dir(path: &Path) -> Result<File, WalError> {
    let file = File::open(path).map_err(io(path))?;
    file.sync_all().map_err(io(path))?;
    Ok(file)
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
            segment_bytes,
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
            segment_bytes,
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
        failpoint::io(failpoint::WAL_WRITE)
            .and_then(|()| self.tail.file.write_all_at(&self.buf, self.offset))
            .map_err(|e| self.tail.io(e))?;
        failpoint::hit(failpoint::WAL_WRITTEN);
        self.offset += self.buf.len() as u64;
        self.crc = crc;
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

    fn sync_tail(&self) -> Result<(), WalError> {
        failpoint::io(failpoint::WAL_SYNC)
            .and_then(|()| self.tail.file.sync_data())
            .map_err(|e| self.tail.io(e))
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

/// Opens and locks every segment of a directory, in order.
fn open_segments(dir: &Path) -> Result<Vec<Arc<Segment>>, WalError> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(WalError::Missing(dir.to_owned()));
        }
        other => other.map_err(io(dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io(dir))?.file_name();
        match name.to_str().and_then(parse_name) {
            Some((seq, index)) => names.push((seq, index, name)),
            None if name.as_encoded_bytes().ends_with(b".tmp") => {}
            None => tracing::warn!(path = ?name, "ignored file in WAL directory"),
        }
    }
    names.sort_unstable();
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for (seq, _, name) in names {
        let path = dir.join(name);
        if let Some(before) = segments.last()
            && before.seq + 1 != seq
        {
            return Err(WalError::Corrupt {
                file: path,
                offset: 0,
                reason: format!("segment {:x} comes before it, one is missing", before.seq),
            });
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io(&path))?;
        lock(&file, &path)?;
        segments.push(Arc::new(Segment { file, path, seq }));
    }
    Ok(segments)
}

/// Copies a segment that is about to be repaired, as etcd does.
fn keep_broken(segment: &Segment) -> Result<(), WalError> {
    const CHUNK: usize = 1024 * 1024;
    let mut path = segment.path.as_os_str().to_owned();
    path.push(".broken");
    let path = PathBuf::from(path);
    let copy = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(io(&path))?;
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let read = segment.file.read_at(&mut buf, at).map_err(|e| segment.io(e))?;
        if read == 0 {
            break;
        }
        copy.write_all_at(&buf[..read], at).map_err(io(&path))?;
        at += read as u64;
    }
    copy.sync_all().map_err(io(&path))
}

/// Where the records of a segment end.
#[derive(Clone, Copy, Default)]
struct SegmentEnd {
    offset: u64,
    torn: bool,
}

/// What the open pass gathers.
#[derive(Default)]
struct Scan {
    crc: u32,
    metadata: Option<Metadata>,
    state: HardState,
    sparse: Sparse,
    term_runs: Vec<(u64, u64)>,
    snapshots: Vec<(u64, u64)>,
}

impl Scan {
    fn segment(&mut self, segment: &Arc<Segment>, last: bool) -> Result<SegmentEnd, WalError> {
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
                if entry.index == 0 || !self.sparse.note(entry.index, segment, offset, before) {
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
                if snapshot.0 > self.sparse.last {
                    self.sparse.restart(snapshot.0);
                    self.term_runs.clear();
                }
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
