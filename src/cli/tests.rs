//! Tables of command lines and what becomes of them, where possible against the real etcd.

use std::collections::BTreeSet;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::config::{
    AutoCompaction, ClusterState, Config, MetricsDetail, TlsVersion, V2Deprecation,
};
use super::flags::{FLAGS, Flag, Kind, help, markdown};
use super::parse::{Command, parse};
use super::values::Values;
use crate::obs::log::Level;

fn run(words: &[&str], env: &[(&str, &str)]) -> Command {
    let args: Vec<String> = ["rusd"].iter().chain(words).map(|w| w.to_string()).collect();
    let env: Vec<(String, String)> =
        env.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
    parse(&args, &env)
}

fn serve(words: &[&str]) -> Config {
    match run(words, &[]) {
        Command::Serve(config) => *config,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn fails(command: Command) -> (String, i32) {
    match command {
        Command::Exit { stderr, code } => (stderr, code),
        other => panic!("{other:?}"),
    }
}

/// Code and the line that says why.
fn reason(stderr: &str, code: i32) -> (i32, String) {
    let json: Vec<Value> =
        stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let why = json.iter().rev().find_map(|line| line["error"].as_str());
    let last = json.last().and_then(|line| line["msg"].as_str());
    let first = || stderr.lines().next().unwrap_or_default();
    (code, why.or(last).unwrap_or_else(first).to_string())
}

const ADVERTISE: &str =
    "--advertise-client-urls is required when --listen-client-urls is set explicitly";

/// Words, exit code, reason.
const BAD: &[(&[&str], i32, &str)] = &[
    (&["--listen-client-urls", ""], 1, ADVERTISE),
    (&["--listen-client-urls", "http://localhost:3"], 1, ADVERTISE),
    (
        &["--listen-client-urls", "ftp://a:1"],
        2,
        "invalid value \"ftp://a:1\" for flag -listen-client-urls: URL scheme must be http, \
         https, unix, or unixs: ftp://a:1",
    ),
    (
        &["--listen-client-urls", "http://localhost"],
        2,
        "invalid value \"http://localhost\" for flag -listen-client-urls: URL address does not \
         have the form \"host:port\": http://localhost",
    ),
    (
        &["--listen-peer-urls", "http://a:b"],
        2,
        "invalid value \"http://a:b\" for flag -listen-peer-urls: parse \"http://a:b\": invalid \
         port \":b\" after host",
    ),
    (&["--listen-peer-urls", "http://foo:1"], 1, "expected IP in URL for binding (http://foo:1)"),
    (
        &["--advertise-client-urls", "http://:1"],
        1,
        "--advertise-client-urls \"http://:1\" must be \"host:port\" (unexpected empty host \
         (http://:1))",
    ),
    (
        &["--grpc-keepalive-timeout", "5x"],
        2,
        "invalid value \"5x\" for flag -grpc-keepalive-timeout: parse error",
    ),
    (
        &["--snapshot-count", "abc"],
        2,
        "invalid value \"abc\" for flag -snapshot-count: parse error",
    ),
    (&["--snapshot-count", "-1"], 2, "invalid value \"-1\" for flag -snapshot-count: parse error"),
    (
        &["--snapshot-count", "99999999999999999999"],
        2,
        "invalid value \"99999999999999999999\" for flag -snapshot-count: value out of range",
    ),
    (
        &["--max-concurrent-streams=99999999999"],
        2,
        "invalid value \"99999999999\" for flag -max-concurrent-streams: strconv.ParseUint: \
         parsing \"99999999999\": value out of range",
    ),
    (&["--xyz"], 2, "flag provided but not defined: -xyz"),
    (&["---x"], 2, "bad flag syntax: ---x"),
    (&["--=x"], 2, "bad flag syntax: --=x"),
    (&["--name"], 2, "flag needs an argument: -name"),
    (&["foo"], 1, "'foo' is not a valid flag"),
    (&["--name", "x", "foo", "bar"], 1, "'foo' is not a valid flag"),
    (&["--pre-vote", "false"], 1, "'false' is not a valid flag"),
    (&["-name=x", "-force", "a"], 1, "'a' is not a valid flag"),
    (&["--pre-vote=maybe"], 2, "invalid boolean value \"maybe\" for -pre-vote: parse error"),
    (
        &["--election-timeout", "100"],
        1,
        "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
    ),
    (
        &["--election-timeout", "60000"],
        1,
        "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
    ),
    (
        &[
            "--experimental-enable-distributed-tracing",
            "--experimental-distributed-tracing-sampling-rate=2000000",
        ],
        1,
        "distributed tracing configurition is not valid: (tracing sampling rate must be less than \
         1000000)",
    ),
    (&["--heartbeat-interval", "0"], 1, "--heartbeat-interval must be >0 (set to 0ms)"),
    (
        &["--initial-cluster-state", "weird"],
        2,
        "invalid value \"weird\" for flag -initial-cluster-state: invalid value",
    ),
    (
        &["--v2-deprecation=foo"],
        2,
        "invalid value \"foo\" for flag -v2-deprecation: invalid value \"foo\"",
    ),
    (&["--log-level", "weird"], 2, "panic: unrecognized level: \"weird\""),
    (&["--logger=foo"], 1, "unknown logger option \"foo\""),
    (
        &["--enable-log-rotation"],
        1,
        "--log-outputs requires a single file path when --log-rotate-config-json is defined",
    ),
    (
        &["--log-outputs", "default,stderr"],
        1,
        "multi logoutput for \"default\" is not supported yet",
    ),
    (
        &["--discovery", "http://foo", "--initial-cluster", "a=b"],
        1,
        "multiple discovery or bootstrap flags are set. Choose one \
         of \"initial-cluster\", \"discovery\" or \"discovery-srv\"",
    ),
    (&["--auto-compaction-mode=foo"], 1, "unknown auto-compaction-mode \"foo\""),
    (
        &["--auto-compaction-retention=foo"],
        1,
        "error parsing CompactionRetention: time: invalid duration \"foo\"",
    ),
    (
        &["--experimental-compact-hash-check-time", "0s"],
        1,
        "--experimental-compact-hash-check-time must be >0 (set to 0s)",
    ),
    (
        &["--experimental-enable-lease-checkpoint-persist"],
        1,
        "setting experimental-enable-lease-checkpoint-persist requires \
         experimental-enable-lease-checkpoint",
    ),
    (
        &["--tls-min-version", "foo"],
        1,
        "unexpected TLS version \"foo\" (must be one of: TLS1.2, TLS1.3)",
    ),
    (
        &["--tls-min-version", "TLS1.3", "--tls-max-version", "TLS1.2"],
        1,
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    ),
    (
        &["--cipher-suites", "X", "--tls-min-version", "TLS1.3"],
        1,
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    ),
    (
        &["--cors", "foo"],
        2,
        "invalid value \"foo\" for flag -cors: URL scheme must be http, https, unix, or unixs: foo",
    ),
    (
        &["--listen-metrics-urls", "https://localhost:9"],
        1,
        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
    ),
    (
        &["--enable-v2", "--v2-deprecation=write-only"],
        1,
        "--enable-v2 and --v2-deprecation=write-only are mutually exclusive",
    ),
    (&["--config-file", "/nonexistent"], 1, "open /nonexistent: no such file or directory"),
    (
        &[
            "--listen-client-urls",
            "https://localhost:3",
            "--advertise-client-urls",
            "https://localhost:3",
        ],
        1,
        "TLS key/cert (--cert-file, --key-file) must be provided for client url \
         https://localhost:3 with HTTPS scheme",
    ),
];

#[test]
fn cli_bad_input() {
    for (words, code, want) in BAD {
        let (stderr, got) = fails(run(words, &[]));
        assert_eq!(reason(&stderr, got), (*code, want.to_string()), "{words:?}");
        let has_usage = stderr.contains("\nUsage:\n");
        assert_eq!(has_usage, *code == 2 && !stderr.starts_with("panic"), "{words:?}");
        for line in stderr.lines().filter(|line| line.starts_with('{')) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert!(line["level"].is_string() && line["caller"].is_string());
        }
    }
}

#[test]
fn cli_bad_input_like_the_real_etcd() {
    let Ok(bin) = std::env::var("RUSD_ETCD_BIN") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (words, code, want) in BAD {
        let child = Process::new("timeout")
            .args(["5", &bin])
            .args(*words)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&child.stderr);
        let got = reason(&stderr, child.status.code().unwrap_or(-1));
        assert_eq!(got, (*code, want.to_string()), "{words:?}");
        std::fs::remove_dir_all(dir.path().join("default.etcd")).ok();
    }
}

