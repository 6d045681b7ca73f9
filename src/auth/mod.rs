//! Users, roles and what they permit: the replicated state of authentication, its rows, and the
//! questions that entries and edges ask of it. Tokens and the hashing of passwords are elsewhere;
//! only their results come here.
//! Owns: users, roles, whether authentication is enabled, the auth revision.
//! Uses: base, mvcc (backend), pb
//! Invariants: every change but enabling raises the revision by one; a published state never
//! changes; rows are etcd's, byte for byte.
//! Tests: permissions against brute force; changes as a transcript; etcd's own answers in
//! `tests/it` and the suite.

pub mod password;
mod ranges;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use state::{Access, AuthReader, Caller, State};
pub use store::{AuthStore, Changed};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";
