//! The multi-version store: key index, revisions, ranges, transactions, compaction, hashes.
//! Uses: base, pb

pub mod auto_compact;
pub mod backend;
mod cache;
mod compact;
pub mod corrupt;
pub mod counts;
mod hash;
mod index;
mod read;
mod restore;
mod row;
mod shared;
pub mod size;
mod store;
pub mod watch;

pub use compact::{
    CompactProgress, CutOff, FINISHED as FINISHED_COMPACTION, Look, Looked,
    SCHEDULED as SCHEDULED_COMPACTION,
};
pub use hash::BUCKETS;
pub(crate) use read::header;
pub use read::{ReadError, Reader};
pub use row::{Row, key_only, kv_deleted};
pub use store::{Change, Current, Store};
