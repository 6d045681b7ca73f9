//! From a data directory (or none) to a recovered member: lock, WAL, engine, and the committed
//! entries that the engine or the member table still lack.

mod engine;
mod feed;

pub use self::engine::Installer;

use self::engine::{defragment_if_worth_it, open_checkpoint, open_machine};
use self::feed::feed;
use crate::apply::Machine;
use crate::base::ids::{ClusterId, MemberId};
use crate::cli::config::{ClusterState, Config, V2Deprecation};
use crate::cluster::identity;
use crate::cluster::members::Member;
use crate::cluster::state::Cluster;
use crate::cluster::version::{self, Version};
use crate::node::join::{self, Ask};
use crate::node::resolve;
use crate::node::standalone;
use crate::pb::raftpb::HardState;
use crate::raft::bootstrap::bootstrap;
use crate::raft::log::LogStart;
use crate::storage::checkpoint::{self, Checkpoint};
use crate::storage::datadir::DataDir;
use crate::storage::engine::Engine;
use crate::storage::import;
use crate::storage::snap::{self, Snap};
use crate::storage::wal::{Metadata, Replay, Wal};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long names may take to be known at a first start; in a new deployment DNS may lag behind.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

/// A recovered member.
pub struct Booted {
    pub member: MemberId,
    pub cluster_id: ClusterId,
    pub wal: Wal,
    pub log: LogStart,
    pub machine: Machine,
    pub engine: Arc<Engine>,
    /// Tree and table of the members.
    pub cluster: Cluster,
    /// The members as told to one that joins, until its own log tells it.
    pub remotes: Vec<Member>,
    pub applied: u64,
    /// Whether there was a log before this start.
    pub existed: bool,
    /// Index of the newest snapshot that it was recovered from, 0 without one.
    pub snapshot_index: u64,
    /// Holds etcd's lock.
    pub checkpoint: Checkpoint,
    /// Held for its own.
    pub dir: DataDir,
}

/// Recovers, starts a new cluster, or joins one.
pub fn boot(config: &Config, ask: &dyn Ask) -> Result<Booted, String> {
    let mut dir = DataDir::open(&config.data_dir).map_err(|error| error.to_string())?;
    let mut remotes = Vec::new();
    let wal_dir = config.wal_dir.clone().unwrap_or_else(|| dir.wal());
    let existed = Wal::exists(&wal_dir);
    if !existed {
        if dir.database().is_some() {
            let (db, wal) = (dir.snap_db(), wal_dir.display());
            return Err(format!("{} has no log beside it in {wal}", db.display()));
        }
        remotes = start_new(config, &wal_dir, ask)?;
    }
    checkpoint::remove_temporary(&dir.snap()).map_err(|error| error.to_string())?;
    let (mut wal, mut replay) = open_log(config, &wal_dir)?;
    let metadata = replay.metadata;
    let member = MemberId(metadata.node_id);
    let cluster_id = ClusterId(metadata.cluster_id);
    let snap = newest_snap(&dir, &replay)?;
    let snapshot_index = snap.as_ref().map_or(0, |snap| snap.index);
    let mut cluster = cluster_at(snap.as_ref())?;
    install_received(&mut dir, snapshot_index)?;
    dir.remove_old_engines().map_err(|error| error.to_string())?;
    check_v2_keys(config.v2_deprecation, &cluster)?;
    let (engine, mut machine) = open_machine(config, &mut dir, metadata)?;
    refuse_older_than_snapshot(&replay, &dir, snapshot_index, machine.position().0)?;

    let forced = existed && config.force_new_cluster;
    let mut commit = committed(&wal, &replay, machine.position().0)?;
    if forced {
        commit = standalone::kept(commit, &replay.tail);
    }
    feed(&wal, snapshot_index + 1..=commit, &mut machine, &mut cluster)?;
    if forced {
        let fed = commit;
        (wal, replay) = leave_alone(config, wal, &wal_dir, &replay, fed, &cluster)?;
        commit = replay.hard_state.commit.max(fed);
        feed(&wal, fed + 1..=commit, &mut machine, &mut cluster)?;
    }
    machine.flush_position();
    refuse_another_version(&cluster, &machine)?;
    defragment_if_worth_it(config, &engine, &mut machine);
    let hard_state = HardState { commit, ..replay.hard_state };
    if commit > replay.hard_state.commit {
        // What the database or the engine holds was committed; the log is to say so.
        wal.save(Some(&hard_state), &[], true).map_err(|error| error.to_string())?;
    }
    let checkpoint = open_checkpoint(&mut dir, &engine)?;
    let caught_up = snapshot_index.saturating_sub(config.snapshot_catchup_entries);
    let floor = floor(&mut replay, snap.as_ref()).max(caught_up);
    let log = LogStart {
        hard_state,
        conf_state: cluster.members().conf_state(),
        floor,
        last_index: replay.last_index,
        term_runs: replay.term_runs,
        tail: replay.tail,
    };
    tracing::info!(
        "local-member-id" = %member,
        "cluster-id" = %cluster_id,
        "snapshot-index" = snapshot_index,
        "commit-index" = commit,
        revision = machine.reader().revision(),
        "recovered the member from its log"
    );
    Ok(Booted {
        member,
        cluster_id,
        wal,
        log,
        machine,
        engine,
        cluster,
        remotes,
        applied: commit,
        existed,
        snapshot_index,
        checkpoint,
        dir,
    })
}

