//! The one table of etcd 3.5.17's server flags; parsing, help and docs/flags.md all come from it.

use std::fmt::Write as _;

/// How a flag's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Go boolean; without `=` it means true.
    Bool,
    /// Go `int` or `int64`.
    Int,
    /// Go `uint` or `uint64`.
    Uint,
    /// Go `uint32`.
    Uint32,
    /// Go duration.
    Duration,
    /// Any text.
    Text,
    /// Comma-separated URLs; the text given here is also accepted.
    Urls(&'static str),
    /// Comma-separated texts, sorted and without repeats.
    UniqueTexts,
    /// Comma-separated texts as given.
    Texts,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Comma-separated words out of these; repeated flags add up.
    SomeOf(&'static [&'static str]),
    /// Accepts anything and means nothing.
    Ignored,
}

/// What rusd does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The flag does what it does in etcd.
    Works,
    /// The flag is read and checked, then has no effect, for this reason.
    AcceptedWithoutEffect(&'static str),
    /// As before, but only because what it sets is not built yet; this says what is missing.
    Later(&'static str),
}

/// One flag of the server.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// How its text is read.
    pub kind: Kind,
    /// Default, as text the kind can read.
    pub default: &'static str,
    /// What rusd does with it.
    pub effect: Effect,
    /// Heading it is listed under; empty for flags that help leaves out.
    pub section: &'static str,
    /// One line of help.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that sets the flag.
    pub fn env(&self) -> String {
        format!("ETCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// The key in a configuration file (`a.b` for a nested one), if there is one.
    pub fn yaml(&self) -> Option<String> {
        let name = self.name;
        Some(match name {
            "config-file" | "version" | "raft-read-timeout" | "raft-write-timeout" => return None,
            "client-crl-file" | "peer-crl-file" => return None,
            "experimental-peer-skip-client-san-verification" => return None,
            _ if self.kind == Kind::Ignored => return None,
            "experimental-snapshot-catchup-entries" => {
                "experimental-snapshot-catch-up-entries".into()
            }
            "socket-reuse-port" => "socket-options.reuse-port".into(),
            "socket-reuse-address" => "socket-options.reuse-address".into(),
            "client-cert-allowed-hostname" => "client-transport-security.allowed-hostname".into(),
            "cert-file" | "key-file" | "client-cert-file" | "client-key-file"
            | "client-cert-auth" | "trusted-ca-file" | "auto-tls" => {
                format!("client-transport-security.{name}")
            }
            "peer-cert-allowed-cn" => "peer-transport-security.allowed-cn".into(),
            "peer-cert-allowed-hostname" => "peer-transport-security.allowed-hostname".into(),
            "peer-cert-file"
            | "peer-key-file"
            | "peer-client-cert-file"
            | "peer-client-key-file"
            | "peer-client-cert-auth"
            | "peer-trusted-ca-file"
            | "peer-auto-tls" => format!("peer-transport-security.{}", &name["peer-".len()..]),
            _ => name.into(),
        })
    }
}

/// Finds a flag by name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

const W: Effect = Effect::Works;
const NO_BBOLT: Effect = Effect::AcceptedWithoutEffect("rusd's storage engine is not bbolt");
const NO_DISCOVERY: Effect = Effect::AcceptedWithoutEffect("v2 discovery is not implemented");
const NO_PROXY: Effect = Effect::AcceptedWithoutEffect("the v2 proxy is not implemented");
const NO_TRACING: Effect = Effect::AcceptedWithoutEffect("trace export is not implemented");
const NO_PPROF: Effect = Effect::AcceptedWithoutEffect("there is no Go runtime to profile");
const CHECKPOINTS: Effect =
    Effect::AcceptedWithoutEffect("the database file follows at its own pace");
const V2_API: Effect = Effect::Later("the v2 API is not served");
const GATEWAY: Effect = Effect::Later("the JSON gateway is not served");
const SRV: Effect = Effect::Later("SRV records are not looked up");
const CALL_TIMES: Effect = Effect::Later("there are no call latencies; basic is what there is");
const CLIENT_PINGS: Effect = Effect::Later("the HTTP/2 library answers pings without telling");
const LEGACY: Effect = Effect::AcceptedWithoutEffect("etcd ignores this legacy flag too");

const MEMBER: &str = "Member";
const CLUSTERING: &str = "Clustering";
const SECURITY: &str = "Security";
const AUTH: &str = "Auth";
const MONITORING: &str = "Profiling and Monitoring";
const LOGGING: &str = "Logging";
const TRACING: &str = "Experimental distributed tracing";
const PROXY: &str = "v2 Proxy (to be deprecated in v3.6)";
const EXPERIMENTAL: &str = "Experimental feature";
const UNSAFE: &str = "Unsafe feature";
const HIDDEN: &str = "";

/// The stages of `--v2-deprecation`.
pub const V2_STAGES: &[&str] = &["not-yet", "write-only", "write-only-drop-data", "gone"];

const fn f(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    effect: Effect,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, effect, section, help }
}

const fn legacy(name: &'static str) -> Flag {
    f(HIDDEN, name, Kind::Ignored, "", LEGACY, "")
}

use Kind::{Bool, Duration, Int, OneOf, SomeOf, Text, Texts, Uint, Uint32, UniqueTexts, Urls};

/// Every flag of the server.
#[rustfmt::skip]
pub const FLAGS: &[Flag] = &[
    f(HIDDEN, "config-file", Text, "", W, "YAML file to configure the server from; every other flag and variable is then ignored."),
    f(HIDDEN, "version", Bool, "false", W, "Show the version."),

    f(MEMBER, "name", Text, "default", W, "Name of this member, for people."),
    f(MEMBER, "data-dir", Text, "", W, "Directory that holds the member's data (${name}.etcd if empty)."),
    f(MEMBER, "wal-dir", Text, "", W, "Separate directory for the write-ahead log."),
    f(MEMBER, "snapshot-count", Uint, "100000", W, "Applied entries after which a snapshot is written."),
    f(MEMBER, "heartbeat-interval", Uint, "100", W, "Milliseconds between the leader's heartbeats."),
    f(MEMBER, "election-timeout", Uint, "1000", W, "Milliseconds without a leader before an election."),
    f(MEMBER, "initial-election-tick-advance", Bool, "true", W, "Skip most of the first election timeout at boot."),
    f(MEMBER, "listen-peer-urls", Urls(""), "http://localhost:2380", W, "Addresses to serve other members on."),
    f(MEMBER, "listen-client-urls", Urls(""), "http://localhost:2379", W, "Addresses to serve clients on: gRPC, and HTTP unless --listen-client-http-urls is given."),
    f(MEMBER, "listen-client-http-urls", Urls(""), "", W, "Addresses for HTTP-only clients; takes HTTP off --listen-client-urls."),
    f(MEMBER, "max-snapshots", Uint, "5", W, "Snapshot files to keep (0: all)."),
    f(MEMBER, "max-wals", Uint, "5", W, "Write-ahead log files to keep (0: all)."),
    f(MEMBER, "quota-backend-bytes", Int, "0", W, "Size of the store at which the NOSPACE alarm is raised (0: 2 GiB)."),
    f(MEMBER, "backend-bbolt-freelist-type", Text, "", NO_BBOLT, "Free list of bbolt: array or map (map if empty)."),
    f(MEMBER, "backend-batch-interval", Duration, "0s", CHECKPOINTS, "Longest time before the backend commits a batch (0: the default)."),
    f(MEMBER, "backend-batch-limit", Int, "0", CHECKPOINTS, "Most operations in one backend batch (0: the default)."),
    f(MEMBER, "max-txn-ops", Uint, "128", W, "Most operations in one transaction."),
    f(MEMBER, "max-request-bytes", Uint, "1572864", W, "Largest client request."),
    f(MEMBER, "max-concurrent-streams", Uint32, "4294967295", W, "Most streams one client connection may have open."),
    f(MEMBER, "enable-grpc-gateway", Bool, "true", GATEWAY, "Serve the JSON gateway."),
    f(MEMBER, "grpc-keepalive-min-time", Duration, "5s", CLIENT_PINGS, "Shortest interval a client may ping at."),
    f(MEMBER, "grpc-keepalive-interval", Duration, "2h", W, "Interval of the server's own pings, at least 1s (0: 2h, and 20s for the timeout)."),
    f(MEMBER, "grpc-keepalive-timeout", Duration, "20s", W, "Time a ping may stay unanswered before the connection is closed (0: 20s, and 2h for the interval)."),
    f(MEMBER, "socket-reuse-port", Bool, "false", W, "Set SO_REUSEPORT on listeners."),
    f(MEMBER, "socket-reuse-address", Bool, "false", W, "Set SO_REUSEADDR on listeners; as in etcd, TCP listeners have it in any case."),
    f(MEMBER, "raft-read-timeout", Duration, "5s", W, "Read timeout of peer connections; at least 5s."),
    f(MEMBER, "raft-write-timeout", Duration, "5s", W, "Write timeout of peer connections; at least 5s."),

    f(CLUSTERING, "initial-advertise-peer-urls", Urls(""), "http://localhost:2380", W, "Peer addresses of this member that the other members are told."),
    f(CLUSTERING, "initial-cluster", Text, "default=http://localhost:2380", W, "Members of the cluster at its first start, as name=url pairs."),
    f(CLUSTERING, "initial-cluster-state", OneOf(&["new", "existing"]), "new", W, "Start a new cluster, or join an existing one; without meaning once the member has data."),
    f(CLUSTERING, "initial-cluster-token", Text, "etcd-cluster", W, "Word that keeps clusters with equal addresses apart at bootstrap."),
    f(CLUSTERING, "advertise-client-urls", Urls(""), "http://localhost:2379", W, "Client addresses of this member that clients are told."),
    f(CLUSTERING, "discovery", Text, "", NO_DISCOVERY, "Discovery service to bootstrap from."),
    f(CLUSTERING, "discovery-fallback", OneOf(&["proxy", "exit"]), "proxy", NO_DISCOVERY, "What to do when discovery fails: exit or proxy."),
    f(CLUSTERING, "discovery-proxy", Text, "", NO_DISCOVERY, "HTTP proxy for the discovery service."),
    f(CLUSTERING, "discovery-srv", Text, "", SRV, "DNS domain whose SRV records name the members."),
    f(CLUSTERING, "discovery-srv-name", Text, "", SRV, "Suffix of the SRV service name."),
    f(CLUSTERING, "strict-reconfig-check", Bool, "true", W, "Refuse membership changes that would lose quorum."),
    f(CLUSTERING, "pre-vote", Bool, "true", W, "Ask for votes before disturbing the term."),
    f(CLUSTERING, "auto-compaction-retention", Text, "0", W, "History that auto compaction keeps (0: no auto compaction)."),
    f(CLUSTERING, "auto-compaction-mode", Text, "periodic", W, "How the retention is read: periodic (a duration; plain numbers are hours) or revision."),
    f(CLUSTERING, "enable-v2", Bool, "false", V2_API, "Serve the v2 API."),
    f(CLUSTERING, "v2-deprecation", SomeOf(V2_STAGES), "", V2_API, "Stage of the v2 store's removal: not-yet, write-only, write-only-drop-data or gone (not-yet if empty)."),

    f(SECURITY, "cert-file", Text, "", W, "Certificate of the client listeners."),
    f(SECURITY, "key-file", Text, "", W, "Key of the client listeners."),
    f(SECURITY, "client-cert-auth", Bool, "false", W, "Demand certificates of clients."),
    f(SECURITY, "client-cert-file", Text, "", W, "Certificate for the server's own calls to itself, if not the listener's."),
    f(SECURITY, "client-key-file", Text, "", W, "Key for the server's own calls to itself, if not the listener's."),
    f(SECURITY, "client-crl-file", Text, "", W, "Revoked client certificates."),
    f(SECURITY, "client-cert-allowed-hostname", Texts, "", W, "Host names of which a client certificate must have one."),
    f(SECURITY, "trusted-ca-file", Text, "", W, "Authorities that client certificates are checked against."),
    f(SECURITY, "auto-tls", Bool, "false", W, "Use a self-signed certificate on the client listeners."),
    f(SECURITY, "peer-cert-file", Text, "", W, "Certificate of the peer listeners."),
    f(SECURITY, "peer-key-file", Text, "", W, "Key of the peer listeners."),
    f(SECURITY, "peer-client-cert-auth", Bool, "false", W, "Demand certificates of peers."),
    f(SECURITY, "peer-trusted-ca-file", Text, "", W, "Authorities that peer certificates are checked against."),
    f(SECURITY, "peer-cert-allowed-cn", Texts, "", W, "Common names of which a peer certificate must have one."),
    f(SECURITY, "peer-cert-allowed-hostname", Texts, "", W, "Host names of which a peer certificate must have one."),
    f(SECURITY, "peer-auto-tls", Bool, "false", W, "Use a self-signed certificate between peers, unless one is given."),
    f(SECURITY, "peer-client-cert-file", Text, "", W, "Certificate for outgoing peer connections, if not the listener's."),
    f(SECURITY, "peer-client-key-file", Text, "", W, "Key for outgoing peer connections, if not the listener's."),
    f(SECURITY, "self-signed-cert-validity", Uint, "1", W, "Years that a self-signed certificate lasts."),
    f(SECURITY, "peer-crl-file", Text, "", W, "Revoked peer certificates."),
    f(SECURITY, "cipher-suites", Texts, "", W, "TLS 1.2 cipher suites to allow (all supported ones if empty)."),
    f(SECURITY, "cors", Urls("*"), "*", W, "Origins that browsers may call from (empty or *: any)."),
    f(SECURITY, "host-whitelist", UniqueTexts, "*", W, "Host names that plain HTTP requests may be for (empty or *: any)."),
    f(SECURITY, "tls-min-version", Text, "TLS1.2", W, "Lowest TLS version: TLS1.2 or TLS1.3."),
    f(SECURITY, "tls-max-version", Text, "", W, "Highest TLS version: TLS1.2 or TLS1.3 (the newest if empty)."),

    f(AUTH, "auth-token", Text, "simple", W, "Kind of auth tokens, simple or jwt, with its options."),
    f(AUTH, "bcrypt-cost", Uint, "10", W, "Cost of hashing a password, 4 to 31."),
    f(AUTH, "auth-token-ttl", Uint, "300", W, "Seconds that a token lives."),

    f(MONITORING, "enable-pprof", Bool, "false", NO_PPROF, "Serve runtime profiles under /debug/pprof/."),
    f(MONITORING, "metrics", Text, "basic", CALL_TIMES, "Detail of the metrics: basic, or extensive with latency histograms."),
    f(MONITORING, "listen-metrics-urls", Urls(""), "", W, "More addresses for /metrics and /health; https uses the client certificate."),

    f(LOGGING, "logger", Text, "zap", W, "Logger; zap is the only one."),
    f(LOGGING, "log-outputs", UniqueTexts, "default", W, "Where the log goes: default, stderr, stdout, or file paths."),
    f(LOGGING, "log-level", Text, "info", W, "Least level to log: debug, info, warn, error, panic or fatal."),
    f(LOGGING, "enable-log-rotation", Bool, "false", W, "Rotate the log; needs one file path as output."),
    f(LOGGING, "log-rotation-config-json", Text, "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", W, "Rotation: maxsize in MB, maxage in days, maxbackups in files (0: no limit)."),

    f(TRACING, "experimental-enable-distributed-tracing", Bool, "false", NO_TRACING, "Export traces."),
    f(TRACING, "experimental-distributed-tracing-address", Text, "localhost:4317", NO_TRACING, "Address of the trace collector."),
    f(TRACING, "experimental-distributed-tracing-service-name", Text, "etcd", NO_TRACING, "Service name in traces, the same on all members."),
    f(TRACING, "experimental-distributed-tracing-instance-id", Text, "", NO_TRACING, "Instance id in traces, different on every member."),
    f(TRACING, "experimental-distributed-tracing-sampling-rate", Int, "0", NO_TRACING, "Traces kept out of a million."),

    f(PROXY, "proxy", OneOf(&["off", "readonly", "on"]), "off", NO_PROXY, "Proxy mode: off, readonly or on."),
    f(PROXY, "proxy-failure-wait", Uint, "5000", NO_PROXY, "Milliseconds that a failed endpoint is left alone."),
    f(PROXY, "proxy-refresh-interval", Uint, "30000", NO_PROXY, "Milliseconds between looks at the endpoints."),
    f(PROXY, "proxy-dial-timeout", Uint, "1000", NO_PROXY, "Milliseconds to wait for a dial."),
    f(PROXY, "proxy-write-timeout", Uint, "5000", NO_PROXY, "Milliseconds to wait for a write."),
    f(PROXY, "proxy-read-timeout", Uint, "0", NO_PROXY, "Milliseconds to wait for a read."),

    f(EXPERIMENTAL, "experimental-initial-corrupt-check", Bool, "false", W, "Compare data with the other members before serving."),
    f(EXPERIMENTAL, "experimental-corrupt-check-time", Duration, "0s", W, "Interval of comparing data between members (0: never)."),
    f(EXPERIMENTAL, "experimental-compact-hash-check-enabled", Bool, "false", W, "Let the leader compare hashes taken at compactions."),
    f(EXPERIMENTAL, "experimental-compact-hash-check-time", Duration, "1m", W, "Interval of comparing compaction hashes."),
    f(EXPERIMENTAL, "experimental-enable-v2v3", Text, "", Effect::AcceptedWithoutEffect("v2 on top of v3 is not implemented"), "Prefix under which v2 requests are served from v3."),
    f(EXPERIMENTAL, "experimental-enable-lease-checkpoint", Bool, "false", W, "Replicate the remaining life of long leases."),
    f(EXPERIMENTAL, "experimental-enable-lease-checkpoint-persist", Bool, "false", W, "Also store it; needs experimental-enable-lease-checkpoint."),
    f(EXPERIMENTAL, "experimental-compaction-batch-limit", Int, "0", W, "Most revisions removed in one step of a compaction (0: 1000)."),
    f(EXPERIMENTAL, "experimental-compaction-sleep-interval", Duration, "0s", W, "Pause between the steps of a compaction (0: 10ms)."),
    f(EXPERIMENTAL, "experimental-peer-skip-client-san-verification", Bool, "false", W, "Do not check the host names in certificates of connecting peers."),
    f(EXPERIMENTAL, "experimental-watch-progress-notify-interval", Duration, "0s", W, "Interval of progress notices to watchers (0: 10m)."),
    f(EXPERIMENTAL, "experimental-downgrade-check-time", Duration, "5s", W, "Interval of looking at a downgrade's progress."),
    f(EXPERIMENTAL, "experimental-memory-mlock", Bool, "false", NO_BBOLT, "Keep the database's pages in memory."),
    f(EXPERIMENTAL, "experimental-warning-apply-duration", Duration, "100ms", W, "Warn about requests that take longer."),
    f(EXPERIMENTAL, "experimental-txn-mode-write-with-shared-buffer", Bool, "true", NO_BBOLT, "Share the read buffer with write transactions that check first."),
    f(EXPERIMENTAL, "experimental-bootstrap-defrag-threshold-megabytes", Uint, "0", W, "Defragment at boot if that frees so much (0: never)."),
    f(EXPERIMENTAL, "experimental-stop-grpc-service-on-defrag", Bool, "false", W, "Report not serving while defragmenting."),
    f(HIDDEN, "experimental-snapshot-catchup-entries", Uint, "5000", W, "Entries kept for slow followers after a snapshot."),

    f(UNSAFE, "force-new-cluster", Bool, "false", W, "Make a cluster of one member out of this member's data."),
    f(UNSAFE, "unsafe-no-fsync", Bool, "false", W, "Do not wait for the disk; a crash loses data."),

    legacy("cluster-active-size"), legacy("cluster-remove-delay"), legacy("cluster-sync-interval"),
    legacy("config"), legacy("force"), legacy("max-result-buffer"), legacy("max-retry-attempts"),
    legacy("peer-heartbeat-interval"), legacy("peer-election-timeout"), legacy("retry-interval"),
    legacy("snapshot"), legacy("v"), legacy("vv"),
    legacy("test.coverprofile"), legacy("test.outputdir"),
];

/// The short usage text, which bad flags print to stderr.
pub const USAGE: &str = "Usage:

  rusd [flags]
    Start the server.

  rusd --version
    Show the version.

  rusd -h | --help
    List the flags.

  rusd --config-file FILE
    Start the server from a YAML file. Other flags and environment variables are then ignored.

  rusd gateway
    Run the TCP gateway.

  rusd grpc-proxy
    Run the gRPC proxy.
";

/// The sections of help, in order.
fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = FLAGS.iter().map(|flag| flag.section).collect();
    sections.dedup();
    sections.retain(|section| !section.is_empty());
    let mut seen = Vec::new();
    sections.retain(|section| !seen.contains(section) && (seen.push(section), true).1);
    sections
}

