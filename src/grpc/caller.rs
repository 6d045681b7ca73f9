//! The caller of a lock or an election, in whose name other services are asked: etcd's services of
//! this kind go through a client inside the process. What those services check, credentials
//! included, they check for it.

use super::edge::Edge;
use super::{kv, lease, status};
use crate::actors::handle::watch::{Notice, Watching};
use crate::base::error::Error;
use crate::mvcc::watch::Spec;
use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::KeyValue;
use bytes::Bytes;
use prost::Message as _;
use rpc::compare::{CompareResult, CompareTarget, TargetUnion};
use rpc::kv_server::Kv as _;
use rpc::lease_server::Lease as _;
use rpc::range_request::{SortOrder, SortTarget};
use rpc::request_op::Request as Op;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Response, Status};

/// TTL in seconds of the lease of a caller that names none (etcd v3.5.17
/// `client/v3/concurrency/session.go` defaultSessionTTL).
const SESSION_TTL: i64 = 60;

/// See the module.
pub(super) struct Caller {
    edge: Arc<Edge>,
    metadata: MetadataMap,
    extensions: Extensions,
}

/// Says when the caller of [`outliving`] has gone.
pub(super) struct Gone(oneshot::Receiver<()>);

impl Gone {
    /// Resolves then.
    pub(super) async fn wait(&mut self) {
        // Nothing is ever sent: the other end is only dropped.
        let _ = (&mut self.0).await;
    }

