//! Tests of the machine: rules one by one, and random histories against a naive model.

use super::*;
use crate::base::error::Error;
use crate::mvcc::CompactProgress;
use crate::mvcc::backend::{Backend, BackendError, Batch, Bucket, MemBackend};
use crate::pb::mvccpb::KeyValue;
use prost::Message;
use rpc::request_op::Request;
use rpc::response_op::Response;
use std::collections::BTreeMap;
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

/// The hashes and compact revisions are those that `etcdctl endpoint hashkv` of etcd 3.5.17 gave
/// for the same history.
#[test]
fn hash_kv_is_that_of_etcd() {
    for limit in [1, 3, 1000] {
        let mut w = World::new();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("a/1", "x")] {
            w.put(put(key, value)).unwrap();
        }
        w.txn(rpc::TxnRequest::default()).unwrap();
        w.delete(del("b", "")).unwrap();
        assert_eq!(w.delete(del("a", "b")).unwrap().deleted, 2);
        w.put(put("a", "again")).unwrap();
        w.put(put("b", "again")).unwrap();
        w.grant(77, 100).result.unwrap();
        for (at, hash) in [(0, 749873730), (3, 1827592406), (6, 2310879565), (7, 1049297470)] {
            assert_eq!(w.hash(at), Ok((hash, -1)), "at {at}");
        }
        w.compact(7).unwrap();
        // An unfinished compaction gives what a finished one gives.
        assert_eq!(w.hash(8), Ok((1987511623, 7)));
        w.compact_all(limit);
        for (at, hash) in
            [(0, (988144164, 7)), (7, (1049297470, -1)), (8, (1987511623, 7)), (9, (988144164, 7))]
        {
            assert_eq!(w.hash(at), Ok(hash), "at {at}");
        }
        assert_eq!(w.hash(6), Err(Error::Compacted));
        w.put(put("c", "5")).unwrap();
        assert_eq!(w.delete(del("d", "")).unwrap().deleted, 0);
        w.compact(9).unwrap();
        w.compact_all(limit);
        for (at, hash) in [(0, (2891587690, 9)), (9, (988144164, 7)), (10, (2891587690, 9))] {
            assert_eq!(w.hash(at), Ok(hash), "at {at}");
        }
        assert_eq!(w.hash(11), Err(Error::FutureRev));
        w.reopen();
        assert_eq!(w.hash(10), Ok((2891587690, 9)));
    }
}

/// As above, with a transaction of several changes and a compaction below live versions.
#[test]
fn hash_kv_of_transactions_is_that_of_etcd() {
    for limit in [1, 2, 1000] {
        let mut w = World::new();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("a/1", "x")] {
            w.put(put(key, value)).unwrap();
        }
        let success = vec![
            op(Request::RequestPut(put("c", "4"))),
            op(Request::RequestPut(put("d", "5"))),
            op(Request::RequestDeleteRange(del("b", ""))),
        ];
        w.txn(rpc::TxnRequest { success, ..Default::default() }).unwrap();
        w.delete(del("b", "")).unwrap();
        w.delete(del("a", "b")).unwrap();
        w.put(put("a", "again")).unwrap();
        w.put(put("b", "again")).unwrap();
        for (at, hash) in [(0, 1811664512), (6, 1204396513), (7, 268905090), (8, 3408550677)] {
            assert_eq!(w.hash(at), Ok((hash, -1)), "at {at}");
        }
        w.compact(8).unwrap();
        w.compact_all(limit);
        for (at, hash) in [(0, (3211380362, 8)), (8, (3408550677, -1)), (9, (3211380362, 8))] {
            assert_eq!(w.hash(at), Ok(hash), "at {at}");
        }
        w.put(put("c", "5")).unwrap();
        w.delete(del("d", "")).unwrap();
        assert_eq!(w.compact(6), Err(Error::Compacted));
        w.compact(10).unwrap();
        w.compact_all(limit);
        for (at, hash) in [(0, (473187592, 10)), (10, (2128723170, 8)), (11, (473187592, 10))] {
            assert_eq!(w.hash(at), Ok(hash), "at {at}");
        }
        w.reopen();
        assert_eq!(w.hash(11), Ok((473187592, 10)));
    }
}

