//! The log: zap-shaped JSON lines, one write each, from tracing events.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// etcd's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Debug,
    /// The default.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
    /// zap's panic in development.
    Dpanic,
    /// zap's panic.
    Panic,
    /// The process ends.
    Fatal,
}

impl Level {
    /// Reads a level as zap does: any case, and nothing means info.
    pub fn parse(text: &str) -> Option<Level> {
        Some(match text.to_ascii_lowercase().as_str() {
            "debug" => Level::Debug,
            "info" | "" => Level::Info,
            "warn" => Level::Warn,
            "error" => Level::Error,
            "dpanic" => Level::Dpanic,
            "panic" => Level::Panic,
            "fatal" => Level::Fatal,
            _ => return None,
        })
    }

    /// The word in a log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Dpanic => "dpanic",
            Level::Panic => "panic",
            Level::Fatal => "fatal",
        }
    }

    fn of(level: &tracing::Level) -> Level {
        match *level {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
            Level::Dpanic | Level::Panic | Level::Fatal => LevelFilter::OFF,
        }
    }
}

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

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Least level written.
    pub level: Level,
    /// `default`, `stderr`, `stdout`, `systemd/journal` (as stderr) or file paths.
    pub outputs: Vec<String>,
    /// Rotation of file outputs.
    pub rotation: Option<Rotation>,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { level: Level::Info, outputs: vec!["default".into()], rotation: None }
    }
}

/// A line to be logged later, made before the log is open.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Its level.
    pub level: Level,
    /// Where it comes from, as in `caller`.
    pub caller: String,
    /// Its message.
    pub msg: String,
    /// Its fields.
    pub fields: Vec<(String, Value)>,
}

impl Note {
    /// A note at some level, from the place that calls this.
    #[track_caller]
    pub fn new(level: Level, msg: impl Into<String>) -> Note {
        let place = std::panic::Location::caller();
        let mut caller = String::new();
        push_caller(&mut caller, place.file(), place.line());
        Note { level, caller, msg: msg.into(), fields: Vec::new() }
    }

    /// A warning.
    #[track_caller]
    pub fn warn(msg: impl Into<String>) -> Note {
        Note::new(Level::Warn, msg)
    }

    /// An information.
    #[track_caller]
    pub fn info(msg: impl Into<String>) -> Note {
        Note::new(Level::Info, msg)
    }

    /// Adds a field with a text.
    pub fn text(self, name: &str, value: &str) -> Note {
        self.field(name, Value::from(value))
    }

    /// Adds a field.
    pub fn field(mut self, name: &str, value: Value) -> Note {
        self.fields.push((name.into(), value));
        self
    }

    /// The note as a log line with its newline.
    pub fn line(&self) -> String {
        let mut line = String::new();
        begin(&mut line, self.level, &self.caller, &self.msg);
        for (name, value) in &self.fields {
            push_name(&mut line, name);
            let _ = write!(line, "{value}");
        }
        line.push_str("}\n");
        line
    }
}

/// A field whose value is JSON: `tracing::info!(args = ?Json(value), "…")`.
pub struct Json(pub Value);

thread_local! {
    /// Set by `Json`, so that its text is taken as it is.
    static IS_JSON: Cell<bool> = const { Cell::new(false) };
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IS_JSON.set(true);
        write!(f, "{}", self.0)
    }
}

/// The lines go here once the log is open.
static SINKS: RwLock<Option<Arc<Vec<Sink>>>> = RwLock::new(None);

enum Sink {
    Stderr,
    Stdout,
    File(File),
    Rotating(Mutex<RotatingFile>),
}

impl Sink {
    /// One write per line: stderr has no buffer, and stdout's passes whole lines on.
    fn write(&self, line: &[u8]) {
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

/// Opens the outputs and makes them the process's log, once. The error is etcd's text, which
/// belongs into a "failed to verify flags" warning.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let mut sinks = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for output in &config.outputs {
        let name = match output.as_str() {
            "default" | "systemd/journal" => "stderr",
            name => name,
        };
        if names.contains(&name) {
            continue;
        }
        names.push(name);
        sinks.push(match name {
            "stderr" => Sink::Stderr,
            "stdout" => Sink::Stdout,
            path => open(path, config.rotation.as_ref()).map_err(|why| {
                format!("couldn't open sink {path:?}: open {path}: {}", plain(&why))
            })?,
        });
    }
    let sinks = Arc::new(sinks);
    *SINKS.write() = Some(sinks.clone());
    let layer = JsonLayer::new(config.level, sinks);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::set_global_default(subscriber).map_err(|why| why.to_string())
}

/// An I/O error in Go's words: lower case and without the number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

fn open(path: &str, rotation: Option<&Rotation>) -> io::Result<Sink> {
    Ok(match rotation {
        Some(rotation) => Sink::Rotating(Mutex::new(RotatingFile::open(path, rotation.clone())?)),
        None => Sink::File(append(Path::new(path))?),
    })
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A log file that is renamed when it has grown too large.
struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Rotation,
}

