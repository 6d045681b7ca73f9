//! The first entries of a new cluster, the same bytes on every member that starts it
//! (etcd v3.5.17 `raft/bootstrap.go`).

use crate::cluster::members::Member;
use crate::pb::raftpb::{ConfChange, ConfChangeType, Entry, EntryType, HardState};
use prost::Message as _;

/// Term of the bootstrap entries; the first election then makes term 2.
const BOOTSTRAP_TERM: u64 = 1;

/// One conf change for each initial member in ascending id order, all committed.
pub fn bootstrap(members: &[Member]) -> (HardState, Vec<Entry>) {
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_by_key(|member| member.id);
    let entries: Vec<Entry> = sorted
        .into_iter()
        .zip(1u64..)
        .map(|(member, index)| {
            let change = ConfChange {
                id: 0,
                change_type: ConfChangeType::AddNode as i32,
                node_id: member.id,
                context: serde_json::to_vec(member).expect("a member serialises").into(),
            };
            Entry {
                entry_type: EntryType::EntryConfChange as i32,
                term: BOOTSTRAP_TERM,
                index,
                data: change.encode_to_vec().into(),
                ..Entry::default()
            }
        })
        .collect();
    let commit = entries.len() as u64;
    (HardState { term: BOOTSTRAP_TERM, vote: 0, commit }, entries)
}
