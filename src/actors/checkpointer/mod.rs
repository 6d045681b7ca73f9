//! The checkpointer: a thread that keeps etcd's database file close behind the engine, writes
//! snapshot files and removes what they make useless. It is told things and tells RaftActor; nobody
//! waits for it but a stop. Why a thread and not an actor, and why it may be late: see
//! docs/decisions/0007-checkpoint.md.
//! Uses: apply, base, mvcc, obs, pb, storage, v2

mod budget;
mod trigger;

pub use trigger::Trigger;

use crate::actors::core::Shared;
use crate::actors::raft::{RaftActor, SnapSaved};
use crate::actors::rt;
use crate::actors::store::{self, StoreActor};
use crate::apply::Machine;
use crate::base::clock::Clock;
use crate::mvcc::Reader;
use crate::mvcc::backend::Backend as _;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::ConfState;
use crate::storage::checkpoint::{Checkpoint, CheckpointError, Way};
use crate::storage::engine::{Current, Engine};
use crate::storage::snap::{self, Snap};
use crate::storage::wal::Released;
use crate::v2::Image;
use actix::Addr;
use budget::Budget;
use parking_lot::{Condvar, Mutex};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it looks whether there is anything to write: etcd commits to its database every 100 ms
/// (etcd v3.5.17 `--backend-batch-interval`).
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// After one that took so long, so many times that pass before the next.
const REST_FACTOR: u32 = 10;
/// A small one costs little, however long a busy disk kept it waiting: the longest rest after it,
/// and how many bytes it may have.
const REST_AFTER_SMALL_MAX: Duration = Duration::from_millis(300);
const SMALL_BYTES: u64 = 1024 * 1024;
/// The same within one, after each part that was written and synced: the log's syncs come between.
const PART_REST_FACTOR: u32 = 2;
/// A file that holds more than so many times what it has to, and `DEAD_BYTES_MIN` more, is
/// rewritten: what was compacted away has cost the log at least as much as that costs.
const DEAD_FACTOR: u64 = 2;
const DEAD_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// The longest rest after a part.
const PART_REST_MAX: Duration = Duration::from_millis(200);
/// How often it looks whether the commit index that a tree needs is on the disk.
const COMMIT_LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stop waits for that.
const COMMIT_WAIT_AT_STOP: Duration = Duration::from_secs(2);
/// What a thread that is in no hurry adds to its nice value.
const NICE: i32 = 10;
/// Pauses between attempts after an error: doubled from the first to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A snapshot that is wanted: the state after the entry at `index`.
#[derive(Debug)]
pub struct Wanted {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
    pub tree: Image,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Mail {
    /// The newest snapshot that is wanted.
    snap: Option<Wanted>,
    /// However expensive its checkpoint is.
    hurry: bool,
    /// A snapshot that the WAL has recorded, and the segments that it made useless.
    recorded: Option<u64>,
    released: Vec<Released>,
    /// The file is to become as small as it can be.
    shrink: bool,
    /// Index of a leader's snapshot whose database is to take the place of the file and the engine,
    /// and who waits for the machine.
    install: Option<(u64, Addr<StoreActor>)>,
    stop: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        let told = self.snap.is_some() || self.recorded.is_some() || self.install.is_some();
        !told && !self.shrink && !self.stop
    }
}

#[derive(Debug, Default)]
struct Desk {
    /// Held to put something in or to take everything out.
    mail: Mutex<Mail>,
    wake: Condvar,
    /// A snapshot is wanted and the WAL has not recorded it yet: another would only replace it.
    snapping: AtomicBool,
    /// The thread is to end what it is at.
    stopping: AtomicBool,
    /// The same, because it is for nothing.
    installing: AtomicBool,
}

impl Desk {
    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.installing.load(Ordering::Acquire)
    }
}

/// How others tell the checkpointer.
#[derive(Clone, Debug, Default)]
pub struct CheckpointerHandle(Arc<Desk>);

impl CheckpointerHandle {
    /// Whether a snapshot is on its way.
    pub fn is_snapping(&self) -> bool {
        self.0.snapping.load(Ordering::Acquire)
    }