#[test]
fn put_counts_versions_and_gives_what_was_there() {
    let mut w = World::new();
    let first = w.put(rpc::PutRequest { prev_kv: true, ..put("k", "1") }).unwrap();
    assert_eq!((revision(&first.header), first.prev_kv.len()), (2, 0));
    let second = w.put(rpc::PutRequest { prev_kv: true, ..put("k", "2") }).unwrap();
    assert_eq!(KeyValue::decode(second.prev_kv).unwrap().value, "1");
    let kv = w.get("k").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    w.delete(del("k", "")).unwrap();
    w.put(put("k", "3")).unwrap();
    let kv = w.get("k").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn put_can_leave_value_or_lease_as_they_are() {
    let mut w = World::new();
    let ignore = rpc::PutRequest { ignore_value: true, ..put("k", "") };
    assert_eq!(w.put(ignore.clone()), Err(Error::KeyNotFound));
    assert_eq!(w.put(rpc::PutRequest { lease: 9, ..put("k", "v") }), Err(Error::LeaseNotFound));
    w.grant(9, 60).result.unwrap();
    w.put(rpc::PutRequest { lease: 9, ..put("k", "v") }).unwrap();
    w.put(rpc::PutRequest { ignore_lease: true, ..put("k", "w") }).unwrap();
    assert_eq!(w.get("k").map(|kv| (kv.value, kv.lease)), Some((b("w"), 9)));
    assert_eq!(w.machine.lease_reader().keys(LeaseId(9)), ["k"]);
    w.put(ignore).unwrap();
    assert_eq!(w.get("k").map(|kv| (kv.value, kv.lease)), Some((b("w"), 0)));
    assert!(w.machine.lease_reader().keys(LeaseId(9)).is_empty());
    assert_eq!(w.machine.reader().lease_of(b"k"), Ok(LeaseId(0)));
}

#[test]
fn revoke_deletes_the_keys_in_order_in_one_transaction() {
    let mut w = World::new();
    let granted = w.grant(9, 1);
    assert_eq!(granted.effects, [Effect::LeaseGranted { id: LeaseId(9), ttl: 2 }]);
    for key in ["z", "a", "m"] {
        w.put(rpc::PutRequest { lease: 9, ..put(key, "v") }).unwrap();
    }
    w.put(put("m", "free")).unwrap();
    w.reopen();
    let revoked = w.revoke(9);
    let Ok(Reply::LeaseRevoke(reply)) = revoked.result else { panic!() };
    assert_eq!(revision(&reply.header), 6);
    let [Effect::Events { revision: 6, events }, Effect::LeaseRevoked { id: LeaseId(9) }] =
        revoked.effects.as_slice()
    else {
        panic!("{:?}", revoked.effects)
    };
    let keys: Vec<_> = events.iter().map(|e| (e.key.clone(), e.delete)).collect();
    assert_eq!(keys, [(b("a"), true), (b("z"), true)]);
    let kv = KeyValue { key: b("a"), mod_revision: 6, ..Default::default() };
    assert_eq!(events[0].kv, kv.encode_to_vec());
    assert_eq!(w.revoke(9).result, Err(Error::LeaseNotFound));
    assert_eq!(w.machine.reader().revision(), 6);
    assert!(w.get("m").is_some() && w.get("a").is_none());
    w.reopen();
    assert!(w.machine.lease_reader().list().is_empty());
}

#[test]
fn txn_reads_its_own_writes_and_has_one_revision() {
    let mut w = World::new();
    w.put(put("a", "1")).unwrap();
    let nested = rpc::TxnRequest {
        compare: vec![rpc::Compare {
            key: b("new"),
            result: rpc::compare::CompareResult::Greater as i32,
            target: rpc::compare::CompareTarget::Create as i32,
            ..Default::default()
        }],
        success: vec![op(Request::RequestPut(put("never", "")))],
        failure: vec![op(Request::RequestDeleteRange(del("a", "b")))],
    };
    let reply = w
        .txn(rpc::TxnRequest {
            compare: vec![],
            success: vec![
                op(Request::RequestRange(range("a", "\0"))),
                op(Request::RequestPut(put("new", "x"))),
                // Compares look at the state before the transaction.
                op(Request::RequestTxn(nested)),
                op(Request::RequestRange(range("a", "\0"))),
            ],
            failure: vec![],
        })
        .unwrap();
    assert_eq!((revision(&reply.header), reply.succeeded), (3, true));
    let [first, second, third, last] = reply.responses.as_slice() else { panic!() };
    let (
        Some(Response::ResponseRange(before)),
        Some(Response::ResponsePut(put)),
        Some(Response::ResponseTxn(nested)),
        Some(Response::ResponseRange(after)),
    ) = (&first.response, &second.response, &third.response, &last.response)
    else {
        panic!()
    };
    assert_eq!((revision(&before.header), before.count), (2, 1));
    assert_eq!(revision(&put.header), 3);
    assert_eq!((revision(&nested.header), nested.succeeded), (0, false));
    let Some(Response::ResponseDeleteRange(deleted)) = &nested.responses[0].response else {
        panic!()
    };
    assert_eq!((revision(&deleted.header), deleted.deleted), (3, 1));
    assert_eq!((revision(&after.header), after.count), (3, 1));
    assert_eq!(KeyValue::decode(after.kvs[0].clone()).unwrap().key, "new");
    // One that deletes nothing has no revision.
    let txn = rpc::TxnRequest {
        success: vec![op(Request::RequestDeleteRange(del("x", "z")))],
        ..Default::default()
    };
    assert_eq!(revision(&w.txn(txn).unwrap().header), 3);
}

#[test]
fn a_failing_txn_changes_nothing() {
    let mut w = World::new();
    w.put(put("a", "1")).unwrap();
    w.compact(2).unwrap();
    let before = w.hash(0);
    let txn = |ops: Vec<Request>| rpc::TxnRequest {
        success: ops.into_iter().map(op).collect(),
        ..Default::default()
    };
    let write = || Request::RequestPut(put("b", "2"));
    let ignore = |key| Request::RequestPut(rpc::PutRequest { ignore_value: true, ..put(key, "") });
    let at = |revision| Request::RequestRange(rpc::RangeRequest { revision, ..range("a", "") });
    let lease = Request::RequestPut(rpc::PutRequest { lease: 5, ..put("a", "") });
    for (ops, error) in [
        (vec![write(), ignore("none")], Error::KeyNotFound),
        (vec![write(), lease], Error::LeaseNotFound),
        (vec![write(), at(3)], Error::FutureRev),
        (vec![write(), at(1)], Error::Compacted),
        (vec![write(), at(1), ignore("none")], Error::KeyNotFound),
        (
            vec![write(), write(), Request::RequestDeleteRange(del("a", "")), ignore("a")],
            Error::KeyNotFound,
        ),
    ] {
        assert_eq!(w.txn(txn(ops)), Err(error));
        assert_eq!((w.get("a").is_some(), w.get("b").is_some()), (true, false));
        assert_eq!(w.hash(0), before);
    }
    assert_eq!(revision(&w.put(put("b", "2")).unwrap().header), 3);
    w.reopen();
    assert_eq!(w.machine.reader().revision(), 3);
}

#[test]
fn compares_follow_etcd() {
    use rpc::compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let mut w = World::new();
    w.grant(4, 60).result.unwrap();
    w.put(rpc::PutRequest { lease: 4, ..put("a", "1") }).unwrap();
    w.put(put("b", "2")).unwrap();
    w.put(put("b", "2")).unwrap();
    let cases = [
        ("a", "", T::Value, R::Equal, Some(U::Value(b("1"))), true),
        ("a", "", T::Value, R::Less, Some(U::Value(b("2"))), true),
        ("a", "c", T::Value, R::Less, Some(U::Value(b("2"))), false),
        ("a", "\0", T::Create, R::Greater, Some(U::CreateRevision(0)), true),
        ("b", "", T::Mod, R::Equal, Some(U::ModRevision(4)), true),
        ("b", "", T::Version, R::NotEqual, Some(U::Version(2)), false),
        ("a", "", T::Lease, R::Equal, Some(U::Lease(4)), true),
        ("none", "", T::Value, R::NotEqual, Some(U::Value(b("1"))), false),
        ("none", "", T::Value, R::Equal, None, false),
        ("none", "", T::Create, R::Equal, Some(U::CreateRevision(0)), true),
        ("none", "", T::Version, R::Less, Some(U::Version(1)), true),
        ("none", "", T::Lease, R::Equal, Some(U::Lease(0)), true),
        ("a", "", T::Create, R::Equal, None, false),
    ];
    for (key, end, target, result, target_union, holds) in cases {
        let compare = rpc::Compare {
            key: b(key),
            range_end: b(end),
            target: target as i32,
            result: result as i32,
            target_union,
        };
        let txn = rpc::TxnRequest { compare: vec![compare.clone()], ..Default::default() };
        assert_eq!(w.txn(txn).unwrap().succeeded, holds, "{compare:?}");
    }
}

#[test]
fn compaction_bounds() {
    let mut w = World::new();
    assert_eq!(w.machine.reader().compact_revision(), -1);
    w.put(put("a", "1")).unwrap();
    w.put(put("a", "2")).unwrap();
    assert_eq!(w.compact(4), Err(Error::FutureRev));
    w.compact(3).unwrap();
    assert_eq!(w.compact(3), Err(Error::Compacted));
    let reader = w.machine.reader();
    let at = |revision| reader.range(&rpc::RangeRequest { revision, ..range("a", "") });
    assert_eq!(at(2), Err(Error::Compacted));
    assert_eq!(at(4), Err(Error::FutureRev));
    assert_eq!(at(3).unwrap().count, 1);
    // Not finished: the next start goes on with it.
    assert_eq!(w.machine.compaction_pending(), Some(3));
    w.reopen();
    assert_eq!(w.machine.reader().compact_revision(), 3);
    assert_eq!(w.machine.compaction_pending(), Some(3));
    w.compact_all(1);
    assert_eq!((w.machine.compaction_pending(), w.machine.finished_compact_revision()), (None, 3));
    let mut rows = 0;
    w.backend
        .scan(Bucket::Key, &[], None, &mut |_, _| {
            rows += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 1);
}

#[test]
fn a_tombstone_at_the_compact_revision_keeps_the_revision_alive() {
    let mut w = World::new();
    w.put(put("a", "1")).unwrap();
    w.delete(del("a", "")).unwrap();
    w.compact(3).unwrap();
    w.compact_all(10);
    w.reopen();
    assert_eq!(w.machine.reader().revision(), 3);
    assert_eq!(revision(&w.put(put("a", "1")).unwrap().header), 4);
    assert_eq!(w.get("a").map(|kv| kv.version), Some(1));
}

#[test]
fn a_hole_in_the_revisions_is_damage() {
    let mut w = World::new();
    for value in ["1", "2", "3"] {
        w.put(put("a", value)).unwrap();
    }
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&3i64.to_be_bytes());
    key[9..].copy_from_slice(&0i64.to_be_bytes());
    let ops = vec![(Bucket::Key, Bytes::copy_from_slice(&key), None)];
    w.backend.submit(Batch { ops, ..Batch::default() });
    let error = Machine::open(w.backend.clone(), Options::default()).unwrap_err();
    assert!(error.to_string().contains("hole"), "{error}");
    // A lost row of old is met when it is read.
    let at = rpc::RangeRequest { revision: 3, ..range("a", "") };
    assert_eq!(w.machine.reader().range(&at), Err(Error::Corrupt));
}

#[test]
fn alarms_close_the_gates() {
    let (activate, deactivate) = (1, 2);
    let mut w = World::new();
    w.grant(1, 60).result.unwrap();
    assert!(w.alarm(activate, 7, 0).alarms.is_empty());
    assert_eq!(w.alarm(activate, 7, 1).alarms.len(), 1);
    assert_eq!(w.put(put("a", "")), Err(Error::NoSpace));
    assert_eq!(w.grant(2, 60).result, Err(Error::NoSpace));
    let txn = |request| rpc::TxnRequest { success: vec![op(request)], ..Default::default() };
    assert_eq!(w.txn(txn(Request::RequestPut(put("a", "")))), Err(Error::NoSpace));
    assert!(w.txn(txn(Request::RequestDeleteRange(del("a", "")))).is_ok());
    assert!(w.revoke(1).result.is_ok());
    w.reopen();
    assert_eq!(w.put(put("a", "")), Err(Error::NoSpace));
    assert_eq!(w.alarm(activate, 8, 2).alarms.len(), 1);
    assert_eq!(w.alarm(0, 0, 0).alarms.len(), 2);
    assert_eq!(w.put(put("a", "")), Err(Error::Corrupt));
    assert_eq!(w.delete(del("a", "")), Err(Error::Corrupt));
    assert_eq!(w.compact(1), Err(Error::Corrupt));
    assert_eq!(w.alarm(deactivate, 8, 2).alarms.len(), 1);
    assert!(w.alarm(deactivate, 8, 2).alarms.is_empty());
    w.alarm(deactivate, 7, 1);
    assert!(w.put(put("a", "")).is_ok());
    assert_eq!(w.machine.alarms(), []);
}

#[test]
fn beyond_the_quota_an_entry_is_applied_but_answered_with_no_space() {
    let mut w = World::new();
    let options = Options { quota_bytes: 1000, ..Options::default() };
    w.machine = Machine::open(w.backend.clone(), options).unwrap();
    assert!(w.put(put("a", "1")).is_ok());
    assert_eq!(w.put(put("b", &"x".repeat(900))), Err(Error::NoSpace));
    assert!(w.get("b").is_some());
    assert!(w.delete(del("b", "")).is_ok());
}

#[test]
fn an_entry_is_applied_once_and_others_move_the_position() {
    let mut w = World::new();
    w.put(put("a", "1")).unwrap();
    let again = rpc::InternalRaftRequest { put: Some(put("a", "2")), ..Default::default() };
    assert_eq!(w.machine.apply(1, 1, &again).result, Ok(Reply::Empty));
    w.machine.skip(2, 3);
    assert_eq!((w.machine.position(), w.backend.position()), ((2, 3), (1, 1)));
    w.machine.flush_position();
    assert_eq!(w.backend.position(), (2, 3));
    let auth = rpc::InternalRaftRequest {
        auth_enable: Some(rpc::AuthEnableRequest::default()),
        ..Default::default()
    };
    w.index = 2;
    assert_eq!(w.apply(auth).result, Err(Error::NotImplemented));
    assert_eq!(w.apply(rpc::InternalRaftRequest::default()).result, Ok(Reply::Empty));
    assert_eq!(w.machine.position(), (4, 1));
    assert_eq!(w.get("a").map(|kv| kv.value), Some(b("1")));
}

#[test]
fn rows_leave_the_index_when_the_budget_ends() {
    let mut w = World::new();
    w.machine.set_row_bytes_max(100);
    for i in 0..50 {
        w.put(put(&format!("k{i:02}"), "0123456789")).unwrap();
        w.put(put("big", &"x".repeat(200))).unwrap();
    }
    let all = w.machine.reader().range(&range("\0", "\0")).unwrap();
    assert_eq!(all.kvs.len(), 51);
    for row in &all.kvs[1..] {
        assert_eq!(KeyValue::decode(row.clone()).unwrap().value, "0123456789");
    }
}

/// Small, seeded, good enough.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn key(&mut self) -> String {
        let len = 1 + self.below(2);
        (0..len).map(|_| char::from(b'a' + self.below(5) as u8)).collect()
    }

    fn end(&mut self) -> String {
        match self.below(4) {
            0 => String::new(),
            1 => "\0".into(),
            _ => self.key(),
        }
    }
}

