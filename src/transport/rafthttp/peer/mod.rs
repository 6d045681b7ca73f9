//! One peer: the streams it dialled, the streams dialled to it, single POSTs and the probe.
//! Uses: base, obs, pb

mod pipeline;
mod probe;
mod reader;
mod snapshot;
mod writer;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter, IntGauge};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::queue::Queue;
use super::{Context, Outgoing, StepError, Stepping, wire};
use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::MemberId;
use crate::base::url::Url;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{Message, MessageType};
use pipeline::start_pipeline;
use probe::probe_loop;
use reader::read_loop;
use writer::StreamWriter;

/// Text of an error answer that is worth reading.
const ERROR_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Between two warnings about an unhealthy or overloaded peer.
const WARN_INTERVAL: Duration = Duration::from_secs(5);
const MEMBER_REMOVED: &str = "the member has been permanently removed from the cluster";

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Everything but appends.
    Message,
    /// Appends.
    MsgApp,
}

impl Stream {
    fn path(self) -> &'static str {
        match self {
            Stream::Message => "/raft/stream/message",
            Stream::MsgApp => "/raft/stream/msgapp",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Message => "stream Message",
            Stream::MsgApp => "stream MsgApp v2",
        })
    }
}

/// The URLs of a peer, and which of them is in use.
struct Picker(Mutex<(Vec<Url>, usize)>);

impl Picker {
    fn new(urls: Vec<Url>) -> Picker {
        Picker(Mutex::new((urls, 0)))
    }

    fn pick(&self) -> io::Result<Url> {
        let guard = self.0.lock();
        guard.0.get(guard.1).cloned().ok_or_else(|| io::Error::other("peer has no URL"))
    }

    /// Moves on to the next URL, unless another task has already left `url`.
    fn unreachable(&self, url: &Url) {
        let mut guard = self.0.lock();
        if guard.0.get(guard.1) == Some(url) {
            guard.1 = (guard.1 + 1) % guard.0.len().max(1);
        }
    }
}

/// The series of a peer, found once.
struct Counters {
    active: IntGauge,
    disconnected: IntCounter,
    sent_bytes: IntCounter,
    sent_failures: IntCounter,
    received_bytes: IntCounter,
    round_trip: Histogram,
}

impl Counters {
    fn new(local: MemberId, id: MemberId) -> Counters {
        let (local, id) = (local.to_string(), id.to_string());
        let metrics = metrics();
        Counters {
            active: metrics.active_peers.with_label_values(&[&local, &id]),
            disconnected: metrics.disconnected_peers.with_label_values(&[&local, &id]),
            sent_bytes: metrics.peer_sent_bytes.with_label_values(&[&id]),
            sent_failures: metrics.peer_sent_failures.with_label_values(&[&id]),
            received_bytes: metrics.peer_received_bytes.with_label_values(&[&id]),
            round_trip: metrics.peer_round_trip.with_label_values(&[&id]),
        }
    }
}

/// What the tasks of one peer share.
struct Shared {
    context: Arc<Context>,
    id: MemberId,
    picker: Picker,
    active: Mutex<Option<Instant>>,
    warned: Mutex<Option<Instant>>,
    round_trip: Mutex<Option<Duration>>,
    /// A snapshot is on its way.
    sending: AtomicBool,
    counters: Counters,
}

impl Shared {
    fn new(context: Arc<Context>, id: MemberId, urls: Vec<Url>) -> Arc<Shared> {
        let counters = Counters::new(context.config.local, id);
        Arc::new(Shared {
            context,
            id,
            picker: Picker::new(urls),
            active: Mutex::default(),
            warned: Mutex::default(),
            round_trip: Mutex::default(),
            sending: AtomicBool::new(false),
            counters,
        })
    }

    fn local(&self) -> MemberId {
        self.context.config.local
    }

    fn activate(&self) {
        let mut active = self.active.lock();
        if active.is_none() {
            tracing::info!("peer-id" = %self.id, "peer became active");
            *active = Some(SystemClock.now());
            self.counters.active.inc();
        }
    }

