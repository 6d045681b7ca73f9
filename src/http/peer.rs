//! The peer listener's pages that are not raft's.

use crate::actors::handle::NodeHandle;
use crate::actors::handle::members::promotion_failure;
use crate::base::error::Error;
use crate::base::ids::MemberId;
use crate::http::hashkv::{HASH_KV, HashRead, hash_kv};
use crate::http::text::{allow, error_text, failure, typed, version};
use crate::pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, Member};
use crate::pb::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::routing::any;
use prost::Message;

/// The cluster's id on answers about members.
pub(super) const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
/// Bytes of a request; the messages hold two numbers.
const LEASE_BODY_BYTES_MAX: usize = 64 * 1024;
/// A lease that a leader does not know has this TTL in an answer.
const NO_LEASE_TTL: i64 = -1;

/// Where a member that joins asks whether the cluster is under way to an older version.
const DOWNGRADE_ENABLED: &str = "/downgrade/enabled";

/// A body, or why it could not be read.
type Received = Result<Bytes, BytesRejection>;

/// `/members` and what is below it, `/downgrade/enabled`, `/version`, `/leases` and
/// `/leases/internal`. It has no fallback; the listener's is [`crate::http::not_found`].
pub fn peer_router(node: NodeHandle, hash: HashRead) -> Router {
    let hash_node = node.clone();
    let (members_node, version_node, renew_node) = (node.clone(), node.clone(), node.clone());
    let (promote_node, downgrade_node) = (node.clone(), node.clone());
    Router::new()
        .route(
            "/members",
            any(move |method: Method| async move { members(&members_node, &method) }),
        )
        .route(
            "/members/promote/{id}",
            any(move |method: Method, Path(id): Path<String>| async move {
                promote(&promote_node, &method, &id).await
            }),
        )
        .route(
            HASH_KV,
            any(move |method: Method, headers: HeaderMap, body: Received| async move {
                hash_kv(&hash_node, hash, &method, &headers, body.ok()).await
            }),
        )
        .route(
            DOWNGRADE_ENABLED,
            any(move |method: Method| async move {
                downgrade_enabled(&downgrade_node, &method).await
            }),
        )
        .route(
            "/version",
            any(move |method: Method| async move { version(&version_node, &method) }),
        )
        .route(
            "/leases",
            any(move |method: Method, body: Received| async move {
                lease(&method, body.ok(), |body| renew(renew_node, body)).await
            }),
        )
        .route(
            "/leases/internal",
            any(move |method: Method, body: Received| async move {
                lease(&method, body.ok(), |body| time_to_live(node, body)).await
            }),
        )
        .layer(DefaultBodyLimit::max(LEASE_BODY_BYTES_MAX))
}

/// A member as etcd's membership package writes it.
fn member_json(member: &Member) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("id".to_owned(), member.id.into());
    object.insert("peerURLs".to_owned(), member.peer_ur_ls.clone().into());
    if member.is_learner {
        object.insert("isLearner".to_owned(), true.into());
    }
    if !member.name.is_empty() {
        object.insert("name".to_owned(), member.name.clone().into());
    }
    if !member.client_ur_ls.is_empty() {
        object.insert("clientURLs".to_owned(), member.client_ur_ls.clone().into());
    }
    object.into()
}

fn members(node: &NodeHandle, method: &Method) -> Response<Body> {
    if let Err(refusal) = allow(method, &Method::GET) {
        return *refusal;
    }
    signed(node, member_list(&node.members()))
}

fn member_list(members: &[Member]) -> Response<Body> {
    let list: Vec<_> = members.iter().map(member_json).collect();
    let body = format!("{}\n", serde_json::Value::from(list));
    typed(StatusCode::OK, "application/json", body)
}

fn signed(node: &NodeHandle, mut response: Response<Body>) -> Response<Body> {
    if let Ok(id) = HeaderValue::from_str(&node.cluster_id().to_string()) {
        response.headers_mut().insert(CLUSTER_ID, id);
    }
    response
}

