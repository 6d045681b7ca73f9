//! Ids of requests, and of what else needs one that nobody else draws.

use crate::base::ids::MemberId;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Draws ids that no other member and no earlier life of this one draws: member, time, counter
/// (etcd v3.5.17 `pkg/idutil`).
#[derive(Debug)]
pub struct Ids {
    prefix: u64,
    suffix: AtomicU64,
}

impl Ids {
    /// `unix` is the wall clock at start.
    pub fn new(member: MemberId, unix: Duration) -> Ids {
        let millis = unix.as_millis() as u64 & ((1 << 40) - 1);
        Ids { prefix: (member.0 & 0xffff) << 48, suffix: AtomicU64::new(millis << 8) }
    }

    /// The next id.
    pub fn next(&self) -> u64 {
        let suffix = self.suffix.fetch_add(1, Ordering::Relaxed) + 1;
        self.prefix | (suffix & ((1 << 48) - 1))
    }
}
