//! The member table in the JSON of etcd's v2 store, which its `.snap` files hold.

use super::members::{Member, Members, RaftAttributes};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Part of the tree that is the cluster's own.
const CLUSTER: &str = "0";

/// A tree as etcd saves it (etcd v3.5.17 `server/etcdserver/api/v2store/store.go` Save).
#[derive(Debug, Deserialize)]
struct Tree {
    #[serde(rename = "Root")]
    root: Node,
}

/// A file, or a directory.
#[derive(Debug, Default, Deserialize)]
struct Node {
    #[serde(rename = "Value", default)]
    value: String,
    #[serde(rename = "Children", default)]
    children: Option<BTreeMap<String, Node>>,
}

impl Node {
    fn child(&self, name: &str) -> Option<&Node> {
        self.children.as_ref()?.get(name)
    }

    fn children(&self, name: &str) -> impl Iterator<Item = (&String, &Node)> {
        self.child(name).and_then(|node| node.children.as_ref()).into_iter().flatten()
    }
}

/// Members, removed ids and the cluster version.
pub fn members(json: &[u8]) -> Result<Members, String> {
    let tree: Tree = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let nothing = Node::default();
    let cluster = tree.root.child(CLUSTER).unwrap_or(&nothing);
    let id = |text: &str| {
        u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no id of a member"))
    };
    let mut members = BTreeMap::new();
    for (name, node) in cluster.children("members") {
        let id = id(name)?;
        let wrong = |error: serde_json::Error| format!("member {name}: {error}");
        let raft = node.child("raftAttributes").ok_or(format!("member {name} has no URLs"))?;
        let raft: RaftAttributes = serde_json::from_str(&raft.value).map_err(wrong)?;
        let mut member = Member {
            id,
            peer_urls: raft.peer_urls,
            is_learner: raft.is_learner,
            ..Member::default()
        };
        // Not there before the member published them.
        if let Some(attributes) = node.child("attributes") {
            member.set_attributes_json(&attributes.value).map_err(wrong)?;
        }
        members.insert(id, member);
    }
    let removed = cluster.children("removed_members").map(|(name, _)| id(name));
    let removed = removed.collect::<Result<_, _>>()?;
    let version = cluster.child("version").map(|node| node.value.clone());
    Ok(Members::from_parts(members, removed, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::MemberId;

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
        let members = members(TREE.as_bytes()).unwrap();
        let one = members.get(MemberId(0x8e9e_05c5_2164_694d)).unwrap();
        assert_eq!((one.name.as_str(), &one.client_urls[..]), ("m1", &["http://a:1".into()][..]));
        assert_eq!(one.peer_urls, ["http://a:2"]);
        let learner = members.get(MemberId(0x2a)).unwrap();
        assert!(learner.is_learner && learner.name.is_empty());
        assert_eq!(members.iter().count(), 2);
        assert!(members.is_removed(MemberId(0x1f)));
        assert_eq!(members.version(), Some("3.5.0"));
    }

    #[test]
    fn what_is_no_tree_is_an_error() {
        let deep = format!("{}{}", r#"{"Root":{"Children":{"a":"#.repeat(500), "}}}".repeat(500));
        for json in ["", "{}", r#"{"Root":3}"#, &deep] {
            assert!(members(json.as_bytes()).is_err());
        }
        let odd = TREE.replace("\"2a\"", "\"member\"");
        assert!(members(odd.as_bytes()).unwrap_err().contains("no id"));
        let odd = TREE.replace("raftAttributes", "other");
        assert!(members(odd.as_bytes()).unwrap_err().contains("no URLs"));
        let empty = members(br#"{"Root":{"Children":null}}"#).unwrap();
        assert_eq!(empty, Members::default());
    }
}
