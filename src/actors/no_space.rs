//! Answers that wait for the alarm which says why they were refused: a write beyond the quota is
//! answered after this member's NOSPACE alarm is in the log, as in etcd (v3.5.17 `server.go`
//! applyEntryNormal), so that whoever sees the error also sees the alarm.

use crate::actors::core::Shared;
use crate::actors::store::Waiter;
use crate::apply::Reply;
use crate::base::error::{Error, Result};
use crate::pb::etcdserverpb as rpc;

/// See the module.
#[derive(Default)]
pub struct NoSpace {
    waiting: Vec<Waiter>,
    proposed: bool,
}

impl NoSpace {
    /// An entry went beyond the quota while no NOSPACE alarm was raised: proposes one, once.
    pub fn exceeded(&mut self, waiter: Option<Waiter>, shared: &Shared) {
        self.waiting.extend(waiter);
        if !self.proposed {
            self.proposed = true;
            tracing::warn!("a write exceeded the space quota: raising the NOSPACE alarm");
            shared.propose_quietly(raise(shared));
        }
    }

    /// The alarm is raised now, by whomever: the answers that waited for it.
    pub fn raised(&mut self) -> impl Iterator<Item = (Waiter, Result<Reply>)> {
        self.proposed = false;
        self.waiting.drain(..).map(|waiter| (waiter, Err(Error::NoSpace)))
    }

    /// Proposes again if the alarm did not come although someone still waits for it: it was lost
    /// with a leader. With nobody waiting, the next write beyond the quota proposes.
    pub fn sweep(&mut self, shared: &Shared) {
        self.waiting.retain(|waiter| !waiter.is_closed());
        if self.waiting.is_empty() {
            self.proposed = false;
        } else {
            shared.propose_quietly(raise(shared));
        }
    }
}

fn raise(shared: &Shared) -> rpc::InternalRaftRequest {
    rpc::InternalRaftRequest {
        alarm: Some(rpc::AlarmRequest {
            action: rpc::alarm_request::AlarmAction::Activate as i32,
            member_id: shared.member_id.0,
            alarm: rpc::AlarmType::Nospace as i32,
        }),
        ..rpc::InternalRaftRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::inbox::{Ask, Inbox};
    use crate::base::ids::{ClusterId, MemberId};
    use crate::cluster::members::Members;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[test]
    fn the_answer_waits_for_the_alarm() {
        let (inbox, mut outlet) = Inbox::new();
        let (members, unix) = (Members::default(), Duration::ZERO);
        let shared = Shared::new(MemberId(1), ClusterId(2), unix, 0, members, Vec::new(), inbox);
        let mut no_space = NoSpace::default();
        let (reply, mut answer) = oneshot::channel();
        let (gone, _) = oneshot::channel();
        no_space.exceeded(Some(reply), &shared);
        no_space.exceeded(Some(gone), &shared);
        no_space.exceeded(None, &shared);
        assert_eq!(outlet.pending(), 1, "proposed once");
        assert!(matches!(outlet.take(), Some(Ask::Propose(_))));
        no_space.sweep(&shared);
        assert_eq!(outlet.pending(), 1, "proposed again, since it did not come");
        assert_eq!(no_space.waiting.len(), 1, "the caller that has gone is forgotten");
        assert!(answer.try_recv().is_err());
        let answers: Vec<_> = no_space.raised().map(|(_, result)| result).collect();
        assert_eq!(answers, [Err(Error::NoSpace)]);
        assert!(!no_space.proposed, "disarmed, the next one raises it again");
        no_space.exceeded(None, &shared);
        assert!(no_space.proposed);
        no_space.sweep(&shared);
        assert!(!no_space.proposed, "nobody waits: the next write proposes");
    }
}