fn open_log(config: &Config, dir: &Path) -> Result<(Wal, Replay), String> {
    let (mut wal, replay) = Wal::open(dir).map_err(|error| error.to_string())?;
    if let Some(offset) = replay.repaired_at {
        tracing::warn!(offset, "repaired the torn tail of the WAL");
    }
    if config.unsafe_no_fsync {
        tracing::warn!("writing without fsync: a crash of the machine loses acknowledged writes");
        wal.stop_syncing();
    }
    Ok((wal, replay))
}

/// With `--force-new-cluster`: makes this member the only one of its cluster, in the log, which was
/// fed up to the entry at `commit` and is opened again.
fn leave_alone(
    config: &Config,
    mut wal: Wal,
    wal_dir: &Path,
    replay: &Replay,
    commit: u64,
    cluster: &Cluster,
) -> Result<(Wal, Replay), String> {
    let own = MemberId(replay.metadata.node_id);
    let mut peer_urls: Vec<String> =
        config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
    peer_urls.sort();
    let state = HardState { commit, ..replay.hard_state };
    let members = cluster.members();
    let (state, entries) = standalone::entries(members, own, &peer_urls, state, replay.last_index)?;
    tracing::warn!(
        "local-member-id" = %own,
        "commit-index" = commit,
        "discarded-entries" = replay.last_index.saturating_sub(commit),
        "removed-members" = members.iter().filter(|member| member.id != own.0).count(),
        "forcing restart member: it is the only one of its cluster from now on"
    );
    wal.save(Some(&state), &entries, true).map_err(|error| error.to_string())?;
    drop(wal);
    open_log(config, wal_dir)
}

/// The commit index that the log and the engine agree on.
fn committed(wal: &Wal, replay: &Replay, engine_index: u64) -> Result<u64, String> {
    let commit = replay.hard_state.commit.max(engine_index);
    if commit > replay.last_index {
        let (file, offset) = wal.end();
        return Err(format!(
            "the log ends at index {} ({} at offset {offset}), but its commit index is {} and the \
             engine is at {engine_index}: the log was cut or damaged",
            replay.last_index,
            file.display(),
            replay.hard_state.commit,
        ));
    }
    Ok(commit)
}

/// The newest readable snapshot that the log has recorded and committed. There must be one if the
/// log begins later than with entry 1.
fn newest_snap(dir: &DataDir, replay: &Replay) -> Result<Option<Snap>, String> {
    let mut recorded = replay.snapshots.clone();
    recorded.retain(|(index, _)| *index <= replay.hard_state.commit);
    let snap = snap::newest(&dir.snap(), &recorded).map_err(|error| error.to_string())?;
    let begins = replay.first_index;
    if snap.as_ref().map_or(0, |snap| snap.index) + 1 < begins {
        return Err(format!(
            "the log begins at index {begins}, and no readable snapshot in {} reaches that far",
            dir.snap().display()
        ));
    }
    Ok(snap)
}

/// Members and tree before the first entry that is fed.
fn cluster_at(snap: Option<&Snap>) -> Result<Cluster, String> {
    let Some(snap) = snap else { return Ok(Cluster::default()) };
    let cluster = Cluster::from_snapshot(&snap.tree, &snap.conf_state)
        .map_err(|error| format!("the snapshot at index {}: {error}", snap.index))?;
    tracing::info!(index = snap.index, term = snap.term, "the log follows a snapshot");
    Ok(cluster)
}

/// Whether a member of this version may start in this cluster.
fn refuse_another_version(cluster: &Cluster, machine: &Machine) -> Result<(), String> {
    let Some(own) = Version::parse(crate::grpc::VERSION) else { unreachable!("three numbers") };
    let decided = cluster.members().version();
    let allowed = version::may_start(own, decided, machine.downgrade());
    allowed.map_err(|why| {
        let decided = decided.unwrap_or("not_decided");
        let target = machine.downgrade().unwrap_or("none");
        format!(
            "{why} (determined-cluster-version: {decided}, target-cluster-version: {target}, \
             current-server-version: {})",
            crate::grpc::VERSION
        )
    })
}