/// Every revision's whole state.
struct Model {
    states: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
    compacted: i64,
}

impl Model {
    fn revision(&self) -> i64 {
        *self.states.keys().next_back().unwrap()
    }

    fn now(&self) -> BTreeMap<Bytes, KeyValue> {
        self.states[&self.revision()].clone()
    }

    fn put(state: &mut BTreeMap<Bytes, KeyValue>, main: i64, key: &Bytes, value: &Bytes) {
        let old = state.get(key);
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: old.map_or(main, |kv| kv.create_revision),
            mod_revision: main,
            version: old.map_or(1, |kv| kv.version + 1),
            lease: 0,
        };
        state.insert(key.clone(), kv);
    }

    fn covers(key: &Bytes, end: &Bytes, candidate: &Bytes) -> bool {
        match end.as_ref() {
            [] => candidate == key,
            [0] => candidate >= key,
            _ => candidate >= key && candidate < end,
        }
    }

    fn range(&self, r: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        let current = self.revision();
        if r.revision > current {
            return Err(Error::FutureRev);
        }
        let at = if r.revision > 0 { r.revision } else { current };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        let mut kvs: Vec<KeyValue> = self.states[&at]
            .values()
            .filter(|kv| Self::covers(&r.key, &r.range_end, &kv.key))
            .cloned()
            .collect();
        let count = kvs.len() as i64;
        if r.count_only {
            kvs.clear();
        }
        let lifted = r.sort_order != 0
            || [
                r.min_mod_revision,
                r.max_mod_revision,
                r.min_create_revision,
                r.max_create_revision,
            ] != [0; 4];
        if r.limit > 0 && !lifted {
            kvs.truncate(r.limit as usize + 1);
        }
        kvs.retain(|kv| {
            (r.min_mod_revision == 0 || kv.mod_revision >= r.min_mod_revision)
                && (r.max_mod_revision == 0 || kv.mod_revision <= r.max_mod_revision)
                && (r.min_create_revision == 0 || kv.create_revision >= r.min_create_revision)
                && (r.max_create_revision == 0 || kv.create_revision <= r.max_create_revision)
        });
        if r.sort_order != 0 || r.sort_target != 0 {
            kvs.sort_by(|a, b| {
                let order = match r.sort_target {
                    0 => a.key.cmp(&b.key),
                    1 => a.version.cmp(&b.version),
                    2 => a.create_revision.cmp(&b.create_revision),
                    3 => a.mod_revision.cmp(&b.mod_revision),
                    _ => a.value.cmp(&b.value),
                };
                if r.sort_order == 2 { order.reverse() } else { order }
            });
        }
        let more = r.limit > 0 && kvs.len() > r.limit as usize;
        if more {
            kvs.truncate(r.limit as usize);
        }
        if r.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let kvs = kvs.iter().map(|kv| kv.encode_to_vec().into()).collect();
        let header = Some(rpc::ResponseHeader { revision: current, ..Default::default() });
        Ok(rpc::RangeResponse { header, kvs, more, count })
    }
}

