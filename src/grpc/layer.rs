//! What every call passes before and after its service: admission, counting, deadline.

use super::edge::Edge;
use super::messages::{Interrupt, Received, Sent, code_in};
use super::methods::{self, Kind, Lookup, Method};
use super::observer::Call;
use super::status;
use crate::actors::handle::NodeHandle;
use crate::base::error::{Error, Result};
use http::{HeaderMap, Request, Response};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// Metadata with which a client asks for an error when its member has no leader.
const HAS_LEADER: &str = "hasleader";
/// Metadata with the client's version, for counting only.
const CLIENT_API_VERSION: &str = "client-api-version";
/// Election timeouts without a leader after which streams that require one end (etcd v3.5.17
/// `v3rpc/interceptor.go` maxNoLeaderCnt).
const NO_LEADER_ELECTIONS_MAX: u32 = 3;
/// Digits a `grpc-timeout` may have.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Admits a call, hands it to `serve` and watches over the answer.
pub async fn guard<B, F>(
    edge: &Edge,
    request: Request<B>,
    serve: impl FnOnce(&'static Method, Request<Received<B>>) -> F,
) -> Response<Sent>
where
    F: Future<Output = Response<Body>>,
{
    let method = match methods::find(request.uri().path()) {
        Lookup::Found(method) => method,
        Lookup::UnknownMethod { service, name } => {
            return refused(status::unknown_method(service, name));
        }
        Lookup::UnknownService { service } => return refused(status::unknown_service(service)),
    };
    if let Err(error) = admit(edge, method, request.headers()) {
        return refused(status::of(error));
    }
    let deadline = timeout_in(request.headers()).map(|timeout| Instant::now() + timeout);
    let follow_leader = method.kind != Kind::Unary && requires_leader(request.headers());
    let call = Call::start(edge.options.observer.clone(), method);
    let message_bytes_max = edge.message_bytes_max();
    let request = request.map(|body| Received::new(body, call.clone(), message_bytes_max));
    let response = match before(deadline, serve(method, request)).await {
        Ok(response) => response,
        Err(error) => status::of(error).into_http(),
    };
    if let Some(code) = code_in(response.headers()) {
        call.handled(code);
        return response.map(Sent::uncounted);
    }
    let mut interrupts: Vec<Interrupt> = Vec::new();
    if let Some(deadline) = deadline {
        interrupts.push(Box::pin(async move {
            tokio::time::sleep_until(deadline).await;
            status::of(Error::DeadlineExceeded)
        }));
    }
    if follow_leader {
        let lost = leader_lost(edge.node.clone(), edge.options.election_timeout);
        interrupts.push(Box::pin(lost));
    }
    response.map(|body| Sent::new(body, call, interrupts))
}

fn refused(status: Status) -> Response<Sent> {
    status.into_http().map(Sent::uncounted)
}

/// The checks of etcd's interceptors. A learner also refuses a linearizable Range, which only its
/// service can tell from a serializable one.
fn admit(edge: &Edge, method: &Method, headers: &HeaderMap) -> Result<()> {
    let raft = edge.node.raft_status();
    if raft.is_learner && !served_by_learner(method) {
        return Err(Error::NotSupportedForLearner);
    }
    let version = headers.get(CLIENT_API_VERSION).and_then(|value| value.to_str().ok());
    let kind = if method.kind == Kind::Unary { "unary" } else { "stream" };
    edge.options.observer.client_request(kind, version.unwrap_or("unknown"));
    if requires_leader(headers) && raft.leader.0 == 0 {
        return Err(Error::NoLeader);
    }
    Ok(())
}

fn served_by_learner(method: &Method) -> bool {
    matches!(
        (method.service, method.name),
        ("etcdserverpb.Maintenance", "Status" | "Snapshot") | ("etcdserverpb.KV", "Range")
    )
}

fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get(HAS_LEADER).is_some_and(|value| value.as_bytes() == b"true")
}

/// Returns when the member has been without leader for so long that streams should move on.
async fn leader_lost(node: NodeHandle, election_timeout: Duration) -> Status {
    let mut elections = 0;
    while elections < NO_LEADER_ELECTIONS_MAX {
        tokio::time::sleep(election_timeout).await;
        elections = if node.raft_status().leader.0 == 0 { elections + 1 } else { 0 };
    }
    status::of(Error::NoLeader)
}

async fn before<T>(deadline: Option<Instant>, call: impl Future<Output = T>) -> Result<T> {
    match deadline {
        None => Ok(call.await),
        Some(deadline) => {
            tokio::time::timeout_at(deadline, call).await.map_err(|_| Error::DeadlineExceeded)
        }
    }
}

/// The time a client gives its call: up to eight digits and a unit. Malformed values are ignored.
fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty()
        || digits.len() > TIMEOUT_DIGITS_MAX
        || !digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout_in(&headers)
        };
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("1u"), Some(Duration::from_micros(1)));
        for malformed in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
        assert_eq!(timeout_in(&HeaderMap::new()), None);
    }
}
