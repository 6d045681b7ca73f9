//! The small adapters between layers that do not know each other.

use crate::actors::core::{LeaseForward, Shared};
use crate::actors::corruption::{AskError, PeerHashes};
use crate::actors::handle::Answer;
use crate::actors::membership::Peering;
use crate::actors::raft::{self, Peers, RaftActor};
use crate::actors::store::{Merged, Snapshots};
use crate::base::clock::{Clock, SystemClock};
use crate::base::error::{Error, Result};
use crate::base::ids::{ClusterId, MemberId};
use crate::base::url::Url;
use crate::cli::config::{Config, V2Deprecation};
use crate::cluster::members::{Member, PeerChange};
use crate::cluster::state::Cluster;
use crate::mvcc;
use crate::mvcc::corrupt::Told;
use crate::node::boot;
use crate::node::join::Ask;
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb as rpc;
use crate::pb::leasepb;
use crate::pb::raftpb::Message;
use crate::storage::engine::Current;
use crate::storage::image::{Image, ImageError, Sized, Sizing};
use crate::storage::snap;
use crate::transport::rafthttp::{self, HashError, PeerHash, RaftSink, StepError, Transport};
use crate::transport::tls::{self, TlsInfo};
use crate::v2;
use actix::Addr;
use bytes::Bytes;
use prost::Message as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Rows of a snapshot's first pass between looks at whether its client is still there.
const SIZING_ROWS: usize = 65_536;
/// A lease call to the leader ends after this time; the caller tries again.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// A promotion takes as long as a change of members; the caller's request timeout ends it before.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(60);

/// The raft crate's log lines, at debug level.
pub fn raft_logger() -> slog::Logger {
    struct ToTracing;
    impl slog::Drain for ToTracing {
        type Ok = ();
        type Err = slog::Never;

        fn log(
            &self,
            record: &slog::Record<'_>,
            _: &slog::OwnedKVList,
        ) -> std::result::Result<(), slog::Never> {
            tracing::debug!(target: "raft", "{}", record.msg());
            Ok(())
        }

        fn is_enabled(&self, level: slog::Level) -> bool {
            level.is_at_least(slog::Level::Debug) && tracing::enabled!(tracing::Level::DEBUG)
        }
    }
    slog::Logger::root(ToTracing, slog::o!())
}

/// Outbound peer connections, with TLS where the URL asks for it.
pub struct Connector(tls::Connector);

impl Connector {
    /// With the peer TLS flags, or none.
    pub fn new(peer: &Option<Arc<TlsInfo>>) -> Arc<Connector> {
        let info = peer.clone().unwrap_or_default();
        Arc::new(Connector(tls::Connector::new(info, Vec::new())))
    }
}

/// Questions to members before there is a transport. They block, so they must not be asked on a
/// thread of the runtime that answers them.
pub struct AskPeers {
    connector: Arc<Connector>,
    runtime: tokio::runtime::Handle,
}

impl AskPeers {
    /// On the current runtime.
    pub fn new(connector: Arc<Connector>) -> AskPeers {
        AskPeers { connector, runtime: tokio::runtime::Handle::current() }
    }
}

impl Ask for AskPeers {
    fn members(
        &self,
        urls: &[Url],
        wait: Duration,
    ) -> std::result::Result<(ClusterId, Vec<rafthttp::Member>), String> {
        let asked = rafthttp::get_members(self.connector.as_ref(), urls, wait);
        self.runtime.block_on(asked).map_err(|error| error.to_string())
    }

    fn version(
        &self,
        urls: &[Url],
        wait: Duration,
    ) -> std::result::Result<(String, String), String> {
        let asked = rafthttp::get_version(self.connector.as_ref(), urls, wait);
        self.runtime.block_on(asked).map_err(|error| error.to_string())
    }

    fn downgrade_enabled(&self, urls: &[Url], wait: Duration) -> std::result::Result<bool, String> {
        let asked = rafthttp::get_downgrade_enabled(self.connector.as_ref(), urls, wait);
        self.runtime.block_on(asked).map_err(|error| error.to_string())
    }
}

impl rafthttp::Connect for Connector {
    fn connect(&self, url: &Url) -> rafthttp::Connecting {
        let connecting = self.0.connect(url);
        Box::pin(async move {
            let io = connecting.await?;
            Ok(Box::new(io) as Box<dyn rafthttp::Io>)
        })
    }
}

/// Messages from peers on their way to RaftActor.
pub struct Sink {
    shared: Arc<Shared>,
    raft: OnceLock<Addr<RaftActor>>,
    /// `member/snap`.
    snap_dir: PathBuf,
    v2_deprecation: V2Deprecation,
}

