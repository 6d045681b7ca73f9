//! What a foreign message must be before raft may see it: the crate indexes and panics otherwise.

use crate::base::ids::MemberId;
use crate::pb::raftpb::{ConfChange, ConfChangeV2, ConfState, EntryType, Message, MessageType};
use prost::Message as _;
use std::collections::BTreeSet;

/// Why a message from a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("unknown message type")]
    UnknownType,
    #[error("message type not allowed from a peer")]
    LocalType,
    #[error("message for another member")]
    NotForUs,
    #[error("message from ourselves or from nobody")]
    BadSender,
    #[error("read index needs exactly one entry")]
    ReadIndexEntries,
    #[error("entries are not contiguous")]
    EntriesNotContiguous,
    #[error("entries claim a newer term than the message")]
    EntriesFromTheFuture,
    #[error("unknown entry type")]
    UnknownEntryType,
    #[error("unreadable conf change")]
    UnreadableConfChange,
    #[error("heartbeat commits beyond the log")]
    CommitBeyondLog,
    #[error("append below the commit index contradicts the log")]
    AppendContradictsCommit,
    #[error("proposal without entries")]
    EmptyProposal,
    #[error("acknowledges entries beyond the log")]
    AckBeyondLog,
    #[error("request to a leader carries a term")]
    RequestWithTerm,
    #[error("leader transfer is for the leader")]
    TransferToFollower,
    #[error("a leader's message without a term")]
    NoTerm,
    #[error("from another member than this term's leader")]
    SecondLeader,
    #[error("snapshot of nothing, or of a later term than the message")]
    BadSnapshot,
    #[error("snapshot of a cluster that cannot be")]
    BadSnapshotMembers,
    #[error("snapshot contradicts the log at the commit index")]
    SnapshotContradictsCommit,
}

/// The member's own position, which messages are held against.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub member: MemberId,
    pub term: u64,
    pub last_index: u64,
    pub committed: u64,
    /// Who leads in this term; 0 while that is not known.
    pub leader: MemberId,
    pub is_leader: bool,
}

/// Checks a message from the network; an accepted one cannot make the crate panic.
pub fn admit(
    message: &Message,
    at: Position,
    term_of: impl Fn(u64) -> Option<u64>,
) -> Result<(), Refused> {
    let kind = MessageType::try_from(message.msg_type).map_err(|_| Refused::UnknownType)?;
    if message.to != at.member.0 {
        return Err(Refused::NotForUs);
    }
    if message.from == 0 || message.from == at.member.0 {
        return Err(Refused::BadSender);
    }
    match kind {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err(Refused::LocalType),
        // Without a term the crate takes a message for one of its own, whoever sent it.
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
            if message.term == 0 =>
        {
            return Err(Refused::NoTerm);
        }
        // A term has one leader. The crate would take the sender for it, and pass the next
        // proposals on to someone who drops them.
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
            if message.term == at.term && at.leader.0 != 0 && at.leader.0 != message.from =>
        {
            return Err(Refused::SecondLeader);
        }
        MessageType::MsgSnapshot => admit_snapshot(message, at, &term_of)?,
        // A follower passes these three on to its leader, and the crate refuses to send a message
        // that has a term already.
        MessageType::MsgPropose | MessageType::MsgReadIndex if message.term != 0 => {
            return Err(Refused::RequestWithTerm);
        }
        MessageType::MsgTransferLeader if !at.is_leader => {
            return Err(Refused::TransferToFollower);
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            return Err(Refused::ReadIndexEntries);
        }
        MessageType::MsgPropose if message.entries.is_empty() => {
            return Err(Refused::EmptyProposal);
        }
        MessageType::MsgHeartbeat if message.commit > at.last_index && message.term >= at.term => {
            return Err(Refused::CommitBeyondLog);
        }
        MessageType::MsgAppend => admit_append(message, at, &term_of)?,
        MessageType::MsgAppendResponse => {
            let beyond = message.index > at.last_index && !message.reject;
            if beyond && at.is_leader && message.term == at.term {
                return Err(Refused::AckBeyondLog);
            }
        }
        _ => {}
    }
    for entry in &message.entries {
        match EntryType::try_from(entry.entry_type).map_err(|_| Refused::UnknownEntryType)? {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChange => {
                ConfChange::decode(entry.data.clone())
                    .map_err(|_| Refused::UnreadableConfChange)?;
            }
            EntryType::EntryConfChangeV2 => {
                ConfChangeV2::decode(entry.data.clone())
                    .map_err(|_| Refused::UnreadableConfChange)?;
            }
        }
    }
    Ok(())
}

