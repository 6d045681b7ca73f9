//! The Auth service: logins, and requests about users and roles, which go through the log.

use super::edge::{Edge, unexpected};
use super::status;
use crate::actors::handle::auth::{Authority, Credentials};
use crate::apply::{AuthReply, Reply};
use crate::base::error::Error;
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Auth over the node.
pub struct Service(pub Arc<Edge>);

/// A request that goes through the log as it is, and its answer.
macro_rules! through_the_log {
    ($service:expr, $request:expr, $field:ident, $reply:ident) => {{
        let credentials = $service.0.credentials(&$request);
        let entry = rpc::InternalRaftRequest {
            $field: Some($request.into_inner()),
            ..rpc::InternalRaftRequest::default()
        };
        match $service.propose(&credentials, entry).await? {
            AuthReply::$reply(mut response) => {
                $service.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&Reply::Auth(other))),
        }
    }};
}

impl Service {
    async fn propose(
        &self,
        credentials: &Credentials,
        entry: rpc::InternalRaftRequest,
    ) -> Result<AuthReply, Status> {
        match self.0.propose_as(credentials, entry).await? {
            Reply::Auth(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    fn authority(&self) -> Result<&dyn Authority, Status> {
        self.0.node.authority().ok_or_else(|| status::of(Error::AuthNotEnabled))
    }

    /// A log entry never holds a password in clear.
    async fn hash(&self, password: &mut String) -> Result<String, Status> {
        let password = std::mem::take(password);
        self.authority()?.hash_password(password).await.map_err(status::of)
    }

    /// Checks the password and has the login logged, until nothing about users changes in between.
    async fn log_in(
        &self,
        request: &rpc::AuthenticateRequest,
    ) -> Result<rpc::AuthenticateResponse, Status> {
        let authority = self.authority()?;
        loop {
            let checked = authority.check_password(&request.name, request.password.clone());
            let checked_revision = checked.await.map_err(|error| {
                if error != Error::AuthNotEnabled {
                    tracing::warn!(user = %request.name, "invalid authentication was requested");
                }
                status::of(error)
            })?;
            let authenticate = rpc::InternalAuthenticateRequest {
                name: request.name.clone(),
                simple_token: authority.token_seed().map_err(status::of)?,
                ..rpc::InternalAuthenticateRequest::default()
            };
            let entry = rpc::InternalRaftRequest {
                authenticate: Some(authenticate),
                ..rpc::InternalRaftRequest::default()
            };
            let (mut response, revision) =
                match self.propose(&Credentials::default(), entry).await? {
                    AuthReply::Authenticate { response, revision } => (response, revision),
                    other => return Err(unexpected(&Reply::Auth(other))),
                };
            let signed = authority.sign(&request.name, revision).await.map_err(status::of)?;
            if let Some(token) = signed {
                response.token = token;
            }
            if authority.view().revision() == checked_revision {
                return Ok(response);
            }
            tracing::info!("revision when password checked became stale; retrying");
        }
    }
}

#[tonic::async_trait]
impl rpc::auth_server::Auth for Service {
    async fn auth_status(
        &self,
        request: Request<rpc::AuthStatusRequest>,
    ) -> Result<Response<rpc::AuthStatusResponse>, Status> {
        through_the_log!(self, request, auth_status, Status)
    }

    async fn authenticate(
        &self,
        request: Request<rpc::AuthenticateRequest>,
    ) -> Result<Response<rpc::AuthenticateResponse>, Status> {
        self.0.node.linearizable_read_notify().await.map_err(status::of)?;
        let mut response = self.log_in(request.get_ref()).await?;
        self.0.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn auth_enable(
        &self,
        request: Request<rpc::AuthEnableRequest>,
    ) -> Result<Response<rpc::AuthEnableResponse>, Status> {
        through_the_log!(self, request, auth_enable, Enable)
    }

    async fn auth_disable(
        &self,
        request: Request<rpc::AuthDisableRequest>,
    ) -> Result<Response<rpc::AuthDisableResponse>, Status> {
        through_the_log!(self, request, auth_disable, Disable)
    }

    async fn user_add(
        &self,
        mut request: Request<rpc::AuthUserAddRequest>,
    ) -> Result<Response<rpc::AuthUserAddResponse>, Status> {
        let user = request.get_mut();
        if user.options.is_some_and(|options| options.no_password) {
            user.password.clear();
        } else {
            user.hashed_password = self.hash(&mut user.password).await?;
        }
        through_the_log!(self, request, auth_user_add, UserAdd)
    }

    async fn user_get(
        &self,
        request: Request<rpc::AuthUserGetRequest>,
    ) -> Result<Response<rpc::AuthUserGetResponse>, Status> {
        through_the_log!(self, request, auth_user_get, UserGet)
    }

    async fn user_list(
        &self,
        request: Request<rpc::AuthUserListRequest>,
    ) -> Result<Response<rpc::AuthUserListResponse>, Status> {
        through_the_log!(self, request, auth_user_list, UserList)
    }

    async fn user_delete(
        &self,
        request: Request<rpc::AuthUserDeleteRequest>,
    ) -> Result<Response<rpc::AuthUserDeleteResponse>, Status> {
        through_the_log!(self, request, auth_user_delete, UserDelete)
    }

    async fn user_change_password(
        &self,
        mut request: Request<rpc::AuthUserChangePasswordRequest>,
    ) -> Result<Response<rpc::AuthUserChangePasswordResponse>, Status> {
        let user = request.get_mut();
        if !user.password.is_empty() {
            user.hashed_password = self.hash(&mut user.password).await?;
        }
        through_the_log!(self, request, auth_user_change_password, UserChangePassword)
    }

    async fn user_grant_role(
        &self,
        request: Request<rpc::AuthUserGrantRoleRequest>,
    ) -> Result<Response<rpc::AuthUserGrantRoleResponse>, Status> {
        through_the_log!(self, request, auth_user_grant_role, UserGrantRole)
    }

    async fn user_revoke_role(
        &self,
        request: Request<rpc::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<rpc::AuthUserRevokeRoleResponse>, Status> {
        through_the_log!(self, request, auth_user_revoke_role, UserRevokeRole)
    }

    async fn role_add(
        &self,
        request: Request<rpc::AuthRoleAddRequest>,
    ) -> Result<Response<rpc::AuthRoleAddResponse>, Status> {
        through_the_log!(self, request, auth_role_add, RoleAdd)
    }

    async fn role_get(
        &self,
        request: Request<rpc::AuthRoleGetRequest>,
    ) -> Result<Response<rpc::AuthRoleGetResponse>, Status> {
        through_the_log!(self, request, auth_role_get, RoleGet)
    }

    async fn role_list(
        &self,
        request: Request<rpc::AuthRoleListRequest>,
    ) -> Result<Response<rpc::AuthRoleListResponse>, Status> {
        through_the_log!(self, request, auth_role_list, RoleList)
    }

    async fn role_delete(
        &self,
        request: Request<rpc::AuthRoleDeleteRequest>,
    ) -> Result<Response<rpc::AuthRoleDeleteResponse>, Status> {
        through_the_log!(self, request, auth_role_delete, RoleDelete)
    }

    async fn role_grant_permission(
        &self,
        request: Request<rpc::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleGrantPermissionResponse>, Status> {
        through_the_log!(self, request, auth_role_grant_permission, RoleGrantPermission)
    }

    async fn role_revoke_permission(
        &self,
        request: Request<rpc::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<rpc::AuthRoleRevokePermissionResponse>, Status> {
        through_the_log!(self, request, auth_role_revoke_permission, RoleRevokePermission)
    }
}