/// A follower's request to make a learner a voter. Who asks is a member, and has checked who asked
/// it.
async fn promote(node: &NodeHandle, method: &Method, id: &str) -> Response<Body> {
    if let Err(refusal) = allow(method, &Method::POST) {
        return *refusal;
    }
    let Ok(number) = id.parse::<u64>() else {
        let text = format!("member {id} not found in cluster");
        return signed(node, failure(StatusCode::NOT_FOUND, &text));
    };
    let promoted = match node.membership() {
        Some(membership) => membership.promote(MemberId(number)).await,
        None => Err(Error::NotImplemented),
    };
    let error = match promoted {
        Ok(members) => return signed(node, member_list(&members)),
        Err(error) => error,
    };
    tracing::warn!("member-id" = %MemberId(number), ?error, "failed to promote a member");
    let text = promotion_failure(error);
    let answer = match error {
        Error::MemberNotFound => failure(StatusCode::NOT_FOUND, text),
        Error::MemberNotLearner | Error::LearnerNotReady => {
            failure(StatusCode::PRECONDITION_FAILED, text)
        }
        _ => typed(
            StatusCode::INTERNAL_SERVER_ERROR,
            "application/json",
            "{\"message\":\"Internal Server Error\"}",
        ),
    };
    signed(node, answer)
}

/// (etcd v3.5.17 `etcdserver/server.go` downgradeEnabledHandler)
async fn downgrade_enabled(node: &NodeHandle, method: &Method) -> Response<Body> {
    if let Err(refusal) = allow(method, &Method::GET) {
        return *refusal;
    }
    let enabled = match node.downgrading() {
        Some(downgrading) => downgrading.is_enabled().await,
        None => Err(Error::NotImplemented),
    };
    let answer = match enabled {
        Ok(enabled) => typed(StatusCode::OK, "text/plain", enabled.to_string()),
        Err(error) => {
            let text = format!("failed linearized read: {}", error_text(error));
            failure(StatusCode::INTERNAL_SERVER_ERROR, &text)
        }
    };
    signed(node, answer)
}

type Answered = Result<Vec<u8>, Box<Response<Body>>>;

fn refuse(status: StatusCode, text: &str) -> Box<Response<Body>> {
    Box::new(failure(status, text))
}

fn bad_message(_: prost::DecodeError) -> Box<Response<Body>> {
    refuse(StatusCode::BAD_REQUEST, "error unmarshalling request")
}

async fn lease<F>(
    method: &Method,
    body: Option<Bytes>,
    answer: impl FnOnce(Bytes) -> F,
) -> Response<Body>
where
    F: Future<Output = Answered>,
{
    if *method != Method::POST {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    }
    let Some(body) = body else {
        return failure(StatusCode::BAD_REQUEST, "error reading body");
    };
    match answer(body).await {
        Ok(message) => typed(StatusCode::OK, "application/protobuf", message),
        Err(refusal) => *refusal,
    }
}

fn is_leader(node: &NodeHandle) -> bool {
    node.raft_status().leader == node.member_id()
}

/// What goes back for an error. The member that asked tries again after all but the first.
fn lease_failure(error: Error, otherwise: StatusCode) -> Box<Response<Body>> {
    match error {
        Error::LeaseNotFound => refuse(StatusCode::NOT_FOUND, "lease not found"),
        Error::TimeoutWaitAppliedIndex => {
            let text = "waiting for node to catch up its applied index has timed out";
            refuse(StatusCode::REQUEST_TIMEOUT, text)
        }
        error => refuse(otherwise, &error_text(error)),
    }
}

/// Only the leader answers, once it has applied what is committed; members without one must not
/// forward in a circle.
async fn renew(node: NodeHandle, body: Bytes) -> Answered {
    let request = LeaseKeepAliveRequest::decode(body).map_err(bad_message)?;
    if !is_leader(&node) {
        return Err(refuse(StatusCode::BAD_REQUEST, "not a primary lessor"));
    }
    match node.lease_renew(request.id).await {
        Ok(ttl) => {
            let answer = LeaseKeepAliveResponse { id: request.id, ttl, ..Default::default() };
            Ok(answer.encode_to_vec())
        }
        Err(error) => Err(lease_failure(error, StatusCode::BAD_REQUEST)),
    }
}

async fn time_to_live(node: NodeHandle, body: Bytes) -> Answered {
    let request = LeaseInternalRequest::decode(body).map_err(bad_message)?;
    let request = request.lease_time_to_live_request.unwrap_or_default();
    if !is_leader(&node) {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "not a primary lessor"));
    }
    let mut answer = match node.lease_time_to_live(request).await {
        Ok(answer) if answer.ttl != NO_LEASE_TTL => answer,
        Ok(_) => return Err(lease_failure(Error::LeaseNotFound, StatusCode::NOT_FOUND)),
        Err(error) => return Err(lease_failure(error, StatusCode::INTERNAL_SERVER_ERROR)),
    };
    // The member that asked fills in its own header.
    answer.header = Some(Default::default());
    Ok(LeaseInternalResponse { lease_time_to_live_response: Some(answer) }.encode_to_vec())
}
