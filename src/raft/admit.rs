//! What a foreign message must be before raft may see it: the crate indexes and panics otherwise.

use crate::base::ids::MemberId;
use crate::pb::raftpb::{ConfChange, ConfChangeV2, EntryType, Message, MessageType};
use prost::Message as _;

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
    #[error("snapshots are not taken yet")]
    Snapshot,
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
        MessageType::MsgSnapshot => return Err(Refused::Snapshot),
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
    use crate::pb::raftpb::Entry;

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
