//! The Lease service.

use super::edge::{Edge, unexpected};
use super::status;
use crate::apply::{self, Reply};
use crate::base::error::Error;
use crate::pb::etcdserverpb as rpc;
use futures_util::Stream;
use futures_util::stream;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Lease over the node.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::lease_server::Lease for Service {
    async fn lease_grant(
        &self,
        request: Request<rpc::LeaseGrantRequest>,
    ) -> Result<Response<rpc::LeaseGrantResponse>, Status> {
        let mut request = request.into_inner();
        self.0.check_quota(apply::LEASE_COST).await?;
        while request.id == 0 {
            request.id = ((self.0.options.lease_ids)() & i64::MAX as u64) as i64;
        }
        let request = rpc::InternalRaftRequest { lease_grant: Some(request), ..Default::default() };
        match self.0.propose(request).await? {
            Reply::LeaseGrant(mut response) => {
                self.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<rpc::LeaseRevokeRequest>,
    ) -> Result<Response<rpc::LeaseRevokeResponse>, Status> {
        let request = request.into_inner();
        let request =
            rpc::InternalRaftRequest { lease_revoke: Some(request), ..Default::default() };
        match self.0.propose(request).await? {
            Reply::LeaseRevoke(mut response) => {
                self.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<rpc::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<rpc::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let calls = request.into_inner();
        let edge = self.0.clone();
        let answers = stream::try_unfold((edge, calls), async |(edge, mut calls)| {
            let Some(call) = calls.message().await? else { return Ok(None) };
            let answer = renew(&edge, call.id).await?;
            Ok(Some((answer, (edge, calls))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<rpc::LeaseTimeToLiveRequest>,
    ) -> Result<Response<rpc::LeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let id = request.id;
        let mut response = match self.0.node.lease_time_to_live(request).await {
            Ok(response) => response,
            Err(Error::LeaseNotFound) => {
                rpc::LeaseTimeToLiveResponse { id, ttl: -1, ..Default::default() }
            }
            Err(error) => return Err(status::of(error)),
        };
        self.0.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _: Request<rpc::LeaseLeasesRequest>,
    ) -> Result<Response<rpc::LeaseLeasesResponse>, Status> {
        let ids = self.0.node.leases().await;
        let leases = ids.into_iter().map(|id| rpc::LeaseStatus { id }).collect();
        Ok(Response::new(rpc::LeaseLeasesResponse { header: self.0.header(), leases }))
    }
}

/// Renews one lease; an unknown one has TTL 0. The header is made before the renewal, so that a
/// lease which is gone at its revision is not reported as alive.
async fn renew(edge: &Edge, id: i64) -> Result<rpc::LeaseKeepAliveResponse, Status> {
    let header = edge.header();
    let ttl = match edge.node.lease_renew(id).await {
        Ok(ttl) => ttl,
        Err(Error::LeaseNotFound) => 0,
        Err(error) => return Err(status::of(error)),
    };
    Ok(rpc::LeaseKeepAliveResponse { header, id, ttl })
}