fn random_range(random: &mut Random, current: i64) -> rpc::RangeRequest {
    let sometimes = |random: &mut Random, bound: u64| match random.below(4) {
        0 => random.below(bound) as i64,
        _ => 0,
    };
    let span = current as u64 + 3;
    rpc::RangeRequest {
        key: random.key().into(),
        range_end: random.end().into(),
        limit: sometimes(random, 8) - i64::from(random.below(10) == 0),
        revision: if random.below(2) == 0 { 0 } else { random.below(span) as i64 - 1 },
        sort_order: sometimes(random, 3) as i32,
        sort_target: sometimes(random, 5) as i32,
        keys_only: random.below(5) == 0,
        count_only: random.below(8) == 0,
        min_mod_revision: sometimes(random, span),
        max_mod_revision: sometimes(random, span),
        min_create_revision: sometimes(random, span),
        max_create_revision: sometimes(random, span),
        ..Default::default()
    }
}

#[test]
fn random_histories_answer_as_the_model() {
    for seed in 1..=24u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut w = World::new();
        if seed % 2 == 0 {
            w.machine.set_row_bytes_max(200);
        }
        let mut model = Model { states: BTreeMap::from([(1, BTreeMap::new())]), compacted: -1 };
        for step in 0..300 {
            let main = model.revision() + 1;
            let mut state = model.now();
            match random.below(20) {
                0..9 => {
                    let r = rpc::PutRequest {
                        prev_kv: random.below(2) == 0,
                        ..put(&random.key(), &format!("v{}", random.below(50)))
                    };
                    let prev = state.get(&r.key).map(Message::encode_to_vec).unwrap_or_default();
                    Model::put(&mut state, main, &r.key, &r.value);
                    model.states.insert(main, state);
                    let reply = w.put(r.clone()).unwrap();
                    assert_eq!(revision(&reply.header), main);
                    assert_eq!(reply.prev_kv, if r.prev_kv { prev } else { Vec::new() });
                }
                9..13 => {
                    let r = rpc::DeleteRangeRequest {
                        prev_kv: true,
                        ..del(&random.key(), &random.end())
                    };
                    let before = state.len();
                    state.retain(|key, _| !Model::covers(&r.key, &r.range_end, key));
                    let deleted = (before - state.len()) as i64;
                    if deleted > 0 {
                        model.states.insert(main, state);
                    }
                    let reply = w.delete(r).unwrap();
                    assert_eq!((reply.deleted, reply.prev_kvs.len() as i64), (deleted, deleted));
                    assert_eq!(revision(&reply.header), model.revision());
                }
                13..16 => {
                    let mut ops = Vec::new();
                    let mut changed = false;
                    for _ in 0..random.below(5) {
                        if random.below(3) == 0 {
                            let r = del(&random.key(), &random.end());
                            let before = state.len();
                            state.retain(|key, _| !Model::covers(&r.key, &r.range_end, key));
                            changed |= before != state.len();
                            ops.push(op(Request::RequestDeleteRange(r)));
                        } else {
                            let r = put(&random.key(), &format!("t{}", random.below(9)));
                            Model::put(&mut state, main, &r.key, &r.value);
                            changed = true;
                            ops.push(op(Request::RequestPut(r)));
                        }
                    }
                    // Sometimes the last request fails, and nothing may have happened.
                    let fails = random.below(4) == 0;
                    if fails {
                        ops.push(op(Request::RequestPut(rpc::PutRequest {
                            ignore_lease: true,
                            ..put("absent", "")
                        })));
                    }
                    let reply = w.txn(rpc::TxnRequest { success: ops, ..Default::default() });
                    if fails {
                        assert_eq!(reply, Err(Error::KeyNotFound));
                    } else {
                        if changed {
                            model.states.insert(main, state);
                        }
                        assert_eq!(revision(&reply.unwrap().header), model.revision());
                    }
                }
                16 => {
                    let at = random.below(main as u64 + 1) as i64;
                    let expected = match at {
                        _ if at <= model.compacted => Some(Error::Compacted),
                        _ if at >= main => Some(Error::FutureRev),
                        _ => None,
                    };
                    assert_eq!(w.compact(at).err(), expected, "compact at {at}");
                    if expected.is_none() {
                        model.compacted = at;
                    }
                }
                17 => {
                    let before: Vec<_> =
                        (model.compacted.max(0)..main).map(|at| w.hash(at)).collect();
                    w.machine.compact_step(1 + random.below(9) as usize).unwrap();
                    let after: Vec<_> =
                        (model.compacted.max(0)..main).map(|at| w.hash(at)).collect();
                    // A finished compaction's own revision answers with the hash from before it; and
                    // where no key is alive, etcd hashes also what is about to go.
                    for (at, (before, after)) in
                        (model.compacted.max(0)..).zip(before.iter().zip(&after))
                    {
                        let own = at == w.machine.finished_compact_revision();
                        let dead = model.states.get(&at.max(1)).is_none_or(BTreeMap::is_empty);
                        assert!(own || dead || before == after, "seed {seed} step {step} at {at}");
                    }
                }
                18 => w.compact_all(1 + random.below(9) as usize),
                _ => {
                    // By its number: a compaction of revision 0 is remembered, as in etcd, and what
                    // is remembered does not outlive a restart.
                    let now = w.machine.reader().revision();
                    let remembered = now == w.machine.finished_compact_revision();
                    let hash = w.hash(now);
                    w.reopen();
                    if seed % 2 == 0 {
                        w.machine.set_row_bytes_max(200);
                    }
                    assert!(remembered || w.hash(now) == hash, "seed {seed} step {step}");
                }
            }
            let reader = w.machine.reader();
            assert_eq!(reader.revision(), model.revision());
            assert_eq!(reader.compact_revision(), model.compacted);
            for _ in 0..6 {
                let r = random_range(&mut random, model.revision());
                assert_eq!(reader.range(&r), model.range(&r), "seed {seed} step {step} {r:?}");
            }
        }
    }
}

