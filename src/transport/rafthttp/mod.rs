//! etcd's peer protocol: raft messages over long-lived HTTP/1.1 responses, which each side dials
//! for itself, and over single POSTs when there is no stream.
//! Uses: base, obs, pb

mod client;
pub mod codec;
mod connect;
mod hashkv;
mod peer;
mod pool;
mod queue;
mod receive;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use client::{ANSWER_BYTES_MAX, Member, get_downgrade_enabled, get_members, get_version};
pub use connect::{Connect, Connecting, Io, PlainConnect};
pub use hashkv::{HashError, PeerHash, get_hash_kv};
pub use pool::Pool;

use crate::base::ids::{ClusterId, MemberId};
use crate::base::url::Url;
use crate::pb::raftpb::Message;
use peer::{Peer, Remote};

/// Pause between two dials of one stream (etcd: DialRetryFrequency).
const DIAL_RETRY: Duration = Duration::from_millis(100);
/// Pause between two probes of a peer (etcd: proberInterval).
const PROBE_INTERVAL: Duration = Duration::from_secs(4);
/// Messages queued for one stream (etcd: streamBufSize).
const STREAM_QUEUE_MAX: usize = 4096;
/// Messages queued for single POSTs to one member (etcd: pipelineBufSize).
const PIPELINE_QUEUE_MAX: usize = 64;
/// POSTs to one member in flight (etcd: connPerPipeline).
const PIPELINE_CONNECTIONS: usize = 4;
/// Bytes of one queue: etcd counts messages only, and 4096 full appends would be 4 GiB.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages of one stream that raft may not have taken yet; with more the stream is not read.
const STEPS_PENDING_MAX: usize = 64;
/// Bytes of such messages.
const STEPS_PENDING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes after which a batch is handed to the connection.
const FLUSH_BYTES: usize = 256 * 1024;
/// Senders that are not members and may still be answered; their number comes from the network.
const REMOTES_MAX: usize = 64;
/// Time for a POST to be answered beyond the election timeout: a snapshot takes long to apply.
const PIPELINE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a transport has to know of its member.
pub struct Config {
    /// The local member.
    pub local: MemberId,
    /// Its cluster: peers of another one are refused.
    pub cluster: ClusterId,
    /// Advertised peer URLs, told to peers that do not know the member yet.
    pub local_urls: Vec<String>,
    /// How connections to peers are opened.
    pub connector: Arc<dyn Connect>,
    /// Bound of one connection attempt, TLS included.
    pub dial_timeout: Duration,
    /// The member's election timeout.
    pub election_timeout: Duration,
    /// `--raft-read-timeout`: without a byte for this long a stream is taken for dead; a third of
    /// it is the pause after which an idle stream gets a heartbeat (etcd v3.5.17
    /// `rafthttp/stream.go`). All members should have the same.
    pub read_timeout: Duration,
    /// `--raft-write-timeout`: a write that cannot finish for this long ends its stream.
    pub write_timeout: Duration,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Its sender was removed from the cluster.
    #[error("cannot process message from removed member")]
    Removed,
    /// It is for another member.
    #[error("cannot process message to mismatch member")]
    Mismatch,
    /// The member is stopping.
    #[error("raft: stopped")]
    Stopped,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What [`RaftSink::step`] returns.
pub type Stepping = Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>>;

/// The member's raft, as the transport needs it. Calls other than `step` must not block.
pub trait RaftSink: Send + Sync + 'static {
    /// Hands the message over at once, before the future is polled, and resolves when the actor has
    /// taken it. [`StepError::Stopped`] and [`StepError::Failed`] close the stream it came from.
    fn step(&self, message: Message) -> Stepping;
    /// The same for a message whose database was received.
    fn step_snapshot(&self, message: Message) -> Stepping;
    /// Opens a place for the database that comes with a snapshot at `index`. May block.
    fn receive(&self, index: u64) -> Result<Box<dyn Incoming>, String>;
    /// A message to `id` was lost.
    fn unreachable(&self, id: MemberId);
    /// Whether `id` was a member and is none any more.
    fn is_removed(&self, id: MemberId) -> bool;
    /// Whether `id` is a member.
    fn is_known(&self, id: MemberId) -> bool;
    /// A snapshot to `id` was delivered, or not; told once for each.
    fn snapshot_status(&self, id: MemberId, delivered: bool);
    /// `peer` says that the local member was removed from the cluster.
    fn removed_by_peer(&self, _peer: MemberId) {}
}

