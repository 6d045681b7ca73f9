//! From a data directory (or none) to a recovered member: lock, WAL, engine, and the committed
//! entries that the engine or the member table still lack.

use crate::actors::checkpointer::{self, Fresh};
use crate::actors::rt;
use crate::apply::{self, Machine, Options, Payload, payload};
use crate::base::clock::{Clock as _, SystemClock};
use crate::base::failpoint;
use crate::base::ids::{ClusterId, MemberId};
use crate::cli::config::{ClusterState, Config, V2Deprecation};
use crate::cluster::identity;
use crate::cluster::members::Member;
use crate::cluster::state::Cluster;
use crate::cluster::version::{self, Version};
use crate::mvcc::backend::{Backend as _, Op};
use crate::node::join::{self, Ask};
use crate::node::resolve;
use crate::node::standalone;
use crate::pb::raftpb::{Entry, HardState};
use crate::raft::bootstrap::bootstrap;
use crate::raft::driver::Change;
use crate::raft::log::LogStart;
use crate::storage::check::{self, Agreement};
use crate::storage::checkpoint::{self, Checkpoint, Way};
use crate::storage::datadir::DataDir;
use crate::storage::engine::{Engine, OpenKind, Opened};
use crate::storage::import;
use crate::storage::snap::{self, Snap};
use crate::storage::wal::{Metadata, Replay, Wal, WalError};
use crate::v2::Time;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
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

/// With `--experimental-bootstrap-defrag-threshold-megabytes` (etcd v3.5.17 `server.go`
/// maybeDefragBackend).
fn defragment_if_worth_it(config: &Config, engine: &Engine, machine: &mut Machine) {
    let threshold = config.experimental_bootstrap_defrag_threshold_megabytes;
    if threshold == 0 {
        return;
    }
    let threshold = threshold.saturating_mul(1024 * 1024);
    let reader = machine.reader();
    let (size, in_use) = (reader.size_bytes(), reader.size_in_use_bytes());
    if size.saturating_sub(in_use) < threshold {
        tracing::info!(
            "current-db-size-bytes" = size,
            "current-db-size-in-use-bytes" = in_use,
            "experimental-bootstrap-defrag-threshold-bytes" = threshold,
            "Skipping defragmentation"
        );
        return;
    }
    tracing::info!("current-db-size-bytes" = size, "defragmenting");
    if let Err(error) = engine.compact() {
        tracing::warn!(%error, "failed to defragment");
        return;
    }
    machine.shrink();
    let size = machine.reader().size_bytes();
    tracing::info!("current-db-size-bytes" = size, "finished defragmenting directory");
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

/// The checkpoint as it is; a member has one from its first start on.
fn open_checkpoint(dir: &mut DataDir, engine: &Engine) -> Result<Checkpoint, String> {
    let snap = dir.snap();
    if let Some(file) = dir.take_database() {
        return Checkpoint::of(&snap, file).map_err(|error| error.to_string());
    }
    let mut checkpoint = Checkpoint::none(&snap);
    let written = checkpoint
        .prepare(engine, Way::Replace, &mut || true)
        .and_then(|prepared| checkpoint.publish(prepared, engine));
    if let Err(error) = written {
        tracing::error!(%error, "failed to write the first checkpoint; it is tried again");
    }
    Ok(checkpoint)
}

/// Puts a leader's snapshot into the place of what a running member has.
pub struct Installer {
    dir: DataDir,
    metadata: Metadata,
    options: Options,
}

impl Installer {
    /// For a member that runs in this directory.
    pub fn new(config: &Config, dir: DataDir, member: MemberId, cluster: ClusterId) -> Installer {
        let metadata = Metadata { node_id: member.0, cluster_id: cluster.0 };
        Installer { dir, metadata, options: options(config) }
    }
}

impl checkpointer::Installer for Installer {
    fn install(&mut self, index: u64) -> Result<Fresh, String> {
        failpoint::hit(failpoint::INSTALL_RENAME);
        if !self.dir.install_received(index).map_err(|error| error.to_string())? {
            return Err("the database that came with it is gone".to_owned());
        }
        let Some(database) = self.dir.take_database() else { unreachable!("just put there") };
        failpoint::hit(failpoint::INSTALL_IMPORT);
        let path = self.dir.engine_at(index);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|error| error.to_string())?;
        }
        let on_fatal = Box::new(|reason: &str| rt::fatal(reason));
        let opened = Engine::open(&path, self.metadata, on_fatal);
        let engine = Arc::new(opened.map_err(|error| error.to_string())?.engine);
        import::import(&database, &engine).map_err(|error| error.to_string())?;
        let machine = Machine::open(engine.clone(), self.options);
        let machine = machine.map_err(|error| error.to_string())?;
        let checkpoint = Checkpoint::of(&self.dir.snap(), database);
        let checkpoint = checkpoint.map_err(|error| error.to_string())?;
        Ok(Fresh { checkpoint, engine, machine })
    }
}