/// Whether a snapshot may hold keys of the v2 API (etcd v3.5.17 `server.go`
/// assertNoV2StoreContent).
pub(super) fn check_v2_keys(stage: V2Deprecation, cluster: &Cluster) -> Result<(), String> {
    if !cluster.has_v2_keys() {
        return Ok(());
    }
    if stage != V2Deprecation::NotYet {
        let stage = stage.as_str();
        return Err(format!(
            "detected disallowed custom content in v2store for stage --v2-deprecation={stage}"
        ));
    }
    tracing::warn!("detected custom v2store content: there are keys of the v2 API");
    Ok(())
}

/// An etcd that ended between taking a leader's snapshot and giving its database the name leaves
/// one that is older than the snapshot (etcd v3.5.17 `server/etcdserver/backend.go`
/// recoverSnapshotBackend).
fn install_received(dir: &mut DataDir, snapshot_index: u64) -> Result<(), String> {
    // One that cannot be read is told of when the engine is opened.
    let reached =
        dir.database().map_or(0, |database| import::consistent_index(database).unwrap_or(0));
    if reached < snapshot_index
        && dir.install_received(snapshot_index).map_err(|error| error.to_string())?
    {
        tracing::warn!(
            "consistent-index" = reached,
            "snapshot-index" = snapshot_index,
            "put the database that came with the snapshot into its place"
        );
    }
    Ok(())
}

/// What the newest snapshot covers may be in no entry of the log any more.
fn refuse_older_than_snapshot(
    replay: &Replay,
    dir: &DataDir,
    snapshot_index: u64,
    engine_index: u64,
) -> Result<(), String> {
    let committed = replay.snapshots.iter().filter(|(at, _)| *at <= replay.hard_state.commit);
    let newest = committed.map(|(at, _)| *at).max().unwrap_or(0).max(snapshot_index);
    if newest > engine_index {
        let db = dir.snap_db();
        return Err(format!(
            "the log has a snapshot at index {newest}, but {} is at {engine_index}, and there is \
             no {newest:016x}.snap.db that came with it: the database is an older one",
            db.display()
        ));
    }
    Ok(())
}

/// Up to which index the log is not for others: what it does not hold, and the snapshot of a
/// restored cluster, whose state is in no entry. No other snapshot is of term 1: the empty entry of
/// the first leader, of term 2, comes before anything else is written.
fn floor(replay: &mut Replay, snap: Option<&Snap>) -> u64 {
    let restored = replay.snapshots.iter().filter(|(_, term)| *term <= 1).map(|(at, _)| *at);
    let restored = restored.max().unwrap_or(0);
    let begins = replay.first_index;
    let before = match snap {
        _ if begins <= 1 => 0,
        // Of the entry before the first nothing is known but what the snapshot says.
        Some(snap) if snap.index + 1 == begins => {
            replay.term_runs.insert(0, (snap.index, snap.term));
            snap.index
        }
        _ => begins,
    };
    restored.max(before)
}

/// Begins a log; the members of the cluster that it joins, if it does.
fn start_new(config: &Config, wal_dir: &Path, ask: &dyn Ask) -> Result<Vec<Member>, String> {
    config.check_bootstrap(|a, b| resolve::equal(a, b, RESOLVE_TIMEOUT))?;
    if config.initial_cluster_state == ClusterState::Existing {
        let found = join::existing(config, ask)?;
        let metadata = Metadata { node_id: found.own.0, cluster_id: found.cluster.0 };
        Wal::create(wal_dir, metadata).map_err(|error| error.to_string())?;
        tracing::info!(
            "local-member-id" = %found.own,
            "cluster-id" = %found.cluster,
            "starting local member of an existing cluster"
        );
        return Ok(found.members);
    }
    let token = &config.initial_cluster_token;
    let members: Vec<Member> = config
        .initial_cluster
        .iter()
        .map(|(name, urls)| {
            let mut peer_urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            peer_urls.sort();
            let id = identity::member_id(&peer_urls, token).0;
            Member { id, peer_urls, name: name.clone(), ..Member::default() }
        })
        .collect();
    let ids: Vec<MemberId> = members.iter().map(|member| MemberId(member.id)).collect();
    let Some(own) = members.iter().find(|member| member.name == config.name) else {
        return Err(format!("couldn't find local name {:?} in the initial cluster", config.name));
    };
    join::not_bootstrapped(config, MemberId(own.id), ask)?;
    let metadata = Metadata { node_id: own.id, cluster_id: identity::cluster_id(&ids).0 };
    let (hard_state, entries) = bootstrap(&members);
    let mut wal = Wal::create(wal_dir, metadata).map_err(|error| error.to_string())?;
    wal.save(Some(&hard_state), &entries, true).map_err(|error| error.to_string())?;
    tracing::info!(
        "local-member-id" = %MemberId(own.id),
        "cluster-id" = %ClusterId(metadata.cluster_id),
        "starting local member of a new cluster"
    );
    Ok(Vec::new())
}

#[cfg(test)]
mod tests;
