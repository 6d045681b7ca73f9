//! The data directory: where things are, and who may use it.

use rustix::fs::FlockOperation;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode of the directories (etcd v3.5.17 `client/pkg/fileutil` PrivateDirMode).
const DIR_MODE: u32 = 0o700;
/// Mode of the files.
const FILE_MODE: u32 = 0o600;
/// Permission bits of a mode.
const PERMISSION_BITS: u32 = 0o777;
/// What the names of engines' directories begin with.
const ENGINE: &str = "fjall";
/// The probe that tells whether a directory can be written, as etcd's.
const TOUCH: &str = ".touch";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The system refused.
    #[error("data directory: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process uses it.
    #[error("data directory: {0} is in use by another process")]
    Locked(PathBuf),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError + '_ {
    move |source| DataDirError::Io { path: path.to_owned(), source }
}

/// A data directory that this process owns for as long as the value lives.
///
/// The lock: etcd takes a flock on `member/snap/db`, and so do we; where it is not there yet,
/// before the checkpoint gets that name. Besides there is a flock on a file of our own,
/// `member/rusd.lock`, since the database file may be replaced; and what keeps an etcd and us
/// apart in any case are the locks on the WAL segments (see `wal::Wal`), which both sides take.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    /// Holds the flock.
    _lock: File,
    /// `member/snap/db`, if there is one, with its flock.
    database: Option<File>,
}

impl DataDir {
    /// Makes what is missing, checks the modes as etcd does, and takes the locks.
    pub fn open(root: &Path) -> Result<DataDir, DataDirError> {
        touch_dir_all(root)?;
        let member = root.join("member");
        touch_dir_all(&member)?;
        let path = member.join("rusd.lock");
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(io(&path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN) => return Err(DataDirError::Locked(root.to_owned())),
            Err(errno) => return Err(io(&path)(errno.into())),
        }
        let mut dir = DataDir { root: root.to_owned(), _lock: lock, database: None };
        dir.database = lock_database(&dir.snap_db())?;
        touch_dir_all(&dir.snap())?;
        Ok(dir)
    }

    /// etcd's database file, if there is one.
    pub fn database(&self) -> Option<&File> {
        self.database.as_ref()
    }

    /// The same, for whoever keeps it from now on: its lock ends with it.
    pub fn take_database(&mut self) -> Option<File> {
        self.database.take()
    }

    /// There is none that is worth anything; another is about to get its name.
    pub fn forget_database(&mut self) {
        self.database = None;
    }

    /// Puts the database that a leader sent with its snapshot at `index` into the place of the one
    /// that is there (etcd v3.5.17 `server/etcdserver/backend.go` openSnapshotBackend). False if
    /// there is none.
    pub fn install_received(&mut self, index: u64) -> Result<bool, DataDirError> {
        let received = self.snap().join(format!("{index:016x}.snap.db"));
        // IMPORTANT: locked before it gets the name.
        let Some(file) = lock_database(&received)? else { return Ok(false) };
        let (db, snap) = (self.snap_db(), self.snap());
        std::fs::rename(&received, &db).map_err(io(&db))?;
        File::open(&snap).and_then(|dir| dir.sync_all()).map_err(io(&snap))?;
        self.database = Some(file);
        Ok(true)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `member`.
    pub fn member(&self) -> PathBuf {
        self.root.join("member")
    }

    /// `member/wal`, which [`super::wal::Wal`] makes.
    pub fn wal(&self) -> PathBuf {
        self.member().join("wal")
    }

    /// `member/snap`.
    pub fn snap(&self) -> PathBuf {
        self.member().join("snap")
    }

    /// `member/snap/db`.
    pub fn snap_db(&self) -> PathBuf {
        self.snap().join("db")
    }

    /// Where the engine is, which [`super::engine::Engine`] makes: `member/fjall`, or the directory
    /// of the newest snapshot that a leader sent.
    pub fn engine(&self) -> PathBuf {
        newest_engine(&self.member())
    }

    /// Where the engine is that is made from a leader's snapshot at `index`. The one before stays
    /// for as long as it is read.
    pub fn engine_at(&self, index: u64) -> PathBuf {
        self.member().join(format!("{ENGINE}-{index:016x}"))
    }

    /// Removes engines that a newer one has replaced. To be called before any is open.
    pub fn remove_old_engines(&self) -> Result<(), DataDirError> {
        let member = self.member();
        let newest = newest_engine(&member);
        let old = engines(&member).into_iter().map(|name| member.join(name));
        old.filter(|path| *path != newest)
            .try_for_each(|path| std::fs::remove_dir_all(&path).map_err(io(&path)))
    }
}

/// The directory of `member` in which its engine is.
pub fn newest_engine(member: &Path) -> PathBuf {
    member.join(engines(member).pop().unwrap_or_else(|| ENGINE.to_owned()))
}

/// Names of directories with engines, the newest last.
fn engines(member: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(member).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_engine = |name: &String| match name.strip_prefix(ENGINE) {
        Some("") => true,
        Some(index) => index.strip_prefix('-').is_some_and(|index| {
            index.len() == 16 && index.bytes().all(|byte| byte.is_ascii_hexdigit())
        }),
        None => false,
    };
    let mut names: Vec<String> = names.filter(is_engine).collect();
    // The index is of one width.
    names.sort_unstable();
    names
}

/// Opens etcd's database file, if there is one, and waits until no other process has it, as etcd
/// waits for us.
fn lock_database(path: &Path) -> Result<Option<File>, DataDirError> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path)(e)),
    };
    flock(&file, path)?;
    // Whoever had it may have put another file into its place.
    let same = std::fs::metadata(path).is_ok_and(|named| {
        file.metadata().is_ok_and(|open| (named.dev(), named.ino()) == (open.dev(), open.ino()))
    });
    if same { Ok(Some(file)) } else { lock_database(path) }
}

