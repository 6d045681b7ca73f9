//! What every member of a cluster knows alike, outside the v3 store: etcd's v2 tree, and the table
//! of members that follows from it (etcd v3.5.17 `api/membership/{cluster,store}.go`). Fed by conf
//! changes and by the entries about members and version.

use super::members::{
    Member, Members, PeerChange, RaftAttributes, Rejected, Subject, VERSION_PATH, subject,
};
use crate::base::ids::MemberId;
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::{ConfChange, ConfState};
use crate::v2::{self, Expiry, Store, Time};
use std::collections::BTreeMap;

/// Where the tree has members, by id.
const MEMBERS: &str = "/0/members";
/// Where it has the ids of members that left.
const REMOVED: &str = "/0/removed_members";
/// Nodes of the cluster never end, so that the time of day is not asked for.
const ANY_TIME: Time = Time(0);

/// The tree and the table. They change together.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    members: Members,
    tree: Store,
}

impl Cluster {
    /// A tree, out of which the table is made.
    pub fn from_json(json: &[u8]) -> Result<Cluster, String> {
        let tree = Store::from_json(json)?;
        Ok(Cluster { members: members_of(&tree)?, tree })
    }

    /// What a `.snap` file holds: a tree, and who raft has for voters and learners.
    pub fn from_snapshot(json: &[u8], raft: &ConfState) -> Result<Cluster, String> {
        let mut cluster = Cluster::from_json(json)?;
        // A file that says nothing about raft's members is of an etcd older than 3.0.
        if !raft.voters.is_empty() && !cluster.members.set_voters(raft) {
            let table = cluster.members.conf_state();
            return Err(format!("raft has the members {raft:?}, the tree has {table:?}"));
        }
        Ok(cluster)
    }

    /// The table.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The tree.
    pub fn tree(&self) -> &Store {
        &self.tree
    }

    /// Whether the tree has more than the cluster's own: keys of the v2 API
    /// (etcd v3.5.17 `api/membership/storev2.go` IsMetaStoreOnly).
    pub fn has_v2_keys(&self) -> bool {
        let others = self.tree.names("/").into_iter().filter(|name| &name[..] != b"0");
        let path = |name: bytes::Bytes| format!("/{}", String::from_utf8_lossy(&name));
        let mut others = others.map(path);
        others.any(|path| !self.tree.names(&path).is_empty())
    }

    /// Applies a committed conf change, or says why it is none.
    pub fn change(&mut self, change: &ConfChange) -> Result<PeerChange, Rejected> {
        let outcome = self.members.apply(change)?;
        let id = MemberId(change.node_id);
        match &outcome {
            PeerChange::Add(member) => {
                let value = member.raft_attributes_json();
                let path = raft_attributes_path(id);
                let made = self.tree.create(
                    path.as_bytes(),
                    Some(value.as_bytes()),
                    false,
                    Expiry::default(),
                    ANY_TIME,
                );
                // A tree that has it already keeps it, as in etcd.
                drop(made);
            }
            PeerChange::Remove(_) => self.remove(id),
            PeerChange::Update(_) | PeerChange::Promote(_) | PeerChange::None => {
                if let Some(member) = self.members.get(id) {
                    let value = member.raft_attributes_json();
                    let path = raft_attributes_path(id);
                    let set = self.tree.update(
                        path.as_bytes(),
                        value.as_bytes(),
                        Expiry::default(),
                        ANY_TIME,
                    );
                    debug_assert!(set.is_ok(), "{set:?}");
                }
            }
        }
        Ok(outcome)
    }

    fn remove(&mut self, id: MemberId) {
        let gone = self.tree.delete(format!("{MEMBERS}/{id}").as_bytes(), true, true, ANY_TIME);
        debug_assert!(gone.is_ok(), "{gone:?}");
        let path = format!("{REMOVED}/{id}");
        let made = self.tree.create(path.as_bytes(), Some(b""), false, Expiry::default(), ANY_TIME);
        debug_assert!(made.is_ok(), "{made:?}");
    }

