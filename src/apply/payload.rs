//! What an entry of the log asks for.

use crate::pb::etcdserverpb as rpc;
use crate::pb::raftpb::Entry;
use prost::Message as _;

/// What a committed normal entry holds.
pub enum Payload {
    /// The leader's empty entry.
    Empty,
    /// A bare v2 request: attributes, cluster version, or one of the v2 API.
    V2(Box<rpc::Request>),
    /// A v3 request.
    V3(Box<rpc::InternalRaftRequest>),
}

/// Reads an entry as etcd does: as a v3 request first, and as a bare v2 request if that fails
/// (etcd v3.5.17 `server.go` applyEntryNormal).
pub fn payload(entry: &Entry) -> Result<Payload, prost::DecodeError> {
    if entry.data.is_empty() {
        return Ok(Payload::Empty);
    }
    match rpc::InternalRaftRequest::decode(entry.data.clone()) {
        Ok(rpc::InternalRaftRequest { v2: Some(request), .. }) => {
            Ok(Payload::V2(Box::new(request)))
        }
        Ok(request) => Ok(Payload::V3(Box::new(request))),
        Err(_) => Ok(Payload::V2(Box::new(rpc::Request::decode(entry.data.clone())?))),
    }
}