#[test]
fn cli_flag_names_are_etcds() {
    let ours: BTreeSet<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(ours.len(), FLAGS.len());
    let committed: BTreeSet<&str> = include_str!("../../testdata/etcd-flags.txt").lines().collect();
    assert_eq!(ours, committed);
    let Ok(bin) = std::env::var("RUSD_ETCD_BIN") else {
        return;
    };
    let output = Process::new(bin).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("  --")?.split(' ').next().map(String::from))
            .collect()
    };
    assert_eq!(names(&text), names(help().split_once("Member:").unwrap().1));
}

#[test]
fn cli_every_default_is_readable() {
    for flag in FLAGS {
        let skip = flag.default.is_empty() || flag.kind == Kind::Ignored;
        if !skip {
            Values::default().set(flag, flag.default).unwrap();
        }
    }
}

#[test]
fn cli_docs_match_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/flags.md");
    if std::env::var_os("RUSD_WRITE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let docs = std::fs::read_to_string(path).unwrap();
    assert_eq!(docs, markdown(), "run the test with RUSD_WRITE_DOCS=1");
}

#[test]
fn cli_defaults() {
    let config = serve(&[]);
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir.to_str(), Some("default.etcd"));
    assert_eq!(config.listen_peer_urls[0].to_string(), "http://localhost:2380");
    assert_eq!(config.initial_cluster_text, "default=http://localhost:2380");
    assert_eq!((config.election_ticks(), config.snapshot_count), (10, 100_000));
    assert_eq!(config.max_concurrent_streams, u32::MAX);
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.experimental_compaction_batch_limit, 1000);
    assert_eq!(config.experimental_watch_progress_notify_interval, Duration::from_secs(600));
    assert_eq!(config.client_tls.tls_min_version, TlsVersion::V12);
    assert!(config.pre_vote && config.strict_reconfig_check && config.cors.contains("*"));
    assert_eq!(config.check_bootstrap(|_, _| Err("they differ".into())), Ok(()));
}

