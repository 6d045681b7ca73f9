//! Who is in the cluster: identity, members, versions. Pure tables and rules.
//! Uses: base, pb

pub mod identity;
pub mod members;
pub mod v2_tree;
