//! Compactor: proposes the compactions that `--auto-compaction-*` ask for, while this member leads.
//! It samples in every standing, so that a new leader goes on where the old one stopped.

use crate::actors::core::Shared;
use crate::actors::rt::{Life, Restartable};
use crate::apply::Reply;
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::mvcc::Reader;
use crate::mvcc::auto_compact::{AutoCompact, Retention};
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// How often the answer to a proposal is looked for.
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// See the module.
pub struct Compactor {
    core: AutoCompact,
    proposed: Option<Proposed>,
    /// After this long without an answer a compaction has failed.
    request_timeout: Duration,
    reader: Reader,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

struct Proposed {
    revision: i64,
    at: Instant,
    answer: oneshot::Receiver<Result<Reply>>,
}

impl Compactor {
    /// Begins now; what an earlier life sampled is lost, so a period begins anew.
    pub fn new(
        retention: Retention,
        request_timeout: Duration,
        reader: Reader,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
    ) -> Compactor {
        let mut core = AutoCompact::new(retention, clock.now());
        core.sample(reader.revision());
        Compactor { core, proposed: None, request_timeout, reader, shared, clock }
    }

    fn arm(core: &AutoCompact, life: &mut Life<'_, Self>) {
        life.later(core.interval(), |compactor, life| compactor.look(life));
    }

    fn look(&mut self, life: &mut Life<'_, Self>) {
        if self.propose_if_due() {
            life.later(ANSWER_INTERVAL, |compactor, life| compactor.await_answer(life));
            return;
        }
        self.core.sample(self.reader.revision());
        Self::arm(&self.core, life);
    }

    fn await_answer(&mut self, life: &mut Life<'_, Self>) {
        if !self.take_answer() {
            life.later(ANSWER_INTERVAL, |compactor, life| compactor.await_answer(life));
            return;
        }
        self.core.sample(self.reader.revision());
        Self::arm(&self.core, life);
    }

    /// Whether a compaction was due: it is on its way then.
    fn propose_if_due(&mut self) -> bool {
        let now = self.clock.now();
        let leading = self.shared.standing().is_leader;
        let Some(revision) = self.core.due(now, leading, self.reader.revision()) else {
            return false;
        };
        match self.core.retention() {
            Retention::Period(period) => tracing::info!(
                revision,
                "compact-period" = ?period,
                "starting auto periodic compaction"
            ),
            Retention::Revisions(kept) => tracing::info!(
                revision,
                "revision-compaction-retention" = kept,
                "starting auto revision compaction"
            ),
        }
        let (reply, answer) = oneshot::channel();
        let compaction = Some(rpc::CompactionRequest { revision, physical: false });
        let request = rpc::InternalRaftRequest { compaction, ..Default::default() };
        // Refused, the reply is dropped, which the answer's end tells.
        let _ = self.shared.propose(request, Some(reply));
        self.proposed = Some(Proposed { revision, at: now, answer });
        true
    }

    /// Whether the compaction that was proposed has ended, or counts as failed.
    fn take_answer(&mut self) -> bool {
        let now = self.clock.now();
        let Some(mut proposed) = self.proposed.take() else {
            return true;
        };
        let took = now.saturating_duration_since(proposed.at);
        let outcome = match proposed.answer.try_recv() {
            Ok(outcome) => outcome.map(drop),
            Err(TryRecvError::Closed) => Err(Error::Stopped),
            Err(TryRecvError::Empty) if took >= self.request_timeout => Err(Error::Timeout),
            Err(TryRecvError::Empty) => {
                self.proposed = Some(proposed);
                return false;
            }
        };
        let success = matches!(outcome, Ok(()) | Err(Error::Compacted));
        self.core.ended(now, proposed.revision, success);
        self.log_end(proposed.revision, took, outcome.err().filter(|_| !success));
        true
    }

    fn log_end(&self, revision: i64, took: Duration, failed: Option<Error>) {
        let retry = self.core.interval();
        match (self.core.retention(), failed) {
            (Retention::Period(period), None) => tracing::info!(
                revision,
                "compact-period" = ?period,
                took = ?took,
                "completed auto periodic compaction"
            ),
            (Retention::Period(period), Some(error)) => tracing::warn!(
                revision,
                "compact-period" = ?period,
                "retry-interval" = ?retry,
                ?error,
                "failed auto periodic compaction"
            ),
            (Retention::Revisions(kept), None) => tracing::info!(
                revision,
                "revision-compaction-retention" = kept,
                took = ?took,
                "completed auto revision compaction"
            ),
            (Retention::Revisions(kept), Some(error)) => tracing::warn!(
                revision,
                "revision-compaction-retention" = kept,
                "retry-interval" = ?retry,
                ?error,
                "failed auto revision compaction"
            ),
        }
    }
}

impl Restartable for Compactor {
    const NAME: &'static str = "Compactor";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        Self::arm(&self.core, life);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::inbox::{Ask, Inbox, Outlet, Propose};
    use crate::apply::{Machine, Options};
    use crate::base::ids::{ClusterId, MemberId};
    use crate::cluster::members::Members;
    use crate::mvcc::backend::MemBackend;
    use crate::raft::driver::Standing;
    use parking_lot::Mutex;
    use prost::Message as _;

