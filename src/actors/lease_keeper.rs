//! LeaseKeeper: deadlines of leases, while this member leads. Derived: the leases themselves live
//! in the replicated machine, whose published view it starts from, again after a panic.

use crate::actors::core::Shared;
use crate::actors::rt::{Handles, Life, Restartable, Supervised};
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::failpoint;
use crate::base::ids::LeaseId;
use crate::base::limits::{
    LEASE_CHECKPOINTS_PER_ENTRY_MAX, LEASE_CHECKPOINTS_PER_LOOK_MAX, LEASE_REVOKES_IN_FLIGHT_MAX,
    LEASE_REVOKES_PER_SECOND_MAX,
};
use crate::lease::LeaseReader;
use crate::lease::schedule::{Checkpointed, Renewal, Schedule};
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use actix::{Addr, Message};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often expired leases are looked for (etcd v3.5.17 `lease/lessor.go` expiry loop).
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often while more have expired than may be revoked at once: a write of someone else waits
/// behind what one such look proposes.
const WAVE_INTERVAL: Duration = Duration::from_millis(4);

/// What an entry did to a lease.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It was granted with this TTL in seconds.
    Granted { id: LeaseId, ttl: i64 },
    /// It is gone.
    Revoked { id: LeaseId },
    /// Its remaining time was checkpointed, in seconds, or its checkpoint removed (0).
    Checkpointed { id: LeaseId, remaining: i64 },
}

/// What a batch of entries did to leases, in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Changes(pub Vec<Change>);

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

/// The leases are those of a leader's snapshot.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Restored;

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

/// What the flags say about leases.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// A new leader gives every lease this much more, since it may have missed renewals.
    pub extension: Duration,
    /// How long after a grant or a checkpoint the next checkpoint is due; none are made without.
    pub checkpoint_interval: Option<Duration>,
}

/// Interval of checkpoints (etcd v3.5.17 `lease/lessor.go` defaultLeaseCheckpointInterval).
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Who waits for the renewal of one lease.
type Renewals = Vec<oneshot::Sender<Result<i64>>>;

