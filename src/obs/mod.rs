//! What operators see: metrics and logs.
//! Uses: nothing

pub mod metrics;
