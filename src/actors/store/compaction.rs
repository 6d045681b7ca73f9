//! Compaction, a step at a time: a thread of the blocking pool looks at rows, which may have to
//! wait for the engine's disk; this actor takes out what it has found, and pauses.

use super::StoreActor;
use crate::actors::rt;
use crate::base::failpoint;
use crate::mvcc::{CompactProgress, CutOff, Looked};
use actix::{AsyncContext, Context, Handler, Message};
use std::time::Instant;

/// Begins a step, if there is something to compact.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct CompactStep;

/// What a compaction that began then has found to do.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Compacted {
    begin: Instant,
    looked: Looked,
    generation: u64,
}

impl StoreActor {
    /// Has a thread look at the next rows. It drops on the way what the last step has cut off.
    fn compact_step(&mut self, ctx: &mut Context<Self>) {
        if !self.compacting {
            return;
        }
        failpoint::hit(failpoint::COMPACT_STEP);
        let cut_off = self.machine.take_cut_off();
        let Some(look) = self.machine.compaction_look(self.pace.compact_rows) else {
            self.compacting = false;
            self.publish_compacted();
            drop_elsewhere(cut_off);
            return;
        };
        let (begin, to) = (self.pace.clock.now(), ctx.address());
        let generation = self.generation;
        tokio::task::spawn_blocking(move || {
            rt::or_abort("StoreActor", || {
                drop(cut_off);
                to.do_send(Compacted { begin, looked: look.run(), generation });
            });
        });
    }

    fn compacted(&mut self, compacted: Compacted, ctx: &mut Context<Self>) {
        let Compacted { begin, looked, generation } = compacted;
        if generation != self.generation {
            return;
        }
        let revision = looked.revision();
        let progress = match self.machine.compacted(looked) {
            Ok(progress) => progress,
            Err(error) => rt::fatal(&format!("failed to compact: {error}")),
        };
        self.timings.compacted(revision, begin, progress);
        match progress {
            CompactProgress::More => {
                ctx.notify_later(CompactStep, self.pace.compact_pause);
            }
            CompactProgress::Done => {
                self.compacting = false;
                drop_elsewhere(self.machine.take_cut_off());
                self.log_hash(revision);
            }
        }
        self.publish_compacted();
    }

    /// A compaction has left a hash, unless it was interrupted
    /// (etcd v3.5.17 `mvcc/hash.go` Store).
    fn log_hash(&self, revision: i64) {
        let hashes = self.machine.reader().hashes();
        if let Some(hash) = hashes.iter().find(|hash| hash.revision == revision) {
            tracing::info!(
                hash = hash.hash,
                revision,
                "compact-revision" = hash.compact_revision,
                "storing new hash"
            );
        }
    }

    fn publish_compacted(&self) {
        self.shared.publish_compacted(self.machine.finished_compact_revision());
    }
}

/// A key's history may be long.
fn drop_elsewhere(cut_off: CutOff) {
    if !cut_off.is_empty() {
        tokio::task::spawn_blocking(move || drop(cut_off));
    }
}

impl Handler<CompactStep> for StoreActor {
    type Result = ();

    fn handle(&mut self, _: CompactStep, ctx: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.compact_step(ctx));
    }
}

impl Handler<Compacted> for StoreActor {
    type Result = ();

    fn handle(&mut self, compacted: Compacted, ctx: &mut Self::Context) {
        rt::or_abort("StoreActor", || self.compacted(compacted, ctx));
    }
}
