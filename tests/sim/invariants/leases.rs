//! A lease lives at least as long as its owner was told, and goes only through the log.

use super::Check;
use std::collections::BTreeMap;

struct Lease {
    ttl: u64,
    /// When it was granted or, so that a quorum knew, renewed, in microseconds.
    since: u64,
}

#[derive(Default)]
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
    expired: usize,
}

impl Leases {
    /// The first time that a grant is applied; the TTL in seconds.
    pub fn granted(&mut self, id: i64, ttl: i64, now: u64) {
        let ttl = u64::try_from(ttl).unwrap_or(0) * 1_000_000;
        self.leases.insert(id, Lease { ttl, since: now });
    }

    /// A renewal that began at `since` was acknowledged.
    pub fn renewed(&mut self, id: i64, since: u64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.since = lease.since.max(since);
        }
    }

    /// The first time that a revoke is applied: a client asked for it, or the time was over.
    pub fn revoked(&mut self, id: i64, now: u64, expired: bool) -> Check {
        let Some(lease) = self.leases.remove(&id) else { return Ok(()) };
        self.expired += usize::from(expired);
        if expired && now < lease.since + lease.ttl {
            let early = lease.since + lease.ttl - now;
            return Err(format!("lease {id} is revoked {early} µs before its time"));
        }
        Ok(())
    }

    /// Leases that there are, and TTLs in seconds.
    pub fn there(&self) -> BTreeMap<i64, i64> {
        self.leases.iter().map(|(id, lease)| (*id, (lease.ttl / 1_000_000) as i64)).collect()
    }

    /// Leases that ended by themselves.
    pub fn expired(&self) -> usize {
        self.expired
    }
}
