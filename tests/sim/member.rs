//! One member: the parts that RaftActor, StoreActor, LeaseKeeper and WatchHub own, driven by hand
//! in the order in which the actors drive them.

use crate::bug::Bug;
use crate::chance::{Chance, mix};
use crate::disk::{Disk, Engine, State};
use bytes::Bytes;
use rusd::apply::{self, Applied, Effect, Machine, Options, Payload, Reply, payload};
use rusd::base::error::Error;
use rusd::base::ids::{LeaseId, MemberId};
use rusd::cluster::members::Member as Listed;
use rusd::cluster::state::Cluster;
use rusd::lease::schedule::Schedule;
use rusd::mvcc::backend::Bucket;
use rusd::mvcc::watch::{Delivery, Outcome, Spec, StreamId, Watchers, Written};
use rusd::mvcc::{CompactProgress, Looked};
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::raftpb::{Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata};
use rusd::raft::bootstrap::bootstrap;
use rusd::raft::driver::{Change, Driver, Settings, Standing};
use rusd::raft::leader_only::LeaderOnly;
use rusd::raft::log::LogStart;
use rusd::raft::reads::Reads;
use rusd::raft::sending::Sending;
use rusd::raft::turn::World;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// etcd's defaults: ten ticks of 100 ms without a leader before an election.
const ELECTION_TICKS: usize = 10;
/// Rows that one step of a compaction looks at; few, so that crashes come between.
const COMPACT_ROWS: usize = 7;
/// Expired leases that are asked to be revoked at a time.
const REVOKES_MAX: usize = 8;
/// Watchers are refused events once in so many times, as if their client did not read.
const OFFERS_REFUSED: u64 = 5;

/// Entries after which a member takes a snapshot, in the seeds where it takes any.
const SNAPSHOT_ENTRIES: u64 = 40;
/// Entries before it that stay in its log.
const CATCHUP_ENTRIES: u64 = 8;
/// In one of so many seeds members take snapshots and release their logs.
const SEEDS_PER_SNAPSHOTS: u64 = 4;

/// Bit of the ids that members draw for what they do by themselves.
const MEMBERS_OWN: u64 = 1 << 63;

/// Whether a member proposed a request by itself: the revoke of a lease whose time is over.
pub fn is_members(request: u64) -> bool {
    request & MEMBERS_OWN != 0
}

/// What a member has its surroundings do, and after how many microseconds.
pub enum Deed {
    Send(Message),
    Apply(Vec<Entry>),
    Changed(Vec<(u64, Change)>),
    Read {
        op: u64,
        index: u64,
    },
    ReadFailed {
        op: u64,
    },
    Leads {
        term: u64,
        last: (u64, u64),
    },
    PassRead(Outcome),
    Drained(StreamId),
    Ended {
        stream: StreamId,
        compacted: i64,
    },
    Compact,
    /// With the number of the machine that it looked into.
    Looked(u64, Looked),
    Propose(Bytes),
    /// Raft wants a member to have a snapshot.
    Snapshot(Message),
    /// A snapshot with what it holds, on its way.
    SendState(Message, Box<State>),
    /// What became of it.
    SnapStatus {
        to: u64,
        delivered: bool,
    },
    /// A leader's snapshot takes the machine's place.
    Install(Snapshot),
}

/// What a member sees of the world while it works.
pub struct Env<'a> {
    pub now: Instant,
    /// The same in microseconds.
    pub micros: u64,
    pub chance: &'a mut Chance,
    pub bug: Option<Bug>,
    /// What a save takes, in microseconds.
    pub save_takes: u64,
    pub save_fails: bool,
    /// How long this call has taken.
    pub took: u64,
    pub deeds: Vec<(u64, Deed)>,
}

impl Env<'_> {
    fn tell(&mut self, deed: Deed) {
        self.deeds.push((self.took, deed));
    }
}

struct Outside<'a, 'b> {
    disk: &'a Disk,
    env: &'a mut Env<'b>,
}

