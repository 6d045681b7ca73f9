//! The replicated machine: a committed entry in, a reply and effects out. Deterministic: the same
//! entries give the same state on every member.
//! Uses: auth, base, cluster, lease, mvcc, pb

use crate::base::error::Result;
use crate::base::ids::LeaseId;
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use prost::Message as _;

mod alarm;
mod auth;
mod check;
mod cluster;
mod compact;
pub mod describe;
mod kv;
mod lease;
mod machine;
mod payload;
mod quota;
mod readonly;
mod size;
#[cfg(test)]
mod tests;
mod txn;

pub use auth::{AuthReply, TokenChange, permit_lease, permit_txn};
pub use check::{LEASE_COST, put_cost, txn_cost};
pub use cluster::{conf_change_rows, v2_rows, v3_rows};
pub use machine::{Machine, Options, Row};
pub use payload::{Payload, payload};
pub use quota::{DEFAULT as QUOTA_BYTES_DEFAULT, QuotaReader};
pub use readonly::txn_readonly;

/// The answer to the one who proposed the entry. Headers hold the revision only; the edge fills in
/// cluster, member and term.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Range(rpc::RangeResponse),
    Put(rpc::PutResponse),
    DeleteRange(rpc::DeleteRangeResponse),
    Txn(rpc::TxnResponse),
    Compaction(rpc::CompactionResponse),
    LeaseGrant(rpc::LeaseGrantResponse),
    LeaseRevoke(rpc::LeaseRevokeResponse),
    LeaseCheckpoint(rpc::LeaseCheckpointResponse),
    Alarm(rpc::AlarmResponse),
    Auth(AuthReply),
    /// The members after a change of them.
    Members(Vec<rpc::Member>),
    /// An entry that has nothing to say: attributes, cluster version, an empty entry.
    Empty,
}

impl Reply {
    /// Bytes of the answer on the wire, before the edge fills in the rest of its header.
    pub fn encoded_len(&self) -> usize {
        match self {
            Reply::Range(response) => response.encoded_len(),
            Reply::Put(response) => response.encoded_len(),
            Reply::DeleteRange(response) => response.encoded_len(),
            Reply::Txn(response) => response.encoded_len(),
            Reply::Compaction(response) => response.encoded_len(),
            Reply::LeaseGrant(response) => response.encoded_len(),
            Reply::LeaseRevoke(response) => response.encoded_len(),
            Reply::LeaseCheckpoint(response) => response.encoded_len(),
            Reply::Alarm(response) => response.encoded_len(),
            Reply::Auth(reply) => reply.encoded_len(),
            Reply::Members(members) => members.iter().map(prost::Message::encoded_len).sum(),
            Reply::Empty => 0,
        }
    }
}

/// One change, as watchers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The user key.
    pub key: Bytes,
    /// Whether the key was deleted.
    pub delete: bool,
    /// Encoded `mvccpb.KeyValue`; for a delete it holds key and mod_revision only.
    pub kv: Bytes,
    /// Revision of the transaction.
    pub mod_revision: i64,
}

/// What the world has to do because an entry was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The store moved to `revision`; the events are in order.
    Events { revision: i64, events: Vec<Event> },
    /// A lease was granted with this TTL in seconds.
    LeaseGranted { id: LeaseId, ttl: i64 },
    /// A lease is gone.
    LeaseRevoked { id: LeaseId },
    /// A lease's remaining TTL was checkpointed, in seconds.
    LeaseCheckpointed { id: LeaseId, remaining_ttl: i64 },
    /// There is something to compact up to this revision.
    CompactionScheduled { revision: i64 },
    /// An alarm was raised or cleared.
    AlarmsChanged,
    /// Users, roles or whether authentication is enabled changed.
    AuthChanged,
    /// Tokens came or went.
    Tokens(TokenChange),
}

/// What applying one entry gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// For the proposer.
    pub result: Result<Reply>,
    /// For everyone else.
    pub effects: Vec<Effect>,
}
