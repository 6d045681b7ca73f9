//! Time as a parameter: the only place that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time. The core takes `now` as a value; actors and edges hold a clock.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic now.
    fn now(&self) -> Instant;
    /// Wall clock, since the Unix epoch.
    fn unix(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