    /// Whether it has.
    pub(super) fn already(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// Runs work that has to tidy up after itself when its caller goes away in the middle.
pub(super) async fn outliving<T, F>(work: impl FnOnce(Gone) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>> + Send + 'static,
    T: Send + 'static,
{
    let (_here, gone) = oneshot::channel();
    match tokio::spawn(work(Gone(gone))).await {
        Ok(answer) => answer,
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// The error as it comes out of etcd's client inside the process: the texts are those of the
/// services, but the errors are no gRPC statuses any more.
fn through_client(status: Status) -> Status {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Unknown | Code::Internal => status,
        _ => Status::unknown(status.message()),
    }
}

impl Caller {
    /// The caller of `request`, and what it asks.
    pub(super) fn of<T>(edge: &Arc<Edge>, request: Request<T>) -> (Caller, T) {
        let (metadata, extensions, message) = request.into_parts();
        (Caller { edge: edge.clone(), metadata, extensions }, message)
    }

    fn asks<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }

    /// The lease of the caller's session: `lease`, or a new one for 0.
    pub(super) async fn session(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = self.asks(rpc::LeaseGrantRequest { ttl: SESSION_TTL, id: 0 });
        let granted = lease::Service(self.edge.clone()).lease_grant(request).await;
        Ok(granted.map_err(through_client)?.into_inner().id)
    }

    /// Runs `success` if `key` was created at `create_revision` (0: does not exist), else
    /// `failure`.
    pub(super) async fn txn_if_created(
        &self,
        key: &[u8],
        create_revision: i64,
        success: Vec<Op>,
        failure: Vec<Op>,
    ) -> Result<rpc::TxnResponse, Status> {
        let compare = rpc::Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Create as i32,
            key: Bytes::copy_from_slice(key),
            target_union: Some(TargetUnion::CreateRevision(create_revision)),
            ..Default::default()
        };
        let ops =
            |ops: Vec<Op>| ops.into_iter().map(|op| rpc::RequestOp { request: Some(op) }).collect();
        let (success, failure) = (ops(success), ops(failure));
        let txn = self.asks(rpc::TxnRequest { compare: vec![compare], success, failure });
        let answer = kv::Service(self.edge.clone()).txn(txn).await;
        answer.map(Response::into_inner).map_err(through_client)
    }

    /// Reads linearizably: the header, and the first row if there is one.
    pub(super) async fn first(
        &self,
        range: rpc::RangeRequest,
    ) -> Result<(rpc::ResponseHeader, Option<KeyValue>), Status> {
        let answer = kv::Service(self.edge.clone()).range(self.asks(range)).await;
        let answer = answer.map_err(through_client)?.into_inner();
        let row = first_row(&answer)?;
        Ok((answer.header.unwrap_or_default(), row))
    }

    /// Deletes one key.
    pub(super) async fn delete(&self, key: Bytes) -> Result<Option<rpc::ResponseHeader>, Status> {
        let request = self.asks(rpc::DeleteRangeRequest { key, ..Default::default() });
        let answer = kv::Service(self.edge.clone()).delete_range(request).await;
        Ok(answer.map_err(through_client)?.into_inner().header)
    }

    /// Deletes a key unless it is another one than that created at `create_revision`.
    pub(super) async fn release(
        &self,
        key: &[u8],
        create_revision: i64,
    ) -> Result<Option<rpc::ResponseHeader>, Status> {
        let delete =
            rpc::DeleteRangeRequest { key: Bytes::copy_from_slice(key), ..Default::default() };
        let ops = vec![Op::RequestDeleteRange(delete)];
        Ok(self.txn_if_created(key, create_revision, ops, Vec::new()).await?.header)
    }

    /// Opens a watch from `revision` on. The span was read by this caller a moment ago, so that it
    /// may watch it.
    pub(super) fn watch(&self, key: &[u8], range_end: &[u8], revision: i64) -> Watching {
        let watching = self.edge.node.watch();
        watching.create(0, revision, Spec::new(key, range_end, false, false));
        watching
    }

    /// Whether the caller may still read a key: permissions change while it observes.
    pub(super) async fn may_read(&self, key: &Bytes) -> bool {
        if self.edge.authority().is_none() {
            return true;
        }
        let key = key.clone();
        let range =
            rpc::RangeRequest { key, serializable: true, count_only: true, ..Default::default() };
        self.first(range).await.is_ok()
    }

    /// Returns when no key below `prefix` is left that was created at or before `max`. It waits for
    /// the newest of them, so that one deletion wakes one waiter.
    pub(super) async fn wait_deletes(&self, prefix: &[u8], max: i64) -> Result<(), Status> {
        loop {
            let range = rpc::RangeRequest {
                max_create_revision: max,
                ..by_creation(prefix, SortOrder::Descend)
            };
            let (header, Some(last)) = self.first(range).await? else {
                return Ok(());
            };
            self.wait_delete(&last.key, header.revision).await?;
        }
    }

    async fn wait_delete(&self, key: &[u8], revision: i64) -> Result<(), Status> {
        let mut watching = self.edge.node.watch();
        watching.create(0, revision, Spec::new(key, &[], true, false));
        loop {
            match watching.next().await {
                Some(Notice::Events(_)) => return Ok(()),
                Some(Notice::Compacted { .. }) => {
                    return Err(through_client(status::of(Error::Compacted)));
                }
                Some(_) => {}
                None => return Err(through_client(status::of(Error::Stopped))),
            }
        }
    }

    /// A header with this member's identity at a revision.
    pub(super) fn header_at(&self, revision: i64) -> rpc::ResponseHeader {
        let mut header = rpc::ResponseHeader { revision, ..Default::default() };
        self.edge.fill_identity(&mut header);
        header
    }
}

/// The first row of a range.
pub(super) fn first_row(answer: &rpc::RangeResponse) -> Result<Option<KeyValue>, Status> {
    let row = answer.kvs.first().map(|row| KeyValue::decode(row.clone())).transpose();
    row.map_err(|error| Status::internal(format!("etcdserver: an unreadable row: {error}")))
}

/// The end of a prefix that ends with a slash.
pub(super) fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = b'/' + 1;
    }
    end.into()
}

/// The key below a prefix that was created first or last.
pub(super) fn by_creation(prefix: &[u8], order: SortOrder) -> rpc::RangeRequest {
    rpc::RangeRequest {
        key: Bytes::copy_from_slice(prefix),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: order as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

/// The keys of `name`: a slash behind it.
pub(super) fn prefix_of(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

/// The key of a lease below a prefix: its id in hexadecimal, signed, as Go writes it.
pub(super) fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_etcds() {
        assert_eq!(prefix_of(b"my"), b"my/");
        assert_eq!(end_of(b"my/"), "my0");
        for (lease, key) in [
            (0x70ac, "my/70ac"),
            (-10, "my/-a"),
            (i64::MAX, "my/7fffffffffffffff"),
            (i64::MIN, "my/-8000000000000000"),
        ] {
            assert_eq!(key_of(b"my/", lease), key);
        }
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes() {
        let (done, finished) = oneshot::channel();
        let call = outliving(|mut gone| async move {
            assert!(!gone.already());
            gone.wait().await;
            assert!(gone.already());
            let _ = done.send(());
            Ok(())
        });
        let patience = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, call).await.is_err());
        finished.await.unwrap();
    }
}