fn options(config: &Config) -> Options {
    Options {
        min_ttl: min_lease_ttl(config.election_timeout_ms),
        quota_bytes: config.quota_backend_bytes,
        persist_checkpoints: config.experimental_enable_lease_checkpoint_persist,
    }
}

/// Leases live at least one and a half elections, in whole seconds
/// (etcd v3.5.17 `server.go` NewServer minTTL).
fn min_lease_ttl(election_timeout_ms: u64) -> i64 {
    let millis = (3 * election_timeout_ms).div_ceil(2);
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX)
}

/// Opens the engine and the machine on it; damage found on the way means a rebuild from etcd's
/// database file, if there is one, and the log.
fn open_machine(
    config: &Config,
    dir: &mut DataDir,
    metadata: Metadata,
) -> Result<(Arc<Engine>, Machine), String> {
    let mut damage = String::new();
    for _ in 0..2 {
        let engine = Arc::new(open_engine(dir, metadata)?);
        match Machine::open(engine.clone(), options(config)) {
            Ok(machine) => return Ok((engine, machine)),
            Err(error) => {
                tracing::warn!(%error, "the engine is damaged: rebuilding it");
                damage = error.to_string();
                engine.mark_damaged(&damage).map_err(|error| error.to_string())?;
                drop(engine);
            }
        }
    }
    Err(format!("the engine is damaged right after it was rebuilt: {damage}"))
}

/// Opens the engine, filled from etcd's database file if it is not, or from another state of it:
/// whoever changed the file meant it. Where no transaction did, nobody meant it.
fn open_engine(dir: &mut DataDir, metadata: Metadata) -> Result<Engine, String> {
    let path = dir.engine();
    let open = || {
        let on_fatal = Box::new(|reason: &str| rt::fatal(reason));
        let opened = Engine::open(&path, metadata, on_fatal);
        opened.map_err(|error| error.to_string())
    };
    let Opened { engine, kind } = open()?;
    let Some(database) = dir.database() else { return Ok(engine) };
    let db = dir.snap_db();
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", db.display());
    let reached = import::consistent_index(database);
    let mut known = checkpoint::is_known(database, &engine).map_err(|error| named(&error))?;
    if !known && checkpoint::has_known_state(database, &engine).map_err(|error| named(&error))? {
        if is_damaged(&db, database, &path, &engine)? {
            dir.forget_database();
            return Ok(engine);
        }
        known = true;
    }
    let reached = reached.map_err(|error| named(&error))?;
    if known && engine.position().0 >= reached {
        return Ok(engine);
    }
    let engine = if kind == OpenKind::Existing {
        let reason = match known {
            true => "it is behind etcd's database file",
            false => "etcd's database file is not the one that rusd imported or wrote last",
        };
        engine.mark_damaged(reason).map_err(|error| error.to_string())?;
        drop(engine);
        open()?.engine
    } else {
        engine
    };
    import::import(database, &engine).map_err(|error| named(&error))?;
    Ok(engine)
}

