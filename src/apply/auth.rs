//! Authentication in the log: who may have an entry applied, and the entries that change users,
//! roles and permissions (etcd v3.5.17 `server/etcdserver/apply_auth.go`).
//!
//! Apply checks exactly what etcd v3.5.17 checks, since all members of a cluster must agree on what
//! an entry does. What etcd closed later, [`permit_txn`], is asked before a transaction is
//! proposed: an entry carries the auth revision of that answer, and apply refuses it if that is
//! old.

use super::{Effect, Machine, Reply};
use crate::auth::{Access, Caller, Changed, State, password};
use crate::base::error::{Error, Result};
use crate::base::ids::LeaseId;
use crate::lease::LeaseReader;
use crate::mvcc::{self, ReadError};
use crate::pb::etcdserverpb as rpc;
use prost::Message as _;
use rpc::request_op::Request;

/// Cost of hashing a password that came in clear, as members older than 3.5 send it. All members
/// must take the same, whatever their flags say.
const LEGACY_COST: u32 = 10;

/// The answers to entries of the auth family.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthReply {
    Enable(rpc::AuthEnableResponse),
    Disable(rpc::AuthDisableResponse),
    Status(rpc::AuthStatusResponse),
    /// `revision` is the auth revision at this entry.
    Authenticate {
        response: rpc::AuthenticateResponse,
        revision: u64,
    },
    UserAdd(rpc::AuthUserAddResponse),
    UserGet(rpc::AuthUserGetResponse),
    UserList(rpc::AuthUserListResponse),
    UserDelete(rpc::AuthUserDeleteResponse),
    UserChangePassword(rpc::AuthUserChangePasswordResponse),
    UserGrantRole(rpc::AuthUserGrantRoleResponse),
    UserRevokeRole(rpc::AuthUserRevokeRoleResponse),
    RoleAdd(rpc::AuthRoleAddResponse),
    RoleGet(rpc::AuthRoleGetResponse),
    RoleList(rpc::AuthRoleListResponse),
    RoleDelete(rpc::AuthRoleDeleteResponse),
    RoleGrantPermission(rpc::AuthRoleGrantPermissionResponse),
    RoleRevokePermission(rpc::AuthRoleRevokePermissionResponse),
}

impl AuthReply {
    /// Bytes of the answer on the wire.
    pub(super) fn encoded_len(&self) -> usize {
        match self {
            AuthReply::Enable(response) => response.encoded_len(),
            AuthReply::Disable(response) => response.encoded_len(),
            AuthReply::Status(response) => response.encoded_len(),
            AuthReply::Authenticate { response, .. } => response.encoded_len(),
            AuthReply::UserAdd(response) => response.encoded_len(),
            AuthReply::UserGet(response) => response.encoded_len(),
            AuthReply::UserList(response) => response.encoded_len(),
            AuthReply::UserDelete(response) => response.encoded_len(),
            AuthReply::UserChangePassword(response) => response.encoded_len(),
            AuthReply::UserGrantRole(response) => response.encoded_len(),
            AuthReply::UserRevokeRole(response) => response.encoded_len(),
            AuthReply::RoleAdd(response) => response.encoded_len(),
            AuthReply::RoleGet(response) => response.encoded_len(),
            AuthReply::RoleList(response) => response.encoded_len(),
            AuthReply::RoleDelete(response) => response.encoded_len(),
            AuthReply::RoleGrantPermission(response) => response.encoded_len(),
            AuthReply::RoleRevokePermission(response) => response.encoded_len(),
        }
    }
}

/// What tokens have to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChange {
    /// A user logged in: if tokens are simple ones, this is theirs.
    Assigned { user: String, token: String },
    /// All tokens of a user are void.
    UserForgotten { user: String },
    /// All tokens are void: authentication was disabled.
    AllForgotten,
}