impl World for Outside<'_, '_> {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if message.msg_type == MessageType::MsgSnapshot as i32 {
                self.env.tell(Deed::Snapshot(message));
            } else {
                self.env.tell(Deed::Send(message));
            }
        }
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let SnapshotMetadata { index, term, .. } = snapshot.get_metadata();
        self.env.took += self.env.save_takes;
        self.disk.install(*index, *term, self.env.micros + self.env.took);
        Ok(())
    }

    fn save(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        must_sync: bool,
    ) -> Result<(), String> {
        let mut state = hard_state.copied();
        if self.env.bug == Some(Bug::VoteNotSaved)
            && let Some(state) = &mut state
        {
            state.vote = 0;
        }
        let takes = if must_sync { self.env.save_takes } else { 5 };
        let done = self.env.took + takes;
        if self.env.bug != Some(Bug::SaveNotAwaited) {
            self.env.took = done;
        }
        if self.env.save_fails {
            return Err(crate::world::SAVE_FAILED.to_owned());
        }
        self.disk.save(state.as_ref(), entries, must_sync.then_some(self.env.micros + done));
        Ok(())
    }
}

/// What an applied entry gave.
pub struct Done {
    pub index: u64,
    pub term: u64,
    /// Of the entry's bytes.
    pub content: u64,
    pub request: u64,
    pub result: Result<Reply, Error>,
    pub effects: Vec<Effect>,
    /// Hash of the rows, now and then.
    pub hash: Option<u32>,
}

impl Done {
    fn of(entry: &Entry) -> Done {
        Done {
            index: entry.index,
            term: entry.term,
            content: u64::from(crc32c::crc32c(&entry.data)) << 8 | entry.entry_type as u64,
            request: 0,
            result: Ok(Reply::Empty),
            effects: Vec::new(),
            hash: None,
        }
    }
}

/// A running member.
pub struct Life {
    id: u64,
    pub driver: Driver<Disk>,
    machine: Machine,
    cluster: Cluster,
    disk: Disk,
    engine: Arc<Engine>,
    reads: Reads<u64>,
    last_context: u64,
    leader_only: LeaderOnly,
    schedule: Schedule,
    standing: Standing,
    pub applied: u64,
    /// Indexes of conf changes that the store has and raft has not taken.
    unchanged: VecDeque<u64>,
    proposals: VecDeque<Bytes>,
    next_reads: Vec<(u64, u64)>,
    watchers: Watchers,
    contexts: u64,
    ticks: u64,
    seed: u64,
    compacting: bool,
    /// Of the newest snapshot.
    snapped: u64,
    /// Entries up to here are to leave the log.
    floor: u64,
    /// The newest snapshot that came from a leader.
    installed: u64,
    /// Counts machines.
    generation: u64,
    sending: Sending,
    /// The mistake of that name is put back.
    forgets_leases: bool,
}

fn settings(id: u64, applied: u64) -> Settings {
    Settings { member: MemberId(id), election_ticks: ELECTION_TICKS, pre_vote: true, applied }
}

/// The members that a cluster begins with.
pub fn founders(count: u64) -> Vec<Listed> {
    let listed = |id| Listed {
        id,
        peer_urls: vec![format!("http://member-{id}:2380")],
        name: format!("m{id}"),
        ..Listed::default()
    };
    (1..=count).map(listed).collect()
}

/// Writes what a new member's disk begins with.
pub fn found(disk: &Disk, count: u64) {
    let (hard_state, entries) = bootstrap(&founders(count));
    disk.save(Some(&hard_state), &entries, Some(0));
}