#[test]
fn cli_grammar() {
    let config = serve(&["-name", "a", "--name=b", "-client-cert-auth", "--client-cert-auth"]);
    assert_eq!((config.name.as_str(), config.client_tls.client_cert_auth), ("b", true));
    assert_eq!(config.initial_cluster_text, "b=http://localhost:2380");
    let config = serve(&["--initial-cluster-token", "", "--strict-reconfig-check=false"]);
    assert_eq!(config.initial_cluster_token, "");
    assert!(!config.strict_reconfig_check);
    let config = serve(&["--name", "-x", "-test.coverprofile=y", "--snapshot-count", "0x10"]);
    assert_eq!((config.name.as_str(), config.snapshot_count), ("-x", 16));
    let config = serve(&["--"]);
    assert_eq!(config.name, "default");
    let config = serve(&[
        "--listen-client-urls",
        "https://localhost:2,http://localhost:2",
        "--advertise-client-urls",
        "http://localhost:2,https://localhost:2",
        "--auto-tls",
        "--auto-compaction-retention=2",
        "--metrics=extensive",
        "--experimental-corrupt-check-time",
        "1s",
        "--v2-deprecation",
        "not-yet",
        "--enable-v2",
        "--initial-cluster-state",
        "existing",
        "--cipher-suites",
        "A,B",
        "--log-outputs=stdout,stderr,stdout",
        "--log-level",
        "DEBUG",
    ]);
    assert_eq!(config.listen_client_urls[0].to_string(), "http://localhost:2");
    assert_eq!(config.auto_compaction, AutoCompaction::Periodic(Duration::from_secs(7200)));
    assert_eq!(config.metrics, MetricsDetail::Extensive);
    assert_eq!(config.experimental_corrupt_check_time, Duration::from_secs(1));
    assert_eq!(config.v2_deprecation, V2Deprecation::NotYet);
    assert_eq!(config.initial_cluster_state, ClusterState::Existing);
    assert_eq!(config.peer_tls.cipher_suites, ["A", "B"]);
    assert_eq!(config.log.outputs, ["stderr", "stdout"]);
    assert_eq!(config.log.level, Level::Debug);
    let config = serve(&["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"]);
    assert_eq!(config.auto_compaction, AutoCompaction::Revision(1000));
    let config = serve(&["--listen-client-urls=", "--advertise-client-urls=http://a:1"]);
    assert_eq!(config.listen_client_urls[0].to_string(), "http://localhost:2379");
}