/// Checks a transaction as apply does (etcd v3.5.17 `apply_auth.go` checkTxnAuth): its compares,
/// then the operations of both branches, but neither nested ones, nor what a put reads or hangs on
/// a lease.
fn permit_txn_applied(auth: &State, caller: &Caller<'_>, txn: &rpc::TxnRequest) -> Result<()> {
    for compare in &txn.compare {
        auth.permit(caller, Access::Read, &compare.key, &compare.range_end)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => {
                auth.permit(caller, Access::Read, &r.key, &r.range_end)?;
            }
            Some(Request::RequestPut(r)) => auth.permit(caller, Access::Write, &r.key, &[])?,
            Some(Request::RequestDeleteRange(r)) => permit_delete_in_txn(auth, caller, r)?,
            Some(Request::RequestTxn(_)) | None => {}
        }
    }
    Ok(())
}

/// As in etcd, a transaction asks for reading first, a single delete for writing.
fn permit_delete_in_txn(
    auth: &State,
    caller: &Caller<'_>,
    r: &rpc::DeleteRangeRequest,
) -> Result<()> {
    if r.prev_kv {
        auth.permit(caller, Access::Read, &r.key, &r.range_end)?;
    }
    auth.permit(caller, Access::Write, &r.key, &r.range_end)
}

/// Checks a transaction through: its compares, then every operation of both branches, whichever is
/// taken, as if each were a request. Nested ones are as deep as a received message may nest.
///
/// DEVIATION: etcd has done so since 3.5.30 (CVE-2026-44283).
pub fn permit_txn(
    auth: &State,
    leases: &LeaseReader,
    caller: &Caller<'_>,
    txn: &rpc::TxnRequest,
) -> Result<()> {
    for compare in &txn.compare {
        auth.permit(caller, Access::Read, &compare.key, &compare.range_end)?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => {
                auth.permit(caller, Access::Read, &r.key, &r.range_end)?;
            }
            Some(Request::RequestPut(r)) => permit_put(auth, leases, caller, r)?,
            Some(Request::RequestDeleteRange(r)) => permit_delete_in_txn(auth, caller, r)?,
            Some(Request::RequestTxn(r)) => permit_txn(auth, leases, caller, r)?,
            None => {}
        }
    }
    Ok(())
}

fn permit_put(
    auth: &State,
    leases: &LeaseReader,
    caller: &Caller<'_>,
    r: &rpc::PutRequest,
) -> Result<()> {
    auth.permit(caller, Access::Write, &r.key, &[])?;
    permit_lease(auth, leases, caller, LeaseId(r.lease))?;
    if r.prev_kv {
        auth.permit(caller, Access::Read, &r.key, &[])?;
    }
    Ok(())
}

/// Who may revoke a lease, renew it or hang a key on it: root, and whoever may write all its keys.
pub fn permit_lease(
    auth: &State,
    leases: &LeaseReader,
    caller: &Caller<'_>,
    id: LeaseId,
) -> Result<()> {
    if auth.permit_admin(caller).is_ok() {
        return Ok(());
    }
    for key in leases.keys(id) {
        auth.permit(caller, Access::Write, &key, &[])?;
    }
    Ok(())
}

fn needs_admin(r: &rpc::InternalRaftRequest) -> bool {
    r.auth_enable.is_some()
        || r.auth_disable.is_some()
        || r.auth_status.is_some()
        || r.auth_user_add.is_some()
        || r.auth_user_delete.is_some()
        || r.auth_user_change_password.is_some()
        || r.auth_user_grant_role.is_some()
        || r.auth_user_revoke_role.is_some()
        || r.auth_user_list.is_some()
        || r.auth_role_add.is_some()
        || r.auth_role_grant_permission.is_some()
        || r.auth_role_revoke_permission.is_some()
        || r.auth_role_delete.is_some()
        || r.auth_role_list.is_some()
}

/// The caller as the entry's header names them.
fn caller(r: &rpc::InternalRaftRequest) -> Caller<'_> {
    r.header.as_ref().map_or(Caller::default(), |header| Caller {
        name: &header.username,
        revision: header.auth_revision,
    })
}

