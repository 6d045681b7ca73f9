//! RawNode with etcd's settings: what to save, what to send and what to apply, in that order.

use crate::base::error::Error;
use crate::base::ids::MemberId;
use crate::base::limits;
use crate::pb::raftpb::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot,
};
use crate::raft::admit::{self, Refused};
use crate::raft::log::{Archive, Log, LogStart};
use bytes::Bytes;
use prost::Message as _;
use raft::{Config, RawNode, ReadOnlyOption, SnapshotStatus, StateRole, Storage};

/// etcd's settings that a flag or the cluster's size decides.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub member: MemberId,
    /// Ticks without a leader before an election (etcd: election timeout / heartbeat interval).
    pub election_ticks: usize,
    pub pre_vote: bool,
    /// Everything up to here was applied before raft starts.
    pub applied: u64,
}

/// Where this member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    /// 0 when there is none.
    pub leader: MemberId,
    pub is_leader: bool,
    pub is_learner: bool,
    /// It is the only voter and there is no learner: nobody else leads, commits or applies.
    pub is_alone: bool,
    pub committed: u64,
}

/// One round of work. The order is the contract: send `messages`; write down that `snapshot` takes
/// the place of the log; save `hard_state` and `entries` (synced if `must_sync`); call
/// [`Driver::saved`]; only then put the snapshot into the machine, and send and apply what it
/// returns.
#[derive(Debug, Default)]
pub struct Work {
    /// From the leader, of what it has released of its log.
    pub snapshot: Option<Snapshot>,
    pub hard_state: Option<HardState>,
    pub entries: Vec<Entry>,
    pub must_sync: bool,
    /// May leave before the save: a leader's appends.
    pub messages: Vec<Message>,
    /// Answers to read-index rounds: (context, index).
    pub read_states: Vec<(u64, u64)>,
    /// Committed and saved before this round.
    pub committed: Vec<Entry>,
}

/// What a finished save sets free.
#[derive(Debug, Default)]
pub struct Saved {
    pub messages: Vec<Message>,
    pub committed: Vec<Entry>,
}

/// The proposal was not taken: there is no leader, or it is being transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

/// The pure driver.
pub struct Driver<A: Archive> {
    raw: RawNode<Log<A>>,
    member: MemberId,
    round: Option<raft::Ready>,
    /// Commit index of the newest hard state on disk.
    pub(super) commit_saved: u64,
}

impl<A: Archive> Driver<A> {
    /// Starts from a recovered log.
    pub fn new(
        settings: Settings,
        start: LogStart,
        archive: A,
        logger: &slog::Logger,
    ) -> Result<Driver<A>, raft::Error> {
        let config = Config {
            id: settings.member.0,
            election_tick: settings.election_ticks,
            heartbeat_tick: 1,
            applied: settings.applied,
            max_size_per_msg: limits::RAFT_MESSAGE_BYTES_MAX,
            max_inflight_msgs: limits::RAFT_INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: settings.pre_vote,
            read_only_option: ReadOnlyOption::Safe,
            max_committed_size_per_ready: limits::RAFT_MESSAGE_BYTES_MAX,
            ..Config::default()
        };
        let commit_saved = start.hard_state.commit;
        let mut log = Log::new(archive, start);
        log.set_applied(settings.applied);
        let raw = RawNode::new(&config, log, logger)?;
        Ok(Driver { raw, member: settings.member, round: None, commit_saved })
    }

