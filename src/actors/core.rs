//! What actors publish and edges read without asking, and the node that edges hold.

use crate::actors::auth::handle::AuthHandle;
use crate::actors::handle::auth::Authority;
use crate::actors::handle::downgrade::Downgrading;
use crate::actors::handle::members::Membership;
use crate::actors::handle::watch::Watching;
use crate::actors::handle::{Answer, Node, RaftStatus};
use crate::actors::ids::Ids;
use crate::actors::inbox::{Ask, Inbox, Propose};
use crate::actors::lease_keeper::{self, LeaseKeeperAddr};
use crate::actors::maintenance::Defragment;
use crate::actors::membership::Peering;
use crate::actors::store::Waiter;
use crate::actors::watch_hub::WatchHandle;
use crate::apply::Reply;
use crate::auth::AuthReader;
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::ids::{ClusterId, LeaseId, MemberId};
use crate::cluster::members::Members;
use crate::lease::LeaseReader;
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use crate::raft::driver::Standing;
use arc_swap::ArcSwap;
use prost::Message as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Published state: one writer each, any number of readers.
pub struct Shared {
    pub member_id: MemberId,
    pub cluster_id: ClusterId,
    pub ids: Ids,
    standing: ArcSwap<Standing>,
    /// The newest term in which this member led when it applied the term's empty entry.
    promoted: AtomicU64,
    applied: watch::Sender<u64>,
    /// The newest revision whose compaction is complete.
    compacted: watch::Sender<i64>,
    members: ArcSwap<Members>,
    alarms: ArcSwap<Vec<rpc::AlarmMember>>,
    /// Where the cluster is under way down to.
    downgrade: ArcSwap<Option<String>>,
    ticked_at: ArcSwap<Option<Instant>>,
    leader_changed_at: ArcSwap<Option<Instant>>,
    leader_changes: AtomicU64,
    /// The newest commit index that the WAL's hard states hold durably.
    commit_durable: AtomicU64,
    /// Bytes that went to the WAL since the start.
    log_bytes: AtomicU64,
    /// See `actors::auth::shared`.
    pub(super) auth: OnceLock<AuthReader>,
    pub(super) auth_changes: watch::Sender<u64>,
    /// Whether the cluster has removed this member.
    removed: watch::Sender<bool>,
    /// Where proposals and read-index requests go.
    pub inbox: Inbox,
}

impl Shared {
    /// The state after recovery: everything up to `applied`, which the WAL durably commits.
    pub fn new(
        member_id: MemberId,
        cluster_id: ClusterId,
        unix: Duration,
        applied: u64,
        members: Members,
        alarms: Vec<rpc::AlarmMember>,
        inbox: Inbox,
    ) -> Shared {
        Shared {
            member_id,
            cluster_id,
            ids: Ids::new(member_id, unix),
            standing: ArcSwap::default(),
            promoted: AtomicU64::new(0),
            applied: watch::Sender::new(applied),
            compacted: watch::Sender::new(i64::MIN),
            members: ArcSwap::from_pointee(members),
            alarms: ArcSwap::from_pointee(alarms),
            downgrade: ArcSwap::default(),
            ticked_at: ArcSwap::default(),
            leader_changed_at: ArcSwap::default(),
            leader_changes: AtomicU64::new(0),
            commit_durable: AtomicU64::new(applied),
            log_bytes: AtomicU64::new(0),
            auth: OnceLock::new(),
            auth_changes: watch::Sender::default(),
            removed: watch::Sender::default(),
            inbox,
        }
    }

    /// Raft's standing, at most one flush old.
    pub fn standing(&self) -> Standing {
        **self.standing.load()
    }