/// Whether the file, which no transaction has changed since it and the engine were together, is
/// none any more. The engine's rows have checksums, the file's have not: if they differ, a start
/// could serve what nobody wrote.
fn is_damaged(db: &Path, database: &File, dir: &Path, engine: &Engine) -> Result<bool, String> {
    let agreement = check::agreement(db, database, dir, engine);
    match agreement.map_err(|error| error.to_string())? {
        Agreement::Same => Ok(false),
        Agreement::Damaged(reason) => {
            let path = db.display();
            tracing::warn!(%path, reason, "etcd's database file is damaged: it is written anew");
            Ok(true)
        }
        Agreement::Differs(row) => Err(format!(
            "{}: {row} is not what the engine has, and no transaction has changed it: the file is \
             damaged, or was exchanged. Remove it to go on from {}, or that to go on from the file",
            db.display(),
            dir.display()
        )),
    }
}

/// Feeds the committed entries: all to the cluster's tree and table, those above its position to
/// the machine. Rows that membership leaves in the engine are compared with what is there.
fn feed(
    wal: &Wal,
    range: RangeInclusive<u64>,
    machine: &mut Machine,
    cluster: &mut Cluster,
) -> Result<(), String> {
    let mut rows = BTreeMap::new();
    if !range.is_empty() {
        let mut visit = |entry: Entry| {
            let left = feed_entry(&entry, machine, cluster)?;
            rows.extend(left.into_iter().map(|(bucket, key, value)| ((bucket, key), value)));
            Ok(())
        };
        let (from, commit) = range.into_inner();
        wal.reader().for_each(from, commit, &mut visit).map_err(|error| error.to_string())?;
    }
    let mended = machine.mend(rows).map_err(|error| error.to_string())?;
    if mended > 0 {
        tracing::info!(rows = mended, "wrote membership rows that the engine lacked");
    }
    Ok(())
}

