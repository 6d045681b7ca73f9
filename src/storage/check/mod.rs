//! An offline check of a data directory: the log, etcd's `.snap` files, its database file and the
//! engine, each by itself and against each other.
//!
//! Nothing is changed but what opening fjall changes: it has no way to be read only. Memory is
//! bounded by a page of the database file, a bit for each of its pages, and the caches that a
//! member has too; a log costs a few words for each 32 KiB.
//! Uses: cluster, mvcc, pb

mod database;
mod rows;
#[cfg(test)]
mod tests;

use super::datadir::newest_engine;
use super::engine::{Engine, EngineError};
use super::snap::{self, Snap};
use super::wal::{Inspected, WalError, inspect};
use crate::cluster::state::Cluster;
use crate::mvcc::backend::Backend as _;
use crate::pb::raftpb::ConfState;
use database::Database;
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What was found, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Sound,
    /// A start puts it right, and loses nothing that was acknowledged.
    Repairable,
    /// A start is refused, or would lose something.
    Damaged,
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// The file or directory.
    pub path: PathBuf,
    /// What was found.
    pub text: String,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A member, or a tool, uses the directory.
    #[error("{0} is in use by another process; a check needs the directory for itself")]
    Locked(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CheckError + '_ {
    move |source| CheckError::Io { path: path.to_owned(), source }
}

/// An error that is not the system's.
fn other(path: &Path, error: impl std::fmt::Display) -> CheckError {
    io(path)(std::io::Error::other(error.to_string()))
}

type Result<T> = std::result::Result<T, CheckError>;

/// Where findings and progress go.
pub trait Report {
    /// Something was looked at.
    fn finding(&mut self, finding: Finding);
    /// So much of so much of a part has been read, in units of its own.
    fn progress(&mut self, part: &str, done: u64, total: u64);
}

struct Check<'a> {
    report: &'a mut dyn Report,
    verdict: Verdict,
}

impl Check<'_> {
    fn find(&mut self, verdict: Verdict, path: &Path, text: impl Into<String>) {
        self.verdict = self.verdict.max(verdict);
        let (path, text) = (path.to_owned(), text.into());
        self.report.finding(Finding { verdict, path, text });
    }
}

/// Checks a directory whose log is in `wal` (`member/wal` if it is not elsewhere).
pub fn check(root: &Path, wal: Option<&Path>, report: &mut dyn Report) -> Result<Verdict> {
    let mut check = Check { report, verdict: Verdict::Sound };
    let member = root.join("member");
    let _lock = lock(&member.join("rusd.lock"))?;
    let database_path = member.join("snap/db");
    let database_file = lock(&database_path)?;
    let wal = wal.map_or_else(|| member.join("wal"), Path::to_owned);
    let Some(log) = check_log(&mut check, &wal)? else { return Ok(check.verdict) };
    let snapshot = check_snapshots(&mut check, &member.join("snap"), &log)?;
    let database = match &database_file {
        Some(file) => database::check(&mut check, &database_path, file, &log, snapshot)?,
        None => {
            if log.bounds.0 > 1 {
                let text = "is missing, and the log begins behind what it held";
                check.find(Verdict::Damaged, &database_path, text);
            }
            None
        }
    };
    check_engine(&mut check, &newest_engine(&member), &log, database.as_ref())?;
    Ok(check.verdict)
}

/// Whether a database file holds what the engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It does.
    Same,
    /// It is none of bbolt's, or not etcd's, for this reason.
    Damaged(String),
    /// This row is another in both.
    Differs(String),
}

/// Compares the rows of the database file at `path` with those of the engine in `dir`, which were
/// the same when they were last together.
pub fn agreement(path: &Path, file: &File, dir: &Path, engine: &Engine) -> Result<Agreement> {
    struct Nothing;
    impl Report for Nothing {
        fn finding(&mut self, _: Finding) {}
        fn progress(&mut self, _: &str, _: u64, _: u64) {}
    }
    let check = &mut Check { report: &mut Nothing, verdict: Verdict::Sound };
    let database = match database::open(check, path, file) {
        Ok(database) => database,
        Err(database::Refusal::File(super::bbolt::Error::Io { source, .. }))
            if source.kind() != ErrorKind::UnexpectedEof =>
        {
            return Err(io(path)(source));
        }
        Err(refusal) => return Ok(Agreement::Damaged(refusal.to_string())),
    };
    let (_, differences) = rows::differences(dir, engine, &database, &mut |_, _| {})?;
    Ok(differences.into_iter().next().map_or(Agreement::Same, Agreement::Differs))
}

/// Takes the lock that a member takes, on a file that is there.
fn lock(path: &Path) -> Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path)(e)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::AGAIN) => Err(CheckError::Locked(path.to_owned())),
        Err(errno) => Err(io(path)(errno.into())),
    }
}

