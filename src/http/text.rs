//! Answers in the shape of Go's `net/http`, which etcd's clients and operators see.

use crate::actors::handle::NodeHandle;
use crate::base::error::Error;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

/// The version that is served.
pub const SERVER_VERSION: &str = "3.5.17";
/// gRPC's code for a method nobody serves.
const GRPC_UNIMPLEMENTED: HeaderValue = HeaderValue::from_static("12");

/// A response of one content type.
pub(crate) fn typed(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Plain text.
pub(crate) fn plain(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", body)
}

/// A failure: Go appends a line feed and forbids sniffing.
pub(crate) fn failure(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = plain(status, format!("{text}\n"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Refuses any method but `only`.
pub(crate) fn allow(method: &Method, only: &Method) -> Result<(), Box<Response<Body>>> {
    if method == only {
        return Ok(());
    }
    let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Ok(value) = HeaderValue::from_str(only.as_str()) {
        response.headers_mut().insert(ALLOW, value);
    }
    Err(Box::new(response))
}

/// The fallback of a whole listener: Go's 404, or gRPC's own answer to a gRPC request.
pub async fn not_found(headers: HeaderMap) -> Response<Body> {
    let grpc = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        let mut response = typed(StatusCode::OK, "application/grpc", Body::empty());
        response.headers_mut().insert("grpc-status", GRPC_UNIMPLEMENTED);
        return response;
    }
    failure(StatusCode::NOT_FOUND, "404 page not found")
}

/// `/version` of both listeners.
pub(crate) fn version(node: &NodeHandle, method: &Method) -> Response<Body> {
    if let Err(refusal) = allow(method, &Method::GET) {
        return *refusal;
    }
    let cluster = node.cluster_version().unwrap_or_else(|| "not_decided".to_owned());
    let body = serde_json::json!({ "etcdserver": SERVER_VERSION, "etcdcluster": cluster });
    typed(StatusCode::OK, "application/json", body.to_string())
}

/// Values of one query parameter, decoded.
pub(crate) fn query(query: Option<&str>, name: &str) -> Vec<String> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.contains(';'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = |at: usize| rest.get(at).and_then(|c| char::from(*c).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'+', ..) => bytes.push(b' '),
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = rest.get(2..).unwrap_or_default();
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An error of a read as the health pages print it.
pub(crate) fn error_text(error: Error) -> String {
    let text = match error {
        Error::DeadlineExceeded => "context deadline exceeded",
        Error::CanceledByClient => "context canceled",
        Error::Timeout => "etcdserver: request timed out",
        Error::TimeoutDueToLeaderFail => {
            "etcdserver: request timed out, possibly due to previous leader failure"
        }
        Error::TimeoutDueToConnectionLost => {
            "etcdserver: request timed out, possibly due to connection lost"
        }
        Error::TimeoutWaitAppliedIndex => {
            "etcdserver: request timed out, waiting for the applied index took too long"
        }
        Error::NoLeader => "etcdserver: no leader",
        Error::NotLeader => "etcdserver: not leader",
        Error::LeaderChanged => "etcdserver: leader changed",
        Error::Stopped => "etcdserver: server stopped",
        Error::TooManyRequests => "etcdserver: too many requests",
        Error::Corrupt => "etcdserver: corrupt cluster",
        Error::Unhealthy => "etcdserver: unhealthy cluster",
        other => return format!("etcdserver: {other:?}"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        assert_eq!(query(Some("exclude=a&exclude=b%20c&x=1"), "exclude"), ["a", "b c"]);
        assert_eq!(query(Some("verbose"), "verbose"), [""]);
        assert_eq!(query(Some("a=%zz&%61=+"), "a"), ["%zz", " "]);
        assert!(query(None, "a").is_empty());
    }
}
