//! What a member does once raft runs: it tells the cluster its name and client URLs, and as leader
//! it decides the cluster version.

use crate::actors::core::Core;
use crate::actors::handle::Node as _;
use crate::actors::inbox::Ask;
use crate::base::url::Url;
use crate::cli::config::Config;
use crate::cluster::members::{publish_request, version_request};
use crate::node::glue::Connector;
use crate::transport::rafthttp::{self, Transport};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the leader compares versions (etcd v3.5.17 monitorVersionInterval).
const VERSION_INTERVAL: Duration = Duration::from_secs(5);
/// How soon it looks for the first time, and while no version is decided.
const VERSION_INTERVAL_FIRST: Duration = Duration::from_millis(200);
/// The same for a member that need not ask anyone: others can join once there is a version.
const VERSION_INTERVAL_ALONE: Duration = Duration::from_millis(20);
/// A member that does not answer in this time counts as unreachable.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);
/// The version that a cluster has while not every member can be asked.
const VERSION_MIN: &str = "3.0.0";

/// Ticks of the first election timeout that are never skipped.
const TICKS_LEFT: usize = 2;
/// How often reachable peers are counted at the start, and how many times: five seconds.
const PEER_LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PEER_LOOKS: usize = 100;

/// Publishes name and client URLs, however long it takes to find a leader.
pub async fn publish(core: &Core, config: &Config) {
    let urls: Vec<String> = config.advertise_client_urls.iter().map(ToString::to_string).collect();
    loop {
        let request = publish_request(core.shared.member_id, &config.name, &urls);
        match core.propose_v2(request).await {
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(?error, "failed to publish local member to cluster through raft");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tracing::info!(
        "local-member-id" = %core.shared.member_id,
        "cluster-id" = %core.shared.cluster_id,
        "published local member to cluster through raft"
    );
}

/// Skips most of the first election timeout once two peers are reachable, so that a cluster that
/// starts as a whole has a leader sooner; a leader that is there makes itself heard within what is
/// left (etcd v3.5.17 `server.go` adjustTicks).
pub fn spawn_tick_advance(core: Arc<Core>, config: &Config, transport: Transport) {
    let ticks = config.election_timeout_ms / config.heartbeat_interval_ms;
    let ticks = usize::try_from(ticks).unwrap_or(0).saturating_sub(TICKS_LEFT);
    if !config.initial_election_tick_advance || core.shared.members().iter().count() < 3 {
        return;
    }
    tokio::spawn(async move {
        for _ in 0..PEER_LOOKS {
            tokio::time::sleep(PEER_LOOK_INTERVAL).await;
            if core.shared.standing().leader.0 != 0 {
                return;
            }
            if transport.active_peers() > 1 {
                tracing::info!("forward-ticks" = ticks, "initialized peer connections");
                let _ = core.shared.inbox.ask(Ask::Advance(ticks));
                return;
            }
        }
    });
}

/// Watches over the cluster version while this member leads.
pub fn spawn_version_monitor(
    core: Arc<Core>,
    connector: Arc<Connector>,
    mut stopping: watch::Receiver<bool>,
) {
    tokio::spawn(async move {
        loop {
            let decided = core.cluster_version();
            let pause = match &decided {
                Some(_) => VERSION_INTERVAL,
                None if core.shared.members().iter().count() == 1 => VERSION_INTERVAL_ALONE,
                None => VERSION_INTERVAL_FIRST,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stopping.changed() => return,
            }
            if !core.shared.standing().is_leader {
                continue;
            }
            let lowest = lowest_version(&core, &connector).await;
            let wanted = lowest.unwrap_or_else(|| VERSION_MIN.to_owned());
            let newer = decided.as_deref().is_none_or(|decided| is_newer(&wanted, decided));
            if !newer {
                continue;
            }
            match core.propose_v2(version_request(&wanted)).await {
                Ok(_) => tracing::info!("cluster-version" = %wanted, "set the cluster version"),
                Err(error) => tracing::warn!(?error, "failed to update cluster version"),
            }
        }
    });
}

/// `major.minor.0` of the oldest member, or `None` while one cannot be asked.
async fn lowest_version(core: &Core, connector: &Arc<Connector>) -> Option<String> {
    let mut lowest = parse(crate::grpc::VERSION)?;
    for member in core.shared.members().iter() {
        if member.id == core.shared.member_id.0 {
            continue;
        }
        let urls: Vec<Url> =
            member.peer_urls.iter().filter_map(|url| Url::parse(url).ok()).collect();
        let asked = rafthttp::get_version(connector.as_ref(), &urls, VERSION_TIMEOUT).await;
        let (server, _) = asked.ok()?;
        lowest = lowest.min(parse(&server)?);
    }
    Some(format!("{}.{}.0", lowest.0, lowest.1))
}

fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn is_newer(wanted: &str, decided: &str) -> bool {
    match (parse(wanted), parse(decided)) {
        (Some(wanted), Some(decided)) => wanted > decided,
        _ => false,
    }
}
