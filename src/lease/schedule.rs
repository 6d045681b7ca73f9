//! When leases end, while this member leads. Derived from the table and from renewals; the time is
//! a parameter.

use crate::base::ids::LeaseId;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// A revoke or a checkpoint that did not come through is asked for again after this long (etcd
/// v3.5.17 `lease/lessor.go` defaultExpiredleaseRetryInterval).
pub const RETRY: Duration = Duration::from_secs(3);

/// A lease as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub id: LeaseId,
    /// Granted TTL in seconds.
    pub ttl: i64,
    /// Checkpointed remaining TTL in seconds; 0 if there is none.
    pub remaining: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// This member does not lead.
    Forever,
    /// It ends at this time.
    Until(Instant),
    /// Its time is over; since when its revoke is on the way, and what it weighs.
    Revoking(Instant, usize),
}

#[derive(Debug)]
struct Entry {
    ttl: i64,
    remaining: i64,
    phase: Phase,
    /// The time under which the queue holds it; at or before the end of the lease.
    queued: Option<Instant>,
    /// When its remaining time is to be checkpointed.
    checkpoint: Option<Instant>,
    /// Since when the removal of its checkpoint is on the way.
    clearing: Option<Instant>,
}

impl Entry {
    fn new(ttl: i64, remaining: i64) -> Entry {
        let phase = Phase::Forever;
        Entry { ttl, remaining, phase, queued: None, checkpoint: None, clearing: None }
    }

    fn life(&self) -> Duration {
        let left = if self.remaining > 0 { self.remaining } else { self.ttl };
        Duration::from_secs(left.max(0).unsigned_abs())
    }
}

/// What a renewal has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its whole TTL again, in seconds.
    Renewed(i64),
    /// This member does not lead.
    NotLeading,
    /// There is no such lease.
    Absent,
    /// Its revoke is on the way: it ends, unless leadership ends before.
    Revoking,
    /// Its checkpoint is to be removed first, so that no later leader goes by it; whether the
    /// caller is to ask for that.
    Clearing { ask: bool },
}

/// What the appearance of a checkpoint calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointed {
    /// Nothing.
    Noted,
    /// A renewal waited for its removal: the lease has its whole TTL again, in seconds.
    Renewed(i64),
    /// The lease was renewed while its checkpoint was on the way: ask for its removal.
    Outdated,
}

type Queue = BTreeSet<(Instant, LeaseId)>;

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    leases: HashMap<LeaseId, Entry>,
    /// One pair for each lease with an end, with a time that is never too late. A renewal changes
    /// the entry only: the pair is put right when its time comes.
    ends: Queue,
    /// By the time when they are due.
    checkpoints: Queue,
    /// Leases whose revoke is on the way, by the time it was asked for.
    revoking: Queue,
    revoking_weight: usize,
    leading: bool,
    /// How long after a grant or a checkpoint the next checkpoint is due; none are made without.
    checkpoint_interval: Option<Duration>,
}

impl Schedule {
    /// The leases there are, while this member does not lead.
    pub fn new(
        leases: impl IntoIterator<Item = Granted>,
        checkpoint_interval: Option<Duration>,
    ) -> Schedule {
        let mut schedule = Schedule { checkpoint_interval, ..Schedule::default() };
        for Granted { id, ttl, remaining } in leases {
            schedule.leases.insert(id, Entry::new(ttl, remaining));
        }
        schedule
    }

    /// Whether this member leads.
    pub fn is_leading(&self) -> bool {
        self.leading
    }

    /// This member leads from now on. Every lease has its remaining time and `extension` more,
    /// since renewals may have been missed.
    pub fn promote(&mut self, now: Instant, extension: Duration) {
        self.demote();
        self.leading = true;
        let mut ends = Vec::with_capacity(self.leases.len());
        for (&id, entry) in &mut self.leases {
            let end = now + entry.life() + extension;
            entry.phase = Phase::Until(end);
            entry.queued = Some(end);
            ends.push((end, id));
            plan_checkpoint(&mut self.checkpoints, self.checkpoint_interval, id, entry, now);
        }
        self.ends = ends.into_iter().collect();
    }

