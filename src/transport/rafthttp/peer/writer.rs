//! The streams that the peer dials: batches of messages, and heartbeats while there are none.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use super::super::codec::Encoder;
use super::super::queue::{Drain, Queue, cost, queue};
use super::super::{FLUSH_BYTES, STREAM_QUEUE_MAX};
use super::{Shared, Stream};
use crate::pb::raftpb::Message;

/// Messages taken out of a queue at once.
const BATCH_MESSAGES_MAX: usize = 1024;

/// The writing end of a stream that the peer dialled.
pub(super) struct StreamWriter {
    stream: Stream,
    shared: Arc<Shared>,
    pub(super) attached: Mutex<Attachment>,
}

#[derive(Default)]
pub(super) struct Attachment {
    /// Counts attachments, so that the end of an old one does not end its successor.
    generation: u64,
    pub(super) live: Option<(Queue, AbortHandle)>,
    closed: bool,
}

impl StreamWriter {
    pub(super) fn new(stream: Stream, shared: Arc<Shared>) -> Arc<StreamWriter> {
        Arc::new(StreamWriter { stream, shared, attached: Mutex::default() })
    }

    /// Gives the message back if no stream is attached.
    pub(super) fn push(&self, message: Message) -> Option<Message> {
        let kind = message.msg_type();
        let taken = {
            let attached = self.attached.lock();
            match &attached.live {
                Some((queue, _)) => queue.push(message),
                None => return Some(message),
            }
        };
        if !taken {
            let name = if self.stream == Stream::MsgApp { "streamMsgAppV2" } else { "streamMsg" };
            self.shared.dropped(kind, name);
        }
        None
    }

    pub(super) fn attach(writer: &Arc<StreamWriter>, frames: mpsc::Sender<Bytes>) {
        let mut attached = writer.attached.lock();
        if attached.closed {
            return;
        }
        writer.end(&mut attached);
        let (queue, drain) = queue(STREAM_QUEUE_MAX);
        attached.generation += 1;
        let task = Arc::clone(writer).write(attached.generation, drain, frames);
        let task = writer.shared.context.runtime.spawn(task).abort_handle();
        attached.live = Some((queue, task));
        drop(attached);
        writer.shared.activate();
        tracing::info!(
            "stream-writer-type" = %writer.stream,
            "local-member-id" = %writer.shared.local(),
            "remote-peer-id" = %writer.shared.id,
            "established TCP streaming connection with remote peer"
        );
    }

    /// Ends the live attachment, if any.
    fn end(&self, attached: &mut Attachment) {
        let Some((queue, task)) = attached.live.take() else { return };
        task.abort();
        if queue.is_pending() {
            self.shared.context.sink.unreachable(self.shared.id);
        }
        tracing::warn!(
            "stream-writer-type" = %self.stream,
            "local-member-id" = %self.shared.local(),
            "remote-peer-id" = %self.shared.id,
            "closed TCP streaming connection with remote peer"
        );
    }

    pub(super) fn close(&self) {
        let mut attached = self.attached.lock();
        attached.closed = true;
        self.end(&mut attached);
    }

    async fn write(
        self: Arc<StreamWriter>,
        generation: u64,
        mut drain: Drain,
        frames: mpsc::Sender<Bytes>,
    ) {
        let (action, reason) = self.write_until_lost(&mut drain, &frames).await;
        let mut attached = self.attached.lock();
        if attached.generation != generation {
            return;
        }
        let pending = attached.live.take().is_some_and(|(queue, _)| queue.is_pending());
        drop(attached);
        self.shared.deactivate(&self.stream, action, &reason);
        if pending {
            self.shared.context.sink.unreachable(self.shared.id);
        }
        tracing::warn!(
            "stream-writer-type" = %self.stream,
            "local-member-id" = %self.shared.local(),
            "remote-peer-id" = %self.shared.id,
            "lost TCP streaming connection with remote peer"
        );
    }

    /// Writes in batches until the connection is gone; says what failed and why.
    async fn write_until_lost(
        &self,
        drain: &mut Drain,
        frames: &mpsc::Sender<Bytes>,
    ) -> (&'static str, &'static str) {
        let mut encoder = match self.stream {
            Stream::Message => Encoder::message(),
            Stream::MsgApp => Encoder::msgapp(),
        };
        let config = &self.shared.context.config;
        let period = config.read_timeout / 3;
        let mut heartbeats = interval_at(tokio::time::Instant::now() + period, period);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut out = BytesMut::new();
        loop {
            let mut action = "write";
            tokio::select! {
                biased;
                () = frames.closed() => return ("write", "connection closed by the peer"),
                count = drain.rx.recv_many(&mut batch, BATCH_MESSAGES_MAX) => {
                    if count == 0 {
                        return ("write", "stopped");
                    }
                }
                _ = heartbeats.tick() => {
                    action = "heartbeat";
                    encoder.link_heartbeat(&mut out);
                }
            }
            let mut written = 0;
            for message in batch.drain(..) {
                encoder.encode(&message, &mut out);
                written += cost(&message);
                if out.len() >= FLUSH_BYTES {
                    if let Err(reason) = self.flush(frames, &mut out, config.write_timeout).await {
                        return (action, reason);
                    }
                    drain.room.release(std::mem::take(&mut written));
                }
            }
            if !out.is_empty() {
                if let Err(reason) = self.flush(frames, &mut out, config.write_timeout).await {
                    return (action, reason);
                }
                drain.room.release(written);
            }
        }
    }

    async fn flush(
        &self,
        frames: &mpsc::Sender<Bytes>,
        out: &mut BytesMut,
        wait: Duration,
    ) -> Result<(), &'static str> {
        let bytes = out.split().freeze();
        let count = bytes.len() as u64;
        let result = match timeout(wait, frames.send(bytes)).await {
            Ok(Ok(())) => {
                self.shared.counters.sent_bytes.inc_by(count);
                return Ok(());
            }
            Ok(Err(_)) => Err("connection closed by the peer"),
            Err(_) => Err("i/o timeout"),
        };
        self.shared.counters.sent_failures.inc();
        result
    }
}