impl Machine {
    /// Whether the entry's caller may have it applied.
    pub(super) fn permit(&self, request: &rpc::InternalRaftRequest) -> Result<()> {
        let auth = self.auth.state();
        if !auth.is_enabled() {
            return Ok(());
        }
        let caller = caller(request);
        if needs_admin(request) {
            return auth.permit_admin(&caller);
        }
        let leases = self.leases.reader();
        if let Some(r) = &request.put {
            permit_put(auth, &leases, &caller, r)
        } else if let Some(r) = &request.txn {
            permit_txn_applied(auth, &caller, r)
        } else if let Some(r) = &request.range {
            auth.permit(&caller, Access::Read, &r.key, &r.range_end)
        } else if let Some(r) = &request.delete_range {
            auth.permit(&caller, Access::Write, &r.key, &r.range_end)?;
            if r.prev_kv {
                auth.permit(&caller, Access::Read, &r.key, &r.range_end)?;
            }
            Ok(())
        } else if let Some(r) = &request.lease_revoke {
            permit_lease(auth, &leases, &caller, LeaseId(r.id))
        } else if let Some(r) = &request.auth_user_get {
            auth.permit_admin(&caller)
                .or_else(|refused| if r.name == caller.name { Ok(()) } else { Err(refused) })
        } else if let Some(r) = &request.auth_role_get {
            auth.permit_admin(&caller).or_else(|refused| {
                if auth.has_role(caller.name, &r.role) { Ok(()) } else { Err(refused) }
            })
        } else {
            Ok(())
        }
    }

    /// `None` if the entry is of another family.
    pub(super) fn apply_auth(
        &mut self,
        index: u64,
        request: &rpc::InternalRaftRequest,
    ) -> Option<std::result::Result<Reply, ReadError>> {
        let reply = match self.management(request) {
            None => self.users(index, request).or_else(|| self.roles(request))?,
            Some(reply) => reply,
        };
        Some(reply.map(Reply::Auth).map_err(ReadError::Refused))
    }

    fn header(&self) -> Option<rpc::ResponseHeader> {
        Some(mvcc::header(self.store.revision()))
    }

    fn take(&mut self, changed: Changed) -> Result<()> {
        let ops = changed?;
        if !ops.is_empty() {
            self.ops.extend(ops);
            self.effects.push(Effect::AuthChanged);
        }
        Ok(())
    }

    fn tokens(&mut self, change: TokenChange) {
        self.effects.push(Effect::Tokens(change));
    }

    fn management(&mut self, request: &rpc::InternalRaftRequest) -> Option<Result<AuthReply>> {
        let header = self.header();
        Some(if request.auth_enable.is_some() {
            let changed = self.auth.enable();
            self.take(changed).map(|()| AuthReply::Enable(rpc::AuthEnableResponse { header }))
        } else if request.auth_disable.is_some() {
            let changed = self.auth.disable();
            if changed.as_ref().is_ok_and(|ops| !ops.is_empty()) {
                self.tokens(TokenChange::AllForgotten);
            }
            self.take(changed).map(|()| AuthReply::Disable(rpc::AuthDisableResponse { header }))
        } else if request.auth_status.is_some() {
            let (enabled, auth_revision) =
                (self.auth.state().is_enabled(), self.auth.state().revision());
            Ok(AuthReply::Status(rpc::AuthStatusResponse { header, enabled, auth_revision }))
        } else {
            return None;
        })
    }

