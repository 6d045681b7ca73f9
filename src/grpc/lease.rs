//! The Lease service.

use super::edge::{Edge, unexpected};
use super::status;
use crate::actors::handle::auth::{Credentials, Identity};
use crate::apply::{self, Reply};
use crate::auth::{Access, Caller};
use crate::base::error::Error;
use crate::base::ids::LeaseId;
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
        let credentials = self.0.credentials(&request);
        let mut request = request.into_inner();
        self.0.check_quota(apply::LEASE_COST).await?;
        self.0.require_user(&credentials).await.map_err(status::of)?;
        while request.id == 0 {
            request.id = ((self.0.options.lease_ids)() & i64::MAX as u64) as i64;
        }
        let request = rpc::InternalRaftRequest { lease_grant: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
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
        let credentials = self.0.credentials(&request);
        self.0.require_user(&credentials).await.map_err(status::of)?;
        let request = request.into_inner();
        let request =
            rpc::InternalRaftRequest { lease_revoke: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
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
        let credentials = self.0.credentials_kept(&request);
        let caller = Renewer { edge: self.0.clone(), credentials, identity: None };
        let all = (caller, request.into_inner());
        let answers = stream::try_unfold(all, async |(mut caller, mut calls)| {
            let Some(call) = calls.message().await? else { return Ok(None) };
            caller.may_renew(call.id).await.map_err(status::of)?;
            let answer = renew(&caller.edge, call.id).await?;
            Ok(Some((answer, (caller, calls))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<rpc::LeaseTimeToLiveRequest>,
    ) -> Result<Response<rpc::LeaseTimeToLiveResponse>, Status> {
        let credentials = self.0.credentials(&request);
        self.0.require_user(&credentials).await.map_err(status::of)?;
        let request = request.into_inner();
        let id = request.id;
        let leases = [LeaseId(id)];
        let shown: &[LeaseId] = if request.keys { &leases } else { &[] };
        let revision = may_see(&self.0, &credentials, shown).await.map_err(status::of)?;
        let mut response = match self.0.node.lease_time_to_live(request).await {
            Ok(response) => response,
            Err(Error::LeaseNotFound) => {
                rpc::LeaseTimeToLiveResponse { id, ttl: -1, ..Default::default() }
            }
            Err(error) => return Err(status::of(error)),
        };
        if request.keys {
            still_at(&self.0, revision).map_err(status::of)?;
        }
        self.0.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<rpc::LeaseLeasesRequest>,
    ) -> Result<Response<rpc::LeaseLeasesResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let ids = self.0.node.leases().await;
        let all: Vec<LeaseId> = ids.iter().copied().map(LeaseId).collect();
        let revision = may_see(&self.0, &credentials, &all).await.map_err(status::of)?;
        still_at(&self.0, revision).map_err(status::of)?;
        let leases = ids.into_iter().map(|id| rpc::LeaseStatus { id }).collect();
        Ok(Response::new(rpc::LeaseLeasesResponse { header: self.0.header(), leases }))
    }
}

/// Whose renewals a stream carries.
struct Renewer {
    edge: Arc<Edge>,
    credentials: Credentials,
    identity: Option<Identity>,
}

impl Renewer {
    /// Root may renew every lease, others those whose keys they may all write. Who it is, is asked
    /// once: a stream lives longer than a token, and clients give up when one ends for that.
    async fn may_renew(&mut self, id: i64) -> crate::base::error::Result<()> {
        let Some(authority) = self.edge.authority() else { return Ok(()) };
        let identity = match &self.identity {
            Some(known) => known,
            None => {
                let found = authority.identify(&self.credentials).await?;
                self.identity.insert(found.ok_or(Error::UserEmpty)?)
            }
        };
        let state = authority.view().state();
        let caller = Caller { name: &identity.name, revision: state.revision() };
        apply::permit_lease(&state, authority.leases(), &caller, LeaseId(id))
    }
}

/// Root may see every lease with its keys, others those whose keys they may all read. The auth
/// revision at which that was so; `None` while authentication is off.
async fn may_see(
    edge: &Edge,
    credentials: &Credentials,
    ids: &[LeaseId],
) -> crate::base::error::Result<Option<u64>> {
    let Some(authority) = edge.authority() else { return Ok(None) };
    let identity = authority.identify(credentials).await?.ok_or(Error::UserEmpty)?;
    let state = authority.view().state();
    let caller = identity.caller();
    if state.permit_admin(&caller).is_err() {
        for key in ids.iter().flat_map(|id| authority.leases().keys(*id)) {
            state.permit(&caller, Access::Read, &key, &[])?;
        }
    }
    Ok(Some(state.revision()))
}

/// Refuses if users or roles have changed since.
fn still_at(edge: &Edge, revision: Option<u64>) -> crate::base::error::Result<()> {
    match (revision, edge.authority()) {
        (Some(before), Some(authority)) if authority.view().revision() != before => {
            Err(Error::AuthOldRevision)
        }
        _ => Ok(()),
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
