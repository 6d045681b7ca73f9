//! One state of authentication, as entries and edges ask it.

use super::ROOT;
use super::ranges::Ranges;
use crate::base::error::{Error, Result};
use crate::pb::authpb;
use arc_swap::{ArcSwap, Guard};
use authpb::permission::Type;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Who makes a request: a name, and the auth revision at which it was found to be them. A request
/// without a user has an empty name and revision 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    pub name: &'a str,
    pub revision: u64,
}

/// What a request does with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A user, and what their roles permit, merged when it is first asked for.
pub(super) struct User {
    pub(super) row: authpb::User,
    permissions: OnceLock<Permissions>,
}

#[derive(Debug, Default)]
struct Permissions {
    read: Ranges,
    write: Ranges,
}

impl std::fmt::Debug for User {
    /// The name; the hash of a password is nobody's to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.row.name)
    }
}

impl User {
    pub(super) fn new(row: authpb::User) -> Arc<User> {
        Arc::new(User { row, permissions: OnceLock::new() })
    }

    /// Roles are kept in order.
    pub(super) fn has_role(&self, role: &str) -> bool {
        self.row.roles.binary_search_by(|own| own.as_str().cmp(role)).is_ok()
    }

    pub(super) fn has_no_password(&self) -> bool {
        self.row.options.is_some_and(|options| options.no_password)
    }
}

/// Users, roles, whether authentication is enabled, and the revision of all that.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) enabled: bool,
    pub(super) revision: u64,
    pub(super) users: BTreeMap<Bytes, Arc<User>>,
    pub(super) roles: BTreeMap<Bytes, Arc<authpb::Role>>,
}

impl State {
    /// Whether requests need a user.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Rises with every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a caller may do this to a range of keys (etcd v3.5.17 `server/auth/store.go`
    /// isOpPermitted).
    pub fn permit(
        &self,
        caller: &Caller<'_>,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        if caller.revision == 0 {
            return Err(Error::UserEmpty);
        }
        if caller.revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let user = self.users.get(caller.name.as_bytes()).ok_or(Error::PermissionDenied)?;
        if user.has_role(ROOT) {
            return Ok(());
        }
        let permissions = user.permissions.get_or_init(|| self.merge(user));
        let ranges = match access {
            Access::Read => &permissions.read,
            Access::Write => &permissions.write,
        };
        if ranges.cover(key, range_end) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Whether a caller may do what only root may. As in etcd, at whatever revision.
    pub fn permit_admin(&self, caller: &Caller<'_>) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        if caller.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        let user = self.users.get(caller.name.as_bytes()).ok_or(Error::UserNotFound)?;
        if user.has_role(ROOT) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Whether a user of this name has this role.
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user.as_bytes()).is_some_and(|user| user.has_role(role))
    }

    /// The stored hash to check a password against (etcd v3.5.17 CheckPassword).
    pub fn password_hash(&self, user: &str) -> Result<Bytes> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.users.get(user.as_bytes()).ok_or(Error::AuthFailed)?;
        if user.has_no_password() {
            return Err(Error::NoPasswordUser);
        }
        Ok(user.row.password.clone())
    }

    /// A role that is gone permits nothing; a permission of an unknown kind neither.
    fn merge(&self, user: &User) -> Permissions {
        let held = || {
            let roles = user.row.roles.iter().filter_map(|name| self.roles.get(name.as_bytes()));
            roles.flat_map(|role| &role.key_permission)
        };
        let of = |kind: Type| {
            let wanted = [kind as i32, Type::Readwrite as i32];
            let held = held().filter(move |held| wanted.contains(&held.perm_type));
            Ranges::new(held.map(|held| (&held.key, &held.range_end)))
        };
        Permissions { read: of(Type::Read), write: of(Type::Write) }
    }
}

/// The state as it is published, from any thread.
#[derive(Clone, Debug)]
pub struct AuthReader(Arc<Published>);

#[derive(Debug)]
struct Published {
    /// A copy of the state's, which requests look at while authentication is off.
    enabled: AtomicBool,
    state: ArcSwap<State>,
}

impl AuthReader {
    pub(super) fn new(state: Arc<State>) -> AuthReader {
        let enabled = AtomicBool::new(state.enabled);
        AuthReader(Arc::new(Published { enabled, state: ArcSwap::new(state) }))
    }

    /// The state's owner only.
    pub(super) fn publish(&self, state: Arc<State>) {
        // IMPORTANT: who sees that authentication is on finds the users.
        let enabled = state.enabled;
        self.0.state.store(state);
        self.0.enabled.store(enabled, Ordering::Release);
    }

    /// Whether requests need a user.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled.load(Ordering::Acquire)
    }

    /// The state as it is now.
    pub fn state(&self) -> Guard<Arc<State>> {
        self.0.state.load()
    }

    /// The revision of the state as it is now.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }
}