    fn users(
        &mut self,
        index: u64,
        request: &rpc::InternalRaftRequest,
    ) -> Option<Result<AuthReply>> {
        let header = self.header();
        Some(if let Some(r) = &request.authenticate {
            self.authenticate(index, r)
        } else if let Some(r) = &request.auth_user_add {
            let changed = self.auth.user_add(r, |clear| legacy_hash(index, &r.name, clear));
            self.take(changed).map(|()| AuthReply::UserAdd(rpc::AuthUserAddResponse { header }))
        } else if let Some(r) = &request.auth_user_get {
            let roles = self.auth.user_get(&r.name);
            roles.map(|roles| AuthReply::UserGet(rpc::AuthUserGetResponse { header, roles }))
        } else if request.auth_user_list.is_some() {
            let users = self.auth.user_list();
            Ok(AuthReply::UserList(rpc::AuthUserListResponse { header, users }))
        } else if let Some(r) = &request.auth_user_delete {
            let changed = self.auth.user_delete(r);
            self.take(changed).map(|()| {
                self.tokens(TokenChange::UserForgotten { user: r.name.clone() });
                AuthReply::UserDelete(rpc::AuthUserDeleteResponse { header })
            })
        } else if let Some(r) = &request.auth_user_change_password {
            let changed =
                self.auth.user_change_password(r, |clear| legacy_hash(index, &r.name, clear));
            self.take(changed).map(|()| {
                self.tokens(TokenChange::UserForgotten { user: r.name.clone() });
                AuthReply::UserChangePassword(rpc::AuthUserChangePasswordResponse { header })
            })
        } else if let Some(r) = &request.auth_user_grant_role {
            let changed = self.auth.user_grant_role(r);
            let response = rpc::AuthUserGrantRoleResponse { header };
            self.take(changed).map(|()| AuthReply::UserGrantRole(response))
        } else if let Some(r) = &request.auth_user_revoke_role {
            let changed = self.auth.user_revoke_role(r);
            let response = rpc::AuthUserRevokeRoleResponse { header };
            self.take(changed).map(|()| AuthReply::UserRevokeRole(response))
        } else {
            return None;
        })
    }

    fn roles(&mut self, request: &rpc::InternalRaftRequest) -> Option<Result<AuthReply>> {
        let header = self.header();
        Some(if let Some(r) = &request.auth_role_add {
            let changed = self.auth.role_add(r);
            self.take(changed).map(|()| AuthReply::RoleAdd(rpc::AuthRoleAddResponse { header }))
        } else if let Some(r) = &request.auth_role_get {
            let perm = self.auth.role_get(&r.role);
            perm.map(|perm| AuthReply::RoleGet(rpc::AuthRoleGetResponse { header, perm }))
        } else if request.auth_role_list.is_some() {
            let roles = self.auth.role_list();
            Ok(AuthReply::RoleList(rpc::AuthRoleListResponse { header, roles }))
        } else if let Some(r) = &request.auth_role_delete {
            let changed = self.auth.role_delete(r);
            let response = rpc::AuthRoleDeleteResponse { header };
            self.take(changed).map(|()| AuthReply::RoleDelete(response))
        } else if let Some(r) = &request.auth_role_grant_permission {
            let changed = self.auth.role_grant_permission(r);
            let response = rpc::AuthRoleGrantPermissionResponse { header };
            self.take(changed).map(|()| AuthReply::RoleGrantPermission(response))
        } else if let Some(r) = &request.auth_role_revoke_permission {
            let changed = self.auth.role_revoke_permission(r);
            let response = rpc::AuthRoleRevokePermissionResponse { header };
            self.take(changed).map(|()| AuthReply::RoleRevokePermission(response))
        } else {
            return None;
        })
    }

    /// The password was checked before the entry was made. The token ends with the entry's index,
    /// which no other token has.
    fn authenticate(
        &mut self,
        index: u64,
        r: &rpc::InternalAuthenticateRequest,
    ) -> Result<AuthReply> {
        self.auth.authenticate(&r.name)?;
        let token = format!("{}.{index}", r.simple_token);
        self.tokens(TokenChange::Assigned { user: r.name.clone(), token: token.clone() });
        let response = rpc::AuthenticateResponse { header: self.header(), token };
        Ok(AuthReply::Authenticate { response, revision: self.auth.state().revision() })
    }
}

/// Hashes a password that is in the log in clear. The salt follows from the entry, so that all
/// members keep the same hash (etcd's members each keep their own).
fn legacy_hash(index: u64, name: &str, clear: &str) -> Result<String> {
    let mut salt = [0; password::SALT_BYTES];
    let (first, second) = salt.split_at_mut(password::SALT_BYTES / 2);
    first.copy_from_slice(&index.to_be_bytes());
    let name_hash = crc32c::crc32c(name.as_bytes());
    second[..4].copy_from_slice(&name_hash.to_be_bytes());
    password::hash(clear.as_bytes(), LEGACY_COST, salt).map_err(|_| Error::NoPasswordUser)
}
