//! RaftActor: owns the raft driver and the WAL. Requests gather in its mailbox while it writes;
//! one flush proposes, saves and sends for all of them.

mod snapshots;

pub use self::snapshots::{Installed, SnapSaved, SnapStatus};

use crate::actors::checkpointer::CheckpointerHandle;
use crate::actors::core::Shared;
use crate::actors::inbox::{Ask, Outlet, Propose};
use crate::actors::lease_keeper::{self, LeaseKeeperAddr};
use crate::actors::rt;
use crate::actors::store::{self, StoreActor, Waiter};
use crate::apply::Reply;
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::failpoint;
use crate::base::ids::MemberId;
use crate::base::limits;
use crate::cluster::members::{Member, PeerChange};
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{
    ConfChange, ConfState, Entry, EntryType, HardState, Message as RaftMessage, MessageType,
    Snapshot, SnapshotMetadata,
};
use crate::raft::driver::{Change, Driver, Standing};
use crate::raft::leader_only::LeaderOnly;
use crate::raft::log::Archive;
use crate::raft::reads::Reads;
use crate::raft::sending::Sending;
use crate::raft::turn::World;
use crate::storage::snap::{self, Snap};
use crate::storage::wal::{Wal, WalReader};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Requests that wait in the inbox for others to join them are taken up within this time.
const GATHER_PAUSE_MAX: Duration = Duration::from_millis(2);
/// How often waiters whose callers have gone are forgotten while nothing commits.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Work that comes along takes a tick up that is due within this time.
const TICK_EARLY_MAX: Duration = Duration::from_millis(1);
/// An idle member writes its newest commit index down within this time.
const COMMIT_WRITE_DELAY: Duration = Duration::from_millis(100);

/// Where messages to peers go; the transport implements it and never blocks.
pub trait Peers: Send + 'static {
    fn send(&self, messages: Vec<RaftMessage>);
    fn change(&self, change: PeerChange);
    /// These are the members now, whoever they were.
    fn replace(&self, members: Vec<Member>);
}

impl Archive for WalReader {
    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: u64,
    ) -> std::result::Result<Vec<Entry>, String> {
        WalReader::entries(self, low, high, bytes_max).map_err(|error| error.to_string())
    }
}

/// A message from a peer; answered when raft has taken or refused it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Step {
    pub message: RaftMessage,
    pub done: oneshot::Sender<std::result::Result<(), String>>,
}

/// A message to this peer was lost.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Unreachable(pub MemberId);

/// StoreActor has applied conf changes. That other entries are applied, RaftActor sees from
/// `Shared`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Changed(pub Vec<AppliedChange>);

/// A conf change that StoreActor has applied.
pub struct AppliedChange {
    pub index: u64,
    /// As raft has to take it: a rejected one as a change of nothing.
    pub change: Change,
    pub peer: PeerChange,
    /// What raft must have after it.
    pub conf_state: ConfState,
    /// Who asked for it, and the outcome.
    pub answer: Option<(Waiter, Result<Reply>)>,
}

/// Writes everything down; answered before the process ends.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop(pub oneshot::Sender<()>);

/// Takes up what is in the inbox, proposes, saves and sends.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Flush;

/// What a turn of raft's work is done to.
struct Outside<'a> {
    peers: &'a dyn Peers,
    wal: &'a mut Wal,
    /// Where snapshot files are.
    snap_dir: &'a Path,
    saved: &'a mut bool,
    /// Messages that ask for a snapshot.
    snapshots: &'a mut Vec<RaftMessage>,
}