fn admit_snapshot(
    message: &Message,
    at: Position,
    term_of: &impl Fn(u64) -> Option<u64>,
) -> Result<(), Refused> {
    let metadata = message.get_snapshot().get_metadata();
    let bounded = (1..u64::MAX).contains(&metadata.index);
    if !bounded || metadata.term == 0 || metadata.term > message.term {
        return Err(Refused::BadSnapshot);
    }
    if !is_cluster(metadata.get_conf_state()) {
        return Err(Refused::BadSnapshotMembers);
    }
    let same = term_of(metadata.index).is_none_or(|term| term == metadata.term);
    if metadata.index == at.committed && message.term >= at.term && !same {
        return Err(Refused::SnapshotContradictsCommit);
    }
    Ok(())
}

/// Whether the crate can take it: etcd's members never have two configurations at once.
fn is_cluster(members: &ConfState) -> bool {
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave } = members;
    let ids: BTreeSet<u64> = voters.iter().chain(learners).copied().collect();
    let single = voters_outgoing.is_empty() && learners_next.is_empty() && !auto_leave;
    let distinct = ids.len() == voters.len() + learners.len() && !ids.contains(&0);
    single && distinct && !voters.is_empty()
}

fn admit_append(
    message: &Message,
    at: Position,
    term_of: &impl Fn(u64) -> Option<u64>,
) -> Result<(), Refused> {
    let mut index = message.index;
    for entry in &message.entries {
        index = index.checked_add(1).ok_or(Refused::EntriesNotContiguous)?;
        if entry.index != index {
            return Err(Refused::EntriesNotContiguous);
        }
        if entry.term > message.term {
            return Err(Refused::EntriesFromTheFuture);
        }
        // An entry at or below our commit index must be the one we have: anything else would make
        // the crate truncate committed entries, which it answers with a panic.
        let committed = entry.index <= at.committed && message.term >= at.term;
        let matches = term_of(message.index) == Some(message.log_term);
        if committed && matches && term_of(entry.index).is_some_and(|term| term != entry.term) {
            return Err(Refused::AppendContradictsCommit);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::raftpb::{Entry, Snapshot, SnapshotMetadata};

    const AT: Position = Position {
        member: MemberId(1),
        term: 5,
        last_index: 10,
        committed: 8,
        leader: MemberId(0),
        is_leader: false,
    };

    fn message(kind: MessageType) -> Message {
        Message { msg_type: kind as i32, to: 1, from: 2, term: 5, ..Message::default() }
    }

    fn check(message: &Message) -> Result<(), Refused> {
        admit(message, AT, |index| (index <= 10).then_some(5))
    }

    #[test]
    fn impossible_messages_are_refused() {
        let entry = |index, term| Entry { index, term, ..Entry::default() };
        assert_eq!(
            check(&Message { msg_type: 99, ..message(MessageType::MsgHup) }),
            Err(Refused::UnknownType)
        );
        assert_eq!(check(&message(MessageType::MsgHup)), Err(Refused::LocalType));
        assert_eq!(
            check(&Message { to: 3, ..message(MessageType::MsgHeartbeat) }),
            Err(Refused::NotForUs)
        );
        assert_eq!(
            check(&Message { from: 1, ..message(MessageType::MsgHeartbeat) }),
            Err(Refused::BadSender)
        );
        let transfer = message(MessageType::MsgTransferLeader);
        assert_eq!(check(&transfer), Err(Refused::TransferToFollower));
        assert_eq!(check(&message(MessageType::MsgPropose)), Err(Refused::RequestWithTerm));
        let no_term = |kind| Message { term: 0, ..message(kind) };
        let read = no_term(MessageType::MsgReadIndex);
        assert_eq!(check(&read), Err(Refused::ReadIndexEntries));
        assert_eq!(check(&no_term(MessageType::MsgPropose)), Err(Refused::EmptyProposal));
        let far = Message { commit: 11, ..message(MessageType::MsgHeartbeat) };
        assert_eq!(check(&far), Err(Refused::CommitBeyondLog));
        let gap =
            Message { index: 10, entries: vec![entry(12, 5)], ..message(MessageType::MsgAppend) };
        assert_eq!(check(&gap), Err(Refused::EntriesNotContiguous));
        let lie = Message {
            index: 6,
            log_term: 5,
            entries: vec![entry(7, 4)],
            ..message(MessageType::MsgAppend)
        };
        assert_eq!(check(&lie), Err(Refused::AppendContradictsCommit));
        let conf = Entry {
            index: 11,
            term: 5,
            entry_type: 1,
            data: "\u{1}garbage".into(),
            ..Entry::default()
        };
        let conf = Message {
            index: 10,
            log_term: 5,
            entries: vec![conf],
            ..message(MessageType::MsgAppend)
        };
        assert_eq!(check(&conf), Err(Refused::UnreadableConfChange));
        assert_eq!(check(&message(MessageType::MsgHeartbeat)), Ok(()));
    }

    #[test]
    fn impossible_snapshots_are_refused() {
        let with = |index: u64, term: u64, voters: &[u64], learners: &[u64]| {
            let (voters, learners) = (voters.to_vec(), learners.to_vec());
            let conf_state = Some(ConfState { voters, learners, ..ConfState::default() });
            let metadata = Some(SnapshotMetadata { conf_state, index, term });
            let snapshot = Some(Snapshot { metadata, ..Snapshot::default() });
            check(&Message { snapshot, ..message(MessageType::MsgSnapshot) })
        };
        assert_eq!(with(20, 5, &[1, 2], &[3]), Ok(()));
        assert_eq!(with(8, 5, &[1, 2], &[]), Ok(()), "raft ignores what it has");
        assert_eq!(with(0, 5, &[1], &[]), Err(Refused::BadSnapshot));
        assert_eq!(with(u64::MAX, 5, &[1], &[]), Err(Refused::BadSnapshot));
        assert_eq!(with(20, 6, &[1], &[]), Err(Refused::BadSnapshot));
        assert_eq!(with(8, 4, &[1], &[]), Err(Refused::SnapshotContradictsCommit));
        for (voters, learners) in
            [(&[][..], &[1][..]), (&[1, 1], &[]), (&[1, 2], &[2]), (&[1, 0], &[])]
        {
            assert_eq!(with(20, 5, voters, learners), Err(Refused::BadSnapshotMembers));
        }
        let none = check(&message(MessageType::MsgSnapshot));
        assert_eq!(none, Err(Refused::BadSnapshot));
    }

    #[test]
    fn one_leader_in_a_term() {
        let at = |leader, is_leader| Position { leader: MemberId(leader), is_leader, ..AT };
        let ask = |kind, from, term, at| {
            admit(&Message { from, term, ..message(kind) }, at, |index| (index <= 10).then_some(5))
        };
        for kind in [MessageType::MsgAppend, MessageType::MsgHeartbeat] {
            assert_eq!(ask(kind, 2, 5, at(3, false)), Err(Refused::SecondLeader), "{kind:?}");
            assert_eq!(ask(kind, 2, 5, at(1, true)), Err(Refused::SecondLeader), "{kind:?}");
            assert_eq!(ask(kind, 3, 5, at(3, false)), Ok(()), "{kind:?} of the leader");
            assert_eq!(ask(kind, 2, 5, at(0, false)), Ok(()), "{kind:?}, no leader known yet");
            assert_eq!(ask(kind, 2, 6, at(3, false)), Ok(()), "{kind:?} of a later term");
            assert_eq!(ask(kind, 2, 4, at(3, false)), Ok(()), "{kind:?} of an old term");
            assert_eq!(ask(kind, 2, 0, at(0, false)), Err(Refused::NoTerm), "{kind:?}");
        }
        let vote = MessageType::MsgRequestVote;
        assert_eq!(ask(vote, 2, 5, at(3, false)), Ok(()), "who asks for votes says nothing yet");
    }
}
