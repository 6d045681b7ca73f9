//! LeaseKeeper: deadlines of leases, while this member leads. Derived: the leases themselves live
//! in the replicated machine, whose published view it starts from, again after a panic.

use crate::actors::core::Shared;
use crate::actors::rt::{Handles, Life, Restartable, Supervised};
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::failpoint;
use crate::base::ids::LeaseId;
use crate::lease::LeaseReader;
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use actix::{Addr, Message};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often expired leases are looked for (etcd v3.5.17 `lease/lessor.go` expiry loop).
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// Revokes proposed in one look, so that an expiry wave leaves room for others.
const REVOKES_PER_LOOK: usize = 1000;
/// A revoke that did not come through is proposed again after this long.
const REVOKE_RETRY: Duration = Duration::from_secs(3);

/// A lease was granted with this TTL in seconds.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Granted {
    pub id: LeaseId,
    pub ttl: i64,
}

/// A lease is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Revoked {
    pub id: LeaseId,
}

/// This member leads in `term` and has applied everything before its leadership.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Promoted {
    pub term: u64,
}

/// This member no longer leads.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Demoted;

/// Starts a lease's time anew; its TTL in seconds.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Renew {
    pub id: LeaseId,
    pub reply: oneshot::Sender<Result<i64>>,
}

/// (granted TTL, remaining seconds) of a lease.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Remaining {
    pub id: LeaseId,
    pub reply: oneshot::Sender<Result<(i64, i64)>>,
}

/// All lease ids, the first to expire first; those without a deadline last, by id.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ByDeadline(pub oneshot::Sender<Vec<i64>>);

struct Entry {
    ttl: i64,
    deadline: Option<Instant>,
    /// Its revoke is on the way: it cannot be renewed any more, unless leadership ends before.
    revoking: bool,
}

/// See the module.
pub struct LeaseKeeper {
    leases: HashMap<LeaseId, Entry>,
    /// (deadline, id), with stale pairs among them: the table decides.
    queue: BinaryHeap<Reverse<(Instant, LeaseId)>>,
    /// Renewals of leases whose revoke is on the way: answered when it has come through, or when
    /// leadership ends, so that the lease is renewed at the next leader.
    late_renewals: Vec<(LeaseId, oneshot::Sender<Result<i64>>)>,
    leading: Option<u64>,
    /// A new leader gives every lease this much more, since it may have missed renewals.
    extension: Duration,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
}

/// How others reach it.
pub type LeaseKeeperAddr = Addr<Supervised<LeaseKeeper>>;

impl LeaseKeeper {
    /// Starts from the published leases. What StoreActor told and this has not yet seen is in the
    /// view already, and comes again without harm. Where this member leads and was promoted, every
    /// lease gets its time anew, as after an election.
    pub fn new(
        leases: &LeaseReader,
        extension: Duration,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
    ) -> LeaseKeeper {
        let entry =
            |id| Some((id, Entry { ttl: leases.get(id)?, deadline: None, revoking: false }));
        let mut keeper = LeaseKeeper {
            leases: leases.list().into_iter().filter_map(entry).collect(),
            queue: BinaryHeap::new(),
            late_renewals: Vec::new(),
            leading: None,
            extension,
            shared,
            clock,
        };
        if let Some(term) = keeper.shared.promoted_term() {
            keeper.promote(term);
        }
        keeper
    }

    fn promote(&mut self, term: u64) {
        self.stop_revoking();
        self.leading = Some(term);
        let ids: Vec<LeaseId> = self.leases.keys().copied().collect();
        for id in ids {
            self.set_deadline(id, self.extension);
        }
    }

    /// Revokes on the way belong to a leadership that is over.
    fn stop_revoking(&mut self) {
        self.queue.clear();
        for entry in self.leases.values_mut() {
            entry.revoking = false;
        }
        for (_, reply) in self.late_renewals.drain(..) {
            let _ = reply.send(Err(Error::NotLeader));
        }
    }

    fn set_deadline(&mut self, id: LeaseId, extension: Duration) {
        let now = self.clock.now();
        if let Some(entry) = self.leases.get_mut(&id) {
            let ttl = Duration::from_secs(entry.ttl.max(0).unsigned_abs());
            let deadline = now + ttl + extension;
            entry.deadline = Some(deadline);
            self.queue.push(Reverse((deadline, id)));
        }
    }

