//! HashKV of histories whose hashes etcd gave.

use super::*;
use crate::base::error::Error;

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
