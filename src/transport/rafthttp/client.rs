//! One HTTP/1.1 request to a peer, and the questions members ask each other outside raft.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::connect::Connect;
use crate::base::ids::{ClusterId, MemberId};
use crate::base::url::Url;

/// Largest answer of a peer to a plain question: a member list or a lease's keys.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A member as a peer's `/members` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// The member's id.
    #[serde(deserialize_with = "member_id")]
    pub id: MemberId,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_as_empty")]
    pub peer_urls: Vec<String>,
    /// Its name; empty until it has published it.
    #[serde(default)]
    pub name: String,
    /// Where clients reach it; empty until it has published them.
    #[serde(rename = "clientURLs", default, deserialize_with = "null_as_empty")]
    pub client_urls: Vec<String>,
    /// Whether it has no vote.
    #[serde(rename = "isLearner", default)]
    pub is_learner: bool,
}

fn member_id<'de, D: serde::Deserializer<'de>>(from: D) -> Result<MemberId, D::Error> {
    u64::deserialize(from).map(MemberId)
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct Versions {
    etcdserver: String,
    etcdcluster: String,
}

/// Keeps the connection of a response alive; dropping it closes the connection.
pub(super) struct Connection {
    driver: AbortHandle,
    _sender: http1::SendRequest<Full<Bytes>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(super) fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} timed out"))
}

/// Builds a request for `url`'s host. The path of the URL itself is not used, as in etcd.
pub(super) fn request(
    method: Method,
    url: &Url,
    path: &str,
    headers: HeaderMap,
    body: Bytes,
) -> io::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, url.host.as_str())
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    request.headers_mut().extend(headers);
    Ok(request)
}

/// Connects within `wait`. The connection ends when the sender is dropped.
pub(super) async fn dial(
    connect: &dyn Connect,
    url: &Url,
    wait: Duration,
) -> io::Result<http1::SendRequest<Full<Bytes>>> {
    let io = timeout(wait, connect.connect(url)).await.map_err(|_| timed_out("dial"))??;
    let (sender, driver) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    // Its errors reach the request or the body.
    tokio::spawn(driver);
    Ok(sender)
}

/// Connects within `dial` and sends `request`; the answer's head must come within `answer`.
pub(super) async fn exchange(
    connect: &dyn Connect,
    url: &Url,
    request: Request<Full<Bytes>>,
    dial: Duration,
    answer: Duration,
) -> io::Result<(Response<Incoming>, Connection)> {
    let io = timeout(dial, connect.connect(url)).await.map_err(|_| timed_out("dial"))??;
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(async move {
        // Its errors reach the request or the body.
        let _ = driver.await;
    })
    .abort_handle();
    let response = timeout(answer, sender.send_request(request)).await;
    let connection = Connection { driver, _sender: sender };
    let response = response.map_err(|_| timed_out("request"))?.map_err(io::Error::other)?;
    Ok((response, connection))
}

/// The whole body, at most `limit` bytes, within `wait`.
pub(super) async fn read_all(body: Incoming, limit: usize, wait: Duration) -> io::Result<Bytes> {
    let whole = timeout(wait, Limited::new(body, limit).collect()).await;
    Ok(whole.map_err(|_| timed_out("response"))?.map_err(io::Error::other)?.to_bytes())
}

async fn get(
    connect: &dyn Connect,
    url: &Url,
    path: &str,
    wait: Duration,
) -> io::Result<(StatusCode, HeaderMap, Bytes)> {
    let request = request(Method::GET, url, path, HeaderMap::new(), Bytes::new())?;
    let (response, _connection) = exchange(connect, url, request, wait, wait).await?;
    let (head, body) = response.into_parts();
    Ok((head.status, head.headers, read_all(body, ANSWER_BYTES_MAX, wait).await?))
}

fn last(error: Option<io::Error>, otherwise: &str) -> io::Error {
    error.unwrap_or_else(|| io::Error::other(otherwise))
}

/// Asks the first URL that answers for its `/version`: server version and cluster version.
pub async fn get_version(
    connect: &dyn Connect,
    urls: &[Url],
    wait: Duration,
) -> io::Result<(String, String)> {
    let mut error = None;
    for url in urls {
        let got = get(connect, url, "/version", wait).await.and_then(|(_, _, body)| {
            serde_json::from_slice::<Versions>(&body).map_err(io::Error::from)
        });
        match got {
            Ok(versions) => return Ok((versions.etcdserver, versions.etcdcluster)),
            Err(failure) => error = Some(failure),
        }
    }
    Err(last(error, "member has no peer URL"))
}

/// Asks the first URL that answers whether its cluster is under way to an older version.
pub async fn get_downgrade_enabled(
    connect: &dyn Connect,
    urls: &[Url],
    wait: Duration,
) -> io::Result<bool> {
    let mut error = None;
    for url in urls {
        let got = get(connect, url, "/downgrade/enabled", wait).await;
        match got.map(|(_, _, body)| std::str::from_utf8(&body).ok().and_then(|t| t.parse().ok())) {
            Ok(Some(enabled)) => return Ok(enabled),
            Ok(None) => error = Some(io::Error::other("an answer that is neither true nor false")),
            Err(failure) => error = Some(failure),
        }
    }
    Err(last(error, "member has no peer URL"))
}

/// Asks the first URL that answers for its cluster's id and members.
pub async fn get_members(
    connect: &dyn Connect,
    urls: &[Url],
    wait: Duration,
) -> io::Result<(ClusterId, Vec<Member>)> {
    for url in urls {
        let got = get(connect, url, "/members", wait).await.and_then(|(_, headers, body)| {
            let members: Vec<Member> = serde_json::from_slice(&body)?;
            let id = headers.get("X-Etcd-Cluster-ID").and_then(|id| id.to_str().ok());
            let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
            Ok((ClusterId(id.ok_or_else(|| io::Error::other("no cluster id"))?), members))
        });
        match got {
            Ok((_, members)) if members.is_empty() => {
                let text = "failed to get raft cluster member(s) from the given URLs";
                return Err(io::Error::other(text));
            }
            Ok(found) => return Ok(found),
            Err(error) => tracing::debug!(%error, address = %url, "failed to get cluster response"),
        }
    }
    Err(io::Error::other("could not retrieve cluster information from the given URLs"))
}
