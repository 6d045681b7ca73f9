//! StoreActor: the only writer. It applies committed entries in order and answers the proposers:
//! apply, publish the view, tell the others, reply, tell RaftActor.

mod compaction;
mod install;

pub use self::install::{Install, Installed, Merged, SendSnapshot, Snapshots};

use self::compaction::CompactStep;
use self::install::{Held, Installing};
use crate::actors::alarm_log;
use crate::actors::auth::Provider;
use crate::actors::checkpointer::{Trigger, Wanted};
use crate::actors::core::Shared;
use crate::actors::lease_keeper::{self, LeaseKeeper, LeaseKeeperAddr};
use crate::actors::member_log;
use crate::actors::no_space::NoSpace;
use crate::actors::raft::{self, AppliedChange, RaftActor};
use crate::actors::rt;
use crate::actors::timings::Timings;
use crate::actors::watch_hub::{self, WatchHubAddr};
use crate::apply::{self, Applied, Effect, Event, Machine, Payload, Reply, describe, payload};
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::failpoint;
use crate::cluster::members::PeerChange;
use crate::cluster::state::Cluster;
use crate::mvcc::backend::BackendError;
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::{Entry, EntryType};
use crate::raft::driver::Change;
use crate::storage::engine;
use crate::v2::Time;
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The proposer's end of an entry.
pub type Waiter = oneshot::Sender<Result<Reply>>;

/// How often waiters whose callers have gone are forgotten, and an idle position written.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often a leader has the log remove v2 nodes that are over (etcd v3.5.17 `server.go`
/// SyncTicker).
const V2_SYNC_INTERVAL: Duration = Duration::from_millis(500);
/// A member ends this long after its own removal was applied (etcd v3.5.17 `server.go`
/// applyEntries), so that others hear of the removal from it.
const REMOVED_STOP_DELAY: Duration = Duration::from_secs(1);

/// What the flags say about the work of this actor.
#[derive(Clone)]
pub struct Pace {
    /// Rows that one compaction step may look at before other work gets its turn.
    pub compact_rows: usize,
    /// Pause between compaction steps.
    pub compact_pause: Duration,
    /// A request whose apply takes longer is worth a warning.
    pub slow_apply: Duration,
    /// Measures that.
    pub clock: Arc<dyn Clock>,
}

/// Committed entries in log order, and who waits for them or for later ones.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Apply {
    pub waiters: Vec<(u64, Waiter)>,
    pub entries: Vec<Entry>,
}

/// Brings everything applied to the engine; answered before the process ends.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop(pub oneshot::Sender<()>);

/// RaftActor's address, which exists only after this actor's.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Connect {
    pub raft: Addr<RaftActor>,
    pub lease_keeper: LeaseKeeperAddr,
}

/// WatchHub wants to be told events from now on, or no longer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Watch {
    /// Comes back with [`watch_hub::Live`].
    pub epoch: u64,
    pub hub: Option<WatchHubAddr>,
}

/// The engine was defragmented: the size told is what is in use from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shrink(pub oneshot::Sender<()>);

/// See the module.
pub struct StoreActor {
    machine: Machine,
    cluster: Cluster,
    shared: Arc<Shared>,
    provider: Arc<Provider>,
    pace: Pace,
    raft: Option<Addr<RaftActor>>,
    lease_keeper: Option<LeaseKeeperAddr>,
    /// There while there are watchers; without it no events are made.
    watch_hub: Option<WatchHubAddr>,
    waiters: HashMap<u64, Waiter>,
    /// Answers of the batch at hand; they leave when its effects are published.
    answers: Vec<(Waiter, Result<Reply>)>,
    no_space: NoSpace,
    /// Events of the batch at hand, by revision.
    events: Vec<(i64, Vec<Event>)>,
    /// What the batch at hand did to leases.
    lease_changes: Vec<lease_keeper::Change>,
    compacting: bool,
    timings: Timings,
    trigger: Trigger,
    view: View,
    snapshots: Box<dyn Snapshots>,
    /// A leader's snapshot is on its way into the machine.
    installing: Option<Installing>,
    /// Counts machines: a look that an older one has ordered means nothing.
    generation: u64,
}

