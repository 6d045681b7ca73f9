//! Classic mistakes that the simulation must find when they are put back, one at a time.

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The vote is not written down: a member that restarts may vote twice in a term.
    VoteNotSaved,
    /// Writes are said to be on disk before they are (what etcd#14370 came down to).
    SaveNotAwaited,
    /// A retried read index keeps its context, so that old heartbeat answers count (etcd#20418).
    ReadContextReused,
    /// A leader that was deposed still has its expired leases revoked (etcd#15247).
    RevokesByAnyone,
    /// A start applies entries again that the store already has.
    AppliedTwice,
    /// A linearizable read does not wait until its index is applied.
    ReadNotAwaited,
    /// A watcher that comes back misses what happened meanwhile.
    HistorySkipped,
    /// A snapshot for a member has no leases.
    LeasesForgotten,
}