impl World for Outside<'_> {
    fn send(&mut self, mut messages: Vec<RaftMessage>) {
        let asks = |message: &mut RaftMessage| message.get_msg_type() == MessageType::MsgSnapshot;
        self.snapshots.extend(messages.extract_if(.., asks));
        self.peers.send(messages);
    }

    /// In etcd's order (v3.5.17 `etcdserver/storage.go` SaveSnap): the file, then the record.
    fn save_snapshot(&mut self, snapshot: &Snapshot) -> std::result::Result<(), String> {
        failpoint::hit(failpoint::INSTALL_SAVE);
        *self.saved = true;
        let SnapshotMetadata { conf_state, index, term } = snapshot.get_metadata().clone();
        let conf_state = conf_state.unwrap_or_default();
        let tree = snapshot.data.clone();
        let file = Snap { index, term, conf_state: conf_state.clone(), tree };
        snap::save(self.snap_dir, &file).map_err(|error| error.to_string())?;
        let recorded = self.wal.install_snapshot(index, term, &conf_state);
        recorded.map_err(|error| format!("failed to write the WAL: {error}"))?;
        failpoint::hit(failpoint::INSTALL_RECORDED);
        Ok(())
    }

    fn save(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        must_sync: bool,
    ) -> std::result::Result<(), String> {
        *self.saved = true;
        self.wal
            .save(hard_state, entries, must_sync)
            .map_err(|error| format!("failed to write the WAL: {error}"))
    }
}

/// The moment that counts as that of a tick, if one is due: when it should have been, or now if
/// more than one should.
fn tick_due(last: Instant, interval: Duration, now: Instant) -> Option<Instant> {
    let due = last + interval;
    if now + TICK_EARLY_MAX < due {
        return None;
    }
    Some(if now < due + interval { due } else { now })
}

/// What the actor is made of.
pub struct Parts {
    pub driver: Driver<WalReader>,
    pub wal: Wal,
    pub outlet: Outlet,
    pub store: Addr<StoreActor>,
    pub lease_keeper: LeaseKeeperAddr,
    pub peers: Box<dyn Peers>,
    pub checkpointer: CheckpointerHandle,
    /// Segments of the WAL that stay at least; `None`: all.
    pub segments_kept: Option<usize>,
    /// Entries before a snapshot that stay for members that are behind.
    pub catchup_entries: u64,
    /// `member/snap`.
    pub snap_dir: PathBuf,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub tick_interval: Duration,
}

/// See the module.
pub struct RaftActor {
    parts: Parts,
    standing: Standing,
    proposals: VecDeque<Propose>,
    /// Changes of members, each proposed when raft would take it.
    changes: VecDeque<(ConfChange, Waiter)>,
    leader_only: LeaderOnly,
    reads: Reads<oneshot::Sender<Result<u64>>>,
    /// Waiters of entries that are proposed and not yet handed to StoreActor.
    registered: Vec<(u64, Waiter)>,
    /// Indexes of conf changes that StoreActor has and raft has not taken yet.
    unchanged: VecDeque<u64>,
    /// Index of the newest snapshot that came from a leader.
    installed: u64,
    sending: Sending,
    /// A timer is armed that takes up what waits in the inbox.
    gathering: bool,
    last_tick: Instant,
    last_sweep: Instant,
    last_write: Instant,
}

impl RaftActor {
    /// Takes over the recovered parts. Start it in an Arbiter of its own: it writes to disk.
    pub fn new(parts: Parts) -> RaftActor {
        let now = parts.clock.now();
        RaftActor {
            standing: Standing::default(),
            proposals: VecDeque::new(),
            changes: VecDeque::new(),
            leader_only: LeaderOnly::default(),
            reads: Reads::default(),
            registered: Vec::new(),
            unchanged: VecDeque::new(),
            installed: 0,
            sending: Sending::default(),
            gathering: false,
            last_tick: now,
            last_sweep: now,
            last_write: now,
            parts,
        }
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if self.parts.outlet.arm() {
            ctx.notify(Flush);
        }
    }

    fn arm_timer(&self, ctx: &mut Context<Self>) {
        // Re-armed each time, so that a slow write never makes missed ticks fire in a burst; for a
        // moment that lies ahead, so that what a timer is late by does not add up.
        let due = self.last_tick + self.parts.tick_interval;
        ctx.run_later(due.saturating_duration_since(self.parts.clock.now()), |actor, ctx| {
            rt::or_abort("RaftActor", || {
                actor.tick_if_due();
                actor.take_asks();
                actor.flush();
            });
            actor.arm_timer(ctx);
        });
    }

    /// While there are many callers, looks into the inbox now and then.
    fn arm_gathering(&mut self, ctx: &mut Context<Self>) {
        if self.gathering || !self.parts.shared.inbox.is_busy() {
            return;
        }
        self.gathering = true;
        ctx.run_later(GATHER_PAUSE_MAX, |actor, ctx| {
            actor.gathering = false;
            rt::or_abort("RaftActor", || {
                actor.take_asks();
                actor.flush();
            });
            actor.arm_gathering(ctx);
        });
    }

