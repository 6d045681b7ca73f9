//! Who makes a call, and whether they may: what services ask before they do anything.
//!
//! DEVIATION: doors that etcd has closed since are closed here too (3.5.33): leases and members
//! need a user, alarms, compaction and moving the leader need root, once authentication is on.

use super::edge::Edge;
use super::status;
use crate::actors::handle::auth::{Authority, Credentials, Identity};
use crate::apply::{self, Reply};
use crate::auth::{Caller, State};
use crate::base::error::{Error, Result as Answer};
use crate::pb::etcdserverpb as rpc;
use crate::transport::listen::PeerInfo;
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Metadata with a token; what etcd's gateway makes of an HTTP header comes second.
const TOKEN_NAMES: [&str; 2] = ["token", "authorization"];
/// How HTTP clients begin the value of that header.
const BEARER: &str = "Bearer ";
/// Metadata of calls that come through a gateway, whose certificate is not the caller's.
const GATEWAY: &str = "grpcgateway-accept";

fn credentials_in(metadata: &MetadataMap, peer: Option<&PeerInfo>) -> Credentials {
    let token = TOKEN_NAMES.iter().find_map(|name| metadata.get(*name));
    if let Some(value) = token {
        let value = String::from_utf8_lossy(value.as_bytes());
        let token = value.strip_prefix(BEARER).unwrap_or(&value);
        return Credentials { token: Some(token.into()), common_name: None };
    }
    let direct = !metadata.contains_key(GATEWAY);
    let peer = peer.filter(|peer| peer.tls && direct);
    let name = |peer: &PeerInfo| peer.common_name.clone().unwrap_or_else(|| Arc::from(""));
    Credentials { token: None, common_name: peer.map(name) }
}

impl Edge {
    /// Who decides, while authentication is on.
    pub(super) fn authority(&self) -> Option<&dyn Authority> {
        self.node.authority().filter(|authority| authority.view().is_enabled())
    }

    /// What a call says about its caller. Nobody looks while authentication is off.
    pub fn credentials<T>(&self, request: &Request<T>) -> Credentials {
        match self.authority() {
            None => Credentials::default(),
            Some(_) => self.credentials_kept(request),
        }
    }

    /// The same for a stream, which may outlive the moment in which authentication is turned on.
    pub fn credentials_kept<T>(&self, request: &Request<T>) -> Credentials {
        credentials_in(request.metadata(), request.extensions().get::<PeerInfo>())
    }

    /// Who makes a call; `None` if it does not say, and while authentication is off.
    pub async fn identify(&self, credentials: &Credentials) -> Answer<Option<Identity>> {
        match self.authority() {
            None => Ok(None),
            Some(authority) => authority.identify(credentials).await,
        }
    }

    /// Refuses a call that does not say who makes it.
    pub async fn require_user(&self, credentials: &Credentials) -> Answer<()> {
        if self.authority().is_none() || self.identify(credentials).await?.is_some() {
            return Ok(());
        }
        Err(Error::UserEmpty)
    }

    /// Refuses everyone but root and those with its role.
    pub async fn require_admin(&self, credentials: &Credentials) -> Answer<()> {
        let Some(authority) = self.authority() else { return Ok(()) };
        let identity = authority.identify(credentials).await?;
        let caller = identity.as_ref().map_or(Caller::default(), Identity::caller);
        authority.view().state().permit_admin(&caller)
    }

