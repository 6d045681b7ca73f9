//! The member table as etcd keeps it in its v2 tree: fed by conf changes and by the bare v2
//! requests that carry attributes and the cluster version.

use crate::base::error::Error;
use crate::base::gojson;
use crate::base::ids::MemberId;
use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::{ConfChange, ConfChangeType, ConfState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Learners that a cluster may have at once (etcd v3.5.17 `membership/cluster.go` maxLearners).
const LEARNERS_MAX: usize = 1;
/// Where the v2 tree has the cluster version.
pub(super) const VERSION_PATH: &str = "/0/version";
/// What precedes a member's id in the path of its attributes, and what follows it.
const MEMBERS_PATH: &str = "/0/members/";
const ATTRIBUTES_SUFFIX: &str = "/attributes";

/// A member, in etcd's JSON (etcd v3.5.17 `api/membership/member.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub client_urls: Vec<String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(de)?.unwrap_or_default())
}

/// What of a member raft needs, as the v2 tree has it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RaftAttributes {
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub(super) peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_learner: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Attributes {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    client_urls: Vec<String>,
}

/// What a conf change carries in its context.
#[derive(Debug, Deserialize)]
struct ChangeContext {
    #[serde(flatten)]
    member: Member,
    #[serde(rename = "isPromote", default)]
    is_promote: bool,
}

/// Why a conf change counts as a no-op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("member ID removed")]
    IdRemoved,
    #[error("member ID exists")]
    IdExists,
    #[error("member ID not found")]
    IdNotFound,
    #[error("peer URL exists")]
    PeerUrlExists,
    #[error("can only promote a learner member")]
    NotLearner,
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// etcd's raft panics on it.
    #[error("the last voting member cannot be removed")]
    LastVoter,
    #[error("unreadable conf change")]
    Unreadable,
}

impl Rejected {
    /// What the asker is told (etcd v3.5.17 `v3rpc/util.go` toGRPCErrorMap).
    pub fn error(self) -> Error {
        match self {
            Rejected::IdRemoved | Rejected::IdNotFound => Error::MemberNotFound,
            Rejected::IdExists => Error::MemberExist,
            Rejected::PeerUrlExists => Error::PeerUrlExist,
            Rejected::NotLearner => Error::MemberNotLearner,
            Rejected::TooManyLearners => Error::TooManyLearners,
            Rejected::LastVoter => Error::MemberNotEnoughStarted,
            Rejected::Unreadable => Error::MemberBadUrls,
        }
    }
}

/// How the transport has to follow an accepted change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    Add(Member),
    Update(Member),
    Remove(MemberId),
    Promote(MemberId),
    None,
}

/// Members, removed ids and the cluster version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<u64, Member>,
    /// Who has no vote in raft. An etcd's change of a learner's URLs makes it a voter in the table,
    /// and in the table only.
    learners: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    version: Option<String>,
}

impl Member {
    /// Whether it has published its name, which it does once it runs.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// As `MemberList` answers it.
    pub fn to_wire(&self) -> rpc::Member {
        rpc::Member {
            id: self.id,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner,
        }
    }

    /// Takes name and client URLs from the JSON in which a member publishes them.
    pub(super) fn set_attributes_json(&mut self, json: &[u8]) -> serde_json::Result<()> {
        let attributes: Attributes = serde_json::from_slice(json)?;
        self.name = attributes.name;
        self.client_urls = attributes.client_urls;
        Ok(())
    }

    /// Name and client URLs as the v2 tree has them.
    pub(super) fn attributes_json(&self) -> String {
        let (name, client_urls) = (self.name.clone(), self.client_urls.clone());
        gojson::text(&Attributes { name, client_urls })
    }

    /// What raft needs, as the v2 tree has it.
    pub(super) fn raft_attributes_json(&self) -> String {
        let (peer_urls, is_learner) = (self.peer_urls.clone(), self.is_learner);
        gojson::text(&RaftAttributes { peer_urls, is_learner })
    }
}

