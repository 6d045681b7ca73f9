//! The streams that this member dials at the peer: dialled again for ever, read into raft.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message as _;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::client::{self, Connection, exchange, read_all};
use super::super::codec::{Decoder, Received};
use super::super::{
    DIAL_RETRY, STEPS_PENDING_BYTES_MAX, STEPS_PENDING_MAX, StepError, Stepping, wire,
};
use super::{ERROR_TEXT_BYTES_MAX, MEMBER_REMOVED, Shared, Stream, precondition};
use crate::base::url::Url;

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
pub(super) async fn read_loop(shared: Arc<Shared>, stream: Stream) {
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
    let mut steps = Steps::default();
    let wait = shared.context.config.read_timeout;
    loop {
        steps.settle(shared).await?;
        let frame = match timeout(wait, body.frame()).await {
            Err(_) => return Err("i/o timeout".to_owned()),
            Ok(None) if decoder.is_between_frames() => return steps.finish(shared).await,
            Ok(None) => return Err("unexpected EOF".to_owned()),
            Ok(Some(frame)) => frame.map_err(|error| error.to_string())?,
        };
        let Ok(data) = frame.into_data() else { continue };
        decoder.feed(&data);
        while let Some(received) = decoder.next_frame().map_err(|error| error.to_string())? {
            if let Received::Message(message) = received {
                let bytes = message.encoded_len();
                shared.counters.received_bytes.inc_by(bytes as u64);
                steps.push(bytes, shared.context.accept(message));
                steps.settle(shared).await?;
            }
        }
    }
}

/// Messages that raft has been handed and has not taken yet, in order. Waiting for each would cost
/// a wake-up a message; waiting for none would let a peer fill the memory.
#[derive(Default)]
struct Steps {
    pending: VecDeque<(usize, Stepping)>,
    bytes: usize,
}

impl Steps {
    fn push(&mut self, bytes: usize, step: Stepping) {
        self.pending.push_back((bytes, step));
        self.bytes += bytes;
    }

    /// Forgets those that are taken, and waits only while there are too many.
    async fn settle(&mut self, shared: &Shared) -> Result<(), String> {
        loop {
            let full = self.is_full();
            let Some((_, step)) = self.pending.front_mut() else { break };
            let taken = if full { Some(step.await) } else { step.now_or_never() };
            let Some(taken) = taken else { break };
            self.pop();
            judge(shared, taken)?;
        }
        Ok(())
    }

    /// Waits for all.
    async fn finish(&mut self, shared: &Shared) -> Result<(), String> {
        while let Some((_, step)) = self.pending.front_mut() {
            let taken = step.await;
            self.pop();
            judge(shared, taken)?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.pending.len() > STEPS_PENDING_MAX || self.bytes > STEPS_PENDING_BYTES_MAX
    }

    fn pop(&mut self) {
        if let Some((bytes, _)) = self.pending.pop_front() {
            self.bytes -= bytes;
        }
    }
}

/// Messages that are not for this member are dropped, as in etcd; other refusals end the stream.
fn judge(shared: &Shared, taken: Result<(), StepError>) -> Result<(), String> {
    match taken {
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
