//! The Cluster service.

use super::edge::Edge;
use super::status;
use crate::actors::handle::members::Membership;
use crate::base::error::Error;
use crate::base::ids::MemberId;
use crate::base::url::{self, Url};
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Cluster over the node.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::cluster_server::Cluster for Service {
    async fn member_add(
        &self,
        request: Request<rpc::MemberAddRequest>,
    ) -> Result<Response<rpc::MemberAddResponse>, Status> {
        // URLs before permissions, as etcd.
        let peer_urls = peer_urls(&request.get_ref().peer_ur_ls).map_err(status::of)?;
        self.root_only(&request).await?;
        let as_learner = request.into_inner().is_learner;
        let (member, members) =
            self.membership()?.add(peer_urls, as_learner).await.map_err(status::of)?;
        let header = self.0.header_without_revision();
        Ok(Response::new(rpc::MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<rpc::MemberRemoveRequest>,
    ) -> Result<Response<rpc::MemberRemoveResponse>, Status> {
        self.root_only(&request).await?;
        let id = MemberId(request.into_inner().id);
        let members = self.membership()?.remove(id).await.map_err(status::of)?;
        let header = self.0.header_without_revision();
        Ok(Response::new(rpc::MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        request: Request<rpc::MemberUpdateRequest>,
    ) -> Result<Response<rpc::MemberUpdateResponse>, Status> {
        self.root_only(&request).await?;
        let rpc::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        // DEVIATION: etcd does not look at them, and ends when it applies the change.
        peer_urls(&peer_ur_ls).map_err(status::of)?;
        let members = self.membership()?.update(MemberId(id), peer_ur_ls).await;
        let (members, header) = (members.map_err(status::of)?, self.0.header_without_revision());
        Ok(Response::new(rpc::MemberUpdateResponse { header, members }))
    }

    async fn member_list(
        &self,
        request: Request<rpc::MemberListRequest>,
    ) -> Result<Response<rpc::MemberListResponse>, Status> {
        let credentials = self.0.credentials(&request);
        if request.into_inner().linearizable {
            self.0.node.linearizable_read_notify().await.map_err(status::of)?;
        }
        self.0.require_user(&credentials).await.map_err(status::of)?;
        let header = self.0.header_without_revision();
        Ok(Response::new(rpc::MemberListResponse { header, members: self.0.node.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<rpc::MemberPromoteRequest>,
    ) -> Result<Response<rpc::MemberPromoteResponse>, Status> {
        self.root_only(&request).await?;
        let id = MemberId(request.into_inner().id);
        let members = self.membership()?.promote(id).await.map_err(status::of)?;
        let header = self.0.header_without_revision();
        Ok(Response::new(rpc::MemberPromoteResponse { header, members }))
    }
}

/// The URLs of a new member, sorted, as etcd writes them down.
fn peer_urls(texts: &[String]) -> Result<Vec<String>, Error> {
    if texts.is_empty() {
        return Err(Error::MemberBadUrls);
    }
    let parsed: Result<Vec<Url>, String> = texts.iter().map(|text| Url::parse(text)).collect();
    let mut urls = parsed.map_err(|_| Error::MemberBadUrls)?;
    url::sort(&mut urls);
    Ok(urls.iter().map(Url::to_string).collect())
}

impl Service {
    fn membership(&self) -> Result<&dyn Membership, Status> {
        self.0.node.membership().ok_or_else(|| status::of(Error::NotImplemented))
    }

    async fn root_only<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.0.require_admin(&self.0.credentials(request)).await.map_err(status::of)
    }
}
