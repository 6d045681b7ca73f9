//! The server's configuration, typed, and etcd's rules about which settings go together.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::govalue;
use super::values::Values;
use crate::base::url::{self, Url, split_host_port};
use crate::obs::log::{Level, LogConfig, Note, Rotation};

/// Longest election timeout that etcd accepts.
const ELECTION_MS_MAX: u64 = 50_000;
/// Shortest read and write timeout of peer connections.
const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// TLS settings of one side: clients or peers. Empty texts mean "not given".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificate of the listener.
    pub cert_file: String,
    /// Key of the listener.
    pub key_file: String,
    /// Certificate for outgoing connections; empty: `cert_file`.
    pub client_cert_file: String,
    /// Key for outgoing connections; empty: `key_file`.
    pub client_key_file: String,
    /// Authorities to check the other side against.
    pub trusted_ca_file: String,
    /// Whether the other side must show a certificate.
    pub client_cert_auth: bool,
    /// Revoked certificates.
    pub crl_file: String,
    /// Make a self-signed certificate if none is given.
    pub auto_tls: bool,
    /// Common names, one of which the certificate must have (peers only).
    pub allowed_cn: Vec<String>,
    /// Host names, one of which the certificate must be valid for.
    pub allowed_hostname: Vec<String>,
    /// Do not check connecting peers' addresses against their certificates (peers only).
    pub skip_client_san_verification: bool,
    /// TLS 1.2 suites by Go's names; empty: all supported.
    pub cipher_suites: Vec<String>,
    /// Lowest version.
    pub tls_min_version: TlsVersion,
    /// Highest version.
    pub tls_max_version: TlsVersion,
}

impl TlsConfig {
    /// Whether neither a certificate nor a key is given.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_empty() && self.key_file.is_empty()
    }
}

/// A TLS version bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// No bound given.
    #[default]
    Unset,
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

impl TlsVersion {
    fn parse(text: &str) -> Result<TlsVersion, String> {
        match text {
            "" => Ok(TlsVersion::Unset),
            "TLS1.2" => Ok(TlsVersion::V12),
            "TLS1.3" => Ok(TlsVersion::V13),
            _ => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
        }
    }
}

/// Whether the member starts a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Bootstrap.
    New,
    /// Join.
    Existing,
}

/// What auto compaction keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// No auto compaction.
    Off,
    /// Keep this much time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

/// Detail of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsDetail {
    /// Counters only.
    Basic,
    /// With latency histograms of gRPC calls.
    Extensive,
}

/// Stage of the v2 store's removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V2Deprecation {
    /// The v2 store may hold user content.
    NotYet,
    /// User content stops the start.
    WriteOnly,
    /// User content is dropped.
    WriteOnlyDropData,
    /// There is no v2 store.
    Gone,
}

impl V2Deprecation {
    /// The flag's word.
    pub fn as_str(self) -> &'static str {
        match self {
            V2Deprecation::NotYet => "not-yet",
            V2Deprecation::WriteOnly => "write-only",
            V2Deprecation::WriteOnlyDropData => "write-only-drop-data",
            V2Deprecation::Gone => "gone",
        }
    }
}

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
    /// Interval of the server's pings; zero: none.
    pub grpc_keepalive_interval: Duration,
    /// How long a ping may stay unanswered; zero: for ever.
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

/// Go's durations may be negative; every use of them here means zero by that.
fn clamp(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or_default())
}

/// A zero that stands for a default.
fn or_default(value: Duration, default: Duration) -> Duration {
    if value.is_zero() { default } else { value }
}

fn narrow<T: TryFrom<u64>>(value: u64, most: T) -> T {
    T::try_from(value).unwrap_or(most)
}