impl Sink {
    /// Refuses messages until [`Sink::connect`].
    pub fn new(shared: Arc<Shared>, snap_dir: PathBuf, v2_deprecation: V2Deprecation) -> Sink {
        Sink { shared, raft: OnceLock::new(), snap_dir, v2_deprecation }
    }

    /// Raft may take a snapshot only if the member can follow: a tree that cannot be read would be
    /// its end.
    fn check_snapshot(&self, message: &Message) -> std::result::Result<(), String> {
        let snapshot = message.get_snapshot();
        let members = snapshot.get_metadata().get_conf_state();
        let cluster = Cluster::from_snapshot(&snapshot.data, members)?;
        boot::check_v2_keys(self.v2_deprecation, &cluster)
    }

    /// From now on messages are taken.
    pub fn connect(&self, raft: Addr<RaftActor>) {
        let first = self.raft.set(raft).is_ok();
        assert!(first, "RaftActor is connected once");
    }
}

impl RaftSink for Sink {
    fn step(&self, message: Message) -> rafthttp::Stepping {
        if self.shared.members().is_removed(MemberId(message.from)) {
            return Box::pin(async { Err(StepError::Removed) });
        }
        if message.to != self.shared.member_id.0 {
            return Box::pin(async { Err(StepError::Mismatch) });
        }
        let Some(raft) = self.raft.get() else {
            let error = StepError::Failed("raft has not started".to_owned());
            return Box::pin(async { Err(error) });
        };
        let (done, answer) = oneshot::channel();
        raft.do_send(raft::Step { message, done });
        Box::pin(async move {
            match answer.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(refused)) => {
                    tracing::warn!(error = %refused, "refused a message from a peer");
                    Err(StepError::Failed(refused))
                }
                Err(_) => Err(StepError::Stopped),
            }
        })
    }

    fn step_snapshot(&self, message: Message) -> rafthttp::Stepping {
        match self.check_snapshot(&message) {
            Ok(()) => self.step(message),
            Err(error) => Box::pin(async { Err(StepError::Failed(error)) }),
        }
    }

    fn receive(&self, index: u64) -> std::result::Result<Box<dyn rafthttp::Incoming>, String> {
        let received = snap::Received::begin(&self.snap_dir, index);
        Ok(Box::new(IncomingDatabase(received.map_err(|error| error.to_string())?)))
    }

    fn snapshot_status(&self, to: MemberId, delivered: bool) {
        if let Some(raft) = self.raft.get() {
            raft.do_send(raft::SnapStatus { to, delivered });
        }
    }

    fn unreachable(&self, id: MemberId) {
        if let Some(raft) = self.raft.get() {
            raft.do_send(raft::Unreachable(id));
        }
    }

    fn is_removed(&self, id: MemberId) -> bool {
        self.shared.members().is_removed(id)
    }

    fn is_known(&self, id: MemberId) -> bool {
        self.shared.members().get(id).is_some()
    }

    fn removed_by_peer(&self, _peer: MemberId) {
        self.shared.publish_removed();
    }
}

/// A leader's database on its way into a file.
struct IncomingDatabase(snap::Received);

impl rafthttp::Incoming for IncomingDatabase {
    fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), String> {
        self.0.write(bytes).map_err(|error| error.to_string())
    }

    fn finish(self: Box<Self>) -> std::result::Result<(), String> {
        self.0.finish().map_err(|error| error.to_string())
    }
}

/// A snapshot on its way to a peer.
struct OutgoingSnapshot {
    message: Message,
    tree: v2::Image,
    database: ImageReader,
}

impl rafthttp::Outgoing for OutgoingSnapshot {
    fn prepare(&mut self) -> std::result::Result<Option<(Message, u64)>, String> {
        let Some(bytes) = crate::grpc::Image::prepare(&mut self.database)? else { return Ok(None) };
        let mut message = std::mem::take(&mut self.message);
        message.mut_snapshot().data = self.tree.json().into();
        Ok(Some((message, bytes)))
    }

    fn read(&mut self, bytes: usize) -> std::result::Result<Bytes, String> {
        crate::grpc::Image::read(&mut self.database, bytes)
    }
}

/// The peer transport of a member, without peers yet.
pub fn transport(
    config: &Config,
    ids: (MemberId, ClusterId),
    connector: Arc<Connector>,
    sink: Arc<Sink>,
) -> Transport {
    let election_timeout = Duration::from_millis(config.election_timeout_ms);
    let local_urls = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
    Transport::new(
        rafthttp::Config {
            local: ids.0,
            cluster: ids.1,
            local_urls,
            connector,
            dial_timeout: Duration::from_secs(1) + election_timeout,
            election_timeout,
            read_timeout: config.raft_read_timeout,
            write_timeout: config.raft_write_timeout,
        },
        sink,
    )
}