impl Life {
    /// Recovers from what a crash has left, as a start does. What it applies anew comes too.
    pub fn start(
        id: u64,
        disk: &Disk,
        engine: &Arc<Engine>,
        seed: u64,
        bug: Option<Bug>,
    ) -> Result<(Life, Vec<Done>), String> {
        let (hard_state, tail) = disk.read();
        let snapshot = disk.snapshot();
        let (snapped, snap_term) = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
        let mut engine = Arc::clone(engine);
        let mut machine = open(&engine)?;
        if let Some(state) = snapshot.as_ref().filter(|state| state.index > machine.position().0) {
            engine = Arc::new(state.engine.copy(None));
            machine = open(&engine)?;
        }
        let stored = machine.position().0;
        let commit = hard_state.commit.max(stored).max(snapped);
        let last_index = tail.last().map_or(snapped, |entry| entry.index);
        if commit > last_index {
            return Err(format!(
                "member {id}: the log ends at {last_index}, its commit is {}, the store's {stored}",
                hard_state.commit
            ));
        }
        let begins = tail.first().map_or(snapped + 1, |entry| entry.index);
        if snapped + 1 < begins {
            return Err(format!("member {id}: the log begins at {begins}, the state at {snapped}"));
        }
        let mut cluster = snapshot.map_or_else(Cluster::default, |state| state.cluster);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        if snapped + 1 == begins && snapped > 0 {
            runs.push((snapped, snap_term));
        }
        let mut done = Vec::new();
        for entry in &tail {
            if runs.last().is_none_or(|(_, term)| *term != entry.term) {
                runs.push((entry.index, entry.term));
            }
            if entry.index > snapped && entry.index <= commit {
                let anew = entry.index > machine.position().0;
                let one = feed(entry, &mut machine, &mut cluster, bug)?;
                done.extend(anew.then_some(one));
            }
        }
        let start = LogStart {
            hard_state: HardState { commit, ..hard_state },
            conf_state: cluster.members().conf_state(),
            // Of the entry before the first nothing is known but what the snapshot says.
            floor: if begins <= 1 { 0 } else { snapped.min(begins) },
            last_index,
            term_runs: runs,
            tail,
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let driver = Driver::new(settings(id, commit), start, disk.clone(), &logger)
            .map_err(|error| error.to_string())?;
        let schedule = Schedule::new(machine.lease_reader().granted(), None);
        let mut watchers = Watchers::default();
        watchers.live(machine.revision());
        let mut life = Life {
            id,
            driver,
            machine,
            cluster,
            disk: disk.clone(),
            engine,
            reads: Reads::default(),
            last_context: 0,
            leader_only: LeaderOnly::default(),
            schedule,
            standing: Standing::default(),
            applied: commit,
            unchanged: VecDeque::new(),
            proposals: VecDeque::new(),
            next_reads: Vec::new(),
            watchers,
            contexts: mix(seed),
            ticks: 0,
            seed,
            compacting: true,
            snapped,
            floor: 0,
            installed: snapped,
            generation: 0,
            sending: Sending::default(),
            forgets_leases: bug == Some(Bug::LeasesForgotten),
        };
        life.settle_timeout();
        Ok((life, done))
    }

    /// Raft draws its election timeouts itself; here they follow from the seed.
    fn settle_timeout(&mut self) {
        let (term, turn) = (self.driver.standing().term, self.ticks / 16);
        let drawn = mix(self.seed ^ mix(self.id) ^ mix(term << 20 | turn));
        self.driver.set_election_timeout(ELECTION_TICKS + (drawn % ELECTION_TICKS as u64) as usize);
    }

    /// Where it stands.
    pub fn standing(&self) -> Standing {
        self.driver.standing()
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.machine.revision()
    }

    /// Hash of all rows.
    pub fn hash(&mut self) -> u32 {
        self.machine.flush_position();
        self.engine.hash()
    }

    pub fn tick(&mut self, env: &mut Env<'_>) -> Result<(), String> {
        self.ticks += 1;
        self.driver.tick();
        self.reads.retry(env.now);
        if self.schedule.is_leading() {
            let room = REVOKES_MAX.saturating_sub(self.schedule.revoking_weight());
            let expired = self.schedule.take_expired(env.now, room, |_| 1);
            let payloads: Vec<Bytes> = expired.into_iter().map(|id| self.revoke(id)).collect();
            if env.bug == Some(Bug::RevokesByAnyone) {
                // By the time they are proposed somebody else may lead, and takes them.
                payloads.into_iter().for_each(|payload| env.tell(Deed::Propose(payload)));
            } else if !payloads.is_empty() {
                self.leader_only.push(self.standing.term, payloads);
            }
        }
        let mut outside = Outside { disk: &self.disk, env };
        self.driver.save_commit(&mut outside)?;
        self.flush(env)
    }

    fn revoke(&mut self, id: LeaseId) -> Bytes {
        let request = rpc::InternalRaftRequest {
            header: Some(rpc::RequestHeader { id: self.draw(), ..rpc::RequestHeader::default() }),
            lease_revoke: Some(rpc::LeaseRevokeRequest { id: id.0 }),
            ..rpc::InternalRaftRequest::default()
        };
        prost::Message::encode_to_vec(&request).into()
    }

    fn draw(&mut self) -> u64 {
        self.contexts += 1;
        self.contexts | MEMBERS_OWN
    }

    pub fn step(&mut self, message: Message, env: &mut Env<'_>) -> Result<(), String> {
        // A refusal is as good as a lost message.
        let _ = self.driver.step(message);
        self.flush(env)
    }

    pub fn propose(&mut self, data: Bytes, env: &mut Env<'_>) -> Result<(), String> {
        self.proposals.push_back(data);
        self.flush(env)
    }

    pub fn read_index(&mut self, op: u64, env: &mut Env<'_>) -> Result<(), String> {
        self.reads.push(op);
        self.flush(env)
    }

    pub fn transfer_to(&mut self, to: u64, env: &mut Env<'_>) -> Result<(), String> {
        self.driver.transfer_leader(MemberId(to));
        self.flush(env)
    }

    /// As RaftActor's.
    fn flush(&mut self, env: &mut Env<'_>) -> Result<(), String> {
        self.settle_timeout();
        self.follow_applied();
        self.ask_raft(env);
        loop {
            let mut outside = Outside { disk: &self.disk, env };
            let Some(turn) = self.driver.turn(&mut outside)? else { break };
            self.follow_standing(env);
            if let Some(snapshot) = turn.snapshot {
                self.installed = snapshot.get_metadata().index;
                self.unchanged.clear();
                env.tell(Deed::Install(snapshot));
            }
            if !turn.committed.is_empty() {
                let changes = turn.committed.iter().filter(|entry| entry.entry_type != 0);
                self.unchanged.extend(changes.map(|entry| entry.index));
                env.tell(Deed::Apply(turn.committed));
            }
            for (context, index) in turn.read_states {
                for op in self.reads.answered(context) {
                    env.tell(Deed::Read { op, index });
                }
                let payloads = self.leader_only.confirmed(context, self.driver.standing());
                if !payloads.is_empty() {
                    let _ = self.driver.propose(payloads);
                }
            }
            self.ask_raft(env);
        }
        self.follow_standing(env);
        self.settle_timeout();
        Ok(())
    }

    fn ask_raft(&mut self, env: &Env<'_>) {
        if !self.proposals.is_empty() && self.driver.takes_proposals() {
            let payloads = self.proposals.drain(..).collect();
            let _ = self.driver.propose(payloads);
        }
        if !self.driver.can_read_index() {
            return;
        }
        self.contexts += 1;
        let context = match env.bug {
            Some(Bug::ReadContextReused) if self.last_context != 0 => self.last_context,
            _ => self.contexts | MEMBERS_OWN,
        };
        if let Some(context) = self.reads.begin(env.now, |_| false, || context) {
            self.last_context = context;
            self.driver.read_index(context);
        }
        if !self.leader_only.is_idle() {
            let context = self.draw();
            if self.leader_only.ask(self.driver.standing(), env.now, context) {
                self.driver.read_index(context);
            }
        }
    }

    fn follow_applied(&mut self) {
        let first = self.unchanged.front();
        let index = first.map_or(self.applied, |first| self.applied.min(first - 1));
        self.driver.applied(index);
        if self.floor > 0 {
            let _ = self.driver.compact(self.floor);
        }
    }

    /// The store as it is now.
    fn state(&mut self, without: Option<Bucket>) -> State {
        self.machine.flush_position();
        let (index, term) = self.machine.position();
        let engine = Arc::new(self.engine.copy(without));
        State { index, term, engine, cluster: self.cluster.clone() }
    }

    /// As the checkpointer and RaftActor do.
    fn snap_if_due(&mut self, env: &Env<'_>) {
        let wanted = self.seed % SEEDS_PER_SNAPSHOTS == 3;
        let due = self.applied >= self.snapped + SNAPSHOT_ENTRIES;
        if !wanted || !due || self.sending.keeps_log(env.now) {
            return;
        }
        let state = self.state(None);
        self.snapped = state.index;
        self.floor = state.index.saturating_sub(CATCHUP_ENTRIES);
        self.disk.snapped(state, self.floor);
    }

    /// Raft wants a member to have a snapshot: the state as of now.
    pub fn snapshot(&mut self, mut message: Message, env: &mut Env<'_>) {
        let state = self.state(self.forgets_leases.then_some(Bucket::Lease));
        let conf_state = Some(self.cluster.members().conf_state());
        let metadata = Some(SnapshotMetadata { conf_state, index: state.index, term: state.term });
        message.snapshot = Some(Snapshot { metadata, ..Snapshot::default() });
        self.sending.begin();
        env.tell(Deed::SendState(message, Box::new(state)));
    }

    pub fn snap_status(
        &mut self,
        to: u64,
        delivered: bool,
        env: &mut Env<'_>,
    ) -> Result<(), String> {
        self.sending.end(false, env.now);
        self.driver.report_snapshot(MemberId(to), delivered);
        self.flush(env)
    }

    /// As StoreActor's: the index and the hash of its rows.
    pub fn install(
        &mut self,
        snapshot: &Snapshot,
        env: &mut Env<'_>,
    ) -> Result<(u64, u32), String> {
        let state = self.disk.database(snapshot.get_metadata().index);
        self.engine = Arc::new(state.engine.copy(None));
        self.machine.replace(open(&self.engine)?);
        self.cluster = state.cluster;
        self.generation += 1;
        self.schedule = Schedule::new(self.machine.lease_reader().granted(), None);
        self.watchers.recover();
        self.watchers.live(self.machine.revision());
        (self.applied, self.snapped) = (state.index, state.index);
        self.compacting = true;
        self.follow_up(env);
        env.tell(Deed::Compact);
        let hash = self.hash_of_entry();
        Ok((state.index, hash))
    }

    fn follow_standing(&mut self, env: &mut Env<'_>) {
        let standing = self.driver.standing();
        if standing == self.standing {
            return;
        }
        let before = std::mem::replace(&mut self.standing, standing);
        if standing.is_leader && (!before.is_leader || before.term != standing.term) {
            let last = self.driver.last_entry();
            env.tell(Deed::Leads { term: standing.term, last });
        }
        if before.is_leader && !standing.is_leader {
            self.schedule.demote();
        }
        if standing.leader != before.leader && before.leader.0 != 0 {
            for op in self.reads.fail().unwrap_or_default() {
                env.tell(Deed::ReadFailed { op });
            }
        }
    }

    /// As StoreActor's.
    pub fn apply(
        &mut self,
        entries: Vec<Entry>,
        env: &mut Env<'_>,
    ) -> (Vec<Done>, Vec<(StreamId, Delivery)>) {
        let (mut done, mut changes) = (Vec::new(), Vec::new());
        for entry in &entries {
            let (index, term) = (entry.index, entry.term);
            let mut one = Done::of(entry);
            if let Some(change) = Change::of(entry) {
                changes.push((index, self.apply_change(entry, change)));
            } else {
                match payload(entry) {
                    Ok(Payload::V3(request)) => {
                        one.request = request.header.as_ref().map_or(0, |header| header.id);
                        self.cluster.apply_v3(&request);
                        let Applied { result, effects } = self.machine.apply(index, term, &request);
                        (one.result, one.effects) = (result, effects);
                    }
                    Ok(Payload::V2(_)) | Err(_) => self.machine.skip(index, term),
                    Ok(Payload::Empty) => {
                        self.machine.skip(index, term);
                        if self.standing.is_leader && self.standing.term == term {
                            self.schedule.promote(env.now, Duration::from_secs(1));
                        }
                    }
                }
            }
            self.applied = index;
            if index % 32 == 0 {
                one.hash = Some(self.hash_of_entry());
            }
            done.push(one);
        }
        self.snap_if_due(env);
        let mut told = Vec::new();
        for one in &done {
            self.follow(&one.effects, &mut told, env);
        }
        self.follow_up(env);
        if !changes.is_empty() {
            env.tell(Deed::Changed(changes));
        }
        if self.compacting || self.machine.compaction_pending().is_some() {
            self.compacting = false;
            env.tell(Deed::Compact);
        }
        (done, told)
    }

    /// Only the rows that entries have left: a compaction removes others at its own pace.
    fn hash_of_entry(&mut self) -> u32 {
        if self.machine.compaction_pending().is_some() { 0 } else { self.hash() }
    }

    fn apply_change(&mut self, entry: &Entry, change: Change) -> Change {
        let Change::V1(v1) = &change else {
            self.machine.skip(entry.index, entry.term);
            return change;
        };
        let outcome = self.cluster.change(v1);
        let rows = apply::conf_change_rows(&outcome, self.cluster.members());
        self.machine.record(entry.index, entry.term, rows);
        if outcome.is_ok() { change } else { Change::rejected() }
    }

    fn follow(
        &mut self,
        effects: &[Effect],
        told: &mut Vec<(StreamId, Delivery)>,
        env: &mut Env<'_>,
    ) {
        for effect in effects {
            match effect {
                Effect::LeaseGranted { id, ttl } => self.schedule.granted(*id, *ttl, env.now),
                Effect::LeaseRevoked { id } => {
                    self.schedule.revoked(*id);
                }
                Effect::Events { revision, events } => {
                    let written: Vec<Written> = events
                        .iter()
                        .cloned()
                        .map(|event| Written { key: event.key, delete: event.delete, kv: event.kv })
                        .collect();
                    let offer = &mut |stream, delivery| offer(stream, delivery, told, env);
                    self.watchers.events(*revision, &written, offer);
                }
                _ => {}
            }
        }
    }

    /// Raft takes the changes that the store has.
    pub fn changed(
        &mut self,
        changes: Vec<(u64, Change)>,
        env: &mut Env<'_>,
    ) -> Result<(), String> {
        for (index, change) in changes {
            if index <= self.installed {
                // Raft has the members of the snapshot.
                continue;
            }
            self.driver.apply_conf_change(&change).map_err(|error| error.to_string())?;
            if self.unchanged.pop_front() != Some(index) {
                return Err(format!("member {}: changes out of order at {index}", self.id));
            }
        }
        self.flush(env)
    }

    /// Looks at some rows of a compaction.
    pub fn compact(&mut self, env: &mut Env<'_>) {
        if let Some(look) = self.machine.compaction_look(COMPACT_ROWS) {
            env.tell(Deed::Looked(self.generation, look.run()));
        }
    }

    /// Does what a look has found.
    pub fn looked(
        &mut self,
        generation: u64,
        looked: Looked,
        env: &mut Env<'_>,
    ) -> Result<(), String> {
        if generation != self.generation {
            return Ok(());
        }
        let progress = self.machine.compacted(looked).map_err(|error| error.to_string())?;
        if progress == CompactProgress::More {
            env.tell(Deed::Compact);
        }
        self.follow_up(env);
        Ok(())
    }

    /// A read waits until the store has its index; who is due now.
    pub fn wait(&mut self, op: u64, index: u64) {
        self.next_reads.push((index, op));
    }

    pub fn due(&mut self) -> Vec<u64> {
        let applied = self.applied;
        let (due, later) = self.next_reads.drain(..).partition(|(index, _)| *index <= applied);
        self.next_reads = later;
        due.into_iter().map(|(_, op)| op).collect()
    }

    pub fn range(&self, key: &str) -> Result<rpc::RangeResponse, Error> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.machine.reader().range(&rpc::RangeRequest { key, ..rpc::RangeRequest::default() })
    }

