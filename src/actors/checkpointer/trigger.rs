//! When a snapshot is wanted (etcd v3.5.17 `server/etcdserver/server.go` triggerSnapshot).

use super::{CheckpointerHandle, Wanted};
use crate::actors::store::StoreActor;
use crate::base::limits::LOG_BYTES_PER_SNAPSHOT_MAX;
use actix::Addr;

/// StoreActor's side of snapshots: when the newest was taken, and when the next is due.
#[derive(Debug)]
pub struct Trigger {
    handle: CheckpointerHandle,
    /// Applied entries after which one is wanted.
    count: u64,
    /// Index of the newest.
    index: u64,
    /// Bytes of the log when it was taken.
    log_bytes: u64,
}

impl Trigger {
    /// After a start from the snapshot at `index`.
    pub fn new(handle: CheckpointerHandle, count: u64, index: u64) -> Trigger {
        Trigger { handle, count, index, log_bytes: 0 }
    }

    /// Index of the newest snapshot.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Whether one is due after so many entries, or so much log, however few entries it holds.
    pub fn is_due(&self, applied: u64, log_bytes: u64) -> bool {
        let many = applied.saturating_sub(self.index) > self.count;
        let due = many || (applied > self.index && self.is_long(log_bytes));
        due && !self.handle.is_snapping()
    }

    fn is_long(&self, log_bytes: u64) -> bool {
        log_bytes.saturating_sub(self.log_bytes) > LOG_BYTES_PER_SNAPSHOT_MAX
    }

    /// Has a machine made of the snapshot at `index` that a leader sent, for `store`.
    pub fn install(&self, index: u64, store: Addr<StoreActor>) {
        self.handle.install(index, store);
    }

    /// The machine is that of the snapshot at `index`.
    pub fn installed(&mut self, index: u64, log_bytes: u64) {
        (self.index, self.log_bytes) = (index, log_bytes);
    }

    /// Asks for this one.
    pub fn snap(&mut self, snap: Wanted, log_bytes: u64) {
        let hurry = self.is_long(log_bytes);
        (self.index, self.log_bytes) = (snap.index, log_bytes);
        self.handle.snap(snap, hurry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::raftpb::ConfState;
    use crate::v2::Store;

    #[test]
    fn a_snapshot_is_due_after_entries_or_bytes_and_one_at_a_time() {
        let handle = CheckpointerHandle::default();
        let mut trigger = Trigger::new(handle.clone(), 10, 100);
        let long = LOG_BYTES_PER_SNAPSHOT_MAX + 1;
        assert!(!trigger.is_due(110, 5) && trigger.is_due(111, 5));
        assert!(trigger.is_due(101, long) && !trigger.is_due(100, long));
        let (conf_state, tree) = (ConfState::default(), Store::new().image());
        trigger.snap(Wanted { index: 111, term: 2, conf_state, tree }, long);
        assert!(!trigger.is_due(200, long), "one is on its way");
        handle.recorded(111, Vec::new());
        assert!(trigger.is_due(122, long) && !trigger.is_due(121, 2 * long - 1));
        assert_eq!(trigger.index(), 111);
    }
}