/// Not a test of speed: run it in release to see what a put costs.
#[test]
fn a_hundred_thousand_puts() {
    struct Sink;
    impl Backend for Sink {
        fn submit(&self, batch: Batch) {
            std::hint::black_box(&batch);
        }
        fn get(&self, _: Bucket, _: &[u8]) -> std::result::Result<Option<Bytes>, BackendError> {
            Ok(None)
        }
        fn scan(
            &self,
            _: Bucket,
            _: &[u8],
            _: Option<&[u8]>,
            _: &mut dyn FnMut(&[u8], &Bytes) -> std::ops::ControlFlow<()>,
        ) -> std::result::Result<(), BackendError> {
            Ok(())
        }
        fn flush(&self) -> std::result::Result<(), BackendError> {
            Ok(())
        }
        fn position(&self) -> (u64, u64) {
            (0, 0)
        }
        fn size_bytes(&self) -> u64 {
            0
        }
    }
    let mut machine = Machine::open(Arc::new(Sink), Options::default()).unwrap();
    let value = "v".repeat(256);
    let requests: Vec<_> = (0..100_000u64)
        .map(|i| {
            let key = format!("key-{:08}", i.wrapping_mul(0x9E37_79B9) % 50_000);
            rpc::InternalRaftRequest { put: Some(put(&key, &value)), ..Default::default() }
        })
        .collect();
    let begin = std::time::Instant::now();
    for (at, request) in requests.iter().enumerate() {
        assert!(machine.apply(at as u64 + 1, 1, request).result.is_ok());
    }
    println!("{:?} a put", begin.elapsed() / 100_000);
    let begin = std::time::Instant::now();
    let all = machine.reader().range(&range("\0", "\0")).unwrap();
    println!("{} rows in {:?}", all.kvs.len(), begin.elapsed());
}

/// Readers on other threads see whole transactions and never an error.
#[test]
fn readers_race_with_writes_and_compactions() {
    let mut w = World::new();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (w.machine.reader(), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut newest = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let all = reader.range(&range("k", "l")).unwrap();
                    let seen = revision(&all.header);
                    assert!(seen >= newest);
                    newest = seen;
                    let values: Vec<_> = all
                        .kvs
                        .iter()
                        .map(|row| KeyValue::decode(row.clone()).unwrap().value)
                        .collect();
                    assert!(values.is_empty() || values.len() == 4, "{values:?}");
                    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
                    reader.hash_kv(0).unwrap();
                }
            })
        })
        .collect();
    for round in 0..3000u64 {
        let value = round.to_string();
        let ops = match round % 10 {
            9 => vec![op(Request::RequestDeleteRange(del("k", "l")))],
            _ => {
                ["k1", "k2", "k3", "k4"].map(|key| op(Request::RequestPut(put(key, &value)))).into()
            }
        };
        w.txn(rpc::TxnRequest { success: ops, ..Default::default() }).unwrap();
        if round % 50 == 49 {
            w.compact(w.machine.reader().revision() - (round % 3) as i64).unwrap();
        }
        w.machine.compact_step(20).unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}
