//! The KV service.

use super::edge::{Edge, Reads, unexpected};
use super::{status, validate};
use crate::actors::handle::auth::Authority;
use crate::apply::{self, Reply, describe};
use crate::auth::{Access, Caller, State};
use crate::base::clock::{Clock as _, SystemClock};
use crate::base::error::{Error, Result};
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use prost::Message as _;
use rpc::request_op::Request as Op;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// A range that asks for at most this many rows is read on the caller's thread; one that may touch
/// more keys runs on a blocking thread, so that it delays no other stream of the connection.
pub const INLINE_ROWS_MAX: i64 = 64;

/// KV over the node and the reader.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::kv_server::Kv for Service {
    async fn range(
        &self,
        request: Request<rpc::RangeRequest>,
    ) -> std::result::Result<Response<rpc::RangeResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let request = request.into_inner();
        if self.0.node.raft_status().is_learner && !request.serializable {
            return Err(status::of(Error::NotSupportedForLearner));
        }
        validate::range(&request).map_err(status::of)?;
        let slow = SlowRead::begin(self.0.options.slow_read);
        if !request.serializable {
            self.0.node.linearizable_read_notify().await.map_err(status::of)?;
        }
        let large = is_large(&request);
        let request = Arc::new(request);
        let asked = request.clone();
        let read = self.read(large, move |reads| reads.range(&asked));
        let check = |_: &dyn Authority, auth: &State, caller: &Caller<'_>| {
            auth.permit(caller, Access::Read, &request.key, &request.range_end)
        };
        let answer = self.0.read_as(&credentials, check, read).await;
        slow.end(
            "read-only range ",
            || describe::range(&request),
            &answer,
            |response| {
                format!(
                    "range_response_count:{} size:{}",
                    response.kvs.len(),
                    response.encoded_len()
                )
            },
        );
        let mut response = answer?;
        self.0.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn put(
        &self,
        request: Request<rpc::PutRequest>,
    ) -> std::result::Result<Response<rpc::PutResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let request = request.into_inner();
        self.0.check_quota(apply::put_cost(&request)).await?;
        validate::put(&request).map_err(status::of)?;
        let request = rpc::InternalRaftRequest { put: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
            Reply::Put(mut response) => {
                self.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<rpc::DeleteRangeRequest>,
    ) -> std::result::Result<Response<rpc::DeleteRangeResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let request = request.into_inner();
        validate::delete_range(&request).map_err(status::of)?;
        let request =
            rpc::InternalRaftRequest { delete_range: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
            Reply::DeleteRange(mut response) => {
                self.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(
        &self,
        request: Request<rpc::TxnRequest>,
    ) -> std::result::Result<Response<rpc::TxnResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let request = request.into_inner();
        self.0.check_quota(apply::txn_cost(&request)).await?;
        validate::txn(&request, self.0.options.max_txn_ops).map_err(status::of)?;
        let mut response = if validate::is_readonly(&request) {
            let slow = SlowRead::begin(self.0.options.slow_read);
            if !validate::is_serializable(&request) {
                self.0.node.linearizable_read_notify().await.map_err(status::of)?;
            }
            let large = is_large_txn(&request);
            let request = Arc::new(request);
            let asked = request.clone();
            let read = self.read(large, move |reads| reads.txn_readonly(&asked));
            let check = |authority: &dyn Authority, auth: &State, caller: &Caller<'_>| {
                apply::permit_txn(auth, authority.leases(), caller, &request)
            };
            let answer = self.0.read_as(&credentials, check, read).await;
            slow.end(
                "read-only txn ",
                || describe::txn(&request),
                &answer,
                |response| {
                    format!(
                        "responses:{} size:{}",
                        response.responses.len(),
                        response.encoded_len()
                    )
                },
            );
            answer?
        } else {
            let request = rpc::InternalRaftRequest { txn: Some(request), ..Default::default() };
            let identity = self.0.permit_txn(&credentials, &request).await.map_err(status::of)?;
            match self.0.propose_by(identity, request).await? {
                Reply::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        self.0.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<rpc::CompactionRequest>,
    ) -> std::result::Result<Response<rpc::CompactionResponse>, Status> {
        let credentials = self.0.credentials(&request);
        self.0.require_admin(&credentials).await.map_err(status::of)?;
        let request = request.into_inner();
        let request = rpc::InternalRaftRequest { compaction: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
            // etcd answers with the revision after the compaction, not with the entry's.
            Reply::Compaction(_) => {
                Ok(Response::new(rpc::CompactionResponse { header: self.0.header() }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Service {
    /// Reads here, or on a blocking thread if the read is `large`.
    async fn read<T: Send + 'static>(
        &self,
        large: bool,
        read: impl FnOnce(&dyn Reads) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        if !large {
            return read(&*self.0.reads).map_err(status::of);
        }
        let reads = self.0.reads.clone();
        match tokio::task::spawn_blocking(move || read(&*reads)).await {
            Ok(result) => result.map_err(status::of),
            Err(error) => {
                tracing::error!(%error, "a read did not finish");
                Err(Status::internal("etcdserver: read failed"))
            }
        }
    }
}

/// Watches over the time of one read, the wait for its index included, as etcd does
/// (etcd v3.5.17 `server/etcdserver/v3_server.go` Range, Txn).
struct SlowRead {
    begun: Instant,
    limit: Duration,
}

impl SlowRead {
    fn begin(limit: Duration) -> SlowRead {
        SlowRead { begun: SystemClock.now(), limit }
    }

    fn end<T>(
        self,
        prefix: &'static str,
        request: impl FnOnce() -> String,
        answer: &std::result::Result<T, Status>,
        response: impl FnOnce(&T) -> String,
    ) {
        let took = SystemClock.now().duration_since(self.begun);
        if took <= self.limit {
            return;
        }
        metrics().slow_apply.inc();
        tracing::warn!(
            took = ?took,
            "expected-duration" = ?self.limit,
            prefix,
            request = %request(),
            response = answer.as_ref().map_or_else(|_| String::new(), response),
            error = answer.as_ref().err().map(Status::message),
            "apply request took too long"
        );
    }
}

/// Whether a range may touch more than [`INLINE_ROWS_MAX`] rows. Sorting and filtering look at all
/// rows before the limit counts.
fn is_large(request: &rpc::RangeRequest) -> bool {
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    let limited = (1..=INLINE_ROWS_MAX).contains(&request.limit)
        && request.sort_order == rpc::range_request::SortOrder::None as i32
        && request.sort_target == rpc::range_request::SortTarget::Key as i32
        && !filtered;
    !request.range_end.is_empty() && !limited
}

fn is_large_txn(request: &rpc::TxnRequest) -> bool {
    request.compare.iter().any(|compare| !compare.range_end.is_empty())
        || request
            .success
            .iter()
            .chain(&request.failure)
            .any(|op| matches!(&op.request, Some(Op::RequestRange(range)) if is_large(range)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_reads() {
        let all = rpc::RangeRequest { range_end: "z".into(), ..Default::default() };
        assert!(is_large(&all));
        assert!(!is_large(&rpc::RangeRequest { key: "k".into(), ..Default::default() }));
        assert!(!is_large(&rpc::RangeRequest { limit: 1, ..all.clone() }));
        assert!(is_large(&rpc::RangeRequest { limit: INLINE_ROWS_MAX + 1, ..all.clone() }));
        assert!(is_large(&rpc::RangeRequest { limit: 1, sort_target: 1, ..all.clone() }));
        assert!(is_large(&rpc::RangeRequest { limit: 1, min_mod_revision: 1, ..all }));
    }
}
