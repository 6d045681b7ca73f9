//! Snapshots on their way to members. Until a while after, the log keeps what it has: who has got
//! one needs the entries behind it next, and would need another if they were gone.

use crate::base::limits::SNAPSHOTS_SENDING_MAX;
use std::time::{Duration, Instant};

/// How long the log is kept after a snapshot has reached its member
/// (etcd v3.5.17 `server.go` releaseDelayAfterSnapshot).
const KEPT_AFTER: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub struct Sending {
    count: usize,
    kept_until: Option<Instant>,
}

impl Sending {
    /// Counts one more, unless there are too many.
    pub fn begin(&mut self) -> bool {
        let begins = self.count < SNAPSHOTS_SENDING_MAX;
        self.count += usize::from(begins);
        begins
    }

    /// One has reached its member, and the log is to be kept for a while, or not.
    pub fn end(&mut self, kept: bool, now: Instant) {
        self.count = self.count.saturating_sub(1);
        if kept {
            self.kept_until = Some(now + KEPT_AFTER);
        }
    }

    /// Whether the log is to be kept.
    pub fn keeps_log(&self, now: Instant) -> bool {
        self.count > 0 || self.kept_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_kept_while_a_snapshot_is_on_its_way_and_for_a_while_after() {
        let (mut sending, start) = (Sending::default(), Instant::now());
        assert!(!sending.keeps_log(start));
        assert!(sending.begin() && sending.begin());
        sending.end(false, start);
        assert!(sending.keeps_log(start));
        sending.end(true, start);
        assert!(sending.keeps_log(start + KEPT_AFTER - Duration::from_millis(1)));
        assert!(!sending.keeps_log(start + KEPT_AFTER));
        assert!(sending.begin());
        sending.end(false, start + KEPT_AFTER);
        assert!(!sending.keeps_log(start + KEPT_AFTER), "the follower gets another");
        assert!((0..SNAPSHOTS_SENDING_MAX).all(|_| sending.begin()) && !sending.begin());
    }
}
