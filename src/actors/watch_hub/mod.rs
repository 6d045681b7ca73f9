//! WatchHub: hands the store's events to watch streams. It waits for nobody: a stream whose client
//! is slow costs its watchers their place at the head, and history brings them back.
//!
//! The table of watchers outlives a panic of the hub: the next life recovers it, and every stream
//! goes on from what it was given.
//! Uses: apply, base, mvcc, obs

#[cfg(test)]
pub(crate) mod tests;

use crate::actors::handle::watch::{Ask, EVERY_WATCHER, Notice, Outlet, Request, Tell, Watching};
use crate::actors::rt::{self, Handles, Life, Restartable, Supervised};
use crate::actors::store::{self, StoreActor};
use crate::apply;
use crate::base::failpoint;
use crate::mvcc::Reader;
use crate::mvcc::backend::BackendError;
use crate::mvcc::watch::{Limits, Outcome, Pass, StreamId, Watchers, Written};
use crate::obs::metrics::metrics;
use actix::{Addr, Message};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A pass that failed is tried again after this long.
const PASS_RETRY: Duration = Duration::from_millis(100);

/// StoreActor tells events from now on: those after `revision`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Live {
    /// Of the [`store::Watch`] that asked for it.
    pub epoch: u64,
    pub revision: i64,
}

/// The store moved to each of these revisions by these changes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Events(pub Vec<(i64, Vec<apply::Event>)>);

/// The store has come to this revision by a leader's snapshot: what happened since is in no event,
/// and is read from its history.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Restored {
    pub revision: i64,
}

#[derive(Message)]
#[rtype(result = "()")]
struct PassRead(Result<Outcome, String>);

/// Opens watch streams; hides the hub's address.
#[derive(Clone)]
pub struct WatchHandle {
    tell: Tell,
    streams: Arc<AtomicU64>,
}

impl WatchHandle {
    /// Streams of this hub.
    pub fn new(hub: WatchHubAddr) -> WatchHandle {
        let tell = Arc::new(move |request| hub.do_send(request));
        WatchHandle { tell, streams: Arc::default() }
    }

    /// The way for asks, for a node that is none.
    #[cfg(test)]
    pub(crate) fn tell(&self) -> Tell {
        self.tell.clone()
    }

    /// A new stream.
    pub fn open(&self) -> Watching {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        Watching::open(StreamId(number), self.tell.clone())
    }
}

/// What outlives a panic of the hub.
#[derive(Default)]
pub struct Table {
    watchers: Watchers,
    outlets: BTreeMap<StreamId, Outlet>,
    /// Number of the newest [`store::Watch`] sent.
    epoch: u64,
}

impl Table {
    /// A table whose passes and memory have these bounds.
    pub fn new(limits: Limits) -> Table {
        Table { watchers: Watchers::new(limits), ..Table::default() }
    }

    fn send(&self, stream: StreamId, notice: Notice) {
        if let Some(outlet) = self.outlets.get(&stream) {
            outlet.send(notice);
        }
    }
}

/// See the module.
pub struct WatchHub {
    /// Locked by the hub's thread only; the lock is there because the table has to outlive the
    /// actor, and nothing is ever waited for while it is held.
    table: Arc<Mutex<Table>>,
    reader: Reader,
    store: Addr<StoreActor>,
    /// Whether events are told, or about to be; `None` if only an earlier life knew.
    watches: Option<bool>,
}

/// How others reach it.
pub type WatchHubAddr = Addr<Supervised<WatchHub>>;

impl WatchHub {
    /// Goes on with the table of an earlier life, if there was one.
    pub fn new(table: Arc<Mutex<Table>>, reader: Reader, store: Addr<StoreActor>) -> WatchHub {
        let watches = {
            let mut table = table.lock();
            table.watchers.recover();
            (table.epoch == 0).then_some(false)
        };
        WatchHub { table, reader, store, watches }
    }

    /// What every message may have made due.
    fn follow_up(&mut self, life: &mut Life<'_, Self>) {
        let mut table = self.table.lock();
        for (stream, revision) in table.watchers.take_caught_up() {
            table.send(stream, Notice::Progress { id: EVERY_WATCHER, revision });
        }
        let wanted = table.watchers.count() > 0;
        if self.watches != Some(wanted) {
            self.watches = Some(wanted);
            table.epoch += 1;
            if !wanted {
                table.watchers.idle();
            }
            let hub = wanted.then(|| life.address());
            self.store.do_send(store::Watch { epoch: table.epoch, hub });
        }
        let compact_revision = self.reader.compact_revision();
        let ended = table.watchers.compacted(compact_revision);
        tell_ended(&table, ended, compact_revision);
        if let Some(pass) = table.watchers.start_pass() {
            read(pass, self.reader.clone(), life.address());
        }
        metrics().watchers.set(table.watchers.count() as i64);
        metrics().slow_watchers.set(table.watchers.lagging() as i64);
    }

