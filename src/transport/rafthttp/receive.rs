//! Snapshots from peers: a message and the database behind it, which goes to a file as it comes.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use prost::Message as _;
use tokio::time::timeout;

use super::codec::{Decoder, Received};
use super::server::{forbidden, no_content, refuse};
use super::{StepError, Transport, wire};
use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::MemberId;
use crate::obs::metrics::metrics;
use crate::pb::raftpb::{Message, MessageType};

/// Snapshots that are taken at once, each with a file of its own.
pub(super) const RECEIVING_MAX: usize = 4;
/// Bytes that are gathered before they go to the file.
const WRITE_BYTES: usize = 1024 * 1024;

/// Answers as etcd does (v3.5.17 `rafthttp/http.go` snapshotHandler).
pub(super) async fn take(
    transport: &Transport,
    request: Request<Body>,
) -> Result<Response, Response> {
    transport.compatible(request.headers())?;
    transport.meet(request.headers());
    let begun = SystemClock.now();
    let context = &transport.inner.context;
    let from = u64::from_str_radix(wire::text(request.headers(), &wire::X_SERVER_FROM), 16);
    // A label is only made for who may be a member: the number comes from the network.
    let from = from.ok().map(MemberId).filter(|from| transport.knows(*from));
    let label = from.map_or_else(String::new, |from| from.to_string());
    let failed = |refusal: Response| {
        if from.is_some() {
            metrics().snapshot_receive_failures.with_label_values(&[&label]).inc();
        }
        refusal
    };
    let mut incoming = Inflow { body: request.into_body(), transport };
    let (message, rest) = incoming.message().await.map_err(|error| {
        tracing::warn!("remote-snapshot-sender-id" = label, error, "failed to decode Raft message");
        let text = format!("failed to decode raft message ({error})");
        failed(refuse(StatusCode::BAD_REQUEST, &text))
    })?;
    let kind = message.msg_type();
    if kind != MessageType::MsgSnapshot {
        tracing::warn!("message-type" = ?kind, "unexpected Raft message type");
        return Err(failed(refuse(StatusCode::BAD_REQUEST, "wrong raft message type")));
    }
    let index = message.get_snapshot().get_metadata().index;
    tracing::info!(
        "local-member-id" = %context.config.local,
        "remote-snapshot-sender-id" = label,
        "incoming-snapshot-index" = index,
        "incoming-snapshot-message-size-bytes" = message.encoded_len(),
        "receiving database snapshot"
    );
    let _inflight = from.is_some().then(|| Inflight::begin(&label));
    let saved = incoming.save(index, rest).await.map_err(|error| {
        tracing::warn!(
            "remote-snapshot-sender-id" = label,
            "incoming-snapshot-index" = index,
            error,
            "failed to save incoming database snapshot"
        );
        let text = format!("failed to save KV snapshot ({error})");
        failed(refuse(StatusCode::INTERNAL_SERVER_ERROR, &text))
    })?;
    let took = SystemClock.now().duration_since(begun);
    tracing::info!(
        "local-member-id" = %context.config.local,
        "remote-snapshot-sender-id" = label,
        "incoming-snapshot-index" = index,
        "incoming-snapshot-size-bytes" = saved,
        "download-took" = ?took,
        "received and saved database snapshot"
    );
    let bytes = message.encoded_len() as u64 + saved;
    context.accept_snapshot(message).await.map_err(|error| match error {
        StepError::Removed | StepError::Mismatch => forbidden(&error),
        error => {
            tracing::warn!(%error, "failed to process Raft message");
            let text = format!("failed to process raft message ({error})");
            failed(refuse(StatusCode::INTERNAL_SERVER_ERROR, &text))
        }
    })?;
    if from.is_some() {
        metrics().peer_received_bytes.with_label_values(&[&label]).inc_by(bytes);
        metrics().snapshot_receive_success.with_label_values(&[&label]).inc();
        let took = SystemClock.now().duration_since(begun).as_secs_f64();
        metrics().snapshot_receive_duration.with_label_values(&[&label]).observe(took);
    }
    Ok(no_content())
}

/// Counts a snapshot that is being received.
struct Inflight(prometheus::IntGauge);

impl Inflight {
    fn begin(label: &str) -> Inflight {
        let gauge = metrics().snapshot_receive_inflights.with_label_values(&[label]);
        gauge.inc();
        Inflight(gauge)
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The body of a request.
struct Inflow<'a> {
    body: Body,
    transport: &'a Transport,
}

impl Inflow<'_> {
    /// What comes next; nothing at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let wait = self.transport.inner.context.config.read_timeout;
        loop {
            let frame = timeout(wait, self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| "i/o timeout")? else { return Ok(None) };
            // What is no data is a trailer.
            if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The message, and the beginning of what follows it.
    async fn message(&mut self) -> Result<(Message, BytesMut), String> {
        let mut decoder = Decoder::message();
        while let Some(data) = self.next().await? {
            decoder.feed(&data);
            match decoder.next_frame().map_err(|error| error.to_string())? {
                Some(Received::Message(message)) => return Ok((message, decoder.into_rest())),
                Some(Received::LinkHeartbeat) => return Ok((Message::default(), BytesMut::new())),
                None => {}
            }
        }
        Err("unexpected EOF".to_owned())
    }

    /// Saves what follows the message; its bytes.
    async fn save(&mut self, index: u64, rest: BytesMut) -> Result<u64, String> {
        let context = Arc::clone(&self.transport.inner.context);
        let Ok(_permit) = context.receiving.try_acquire() else {
            return Err("too many snapshots at once".to_owned());
        };
        let sink = Arc::clone(&context.sink);
        let mut file = blocking(move || sink.receive(index)).await?;
        let (mut pending, mut bytes) = (rest, 0);
        loop {
            let data = self.next().await?;
            pending.extend_from_slice(data.as_deref().unwrap_or_default());
            if pending.len() >= WRITE_BYTES || data.is_none() {
                let part = pending.split().freeze();
                bytes += part.len() as u64;
                file = blocking(move || file.write(&part).map(|()| file)).await?;
            }
            if data.is_none() {
                blocking(move || file.finish()).await?;
                return Ok(bytes);
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}