impl Members {
    pub(super) fn from_parts(
        members: BTreeMap<u64, Member>,
        removed: BTreeSet<u64>,
        version: Option<String>,
    ) -> Members {
        let learners = members.values().filter(|member| member.is_learner);
        let learners = learners.map(|member| member.id).collect();
        Members { members, learners, removed, version }
    }

    /// Raft's word on who votes; the table may know less (see `learners`). False, and nothing is
    /// changed, if it is not about these members.
    pub(super) fn set_voters(&mut self, state: &ConfState) -> bool {
        let ids: BTreeSet<u64> = state.voters.iter().chain(&state.learners).copied().collect();
        if !ids.iter().eq(self.members.keys()) {
            return false;
        }
        self.learners = state.learners.iter().copied().collect();
        true
    }

    /// Members in ascending id order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id.0)
    }

    /// Whether the id was a member once and may never be one again.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id.0)
    }

    /// The decided cluster version, `3.5.0`.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The members as `MemberList` answers them.
    pub fn to_wire(&self) -> Vec<rpc::Member> {
        self.iter().map(Member::to_wire).collect()
    }

    /// The configuration that raft must have for these members, ids ascending.
    pub fn conf_state(&self) -> ConfState {
        let mut state = ConfState::default();
        for member in self.iter() {
            if self.learners.contains(&member.id) {
                state.learners.push(member.id);
            } else {
                state.voters.push(member.id);
            }
        }
        state
    }

    /// Applies a committed conf change, or says why it is none
    /// (etcd v3.5.17 `membership/cluster.go` ValidateConfigurationChange).
    pub fn apply(&mut self, change: &ConfChange) -> Result<PeerChange, Rejected> {
        let id = change.node_id;
        if self.removed.contains(&id) {
            return Err(Rejected::IdRemoved);
        }
        if change.change_type == raft_proto::CONF_CHANGE_UPDATE_NODE {
            return self.update(change);
        }
        match ConfChangeType::try_from(change.change_type) {
            Ok(ConfChangeType::AddNode | ConfChangeType::AddLearnerNode) => self.add(change),
            Ok(ConfChangeType::RemoveNode) => self.remove(id),
            Err(_) => Err(Rejected::Unreadable),
        }
    }

    fn add(&mut self, change: &ConfChange) -> Result<PeerChange, Rejected> {
        let context: ChangeContext =
            serde_json::from_slice(&change.context).map_err(|_| Rejected::Unreadable)?;
        let id = change.node_id;
        if context.is_promote {
            let member = self.members.get_mut(&id).ok_or(Rejected::IdNotFound)?;
            if !member.is_learner {
                return Err(Rejected::NotLearner);
            }
            member.is_learner = false;
            self.learners.remove(&id);
            return Ok(PeerChange::Promote(MemberId(id)));
        }
        if self.members.contains_key(&id) {
            return Err(Rejected::IdExists);
        }
        if self.peer_url_taken(&context.member.peer_urls, id) {
            return Err(Rejected::PeerUrlExists);
        }
        let learner = change.change_type == ConfChangeType::AddLearnerNode as i32;
        if learner {
            let learners = self.iter().filter(|member| member.is_learner).count();
            if learners >= LEARNERS_MAX {
                return Err(Rejected::TooManyLearners);
            }
            self.learners.insert(id);
        }
        let member = Member { id, is_learner: learner, ..context.member };
        self.members.insert(id, member.clone());
        Ok(PeerChange::Add(member))
    }

    fn remove(&mut self, id: u64) -> Result<PeerChange, Rejected> {
        if !self.members.contains_key(&id) {
            return Err(Rejected::IdNotFound);
        }
        if self.conf_state().voters == [id] {
            return Err(Rejected::LastVoter);
        }
        self.members.remove(&id);
        self.learners.remove(&id);
        self.removed.insert(id);
        Ok(PeerChange::Remove(MemberId(id)))
    }

    fn update(&mut self, change: &ConfChange) -> Result<PeerChange, Rejected> {
        let update: Member =
            serde_json::from_slice(&change.context).map_err(|_| Rejected::Unreadable)?;
        let id = change.node_id;
        if !self.members.contains_key(&id) {
            return Err(Rejected::IdNotFound);
        }
        if self.peer_url_taken(&update.peer_urls, id) {
            return Err(Rejected::PeerUrlExists);
        }
        let member = self.members.get_mut(&id).ok_or(Rejected::IdNotFound)?;
        member.peer_urls = update.peer_urls;
        member.is_learner = update.is_learner;
        Ok(PeerChange::Update(member.clone()))
    }

    fn peer_url_taken(&self, urls: &[String], except: u64) -> bool {
        self.iter()
            .filter(|member| member.id != except)
            .any(|member| member.peer_urls.iter().any(|url| urls.contains(url)))
    }

    /// Applies a bare v2 request as far as it is about the table. True if anything changed.
    pub fn apply_v2(&mut self, request: &rpc::Request) -> bool {
        match subject(request) {
            Subject::Version(version) => {
                let version = Some(version.to_owned());
                std::mem::replace(&mut self.version, version) != self.version
            }
            Subject::Attributes(id) => {
                let member = self.members.get_mut(&id.0);
                member.is_some_and(|member| member.set_attributes_json(&request.val).is_ok())
            }
            Subject::Tree => false,
        }
    }

    /// Applies 3.5's own entry for the same purpose, which a newer member may propose.
    pub fn set_attributes(&mut self, id: MemberId, name: String, client_urls: Vec<String>) -> bool {
        let Some(member) = self.members.get_mut(&id.0) else {
            return false;
        };
        member.name = name;
        member.client_urls = client_urls;
        true
    }

    /// Applies 3.5's own entry for the cluster version.
    pub fn set_version(&mut self, version: String) {
        self.version = Some(version);
    }
}

