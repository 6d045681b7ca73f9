//! The Auth service while authentication cannot be enabled.

use super::edge::Edge;
use super::status;
use crate::base::error::Error;
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Revision of an auth store that was never changed.
const AUTH_REVISION_INITIAL: u64 = 1;

/// Auth over the node.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::auth_server::Auth for Service {
    async fn auth_status(
        &self,
        _: Request<rpc::AuthStatusRequest>,
    ) -> Result<Response<rpc::AuthStatusResponse>, Status> {
        Ok(Response::new(rpc::AuthStatusResponse {
            header: self.0.header(),
            enabled: false,
            auth_revision: AUTH_REVISION_INITIAL,
        }))
    }

    async fn authenticate(
        &self,
        _: Request<rpc::AuthenticateRequest>,
    ) -> Result<Response<rpc::AuthenticateResponse>, Status> {
        self.0.node.linearizable_read_notify().await.map_err(status::of)?;
        Err(status::of(Error::AuthNotEnabled))
    }

    async fn auth_enable(
        &self,
        _: Request<rpc::AuthEnableRequest>,
    ) -> Result<Response<rpc::AuthEnableResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn auth_disable(
        &self,
        _: Request<rpc::AuthDisableRequest>,
    ) -> Result<Response<rpc::AuthDisableResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_add(
        &self,
        _: Request<rpc::AuthUserAddRequest>,
    ) -> Result<Response<rpc::AuthUserAddResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_get(
        &self,
        _: Request<rpc::AuthUserGetRequest>,
    ) -> Result<Response<rpc::AuthUserGetResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_list(
        &self,
        _: Request<rpc::AuthUserListRequest>,
    ) -> Result<Response<rpc::AuthUserListResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_delete(
        &self,
        _: Request<rpc::AuthUserDeleteRequest>,
    ) -> Result<Response<rpc::AuthUserDeleteResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_change_password(
        &self,
        _: Request<rpc::AuthUserChangePasswordRequest>,
    ) -> Result<Response<rpc::AuthUserChangePasswordResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_grant_role(
        &self,
        _: Request<rpc::AuthUserGrantRoleRequest>,
    ) -> Result<Response<rpc::AuthUserGrantRoleResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn user_revoke_role(
        &self,
        _: Request<rpc::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<rpc::AuthUserRevokeRoleResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_add(
        &self,
        _: Request<rpc::AuthRoleAddRequest>,
    ) -> Result<Response<rpc::AuthRoleAddResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_get(
        &self,
        _: Request<rpc::AuthRoleGetRequest>,
    ) -> Result<Response<rpc::AuthRoleGetResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_list(
        &self,
        _: Request<rpc::AuthRoleListRequest>,
    ) -> Result<Response<rpc::AuthRoleListResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_delete(
        &self,
        _: Request<rpc::AuthRoleDeleteRequest>,
    ) -> Result<Response<rpc::AuthRoleDeleteResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_grant_permission(
        &self,
        _: Request<rpc::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleGrantPermissionResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }

    async fn role_revoke_permission(
        &self,
        _: Request<rpc::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleRevokePermissionResponse>, Status> {
        Err(status::of(Error::NotImplemented))
    }
}
