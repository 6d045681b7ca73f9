//! The page's shape, and the table against the series of a real etcd.

use super::*;

#[test]
fn page_has_etcds_shape() {
    let metrics = at_start();
    metrics.mvcc_put.inc_by(2);
    metrics.server_version.with_label_values(&["3.5.17"]).set(1);
    let handled = &metrics.grpc_handled;
    handled
        .with_label_values(&["bidi_stream", "etcdserverpb.Watch", "Watch", "Canceled"])
        .inc_by(6);
    let text = metrics.text();
    for line in [
        "etcd_mvcc_put_total 2",
        "etcd_server_version{server_version=\"3.5.17\"} 1",
        "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",\
         grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 6",
        "etcd_debugging_mvcc_compact_revision -1",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 0",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"8.192\"} 0",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 0",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE etcd_server_proposals_committed_total gauge",
    ] {
        assert!(text.lines().any(|have| have == line), "missing {line}");
    }
    assert!(metrics.process_resident.get() > 0 && metrics.process_open_fds.get() > 0);
    assert!(metrics.process_start.get() > 1e9);
}

#[test]
fn proc_texts() {
    assert_eq!(soft_limit("Max open files   20000   20000  files", "Max open files"), 20000.0);
    assert_eq!(soft_limit("Max open files   unlimited  x", "Max open files"), UNLIMITED);
    assert_eq!(status_bytes("VmRSS:\t  12 kB\n", "VmRSS:"), 12288);
    let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20";
    assert_eq!(stat_times(stat), Some((11.0 + 12.0, 19.0)));
    assert_eq!(stat_times("garbage"), None);
}

/// Name, Rust type, labels, and the buckets' start, factor and count.
pub(super) type Row = (&'static str, &'static str, &'static [&'static str], &'static [f64]);

/// What etcd 3.5.17 has and rusd has not; COMPAT.md says why. `go_*` is left out of the list too.
const ABSENT: [&str; 10] = [
    "etcd_debugging_store_expires_total",
    "etcd_debugging_store_reads_total",
    "etcd_debugging_store_watch_requests_total",
    "etcd_debugging_store_watchers",
    "etcd_debugging_store_writes_total",
    "etcd_grpc_proxy_cache_hits_total",
    "etcd_grpc_proxy_cache_keys_total",
    "etcd_grpc_proxy_cache_misses_total",
    "etcd_grpc_proxy_events_coalescing_total",
    "etcd_grpc_proxy_watchers_coalescing_total",
];

/// Series that etcd has too, but shows only once there is something to count.
const LATE: [&str; 13] = [
    "etcd_network_peer_received_failures_total",
    "etcd_network_server_stream_failures_total",
    "etcd_network_snapshot_receive_failures",
    "etcd_network_snapshot_receive_inflights_total",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_receive_total_duration_seconds",
    "etcd_network_snapshot_send_failures",
    "etcd_network_snapshot_send_inflights_total",
    "etcd_network_snapshot_send_success",
    "etcd_network_snapshot_send_total_duration_seconds",
    "etcd_server_healthcheck",
    "etcd_server_healthchecks_total",
    "etcd_server_learner_promote_failures",
];

/// `testdata/metrics-3.5.17.tsv` was made from the pages of a single etcd and of a member of three
/// after some requests: name, type, labels, bucket bounds.
#[test]
fn names_types_labels_and_buckets_are_etcds() {
    let mut seen: Vec<&str> = ABSENT.to_vec();
    for line in include_str!("../../../testdata/metrics-3.5.17.tsv").lines() {
        let [name, kind, labels, bounds] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        if ABSENT.contains(&name) {
            continue;
        }
        seen.push(name);
        let row = Metrics::ROWS.iter().find(|row| row.0 == name);
        let (_, ours, our_labels, our_buckets) = row.unwrap_or_else(|| panic!("no {name}"));
        let page_says = match *ours {
            "Gauge" if name == "process_cpu_seconds_total" => "counter",
            kind if kind.contains("Counter") => "counter",
            kind if kind.contains("Gauge") => "gauge",
            _ => "histogram",
        };
        assert_eq!(page_says, kind, "{name}");
        let mut our_labels = our_labels.to_vec();
        our_labels.sort_unstable();
        assert_eq!(our_labels.join(","), labels, "{name}");
        let bounds: Vec<f64> = bounds.split_terminator(',').map(|b| b.parse().unwrap()).collect();
        let our_bounds = match our_buckets {
            [start, factor, count] => buckets(*start, *factor, *count as usize),
            _ => Vec::new(),
        };
        assert_eq!(our_bounds.len(), bounds.len(), "{name}");
        for (ours, theirs) in our_bounds.iter().zip(&bounds) {
            assert!((ours / theirs - 1.0).abs() < 1e-9, "{name}: {ours}, etcd {theirs}");
        }
    }
    for (name, ..) in Metrics::ROWS {
        let own = name.starts_with("rusd_");
        assert!(own || seen.contains(name) || LATE.contains(name), "etcd has no {name}");
    }
}
