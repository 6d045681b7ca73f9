//! Changes of the cluster's members, as the edges ask for them.
//! Uses: base, pb

use super::Answer;
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use crate::pb::etcdserverpb::Member;

/// Why a promotion failed, as etcd's server words it inside: in `/members/promote` and in a metric.
pub fn promotion_failure(error: Error) -> &'static str {
    match error {
        Error::MemberNotFound => "membership: ID not found",
        Error::MemberNotLearner => "membership: can only promote a learner member",
        Error::LearnerNotReady => {
            "etcdserver: can only promote a learner member which is in sync with leader"
        }
        Error::MemberNotEnoughStarted => {
            "etcdserver: re-configuration failed due to not enough started members"
        }
        Error::Timeout => "etcdserver: request timed out",
        _ => "other",
    }
}

/// Changes that go through the log, each under the request timeout. The answers hold all members
/// after the change, in ascending id order. While a change is under way the next one waits.
pub trait Membership: Send + Sync {
    /// Adds a member with these peer URLs; it, and all. Its id follows from URLs and time.
    fn add(
        &self,
        peer_urls: Vec<String>,
        as_learner: bool,
    ) -> Answer<'_, Result<(Member, Vec<Member>)>>;
    /// Removes a member for ever.
    fn remove(&self, id: MemberId) -> Answer<'_, Result<Vec<Member>>>;
    /// Replaces a member's peer URLs.
    fn update(&self, id: MemberId, peer_urls: Vec<String>) -> Answer<'_, Result<Vec<Member>>>;
    /// Makes a learner a voter; followers forward to the leader. `LearnerNotReady` while the
    /// learner's log is shorter than nine tenths of the leader's.
    fn promote(&self, id: MemberId) -> Answer<'_, Result<Vec<Member>>>;
}
