//! etcd's `raftpb` messages (etcd v3.5.17 `raft/raftpb/raft.proto`) with the accessors that the
//! `raft` crate calls. Numbers are etcd's where etcd and the crate differ: `ConfChangeType` has
//! UpdateNode = 2 and AddLearnerNode = 3.

mod confchange;
pub mod eraftpb;

pub use confchange::{
    conf_state_eq, new_conf_change_single, parse_conf_change, stringify_conf_change, ConfChangeI,
    CONF_CHANGE_UPDATE_NODE,
};

pub mod prelude {
    //! What the crate imports as a bundle.
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

pub mod util {
    //! Conversions the crate's tests and users rely on.
    use crate::eraftpb::ConfState;

    impl<V, L> From<(V, L)> for ConfState
    where
        V: IntoIterator<Item = u64>,
        L: IntoIterator<Item = u64>,
    {
        fn from((voters, learners): (V, L)) -> Self {
            ConfState {
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                ..ConfState::default()
            }
        }
    }
}
