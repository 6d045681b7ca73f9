//! The machine that applies entries: dispatch, the one batch of an entry, its effects.

use super::alarm::Alarms;
use super::quota::{Quota, QuotaReader};
use super::size::Size;
use super::{Applied, Effect, Event, Reply, check};
use crate::auth::{AuthReader, AuthStore};
use crate::base::error::Error;
use crate::lease::{LeaseReader, LeaseTable};
use crate::mvcc::backend::{Backend, BackendError, Batch, Bucket, Op};
use crate::mvcc::{self, Change, CompactProgress, CutOff, Look, Looked, ReadError, Reader, Store};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Skipped entries after which the position is written even if nothing else is.
const SKIPPED_MAX: u64 = 1024;

/// What members may be configured with. The state does not depend on it, except for `min_ttl` and
/// `persist_checkpoints`, which must be the same on all members.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shortest TTL that a lease gets, in seconds.
    pub min_ttl: i64,
    /// Space quota; 0 is etcd's default, a negative one is none.
    pub quota_bytes: i64,
    /// Whether lease checkpoints are written to bucket Lease.
    pub persist_checkpoints: bool,
}

impl Default for Options {
    fn default() -> Self {
        // etcd: 3/2 of 10 election ticks of 100 ms, rounded up to seconds.
        Self { min_ttl: 2, quota_bytes: 0, persist_checkpoints: false }
    }
}

/// The replicated machine. One thread owns it.
#[derive(Debug)]
pub struct Machine {
    pub(super) store: Store,
    pub(super) leases: LeaseTable,
    pub(super) alarms: Alarms,
    /// Where the cluster is under way down to.
    downgrade: Option<String>,
    pub(super) auth: AuthStore,
    pub(super) quota: Quota,
    size: Size,
    /// Rows outside bucket Key that the entry changes.
    pub(super) ops: Vec<Op>,
    pub(super) effects: Vec<Effect>,
    /// Whether anybody wants [`Effect::Events`].
    events_wanted: bool,
    /// The entry was applied beyond the quota: its answer is "no space".
    full: bool,
    backend: Handle,
    position: (u64, u64),
    submitted: (u64, u64),
    damage: Option<BackendError>,
}

/// The value of a row; `None` if it is not to be there.
pub type Row = Option<Bytes>;

/// Row of the auth store's revision, which a store without users has too.
const AUTH_REVISION: &[u8] = b"authRevision";

/// An auth store begins at revision 1 (etcd v3.5.17 `auth/store.go` NewAuthStore).
fn found_auth(backend: &dyn Backend, revision: i64) -> Result<(), BackendError> {
    if backend.get(Bucket::Auth, AUTH_REVISION)?.is_none() {
        let value = Bytes::copy_from_slice(&1_u64.to_be_bytes());
        let ops = vec![(Bucket::Auth, Bytes::from_static(AUTH_REVISION), Some(value))];
        let (consistent_index, term) = backend.position();
        let size_bytes = backend.size_bytes();
        backend.submit(Batch { ops, consistent_index, term, revision, size_bytes });
    }
    Ok(())
}

