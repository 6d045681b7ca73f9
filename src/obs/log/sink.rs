//! Where lines go: the standard streams, files, and files that are renamed when they are large.

use parking_lot::Mutex;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// When a log file is renamed and a new one begun.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Megabytes of one file; 0: 100.
    pub maxsize: u64,
    /// Days that old files are kept; 0: for ever.
    pub maxage: u64,
    /// Old files kept; 0: all.
    pub maxbackups: usize,
    /// Name old files by local time (no effect: names are in UTC).
    pub localtime: bool,
    /// Compress old files (no effect).
    pub compress: bool,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { maxsize: 100, maxage: 0, maxbackups: 0, localtime: false, compress: false }
    }
}

pub(super) enum Sink {
    Stderr,
    Stdout,
    File(File),
    Rotating(Mutex<RotatingFile>),
}

impl Sink {
    /// One write per line: stderr has no buffer, and stdout's passes whole lines on.
    pub(super) fn write(&self, line: &[u8]) {
        let _ = match self {
            Sink::Stderr => io::stderr().lock().write_all(line),
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(line).and_then(|()| out.flush())
            }
            Sink::File(file) => (&*file).write_all(line),
            Sink::Rotating(file) => file.lock().write(line),
        };
    }
}

pub(super) fn open(path: &str, rotation: Option<&Rotation>) -> io::Result<Sink> {
    Ok(match rotation {
        Some(rotation) => Sink::Rotating(Mutex::new(RotatingFile::open(path, rotation.clone())?)),
        None => Sink::File(append(Path::new(path))?),
    })
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A log file that is renamed when it has grown too large.
pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Rotation,
}

impl RotatingFile {
    pub(super) fn open(path: &str, rotation: Rotation) -> io::Result<RotatingFile> {
        let path = PathBuf::from(path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(RotatingFile { path, file, size, rotation })
    }

    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let megabytes = match self.rotation.maxsize {
            0 => Rotation::default().maxsize,
            size => size,
        };
        if self.size > 0 && self.size + line.len() as u64 > megabytes.saturating_mul(1 << 20) {
            self.rotate(OffsetDateTime::now_utc())?;
        }
        self.size += line.len() as u64;
        self.file.write_all(line)
    }

    /// The stem and extension that old files share.
    fn parts(&self) -> (String, String) {
        let part = |os: Option<&std::ffi::OsStr>| {
            os.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let extension = match part(self.path.extension()) {
            ext if ext.is_empty() => ext,
            ext => format!(".{ext}"),
        };
        (format!("{}-", part(self.path.file_stem())), extension)
    }

    fn rotate(&mut self, now: OffsetDateTime) -> io::Result<()> {
        let (stem, extension) = self.parts();
        let (date, clock) = (now.date(), now.time());
        let stamp = format!(
            "{date}T{:02}-{:02}-{:02}.{:03}",
            clock.hour(),
            clock.minute(),
            clock.second(),
            clock.millisecond()
        );
        let old = self.path.with_file_name(format!("{stem}{stamp}{extension}"));
        std::fs::rename(&self.path, old)?;
        self.file = append(&self.path)?;
        self.size = 0;
        self.remove_old(&stem, &extension)
    }

    fn remove_old(&self, stem: &str, extension: &str) -> io::Result<()> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut old: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name.strip_prefix(stem).and_then(|n| n.strip_suffix(extension));
            if stamp.is_some_and(|s| s.len() == "2006-01-02T15-04-05.000".len()) {
                old.push(entry.path());
            }
        }
        old.sort_unstable_by(|a, b| b.cmp(a));
        let days = Duration::from_secs(self.rotation.maxage.saturating_mul(86_400));
        for (i, path) in old.iter().enumerate() {
            let many = self.rotation.maxbackups > 0 && i >= self.rotation.maxbackups;
            let age = || {
                let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok()?;
                SystemTime::now().duration_since(modified).ok()
            };
            if many || (self.rotation.maxage > 0 && age().is_some_and(|age| age > days)) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}
