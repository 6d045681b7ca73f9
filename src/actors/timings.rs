//! How long StoreActor's work took, for `/metrics`: the histograms are found once, at the start.

use crate::apply::Reply;
use crate::base::clock::{Clock, SystemClock};
use crate::base::error::{Error, Result};
use crate::mvcc::CompactProgress;
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use prometheus::Histogram;
use std::time::{Duration, Instant};

/// What etcd calls the requests that rusd applies (v3.5.17 `etcdserver/apply.go` Apply).
const OPS: [&str; 28] = [
    "Range",
    "Put",
    "DeleteRange",
    "Txn",
    "Compaction",
    "LeaseGrant",
    "LeaseRevoke",
    "LeaseCheckpoint",
    "Alarm",
    "ClusterVersionSet",
    "ClusterMemberAttrSet",
    "Authenticate",
    "AuthEnable",
    "AuthDisable",
    "AuthUserAdd",
    "AuthUserDelete",
    "AuthUserChangePassword",
    "AuthUserGrantRole",
    "AuthUserGet",
    "AuthUserRevokeRole",
    "AuthRoleAdd",
    "AuthRoleGrantPermission",
    "AuthRoleGet",
    "AuthRoleRevokePermission",
    "AuthRoleDelete",
    "AuthUserList",
    "AuthRoleList",
    // etcd has no name for this one.
    "unknown",
];

/// Place in [`OPS`]; none for what has no name there.
fn op(request: &rpc::InternalRaftRequest) -> Option<usize> {
    [
        request.range.is_some(),
        request.put.is_some(),
        request.delete_range.is_some(),
        request.txn.is_some(),
        request.compaction.is_some(),
        request.lease_grant.is_some(),
        request.lease_revoke.is_some(),
        request.lease_checkpoint.is_some(),
        request.alarm.is_some(),
        request.cluster_version_set.is_some(),
        request.cluster_member_attr_set.is_some(),
        request.authenticate.is_some(),
        request.auth_enable.is_some(),
        request.auth_disable.is_some(),
        request.auth_user_add.is_some(),
        request.auth_user_delete.is_some(),
        request.auth_user_change_password.is_some(),
        request.auth_user_grant_role.is_some(),
        request.auth_user_get.is_some(),
        request.auth_user_revoke_role.is_some(),
        request.auth_role_add.is_some(),
        request.auth_role_grant_permission.is_some(),
        request.auth_role_get.is_some(),
        request.auth_role_revoke_permission.is_some(),
        request.auth_role_delete.is_some(),
        request.auth_user_list.is_some(),
        request.auth_role_list.is_some(),
        request.auth_status.is_some(),
    ]
    .iter()
    .position(|set| *set)
}

/// The histograms, and the compaction that is under way.
pub(super) struct Timings {
    /// By place in [`OPS`]: failed, succeeded. Made when first needed, as in etcd.
    applies: [[Option<Histogram>; 2]; OPS.len()],
    compaction: Option<Instant>,
}

impl Timings {
    pub(super) fn new() -> Timings {
        Timings { applies: Default::default(), compaction: None }
    }

    /// Notes the apply of a request.
    pub(super) fn applied(
        &mut self,
        took: Duration,
        request: &rpc::InternalRaftRequest,
        result: &Result<Reply>,
    ) {
        let Some(op) = op(request) else { return };
        let success = matches!(result, Ok(_) | Err(Error::Compacted));
        self.applies[op][usize::from(success)]
            .get_or_insert_with(|| {
                let success = if success { "true" } else { "false" };
                metrics().apply_duration.with_label_values(&["v3", OPS[op], success])
            })
            .observe(took.as_secs_f64());
    }

    /// Notes the apply of a v2 request, one of etcd's methods.
    pub(super) fn applied_v2(&self, took: Duration, method: &str) {
        let method = match method {
            "POST" | "PUT" | "DELETE" | "QGET" | "SYNC" => method,
            _ => "unknown",
        };
        let durations = &metrics().apply_duration;
        durations.with_label_values(&["v2", method, "true"]).observe(took.as_secs_f64());
    }

    /// Notes one step of the compaction of `revision`, which began then, and the whole once it is
    /// done.
    pub(super) fn compacted(&mut self, revision: i64, begin: Instant, progress: CompactProgress) {
        let millis = |begin: Instant| begin.elapsed().as_millis() as f64;
        let whole = *self.compaction.get_or_insert(begin);
        match progress {
            CompactProgress::More => metrics().db_compaction_pause.observe(millis(begin)),
            CompactProgress::Done => {
                self.compaction = None;
                metrics().db_compaction_total.observe(millis(whole));
                let unix = SystemClock.unix().as_secs();
                metrics().db_compaction_last.set(i64::try_from(unix).unwrap_or(i64::MAX));
                tracing::info!(
                    "compact-revision" = revision,
                    took = ?whole.elapsed(),
                    "finished scheduled compaction"
                );
            }
        }
    }
}
