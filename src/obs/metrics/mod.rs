//! etcd's metrics under etcd's names, one table, in the Prometheus text format.
//! Uses: nothing

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::OnceLock;

/// gRPC's codes by name, as `grpc_server_handled_total` labels them.
pub const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// Clock ticks per second in `/proc/*/stat`; the kernel fixes it at 100 for user space.
const TICKS_PER_SECOND: f64 = 100.0;
/// Limits that `/proc/self/limits` calls unlimited, as Go's client shows them.
const UNLIMITED: f64 = 18_446_744_073_709_551_615.0;

/// `count` bucket bounds, each `factor` times the one before.
fn buckets(start: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |last| Some(last * factor)).take(count).collect()
}

/// What a row of the table makes from its name, help, labels and buckets.
trait Make: Sized {
    fn make(
        registry: &Registry,
        opts: Opts,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> prometheus::Result<Self>;
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Make for $kind {
            fn make(
                registry: &Registry,
                opts: Opts,
                _: &[&str],
                _: Vec<f64>,
            ) -> prometheus::Result<Self> {
                let made = Self::with_opts(opts)?;
                registry.register(Box::new(made.clone()))?;
                Ok(made)
            }
        }
    )*};
}
plain!(IntCounter, IntGauge, Gauge, Counter);

macro_rules! labelled {
    ($($kind:ty),*) => {$(
        impl Make for $kind {
            fn make(
                registry: &Registry,
                opts: Opts,
                labels: &[&str],
                _: Vec<f64>,
            ) -> prometheus::Result<Self> {
                let made = Self::new(opts, labels)?;
                registry.register(Box::new(made.clone()))?;
                Ok(made)
            }
        }
    )*};
}
labelled!(IntCounterVec, IntGaugeVec, GaugeVec);

impl Make for Histogram {
    fn make(
        registry: &Registry,
        opts: Opts,
        _: &[&str],
        buckets: Vec<f64>,
    ) -> prometheus::Result<Self> {
        let made = Self::with_opts(HistogramOpts { common_opts: opts, buckets })?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    }
}

impl Make for HistogramVec {
    fn make(
        registry: &Registry,
        opts: Opts,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> prometheus::Result<Self> {
        let made = Self::new(HistogramOpts { common_opts: opts, buckets }, labels)?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    }
}

macro_rules! table {
    ($($field:ident: $kind:ty = $name:literal, $help:literal
        $(, labels[$($label:literal),*])?
        $(, buckets($start:expr, $factor:expr, $count:expr))?;)*) => {
        /// Handles of every metric; clones share their values.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(
                #[doc = concat!("`", $name, "`: ", $help)]
                pub $field: $kind,
            )*
        }

        impl Metrics {
            fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(
                    #[allow(unused_mut, unused_assignments)]
                    let mut labels: &[&str] = &[];
                    $(labels = &[$($label),*];)?
                    #[allow(unused_mut, unused_assignments)]
                    let mut bounds = Vec::new();
                    $(bounds = buckets($start, $factor, $count);)?
                    let $field =
                        <$kind as Make>::make(&registry, Opts::new($name, $help), labels, bounds)?;
                )*
                Ok(Self { registry, $($field,)* })
            }

            /// The rows of the table, for the comparison with etcd's.
            #[cfg(test)]
            const ROWS: &'static [tests::Row] = &[$((
                $name,
                stringify!($kind),
                &[$($($label),*)?],
                &[$($start, $factor, $count as f64)?],
            ),)*];
        }
    };
}

