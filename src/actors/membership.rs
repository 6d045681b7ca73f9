//! Changes of the cluster's members: what is refused at once, what goes to raft, and who is asked
//! when this member cannot know (etcd v3.5.17 `etcdserver/server.go` AddMember to configure).

use crate::actors::core::Core;
use crate::actors::handle::Answer;
use crate::actors::handle::members::{Membership, promotion_failure};
use crate::actors::inbox::Ask;
use crate::apply::Reply;
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use crate::cluster::identity;
use crate::cluster::members::{self, Member, Members};
use crate::cluster::reconfig::{self, CONNECTED_FOR, Reach};
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::ConfChange;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What of the leader's log a learner must have to become a voter, as a fraction (etcd v3.5.17
/// readyPercent).
const READY: (u128, u128) = (9, 10);
/// Pause between attempts to reach a leader that can promote.
const FORWARD_PAUSE: Duration = Duration::from_millis(50);

/// The other members, as far as changes need them; the transport implements it.
pub trait Peering: Send + Sync + 'static {
    /// Since when a member is reachable; none while it is not.
    fn active_since(&self, id: MemberId) -> Option<Instant>;
    /// Asks the leader to promote. `Timeout` if it could not be asked or gave no verdict.
    fn promote(
        &self,
        leader_urls: Vec<String>,
        id: MemberId,
    ) -> Answer<'_, Result<Vec<rpc::Member>>>;
}

/// Whether a learner whose log matches up to `theirs` may vote when the leader's goes to `own`.
fn is_ready(theirs: u64, own: u64) -> bool {
    u128::from(theirs) * READY.1 >= u128::from(own) * READY.0
}

impl Core {
    fn reach(&self, id: MemberId) -> Reach {
        if id == self.shared.member_id {
            return Reach::Connected;
        }
        match self.peering.active_since(id) {
            None => Reach::Down,
            Some(since) if self.clock.now().saturating_duration_since(since) > CONNECTED_FOR => {
                Reach::Connected
            }
            Some(_) => Reach::New,
        }
    }

    /// With `--strict-reconfig-check`, refuses what `rule` refuses.
    fn check(&self, what: &str, rule: impl FnOnce(&Members) -> Result<()>) -> Result<()> {
        if !self.strict_reconfig {
            return Ok(());
        }
        let checked = rule(&self.shared.members());
        if let Err(error) = checked {
            tracing::warn!(
                "local-member-id" = %self.shared.member_id,
                ?error,
                "rejecting {what} request; not enough healthy members"
            );
        }
        checked
    }

    /// Has raft take a change, and waits until it has.
    async fn configure(&self, mut change: ConfChange) -> Result<Vec<rpc::Member>> {
        let started = self.clock.now();
        change.id = self.shared.ids.next();
        let (kind, node) = (change.change_type, MemberId(change.node_id));
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.ask(Ask::Change { change, reply })?;
        let reply = match tokio::time::timeout(self.request_timeout(), answer).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Stopped))?,
            Err(_) => return Err(self.timeout_error(started)),
        };
        tracing::info!(
            "local-member-id" = %self.shared.member_id,
            "raft-conf-change" = members::change_name(kind),
            "raft-conf-change-node-id" = %node,
            "applied a configuration change through raft"
        );
        match reply {
            Reply::Members(members) => Ok(members),
            other => {
                tracing::error!(?other, "a change of members was answered with something else");
                Err(Error::Stopped)
            }
        }
    }

    async fn add_member(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(rpc::Member, Vec<rpc::Member>)> {
        self.check("member add", |members| {
            reconfig::may_add(members, is_learner, |id| self.reach(id))
        })?;
        let id = identity::later_member_id(&peer_urls, self.clock.unix().as_secs()).0;
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        let members = self.configure(members::add_change(&member)).await?;
        Ok((member.to_wire(), members))
    }

    async fn remove_member(&self, id: MemberId) -> Result<Vec<rpc::Member>> {
        self.check("member remove", |members| {
            reconfig::may_remove(members, id, |id| self.reach(id))
        })?;
        self.configure(members::remove_change(id)).await
    }

    async fn update_member(
        &self,
        id: MemberId,
        peer_urls: Vec<String>,
    ) -> Result<Vec<rpc::Member>> {
        // Apply takes from the change whether it is a learner.
        let is_learner = self.shared.members().get(id).is_some_and(|member| member.is_learner);
        let member = Member { id: id.0, peer_urls, is_learner, ..Member::default() };
        self.configure(members::update_change(&member)).await
    }

    /// As the leader. `NotLeader` if this member is not, since only the leader knows how far the
    /// learner is.
    async fn promote_here(&self, id: MemberId) -> Result<Vec<rpc::Member>> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.ask(Ask::Progress { member: id, reply })?;
        let (theirs, own) = answer.await.unwrap_or(Err(Error::Stopped))?;
        if !is_ready(theirs, own) {
            return Err(Error::LearnerNotReady);
        }
        self.check("member promote", reconfig::may_promote)?;
        self.configure(members::promote_change(id)).await
    }

    async fn promote_member(&self, id: MemberId) -> Result<Vec<rpc::Member>> {
        let promoted = self.promote_here(id).await;
        match &promoted {
            Err(Error::NotLeader) => return self.promote_at_the_leader(id).await,
            Ok(_) => metrics().learner_promote_successes.inc(),
            Err(error) => {
                let reason = promotion_failure(*error);
                metrics().learner_promote_failures.with_label_values(&[reason]).inc();
            }
        }
        promoted
    }

    async fn promote_at_the_leader(&self, id: MemberId) -> Result<Vec<rpc::Member>> {
        self.at_the_leader(async move {
            loop {
                if let Some(urls) = self.leader_urls() {
                    match self.peering.promote(urls, id).await {
                        Err(Error::Timeout) => {}
                        answer => return answer,
                    }
                }
                tokio::time::sleep(FORWARD_PAUSE).await;
            }
        })
        .await
    }
}

impl Membership for Core {
    fn add(
        &self,
        peer_urls: Vec<String>,
        as_learner: bool,
    ) -> Answer<'_, Result<(rpc::Member, Vec<rpc::Member>)>> {
        Box::pin(self.add_member(peer_urls, as_learner))
    }

    fn remove(&self, id: MemberId) -> Answer<'_, Result<Vec<rpc::Member>>> {
        Box::pin(self.remove_member(id))
    }

    fn update(&self, id: MemberId, peer_urls: Vec<String>) -> Answer<'_, Result<Vec<rpc::Member>>> {
        Box::pin(self.update_member(id, peer_urls))
    }

    fn promote(&self, id: MemberId) -> Answer<'_, Result<Vec<rpc::Member>>> {
        Box::pin(self.promote_member(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_is_ready_at_nine_tenths() {
        assert!(is_ready(90, 100) && !is_ready(89, 100));
        assert!(is_ready(0, 0) && is_ready(9, 10) && !is_ready(8, 9));
        assert!(!is_ready(u64::MAX / 2, u64::MAX) && is_ready(u64::MAX, u64::MAX));
    }
}
