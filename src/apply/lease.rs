//! Lease grant, revoke and checkpoint.

use super::{Effect, Machine};
use crate::base::ids::LeaseId;
use crate::mvcc::{self, ReadError};
use crate::pb::etcdserverpb as rpc;

impl Machine {
    pub(super) fn lease_grant(
        &mut self,
        r: &rpc::LeaseGrantRequest,
    ) -> Result<rpc::LeaseGrantResponse, ReadError> {
        let id = LeaseId(r.id);
        let (ttl, op) = self.leases.grant(id, r.ttl).map_err(ReadError::Refused)?;
        self.ops.push(op);
        self.effects.push(Effect::LeaseGranted { id, ttl });
        let header = Some(mvcc::header(self.store.revision()));
        Ok(rpc::LeaseGrantResponse { header, id: r.id, ttl, ..Default::default() })
    }

    /// The keys go in one transaction, in order, together with the lease.
    pub(super) fn lease_revoke(
        &mut self,
        r: &rpc::LeaseRevokeRequest,
    ) -> Result<rpc::LeaseRevokeResponse, ReadError> {
        let id = LeaseId(r.id);
        let op = self.leases.revoke(id).map_err(ReadError::Refused)?;
        for key in self.leases.reader().keys(id) {
            self.store.delete_range(&key, &[]);
        }
        self.ops.push(op);
        self.effects.push(Effect::LeaseRevoked { id });
        Ok(rpc::LeaseRevokeResponse { header: Some(mvcc::header(self.store.txn_revision())) })
    }

    /// Leases that are gone are passed over.
    pub(super) fn lease_checkpoint(
        &mut self,
        r: &rpc::LeaseCheckpointRequest,
    ) -> rpc::LeaseCheckpointResponse {
        for checkpoint in &r.checkpoints {
            let id = LeaseId(checkpoint.id);
            let remaining_ttl = checkpoint.remaining_ttl;
            if let Some(op) = self.leases.checkpoint(id, remaining_ttl) {
                self.ops.extend(op);
                self.effects.push(Effect::LeaseCheckpointed { id, remaining_ttl });
            }
        }
        rpc::LeaseCheckpointResponse { header: Some(mvcc::header(self.store.revision())) }
    }
}