    /// A snapshot of this state is wanted; if `hurry`, whatever its checkpoint costs.
    pub fn snap(&self, snap: Wanted, hurry: bool) {
        self.0.snapping.store(true, Ordering::Release);
        self.tell(|mail| (mail.snap, mail.hurry) = (Some(snap), hurry));
    }

    /// The WAL has recorded the snapshot at `index` and let go of these segments.
    pub fn recorded(&self, index: u64, released: Vec<Released>) {
        self.0.snapping.store(false, Ordering::Release);
        self.tell(|mail| {
            mail.recorded = Some(index);
            mail.released.extend(released);
        });
    }

    /// The database that a leader sent with its snapshot at `index` is to take the place of the
    /// file and the engine; `store` gets the machine.
    pub fn install(&self, index: u64, store: Addr<StoreActor>) {
        self.0.installing.store(true, Ordering::Release);
        self.tell(|mail| mail.install = Some((index, store)));
    }

    /// The file is to give back the room that it does not need.
    pub fn shrink(&self) {
        self.tell(|mail| mail.shrink = true);
    }

    fn tell(&self, put: impl FnOnce(&mut Mail)) {
        put(&mut self.0.mail.lock());
        self.0.wake.notify_one();
    }

    /// Waits for mail, but not for long.
    fn take(&self, patience: Duration) -> Mail {
        let mut mail = self.0.mail.lock();
        if mail.is_empty() {
            let _ = self.0.wake.wait_for(&mut mail, patience);
        }
        std::mem::take(&mut *mail)
    }
}

/// What is made of the database that came with a leader's snapshot.
pub struct Fresh {
    pub checkpoint: Checkpoint,
    pub engine: Arc<Engine>,
    pub machine: Machine,
}

/// Puts such a database into the place of the one there is. An error ends the process: what the
/// member had is given up by then, and a start goes on from what is on the disk.
pub trait Installer: Send + 'static {
    fn install(&mut self, index: u64) -> Result<Fresh, String>;
}

/// What the thread works with.
pub struct Parts {
    pub checkpoint: Checkpoint,
    pub engine: Current,
    pub installer: Box<dyn Installer>,
    /// `member/snap`.
    pub dir: PathBuf,
    /// Snapshot files that stay; 0: all.
    pub snaps_kept: usize,
    pub raft: Addr<RaftActor>,
    pub reader: Reader,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
}

/// The running thread.
pub struct Running {
    handle: CheckpointerHandle,
    thread: JoinHandle<()>,
}

impl Running {
    /// Brings the file up to date and ends the thread. Whatever changes the engine has stopped.
    pub fn stop(self) {
        self.handle.0.stopping.store(true, Ordering::Release);
        self.handle.tell(|mail| mail.stop = true);
        if self.thread.join().is_err() {
            tracing::error!("the checkpointer panicked");
        }
    }
}

/// Starts the thread.
pub fn start(handle: CheckpointerHandle, parts: Parts) -> std::io::Result<Running> {
    let budget = Budget::new(parts.clock.now());
    let worker = Worker {
        handle: handle.clone(),
        parts,
        budget,
        snap: None,
        hurry: false,
        shrink: false,
        log_bytes: 0,
        resting_until: None,
        retry: RETRY_MIN,
        replaced: Vec::new(),
    };
    let builder = std::thread::Builder::new().name("checkpointer".into());
    let thread = builder.spawn(move || rt::or_abort("checkpointer", || worker.run()))?;
    Ok(Running { handle, thread })
}

/// How long it writes nothing after a checkpoint of so many bytes.
fn rest_after(took: Duration, bytes: u64) -> Duration {
    let most = if bytes <= SMALL_BYTES { REST_AFTER_SMALL_MAX } else { Duration::MAX };
    (took * REST_FACTOR).min(most)
}

struct Worker {
    handle: CheckpointerHandle,
    parts: Parts,
    budget: Budget,
    /// The snapshot that is wanted and not yet written.
    snap: Option<Wanted>,
    hurry: bool,
    shrink: bool,
    /// Bytes of the log when the newest checkpoint was begun.
    log_bytes: u64,
    resting_until: Option<Instant>,
    /// The pause after the next error.
    retry: Duration,
    /// Engines that are only read any more.
    replaced: Vec<Arc<Engine>>,
}

