//! Plain HTTP: health, version and metrics for clients; members and leases for peers.
//! Uses: base, pb, actors, obs, transport

pub mod client;
pub mod hashkv;
pub mod health;
pub mod peer;
pub mod text;

pub use client::{AccessControl, ClientHttp, client_router, metrics_router, with_access_control};
pub use hashkv::HashRead;
pub use health::{LocalRead, REQUEST_TIMEOUT};
pub use peer::peer_router;
pub use text::{SERVER_VERSION, not_found};

#[cfg(test)]
mod tests;