    /// Applies a bare v2 request; `now` is the time of day. Whether the table changed, and what the
    /// tree says, which is nothing where the request was the cluster's own.
    pub fn apply_v2(&mut self, request: &rpc::Request, now: Time) -> (bool, v2::Reply) {
        let changed = self.members.apply_v2(request);
        match subject(request) {
            Subject::Tree => return (changed, self.tree.apply(request, now)),
            Subject::Attributes(id) => self.keep_attributes(id),
            Subject::Version(version) => self.keep_version(version),
        }
        (changed, Ok(None))
    }

    /// Applies the parts of a v3 request that change the table. Whether it changed.
    pub fn apply_v3(&mut self, request: &rpc::InternalRaftRequest) -> bool {
        if let Some(set) = &request.cluster_version_set {
            self.members.set_version(set.ver.clone());
            self.keep_version(&set.ver);
            return true;
        }
        if let Some(set) = &request.cluster_member_attr_set {
            let id = MemberId(set.member_id);
            let attributes = set.member_attributes.clone().unwrap_or_default();
            let urls = attributes.client_urls;
            let changed = self.members.set_attributes(id, attributes.name, urls);
            self.keep_attributes(id);
            return changed;
        }
        false
    }

    fn keep_attributes(&mut self, id: MemberId) {
        // Someone who left may still publish.
        if let Some(member) = self.members.get(id) {
            let value = member.attributes_json();
            self.keep(&attributes_path(id), &value);
        }
    }

    fn keep_version(&mut self, version: &str) {
        self.keep(VERSION_PATH, version);
    }

    fn keep(&mut self, path: &str, value: &str) {
        let value = Some(value.as_bytes());
        let set = self.tree.set(path.as_bytes(), value, Expiry::default(), ANY_TIME);
        debug_assert!(set.is_ok(), "{set:?}");
    }
}

fn raft_attributes_path(id: MemberId) -> String {
    format!("{MEMBERS}/{id}/raftAttributes")
}

fn attributes_path(id: MemberId) -> String {
    format!("{MEMBERS}/{id}/attributes")
}

/// The table that a tree holds.
fn members_of(tree: &Store) -> Result<Members, String> {
    let mut members = BTreeMap::new();
    for id in ids(tree, MEMBERS)? {
        let wrong = |error: serde_json::Error| format!("member {id}: {error}");
        let raft =
            tree.value(&raft_attributes_path(id)).ok_or(format!("member {id} has no URLs"))?;
        let raft: RaftAttributes = serde_json::from_slice(&raft).map_err(wrong)?;
        let RaftAttributes { peer_urls, is_learner } = raft;
        let mut member = Member { id: id.0, peer_urls, is_learner, ..Member::default() };
        // Not there before the member published them.
        if let Some(attributes) = tree.value(&attributes_path(id)) {
            member.set_attributes_json(&attributes).map_err(wrong)?;
        }
        members.insert(id.0, member);
    }
    let removed = ids(tree, REMOVED)?.into_iter().map(|id| id.0).collect();
    let version = tree.value(VERSION_PATH);
    let version = version.map(|version| String::from_utf8_lossy(&version).into_owned());
    Ok(Members::from_parts(members, removed, version))
}

