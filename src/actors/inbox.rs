//! The way of requests into RaftActor: a bounded queue beside its mailbox. A request costs a push;
//! only the first of a batch costs a message that wakes the actor.

use crate::actors::raft::{Flush, RaftActor};
use crate::actors::store::Waiter;
use crate::base::error::{Error, Result};
use crate::base::limits;
use actix::Addr;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, oneshot};

/// One entry to propose; the reply comes from the apply on this member.
pub struct Propose {
    pub id: u64,
    pub data: Bytes,
    /// `None` if nobody waits for the outcome.
    pub reply: Option<Waiter>,
}

/// What edges ask of raft.
pub enum Ask {
    /// Propose an entry.
    Propose(Propose),
    /// An index that everything committed before the call lies at or below.
    ReadIndex(oneshot::Sender<Result<u64>>),
    /// Propose what only the leader of `term` may propose; dropped, never forwarded, unless this
    /// member is shown to lead in that term after the message arrived.
    ProposeAsLeader { term: u64, payloads: Vec<Bytes> },
}

/// The asking end.
pub struct Inbox {
    asks: mpsc::Sender<Ask>,
    flag: Arc<AtomicBool>,
    waiting: AtomicUsize,
    raft: OnceLock<Addr<RaftActor>>,
}

/// The actor's end.
pub struct Outlet {
    asks: mpsc::Receiver<Ask>,
    flag: Arc<AtomicBool>,
}

/// Counts a caller as waiting until it is dropped.
pub struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inbox {
    /// Both ends. Asks stay in the queue until [`Inbox::connect`].
    pub fn new() -> (Inbox, Outlet) {
        let (sender, asks) = mpsc::channel(limits::PROPOSALS_PENDING_MAX);
        let flag = Arc::new(AtomicBool::new(false));
        let inbox = Inbox {
            asks: sender,
            flag: flag.clone(),
            waiting: AtomicUsize::new(0),
            raft: OnceLock::new(),
        };
        (inbox, Outlet { asks, flag })
    }

    /// Whom to wake; set once, while the node is put together.
    pub fn connect(&self, raft: Addr<RaftActor>) {
        let first = self.raft.set(raft).is_ok();
        assert!(first, "RaftActor is connected once");
    }

    /// Puts an ask into the queue. `TooManyRequests` if it is full, `Stopped` if nobody reads it.
    pub fn ask(&self, ask: Ask) -> Result<()> {
        self.asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })?;
        if let Some(raft) = self.raft.get()
            && !self.flag.swap(true, Ordering::AcqRel)
        {
            raft.do_send(Flush);
        }
        Ok(())
    }

    /// The caller waits for an answer from now on.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Callers that wait for an answer now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Outlet {
    /// Whether the caller has to send the flush: nobody else has since the last
    /// [`Outlet::disarm`].
    pub fn arm(&self) -> bool {
        !self.flag.swap(true, Ordering::AcqRel)
    }

    /// The flush has come. IMPORTANT: before the queue is read, so that an ask that comes too late
    /// for this flush sends another.
    pub fn disarm(&self) {
        self.flag.store(false, Ordering::Release);
    }

    /// Asks in the queue.
    pub fn pending(&self) -> usize {
        self.asks.len()
    }

    /// The next ask.
    pub fn take(&mut self) -> Option<Ask> {
        self.asks.try_recv().ok()
    }
}
