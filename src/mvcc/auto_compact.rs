//! When a leader compacts by itself, and up to which revision: etcd's two modes, without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest time between two compactions of the periodic mode (etcd v3.5.17
/// `v3compactor/periodic.go` getCompactInterval).
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);
/// Looks within one such interval (etcd: retryDivisor).
const LOOKS_PER_PERIOD: u32 = 10;
/// Time between looks of the revision mode (etcd v3.5.17 `v3compactor/revision.go` revInterval).
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// What is younger than this.
    Period(Duration),
    /// This many of the newest revisions.
    Revisions(i64),
}

/// Decides about compactions. Its owner calls [`AutoCompact::sample`] at the start, and then, each
/// [`AutoCompact::interval`], [`AutoCompact::due`]; when a compaction that was due has ended,
/// [`AutoCompact::ended`]; after each of these [`AutoCompact::sample`] again.
#[derive(Debug)]
pub struct AutoCompact {
    retention: Retention,
    /// Revisions at the last looks, the oldest first.
    samples: VecDeque<i64>,
    succeeded_at: Instant,
    /// Least time between two compactions; the first has to wait for a whole period.
    wait: Duration,
    /// What the revision mode compacted last.
    compacted: i64,
}

impl AutoCompact {
    /// Begins at `now`.
    pub fn new(retention: Retention, now: Instant) -> Self {
        let wait = match retention {
            Retention::Period(period) => period,
            Retention::Revisions(_) => Duration::ZERO,
        };
        let samples = VecDeque::new();
        Self { retention, samples, succeeded_at: now, wait, compacted: 0 }
    }

    /// What it keeps.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// Time between looks, which is also the time until a failed compaction is tried again.
    pub fn interval(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => period.min(PERIOD_MAX) / LOOKS_PER_PERIOD,
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// Samples that reach back one period, and the one at its end.
    fn samples_max(&self, period: Duration) -> usize {
        let nanos = self.interval().as_nanos().max(1);
        usize::try_from(period.as_nanos() / nanos).unwrap_or(usize::MAX).saturating_add(1)
    }

    /// The store is at this revision.
    pub fn sample(&mut self, revision: i64) {
        let Retention::Period(period) = self.retention else { return };
        self.samples.push_back(revision);
        if self.samples.len() > self.samples_max(period) {
            self.samples.pop_front();
        }
    }

    /// The revision to compact at now, if it is time. Only a leader compacts.
    pub fn due(&mut self, now: Instant, leading: bool, revision: i64) -> Option<i64> {
        if !leading {
            return None;
        }
        match self.retention {
            Retention::Period(period) => {
                if now.saturating_duration_since(self.succeeded_at) < self.wait {
                    return None;
                }
                self.wait = period.min(PERIOD_MAX);
                self.samples.front().copied()
            }
            Retention::Revisions(kept) => {
                let at = revision - kept;
                (at > 0 && at != self.compacted).then_some(at)
            }
        }
    }

    /// The compaction at `revision` has ended; one that others had done already is a success.
    pub fn ended(&mut self, now: Instant, revision: i64, success: bool) {
        if success {
            self.succeeded_at = now;
            self.compacted = revision;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Runs `looks` looks in which the store gains `step` revisions each, all compactions with
    /// this outcome; gives (look, revision) of each compaction.
    fn run(
        core: &mut AutoCompact,
        looks: std::ops::Range<u32>,
        start: Instant,
        step: i64,
        outcome: impl Fn(u32) -> (bool, bool),
    ) -> Vec<(u32, i64)> {
        let mut compactions = Vec::new();
        for look in looks {
            let now = start + core.interval() * look;
            let revision = i64::from(look) * step;
            let (leading, success) = outcome(look);
            if let Some(at) = core.due(now, leading, revision) {
                compactions.push((look, at));
                core.ended(now, at, success);
            }
            core.sample(revision);
        }
        compactions
    }

    #[test]
    fn a_period_below_an_hour_is_looked_at_ten_times() {
        let start = Instant::now();
        let mut core = AutoCompact::new(Retention::Period(10 * MINUTE), start);
        assert_eq!(core.interval(), MINUTE);
        core.sample(0);
        let done = run(&mut core, 1..31, start, 100, |_| (true, true));
        // The oldest sample is that of the look before the one a period ago.
        assert_eq!(done, [(10, 0), (20, 900), (30, 1900)]);
    }

    #[test]
    fn a_period_above_an_hour_compacts_each_hour() {
        let start = Instant::now();
        let mut core = AutoCompact::new(Retention::Period(180 * MINUTE), start);
        assert_eq!(core.interval(), 6 * MINUTE);
        core.sample(0);
        let done = run(&mut core, 1..51, start, 10, |_| (true, true));
        assert_eq!(done, [(30, 0), (40, 90), (50, 190)]);
    }

    #[test]
    fn a_failed_one_is_tried_again_at_the_next_look_with_a_newer_revision() {
        let start = Instant::now();
        let mut core = AutoCompact::new(Retention::Period(60 * MINUTE), start);
        core.sample(0);
        let done = run(&mut core, 1..24, start, 1, |look| (true, !(10..=11).contains(&look)));
        assert_eq!(done, [(10, 0), (11, 0), (12, 1), (22, 11)]);
    }

    #[test]
    fn a_follower_samples_and_compacts_once_it_leads() {
        let start = Instant::now();
        let mut core = AutoCompact::new(Retention::Period(60 * MINUTE), start);
        core.sample(0);
        let done = run(&mut core, 1..20, start, 1, |look| (look >= 15, true));
        assert_eq!(done, [(15, 4)]);
    }

    #[test]
    fn revisions_are_kept_by_number() {
        let start = Instant::now();
        let mut core = AutoCompact::new(Retention::Revisions(100), start);
        assert_eq!(core.interval(), 5 * MINUTE);
        core.sample(1);
        assert_eq!(core.due(start, true, 100), None);
        assert_eq!(core.due(start, false, 101), None);
        assert_eq!(core.due(start, true, 101), Some(1));
        core.ended(start, 1, false);
        assert_eq!(core.due(start, true, 101), Some(1));
        core.ended(start, 1, true);
        assert_eq!(core.due(start, true, 101), None);
        assert_eq!(core.due(start, true, 350), Some(250));
    }
}