fn ids(tree: &Store, dir: &str) -> Result<Vec<MemberId>, String> {
    let id = |name: &[u8]| {
        let name = String::from_utf8_lossy(name);
        let id = u64::from_str_radix(&name, 16);
        id.map(MemberId).map_err(|_| format!("{name:?} is no id of a member"))
    };
    tree.names(dir).iter().map(|name| id(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As etcd 3.5.17 saves it, shortened.
    const TREE: &str = r#"{"Root":{"Path":"/","CreatedIndex":0,"ModifiedIndex":0,
      "ExpireTime":"0001-01-01T00:00:00Z","Value":"","Children":{"0":{"Path":"/0","Value":"",
      "Children":{"members":{"Path":"/0/members","Value":"","Children":{
       "8e9e05c52164694d":{"Path":"/0/members/8e9e05c52164694d","Value":"","Children":{
        "attributes":{"Value":"{\"name\":\"m1\",\"clientURLs\":[\"http://a:1\"]}","Children":null},
        "raftAttributes":{"Value":"{\"peerURLs\":[\"http://a:2\"]}","Children":null}}},
       "2a":{"Value":"","Children":{
        "raftAttributes":{"Value":"{\"peerURLs\":[\"http://b:2\"],\"isLearner\":true}"}}}}},
      "removed_members":{"Value":"","Children":{"1f":{"Value":"removed","Children":null}}},
      "version":{"Path":"/0/version","Value":"3.5.0","Children":null}}},
      "1":{"Path":"/1","Value":"","Children":{}}}},
      "WatcherHub":{"EventHistory":{}},"CurrentIndex":9,"Stats":{},"CurrentVersion":2}"#;

    #[test]
    fn members_come_from_the_tree() {
        let cluster = Cluster::from_json(TREE.as_bytes()).unwrap();
        let members = cluster.members();
        let one = members.get(MemberId(0x8e9e_05c5_2164_694d)).unwrap();
        assert_eq!((one.name.as_str(), &one.client_urls[..]), ("m1", &["http://a:1".into()][..]));
        assert_eq!(one.peer_urls, ["http://a:2"]);
        let learner = members.get(MemberId(0x2a)).unwrap();
        assert!(learner.is_learner && learner.name.is_empty());
        assert_eq!(members.iter().count(), 2);
        assert!(members.is_removed(MemberId(0x1f)));
        assert_eq!(members.version(), Some("3.5.0"));
        assert_eq!(cluster.tree().index(), 9);
        assert!(!cluster.has_v2_keys());
        let key = r#""1":{"Path":"/1","Value":"","Children":{"k":{"Value":"v"}}"#;
        let with_key = TREE.replace(r#""1":{"Path":"/1","Value":"","Children":{}"#, key);
        assert!(Cluster::from_json(with_key.as_bytes()).unwrap().has_v2_keys());
    }

    #[test]
    fn learners_are_those_that_raft_has() {
        let (one, two) = (0x8e9e_05c5_2164_694d, 0x2a);
        // As after an etcd has changed the learner's URLs.
        let tree = TREE.replace(r#",\"isLearner\":true"#, "");
        assert!(!tree.contains("isLearner"));
        let state = |voters: &[u64], learners: &[u64]| ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..ConfState::default()
        };
        let cluster = Cluster::from_snapshot(tree.as_bytes(), &state(&[one], &[two])).unwrap();
        assert_eq!(cluster.members().conf_state(), state(&[one], &[two]));
        let all = Cluster::from_snapshot(TREE.as_bytes(), &state(&[two, one], &[])).unwrap();
        assert_eq!(all.members().conf_state(), state(&[two, one], &[]));
        let error = Cluster::from_snapshot(TREE.as_bytes(), &state(&[one], &[])).unwrap_err();
        assert!(error.contains("raft has the members"), "{error}");
        let unsaid = Cluster::from_snapshot(TREE.as_bytes(), &ConfState::default()).unwrap();
        assert_eq!(unsaid.members().conf_state(), state(&[one], &[two]));
    }

    #[test]
    fn what_is_no_tree_of_a_cluster_is_an_error() {
        let error = |json: &str| Cluster::from_json(json.as_bytes()).unwrap_err();
        assert!(error(&TREE.replace("\"2a\"", "\"member\"")).contains("no id"));
        assert!(error(&TREE.replace("raftAttributes", "other")).contains("no URLs"));
        let empty = Cluster::from_json(br#"{"Root":{"Children":null}}"#).unwrap();
        assert_eq!(*empty.members(), Members::default());
    }
}
