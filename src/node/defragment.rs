//! Defragmenting: the engine rewrites its tables, then the size that is told becomes the part that
//! is in use. Nothing waits for it but its caller.

use crate::actors::checkpointer::CheckpointerHandle;
use crate::actors::handle::Answer;
use crate::actors::maintenance::Defragment;
use crate::actors::store::{Shrink, StoreActor};
use crate::base::clock::{Clock, SystemClock};
use crate::mvcc::Reader;
use crate::obs::metrics::metrics;
use crate::storage::engine::Current;
use actix::Addr;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// See the module.
#[derive(Clone)]
pub struct Defragmenter {
    pub engine: Current,
    pub store: Addr<StoreActor>,
    pub reader: Reader,
    /// Told that the database file is to become small.
    pub checkpointer: CheckpointerHandle,
    /// Told that the member does not serve meanwhile, with
    /// `--experimental-stop-grpc-service-on-defrag`.
    pub serving: Option<Arc<watch::Sender<bool>>>,
    /// Held while one runs.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// Marks one as running, for `/metrics` and the health service.
struct Running<'a>(&'a Defragmenter);

impl<'a> Running<'a> {
    fn begin(parts: &'a Defragmenter) -> Running<'a> {
        metrics().defrag_inflight.set(1);
        if let Some(serving) = &parts.serving {
            serving.send_replace(false);
        }
        Running(parts)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        metrics().defrag_inflight.set(0);
        if let Some(serving) = &self.0.serving {
            serving.send_replace(true);
        }
    }
}

impl Defragment for Defragmenter {
    fn defragment(&self) -> Answer<'static, Result<(), String>> {
        let parts = self.clone();
        // A task of its own: it is not stopped halfway because its caller has gone.
        let running = tokio::spawn(async move {
            let turn = Arc::clone(&parts.turn);
            let _turn = turn.lock().await;
            parts.run().await
        });
        Box::pin(async move { running.await.unwrap_or_else(|error| Err(error.to_string())) })
    }
}

impl Defragmenter {
    async fn run(&self) -> Result<(), String> {
        let _running = Running::begin(self);
        let begun = SystemClock.now();
        let (size, in_use) = (self.reader.size_bytes(), self.reader.size_in_use_bytes());
        let engine = self.engine.now();
        let engine_bytes = engine.disk_bytes();
        tracing::info!(
            "current-db-size-bytes" = size,
            "current-db-size-in-use-bytes" = in_use,
            "current-engine-bytes" = engine_bytes,
            "defragmenting"
        );
        let compacting = Arc::clone(&engine);
        let compacted = tokio::task::spawn_blocking(move || compacting.compact()).await;
        compacted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (done, shrunk) = oneshot::channel();
        self.store.do_send(Shrink(done));
        shrunk.await.map_err(|_| "the member is stopping".to_owned())?;
        self.checkpointer.shrink();
        let took = begun.elapsed();
        metrics().backend_defrag.observe(took.as_secs_f64());
        let (new_size, new_in_use) = (self.reader.size_bytes(), self.reader.size_in_use_bytes());
        tracing::info!(
            "current-db-size-bytes-diff" = signed_diff(new_size, size),
            "current-db-size-bytes" = new_size,
            "current-db-size-in-use-bytes-diff" = signed_diff(new_in_use, in_use),
            "current-db-size-in-use-bytes" = new_in_use,
            "current-engine-bytes" = engine.disk_bytes(),
            took = ?took,
            "finished defragmenting directory"
        );
        Ok(())
    }
}

fn signed_diff(new: u64, old: u64) -> i64 {
    i64::try_from(i128::from(new) - i128::from(old)).unwrap_or_default()
}