impl RotatingFile {
    fn open(path: &str, rotation: Rotation) -> io::Result<RotatingFile> {
        let path = PathBuf::from(path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(RotatingFile { path, file, size, rotation })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
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

/// Writes one line to the outputs, or to stderr before there are any.
pub fn write_line(line: &str) {
    match &*SINKS.read() {
        Some(sinks) => sinks.iter().for_each(|sink| sink.write(line.as_bytes())),
        None => Sink::Stderr.write(line.as_bytes()),
    }
}

/// Writes a fatal line whatever the level. It does not end the process.
#[track_caller]
pub fn fatal_line(msg: &str, fields: &[(&str, &dyn fmt::Display)]) {
    let mut note = Note::new(Level::Fatal, msg);
    for (name, value) in fields {
        note = note.text(name, &value.to_string());
    }
    write_line(&note.line());
}

/// Writes a note if the level allows it.
pub fn write_note(note: &Note, config: &LogConfig) {
    if note.level >= config.level {
        write_line(&note.line());
    }
}

/// Crates whose chatter is cut off below warnings.
const QUIET: &[&str] = &[
    "actix",
    "fjall",
    "h2",
    "hyper",
    "hyper_util",
    "lsm_tree",
    "mio",
    "rustls",
    "tokio",
    "tokio_rustls",
    "tonic",
    "tower",
    "value_log",
];

/// The layer that turns events into lines.
struct JsonLayer {
    level: LevelFilter,
    sinks: Arc<Vec<Sink>>,
}

impl JsonLayer {
    fn new(level: Level, sinks: Arc<Vec<Sink>>) -> JsonLayer {
        JsonLayer { level: level.filter(), sinks }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let krate = metadata.target().split("::").next().unwrap_or_default();
        let limit =
            if QUIET.contains(&krate) { self.level.min(LevelFilter::WARN) } else { self.level };
        *metadata.level() <= limit
    }
}

impl<S: Subscriber> Layer<S> for JsonLayer {
    /// Asked once per place in the code, so a disabled event costs one load.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && self.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        LINE.with(|line| {
            // A value's Debug may itself log; that inner line gets its own buffer.
            let mut line = line.try_borrow_mut();
            let mut own = String::new();
            let line = line.as_deref_mut().unwrap_or(&mut own);
            line.clear();
            format_event(line, event);
            self.sinks.iter().for_each(|sink| sink.write(line.as_bytes()));
        });
    }
}

fn format_event(line: &mut String, event: &Event<'_>) {
    let metadata = event.metadata();
    let mut message = Message(String::new());
    event.record(&mut message);
    let mut caller = String::new();
    push_caller(
        &mut caller,
        metadata.file().unwrap_or_default(),
        metadata.line().unwrap_or_default(),
    );
    begin(line, Level::of(metadata.level()), &caller, &message.0);
    event.record(&mut Fields(line));
    line.push_str("}\n");
}

/// Everything up to the fields.
fn begin(line: &mut String, level: Level, caller: &str, msg: &str) {
    let now = OffsetDateTime::now_utc();
    let (date, clock) = (now.date(), now.time());
    let _ = write!(
        line,
        "{{\"level\":\"{}\",\"ts\":\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z\"",
        level.as_str(),
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.microsecond()
    );
    push_name(line, "caller");
    push_text(line, caller);
    push_name(line, "msg");
    push_text(line, msg);
}

/// The last directory, the file and the line.
fn push_caller(out: &mut String, file: &str, line: u32) {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(i, _)| i + 1);
    let _ = write!(out, "{}:{line}", &file[start..]);
}

fn push_name(line: &mut String, name: &str) {
    line.push(',');
    push_text(line, name);
    line.push(':');
}

