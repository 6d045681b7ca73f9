//! What operators see: logs in zap's shape, and etcd's metrics.
//! Uses: nothing

pub mod log;
pub mod metrics;
