//! Where an engine's first rows came from, if not from the log.

use super::{Engine, PRIVATE, row_key};
use crate::mvcc::backend::{BackendError, Batch};
use bytes::Bytes;

/// Private row: the fingerprint of the file that was imported.
const ORIGIN_ROW: &[u8] = b"origin";

impl Engine {
    /// The fingerprint that [`Engine::submit_origin`] left.
    pub fn origin(&self) -> Result<Option<Bytes>, BackendError> {
        match self.shared.rows.get(&row_key(PRIVATE, ORIGIN_ROW)[..]) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) => Err(self.shared.fatal("get", &error)),
        }
    }

    /// Submits the last batch of an import together with the fingerprint of what was imported: one
    /// is there if and only if the other is. Waits until both are in the engine.
    pub fn submit_origin(&self, batch: Batch, origin: Bytes) -> Result<(), BackendError> {
        self.submit_with(batch, Some((row_key(PRIVATE, ORIGIN_ROW), origin)));
        self.sync()
    }
}
