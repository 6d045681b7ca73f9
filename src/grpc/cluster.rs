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
        _: Request<rpc::MemberAddRequest>,
    ) -> Result<Response<rpc::MemberAddResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn member_remove(
        &self,
        _: Request<rpc::MemberRemoveRequest>,
    ) -> Result<Response<rpc::MemberRemoveResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn member_update(
        &self,
        _: Request<rpc::MemberUpdateRequest>,
    ) -> Result<Response<rpc::MemberUpdateResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn member_list(
        &self,
        request: Request<rpc::MemberListRequest>,
    ) -> Result<Response<rpc::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.0.node.linearizable_read_notify().await.map_err(status::of)?;
        }
        let header = self.0.header_without_revision();
        Ok(Response::new(rpc::MemberListResponse { header, members: self.0.node.members() }))
    }

    async fn member_promote(
        &self,
        _: Request<rpc::MemberPromoteRequest>,
    ) -> Result<Response<rpc::MemberPromoteResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }
}
