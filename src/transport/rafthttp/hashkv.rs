//! A peer's HashKV, which members ask each other for to see whether their stores are the same
//! (etcd v3.5.17 `server/etcdserver/corrupt.go` HashByRev).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;

use super::client::{exchange, read_all, request};
use super::connect::Connect;
use crate::base::ids::ClusterId;
use crate::base::url::Url;

/// Largest answer: three numbers, or a line of text.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a peer told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHash {
    pub hash: u32,
    pub compact_revision: i64,
    /// Its newest revision.
    pub revision: i64,
}

/// Why it told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashError {
    Compacted,
    FutureRev,
    ClusterIdMismatch,
    Other(String),
}

#[derive(Default, Deserialize)]
struct Header {
    #[serde(default)]
    revision: i64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    header: Header,
    #[serde(default)]
    hash: u32,
    #[serde(default)]
    compact_revision: i64,
}

/// Asks one URL of a member for its hash up to `revision`. `wait` bounds each of dial, head and
/// body.
pub async fn get_hash_kv(
    connect: &dyn Connect,
    url: &Url,
    cluster: ClusterId,
    revision: i64,
    wait: Duration,
) -> Result<PeerHash, HashError> {
    let other = |error: &dyn std::fmt::Display| HashError::Other(error.to_string());
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let id = HeaderValue::from_str(&cluster.to_string()).map_err(|error| other(&error))?;
    headers.insert("X-Etcd-Cluster-ID", id);
    let question = Bytes::from(serde_json::json!({ "revision": revision }).to_string());
    let request = request(Method::GET, url, "/members/hashkv", headers, question)
        .map_err(|error| other(&error))?;
    let (response, _connection) =
        exchange(connect, url, request, wait, wait).await.map_err(|error| other(&error))?;
    let status = response.status();
    let body = read_all(response.into_body(), ANSWER_BYTES_MAX, wait);
    let body = body.await.map_err(|error| other(&error))?;
    if status == StatusCode::OK {
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| other(&error))?;
        let Answer { header, hash, compact_revision } = answer;
        return Ok(PeerHash { hash, compact_revision, revision: header.revision });
    }
    let text = String::from_utf8_lossy(&body);
    Err(refusal(status, &text))
}

fn refusal(status: StatusCode, text: &str) -> HashError {
    let says = |words: &str| text.contains(words);
    match status {
        StatusCode::BAD_REQUEST if says("mvcc: required revision has been compacted") => {
            HashError::Compacted
        }
        StatusCode::BAD_REQUEST if says("mvcc: required revision is a future revision") => {
            HashError::FutureRev
        }
        StatusCode::PRECONDITION_FAILED if says("cluster ID mismatch") => {
            HashError::ClusterIdMismatch
        }
        _ => HashError::Other(format!("unknown error: {}", text.trim_end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let bad = StatusCode::BAD_REQUEST;
        let compacted = "mvcc: required revision has been compacted\n";
        assert_eq!(refusal(bad, compacted), HashError::Compacted);
        let future = "mvcc: required revision is a future revision\n";
        assert_eq!(refusal(bad, future), HashError::FutureRev);
        let other = StatusCode::PRECONDITION_FAILED;
        assert_eq!(refusal(other, "cluster ID mismatch\n"), HashError::ClusterIdMismatch);
        let unknown = HashError::Other("unknown error: cluster ID mismatch".to_owned());
        assert_eq!(refusal(bad, "cluster ID mismatch\n"), unknown);
    }
}
