//! A downgrade of the cluster, as the edges ask for it.
//! Uses: base

use super::Answer;
use crate::base::error::Result;

/// What is asked about a downgrade: each waits until this member knows what was committed before.
/// The answers are the cluster version, `3.5.0` (etcd v3.5.17 `etcdserver/v3_server.go` Downgrade).
pub trait Downgrading: Send + Sync {
    /// Whether the cluster could begin one to `target`, `3.4` or `3.4.0`.
    fn validate<'a>(&'a self, target: &'a str) -> Answer<'a, Result<String>>;
    /// Begins one: from now on only members of the target's version may start.
    fn enable<'a>(&'a self, target: &'a str) -> Answer<'a, Result<String>>;
    /// Ends it, wherever it is.
    fn cancel(&self) -> Answer<'_, Result<String>>;
    /// Whether one is under way.
    fn is_enabled(&self) -> Answer<'_, Result<bool>>;
}