    /// Where this member stands now.
    pub fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            term: raft.term,
            leader: MemberId(raft.leader_id),
            is_leader: raft.state == StateRole::Leader,
            is_learner: raft.prs().conf().learners().contains(&self.member.0),
            is_alone: self.is_single_voter() && raft.prs().iter().count() == 1,
            committed: raft.raft_log.committed,
        }
    }

    fn is_voter(&self) -> bool {
        self.raw.raft.prs().conf().voters().contains(self.member.0)
    }

    /// The only voter may campaign at once instead of waiting for its election timeout.
    pub fn is_single_voter(&self) -> bool {
        self.is_voter() && self.raw.raft.prs().is_singleton()
    }

    /// One heartbeat interval has passed.
    pub fn tick(&mut self) {
        self.raw.tick();
    }

    /// Starts an election.
    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        self.raw.campaign()
    }

    /// Proposes all payloads as one message, so that one append carries them.
    pub fn propose(&mut self, payloads: Vec<Bytes>) -> Result<(), Dropped> {
        assert!(!payloads.is_empty());
        let entries = payloads
            .into_iter()
            .map(|data| Entry { data, ..Entry::default() })
            .collect::<Vec<Entry>>();
        let message = Message {
            msg_type: MessageType::MsgPropose as i32,
            from: self.member.0,
            entries,
            ..Message::default()
        };
        self.raw.step(message).map_err(|_| Dropped)
    }

    /// Proposes a conf change, in a message of its own.
    pub fn propose_change(&mut self, change: &ConfChange) -> Result<(), Dropped> {
        let entry = Entry {
            entry_type: EntryType::EntryConfChange as i32,
            data: change.encode_to_vec().into(),
            ..Entry::default()
        };
        let message = Message {
            msg_type: MessageType::MsgPropose as i32,
            from: self.member.0,
            entries: vec![entry],
            ..Message::default()
        };
        self.raw.step(message).map_err(|_| Dropped)
    }

    /// Whether a conf change would not be dropped: as [`Driver::takes_proposals`], and a leader has
    /// applied all earlier ones. With one still under way the crate makes an empty entry of it.
    pub fn takes_changes(&self) -> bool {
        let leads = self.raw.raft.state == StateRole::Leader;
        self.takes_proposals() && !(leads && self.raw.raft.has_pending_conf())
    }

    /// How far the log of `member` is known to be as this one's, and this one's own length on disk,
    /// both as indexes. `NotLeader` from who cannot know, `MemberNotFound` if raft has no such
    /// member.
    pub fn progress(&self, member: MemberId) -> Result<(u64, u64), Error> {
        if !self.standing().is_leader {
            return Err(Error::NotLeader);
        }
        let matched = |id: MemberId| self.raw.raft.prs().get(id.0).map(|progress| progress.matched);
        let theirs = matched(member).ok_or(Error::MemberNotFound)?;
        Ok((theirs, matched(self.member).unwrap_or_default()))
    }

    /// Takes a message from a peer, or refuses it.
    pub fn step(&mut self, message: Message) -> Result<(), Refused> {
        let standing = self.standing();
        let log = &self.raw.raft.raft_log;
        let position = admit::Position {
            member: self.member,
            term: standing.term,
            last_index: log.last_index(),
            committed: standing.committed,
            leader: standing.leader,
            is_leader: standing.is_leader,
        };
        admit::admit(&message, position, |index| log.term(index).ok())?;
        let asks = [MessageType::MsgAppendResponse, MessageType::MsgReadIndex];
        if self.leads_from_outside() && asks.contains(&message.get_msg_type()) {
            return Ok(());
        }
        // The crate's own errors here (an unknown peer's response, a dropped proposal) change
        // nothing; the sender retries as it would after a lost message.
        let _ = self.raw.step(message);
        Ok(())
    }

    /// Asks for a read index under a context that was never used before.
    pub fn read_index(&mut self, context: u64) {
        self.raw.read_index(context.to_be_bytes().to_vec());
    }

    /// Hands leadership to another voter once its log is as long as this member's; given up after
    /// an election timeout. Nothing if this member does not lead or `to` is no voter.
    pub fn transfer_leader(&mut self, to: MemberId) {
        if self.standing().is_leader {
            self.raw.transfer_leader(to.0);
        }
    }

    /// Whether a proposal would not be dropped: there is a leader, and it is not handing over.
    pub fn takes_proposals(&self) -> bool {
        let raft = &self.raw.raft;
        raft.leader_id != raft::INVALID_ID
            && raft.lead_transferee.is_none()
            && !self.leads_from_outside()
    }

    /// Whether a leader may answer read indexes: it has committed in its own term, and is a member.
    pub fn can_read_index(&self) -> bool {
        if self.leads_from_outside() {
            return false;
        }
        let standing = self.standing();
        if !standing.is_leader {
            return standing.leader.0 != 0;
        }
        self.raw.raft.raft_log.term(standing.committed).is_ok_and(|term| term == standing.term)
    }

    /// A snapshot has reached the peer, or not.
    pub fn report_snapshot(&mut self, id: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id.0, status);
    }

    /// A message to the peer was lost.
    pub fn report_unreachable(&mut self, id: MemberId) {
        self.raw.report_unreachable(id.0);
    }

    /// Applies a committed conf change; node 0 for one that membership rejected. Must precede
    /// [`Driver::applied`] of its index.
    pub fn apply_conf_change(&mut self, change: &Change) -> Result<ConfState, raft::Error> {
        let state = match change {
            Change::V1(change) => self.raw.apply_conf_change(change)?,
            Change::V2(change) => self.raw.apply_conf_change(change)?,
        };
        self.raw.mut_store().set_conf_state(state.clone());
        if self.leads_from_outside() && !self.raw.raft.raft_log.unstable_entries().is_empty() {
            // Once they are saved the crate would look for this member's own progress.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        Ok(state)
    }

    /// Whether this member leads and was removed. Until it ends it says so to the others with each
    /// heartbeat, as in etcd, but it commits nothing: the crate would look for its own progress and
    /// panic. Nor does it answer reads, since the crate asks nobody where one voter is left,
    /// whoever that is.
    fn leads_from_outside(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader && raft.prs().get(self.member.0).is_none()
    }

    /// The machine has applied everything up to `index`, which may be said more than once.
    pub fn applied(&mut self, index: u64) {
        if index > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index);
        }
        self.raw.mut_store().set_applied(index);
    }

    /// The log on disk begins behind this index from now on. A member that needs entries up to it
    /// needs a snapshot. False if it began there already.
    pub fn compact(&mut self, floor: u64) -> bool {
        self.raw.mut_store().set_floor(floor)
    }

    /// The next round of work, if there is any. [`Driver::saved`] must follow.
    pub fn work(&mut self) -> Option<Work> {
        assert!(self.round.is_none(), "the last round was not saved");
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let snapshot = ready.snapshot();
        let work = Work {
            snapshot: (!snapshot.is_empty()).then(|| snapshot.clone()),
            hard_state: ready.hs().copied(),
            entries: ready.take_entries(),
            must_sync: ready.must_sync(),
            messages: ready.take_messages(),
            read_states: ready
                .take_read_states()
                .into_iter()
                .filter_map(|state| {
                    let context: [u8; 8] = state.request_ctx.try_into().ok()?;
                    Some((u64::from_be_bytes(context), state.index))
                })
                .collect(),
            committed: ready.take_committed_entries(),
        };
        self.round = Some(ready);
        Some(work)
    }

    /// The round's hard state and entries are on disk.
    pub fn saved(&mut self, work: &Work) -> Saved {
        let mut ready = self.round.take().expect("saved follows work");
        let log = self.raw.mut_store();
        if let Some(snapshot) = &work.snapshot {
            log.restart(snapshot.get_metadata());
        }
        log.append(&work.entries);
        if let Some(hard_state) = work.hard_state {
            log.set_hard_state(hard_state);
        }
        let mut messages = ready.take_persisted_messages();
        let mut light = self.raw.advance_append(ready);
        if let Some(snapshot) = &work.snapshot {
            // Raft looks for changes of members among what is not applied, and there are no entries
            // to look at. Those that the snapshot has are raft's already.
            self.raw.advance_apply_to(snapshot.get_metadata().index);
        }
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().set_commit(commit);
        }
        messages.extend(light.take_messages());
        Saved { messages, committed: light.take_committed_entries() }
    }

    /// The hard state with the newest commit index, for an idle member to write down.
    pub fn hard_state(&self) -> HardState {
        let mut hard_state = self.raw.store().hard_state();
        hard_state.commit = self.raw.raft.raft_log.committed;
        hard_state
    }

    /// Sets the ticks without a leader after which this member campaigns; raft draws them itself,
    /// by chance, each time its role or term changes. For a simulation, where chance comes from a
    /// seed: to be called after every step and tick.
    pub fn set_election_timeout(&mut self, ticks: usize) {
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    /// Index and term of the newest entry, on disk or not.
    pub fn last_entry(&self) -> (u64, u64) {
        let log = &self.raw.raft.raft_log;
        (log.last_index(), log.last_term())
    }

    /// Index of the newest entry on disk.
    pub fn last_index(&self) -> u64 {
        self.raw.store().last_index().unwrap_or(0)
    }
}

