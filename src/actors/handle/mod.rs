//! What the edges hold: cheap clones that hide the actors' addresses.
//! Uses: apply, auth, base, lease, mvcc, obs, pb

pub mod auth;
pub mod downgrade;
pub mod members;
pub mod watch;

use crate::actors::handle::watch::Watching;
use crate::apply::Reply;
use crate::base::error::Result;
use crate::base::ids::{ClusterId, MemberId};
use crate::pb::etcdserverpb as rpc;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A boxed future, so that [`Node`] can be a trait object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Raft as seen from outside, one consistent copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    pub term: u64,
    /// 0 when there is none.
    pub leader: MemberId,
    pub committed_index: u64,
    pub applied_index: u64,
    pub is_learner: bool,
}

/// What gRPC, HTTP and peers ask of the node.
pub trait Node: Send + Sync + 'static {
    fn member_id(&self) -> MemberId;
    fn cluster_id(&self) -> ClusterId;
    fn raft_status(&self) -> RaftStatus;
    /// Proposes (header.ID is filled in here), waits for the apply on this member, under etcd's
    /// request timeout; errors are etcd's.
    fn propose(&self, request: rpc::InternalRaftRequest) -> Answer<'_, Result<Reply>>;
    /// Returns once this member has applied everything committed before the call
    /// (etcd v3.5.17 `linearizableReadNotify`).
    fn linearizable_read_notify(&self) -> Answer<'_, Result<()>>;
    /// Members in ascending id order, as `MemberList` answers.
    fn members(&self) -> Vec<rpc::Member>;
    /// `3.5.0`, or `None` before it is decided.
    fn cluster_version(&self) -> Option<String>;
    /// Renews; the new TTL in seconds. Followers forward to the leader. `LeaseNotFound` if absent.
    fn lease_renew(&self, id: i64) -> Answer<'_, Result<i64>>;
    /// Followers forward to the leader.
    fn lease_time_to_live(
        &self,
        request: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>>;
    /// All lease ids, the first to expire first (etcd v3.5.17 `lease/lessor.go` Leases).
    fn leases(&self) -> Answer<'_, Vec<i64>>;
    /// A new watch stream.
    fn watch(&self) -> Watching;
    /// Raised alarms.
    fn alarms(&self) -> Vec<rpc::AlarmMember>;
    /// Users, tokens and passwords; a node without them lets everyone do everything.
    fn authority(&self) -> Option<&dyn auth::Authority> {
        None
    }
    /// Changes of the members; a node without them answers `NotImplemented`.
    fn membership(&self) -> Option<&dyn members::Membership> {
        None
    }
    /// Downgrades of the cluster; a node without them answers `NotImplemented`.
    fn downgrading(&self) -> Option<&dyn downgrade::Downgrading> {
        None
    }
    /// Hands leadership over; returns once the other member leads. `NotLeader` if this one does
    /// not, `BadLeaderTransferee` if the other is no voter.
    fn move_leader(&self, to: MemberId) -> Answer<'_, Result<()>>;
    /// Gives back the space of rows that are gone, while everything else goes on; the reason if
    /// it failed.
    fn defragment(&self) -> Answer<'_, std::result::Result<(), String>>;
}

/// The node, shared by every edge.
pub type NodeHandle = Arc<dyn Node>;
