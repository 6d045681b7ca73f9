//! The server's configuration, typed, and etcd's rules about which settings go together.
//! Uses: base, obs (log lines)

mod build;
mod checks;
mod start;
mod words;

pub use start::parse_cluster;
pub use words::{
    AutoCompaction, ClusterState, MetricsDetail, TlsConfig, TlsVersion, V2Deprecation,
};

use crate::base::url::Url;
use crate::obs::log::{LogConfig, Note};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the server is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's name.
    pub name: String,
    /// Data directory; `<name>.etcd` unless given.
    pub data_dir: PathBuf,
    /// Separate directory for the log, if given.
    pub wal_dir: Option<PathBuf>,
    /// Peer listeners, sorted.
    pub listen_peer_urls: Vec<Url>,
    /// Client listeners, sorted.
    pub listen_client_urls: Vec<Url>,
    /// HTTP-only client listeners; not empty: the client listeners serve gRPC only.
    pub listen_client_http_urls: Vec<Url>,
    /// Listeners for metrics and health only.
    pub listen_metrics_urls: Vec<Url>,
    /// Peer addresses of this member, sorted.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// Client addresses of this member, sorted.
    pub advertise_client_urls: Vec<Url>,
    /// `--initial-cluster` as given.
    pub initial_cluster_text: String,
    /// Members in the order they were given, each with sorted URLs; empty if the text is bad,
    /// which `check_bootstrap` reports when it matters.
    pub initial_cluster: Vec<(String, Vec<Url>)>,
    /// New or existing.
    pub initial_cluster_state: ClusterState,
    /// Bootstrap token; may be empty.
    pub initial_cluster_token: String,
    /// Discovery URL (not implemented; empty: none).
    pub discovery: String,
    /// Discovery domain (not implemented; empty: none).
    pub discovery_srv: String,
    /// One raft tick.
    pub heartbeat_interval_ms: u64,
    /// Election timeout.
    pub election_timeout_ms: u64,
    /// Skip most of the first election timeout.
    pub initial_election_tick_advance: bool,
    /// Raft pre-vote.
    pub pre_vote: bool,
    /// Applied entries between snapshots.
    pub snapshot_count: u64,
    /// Entries kept for slow followers after a snapshot.
    pub snapshot_catchup_entries: u64,
    /// Quota as given: 0 means the default, negative means none.
    pub quota_backend_bytes: i64,
    /// Longest time before a backend commit, if given.
    pub backend_batch_interval: Option<Duration>,
    /// Most operations in a backend batch, if given.
    pub backend_batch_limit: Option<usize>,
    /// Most operations of one transaction.
    pub max_txn_ops: usize,
    /// Largest request.
    pub max_request_bytes: usize,
    /// Most streams per client connection.
    pub max_concurrent_streams: u32,
    /// Snapshot files to keep; 0: all.
    pub max_snapshots: usize,
    /// Log files to keep; 0: all.
    pub max_wals: usize,
    /// Serve the JSON gateway.
    pub enable_grpc_gateway: bool,
    /// Shortest ping interval a client may use.
    pub grpc_keepalive_min_time: Duration,
    /// Interval of the server's pings; zero: the default of both.
    pub grpc_keepalive_interval: Duration,
    /// How long a ping may stay unanswered; zero: the default of both.
    pub grpc_keepalive_timeout: Duration,
    /// SO_REUSEPORT on listeners.
    pub socket_reuse_port: bool,
    /// SO_REUSEADDR on listeners.
    pub socket_reuse_address: bool,
    /// Read timeout of peer connections.
    pub raft_read_timeout: Duration,
    /// Write timeout of peer connections.
    pub raft_write_timeout: Duration,
    /// TLS towards clients.
    pub client_tls: TlsConfig,
    /// TLS between peers.
    pub peer_tls: TlsConfig,
    /// Years of a self-signed certificate.
    pub self_signed_cert_validity: u32,
    /// Allowed browser origins; `*` allows any.
    pub cors: BTreeSet<String>,
    /// Allowed Host names for plain HTTP; `*` allows any.
    pub host_whitelist: BTreeSet<String>,
    /// Kind of auth token and its options.
    pub auth_token: String,
    /// bcrypt cost.
    pub bcrypt_cost: u32,
    /// Life of a simple token.
    pub auth_token_ttl: Duration,
    /// Auto compaction.
    pub auto_compaction: AutoCompaction,
    /// Refuse membership changes that lose quorum.
    pub strict_reconfig_check: bool,
    /// Make a one-member cluster out of the data.
    pub force_new_cluster: bool,
    /// Do not fsync.
    pub unsafe_no_fsync: bool,
    /// Serve the v2 API.
    pub enable_v2: bool,
    /// Stage of the v2 store's removal.
    pub v2_deprecation: V2Deprecation,
    /// Profiles wanted (no effect).
    pub enable_pprof: bool,
    /// Detail of the metrics.
    pub metrics: MetricsDetail,
    /// Level, outputs and rotation of the log.
    pub log: LogConfig,
    /// Check data before serving.
    pub experimental_initial_corrupt_check: bool,
    /// Interval of the data check; zero: none.
    pub experimental_corrupt_check_time: Duration,
    /// Compare compaction hashes.
    pub experimental_compact_hash_check_enabled: bool,
    /// Interval of comparing compaction hashes.
    pub experimental_compact_hash_check_time: Duration,
    /// Checkpoint leases.
    pub experimental_enable_lease_checkpoint: bool,
    /// Store lease checkpoints.
    pub experimental_enable_lease_checkpoint_persist: bool,
    /// Revisions per step of a compaction.
    pub experimental_compaction_batch_limit: usize,
    /// Pause between steps of a compaction.
    pub experimental_compaction_sleep_interval: Duration,
    /// Interval of watch progress notices.
    pub experimental_watch_progress_notify_interval: Duration,
    /// Interval of looking at a downgrade.
    pub experimental_downgrade_check_time: Duration,
    /// Slow-apply warning threshold.
    pub experimental_warning_apply_duration: Duration,
    /// Defragment at boot if it frees this many MB; 0: never.
    pub experimental_bootstrap_defrag_threshold_megabytes: u64,
    /// Health says not serving while defragmenting.
    pub experimental_stop_grpc_service_on_defrag: bool,
    /// The file the configuration came from, if it came from one.
    pub config_file: Option<String>,
    /// What to log once the log is open, in order.
    pub startup_notes: Vec<Note>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Found while verifying flags; etcd logs a warning.
    Flags(String),
    /// As `Flags`, for advertise-client-urls, which etcd warns about twice.
    AdvertiseUnset,
    /// etcd panics.
    Panic(String),
    /// etcd prints just this text.
    Plain(String),
    /// This variable's flag is given as well.
    Shadowed(String),
    /// Found while starting; etcd logs a fatal line.
    Start(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Refusal {
        Refusal::Flags(text)
    }
}

/// Text of the missing advertise-client-urls.
pub const ADVERTISE_UNSET: &str =
    "--advertise-client-urls is required when --listen-client-urls is set explicitly";
