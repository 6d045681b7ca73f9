//! The actors and the handles by which edges reach them. Who tells whom: edges ask RaftActor
//! (propose, read index, step) and LeaseKeeper (renew, remaining); RaftActor tells StoreActor
//! (register, apply) and LeaseKeeper (demoted); StoreActor tells RaftActor (applied) and
//! LeaseKeeper (leases, promoted); LeaseKeeper tells RaftActor (propose as leader), Compactor too
//! (propose); StoreActor tells the checkpointer (snap), which tells RaftActor (snap saved) and is
//! told by it (recorded); watch streams ask WatchHub, which tells StoreActor (watch) and is told by
//! it (live, events). Nobody waits.
//! Uses: apply, auth, base, cluster, lease, mvcc, obs, pb, raft, storage, v2

mod alarm_log;
pub mod auth;
pub mod checkpointer;
pub mod compactor;
pub mod core;
pub mod corruption;
mod downgrade;
pub mod handle;
pub mod ids;
pub mod inbox;
pub mod lease_keeper;
pub mod maintenance;
mod member_log;
pub mod membership;
mod no_space;
pub mod raft;
pub mod rt;
pub mod store;
mod timings;
pub mod watch_hub;
