//! Clients: what they ask, and what they wait for. An operation whose answer does not come is one
//! whose outcome is unknown.

use crate::chance::Chance;
use bytes::Bytes;
use prost::Message as _;
use rusd::apply::Reply;
use rusd::base::error::Error;
use rusd::pb::etcdserverpb as rpc;
use std::collections::BTreeMap;

const CLIENTS: u64 = 6;
const KEYS: u64 = 9;
const LEASES: u64 = 6;
/// Operations of a client after the faults are over, so that the end comes to rest.
const LAST_OPERATIONS: u64 = 5;

/// What came of an operation.
pub enum Answer {
    Applied(Result<Reply, Error>),
    Read,
    Renewed,
}

/// An operation under way.
#[derive(Clone, Debug)]
pub struct Op {
    pub client: u64,
    member: u64,
    /// Id in the log; 0 if it is not in the log.
    request: u64,
    pub key: String,
    /// Revision that it must see.
    pub floor: i64,
    /// A lease that was renewed, when, and by whom.
    pub renews: Option<(i64, u64, u64)>,
}

/// What has to be done for an operation.
pub struct Call {
    /// To be proposed; a read if there is none.
    pub data: Option<Bytes>,
    pub renew: Option<i64>,
}

/// See the module.
pub struct Clients {
    chance: Chance,
    ops: BTreeMap<u64, Op>,
    numbers: u64,
    /// The newest revision, of which compactions stay clear.
    newest: i64,
    left: Option<BTreeMap<u64, u64>>,
    answered_at_rest: bool,
}

impl Clients {
    pub fn new(seed: u64) -> Clients {
        Clients {
            chance: Chance::new(seed),
            ops: BTreeMap::new(),
            numbers: 0,
            newest: 1,
            left: None,
            answered_at_rest: false,
        }
    }

    pub fn count(&self) -> u64 {
        CLIENTS
    }

    /// A few more operations of each, and no more.
    pub fn rest(&mut self) {
        self.left = Some((0..CLIENTS).map(|client| (client, LAST_OPERATIONS)).collect());
    }

    /// Whether somebody was answered since.
    pub fn answered_lately(&self) -> bool {
        self.answered_at_rest
    }

    fn key(&mut self) -> String {
        format!("k{}", self.chance.below(KEYS))
    }

    fn lease(&mut self) -> i64 {
        1 + self.chance.below(LEASES) as i64
    }

    /// Something to do at a member, by number; `known` is what a read has to see. `None` if the
    /// client rests.
    pub fn begin(&mut self, client: u64, member: u64, known: i64) -> Option<(u64, Call)> {
        if let Some(left) = &mut self.left {
            let own = left.get_mut(&client).filter(|left| **left > 0)?;
            *own -= 1;
        }
        self.numbers += 1;
        let (number, key) = (self.numbers, self.key());
        let header = rpc::RequestHeader { id: number, ..rpc::RequestHeader::default() };
        let mut request = rpc::InternalRaftRequest {
            header: Some(header),
            ..rpc::InternalRaftRequest::default()
        };
        let mut call = Call { data: None, renew: None };
        let value = || Bytes::from(format!("v{number}"));
        let own_key = Bytes::from(key.clone());
        let mut logged = true;
        match self.chance.below(20) {
            0..=6 => {
                let lease = if self.chance.one_in(4) { self.lease() } else { 0 };
                request.put = Some(rpc::PutRequest {
                    key: own_key,
                    value: value(),
                    lease,
                    ..rpc::PutRequest::default()
                });
            }
            7 => {
                let range_end = if self.chance.one_in(3) { "z" } else { "" }.into();
                request.delete_range = Some(rpc::DeleteRangeRequest {
                    key: own_key,
                    range_end,
                    ..rpc::DeleteRangeRequest::default()
                });
            }
            8 | 9 => request.txn = Some(txn(own_key, value(), self.key().into())),
            10 | 11 => {
                request.lease_grant = Some(rpc::LeaseGrantRequest {
                    id: self.lease(),
                    ttl: 2 + self.chance.below(3) as i64,
                });
            }
            12 if self.chance.one_in(4) => {
                let id = self.lease();
                request.lease_revoke = Some(rpc::LeaseRevokeRequest { id });
            }
            13 if self.chance.one_in(3) => {
                let revision = (self.newest - self.chance.below(40) as i64).max(1);
                request.compaction =
                    Some(rpc::CompactionRequest { revision, ..rpc::CompactionRequest::default() });
            }
            14..=16 => {
                logged = false;
                call.renew = Some(self.lease());
            }
            _ => logged = false,
        }
        if logged {
            call.data = Some(request.encode_to_vec().into());
        }
        let op = Op {
            client,
            member,
            request: if logged { number } else { 0 },
            key,
            floor: known,
            renews: None,
        };
        self.ops.insert(number, op);
        Some((number, call))
    }

    /// An operation became a renewal that a read confirms.
    pub fn renews(&mut self, op: u64, lease: i64, since: u64, member: u64) {
        if let Some(op) = self.ops.get_mut(&op) {
            op.renews = Some((lease, since, member));
            op.member = member;
        }
    }

    pub fn op(&self, op: u64) -> Option<&Op> {
        self.ops.get(&op)
    }

    /// The operation whose entry this is, if it waits at this member.
    pub fn waits_for(&self, request: u64, member: u64) -> Option<u64> {
        self.ops.get(&request).filter(|op| op.request == request && op.member == member)?;
        (request != 0).then_some(request)
    }

    /// An operation is over.
    pub fn end(&mut self, op: u64) -> Option<Op> {
        self.ops.remove(&op)
    }

    /// What a client learns from an answer: a revision.
    pub fn learns(&mut self, _client: u64, reply: &Reply) -> Option<i64> {
        self.answered_at_rest |= self.left.is_some();
        let header = match reply {
            Reply::Put(response) => response.header.as_ref(),
            Reply::DeleteRange(response) => response.header.as_ref(),
            Reply::Txn(response) => response.header.as_ref(),
            _ => None,
        };
        let revision = header?.revision;
        self.newest = self.newest.max(revision);
        Some(revision)
    }

    /// Operations that wait at a member.
    pub fn at(&self, member: u64) -> Vec<u64> {
        self.ops.iter().filter(|(_, op)| op.member == member).map(|(number, _)| *number).collect()
    }
}

/// If the first key is there, another is put and the first deleted; otherwise the first is put.
fn txn(key: Bytes, value: Bytes, other: Bytes) -> rpc::TxnRequest {
    use rpc::compare::{CompareResult, CompareTarget, TargetUnion};
    use rpc::request_op::Request;
    let put = |key: &Bytes| {
        let put = rpc::PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..rpc::PutRequest::default()
        };
        rpc::RequestOp { request: Some(Request::RequestPut(put)) }
    };
    let delete = rpc::DeleteRangeRequest { key: key.clone(), ..rpc::DeleteRangeRequest::default() };
    let mut success = vec![put(&other)];
    if other != key {
        success.push(rpc::RequestOp { request: Some(Request::RequestDeleteRange(delete)) });
    }
    rpc::TxnRequest {
        compare: vec![rpc::Compare {
            result: CompareResult::Greater as i32,
            target: CompareTarget::Version as i32,
            key: key.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::Version(0)),
        }],
        success,
        failure: vec![put(&key)],
    }
}
