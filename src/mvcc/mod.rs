//! The multi-version store: key index, revisions, ranges, transactions, compaction, hashes.
//! Uses: base, pb

pub mod backend;