/// The engine as of now.
pub type View = Box<dyn Fn() -> std::result::Result<engine::View, BackendError> + Send>;

/// Snapshots, there and back.
pub struct SnapshotParts {
    pub trigger: Trigger,
    /// Of what the machine has handed to its engine.
    pub view: View,
    pub snapshots: Box<dyn Snapshots>,
}

impl StoreActor {
    /// Takes over the recovered machine. Start it in an Arbiter of its own.
    pub fn new(
        mut machine: Machine,
        cluster: Cluster,
        shared: Arc<Shared>,
        provider: Arc<Provider>,
        pace: Pace,
        parts: SnapshotParts,
    ) -> StoreActor {
        machine.want_events(false);
        let SnapshotParts { trigger, view, snapshots } = parts;
        StoreActor {
            machine,
            cluster,
            shared,
            provider,
            pace,
            raft: None,
            lease_keeper: None,
            watch_hub: None,
            waiters: HashMap::new(),
            answers: Vec::new(),
            no_space: NoSpace::default(),
            events: Vec::new(),
            lease_changes: Vec::new(),
            compacting: false,
            timings: Timings::new(),
            trigger,
            view,
            snapshots,
            installing: None,
            generation: 0,
        }
    }

    /// Asks for a snapshot of what is applied.
    fn snap_if_due(&mut self) {
        let (index, term) = self.machine.position();
        let log_bytes = self.shared.log_bytes();
        if self.installing.is_some() || !self.trigger.is_due(index, log_bytes) {
            return;
        }
        tracing::info!(
            "local-member-id" = %self.shared.member_id,
            "local-member-applied-index" = index,
            "local-member-snapshot-index" = self.trigger.index(),
            "triggering snapshot"
        );
        // The checkpoint must reach it.
        self.machine.flush_position();
        let conf_state = self.cluster.members().conf_state();
        let tree = self.cluster.tree().image();
        self.trigger.snap(Wanted { index, term, conf_state, tree }, log_bytes);
    }

    fn apply(&mut self, entry: &Entry, changes: &mut Vec<AppliedChange>) {
        if let Some(change) = Change::of(entry) {
            changes.push(self.apply_change(entry, change));
            return;
        }
        match payload(entry) {
            Ok(Payload::Empty) => {
                self.machine.skip(entry.index, entry.term);
                let standing = self.shared.standing();
                if standing.is_leader && standing.term == entry.term {
                    self.shared.publish_promoted(entry.term);
                    self.tell_lease_changes();
                    self.tell_lease_keeper(lease_keeper::Promoted { term: entry.term });
                }
            }
            Ok(Payload::V2(request)) => {
                let begun = self.pace.clock.now();
                self.machine.record(entry.index, entry.term, apply::v2_rows(&request));
                let (changed, _) = self.cluster.apply_v2(&request, self.time_of_day());
                if changed {
                    self.shared.publish_members(self.cluster.members());
                }
                let took = self.pace.clock.now().duration_since(begun);
                self.timings.applied_v2(took, &request.method);
                self.answer(request.id, Ok(Reply::Empty));
            }
            Ok(Payload::V3(request)) => self.apply_v3(entry, &request),
            Err(error) => rt::fatal(&format!("entry {} is unreadable: {error}", entry.index)),
        }
    }

    fn time_of_day(&self) -> Time {
        Time::of_day(self.pace.clock.unix())
    }

    fn apply_v3(&mut self, entry: &Entry, request: &rpc::InternalRaftRequest) {
        let id = request.header.as_ref().map_or(request.id, |header| header.id);
        if self.cluster.apply_v3(request) {
            self.shared.publish_members(self.cluster.members());
        }
        let begun = self.pace.clock.now();
        let Applied { result, effects } = self.machine.apply(entry.index, entry.term, request);
        let took = self.pace.clock.now().duration_since(begun);
        self.timings.applied(took, request, &result);
        if took > self.pace.slow_apply {
            self.warn_slow(took, request, &result);
        }
        for effect in effects {
            self.follow(effect);
        }
        if request.downgrade_info_set.is_some() {
            self.shared.publish_downgrade(self.machine.downgrade());
        }
        if result == Err(Error::NoSpace) && !self.machine.no_space() {
            self.no_space.exceeded(self.waiters.remove(&id), &self.shared);
            return;
        }
        self.answer(id, result);
    }