/// What a bare v2 request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A member's name and client URLs.
    Attributes(MemberId),
    /// The cluster version.
    Version(&'a str),
    /// Only the v2 tree.
    Tree,
}

/// What a bare v2 request is about (etcd v3.5.17 `server/etcdserver/apply_v2.go` Put). On a version
/// or an id that is none etcd panics; here it is a request about the tree.
pub fn subject(request: &rpc::Request) -> Subject<'_> {
    let compared = request.prev_index > 0 || !request.prev_value.is_empty();
    if request.method != "PUT" || request.prev_exist.is_some() || compared {
        return Subject::Tree;
    }
    if let Some(id) = attributes_path_id(&request.path) {
        return Subject::Attributes(id);
    }
    let version = std::str::from_utf8(&request.val).ok().filter(|text| is_version(text));
    match version {
        Some(version) if request.path == VERSION_PATH.as_bytes() => Subject::Version(version),
        _ => Subject::Tree,
    }
}

/// etcd finds `/0/members/<id>/attributes` anywhere in a path, and takes the id from before the
/// path's last part.
fn attributes_path_id(path: &[u8]) -> Option<MemberId> {
    let path = std::str::from_utf8(path).ok()?;
    let found = path.split(MEMBERS_PATH).skip(1).any(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        (1..=16).contains(&digits) && rest[digits..].starts_with(ATTRIBUTES_SUFFIX)
    });
    let id = path.rsplit('/').nth(1).filter(|_| found)?;
    u64::from_str_radix(id, 16).ok().map(MemberId)
}

fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.');
    let number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u64>().is_ok());
    number(parts.next()) && number(parts.next()) && number(parts.next()) && parts.next().is_none()
}

/// The cluster version that a v2 request sets, if it sets one.
pub fn version_in(request: &rpc::Request) -> Option<&str> {
    match subject(request) {
        Subject::Version(version) => Some(version),
        _ => None,
    }
}

/// A change's kind as etcd's log names it.
pub fn change_name(change_type: i32) -> &'static str {
    if change_type == raft_proto::CONF_CHANGE_UPDATE_NODE {
        return "ConfChangeUpdateNode";
    }
    match ConfChangeType::try_from(change_type) {
        Ok(ConfChangeType::AddNode) => "ConfChangeAddNode",
        Ok(ConfChangeType::AddLearnerNode) => "ConfChangeAddLearnerNode",
        Ok(ConfChangeType::RemoveNode) => "ConfChangeRemoveNode",
        Err(_) => "unknown",
    }
}

