//! Bytes between processes: listeners, TLS and the peer protocol.
//! Uses: base, pb

pub mod rafthttp;
