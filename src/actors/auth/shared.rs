//! What is published of authentication beside its state: that it changed, and in whose name the
//! member itself makes requests.

use crate::actors::core::Shared;
use crate::auth::{AuthReader, ROOT};
use crate::pb::etcdserverpb as rpc;
use tokio::sync::watch;

impl Shared {
    /// Whose name the member's own requests carry once authentication is on. Set once.
    pub fn set_auth(&self, auth: AuthReader) {
        let first = self.auth.set(auth).is_ok();
        assert!(first, "the published auth state is set once");
    }

    /// Revision of the published auth state.
    pub fn auth_revision(&self) -> Option<u64> {
        self.auth.get().map(AuthReader::revision)
    }

    /// StoreActor only, before it tells events of later entries.
    pub fn auth_changed(&self) {
        self.auth_changes.send_modify(|count| *count += 1);
    }

    /// Counts changes of the published auth state.
    pub fn auth_changes(&self) -> watch::Receiver<u64> {
        self.auth_changes.subscribe()
    }

    /// The member itself may do everything (etcd v3.5.17 `server.go`, which revokes expired leases
    /// with a token of root).
    pub(in crate::actors) fn sign_as_root(&self, request: &mut rpc::InternalRaftRequest) {
        if let Some(auth) = self.auth.get()
            && auth.is_enabled()
        {
            let header = request.header.get_or_insert_default();
            header.username = ROOT.to_owned();
            header.auth_revision = auth.revision();
        }
    }
}
