//! Named places where a test makes the daemon fail. They are compiled in where the crate `fail` has
//! its feature `failpoints`, which only tests turn on; elsewhere each call is nothing. Variable
//! `FAILPOINTS` sets them up: `name=action;…`, with the actions of that crate, such as
//! `100*off->panic`, `sleep(200)`, `pause`, and for [`io`] `return(EIO)` or `return(ENOSPC)`.

use fail::fail_point;
use std::io;

/// RaftActor is about to propose, save and send.
pub const RAFT_FLUSH: &str = "raft-flush";
/// StoreActor is about to apply an entry.
pub const STORE_APPLY: &str = "store-apply";
/// StoreActor is about to remove some rows of a compaction.
pub const COMPACT_STEP: &str = "compact-step";
/// LeaseKeeper is about to look for expired leases.
pub const LEASE_LOOK: &str = "lease-look";
/// LeaseKeeper has found expired leases and is about to propose their revokes.
pub const LEASE_REVOKE: &str = "lease-revoke";
/// AuthActor is about to remove tokens that are over.
pub const AUTH_SWEEP: &str = "auth-sweep";
/// AuthActor is about to hand on work on a password.
pub const AUTH_WORK: &str = "auth-work";
/// WatchHub is about to hand on events.
pub const WATCH_EVENTS: &str = "watch-events";
/// Corruption is about to look at the other members' stores.
pub const CORRUPTION_LOOK: &str = "corruption-look";
/// The WAL is about to write records; an error is the write's.
pub const WAL_WRITE: &str = "wal-write";
/// The WAL has written records and not synced them.
pub const WAL_WRITTEN: &str = "wal-written";
/// The WAL is about to sync; an error is the sync's, a sleep makes the disk slow.
pub const WAL_SYNC: &str = "wal-sync";
/// The engine is about to commit rows; an error is the commit's.
pub const ENGINE_COMMIT: &str = "engine-commit";
/// The checkpointer is about to write pages; an error is the write's.
pub const CHECKPOINT_WRITE: &str = "checkpoint-write";
/// The checkpointer is about to name a new tree in a meta page; an error is the write's.
pub const CHECKPOINT_FLIP: &str = "checkpoint-flip";
/// The checkpointer is about to give a new file its name; an error is the rename's.
pub const CHECKPOINT_RENAME: &str = "checkpoint-rename";
/// A snapshot file is about to be written; an error is the write's.
pub const SNAP_WRITE: &str = "snap-write";
/// RaftActor is about to record a snapshot in the WAL.
pub const SNAP_RECORD: &str = "snap-record";
/// A snapshot is about to be sent to a member; an error is the connection's.
pub const SNAP_SEND: &str = "snap-send";
/// A part of a snapshot is on its way; an error is the connection's.
pub const SNAP_SENDING: &str = "snap-sending";
/// A snapshot has reached its member, and the log is about to be kept for a while; an error lets it
/// go at once.
pub const LOG_KEPT: &str = "log-kept";
/// A part of a database that a leader sends is about to be written; an error is the write's.
pub const SNAP_RECEIVE: &str = "snap-receive";
/// Such a database is on the disk and has its name.
pub const SNAP_RECEIVED: &str = "snap-received";
/// RaftActor is about to write a leader's snapshot down.
pub const INSTALL_SAVE: &str = "install-save";
/// It has, and is about to save the hard state that makes it count.
pub const INSTALL_RECORDED: &str = "install-recorded";
/// The checkpointer is about to give a leader's database the name of its own.
pub const INSTALL_RENAME: &str = "install-rename";
/// It has, and is about to import it.
pub const INSTALL_IMPORT: &str = "install-import";
/// It has been imported; StoreActor is about to take it.
pub const INSTALL_SWAP: &str = "install-swap";
/// The checkpointer is about to remove a segment that the WAL has released.
pub const WAL_REMOVE: &str = "wal-remove";

/// All names.
pub const ALL: &[&str] = &[
    RAFT_FLUSH,
    STORE_APPLY,
    COMPACT_STEP,
    LEASE_LOOK,
    LEASE_REVOKE,
    AUTH_SWEEP,
    AUTH_WORK,
    WATCH_EVENTS,
    CORRUPTION_LOOK,
    WAL_WRITE,
    WAL_WRITTEN,
    WAL_SYNC,
    ENGINE_COMMIT,
    CHECKPOINT_WRITE,
    CHECKPOINT_FLIP,
    CHECKPOINT_RENAME,
    SNAP_WRITE,
    SNAP_RECORD,
    SNAP_SEND,
    SNAP_SENDING,
    LOG_KEPT,
    SNAP_RECEIVE,
    SNAP_RECEIVED,
    INSTALL_SAVE,
    INSTALL_RECORDED,
    INSTALL_RENAME,
    INSTALL_IMPORT,
    INSTALL_SWAP,
    WAL_REMOVE,
];

/// Sets up what `FAILPOINTS` asks for, for the life of the process. A word about it where the
/// build has failpoints and the variable is set; an unknown name is an error, since a test with a
/// misspelt one would pass.
pub fn setup() -> Result<Option<String>, String> {
    if !fail::has_failpoints() {
        return Ok(None);
    }
    let Ok(asked) = std::env::var("FAILPOINTS") else { return Ok(None) };
    for point in asked.split(';').filter(|point| !point.is_empty()) {
        let name = point.split('=').next().unwrap_or_default().trim();
        if !ALL.contains(&name) {
            return Err(format!("FAILPOINTS: there is no failpoint {name:?}"));
        }
    }
    // Dropped, it would take the failpoints with it.
    std::mem::forget(fail::FailScenario::setup());
    Ok(Some(asked))
}

/// A place that can panic, sleep or pause.
#[inline]
pub fn hit(name: &'static str) {
    let _ = name;
    fail_point!(name, |_| ());
}

/// A place that can also return an error of the system.
#[inline]
pub fn io(name: &'static str) -> io::Result<()> {
    let _ = name;
    fail_point!(name, |error| {
        let (eio, enospc) = (5, 28);
        let errno = if error.as_deref() == Some("ENOSPC") { enospc } else { eio };
        Err(io::Error::from_raw_os_error(errno))
    });
    Ok(())
}
