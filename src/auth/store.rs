//! Changes of users and roles, with etcd's checks in etcd's order (v3.5.17 `server/auth/store.go`).

use super::state::{AuthReader, State, User};
use super::{ROOT, password, ranges};
use crate::base::error::{Error, Result};
use crate::base::limits::AUTH_NAME_BYTES_MAX;
use crate::mvcc::backend::{Backend, BackendError, Bucket, Op};
use crate::pb::authpb;
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

const ENABLED_KEY: &[u8] = b"authEnabled";
const REVISION_KEY: &[u8] = b"authRevision";
const ENABLED: &[u8] = &[1];
const DISABLED: &[u8] = &[0];
/// Revision of a state that was never changed.
const REVISION_INITIAL: u64 = 1;

/// The rows that a change writes; none if everything was so already.
pub type Changed = Result<Vec<Op>>;

/// The owner's side. An error leaves everything as it was.
#[derive(Debug)]
pub struct AuthStore {
    state: Arc<State>,
    reader: AuthReader,
}

impl AuthStore {
    /// Reads the three buckets.
    pub fn open(backend: &dyn Backend) -> std::result::Result<Self, BackendError> {
        let enabled = backend.get(Bucket::Auth, ENABLED_KEY)?.is_some_and(|value| value == ENABLED);
        let revision = match backend.get(Bucket::Auth, REVISION_KEY)? {
            None => REVISION_INITIAL,
            Some(value) => u64::from_be_bytes(
                value.as_ref().try_into().map_err(|_| damage("authRevision", "its length"))?,
            ),
        };
        let mut users = BTreeMap::new();
        backend.try_scan(Bucket::AuthUsers, &[], None, &mut |key, value| {
            let row = authpb::User::decode(value.clone()).map_err(|error| damage("user", error))?;
            users.insert(Bytes::copy_from_slice(key), User::new(row));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut roles = BTreeMap::new();
        backend.try_scan(Bucket::AuthRoles, &[], None, &mut |key, value| {
            let row = authpb::Role::decode(value.clone()).map_err(|error| damage("role", error))?;
            roles.insert(Bytes::copy_from_slice(key), Arc::new(row));
            Ok(ControlFlow::Continue(()))
        })?;
        let state = Arc::new(State { enabled, revision, users, roles });
        Ok(Self { reader: AuthReader::new(state.clone()), state })
    }

    /// Takes the place of another store: its readers see this state from now on.
    pub fn replace(&mut self, before: &AuthStore) {
        self.reader = before.reader();
        self.publish();
    }

    /// A handle for readers.
    pub fn reader(&self) -> AuthReader {
        self.reader.clone()
    }

    /// The state as the newest entry left it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Shows the newest state to the readers.
    pub fn publish(&self) {
        self.reader.publish(self.state.clone());
    }

    /// Turns authentication on. Its revision stays.
    pub fn enable(&mut self) -> Changed {
        if self.state.enabled {
            return Ok(Vec::new());
        }
        let root = self.state.users.get(ROOT.as_bytes()).ok_or(Error::RootUserNotExist)?;
        if !root.has_role(ROOT) {
            return Err(Error::RootRoleNotExist);
        }
        Arc::make_mut(&mut self.state).enabled = true;
        Ok(vec![(Bucket::Auth, ENABLED_KEY.into(), Some(ENABLED.into()))])
    }

    /// Turns authentication off.
    pub fn disable(&mut self) -> Changed {
        if !self.state.enabled {
            return Ok(Vec::new());
        }
        Arc::make_mut(&mut self.state).enabled = false;
        Ok(vec![(Bucket::Auth, ENABLED_KEY.into(), Some(DISABLED.into())), self.advance()])
    }

    /// `legacy` hashes a password that came in clear, as members older than 3.5 send it.
    pub fn user_add(
        &mut self,
        r: &rpc::AuthUserAddRequest,
        legacy: impl FnOnce(&str) -> Result<String>,
    ) -> Changed {
        if r.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        check_length(&r.name)?;
        if self.state.users.contains_key(r.name.as_bytes()) {
            return Err(Error::UserAlreadyExist);
        }
        let options = r.options.unwrap_or_default();
        let password = if options.no_password {
            Bytes::new()
        } else {
            select_password(&r.password, &r.hashed_password, legacy)?
        };
        let name = Bytes::copy_from_slice(r.name.as_bytes());
        let user = authpb::User { name, password, roles: Vec::new(), options: Some(options) };
        Ok(vec![self.put_user(user), self.advance()])
    }

    pub fn user_delete(&mut self, r: &rpc::AuthUserDeleteRequest) -> Changed {
        if self.state.enabled && r.name == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let name = self.user(&r.name)?.row.name.clone();
        Arc::make_mut(&mut self.state).users.remove(r.name.as_bytes());
        Ok(vec![(Bucket::AuthUsers, name, None), self.advance()])
    }

    /// `legacy` as for [`AuthStore::user_add`].
    pub fn user_change_password(
        &mut self,
        r: &rpc::AuthUserChangePasswordRequest,
        legacy: impl FnOnce(&str) -> Result<String>,
    ) -> Changed {
        let user = self.user(&r.name)?;
        let password = if user.has_no_password() {
            Bytes::new()
        } else {
            select_password(&r.password, &r.hashed_password, legacy)?
        };
        let row = authpb::User { password, ..user.row.clone() };
        Ok(vec![self.put_user(row), self.advance()])
    }

    pub fn user_grant_role(&mut self, r: &rpc::AuthUserGrantRoleRequest) -> Changed {
        let user = self.user(&r.user)?;
        if r.role != ROOT {
            self.role(&r.role)?;
        }
        let Err(at) = user.row.roles.binary_search(&r.role) else {
            return Ok(Vec::new());
        };
        let mut row = user.row.clone();
        row.roles.insert(at, r.role.clone());
        Ok(vec![self.put_user(row), self.advance()])
    }

    pub fn user_revoke_role(&mut self, r: &rpc::AuthUserRevokeRoleRequest) -> Changed {
        if self.state.enabled && r.name == ROOT && r.role == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let user = self.user(&r.name)?;
        let row = without_role(&user.row, &r.role).ok_or(Error::RoleNotGranted)?;
        Ok(vec![self.put_user(row), self.advance()])
    }

    /// The roles of a user.
    pub fn user_get(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.user(name)?.row.roles.clone())
    }

    /// The names of all users, in order.
    pub fn user_list(&self) -> Vec<String> {
        self.state.users.values().map(|user| text(&user.row.name)).collect()
    }

    pub fn role_add(&mut self, r: &rpc::AuthRoleAddRequest) -> Changed {
        if r.name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        check_length(&r.name)?;
        if self.state.roles.contains_key(r.name.as_bytes()) {
            return Err(Error::RoleAlreadyExist);
        }
        let name = Bytes::copy_from_slice(r.name.as_bytes());
        let role = authpb::Role { name, key_permission: Vec::new() };
        Ok(vec![self.put_role(role), self.advance()])
    }

    /// Takes the role from all users too.
    pub fn role_delete(&mut self, r: &rpc::AuthRoleDeleteRequest) -> Changed {
        if self.state.enabled && r.role == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let name = self.role(&r.role)?.name.clone();
        let mut ops = vec![(Bucket::AuthRoles, name, None)];
        let holders: Vec<authpb::User> =
            self.state.users.values().filter_map(|user| without_role(&user.row, &r.role)).collect();
        Arc::make_mut(&mut self.state).roles.remove(r.role.as_bytes());
        for row in holders {
            ops.push(self.put_user(row));
        }
        ops.push(self.advance());
        Ok(ops)
    }

    /// The permissions of a role.
    pub fn role_get(&self, name: &str) -> Result<Vec<authpb::Permission>> {
        Ok(self.role(name)?.key_permission.clone())
    }

    /// The names of all roles, in order.
    pub fn role_list(&self) -> Vec<String> {
        self.state.roles.values().map(|role| text(&role.name)).collect()
    }

    pub fn role_grant_permission(&mut self, r: &rpc::AuthRoleGrantPermissionRequest) -> Changed {
        let given = r.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !ranges::is_valid(&given.key, &given.range_end) {
            return Err(Error::InvalidAuthMgmt);
        }
        let mut role = authpb::Role::clone(self.role(&r.name)?);
        let at = role.key_permission.partition_point(|held| held.key < given.key);
        match role.key_permission.get_mut(at) {
            // As in etcd only the first permission of a key is looked at.
            Some(held) if held.key == given.key && held.range_end == given.range_end => {
                held.perm_type = given.perm_type;
            }
            _ => {
                role.key_permission.push(given.clone());
                role.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        Ok(vec![self.put_role(role), self.advance()])
    }

    pub fn role_revoke_permission(&mut self, r: &rpc::AuthRoleRevokePermissionRequest) -> Changed {
        let mut role = authpb::Role::clone(self.role(&r.role)?);
        let before = role.key_permission.len();
        role.key_permission.retain(|held| held.key != r.key || held.range_end != r.range_end);
        if role.key_permission.len() == before {
            return Err(Error::PermissionNotGranted);
        }
        Ok(vec![self.put_role(role), self.advance()])
    }

    /// Whether a user may be given a token: they exist and have a password.
    pub fn authenticate(&self, name: &str) -> Result<()> {
        if !self.state.enabled {
            return Err(Error::AuthNotEnabled);
        }
        match self.state.users.get(name.as_bytes()) {
            Some(user) if !user.has_no_password() => Ok(()),
            _ => Err(Error::AuthFailed),
        }
    }

    fn user(&self, name: &str) -> Result<&User> {
        self.state.users.get(name.as_bytes()).map(Arc::as_ref).ok_or(Error::UserNotFound)
    }

    fn role(&self, name: &str) -> Result<&authpb::Role> {
        self.state.roles.get(name.as_bytes()).map(Arc::as_ref).ok_or(Error::RoleNotFound)
    }

    fn put_user(&mut self, row: authpb::User) -> Op {
        let op = (Bucket::AuthUsers, row.name.clone(), Some(row.encode_to_vec().into()));
        Arc::make_mut(&mut self.state).users.insert(row.name.clone(), User::new(row));
        op
    }

    /// Whoever has the role gets their permissions merged anew.
    fn put_role(&mut self, row: authpb::Role) -> Op {
        let op = (Bucket::AuthRoles, row.name.clone(), Some(row.encode_to_vec().into()));
        let name = text(&row.name);
        let state = Arc::make_mut(&mut self.state);
        for user in state.users.values_mut().filter(|user| user.has_role(&name)) {
            *user = User::new(user.row.clone());
        }
        state.roles.insert(row.name.clone(), Arc::new(row));
        op
    }

    fn advance(&mut self) -> Op {
        let state = Arc::make_mut(&mut self.state);
        state.revision += 1;
        revision_row(state.revision)
    }
}

/// DEVIATION: etcd's process ends when it applies a longer name, and again at each start.
fn check_length(name: &str) -> Result<()> {
    if name.len() > AUTH_NAME_BYTES_MAX { Err(Error::RequestTooLarge) } else { Ok(()) }
}

fn revision_row(revision: u64) -> Op {
    let value = Bytes::copy_from_slice(&revision.to_be_bytes());
    (Bucket::Auth, REVISION_KEY.into(), Some(value))
}

/// The user without a role, if they have it.
fn without_role(user: &authpb::User, role: &str) -> Option<authpb::User> {
    let mut row = user.clone();
    row.roles.retain(|own| own != role);
    (row.roles.len() < user.roles.len()).then_some(row)
}

fn select_password(
    password: &str,
    hashed: &str,
    legacy: impl FnOnce(&str) -> Result<String>,
) -> Result<Bytes> {
    if !password.is_empty() && hashed.is_empty() {
        return legacy(password).map(Bytes::from);
    }
    password::from_request(hashed).map(Bytes::from)
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn damage(row: &str, what: impl std::fmt::Display) -> BackendError {
    BackendError(format!("a row of the auth buckets, {row}: {what}"))
}