    /// (etcd v3.5.17 `server/etcdserver/util.go` warnOfExpensiveRequest)
    fn warn_slow(
        &self,
        took: Duration,
        request: &rpc::InternalRaftRequest,
        result: &Result<Reply>,
    ) {
        metrics().slow_apply.inc();
        let size = result.as_ref().map_or(0, Reply::encoded_len);
        tracing::warn!(
            took = ?took,
            "expected-duration" = ?self.pace.slow_apply,
            prefix = "",
            request = %describe::request(request),
            response = %format_args!("size:{size}"),
            error = result.as_ref().err().map(tracing::field::debug),
            "apply request took too long"
        );
    }

    fn apply_change(&mut self, entry: &Entry, change: Change) -> AppliedChange {
        let index = entry.index;
        let Change::V1(v1) = &change else {
            self.machine.skip(index, entry.term);
            let conf_state = self.cluster.members().conf_state();
            return AppliedChange {
                index,
                change,
                peer: PeerChange::None,
                conf_state,
                answer: None,
            };
        };
        let waiter = self.waiters.remove(&v1.id);
        let outcome = self.cluster.change(v1);
        let rows = apply::conf_change_rows(&outcome, self.cluster.members());
        self.machine.record(index, entry.term, rows);
        member_log::applied(&self.shared, &outcome);
        let (change, peer, result) = match outcome {
            Ok(peer) => {
                self.shared.publish_members(self.cluster.members());
                (change, peer, Ok(Reply::Members(self.cluster.members().to_wire())))
            }
            Err(rejected) => (Change::rejected(), PeerChange::None, Err(rejected.error())),
        };
        let answer = waiter.map(|waiter| (waiter, result));
        let conf_state = self.cluster.members().conf_state();
        AppliedChange { index, change, peer, conf_state, answer }
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::LeaseGranted { id, ttl } => {
                metrics().lease_granted.inc();
                metrics().lease_ttl.observe(ttl as f64);
                self.lease_changes.push(lease_keeper::Change::Granted { id, ttl });
            }
            Effect::LeaseRevoked { id } => {
                metrics().lease_revoked.inc();
                self.lease_changes.push(lease_keeper::Change::Revoked { id });
            }
            Effect::AlarmsChanged => {
                let alarms = self.machine.alarms();
                alarm_log::changed(&self.shared.alarms(), &alarms);
                self.shared.publish_alarms(alarms);
                if self.machine.no_space() {
                    self.answers.extend(self.no_space.raised());
                }
            }
            Effect::CompactionScheduled { .. } => self.compacting = true,
            Effect::Events { revision, events } => self.events.push((revision, events)),
            // IMPORTANT: before the answer, so that a token is known to whoever has it, and a void
            // one to nobody.
            Effect::Tokens(change) => self.provider.change(change, self.pace.clock.now()),
            // The machine has published the state.
            Effect::AuthChanged => self.shared.auth_changed(),
            Effect::LeaseCheckpointed { id, remaining_ttl: remaining } => {
                self.lease_changes.push(lease_keeper::Change::Checkpointed { id, remaining });
            }
        }
    }

    fn tell_lease_changes(&mut self) {
        if !self.lease_changes.is_empty() {
            let changes = std::mem::take(&mut self.lease_changes);
            self.tell_lease_keeper(lease_keeper::Changes(changes));
        }
    }

    fn tell_lease_keeper<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        LeaseKeeper: rt::Handles<M>,
    {
        if let Some(keeper) = &self.lease_keeper {
            keeper.do_send(message);
        }
    }

    fn answer(&mut self, id: u64, result: Result<Reply>) {
        if let Some(waiter) = self.waiters.remove(&id) {
            self.answers.push((waiter, result));
        }
    }

    fn sweep(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(SWEEP_INTERVAL, |actor, ctx| {
            rt::or_abort("StoreActor", || {
                actor.waiters.retain(|_, waiter| !waiter.is_closed());
                actor.no_space.sweep(&actor.shared);
                actor.machine.flush_position();
                actor.snap_if_due();
            });
            actor.sweep(ctx);
        });
    }
}