/// The change that adds `member`, as a learner if it says so.
pub fn add_change(member: &Member) -> ConfChange {
    let kind =
        if member.is_learner { ConfChangeType::AddLearnerNode } else { ConfChangeType::AddNode };
    change(member.id, kind as i32, member)
}

/// The change that gives `member` other peer URLs; whether it is a learner must be as before.
pub fn update_change(member: &Member) -> ConfChange {
    change(member.id, raft_proto::CONF_CHANGE_UPDATE_NODE, member)
}

/// The change that removes a member.
pub fn remove_change(id: MemberId) -> ConfChange {
    ConfChange {
        change_type: ConfChangeType::RemoveNode as i32,
        node_id: id.0,
        ..ConfChange::default()
    }
}

/// The change that makes a learner a voter.
pub fn promote_change(id: MemberId) -> ConfChange {
    #[derive(Serialize)]
    struct Promote {
        id: u64,
        #[serde(rename = "peerURLs")]
        peer_urls: Option<Vec<String>>,
        #[serde(rename = "isPromote")]
        is_promote: bool,
    }
    let context = Promote { id: id.0, peer_urls: None, is_promote: true };
    change(id.0, ConfChangeType::AddNode as i32, &context)
}

fn change(node_id: u64, change_type: i32, context: &impl Serialize) -> ConfChange {
    let context = gojson::text(context).into();
    ConfChange { id: 0, change_type, node_id, context }
}

/// The v2 request with which a member publishes its name and client URLs
/// (etcd v3.5.17 `server.go` publish).
pub fn publish_request(id: MemberId, name: &str, client_urls: &[String]) -> rpc::Request {
    let attributes = Attributes { name: name.to_owned(), client_urls: client_urls.to_vec() };
    rpc::Request {
        method: "PUT".to_owned(),
        path: format!("{MEMBERS_PATH}{id}{ATTRIBUTES_SUFFIX}").into(),
        val: gojson::text(&attributes).into(),
        ..rpc::Request::default()
    }
}