/// See the module.
pub struct LeaseKeeper {
    schedule: Schedule,
    /// Counts the keys that a revoke has to delete.
    leases: LeaseReader,
    /// Renewals of leases whose revoke, or the removal of whose checkpoint, is on the way: answered
    /// when it has come through, or when leadership ends, so that the lease is renewed at the next
    /// leader.
    waiting: HashMap<LeaseId, Renewals>,
    term: u64,
    /// When revokes were last proposed.
    revoked_at: Instant,
    /// More have expired than may be revoked at once, and a timer is armed for the rest.
    in_wave: bool,
    terms: Terms,
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
        terms: Terms,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
    ) -> LeaseKeeper {
        let mut keeper = LeaseKeeper {
            schedule: Schedule::new(leases.granted(), terms.checkpoint_interval),
            leases: leases.clone(),
            waiting: HashMap::new(),
            term: 0,
            revoked_at: clock.now(),
            in_wave: false,
            terms,
            shared,
            clock,
        };
        if let Some(term) = keeper.shared.promoted_term() {
            keeper.promote(term);
        }
        keeper
    }

    fn promote(&mut self, term: u64) {
        self.release_waiting();
        self.term = term;
        self.schedule.promote(self.clock.now(), self.terms.extension);
    }

    /// What is on the way belongs to a leadership that is over.
    fn release_waiting(&mut self) {
        for reply in std::mem::take(&mut self.waiting).into_values().flatten() {
            let _ = reply.send(Err(Error::NotLeader));
        }
    }

    fn renew(&mut self, id: LeaseId, reply: oneshot::Sender<Result<i64>>) {
        let answer = match self.schedule.renew(id, self.clock.now()) {
            Renewal::NotLeading => Err(Error::NotLeader),
            Renewal::Absent => Err(Error::LeaseNotFound),
            Renewal::Renewed(ttl) => {
                metrics().lease_renewed.inc();
                Ok(ttl)
            }
            Renewal::Revoking => return self.waiting.entry(id).or_default().push(reply),
            Renewal::Clearing { ask } => {
                self.waiting.entry(id).or_default().push(reply);
                if ask {
                    self.clear_checkpoint(id);
                }
                return;
            }
        };
        let _ = reply.send(answer);
    }

    fn answer_waiting(&mut self, id: LeaseId, answer: Result<i64>) {
        for reply in self.waiting.remove(&id).into_iter().flatten() {
            if answer.is_ok() {
                metrics().lease_renewed.inc();
            }
            let _ = reply.send(answer);
        }
    }

    fn revoked(&mut self, id: LeaseId) {
        // It was this member that asked for it, because the time was over.
        if self.schedule.revoked(id) {
            metrics().lease_expired.inc();
        }
        self.answer_waiting(id, Err(Error::LeaseNotFound));
    }

    fn checkpointed(&mut self, id: LeaseId, remaining: i64) {
        match self.schedule.checkpointed(id, remaining, self.clock.now()) {
            Checkpointed::Noted => {}
            Checkpointed::Renewed(ttl) => self.answer_waiting(id, Ok(ttl)),
            Checkpointed::Outdated => self.clear_checkpoint(id),
        }
    }

    fn leads(&self) -> bool {
        let standing = self.shared.standing();
        self.schedule.is_leading() && standing.is_leader && standing.term == self.term
    }

    fn look(&mut self) {
        failpoint::hit(failpoint::LEASE_LOOK);
        self.waiting.retain(|_, renewals| {
            renewals.retain(|reply| !reply.is_closed());
            !renewals.is_empty()
        });
        if self.leads() {
            self.revoke_expired();
            self.checkpoint_due();
            self.clear_lost();
        }
    }

    /// As many as the time since the last ones allows, within what may be on the way: an expiry
    /// wave goes fast, and leaves room for others, on members that apply more slowly too.
    fn revoke_expired(&mut self) {
        let now = self.clock.now();
        let micros = now.saturating_duration_since(self.revoked_at).as_micros();
        self.revoked_at = now;
        let allowed = usize::try_from(micros).unwrap_or(usize::MAX);
        let allowed = allowed.saturating_mul(LEASE_REVOKES_PER_SECOND_MAX) / 1_000_000;
        let room = LEASE_REVOKES_IN_FLIGHT_MAX.saturating_sub(self.schedule.revoking_weight());
        let leases = &self.leases;
        let weigh = |id| leases.count_keys(id, LEASE_REVOKES_IN_FLIGHT_MAX);
        let expired = self.schedule.take_expired(now, room.min(allowed), weigh);
        if expired.is_empty() {
            return;
        }
        failpoint::hit(failpoint::LEASE_REVOKE);
        let revoke = |id: LeaseId| rpc::InternalRaftRequest {
            lease_revoke: Some(rpc::LeaseRevokeRequest { id: id.0 }),
            ..rpc::InternalRaftRequest::default()
        };
        self.shared.propose_as_leader(self.term, expired.into_iter().map(revoke).collect());
    }

    fn checkpoint_due(&mut self) {
        let now = self.clock.now();
        let due = self.schedule.take_checkpoints(now, LEASE_CHECKPOINTS_PER_LOOK_MAX);
        self.propose_checkpoints(&due);
    }

    /// What is renewed has no checkpoint any more, or a later leader would end it too early.
    fn clear_checkpoint(&self, id: LeaseId) {
        self.propose_checkpoints(&[(id, 0)]);
    }

    /// Asks again where the answer is overdue.
    fn clear_lost(&mut self) {
        let now = self.clock.now();
        let lost: Vec<(LeaseId, i64)> = self
            .waiting
            .keys()
            .filter(|id| self.schedule.clears_again(**id, now))
            .map(|id| (*id, 0))
            .collect();
        self.propose_checkpoints(&lost);
    }

    fn propose_checkpoints(&self, checkpoints: &[(LeaseId, i64)]) {
        if checkpoints.is_empty() {
            return;
        }
        let entry = |some: &[(LeaseId, i64)]| {
            let checkpoint = |&(id, remaining_ttl): &(LeaseId, i64)| rpc::LeaseCheckpoint {
                id: id.0,
                remaining_ttl,
            };
            let checkpoints = some.iter().map(checkpoint).collect();
            rpc::InternalRaftRequest {
                lease_checkpoint: Some(rpc::LeaseCheckpointRequest { checkpoints }),
                ..rpc::InternalRaftRequest::default()
            }
        };
        let entries = checkpoints.chunks(LEASE_CHECKPOINTS_PER_ENTRY_MAX).map(entry).collect();
        self.shared.propose_as_leader(self.term, entries);
    }

    fn arm(life: &mut Life<'_, Self>) {
        life.later(EXPIRY_INTERVAL, |keeper, life| {
            keeper.look();
            keeper.go_on(life);
            Self::arm(life);
        });
    }

    fn go_on(&mut self, life: &mut Life<'_, Self>) {
        if self.in_wave || !self.schedule.has_expired(self.clock.now()) {
            return;
        }
        self.in_wave = true;
        life.later(WAVE_INTERVAL, |keeper, life| {
            keeper.in_wave = false;
            if keeper.leads() {
                keeper.revoke_expired();
                keeper.go_on(life);
            }
        });
    }
}

