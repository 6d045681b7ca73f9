//! The methods of the client port, by name.

/// Which sides of a call stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One message each way.
    Unary,
    /// The server sends many.
    ServerStream,
    /// Both send many.
    BidiStream,
}

impl Kind {
    /// The name in `grpc_type` labels.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

/// One method.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Method {
    /// Service with its package, `etcdserverpb.KV`.
    pub service: &'static str,
    /// Name in the service, `Range`.
    pub name: &'static str,
    /// Which sides stream.
    pub kind: Kind,
    /// Place in [`METHODS`], for what is kept per method.
    pub index: usize,
}

const fn method(service: &'static str, name: &'static str, kind: Kind) -> Method {
    Method { service, name, kind, index: 0 }
}

const fn numbered<const N: usize>(mut methods: [Method; N]) -> [Method; N] {
    let mut index = 0;
    while index < N {
        methods[index].index = index;
        index += 1;
    }
    methods
}

/// Every method that is served; callers that export counters start them at zero from this list.
pub static METHODS: &[Method] = &numbered([
    method("etcdserverpb.KV", "Range", Kind::Unary),
    method("etcdserverpb.KV", "Put", Kind::Unary),
    method("etcdserverpb.KV", "DeleteRange", Kind::Unary),
    method("etcdserverpb.KV", "Txn", Kind::Unary),
    method("etcdserverpb.KV", "Compact", Kind::Unary),
    method("etcdserverpb.Watch", "Watch", Kind::BidiStream),
    method("etcdserverpb.Lease", "LeaseGrant", Kind::Unary),
    method("etcdserverpb.Lease", "LeaseRevoke", Kind::Unary),
    method("etcdserverpb.Lease", "LeaseKeepAlive", Kind::BidiStream),
    method("etcdserverpb.Lease", "LeaseTimeToLive", Kind::Unary),
    method("etcdserverpb.Lease", "LeaseLeases", Kind::Unary),
    method("etcdserverpb.Cluster", "MemberAdd", Kind::Unary),
    method("etcdserverpb.Cluster", "MemberRemove", Kind::Unary),
    method("etcdserverpb.Cluster", "MemberUpdate", Kind::Unary),
    method("etcdserverpb.Cluster", "MemberList", Kind::Unary),
    method("etcdserverpb.Cluster", "MemberPromote", Kind::Unary),
    method("etcdserverpb.Maintenance", "Alarm", Kind::Unary),
    method("etcdserverpb.Maintenance", "Status", Kind::Unary),
    method("etcdserverpb.Maintenance", "Defragment", Kind::Unary),
    method("etcdserverpb.Maintenance", "Hash", Kind::Unary),
    method("etcdserverpb.Maintenance", "HashKV", Kind::Unary),
    method("etcdserverpb.Maintenance", "Snapshot", Kind::ServerStream),
    method("etcdserverpb.Maintenance", "MoveLeader", Kind::Unary),
    method("etcdserverpb.Maintenance", "Downgrade", Kind::Unary),
    method("etcdserverpb.Auth", "AuthEnable", Kind::Unary),
    method("etcdserverpb.Auth", "AuthDisable", Kind::Unary),
    method("etcdserverpb.Auth", "AuthStatus", Kind::Unary),
    method("etcdserverpb.Auth", "Authenticate", Kind::Unary),
    method("etcdserverpb.Auth", "UserAdd", Kind::Unary),
    method("etcdserverpb.Auth", "UserGet", Kind::Unary),
    method("etcdserverpb.Auth", "UserList", Kind::Unary),
    method("etcdserverpb.Auth", "UserDelete", Kind::Unary),
    method("etcdserverpb.Auth", "UserChangePassword", Kind::Unary),
    method("etcdserverpb.Auth", "UserGrantRole", Kind::Unary),
    method("etcdserverpb.Auth", "UserRevokeRole", Kind::Unary),
    method("etcdserverpb.Auth", "RoleAdd", Kind::Unary),
    method("etcdserverpb.Auth", "RoleGet", Kind::Unary),
    method("etcdserverpb.Auth", "RoleList", Kind::Unary),
    method("etcdserverpb.Auth", "RoleDelete", Kind::Unary),
    method("etcdserverpb.Auth", "RoleGrantPermission", Kind::Unary),
    method("etcdserverpb.Auth", "RoleRevokePermission", Kind::Unary),
    method("v3lockpb.Lock", "Lock", Kind::Unary),
    method("v3lockpb.Lock", "Unlock", Kind::Unary),
    method("v3electionpb.Election", "Campaign", Kind::Unary),
    method("v3electionpb.Election", "Proclaim", Kind::Unary),
    method("v3electionpb.Election", "Leader", Kind::Unary),
    method("v3electionpb.Election", "Observe", Kind::ServerStream),
    method("v3electionpb.Election", "Resign", Kind::Unary),
    method("grpc.health.v1.Health", "Check", Kind::Unary),
    method("grpc.health.v1.Health", "Watch", Kind::ServerStream),
]);

/// What a request path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// A served method.
    Found(&'static Method),
    /// The service is served but not this method of it.
    UnknownMethod { service: &'a str, name: &'a str },
    /// Nothing of the service is served.
    UnknownService { service: &'a str },
}

/// Finds the method of `/service/Name`.
pub fn find(path: &str) -> Lookup<'_> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (service, name) = path.rsplit_once('/').unwrap_or((path, ""));
    let mut of_service = METHODS.iter().filter(|method| method.service == service).peekable();
    if of_service.peek().is_none() {
        return Lookup::UnknownService { service };
    }
    match of_service.find(|method| method.name == name) {
        Some(method) => Lookup::Found(method),
        None => Lookup::UnknownMethod { service, name },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds() {
        match find("/etcdserverpb.Watch/Watch") {
            Lookup::Found(method) => assert_eq!(method.kind, Kind::BidiStream),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            find("/etcdserverpb.KV/Nope"),
            Lookup::UnknownMethod { service: "etcdserverpb.KV", name: "Nope" }
        );
        assert_eq!(find("/a.B/C"), Lookup::UnknownService { service: "a.B" });
        assert!(METHODS.iter().enumerate().all(|(index, method)| method.index == index));
        assert_eq!(find(""), Lookup::UnknownService { service: "" });
    }
}