impl Config {
    /// Makes the configuration out of checked values, with etcd's rules in etcd's order.
    /// Notes go to `notes`, also those that precede a refusal.
    pub fn from_values(v: &Values, notes: &mut Vec<Note>) -> Result<Config, Refusal> {
        let from_file = v.is_set("config-file");
        let log = log_config(v)?;
        check_bind(&v.urls("listen-peer-urls"))?;
        check_bind(&v.urls("listen-client-urls"))?;
        check_bind(&v.urls("listen-client-http-urls"))?;
        if v.text("listen-client-http-urls").is_empty() {
            notes.push(Note::warn(
                "Running http and grpc server on single port. This is not recommended for production.",
            ));
        }
        check_bind(&v.urls("listen-metrics-urls"))?;
        check_hosts("initial-advertise-peer-urls", v)?;
        let advertise_unset = !from_file
            && v.is_set("listen-client-urls")
            && !v.is_set("advertise-client-urls")
            && v.text("proxy") == "off"
            && (v.text("discovery").is_empty() || v.text("discovery-fallback") != "proxy");
        if !advertise_unset {
            check_hosts("advertise-client-urls", v)?;
        }
        let discovery_given =
            ["discovery", "discovery-srv"].iter().any(|name| !v.text(name).is_empty())
                || (!from_file && !v.text("discovery-srv-name").is_empty());
        let cluster_text = match v.text("initial-cluster") {
            _ if discovery_given && !v.is_set("initial-cluster") => "",
            text => text,
        };
        let state = match v.text("initial-cluster-state") {
            "new" | "" => ClusterState::New,
            "existing" => ClusterState::Existing,
            other => return Err(format!("unexpected clusterState {other:?}").into()),
        };
        let ways = [v.text("discovery"), cluster_text, v.text("discovery-srv")];
        if ways.iter().filter(|way| !way.is_empty()).count() > 1 {
            return Err(Refusal::Flags(
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\" or \"discovery-srv\"".into(),
            ));
        }
        check_timing(v)?;
        if advertise_unset {
            return Err(Refusal::AdvertiseUnset);
        }
        let compaction_mode = match (from_file, v.is_set("auto-compaction-mode")) {
            (true, false) => "",
            _ => v.text("auto-compaction-mode"),
        };
        if !["", "periodic", "revision"].contains(&compaction_mode) {
            return Err(format!("unknown auto-compaction-mode {compaction_mode:?}").into());
        }
        check_experimental(v, notes)?;
        let (tls_min, tls_max) = tls_versions(v, from_file)?;

        let name = v.text("name").to_string();
        let advertise_peer = v.urls("initial-advertise-peer-urls");
        let default_cluster = super::flags::find("initial-cluster").map_or("", |f| f.default);
        let initial_cluster_text = if name != "default" && cluster_text == default_cluster {
            let own = if name.is_empty() { "default" } else { &name };
            let pairs: Vec<String> = advertise_peer.iter().map(|u| format!("{own}={u}")).collect();
            pairs.join(",")
        } else {
            cluster_text.to_string()
        };
        let data_dir = match v.text("data-dir") {
            "" => {
                let dir = format!("{name}.etcd");
                notes
                    .push(Note::warn("'data-dir' was empty; using default").text("data-dir", &dir));
                dir
            }
            dir => dir.to_string(),
        };
        let suites = v.list("cipher-suites");
        let tls = |prefix: &str| {
            let text = |name: &str| v.text(&format!("{prefix}{name}")).to_string();
            TlsConfig {
                cert_file: text("cert-file"),
                key_file: text("key-file"),
                client_cert_file: text("client-cert-file"),
                client_key_file: text("client-key-file"),
                trusted_ca_file: text("trusted-ca-file"),
                client_cert_auth: v.bool(&format!("{prefix}client-cert-auth")),
                auto_tls: v.bool(&format!("{prefix}auto-tls")),
                cipher_suites: suites.clone(),
                tls_min_version: tls_min,
                tls_max_version: tls_max,
                ..TlsConfig::default()
            }
        };
        let config = Config {
            data_dir: data_dir.into(),
            wal_dir: Some(v.text("wal-dir")).filter(|d| !d.is_empty()).map(PathBuf::from),
            listen_peer_urls: v.urls("listen-peer-urls"),
            listen_client_urls: v.urls("listen-client-urls"),
            listen_client_http_urls: v.urls("listen-client-http-urls"),
            listen_metrics_urls: v.urls("listen-metrics-urls"),
            initial_advertise_peer_urls: advertise_peer,
            advertise_client_urls: v.urls("advertise-client-urls"),
            initial_cluster: parse_cluster(&initial_cluster_text).unwrap_or_default(),
            initial_cluster_text,
            initial_cluster_state: state,
            initial_cluster_token: v.text("initial-cluster-token").into(),
            discovery: v.text("discovery").into(),
            discovery_srv: v.text("discovery-srv").into(),
            heartbeat_interval_ms: v.u64("heartbeat-interval"),
            election_timeout_ms: v.u64("election-timeout"),
            initial_election_tick_advance: v.bool("initial-election-tick-advance"),
            pre_vote: v.bool("pre-vote"),
            snapshot_count: v.u64("snapshot-count"),
            snapshot_catchup_entries: v.u64("experimental-snapshot-catchup-entries"),
            quota_backend_bytes: v.i64("quota-backend-bytes"),
            backend_batch_interval: Some(clamp(v.nanos("backend-batch-interval")))
                .filter(|d| !d.is_zero()),
            backend_batch_limit: usize::try_from(v.i64("backend-batch-limit"))
                .ok()
                .filter(|n| *n > 0),
            max_txn_ops: narrow(v.u64("max-txn-ops"), usize::MAX),
            max_request_bytes: narrow(v.u64("max-request-bytes"), usize::MAX),
            max_concurrent_streams: narrow(v.u64("max-concurrent-streams"), u32::MAX),
            max_snapshots: narrow(v.u64("max-snapshots"), usize::MAX),
            max_wals: narrow(v.u64("max-wals"), usize::MAX),
            enable_grpc_gateway: v.bool("enable-grpc-gateway"),
            grpc_keepalive_min_time: clamp(v.nanos("grpc-keepalive-min-time")),
            grpc_keepalive_interval: clamp(v.nanos("grpc-keepalive-interval")),
            grpc_keepalive_timeout: clamp(v.nanos("grpc-keepalive-timeout")),
            socket_reuse_port: v.bool("socket-reuse-port"),
            socket_reuse_address: v.bool("socket-reuse-address"),
            raft_read_timeout: clamp(v.nanos("raft-read-timeout")).max(PEER_TIMEOUT_MIN),
            raft_write_timeout: clamp(v.nanos("raft-write-timeout")).max(PEER_TIMEOUT_MIN),
            client_tls: TlsConfig {
                crl_file: v.text("client-crl-file").into(),
                allowed_hostname: v.list("client-cert-allowed-hostname"),
                ..tls("")
            },
            peer_tls: TlsConfig {
                crl_file: v.text("peer-crl-file").into(),
                allowed_cn: v.list("peer-cert-allowed-cn"),
                allowed_hostname: v.list("peer-cert-allowed-hostname"),
                skip_client_san_verification: v
                    .bool("experimental-peer-skip-client-san-verification"),
                ..tls("peer-")
            },
            self_signed_cert_validity: match narrow(v.u64("self-signed-cert-validity"), u32::MAX) {
                0 if from_file => 1,
                years => years,
            },
            cors: v.text("cors").split(',').map(String::from).collect(),
            host_whitelist: v.text("host-whitelist").split(',').map(String::from).collect(),
            auth_token: v.text("auth-token").into(),
            bcrypt_cost: narrow(v.u64("bcrypt-cost"), u32::MAX),
            auth_token_ttl: Duration::from_secs(v.u64("auth-token-ttl")),
            auto_compaction: auto_compaction(compaction_mode, v, from_file)?,
            strict_reconfig_check: v.bool("strict-reconfig-check"),
            force_new_cluster: v.bool("force-new-cluster"),
            unsafe_no_fsync: v.bool("unsafe-no-fsync"),
            enable_v2: v.bool("enable-v2"),
            v2_deprecation: match v.text("v2-deprecation") {
                "write-only" => V2Deprecation::WriteOnly,
                "write-only-drop-data" => V2Deprecation::WriteOnlyDropData,
                "gone" => V2Deprecation::Gone,
                _ => V2Deprecation::NotYet,
            },
            enable_pprof: v.bool("enable-pprof"),
            metrics: match v.text("metrics") {
                "extensive" => MetricsDetail::Extensive,
                _ => MetricsDetail::Basic,
            },
            log,
            experimental_initial_corrupt_check: v.bool("experimental-initial-corrupt-check"),
            experimental_corrupt_check_time: clamp(v.nanos("experimental-corrupt-check-time")),
            experimental_compact_hash_check_enabled: v
                .bool("experimental-compact-hash-check-enabled"),
            experimental_compact_hash_check_time: clamp(
                v.nanos("experimental-compact-hash-check-time"),
            ),
            experimental_enable_lease_checkpoint: v.bool("experimental-enable-lease-checkpoint"),
            experimental_enable_lease_checkpoint_persist: v
                .bool("experimental-enable-lease-checkpoint-persist"),
            experimental_compaction_batch_limit: match usize::try_from(
                v.i64("experimental-compaction-batch-limit"),
            ) {
                Ok(0) | Err(_) => 1000,
                Ok(limit) => limit,
            },
            experimental_compaction_sleep_interval: or_default(
                clamp(v.nanos("experimental-compaction-sleep-interval")),
                Duration::from_millis(10),
            ),
            experimental_watch_progress_notify_interval: or_default(
                clamp(v.nanos("experimental-watch-progress-notify-interval")),
                Duration::from_secs(600),
            ),
            experimental_downgrade_check_time: clamp(v.nanos("experimental-downgrade-check-time")),
            experimental_warning_apply_duration: clamp(
                v.nanos("experimental-warning-apply-duration"),
            ),
            experimental_bootstrap_defrag_threshold_megabytes: v
                .u64("experimental-bootstrap-defrag-threshold-megabytes"),
            experimental_stop_grpc_service_on_defrag: v
                .bool("experimental-stop-grpc-service-on-defrag"),
            config_file: from_file.then(|| v.text("config-file").to_string()),
            startup_notes: Vec::new(),
            name,
        };
        config.check_start()?;
        Ok(config)
    }