    fn deactivate(&self, source: &dyn fmt::Display, action: &str, reason: &dyn fmt::Display) {
        let error = format!("failed to {action} {} on {source} ({reason})", self.id);
        if self.active.lock().take().is_some() {
            self.counters.active.dec();
            self.counters.disconnected.inc();
            let text = "peer became inactive (message send to peer failed)";
            tracing::warn!("peer-id" = %self.id, error, "{text}");
        } else {
            tracing::debug!("peer-id" = %self.id, error, "peer deactivated again");
        }
    }

    /// Whether it is time for another warning.
    fn may_warn(&self) -> bool {
        let now = SystemClock.now();
        let mut warned = self.warned.lock();
        let due = warned.is_none_or(|last| now.duration_since(last) >= WARN_INTERVAL);
        if due {
            *warned = Some(now);
        }
        due
    }

    fn dropped(&self, kind: MessageType, queue: &str) {
        self.context.sink.unreachable(self.id);
        self.counters.sent_failures.inc();
        if self.may_warn() {
            tracing::warn!(
                "message-type" = ?kind,
                "local-member-id" = %self.local(),
                "remote-peer-id" = %self.id,
                "remote-peer-name" = queue,
                "remote-peer-active" = self.active.lock().is_some(),
                "dropped internal Raft message since sending buffer is full (overloaded network)"
            );
        }
    }
}

/// Tasks that end with their owner.
#[derive(Default)]
struct Tasks(Mutex<Vec<AbortHandle>>);

impl Tasks {
    fn add(&self, task: Option<AbortHandle>) {
        let mut tasks = self.0.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.extend(task);
    }

    fn abort(&self) {
        for task in self.0.lock().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A peer of the cluster.
pub(super) struct Peer {
    shared: Arc<Shared>,
    msgapp: Arc<StreamWriter>,
    message: Arc<StreamWriter>,
    pipeline: Queue,
    tasks: Tasks,
}

impl Peer {
    /// Starts the peer's tasks.
    pub(super) fn start(context: Arc<Context>, id: MemberId, urls: Vec<Url>) -> Peer {
        tracing::info!("remote-peer-id" = %id, "starting remote peer");
        let shared = Shared::new(context, id, urls);
        let (pipeline, mut tasks) = start_pipeline(&shared);
        let runtime = &shared.context.runtime;
        for stream in [Stream::MsgApp, Stream::Message] {
            tasks.push(runtime.spawn(read_loop(Arc::clone(&shared), stream)).abort_handle());
        }
        tasks.push(runtime.spawn(probe_loop(Arc::clone(&shared))).abort_handle());
        Peer {
            msgapp: StreamWriter::new(Stream::MsgApp, Arc::clone(&shared)),
            message: StreamWriter::new(Stream::Message, Arc::clone(&shared)),
            shared,
            pipeline,
            tasks: Tasks(Mutex::new(tasks)),
        }
    }

    /// Queues `message` on the path etcd would take.
    pub(super) fn send(&self, message: Message) {
        let kind = message.msg_type();
        let unsent = match kind {
            MessageType::MsgAppend => self.msgapp.push(message),
            _ => Some(message),
        };
        let unsent = unsent.and_then(|message| self.message.push(message));
        if let Some(message) = unsent {
            self.pipe(message);
        }
    }

    fn pipe(&self, message: Message) {
        let kind = message.msg_type();
        if !self.pipeline.push(message) {
            self.shared.dropped(kind, "pipeline");
        }
    }

    /// Sends a snapshot, unless one is on its way.
    pub(super) fn send_snapshot(&self, outgoing: Box<dyn Outgoing>) {
        self.tasks.add(snapshot::start(&self.shared, outgoing));
    }

    /// Hands the peer's own stream over to it: `frames` is the body of its request's answer.
    pub(super) fn attach(&self, stream: Stream, frames: mpsc::Sender<Bytes>) {
        match stream {
            Stream::MsgApp => StreamWriter::attach(&self.msgapp, frames),
            Stream::Message => StreamWriter::attach(&self.message, frames),
        }
    }

    /// Replaces the URLs.
    pub(super) fn update(&self, urls: Vec<Url>) {
        *self.shared.picker.0.lock() = (urls, 0);
    }

    /// Since when the peer is reachable.
    pub(super) fn active_since(&self) -> Option<Instant> {
        *self.shared.active.lock()
    }

    /// Round trip of the last probe.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        *self.shared.round_trip.lock()
    }

    /// Whether both streams to the peer are attached.
    #[cfg(test)]
    pub(super) fn is_writable(&self) -> bool {
        self.is_attached_msgapp() && self.message.attached.lock().live.is_some()
    }

    /// Whether the stream for appends is attached.
    #[cfg(test)]
    pub(super) fn is_attached_msgapp(&self) -> bool {
        self.msgapp.attached.lock().live.is_some()
    }

    /// Ends all tasks and streams.
    pub(super) fn stop(&self) {
        if self.shared.active.lock().take().is_some() {
            self.shared.counters.active.dec();
        }
        self.tasks.abort();
        self.msgapp.close();
        self.message.close();
        tracing::info!("remote-peer-id" = %self.shared.id, "stopped remote peer");
    }
}

/// A sender that is no peer (yet): answers go to it by single POSTs.
pub(super) struct Remote {
    shared: Arc<Shared>,
    pipeline: Queue,
    tasks: Tasks,
}

impl Remote {
    /// Starts the remote's tasks.
    pub(super) fn start(context: Arc<Context>, id: MemberId, urls: Vec<Url>) -> Remote {
        let shared = Shared::new(context, id, urls);
        let (pipeline, tasks) = start_pipeline(&shared);
        Remote { shared, pipeline, tasks: Tasks(Mutex::new(tasks)) }
    }

