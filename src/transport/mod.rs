//! Bytes between processes: listeners, TLS and the peer protocol.
//! Uses: base, obs, pb

mod conn_task;
pub mod edge_threads;
pub mod listen;
pub mod rafthttp;
pub mod tls;

#[cfg(test)]
mod tests;