impl Worker {
    fn run(mut self) {
        // The system may refuse; then it competes like others.
        let _ = rustix::process::nice(NICE);
        loop {
            let mail = self.handle.take(LOOK_INTERVAL);
            self.remove(mail.recorded, &mail.released);
            self.remove_replaced();
            if let Some((index, store)) = mail.install {
                // What was wanted of the state before is of no use.
                (self.snap, self.hurry) = (None, false);
                self.handle.0.snapping.store(false, Ordering::Release);
                self.install(index, &store);
            } else if mail.snap.is_some() {
                (self.snap, self.hurry) = (mail.snap, mail.hurry);
            }
            self.shrink |= mail.shrink;
            if mail.stop {
                self.finish();
                return;
            }
            let now = self.parts.clock.now();
            let (_, cost) = self.next();
            self.budget.earn(now, self.parts.shared.log_bytes(), cost);
            if self.resting_until.is_some_and(|until| now < until) {
                continue;
            }
            if let Err(error) = self.work()
                && !self.handle.0.is_over()
            {
                self.failed(&error);
            }
        }
    }

    fn install(&mut self, index: u64, store: &Addr<StoreActor>) {
        let fresh = self.parts.installer.install(index).unwrap_or_else(|error| {
            rt::fatal(&format!("failed to install the snapshot at index {index}: {error}"))
        });
        let Fresh { checkpoint, engine, machine } = fresh;
        self.parts.checkpoint = checkpoint;
        self.log_bytes = self.parts.shared.log_bytes();
        self.replaced.push(self.parts.engine.now());
        self.parts.engine.replace(engine);
        self.handle.0.installing.store(false, Ordering::Release);
        self.resting_until = None;
        store.do_send(store::Installed { index, machine });
    }

    fn remove_replaced(&mut self) {
        let replaced = std::mem::take(&mut self.replaced);
        self.replaced = replaced.into_iter().filter_map(|engine| engine.remove().err()).collect();
    }

    /// Whether the engine has what the file lacks.
    fn is_behind(&self) -> bool {
        let index = self.parts.checkpoint.index();
        index.is_none_or(|index| index < self.parts.engine.now().position().0)
    }

    /// How the next one is written, and what of the budget that takes.
    fn next(&self) -> (Way, u64) {
        let checkpoint = &self.parts.checkpoint;
        if self.shrink {
            return (Way::Replace, 0);
        }
        let Some(overhead) = checkpoint.growth_bytes() else {
            return (Way::Rewrite, checkpoint.bytes());
        };
        let needed = self.parts.reader.size_in_use_bytes();
        if checkpoint.used_bytes() > DEAD_FACTOR * needed + DEAD_BYTES_MIN {
            return (Way::Rewrite, 0);
        }
        // New rows are about what the log has become longer.
        (Way::Grow, overhead + self.parts.shared.log_bytes().saturating_sub(self.log_bytes))
    }

    fn work(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let wanted = self.snap.as_ref().is_some_and(|snap| {
            self.parts.checkpoint.index().is_none_or(|index| index < snap.index)
        });
        let (way, cost) = self.next();
        let affordable = self.budget.affords(cost);
        if self.shrink || (self.is_behind() && (affordable || (wanted && self.hurry))) {
            self.write(way, true)?;
            self.shrink = false;
        }
        let reached = self.parts.checkpoint.index().unwrap_or(0);
        if let Some(snap) = self.snap.take_if(|snap| snap.index <= reached)
            && let Err(error) = self.save(&snap)
        {
            self.snap = Some(snap);
            return Err(error.into());
        }
        self.retry = RETRY_MIN;
        Ok(())
    }

