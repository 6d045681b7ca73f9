//! etcd's rules about single settings and groups of them, checked while flags are read.

use super::{AutoCompaction, Refusal, TlsVersion};
use crate::base::url::{self, Url, split_host_port};
use crate::cli::govalue;
use crate::cli::values::Values;
use crate::obs::log::{Level, LogConfig, Note, Rotation};
use std::net::IpAddr;
use std::time::Duration;

/// Longest election timeout that etcd accepts.
const ELECTION_MS_MAX: u64 = 50_000;
/// Most of a million traces that may be kept.
const TRACES_OF_A_MILLION: i64 = 1_000_000;

/// Go's durations may be negative; every use of them here means zero by that.
pub(super) fn clamp(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or_default())
}

pub(super) fn log_config(v: &Values) -> Result<LogConfig, Refusal> {
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
            return Err("--log-outputs requires a single file path when --log-rotate-config-json \
             is defined"
                .to_string()
                .into());
        }
        let parsed = serde_json::from_str::<Rotation>(v.text("log-rotation-config-json"));
        rotation =
            Some(parsed.map_err(|why| format!("improperly formatted log rotation config: {why}"))?);
    }
    let level = Level::parse(v.text("log-level"))
        .ok_or_else(|| Refusal::Panic(format!("unrecognized level: {:?}", v.text("log-level"))))?;
    Ok(LogConfig { level, outputs, rotation })
}

pub(super) fn check_bind(urls: &[Url]) -> Result<(), String> {
    for url in urls.iter().filter(|url| !url.is_unix()) {
        let (host, _) = split_host_port(&url.host)?;
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(())
}

pub(super) fn check_hosts(flag: &str, v: &Values) -> Result<(), String> {
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

pub(super) fn check_timing(v: &Values) -> Result<(), String> {
    let (tick, election) = (v.u64("heartbeat-interval"), v.u64("election-timeout"));
    if tick == 0 {
        return Err("--heartbeat-interval must be >0 (set to 0ms)".into());
    }
    if election == 0 {
        return Err("--election-timeout must be >0 (set to 0ms)".into());
    }
    if tick.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as \
             --heartbeat-interval[{tick}ms]"
        ));
    }
    if election > ELECTION_MS_MAX {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than \
             {ELECTION_MS_MAX}ms"
        ));
    }
    Ok(())
}

pub(super) fn check_experimental(v: &Values, notes: &mut Vec<Note>) -> Result<(), String> {
    let checkpoint = v.bool("experimental-enable-lease-checkpoint");
    let persist = v.bool("experimental-enable-lease-checkpoint-persist");
    if checkpoint && !persist {
        notes.push(Note::warn(
            "Detected that checkpointing is enabled without persistence. \
         Consider enabling experimental-enable-lease-checkpoint-persist",
        ));
    }
    if persist && !checkpoint {
        return Err("setting experimental-enable-lease-checkpoint-persist requires \
         experimental-enable-lease-checkpoint"
            .into());
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

/// Traces are not exported; what etcd refuses about them is refused all the same.
pub(super) fn check_tracing(v: &Values) -> Result<(), String> {
    let rate = v.i64("experimental-distributed-tracing-sampling-rate");
    let why = match rate {
        _ if !v.bool("experimental-enable-distributed-tracing") => return Ok(()),
        ..0 => "tracing sampling rate must be positive".to_owned(),
        0..=TRACES_OF_A_MILLION => return Ok(()),
        _ => format!("tracing sampling rate must be less than {TRACES_OF_A_MILLION}"),
    };
    Err(format!("distributed tracing configurition is not valid: ({why})"))
}

pub(super) fn tls_versions(
    v: &Values,
    from_file: bool,
) -> Result<(TlsVersion, TlsVersion), String> {
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

pub(super) fn auto_compaction(
    mode: &str,
    v: &Values,
    from_file: bool,
) -> Result<AutoCompaction, Refusal> {
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
