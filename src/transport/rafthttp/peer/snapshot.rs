//! A snapshot to the peer: one POST whose body is the message and then the database, made as the
//! peer takes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{Method, Request};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::super::client::timed_out;
use super::super::codec::Encoder;
use super::super::{Outgoing, wire};
use super::Shared;
use super::pipeline::verdict;
use crate::base::clock::{Clock, SystemClock};
use crate::base::failpoint;
use crate::base::url::Url;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::Message;

/// Where snapshots are taken.
const PATH: &str = "/raft/snapshot";
/// Bytes of the database that are made at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that are made and not yet on the connection.
const CHUNKS_MAX: usize = 2;
/// A peer that takes no chunk for this long is gone; etcd would wait for ever.
const STALL_MAX: Duration = Duration::from_secs(30);
/// A peer that has everything looks it through and syncs it before it answers.
const ANSWER_WAIT: Duration = Duration::from_secs(300);

type Body = StreamBody<futures_util::stream::BoxStream<'static, io::Result<Frame<Bytes>>>>;

/// Says at its end, however it comes, what became of a snapshot: raft sends nothing else meanwhile.
struct Report {
    shared: Arc<Shared>,
    delivered: bool,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.shared.sending.store(false, Ordering::Release);
        self.shared.context.sink.snapshot_status(self.shared.id, self.delivered);
    }
}

/// Sends a snapshot, unless another is on its way. What becomes of it the sink is told.
pub(super) fn start(shared: &Arc<Shared>, outgoing: Box<dyn Outgoing>) -> Option<AbortHandle> {
    if claim(&shared.sending) {
        let report = Report { shared: Arc::clone(shared), delivered: false };
        return Some(shared.context.runtime.spawn(send(report, outgoing)).abort_handle());
    }
    shared.context.sink.snapshot_status(shared.id, false);
    None
}

fn claim(sending: &AtomicBool) -> bool {
    !sending.swap(true, Ordering::AcqRel)
}

async fn send(mut report: Report, outgoing: Box<dyn Outgoing>) {
    let shared = Arc::clone(&report.shared);
    let to = shared.id.to_string();
    let begun = SystemClock.now();
    let inflights = metrics().snapshot_send_inflights.with_label_values(&[&to]);
    inflights.inc();
    let sent = prepare_and_post(&shared, outgoing).await;
    inflights.dec();
    match sent {
        Ok(bytes) => {
            shared.activate();
            shared.counters.sent_bytes.inc_by(bytes);
            metrics().snapshot_send_success.with_label_values(&[&to]).inc();
            let took = SystemClock.now().duration_since(begun).as_secs_f64();
            metrics().snapshot_send_duration.with_label_values(&[&to]).observe(took);
            tracing::info!("remote-peer-id" = to, bytes, took, "sent database snapshot");
            report.delivered = true;
        }
        Err(error) => {
            tracing::warn!("remote-peer-id" = to, %error, "failed to send database snapshot");
            shared.deactivate(&"snapshot", "post", &error);
            shared.context.sink.unreachable(shared.id);
            shared.counters.sent_failures.inc();
            metrics().snapshot_send_failures.with_label_values(&[&to]).inc();
        }
    }
}

async fn prepare_and_post(shared: &Shared, mut outgoing: Box<dyn Outgoing>) -> io::Result<u64> {
    // Before the peer is asked to listen: it may give up on a connection that is silent.
    let (message, database) = loop {
        let prepared;
        (outgoing, prepared) = blocking(outgoing, |outgoing| outgoing.prepare()).await?;
        if let Some(prepared) = prepared {
            break prepared;
        }
    };
    let bytes = message.encoded_len() as u64 + database;
    tracing::info!(
        "snapshot-index" = message.get_snapshot().get_metadata().index,
        "remote-peer-id" = %shared.id,
        bytes,
        "sending database snapshot"
    );
    failpoint::io(failpoint::SNAP_SEND)?;
    let url = shared.picker.pick()?;
    let posted = post(shared, &url, message, outgoing).await;
    if posted.is_err() {
        shared.picker.unreachable(&url);
    }
    posted.map(|()| bytes)
}

async fn post(
    shared: &Shared,
    url: &Url,
    message: Message,
    outgoing: Box<dyn Outgoing>,
) -> io::Result<()> {
    let config = &shared.context.config;
    let connecting = timeout(config.dial_timeout, config.connector.connect(url));
    let io = connecting.await.map_err(|_| timed_out("dial"))??;
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    let _driver = Driver(tokio::spawn(driver).abort_handle());
    let (chunks, body) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let body = ReceiverStream::new(body).map(|chunk| Ok(Frame::data(chunk))).boxed();
    let answering = sender.send_request(request(shared, url, StreamBody::new(body))?);
    let mut answering = std::pin::pin!(answering);
    let answer = tokio::select! {
        // Before everything is sent, it is a refusal.
        answer = &mut answering => answer.map_err(io::Error::other)?,
        made = make(message, outgoing, chunks) => {
            // IMPORTANT: with an error the connection goes, so that a part is never taken for all.
            drop(made?);
            let answer = timeout(ANSWER_WAIT, answering).await;
            answer.map_err(|_| timed_out("answer"))?.map_err(io::Error::other)?
        }
    };
    verdict(shared, url, PATH, answer).await
}

/// Ends a connection's task with its owner.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn request(shared: &Shared, url: &Url, body: Body) -> io::Result<Request<Body>> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(http::header::HOST, url.host.as_str())
        .header(http::header::CONTENT_TYPE, "application/octet-stream")
        .body(body)
        .map_err(io::Error::other)?;
    request.headers_mut().extend(wire::introduction(&shared.context.config));
    Ok(request)
}

/// Makes the body; the end of the channel, which is given back, is the end of the body.
async fn make(
    message: Message,
    mut outgoing: Box<dyn Outgoing>,
    chunks: mpsc::Sender<Bytes>,
) -> io::Result<mpsc::Sender<Bytes>> {
    let mut head = BytesMut::new();
    Encoder::message().encode(&message, &mut head);
    drop(message);
    let mut chunk = head.freeze();
    while !chunk.is_empty() {
        let taken = timeout(STALL_MAX, chunks.send(chunk)).await.map_err(|_| timed_out("write"))?;
        taken.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        failpoint::io(failpoint::SNAP_SENDING)?;
        (outgoing, chunk) = blocking(outgoing, |outgoing| outgoing.read(CHUNK_BYTES)).await?;
    }
    Ok(chunks)
}

async fn blocking<T: Send + 'static>(
    mut outgoing: Box<dyn Outgoing>,
    work: impl FnOnce(&mut dyn Outgoing) -> Result<T, String> + Send + 'static,
) -> io::Result<(Box<dyn Outgoing>, T)> {
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&mut *outgoing);
        done.map(|done| (outgoing, done))
    });
    done.await.map_err(io::Error::other)?.map_err(io::Error::other)
}
