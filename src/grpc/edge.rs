//! What every service shares: the node, the reader, the options and the response headers.

use super::observer::{NoObserver, Observer};
use super::{status, validate};
use crate::actors::handle::NodeHandle;
use crate::apply::Reply;
use crate::base::error::{Error, Result};
use crate::base::limits::{GRPC_OVERHEAD_BYTES, REQUEST_BYTES_MAX};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;

/// The etcd version this server answers with.
pub const VERSION: &str = "3.5.17";
/// Operations one transaction may hold unless the caller says otherwise (etcd: `--max-txn-ops`).
pub const TXN_OPS_MAX: usize = 128;
/// Election timeout unless the caller says otherwise (etcd: `--election-timeout`).
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);

/// How long a read may take without a warning unless the caller says otherwise.
pub const SLOW_READ: Duration = Duration::from_millis(100);
/// Interval of progress notices unless the caller says otherwise (etcd:
/// `--experimental-watch-progress-notify-interval`).
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// The store as the edge reads it.
pub trait Reads: Send + Sync + 'static {
    /// Evaluates a range on the state applied so far; the header holds the revision.
    fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse>;
    /// Evaluates a transaction whose operations are all ranges.
    fn txn_readonly(&self, request: &rpc::TxnRequest) -> Result<rpc::TxnResponse>;
    /// Current revision.
    fn revision(&self) -> i64;
    /// Hash of the keys up to `rev` (0: now): the hash, the current and the compacted revision.
    fn hash_kv(&self, rev: i64) -> Result<(u32, i64, i64)>;
    /// Hash of the whole backend.
    fn hash(&self) -> Result<u32>;
    /// Bytes the backend takes.
    fn size_bytes(&self) -> u64;
    /// Whether a write that costs so much against the space quota still fits.
    fn fits(&self, _cost: u64) -> bool {
        true
    }
    /// Bytes of the backend that hold data.
    fn size_in_use_bytes(&self) -> u64;
    /// Begins an image of the store as etcd's database file; blocks a moment.
    fn image(&self) -> std::result::Result<Box<dyn Image>, String>;
}

/// An image of the whole store as of one moment, made while it is read. Its calls block; the text
/// of an error is for the log.
pub trait Image: Send {
    /// Gets ready, a slice of the work at a time; the bytes of the image once they are known.
    fn prepare(&mut self) -> std::result::Result<Option<u64>, String>;
    /// The next bytes: as many as asked for, fewer at the end.
    fn read(&mut self, bytes: usize) -> std::result::Result<Bytes, String>;
}

/// What the caller decides about the edge.
#[derive(Clone)]
pub struct GrpcOptions {
    /// Largest raft request in bytes; a received message may be `GRPC_OVERHEAD_BYTES` larger.
    pub max_request_bytes: usize,
    /// Operations one transaction may hold.
    pub max_txn_ops: usize,
    /// How long an election may take; after three of them without a leader, streams that require
    /// one end.
    pub election_timeout: Duration,
    /// A read that takes longer is worth a warning (etcd: `--experimental-warning-apply-duration`).
    pub slow_read: Duration,
    /// Draws a candidate lease id; the edge clears the sign bit and draws again on 0.
    pub lease_ids: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// How often watchers that want it are told of progress when there are no events.
    pub watch_progress_interval: Duration,
    /// Gets the calls counted.
    pub observer: Arc<dyn Observer>,
    /// What `grpc.health.v1` answers for the whole server; a dropped sender freezes it.
    pub serving: watch::Receiver<bool>,
}

impl GrpcOptions {
    /// etcd's defaults around the given source of lease ids.
    pub fn new(lease_ids: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self {
            max_request_bytes: REQUEST_BYTES_MAX,
            max_txn_ops: TXN_OPS_MAX,
            election_timeout: ELECTION_TIMEOUT,
            slow_read: SLOW_READ,
            lease_ids,
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
            observer: Arc::new(NoObserver),
            serving: watch::channel(true).1,
        }
    }
}

/// The node, the reader and the options, shared by the services.
pub struct Edge {
    /// The node.
    pub node: NodeHandle,
    /// The store.
    pub reads: Arc<dyn Reads>,
    /// The caller's choices.
    pub options: GrpcOptions,
}

impl Edge {
    /// Joins the parts.
    pub fn new(node: NodeHandle, reads: Arc<dyn Reads>, options: GrpcOptions) -> Self {
        Self { node, reads, options }
    }

    /// Largest message a client may send.
    pub fn message_bytes_max(&self) -> usize {
        self.options.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES)
    }

    /// Fills in cluster, member and term; a revision that apply left at 0 becomes the current one.
    pub fn fill(&self, header: &mut Option<rpc::ResponseHeader>) {
        let header = header.get_or_insert_default();
        self.fill_identity(header);
        if header.revision == 0 {
            header.revision = self.reads.revision();
        }
    }

    /// A header at the current revision.
    pub fn header(&self) -> Option<rpc::ResponseHeader> {
        let mut header = None;
        self.fill(&mut header);
        header
    }

    /// A header without revision, as the Cluster service answers.
    pub fn header_without_revision(&self) -> Option<rpc::ResponseHeader> {
        let mut header = rpc::ResponseHeader::default();
        self.fill_identity(&mut header);
        Some(header)
    }

    /// Fills in all but the revision.
    pub(super) fn fill_identity(&self, header: &mut rpc::ResponseHeader) {
        header.cluster_id = self.node.cluster_id().0;
        header.member_id = self.node.member_id().0;
        header.raft_term = self.node.raft_status().term;
    }

    /// Refuses what does not fit into the space quota, after raising this member's alarm, before
    /// any other check (etcd v3.5.17 `api/v3rpc/quota.go`).
    pub async fn check_quota(&self, cost: u64) -> std::result::Result<(), Status> {
        if cost == 0 || self.reads.fits(cost) {
            return Ok(());
        }
        let alarm = rpc::AlarmType::Nospace as i32;
        let member_id = self.node.member_id().0;
        // Raising it again would only make the log longer.
        if !self.node.alarms().contains(&rpc::AlarmMember { member_id, alarm }) {
            let action = rpc::alarm_request::AlarmAction::Activate as i32;
            let raise = rpc::AlarmRequest { action, member_id, alarm };
            let request = rpc::InternalRaftRequest { alarm: Some(raise), ..Default::default() };
            if let Err(status) = self.propose(request).await {
                tracing::warn!(error = %status.message(), "failed to raise the NOSPACE alarm");
            }
        }
        Err(status::of(Error::NoSpace))
    }

    /// Whether some member has raised the NOSPACE alarm.
    pub fn is_full(&self) -> bool {
        let nospace = rpc::AlarmType::Nospace as i32;
        self.node.alarms().iter().any(|raised| raised.alarm == nospace)
    }

    /// Checks the size and proposes.
    pub async fn propose(
        &self,
        request: rpc::InternalRaftRequest,
    ) -> std::result::Result<Reply, Status> {
        self.check_size(&request).map_err(status::of)?;
        self.node.propose(request).await.map_err(status::of)
    }

    /// Refuses what is too large for the log.
    pub fn check_size(&self, request: &rpc::InternalRaftRequest) -> Result<()> {
        let (member, max) = (self.node.member_id(), self.options.max_request_bytes);
        validate::raft_request_size(request, member, max)
    }
}

/// The status for a reply that does not belong to its request: a bug of this server.
pub fn unexpected(reply: &Reply) -> Status {
    tracing::error!(?reply, "a request was answered with another request's reply");
    Status::internal("etcdserver: unexpected reply")
}