    /// Ticks until an election.
    pub fn election_ticks(&self) -> usize {
        let ticks = self.election_timeout_ms / self.heartbeat_interval_ms.max(1);
        narrow(ticks, usize::MAX)
    }

    /// What etcd finds only when it opens listeners.
    fn check_start(&self) -> Result<(), Refusal> {
        let fail = |text: String| Err(Refusal::Start(text));
        let no_client_tls = self.client_tls.is_empty() && !self.client_tls.auto_tls;
        let clients = || self.listen_client_urls.iter().chain(&self.listen_client_http_urls);
        if let Some(url) = clients().find(|u| u.is_tls() && no_client_tls) {
            return fail(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ));
        }
        let taken = |url: &&Url| {
            let same = |other: &&Url| other.host == url.host && other.path == url.path;
            self.listen_client_urls.iter().any(|other| same(&other))
        };
        if let Some(url) = self.listen_client_http_urls.iter().find(taken) {
            return fail(format!(
                "cannot bind both --client-listen-urls and --client-listen-http-urls on the same url {url}"
            ));
        }
        if self.enable_v2 && self.v2_deprecation != V2Deprecation::NotYet {
            return fail(format!(
                "--enable-v2 and --v2-deprecation={} are mutually exclusive",
                self.v2_deprecation.as_str()
            ));
        }
        if self.listen_metrics_urls.iter().any(|u| u.is_tls() && no_client_tls) {
            return fail("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url".into());
        }
        Ok(())
    }

    /// What etcd checks when the member has no data yet. `resolves_equal` says whether two
    /// lists of URLs that differ as text mean the same addresses.
    pub fn check_bootstrap(
        &self,
        resolves_equal: impl Fn(&[Url], &[Url]) -> bool,
    ) -> Result<(), String> {
        let cluster = parse_cluster(&self.initial_cluster_text)
            .map_err(|why| format!("error setting up initial cluster: {why}"))?;
        let Some((_, own)) = cluster.iter().find(|(name, _)| *name == self.name) else {
            return Err(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            ));
        };
        let advertised = &self.initial_advertise_peer_urls;
        if self.initial_cluster_state == ClusterState::New
            && own != advertised
            && !resolves_equal(advertised, own)
        {
            let missing = |from: &[Url], other: &[Url], prefix: &str| {
                let absent = from.iter().filter(|url| !other.contains(url));
                let texts: Vec<String> = absent.map(|url| format!("{prefix}{url}")).collect();
                texts.join(",")
            };
            let mine = format!("{}=", self.name);
            let absent = missing(own, advertised, &mine);
            if !absent.is_empty() {
                return Err(format!(
                    "--initial-cluster has {absent} but missing from --initial-advertise-peer-urls={} (resolved urls do not match)",
                    url::join(advertised)
                ));
            }
            let absent = missing(advertised, own, "");
            return Err(format!(
                "--initial-advertise-peer-urls has {absent} but missing from --initial-cluster={}",
                missing(advertised, &[], &mine)
            ));
        }
        let mut seen = BTreeSet::new();
        if !cluster.iter().flat_map(|(_, urls)| urls).all(|url| seen.insert(url)) {
            return Err(format!("initial cluster {} has duplicate url", self.initial_cluster_text));
        }
        Ok(())
    }
}