#[test]
fn cli_prints_and_subcommands() {
    let Command::Print(text) = run(&["--version"], &[]) else { panic!() };
    assert!(text.starts_with("etcd Version: 3.5.17\nGit SHA: "));
    assert_eq!(text.lines().count(), 5);
    for words in [&["-h"][..], &["--name", "x", "--help", "--xyz"]] {
        assert!(matches!(run(words, &[]), Command::Print(text) if text.contains("\nMember:\n")));
    }
    for words in [&["gateway", "--endpoints=a", "start"][..], &["grpc-proxy", "start"]] {
        assert!(matches!(run(words, &[]), Command::NotYet(name) if name == words[0]));
    }
    let Command::CheckData { dir, wal_dir } = run(&["check-data", "--wal-dir", "w", "d"], &[])
    else {
        panic!()
    };
    assert_eq!((dir.to_str(), wal_dir), (Some("d"), Some("w".into())));
    assert!(matches!(run(&["check-data", "--help"], &[]), Command::Print(_)));
    for words in [&["check-data"][..], &["check-data", "a", "b"], &["check-data", "--odd", "a"]] {
        assert!(matches!(run(words, &[]), Command::Exit { code: 3, .. }));
    }
}

#[test]
fn cli_environment() {
    let env = [("ETCD_NAME", "e"), ("ETCD_FOO", "1"), ("ETCD_WAL_DIR", ""), ("PATH", "/")];
    let Command::Serve(config) = run(&["--pre-vote=0"], &env) else { panic!() };
    assert_eq!((config.name.as_str(), config.pre_vote, config.wal_dir), ("e", false, None));
    let notes: Vec<&str> = config.startup_notes.iter().map(|note| note.msg.as_str()).collect();
    let count = |msg| notes.iter().filter(|note| **note == msg).count();
    assert_eq!(count("recognized and used environment variable"), 1);
    assert_eq!(count("unrecognized environment variable"), 2);
    let (stderr, code) = fails(run(&[], &[("ETCD_SNAPSHOT_COUNT", "abc")]));
    let want = "invalid value \"abc\" for ETCD_SNAPSHOT_COUNT: parse error";
    assert_eq!(reason(&stderr, code), (1, want.into()));
    let (stderr, code) = fails(run(&["--name", "x"], &[("ETCD_NAME", "y")]));
    assert!(
        code == 1 && stderr.contains("\"level\":\"fatal\"") && stderr.contains("is shadowed by")
    );
}