/// RaftActor's and StoreActor's side of the transport.
#[derive(Clone)]
pub struct TransportPeers {
    transport: Transport,
    local: MemberId,
}

impl TransportPeers {
    /// Follows membership for everyone but `local`.
    pub fn new(transport: Transport, local: MemberId) -> TransportPeers {
        TransportPeers { transport, local }
    }
}

impl Peers for TransportPeers {
    fn send(&self, messages: Vec<Message>) {
        self.transport.send(messages);
    }

    fn change(&self, change: PeerChange) {
        match change {
            PeerChange::Add(member) if member.id != self.local.0 => {
                self.transport.add_peer(MemberId(member.id), parse_urls(&member.peer_urls));
            }
            PeerChange::Update(member) if member.id != self.local.0 => {
                self.transport.update_peer(MemberId(member.id), parse_urls(&member.peer_urls));
            }
            PeerChange::Remove(id) if id != self.local => self.transport.remove_peer(id),
            _ => {}
        }
    }

    fn replace(&self, members: Vec<Member>) {
        let is_member = |id: &MemberId| members.iter().any(|member| member.id == id.0);
        for id in self.transport.peers().iter().filter(|id| !is_member(id)) {
            self.transport.remove_peer(*id);
        }
        for member in members {
            self.change(PeerChange::Update(member.clone()));
            self.change(PeerChange::Add(member));
        }
    }
}

impl Snapshots for TransportPeers {
    fn send(&self, Merged { message, tree, view }: Merged) {
        let to = MemberId(message.to);
        let database = ImageReader::Sizing(Sizing::new(view).ok().map(Box::new));
        let outgoing = OutgoingSnapshot { message, tree, database };
        self.transport.send_snapshot(to, Box::new(outgoing));
    }
}

fn parse_urls(urls: &[String]) -> Vec<Url> {
    urls.iter().filter_map(|url| Url::parse(url).ok()).collect()
}

/// The store, as gRPC reads it.
pub struct Reads {
    pub reader: mvcc::Reader,
    pub engine: Current,
    pub quota: crate::apply::QuotaReader,
}

impl crate::grpc::Reads for Reads {
    fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        self.reader.range(request)
    }

    fn txn_readonly(&self, request: &rpc::TxnRequest) -> Result<rpc::TxnResponse> {
        crate::apply::txn_readonly(&self.reader, request)
    }

    fn revision(&self) -> i64 {
        self.reader.revision()
    }

    fn hash_kv(&self, rev: i64) -> Result<(u32, i64, i64)> {
        let begin = SystemClock.now();
        let hash = self.reader.hash_kv(rev);
        metrics().hash_rev_duration.observe(begin.elapsed().as_secs_f64());
        hash
    }

    fn hash(&self) -> Result<u32> {
        let begin = SystemClock.now();
        let hash = self.reader.hash();
        metrics().hash_duration.observe(begin.elapsed().as_secs_f64());
        hash
    }

    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn size_in_use_bytes(&self) -> u64 {
        self.reader.size_in_use_bytes()
    }

    fn fits(&self, cost: u64) -> bool {
        self.quota.fits(cost)
    }

    fn image(&self) -> std::result::Result<Box<dyn crate::grpc::Image>, String> {
        let text = |error: ImageError| error.to_string();
        let view = self.engine.now().view().map_err(|error| error.to_string())?;
        Ok(Box::new(ImageReader::Sizing(Some(Box::new(Sizing::new(view).map_err(text)?)))))
    }
}

/// An image on its way to gRPC.
enum ImageReader {
    /// `None` after an error.
    Sizing(Option<Box<Sizing>>),
    Ready(Box<Image>),
}

