//! Which states of etcd's database file the engine's rows go with: the one that they were imported
//! from, or that was made from them.

use super::{Engine, PRIVATE, row_key};
use crate::mvcc::backend::{Backend, BackendError, Batch};
use bytes::Bytes;

/// Private row: the fingerprint of the file that was imported, or written last.
const ORIGIN_ROW: &[u8] = b"origin";
/// Private row: what tells the states between which a file that is being written may be found.
const WRITING_ROW: &[u8] = b"origin-writing";

impl Engine {
    /// The fingerprint that [`Engine::submit_origin`] or [`Engine::wrote_origin`] left.
    pub fn origin(&self) -> Result<Option<Bytes>, BackendError> {
        self.private(ORIGIN_ROW)
    }

    /// What [`Engine::writing_origin`] left, unless the file was finished.
    pub fn origin_writing(&self) -> Result<Option<Bytes>, BackendError> {
        self.private(WRITING_ROW)
    }

    fn private(&self, name: &[u8]) -> Result<Option<Bytes>, BackendError> {
        let key = row_key(PRIVATE, name);
        if let Some(row) = self.shared.overlay.read().rows.get(&key) {
            return Ok(row.value.clone());
        }
        match self.shared.rows.get(&key[..]) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) => Err(self.shared.fatal("get", &error)),
        }
    }

    /// Submits the last batch of an import together with the fingerprint of what was imported: one
    /// is there if and only if the other is. Waits until both are in the engine.
    pub fn submit_origin(&self, batch: Batch, origin: Bytes) -> Result<(), BackendError> {
        let rows = [(ORIGIN_ROW, Some(origin)), (WRITING_ROW, None)];
        self.submit_with(batch, rows.map(|(name, row)| (row_key(PRIVATE, name), row)).to_vec());
        self.sync()
    }

    /// The file is about to become another one, made from the engine's rows: from now on what was
    /// remembered of it says little. Waits until that is in the engine; a stop of the machine may
    /// undo it, which costs an import.
    pub fn writing_origin(&self, states: Bytes) -> Result<(), BackendError> {
        self.submit_rows(vec![(row_key(PRIVATE, WRITING_ROW), Some(states))], None);
        self.flush()
    }

    /// The file is written. Nobody waits for this.
    pub fn wrote_origin(&self, origin: Bytes) {
        let rows = [(ORIGIN_ROW, Some(origin)), (WRITING_ROW, None)];
        self.submit_rows(rows.map(|(name, row)| (row_key(PRIVATE, name), row)).to_vec(), None);
    }
}
