//! The way of requests into RaftActor: a bounded queue beside its mailbox. A request costs a push;
//! only the one that makes a batch worth its write costs a message that wakes the actor.
//!
//! How large is that? Callers that wait are either in the queue or on their way through raft, disk
//! and apply. While many are on their way, those in the queue wait until they are a good part of
//! all, so that they share one round and one fdatasync: under load a batch costs most of what a
//! single request does. A caller that is alone, or one of few, never waits.

use crate::actors::raft::{Flush, RaftActor};
use crate::actors::store::Waiter;
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use crate::base::limits;
use crate::pb::raftpb::ConfChange;
use actix::Addr;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, oneshot};

/// Waiting callers from which on those in the queue wait for others.
const GATHER_FROM: usize = 16;
/// One in this many of the waiting callers in the queue is enough for a batch.
const GATHER_SHARE: usize = 4;

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
    /// Hand the leadership over, if this member has it; nobody is told how it went.
    TransferTo(MemberId),
    /// Propose a change of members; the reply comes when raft has taken it.
    Change { change: ConfChange, reply: Waiter },
    /// See `Driver::progress`.
    Progress { member: MemberId, reply: oneshot::Sender<Result<(u64, u64)>> },
    /// So many ticks have passed at once.
    Advance(usize),
}

/// The asking end.
pub struct Inbox {
    asks: mpsc::Sender<Ask>,
    flag: Arc<AtomicBool>,
    /// Callers that wait for an answer, in the queue or beyond it.
    waiting: AtomicUsize,
    raft: OnceLock<Addr<RaftActor>>,
}

/// The actor's end.
pub struct Outlet {
    asks: mpsc::Receiver<Ask>,
    flag: Arc<AtomicBool>,
}

/// Counts a caller as waiting until it is dropped.
pub struct Waiting<'a>(&'a Inbox);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        // Those in the queue may have waited for this one.
        self.0.wake_if_ripe();
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
        self.wake_if_ripe();
        Ok(())
    }

    fn wake_if_ripe(&self) {
        if self.is_ripe()
            && let Some(raft) = self.raft.get()
            && !self.flag.swap(true, Ordering::AcqRel)
        {
            raft.do_send(Flush);
        }
    }

    /// Whether what is in the queue is worth a batch. Two callers at once may each see too little
    /// of the other's doing; RaftActor looks again within its `GATHER_PAUSE_MAX`.
    pub fn is_ripe(&self) -> bool {
        let here = self.asks.max_capacity() - self.asks.capacity();
        let waiting = self.waiting.load(Ordering::SeqCst);
        here > 0 && (waiting < GATHER_FROM || here * GATHER_SHARE >= waiting)
    }

    /// Whether there are so many callers that some may wait in the queue for others.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= GATHER_FROM
    }

    /// The caller waits for an answer from now on.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
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
    #[cfg(test)]
    pub fn pending(&self) -> usize {
        self.asks.len()
    }

    /// The next ask.
    pub fn take(&mut self) -> Option<Ask> {
        self.asks.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(inbox: &Inbox) {
        inbox.ask(Ask::ReadIndex(oneshot::channel().0)).unwrap();
    }

    #[test]
    fn a_batch_is_a_good_part_of_those_who_wait() {
        let (inbox, mut outlet) = Inbox::new();
        assert!(!inbox.is_ripe(), "nobody is here");
        let alone = inbox.wait();
        ask(&inbox);
        assert!(inbox.is_ripe(), "one caller waits for nobody");
        let mut others: Vec<Waiting<'_>> = (1..4 * GATHER_SHARE).map(|_| inbox.wait()).collect();
        for here in 2..=GATHER_SHARE {
            assert!(!inbox.is_ripe(), "{here} of {}", others.len() + 1);
            ask(&inbox);
        }
        assert!(inbox.is_ripe(), "one in GATHER_SHARE is here");
        assert!(outlet.take().is_some());
        assert!(!inbox.is_ripe());
        others.truncate(2 * GATHER_SHARE);
        assert!(inbox.is_ripe(), "the others were answered");
        drop(alone);
    }
}
