//! Put, delete range, lease revokes and transactions.

use super::*;
use crate::base::error::Error;
use rpc::response_op::Response;

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

/// The counts are those of etcd 3.5.17's `etcd_mvcc_*_total` after the same requests.
#[test]
fn operations_are_counted_as_in_etcd() {
    let mut w = World::new();
    let counts = |w: &World| {
        let reader = w.machine.reader();
        (reader.counts().ranges(), reader.counts().txns())
    };
    let compare = |target: rpc::compare::CompareTarget, result: rpc::compare::CompareResult| {
        let (target, result) = (target as i32, result as i32);
        rpc::Compare { key: b("k1"), target, result, ..Default::default() }
    };
    let exists = compare(rpc::compare::CompareTarget::Mod, rpc::compare::CompareResult::Greater);
    w.put(put("k1", "v")).unwrap();
    w.put(rpc::PutRequest { prev_kv: true, ..put("k1", "v") }).unwrap();
    assert_eq!(counts(&w), (1, 1));
    w.delete(rpc::DeleteRangeRequest { prev_kv: true, ..del("k1", "") }).unwrap();
    assert_eq!(counts(&w), (2, 2));
    w.put(put("k1", "vv")).unwrap();
    let success =
        vec![op(Request::RequestPut(put("k1", "a"))), op(Request::RequestRange(range("k1", "")))];
    let twice = vec![exists.clone(), exists.clone()];
    w.txn(rpc::TxnRequest { compare: twice, success, ..Default::default() }).unwrap();
    assert_eq!(counts(&w), (5, 4));
    let gets = ["k1", "k4"].map(|key| op(Request::RequestRange(range(key, "")))).into();
    let reads = rpc::TxnRequest { compare: vec![exists], success: gets, ..Default::default() };
    txn_readonly(&w.machine.reader(), &reads).unwrap();
    assert_eq!(counts(&w), (8, 5));
    w.compact(3).unwrap();
    assert_eq!(counts(&w), (9, 5));
    let reader = w.machine.reader();
    let old = rpc::RangeRequest { revision: 2, ..range("k1", "") };
    assert_eq!(reader.range(&old), Err(Error::Compacted));
    assert_eq!((reader.counts().ranges(), reader.counts().puts()), (10, 4));
    assert_eq!((reader.counts().deletes(), reader.counts().keys()), (1, 1));
    assert_eq!(reader.counts().put_bytes(), 3 + 3 + 4 + 3);
}
