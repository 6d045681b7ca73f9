//! `--force-new-cluster`: the log goes on with changes that leave this member alone, all of them
//! committed without anybody's vote (etcd v3.5.17 `server/etcdserver/raft.go`
//! restartAsStandaloneNode, createConfigChangeEnts).

use crate::base::ids::MemberId;
use crate::cluster::members::{self, Member, Members};
use crate::pb::raftpb::{ConfChange, Entry, EntryType, HardState};
use crate::raft::driver::Change;
use prost::Message as _;

/// Up to which entry the log stays. Entries behind the commit index may have been acknowledged, and
/// the commit index that says so not be on the disk: they stay, up to the first change of members,
/// since who has a say is decided here. etcd discards them all.
pub fn kept(commit: u64, tail: &[Entry]) -> u64 {
    let behind = tail.iter().filter(|entry| entry.index > commit);
    behind.take_while(|entry| Change::of(entry).is_none()).last().map_or(commit, |last| last.index)
}

/// The entries that follow the one at `state.commit`, in its term, and the state that commits them.
/// They take the place of what is there, up to the entry at `last`; if there is something and
/// nobody has to go, it is an entry without contents. `peer_urls` are for a member that its own
/// cluster has not heard of.
pub fn entries(
    members: &Members,
    own: MemberId,
    peer_urls: &[String],
    state: HardState,
    last: u64,
) -> Result<(HardState, Vec<Entry>), String> {
    let changes = changes(members, own, peer_urls)?;
    let term = state.term.max(1);
    let entry = |(index, data): (u64, Option<ConfChange>)| {
        let entry_type = match data {
            Some(_) => EntryType::EntryConfChange,
            None => EntryType::EntryNormal,
        };
        let data = data.map(|change| change.encode_to_vec()).unwrap_or_default().into();
        Entry { entry_type: entry_type as i32, term, index, data, ..Entry::default() }
    };
    let mut data: Vec<Option<ConfChange>> = changes.into_iter().map(Some).collect();
    if data.is_empty() && last > state.commit {
        data.push(None);
    }
    let entries: Vec<Entry> = (state.commit + 1..).zip(data).map(entry).collect();
    let commit = state.commit + entries.len() as u64;
    Ok((HardState { term, commit, ..state }, entries))
}

/// This member is a voter before the others go: raft must never be without one.
fn changes(
    members: &Members,
    own: MemberId,
    peer_urls: &[String],
) -> Result<Vec<ConfChange>, String> {
    let mut changes = Vec::new();
    match members.get(own) {
        Some(_) if members.conf_state().learners.contains(&own.0) => {
            changes.push(members::promote_change(own));
        }
        Some(_) => {}
        None if members.is_removed(own) => {
            return Err(format!(
                "--force-new-cluster: member {own} was removed from its cluster and cannot come \
                 back; restore a snapshot of it instead"
            ));
        }
        None => {
            let (id, peer_urls) = (own.0, peer_urls.to_vec());
            changes.push(members::add_change(&Member { id, peer_urls, ..Member::default() }));
        }
    }
    let others = members.iter().map(|member| MemberId(member.id)).filter(|id| *id != own);
    changes.extend(others.map(members::remove_change));
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::driver::Change;

    const OWN: MemberId = MemberId(2);

    fn table(adds: &[(u64, bool)]) -> Members {
        let mut members = Members::default();
        for &(id, is_learner) in adds {
            let peer_urls = vec![format!("http://m{id}:1")];
            let member = Member { id, peer_urls, is_learner, ..Member::default() };
            members.apply(&members::add_change(&member)).unwrap();
        }
        members
    }

    /// Who is left when the entries are applied, and how many there were.
    fn left(mut members: Members, last: u64) -> (Vec<Member>, usize) {
        let state = HardState { term: 5, vote: 3, commit: 40 };
        let urls = ["http://own:1".to_owned()];
        let (after, entries) = entries(&members, OWN, &urls, state, last).unwrap();
        let commit = 40 + entries.len() as u64;
        assert_eq!(after, HardState { term: 5, vote: 3, commit });
        for (entry, index) in entries.iter().zip(41..) {
            assert_eq!((entry.index, entry.term), (index, 5));
            match Change::of(entry) {
                Some(Change::V1(change)) => {
                    members.apply(&change).unwrap();
                    assert!(!members.conf_state().voters.is_empty());
                }
                _ => assert!(entry.data.is_empty()),
            }
        }
        assert_eq!(members.conf_state().voters, [OWN.0]);
        assert!(members.conf_state().learners.is_empty());
        (members.iter().cloned().collect(), entries.len())
    }

    #[test]
    fn whoever_is_forced_is_left_alone() {
        let (alone, count) = left(table(&[(1, false), (2, false), (3, true)]), 40);
        assert_eq!((alone[0].peer_urls[0].as_str(), alone.len(), count), ("http://m2:1", 1, 2));
        // As a learner, and as one that its cluster has not heard of.
        assert_eq!(left(table(&[(1, false), (2, true)]), 40).1, 2);
        let (alone, count) = left(table(&[(1, false)]), 40);
        assert_eq!((alone[0].peer_urls[0].as_str(), alone.len(), count), ("http://own:1", 1, 2));
        // What is left behind the commit index goes in any case.
        assert_eq!((left(table(&[(2, false)]), 40).1, left(table(&[(2, false)]), 41).1), (0, 1));
    }

    #[test]
    fn what_may_have_been_acknowledged_stays() {
        let entry = |index| Entry { index, ..Entry::default() };
        let change = EntryType::EntryConfChange as i32;
        let tail = [entry(5), entry(6), Entry { entry_type: change, ..entry(7) }, entry(8)];
        assert_eq!([kept(4, &tail), kept(5, &tail), kept(6, &tail)], [6, 6, 6]);
        assert_eq!([kept(7, &tail), kept(8, &tail), kept(4, &[])], [8, 8, 4]);
    }

    #[test]
    fn a_log_without_entries_begins_in_the_first_term() {
        let (after, entries) =
            entries(&Members::default(), OWN, &["http://own:1".into()], HardState::default(), 0)
                .unwrap();
        assert_eq!(after, HardState { term: 1, vote: 0, commit: 1 });
        assert_eq!((entries.len(), entries[0].index, entries[0].term), (1, 1, 1));
    }

    #[test]
    fn who_was_removed_stays_away() {
        let mut members = table(&[(1, false), (2, false)]);
        members.apply(&members::remove_change(OWN)).unwrap();
        let error = entries(&members, OWN, &[], HardState::default(), 0).unwrap_err();
        assert!(error.contains("member 2 was removed"), "{error}");
    }
}
