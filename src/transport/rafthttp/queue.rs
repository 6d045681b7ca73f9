//! A queue of messages bounded by number and by bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::QUEUE_BYTES_MAX;
use crate::pb::raftpb::Message;

/// Bytes that a message occupies, near enough.
pub(super) fn cost(message: &Message) -> usize {
    let entries: usize = message.entries.iter().map(|e| size_of_val(e) + e.data.len()).sum();
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
    size_of_val(message) + entries + snapshot + message.context.len()
}

/// The end that senders hold.
pub(super) struct Queue {
    tx: mpsc::Sender<Message>,
    bytes: Arc<AtomicUsize>,
}

/// The end that a connection drains.
pub(super) struct Drain {
    /// The messages.
    pub(super) rx: mpsc::Receiver<Message>,
    /// Where their room is given back.
    pub(super) room: Room,
}

/// The bytes that unwritten messages of one queue take.
#[derive(Clone)]
pub(super) struct Room(Arc<AtomicUsize>);

/// A queue of at most `messages`.
pub(super) fn queue(messages: usize) -> (Queue, Drain) {
    let (tx, rx) = mpsc::channel(messages);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { tx, bytes: Arc::clone(&bytes) }, Drain { rx, room: Room(bytes) })
}

impl Queue {
    /// Queues `message`, or says that there is no room. One message always has room.
    pub(super) fn push(&self, message: Message) -> bool {
        let cost = cost(&message);
        let before = self.bytes.fetch_add(cost, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(cost) <= QUEUE_BYTES_MAX;
        if fits && self.tx.try_send(message).is_ok() {
            return true;
        }
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
        false
    }

    /// Whether a message has not been written yet.
    pub(super) fn is_pending(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }
}

impl Room {
    /// Gives back the room of messages that are written.
    pub(super) fn release(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}