    /// This member no longer leads: leases have no end, and revokes on the way are another's.
    pub fn demote(&mut self) {
        self.leading = false;
        self.ends.clear();
        self.checkpoints.clear();
        self.revoking.clear();
        self.revoking_weight = 0;
        for entry in self.leases.values_mut() {
            *entry = Entry::new(entry.ttl, entry.remaining);
        }
    }

    /// A lease was granted. It may be known already, to one that was made from a newer table.
    pub fn granted(&mut self, id: LeaseId, ttl: i64, now: Instant) {
        self.revoked(id);
        self.leases.insert(id, Entry::new(ttl, 0));
        self.start(id, now);
    }

    fn start(&mut self, id: LeaseId, now: Instant) {
        let Some(entry) = self.leases.get_mut(&id).filter(|_| self.leading) else {
            return;
        };
        let end = now + entry.life();
        entry.phase = Phase::Until(end);
        if entry.queued.is_none_or(|queued| queued > end) {
            if let Some(queued) = entry.queued.replace(end) {
                self.ends.remove(&(queued, id));
            }
            self.ends.insert((end, id));
        }
        plan_checkpoint(&mut self.checkpoints, self.checkpoint_interval, id, entry, now);
    }

    /// A lease is gone: whether its time was over.
    pub fn revoked(&mut self, id: LeaseId) -> bool {
        let Some(entry) = self.leases.remove(&id) else {
            return false;
        };
        if let Some(queued) = entry.queued {
            self.ends.remove(&(queued, id));
        }
        if let Some(at) = entry.checkpoint {
            self.checkpoints.remove(&(at, id));
        }
        let Phase::Revoking(since, weight) = entry.phase else {
            return false;
        };
        self.revoking.remove(&(since, id));
        self.revoking_weight -= weight;
        true
    }

    /// A lease's remaining time was checkpointed, or its checkpoint removed (0).
    pub fn checkpointed(&mut self, id: LeaseId, remaining: i64, now: Instant) -> Checkpointed {
        let Some(entry) = self.leases.get_mut(&id) else {
            return Checkpointed::Noted;
        };
        entry.remaining = remaining;
        let Phase::Until(end) = entry.phase else {
            return Checkpointed::Noted;
        };
        plan_checkpoint(&mut self.checkpoints, self.checkpoint_interval, id, entry, now);
        if remaining > 0 {
            if end.saturating_duration_since(now) <= entry.life() {
                return Checkpointed::Noted;
            }
            entry.clearing = Some(now);
            return Checkpointed::Outdated;
        }
        if entry.clearing.take().is_none() {
            return Checkpointed::Noted;
        }
        let ttl = entry.ttl;
        self.start(id, now);
        Checkpointed::Renewed(ttl)
    }

    /// Starts a lease's time anew.
    pub fn renew(&mut self, id: LeaseId, now: Instant) -> Renewal {
        if !self.leading {
            return Renewal::NotLeading;
        }
        let Some(entry) = self.leases.get_mut(&id) else {
            return Renewal::Absent;
        };
        if matches!(entry.phase, Phase::Revoking(..)) {
            return Renewal::Revoking;
        }
        if entry.remaining > 0 {
            let ask = entry.clearing.is_none();
            entry.clearing.get_or_insert(now);
            return Renewal::Clearing { ask };
        }
        let ttl = entry.ttl;
        self.start(id, now);
        Renewal::Renewed(ttl)
    }

    /// Whether the removal of a lease's checkpoint has to be asked for again: it takes too long.
    pub fn clears_again(&mut self, id: LeaseId, now: Instant) -> bool {
        let Some(entry) = self.leases.get_mut(&id) else {
            return false;
        };
        let late = entry.clearing.is_some_and(|since| now.duration_since(since) >= RETRY);
        if late {
            entry.clearing = Some(now);
        }
        late
    }

    /// Granted TTL and remaining time of a lease; `None` if there is no such lease.
    pub fn remaining(&self, id: LeaseId, now: Instant) -> Option<(i64, Duration)> {
        let entry = self.leases.get(&id)?;
        let left = match entry.phase {
            Phase::Forever => Duration::MAX,
            Phase::Until(end) => end.saturating_duration_since(now),
            Phase::Revoking(..) => Duration::ZERO,
        };
        Some((entry.ttl, left))
    }

