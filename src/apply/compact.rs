//! The compaction request: it only schedules; `Machine::compaction_look` begins the work.

use super::{Effect, Machine};
use crate::mvcc::{self, ReadError};
use crate::pb::etcdserverpb as rpc;

impl Machine {
    pub(super) fn compaction(
        &mut self,
        r: &rpc::CompactionRequest,
    ) -> Result<rpc::CompactionResponse, ReadError> {
        let op = self.store.schedule_compaction(r.revision).map_err(ReadError::Refused)?;
        self.ops.push(op);
        // etcd reads a key for the header's revision, and counts that.
        self.store.count_ranges(1);
        self.effects.push(Effect::CompactionScheduled { revision: r.revision });
        Ok(rpc::CompactionResponse { header: Some(mvcc::header(self.store.revision())) })
    }
}
