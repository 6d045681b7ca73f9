//! What only the leader of a term may propose (revokes of expired leases): held until a read-index
//! round that was asked afterwards shows that this member still leads, and dropped otherwise. A
//! leader that was paused or cut off believes in itself until messages tell it better, while its
//! successor may have renewed the lease.

use crate::raft::driver::Standing;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// A round that is not answered within this time drops what waits for it; whoever proposed asks
/// again.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);

struct Round {
    context: u64,
    term: u64,
    asked_at: Instant,
    payloads: Vec<Bytes>,
}

/// See the module.
#[derive(Default)]
pub struct LeaderOnly {
    waiting: Vec<(u64, Bytes)>,
    round: Option<Round>,
}

impl LeaderOnly {
    /// Takes payloads that may be proposed only while this member leads in `term`.
    pub fn push(&mut self, term: u64, payloads: Vec<Bytes>) {
        self.waiting.extend(payloads.into_iter().map(|payload| (term, payload)));
    }

    /// Starts a round if something waits and none is in flight: raft must then be asked for a read
    /// index under `context`. Drops what is not for this leadership.
    pub fn ask(&mut self, standing: Standing, now: Instant, context: u64) -> bool {
        let current = |term: u64| standing.is_leader && standing.term == term;
        if let Some(round) = &self.round
            && (!current(round.term) || now.duration_since(round.asked_at) >= ROUND_TIMEOUT)
        {
            note_dropped(round.payloads.len(), round.term);
            self.round = None;
        }
        if self.waiting.is_empty() {
            return false;
        }
        let before = self.waiting.len();
        self.waiting.retain(|(term, _)| current(*term));
        note_dropped(before - self.waiting.len(), standing.term);
        if self.waiting.is_empty() || self.round.is_some() {
            return false;
        }
        let payloads = self.waiting.drain(..).map(|(_, payload)| payload).collect();
        self.round = Some(Round { context, term: standing.term, asked_at: now, payloads });
        true
    }

    /// Whether [`LeaderOnly::ask`] has anything to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.round.is_none()
    }

    /// A quorum has answered the round of `context`: what may be proposed now, in this call.
    pub fn confirmed(&mut self, context: u64, standing: Standing) -> Vec<Bytes> {
        let Some(round) = self.round.take_if(|round| round.context == context) else {
            return Vec::new();
        };
        if !standing.is_leader || standing.term != round.term {
            note_dropped(round.payloads.len(), round.term);
            return Vec::new();
        }
        round.payloads
    }
}

fn note_dropped(count: usize, term: u64) {
    if count > 0 {
        tracing::warn!(count, term, "dropped proposals that only the leader may make");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leading(term: u64) -> Standing {
        Standing { term, is_leader: true, ..Standing::default() }
    }

    #[test]
    fn nothing_is_proposed_before_a_later_round_is_answered() {
        let (mut held, now) = (LeaderOnly::default(), Instant::now());
        assert!(held.is_idle() && !held.ask(leading(5), now, 1));
        held.push(5, vec!["a".into(), "b".into()]);
        assert!(held.ask(leading(5), now, 2));
        held.push(5, vec!["late".into()]);
        assert!(!held.ask(leading(5), now, 3), "one round at a time");
        assert!(held.confirmed(1, leading(5)).is_empty(), "another round's answer");
        assert_eq!(held.confirmed(2, leading(5)), ["a", "b"]);
        assert!(held.confirmed(2, leading(5)).is_empty());
        assert!(held.ask(leading(5), now, 4));
        assert_eq!(held.confirmed(4, leading(5)), ["late"]);
        assert!(held.is_idle());
    }

    #[test]
    fn another_term_a_lost_leadership_and_a_lost_round_drop_it() {
        let (mut held, now) = (LeaderOnly::default(), Instant::now());
        let follower = Standing { is_leader: false, ..leading(5) };
        held.push(5, vec!["a".into()]);
        assert!(!held.ask(follower, now, 1) && held.is_idle());
        held.push(5, vec!["a".into()]);
        assert!(!held.ask(leading(6), now, 2) && held.is_idle());
        held.push(5, vec!["a".into()]);
        assert!(held.ask(leading(5), now, 3));
        assert!(held.confirmed(3, leading(6)).is_empty() && held.is_idle());
        held.push(5, vec!["a".into()]);
        assert!(held.ask(leading(5), now, 4));
        assert!(!held.ask(leading(5), now + ROUND_TIMEOUT, 5));
        assert!(held.confirmed(4, leading(5)).is_empty() && held.is_idle());
    }
}