    /// Writes a checkpoint of what there is now.
    fn write(&mut self, way: Way, paced: bool) -> Result<(), CheckpointError> {
        let begun = self.parts.clock.now();
        let log_bytes = self.parts.shared.log_bytes();
        let (desk, clock) = (self.handle.0.clone(), self.parts.clock.clone());
        let mut part_begun = begun;
        let mut pace = || {
            if !paced {
                return true;
            }
            let took = clock.now().duration_since(part_begun);
            std::thread::sleep((took * PART_REST_FACTOR).min(PART_REST_MAX));
            part_begun = clock.now();
            !desk.is_over()
        };
        let engine = self.parts.engine.now();
        let prepared = match self.parts.checkpoint.prepare(&engine, way, &mut pace) {
            Err(error @ CheckpointError::CannotGrow(_)) => {
                tracing::debug!(%error, "rewriting etcd's database file");
                // From now on the next one is a rewrite, and waits until the budget allows it.
                return if paced { Ok(()) } else { self.write(Way::Rewrite, paced) };
            }
            prepared => prepared?,
        };
        self.wait_for_commit(prepared.index())?;
        let (index, bytes) = (prepared.index(), prepared.bytes());
        self.parts.checkpoint.publish(prepared, &engine)?;
        self.log_bytes = log_bytes;
        let now = self.parts.clock.now();
        let took = now.duration_since(begun);
        self.resting_until = Some(now + rest_after(took, bytes));
        self.budget.spend(bytes);
        metrics().checkpoints.observe(took.as_secs_f64());
        metrics().checkpoint_bytes.inc_by(bytes);
        metrics().checkpoint_index.set(i64::try_from(index).unwrap_or(i64::MAX));
        tracing::debug!(index, bytes, took = ?took, ?way, "wrote a checkpoint");
        Ok(())
    }

    /// What is published must be committed by a hard state on the disk, or an etcd that opens the
    /// directory sees a database from its future.
    fn wait_for_commit(&self, index: u64) -> Result<(), CheckpointError> {
        let mut stopping_since = None;
        while self.parts.shared.commit_durable() < index {
            if self.handle.0.stopping.load(Ordering::Acquire) {
                let now = self.parts.clock.now();
                if now.duration_since(*stopping_since.get_or_insert(now)) >= COMMIT_WAIT_AT_STOP {
                    return Err(CheckpointError::Stopped);
                }
            }
            if self.handle.0.installing.load(Ordering::Acquire) {
                return Err(CheckpointError::Stopped);
            }
            std::thread::sleep(COMMIT_LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Writes the snapshot's file, and has RaftActor record it.
    fn save(&self, wanted: &Wanted) -> Result<(), snap::SnapError> {
        let Wanted { index, term, conf_state, tree } = wanted;
        let (index, term, conf_state) = (*index, *term, conf_state.clone());
        let tree = tree.json().into();
        snap::save(&self.parts.dir, &Snap { index, term, conf_state: conf_state.clone(), tree })?;
        // IMPORTANT: before any segment is released: the engine must not lose what only that had.
        if let Err(error) = self.parts.engine.now().sync() {
            rt::fatal(&format!("failed to sync the engine: {error}"));
        }
        tracing::info!("snapshot-index" = index, "saved snapshot");
        self.parts.raft.do_send(SnapSaved { index, term, conf_state });
        Ok(())
    }

    /// What is left over costs room and nothing else, so an error is only told.
    fn remove(&self, recorded: Option<u64>, released: &[Released]) {
        if let Some(index) = recorded
            && let Err(error) = snap::purge(&self.parts.dir, index, self.parts.snaps_kept)
        {
            tracing::warn!(%error, "failed to purge snapshot files");
        }
        for segment in released {
            if let Err(error) = segment.remove() {
                tracing::warn!(%error, "failed to purge WAL segments");
                // Those behind it must stay, too.
                return;
            }
        }
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        metrics().checkpoint_failures.inc();
        self.resting_until = Some(self.parts.clock.now() + self.retry);
        tracing::error!(
            %error,
            retry = ?self.retry,
            "failed to write a checkpoint; the file is what it was, and the log has the rest"
        );
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    fn finish(&mut self) {
        if self.is_behind()
            && let Err(error) = self.write(Way::Grow, false)
        {
            self.failed(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_checkpoint_that_a_busy_disk_delays_is_followed_by_the_next_one_soon() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(5), 24_576), ms(50));
        assert_eq!(rest_after(ms(400), 24_576), ms(300));
        assert_eq!(rest_after(ms(400), 64 * 1024 * 1024), ms(4_000));
    }
}
