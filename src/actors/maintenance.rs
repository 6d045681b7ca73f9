//! What the Maintenance service asks of the node beside the log: to hand leadership over, and to
//! give back space.

use crate::actors::core::Core;
use crate::actors::handle::Answer;
use crate::actors::inbox::Ask;
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use std::time::{Duration, Instant};

/// How a member gives back the space of rows that are gone; the composition implements it.
pub trait Defragment: Send + Sync + 'static {
    /// Goes on while reads and writes do, and to its end even if nobody waits for the answer. One
    /// at a time; the reason if it failed.
    fn defragment(&self) -> Answer<'static, std::result::Result<(), String>>;
}

impl Core {
    /// Hands leadership to another voter and waits until it leads (etcd v3.5.17 `server.go`
    /// MoveLeader, which waits as long as its caller does; this gives up after a request timeout).
    pub(super) async fn hand_over(&self, to: MemberId) -> Result<()> {
        if !self.shared.standing().is_leader {
            return Err(Error::NotLeader);
        }
        let members = self.shared.members();
        if members.get(to).is_none_or(|member| member.is_learner) {
            return Err(Error::BadLeaderTransferee);
        }
        self.hand_over_within(to, self.request_timeout()).await
    }

    async fn hand_over_within(&self, to: MemberId, timeout: Duration) -> Result<()> {
        let local = self.shared.member_id;
        let begun = self.clock.now();
        tracing::info!(
            "local-member-id" = %local,
            "current-leader-member-id" = %local,
            "transferee-member-id" = %to,
            "leadership transfer starting"
        );
        self.shared.inbox.ask(Ask::TransferTo(to))?;
        while self.shared.standing().leader != to {
            if self.clock.now().saturating_duration_since(begun) >= timeout {
                return Err(Error::TimeoutLeaderTransfer);
            }
            tokio::time::sleep(self.tick_interval).await;
        }
        tracing::info!(
            "local-member-id" = %local,
            "old-leader-member-id" = %local,
            "new-leader-member-id" = %to,
            took = ?self.clock.now().saturating_duration_since(begun),
            "leadership transfer finished"
        );
        Ok(())
    }

    /// A leader that stops hands over to the voter that has been reachable for longest, so that the
    /// others need no election (etcd v3.5.17 `server.go` TransferLeadership). It waits no longer
    /// than two elections: raft gives up after one.
    pub async fn hand_over_before_stop(&self, active_since: impl Fn(MemberId) -> Option<Instant>) {
        let local = self.shared.member_id;
        let standing = self.shared.standing();
        if !standing.is_leader {
            tracing::info!(
                "local-member-id" = %local,
                "current-leader-member-id" = %standing.leader,
                "skipped leadership transfer; local server is not leader"
            );
            return;
        }
        let voters = self.shared.members().conf_state().voters;
        if voters.len() < 2 {
            tracing::info!(
                "local-member-id" = %local,
                "current-leader-member-id" = %standing.leader,
                "skipped leadership transfer for single voting member cluster"
            );
            return;
        }
        let others = voters.into_iter().map(MemberId).filter(|id| *id != local);
        let reachable = others.filter_map(|id| Some((active_since(id)?, id)));
        let outcome = match reachable.min() {
            Some((_, to)) => self.hand_over_within(to, 2 * self.election_timeout).await,
            None => Err(Error::Unhealthy),
        };
        if let Err(error) = outcome {
            tracing::warn!("local-member-id" = %local, ?error, "leadership transfer failed");
        }
    }
}
