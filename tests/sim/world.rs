//! The world: members, clients, disks and the network on one thread, with time as a number. One
//! seed decides everything.

use crate::bug::Bug;
use crate::chance::{Chance, mix};
use crate::clients::{Answer, Clients, Op};
use crate::disk::{Disk, Engine, State};
use crate::invariants::{Check, Invariants};
use crate::member::{Deed, Done, Env, Life, found, is_members};
use crate::net::Net;
use rusd::apply::Effect;
use rusd::base::ids::LeaseId;
use rusd::mvcc::Row;
use rusd::mvcc::watch::{Delivery, Event as Change, StreamId};
use rusd::pb::raftpb::{Message, MessageType};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A tick of raft, in microseconds.
const TICK: u64 = 100_000;
/// Time in which everything may go wrong.
const UNSAFE_PHASE: u64 = 25_000_000;
/// Time in which everybody must have caught up once nothing goes wrong any more.
const SAFE_PHASE: u64 = 30_000_000;
/// Watchers of all keys.
const WATCHERS: u64 = 4;
/// What an ordinary save takes at most.
const SAVE_MAX: u64 = 3_000;
/// What one takes at most on a bad day.
const SAVE_MAX_SLOW: u64 = 900_000;
/// Of so many votes one is followed by a crash.
const VOTES_PER_CRASH: u64 = 8;

enum Event {
    Tick(u64),
    Deliver(Message),
    /// A snapshot with its state, and the sender's life.
    Receive(Message, Box<State>, u64),
    /// A deed of a member's life, if it still lives it.
    Do(u64, u64, Deed),
    Client(u64),
    Timeout(u64),
    Fault,
    Crash(u64),
    Start(u64),
    Watch(u64),
}

struct Node {
    disk: Disk,
    engine: Arc<Engine>,
    life: Option<Life>,
    incarnation: u64,
    /// Raft's part of it waits for the disk until then.
    busy_until: u64,
    /// All of it stands still until then.
    paused_until: u64,
    next_save_fails: bool,
    /// When the newest entries get to the store, which takes them in order.
    applies_at: u64,
    slow_disk: bool,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Over everything that happened, in order.
    pub trace: u64,
    pub steps: u64,
    pub entries: u64,
    pub terms: usize,
    pub writes: usize,
    pub reads: usize,
    pub events: usize,
    pub expired: usize,
    pub crashes: u64,
    pub installed: u64,
    /// What was violated, if anything.
    pub violation: Option<String>,
}

/// See the module.
pub struct World {
    seed: u64,
    bug: Option<Bug>,
    chance: Chance,
    start: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    nodes: BTreeMap<u64, Node>,
    net: Net,
    clients: Clients,
    checks: Invariants,
    /// By watcher: where it is attached.
    watchers: BTreeMap<u64, (u64, u64, StreamId)>,
    streams: u64,
    trace: u64,
    steps: u64,
    crashes: u64,
    installed: u64,
    safe: bool,
}