/// A JSON text; zap escapes the same characters.
fn push_text(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c < ' ' || c == '\u{7f}' || c == '\u{2028}' || c == '\u{2029}' => {
                let _ = write!(line, "\\u{:04x}", c as u32);
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

/// Picks the message out of an event.
struct Message(String);

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.push_str(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Appends every field but the message.
struct Fields<'a>(&'a mut String);

impl Fields<'_> {
    fn raw(&mut self, field: &Field, value: impl fmt::Display) {
        push_name(self.0, field.name());
        let _ = write!(self.0, "{value}");
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.raw(field, value);
        } else {
            self.record_str(field, &value.to_string());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.raw(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.raw(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            push_name(self.0, field.name());
            push_text(self.0, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            return;
        }
        IS_JSON.set(false);
        let text = format!("{value:?}");
        if IS_JSON.replace(false) {
            self.raw(field, text);
        } else {
            self.record_str(field, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell as StdCell;

    /// Logs with `body` at a level into a file and reads the lines back.
    fn logged(level: Level, body: impl FnOnce()) -> Vec<Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = open(path.to_str().unwrap(), None).unwrap();
        let layer = JsonLayer::new(level, Arc::new(vec![sink]));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, body);
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn log_lines_have_zaps_shape() {
        let error = io::Error::other("no \"luck\"\n");
        let lines = logged(Level::Info, || {
            tracing::info!(
                "local-member-id" = "8e9e",
                count = 3u64,
                below = -1i64,
                ok = true,
                ratio = 0.5f64,
                nan = f64::NAN,
                shown = %"a\tb\u{1}",
                debug = ?Some(1),
                list = ?Json(serde_json::json!(["a", 1])),
                error = &error as &dyn std::error::Error,
                "hello {}",
                "world"
            );
        });
        let line = &lines[0];
        for (name, want) in [
            ("level", serde_json::json!("info")),
            ("msg", serde_json::json!("hello world")),
            ("local-member-id", serde_json::json!("8e9e")),
            ("count", serde_json::json!(3)),
            ("below", serde_json::json!(-1)),
            ("ok", serde_json::json!(true)),
            ("ratio", serde_json::json!(0.5)),
            ("nan", serde_json::json!("NaN")),
            ("shown", serde_json::json!("a\tb\u{1}")),
            ("debug", serde_json::json!("Some(1)")),
            ("list", serde_json::json!(["a", 1])),
            ("error", serde_json::json!("no \"luck\"\n")),
        ] {
            assert_eq!(line[name], want, "{name}");
        }
        let names: Vec<&String> = line.as_object().unwrap().keys().take(4).collect();
        assert_eq!(names, ["level", "ts", "caller", "msg"]);
        let ts = line["ts"].as_str().unwrap();
        assert_eq!((ts.len(), ts.ends_with('Z')), ("2006-01-02T15:04:05.000000Z".len(), true));
        let caller = line["caller"].as_str().unwrap();
        assert!(caller.starts_with("obs/log.rs:"), "{caller}");
    }

    #[test]
    fn log_levels_filter() {
        let lines = |level| {
            logged(level, || {
                tracing::debug!("d");
                tracing::info!("i");
                tracing::warn!("w");
                tracing::error!("e");
                tracing::debug!(target: "h2::codec", "quiet");
                tracing::warn!(target: "h2::codec", "loud");
            })
            .iter()
            .map(|line| {
                format!("{} {}", line["level"].as_str().unwrap(), line["msg"].as_str().unwrap())
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(lines(Level::Debug), ["debug d", "info i", "warn w", "error e", "warn loud"]);
        assert_eq!(lines(Level::Warn), ["warn w", "error e", "warn loud"]);
        assert!(lines(Level::Fatal).is_empty());
    }

    #[test]
    fn log_disabled_values_are_not_formatted() {
        struct Costly<'a>(&'a StdCell<u32>);
        impl fmt::Debug for Costly<'_> {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.set(self.0.get() + 1);
                Ok(())
            }
        }
        let count = StdCell::new(0);
        logged(Level::Info, || tracing::debug!(costly = ?Costly(&count), "x"));
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn log_json_values_cannot_be_forged() {
        let lines = logged(Level::Info, || {
            tracing::info!(key = %"\"},{\"x\":1", other = ?"[1]", "m\u{2028}\u{7f}");
        });
        assert_eq!(lines[0]["key"], "\"},{\"x\":1");
        assert_eq!(lines[0]["other"], "\"[1]\"");
        assert_eq!(lines[0]["msg"], "m\u{2028}\u{7f}");
    }

    #[test]
    fn log_notes_and_levels() {
        let note = Note::warn("m").text("error", "e").field("n", Value::from(1));
        let line: Value = serde_json::from_str(&note.line()).unwrap();
        assert_eq!(
            (&line["level"], &line["error"], &line["n"]),
            (&"warn".into(), &"e".into(), &1.into())
        );
        assert!(note.line().ends_with("}\n") && note.caller.starts_with("obs/log.rs:"));
        assert_eq!(Level::parse("WARN"), Some(Level::Warn));
        assert_eq!(Level::parse("weird"), None);
    }

    #[test]
    fn log_file_errors_read_as_etcds() {
        let config = LogConfig { outputs: vec!["/a/b/c".into()], ..LogConfig::default() };
        let want = "couldn't open sink \"/a/b/c\": open /a/b/c: no such file or directory";
        assert_eq!(init(&config), Err(want.to_string()));
    }

    #[test]
    fn log_files_rotate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let rotation = Rotation { maxsize: 1, maxbackups: 1, ..Rotation::default() };
        let mut file = RotatingFile::open(path.to_str().unwrap(), rotation).unwrap();
        let line = vec![b'x'; 700 << 10];
        for _ in 0..4 {
            file.write(&line).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 2);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64);
    }
}
