//! Identifiers that must not be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            /// Lower-case hex without padding, as etcd prints ids.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    };
}

id!(
    /// A raft member. 0 is "none".
    MemberId(u64)
);
id!(
    /// A cluster.
    ClusterId(u64)
);
id!(
    /// A lease. 0 is "no lease".
    LeaseId(i64)
);

/// A place in the history of the store: the transaction and the position inside it.
/// `main` starts at 1 for an empty store; the first write makes 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Number of the transaction.
    pub main: i64,
    /// Position of the change inside the transaction, from 0.
    pub sub: i64,
}
