//! The space quota: whether an entry still fits.

use crate::mvcc::Reader;

/// etcd's default quota, 2 GiB (v3.5.17 `quota.go` DefaultQuotaBytes).
pub const DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// `None`: unlimited.
    bytes_max: Option<u64>,
}

impl Quota {
    pub(super) fn new(bytes: i64) -> Self {
        let bytes_max = match bytes {
            0 => Some(DEFAULT),
            _ => u64::try_from(bytes).ok(),
        };
        Self { bytes_max }
    }

    /// Whether an entry that costs so much fits beside what the file has. One that costs nothing
    /// always does.
    pub(super) fn fits(&self, size_bytes: u64, cost: u64) -> bool {
        cost == 0 || self.bytes_max.is_none_or(|max| size_bytes + cost < max)
    }

    pub(super) fn reader(&self, reader: Reader) -> QuotaReader {
        QuotaReader { quota: *self, reader }
    }
}

/// The quota as edges see it, from any thread.
#[derive(Clone)]
pub struct QuotaReader {
    quota: Quota,
    reader: Reader,
}

impl QuotaReader {
    /// Whether a request that costs so much fits. One that costs nothing always does.
    pub fn fits(&self, cost: u64) -> bool {
        self.quota.fits(self.reader.size_bytes(), cost)
    }
}
