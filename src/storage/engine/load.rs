//! Filling an empty engine: rows in key order go straight to tables, past journal and memtable.

use super::{Engine, row_key};
use crate::mvcc::backend::{BackendError, Bucket};
use std::panic::AssertUnwindSafe;

/// Takes a row: key and value.
pub type Put<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), BackendError>;

impl Engine {
    /// Fills a bucket of an engine that has no rows with those that `fill` hands over, in ascending
    /// order; nothing else may be written meanwhile. They are there when this returns, and after a
    /// sync for good; if `fill` fails none of them is.
    pub fn load<E: From<BackendError>>(
        &self,
        bucket: Bucket,
        fill: impl FnOnce(Put<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let shared = &*self.shared;
        let failed = |error: fjall::Error| shared.fatal("load", &error);
        let mut rows = shared.rows.start_ingestion().map_err(failed)?;
        fill(&mut |key, value| rows.write(&row_key(bucket as u8, key)[..], value).map_err(failed))?;
        match std::panic::catch_unwind(AssertUnwindSafe(|| rows.finish())) {
            Ok(finished) => Ok(finished.map_err(failed)?),
            Err(_) => Err(shared.fatal("load", &"the engine panicked").into()),
        }
    }
}