impl StoreActor {
    /// A compaction that a stop interrupted goes on.
    fn begin_compacting(&mut self, ctx: &mut Context<Self>) {
        if let Some(revision) = self.machine.compaction_pending() {
            tracing::info!("scheduled-compact-revision" = revision, "resume scheduled compaction");
        }
        self.compacting = true;
        ctx.notify(CompactStep);
    }

    /// Nodes of the v2 tree end when the log says so, at the leader's time.
    fn sync_v2(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(V2_SYNC_INTERVAL, |actor, ctx| {
            rt::or_abort("StoreActor", || {
                if actor.cluster.tree().has_ttl_keys() && actor.shared.standing().is_leader {
                    let Time(time) = actor.time_of_day();
                    let method = "SYNC".to_owned();
                    let request = rpc::Request { method, time, ..Default::default() };
                    actor.shared.propose_v2_quietly(request);
                }
            });
            actor.sync_v2(ctx);
        });
    }
}

impl Actor for StoreActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::base::limits::RAFT_MAILBOX_MAX);
        self.begin_compacting(ctx);
        self.sweep(ctx);
        self.sync_v2(ctx);
    }
}

impl Handler<Connect> for StoreActor {
    type Result = ();

    fn handle(&mut self, connect: Connect, _: &mut Self::Context) {
        self.raft = Some(connect.raft);
        self.lease_keeper = Some(connect.lease_keeper);
    }
}

impl Handler<Watch> for StoreActor {
    type Result = ();

    fn handle(&mut self, Watch { epoch, hub }: Watch, _: &mut Self::Context) {
        self.machine.want_events(hub.is_some());
        self.watch_hub = hub;
        if let Some(hub) = &self.watch_hub {
            hub.do_send(watch_hub::Live { epoch, revision: self.machine.revision() });
        }
    }
}

impl Handler<Apply> for StoreActor {
    type Result = ();

    fn handle(&mut self, apply: Apply, ctx: &mut Self::Context) {
        self.take(Held::Apply(apply), ctx);
    }
}

impl StoreActor {
    fn apply_all(&mut self, Apply { waiters, entries }: Apply, ctx: &mut Context<Self>) {
        self.waiters.extend(waiters);
        let was_compacting = self.compacting;
        let mut changes = Vec::new();
        rt::or_abort("StoreActor", || {
            for entry in &entries {
                failpoint::hit(failpoint::STORE_APPLY);
                let normal = entry.entry_type == EntryType::EntryNormal as i32;
                self.apply(entry, &mut changes);
                debug_assert!(normal || entry.entry_type > 0);
            }
        });
        let Some(last) = entries.last() else {
            return;
        };
        // Before the answers, so that a renewal that follows one finds its lease.
        self.tell_lease_changes();
        // IMPORTANT: before the answers, so that progress asked for after one covers its write.
        if let Some(hub) = &self.watch_hub
            && !self.events.is_empty()
        {
            hub.do_send(watch_hub::Events(std::mem::take(&mut self.events)));
        }
        self.shared.publish_applied(last.index);
        for (waiter, result) in self.answers.drain(..) {
            // A caller that has gone needs no answer.
            let _ = waiter.send(result);
        }
        let own = PeerChange::Remove(self.shared.member_id);
        if changes.iter().any(|change| change.peer == own) {
            ctx.run_later(REMOVED_STOP_DELAY, |actor, _| actor.shared.publish_removed());
        }
        if let Some(raft) = &self.raft
            && !changes.is_empty()
        {
            raft.do_send(raft::Changed(changes));
        }
        if self.compacting && !was_compacting {
            ctx.notify(CompactStep);
        }
        rt::or_abort("StoreActor", || self.snap_if_due());
    }
}

impl Handler<Shrink> for StoreActor {
    type Result = ();

    fn handle(&mut self, Shrink(done): Shrink, _: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.machine.shrink());
        let _ = done.send(());
    }
}

impl Handler<Stop> for StoreActor {
    type Result = ();

    fn handle(&mut self, Stop(done): Stop, _: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.machine.flush_position());
        let _ = done.send(());
    }
}
