//! The wire types against messages that etcd's own Go types marshalled
//! (`testdata/golden/gen` writes `testdata/golden/wire.txt`).

use prost::Message;
use rusd::pb;
use std::collections::BTreeSet;

const WIRE: &str = include_str!("../../testdata/golden/wire.txt");

/// Decodes and encodes again. A field this side does not know would be missing from the result.
fn again<M: Message + Default + PartialEq>(bytes: &[u8]) -> Vec<u8> {
    let message = M::decode(bytes).unwrap();
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    assert!(M::decode(encoded.as_slice()).unwrap() == message);
    encoded
}

macro_rules! messages {
    ($($name:literal => $message:ty,)*) => {
        const NAMES: &[&str] = &[$($name),*];

        fn again_by_name(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
            match name {
                $($name => Some(again::<$message>(bytes)),)*
                _ => None,
            }
        }
    };
}

messages! {
    "authpb.Permission" => pb::authpb::Permission,
    "authpb.Role" => pb::authpb::Role,
    "authpb.User" => pb::authpb::User,
    "authpb.UserAddOptions" => pb::authpb::UserAddOptions,
    "etcdserverpb.AlarmMember" => pb::etcdserverpb::AlarmMember,
    "etcdserverpb.AlarmRequest" => pb::etcdserverpb::AlarmRequest,
    "etcdserverpb.AlarmResponse" => pb::etcdserverpb::AlarmResponse,
    "etcdserverpb.AuthDisableRequest" => pb::etcdserverpb::AuthDisableRequest,
    "etcdserverpb.AuthDisableResponse" => pb::etcdserverpb::AuthDisableResponse,
    "etcdserverpb.AuthEnableRequest" => pb::etcdserverpb::AuthEnableRequest,
    "etcdserverpb.AuthEnableResponse" => pb::etcdserverpb::AuthEnableResponse,
    "etcdserverpb.AuthRoleAddRequest" => pb::etcdserverpb::AuthRoleAddRequest,
    "etcdserverpb.AuthRoleAddResponse" => pb::etcdserverpb::AuthRoleAddResponse,
    "etcdserverpb.AuthRoleDeleteRequest" => pb::etcdserverpb::AuthRoleDeleteRequest,
    "etcdserverpb.AuthRoleDeleteResponse" => pb::etcdserverpb::AuthRoleDeleteResponse,
    "etcdserverpb.AuthRoleGetRequest" => pb::etcdserverpb::AuthRoleGetRequest,
    "etcdserverpb.AuthRoleGetResponse" => pb::etcdserverpb::AuthRoleGetResponse,
    "etcdserverpb.AuthRoleGrantPermissionRequest" => pb::etcdserverpb::AuthRoleGrantPermissionRequest,
    "etcdserverpb.AuthRoleGrantPermissionResponse" => pb::etcdserverpb::AuthRoleGrantPermissionResponse,
    "etcdserverpb.AuthRoleListRequest" => pb::etcdserverpb::AuthRoleListRequest,
    "etcdserverpb.AuthRoleListResponse" => pb::etcdserverpb::AuthRoleListResponse,
    "etcdserverpb.AuthRoleRevokePermissionRequest" => pb::etcdserverpb::AuthRoleRevokePermissionRequest,
    "etcdserverpb.AuthRoleRevokePermissionResponse" => pb::etcdserverpb::AuthRoleRevokePermissionResponse,
    "etcdserverpb.AuthStatusRequest" => pb::etcdserverpb::AuthStatusRequest,
    "etcdserverpb.AuthStatusResponse" => pb::etcdserverpb::AuthStatusResponse,
    "etcdserverpb.AuthUserAddRequest" => pb::etcdserverpb::AuthUserAddRequest,
    "etcdserverpb.AuthUserAddResponse" => pb::etcdserverpb::AuthUserAddResponse,
    "etcdserverpb.AuthUserChangePasswordRequest" => pb::etcdserverpb::AuthUserChangePasswordRequest,
    "etcdserverpb.AuthUserChangePasswordResponse" => pb::etcdserverpb::AuthUserChangePasswordResponse,
    "etcdserverpb.AuthUserDeleteRequest" => pb::etcdserverpb::AuthUserDeleteRequest,
    "etcdserverpb.AuthUserDeleteResponse" => pb::etcdserverpb::AuthUserDeleteResponse,
    "etcdserverpb.AuthUserGetRequest" => pb::etcdserverpb::AuthUserGetRequest,
    "etcdserverpb.AuthUserGetResponse" => pb::etcdserverpb::AuthUserGetResponse,
    "etcdserverpb.AuthUserGrantRoleRequest" => pb::etcdserverpb::AuthUserGrantRoleRequest,
    "etcdserverpb.AuthUserGrantRoleResponse" => pb::etcdserverpb::AuthUserGrantRoleResponse,
    "etcdserverpb.AuthUserListRequest" => pb::etcdserverpb::AuthUserListRequest,
    "etcdserverpb.AuthUserListResponse" => pb::etcdserverpb::AuthUserListResponse,
    "etcdserverpb.AuthUserRevokeRoleRequest" => pb::etcdserverpb::AuthUserRevokeRoleRequest,
    "etcdserverpb.AuthUserRevokeRoleResponse" => pb::etcdserverpb::AuthUserRevokeRoleResponse,
    "etcdserverpb.AuthenticateRequest" => pb::etcdserverpb::AuthenticateRequest,
    "etcdserverpb.AuthenticateResponse" => pb::etcdserverpb::AuthenticateResponse,
    "etcdserverpb.CompactionRequest" => pb::etcdserverpb::CompactionRequest,
    "etcdserverpb.CompactionResponse" => pb::etcdserverpb::CompactionResponse,
    "etcdserverpb.Compare" => pb::etcdserverpb::Compare,
    "etcdserverpb.DefragmentRequest" => pb::etcdserverpb::DefragmentRequest,
    "etcdserverpb.DefragmentResponse" => pb::etcdserverpb::DefragmentResponse,
    "etcdserverpb.DeleteRangeRequest" => pb::etcdserverpb::DeleteRangeRequest,
    "etcdserverpb.DeleteRangeResponse" => pb::etcdserverpb::DeleteRangeResponse,
    "etcdserverpb.DowngradeRequest" => pb::etcdserverpb::DowngradeRequest,
    "etcdserverpb.DowngradeResponse" => pb::etcdserverpb::DowngradeResponse,
    "etcdserverpb.EmptyResponse" => pb::etcdserverpb::EmptyResponse,
    "etcdserverpb.HashKVRequest" => pb::etcdserverpb::HashKvRequest,
    "etcdserverpb.HashKVResponse" => pb::etcdserverpb::HashKvResponse,
    "etcdserverpb.HashRequest" => pb::etcdserverpb::HashRequest,
    "etcdserverpb.HashResponse" => pb::etcdserverpb::HashResponse,
    "etcdserverpb.InternalAuthenticateRequest" => pb::etcdserverpb::InternalAuthenticateRequest,
    "etcdserverpb.InternalRaftRequest" => pb::etcdserverpb::InternalRaftRequest,
    "etcdserverpb.LeaseCheckpoint" => pb::etcdserverpb::LeaseCheckpoint,
    "etcdserverpb.LeaseCheckpointRequest" => pb::etcdserverpb::LeaseCheckpointRequest,
    "etcdserverpb.LeaseCheckpointResponse" => pb::etcdserverpb::LeaseCheckpointResponse,
    "etcdserverpb.LeaseGrantRequest" => pb::etcdserverpb::LeaseGrantRequest,
    "etcdserverpb.LeaseGrantResponse" => pb::etcdserverpb::LeaseGrantResponse,
    "etcdserverpb.LeaseKeepAliveRequest" => pb::etcdserverpb::LeaseKeepAliveRequest,
    "etcdserverpb.LeaseKeepAliveResponse" => pb::etcdserverpb::LeaseKeepAliveResponse,
    "etcdserverpb.LeaseLeasesRequest" => pb::etcdserverpb::LeaseLeasesRequest,
    "etcdserverpb.LeaseLeasesResponse" => pb::etcdserverpb::LeaseLeasesResponse,
    "etcdserverpb.LeaseRevokeRequest" => pb::etcdserverpb::LeaseRevokeRequest,
    "etcdserverpb.LeaseRevokeResponse" => pb::etcdserverpb::LeaseRevokeResponse,
    "etcdserverpb.LeaseStatus" => pb::etcdserverpb::LeaseStatus,
    "etcdserverpb.LeaseTimeToLiveRequest" => pb::etcdserverpb::LeaseTimeToLiveRequest,
    "etcdserverpb.LeaseTimeToLiveResponse" => pb::etcdserverpb::LeaseTimeToLiveResponse,
    "etcdserverpb.Member" => pb::etcdserverpb::Member,
    "etcdserverpb.MemberAddRequest" => pb::etcdserverpb::MemberAddRequest,
    "etcdserverpb.MemberAddResponse" => pb::etcdserverpb::MemberAddResponse,
    "etcdserverpb.MemberListRequest" => pb::etcdserverpb::MemberListRequest,
    "etcdserverpb.MemberListResponse" => pb::etcdserverpb::MemberListResponse,
    "etcdserverpb.MemberPromoteRequest" => pb::etcdserverpb::MemberPromoteRequest,
    "etcdserverpb.MemberPromoteResponse" => pb::etcdserverpb::MemberPromoteResponse,
    "etcdserverpb.MemberRemoveRequest" => pb::etcdserverpb::MemberRemoveRequest,
    "etcdserverpb.MemberRemoveResponse" => pb::etcdserverpb::MemberRemoveResponse,
    "etcdserverpb.MemberUpdateRequest" => pb::etcdserverpb::MemberUpdateRequest,
    "etcdserverpb.MemberUpdateResponse" => pb::etcdserverpb::MemberUpdateResponse,
    "etcdserverpb.Metadata" => pb::etcdserverpb::Metadata,
    "etcdserverpb.MoveLeaderRequest" => pb::etcdserverpb::MoveLeaderRequest,
    "etcdserverpb.MoveLeaderResponse" => pb::etcdserverpb::MoveLeaderResponse,
    "etcdserverpb.PutRequest" => pb::etcdserverpb::PutRequest,
    "etcdserverpb.PutResponse" => pb::etcdserverpb::PutResponse,
    "etcdserverpb.RangeRequest" => pb::etcdserverpb::RangeRequest,
    "etcdserverpb.RangeResponse" => pb::etcdserverpb::RangeResponse,
    "etcdserverpb.Request" => pb::etcdserverpb::Request,
    "etcdserverpb.RequestHeader" => pb::etcdserverpb::RequestHeader,
    "etcdserverpb.RequestOp" => pb::etcdserverpb::RequestOp,
    "etcdserverpb.ResponseHeader" => pb::etcdserverpb::ResponseHeader,
    "etcdserverpb.ResponseOp" => pb::etcdserverpb::ResponseOp,
    "etcdserverpb.SnapshotRequest" => pb::etcdserverpb::SnapshotRequest,
    "etcdserverpb.SnapshotResponse" => pb::etcdserverpb::SnapshotResponse,
    "etcdserverpb.StatusRequest" => pb::etcdserverpb::StatusRequest,
    "etcdserverpb.StatusResponse" => pb::etcdserverpb::StatusResponse,
    "etcdserverpb.TxnRequest" => pb::etcdserverpb::TxnRequest,
    "etcdserverpb.TxnResponse" => pb::etcdserverpb::TxnResponse,
    "etcdserverpb.WatchCancelRequest" => pb::etcdserverpb::WatchCancelRequest,
    "etcdserverpb.WatchCreateRequest" => pb::etcdserverpb::WatchCreateRequest,
    "etcdserverpb.WatchProgressRequest" => pb::etcdserverpb::WatchProgressRequest,
    "etcdserverpb.WatchRequest" => pb::etcdserverpb::WatchRequest,
    "etcdserverpb.WatchResponse" => pb::etcdserverpb::WatchResponse,
    "leasepb.Lease" => pb::leasepb::Lease,
    "leasepb.LeaseInternalRequest" => pb::leasepb::LeaseInternalRequest,
    "leasepb.LeaseInternalResponse" => pb::leasepb::LeaseInternalResponse,
    "membershippb.Attributes" => pb::membershippb::Attributes,
    "membershippb.ClusterMemberAttrSetRequest" => pb::membershippb::ClusterMemberAttrSetRequest,
    "membershippb.ClusterVersionSetRequest" => pb::membershippb::ClusterVersionSetRequest,
    "membershippb.DowngradeInfoSetRequest" => pb::membershippb::DowngradeInfoSetRequest,
    "membershippb.Member" => pb::membershippb::Member,
    "membershippb.RaftAttributes" => pb::membershippb::RaftAttributes,
    "mvccpb.Event" => pb::mvccpb::Event,
    "mvccpb.KeyValue" => pb::mvccpb::KeyValue,
    "raftpb.ConfChange" => pb::raftpb::ConfChange,
    "raftpb.ConfChangeSingle" => pb::raftpb::ConfChangeSingle,
    "raftpb.ConfChangeV2" => pb::raftpb::ConfChangeV2,
    "raftpb.ConfState" => pb::raftpb::ConfState,
    "raftpb.Entry" => pb::raftpb::Entry,
    "raftpb.HardState" => pb::raftpb::HardState,
    "raftpb.Message" => pb::raftpb::Message,
    "raftpb.Snapshot" => pb::raftpb::Snapshot,
    "raftpb.SnapshotMetadata" => pb::raftpb::SnapshotMetadata,
    "snappb.snapshot" => pb::snappb::Snapshot,
    "v3electionpb.CampaignRequest" => pb::v3electionpb::CampaignRequest,
    "v3electionpb.CampaignResponse" => pb::v3electionpb::CampaignResponse,
    "v3electionpb.LeaderKey" => pb::v3electionpb::LeaderKey,
    "v3electionpb.LeaderRequest" => pb::v3electionpb::LeaderRequest,
    "v3electionpb.LeaderResponse" => pb::v3electionpb::LeaderResponse,
    "v3electionpb.ProclaimRequest" => pb::v3electionpb::ProclaimRequest,
    "v3electionpb.ProclaimResponse" => pb::v3electionpb::ProclaimResponse,
    "v3electionpb.ResignRequest" => pb::v3electionpb::ResignRequest,
    "v3electionpb.ResignResponse" => pb::v3electionpb::ResignResponse,
    "v3lockpb.LockRequest" => pb::v3lockpb::LockRequest,
    "v3lockpb.LockResponse" => pb::v3lockpb::LockResponse,
    "v3lockpb.UnlockRequest" => pb::v3lockpb::UnlockRequest,
    "v3lockpb.UnlockResponse" => pb::v3lockpb::UnlockResponse,
    "walpb.Record" => pb::walpb::Record,
    "walpb.Snapshot" => pb::walpb::Snapshot,
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn every_message_comes_back_byte_for_byte() {
    let mut seen = BTreeSet::new();
    let mut differ = Vec::new();
    for line in WIRE.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes = unhex(hex);
        match again_by_name(name, &bytes) {
            Some(encoded) if encoded == bytes => {}
            Some(encoded) => differ.push((name, bytes.len(), encoded.len())),
            None => panic!("{name} has no type here"),
        }
        seen.insert(name);
    }
    assert!(differ.is_empty(), "message, bytes in, bytes out: {differ:?}");
    assert_eq!(seen, NAMES.iter().copied().collect(), "wire.txt lacks messages of the table");
}
