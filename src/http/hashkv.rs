//! The page by which members compare their stores.

use crate::actors::handle::NodeHandle;
use crate::base::error::{self, Error};
use crate::http::peer::CLUSTER_ID;
use crate::http::text::{allow, error_text, failure, typed};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use std::sync::Arc;

/// Its path.
pub(super) const HASH_KV: &str = "/members/hashkv";

/// HashKV up to a revision (0: the newest): the hash, the newest revision, the compact revision.
pub type HashRead = Arc<dyn Fn(i64) -> error::Result<(u32, i64, i64)> + Send + Sync>;

#[derive(serde::Deserialize)]
struct HashQuestion {
    #[serde(default)]
    revision: i64,
}

/// (etcd v3.5.17 `server/etcdserver/corrupt.go` hashKVHandler)
pub(super) async fn hash_kv(
    node: &NodeHandle,
    hash: HashRead,
    method: &Method,
    headers: &HeaderMap,
    body: Option<Bytes>,
) -> Response<Body> {
    if let Err(refusal) = allow(method, &Method::GET) {
        return *refusal;
    }
    let own = node.cluster_id().to_string();
    let asked = headers.get(CLUSTER_ID).map(HeaderValue::as_bytes).unwrap_or_default();
    if !asked.is_empty() && asked != own.as_bytes() {
        return failure(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch");
    }
    let Some(body) = body else {
        return failure(StatusCode::BAD_REQUEST, "error reading body");
    };
    let question = match serde_json::from_slice::<HashQuestion>(&body) {
        Ok(question) => question,
        Err(error) => {
            tracing::warn!(%error, "failed to unmarshal request");
            return failure(StatusCode::BAD_REQUEST, "error unmarshalling request");
        }
    };
    let revision = question.revision;
    let told = tokio::task::spawn_blocking(move || hash(revision)).await;
    let (hash, newest, compacted) = match told.unwrap_or(Err(Error::Stopped)) {
        Ok(told) => told,
        Err(error) => {
            let text = match error {
                Error::Compacted => "mvcc: required revision has been compacted".to_owned(),
                Error::FutureRev => "mvcc: required revision is a future revision".to_owned(),
                error => error_text(error),
            };
            tracing::warn!("requested-revision" = revision, error = %text, "failed to get hashKV");
            return failure(StatusCode::BAD_REQUEST, &text);
        }
    };
    let mut response =
        typed(StatusCode::OK, "application/json", hash_json(hash, newest, compacted));
    if let Ok(id) = HeaderValue::from_str(&own) {
        response.headers_mut().insert(CLUSTER_ID, id);
    }
    response
}

/// Go's encoder leaves out zeros.
fn hash_json(hash: u32, newest: i64, compacted: i64) -> String {
    let mut object = serde_json::Map::new();
    object.insert("header".to_owned(), serde_json::json!({ "revision": newest }));
    if hash != 0 {
        object.insert("hash".to_owned(), hash.into());
    }
    if compacted != 0 {
        object.insert("compact_revision".to_owned(), compacted.into());
    }
    serde_json::Value::from(object).to_string()
}
