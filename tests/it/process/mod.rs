//! The daemon as a process: started, loaded, broken at its failpoints, killed, started again.

mod auth;
mod behind;
mod check_data;
mod checkpoint;
mod compaction;
mod corruption;
mod daemon;
mod damage;
mod downgrade;
mod durable;
mod lease;
mod load;
mod lock;
mod maintenance;
mod membership;
mod quota;
mod refusals;
mod snapshot;
mod watch;