impl Restartable for LeaseKeeper {
    const NAME: &'static str = "LeaseKeeper";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        Self::arm(life);
    }
}

impl Handles<Changes> for LeaseKeeper {
    fn handle(&mut self, Changes(changes): Changes, _: &mut Life<'_, Self>) {
        let now = self.clock.now();
        for change in changes {
            match change {
                Change::Granted { id, ttl } => self.schedule.granted(id, ttl, now),
                Change::Revoked { id } => self.revoked(id),
                Change::Checkpointed { id, remaining } => self.checkpointed(id, remaining),
            }
        }
    }
}

impl Handles<Promoted> for LeaseKeeper {
    fn handle(&mut self, Promoted { term }: Promoted, _: &mut Life<'_, Self>) {
        self.promote(term);
    }
}

impl Handles<Demoted> for LeaseKeeper {
    fn handle(&mut self, _: Demoted, _: &mut Life<'_, Self>) {
        self.schedule.demote();
        self.release_waiting();
    }
}

impl Handles<Restored> for LeaseKeeper {
    fn handle(&mut self, _: Restored, _: &mut Life<'_, Self>) {
        // Who gets a snapshot follows; if it leads since, it has not applied its first entry.
        self.release_waiting();
        self.schedule = Schedule::new(self.leases.granted(), self.terms.checkpoint_interval);
    }
}

impl Handles<Renew> for LeaseKeeper {
    fn handle(&mut self, Renew { id, reply }: Renew, _: &mut Life<'_, Self>) {
        self.renew(id, reply);
    }
}

impl Handles<Remaining> for LeaseKeeper {
    fn handle(&mut self, Remaining { id, reply }: Remaining, _: &mut Life<'_, Self>) {
        let answer = match self.schedule.remaining(id, self.clock.now()) {
            _ if !self.schedule.is_leading() => Err(Error::NotLeader),
            None => Err(Error::LeaseNotFound),
            Some((ttl, left)) => Ok((ttl, i64::try_from(left.as_secs()).unwrap_or(i64::MAX))),
        };
        let _ = reply.send(answer);
    }
}

impl Handles<ByDeadline> for LeaseKeeper {
    fn handle(&mut self, ByDeadline(reply): ByDeadline, _: &mut Life<'_, Self>) {
        let _ = reply.send(self.schedule.by_end().into_iter().map(|id| id.0).collect());
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
    use prost::Message as _;
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
            let terms = Terms { extension, checkpoint_interval: Some(CHECKPOINT_INTERVAL) };
            LeaseKeeper::new(&reader, terms, self.shared.clone(), self.clock.clone())
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
        keeper.schedule.revoking_weight() > 0
    }