    /// Queues `message`.
    pub(super) fn send(&self, message: Message) {
        let kind = message.msg_type();
        if !self.pipeline.push(message) {
            self.shared.dropped(kind, "pipeline");
        }
    }
}

impl Remote {
    /// Sends a snapshot, unless one is on its way.
    pub(super) fn send_snapshot(&self, outgoing: Box<dyn Outgoing>) {
        self.tasks.add(snapshot::start(&self.shared, outgoing));
    }
}

impl Context {
    /// As [`Context::accept`], for a message whose database was received.
    pub(super) fn accept_snapshot(&self, message: Message) -> Stepping {
        if self.sink.is_removed(MemberId(message.from)) {
            return Box::pin(async { Err(StepError::Removed) });
        }
        if message.to != self.config.local.0 {
            return Box::pin(async { Err(StepError::Mismatch) });
        }
        self.sink.step_snapshot(message)
    }

    /// Hands a message to raft, at once, if it is for this member and from no removed one.
    pub(super) fn accept(&self, message: Message) -> Stepping {
        if self.sink.is_removed(MemberId(message.from)) {
            return Box::pin(async { Err(StepError::Removed) });
        }
        if message.to != self.config.local.0 {
            return Box::pin(async { Err(StepError::Mismatch) });
        }
        if message.msg_type() == MessageType::MsgSnapshot {
            let error = "a snapshot without its database".to_owned();
            return Box::pin(async { Err(StepError::Failed(error)) });
        }
        self.sink.step(message)
    }
}

/// Explains a 412 and warns about it, now and then.
fn precondition(shared: &Shared, body: &[u8], theirs: &str) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_end_matches('\n');
    let reason = match text {
        wire::INCOMPATIBLE_VERSION => "server version incompatibility",
        wire::CLUSTER_ID_MISMATCH => "cluster ID mismatch",
        other => return format!("unhandled error {other:?} when precondition failed"),
    };
    if shared.may_warn() {
        tracing::warn!(
            "local-member-id" = %shared.local(),
            "local-member-cluster-id" = %shared.context.config.cluster,
            "remote-peer-id" = %shared.id,
            "remote-peer-cluster-id" = theirs,
            error = text,
            "request sent was ignored by remote peer due to {reason}"
        );
    }
    text.to_owned()
}
