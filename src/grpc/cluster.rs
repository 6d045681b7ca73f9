//! The Cluster service.

use super::edge::Edge;
use super::status;
use crate::base::error::Error;
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
        self.root_only(&request).await?;
        Err(status::of(Error::NotImplemented))
    }

    async fn member_remove(
        &self,
        request: Request<rpc::MemberRemoveRequest>,
    ) -> Result<Response<rpc::MemberRemoveResponse>, Status> {
        self.root_only(&request).await?;
        Err(status::of(Error::NotImplemented))
    }

    async fn member_update(
        &self,
        request: Request<rpc::MemberUpdateRequest>,
    ) -> Result<Response<rpc::MemberUpdateResponse>, Status> {
        self.root_only(&request).await?;
        Err(status::of(Error::NotImplemented))
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
        Err(status::of(Error::NotImplemented))
    }
}

impl Service {
    async fn root_only<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.0.require_admin(&self.0.credentials(request)).await.map_err(status::of)
    }
}
