//! etcd's `.snap` files: where raft's log was cut, and the v2 store at that point
//! (etcd v3.5.17 `server/etcdserver/api/snap/snapshotter.go`).

use super::import;
use crate::base::clock::{Clock, SystemClock};
use crate::base::failpoint;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{self, ConfState, SnapshotMetadata};
use crate::pb::snappb;
use bytes::Bytes;
use prost::Message as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What a file's name ends with.
const SUFFIX: &str = ".snap";
/// And that of a database which a leader sent with a snapshot.
const DATABASE_SUFFIX: &str = ".snap.db";
/// What the name of such a database begins with while it comes in; etcd removes such files, too.
const TEMPORARY: &str = "db.tmp.rusd.received";
/// Mode of the files.
const FILE_MODE: u32 = 0o600;

/// A snapshot that a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    /// Index of the last entry in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The members raft had then.
    pub conf_state: ConfState,
    /// The v2 store, in JSON.
    pub tree: Bytes,
}

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapError {
    /// The system refused.
    #[error("snapshot: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error("snapshot: {path}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a file's bytes.
pub fn parse(bytes: Bytes) -> Result<Snap, String> {
    let text = |error: prost::DecodeError| error.to_string();
    if bytes.is_empty() {
        return Err("is empty".to_owned());
    }
    let file = snappb::Snapshot::decode(bytes).map_err(text)?;
    let data = file.data;
    if data.is_empty() || file.crc == 0 {
        return Err("holds nothing".to_owned());
    }
    if crc32c::crc32c(&data) != file.crc {
        return Err("its checksum is wrong".to_owned());
    }
    let snapshot = raftpb::Snapshot::decode(data).map_err(text)?;
    let metadata = snapshot.metadata.unwrap_or_default();
    let conf_state = metadata.conf_state.unwrap_or_default();
    Ok(Snap { index: metadata.index, term: metadata.term, conf_state, tree: snapshot.data })
}

/// The bytes of a file that holds the snapshot.
fn file_bytes(snap: &Snap) -> Vec<u8> {
    let conf_state = Some(snap.conf_state.clone());
    let metadata = Some(SnapshotMetadata { conf_state, index: snap.index, term: snap.term });
    let data = Bytes::from(raftpb::Snapshot { data: snap.tree.clone(), metadata }.encode_to_vec());
    snappb::Snapshot { crc: crc32c::crc32c(&data), data }.encode_to_vec()
}

/// Writes a snapshot to a file of its own, durably. What a failure leaves is no snapshot.
pub fn save(dir: &Path, snap: &Snap) -> Result<(), SnapError> {
    let begun = SystemClock.now();
    let name = format!("{:016x}-{:016x}{SUFFIX}", snap.term, snap.index);
    let path = dir.join(name);
    let bytes = file_bytes(snap);
    metrics().snap_marshal.observe(begun.elapsed().as_secs_f64());
    let write = || -> io::Result<()> {
        failpoint::io(failpoint::SNAP_WRITE)?;
        let options = &mut OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(FILE_MODE);
        let mut file = options.open(&path)?;
        file.write_all(&bytes)?;
        let begun = SystemClock.now();
        file.sync_all()?;
        metrics().snap_fsync.observe(begun.elapsed().as_secs_f64());
        File::open(dir)?.sync_all()
    };
    if let Err(source) = write() {
        // If that fails too it is not recorded in the log, and so passed over.
        let _ = std::fs::remove_file(&path);
        return Err(SnapError::Io { path, source });
    }
    metrics().snap_save.observe(begun.elapsed().as_secs_f64());
    Ok(())
}

/// The database that comes with a leader's snapshot, on its way into a file.
#[derive(Debug)]
pub struct Received {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    index: u64,
    begun: Instant,
}

impl Received {
    /// Of the snapshot at `index`, for the directory `dir`.
    pub fn begin(dir: &Path, index: u64) -> Result<Received, SnapError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!("{TEMPORARY}.{index:x}.{number}"));
        let options = &mut OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
        let file = options.open(&temporary);
        let file = file.map_err(|source| SnapError::Io { path: temporary.clone(), source })?;
        let path = dir.join(format!("{index:016x}{DATABASE_SUFFIX}"));
        Ok(Received { file, temporary, path, index, begun: SystemClock.now() })
    }

    /// Adds to it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SnapError> {
        let written = failpoint::io(failpoint::SNAP_RECEIVE);
        let written = written.and_then(|()| self.file.write_all(bytes));
        written.map_err(|source| SnapError::Io { path: self.temporary.clone(), source })
    }

    /// Looks it through, and gives it its name, durably: whoever has taken the snapshot's message
    /// finds it there (etcd v3.5.17 `api/snap/db.go` SaveDBFrom).
    pub fn finish(self) -> Result<(), SnapError> {
        let io = |source| SnapError::Io { path: self.temporary.clone(), source };
        let corrupt = |reason: String| SnapError::Corrupt { path: self.path.clone(), reason };
        let reached = import::check(&self.file).map_err(|error| corrupt(error.to_string()))?;
        if reached < self.index {
            let index = self.index;
            return Err(corrupt(format!("it is at index {reached}, the snapshot at {index}")));
        }
        let begun = SystemClock.now();
        self.file.sync_all().map_err(io)?;
        metrics().snap_db_fsync.observe(begun.elapsed().as_secs_f64());
        std::fs::rename(&self.temporary, &self.path).map_err(io)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        metrics().snap_db_save.observe(self.begun.elapsed().as_secs_f64());
        failpoint::hit(failpoint::SNAP_RECEIVED);
        Ok(())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // It is not there any more if it has its name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Removes what the snapshot at `index` has made useless: the oldest files beyond `keep` (0: none),
/// and databases that came with older snapshots (etcd v3.5.17 `snapshotter.go` ReleaseSnapDBs,
/// `server.go` purgeFile).
pub fn purge(dir: &Path, index: u64, keep: usize) -> Result<(), SnapError> {
    let remove = |name: &String| {
        let path = dir.join(name);
        tracing::info!(path = %path.display(), "purged a snapshot file");
        std::fs::remove_file(&path).map_err(|source| SnapError::Io { path, source })
    };
    let snaps = names(dir, SUFFIX)?;
    let count = if keep == 0 { 0 } else { snaps.len().saturating_sub(keep) };
    snaps[..count].iter().try_for_each(remove)?;
    let received = names(dir, DATABASE_SUFFIX)?;
    let at = |name: &String| u64::from_str_radix(name.strip_suffix(DATABASE_SUFFIX)?, 16).ok();
    received.iter().filter(|name| at(name).is_some_and(|at| at < index)).try_for_each(remove)
}

/// Files of a directory whose names end so, in order.
fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, SnapError> {
    let io = |source| SnapError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.ends_with(suffix)));
    }
    // Names are term and index in hex of one width, so their order is that of the snapshots.
    names.sort_unstable();
    Ok(names)
}

