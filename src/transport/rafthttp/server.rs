//! The raft endpoints as peers see them.
#![expect(clippy::result_large_err, reason = "a refusal is a response, once per request")]

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::codec::{FRAME_BYTES_MAX, decode_message};
use super::peer::Stream;
use super::{StepError, Transport, receive, wire};
use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::MemberId;
use crate::obs::metrics::metrics;

/// Written frames that the connection has not taken yet.
const FRAMES_MAX: usize = 1;

/// The routes, with their answers to anything unexpected.
pub(super) fn router(transport: Transport) -> Router {
    Router::new()
        .route("/raft", any(pipeline))
        .route("/raft/stream/{*rest}", any(stream))
        .route("/raft/snapshot", any(snapshot))
        .route("/raft/probing", any(probing))
        .with_state(transport)
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A plain-text answer as Go's net/http gives it.
pub(super) fn refuse(status: StatusCode, text: &str) -> Response {
    let mut response = respond(status, "text/plain; charset=utf-8", format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

fn only(method: &'static str) -> Response {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
    response
}

impl Transport {
    /// Adds the headers by which a peer knows whom it reached.
    fn signed(&self, mut response: Response, with_version: bool) -> Response {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&self.inner.context.config.cluster.to_string()) {
            headers.insert(wire::X_CLUSTER_ID, id);
        }
        if with_version {
            let version = HeaderValue::from_static(wire::SERVER_VERSION);
            headers.insert(wire::X_SERVER_VERSION, version);
        }
        response
    }

    /// Whether the sender's version and cluster fit; the refusal if not.
    pub(super) fn compatible(&self, headers: &HeaderMap) -> Result<(), Response> {
        let config = &self.inner.context.config;
        let Some(text) = wire::refusal(headers, &config.cluster.to_string()) else {
            return Ok(());
        };
        tracing::warn!(
            "local-member-id" = %config.local,
            "local-member-cluster-id" = %config.cluster,
            "remote-peer-server-name" = wire::text(headers, &wire::X_SERVER_FROM),
            "remote-peer-server-version" = wire::text(headers, &wire::X_SERVER_VERSION),
            "remote-peer-cluster-id" = wire::text(headers, &wire::X_CLUSTER_ID),
            error = text,
            "refused request from remote peer"
        );
        Err(refuse(StatusCode::PRECONDITION_FAILED, text))
    }

    /// Remembers where a sender that is no peer can be answered.
    pub(super) fn meet(&self, headers: &HeaderMap) {
        let from = u64::from_str_radix(wire::text(headers, &wire::X_SERVER_FROM), 16);
        let urls = wire::text(headers, &wire::X_PEER_URLS);
        if let (Ok(from), false) = (from, urls.is_empty()) {
            self.add_remote(MemberId(from), urls);
        }
    }
}

async fn pipeline(State(transport): State<Transport>, request: Request<Body>) -> Response {
    if request.method() != Method::POST {
        return only("POST");
    }
    let response = take_posted(&transport, request).await.unwrap_or_else(|refusal| refusal);
    transport.signed(response, false)
}

async fn take_posted(transport: &Transport, request: Request<Body>) -> Result<Response, Response> {
    transport.compatible(request.headers())?;
    transport.meet(request.headers());
    let limit = usize::try_from(FRAME_BYTES_MAX).unwrap_or(usize::MAX);
    let body = Limited::new(request.into_body(), limit).collect().await.map_err(|error| {
        tracing::warn!(%error, "failed to read Raft message");
        refuse(StatusCode::BAD_REQUEST, "error reading raft message")
    })?;
    let body = body.to_bytes();
    let message = decode_message(&body).map_err(|error| {
        tracing::warn!(%error, "failed to unmarshal Raft message");
        refuse(StatusCode::BAD_REQUEST, "error unmarshalling raft message")
    })?;
    let from = MemberId(message.from).to_string();
    // A label is only made for who may be a member: the number comes from the network.
    if transport.inner.context.sink.is_known(MemberId(message.from)) {
        metrics().peer_received_bytes.with_label_values(&[&from]).inc_by(body.len() as u64);
    }
    transport.inner.context.accept(message).await.map_err(|error| {
        tracing::warn!(%error, "failed to process Raft message");
        match error {
            StepError::Removed | StepError::Mismatch => forbidden(&error),
            _ => refuse(StatusCode::INTERNAL_SERVER_ERROR, "error processing raft message"),
        }
    })?;
    Ok(no_content())
}

pub(super) fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

pub(super) fn forbidden(error: &StepError) -> Response {
    let body = format!("{{\"message\":\"{error}\"}}");
    respond(StatusCode::FORBIDDEN, "application/json", body)
}

async fn stream(State(transport): State<Transport>, request: Request<Body>) -> Response {
    if request.method() != Method::GET {
        return only("GET");
    }
    let response = open_stream(&transport, &request).unwrap_or_else(|refusal| refusal);
    transport.signed(response, true)
}

fn open_stream(transport: &Transport, request: &Request<Body>) -> Result<Response, Response> {
    let headers = request.headers();
    transport.compatible(headers)?;
    let rest = request.uri().path().strip_prefix("/raft/stream/").unwrap_or_default();
    let (kind, from) = rest.split_once('/').unwrap_or((rest, ""));
    let kind = match kind {
        "message" => Stream::Message,
        "msgapp" => Stream::MsgApp,
        _ => return Err(refuse(StatusCode::NOT_FOUND, "invalid path")),
    };
    if from.contains('/') {
        return Err(refuse(StatusCode::NOT_FOUND, "invalid path"));
    }
    let from = u64::from_str_radix(from, 16)
        .map(MemberId)
        .map_err(|_| refuse(StatusCode::NOT_FOUND, "invalid from"))?;
    let context = &transport.inner.context;
    if context.sink.is_removed(from) {
        tracing::warn!(
            "local-member-id" = %context.config.local,
            "remote-peer-id-from" = %from,
            "rejected stream from remote peer because it was removed"
        );
        return Err(refuse(StatusCode::GONE, "removed member"));
    }
    let Some(peer) = transport.peer(from) else {
        if !context.sink.is_known(from) {
            transport.add_remote(from, wire::text(headers, &wire::X_PEER_URLS));
        }
        tracing::warn!(
            "local-member-id" = %context.config.local,
            "remote-peer-id-from" = %from,
            "cluster-id" = %context.config.cluster,
            "failed to find remote peer in cluster"
        );
        return Err(refuse(StatusCode::NOT_FOUND, "error sender not found"));
    };
    let to = wire::text(headers, &wire::X_RAFT_TO);
    if to != context.config.local.to_string() {
        tracing::warn!(
            "local-member-id" = %context.config.local,
            "remote-peer-id-header" = to,
            "remote-peer-id-from" = %from,
            "ignored streaming request; ID mismatch"
        );
        return Err(refuse(StatusCode::PRECONDITION_FAILED, "to field mismatch"));
    }
    let (frames, body) = mpsc::channel::<Bytes>(FRAMES_MAX);
    peer.attach(kind, frames);
    let body = ReceiverStream::new(body).map(Ok::<_, Infallible>);
    Ok(Response::new(Body::from_stream(body)))
}

async fn snapshot(State(transport): State<Transport>, request: Request<Body>) -> Response {
    if request.method() != Method::POST {
        return only("POST");
    }
    let response = receive::take(&transport, request).await.unwrap_or_else(|refusal| refusal);
    transport.signed(response, false)
}

async fn probing() -> Response {
    let nanos = i128::try_from(SystemClock.unix().as_nanos()).unwrap_or_default();
    let now = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    let now = now.and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default();
    let body = format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n");
    respond(StatusCode::OK, "text/plain; charset=utf-8", body)
}
