//! A `Config` out of checked values.

use super::checks::{
    auto_compaction, check_bind, check_experimental, check_hosts, check_timing, check_tracing,
    clamp, log_config, tls_versions,
};
use super::{
    ClusterState, Config, MetricsDetail, Refusal, TlsConfig, V2Deprecation, parse_cluster,
};
use crate::cli::flags;
use crate::cli::values::Values;
use crate::obs::log::Note;
use std::path::PathBuf;
use std::time::Duration;

/// Shortest read and write timeout of peer connections.
const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(5);

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
                "Running http and grpc server on single port. This is not recommended for \
                 production.",
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
                "multiple discovery or bootstrap flags are set. Choose one \
                 of \"initial-cluster\", \"discovery\" or \"discovery-srv\""
                    .into(),
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
        check_tracing(v)?;

        let name = v.text("name").to_string();
        let advertise_peer = v.urls("initial-advertise-peer-urls");
        let default_cluster = flags::find("initial-cluster").map_or("", |f| f.default);
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
}
