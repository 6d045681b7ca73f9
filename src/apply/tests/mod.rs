//! Tests of the machine: rules one by one, and random histories against a naive model. Here is what
//! they share: a machine in memory and short words for requests.

mod auth;
mod cluster;
mod compaction;
mod entries;
mod hash;
mod kv;
mod load;
mod model;
mod size;

use super::*;
use crate::mvcc::CompactProgress;
use crate::mvcc::backend::{Backend as _, Bucket, MemBackend};
use crate::pb::mvccpb::KeyValue;
use prost::Message;
use rpc::request_op::Request;
use std::sync::Arc;

struct World {
    backend: Arc<MemBackend>,
    machine: Machine,
    index: u64,
}

impl World {
    fn new() -> Self {
        let backend = Arc::new(MemBackend::default());
        let machine = Machine::open(backend.clone(), Options::default()).unwrap();
        Self { backend, machine, index: 0 }
    }

    fn reopen(&mut self) {
        self.machine.flush_position();
        self.machine = Machine::open(self.backend.clone(), Options::default()).unwrap();
        assert_eq!(self.machine.position().0, self.index);
    }

    fn apply(&mut self, request: rpc::InternalRaftRequest) -> Applied {
        self.index += 1;
        self.machine.apply(self.index, 1, &request)
    }

    fn put(&mut self, r: rpc::PutRequest) -> Result<rpc::PutResponse> {
        match self.apply(rpc::InternalRaftRequest { put: Some(r), ..Default::default() }).result? {
            Reply::Put(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, r: rpc::DeleteRangeRequest) -> Result<rpc::DeleteRangeResponse> {
        let request = rpc::InternalRaftRequest { delete_range: Some(r), ..Default::default() };
        match self.apply(request).result? {
            Reply::DeleteRange(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn txn(&mut self, r: rpc::TxnRequest) -> Result<rpc::TxnResponse> {
        match self.apply(rpc::InternalRaftRequest { txn: Some(r), ..Default::default() }).result? {
            Reply::Txn(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn compact(&mut self, revision: i64) -> Result<Reply> {
        let compaction = Some(rpc::CompactionRequest { revision, physical: false });
        self.apply(rpc::InternalRaftRequest { compaction, ..Default::default() }).result
    }

    fn compact_all(&mut self, limit: usize) {
        while self.machine.compact_step(limit).unwrap() == CompactProgress::More {}
    }

    /// Revisions of the rows in bucket Key.
    fn rows(&self) -> Vec<(i64, i64)> {
        let mut rows = Vec::new();
        let number = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().unwrap());
        self.backend
            .scan(Bucket::Key, &[], None, &mut |key, _| {
                rows.push((number(&key[..8]), number(&key[9..17])));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Applied {
        let lease_grant = Some(rpc::LeaseGrantRequest { id, ttl });
        self.apply(rpc::InternalRaftRequest { lease_grant, ..Default::default() })
    }

    fn revoke(&mut self, id: i64) -> Applied {
        let lease_revoke = Some(rpc::LeaseRevokeRequest { id });
        self.apply(rpc::InternalRaftRequest { lease_revoke, ..Default::default() })
    }

    fn alarm(&mut self, action: i32, member_id: u64, alarm: i32) -> rpc::AlarmResponse {
        let alarm = Some(rpc::AlarmRequest { action, member_id, alarm });
        match self.apply(rpc::InternalRaftRequest { alarm, ..Default::default() }).result {
            Ok(Reply::Alarm(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn get(&self, key: &str) -> Option<KeyValue> {
        let answer = self.machine.reader().range(&range(key, "")).unwrap();
        answer.kvs.first().map(|row| KeyValue::decode(row.clone()).unwrap())
    }

    fn hash(&self, revision: i64) -> Result<(u32, i64)> {
        let (hash, _, compacted) = self.machine.reader().hash_kv(revision)?;
        Ok((hash, compacted))
    }
}

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn put(key: &str, value: &str) -> rpc::PutRequest {
    rpc::PutRequest { key: b(key), value: b(value), ..Default::default() }
}

fn del(key: &str, range_end: &str) -> rpc::DeleteRangeRequest {
    rpc::DeleteRangeRequest { key: b(key), range_end: b(range_end), ..Default::default() }
}

fn range(key: &str, range_end: &str) -> rpc::RangeRequest {
    rpc::RangeRequest { key: b(key), range_end: b(range_end), ..Default::default() }
}

fn op(request: Request) -> rpc::RequestOp {
    rpc::RequestOp { request: Some(request) }
}

fn revision(header: &Option<rpc::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}
