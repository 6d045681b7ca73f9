//! The lease table: who exists, with which TTL, and which keys hang on it; all members agree on it.
//! When leases end, only the leader knows: [`schedule`].
//! Uses: base, mvcc, pb

pub mod schedule;
#[cfg(test)]
mod tests;

use crate::base::error::{Error, Result};
use crate::base::ids::LeaseId;
use crate::mvcc::backend::{Backend, BackendError, Bucket, Op};
use crate::mvcc::size::row_cost;
use crate::pb::leasepb;
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use crossbeam_skiplist::{SkipMap, SkipSet};
use prost::Message;
use schedule::Granted;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Longest TTL in seconds (etcd v3.5.17 `lease.MaxLeaseTTL`).
pub const TTL_MAX: i64 = 9_000_000_000;

#[derive(Debug)]
struct Lease {
    ttl: i64,
    remaining: AtomicI64,
    /// What its row costs, see [`row_cost`]. The writer's only.
    cost: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    leases: SkipMap<i64, Arc<Lease>>,
    keys: SkipSet<(i64, Bytes)>,
    lease_of: SkipMap<Bytes, i64>,
}

/// The leases, for any number of readers on any thread.
#[derive(Clone, Debug)]
pub struct LeaseReader {
    /// Another one takes its place when the member gets a leader's snapshot.
    slot: Arc<ArcSwap<Shared>>,
}

impl LeaseReader {
    fn shared(&self) -> Guard<Arc<Shared>> {
        self.slot.load()
    }

    /// All leases, ascending.
    pub fn list(&self) -> Vec<LeaseId> {
        self.shared().leases.iter().map(|entry| LeaseId(*entry.key())).collect()
    }

    /// The granted TTL of a lease, in seconds.
    pub fn get(&self, id: LeaseId) -> Option<i64> {
        self.shared().leases.get(&id.0).map(|entry| entry.value().ttl)
    }

    /// All leases, ascending, with what a leader starts from.
    pub fn granted(&self) -> Vec<Granted> {
        let shared = self.shared();
        let granted = shared.leases.iter().map(|entry| {
            let remaining = entry.value().remaining.load(Ordering::Relaxed);
            Granted { id: LeaseId(*entry.key()), ttl: entry.value().ttl, remaining }
        });
        granted.collect()
    }

    /// How many keys hang on a lease, counted up to `max`.
    pub fn count_keys(&self, id: LeaseId, max: usize) -> usize {
        let shared = self.shared();
        let keys = shared.keys.range((id.0, Bytes::new())..);
        keys.take_while(|entry| entry.value().0 == id.0).take(max).count()
    }

    /// The keys that hang on a lease, in order.
    pub fn keys(&self, id: LeaseId) -> Vec<Bytes> {
        let shared = self.shared();
        let keys = shared.keys.range((id.0, Bytes::new())..);
        let keys = keys.take_while(|entry| entry.value().0 == id.0);
        keys.map(|entry| entry.value().1.clone()).collect()
    }

    /// The lease that a key hangs on.
    pub fn lease_of(&self, key: &[u8]) -> Option<LeaseId> {
        self.shared().lease_of.get(key).map(|entry| LeaseId(*entry.value()))
    }
}

/// The writer's side of the table.
#[derive(Debug)]
pub struct LeaseTable {
    shared: Arc<Shared>,
    reader: LeaseReader,
    min_ttl: i64,
    persist_checkpoints: bool,
    cost: u64,
}

impl LeaseTable {
    /// Reads bucket Lease and hangs up the keys; a key whose lease is gone hangs on none.
    pub fn open(
        backend: &dyn Backend,
        min_ttl: i64,
        persist_checkpoints: bool,
        leased: BTreeMap<Bytes, i64>,
    ) -> std::result::Result<Self, BackendError> {
        let shared = Arc::<Shared>::default();
        let reader = LeaseReader { slot: Arc::new(ArcSwap::new(shared.clone())) };
        let mut table = Self { shared, reader, min_ttl, persist_checkpoints, cost: 0 };
        backend.try_scan(Bucket::Lease, &[], None, &mut |key, value| {
            let row = leasepb::Lease::decode(value.as_ref())
                .map_err(|error| BackendError(format!("a row of bucket lease: {error}")))?;
            let cost = row_cost(key.len(), value.len());
            table.insert(row.id, row.ttl.max(min_ttl), row.remaining_ttl, cost);
            Ok(ControlFlow::Continue(()))
        })?;
        for (key, lease) in leased {
            if table.contains(LeaseId(lease)) {
                table.hang(&key, lease);
            }
        }
        Ok(table)
    }

