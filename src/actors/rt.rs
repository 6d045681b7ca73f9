//! How actors are started, and what a failure of one of them means.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a handler of an actor that owns durable state. A panic ends the process: restarting is the
/// tested recovery path, going on with half-changed state is not.
pub fn or_abort<T>(actor: &'static str, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => fatal(&format!("{actor} panicked: {}", panic_text(panic.as_ref()))),
    }
}

/// The text of a panic's payload.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "unknown panic".to_owned())
}

/// Logs the reason and ends the process without any further write to the data directory.
pub fn fatal(reason: &str) -> ! {
    tracing::error!(error = reason, "fatal: the member stops");
    std::process::exit(1);
}