    struct Manual(Mutex<Instant>);

    impl Clock for Manual {
        fn now(&self) -> Instant {
            *self.0.lock()
        }

        fn unix(&self) -> Duration {
            Duration::ZERO
        }
    }

    struct World {
        compactor: Compactor,
        clock: Arc<Manual>,
        shared: Arc<Shared>,
        outlet: Outlet,
        machine: Machine,
        index: u64,
    }

    impl World {
        fn new(retention: Retention) -> World {
            let machine =
                Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
            let (inbox, outlet) = Inbox::new();
            let (members, unix) = (Members::default(), Duration::ZERO);
            let ids = (MemberId(1), ClusterId(2));
            let shared = Arc::new(Shared::new(ids.0, ids.1, unix, 0, members, Vec::new(), inbox));
            let clock = Arc::new(Manual(Mutex::new(Instant::now())));
            let compactor = Compactor::new(
                retention,
                Duration::from_secs(7),
                machine.reader(),
                shared.clone(),
                clock.clone(),
            );
            World { compactor, clock, shared, outlet, machine, index: 0 }
        }

        fn lead(&self, is_leader: bool) {
            self.shared.publish_standing(Standing { is_leader, ..Standing::default() });
        }

        fn put(&mut self, count: u64) {
            for _ in 0..count {
                self.index += 1;
                let put = Some(rpc::PutRequest { key: "k".into(), ..Default::default() });
                let request = rpc::InternalRaftRequest { put, ..Default::default() };
                self.machine.apply(self.index, 1, &request).result.unwrap();
            }
        }

        fn pass(&self, time: Duration) {
            *self.clock.0.lock() += time;
        }

        /// Another look; the revision that was proposed.
        fn look(&mut self) -> Option<i64> {
            self.pass(self.compactor.core.interval());
            if !self.compactor.propose_if_due() {
                self.compactor.core.sample(self.machine.revision());
                return None;
            }
            Some(self.compactor.proposed.as_ref().unwrap().revision)
        }

        fn reply(&mut self, outcome: Result<Reply>) {
            let Some(Ask::Propose(Propose { data, reply, .. })) = self.outlet.take() else {
                panic!("nothing was proposed");
            };
            let request = rpc::InternalRaftRequest::decode(data).unwrap();
            let revision = self.compactor.proposed.as_ref().unwrap().revision;
            assert_eq!(request.compaction.unwrap().revision, revision);
            assert!(!self.compactor.take_answer(), "not answered yet");
            reply.unwrap().send(outcome).unwrap();
            assert!(self.compactor.take_answer());
            self.compactor.core.sample(self.machine.revision());
        }
    }

    #[test]
    fn a_leader_compacts_at_the_revision_of_a_period_ago() {
        let mut w = World::new(Retention::Period(Duration::from_secs(60)));
        w.lead(true);
        for _ in 0..9 {
            w.put(10);
            assert_eq!(w.look(), None);
        }
        assert_eq!(w.look(), Some(1));
        w.reply(Ok(Reply::Empty));
        for _ in 0..9 {
            assert_eq!(w.look(), None);
        }
        w.lead(false);
        assert_eq!(w.look(), None);
        w.lead(true);
        assert_eq!(w.look(), Some(91));
        w.reply(Err(Error::TooManyRequests));
        assert_eq!(w.look(), Some(91), "tried again at the next look");
        w.reply(Err(Error::Compacted));
        assert_eq!(w.look(), None, "somebody else has done it");
    }

    #[test]
    fn a_compaction_without_an_answer_is_tried_again() {
        let mut w = World::new(Retention::Revisions(5));
        w.lead(true);
        assert_eq!(w.look(), None);
        w.put(10);
        assert_eq!(w.look(), Some(6));
        assert!(!w.compactor.take_answer());
        w.pass(Duration::from_secs(7));
        assert!(w.compactor.take_answer());
        assert_eq!(w.look(), Some(6));
        drop(w.outlet.take());
        let Some(Ask::Propose(Propose { reply, .. })) = w.outlet.take() else {
            panic!("proposed twice");
        };
        drop(reply);
        assert!(w.compactor.take_answer(), "the queue has lost it");
        assert_eq!(w.look(), Some(6));
        w.reply(Err(Error::Stopped));
    }
}
