//! The log: zap-shaped JSON lines, one write each, from tracing events.
//! Uses: nothing

mod event;
mod level;
mod line;
mod note;
mod sink;
#[cfg(test)]
mod tests;

pub use event::Json;
pub use level::Level;
pub use note::Note;
pub use sink::Rotation;

use event::JsonLayer;
use parking_lot::RwLock;
use sink::{Sink, open};
use std::fmt;
use std::io;
use std::sync::Arc;
use tracing_subscriber::layer::SubscriberExt;

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

/// The lines go here once the log is open.
static SINKS: RwLock<Option<Arc<Vec<Sink>>>> = RwLock::new(None);

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