    #[test]
    fn one_made_anew_leads_and_extends_only_if_it_was_promoted() {
        let world = World::new();
        assert!(!world.keeper().schedule.is_leading());
        world.lead(5);
        let mut keeper = world.keeper();
        assert!(keeper.schedule.is_leading() && keeper.term == 5);
        world.pass(10);
        assert!(!is_revoking(&mut keeper), "the extension is not over");
        world.pass(1);
        assert!(is_revoking(&mut keeper));
        // Elected again, but what came before is not applied.
        world.shared.publish_standing(Standing { term: 6, is_leader: true, ..Standing::default() });
        assert!(!world.keeper().schedule.is_leading());
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

    fn checkpoints(world: &mut World) -> Vec<(i64, i64)> {
        let mut found = Vec::new();
        while let Some(Ask::ProposeAsLeader { term: 5, payloads }) = world.outlet.take() {
            for payload in payloads {
                let request = rpc::InternalRaftRequest::decode(payload).unwrap();
                let checkpoints = request.lease_checkpoint.into_iter().flat_map(|r| r.checkpoints);
                found.extend(checkpoints.map(|c| (c.id, c.remaining_ttl)));
            }
        }
        found
    }

    #[test]
    fn checkpoints_are_proposed_and_a_renewal_removes_them_first() {
        let mut world = World::new();
        let long = LeaseId(9);
        world.leases.grant(long, 1000).unwrap();
        world.lead(5);
        let mut keeper = world.keeper();
        world.pass(9);
        assert_eq!(renew(&mut keeper).try_recv().unwrap(), Ok(10));
        world.pass(291);
        keeper.look();
        assert_eq!(checkpoints(&mut world), [(9, 701)], "the extension included");
        keeper.checkpointed(long, 701);
        let ask = |keeper: &mut LeaseKeeper| {
            let (reply, answer) = oneshot::channel();
            keeper.renew(long, reply);
            answer
        };
        let (mut one, mut other) = (ask(&mut keeper), ask(&mut keeper));
        assert_eq!(checkpoints(&mut world), [(9, 0)], "asked for once");
        world.pass(3);
        keeper.look();
        assert_eq!(checkpoints(&mut world), [(9, 0)], "and again when it was lost");
        assert!(one.try_recv().is_err() && other.try_recv().is_err(), "not yet safe");
        keeper.checkpointed(long, 0);
        assert_eq!((one.try_recv(), other.try_recv()), (Ok(Ok(1000)), Ok(Ok(1000))));
        // Renewed twice in a row, there is nothing to remove.
        assert_eq!(ask(&mut keeper).try_recv().unwrap(), Ok(1000));
        assert!(checkpoints(&mut world).is_empty());
    }

    #[test]
    fn an_expiry_wave_is_fast_and_leaves_room() {
        let mut world = World::new();
        let count = 100_000;
        for id in 0..count {
            world.leases.grant(LeaseId(100 + id), 10).unwrap();
        }
        world.lead(5);
        let mut keeper = world.keeper();
        world.pass(11);
        keeper.look();
        let (mut revoked, mut passes) = (0, 0);
        while keeper.schedule.has_expired(world.clock.now()) {
            *world.clock.0.lock() += WAVE_INTERVAL;
            passes += 1;
            while let Some(Ask::ProposeAsLeader { payloads, .. }) = world.outlet.take() {
                assert!(payloads.len() <= LEASE_REVOKES_IN_FLIGHT_MAX);
                for payload in payloads {
                    let request = rpc::InternalRaftRequest::decode(payload).unwrap();
                    keeper.revoked(LeaseId(request.lease_revoke.unwrap().id));
                    revoked += 1;
                }
            }
            keeper.revoke_expired();
            assert!(keeper.schedule.revoking_weight() <= LEASE_REVOKES_IN_FLIGHT_MAX);
        }
        assert!(revoked >= count - LEASE_REVOKES_IN_FLIGHT_MAX as i64);
        assert!(passes * WAVE_INTERVAL < Duration::from_millis(4500), "{passes} passes");
        // Without an answer nothing more goes out.
        for id in 0..2 * LEASE_REVOKES_IN_FLIGHT_MAX as i64 {
            keeper.schedule.granted(LeaseId(1 + id), 2, world.clock.now());
        }
        world.pass(3);
        keeper.revoke_expired();
        world.pass(1);
        keeper.revoke_expired();
        assert_eq!(keeper.schedule.revoking_weight(), LEASE_REVOKES_IN_FLIGHT_MAX);
    }
}
