//! What the store has done since it was opened, counted as etcd counts it
//! (v3.5.17 `server/mvcc/metrics_txn.go`), for `/metrics` to read.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counters of the store; the writer and the readers add to them.
#[derive(Debug, Default)]
pub struct Counts {
    pub(crate) ranges: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) deletes: AtomicU64,
    pub(crate) txns: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) keys: AtomicI64,
    pub(crate) compacted_rows: AtomicU64,
}

/// Operations of one transaction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub ranges: u64,
    pub puts: u64,
    pub deletes: u64,
    pub put_bytes: u64,
}

impl Counts {
    /// Counts a transaction that ends. One operation alone is no transaction.
    pub(crate) fn end(&self, tally: Tally) {
        let Tally { ranges, puts, deletes, put_bytes } = tally;
        let add = |counter: &AtomicU64, count: u64| {
            if count != 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        };
        add(&self.ranges, ranges);
        add(&self.puts, puts);
        add(&self.deletes, deletes);
        add(&self.put_bytes, put_bytes);
        add(&self.txns, u64::from(ranges + puts + deletes > 1));
    }

    /// Goes on from what a store counted whose place this one's takes; its keys are its own.
    pub(crate) fn go_on(&self, before: &Counts) {
        let pairs = [
            (&self.ranges, &before.ranges),
            (&self.puts, &before.puts),
            (&self.deletes, &before.deletes),
            (&self.txns, &before.txns),
            (&self.put_bytes, &before.put_bytes),
            (&self.compacted_rows, &before.compacted_rows),
        ];
        for (own, before) in pairs {
            own.fetch_add(before.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Ranges, each compare of a transaction among them.
    pub fn ranges(&self) -> u64 {
        self.ranges.load(Ordering::Relaxed)
    }

    /// Puts.
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// Delete requests, whatever they deleted, and keys deleted with their lease.
    pub fn deletes(&self) -> u64 {
        self.deletes.load(Ordering::Relaxed)
    }

    /// Transactions of more than one operation.
    pub fn txns(&self) -> u64 {
        self.txns.load(Ordering::Relaxed)
    }

    /// Bytes of keys and values put.
    pub fn put_bytes(&self) -> u64 {
        self.put_bytes.load(Ordering::Relaxed)
    }

    /// Live keys.
    pub fn keys(&self) -> i64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Rows removed by compactions.
    pub fn compacted_rows(&self) -> u64 {
        self.compacted_rows.load(Ordering::Relaxed)
    }
}