    /// A lease's time starts anew, if this member leads; its TTL.
    pub fn renew(&mut self, id: LeaseId, env: &Env<'_>) -> bool {
        use rusd::lease::schedule::Renewal;
        matches!(self.schedule.renew(id, env.now), Renewal::Renewed(_))
    }

    /// A watcher of everything from a revision on.
    pub fn watch(&mut self, stream: StreamId, start: i64, env: &mut Env<'_>) {
        let spec = Spec::new(&[0], &[0], false, false).expect("all keys are a range");
        self.watchers.open(stream);
        self.watchers.create(stream, 0, spec, start).expect("the first of its stream");
        self.follow_up(env);
    }

    pub fn unwatch(&mut self, stream: StreamId) {
        self.watchers.close(stream);
    }

    pub fn drained(&mut self, stream: StreamId, env: &mut Env<'_>) {
        self.watchers.drained(stream);
        self.follow_up(env);
    }

    pub fn pass_read(&mut self, outcome: Outcome, env: &mut Env<'_>) -> Vec<(StreamId, Delivery)> {
        let (mut told, compacted) = (Vec::new(), outcome.compacted());
        let offer = &mut |stream, delivery| offer(stream, delivery, &mut told, env);
        for (stream, _) in self.watchers.finish_pass(outcome, offer) {
            env.tell(Deed::Ended { stream, compacted });
        }
        self.follow_up(env);
        told
    }

