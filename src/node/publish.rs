//! What a member does once raft runs: it tells the cluster its name and client URLs, and as leader
//! it decides the cluster version.

use crate::actors::core::Core;
use crate::actors::handle::Node as _;
use crate::actors::handle::downgrade::Downgrading as _;
use crate::actors::inbox::Ask;
use crate::base::url::Url;
use crate::cli::config::Config;
use crate::cluster::members::{Member, publish_request, version_request};
use crate::cluster::version::Version;
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
const VERSION_MIN: Version = Version { major: 3, minor: 0 };

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
            let wanted = match (&decided, lowest) {
                (None, lowest) => lowest.unwrap_or(VERSION_MIN),
                (Some(decided), Some(lowest)) => match Version::parse(decided) {
                    Some(decided) if decided.may_become(lowest) => lowest,
                    _ => continue,
                },
                (Some(_), None) => continue,
            };
            match core.propose_v2(version_request(&wanted.to_string())).await {
                Ok(_) => tracing::info!("cluster-version" = %wanted, "set the cluster version"),
                Err(error) => tracing::warn!(?error, "failed to update cluster version"),
            }
        }
    });
}

/// The version of the oldest member, or `None` while one cannot be asked.
async fn lowest_version(core: &Core, connector: &Connector) -> Option<Version> {
    let mut lowest = Version::parse(crate::grpc::VERSION)?;
    for member in core.shared.members().iter() {
        if member.id == core.shared.member_id.0 {
            continue;
        }
        let (server, _) = versions(member, connector).await?;
        lowest = lowest.min(Version::parse(&server)?);
    }
    Some(lowest)
}

/// A member's server version and the cluster version that it knows.
async fn versions(member: &Member, connector: &Connector) -> Option<(String, String)> {
    let urls: Vec<Url> = member.peer_urls.iter().filter_map(|url| Url::parse(url).ok()).collect();
    rafthttp::get_version(connector, &urls, VERSION_TIMEOUT).await.ok()
}

/// While this member leads, ends a downgrade that has arrived: one after which all members know
/// the cluster to have its version (etcd v3.5.17 `etcdserver/server.go` monitorDowngrade).
pub fn spawn_downgrade_monitor(
    core: Arc<Core>,
    connector: Arc<Connector>,
    interval: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    if interval.is_zero() {
        return;
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = stopping.changed() => return,
            }
            let target = core.shared.downgrade();
            let Some(target) = target.as_deref() else { continue };
            if !core.shared.standing().is_leader || !has_arrived(target, &core, &connector).await {
                continue;
            }
            tracing::info!("cluster-version" = target, "the cluster has been downgraded");
            if let Err(error) = core.cancel().await {
                tracing::warn!(?error, "failed to cancel downgrade");
            }
        }
    });
}

async fn has_arrived(target: &str, core: &Core, connector: &Connector) -> bool {
    let target = Version::parse(target);
    let arrived = |cluster: &str| Version::parse(cluster).is_some_and(|at| Some(at) == target);
    for member in core.shared.members().iter() {
        let cluster = match member.id == core.shared.member_id.0 {
            true => core.cluster_version(),
            false => versions(member, connector).await.map(|(_, cluster)| cluster),
        };
        if !cluster.as_deref().is_some_and(arrived) {
            return false;
        }
    }
    true
}
