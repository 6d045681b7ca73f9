//! Who is in the cluster: identity, members, versions. Pure tables and rules.
//! Uses: base, pb, v2

pub mod identity;
pub mod members;
pub mod reconfig;
pub mod state;
pub mod version;
