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
            || request.txn.as_ref().is_some_and(|txn| txn_cost(txn) > 0)
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

/// What a transaction costs: its dearer branch.
///
/// DEVIATION: nested ones count, as in etcd since 3.5.33; before, they went past the quota.
pub fn txn_cost(txn: &rpc::TxnRequest) -> u64 {
    let cost = |ops: &[rpc::RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                Some(Request::RequestTxn(nested)) => txn_cost(nested),
                _ => 0,
            })
            .sum()
    };
    cost(&txn.success).max(cost(&txn.failure))
}