table! {
    // Server and raft.
    has_leader: IntGauge = "etcd_server_has_leader", "1 while this member knows a leader.";
    is_leader: IntGauge = "etcd_server_is_leader", "1 while this member is the leader.";
    is_learner: IntGauge = "etcd_server_is_learner", "1 while this member is a learner.";
    leader_changes: IntCounter = "etcd_server_leader_changes_seen_total", "Leader changes this member has seen.";
    learner_promote_failures: IntCounterVec = "etcd_server_learner_promote_failures", "Learner promotions refused by this leader.", labels["Reason"];
    learner_promote_successes: IntCounter = "etcd_server_learner_promote_successes", "Learner promotions done by this leader.";
    heartbeat_send_failures: IntCounter = "etcd_server_heartbeat_send_failures_total", "Heartbeats that left late, probably because of a slow disk.";
    slow_apply: IntCounter = "etcd_server_slow_apply_total", "Applies that took longer than expected.";
    apply_snapshot_in_progress: IntGauge = "etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot from the leader is being applied.";
    proposals_committed: IntGauge = "etcd_server_proposals_committed_total", "Last committed index.";
    proposals_applied: IntGauge = "etcd_server_proposals_applied_total", "Last applied index.";
    proposals_pending: IntGauge = "etcd_server_proposals_pending", "Proposals waiting for their commit.";
    proposals_failed: IntCounter = "etcd_server_proposals_failed_total", "Proposals that failed.";
    slow_read_indexes: IntCounter = "etcd_server_slow_read_indexes_total", "Read indexes that did not arrive in time.";
    read_indexes_failed: IntCounter = "etcd_server_read_indexes_failed_total", "Read index requests that failed.";
    lease_expired: IntCounter = "etcd_debugging_server_lease_expired_total", "Leases that have expired.";
    quota_backend_bytes: IntGauge = "etcd_server_quota_backend_bytes", "Quota of the backend in bytes.";
    server_version: IntGaugeVec = "etcd_server_version", "1 for the running version.", labels["server_version"];
    server_go_version: IntGaugeVec = "etcd_server_go_version", "1 for what the server is made of; etcd names its Go version here.", labels["server_go_version"];
    server_id: IntGaugeVec = "etcd_server_id", "1 for this member's id in hexadecimal.", labels["server_id"];
    apply_duration: HistogramVec = "etcd_server_apply_duration_seconds", "Duration of applies.", labels["version", "op", "success"], buckets(0.0001, 2.0, 20);
    client_requests: IntCounterVec = "etcd_server_client_requests_total", "Client requests by client version.", labels["type", "client_api_version"];
    cluster_version: IntGaugeVec = "etcd_cluster_version", "1 for the cluster's version, major and minor.", labels["cluster_version"];
    auth_revision: IntGauge = "etcd_debugging_auth_revision", "Revision of the auth store.";
    // Health.
    health_success: IntCounter = "etcd_server_health_success", "Health checks that passed.";
    health_failures: IntCounter = "etcd_server_health_failures", "Health checks that failed.";
    healthcheck: IntGaugeVec = "etcd_server_healthcheck", "Last result of each check.", labels["type", "name"];
    healthchecks: IntCounterVec = "etcd_server_healthchecks_total", "Runs of each check.", labels["type", "name", "status"];
    // Disk.
    wal_fsync: Histogram = "etcd_disk_wal_fsync_duration_seconds", "Duration of WAL fsync calls.", buckets(0.001, 2.0, 14);
    wal_write: Histogram = "etcd_disk_wal_write_duration_seconds", "Duration of WAL write calls.", buckets(0.001, 2.0, 14);
    wal_write_bytes: IntGauge = "etcd_disk_wal_write_bytes_total", "Bytes written to the WAL.";
    backend_commit: Histogram = "etcd_disk_backend_commit_duration_seconds", "Duration of backend commits.", buckets(0.001, 2.0, 14);
    backend_commit_rebalance: Histogram = "etcd_debugging_disk_backend_commit_rebalance_duration_seconds", "Part of a commit spent on rebalancing; always empty here.", buckets(0.001, 2.0, 14);
    backend_commit_spill: Histogram = "etcd_debugging_disk_backend_commit_spill_duration_seconds", "Part of a commit spent on spilling; always empty here.", buckets(0.001, 2.0, 14);
    backend_commit_write: Histogram = "etcd_debugging_disk_backend_commit_write_duration_seconds", "Part of a commit spent on writing.", buckets(0.001, 2.0, 14);
    backend_defrag: Histogram = "etcd_disk_backend_defrag_duration_seconds", "Duration of defragmentations.", buckets(0.1, 2.0, 13);
    backend_snapshot: Histogram = "etcd_disk_backend_snapshot_duration_seconds", "Duration of backend snapshots.", buckets(0.01, 2.0, 17);
    defrag_inflight: IntGauge = "etcd_disk_defrag_inflight", "1 while a defragmentation runs.";
    snap_fsync: Histogram = "etcd_snap_fsync_duration_seconds", "Duration of snapshot file fsyncs.", buckets(0.001, 2.0, 14);
    snap_db_fsync: Histogram = "etcd_snap_db_fsync_duration_seconds", "Duration of received database fsyncs.", buckets(0.001, 2.0, 14);
    snap_db_save: Histogram = "etcd_snap_db_save_total_duration_seconds", "Duration of saving received databases.", buckets(0.1, 2.0, 10);
    snap_save: Histogram = "etcd_debugging_snap_save_total_duration_seconds", "Duration of saving snapshot files.", buckets(0.001, 2.0, 14);
    snap_marshal: Histogram = "etcd_debugging_snap_save_marshalling_duration_seconds", "Duration of encoding snapshots.", buckets(0.001, 2.0, 14);
    // Store.
    mvcc_range: IntCounter = "etcd_mvcc_range_total", "Ranges seen by this member.";
    mvcc_range_debugging: IntCounter = "etcd_debugging_mvcc_range_total", "The same as etcd_mvcc_range_total.";
    mvcc_put: IntCounter = "etcd_mvcc_put_total", "Puts seen by this member.";
    mvcc_delete: IntCounter = "etcd_mvcc_delete_total", "Deletes seen by this member.";
    mvcc_txn: IntCounter = "etcd_mvcc_txn_total", "Transactions seen by this member.";
    keys: IntGauge = "etcd_debugging_mvcc_keys_total", "Keys in the index.";
    watch_streams: IntGauge = "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.";
    watchers: IntGauge = "etcd_debugging_mvcc_watcher_total", "Watchers.";
    slow_watchers: IntGauge = "etcd_debugging_mvcc_slow_watcher_total", "Watchers that lag behind.";
    events: IntCounter = "etcd_debugging_mvcc_events_total", "Events sent to watchers.";
    pending_events: IntGauge = "etcd_debugging_mvcc_pending_events_total", "Events waiting for slow watchers.";
    index_compaction_pause: Histogram = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "Pauses for index compactions.", buckets(0.5, 2.0, 14);
    db_compaction_pause: Histogram = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "Pauses for database compactions.", buckets(1.0, 2.0, 13);
    db_compaction_total: Histogram = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Duration of database compactions.", buckets(100.0, 2.0, 14);
    db_compaction_last: IntGauge = "etcd_debugging_mvcc_db_compaction_last", "Unix time of the last database compaction.";
    db_compaction_keys: IntCounter = "etcd_debugging_mvcc_db_compaction_keys_total", "Rows removed by compactions.";
    db_total_size: IntGauge = "etcd_mvcc_db_total_size_in_bytes", "Size of the database on disk.";
    db_size_in_use: IntGauge = "etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the database in use.";
    db_open_read_transactions: IntGauge = "etcd_mvcc_db_open_read_transactions", "Open read transactions of the database.";
    hash_duration: Histogram = "etcd_mvcc_hash_duration_seconds", "Duration of whole hashes.", buckets(0.01, 2.0, 15);
    hash_rev_duration: Histogram = "etcd_mvcc_hash_rev_duration_seconds", "Duration of hashes by revision.", buckets(0.01, 2.0, 15);
    current_revision: IntGauge = "etcd_debugging_mvcc_current_revision", "Current revision.";
    compact_revision: IntGauge = "etcd_debugging_mvcc_compact_revision", "Last compacted revision.";
    total_put_size: IntGauge = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes put by this member.";
    // Leases.
    lease_granted: IntCounter = "etcd_debugging_lease_granted_total", "Leases granted.";
    lease_revoked: IntCounter = "etcd_debugging_lease_revoked_total", "Leases revoked.";
    lease_renewed: IntCounter = "etcd_debugging_lease_renewed_total", "Renewals seen by the leader.";
    lease_ttl: Histogram = "etcd_debugging_lease_ttl_total", "Granted times to live in seconds.", buckets(1.0, 2.0, 24);
    // gRPC.
    grpc_started: IntCounterVec = "grpc_server_started_total", "RPCs started on the server.", labels["grpc_type", "grpc_service", "grpc_method"];
    grpc_handled: IntCounterVec = "grpc_server_handled_total", "RPCs ended on the server, whatever their result.", labels["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
    grpc_msg_received: IntCounterVec = "grpc_server_msg_received_total", "Messages received from clients.", labels["grpc_type", "grpc_service", "grpc_method"];
    grpc_msg_sent: IntCounterVec = "grpc_server_msg_sent_total", "Messages sent to clients.", labels["grpc_type", "grpc_service", "grpc_method"];
    client_grpc_received_bytes: IntCounter = "etcd_network_client_grpc_received_bytes_total", "Bytes received from gRPC clients.";
    client_grpc_sent_bytes: IntCounter = "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients.";
    stream_failures: IntCounterVec = "etcd_network_server_stream_failures_total", "Streams from clients that failed.", labels["Type", "API"];
    // Peers.
    active_peers: IntGaugeVec = "etcd_network_active_peers", "Connected peers.", labels["Local", "Remote"];
    disconnected_peers: IntCounterVec = "etcd_network_disconnected_peers_total", "Peers that were lost.", labels["Local", "Remote"];
    peer_sent_bytes: IntCounterVec = "etcd_network_peer_sent_bytes_total", "Bytes sent to peers.", labels["To"];
    peer_received_bytes: IntCounterVec = "etcd_network_peer_received_bytes_total", "Bytes received from peers.", labels["From"];
    peer_sent_failures: IntCounterVec = "etcd_network_peer_sent_failures_total", "Sends to peers that failed.", labels["To"];
    peer_received_failures: IntCounterVec = "etcd_network_peer_received_failures_total", "Receives from peers that failed.", labels["From"];
    snapshot_send_success: IntCounterVec = "etcd_network_snapshot_send_success", "Snapshots sent.", labels["To"];
    snapshot_send_inflights: IntGaugeVec = "etcd_network_snapshot_send_inflights_total", "Snapshots being sent.", labels["To"];
    snapshot_send_failures: IntCounterVec = "etcd_network_snapshot_send_failures", "Snapshots not sent.", labels["To"];
    snapshot_send_duration: HistogramVec = "etcd_network_snapshot_send_total_duration_seconds", "Duration of sending snapshots.", labels["To"], buckets(0.1, 2.0, 10);
    snapshot_receive_success: IntCounterVec = "etcd_network_snapshot_receive_success", "Snapshots received.", labels["From"];
    snapshot_receive_inflights: IntGaugeVec = "etcd_network_snapshot_receive_inflights_total", "Snapshots being received.", labels["From"];
    snapshot_receive_failures: IntCounterVec = "etcd_network_snapshot_receive_failures", "Snapshots not received.", labels["From"];
    snapshot_receive_duration: HistogramVec = "etcd_network_snapshot_receive_total_duration_seconds", "Duration of receiving snapshots.", labels["From"], buckets(0.1, 2.0, 10);
    peer_round_trip: HistogramVec = "etcd_network_peer_round_trip_time_seconds", "Round trips to peers.", labels["To"], buckets(0.0001, 2.0, 16);
    // Process.
    fd_used: IntGauge = "os_fd_used", "File descriptors in use.";
    fd_limit: IntGauge = "os_fd_limit", "File descriptors allowed.";
    process_cpu: Gauge = "process_cpu_seconds_total", "User and system time in seconds.";
    process_open_fds: IntGauge = "process_open_fds", "Open file descriptors.";
    process_max_fds: Gauge = "process_max_fds", "Open file descriptors allowed.";
    process_virtual: IntGauge = "process_virtual_memory_bytes", "Virtual memory in bytes.";
    process_virtual_max: Gauge = "process_virtual_memory_max_bytes", "Virtual memory allowed in bytes.";
    process_resident: IntGauge = "process_resident_memory_bytes", "Resident memory in bytes.";
    process_start: Gauge = "process_start_time_seconds", "Start of the process as Unix time.";
    // rusd's own.
    actor_restarts: IntCounterVec = "rusd_actor_restarts_total", "Actors made anew after a panic.", labels["actor"];
    checkpoints: Histogram = "rusd_checkpoint_duration_seconds", "Duration of writing a checkpoint, pauses included.", buckets(0.001, 4.0, 10);
    checkpoint_bytes: IntCounter = "rusd_checkpoint_bytes_total", "Bytes written to the database file.";
    checkpoint_index: IntGauge = "rusd_checkpoint_index", "Raft index that the database file has reached.";
    checkpoint_failures: IntCounter = "rusd_checkpoint_failures_total", "Checkpoints and snapshot files that could not be written.";
    // The handler of this page.
    promhttp_requests: IntCounterVec = "promhttp_metric_handler_requests_total", "Scrapes by status code.", labels["code"];
    promhttp_in_flight: IntGauge = "promhttp_metric_handler_requests_in_flight", "Scrapes being served.";
}

/// The process's metrics.
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(at_start)
}

