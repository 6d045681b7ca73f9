//! Lines made before the log is open, and lines that do not come from events.

use super::level::Level;
use super::line::{begin, push_caller, push_name};
use serde_json::Value;
use std::fmt::Write as _;

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