/// Reads `name=url,...`; a repeated name collects its URLs.
pub fn parse_cluster(text: &str) -> Result<Vec<(String, Vec<Url>)>, String> {
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let parsed = Url::parse(value)?;
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(parsed),
            None => members.push((name.into(), vec![parsed])),
        }
    }
    members.iter_mut().for_each(|(_, urls)| url::sort(urls));
    Ok(members)
}

fn log_config(v: &Values) -> Result<LogConfig, Refusal> {
    match v.text("logger") {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_string().into()),
        other => return Err(format!("unknown logger option {other:?}").into()),
    }
    let outputs = v.list("log-outputs");
    if outputs.len() > 1 && outputs.iter().any(|o| o == "default") {
        return Err("multi logoutput for \"default\" is not supported yet".to_string().into());
    }
    let files =
        outputs.iter().filter(|o| !["default", "stderr", "stdout"].contains(&o.as_str())).count();
    let mut rotation = None;
    if v.bool("enable-log-rotation") {
        if files > 1 || (files == 0 && outputs.len() == 1) {
            return Err("--log-outputs requires a single file path when --log-rotate-config-json is defined".to_string().into());
        }
        let parsed = serde_json::from_str::<Rotation>(v.text("log-rotation-config-json"));
        rotation =
            Some(parsed.map_err(|why| format!("improperly formatted log rotation config: {why}"))?);
    }
    let level = Level::parse(v.text("log-level"))
        .ok_or_else(|| Refusal::Panic(format!("unrecognized level: {:?}", v.text("log-level"))))?;
    Ok(LogConfig { level, outputs, rotation })
}

