//! The gates before an entry, its position, and the rows the index holds.

use super::*;
use crate::base::error::Error;
use crate::mvcc::backend::Backend;

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
    let nested = Request::RequestTxn(txn(Request::RequestPut(put("a", ""))));
    assert!(w.txn(txn(nested)).is_ok(), "as in etcd 3.5.17; it is refused before it is proposed");
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
    let options = Options { quota_bytes: 21_500, ..Options::default() };
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
    let refused = rpc::InternalRaftRequest {
        auth_enable: Some(rpc::AuthEnableRequest::default()),
        ..Default::default()
    };
    w.index = 2;
    assert_eq!(w.apply(refused).result, Err(Error::RootUserNotExist));
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

#[test]
fn events_are_made_only_while_they_are_wanted() {
    let mut world = World::new();
    let put = |world: &mut World| {
        let put = rpc::PutRequest { key: "k".into(), ..Default::default() };
        world.apply(rpc::InternalRaftRequest { put: Some(put), ..Default::default() }).effects
    };
    world.machine.want_events(false);
    assert_eq!(put(&mut world), []);
    world.machine.want_events(true);
    let effects = put(&mut world);
    assert!(matches!(&effects[..], [Effect::Events { revision: 3, .. }]), "{effects:?}");
}
