//! A watch stream between the edge and the hub: what is asked, what is told, how much may wait.

use crate::base::limits::{
    WATCH_JOIN_BYTES_MAX, WATCH_STREAM_BYTES_MAX, WATCH_STREAM_RESPONSES_MAX,
};
use crate::mvcc::watch::{Delivery, Refusal, Spec, StreamId};
use crate::obs::metrics::metrics;
use actix::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use tokio::sync::mpsc;

/// The watch id of a progress notice that is for all watchers of a stream.
pub const EVERY_WATCHER: i64 = -1;
/// What a stream is told, in order.
#[derive(Debug)]
pub enum Notice {
    /// Answers [`Watching::create`]: the watcher's id; the revision at that moment.
    Created { id: Result<i64, Refusal>, revision: i64 },
    /// Answers [`Watching::cancel`] where there was such a watcher.
    Canceled { id: i64, revision: i64 },
    /// Answers [`Watching::progress`], and [`Watching::cancel`] of an unknown watcher: there is
    /// nothing to tell the client.
    Done,
    /// A watcher wanted a revision below this one.
    Compacted { id: i64, compact_revision: i64 },
    /// The watcher, or every one, has been given all up to the revision.
    Progress { id: i64, revision: i64 },
    /// Events.
    Events(Delivery),
}

/// What waits for a stream's client.
#[derive(Debug, Default)]
struct Level {
    responses: AtomicUsize,
    bytes: AtomicUsize,
    /// The hub refused a delivery and wants to know when there is room.
    full: AtomicBool,
}

impl Level {
    /// Half of the room is free: worth while to go on.
    fn is_low(&self) -> bool {
        self.responses.load(Ordering::Relaxed) <= WATCH_STREAM_RESPONSES_MAX / 2
            && self.bytes.load(Ordering::Relaxed) <= WATCH_STREAM_BYTES_MAX / 2
    }

    fn fits(&self, responses: usize, bytes: usize) -> bool {
        self.responses.load(Ordering::Relaxed) + responses <= WATCH_STREAM_RESPONSES_MAX
            && self.bytes.load(Ordering::Relaxed) + bytes <= WATCH_STREAM_BYTES_MAX
    }
}

fn events_in(delivery: &Delivery) -> usize {
    delivery.items.iter().map(|item| item.events.len()).sum()
}

/// The hub's end of a stream. The channel itself is unbounded; what goes through it is not: events
/// are bounded by [`Level`], answers by the stream's requests, ends by its watchers.
#[derive(Debug)]
pub struct Outlet {
    notices: mpsc::UnboundedSender<Notice>,
    level: Arc<Level>,
}

impl Outlet {
    pub(crate) fn send(&self, notice: Notice) {
        // A stream that has gone says so by itself.
        let _ = self.notices.send(notice);
    }

    /// Takes events if there is room; a stream that has room for half takes one delivery of any
    /// size.
    pub(crate) fn offer(&self, delivery: Delivery) -> bool {
        let (responses, bytes) = (delivery.items.len(), delivery.bytes());
        if !self.level.fits(responses, bytes) {
            self.level.full.store(true, Ordering::Relaxed);
            // IMPORTANT: pairs with the fence in `Watching::next`. Either this sees the room that
            // was made, or the stream sees that the hub waits for it.
            fence(Ordering::SeqCst);
            if !self.level.is_low() {
                return false;
            }
            self.level.full.store(false, Ordering::Relaxed);
        }
        self.level.responses.fetch_add(responses, Ordering::Relaxed);
        self.level.bytes.fetch_add(bytes, Ordering::Relaxed);
        metrics().pending_events.add(events_in(&delivery) as i64);
        self.send(Notice::Events(delivery));
        true
    }
}

/// What a stream asks of the hub.
#[derive(Debug)]
pub enum Ask {
    /// First of all.
    Open(Outlet),
    /// A watcher from `start` on; 0 is from now.
    Create { id: i64, start: i64, spec: Result<Spec, Refusal> },
    /// No more events for a watcher.
    Cancel(i64),
    /// A notice when all watchers have everything.
    Progress,
    /// A notice if a watcher has everything.
    ProgressOf(i64),
    /// There is room again.
    Drained,
    /// Last of all.
    Close,
}

