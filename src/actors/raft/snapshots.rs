//! RaftActor's part of snapshots: its own that the checkpointer has written, those that go to
//! members that are behind, and the one that a leader sent; and what of the log each lets go of.

use super::{Parts, RaftActor};
use crate::actors::rt;
use crate::actors::store;
use crate::base::failpoint;
use crate::base::ids::MemberId;
use crate::base::limits;
use crate::cluster::members::Member;
use crate::pb::raftpb::{ConfState, Message as RaftMessage, Snapshot};
use crate::storage::wal::Released;
use actix::{Handler, Message};

/// A snapshot has reached this peer, or not.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SnapStatus {
    pub to: MemberId,
    pub delivered: bool,
}

/// The leader's snapshot at `index` is in the machine, and the cluster has these members.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Installed {
    pub index: u64,
    pub members: Vec<Member>,
}

/// A snapshot file is durable: the log may begin behind it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SnapSaved {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
}

impl RaftActor {
    /// Has StoreActor make the snapshot that raft asks for.
    pub(super) fn send_snapshot(&mut self, message: RaftMessage) {
        if self.sending.begin() {
            self.parts.store.do_send(store::SendSnapshot(message));
        } else {
            self.parts.driver.report_snapshot(MemberId(message.to), false);
        }
    }

    /// What was on its way to raft from StoreActor is in the snapshot.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.installed = snapshot.get_metadata().index;
        self.unchanged.clear();
        self.parts.store.do_send(store::Install(snapshot));
    }

    /// Lets go of what neither a start at the snapshot nor a member that is a little behind needs.
    fn release(&mut self, index: u64) -> Vec<Released> {
        let Parts { wal, driver, segments_kept, catchup_entries, .. } = &mut self.parts;
        let mut released = Vec::new();
        let mut floor = index.saturating_sub(*catchup_entries).max(1);
        if let Some(kept) = *segments_kept {
            released = wal.release(floor + 1, kept);
            // Large entries: they must not fill the disk.
            released.extend(wal.release(index, kept.max(limits::WAL_SEGMENTS_FOR_PEERS)));
        }
        let begins = wal.first_index();
        if begins > 1 {
            // Nobody knows the term before the first entry that is left.
            floor = floor.max(begins);
        }
        if driver.compact(floor) {
            tracing::info!("compact-index" = floor, "compacted Raft logs");
        }
        released
    }

    /// Records the snapshot, then lets go of the segments that only a start before it would need.
    fn record_snapshot(&mut self, saved: &SnapSaved) {
        failpoint::hit(failpoint::SNAP_RECORD);
        self.follow_applied();
        let SnapSaved { index, term, conf_state } = saved;
        if *index <= self.installed {
            // A later one from the leader has overtaken it.
            return self.parts.checkpointer.recorded(*index, Vec::new());
        }
        let Parts { wal, shared, .. } = &mut self.parts;
        if let Err(error) = wal.save_snapshot(*index, *term, conf_state) {
            rt::fatal(&format!("failed to write the WAL: {error}"));
        }
        shared.publish_log(wal.commit_durable(), wal.written_bytes());
        let released = if self.sending.keeps_log(self.parts.clock.now()) {
            tracing::info!("skip compaction since there is an inflight snapshot");
            Vec::new()
        } else {
            self.release(*index)
        };
        self.parts.checkpointer.recorded(*index, released);
    }
}

impl Handler<SnapStatus> for RaftActor {
    type Result = ();

    fn handle(&mut self, status: SnapStatus, ctx: &mut Self::Context) {
        let SnapStatus { to, delivered } = status;
        rt::or_abort("RaftActor", || {
            let kept = delivered && failpoint::io(failpoint::LOG_KEPT).is_ok();
            self.sending.end(kept, self.parts.clock.now());
            self.parts.driver.report_snapshot(to, delivered);
        });
        self.arm(ctx);
    }
}

impl Handler<Installed> for RaftActor {
    type Result = ();

    fn handle(&mut self, Installed { index, members }: Installed, ctx: &mut Self::Context) {
        rt::or_abort("RaftActor", || {
            self.parts.peers.replace(members);
            let released = self.release(index);
            self.parts.checkpointer.recorded(index, released);
        });
        self.arm(ctx);
    }
}

impl Handler<SnapSaved> for RaftActor {
    type Result = ();

    fn handle(&mut self, saved: SnapSaved, _: &mut Self::Context) {
        rt::or_abort("RaftActor", || self.record_snapshot(&saved));
    }
}