/// The database that comes with a snapshot. Dropped before its end, it leaves nothing. Calls block.
pub trait Incoming: Send + 'static {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// That was all: it is on the disk, and sound, when this returns.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// A snapshot for a peer. Calls block, but not for long.
pub trait Outgoing: Send + 'static {
    /// Comes a step nearer to being ready: then the message, and the bytes of the database.
    fn prepare(&mut self) -> Result<Option<(Message, u64)>, String>;
    /// The next bytes of the database, at most so many; none at its end.
    fn read(&mut self, bytes: usize) -> Result<Bytes, String>;
}

/// The member's end of all peer connections. Clones share it; [`Transport::stop`] ends it.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    state: RwLock<State>,
}

/// What every task of the transport shares.
struct Context {
    config: Config,
    sink: Arc<dyn RaftSink>,
    runtime: Handle,
    /// For each snapshot that is being received.
    receiving: Semaphore,
}

#[derive(Default)]
struct State {
    peers: HashMap<MemberId, Arc<Peer>>,
    remotes: HashMap<MemberId, Remote>,
    stopped: bool,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("peers", &self.peers()).finish_non_exhaustive()
    }
}

impl Transport {
    /// A transport without peers, whose tasks run on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(config: Config, sink: Arc<dyn RaftSink>) -> Transport {
        Transport::on(Handle::current(), config, sink)
    }

    /// As [`Transport::new`], on a given runtime.
    pub fn on(runtime: Handle, config: Config, sink: Arc<dyn RaftSink>) -> Transport {
        let receiving = Semaphore::new(receive::RECEIVING_MAX);
        let context = Arc::new(Context { config, sink, runtime, receiving });
        Transport { inner: Arc::new(Inner { context, state: RwLock::default() }) }
    }

    /// Starts to dial `id` and accepts its streams. Nothing if it is there or has no URL.
    pub fn add_peer(&self, id: MemberId, urls: Vec<Url>) {
        let mut state = self.inner.state.write();
        if state.stopped || state.peers.contains_key(&id) || id == self.inner.context.config.local {
            return;
        }
        if urls.is_empty() {
            tracing::warn!("remote-peer-id" = %id, "ignored remote peer without URLs");
            return;
        }
        state.remotes.remove(&id);
        let shown: Vec<_> = urls.iter().map(ToString::to_string).collect();
        let peer = Peer::start(Arc::clone(&self.inner.context), id, urls);
        state.peers.insert(id, Arc::new(peer));
        tracing::info!(
            "local-member-id" = %self.inner.context.config.local,
            "remote-peer-id" = %id,
            "remote-peer-urls" = ?shown,
            "added remote peer"
        );
    }

    /// Closes the streams of `id` and forgets it.
    pub fn remove_peer(&self, id: MemberId) {
        let removed = self.inner.state.write().peers.remove(&id);
        if let Some(peer) = removed {
            peer.stop();
            tracing::info!(
                "local-member-id" = %self.inner.context.config.local,
                "removed-remote-peer-id" = %id,
                "removed remote peer"
            );
        }
    }

    /// Dials `id` at other URLs from the next connection on.
    pub fn update_peer(&self, id: MemberId, urls: Vec<Url>) {
        let Some(peer) = self.peer(id) else { return };
        if urls.is_empty() {
            return;
        }
        let shown: Vec<_> = urls.iter().map(ToString::to_string).collect();
        peer.update(urls);
        tracing::info!(
            "local-member-id" = %self.inner.context.config.local,
            "updated-remote-peer-id" = %id,
            "updated-remote-peer-urls" = ?shown,
            "updated remote peer"
        );
    }

    /// Queues each message for its receiver and never blocks. A full queue drops the message and
    /// tells the sink that the peer is unreachable.
    pub fn send(&self, messages: Vec<Message>) {
        let state = self.inner.state.read();
        for message in messages {
            let to = MemberId(message.to);
            if let Some(peer) = state.peers.get(&to) {
                peer.send(message);
            } else if let Some(remote) = state.remotes.get(&to) {
                remote.send(message);
            } else if message.to != 0 {
                tracing::debug!(
                    "type" = ?message.msg_type(),
                    "unknown-target-peer-id" = %to,
                    "ignored message send request; unknown remote peer target"
                );
            }
        }
    }

    /// Sends a snapshot, unless one is on its way. The sink is told what became of it.
    pub fn send_snapshot(&self, to: MemberId, outgoing: Box<dyn Outgoing>) {
        let state = self.inner.state.read();
        if let Some(peer) = state.peers.get(&to) {
            peer.send_snapshot(outgoing);
        } else if let Some(remote) = state.remotes.get(&to) {
            remote.send_snapshot(outgoing);
        } else {
            drop(state);
            self.inner.context.sink.snapshot_status(to, false);
        }
    }

    /// Since when `id` is reachable; none while it is not.
    pub fn active_since(&self, id: MemberId) -> Option<Instant> {
        self.peer(id).and_then(|peer| peer.active_since())
    }

    /// Whose streams are dialled and accepted.
    pub fn peers(&self) -> Vec<MemberId> {
        self.inner.state.read().peers.keys().copied().collect()
    }

    /// How many peers are reachable.
    pub fn active_peers(&self) -> usize {
        let state = self.inner.state.read();
        state.peers.values().filter(|peer| peer.active_since().is_some()).count()
    }

    /// Round trip of the last probe of `id`.
    pub fn round_trip(&self, id: MemberId) -> Option<Duration> {
        self.peer(id).and_then(|peer| peer.round_trip())
    }

    /// Closes every stream and refuses peers from now on.
    pub fn stop(&self) {
        let (peers, remotes) = {
            let mut state = self.inner.state.write();
            state.stopped = true;
            (std::mem::take(&mut state.peers), std::mem::take(&mut state.remotes))
        };
        for peer in peers.values() {
            peer.stop();
        }
        drop(remotes);
    }

    /// The raft endpoints, to be served on the peer URLs next to the others.
    pub fn router(&self) -> axum::Router {
        server::router(self.clone())
    }

    fn peer(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.inner.state.read().peers.get(&id).cloned()
    }

    /// Whether `id` is a member, or may be answered as if it were one.
    fn knows(&self, id: MemberId) -> bool {
        let known = || self.inner.state.read().remotes.contains_key(&id);
        self.inner.context.sink.is_known(id) || known()
    }

    /// Lets a sender that is no peer be answered, as etcd does for members it does not know yet.
    /// Nothing if it is known, was removed, or its URLs, joined by commas, make no sense.
    pub fn add_remote(&self, id: MemberId, urls: &str) {
        let context = &self.inner.context;
        if id == context.config.local || id.0 == 0 || context.sink.is_removed(id) {
            return;
        }
        let known = |state: &State| {
            let there = state.peers.contains_key(&id) || state.remotes.contains_key(&id);
            state.stopped || there || state.remotes.len() >= REMOTES_MAX
        };
        if known(&self.inner.state.read()) {
            return;
        }
        let Some(parsed) = urls.split(',').map(wire::parse_url).collect::<Option<Vec<_>>>() else {
            tracing::debug!("remote-peer-id" = %id, urls, "ignored malformed peer URLs");
            return;
        };
        let mut state = self.inner.state.write();
        if known(&state) {
            return;
        }
        state.remotes.insert(id, Remote::start(Arc::clone(context), id, parsed));
        tracing::info!(
            "local-member-id" = %context.config.local,
            "remote-peer-id" = %id,
            "remote-peer-urls" = urls,
            "added new remote peer"
        );
    }
}
