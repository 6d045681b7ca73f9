//! The size of the store as etcd would tell it, entry by entry.

use crate::mvcc::backend::{Backend, BackendError, Bucket, Op};
use crate::mvcc::size;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Buckets beside Key and Lease whose rows count. Meta has a few short ones, in the root page.
const OTHERS: [Bucket; 7] = [
    Bucket::Alarm,
    Bucket::Cluster,
    Bucket::Members,
    Bucket::MembersRemoved,
    Bucket::Auth,
    Bucket::AuthUsers,
    Bucket::AuthRoles,
];

/// Costs of the buckets and the size that follows.
#[derive(Debug)]
pub(super) struct Size {
    others: BTreeMap<Bucket, u64>,
    in_use: u64,
    on_disk: u64,
}

impl Size {
    /// Reads the buckets beside Key and Lease, whose costs are given.
    pub(super) fn open(
        backend: &dyn Backend,
        key_cost: u64,
        lease_cost: u64,
    ) -> Result<Self, BackendError> {
        let mut others = BTreeMap::new();
        for bucket in OTHERS {
            let mut cost = 0;
            backend.scan(bucket, &[], None, &mut |key, value| {
                cost += size::row_cost(key.len(), value.len());
                ControlFlow::Continue(())
            })?;
            others.insert(bucket, cost);
        }
        let mut size = Self { others, in_use: 0, on_disk: backend.size_bytes() };
        size.settle(key_cost, lease_cost);
        Ok(size)
    }

    /// Counts changes of rows in the buckets that `open` has read. `backend` has the rows as they
    /// were before.
    pub(super) fn change(&mut self, backend: &dyn Backend, ops: &[Op]) -> Result<(), BackendError> {
        for (at, (bucket, key, value)) in ops.iter().enumerate() {
            let Some(cost) = self.others.get_mut(bucket) else { continue };
            let earlier = ops[..at].iter().rev().find(|op| op.0 == *bucket && op.1 == key);
            let before = match earlier {
                Some((_, _, value)) => value.clone(),
                None => backend.get(*bucket, key)?,
            };
            if let Some(before) = before {
                *cost -= size::row_cost(key.len(), before.len());
            }
            if let Some(value) = value {
                *cost += size::row_cost(key.len(), value.len());
            }
        }
        Ok(())
    }

    /// The size after an entry.
    pub(super) fn settle(&mut self, key_cost: u64, lease_cost: u64) {
        let costs = self.others.values().copied().chain([key_cost, lease_cost]);
        self.in_use = size::in_use(costs);
        self.on_disk = size::on_disk(self.in_use, self.on_disk);
    }

    /// Forgets what the file once was.
    pub(super) fn shrink(&mut self) {
        self.on_disk = size::on_disk(self.in_use, 0);
    }

    /// Bytes that hold rows.
    pub(super) fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Bytes of the file.
    pub(super) fn on_disk(&self) -> u64 {
        self.on_disk
    }
}