fn check_bind(urls: &[Url]) -> Result<(), String> {
    for url in urls.iter().filter(|url| !url.is_unix()) {
        let (host, _) = split_host_port(&url.host)?;
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(())
}

fn check_hosts(flag: &str, v: &Values) -> Result<(), String> {
    let urls = v.urls(flag);
    let bad = urls.iter().find_map(|url| match split_host_port(&url.host) {
        Err(why) => Some(why),
        Ok(("", _)) => Some(format!("unexpected empty host ({url})")),
        Ok(_) => None,
    });
    match bad {
        Some(why) => Err(format!("--{flag} {:?} must be \"host:port\" ({why})", url::join(&urls))),
        None => Ok(()),
    }
}

fn check_timing(v: &Values) -> Result<(), String> {
    let (tick, election) = (v.u64("heartbeat-interval"), v.u64("election-timeout"));
    if tick == 0 {
        return Err("--heartbeat-interval must be >0 (set to 0ms)".into());
    }
    if election == 0 {
        return Err("--election-timeout must be >0 (set to 0ms)".into());
    }
    if tick.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{tick}ms]"
        ));
    }
    if election > ELECTION_MS_MAX {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        ));
    }
    Ok(())
}

fn check_experimental(v: &Values, notes: &mut Vec<Note>) -> Result<(), String> {
    let checkpoint = v.bool("experimental-enable-lease-checkpoint");
    let persist = v.bool("experimental-enable-lease-checkpoint-persist");
    if checkpoint && !persist {
        notes.push(Note::warn("Detected that checkpointing is enabled without persistence. Consider enabling experimental-enable-lease-checkpoint-persist"));
    }
    if persist && !checkpoint {
        return Err("setting experimental-enable-lease-checkpoint-persist requires experimental-enable-lease-checkpoint".into());
    }
    let interval = v.nanos("experimental-compact-hash-check-time");
    if interval <= 0 {
        return Err(format!(
            "--experimental-compact-hash-check-time must be >0 (set to {})",
            govalue::duration_text(interval)
        ));
    }
    Ok(())
}

fn tls_versions(v: &Values, from_file: bool) -> Result<(TlsVersion, TlsVersion), String> {
    let min_text = match (from_file, v.is_set("tls-min-version")) {
        (true, false) => "",
        _ => v.text("tls-min-version"),
    };
    let max_text = v.text("tls-max-version");
    let (min, max) = (TlsVersion::parse(min_text)?, TlsVersion::parse(max_text)?);
    if max != TlsVersion::Unset && min > max {
        return Err(format!("min version ({min_text}) is greater than max version ({max_text})"));
    }
    if min == TlsVersion::V13 && !v.list("cipher-suites").is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".into());
    }
    Ok((min, max))
}

fn auto_compaction(mode: &str, v: &Values, from_file: bool) -> Result<AutoCompaction, Refusal> {
    let text = match (from_file, v.is_set("auto-compaction-retention")) {
        (true, false) => "0",
        _ => match v.text("auto-compaction-retention") {
            "" => "0",
            text => text,
        },
    };
    let number = text.parse::<i64>().ok().filter(|n| *n >= 0);
    let ns = match (number, mode) {
        (Some(n), "revision") => n,
        (Some(n), "periodic") => n.saturating_mul(3_600_000_000_000),
        (Some(_), _) => 0,
        (None, _) => govalue::duration(text)
            .map_err(|why| Refusal::Start(format!("error parsing CompactionRetention: {why}")))?,
    };
    Ok(match mode {
        _ if ns <= 0 => AutoCompaction::Off,
        "revision" => AutoCompaction::Revision(ns),
        "periodic" => AutoCompaction::Periodic(clamp(ns)),
        _ => AutoCompaction::Off,
    })
}