    fn renew(&mut self, id: LeaseId, reply: oneshot::Sender<Result<i64>>) {
        let answer = match (self.leading, self.leases.get(&id)) {
            (None, _) => Err(Error::NotLeader),
            (Some(_), None) => Err(Error::LeaseNotFound),
            (Some(_), Some(entry)) if entry.revoking => {
                self.late_renewals.push((id, reply));
                return;
            }
            (Some(_), Some(entry)) => Ok(entry.ttl),
        };
        if answer.is_ok() {
            metrics().lease_renewed.inc();
            self.set_deadline(id, Duration::ZERO);
        }
        let _ = reply.send(answer);
    }

    fn revoked(&mut self, id: LeaseId) {
        // It was this member that asked for it, because the time was over.
        if self.leases.remove(&id).is_some_and(|entry| entry.revoking) {
            metrics().lease_expired.inc();
        }
        for (_, reply) in self.late_renewals.extract_if(.., |(late, _)| *late == id) {
            let _ = reply.send(Err(Error::LeaseNotFound));
        }
    }

    fn look(&mut self) {
        failpoint::hit(failpoint::LEASE_LOOK);
        self.late_renewals.retain(|(_, reply)| !reply.is_closed());
        let Some(term) = self.leading else {
            return;
        };
        let standing = self.shared.standing();
        if !standing.is_leader || standing.term != term {
            return;
        }
        let now = self.clock.now();
        let mut revokes = Vec::new();
        while revokes.len() < REVOKES_PER_LOOK {
            let Some(Reverse((deadline, id))) = self.queue.peek().copied() else {
                break;
            };
            if deadline > now {
                break;
            }
            self.queue.pop();
            let Some(entry) = self.leases.get_mut(&id) else {
                continue;
            };
            if entry.deadline != Some(deadline) {
                continue;
            }
            let retry = now + REVOKE_RETRY;
            entry.deadline = Some(retry);
            entry.revoking = true;
            self.queue.push(Reverse((retry, id)));
            revokes.push(rpc::InternalRaftRequest {
                lease_revoke: Some(rpc::LeaseRevokeRequest { id: id.0 }),
                ..rpc::InternalRaftRequest::default()
            });
        }
        if !revokes.is_empty() {
            failpoint::hit(failpoint::LEASE_REVOKE);
            self.shared.propose_as_leader(term, revokes);
        }
    }

    fn arm(life: &mut Life<'_, Self>) {
        life.later(EXPIRY_INTERVAL, |keeper, life| {
            keeper.look();
            Self::arm(life);
        });
    }
}

impl Restartable for LeaseKeeper {
    const NAME: &'static str = "LeaseKeeper";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        Self::arm(life);
    }
}

impl Handles<Granted> for LeaseKeeper {
    fn handle(&mut self, Granted { id, ttl }: Granted, _: &mut Life<'_, Self>) {
        self.leases.insert(id, Entry { ttl, deadline: None, revoking: false });
        if self.leading.is_some() {
            self.set_deadline(id, Duration::ZERO);
        }
    }
}

impl Handles<Revoked> for LeaseKeeper {
    fn handle(&mut self, Revoked { id }: Revoked, _: &mut Life<'_, Self>) {
        self.revoked(id);
    }
}

impl Handles<Promoted> for LeaseKeeper {
    fn handle(&mut self, Promoted { term }: Promoted, _: &mut Life<'_, Self>) {
        self.promote(term);
    }
}

impl Handles<Demoted> for LeaseKeeper {
    fn handle(&mut self, _: Demoted, _: &mut Life<'_, Self>) {
        self.leading = None;
        self.stop_revoking();
    }
}

impl Handles<Renew> for LeaseKeeper {
    fn handle(&mut self, Renew { id, reply }: Renew, _: &mut Life<'_, Self>) {
        self.renew(id, reply);
    }
}

impl Handles<Remaining> for LeaseKeeper {
    fn handle(&mut self, Remaining { id, reply }: Remaining, _: &mut Life<'_, Self>) {
        let now = self.clock.now();
        let answer = match (self.leading, self.leases.get(&id)) {
            (None, _) => Err(Error::NotLeader),
            (Some(_), None) => Err(Error::LeaseNotFound),
            (Some(_), Some(entry)) if entry.revoking => Ok((entry.ttl, 0)),
            (Some(_), Some(entry)) => {
                let left =
                    entry.deadline.map_or(Duration::ZERO, |d| d.saturating_duration_since(now));
                Ok((entry.ttl, i64::try_from(left.as_secs()).unwrap_or(i64::MAX)))
            }
        };
        let _ = reply.send(answer);
    }
}