struct Handle(Arc<dyn Backend>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl Machine {
    /// Rebuilds the state from the engine. A hole in the revisions is an error.
    pub fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Self, BackendError> {
        let (store, leased) = Store::open(Arc::clone(&backend))?;
        let persist = options.persist_checkpoints;
        let leases = LeaseTable::open(&*backend, options.min_ttl, persist, leased)?;
        let alarms = Alarms::open(&*backend)?;
        let downgrade = super::cluster::downgrade_in(&*backend)?;
        let position = backend.position();
        found_auth(&*backend, store.revision())?;
        let auth = AuthStore::open(&*backend)?;
        let size = Size::open(&*backend, store.key_cost(), leases.cost())?;
        store.publish_size(size.on_disk(), size.in_use());
        Ok(Self {
            size,
            store,
            leases,
            alarms,
            downgrade,
            auth,
            quota: Quota::new(options.quota_bytes),
            ops: Vec::new(),
            effects: Vec::new(),
            events_wanted: true,
            full: false,
            backend: Handle(backend),
            position,
            submitted: position,
            damage: None,
        })
    }

    /// Puts the state that a leader's snapshot has brought into the place of this one, under the
    /// readers of this one. What was here; it may take a while to drop.
    pub fn replace(&mut self, mut fresh: Machine) -> Machine {
        fresh.events_wanted = self.events_wanted;
        fresh.leases.replace(&self.leases);
        fresh.auth.replace(&self.auth);
        fresh.store.replace(&self.store);
        std::mem::replace(self, fresh)
    }

    /// Raft index and term of the newest entry that the state contains.
    pub fn position(&self) -> (u64, u64) {
        self.position
    }

    /// Whether [`Effect::Events`] is made; it is at first.
    pub fn want_events(&mut self, wanted: bool) {
        self.events_wanted = wanted;
    }

    /// The newest revision of the store.
    pub fn revision(&self) -> i64 {
        self.store.revision()
    }

    /// A handle for reads of the store.
    pub fn reader(&self) -> Reader {
        self.store.reader()
    }

    /// A handle for reads of the leases.
    pub fn lease_reader(&self) -> LeaseReader {
        self.leases.reader()
    }

    /// A handle for questions about users and permissions.
    pub fn auth_reader(&self) -> AuthReader {
        self.auth.reader()
    }

    /// A handle for checks of the space quota.
    pub fn quota_reader(&self) -> QuotaReader {
        self.quota.reader(self.store.reader())
    }

    /// Whether some member has raised the NOSPACE alarm.
    pub fn no_space(&self) -> bool {
        self.alarms.no_space()
    }

    /// The raised alarms, by kind and member.
    pub fn alarms(&self) -> Vec<rpc::AlarmMember> {
        self.alarms.get(rpc::AlarmType::None)
    }

    /// The version that the cluster is under way down to, `3.4.0`; `None` while it is not.
    pub fn downgrade(&self) -> Option<&str> {
        self.downgrade.as_deref()
    }

    /// Damage met while applying. From then on nothing is applied and the member must stop.
    pub fn damage(&self) -> Option<&BackendError> {
        self.damage.as_ref()
    }

    /// Another byte budget for the rows that the index holds.
    pub fn set_row_bytes_max(&mut self, bytes: usize) {
        self.store.set_row_bytes_max(bytes);
    }

    /// Applies a committed entry. Readers see it when this returns. An entry at or below the
    /// position is applied already and gives nothing.
    pub fn apply(&mut self, index: u64, term: u64, request: &rpc::InternalRaftRequest) -> Applied {
        if self.damage.is_some() {
            return Applied { result: Err(Error::Corrupt), effects: Vec::new() };
        }
        if index <= self.position.0 {
            return Applied { result: Ok(Reply::Empty), effects: Vec::new() };
        }
        let allowed = check::gate(&self.alarms, request).and_then(|()| self.permit(request));
        let answer = match allowed {
            Ok(()) => self.dispatch(index, request),
            Err(error) => Err(ReadError::Refused(error)),
        };
        let result = match answer {
            Ok(_) if std::mem::take(&mut self.full) => Err(Error::NoSpace),
            Ok(reply) => Ok(reply),
            Err(error) => {
                self.store.rollback();
                self.ops.clear();
                self.effects.clear();
                if let ReadError::Damage(damage) = &error {
                    self.damage = Some(damage.clone());
                    return Applied { result: Err(Error::Corrupt), effects: Vec::new() };
                }
                Err(error.into())
            }
        };
        self.position = (index, term);
        let changes = self.submit();
        let mut effects = std::mem::take(&mut self.effects);
        if !changes.is_empty() && self.events_wanted {
            let revision = self.store.revision();
            let events = changes.into_iter().map(|change| event(change, revision)).collect();
            effects.insert(0, Effect::Events { revision, events });
        }
        Applied { result, effects }
    }

    /// Moves past an entry without effect on this state. The position reaches the engine with a
    /// later batch.
    pub fn skip(&mut self, index: u64, term: u64) {
        self.record(index, term, Vec::new());
    }

    /// Moves past an entry whose effect is these rows, made elsewhere (members, say).
    pub fn record(&mut self, index: u64, term: u64, ops: Vec<Op>) {
        if index > self.position.0 && self.damage.is_none() {
            self.position = (index, term);
            self.ops = ops;
            self.submit();
        }
    }

    /// Writes what is missing of rows that entries up to the position have left: an engine made by
    /// an earlier version, say. The number of rows that were not as they must be.
    pub fn mend(&mut self, rows: BTreeMap<(Bucket, Bytes), Row>) -> Result<usize, BackendError> {
        let mut ops = Vec::new();
        for ((bucket, key), value) in rows {
            if self.backend.0.get(bucket, &key)? != value {
                ops.push((bucket, key, value));
            }
        }
        let count = ops.len();
        if count > 0 {
            self.submit_ops(ops);
        }
        Ok(count)
    }

    /// Hands the position to the engine if skipped entries moved it.
    pub fn flush_position(&mut self) {
        if self.position != self.submitted {
            self.submit_ops(Vec::new());
        }
    }

    /// The next look, at up to `limit` rows, of a scheduled compaction: for any thread. None while
    /// one is on its way, and when nothing is scheduled.
    pub fn compaction_look(&mut self, limit: usize) -> Option<Look> {
        self.store.compaction_look(limit)
    }

    /// Takes out what a look has found.
    pub fn compacted(&mut self, looked: Looked) -> Result<CompactProgress, BackendError> {
        let (ops, progress) = self.store.compacted(looked)?;
        if !ops.is_empty() {
            self.submit_ops(ops);
        }
        Ok(progress)
    }

    /// A look and what comes of it, at once.
    #[cfg(test)]
    pub fn compact_step(&mut self, limit: usize) -> Result<CompactProgress, BackendError> {
        match self.compaction_look(limit) {
            Some(look) => self.compacted(look.run()),
            None => Ok(CompactProgress::Done),
        }
    }

    /// The histories that the last step has cut off, to be dropped where there is time.
    pub fn take_cut_off(&mut self) -> CutOff {
        self.store.take_cut_off()
    }

    /// The revision up to which there is something to compact.
    pub fn compaction_pending(&self) -> Option<i64> {
        self.store.compaction_pending()
    }

    /// The newest revision whose compaction is complete, −1 before the first.
    pub fn finished_compact_revision(&self) -> i64 {
        self.store.finished_compact_revision()
    }

    /// Closes the entry: the engine first, then the leases, then the readers.
    fn submit(&mut self) -> Vec<Change> {
        let (mut ops, changes) = self.store.commit();
        ops.append(&mut self.ops);
        if !ops.is_empty() || self.position.0 - self.submitted.0 >= SKIPPED_MAX {
            self.submit_ops(ops);
        }
        for change in &changes {
            self.leases.hang(&change.key, change.lease);
        }
        if !changes.is_empty() {
            self.store.publish();
        }
        if self.effects.contains(&Effect::AuthChanged) {
            self.auth.publish();
        }
        changes
    }

    fn submit_ops(&mut self, ops: Vec<Op>) {
        let (consistent_index, term) = self.position;
        let revision = self.store.revision();
        if let Err(damage) = self.size.change(&*self.backend.0, &ops) {
            self.damage = Some(damage);
        }
        self.size.settle(self.store.key_cost(), self.leases.cost());
        self.publish_size();
        let size_bytes = self.size.on_disk();
        self.backend.0.submit(Batch { ops, consistent_index, term, revision, size_bytes });
        self.submitted = self.position;
    }

    fn publish_size(&self) {
        self.store.publish_size(self.size.on_disk(), self.size.in_use());
    }

    /// The file as if it had just been written anew: its size is what is in use.
    pub fn shrink(&mut self) {
        self.size.shrink();
        self.submit_ops(Vec::new());
    }

    fn dispatch(
        &mut self,
        index: u64,
        request: &rpc::InternalRaftRequest,
    ) -> Result<Reply, ReadError> {
        if let Some(r) = &request.put {
            let full = !self.quota.fits(self.size.on_disk(), check::put_cost(r));
            let reply = Reply::Put(self.put(r, false)?);
            self.full = full;
            Ok(reply)
        } else if let Some(r) = &request.txn {
            let full = !self.quota.fits(self.size.on_disk(), check::txn_cost_applied(r));
            let reply = Reply::Txn(self.txn(r)?);
            self.full = full;
            Ok(reply)
        } else if let Some(r) = &request.range {
            Ok(Reply::Range(self.store.range(r)?))
        } else if let Some(r) = &request.delete_range {
            Ok(Reply::DeleteRange(self.delete_range(r)?))
        } else if let Some(r) = &request.compaction {
            Ok(Reply::Compaction(self.compaction(r)?))
        } else if let Some(r) = &request.lease_grant {
            let full = !self.quota.fits(self.size.on_disk(), check::LEASE_COST);
            let reply = Reply::LeaseGrant(self.lease_grant(r)?);
            self.full = full;
            Ok(reply)
        } else if let Some(r) = &request.lease_revoke {
            Ok(Reply::LeaseRevoke(self.lease_revoke(r)?))
        } else if let Some(r) = &request.lease_checkpoint {
            Ok(Reply::LeaseCheckpoint(self.lease_checkpoint(r)))
        } else if let Some(r) = &request.alarm {
            Ok(Reply::Alarm(self.alarm(r)))
        } else {
            self.ops.extend(super::cluster::v3_rows(request));
            if let Some(set) = &request.downgrade_info_set {
                self.downgrade = set.enabled.then(|| set.ver.clone());
            }
            self.apply_auth(index, request).unwrap_or(Ok(Reply::Empty))
        }
    }
}

fn event(change: Change, mod_revision: i64) -> Event {
    let kv = if change.delete { mvcc::kv_deleted(&change.key, mod_revision) } else { change.row };
    Event { key: change.key, delete: change.delete, kv, mod_revision }
}
