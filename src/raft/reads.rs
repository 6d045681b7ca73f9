//! Who waits for a read index. One round is in flight at a time; who comes during it shares the
//! next.

use std::time::{Duration, Instant};

/// A round that got no answer is asked again, under a new context, after this long
/// (etcd v3.5.17 readIndexRetryTime).
pub const RETRY: Duration = Duration::from_millis(500);

struct Round<W> {
    context: u64,
    asked_at: Instant,
    waiters: Vec<W>,
}

/// The rounds; `W` is whoever waits.
pub struct Reads<W> {
    round: Option<Round<W>>,
    next: Vec<W>,
}

impl<W> Default for Reads<W> {
    fn default() -> Reads<W> {
        Reads { round: None, next: Vec::new() }
    }
}

impl<W> Reads<W> {
    /// Somebody waits for the next round.
    pub fn push(&mut self, waiter: W) {
        self.next.push(waiter);
    }

    /// How many wait for the next round.
    pub fn waiting(&self) -> usize {
        self.next.len()
    }

    /// Begins a round if somebody waits and none is in flight: raft must then be asked under
    /// `context()`, which is never the same twice.
    pub fn begin(
        &mut self,
        now: Instant,
        is_gone: impl Fn(&W) -> bool,
        context: impl FnOnce() -> u64,
    ) -> Option<u64> {
        if self.round.is_some() {
            return None;
        }
        self.next.retain(|waiter| !is_gone(waiter));
        if self.next.is_empty() {
            return None;
        }
        let context = context();
        let waiters = std::mem::take(&mut self.next);
        self.round = Some(Round { context, asked_at: now, waiters });
        Some(context)
    }

    /// Gives a round up that is older than [`RETRY`]: its waiters share the next, and answers to
    /// it are ignored from here on (etcd#20418). Whether there was one.
    pub fn retry(&mut self, now: Instant) -> bool {
        let old = |round: &mut Round<W>| now.duration_since(round.asked_at) >= RETRY;
        let Some(mut round) = self.round.take_if(old) else { return false };
        round.waiters.append(&mut self.next);
        self.next = round.waiters;
        true
    }

    /// Who waited for the round of `context`; nobody if it is not the one in flight.
    pub fn answered(&mut self, context: u64) -> Vec<W> {
        self.round.take_if(|round| round.context == context).map_or_else(Vec::new, |r| r.waiters)
    }

    /// Ends the round in flight, which acknowledgements of an older leadership might answer. Who
    /// waited for it is to be told so; `None` if there was none.
    pub fn fail(&mut self) -> Option<Vec<W>> {
        self.round.take().map(|round| round.waiters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_during_a_round_shares_the_next() {
        let (mut reads, now) = (Reads::default(), Instant::now());
        assert_eq!(reads.begin(now, |_| false, || panic!("nobody waits")), None);
        reads.push('a');
        reads.push('b');
        assert_eq!(reads.begin(now, |waiter| *waiter == 'b', || 1), Some(1));
        reads.push('c');
        assert_eq!(reads.begin(now, |_| false, || panic!("one at a time")), None);
        assert!(reads.answered(9).is_empty());
        assert_eq!(reads.answered(1), ['a']);
        assert_eq!(reads.begin(now, |_| false, || 2), Some(2));
        assert_eq!(reads.fail(), Some(vec!['c']));
        assert_eq!((reads.fail(), reads.waiting()), (None, 0));
    }

    #[test]
    fn a_late_round_is_asked_again_and_its_answer_ignored() {
        let (mut reads, now) = (Reads::default(), Instant::now());
        reads.push('a');
        reads.begin(now, |_| false, || 1);
        reads.push('b');
        assert!(!reads.retry(now + RETRY - Duration::from_millis(1)));
        assert!(reads.retry(now + RETRY));
        assert!(reads.answered(1).is_empty());
        assert_eq!(reads.begin(now + RETRY, |_| false, || 2), Some(2));
        assert_eq!(reads.answered(2), ['a', 'b']);
    }
}