impl crate::grpc::Image for ImageReader {
    fn prepare(&mut self) -> std::result::Result<Option<u64>, String> {
        let sizing = match self {
            ImageReader::Ready(image) => return Ok(Some(image.left())),
            ImageReader::Sizing(sizing) => sizing.take().ok_or("the image has failed before")?,
        };
        match sizing.advance(SIZING_ROWS).map_err(|error| error.to_string())? {
            Sized::More(sizing) => *self = ImageReader::Sizing(Some(Box::new(sizing))),
            Sized::Done(image) => {
                let bytes = image.left();
                *self = ImageReader::Ready(Box::new(image));
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn read(&mut self, bytes: usize) -> std::result::Result<Bytes, String> {
        match self {
            ImageReader::Ready(image) => image.read(bytes).map_err(|error| error.to_string()),
            ImageReader::Sizing(_) => Err("the image is not ready".to_owned()),
        }
    }
}

/// Peers' hashes, over the peer port.
pub struct HashPeers {
    pub connector: Arc<Connector>,
    pub cluster: ClusterId,
    pub request_timeout: Duration,
}

impl PeerHashes for HashPeers {
    fn ask(
        &self,
        url: String,
        revision: i64,
    ) -> Answer<'static, std::result::Result<Told, AskError>> {
        let connector = Arc::clone(&self.connector);
        let (cluster, wait) = (self.cluster, self.request_timeout);
        Box::pin(async move {
            let url = Url::parse(&url).map_err(|error| AskError::Other(error.to_string()))?;
            let asked = rafthttp::get_hash_kv(&*connector, &url, cluster, revision, wait);
            let late = || Err(HashError::Other("context deadline exceeded".to_owned()));
            let told = tokio::time::timeout(wait, asked).await.unwrap_or_else(|_| late());
            let PeerHash { hash, compact_revision, revision } = told.map_err(ask_error)?;
            Ok(Told { hash, compact_revision, revision })
        })
    }
}

fn ask_error(error: HashError) -> AskError {
    match error {
        HashError::Compacted => AskError::Compacted,
        HashError::FutureRev => AskError::FutureRev,
        HashError::ClusterIdMismatch => AskError::ClusterIdMismatch,
        HashError::Other(text) => AskError::Other(text),
    }
}

/// Calls of a follower to its leader, over the peer port, and what the transport knows of peers.
pub struct Forward {
    peers: rafthttp::Pool,
    transport: Transport,
}

impl Forward {
    /// Over the peers' connections.
    pub fn new(connector: Arc<Connector>, transport: Transport) -> Forward {
        Forward { peers: rafthttp::Pool::new(connector), transport }
    }

    async fn post(&self, urls: &[String], path: &str, body: Vec<u8>) -> Result<Bytes> {
        for url in parse_urls(urls) {
            let body = Bytes::from(body.clone());
            let kind = "application/protobuf";
            let answer = self.peers.post(&url, path, kind, body, FORWARD_TIMEOUT).await;
            match answer {
                Ok((status, body)) if status.is_success() => return Ok(body),
                Ok((status, _)) if status.as_u16() == 404 => return Err(Error::LeaseNotFound),
                Ok(_) | Err(_) => {}
            }
        }
        Err(Error::Timeout)
    }
}

/// What a leader's answer about a promotion means; `Timeout` if it says nothing about it (etcd
/// v3.5.17 `etcdserver/cluster_util.go` promoteMemberHTTP).
fn promotion(status: u16, body: &[u8]) -> Result<Vec<rpc::Member>> {
    let text = String::from_utf8_lossy(body);
    match status {
        200 => serde_json::from_slice::<Vec<Member>>(body)
            .map(|members| members.iter().map(Member::to_wire).collect())
            .map_err(|_| Error::Timeout),
        404 => Err(Error::MemberNotFound),
        412 if text.contains("in sync with leader") => Err(Error::LearnerNotReady),
        412 if text.contains("only promote a learner") => Err(Error::MemberNotLearner),
        _ => Err(Error::Timeout),
    }
}

impl Peering for Forward {
    fn active_since(&self, id: MemberId) -> Option<Instant> {
        self.transport.active_since(id)
    }

    fn promote(
        &self,
        leader_urls: Vec<String>,
        id: MemberId,
    ) -> Answer<'_, Result<Vec<rpc::Member>>> {
        Box::pin(async move {
            let path = format!("/members/promote/{}", id.0);
            for url in parse_urls(&leader_urls) {
                let kind = "application/octet-stream";
                let wait = PROMOTE_TIMEOUT;
                let answer = self.peers.post(&url, &path, kind, Bytes::new(), wait).await;
                let Ok((status, body)) = answer else { continue };
                match promotion(status.as_u16(), &body) {
                    Err(Error::Timeout) => {}
                    verdict => return verdict,
                }
            }
            Err(Error::Timeout)
        })
    }
}

impl LeaseForward for Forward {
    fn renew(&self, leader_urls: Vec<String>, id: i64) -> Answer<'_, Result<i64>> {
        Box::pin(async move {
            let body = rpc::LeaseKeepAliveRequest { id }.encode_to_vec();
            let answer = self.post(&leader_urls, "/leases", body).await?;
            let answer = rpc::LeaseKeepAliveResponse::decode(answer).map_err(|_| Error::Timeout)?;
            Ok(answer.ttl)
        })
    }

    fn time_to_live(
        &self,
        leader_urls: Vec<String>,
        request: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>> {
        Box::pin(async move {
            let body = leasepb::LeaseInternalRequest { lease_time_to_live_request: Some(request) };
            let answer = self.post(&leader_urls, "/leases/internal", body.encode_to_vec()).await?;
            leasepb::LeaseInternalResponse::decode(answer)
                .ok()
                .and_then(|answer| answer.lease_time_to_live_response)
                .ok_or(Error::Timeout)
        })
    }
}
