//! Messages without a stream: single POSTs, a few at a time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::super::client::{self, exchange, read_all};
use super::super::queue::{Queue, Room, cost, queue};
use super::super::{PIPELINE_CONNECTIONS, PIPELINE_QUEUE_MAX, PIPELINE_TIMEOUT, wire};
use super::{ERROR_TEXT_BYTES_MAX, MEMBER_REMOVED, Shared, precondition};
use crate::base::url::Url;
use crate::pb::raftpb::Message;

/// Starts the workers that POST what is put into the queue.
pub(super) fn start_pipeline(shared: &Arc<Shared>) -> (Queue, Vec<AbortHandle>) {
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
        let cost = cost(&message);
        let body = message.encode_to_vec();
        drop(message);
        let bytes = body.len() as u64;
        let posted = post(&shared, body.into()).await;
        let sink = &shared.context.sink;
        match &posted {
            Ok(()) => {
                shared.activate();
                shared.counters.sent_bytes.inc_by(bytes);
            }
            Err(error) => {
                shared.deactivate(&"pipeline", "write", error);
                sink.unreachable(shared.id);
                shared.counters.sent_failures.inc();
            }
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
    verdict(shared, url, "/raft", response).await
}

/// What the answer to a POST of a message says.
pub(super) async fn verdict(
    shared: &Shared,
    url: &Url,
    path: &str,
    response: Response<Incoming>,
) -> io::Result<()> {
    let config = &shared.context.config;
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
            let text = format!("unexpected http status {status} while posting to \"{url}{path}\"");
            Err(io::Error::other(text))
        }
    }
}
