//! The wire: types and services generated from `proto/`, and etcd's raft messages.
//! Uses: nothing
#![allow(missing_docs, clippy::all)]

pub mod codec;

pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
pub mod authpb {
    tonic::include_proto!("authpb");
}
pub mod membershippb {
    tonic::include_proto!("membershippb");
}
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
pub mod walpb {
    tonic::include_proto!("walpb");
}
pub mod snappb {
    tonic::include_proto!("snappb");
}
pub mod leasepb {
    tonic::include_proto!("leasepb");
}
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
pub use raft_proto::eraftpb as raftpb;