/// What the entry leaves in the engine on behalf of membership.
fn feed_entry(
    entry: &Entry,
    machine: &mut Machine,
    cluster: &mut Cluster,
) -> Result<Vec<Op>, WalError> {
    let (index, term) = (entry.index, entry.term);
    if let Some(change) = Change::of(entry) {
        let mut rows = Vec::new();
        if let Change::V1(change) = &change {
            let outcome = cluster.change(change);
            if let Err(rejected) = &outcome {
                tracing::warn!(error = %rejected, index, "rejected a conf change");
            }
            rows = apply::conf_change_rows(&outcome, cluster.members());
        }
        machine.record(index, term, rows.clone());
        return Ok(rows);
    }
    let held =
        payload(entry).map_err(|error| WalError::Stopped(format!("entry {index}: {error}")))?;
    match held {
        Payload::V3(request) => {
            cluster.apply_v3(&request);
            if index > machine.position().0 {
                machine.apply(index, term, &request);
            }
            Ok(apply::v3_rows(&request))
        }
        Payload::V2(request) => {
            // What it refuses is refused by all members.
            let _ = cluster.apply_v2(&request, Time::of_day(SystemClock.unix()));
            let rows = apply::v2_rows(&request);
            machine.record(index, term, rows.clone());
            Ok(rows)
        }
        Payload::Empty => {
            machine.skip(index, term);
            Ok(Vec::new())
        }
    }
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
mod tests {
    use super::*;
    use crate::base::url::Url;
    use crate::cli::{self, Command};
    use crate::mvcc::backend::{Batch, Bucket};
    use crate::pb::mvccpb::KeyValue;
    use crate::storage::bbolt::{Db, Writer};
    use crate::transport::rafthttp;
    use bytes::Bytes;
    use prost::Message as _;

    /// No member is there.
    struct Nobody;

    impl Ask for Nobody {
        fn members(
            &self,
            _: &[Url],
            _: Duration,
        ) -> Result<(ClusterId, Vec<rafthttp::Member>), String> {
            Err("nobody is there".to_owned())
        }

        fn version(&self, _: &[Url], _: Duration) -> Result<(String, String), String> {
            Err("nobody is there".to_owned())
        }

        fn downgrade_enabled(&self, _: &[Url], _: Duration) -> Result<bool, String> {
            Err("nobody is there".to_owned())
        }
    }

    fn config(dir: &Path, words: &[&str]) -> Config {
        let mut args = vec!["rusd".to_owned(), format!("--data-dir={}", dir.display())];
        args.extend(words.iter().map(|word| (*word).to_owned()));
        match cli::parse(&args, &[]) {
            Command::Serve(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    /// A log that commits `committed` of three members' bootstrap entries and an entry behind.
    fn write_cluster(config: &Config, committed: u64) -> MemberId {
        let members = [1, 2, 3].map(|n| {
            let peer_urls = vec![format!("http://m{n}:1")];
            let id = identity::member_id(&peer_urls, "").0;
            Member { id, peer_urls, ..Member::default() }
        });
        let (state, mut entries) = bootstrap(&members);
        entries.push(Entry { term: 1, index: 4, ..Entry::default() });
        let metadata = Metadata { node_id: members[1].id, cluster_id: 9 };
        let mut wal = Wal::create(&config.data_dir.join("member/wal"), metadata).unwrap();
        let state = HardState { commit: committed, ..state };
        wal.save(Some(&state), &entries, true).unwrap();
        MemberId(metadata.node_id)
    }

    #[test]
    fn boot_forced_leaves_the_member_alone() {
        // All of the members are committed, and the entry behind stays; or not even this one.
        for (committed, commit) in [(3, 6), (0, 1)] {
            let dir = tempfile::tempdir().unwrap();
            let (plain, forced) =
                (config(dir.path(), &[]), config(dir.path(), &["--force-new-cluster"]));
            let own = write_cluster(&plain, committed);
            // Again and again, as a start script may.
            for config in [&forced, &plain, &forced] {
                let booted = boot(config, &Nobody).unwrap();
                assert_eq!((booted.applied, booted.log.last_index), (commit, commit));
                assert!(booted.log.tail.is_empty());
                assert_eq!(booted.log.hard_state.commit, commit);
                assert_eq!(booted.log.conf_state.voters, [own.0]);
                let ids = booted.cluster.members().iter().map(|member| member.id);
                assert_eq!(ids.collect::<Vec<_>>(), [own.0]);
                booted.engine.close().unwrap();
            }
        }
    }

    #[test]
    fn boot_forced_without_data_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let booted = boot(&config(dir.path(), &["--force-new-cluster"]), &Nobody).unwrap();
        assert_eq!((booted.applied, booted.log.last_index), (1, 1));
        booted.engine.close().unwrap();
    }

    #[test]
    fn boot_mends_rows_of_an_older_engine() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        let first = boot(&config, &Nobody).unwrap();
        let rows = [
            (Bucket::Members, Bytes::from(first.member.to_string())),
            (Bucket::Meta, Bytes::from_static(b"confState")),
            (Bucket::Auth, Bytes::from_static(b"authRevision")),
        ];
        let read =
            |booted: &Booted| rows.clone().map(|(b, key)| booted.engine.get(b, &key).unwrap());
        let before = read(&first);
        assert!(before.iter().all(Option::is_some), "{before:?}");
        let (consistent_index, term) = first.engine.position();
        assert_eq!((consistent_index, term), (1, 1));
        let ops = rows.clone().map(|(bucket, key)| (bucket, key, None)).to_vec();
        first.engine.submit(Batch { ops, consistent_index, term, ..Batch::default() });
        assert_eq!(read(&first), [None, None, None]);
        first.engine.close().unwrap();
        drop(first);
        let again = boot(&config, &Nobody).unwrap();
        assert_eq!(read(&again), before);
        again.engine.close().unwrap();
    }

    /// Makes etcd's database of a directory: at index 1 and with a row for each revision.
    fn write_database(dir: &Path, revisions: std::ops::Range<u64>, txid: u64) {
        let mut writer = Writer::new(Vec::new());
        writer.bucket(b"key").unwrap();
        for main in revisions {
            let key = [&main.to_be_bytes()[..], b"_", &[0; 8]].concat();
            let row = KeyValue {
                key: format!("k{main}").into(),
                mod_revision: main as i64,
                create_revision: main as i64,
                version: 1,
                ..KeyValue::default()
            };
            writer.row(&key, &row.encode_to_vec()).unwrap();
        }
        writer.bucket(b"meta").unwrap();
        writer.row(b"consistent_index", &1u64.to_be_bytes()).unwrap();
        writer.row(b"term", &1u64.to_be_bytes()).unwrap();
        let (plan, pages) = writer.finish().unwrap();
        let file = [plan.meta_pages(txid), pages].concat();
        std::fs::write(dir.join("member/snap/db"), file).unwrap();
    }

    fn boot_revision(config: &Config) -> i64 {
        let booted = boot(config, &Nobody).unwrap();
        booted.engine.close().unwrap();
        assert_eq!(booted.cluster.members().iter().count(), 1);
        booted.machine.revision()
    }

    #[test]
    fn boot_tells_a_damaged_database_from_a_changed_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        assert_eq!(boot_revision(&config), 1);
        write_database(dir.path(), 2..200, 4);
        assert_eq!(boot_revision(&config), 199);
        let db = dir.path().join("member/snap/db");
        let (bytes, engine) = (std::fs::read(&db).unwrap(), dir.path().join("member/fjall"));
        let at = bytes.windows(4).position(|key| key == b"k150").unwrap();
        let changed = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            std::fs::write(&db, bytes).unwrap();
        };
        // Written again as it was, as by a copy: no transaction, no other row.
        std::fs::write(&db, &bytes).unwrap();
        assert_eq!(boot_revision(&config), 199);
        // A row that is another, by no transaction.
        changed(at);
        let error = boot(&config, &Nobody).err().unwrap();
        assert!(error.contains("snap/db: bucket key, key 0000000000000096"), "{error}");
        assert!(error.contains("damaged"), "{error}");
        // A page that is none: the file is made again, from the engine.
        changed(at / 4096 * 4096 + 8);
        assert_eq!(boot_revision(&config), 199);
        let file = File::open(&db).unwrap();
        Db::open(&file).unwrap().check().unwrap();
        // Without the engine the file is all there is.
        changed(at / 4096 * 4096 + 8);
        std::fs::remove_dir_all(&engine).unwrap();
        let error = boot(&config, &Nobody).err().unwrap();
        assert!(error.contains("snap/db: bbolt: page"), "{error}");
    }

    #[test]
    fn boot_imports_the_database_and_each_change_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        assert_eq!(boot_revision(&config), 1);
        // An etcd ran on the directory meanwhile.
        write_database(dir.path(), 2..6, 4);
        assert_eq!(boot_revision(&config), 5);
        assert_eq!(boot_revision(&config), 5);
        // With the engine lost it is made again from the file.
        std::fs::remove_dir_all(dir.path().join("member/fjall")).unwrap();
        assert_eq!(boot_revision(&config), 5);
        write_database(dir.path(), 2..9, 6);
        assert_eq!(boot_revision(&config), 8);
        // Revisions 9 to 11 are missing: no state of an etcd.
        let db = dir.path().join("member/snap/db");
        write_database(dir.path(), 12..14, 8);
        let error = boot(&config, &Nobody).err().unwrap();
        assert!(error.contains("hole: revision 12"), "{error}");
        std::fs::write(&db, [7; 20_000]).unwrap();
        let error = boot(&config, &Nobody).err().unwrap();
        assert!(error.contains("snap/db: checkpoint: bbolt: no valid meta page"), "{error}");
        write_database(dir.path(), 2..6, 10);
        assert_eq!(boot_revision(&config), 5);
        std::fs::remove_dir_all(dir.path().join("member/wal")).unwrap();
        let error = boot(&config, &Nobody).err().unwrap();
        assert!(error.contains("has no log beside it"), "{error}");
    }
}