    /// RaftActor only.
    pub fn publish_standing(&self, standing: Standing) {
        let before = self.standing.swap(Arc::new(standing));
        if standing.leader.0 != 0 && standing.leader != before.leader {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The term in which this member leads, once it has applied everything before its leadership.
    pub fn promoted_term(&self) -> Option<u64> {
        let standing = self.standing();
        let promoted = self.promoted.load(Ordering::Acquire);
        (standing.is_leader && standing.term == promoted).then_some(promoted)
    }

    /// Whether what is published here is all that anyone was ever told: this member leads, has
    /// applied everything before its leadership, and there is no other that could have committed,
    /// applied or answered anything. Writes are answered after they are published here, so a
    /// linearizable read need ask nobody.
    pub fn leads_alone(&self) -> bool {
        self.standing().is_alone && self.promoted_term().is_some()
    }

    /// StoreActor only, before it tells anyone.
    pub fn publish_promoted(&self, term: u64) {
        self.promoted.store(term, Ordering::Release);
    }

    /// Returns once the entry at `index` is applied.
    pub async fn wait_applied(&self, index: u64) -> Result<()> {
        if self.applied_index() >= index {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        applied.wait_for(|applied| *applied >= index).await.map(|_| ()).map_err(|_| Error::Stopped)
    }

    /// Index of the newest applied entry.
    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow()
    }

    /// An index that everything committed before the call lies at or below.
    pub async fn read_index(&self) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        let _waiting = self.inbox.wait();
        self.inbox.ask(Ask::ReadIndex(reply))?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Returns once everything committed before the call is applied here.
    pub async fn caught_up(&self) -> Result<()> {
        self.wait_applied(self.read_index().await?).await
    }

    /// StoreActor only.
    pub fn publish_applied(&self, index: u64) {
        self.applied.send_replace(index);
    }

    /// StoreActor only.
    pub fn publish_compacted(&self, revision: i64) {
        self.compacted
            .send_if_modified(|compacted| std::mem::replace(compacted, revision) != revision);
    }

    /// Waits until the rows are gone that a compaction at `revision` removes, however long.
    async fn wait_compacted(&self, revision: i64) {
        let mut compacted = self.compacted.subscribe();
        // The sender lives as long as this.
        let _ = compacted.wait_for(|compacted| *compacted >= revision).await;
    }

    /// The member table.
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// StoreActor only.
    pub fn publish_members(&self, members: &Members) {
        self.members.store(Arc::new(members.clone()));
    }

    /// This member has no business any more: it was told so, or has applied its removal.
    pub fn publish_removed(&self) {
        self.removed.send_replace(true);
    }

    /// Returns once the cluster has removed this member.
    pub async fn wait_removed(&self) {
        // The sender lives as long as this.
        let _ = self.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// The raised alarms.
    pub fn alarms(&self) -> Arc<Vec<rpc::AlarmMember>> {
        self.alarms.load_full()
    }

    /// StoreActor only.
    pub fn publish_alarms(&self, alarms: Vec<rpc::AlarmMember>) {
        self.alarms.store(Arc::new(alarms));
    }

    /// The version that the cluster is under way down to.
    pub fn downgrade(&self) -> Arc<Option<String>> {
        self.downgrade.load_full()
    }

    /// StoreActor only.
    pub fn publish_downgrade(&self, target: Option<&str>) {
        self.downgrade.store(Arc::new(target.map(str::to_owned)));
    }

    /// RaftActor only: it is alive.
    pub fn publish_tick(&self, now: Instant) {
        self.ticked_at.store(Arc::new(Some(now)));
    }

    /// RaftActor only.
    pub fn leader_changed(&self, now: Instant) {
        self.leader_changed_at.store(Arc::new(Some(now)));
    }

    /// A hard state that commits this index is on the disk.
    pub fn commit_durable(&self) -> u64 {
        self.commit_durable.load(Ordering::Acquire)
    }

    /// Bytes that went to the WAL since the start.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// RaftActor only, after a sync.
    pub fn publish_log(&self, commit_durable: u64, log_bytes: u64) {
        self.commit_durable.store(commit_durable, Ordering::Release);
        self.log_bytes.store(log_bytes, Ordering::Relaxed);
    }

    /// How often there was a new leader since start (etcd v3.5.17 `etcdserver/raft.go`: losing one
    /// does not count).
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }

    /// Proposes without waiting for the outcome.
    pub fn propose_quietly(&self, request: rpc::InternalRaftRequest) {
        // A full queue or a stop: who proposes quietly proposes again.
        let _ = self.propose(request, None);
    }

    /// Proposes a bare v2 request without waiting for the outcome.
    pub fn propose_v2_quietly(&self, mut request: rpc::Request) {
        let id = self.ids.next();
        request.id = id;
        let data = request.encode_to_vec().into();
        // As above.
        let _ = self.inbox.ask(Ask::Propose(Propose { id, data, reply: None }));
    }

    /// Proposes without waiting here; `reply` gets the outcome, or is dropped.
    pub fn propose(&self, request: rpc::InternalRaftRequest, reply: Option<Waiter>) -> Result<()> {
        let (id, data) = self.encode(request);
        self.inbox.ask(Ask::Propose(Propose { id, data, reply }))
    }

    /// Proposes what only the leader of `term` may propose, if this member is that.
    pub fn propose_as_leader(&self, term: u64, requests: Vec<rpc::InternalRaftRequest>) {
        let payloads = requests
            .into_iter()
            .map(|mut request| {
                self.sign_as_root(&mut request);
                self.encode(request).1
            })
            .collect();
        // As above.
        let _ = self.inbox.ask(Ask::ProposeAsLeader { term, payloads });
    }

    fn encode(&self, mut request: rpc::InternalRaftRequest) -> (u64, bytes::Bytes) {
        let id = self.ids.next();
        request.header.get_or_insert_with(Default::default).id = id;
        (id, request.encode_to_vec().into())
    }
}

/// How followers reach the leader for what only it knows; the transport implements it.
pub trait LeaseForward: Send + Sync + 'static {
    /// Renews at the leader, whose peer URLs are given.
    fn renew(&self, leader_urls: Vec<String>, id: i64) -> Answer<'_, Result<i64>>;
    /// Asks the leader for the rest of a lease's time.
    fn time_to_live(
        &self,
        leader_urls: Vec<String>,
        request: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>>;
}

/// The node as edges hold it.
pub struct Core {
    pub shared: Arc<Shared>,
    pub lease_keeper: LeaseKeeperAddr,
    pub watch_hub: WatchHandle,
    pub leases: LeaseReader,
    pub auth: AuthHandle,
    pub forward: Arc<dyn LeaseForward>,
    pub peering: Arc<dyn Peering>,
    /// `--strict-reconfig-check`.
    pub strict_reconfig: bool,
    pub defragment: Arc<dyn Defragment>,
    pub clock: Arc<dyn Clock>,
    pub election_timeout: Duration,
    pub tick_interval: Duration,
}

/// A proposal that waits, counted for `/metrics` even if its caller goes away.
struct Pending;

impl Pending {
    fn begin() -> Pending {
        metrics().proposals_pending.inc();
        Pending
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        metrics().proposals_pending.dec();
    }
}

/// Part of the request timeout that does not depend on the election timeout
/// (etcd v3.5.17 `config.go` ReqTimeout: 5 s for the disk, two elections).
const REQUEST_TIMEOUT_BASE: Duration = Duration::from_secs(5);
/// Pause between attempts to reach a leader for a lease call (etcd v3.5.17 `v3_server.go`
/// LeaseRenew).
const FORWARD_PAUSE: Duration = Duration::from_millis(50);
/// How long a lease call waits for what is committed to be applied (etcd v3.5.17 applyTimeout).
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Ticks after which a leader that has not ticked makes sure of its leadership before it answers
/// for leases (etcd v3.5.17 `server.go` ensureLeadership).
const QUIET_TICKS_MAX: u32 = 3;

/// How long a request may take.
pub fn request_timeout(election_timeout: Duration) -> Duration {
    REQUEST_TIMEOUT_BASE + 2 * election_timeout
}

impl Core {
    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        request_timeout(self.election_timeout)
    }

    pub(super) fn timeout_error(&self, started: Instant) -> Error {
        let changed_at = **self.shared.leader_changed_at.load();
        if let Some(changed_at) = changed_at {
            let lost_at = changed_at.checked_sub(2 * self.election_timeout);
            if lost_at.is_none_or(|lost_at| started > lost_at) && started < changed_at {
                return Error::TimeoutDueToLeaderFail;
            }
        }
        Error::Timeout
    }

    async fn propose_encoded(&self, id: u64, data: Vec<u8>) -> Result<Reply> {
        let started = self.clock.now();
        let (reply, answer) = oneshot::channel();
        let _waiting = self.shared.inbox.wait();
        self.shared.inbox.ask(Ask::Propose(Propose {
            id,
            data: data.into(),
            reply: Some(reply),
        }))?;
        let _pending = Pending::begin();
        match tokio::time::timeout(self.request_timeout(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => {
                metrics().proposals_failed.inc();
                Err(self.timeout_error(started))
            }
        }
    }

    /// Proposes a bare v2 request (attributes, cluster version).
    pub async fn propose_v2(&self, mut request: rpc::Request) -> Result<Reply> {
        let id = self.shared.ids.next();
        request.id = id;
        self.propose_encoded(id, request.encode_to_vec()).await
    }

    pub(super) async fn with_timeout<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.request_timeout(), work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Whether this member may answer for leases: it leads, which it makes sure of if it may have
    /// been asleep, and has applied what is committed. `NotLeader` if the leader is to be asked.
    async fn leads(&self) -> Result<()> {
        if !self.shared.standing().is_leader {
            return Err(Error::NotLeader);
        }
        let ticked_at = **self.shared.ticked_at.load();
        let quiet = ticked_at.map(|at| self.clock.now().saturating_duration_since(at));
        if quiet.is_none_or(|quiet| quiet > QUIET_TICKS_MAX * self.tick_interval) {
            self.shared.read_index().await.map_err(|_| Error::NotLeader)?;
        }
        let standing = self.shared.standing();
        if !standing.is_leader {
            return Err(Error::NotLeader);
        }
        tokio::time::timeout(APPLY_TIMEOUT, self.shared.wait_applied(standing.committed))
            .await
            .map_err(|_| Error::TimeoutWaitAppliedIndex)?
    }

    /// Bounds a lease call that looks for the leader until there is one (etcd v3.5.17
    /// `v3_server.go` LeaseRenew, waitLeader).
    pub(super) async fn at_the_leader<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.with_timeout(work).await {
            Err(Error::Timeout) if self.shared.standing().leader.0 == 0 => Err(Error::NoLeader),
            answer => answer,
        }
    }

    /// Where the leader is, if it is another member.
    pub(super) fn leader_urls(&self) -> Option<Vec<String>> {
        let leader = self.shared.standing().leader;
        if leader == self.shared.member_id {
            return None;
        }
        Some(self.shared.members().get(leader)?.peer_urls.clone())
    }

    async fn renew_here(&self, id: i64) -> Result<i64> {
        self.leads().await?;
        let (reply, answer) = oneshot::channel();
        self.lease_keeper.do_send(lease_keeper::Renew { id: LeaseId(id), reply });
        // One that was made anew meanwhile is asked again.
        answer.await.unwrap_or(Err(Error::NotLeader))
    }

    async fn remaining_here(&self, id: i64) -> Result<(i64, i64)> {
        self.leads().await?;
        let (reply, answer) = oneshot::channel();
        self.lease_keeper.do_send(lease_keeper::Remaining { id: LeaseId(id), reply });
        // As above.
        answer.await.unwrap_or(Err(Error::NotLeader))
    }
}

impl Node for Core {
    fn member_id(&self) -> MemberId {
        self.shared.member_id
    }