impl Handles<ByDeadline> for LeaseKeeper {
    fn handle(&mut self, ByDeadline(reply): ByDeadline, _: &mut Life<'_, Self>) {
        let mut leases: Vec<(bool, Option<Instant>, i64)> = self
            .leases
            .iter()
            .map(|(id, entry)| (entry.deadline.is_none(), entry.deadline, id.0))
            .collect();
        leases.sort_unstable();
        let _ = reply.send(leases.into_iter().map(|(_, _, id)| id).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::inbox::{Ask, Inbox, Outlet};
    use crate::base::ids::{ClusterId, MemberId};
    use crate::cluster::members::Members;
    use crate::lease::LeaseTable;
    use crate::mvcc::backend::MemBackend;
    use crate::raft::driver::Standing;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;

    struct ManualClock(Mutex<Instant>);

    impl Clock for ManualClock {
        fn now(&self) -> Instant {
            *self.0.lock()
        }

        fn unix(&self) -> Duration {
            Duration::ZERO
        }
    }

    struct World {
        outlet: Outlet,
        clock: Arc<ManualClock>,
        shared: Arc<Shared>,
        leases: LeaseTable,
    }

    const LEASE: LeaseId = LeaseId(7);

    impl World {
        fn new() -> World {
            let (members, unix) = (Members::default(), Duration::ZERO);
            let (inbox, outlet) = Inbox::new();
            let (member, cluster) = (MemberId(1), ClusterId(2));
            let shared = Shared::new(member, cluster, unix, 0, members, Vec::new(), inbox);
            let mut leases =
                LeaseTable::open(&MemBackend::default(), 2, false, BTreeMap::new()).unwrap();
            leases.grant(LEASE, 10).unwrap();
            let clock = Arc::new(ManualClock(Mutex::new(Instant::now())));
            World { outlet, clock, shared: Arc::new(shared), leases }
        }

        fn keeper(&self) -> LeaseKeeper {
            let reader = self.leases.reader();
            let extension = Duration::from_secs(1);
            LeaseKeeper::new(&reader, extension, self.shared.clone(), self.clock.clone())
        }

        fn lead(&self, term: u64) {
            self.shared.publish_standing(Standing { term, is_leader: true, ..Standing::default() });
            self.shared.publish_promoted(term);
        }

        fn pass(&self, seconds: u64) {
            *self.clock.0.lock() += Duration::from_secs(seconds);
        }
    }

    fn renew(keeper: &mut LeaseKeeper) -> oneshot::Receiver<Result<i64>> {
        let (reply, answer) = oneshot::channel();
        keeper.renew(LEASE, reply);
        answer
    }

    fn is_revoking(keeper: &mut LeaseKeeper) -> bool {
        keeper.look();
        keeper.leases[&LEASE].revoking
    }

    #[test]
    fn one_made_anew_leads_and_extends_only_if_it_was_promoted() {
        let world = World::new();
        assert_eq!(world.keeper().leading, None);
        world.lead(5);
        let mut keeper = world.keeper();
        assert_eq!(keeper.leading, Some(5));
        world.pass(10);
        assert!(!is_revoking(&mut keeper), "the extension is not over");
        world.pass(1);
        assert!(is_revoking(&mut keeper));
        // Elected again, but what came before is not applied.
        world.shared.publish_standing(Standing { term: 6, is_leader: true, ..Standing::default() });
        assert_eq!(world.keeper().leading, None);
    }

    #[test]
    fn a_renewal_waits_for_the_revoke_or_for_the_next_leader() {
        let mut world = World::new();
        world.lead(5);
        let mut keeper = world.keeper();
        assert_eq!(renew(&mut keeper).try_recv().unwrap(), Ok(10));
        world.pass(11);
        assert!(is_revoking(&mut keeper));
        let ask = world.outlet.take();
        assert!(
            matches!(ask, Some(Ask::ProposeAsLeader { term: 5, payloads }) if payloads.len() == 1)
        );
        let mut late = renew(&mut keeper);
        assert!(late.try_recv().is_err(), "waits");
        keeper.revoked(LEASE);
        assert_eq!(late.try_recv().unwrap(), Err(Error::LeaseNotFound));

        let mut keeper = world.keeper();
        world.pass(11);
        assert!(is_revoking(&mut keeper));
        let mut late = renew(&mut keeper);
        keeper.promote(7);
        assert_eq!(late.try_recv().unwrap(), Err(Error::NotLeader));
        assert_eq!(renew(&mut keeper).try_recv().unwrap(), Ok(10), "alive in the new term");
    }
}