fn check_log(check: &mut Check<'_>, dir: &Path) -> Result<Option<Inspected>> {
    let progress = &mut |done, total| check.report.progress("log", done, total);
    let log = match inspect(dir, progress) {
        Ok(log) => log,
        Err(WalError::Locked(path)) => return Err(CheckError::Locked(path)),
        Err(WalError::Io { path, source }) => return Err(CheckError::Io { path, source }),
        Err(WalError::Corrupt { file, offset, reason }) => {
            check.find(Verdict::Damaged, &file, format!("damaged at offset {offset}: {reason}"));
            return Ok(None);
        }
        Err(error) => {
            check.find(Verdict::Damaged, dir, error.to_string());
            return Ok(None);
        }
    };
    let ((first, last), commit) = (log.bounds, log.hard_state.commit);
    let (file, offset) = &log.end;
    if log.torn {
        let text = format!("ends at offset {offset} in a write that never finished");
        check.find(Verdict::Repairable, file, text);
    }
    if log.dirty {
        let text = format!("has bytes behind its end at offset {offset}");
        check.find(Verdict::Repairable, file, text);
    }
    if commit > last {
        let text = format!(
            "ends at offset {offset} with entry {last}, but its commit index is {commit}: it was \
             cut or damaged"
        );
        check.find(Verdict::Damaged, file, text);
    } else {
        let (segments, metadata) = (log.segments, log.metadata);
        let text = format!(
            "{segments} segments, entries {first} to {last}, commit index {commit}, member {:x} of \
             cluster {:x}",
            metadata.node_id, metadata.cluster_id
        );
        check.find(Verdict::Sound, dir, text);
    }
    Ok(Some(log))
}

/// Checks etcd's snapshot files; the index of the newest that counts, 0 if there is none.
fn check_snapshots(check: &mut Check<'_>, dir: &Path, log: &Inspected) -> Result<u64> {
    let (first, commit) = (log.bounds.0, log.hard_state.commit);
    let recorded: Vec<(u64, u64)> =
        log.snapshots.iter().copied().filter(|(index, _)| *index <= commit).collect();
    let (mut newest, mut damaged) = (0, Vec::new());
    let newest_recorded = recorded.iter().map(|(index, _)| *index).max().unwrap_or(0);
    for path in snap_files(dir)? {
        let bytes = std::fs::read(&path).map_err(io(&path))?;
        let snap = match snap::parse(bytes.into()) {
            Ok(snap) => snap,
            Err(reason) => {
                damaged.push((path, reason));
                continue;
            }
        };
        let at = (snap.index, snap.term);
        let members = match members(&snap) {
            Ok(members) => members,
            // Its checksum is right, so a start does not pass it over.
            Err(reason) if snap.index == newest_recorded && recorded.contains(&at) => {
                check.find(Verdict::Damaged, &path, reason);
                continue;
            }
            Err(reason) => {
                damaged.push((path, reason));
                continue;
            }
        };
        if log.term(snap.index).is_some_and(|term| term != snap.term) {
            let text = format!("is of entry {} in term {}, the log's is another", at.0, at.1);
            check.find(Verdict::Damaged, &path, text);
        } else if recorded.contains(&at) {
            newest = newest.max(snap.index);
            let text = format!("index {}, term {}, {members} members", at.0, at.1);
            check.find(Verdict::Sound, &path, text);
        } else {
            let text = format!("index {}, term {}: the log does not have it", at.0, at.1);
            check.find(Verdict::Sound, &path, text);
        }
    }
    // A damaged one is passed over, as etcd does, if another one will do.
    let needed = first > 1 && newest + 1 < first;
    for (path, reason) in damaged {
        let verdict = if needed { Verdict::Damaged } else { Verdict::Repairable };
        check.find(verdict, &path, reason);
    }
    if needed {
        let text =
            format!("no readable snapshot reaches entry {}, before the log begins", first - 1);
        check.find(Verdict::Damaged, dir, text);
    }
    Ok(newest)
}

/// How many members a snapshot's tree has; raft's configuration beside it must name the same.
fn members(snap: &Snap) -> std::result::Result<usize, String> {
    let cluster = Cluster::from_json(&snap.tree)?;
    let table: BTreeSet<u64> = cluster.members().iter().map(|member| member.id).collect();
    let ConfState { voters, learners, .. } = &snap.conf_state;
    let named: BTreeSet<u64> = voters.iter().chain(learners).copied().collect();
    if table != named {
        let ids = |ids: &BTreeSet<u64>| {
            ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(", ")
        };
        let (table, named) = (ids(&table), ids(&named));
        return Err(format!("its tree has the members {table}, its configuration {named}"));
    }
    Ok(table.len())
}

fn snap_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io(dir))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|ext| ext == "snap") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn check_engine(
    check: &mut Check<'_>,
    dir: &Path,
    log: &Inspected,
    database: Option<&Database<'_>>,
) -> Result<()> {
    if !dir.exists() {
        check.find(Verdict::Sound, dir, "none: the next start makes it");
        return Ok(());
    }
    let engine = match Engine::inspect(dir, log.metadata) {
        Ok(Ok(engine)) => engine,
        Ok(Err(reason)) => {
            let text = format!("{reason}; the next start makes it again");
            check.find(Verdict::Repairable, dir, text);
            return Ok(());
        }
        Err(EngineError::Locked(path)) => return Err(CheckError::Locked(path)),
        Err(EngineError::Io { path, source }) => return Err(CheckError::Io { path, source }),
        Err(error) => return Err(other(dir, error)),
    };
    let (index, term) = engine.position();
    if index > log.bounds.1 {
        let text =
            format!("has applied entry {index}, but the log ends at {}: it was cut", log.bounds.1);
        check.find(Verdict::Damaged, dir, text);
        return Ok(());
    }
    if index > 0 && log.term(index).is_some_and(|found| found != term) {
        let text = format!("has applied entry {index} in term {term}, the log's is another");
        check.find(Verdict::Damaged, dir, text);
        return Ok(());
    }
    let revision = engine.revision();
    let text = format!("every row reads, up to entry {index} and revision {revision}");
    check.find(Verdict::Sound, dir, text);
    match database {
        Some(database) => rows::compare(check, dir, &engine, database),
        None if log.bounds.0 > index + 1 => {
            let text = format!("is at entry {index}, before the log begins");
            check.find(Verdict::Damaged, dir, text);
            Ok(())
        }
        None => Ok(()),
    }
}
