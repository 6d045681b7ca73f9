//! Snapshots between members, StoreActor's part: the state that a leader sent takes the place of
//! this one, with readers, watchers and tokens going on; and the state of this moment for a member
//! that is behind.

use super::{Apply, StoreActor};
use crate::actors::alarm_log;
use crate::actors::lease_keeper;
use crate::actors::raft::{self, SnapStatus};
use crate::actors::rt;
use crate::actors::watch_hub;
use crate::apply::{Machine, TokenChange};
use crate::base::failpoint;
use crate::base::ids::MemberId;
use crate::cluster::state::Cluster;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{Message as RaftMessage, Snapshot, SnapshotMetadata};
use crate::storage::engine;
use crate::v2::Image;
use actix::{AsyncContext, Context, Handler, Message};
use std::collections::VecDeque;

/// The state as of one moment, for a member that is behind.
pub struct Merged {
    /// Raft's message, with everything but the tree.
    pub message: RaftMessage,
    pub tree: Image,
    pub view: engine::View,
}

/// Sends snapshots to members; the transport implements it. RaftActor is told what became of each.
pub trait Snapshots: Send + 'static {
    fn send(&self, snapshot: Merged);
}

/// Raft wants the member to have a snapshot.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SendSnapshot(pub RaftMessage);

/// A leader's snapshot is written down, and its database is in its file: it takes the place of all
/// that was applied. Entries that follow it follow this message.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Install(pub Snapshot);

/// The checkpointer has made a machine of it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Installed {
    pub index: u64,
    pub machine: Machine,
}

/// What waits for a machine that is on its way.
pub(super) enum Held {
    Apply(Apply),
    Install(Install),
    Send(SendSnapshot),
}

/// A machine on its way, and what waits for it, in order.
pub(super) struct Installing {
    index: u64,
    term: u64,
    cluster: Cluster,
    held: VecDeque<Held>,
}

impl StoreActor {
    /// What waits if a machine is on its way.
    pub(super) fn hold(&mut self, held: Held) -> Option<Held> {
        match &mut self.installing {
            Some(installing) => {
                installing.held.push_back(held);
                None
            }
            None => Some(held),
        }
    }

    /// Takes up what need not wait.
    pub(super) fn take(&mut self, held: Held, ctx: &mut Context<Self>) {
        match self.hold(held) {
            Some(Held::Apply(apply)) => self.apply_all(apply, ctx),
            Some(Held::Install(install)) => self.install(install, ctx),
            Some(Held::Send(send)) => self.send_snapshot(send),
            None => {}
        }
    }

    fn install(&mut self, Install(snapshot): Install, ctx: &mut Context<Self>) {
        let metadata = snapshot.get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        tracing::info!(
            "current-applied-index" = self.shared.applied_index(),
            "incoming-leader-snapshot-index" = index,
            "incoming-leader-snapshot-term" = term,
            "applying snapshot"
        );
        metrics().apply_snapshot_in_progress.set(1);
        // It was read when it came.
        let cluster = Cluster::from_snapshot(&snapshot.data, metadata.get_conf_state())
            .unwrap_or_else(|error| rt::fatal(&format!("the snapshot at index {index}: {error}")));
        self.installing = Some(Installing { index, term, cluster, held: VecDeque::new() });
        self.trigger.install(index, ctx.address());
    }

    fn installed(&mut self, index: u64, machine: Machine, ctx: &mut Context<Self>) {
        let Some(Installing { index: wanted, term, cluster, held }) = self.installing.take() else {
            unreachable!("a machine is made when it is asked for");
        };
        assert_eq!(index, wanted, "one machine is made at a time");
        let auth_before = self.machine.auth_reader().revision();
        let before = self.machine.replace(machine);
        tokio::task::spawn_blocking(move || drop(before));
        self.machine.skip(index, term);
        self.machine.flush_position();
        self.generation += 1;
        self.cluster = cluster;
        self.shared.publish_members(self.cluster.members());
        let alarms = self.machine.alarms();
        alarm_log::changed(&self.shared.alarms(), &alarms);
        self.shared.publish_alarms(alarms);
        self.shared.publish_downgrade(self.machine.downgrade());
        if self.machine.auth_reader().revision() != auth_before {
            // Nobody knows whose were made void meanwhile.
            self.provider.change(TokenChange::AllForgotten, self.pace.clock.now());
        }
        self.shared.auth_changed();
        self.tell_lease_keeper(lease_keeper::Restored);
        if let Some(hub) = &self.watch_hub {
            hub.do_send(watch_hub::Restored { revision: self.machine.revision() });
        }
        self.trigger.installed(index, self.shared.log_bytes());
        self.shared.publish_applied(index);
        self.begin_compacting(ctx);
        if let Some(raft) = &self.raft {
            let members = self.cluster.members().iter().cloned().collect();
            raft.do_send(raft::Installed { index, members });
        }
        metrics().apply_snapshot_in_progress.set(0);
        tracing::info!(
            "incoming-leader-snapshot-index" = index,
            revision = self.machine.revision(),
            "applied snapshot"
        );
        for held in held {
            self.take(held, ctx);
        }
    }

    /// As of now, which is no earlier than what raft asked for.
    fn send_snapshot(&mut self, SendSnapshot(mut message): SendSnapshot) {
        let to = MemberId(message.to);
        self.machine.flush_position();
        let view = match (self.view)() {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(%error, "failed to make a database snapshot");
                if let Some(raft) = &self.raft {
                    raft.do_send(SnapStatus { to, delivered: false });
                }
                return;
            }
        };
        let (index, term) = self.machine.position();
        let conf_state = Some(self.cluster.members().conf_state());
        let metadata = Some(SnapshotMetadata { conf_state, index, term });
        message.snapshot = Some(Snapshot { metadata, ..Snapshot::default() });
        let tree = self.cluster.tree().image();
        tracing::info!(to = %to, "snapshot-index" = index, "sending merged snapshot");
        self.snapshots.send(Merged { message, tree, view });
    }
}

impl Handler<Install> for StoreActor {
    type Result = ();

    fn handle(&mut self, install: Install, ctx: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.take(Held::Install(install), ctx));
    }
}

impl Handler<Installed> for StoreActor {
    type Result = ();

    fn handle(&mut self, Installed { index, machine }: Installed, ctx: &mut Self::Context) {
        rt::or_abort("StoreActor", || {
            failpoint::hit(failpoint::INSTALL_SWAP);
            self.installed(index, machine, ctx);
        });
    }
}

impl Handler<SendSnapshot> for StoreActor {
    type Result = ();

    fn handle(&mut self, send: SendSnapshot, ctx: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.take(Held::Send(send), ctx));
    }
}
