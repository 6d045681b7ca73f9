//! rusd: an etcd 3.5 drop-in. The layers, from the bottom: `base`, `pb`; the pure core (`raft`,
//! `mvcc`, `lease`, `auth`, `v2`, `cluster`, `apply`); `storage`; `actors`; the edges (`grpc`,
//! `http`, `transport`); `node` and `cli` above them. An import may only point down.
//! Uses: nothing

pub mod actors;
pub mod apply;
pub mod auth;
pub mod base;
pub mod cli;
pub mod cluster;
pub mod grpc;
pub mod http;
pub mod lease;
pub mod mvcc;
pub mod node;
pub mod obs;
pub mod pb;
pub mod raft;
pub mod storage;
pub mod transport;
pub mod v2;
