//! The engine and the machine on it: opened, filled from etcd's database file where that is to
//! count, or put in the place of a running member's.

use crate::actors::checkpointer::{self, Fresh};
use crate::actors::rt;
use crate::apply::{Machine, Options};
use crate::base::failpoint;
use crate::base::ids::{ClusterId, MemberId};
use crate::cli::config::Config;
use crate::mvcc::backend::Backend as _;
use crate::storage::check::{self, Agreement};
use crate::storage::checkpoint::{self, Checkpoint, Way};
use crate::storage::datadir::DataDir;
use crate::storage::engine::{Engine, OpenKind, Opened};
use crate::storage::import;
use crate::storage::wal::Metadata;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

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
pub(super) fn open_machine(
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

/// The checkpoint as it is; a member has one from its first start on.
pub(super) fn open_checkpoint(dir: &mut DataDir, engine: &Engine) -> Result<Checkpoint, String> {
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

/// With `--experimental-bootstrap-defrag-threshold-megabytes` (etcd v3.5.17 `server.go`
/// maybeDefragBackend).
pub(super) fn defragment_if_worth_it(config: &Config, engine: &Engine, machine: &mut Machine) {
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
