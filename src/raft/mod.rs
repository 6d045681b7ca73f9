//! Consensus: a pure driver around the raft crate's RawNode. Messages, proposals and ticks in,
//! work to do out. No I/O, no clock.
//! Uses: base, cluster, pb

pub mod admit;
pub mod bootstrap;
pub mod driver;
pub mod leader_only;
pub mod log;
pub mod reads;
pub mod sending;
pub mod turn;
