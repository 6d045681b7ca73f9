//! What is on disk: etcd's write-ahead log, the engine beside it, and the directory that holds
//! both; and etcd's database file, read and written. Calls block; nothing here is async.
//! Uses: base, cluster, mvcc, obs, pb

pub mod bbolt;
pub mod check;
pub mod checkpoint;
pub mod datadir;
pub mod engine;
pub mod fingerprint;
#[cfg(test)]
mod fuzz;
pub mod image;
pub mod import;
pub mod snap;
pub mod wal;