    fn cluster_id(&self) -> ClusterId {
        self.shared.cluster_id
    }

    fn raft_status(&self) -> RaftStatus {
        let standing = self.shared.standing();
        RaftStatus {
            term: standing.term,
            leader: standing.leader,
            committed_index: standing.committed,
            applied_index: self.shared.applied_index(),
            is_learner: standing.is_learner,
        }
    }

    fn propose(&self, mut request: rpc::InternalRaftRequest) -> Answer<'_, Result<Reply>> {
        let id = self.shared.ids.next();
        request.header.get_or_insert_with(Default::default).id = id;
        let physical = request.compaction.filter(|compaction| compaction.physical);
        let data = request.encode_to_vec();
        Box::pin(async move {
            let reply = self.propose_encoded(id, data).await?;
            // The request timeout is for the log's part only, as in etcd (v3.5.17 `v3_server.go`
            // Compact).
            if let Some(compaction) = physical {
                self.shared.wait_compacted(compaction.revision).await;
            }
            Ok(reply)
        })
    }

    fn linearizable_read_notify(&self) -> Answer<'_, Result<()>> {
        if self.shared.leads_alone() {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(self.with_timeout(async {
            let index = self.shared.read_index().await?;
            self.shared.wait_applied(index).await
        }))
    }

