//! Rows that membership leaves, and Hash over all buckets. The hashes are those that etcd 3.5.17
//! gave for the same history.

use super::*;
use crate::base::ids::MemberId;
use crate::cluster::members::{Member, Members, publish_request, version_request};
use crate::mvcc::backend::{Backend, Bucket};
use crate::pb::membershippb::DowngradeInfoSetRequest;
use crate::pb::raftpb::{ConfChange, ConfChangeType};

const FIRST: u64 = 0x6187_0d94_8f4c_cbba;
const SECOND: u64 = 0x30e7_e922_4442_94a4;

struct Cluster {
    world: World,
    members: Members,
}

impl Cluster {
    fn change(&mut self, change_type: ConfChangeType, id: u64, name: &str, url: &str) {
        let member = Member {
            id,
            name: name.to_owned(),
            is_learner: change_type == ConfChangeType::AddLearnerNode,
            peer_urls: vec![url.to_owned()],
            ..Member::default()
        };
        let change = ConfChange {
            node_id: id,
            change_type: change_type as i32,
            context: serde_json::to_vec(&member).unwrap().into(),
            ..ConfChange::default()
        };
        let outcome = self.members.apply(&change);
        let rows = conf_change_rows(&outcome, &self.members);
        self.world.index += 1;
        self.world.machine.record(self.world.index, 1, rows);
    }

    fn v2(&mut self, request: &rpc::Request) {
        self.members.apply_v2(request);
        self.world.index += 1;
        self.world.machine.record(self.world.index, 2, v2_rows(request));
    }

    fn row(&self, bucket: Bucket, key: &str) -> Option<String> {
        let value = self.world.backend.get(bucket, key.as_bytes()).unwrap();
        value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn hash(&self) -> u32 {
        self.world.machine.reader().hash().unwrap()
    }
}

fn new_cluster() -> Cluster {
    let mut c = Cluster { world: World::new(), members: Members::default() };
    c.change(ConfChangeType::AddNode, FIRST, "n<1>&", "http://127.0.0.1:41002");
    c.v2(&publish_request(MemberId(FIRST), "n<1>&", &["http://127.0.0.1:41001".to_owned()]));
    c.v2(&version_request("3.5.0"));
    c
}

#[test]
fn hash_is_that_of_etcd() {
    let mut c = new_cluster();
    assert_eq!(c.hash(), 767318361);
    c.world.put(put("a", "b")).unwrap();
    c.world.grant(77, 100).result.unwrap();
    c.change(ConfChangeType::AddLearnerNode, SECOND, "", "http://127.0.0.1:41003");
    let held = rpc::PutRequest { lease: 77, ..put("a", "c") };
    c.world.put(held).unwrap();
    c.world.alarm(1, 5, 1);
    c.world.compact(2).unwrap();
    c.world.compact_all(1000);
    assert_eq!(c.hash(), 375584441);
    c.change(ConfChangeType::RemoveNode, SECOND, "", "");
    assert_eq!(c.hash(), 3126784745);
    c.world.alarm(2, 5, 1);
    assert_eq!(c.hash(), 3308414799);
    c.world.reopen();
    assert_eq!(c.hash(), 3308414799);
}

#[test]
fn membership_rows_are_those_of_etcd() {
    let mut c = new_cluster();
    let first = "{\"id\":7027600675245444026,\"peerURLs\":[\"http://127.0.0.1:41002\"],\
                 \"name\":\"n\\u003c1\\u003e\\u0026\"}";
    c.change(ConfChangeType::AddNode, FIRST, "again", "http://127.0.0.1:9");
    assert_eq!(c.row(Bucket::Members, "61870d948f4ccbba").as_deref(), Some(first));
    c.change(ConfChangeType::AddLearnerNode, 0xab, "", "http://127.0.0.1:41003");
    let learner =
        "{\"id\":171,\"peerURLs\":[\"http://127.0.0.1:41003\"],\"isLearner\":true}".to_owned();
    assert_eq!(c.row(Bucket::Members, "ab"), Some(learner));
    let state = "{\"voters\":[7027600675245444026],\"learners\":[171],\"auto_leave\":false}";
    assert_eq!(c.row(Bucket::Meta, "confState").as_deref(), Some(state));
    c.change(ConfChangeType::RemoveNode, 0xab, "", "");
    assert_eq!(c.row(Bucket::Members, "ab"), None);
    assert_eq!(c.row(Bucket::MembersRemoved, "ab").as_deref(), Some("removed"));
    let downgrade = |enabled, ver: &str| rpc::InternalRaftRequest {
        downgrade_info_set: Some(DowngradeInfoSetRequest { enabled, ver: ver.to_owned() }),
        ..Default::default()
    };
    assert_eq!(c.world.apply(downgrade(true, "3.4.0")).result, Ok(Reply::Empty));
    let on = "{\"target-version\":\"3.4.0\",\"enabled\":true}";
    assert_eq!(c.row(Bucket::Cluster, "downgrade").as_deref(), Some(on));
    assert_eq!(c.world.machine.downgrade(), Some("3.4.0"));
    let again = Machine::open(c.world.backend.clone(), Options::default()).unwrap();
    assert_eq!(again.downgrade(), Some("3.4.0"));
    c.world.apply(downgrade(false, "3.4.0")).result.unwrap();
    assert_eq!(c.world.machine.downgrade(), None);
    let off = "{\"target-version\":\"\",\"enabled\":false}";
    assert_eq!(c.row(Bucket::Cluster, "downgrade").as_deref(), Some(off));
    assert_eq!(c.world.backend.position().0, c.world.index);
}

#[test]
fn rows_that_are_missing_are_mended() {
    let mut c = new_cluster();
    let before = c.hash();
    let wrong = [(Bucket::Members, "61870d948f4ccbba"), (Bucket::Meta, "confState")];
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    let mut rows = std::collections::BTreeMap::new();
    for (bucket, name) in wrong {
        rows.insert((bucket, key(name)), c.world.backend.get(bucket, name.as_bytes()).unwrap());
    }
    rows.insert((Bucket::Members, key("ab")), None);
    assert_eq!(c.world.machine.mend(rows.clone()).unwrap(), 0);
    c.world.index += 1;
    let gone = wrong.map(|(bucket, name)| (bucket, key(name), None)).to_vec();
    c.world.machine.record(c.world.index, 2, gone);
    assert_ne!(c.hash(), before);
    assert_eq!(c.world.machine.mend(rows).unwrap(), 2);
    assert_eq!(c.hash(), before);
    c.world.reopen();
    assert_eq!(c.hash(), before);
}