    fn answer(&mut self, stream: StreamId, ask: Ask) {
        let table = &mut *self.table.lock();
        let watchers = &mut table.watchers;
        let notice = match ask {
            Ask::Open(outlet) => {
                watchers.open(stream);
                table.outlets.insert(stream, outlet);
                return;
            }
            Ask::Close => {
                watchers.close(stream);
                table.outlets.remove(&stream);
                return;
            }
            Ask::Drained => return watchers.drained(stream),
            Ask::Create { id, start, spec } => {
                let revision = self.reader.revision();
                // A negative start that is not compacted is from now too: etcd looks for it above
                // all revisions (v3.5.17 `server/mvcc/watchable_store.go` syncWatchers).
                let from_now = start == 0 || start < 0 && start >= self.reader.compact_revision();
                let start = if from_now { revision + 1 } else { start };
                let id = spec.and_then(|spec| watchers.create(stream, id, spec, start));
                Notice::Created { id, revision }
            }
            Ask::Cancel(id) if watchers.cancel(stream, id) => {
                Notice::Canceled { id, revision: self.reader.revision() }
            }
            Ask::Cancel(_) => Notice::Done,
            Ask::Progress => {
                let revision = watchers.progress(stream);
                table.send(stream, Notice::Done);
                let Some(revision) = revision else { return };
                Notice::Progress { id: EVERY_WATCHER, revision }
            }
            Ask::ProgressOf(id) => {
                let Some(revision) = watchers.progress_of(stream, id) else { return };
                Notice::Progress { id, revision }
            }
        };
        table.send(stream, notice);
    }
}

fn tell_ended(table: &Table, ended: Vec<(StreamId, i64)>, compact_revision: i64) {
    for (stream, id) in ended {
        table.send(stream, Notice::Compacted { id, compact_revision });
    }
}

/// Reads on a thread that may wait for the disk, and tells the hub.
fn read(pass: Pass, reader: Reader, hub: WatchHubAddr) {
    tokio::task::spawn_blocking(move || {
        let read = std::panic::AssertUnwindSafe(|| pass.read(&reader));
        let outcome = match std::panic::catch_unwind(read) {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(BackendError(reason))) => Err(reason),
            Err(panic) => Err(rt::panic_text(panic.as_ref())),
        };
        hub.do_send(PassRead(outcome));
    });
}

impl Restartable for WatchHub {
    const NAME: &'static str = "WatchHub";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        self.follow_up(life);
    }
}

impl Handles<Request> for WatchHub {
    fn handle(&mut self, Request { stream, ask }: Request, life: &mut Life<'_, Self>) {
        self.answer(stream, ask);
        self.follow_up(life);
    }
}

impl Handles<Live> for WatchHub {
    fn handle(&mut self, Live { epoch, revision }: Live, life: &mut Life<'_, Self>) {
        {
            let mut table = self.table.lock();
            if epoch == table.epoch {
                table.watchers.live(revision);
            }
        }
        self.follow_up(life);
    }
}

impl Handles<Restored> for WatchHub {
    fn handle(&mut self, Restored { revision }: Restored, life: &mut Life<'_, Self>) {
        {
            let mut table = self.table.lock();
            if table.watchers.head().is_some() {
                table.watchers.recover();
                table.watchers.live(revision);
            }
        }
        self.follow_up(life);
    }
}

impl Handles<Events> for WatchHub {
    fn handle(&mut self, Events(batch): Events, life: &mut Life<'_, Self>) {
        failpoint::hit(failpoint::WATCH_EVENTS);
        {
            let Table { watchers, outlets, .. } = &mut *self.table.lock();
            for (revision, events) in batch {
                let changes: Vec<Written> = events
                    .into_iter()
                    .map(|event| Written { key: event.key, delete: event.delete, kv: event.kv })
                    .collect();
                watchers.events(revision, &changes, &mut |stream, delivery| {
                    outlets.get(&stream).is_none_or(|outlet| outlet.offer(delivery))
                });
            }
        }
        self.follow_up(life);
    }
}

impl Handles<PassRead> for WatchHub {
    fn handle(&mut self, PassRead(outcome): PassRead, life: &mut Life<'_, Self>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(error, "failed to read history for watchers");
                life.later(PASS_RETRY, |hub, life| {
                    hub.table.lock().watchers.pass_failed();
                    hub.follow_up(life);
                });
                return;
            }
        };
        {
            let table = &mut *self.table.lock();
            let compact_revision = outcome.compacted();
            let outlets = &table.outlets;
            let ended = table.watchers.finish_pass(outcome, &mut |stream, delivery| {
                outlets.get(&stream).is_none_or(|outlet| outlet.offer(delivery))
            });
            tell_ended(table, ended, compact_revision);
        }
        self.follow_up(life);
    }
}
