//! What checkpoints may cost the disk: as much as the log costs it, and a little more each second.

use crate::base::limits::{CHECKPOINT_BYTES_AT_FIRST, CHECKPOINT_BYTES_PER_SECOND};
use std::time::{Duration, Instant};

/// A checkpoint may always save for this many of its kind.
const SAVED_MAX: u64 = 2;

/// See the module.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    /// Bytes of the log that were counted.
    log_bytes: u64,
    /// Up to when the seconds were counted.
    at: Instant,
}

impl Budget {
    /// With what there is at first.
    pub fn new(now: Instant) -> Budget {
        Budget { bytes: CHECKPOINT_BYTES_AT_FIRST, log_bytes: 0, at: now }
    }

    /// Counts what was earned since the last time. `cost` is what the next checkpoint will take: it
    /// bounds what is worth saving.
    pub fn earn(&mut self, now: Instant, log_bytes: u64, cost: u64) {
        let elapsed = now.duration_since(self.at);
        let log = log_bytes.saturating_sub(self.log_bytes);
        self.log_bytes = log_bytes;
        let time = whole_bytes(elapsed);
        if time > 0 {
            self.at = now;
        }
        let most = CHECKPOINT_BYTES_AT_FIRST.max(cost.saturating_mul(SAVED_MAX));
        self.bytes = (self.bytes + log + time).min(most);
    }

    /// Whether there is enough for it.
    pub fn affords(&self, cost: u64) -> bool {
        self.bytes >= cost
    }

    /// Pays, if need be with what is not there.
    pub fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

fn whole_bytes(elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    millis.saturating_mul(CHECKPOINT_BYTES_PER_SECOND) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_cost_what_the_log_and_time_earn() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let store = 100 * 1024 * 1024;
        assert!(budget.affords(CHECKPOINT_BYTES_AT_FIRST) && !budget.affords(store));
        // A minute alone is too little, with some log it is enough.
        budget.earn(start + Duration::from_secs(60), 0, store);
        assert!(!budget.affords(store));
        budget.earn(start + Duration::from_secs(60), 25 * 1024 * 1024, store);
        assert!(budget.affords(store));
        budget.spend(store);
        assert!(!budget.affords(5 * 1024 * 1024));
        // What was counted is not counted again, and nothing is saved beyond need.
        budget.earn(start + Duration::from_secs(60), 25 * 1024 * 1024, store);
        assert!(!budget.affords(5 * 1024 * 1024));
        budget.earn(start + Duration::from_secs(100_000), 1 << 40, store);
        assert!(budget.affords(2 * store) && !budget.affords(2 * store + 1));
        budget.spend(u64::MAX);
        assert!(!budget.affords(1) && budget.affords(0));
    }
}