/// All series as a member shows them before anything has happened.
fn at_start() -> Metrics {
    // The table is fixed: a test makes it, so a bad row never ships.
    let metrics = Metrics::new().unwrap_or_else(|error| unreachable!("metrics table: {error}"));
    metrics.compact_revision.set(-1);
    metrics.auth_revision.set(1);
    for code in ["200", "500", "503"] {
        metrics.promhttp_requests.with_label_values(&[code]);
    }
    metrics
}

impl Metrics {
    /// The page of `/metrics`.
    pub fn text(&self) -> String {
        self.read_process();
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default();
        // The crate has no settable counter of fractions.
        text.replace(
            "# TYPE process_cpu_seconds_total gauge",
            "# TYPE process_cpu_seconds_total counter",
        )
    }

    fn read_process(&self) {
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let fds = i64::try_from(fds).unwrap_or(i64::MAX);
        self.fd_used.set(fds);
        self.process_open_fds.set(fds);
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let max_fds = soft_limit(&limits, "Max open files");
        self.process_max_fds.set(max_fds);
        self.fd_limit.set(if max_fds < UNLIMITED { max_fds as i64 } else { i64::MAX });
        self.process_virtual_max.set(soft_limit(&limits, "Max address space"));
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        self.process_virtual.set(status_bytes(&status, "VmSize:"));
        self.process_resident.set(status_bytes(&status, "VmRSS:"));
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some((ticks, start)) = stat_times(&stat) {
            self.process_cpu.set(ticks / TICKS_PER_SECOND);
            let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
            let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
            if let Some(boot) = boot.and_then(|boot| boot.trim().parse::<f64>().ok()) {
                self.process_start.set(boot + start / TICKS_PER_SECOND);
            }
        }
    }
}

fn soft_limit(limits: &str, name: &str) -> f64 {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .unwrap_or(UNLIMITED)
}

fn status_bytes(status: &str, name: &str) -> i64 {
    let rest = status.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse::<i64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// Ticks used and the tick of the start, from `/proc/self/stat`.
fn stat_times(stat: &str) -> Option<(f64, f64)> {
    // The name is in parentheses and may hold anything; utime is field 14, starttime 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<f64>().ok();
    Some((field(14)? + field(15)?, field(22)?))
}

#[cfg(test)]
mod tests;