/// A conf change in either form.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    V1(ConfChange),
    V2(ConfChangeV2),
}

impl Change {
    /// Reads the change of a committed entry; `None` for a normal one. Entries were checked when
    /// they arrived, so an unreadable one counts as a change of nothing.
    pub fn of(entry: &Entry) -> Option<Change> {
        match entry.get_entry_type() {
            EntryType::EntryNormal => None,
            EntryType::EntryConfChange => {
                Some(Change::V1(ConfChange::decode(entry.data.clone()).unwrap_or_default()))
            }
            EntryType::EntryConfChangeV2 => {
                Some(Change::V2(ConfChangeV2::decode(entry.data.clone()).unwrap_or_default()))
            }
        }
    }

    /// The same change as raft sees it when membership has rejected it.
    pub fn rejected() -> Change {
        Change::V1(ConfChange::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::members::{Member, Members};
    use crate::pb::raftpb::ConfChangeType;
    use crate::raft::bootstrap::bootstrap;

    struct NoArchive;
    impl Archive for NoArchive {
        fn entries(&self, _: u64, _: u64, _: u64) -> Result<Vec<Entry>, String> {
            Err("nothing archived".to_owned())
        }
    }

    fn node(id: u64, count: u64) -> Driver<NoArchive> {
        let members: Vec<Member> = (1..=count)
            .map(|id| Member { id, peer_urls: vec![format!("http://{id}:1")], ..Member::default() })
            .collect();
        let (hard_state, entries) = bootstrap(&members);
        let mut table = Members::default();
        for entry in &entries {
            let Some(Change::V1(change)) = Change::of(entry) else { panic!("a conf change") };
            table.apply(&change).unwrap();
        }
        let start = LogStart {
            hard_state,
            conf_state: table.conf_state(),
            floor: 0,
            last_index: entries.len() as u64,
            term_runs: vec![(1, 1)],
            tail: entries,
        };
        let settings =
            Settings { member: MemberId(id), election_ticks: 10, pre_vote: true, applied: count };
        Driver::new(settings, start, NoArchive, &slog::Logger::root(slog::Discard, slog::o!()))
            .unwrap()
    }

    /// Runs every node until nobody has work; returns what each applied.
    fn settle(nodes: &mut [Driver<NoArchive>]) -> Vec<Vec<Entry>> {
        let mut applied = vec![Vec::new(); nodes.len()];
        for _ in 0..100 {
            let mut mail = Vec::new();
            for (node, applied) in nodes.iter_mut().zip(&mut applied) {
                while let Some(work) = node.work() {
                    mail.extend(work.messages.iter().cloned());
                    let saved = node.saved(&work);
                    mail.extend(saved.messages);
                    for entry in work.committed.into_iter().chain(saved.committed) {
                        node.applied(entry.index);
                        applied.push(entry);
                    }
                }
            }
            if mail.is_empty() {
                return applied;
            }
            for message in mail {
                let to = (message.to - 1) as usize;
                nodes[to].step(message).unwrap();
            }
        }
        panic!("no rest after 100 rounds");
    }

    #[test]
    fn a_single_member_leads_at_term_2_and_commits_after_its_save() {
        let mut nodes = [node(1, 1)];
        assert!(nodes[0].is_single_voter());
        assert!(nodes[0].standing().is_alone);
        nodes[0].campaign().unwrap();
        settle(&mut nodes);
        assert_eq!(nodes[0].standing().term, 2);
        assert!(nodes[0].standing().is_leader);
        nodes[0].propose(vec!["a".into(), "b".into()]).unwrap();
        let work = nodes[0].work().unwrap();
        assert!(work.committed.is_empty());
        assert_eq!(work.entries.len(), 2);
        let saved = nodes[0].saved(&work);
        assert_eq!(saved.committed.len(), 2);
    }

    #[test]
    fn neither_a_learner_nor_a_voter_leaves_a_member_alone() {
        for kind in [ConfChangeType::AddLearnerNode, ConfChangeType::AddNode] {
            let mut nodes = [node(1, 1)];
            nodes[0].campaign().unwrap();
            settle(&mut nodes);
            let mut change = ConfChange { node_id: 2, ..ConfChange::default() };
            change.set_change_type(kind);
            nodes[0].apply_conf_change(&Change::V1(change)).unwrap();
            assert!(!nodes[0].standing().is_alone, "{kind:?}");
        }
        assert!(!node(1, 3).standing().is_alone);
    }

    #[test]
    fn three_members_replicate_and_a_follower_forwards() {
        let mut nodes = [node(1, 3), node(2, 3), node(3, 3)];
        assert!(nodes[1].propose(vec!["early".into()]).is_err());
        nodes[0].campaign().unwrap();
        settle(&mut nodes);
        assert!(nodes[0].standing().is_leader);
        nodes[1].propose(vec!["x".into()]).unwrap();
        let applied = settle(&mut nodes);
        for entries in &applied {
            assert_eq!(entries.last().unwrap().data, "x");
        }
        nodes[2].read_index(7);
        let mut seen = None;
        for _ in 0..10 {
            let mut mail = Vec::new();
            for node in &mut nodes {
                while let Some(work) = node.work() {
                    seen = seen.or(work.read_states.first().copied());
                    mail.extend(work.messages.iter().cloned());
                    mail.extend(node.saved(&work).messages);
                }
            }
            for message in mail {
                let to = (message.to - 1) as usize;
                nodes[to].step(message).unwrap();
            }
        }
        assert_eq!(seen, Some((7, 5)));
    }

    /// Delivers what the nodes say until nobody says anything; `lose` ends a message's way.
    fn talk(nodes: &mut [Driver<NoArchive>], lose: impl Fn(&Message) -> bool) -> Vec<Snapshot> {
        let mut snapshots = Vec::new();
        for _ in 0..100 {
            let mut mail = Vec::new();
            for node in nodes.iter_mut() {
                while let Some(work) = node.work() {
                    mail.extend(work.messages.iter().cloned());
                    let saved = node.saved(&work);
                    mail.extend(saved.messages);
                    for entry in work.committed.into_iter().chain(saved.committed) {
                        node.applied(entry.index);
                    }
                    snapshots.extend(work.snapshot);
                }
            }
            mail.retain(|message| !lose(message));
            if mail.is_empty() {
                return snapshots;
            }
            for message in mail {
                let to = (message.to - 1) as usize;
                nodes[to].step(message).unwrap();
            }
        }
        panic!("no rest after 100 rounds");
    }

    #[test]
    fn who_needs_what_the_log_has_released_gets_a_snapshot_and_then_the_log() {
        let mut nodes = [node(1, 3), node(2, 3), node(3, 3)];
        nodes[0].campaign().unwrap();
        talk(&mut nodes, |_| false);
        for n in 0..8 {
            nodes[0].propose(vec![format!("{n}").into()]).unwrap();
            talk(&mut nodes, |message| message.to == 3 || message.from == 3);
        }
        nodes[0].compact(10);
        assert_eq!(nodes[0].raw.store().first_index().unwrap(), 11);
        // The first snapshot is lost, which raft is told; it sends another.
        let lost = |message: &Message| message.get_msg_type() == MessageType::MsgSnapshot;
        nodes[0].tick();
        talk(&mut nodes, lost);
        nodes[0].tick();
        assert_eq!(talk(&mut nodes, lost), [], "one is on its way");
        nodes[0].report_snapshot(MemberId(3), false);
        nodes[0].tick();
        let installed = talk(&mut nodes, |_| false);
        assert_eq!(installed.len(), 1);
        let metadata = installed[0].get_metadata();
        assert_eq!((metadata.index, metadata.term), (12, 2));
        assert_eq!(metadata.get_conf_state().voters, [1, 2, 3]);
        nodes[0].report_snapshot(MemberId(3), true);
        nodes[0].propose(vec!["after".into()]).unwrap();
        talk(&mut nodes, |_| false);
        assert_eq!(nodes[2].last_entry(), (13, 2));
        assert_eq!(nodes[2].standing().committed, 13);
        // It may campaign although the snapshot is not in the machine yet.
        nodes[0].transfer_leader(MemberId(3));
        talk(&mut nodes, |_| false);
        assert!(nodes[2].standing().is_leader);
    }

    #[test]
    fn leadership_is_handed_over_to_a_voter() {
        let mut nodes = [node(1, 3), node(2, 3), node(3, 3)];
        assert!(!nodes[0].takes_proposals());
        nodes[0].campaign().unwrap();
        settle(&mut nodes);
        nodes[0].transfer_leader(MemberId(9));
        nodes[0].transfer_leader(MemberId(1));
        nodes[1].transfer_leader(MemberId(1));
        settle(&mut nodes);
        assert!(nodes[0].standing().is_leader && nodes[0].takes_proposals());
        nodes[0].transfer_leader(MemberId(3));
        assert!(!nodes[0].takes_proposals());
        assert!(nodes[0].propose(vec!["x".into()]).is_err());
        settle(&mut nodes);
        assert!(nodes[2].standing().is_leader && nodes[0].takes_proposals());
        assert_eq!(nodes[0].standing().leader, MemberId(3));
        assert_eq!(nodes[0].standing().term, 3);
    }

    /// With proposals on their way, at whose commit the crate would panic: in a message, or not
    /// even saved.
    #[test]
    fn a_leader_that_is_removed_goes_on_and_commits_nothing() {
        for unsaved in [false, true] {
            let mut nodes = [node(1, 3), node(2, 3), node(3, 3)];
            nodes[0].campaign().unwrap();
            settle(&mut nodes);
            let change = crate::cluster::members::remove_change(MemberId(1));
            nodes[0].propose_change(&change).unwrap();
            settle(&mut nodes);
            nodes[0].propose(vec!["x".into()]).unwrap();
            let work = nodes[0].work().unwrap();
            let mut late = work.messages.clone();
            late.extend(nodes[0].saved(&work).messages);
            if unsaved {
                nodes[0].propose(vec!["y".into()]).unwrap();
            }
            nodes[0].apply_conf_change(&Change::V1(change.clone())).unwrap();
            assert_eq!(nodes[0].standing().is_leader, !unsaved);
            assert!(!nodes[0].takes_proposals() && !nodes[0].can_read_index());
            let committed = nodes[0].standing().committed;
            for message in late {
                let to = (message.to - 1) as usize;
                nodes[to].step(message).unwrap();
            }
            settle(&mut nodes);
            assert_eq!(nodes[0].standing().committed, committed);
        }
    }

    /// The crate would answer at once, because the other is the only voter.
    #[test]
    fn a_leader_that_is_removed_from_two_answers_no_read() {
        let mut nodes = [node(1, 2), node(2, 2)];
        nodes[0].campaign().unwrap();
        settle(&mut nodes);
        let change = crate::cluster::members::remove_change(MemberId(1));
        nodes[0].propose_change(&change).unwrap();
        settle(&mut nodes);
        nodes[0].apply_conf_change(&Change::V1(change)).unwrap();
        nodes[1].read_index(7);
        let mut answers = 0;
        for _ in 0..5 {
            let work = nodes[1].work();
            let Some(work) = work else { break };
            answers += work.read_states.len();
            let mut mail = work.messages.clone();
            mail.extend(nodes[1].saved(&work).messages);
            mail.into_iter().for_each(|message| nodes[0].step(message).unwrap());
            while let Some(work) = nodes[0].work() {
                let mut mail = work.messages.clone();
                mail.extend(nodes[0].saved(&work).messages);
                mail.into_iter().for_each(|message| nodes[1].step(message).unwrap());
            }
        }
        assert_eq!(answers, 0);
    }

    #[test]
    fn a_transfer_to_a_silent_member_is_given_up() {
        let mut nodes = [node(1, 3), node(2, 3), node(3, 3)];
        nodes[0].campaign().unwrap();
        settle(&mut nodes);
        nodes[0].transfer_leader(MemberId(3));
        for _ in 0..10 {
            nodes[0].tick();
            while let Some(work) = nodes[0].work() {
                nodes[0].saved(&work);
            }
        }
        assert!(nodes[0].takes_proposals());
        nodes[0].propose(vec!["x".into()]).unwrap();
    }
}
