//! The space quota: whether an entry still fits.

use crate::mvcc::backend::Backend;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// etcd's default quota, 2 GiB (v3.5.17 `quota.go` DefaultQuotaBytes).
const DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes that may be written before the engine is asked for its size again.
const ASK_EVERY: u64 = 1024 * 1024;

fn bytes_max(bytes: i64) -> Option<u64> {
    match bytes {
        0 => Some(DEFAULT),
        _ => u64::try_from(bytes).ok(),
    }
}

#[derive(Debug)]
pub(super) struct Quota {
    /// `None`: unlimited.
    bytes_max: Option<u64>,
    measured: Option<u64>,
    since: u64,
    /// The size as last known, for [`QuotaReader`].
    used: Arc<AtomicU64>,
}

impl Quota {
    pub(super) fn new(bytes: i64) -> Self {
        Self { bytes_max: bytes_max(bytes), measured: None, since: 0, used: Arc::default() }
    }

    /// Whether an entry that costs so much fits. One that costs nothing always does.
    pub(super) fn fits(&mut self, backend: &dyn Backend, cost: u64) -> bool {
        let Some(max) = self.bytes_max.filter(|_| cost != 0) else { return true };
        self.since += cost;
        if let Some(measured) = self.measured
            && self.since < ASK_EVERY
            && measured + self.since < max
        {
            self.used.store(measured + self.since, Ordering::Relaxed);
            return true;
        }
        let size = backend.size_bytes();
        self.measured = Some(size);
        self.since = 0;
        self.used.store(size, Ordering::Relaxed);
        size + cost < max
    }

    pub(super) fn reader(&self, backend: Arc<dyn Backend>) -> QuotaReader {
        self.used.store(backend.size_bytes(), Ordering::Relaxed);
        QuotaReader { bytes_max: self.bytes_max, used: self.used.clone(), backend }
    }
}

/// The quota as edges see it, from any thread.
#[derive(Clone)]
pub struct QuotaReader {
    bytes_max: Option<u64>,
    used: Arc<AtomicU64>,
    backend: Arc<dyn Backend>,
}

impl QuotaReader {
    /// Whether a request that costs so much fits. One that costs nothing always does.
    pub fn fits(&self, cost: u64) -> bool {
        let Some(max) = self.bytes_max.filter(|_| cost != 0) else { return true };
        if self.used.load(Ordering::Relaxed) + cost < max {
            return true;
        }
        // Only what is applied moves the number, and nothing more is applied once it is at the
        // limit: the engine may have shrunk since.
        let size = self.backend.size_bytes();
        self.used.store(size, Ordering::Relaxed);
        size + cost < max
    }
}
