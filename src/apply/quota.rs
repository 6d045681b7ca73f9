//! The space quota: whether an entry still fits.

use crate::mvcc::backend::Backend;

/// etcd's default quota, 2 GiB (v3.5.17 `quota.go` DefaultQuotaBytes).
const DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes that may be written before the engine is asked for its size again.
const ASK_EVERY: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Quota {
    /// `None`: unlimited.
    bytes_max: Option<u64>,
    measured: Option<u64>,
    since: u64,
}

impl Quota {
    pub(super) fn new(bytes: i64) -> Self {
        let bytes_max = match bytes {
            0 => Some(DEFAULT),
            _ => u64::try_from(bytes).ok(),
        };
        Self { bytes_max, measured: None, since: 0 }
    }

    /// Whether an entry that costs so much fits. One that costs nothing always does.
    pub(super) fn fits(&mut self, backend: &dyn Backend, cost: u64) -> bool {
        let Some(max) = self.bytes_max.filter(|_| cost != 0) else { return true };
        self.since += cost;
        if let Some(measured) = self.measured
            && self.since < ASK_EVERY
            && measured + self.since < max
        {
            return true;
        }
        let size = backend.size_bytes();
        self.measured = Some(size);
        self.since = 0;
        size + cost < max
    }
}
