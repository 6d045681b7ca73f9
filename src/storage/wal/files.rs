//! The files of the log: their names, locks, preallocation and the copy of a broken one.

use super::reader::Segment;
use super::{WalError, io};
use rustix::fs::{FallocateFlags, FlockOperation};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Mode of the files (etcd v3.5.17 `client/pkg/fileutil` PrivateFileMode).
const FILE_MODE: u32 = 0o600;

/// The file name of a segment.
pub(super) fn segment_name(seq: u64, index: u64) -> String {
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

/// The index that a segment's name says its entries begin with.
pub(super) fn first_index(segment: &Segment) -> Option<u64> {
    parse_name(segment.path.file_name()?.to_str()?).map(|(_, index)| index)
}

/// Takes the exclusive lock on a segment.
///
/// etcd takes an open-file-description write lock (F_OFD_SETLK). No safe wrapper offers that, so
/// this takes two that together do the same: a POSIX write lock over the whole file, which
/// conflicts with etcd's in both directions, and a flock, which also excludes a second log in this
/// process. A POSIX lock ends when *any* descriptor of the file is closed in this process: a
/// segment is opened once and all reading goes through that descriptor.
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
pub(super) fn preallocate(file: &File, path: &Path, size: u64) -> Result<(), WalError> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INTR) => {
            file.set_len(size).map_err(io(path))
        }
        Err(errno) => Err(io(path)(errno.into())),
    }
}

pub(super) fn create_segment(path: &Path, size: u64) -> Result<File, WalError> {
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

pub(super) fn sync_dir(path: &Path) -> Result<File, WalError> {
    let file = File::open(path).map_err(io(path))?;
    file.sync_all().map_err(io(path))?;
    Ok(file)
}

/// Opens and locks every segment of a directory, in order.
pub(super) fn open_segments(dir: &Path) -> Result<Vec<Arc<Segment>>, WalError> {
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
pub(super) fn keep_broken(segment: &Segment) -> Result<(), WalError> {
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