    fn follow_up(&mut self, env: &mut Env<'_>) {
        let reader = self.machine.reader();
        let compacted = reader.compact_revision();
        for (stream, _) in self.watchers.compacted(compacted) {
            env.tell(Deed::Ended { stream, compacted });
        }
        if let Some(pass) = self.watchers.start_pass() {
            let outcome = pass.read(&reader).expect("rows in memory can be read");
            env.tell(Deed::PassRead(outcome));
        }
    }

    /// Leases that are there, and their TTLs.
    pub fn leases(&self) -> BTreeMap<i64, i64> {
        let granted = self.machine.lease_reader().granted();
        granted.into_iter().map(|granted| (granted.id.0, granted.ttl)).collect()
    }
}

fn open(engine: &Arc<Engine>) -> Result<Machine, String> {
    let backend = Arc::<Engine>::clone(engine);
    Machine::open(backend, Options::default()).map_err(|error| error.to_string())
}

fn offer(
    stream: StreamId,
    delivery: Delivery,
    told: &mut Vec<(StreamId, Delivery)>,
    env: &mut Env<'_>,
) -> bool {
    if env.chance.one_in(OFFERS_REFUSED) {
        env.deeds.push((env.took + env.chance.between(1_000, 300_000), Deed::Drained(stream)));
        return false;
    }
    told.push((stream, delivery));
    true
}

/// As a start does with committed entries.
fn feed(
    entry: &Entry,
    machine: &mut Machine,
    cluster: &mut Cluster,
    bug: Option<Bug>,
) -> Result<Done, String> {
    let (index, term) = (entry.index, entry.term);
    let mut done = Done::of(entry);
    if let Some(change) = Change::of(entry) {
        let mut rows = Vec::new();
        if let Change::V1(change) = &change {
            let outcome = cluster.change(change);
            rows = apply::conf_change_rows(&outcome, cluster.members());
        }
        machine.record(index, term, rows);
        return Ok(done);
    }
    match payload(entry).map_err(|error| error.to_string())? {
        Payload::V3(request) => {
            done.request = request.header.as_ref().map_or(0, |header| header.id);
            cluster.apply_v3(&request);
            if index > machine.position().0 {
                let Applied { result, effects } = machine.apply(index, term, &request);
                (done.result, done.effects) = (result, effects);
            } else if bug == Some(Bug::AppliedTwice) {
                // As if the store had not said how far it is.
                machine.apply(machine.position().0 + 1, term, &request);
            }
        }
        Payload::V2(_) | Payload::Empty => machine.skip(index, term),
    }
    Ok(done)
}