/// Takes the lock on etcd's database file, waiting for it.
pub(super) fn flock(file: &File, path: &Path) -> Result<(), DataDirError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::AGAIN) => {
            tracing::info!(
                path = %path.display(),
                "db file is flocked by another process, or taking too long"
            );
            rustix::fs::flock(file, FlockOperation::LockExclusive)
                .map_err(|errno| io(path)(errno.into()))
        }
        Err(errno) => Err(io(path)(errno.into())),
    }
}

/// Makes a directory, or warns of one that others can read, and sees that it can be written.
fn touch_dir_all(dir: &Path) -> Result<(), DataDirError> {
    match std::fs::metadata(dir) {
        Ok(found) => {
            let mode = found.permissions().mode() & PERMISSION_BITS;
            if mode != DIR_MODE {
                tracing::warn!(
                    "check file permission: directory {dir:?} exist, but the permission is \
                     \"{mode:o}\". The recommended permission is \"{DIR_MODE:o}\" to prevent \
                     possible unprivileged access to the data"
                );
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            DirBuilder::new().mode(DIR_MODE).recursive(true).create(dir).map_err(io(dir))?;
        }
        Err(e) => return Err(io(dir)(e)),
    }
    let probe = dir.join(TOUCH);
    std::fs::write(&probe, b"").map_err(io(&probe))?;
    std::fs::remove_file(&probe).map_err(io(&probe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_and_locks() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("a/data");
        let dir = DataDir::open(&root).unwrap();
        for path in [root.clone(), dir.member(), dir.snap()] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & PERMISSION_BITS, DIR_MODE);
        }
        assert!(matches!(DataDir::open(&root), Err(DataDirError::Locked(_))));
        let db = dir.snap_db();
        drop(dir);
        assert!(DataDir::open(&root).unwrap().database().is_none());
        std::fs::write(&db, b"x").unwrap();
        let mut dir = DataDir::open(&root).unwrap();
        assert!(dir.database().is_some());
        assert!(!dir.install_received(0x1f).unwrap());
        std::fs::write(dir.snap().join("000000000000001f.snap.db"), b"yz").unwrap();
        assert!(dir.install_received(0x1f).unwrap());
        assert_eq!(std::fs::read(&db).unwrap(), b"yz");
        assert_eq!(dir.database().unwrap().metadata().unwrap().len(), 2);
    }

    #[test]
    fn the_engine_is_that_of_the_newest_snapshot() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        assert_eq!(dir.engine(), dir.member().join("fjall"));
        for name in ["fjall", "fjall-000000000000000f", "fjall.removing", "fjall-x"] {
            std::fs::create_dir(dir.member().join(name)).unwrap();
        }
        assert_eq!(dir.engine(), dir.engine_at(0xf));
        std::fs::create_dir(dir.engine_at(0x10)).unwrap();
        assert_eq!(dir.engine(), dir.engine_at(0x10));
        dir.remove_old_engines().unwrap();
        assert_eq!(engines(&dir.member()), ["fjall-0000000000000010"]);
        assert!(dir.member().join("fjall-x").exists());
    }

    #[test]
    fn who_waits_gets_the_file_that_has_the_name() {
        let tmp = tempfile::tempdir().unwrap();
        let (db, other) = (tmp.path().join("db"), tmp.path().join("other"));
        std::fs::write(&db, b"x").unwrap();
        let held = lock_database(&db).unwrap();
        let waiter = std::thread::spawn({
            let db = db.clone();
            move || lock_database(&db).unwrap().unwrap().metadata().unwrap().len()
        });
        std::fs::write(&other, b"yz").unwrap();
        std::fs::rename(&other, &db).unwrap();
        drop(held);
        assert_eq!(waiter.join().unwrap(), 2);
    }

    #[test]
    fn waits_for_who_has_the_database() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().to_owned();
        let db = DataDir::open(&root).unwrap().snap_db();
        std::fs::write(&db, b"x").unwrap();
        let held = lock_database(&db).unwrap();
        let other = std::thread::spawn(move || DataDir::open(&root).unwrap().database().is_some());
        // It cannot end before the lock is given up.
        assert!(!other.is_finished());
        drop(held);
        assert!(other.join().unwrap());
    }
}
