//! From tracing events to lines.

use super::level::Level;
use super::line::{begin, push_caller, push_name, push_text};
use super::sink::Sink;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

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
pub(super) struct JsonLayer {
    level: LevelFilter,
    sinks: Arc<Vec<Sink>>,
}

impl JsonLayer {
    pub(super) fn new(level: Level, sinks: Arc<Vec<Sink>>) -> JsonLayer {
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