#[test]
fn cli_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yml");
    let path = path.to_str().unwrap();
    let with = |text: &str| {
        std::fs::write(path, text).unwrap();
        run(&["--name", "ignored", "--config-file", path], &[("ETCD_NAME", "y")])
    };
    let text = [
        "name: 'f'",
        "data-dir:",
        "wal-dir:",
        "snapshot-count: 10000",
        "listen-client-urls: http://localhost:1",
        "advertise-client-urls: http://localhost:1",
        "initial-cluster:",
        "cors:",
        "enable-v2: true",
        "proxy: 'off'",
        "discovery-fallback: 'proxy'",
        "log-outputs: [stderr]",
        "log-level: debug",
        "auto-compaction-mode: periodic",
        "auto-compaction-retention: 1",
        "strict-reconfig-check: false",
        "unknown: 1",
        "grpc-keepalive-timeout: 5000000000",
        "client-transport-security:",
        "  cert-file: c",
        "  key-file: k",
        "  client-cert-auth: true",
        "  auto-tls: true",
        "peer-transport-security:",
        "  cert-file:",
        "  allowed-cn: [a, b]",
    ];
    let Command::Serve(config) = with(&text.join("\n")) else { panic!() };
    assert_eq!((config.name.as_str(), config.snapshot_count), ("f", 10_000));
    assert_eq!(config.initial_cluster_text, "f=http://localhost:2380");
    assert!(config.enable_v2 && !config.strict_reconfig_check);
    assert_eq!(config.auto_compaction, AutoCompaction::Periodic(Duration::from_secs(3600)));
    assert_eq!(config.grpc_keepalive_timeout, Duration::from_secs(5));
    assert_eq!(config.client_tls.cert_file, "c");
    assert!(config.client_tls.client_cert_auth && config.client_tls.auto_tls);
    assert_eq!(config.peer_tls.allowed_cn, ["a", "b"]);
    assert_eq!(config.client_tls.tls_min_version, TlsVersion::Unset);
    assert_eq!(config.config_file.as_deref(), Some(path));
    for (text, why) in [
        (
            "election-timeout: 100\n",
            "--election-timeout[100ms] should be at least as 5 times as \
             --heartbeat-interval[100ms]",
        ),
        (
            "election-timeout: abc\n",
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go \
             struct field configYAML.Config.election-timeout of type uint",
        ),
        (
            "experimental-corrupt-check-time: 1s\n",
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go \
             struct field configYAML.Config.experimental-corrupt-check-time of type time.Duration",
        ),
        (
            "max-concurrent-streams: -1\n",
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number -1 into \
             Go struct field configYAML.Config.max-concurrent-streams of type uint32",
        ),
        ("initial-cluster-state: foo\n", "unexpected clusterState \"foo\""),
        (
            "listen-client-urls: ftp://a:1\n",
            "unexpected error setting up listen-client-urls: URL scheme must be http, https, \
             unix, or unixs: ftp://a:1",
        ),
    ] {
        let (stderr, code) = fails(with(text));
        assert_eq!(reason(&stderr, code), (1, why.into()), "{text}");
    }
}

#[test]
fn cli_bootstrap_rules() {
    let check = |words: &[&str]| serve(words).check_bootstrap(|_, _| Err("they differ".into()));
    for (words, want) in [
        (
            &["--name", "y", "--initial-cluster", "x=http://localhost:2380"][..],
            "couldn't find local name \"y\" in the initial cluster configuration",
        ),
        (
            &["--initial-cluster", "default=http://localhost:1"],
            "--initial-cluster has default=http://localhost:1 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380 (they differ)",
        ),
        (
            &["--initial-cluster", "x=foo"],
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            &["--initial-cluster", "default=http://localhost:2380,b=http://localhost:2380"],
            "initial cluster default=http://localhost:2380,b=http://localhost:2380 has duplicate \
             url",
        ),
    ] {
        assert_eq!(check(words), Err(want.to_string()));
    }
    let config =
        serve(&["--initial-cluster", "b=http://b:1,default=http://localhost:2380,b=http://a:1"]);
    let names: Vec<&str> = config.initial_cluster.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "default"]);
    assert_eq!(config.initial_cluster[0].1[0].to_string(), "http://a:1");
}

#[test]
fn cli_keys_and_variables() {
    let find = |name: &str| -> &'static Flag { super::flags::find(name).unwrap() };
    assert_eq!(find("listen-client-urls").env(), "ETCD_LISTEN_CLIENT_URLS");
    let key = find("peer-client-cert-auth").yaml();
    assert_eq!(key.as_deref(), Some("peer-transport-security.client-cert-auth"));
    assert_eq!(find("config-file").yaml(), None);
}
