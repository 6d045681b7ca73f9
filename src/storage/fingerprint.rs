//! What tells one state of etcd's database file from another.

use super::bbolt::{self, Db};
use bytes::Bytes;
use ring::digest::{Context, SHA256};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// What of each meta page tells one state of a file from another: its header and its numbers.
const META_BYTES: u64 = 80;
/// Bytes of [`state`].
const STATE_BYTES: usize = 32;

/// Why a file has none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what bbolt writes.
    #[error(transparent)]
    File(#[from] bbolt::Error),
    /// The system refused.
    #[error("fingerprint: {0}")]
    Io(#[from] io::Error),
}

/// Whether a file is the one that it was: its meta pages, which change with every transaction, its
/// size and the time of its last change. Behind that stands its [`state`].
pub fn whole(file: &File) -> Result<Bytes, Error> {
    let metas = metas(file)?;
    let mut sum = Context::new(&SHA256);
    sum.update(&metas);
    let metadata = file.metadata()?;
    for number in [metadata.len() as i64, metadata.mtime(), metadata.mtime_nsec()] {
        sum.update(&number.to_be_bytes());
    }
    Ok([sum.finish().as_ref(), &digest(&metas)].concat().into())
}

/// The meta pages alone. What is written into free pages does not change it.
pub fn state(file: &File) -> Result<Bytes, Error> {
    Ok(digest(&metas(file)?))
}

/// What [`state`] will be when the meta page `id` is this one.
pub fn state_with(file: &File, id: u64, page: &[u8]) -> Result<Bytes, Error> {
    let mut metas = metas(file)?;
    let at = (id * META_BYTES) as usize;
    metas[at..at + META_BYTES as usize].copy_from_slice(&page[..META_BYTES as usize]);
    Ok(digest(&metas))
}

/// Whether a file that was `whole` has been changed by no transaction since.
pub fn has_state(whole: &[u8], state: &[u8]) -> bool {
    whole.get(STATE_BYTES..) == Some(state)
}

/// Whether `states`, one behind the other, have `state`.
pub fn contains(states: &[u8], state: &[u8]) -> bool {
    states.chunks(STATE_BYTES).any(|one| one == state)
}

fn digest(bytes: &[u8]) -> Bytes {
    let mut sum = Context::new(&SHA256);
    sum.update(bytes);
    Bytes::copy_from_slice(sum.finish().as_ref())
}

fn metas(file: &File) -> Result<Vec<u8>, Error> {
    let page_bytes = u64::from(Db::open(file)?.meta().page_bytes);
    let mut bytes = vec![0; 2 * META_BYTES as usize];
    let (first, second) = bytes.split_at_mut(META_BYTES as usize);
    file.read_exact_at(first, 0)?;
    file.read_exact_at(second, page_bytes)?;
    Ok(bytes)
}
