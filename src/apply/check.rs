//! The gates before an entry's own rules, in etcd's order, and what entries cost.

use super::alarm::Alarms;
use crate::base::error::{Error, Result};
use crate::pb::etcdserverpb as rpc;
use rpc::request_op::Request;

/// What a lease costs against the quota (etcd v3.5.17 leaseOverhead).
pub const LEASE_COST: u64 = 64;
/// What a key costs beside its bytes (etcd v3.5.17 kvOverhead).
const KEY_COST: u64 = 256;

/// Refuses what the raised alarms forbid.
pub(super) fn gate(alarms: &Alarms, request: &rpc::InternalRaftRequest) -> Result<()> {
    if alarms.corrupt()
        && (request.put.is_some()
            || request.range.is_some()
            || request.delete_range.is_some()
            || request.txn.is_some()
            || request.compaction.is_some()
            || request.lease_grant.is_some()
            || request.lease_revoke.is_some())
    {
        return Err(Error::Corrupt);
    }
    if alarms.no_space()
        && (request.put.is_some()
            || request.txn.as_ref().is_some_and(|txn| txn_cost_applied(txn) > 0)
            || request.lease_grant.is_some())
    {
        return Err(Error::NoSpace);
    }
    Ok(())
}

/// What a put costs against the quota.
pub fn put_cost(put: &rpc::PutRequest) -> u64 {
    KEY_COST + (put.key.len() + put.value.len()) as u64
}

/// What a transaction costs before it is proposed: its dearer branch.
///
/// DEVIATION: nested ones count, as in etcd since 3.5.33; before, they went past the quota.
pub fn txn_cost(txn: &rpc::TxnRequest) -> u64 {
    dearer_branch(txn, |op| match &op.request {
        Some(Request::RequestTxn(nested)) => txn_cost(nested),
        _ => put_cost_of(op),
    })
}

/// What a transaction costs where it is applied (etcd v3.5.17 `quota.go` costTxn): all members must
/// agree, so nested ones are free.
pub(super) fn txn_cost_applied(txn: &rpc::TxnRequest) -> u64 {
    dearer_branch(txn, put_cost_of)
}

fn put_cost_of(op: &rpc::RequestOp) -> u64 {
    match &op.request {
        Some(Request::RequestPut(put)) => put_cost(put),
        _ => 0,
    }
}

fn dearer_branch(txn: &rpc::TxnRequest, cost: impl Fn(&rpc::RequestOp) -> u64) -> u64 {
    let sum = |ops: &[rpc::RequestOp]| -> u64 { ops.iter().map(&cost).sum() };
    sum(&txn.success).max(sum(&txn.failure))
}