    fn tick_if_due(&mut self) {
        let (now, interval) = (self.parts.clock.now(), self.parts.tick_interval);
        let Some(due) = tick_due(self.last_tick, interval, now) else { return };
        self.last_tick = due;
        self.parts.shared.publish_tick(now);
        self.parts.driver.tick();
        if self.reads.retry(now) {
            metrics().slow_read_indexes.inc();
        }
        if now.duration_since(self.last_write) >= COMMIT_WRITE_DELAY {
            self.write_commit();
        }
        if now.duration_since(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = now;
            self.registered.retain(|(_, waiter)| !waiter.is_closed());
        }
    }

    fn write_commit(&mut self) {
        self.with_driver(|driver, outside| driver.save_commit(outside));
    }

    /// Work that may write; a failed write ends the member.
    fn with_driver<T, W>(&mut self, work: W) -> T
    where
        W: FnOnce(&mut Driver<WalReader>, &mut Outside<'_>) -> std::result::Result<T, String>,
    {
        let (mut saved, mut snapshots) = (false, Vec::new());
        let Parts { driver, peers, wal, clock, snap_dir, .. } = &mut self.parts;
        let outside = &mut Outside {
            peers: &**peers,
            wal,
            snap_dir,
            saved: &mut saved,
            snapshots: &mut snapshots,
        };
        let done = work(driver, outside);
        if saved {
            self.last_write = clock.now();
        }
        let done = done.unwrap_or_else(|error| rt::fatal(&error));
        if saved {
            let wal = &self.parts.wal;
            self.parts.shared.publish_log(wal.commit_durable(), wal.written_bytes());
        }
        snapshots.into_iter().for_each(|message| self.send_snapshot(message));
        done
    }

    fn take_ripe_asks(&mut self) {
        if self.parts.shared.inbox.is_ripe() {
            self.take_asks();
        }
    }

    fn take_asks(&mut self) {
        let gap_max = self.parts.shared.applied_index() + limits::APPLY_GAP_MAX;
        while let Some(ask) = self.parts.outlet.take() {
            match ask {
                Ask::ReadIndex(reply) if self.reads.waiting() < limits::PROPOSALS_PENDING_MAX => {
                    self.reads.push(reply);
                }
                Ask::ReadIndex(reply) => {
                    let _ = reply.send(Err(Error::TooManyRequests));
                }
                Ask::ProposeAsLeader { term, payloads } => self.leader_only.push(term, payloads),
                Ask::TransferTo(member) => self.parts.driver.transfer_leader(member),
                Ask::Change { change, reply }
                    if self.changes.len() < limits::CHANGES_PENDING_MAX =>
                {
                    self.changes.push_back((change, reply));
                }
                Ask::Change { reply, .. } => {
                    let _ = reply.send(Err(Error::TooManyRequests));
                }
                Ask::Progress { member, reply } => {
                    let _ = reply.send(self.parts.driver.progress(member));
                }
                Ask::Advance(ticks) => (0..ticks).for_each(|_| self.parts.driver.tick()),
                Ask::Propose(proposal)
                    if self.standing.committed <= gap_max
                        && self.proposals.len() < limits::PROPOSALS_PENDING_MAX =>
                {
                    self.proposals.push_back(proposal);
                }
                Ask::Propose(Propose { reply: Some(reply), .. }) => {
                    let _ = reply.send(Err(Error::TooManyRequests));
                }
                Ask::Propose(_) => {}
            }
        }
    }

    /// Tells raft what StoreActor has applied, up to the first conf change that raft has not taken.
    fn follow_applied(&mut self) {
        let applied = self.parts.shared.applied_index();
        let index = self.unchanged.front().map_or(applied, |first| applied.min(first - 1));
        self.parts.driver.applied(index);
    }

    fn flush(&mut self) {
        failpoint::hit(failpoint::RAFT_FLUSH);
        self.follow_applied();
        self.take_ripe_asks();
        self.propose_all();
        self.read_index();
        self.confirm_leadership();
        while let Some(turn) = self.with_driver(|driver, outside| driver.turn(outside)) {
            // IMPORTANT: the standing is published before entries of its term are applied, so that
            // StoreActor knows that we lead when it applies the empty entry of our term.
            self.follow_standing();
            if let Some(snapshot) = turn.snapshot {
                self.install(snapshot);
            }
            let committed = turn.committed;
            if !committed.is_empty() {
                let is_change = |e: &&Entry| e.entry_type != EntryType::EntryNormal as i32;
                self.unchanged.extend(committed.iter().filter(is_change).map(|e| e.index));
                let waiters = std::mem::take(&mut self.registered);
                self.parts.store.do_send(store::Apply { waiters, entries: committed });
            }
            for (context, index) in turn.read_states {
                self.answer_round(context, index);
                self.propose_as_leader(context);
            }
            self.take_ripe_asks();
            self.propose_all();
            self.read_index();
            self.confirm_leadership();
        }
        self.follow_standing();
    }

    fn propose_all(&mut self) {
        self.propose_change();
        self.propose();
    }

    fn propose_change(&mut self) {
        if self.changes.is_empty() || !self.parts.driver.takes_changes() {
            return;
        }
        self.changes.retain(|(_, reply)| !reply.is_closed());
        let Some((change, reply)) = self.changes.pop_front() else { return };
        match self.parts.driver.propose_change(&change) {
            Ok(()) => self.registered.push((change.id, reply)),
            Err(_) => {
                let _ = reply.send(Err(Error::Timeout));
            }
        }
    }

    fn propose(&mut self) {
        // They wait for an election, and for the end of a hand-over: raft would drop them. Its own
        // word counts: the standing is that of the last flush.
        if self.proposals.is_empty() || !self.parts.driver.takes_proposals() {
            return;
        }
        let mut bytes = 0;
        let mut payloads = Vec::new();
        let mut waiters = Vec::new();
        while let Some(proposal) = self.proposals.front() {
            if bytes > 0 && bytes + proposal.data.len() > limits::PROPOSE_BATCH_BYTES_MAX {
                break;
            }
            let proposal = self.proposals.pop_front().expect("just seen");
            if proposal.reply.as_ref().is_some_and(Waiter::is_closed) {
                continue;
            }
            bytes += proposal.data.len();
            payloads.push(proposal.data);
            if let Some(reply) = proposal.reply {
                waiters.push((proposal.id, reply));
            }
        }
        if payloads.is_empty() {
            return;
        }
        match self.parts.driver.propose(payloads) {
            Ok(()) => self.registered.extend(waiters),
            Err(_) => {
                for (_, reply) in waiters {
                    let _ = reply.send(Err(Error::Timeout));
                }
            }
        }
    }

    fn read_index(&mut self) {
        if !self.parts.driver.can_read_index() {
            return;
        }
        let Parts { clock, shared, .. } = &self.parts;
        let gone = oneshot::Sender::is_closed;
        if let Some(context) = self.reads.begin(clock.now(), gone, || shared.ids.next()) {
            self.parts.driver.read_index(context);
        }
    }

    fn confirm_leadership(&mut self) {
        if self.leader_only.is_idle() || !self.parts.driver.can_read_index() {
            return;
        }
        let context = self.parts.shared.ids.next();
        if self.leader_only.ask(self.parts.driver.standing(), self.parts.clock.now(), context) {
            self.parts.driver.read_index(context);
        }
    }

    fn propose_as_leader(&mut self, context: u64) {
        let payloads = self.leader_only.confirmed(context, self.parts.driver.standing());
        if !payloads.is_empty() {
            // A refusal is as good as a lost proposal: whoever asked asks again.
            let _ = self.parts.driver.propose(payloads);
        }
    }

    fn answer_round(&mut self, context: u64, index: u64) {
        for waiter in self.reads.answered(context) {
            let _ = waiter.send(Ok(index));
        }
    }

    fn follow_standing(&mut self) {
        let standing = self.parts.driver.standing();
        if standing == self.standing {
            return;
        }
        let before = std::mem::replace(&mut self.standing, standing);
        self.parts.shared.publish_standing(standing);
        if before.leader == standing.leader && before.is_leader == standing.is_leader {
            return;
        }
        let member = self.parts.shared.member_id;
        if standing.is_leader && !before.is_leader {
            tracing::info!(
                term = standing.term,
                "{member} became leader at term {}",
                standing.term
            );
        }
        if before.is_leader && !standing.is_leader {
            self.parts.lease_keeper.do_send(lease_keeper::Demoted);
        }
        if standing.leader != before.leader {
            self.parts.shared.leader_changed(self.parts.clock.now());
            // A round in flight may be answered by acknowledgements of an older leadership.
            if before.leader.0 != 0
                && let Some(waiters) = self.reads.fail()
            {
                metrics().read_indexes_failed.inc();
                for waiter in waiters {
                    let _ = waiter.send(Err(Error::LeaderChanged));
                }
            }
        }
    }
}

impl Actor for RaftActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::RAFT_MAILBOX_MAX);
        rt::or_abort("RaftActor", || {
            if self.parts.driver.is_single_voter() {
                let _ = self.parts.driver.campaign();
            }
            self.flush();
        });
        self.arm_timer(ctx);
    }
}

