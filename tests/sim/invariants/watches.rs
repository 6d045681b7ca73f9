//! A watcher sees each change once and in order, whatever happens to the member that serves it.

use super::Check;
use std::collections::BTreeMap;

/// Revision and key.
type Seen = (i64, Vec<u8>);

#[derive(Default)]
pub struct Watches {
    history: Vec<Seen>,
    /// By watcher: how much of the history it has seen.
    seen: BTreeMap<u64, usize>,
    count: usize,
}

impl Watches {
    /// The first time that a change is applied.
    pub fn changed(&mut self, revision: i64, key: Vec<u8>) {
        self.history.push((revision, key));
    }

    /// The revision from which a watcher goes on.
    pub fn next(&self, watcher: u64) -> i64 {
        let seen = self.seen.get(&watcher).copied().unwrap_or(0);
        match seen.checked_sub(1) {
            Some(last) => self.history[last].0 + 1,
            None => 1,
        }
    }

    /// What is below a revision is compacted: the watcher gives it up.
    pub fn skip(&mut self, watcher: u64, revision: i64) {
        let seen = self.history.partition_point(|(at, _)| *at < revision);
        let own = self.seen.entry(watcher).or_insert(0);
        *own = seen.max(*own);
    }

    /// A watcher gets changes.
    pub fn gets(&mut self, watcher: u64, events: &[Seen]) -> Check {
        let seen = self.seen.entry(watcher).or_insert(0);
        for event in events {
            let expected = self.history.get(*seen);
            if expected != Some(event) {
                return Err(format!("watcher {watcher} gets {event:?} instead of {expected:?}"));
            }
            *seen += 1;
            self.count += 1;
        }
        // Whole revisions only: it would go on behind them.
        if *seen > 0
            && self.history.get(*seen).is_some_and(|next| next.0 == self.history[*seen - 1].0)
        {
            return Err(format!("watcher {watcher} gets a part of a revision"));
        }
        Ok(())
    }

    /// At the end: everybody has seen everything.
    pub fn end(&self, watchers: u64) -> Check {
        for watcher in 0..watchers {
            let seen = self.seen.get(&watcher).copied().unwrap_or(0);
            if seen != self.history.len() {
                return Err(format!(
                    "watcher {watcher} has seen {seen} of {} changes",
                    self.history.len()
                ));
            }
        }
        Ok(())
    }

    /// Changes that watchers got.
    pub fn count(&self) -> usize {
        self.count
    }
}
