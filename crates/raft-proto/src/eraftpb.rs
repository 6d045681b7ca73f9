//! The messages. Field numbers and types are those of etcd's raftpb; the fields that only the
//! crate knows (13 and above on `Message`, 5 and 6 on `Entry`) stay at zero between etcd members.

use bytes::Bytes;

/// Kind of a log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    EntryNormal = 0,
    EntryConfChange = 1,
    EntryConfChangeV2 = 2,
}

/// Kind of a raft message; the numbers are etcd's, the names the crate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
}

/// How a V2 change enters and leaves joint consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    Auto = 0,
    Implicit = 1,
    Explicit = 2,
}

/// Kind of a membership change. etcd's number 2 (UpdateNode) has no variant, because the crate
/// matches exhaustively on these three; see [`crate::CONF_CHANGE_UPDATE_NODE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    AddNode = 0,
    RemoveNode = 1,
    AddLearnerNode = 3,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Entry {
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfState {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Snapshot {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Message {
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(uint64, tag = "3")]
    pub from: u64,
    #[prost(uint64, tag = "4")]
    pub term: u64,
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    #[prost(uint64, tag = "6")]
    pub index: u64,
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    #[prost(bool, tag = "10")]
    pub reject: bool,
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HardState {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfChange {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ConfChangeSingle {
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfChangeV2 {
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// `get_x`, `set_x` and, for owned kinds, `mut_x` and `take_x`, as protobuf 2 would generate them.
macro_rules! accessors {
    ($owner:ty { $(
        $kind:ident $field:ident : $ty:ty, $get:ident $set:ident $($mutate:ident $take:ident)?;
    )* }) => {
        impl $owner { $(accessors!(@$kind $field, $ty, $get, $set $(, $mutate, $take)?);)* }
    };
    (@copy $field:ident, $ty:ty, $get:ident, $set:ident) => {
        pub fn $get(&self) -> $ty { self.$field }
        pub fn $set(&mut self, value: $ty) { self.$field = value; }
    };
    (@owned $field:ident, $ty:ty, $get:ident, $set:ident, $mutate:ident, $take:ident) => {
        pub fn $get(&self) -> &$ty { &self.$field }
        pub fn $set(&mut self, value: $ty) { self.$field = value; }
        pub fn $mutate(&mut self) -> &mut $ty { &mut self.$field }
        pub fn $take(&mut self) -> $ty { std::mem::take(&mut self.$field) }
    };
    (@message $field:ident, $ty:ty, $get:ident, $set:ident, $mutate:ident, $take:ident) => {
        pub fn $get(&self) -> &$ty {
            static EMPTY: std::sync::OnceLock<$ty> = std::sync::OnceLock::new();
            match &self.$field {
                Some(value) => value,
                None => EMPTY.get_or_init(<$ty>::default),
            }
        }
        pub fn $set(&mut self, value: $ty) { self.$field = Some(value); }
        pub fn $mutate(&mut self) -> &mut $ty { self.$field.get_or_insert_with(Default::default) }
        pub fn $take(&mut self) -> $ty { self.$field.take().unwrap_or_default() }
    };
}

accessors!(Entry {
    copy term: u64, get_term set_term;
    copy index: u64, get_index set_index;
    owned data: Bytes, get_data set_data mut_data take_data;
    owned context: Bytes, get_context set_context mut_context take_context;
});
accessors!(ConfState {
    owned voters: Vec<u64>, get_voters set_voters mut_voters take_voters;
    owned learners: Vec<u64>, get_learners set_learners mut_learners take_learners;
    owned voters_outgoing: Vec<u64>,
        get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing;
    owned learners_next: Vec<u64>,
        get_learners_next set_learners_next mut_learners_next take_learners_next;
    copy auto_leave: bool, get_auto_leave set_auto_leave;
});
accessors!(SnapshotMetadata {
    message conf_state: ConfState, get_conf_state set_conf_state mut_conf_state take_conf_state;
    copy index: u64, get_index set_index;
    copy term: u64, get_term set_term;
});
accessors!(Snapshot {
    owned data: Bytes, get_data set_data mut_data take_data;
    message metadata: SnapshotMetadata, get_metadata set_metadata mut_metadata take_metadata;
});
accessors!(Message {
    copy to: u64, get_to set_to;
    copy from: u64, get_from set_from;
    copy term: u64, get_term set_term;
    copy log_term: u64, get_log_term set_log_term;
    copy index: u64, get_index set_index;
    owned entries: Vec<Entry>, get_entries set_entries mut_entries take_entries;
    copy commit: u64, get_commit set_commit;
    message snapshot: Snapshot, get_snapshot set_snapshot mut_snapshot take_snapshot;
    copy reject: bool, get_reject set_reject;
    copy reject_hint: u64, get_reject_hint set_reject_hint;
    owned context: Bytes, get_context set_context mut_context take_context;
    copy request_snapshot: u64, get_request_snapshot set_request_snapshot;
    copy deprecated_priority: u64, get_deprecated_priority set_deprecated_priority;
    copy commit_term: u64, get_commit_term set_commit_term;
    copy priority: i64, get_priority set_priority;
});
accessors!(HardState {
    copy term: u64, get_term set_term;
    copy vote: u64, get_vote set_vote;
    copy commit: u64, get_commit set_commit;
});
accessors!(ConfChange {
    copy id: u64, get_id set_id;
    copy node_id: u64, get_node_id set_node_id;
    owned context: Bytes, get_context set_context mut_context take_context;
});
accessors!(ConfChangeSingle {
    copy node_id: u64, get_node_id set_node_id;
});
accessors!(ConfChangeV2 {
    owned changes: Vec<ConfChangeSingle>, get_changes set_changes mut_changes take_changes;
    owned context: Bytes, get_context set_context mut_context take_context;
});

/// Enum fields: prost derives `x()` and `set_x()`; the crate also calls `get_x()`.
macro_rules! enum_getters {
    ($($owner:ty, $get:ident, $field:ident, $ty:ty;)*) => {
        $(impl $owner { pub fn $get(&self) -> $ty { self.$field() } })*
    };
}

enum_getters! {
    Entry, get_entry_type, entry_type, EntryType;
    Message, get_msg_type, msg_type, MessageType;
    ConfChange, get_change_type, change_type, ConfChangeType;
    ConfChangeSingle, get_change_type, change_type, ConfChangeType;
    ConfChangeV2, get_transition, transition, ConfChangeTransition;
}

impl Message {
    /// Whether a snapshot is attached.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }
}

impl Snapshot {
    /// A snapshot at index 0 is none.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}
