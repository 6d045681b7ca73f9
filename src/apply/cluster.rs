//! What membership entries leave in the engine, row by row as etcd writes them. The member table
//! itself is [`Members`]; a start rebuilds it from the log, not from these rows.

use crate::base::gojson;
use crate::cluster::members::{self, Member, Members, PeerChange, Rejected};
use crate::cluster::version::Version;
use crate::mvcc::backend::{Backend, BackendError, Bucket, Op};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Meta row of the newest configuration (etcd v3.5.17 `membership/confstate.go`).
const CONF_STATE: &[u8] = b"confState";
/// Row of the decided version.
const CLUSTER_VERSION: &[u8] = b"clusterVersion";
/// Row of the downgrade under way.
const DOWNGRADE: &[u8] = b"downgrade";

/// `raftpb.ConfState` in the JSON of etcd's generated type.
#[derive(Serialize)]
struct ConfStateJson {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    auto_leave: bool,
}

/// etcd v3.5.17 `membership/downgrade.go` DowngradeInfo.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct DowngradeJson {
    #[serde(rename = "target-version")]
    target_version: String,
    enabled: bool,
}

/// The version that the cluster is under way down to, as the engine has it.
pub(super) fn downgrade_in(backend: &dyn Backend) -> Result<Option<String>, BackendError> {
    let Some(row) = backend.get(Bucket::Cluster, DOWNGRADE)? else { return Ok(None) };
    let read: Result<DowngradeJson, _> = serde_json::from_slice(&row);
    let info = read.map_err(|error| BackendError(format!("the row of the downgrade: {error}")))?;
    if info.enabled && Version::parse(&info.target_version).is_none() {
        let target = info.target_version;
        return Err(BackendError(format!("the row of the downgrade: {target:?} is no version")));
    }
    Ok(info.enabled.then_some(info.target_version))
}

fn json(value: &impl Serialize) -> Bytes {
    gojson::text(value).into()
}

fn member_key(id: u64) -> Bytes {
    format!("{id:x}").into()
}

fn member_row(member: &Member) -> Op {
    (Bucket::Members, member_key(member.id), Some(json(member)))
}

fn version_row(version: &str) -> Op {
    let version = Bytes::copy_from_slice(version.as_bytes());
    (Bucket::Cluster, Bytes::from_static(CLUSTER_VERSION), Some(version))
}

/// Rows of a conf change that had this outcome in `members`, which have taken it. A member's row
/// stays as it was when the member was added: etcd 3.5.17 does not write it again when the member
/// publishes its attributes, gets other peer URLs or is promoted (`membership/store.go`
/// unsafeSaveMemberToBackend). A rejected change leaves nothing.
pub fn conf_change_rows(outcome: &Result<PeerChange, Rejected>, members: &Members) -> Vec<Op> {
    let Ok(change) = outcome else { return Vec::new() };
    let mut rows = Vec::new();
    match change {
        PeerChange::Add(member) => rows.push(member_row(member)),
        PeerChange::Remove(id) => {
            let removed = Some(Bytes::from_static(b"removed"));
            rows.push((Bucket::MembersRemoved, member_key(id.0), removed));
            rows.push((Bucket::Members, member_key(id.0), None));
        }
        PeerChange::Update(_) | PeerChange::Promote(_) | PeerChange::None => {}
    }
    let state = members.conf_state();
    let state = ConfStateJson { voters: state.voters, learners: state.learners, auto_leave: false };
    rows.push((Bucket::Meta, Bytes::from_static(CONF_STATE), Some(json(&state))));
    rows
}

/// Rows of a bare v2 request.
pub fn v2_rows(request: &rpc::Request) -> Vec<Op> {
    members::version_in(request).map(version_row).into_iter().collect()
}

/// Rows of a v3 request about the cluster; the machine writes them when it applies the request.
pub fn v3_rows(request: &rpc::InternalRaftRequest) -> Vec<Op> {
    if let Some(set) = &request.cluster_version_set {
        return vec![version_row(&set.ver)];
    }
    if let Some(set) = &request.downgrade_info_set {
        let target_version = if set.enabled { set.ver.clone() } else { String::new() };
        let info = json(&DowngradeJson { target_version, enabled: set.enabled });
        return vec![(Bucket::Cluster, Bytes::from_static(DOWNGRADE), Some(info))];
    }
    Vec::new()
}