    /// Takes the place of another table: its readers find this one from now on.
    pub fn replace(&mut self, before: &LeaseTable) {
        self.reader = before.reader();
        self.reader.slot.store(Arc::clone(&self.shared));
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn insert(&mut self, id: i64, ttl: i64, remaining: i64, cost: u64) {
        let (remaining, lease_cost) = (AtomicI64::new(remaining), AtomicU64::new(cost));
        let lease = Arc::new(Lease { ttl, remaining, cost: lease_cost });
        self.shared().leases.insert(id, lease);
        self.cost += cost;
    }

    /// The cost of bucket Lease, see [`row_cost`]: known here, so that none of the many entries
    /// about leases has to ask the engine what it removes or replaces.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// A handle for readers.
    pub fn reader(&self) -> LeaseReader {
        self.reader.clone()
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: LeaseId) -> bool {
        self.shared().leases.contains_key(&id.0)
    }

    /// Grants a lease: the TTL it got and its row.
    pub fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<(i64, Op)> {
        if id.0 == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > TTL_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.contains(id) {
            return Err(Error::LeaseExist);
        }
        let ttl = ttl.max(self.min_ttl);
        let (op, cost) = row(id, ttl, 0);
        self.insert(id.0, ttl, 0, cost);
        Ok((ttl, op))
    }

    /// Removes a lease and gives the removal of its row. Its keys are deleted by the caller.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Op> {
        let removed = self.shared().leases.remove(&id.0).ok_or(Error::LeaseNotFound)?;
        let cost = removed.value().cost.load(Ordering::Relaxed);
        drop(removed);
        self.cost -= cost;
        Ok((Bucket::Lease, row_key(id), None))
    }

    /// Notes the remaining TTL. `None` if there is no such lease; otherwise its row, if checkpoints
    /// are persisted.
    pub fn checkpoint(&mut self, id: LeaseId, remaining_ttl: i64) -> Option<Option<Op>> {
        let shared = Arc::clone(&self.shared);
        let entry = shared.leases.get(&id.0)?;
        let lease = entry.value();
        lease.remaining.store(remaining_ttl, Ordering::Relaxed);
        Some(self.persist_checkpoints.then(|| {
            let (op, cost) = row(id, lease.ttl, remaining_ttl);
            self.cost = self.cost + cost - lease.cost.swap(cost, Ordering::Relaxed);
            op
        }))
    }

    /// Hangs a key on a lease, or on none for 0, and off the one before.
    pub fn hang(&mut self, key: &[u8], lease: i64) {
        let shared = self.shared();
        if lease == 0 && shared.lease_of.is_empty() {
            return;
        }
        let old = shared.lease_of.get(key).map(|entry| *entry.value());
        if old == Some(lease) || old.is_none() && lease == 0 {
            return;
        }
        let key = Bytes::copy_from_slice(key);
        if let Some(old) = old {
            shared.keys.remove(&(old, key.clone()));
            shared.lease_of.remove(&key);
        }
        if lease != 0 {
            shared.keys.insert((lease, key.clone()));
            shared.lease_of.insert(key, lease);
        }
    }
}

fn row_key(id: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

/// A lease's row, and what it costs.
fn row(id: LeaseId, ttl: i64, remaining_ttl: i64) -> (Op, u64) {
    let lease = leasepb::Lease { id: id.0, ttl, remaining_ttl };
    let (key, value) = (row_key(id), lease.encode_to_vec());
    let cost = row_cost(key.len(), value.len());
    ((Bucket::Lease, key, Some(value.into())), cost)
}
