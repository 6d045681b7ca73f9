//! bbolt's file format, read and written: etcd's `member/snap/db` and what Maintenance.Snapshot
//! sends (bbolt v1.3.11 `page.go`, `node.go`, `bucket.go`, `db.go`).
//!
//! A file is a row of pages. Pages 0 and 1 are the meta pages; the valid one with the higher
//! transaction is the file's state. It names the root bucket's first page and the first page that
//! was never used. A bucket is a B+ tree of branch and leaf pages; a page that does not hold its
//! rows goes on in the pages after it. The root bucket's rows are buckets: the value of such a row
//! names the bucket's first page or, if the bucket is small, is a leaf page itself (*inline*). What
//! is not reachable is free, whether or not a free list says so.
//!
//! Numbers are little-endian, as on every machine that etcd supports.
//!
//! [`Db`] trusts nothing in a file: whatever it says is checked before it is used, memory is
//! bounded by what the file really holds, and time is linear in its pages, since a page that is
//! reached twice is an error. [`Writer`] makes a file from rows in key order, in one pass, holding
//! one page of each level. [`Grower`] brings a file to a later state, writing what changed.
//! Uses: nothing

mod check;
#[cfg(test)]
mod fuzz;
mod grow;
mod page;
mod reader;
#[cfg(test)]
mod tests;
mod tree;
mod writer;

pub use check::Totals;
pub use grow::{Disk, GrowError, Grower, Growth, Settled};
pub use page::Meta;
pub use reader::{Bucket, Db, Direction, Item, Source, Walk};
pub use writer::{FIRST_PAGE, Plan, WriteError, Writer};

/// Page size of the files that are written: etcd's on all its machines.
pub const PAGE_BYTES: usize = 4096;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("bbolt: page {page}: {source}")]
    Io {
        /// The page that was read.
        page: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The page is not what bbolt writes.
    #[error("bbolt: page {page}: {reason}")]
    Malformed {
        /// Its number.
        page: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither meta page is valid.
    #[error("bbolt: no valid meta page: page 0: {first}; page 1: {second}")]
    NoMeta {
        /// What is wrong with page 0.
        first: String,
        /// What is wrong with page 1.
        second: String,
    },
}

/// Result with a reader's error.
pub type Result<T> = std::result::Result<T, Error>;