/// An [`Ask`] of a stream.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Request {
    pub stream: StreamId,
    pub ask: Ask,
}

/// How a stream's asks reach the hub.
pub type Tell = Arc<dyn Fn(Request) + Send + Sync>;

/// One watch stream, held by the edge. Dropping it ends its watchers.
pub struct Watching {
    stream: StreamId,
    tell: Tell,
    notices: mpsc::UnboundedReceiver<Notice>,
    /// Taken out of the channel behind events that it could not be joined to.
    held: Option<Notice>,
    level: Arc<Level>,
}

impl Watching {
    /// Opens a stream.
    pub fn open(stream: StreamId, tell: Tell) -> Watching {
        let (sender, notices) = mpsc::unbounded_channel();
        let level = Arc::new(Level::default());
        let outlet = Outlet { notices: sender, level: level.clone() };
        tell(Request { stream, ask: Ask::Open(outlet) });
        metrics().watch_streams.inc();
        Watching { stream, tell, notices, held: None, level }
    }

    /// The stream's number, unlike that of any other of this member's life.
    pub fn number(&self) -> u64 {
        self.stream.0
    }

    /// Responses and bytes that wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let level = &self.level;
        (level.responses.load(Ordering::Relaxed), level.bytes.load(Ordering::Relaxed))
    }

    fn ask(&self, ask: Ask) {
        (self.tell)(Request { stream: self.stream, ask });
    }

    /// Asks for a watcher; answered by [`Notice::Created`].
    pub fn create(&self, id: i64, start: i64, spec: Result<Spec, Refusal>) {
        self.ask(Ask::Create { id, start, spec });
    }

    /// Ends a watcher; answered by [`Notice::Canceled`] or [`Notice::Done`].
    pub fn cancel(&self, id: i64) {
        self.ask(Ask::Cancel(id));
    }

    /// Answered by [`Notice::Done`]; the notice comes when every watcher has everything.
    pub fn progress(&self) {
        self.ask(Ask::Progress);
    }

    /// Not answered, except by the notice if the watcher has everything.
    pub fn progress_of(&self, id: i64) {
        self.ask(Ask::ProgressOf(id));
    }

    /// What comes next; `None` when the member stops. Nothing is lost if this is dropped. Events
    /// that have piled up come as one: the slower a client, the fewer its messages.
    pub async fn next(&mut self) -> Option<Notice> {
        let notice = match self.held.take() {
            Some(notice) => notice,
            None => self.notices.recv().await?,
        };
        let Notice::Events(mut delivery) = notice else {
            return Some(notice);
        };
        let (mut responses, mut bytes) = (delivery.items.len(), delivery.bytes());
        let mut later = Vec::new();
        while bytes < WATCH_JOIN_BYTES_MAX
            && let Ok(next) = self.notices.try_recv()
        {
            let Notice::Events(next) = next else {
                self.held = Some(next);
                break;
            };
            responses += next.items.len();
            bytes += next.bytes();
            later.push(next);
        }
        delivery.join(later);
        self.level.responses.fetch_sub(responses, Ordering::Relaxed);
        self.level.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let events = events_in(&delivery);
        metrics().pending_events.sub(events as i64);
        metrics().events.inc_by(events as u64);
        // Pairs with the fence in `Outlet::offer`.
        fence(Ordering::SeqCst);
        if self.level.full.load(Ordering::Relaxed)
            && self.level.is_low()
            && self.level.full.swap(false, Ordering::Relaxed)
        {
            self.ask(Ask::Drained);
        }
        Some(Notice::Events(delivery))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.ask(Ask::Close);
        self.notices.close();
        while let Ok(notice) = self.notices.try_recv() {
            if let Notice::Events(delivery) = notice {
                metrics().pending_events.sub(events_in(&delivery) as i64);
            }
        }
        metrics().watch_streams.dec();
    }
}