/// Usage and every flag that is not hidden.
pub fn help() -> String {
    let mut out = String::from(USAGE);
    for section in sections() {
        let _ = writeln!(out, "\n{section}:");
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            let _ = writeln!(out, "  --{} '{}'\n    {}", flag.name, flag.default, flag.help);
            let _ = match flag.effect {
                Effect::Works => Ok(()),
                Effect::AcceptedWithoutEffect(why) => {
                    writeln!(out, "    Accepted without effect: {why}.")
                }
                Effect::Later(why) => writeln!(out, "    Accepted without effect so far: {why}."),
            };
        }
    }
    out
}

/// The text of docs/flags.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Flags\n\nGenerated from the table in `src/cli/flags.rs`; a test compares the two. \
         Names and defaults are etcd 3.5.17's.\n\nEvery flag can be set by its environment \
         variable, or by its key in a `--config-file`.\n\n*Works*: as in etcd. *No effect*: \
         read and checked only, and meant to stay so. *Later*: the same, until what it sets is \
         built.\n",
    );
    for section in sections().into_iter().chain([HIDDEN]) {
        let title = if section == HIDDEN { "Not in help" } else { section };
        let _ = write!(
            out,
            "\n## {title}\n\n| Flag | Default | Variable | File key | In rusd | Meaning \
             |\n|---|---|---|---|---|---|\n"
        );
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            let effect = match flag.effect {
                Effect::Works => "works".to_string(),
                Effect::AcceptedWithoutEffect(why) => format!("no effect: {why}"),
                Effect::Later(why) => format!("later: {why}"),
            };
            let default = match flag.default {
                "" => String::new(),
                default => format!("`{default}`"),
            };
            let yaml = flag.yaml().map_or("–".into(), |key| format!("`{key}`"));
            let _ = writeln!(
                out,
                "| `--{}` | {default} | `{}` | {yaml} | {effect} | {} |",
                flag.name,
                flag.env(),
                flag.help
            );
        }
    }
    out
}
