//! The actors and the handles by which edges reach them.
//! Uses: apply, base, cluster, mvcc, pb, raft, storage

pub mod handle;
