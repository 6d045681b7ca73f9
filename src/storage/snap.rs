//! etcd's `.snap` files: where raft's log was cut, and the v2 store at that point
//! (etcd v3.5.17 `server/etcdserver/api/snap/snapshotter.go`).

use crate::pb::raftpb;
use crate::pb::snappb;
use bytes::Bytes;
use prost::Message as _;
use std::path::{Path, PathBuf};

/// What a file's name ends with.
const SUFFIX: &str = ".snap";

/// A snapshot that a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    /// Index of the last entry in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
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
    Ok(Snap { index: metadata.index, term: metadata.term, tree: snapshot.data })
}

/// The newest readable snapshot of a directory whose index and term are among `recorded`. Damaged
/// files are passed over with a warning, as etcd does.
pub fn newest(dir: &Path, recorded: &[(u64, u64)]) -> Result<Option<Snap>, SnapError> {
    let io = |source| SnapError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.ends_with(SUFFIX)));
    }
    // Names are term and index in hex of one width, so their order is that of the snapshots.
    names.sort_unstable();
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

    fn file(index: u64, term: u64) -> Vec<u8> {
        let metadata = raftpb::SnapshotMetadata { index, term, ..Default::default() };
        let snapshot = raftpb::Snapshot { data: "tree".into(), metadata: Some(metadata) };
        let data = Bytes::from(snapshot.encode_to_vec());
        snappb::Snapshot { crc: crc32c::crc32c(&data), data }.encode_to_vec()
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
