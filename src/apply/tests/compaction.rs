//! Compaction, and what may be missing after it.

use super::*;
use crate::base::error::Error;
use crate::mvcc::backend::{Backend, Batch, Bucket};

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
    assert_eq!(w.rows().len(), 1);
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
fn an_interrupted_compaction_leaves_the_deletions_that_a_whole_one_leaves() {
    // Revision 4 deletes "a", deletes "b" and puts it again; all of that is told to a watcher that
    // begins there, wherever a restart comes between.
    for steps in 0..5 {
        let mut w = World::new();
        w.put(put("a", "1")).unwrap();
        w.put(put("b", "1")).unwrap();
        let success = [
            Request::RequestDeleteRange(del("a", "")),
            Request::RequestDeleteRange(del("b", "")),
            Request::RequestPut(put("b", "2")),
        ];
        let success = success.map(|request| rpc::RequestOp { request: Some(request) }).to_vec();
        w.txn(rpc::TxnRequest { success, ..Default::default() }).unwrap();
        w.put(put("c", "1")).unwrap();
        w.compact(4).unwrap();
        for _ in 0..steps {
            w.machine.compact_step(1).unwrap();
        }
        w.reopen();
        w.compact_all(1);
        assert_eq!(w.rows(), [(4, 0), (4, 2), (5, 0)], "after {steps} steps");
        w.compact(5).unwrap();
        w.compact_all(1);
        assert_eq!(w.rows(), [(4, 2), (5, 0)], "after {steps} steps");
    }
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
fn one_look_at_a_time_and_what_is_written_meanwhile_stays() {
    let mut w = World::new();
    for n in 0..10 {
        w.put(put("a", &n.to_string())).unwrap();
    }
    w.compact(6).unwrap();
    let look = w.machine.compaction_look(3).unwrap();
    w.put(put("a", "during")).unwrap();
    w.put(put("b", "new")).unwrap();
    w.compact(8).unwrap();
    assert!(w.machine.compaction_look(3).is_none(), "one is on its way");
    assert_eq!(w.machine.compaction_pending(), Some(8));
    let hash = w.hash(12).unwrap();
    w.machine.compacted(look.run()).unwrap();
    w.compact_all(3);
    assert_eq!((w.machine.compaction_pending(), w.machine.finished_compact_revision()), (None, 8));
    assert_eq!(w.hash(12).unwrap(), hash);
    assert_eq!(w.get("a").unwrap().value, b("during"));
    assert_eq!(w.get("b").unwrap().value, b("new"));
}