    /// Reads in the name of a caller: checks, reads, and makes sure that the check still holds
    /// (etcd v3.5.17 `v3_server.go` doSerialize).
    pub async fn read_as<T>(
        &self,
        credentials: &Credentials,
        check: impl FnOnce(&dyn Authority, &State, &Caller<'_>) -> Answer<()>,
        read: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let Some(authority) = self.authority() else { return read.await };
        let identity = authority.identify(credentials).await.map_err(status::of)?;
        let caller = identity.as_ref().map_or(Caller::default(), Identity::caller);
        check(authority, &authority.view().state(), &caller).map_err(status::of)?;
        let answer = read.await?;
        if caller.revision != 0 && caller.revision != authority.view().revision() {
            return Err(status::of(Error::AuthOldRevision));
        }
        Ok(answer)
    }

    /// Refuses a transaction that its caller may not have done, or that is no longer taken, where
    /// apply would let it through: there all members, also those of another version, must agree.
    /// Who the caller is; proposed in that name, the transaction is refused by apply if users or
    /// roles have changed meanwhile.
    pub async fn permit_txn(
        &self,
        credentials: &Credentials,
        request: &rpc::InternalRaftRequest,
    ) -> Answer<Option<Identity>> {
        let Some(txn) = &request.txn else { return self.identify(credentials).await };
        // etcd looks at the token, then at the size, and at the rest when it applies.
        self.identify(credentials).await?;
        self.check_size(request)?;
        if self.is_full() && apply::txn_cost(txn) > 0 {
            return Err(Error::NoSpace);
        }
        match self.may_txn(credentials, txn).await {
            Ok(identity) => Ok(identity),
            Err(_) => {
                // What is known here may be old; a refusal must not be.
                self.node.linearizable_read_notify().await?;
                self.may_txn(credentials, txn).await
            }
        }
    }

    async fn may_txn(
        &self,
        credentials: &Credentials,
        txn: &rpc::TxnRequest,
    ) -> Answer<Option<Identity>> {
        let Some(authority) = self.authority() else { return Ok(None) };
        let identity = authority.identify(credentials).await?;
        let caller = identity.as_ref().map_or(Caller::default(), Identity::caller);
        apply::permit_txn(&authority.view().state(), authority.leases(), &caller, txn)?;
        Ok(identity)
    }

    /// Checks the size and proposes, in the name of a caller.
    pub async fn propose_as(
        &self,
        credentials: &Credentials,
        request: rpc::InternalRaftRequest,
    ) -> Result<Reply, Status> {
        let identity = self.identify(credentials).await.map_err(status::of)?;
        self.propose_by(identity, request).await
    }

    /// The same for a caller who is known.
    pub async fn propose_by(
        &self,
        identity: Option<Identity>,
        mut request: rpc::InternalRaftRequest,
    ) -> Result<Reply, Status> {
        if let Some(identity) = identity {
            let header = request.header.get_or_insert_default();
            header.username = identity.name.as_ref().to_owned();
            header.auth_revision = identity.revision;
        }
        self.propose(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        headers: &[(&'static str, &str)],
        peer: Option<PeerInfo>,
    ) -> (Option<String>, Option<String>) {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            metadata.append(*name, value.parse().unwrap());
        }
        let found = credentials_in(&metadata, peer.as_ref());
        (found.token.map(String::from), found.common_name.map(|name| name.to_string()))
    }

    #[test]
    fn tokens_come_before_certificates() {
        let some = |text: &str| Some(text.to_owned());
        let peer = |common_name: Option<&str>, tls| {
            let common_name = common_name.map(Arc::from);
            Some(PeerInfo { common_name, tls, addr: "".into() })
        };
        assert_eq!(parse(&[], None), (None, None));
        assert_eq!(parse(&[("token", "a.1"), ("token", "b.2")], None), (some("a.1"), None));
        assert_eq!(parse(&[("authorization", "a"), ("token", "b")], None), (some("b"), None));
        assert_eq!(parse(&[("authorization", "Bearer a.b.c")], None), (some("a.b.c"), None));
        assert_eq!(parse(&[("token", "")], peer(Some("cn"), true)), (some(""), None));
        assert_eq!(parse(&[], peer(Some("cn"), true)), (None, some("cn")));
        assert_eq!(parse(&[], peer(None, true)), (None, some("")));
        assert_eq!(parse(&[], peer(None, false)), (None, None));
        assert_eq!(parse(&[(GATEWAY, "*/*")], peer(Some("cn"), true)), (None, None));
    }
}
