//! The Lock service: a key for each who wants the lock, the oldest one holds it (etcd v3.5.17
//! `server/etcdserver/api/v3lock`, `client/v3/concurrency/mutex.go`).

use super::caller::{Caller, Gone, by_creation, first_row, key_of, outliving, prefix_of};
use super::edge::Edge;
use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3lockpb as lockpb;
use bytes::Bytes;
use rpc::range_request::SortOrder;
use rpc::request_op::Request as Op;
use rpc::response_op::Response as Answer;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The caller's key went away, usually with its lease, while it waited.
const SESSION_EXPIRED: &str = "mutex: session is expired";

/// Lock over the other services.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl lockpb::lock_server::Lock for Service {
    async fn lock(
        &self,
        request: Request<lockpb::LockRequest>,
    ) -> Result<Response<lockpb::LockResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        outliving(|gone| lock(caller, request, gone)).await.map(Response::new)
    }

    async fn unlock(
        &self,
        request: Request<lockpb::UnlockRequest>,
    ) -> Result<Response<lockpb::UnlockResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        let header = caller.delete(request.key).await?;
        Ok(Response::new(lockpb::UnlockResponse { header }))
    }
}

/// A caller that goes away leaves no key behind that it made.
async fn lock(
    caller: Caller,
    request: lockpb::LockRequest,
    mut gone: Gone,
) -> Result<lockpb::LockResponse, Status> {
    let lease = caller.session(request.lease).await?;
    let prefix = prefix_of(&request.name);
    let key = key_of(&prefix, lease);
    let place = enter(&caller, &prefix, &key, lease).await?;
    let answer = if place.first {
        Ok(place.header)
    } else {
        tokio::select! {
            header = turn(&caller, &prefix, &key, place.created) => header,
            () = gone.wait() => Err(Status::cancelled("context canceled")),
        }
    };
    if answer.is_err() || gone.already() && place.new {
        // If this fails too, the key ends with its lease.
        let _ = caller.release(&key, place.created).await;
    }
    Ok(lockpb::LockResponse { header: Some(answer?), key })
}

/// A place among those who want the lock.
struct Place {
    header: rpc::ResponseHeader,
    /// Revision that created its key.
    created: i64,
    /// The key was not there before.
    new: bool,
    /// Nobody is before it.
    first: bool,
}

/// A session that has the lock or waits for it already goes on with its key.
async fn enter(caller: &Caller, prefix: &[u8], key: &Bytes, lease: i64) -> Result<Place, Status> {
    let put = rpc::PutRequest { key: key.clone(), lease, ..Default::default() };
    let own = rpc::RangeRequest { key: key.clone(), ..Default::default() };
    let owner = || Op::RequestRange(by_creation(prefix, SortOrder::Ascend));
    let (enter, find) = (vec![Op::RequestPut(put), owner()], vec![Op::RequestRange(own), owner()]);
    let response = caller.txn_if_created(key, 0, enter, find).await?;
    let new = response.succeeded;
    let header = response.header.unwrap_or_default();
    let own = if new { None } else { row(&response, 0)? };
    let created = own.map_or(header.revision, |own| own.create_revision);
    let first = row(&response, 1)?.is_none_or(|owner| owner.create_revision == created);
    Ok(Place { header, created, new, first })
}

/// Waits for all who were there before, and makes sure that the own key still is.
async fn turn(
    caller: &Caller,
    prefix: &[u8],
    key: &Bytes,
    created: i64,
) -> Result<rpc::ResponseHeader, Status> {
    caller.wait_deletes(prefix, created - 1).await?;
    let own = rpc::RangeRequest { key: key.clone(), ..Default::default() };
    match caller.first(own).await? {
        (header, Some(_)) => Ok(header),
        (_, None) => Err(Status::unknown(SESSION_EXPIRED)),
    }
}

/// The first row of the range that was operation `at` of a transaction.
fn row(response: &rpc::TxnResponse, at: usize) -> Result<Option<KeyValue>, Status> {
    match response.responses.get(at).and_then(|op| op.response.as_ref()) {
        Some(Answer::ResponseRange(range)) => first_row(range),
        _ => Ok(None),
    }
}