/// The newest readable snapshot of a directory whose index and term are among `recorded`. Damaged
/// files are passed over with a warning, as etcd does.
pub fn newest(dir: &Path, recorded: &[(u64, u64)]) -> Result<Option<Snap>, SnapError> {
    let names = names(dir, SUFFIX)?;
    for name in names.into_iter().rev() {
        let path = dir.join(name);
        let read = std::fs::read(&path);
        let bytes = read.map_err(|source| SnapError::Io { path: path.clone(), source })?;
        match parse(bytes.into()) {
            Ok(snap) if recorded.contains(&(snap.index, snap.term)) => return Ok(Some(snap)),
            Ok(snap) => tracing::info!(
                path = %path.display(),
                index = snap.index,
                "passed over a snapshot that the log does not have"
            ),
            Err(reason) => {
                let error = SnapError::Corrupt { path, reason };
                tracing::warn!(%error, "passed over a damaged snapshot");
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::bbolt::Writer;

    fn snap(index: u64, term: u64) -> Snap {
        let conf_state = ConfState { voters: vec![3, 4], ..ConfState::default() };
        Snap { index, term, conf_state, tree: "tree".into() }
    }

    fn file(index: u64, term: u64) -> Vec<u8> {
        file_bytes(&snap(index, term))
    }

    #[test]
    fn what_is_saved_is_found_until_it_is_purged() {
        let tmp = tempfile::tempdir().unwrap();
        let all: Vec<(u64, u64)> = (1..=5).map(|n| (n * 10, 2)).collect();
        for (index, term) in &all {
            save(tmp.path(), &snap(*index, *term)).unwrap();
            assert_eq!(newest(tmp.path(), &all).unwrap(), Some(snap(*index, *term)));
        }
        for index in [1, 0x28, 0x33] {
            std::fs::write(tmp.path().join(format!("{index:016x}.snap.db")), b"x").unwrap();
        }
        purge(tmp.path(), 0x28, 0).unwrap();
        assert_eq!(names(tmp.path(), SUFFIX).unwrap().len(), 5);
        assert_eq!(names(tmp.path(), DATABASE_SUFFIX).unwrap().len(), 2);
        purge(tmp.path(), 50, 2).unwrap();
        assert_eq!(names(tmp.path(), SUFFIX).unwrap()[0], format!("{:016x}-{:016x}.snap", 2, 40));
        assert_eq!(newest(tmp.path(), &all).unwrap(), Some(snap(50, 2)));
        assert_eq!(newest(tmp.path(), &all[..3]).unwrap(), None);
    }

    #[test]
    fn a_received_database_gets_its_name_when_it_is_sound() {
        let tmp = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Vec::new());
        writer.bucket(b"key").unwrap();
        writer.bucket(b"meta").unwrap();
        writer.row(b"consistent_index", &44u64.to_be_bytes()).unwrap();
        let (plan, pages) = writer.finish().unwrap();
        let database = [plan.meta_pages(1), pages].concat();
        let receive = |index: u64, bytes: &[u8]| {
            let mut received = Received::begin(tmp.path(), index).unwrap();
            bytes.chunks(1000).for_each(|part| received.write(part).unwrap());
            received.finish().map_err(|error| error.to_string())
        };
        let files = || std::fs::read_dir(tmp.path()).unwrap().count();
        receive(44, &database).unwrap();
        receive(44, &database).unwrap();
        let named = tmp.path().join("000000000000002c.snap.db");
        assert_eq!(std::fs::read(named).unwrap(), database);
        let late = receive(45, &database).unwrap_err();
        assert!(late.contains("it is at index 44, the snapshot at 45"), "{late}");
        for bytes in [&database[..database.len() - 1], &[][..], &[7; 9000]] {
            assert!(receive(44, bytes).is_err());
        }
        drop(Received::begin(tmp.path(), 50).unwrap());
        assert_eq!(files(), 1);
    }

    #[test]
    fn the_newest_that_is_whole_and_recorded_counts() {
        let tmp = tempfile::tempdir().unwrap();
        let write = |index: u64, term: u64, bytes: &[u8]| {
            let name = format!("{term:016x}-{index:016x}.snap");
            std::fs::write(tmp.path().join(name), bytes).unwrap();
        };
        let found = |recorded: &[(u64, u64)]| {
            newest(tmp.path(), recorded).unwrap().map(|snap| (snap.index, snap.term))
        };
        assert_eq!(found(&[(0, 0)]), None);
        write(9, 2, &file(9, 2));
        write(200, 2, &file(200, 2));
        write(300, 3, &file(300, 3)[..20]);
        let all = [(0, 0), (9, 2), (200, 2), (300, 3)];
        assert_eq!(found(&all), Some((200, 2)));
        assert_eq!(found(&all[..2]), Some((9, 2)));
        assert_eq!(found(&all[..1]), None);
        assert_eq!(parse(file(9, 2).into()).unwrap().tree, "tree");
    }

    #[test]
    fn damage_anywhere_is_an_error_or_means_nothing() {
        let sound = file(9, 2);
        let snap = parse(sound.clone().into()).unwrap();
        for at in 0..sound.len() {
            for bit in 0..8 {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << bit;
                // The last byte of a number has bits that count for nothing.
                let misread = parse(bytes.into()).is_ok_and(|read| read != snap);
                assert!(!misread, "byte {at}");
            }
            assert!(parse(sound[..at].to_vec().into()).is_err(), "cut at {at}");
        }
    }
}
