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

/// What a transaction costs: its dearer branch. As in etcd, nested transactions are free.
pub fn txn_cost(txn: &rpc::TxnRequest) -> u64 {
    let cost = |ops: &[rpc::RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                _ => 0,
            })
            .sum()
    };
    cost(&txn.success).max(cost(&txn.failure))
}

/// Whether the entry is of a family that this machine does not know yet: auth.
pub(super) fn is_other(r: &rpc::InternalRaftRequest) -> bool {
    r.auth_enable.is_some()
        || r.auth_disable.is_some()
        || r.auth_status.is_some()
        || r.authenticate.is_some()
        || r.auth_user_add.is_some()
        || r.auth_user_delete.is_some()
        || r.auth_user_get.is_some()
        || r.auth_user_change_password.is_some()
        || r.auth_user_grant_role.is_some()
        || r.auth_user_revoke_role.is_some()
        || r.auth_user_list.is_some()
        || r.auth_role_list.is_some()
        || r.auth_role_add.is_some()
        || r.auth_role_delete.is_some()
        || r.auth_role_get.is_some()
        || r.auth_role_grant_permission.is_some()
        || r.auth_role_revoke_permission.is_some()
}