impl Handler<Step> for RaftActor {
    type Result = ();

    fn handle(&mut self, Step { message, done }: Step, ctx: &mut Self::Context) {
        let answer = rt::or_abort("RaftActor", || self.parts.driver.step(message));
        let _ = done.send(answer.map_err(|refused| refused.to_string()));
        self.arm(ctx);
    }
}

impl Handler<Unreachable> for RaftActor {
    type Result = ();

    fn handle(&mut self, Unreachable(id): Unreachable, ctx: &mut Self::Context) {
        rt::or_abort("RaftActor", || self.parts.driver.report_unreachable(id));
        self.arm(ctx);
    }
}

impl Handler<Changed> for RaftActor {
    type Result = ();

    fn handle(&mut self, Changed(changes): Changed, ctx: &mut Self::Context) {
        rt::or_abort("RaftActor", || {
            self.with_driver(|driver, outside| driver.secure_commit(outside));
            let mut answers = Vec::new();
            for AppliedChange { index, change, peer, conf_state, answer } in changes {
                if index <= self.installed {
                    // Raft has the members of the snapshot, and the transport gets them.
                    answers.extend(answer);
                    continue;
                }
                // IMPORTANT: before `applied` advances to the change.
                match self.parts.driver.apply_conf_change(&change) {
                    Ok(state) => assert!(
                        raft_proto::conf_state_eq(&state, &conf_state),
                        "raft has {state:?} and the member table {conf_state:?}"
                    ),
                    Err(error) => {
                        rt::fatal(&format!("raft refused a committed conf change: {error}"));
                    }
                }
                self.parts.peers.change(peer);
                assert_eq!(self.unchanged.pop_front(), Some(index), "changes come in order");
                answers.extend(answer);
            }
            // IMPORTANT: before anything is sent to a new member, since a member that was alone
            // answers reads without asking anybody.
            self.follow_standing();
            self.follow_applied();
            for (waiter, result) in answers {
                // A caller that has gone needs no answer.
                let _ = waiter.send(result);
            }
        });
        self.arm(ctx);
    }
}

impl Handler<Flush> for RaftActor {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        rt::or_abort("RaftActor", || {
            self.parts.outlet.disarm();
            self.tick_if_due();
            self.flush();
        });
        self.arm_gathering(ctx);
    }
}

impl Handler<Stop> for RaftActor {
    type Result = ();

    fn handle(&mut self, Stop(done): Stop, _: &mut Self::Context) {
        rt::or_abort("RaftActor", || {
            self.take_asks();
            self.flush();
            self.write_commit();
        });
        let _ = done.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_ticks_do_not_make_the_next_ones_late_and_missed_ones_are_not_made_up_for() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let due = |last: u64, now: u64| {
            tick_due(start + ms(last), ms(100), start + ms(now)).map(|due| due - start)
        };
        assert_eq!(due(0, 98), None);
        assert_eq!(due(0, 99), Some(ms(100)));
        assert_eq!(due(0, 107), Some(ms(100)));
        assert_eq!(due(100, 201), Some(ms(200)));
        assert_eq!(due(0, 199), Some(ms(100)));
        assert_eq!(due(0, 950), Some(ms(950)));
    }
}
