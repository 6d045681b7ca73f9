//! A disk in memory that remembers every write since the first, and can be lost at any instant.

use super::super::reader::Source;
use super::Disk;
use crate::storage::fuzz::Dice;
use bytes::Bytes;
use std::io;
use std::sync::Mutex;

/// What a disk writes as one: a power failure leaves each whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Writes between two syncs.
pub(super) type Epoch = Vec<(u64, Vec<u8>)>;

#[derive(Debug, Default)]
struct State {
    /// As a reader sees it.
    file: Vec<u8>,
    /// As it was when the twin was made.
    start: Vec<u8>,
    ended: Vec<Epoch>,
    open: Epoch,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Twin(Mutex<State>);

pub(super) fn apply(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (at, end) = (offset as usize, offset as usize + bytes.len());
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}

impl Twin {
    pub(super) fn new(file: Vec<u8>) -> Twin {
        let start = file.clone();
        Twin(Mutex::new(State { file, start, ..State::default() }))
    }

    pub(super) fn file(&self) -> Bytes {
        Bytes::from(self.0.lock().unwrap().file.clone())
    }

    /// The epochs that have ended, and the file before them; they are forgotten.
    pub(super) fn take_epochs(&self) -> (Vec<u8>, Vec<Epoch>) {
        let mut state = self.0.lock().unwrap();
        assert!(state.open.is_empty());
        let start = std::mem::take(&mut state.start);
        state.start = state.file.clone();
        (start, std::mem::take(&mut state.ended))
    }
}

impl Source for Twin {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let bytes = state.file.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().file.len() as u64)
    }
}

impl Disk for Twin {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        apply(&mut state.file, offset, bytes);
        state.open.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let epoch = std::mem::take(&mut state.open);
        state.ended.push(epoch);
        Ok(())
    }
}

/// A file after a power failure within an epoch: any of its writes, in any order, any part of each.
pub(super) fn crashed(before: &[u8], epoch: &Epoch, dice: &mut Dice) -> Vec<u8> {
    let mut file = before.to_vec();
    let kept = dice.below(5);
    for (offset, bytes) in epoch {
        for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if dice.below(4) < kept {
                // A sector itself may be torn where it is not the last one that was written.
                let part = if dice.below(16) == 0 { dice.below(512) as usize } else { 512 };
                let part = part.min(sector.len());
                apply(&mut file, offset + (i * SECTOR_BYTES) as u64, &sector[..part]);
            }
        }
    }
    file
}