    fn members(&self) -> Vec<rpc::Member> {
        self.shared.members().to_wire()
    }

    fn cluster_version(&self) -> Option<String> {
        self.shared.members().version().map(str::to_owned)
    }

    fn lease_renew(&self, id: i64) -> Answer<'_, Result<i64>> {
        Box::pin(self.at_the_leader(async move {
            loop {
                match self.renew_here(id).await {
                    Err(Error::NotLeader) => {}
                    answer => return answer,
                }
                if let Some(urls) = self.leader_urls() {
                    match self.forward.renew(urls, id).await {
                        Err(Error::NotLeader | Error::NoLeader | Error::Timeout) => {}
                        answer => return answer,
                    }
                }
                tokio::time::sleep(FORWARD_PAUSE).await;
            }
        }))
    }

    fn lease_time_to_live(
        &self,
        request: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>> {
        Box::pin(self.at_the_leader(async move {
            loop {
                match self.remaining_here(request.id).await {
                    Ok((granted_ttl, ttl)) => {
                        let keys = if request.keys {
                            self.leases.keys(LeaseId(request.id))
                        } else {
                            Vec::new()
                        };
                        return Ok(rpc::LeaseTimeToLiveResponse {
                            header: None,
                            id: request.id,
                            ttl,
                            granted_ttl,
                            keys,
                        });
                    }
                    Err(Error::NotLeader) => {}
                    Err(error) => return Err(error),
                }
                if let Some(urls) = self.leader_urls() {
                    match self.forward.time_to_live(urls, request).await {
                        Err(Error::NotLeader | Error::NoLeader | Error::Timeout) => {}
                        answer => return answer,
                    }
                }
                tokio::time::sleep(FORWARD_PAUSE).await;
            }
        }))
    }

    fn leases(&self) -> Answer<'_, Vec<i64>> {
        Box::pin(async {
            let (reply, answer) = oneshot::channel();
            self.lease_keeper.do_send(lease_keeper::ByDeadline(reply));
            answer.await.unwrap_or_default()
        })
    }

    fn watch(&self) -> Watching {
        self.watch_hub.open()
    }

    fn alarms(&self) -> Vec<rpc::AlarmMember> {
        self.shared.alarms.load().as_ref().clone()
    }

    fn authority(&self) -> Option<&dyn Authority> {
        Some(&self.auth)
    }

    fn membership(&self) -> Option<&dyn Membership> {
        Some(self)
    }

    fn downgrading(&self) -> Option<&dyn Downgrading> {
        Some(self)
    }

    fn move_leader(&self, to: MemberId) -> Answer<'_, Result<()>> {
        Box::pin(self.hand_over(to))
    }

    fn defragment(&self) -> Answer<'_, std::result::Result<(), String>> {
        self.defragment.defragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_answers_alone_only_when_it_has_applied_what_came_before() {
        let (members, unix) = (Members::default(), Duration::ZERO);
        let (member, cluster) = (MemberId(1), ClusterId(2));
        let inbox = Inbox::new().0;
        let shared = Shared::new(member, cluster, unix, 0, members, Vec::new(), inbox);
        let standing = |term, is_leader, is_alone| {
            shared.publish_standing(Standing { term, is_leader, is_alone, ..Standing::default() });
        };
        standing(3, true, true);
        assert!(!shared.leads_alone(), "its own term's entry is not applied");
        shared.publish_promoted(3);
        assert!(shared.leads_alone());
        standing(4, true, true);
        assert!(!shared.leads_alone(), "promoted in an earlier term");
        standing(3, false, true);
        assert!(!shared.leads_alone());
        standing(3, true, false);
        assert!(!shared.leads_alone());
    }
}