    /// Pairs in the queues.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.ends.len() + self.checkpoints.len() + self.revoking.len()
    }

    /// Whether there may be leases whose time is over and whose revoke is not on the way.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.ends.first().is_some_and(|&(at, _)| at <= now)
    }

    /// What the revokes on the way weigh.
    pub fn revoking_weight(&self) -> usize {
        self.revoking_weight
    }

    /// Leases whose time is over, the first to end first, with those whose revoke was lost; their
    /// revokes are on the way from now on. At most as many as weigh `room` together, but one that
    /// weighs more alone if nothing else is on the way.
    pub fn take_expired(
        &mut self,
        now: Instant,
        room: usize,
        weigh: impl Fn(LeaseId) -> usize,
    ) -> Vec<LeaseId> {
        let mut taken = self.take_lost(now, room);
        let mut left = room;
        while let Some(&(at, id)) = self.ends.first() {
            if at > now || left == 0 {
                break;
            }
            let Some(entry) = self.leases.get_mut(&id) else { break };
            let Phase::Until(end) = entry.phase else { break };
            if end > at {
                // It was renewed since.
                self.ends.pop_first();
                entry.queued = Some(end);
                self.ends.insert((end, id));
                continue;
            }
            let weight = weigh(id).max(1);
            if weight > left && self.revoking_weight > 0 {
                break;
            }
            self.ends.pop_first();
            entry.queued = None;
            entry.phase = Phase::Revoking(now, weight);
            self.revoking.insert((now, id));
            self.revoking_weight += weight;
            left = left.saturating_sub(weight);
            taken.push(id);
        }
        taken
    }

    /// Leases whose revoke was asked for too long ago.
    fn take_lost(&mut self, now: Instant, count: usize) -> Vec<LeaseId> {
        let mut taken = Vec::new();
        while let Some(&(since, id)) = self.revoking.first() {
            if now.saturating_duration_since(since) < RETRY || taken.len() >= count {
                break;
            }
            self.revoking.pop_first();
            self.revoking.insert((now, id));
            if let Some(Entry { phase: Phase::Revoking(since, _), .. }) = self.leases.get_mut(&id) {
                *since = now;
            }
            taken.push(id);
        }
        taken
    }

    /// Leases whose remaining time is to be checkpointed, and that time in seconds; at most
    /// `count`. If a checkpoint is lost, the next one tells.
    pub fn take_checkpoints(&mut self, now: Instant, count: usize) -> Vec<(LeaseId, i64)> {
        let mut taken = Vec::new();
        while let Some(&(at, id)) = self.checkpoints.first() {
            if at > now || taken.len() >= count {
                break;
            }
            self.checkpoints.pop_first();
            let Some(entry) = self.leases.get_mut(&id) else { continue };
            entry.checkpoint = None;
            plan_checkpoint(&mut self.checkpoints, self.checkpoint_interval, id, entry, now);
            let Phase::Until(end) = entry.phase else { continue };
            let left = end.saturating_duration_since(now);
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            if seconds > 0 && seconds < entry.ttl {
                taken.push((id, seconds));
            }
        }
        taken
    }

    /// All lease ids, the first to expire first; those without an end last, by id.
    pub fn by_end(&self) -> Vec<LeaseId> {
        let mut leases: Vec<(u8, Option<Instant>, LeaseId)> = self
            .leases
            .iter()
            .map(|(&id, entry)| match entry.phase {
                Phase::Revoking(since, _) => (0, Some(since), id),
                Phase::Until(end) => (1, Some(end), id),
                Phase::Forever => (2, None, id),
            })
            .collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, _, id)| id).collect()
    }
}

/// Only what has longer to live than the interval is worth a checkpoint.
fn plan_checkpoint(
    checkpoints: &mut Queue,
    interval: Option<Duration>,
    id: LeaseId,
    entry: &mut Entry,
    now: Instant,
) {
    let Some(interval) = interval else { return };
    if entry.phase != Phase::Forever && entry.checkpoint.is_none() && entry.life() > interval {
        entry.checkpoint = Some(now + interval);
        checkpoints.insert((now + interval, id));
    }
}
