//! One peer: the streams it dialled, the streams dialled to it, single POSTs and the probe.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, interval_at, timeout};

use super::client::{self, Connection, exchange, read_all};
use super::codec::{Decoder, Encoder, Received};
use super::queue::{Drain, Queue, Room, cost, queue};
use super::{
    Context, DIAL_RETRY, FLUSH_BYTES, PIPELINE_CONNECTIONS, PIPELINE_QUEUE_MAX, PIPELINE_TIMEOUT,
    PROBE_INTERVAL, STREAM_QUEUE_MAX, StepError, wire,
};
use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::MemberId;
use crate::base::url::Url;
use crate::pb::raftpb::{Message, MessageType};

/// Text of an error answer that is worth reading.
const ERROR_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Messages taken out of a queue at once.
const BATCH_MESSAGES_MAX: usize = 1024;
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

/// What the tasks of one peer share.
struct Shared {
    context: Arc<Context>,
    id: MemberId,
    picker: Picker,
    active: Mutex<Option<Instant>>,
    warned: Mutex<Option<Instant>>,
    round_trip: Mutex<Option<Duration>>,
}

impl Shared {
    fn new(context: Arc<Context>, id: MemberId, urls: Vec<Url>) -> Arc<Shared> {
        Arc::new(Shared {
            context,
            id,
            picker: Picker::new(urls),
            active: Mutex::default(),
            warned: Mutex::default(),
            round_trip: Mutex::default(),
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
        }
    }

    fn deactivate(&self, source: &dyn fmt::Display, action: &str, reason: &dyn fmt::Display) {
        let error = format!("failed to {action} {} on {source} ({reason})", self.id);
        if self.active.lock().take().is_some() {
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
        if kind == MessageType::MsgSnapshot {
            self.context.sink.snapshot_status(self.id, false);
        }
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
        if kind == MessageType::MsgSnapshot {
            return self.pipe(message);
        }
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
    _tasks: Tasks,
}

impl Remote {
    /// Starts the remote's tasks.
    pub(super) fn start(context: Arc<Context>, id: MemberId, urls: Vec<Url>) -> Remote {
        let shared = Shared::new(context, id, urls);
        let (pipeline, tasks) = start_pipeline(&shared);
        Remote { shared, pipeline, _tasks: Tasks(Mutex::new(tasks)) }
    }

    /// Queues `message`.
    pub(super) fn send(&self, message: Message) {
        let kind = message.msg_type();
        if !self.pipeline.push(message) {
            self.shared.dropped(kind, "pipeline");
        }
    }
}

/// The writing end of a stream that the peer dialled.
struct StreamWriter {
    stream: Stream,
    shared: Arc<Shared>,
    attached: Mutex<Attachment>,
}

#[derive(Default)]
struct Attachment {
    /// Counts attachments, so that the end of an old one does not end its successor.
    generation: u64,
    live: Option<(Queue, AbortHandle)>,
    closed: bool,
}

impl StreamWriter {
    fn new(stream: Stream, shared: Arc<Shared>) -> Arc<StreamWriter> {
        Arc::new(StreamWriter { stream, shared, attached: Mutex::default() })
    }

    /// Gives the message back if no stream is attached.
    fn push(&self, message: Message) -> Option<Message> {
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

    fn attach(writer: &Arc<StreamWriter>, frames: mpsc::Sender<Bytes>) {
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

    fn close(&self) {
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
                    if let Err(reason) = flush(frames, &mut out, config.write_timeout).await {
                        return (action, reason);
                    }
                    drain.room.release(std::mem::take(&mut written));
                }
            }
            if !out.is_empty() {
                if let Err(reason) = flush(frames, &mut out, config.write_timeout).await {
                    return (action, reason);
                }
                drain.room.release(written);
            }
        }
    }
}

async fn flush(
    frames: &mpsc::Sender<Bytes>,
    out: &mut BytesMut,
    wait: Duration,
) -> Result<(), &'static str> {
    match timeout(wait, frames.send(out.split().freeze())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("connection closed by the peer"),
        Err(_) => Err("i/o timeout"),
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("unsupported stream type")]
    Unsupported,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Dials the local member's own stream at the peer, for ever.
async fn read_loop(shared: Arc<Shared>, stream: Stream) {
    tracing::info!(
        "stream-reader-type" = %stream,
        "local-member-id" = %shared.local(),
        "remote-peer-id" = %shared.id,
        "started stream reader with remote peer"
    );
    let mut retry = interval(DIAL_RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        match dial(&shared, stream).await {
            Err(DialError::Unsupported) => {}
            Err(error) => shared.deactivate(&stream, "dial", &error),
            Ok((body, _connection)) => read(&shared, stream, body).await,
        }
        retry.tick().await;
    }
}

async fn read(shared: &Shared, stream: Stream, body: Incoming) {
    shared.activate();
    tracing::info!(
        "stream-reader-type" = %stream,
        "local-member-id" = %shared.local(),
        "remote-peer-id" = %shared.id,
        "established TCP streaming connection with remote peer"
    );
    let end = read_until_lost(shared, stream, body).await;
    let error = end.as_ref().err().map_or("EOF", String::as_str);
    tracing::warn!(
        "stream-reader-type" = %stream,
        "local-member-id" = %shared.local(),
        "remote-peer-id" = %shared.id,
        error,
        "lost TCP streaming connection with remote peer"
    );
    if let Err(reason) = end {
        shared.deactivate(&stream, "read", &reason);
    }
}

/// Reads until the peer ends the stream or something is wrong with it.
async fn read_until_lost(
    shared: &Shared,
    stream: Stream,
    mut body: Incoming,
) -> Result<(), String> {
    let mut decoder = match stream {
        Stream::Message => Decoder::message(),
        Stream::MsgApp => Decoder::msgapp(shared.local().0, shared.id.0),
    };
    let wait = shared.context.config.read_timeout;
    loop {
        let frame = match timeout(wait, body.frame()).await {
            Err(_) => return Err("i/o timeout".to_owned()),
            Ok(None) if decoder.is_between_frames() => return Ok(()),
            Ok(None) => return Err("unexpected EOF".to_owned()),
            Ok(Some(frame)) => frame.map_err(|error| error.to_string())?,
        };
        let Ok(data) = frame.into_data() else { continue };
        decoder.feed(&data);
        while let Some(received) = decoder.next_frame().map_err(|error| error.to_string())? {
            if let Received::Message(message) = received {
                deliver(shared, message).await?;
            }
        }
    }
}

/// Hands a message to raft. Messages that are not for it are dropped, as in etcd.
async fn deliver(shared: &Shared, message: Message) -> Result<(), String> {
    let context = &shared.context;
    match context.accept(message).await {
        Ok(()) => Ok(()),
        Err(error @ (StepError::Removed | StepError::Mismatch)) => {
            if shared.may_warn() {
                tracing::warn!(%error, "failed to process Raft message");
            }
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Context {
    /// Hands a message to raft if it is for this member and from no removed one.
    pub(super) async fn accept(&self, message: Message) -> Result<(), StepError> {
        if self.sink.is_removed(MemberId(message.from)) {
            return Err(StepError::Removed);
        }
        if message.to != self.config.local.0 {
            return Err(StepError::Mismatch);
        }
        self.sink.step(message).await
    }
}

async fn dial(shared: &Shared, stream: Stream) -> Result<(Incoming, Connection), DialError> {
    let url = shared.picker.pick()?;
    let dialled = dial_url(shared, stream, &url).await;
    if dialled.is_err() {
        shared.picker.unreachable(&url);
    }
    dialled
}

async fn dial_url(
    shared: &Shared,
    stream: Stream,
    url: &Url,
) -> Result<(Incoming, Connection), DialError> {
    let config = &shared.context.config;
    let mut headers = wire::introduction(config);
    let to = http::HeaderValue::from_str(&shared.id.to_string()).map_err(io::Error::other)?;
    headers.insert(wire::X_RAFT_TO, to);
    let path = format!("{}/{}", stream.path(), config.local);
    let request = client::request(Method::GET, url, &path, headers, Bytes::new())?;
    let connect = config.connector.as_ref();
    let (response, connection) =
        exchange(connect, url, request, config.dial_timeout, config.read_timeout).await?;
    let (head, body) = response.into_parts();
    if !wire::has_streams(&head.headers) {
        return Err(DialError::Unsupported);
    }
    match head.status {
        StatusCode::OK => Ok((body, connection)),
        StatusCode::GONE => {
            shared.context.sink.removed_by_peer(shared.id);
            Err(DialError::Refused(MEMBER_REMOVED.to_owned()))
        }
        StatusCode::NOT_FOUND => Err(DialError::Refused(format!(
            "peer {} failed to find local node {}",
            shared.id, config.local
        ))),
        StatusCode::PRECONDITION_FAILED => {
            let text = read_all(body, ERROR_TEXT_BYTES_MAX, config.read_timeout).await?;
            let theirs = wire::text(&head.headers, &wire::X_CLUSTER_ID);
            Err(DialError::Refused(precondition(shared, &text, theirs)))
        }
        status => Err(DialError::Refused(format!("unhandled http status {}", status.as_u16()))),
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

fn start_pipeline(shared: &Arc<Shared>) -> (Queue, Vec<AbortHandle>) {
    let (queue, drain) = queue(PIPELINE_QUEUE_MAX);
    let room = drain.room.clone();
    let rx = Arc::new(tokio::sync::Mutex::new(drain.rx));
    let work = || {
        let task = pipeline_loop(Arc::clone(shared), Arc::clone(&rx), room.clone());
        shared.context.runtime.spawn(task).abort_handle()
    };
    let tasks = (0..PIPELINE_CONNECTIONS).map(|_| work()).collect();
    tracing::info!(
        "local-member-id" = %shared.local(),
        "remote-peer-id" = %shared.id,
        "started HTTP pipelining with remote peer"
    );
    (queue, tasks)
}

async fn pipeline_loop(
    shared: Arc<Shared>,
    rx: Arc<tokio::sync::Mutex<mpsc::Receiver<Message>>>,
    room: Room,
) {
    loop {
        // An idle worker holds the lock until there is a message for it.
        let Some(message) = rx.lock().await.recv().await else { return };
        let snapshot = message.msg_type() == MessageType::MsgSnapshot;
        let cost = cost(&message);
        let body = message.encode_to_vec();
        drop(message);
        let posted = post(&shared, body.into()).await;
        let sink = &shared.context.sink;
        match &posted {
            Ok(()) => shared.activate(),
            Err(error) => {
                shared.deactivate(&"pipeline", "write", error);
                sink.unreachable(shared.id);
            }
        }
        if snapshot {
            sink.snapshot_status(shared.id, posted.is_ok());
        }
        room.release(cost);
    }
}

async fn post(shared: &Shared, body: Bytes) -> io::Result<()> {
    let url = shared.picker.pick()?;
    let posted = post_url(shared, &url, body).await;
    if posted.is_err() {
        shared.picker.unreachable(&url);
    }
    posted
}

async fn post_url(shared: &Shared, url: &Url, body: Bytes) -> io::Result<()> {
    let config = &shared.context.config;
    let mut headers = wire::introduction(config);
    let kind = http::HeaderValue::from_static("application/protobuf");
    headers.insert(http::header::CONTENT_TYPE, kind);
    let request = client::request(Method::POST, url, "/raft", headers, body)?;
    let wait = PIPELINE_TIMEOUT + config.election_timeout;
    let connect = config.connector.as_ref();
    let (response, _connection) =
        exchange(connect, url, request, config.dial_timeout, wait).await?;
    let (head, body) = response.into_parts();
    match head.status {
        StatusCode::NO_CONTENT => Ok(()),
        StatusCode::FORBIDDEN => {
            // The other 403 is for a message to another member, which is no verdict on this one.
            let text = read_all(body, ERROR_TEXT_BYTES_MAX, config.read_timeout).await?;
            let text = String::from_utf8_lossy(&text).into_owned();
            if !text.contains("removed member") {
                return Err(io::Error::other(text));
            }
            shared.context.sink.removed_by_peer(shared.id);
            Err(io::Error::other(MEMBER_REMOVED))
        }
        StatusCode::PRECONDITION_FAILED => {
            let text = read_all(body, ERROR_TEXT_BYTES_MAX, config.read_timeout).await?;
            let theirs = wire::text(&head.headers, &wire::X_CLUSTER_ID);
            Err(io::Error::other(precondition(shared, &text, theirs)))
        }
        status => {
            let text = format!("unexpected http status {status} while posting to \"{url}/raft\"");
            Err(io::Error::other(text))
        }
    }
}

/// Measures the round trip, for metrics, and warns while the peer does not answer.
async fn probe_loop(shared: Arc<Shared>) {
    let start = tokio::time::Instant::now() + PROBE_INTERVAL;
    let mut ticks = interval_at(start, PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begin = SystemClock.now();
        let probed = probe(&shared).await;
        *shared.round_trip.lock() = probed.is_ok().then(|| begin.elapsed());
        if let Err(error) = probed
            && shared.may_warn()
        {
            tracing::warn!(
                "remote-peer-id" = %shared.id,
                %error,
                "prober detected unhealthy status"
            );
        }
    }
}

async fn probe(shared: &Shared) -> io::Result<()> {
    let url = shared.picker.pick()?;
    let headers = http::HeaderMap::new();
    let request = client::request(Method::GET, &url, "/raft/probing", headers, Bytes::new())?;
    let config = &shared.context.config;
    let connect = config.connector.as_ref();
    let (response, _connection) =
        exchange(connect, &url, request, config.dial_timeout, config.read_timeout).await?;
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(io::Error::other(format!("got unexpected HTTP status code {status}"))),
    }
}