/// Runs a seed to its end, or to a violation.
pub fn run(seed: u64, bug: Option<Bug>) -> Report {
    let mut world = World::new(seed, bug);
    let violation = world.run().err();
    Report {
        trace: world.trace,
        steps: world.steps,
        entries: world.checks.log.newest().0,
        terms: world.checks.elections.count(),
        writes: world.checks.writes.count(),
        reads: world.checks.reads.count(),
        events: world.checks.watches.count(),
        expired: world.checks.leases.expired(),
        crashes: world.crashes,
        installed: world.installed,
        violation,
    }
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> World {
        let mut chance = Chance::new(seed);
        let count = [1, 3, 3, 3, 5][chance.below(5) as usize];
        let nodes = (1..=count)
            .map(|id| {
                let disk = Disk::default();
                found(&disk, count);
                let node = Node {
                    disk,
                    engine: Arc::default(),
                    life: None,
                    incarnation: 0,
                    busy_until: 0,
                    paused_until: 0,
                    next_save_fails: false,
                    applies_at: 0,
                    slow_disk: false,
                };
                (id, node)
            })
            .collect();
        World {
            seed,
            bug,
            clients: Clients::new(mix(seed)),
            chance,
            start: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            nodes,
            net: Net::default(),
            checks: Invariants::default(),
            watchers: BTreeMap::new(),
            streams: 0,
            trace: 0,
            steps: 0,
            crashes: 0,
            installed: 0,
            safe: false,
        }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn note(&mut self, what: u64) {
        self.trace = mix(self.trace.rotate_left(7) ^ what);
    }

    fn run(&mut self) -> Check {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.start(id)?;
            let first = self.chance.below(TICK);
            self.after(first, Event::Tick(id));
        }
        for client in 0..self.clients.count() {
            self.after(1_000 + client * 777, Event::Client(client));
        }
        for watcher in 0..WATCHERS {
            self.after(2_000, Event::Watch(watcher));
        }
        self.after(500_000, Event::Fault);
        self.until(UNSAFE_PHASE)?;
        self.heal()?;
        self.until(UNSAFE_PHASE + SAFE_PHASE)?;
        self.end()
    }

    fn until(&mut self, end: u64) -> Check {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            let event = self.events.remove(&number).expect("every number has its event");
            if at > end {
                self.queue.push(Reverse((at, number)));
                self.events.insert(number, event);
                break;
            }
            self.now = at;
            self.steps += 1;
            self.note(at ^ number << 40);
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Check {
        match event {
            Event::Tick(id) => {
                let late = self.chance.below(2_000);
                self.after(TICK + late, Event::Tick(id));
                if self.is_free(id) {
                    self.with(id, |life, env| life.tick(env))?;
                }
                Ok(())
            }
            Event::Deliver(message) => {
                let to = message.to;
                if let Some(wait) = self.wait_of(to).filter(|wait| *wait > 0) {
                    self.after(wait, Event::Deliver(message));
                    return Ok(());
                }
                self.note(u64::from(message.msg_type as u32) ^ message.index << 8);
                self.with(to, |life, env| life.step(message, env))
            }
            Event::Receive(message, state, sender) => self.receive(message, state, sender),
            Event::Do(id, incarnation, deed) => self.deed(id, incarnation, deed),
            Event::Client(client) => self.client(client),
            Event::Timeout(op) => {
                self.finish(op, None);
                Ok(())
            }
            Event::Fault => self.fault(),
            Event::Crash(id) => {
                self.crash(id);
                Ok(())
            }
            Event::Start(id) => self.start(id),
            Event::Watch(watcher) => {
                self.attach(watcher);
                Ok(())
            }
        }
    }

    /// Whether a member lives and has nothing else to do.
    fn is_free(&self, id: u64) -> bool {
        self.wait_of(id) == Some(0)
    }

    /// How long a member that lives is still busy.
    fn wait_of(&self, id: u64) -> Option<u64> {
        let node = self.nodes.get(&id).filter(|node| node.life.is_some())?;
        Some(node.busy_until.max(node.paused_until).saturating_sub(self.now))
    }

    /// Has a member do something, and sees to what comes of it.
    fn with(&mut self, id: u64, work: impl FnOnce(&mut Life, &mut Env<'_>) -> Check) -> Check {
        self.with_result(id, work).map(|_| ())
    }

    fn with_result<T: Default>(
        &mut self,
        id: u64,
        work: impl FnOnce(&mut Life, &mut Env<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(T::default()) };
        let Some(life) = node.life.as_mut() else { return Ok(T::default()) };
        let slow = node.slow_disk && self.chance.one_in(3);
        let save_takes = self.chance.between(50, if slow { SAVE_MAX_SLOW } else { SAVE_MAX });
        let mut env = Env {
            now: self.start + Duration::from_micros(self.now),
            micros: self.now,
            chance: &mut self.chance,
            bug: self.bug,
            save_takes,
            save_fails: std::mem::take(&mut node.next_save_fails),
            took: 0,
            deeds: Vec::new(),
        };
        let done = work(life, &mut env);
        let (took, deeds) = (env.took, env.deeds);
        node.busy_until = node.busy_until.max(self.now + took);
        let incarnation = node.incarnation;
        for (delay, deed) in deeds {
            // What has to do with the store comes a little later: it is another thread.
            let more = match deed {
                Deed::Send(_) | Deed::Leads { .. } | Deed::SendState(..) => 0,
                _ => self.chance.between(20, 2_000),
            };
            let mut after = delay + more;
            if matches!(deed, Deed::Apply(_) | Deed::Install(_)) {
                let node = self.nodes.get_mut(&id).expect("it has just worked");
                after = after.max((node.applies_at + 1).saturating_sub(self.now));
                node.applies_at = self.now + after;
            }
            self.after(after, Event::Do(id, incarnation, deed));
        }
        match done {
            Ok(value) => Ok(value),
            Err(error) if error == SAVE_FAILED => {
                self.crash(id);
                Ok(T::default())
            }
            Err(error) => Err(error),
        }
    }

    fn deed(&mut self, id: u64, incarnation: u64, deed: Deed) -> Check {
        let alive = self
            .nodes
            .get(&id)
            .is_some_and(|node| node.incarnation == incarnation && node.life.is_some());
        if !alive {
            return Ok(());
        }
        // What was sent is sent. A paused member does nothing; one that waits for its disk goes on
        // with what is not raft's.
        let node = &self.nodes[&id];
        let free_at = match deed {
            Deed::Send(_) | Deed::Leads { .. } | Deed::SendState(..) => 0,
            Deed::Changed(_) | Deed::Propose(_) | Deed::SnapStatus { .. } => {
                node.paused_until.max(node.busy_until)
            }
            _ => node.paused_until,
        };
        if free_at > self.now {
            self.after(free_at - self.now, Event::Do(id, incarnation, deed));
            return Ok(());
        }
        match deed {
            Deed::Send(message) => {
                // The worst moment for a vote to be forgotten.
                let vote = MessageType::MsgRequestVoteResponse as i32;
                if message.msg_type == vote && !self.safe && self.chance.one_in(VOTES_PER_CRASH) {
                    let pause = self.chance.between(20, 500);
                    self.after(pause, Event::Crash(id));
                }
                for delay in self.net.arrivals(message.from, message.to, &mut self.chance) {
                    self.after(delay, Event::Deliver(message.clone()));
                }
                Ok(())
            }
            Deed::Leads { term, last } => {
                let committed = self.checks.log.newest_before(term);
                self.checks.elections.leads(id, term, last, committed)
            }
            Deed::Apply(entries) => {
                let (done, told) =
                    self.with_result(id, |life, env| Ok(life.apply(entries, env)))?;
                for one in done {
                    self.applied(id, one)?;
                }
                self.told(told)?;
                self.serve_reads(id)
            }
            Deed::Changed(changes) => self.with(id, |life, env| life.changed(changes, env)),
            Deed::Read { op, index } => {
                let index = if self.bug == Some(Bug::ReadNotAwaited) { 0 } else { index };
                self.with(id, |life, _| {
                    life.wait(op, index);
                    Ok(())
                })?;
                self.serve_reads(id)
            }
            Deed::ReadFailed { op } => {
                self.finish(op, None);
                Ok(())
            }
            Deed::PassRead(outcome) => {
                let told = self.with_result(id, |life, env| Ok(life.pass_read(outcome, env)))?;
                self.told(told)
            }
            Deed::Drained(stream) => self.with(id, |life, env| {
                life.drained(stream, env);
                Ok(())
            }),
            Deed::Ended { stream, compacted } => {
                if let Some(watcher) = self.watcher_of(stream) {
                    self.checks.watches.skip(watcher, compacted);
                    self.attach(watcher);
                }
                Ok(())
            }
            Deed::Compact => self.with(id, |life, env| {
                life.compact(env);
                Ok(())
            }),
            Deed::Looked(of, looked) => self.with(id, |life, env| life.looked(of, looked, env)),
            Deed::Propose(data) => self.with(id, |life, env| life.propose(data, env)),
            Deed::Snapshot(message) => self.with(id, |life, env| {
                life.snapshot(message, env);
                Ok(())
            }),
            Deed::SendState(message, state) => {
                let (from, to) = (message.from, message.to);
                match self.net.arrivals(from, to, &mut self.chance).first() {
                    Some(delay) => {
                        self.after(delay * 3, Event::Receive(message, state, incarnation));
                    }
                    None => self.tell_status(from, incarnation, to, false),
                }
                Ok(())
            }
            Deed::SnapStatus { to, delivered } => {
                self.with(id, |life, env| life.snap_status(to, delivered, env))
            }
            Deed::Install(snapshot) => {
                let (index, hash) =
                    self.with_result(id, |life, env| life.install(&snapshot, env))?;
                self.installed += 1;
                self.checks.durable.starts(id, index);
                if hash != 0 && index % 32 == 0 {
                    self.checks.machines.has(id, index, hash)?;
                }
                self.serve_reads(id)
            }
        }
    }

    /// A snapshot reaches its member: the database goes to the disk, then raft gets the message.
    fn receive(&mut self, message: Message, state: Box<State>, sender: u64) -> Check {
        let (from, to) = (message.from, message.to);
        let Some(wait) = self.wait_of(to) else {
            self.tell_status(from, sender, to, false);
            return Ok(());
        };
        if wait > 0 {
            self.after(wait, Event::Receive(message, state, sender));
            return Ok(());
        }
        self.nodes[&to].disk.received(*state);
        self.with(to, |life, env| life.step(message, env))?;
        self.tell_status(from, sender, to, true);
        Ok(())
    }

    fn tell_status(&mut self, from: u64, incarnation: u64, to: u64, delivered: bool) {
        let late = self.chance.between(100, 50_000);
        let status = Deed::SnapStatus { to, delivered };
        self.after(late, Event::Do(from, incarnation, status));
    }

    fn applied(&mut self, id: u64, done: Done) -> Check {
        let synced = self.nodes[&id].disk.synced_index(self.now);
        self.checks.durable.applies(id, done.index, synced)?;
        self.in_history(id, &done)?;
        if let Some(op) = self.clients.waits_for(done.request, id) {
            self.checks.writes.acknowledged(done.request, done.index);
            self.finish(op, Some(Answer::Applied(done.result)));
        }
        Ok(())
    }

    /// An entry was applied, by a running member or at a start.
    fn in_history(&mut self, id: u64, done: &Done) -> Check {
        let first = self.checks.log.applied(id, done.index, done.term, done.content)?;
        let answer = crc32c::crc32c(format!("{:?}", done.result).as_bytes());
        self.note(done.index ^ u64::from(answer) << 32);
        let hash = done.hash.filter(|hash| *hash != 0);
        self.checks.machines.applied(id, done.index, answer, hash)?;
        if first {
            self.checks.writes.logged(done.request, done.index);
            for effect in &done.effects {
                self.first_effect(done.request, effect)?;
            }
        }
        Ok(())
    }

    fn first_effect(&mut self, request: u64, effect: &Effect) -> Check {
        match effect {
            Effect::Events { revision, events } => {
                for event in events {
                    let key = String::from_utf8_lossy(&event.key).into_owned();
                    let row = Row::parse(&event.kv).map_err(|_| format!("row of {key}"))?;
                    let value = (!event.delete).then(|| row.value.to_vec());
                    self.checks.reads.changed(&key, *revision, value);
                    self.checks.watches.changed(*revision, event.key.to_vec());
                }
                Ok(())
            }
            Effect::LeaseGranted { id, ttl } => {
                self.checks.leases.granted(id.0, *ttl, self.now);
                Ok(())
            }
            Effect::LeaseRevoked { id } => {
                let expired = is_members(request);
                self.checks.leases.revoked(id.0, self.now, expired)
            }
            _ => Ok(()),
        }
    }

    fn told(&mut self, told: Vec<(StreamId, Delivery)>) -> Check {
        for (stream, delivery) in told {
            let Some(watcher) = self.watcher_of(stream) else { continue };
            for item in delivery.items {
                let seen = |event: &Arc<Change>| (event.mod_revision, event.key.to_vec());
                let seen: Vec<_> = item.events.iter().map(seen).collect();
                self.note(seen.len() as u64 ^ stream.0 << 20);
                self.checks.watches.gets(watcher, &seen)?;
            }
        }
        Ok(())
    }

    fn watcher_of(&self, stream: StreamId) -> Option<u64> {
        let mut attached = self.watchers.iter();
        attached.find(|(_, at)| at.2 == stream).map(|(watcher, _)| *watcher)
    }

    /// A watcher goes to some member that lives, from where it is.
    fn attach(&mut self, watcher: u64) {
        if let Some((id, incarnation, stream)) = self.watchers.remove(&watcher)
            && let Some(node) = self.nodes.get_mut(&id)
            && node.incarnation == incarnation
            && let Some(life) = node.life.as_mut()
        {
            life.unwatch(stream);
        }
        let up: Vec<u64> = self.up();
        if up.is_empty() {
            self.after(200_000, Event::Watch(watcher));
            return;
        }
        let id = up[self.chance.below(up.len() as u64) as usize];
        self.streams += 1;
        let stream = StreamId(self.streams);
        let mut start = self.checks.watches.next(watcher);
        if self.bug == Some(Bug::HistorySkipped) {
            let node = &self.nodes[&id];
            start = start.max(node.life.as_ref().map_or(0, |life| life.revision() + 1));
        }
        self.watchers.insert(watcher, (id, self.nodes[&id].incarnation, stream));
        let _ = self.with(id, |life, env| {
            life.watch(stream, start, env);
            Ok(())
        });
    }

    fn up(&self) -> Vec<u64> {
        let up = self.nodes.iter().filter(|(_, node)| node.life.is_some());
        up.map(|(id, _)| *id).collect()
    }

    fn serve_reads(&mut self, id: u64) -> Check {
        let Some(life) = self.nodes.get_mut(&id).and_then(|node| node.life.as_mut()) else {
            return Ok(());
        };
        let due = life.due();
        for op in due {
            let Some(Op { key, floor, renews, .. }) = self.clients.op(op).cloned() else {
                continue;
            };
            if let Some((lease, since, member)) = renews {
                // The member that renewed it still led afterwards: the renewal counts.
                if member == id {
                    self.checks.leases.renewed(lease, since);
                }
                self.finish(op, Some(Answer::Renewed));
                continue;
            }
            let life = self.nodes[&id].life.as_ref().expect("it lives");
            let response = life.range(&key).map_err(|error| format!("read of {key}: {error:?}"))?;
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            let mut found = None;
            if let Some(kv) = response.kvs.first() {
                let row = Row::parse(kv).map_err(|_| format!("row of {key}"))?;
                found = Some((row.mod_revision, row.value.to_vec()));
            }
            self.checks.reads.read(&key, floor, revision, found)?;
            self.finish(op, Some(Answer::Read));
        }
        Ok(())
    }

    fn finish(&mut self, op: u64, answer: Option<Answer>) {
        let Some(op) = self.clients.end(op) else { return };
        if let Some(Answer::Applied(Ok(reply))) = &answer
            && let Some(revision) = self.clients.learns(op.client, reply)
        {
            self.checks.reads.told(revision);
        }
        let pause = self.chance.between(500, 60_000);
        self.after(pause, Event::Client(op.client));
    }

    /// A client begins something.
    fn client(&mut self, client: u64) -> Check {
        let up: Vec<u64> = self.up().into_iter().filter(|id| self.is_free(*id)).collect();
        if up.is_empty() {
            self.after(50_000, Event::Client(client));
            return Ok(());
        }
        let mut id = up[self.chance.below(up.len() as u64) as usize];
        let known = self.checks.reads.known();
        let Some((op, mut call)) = self.clients.begin(client, id, known) else { return Ok(()) };
        if let Some(lease) = call.renew {
            let leads =
                |id: &u64| self.nodes[id].life.as_ref().is_some_and(|l| l.standing().is_leader);
            if let Some(leader) = up.iter().copied().find(leads) {
                id = leader;
            }
            let renewed = self.with_result(id, |life, env| Ok(life.renew(LeaseId(lease), env)))?;
            if !renewed {
                self.finish(op, None);
                return Ok(());
            }
            self.clients.renews(op, lease, self.now, id);
            call.data = None;
        }
        self.after(3_000_000, Event::Timeout(op));
        match call.data {
            Some(data) => self.with(id, |life, env| life.propose(data, env)),
            None => self.with(id, |life, env| life.read_index(op, env)),
        }
    }

    fn fault(&mut self) -> Check {
        if self.safe {
            return Ok(());
        }
        let next = self.chance.between(20_000, 1_500_000);
        self.after(next, Event::Fault);
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let id = ids[self.chance.below(ids.len() as u64) as usize];
        match self.chance.below(10) {
            0 | 1 => self.crash(id),
            2 => {
                // All lose power at once.
                ids.iter().for_each(|id| self.crash(*id));
            }
            3 | 4 => self.net.change(&ids, &mut self.chance),
            5 => self.net.heal(),
            6 => {
                let pause = self.chance.between(10_000, 6_000_000);
                let node = self.nodes.get_mut(&id).expect("an id of ours");
                node.paused_until = node.paused_until.max(self.now + pause);
            }
            7 => {
                let node = self.nodes.get_mut(&id).expect("an id of ours");
                node.slow_disk = !node.slow_disk;
            }
            8 => self.nodes.get_mut(&id).expect("an id of ours").next_save_fails = true,
            _ => {
                let to = ids[self.chance.below(ids.len() as u64) as usize];
                if self.is_free(id) {
                    return self.with(id, |life, env| life.transfer_to(to, env));
                }
            }
        }
        Ok(())
    }

    /// A member loses power, and starts again after a while.
    fn crash(&mut self, id: u64) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("an id of ours");
        if node.life.take().is_none() {
            return;
        }
        self.crashes += 1;
        node.incarnation += 1;
        node.busy_until = 0;
        node.paused_until = 0;
        node.applies_at = 0;
        node.next_save_fails = false;
        node.disk.crash(now, &mut self.chance);
        node.engine = Arc::new(node.engine.after_crash(&mut self.chance));
        let longest = if self.chance.one_in(2) { 3_000_000 } else { 5_000 };
        let pause = self.chance.between(1_000, longest);
        self.after(pause, Event::Start(id));
        for op in self.clients.at(id) {
            self.finish(op, None);
        }
        let gone: Vec<u64> = self
            .watchers
            .iter()
            .filter(|(_, at)| at.0 == id)
            .map(|(watcher, _)| *watcher)
            .collect();
        for watcher in gone {
            let pause = self.chance.between(1_000, 500_000);
            self.after(pause, Event::Watch(watcher));
        }
    }

    fn start(&mut self, id: u64) -> Check {
        let node = self.nodes.get_mut(&id).expect("an id of ours");
        if node.life.is_some() {
            return Ok(());
        }
        let (life, done) = Life::start(id, &node.disk, &node.engine, self.seed, self.bug)?;
        let applied = life.applied;
        node.life = Some(life);
        self.note(applied);
        for one in done {
            self.in_history(id, &one)?;
        }
        self.checks.durable.starts(id, applied);
        Ok(())
    }

    fn heal(&mut self) -> Check {
        self.safe = true;
        self.net.heal();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            let node = self.nodes.get_mut(&id).expect("an id of ours");
            node.slow_disk = false;
            node.next_save_fails = false;
            self.start(id)?;
        }
        self.clients.rest();
        Ok(())
    }

    /// Everybody has caught up, and nothing is missing.
    fn end(&mut self) -> Check {
        let newest = self.checks.log.newest().0;
        let mut hashes = BTreeSet::new();
        for (id, node) in &mut self.nodes {
            let life = node.life.as_mut().ok_or_else(|| format!("liveness: {id} is down"))?;
            if life.applied != newest {
                return Err(format!(
                    "liveness: {id} has applied {}, the log has {newest}; {:?}",
                    life.applied,
                    life.standing()
                ));
            }
            hashes.insert(life.hash());
            if life.leases() != self.checks.leases.there() {
                return Err(format!("leases: {id} has others than the log says"));
            }
        }
        if hashes.len() > 1 {
            return Err("machine: rows differ in the end".to_owned());
        }
        if !self.clients.answered_lately() {
            return Err("liveness: nobody was answered after the faults".to_owned());
        }
        self.checks.writes.end(newest)?;
        self.checks.watches.end(WATCHERS)
    }
}

/// What a save says that a fault makes fail.
pub const SAVE_FAILED: &str = "the disk does not take it";