/// The v2 request with which the leader sets the cluster version.
pub fn version_request(version: &str) -> rpc::Request {
    rpc::Request {
        method: "PUT".to_owned(),
        path: VERSION_PATH.into(),
        val: version.to_owned().into(),
        ..rpc::Request::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, url: &str, is_learner: bool) -> Member {
        Member { id, peer_urls: vec![url.to_owned()], is_learner, ..Member::default() }
    }

    fn add(id: u64, url: &str, learner: bool) -> ConfChange {
        add_change(&member(id, url, learner))
    }

    #[test]
    fn changes_are_validated_as_etcd_does() {
        let mut members = Members::default();
        assert!(matches!(members.apply(&add(1, "http://a:1", false)), Ok(PeerChange::Add(_))));
        assert_eq!(members.apply(&add(1, "http://b:1", false)), Err(Rejected::IdExists));
        assert_eq!(members.apply(&add(2, "http://a:1", false)), Err(Rejected::PeerUrlExists));
        assert!(members.apply(&add(3, "http://c:1", true)).is_ok());
        assert_eq!(members.conf_state().learners, vec![3]);
        assert_eq!(members.apply(&add(4, "http://d:1", true)), Err(Rejected::TooManyLearners));
        let remove = remove_change(MemberId(1));
        assert_eq!(members.apply(&remove), Err(Rejected::LastVoter));
        assert!(members.apply(&add(5, "http://e:1", false)).is_ok());
        assert_eq!(members.apply(&remove), Ok(PeerChange::Remove(MemberId(1))));
        assert_eq!(members.apply(&remove), Err(Rejected::IdRemoved));
        assert_eq!(members.apply(&remove_change(MemberId(7))), Err(Rejected::IdNotFound));
        assert_eq!(members.apply(&add(1, "http://d:1", false)), Err(Rejected::IdRemoved));
        let garbage = ConfChange { node_id: 9, context: "{".into(), ..ConfChange::default() };
        assert_eq!(members.apply(&garbage), Err(Rejected::Unreadable));
    }

    #[test]
    fn a_learner_is_promoted_once() {
        let mut members = Members::default();
        members.apply(&add(1, "http://a:1", false)).unwrap();
        members.apply(&add(3, "http://c:1", true)).unwrap();
        let promote = promote_change(MemberId(3));
        assert_eq!(promote.context, r#"{"id":3,"peerURLs":null,"isPromote":true}"#);
        assert_eq!(members.apply(&promote), Ok(PeerChange::Promote(MemberId(3))));
        assert_eq!(members.conf_state().voters, vec![1, 3]);
        assert!(!members.get(MemberId(3)).unwrap().is_learner);
        assert_eq!(members.apply(&promote), Err(Rejected::NotLearner));
        assert_eq!(members.apply(&promote_change(MemberId(9))), Err(Rejected::IdNotFound));
    }

    /// etcd's own change of a learner's URLs forgets that it is one; its raft does not.
    #[test]
    fn an_update_changes_the_table_and_never_raft() {
        let mut members = Members::default();
        members.apply(&add(1, "http://a:1", false)).unwrap();
        members.apply(&add(3, "http://c:1", true)).unwrap();
        let update = update_change(&member(3, "http://d:1", true));
        let PeerChange::Update(updated) = members.apply(&update).unwrap() else { panic!() };
        assert_eq!(
            (&updated.peer_urls[..], updated.is_learner),
            (&["http://d:1".into()][..], true)
        );
        members.apply(&update_change(&member(3, "http://e:1", false))).unwrap();
        assert!(!members.get(MemberId(3)).unwrap().is_learner);
        assert_eq!(members.conf_state().learners, vec![3]);
        let taken = update_change(&member(3, "http://a:1", false));
        assert_eq!(members.apply(&taken), Err(Rejected::PeerUrlExists));
        let unknown = update_change(&member(4, "http://f:1", false));
        assert_eq!(members.apply(&unknown), Err(Rejected::IdNotFound));
    }

    #[test]
    fn attributes_and_version_come_as_v2_requests() {
        let mut members = Members::default();
        members.apply(&add(0xab, "http://a:1", false)).unwrap();
        let request = publish_request(MemberId(0xab), "m0", &["http://a:2".to_owned()]);
        assert_eq!(&request.path[..], b"/0/members/ab/attributes");
        assert_eq!(&request.val[..], br#"{"name":"m0","clientURLs":["http://a:2"]}"#);
        assert!(members.apply_v2(&request));
        assert_eq!(members.get(MemberId(0xab)).unwrap().name, "m0");
        assert!(members.apply_v2(&version_request("3.5.0")));
        assert!(!members.apply_v2(&version_request("3.5.0")));
        assert!(!members.apply_v2(&version_request("3.5")));
        assert_eq!(members.version(), Some("3.5.0"));
    }

    #[test]
    fn requests_about_the_cluster_are_told_from_others() {
        let put = |path: &str| rpc::Request {
            method: "PUT".to_owned(),
            path: path.to_owned().into(),
            val: "3.5.0".into(),
            ..rpc::Request::default()
        };
        let about = |path| match subject(&put(path)) {
            Subject::Attributes(id) => id.0,
            Subject::Version(_) => 1,
            Subject::Tree => 0,
        };
        assert_eq!(about("/0/version"), 1);
        assert_eq!(about("/0/members/ab/attributes"), 0xab);
        // As in etcd, a key of the v2 API may look like one.
        assert_eq!(about("/1/0/members/ab/attributes"), 0xab);
        assert_eq!(about("/0/members/ab/attributes/cd/x"), 0xcd);
        for path in [
            "/1/version",
            "/0/members/xy/attributes",
            "/0/members//attributes",
            "/0/members/ab",
            "/0/members/00000000000000ab0/attributes",
            "/0/members/ab/raftAttributes",
        ] {
            assert_eq!(about(path), 0, "{path}");
        }
        let compared = rpc::Request { prev_index: 1, ..put("/0/version") };
        assert_eq!(subject(&compared), Subject::Tree);
        let created = rpc::Request { prev_exist: Some(false), ..put("/0/version") };
        assert_eq!(subject(&created), Subject::Tree);
        let deleted = rpc::Request { method: "DELETE".to_owned(), ..put("/0/version") };
        assert_eq!(subject(&deleted), Subject::Tree);
    }
}
