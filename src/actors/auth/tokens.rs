//! Simple tokens: who holds which, and until when. StoreActor adds and voids them as it applies
//! entries, before it answers; edges look them up and renew them; AuthActor removes what is over.

use crate::apply::TokenChange;
use crate::base::limits::TOKENS_MAX;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Parts with a lock each, so that edges rarely meet.
const SHARDS: usize = 16;
/// The part of a full shard that goes, those first that would expire first.
const EVICTED_ONE_IN: usize = 8;

/// The tokens that a user got since all of theirs were void the last time.
struct Holder {
    name: Arc<str>,
    void: AtomicBool,
}

struct Token {
    holder: Arc<Holder>,
    /// Milliseconds after the table's origin.
    expires: AtomicU64,
}

impl Token {
    fn is_over(&self, now: u64) -> bool {
        self.expires.load(Ordering::Relaxed) < now || self.holder.void.load(Ordering::Acquire)
    }
}

type Shard = HashMap<Box<str>, Token>;

/// See the module.
pub struct Tokens {
    ttl: Duration,
    origin: Instant,
    hasher: RandomState,
    /// Looked into by every call; a lock is held for one lookup, or while one shard is swept.
    shards: [RwLock<Shard>; SHARDS],
    /// Taken by changes only.
    holders: Mutex<HashMap<Arc<str>, Arc<Holder>>>,
}

impl Tokens {
    /// An empty table. Each use gives a token `ttl` anew.
    pub fn new(ttl: Duration, now: Instant) -> Tokens {
        Tokens {
            ttl,
            origin: now,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| RwLock::default()),
            holders: Mutex::default(),
        }
    }

    fn shard(&self, token: &str) -> &RwLock<Shard> {
        &self.shards[self.hasher.hash_one(token) as usize % SHARDS]
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }

    /// The user who holds a token, which is renewed.
    pub fn resolve(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let shard = self.shard(token).read();
        let held = shard.get(token)?;
        if held.is_over(self.millis(now)) {
            return None;
        }
        held.expires.store(self.millis(now + self.ttl), Ordering::Relaxed);
        Some(held.holder.name.clone())
    }

    /// StoreActor only: what an entry did.
    pub fn change(&self, change: TokenChange, now: Instant) {
        match change {
            TokenChange::Assigned { user, token } => self.assign(&user, token, now),
            TokenChange::UserForgotten { user } => {
                if let Some(holder) = self.holders.lock().remove(user.as_str()) {
                    holder.void.store(true, Ordering::Release);
                }
            }
            TokenChange::AllForgotten => {
                for (_, holder) in self.holders.lock().drain() {
                    holder.void.store(true, Ordering::Release);
                }
            }
        }
    }

    fn assign(&self, user: &str, token: String, now: Instant) {
        let holder = {
            let mut holders = self.holders.lock();
            match holders.get(user) {
                Some(holder) => holder.clone(),
                None => {
                    let name: Arc<str> = user.into();
                    let void = AtomicBool::new(false);
                    let holder = Arc::new(Holder { name: name.clone(), void });
                    holders.insert(name, holder.clone());
                    holder
                }
            }
        };
        let expires = AtomicU64::new(self.millis(now + self.ttl));
        let mut shard = self.shard(&token).write();
        if shard.len() >= TOKENS_MAX / SHARDS {
            make_room(&mut shard, self.millis(now));
        }
        shard.insert(token.into(), Token { holder, expires });
    }

    /// Removes what is over, and users who hold nothing.
    pub fn sweep(&self, now: Instant) {
        let now = self.millis(now);
        for shard in &self.shards {
            if shard.read().values().any(|token| token.is_over(now)) {
                shard.write().retain(|_, token| !token.is_over(now));
            }
        }
        // One that is being assigned has a second owner.
        self.holders.lock().retain(|_, holder| Arc::strong_count(holder) > 1);
    }

    /// How many there are, those included that are over and not yet swept.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

fn make_room(shard: &mut Shard, now: u64) {
    shard.retain(|_, token| !token.is_over(now));
    if shard.len() < TOKENS_MAX / SHARDS {
        return;
    }
    let mut ends: Vec<u64> =
        shard.values().map(|token| token.expires.load(Ordering::Relaxed)).collect();
    let at = ends.len() / EVICTED_ONE_IN;
    let (_, &mut limit, _) = ends.select_nth_unstable(at);
    let mut left = at.max(1);
    shard.retain(|_, token| {
        let goes = left > 0 && token.expires.load(Ordering::Relaxed) <= limit;
        left -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn assigned(user: &str, token: &str) -> TokenChange {
        TokenChange::Assigned { user: user.to_owned(), token: token.to_owned() }
    }

    #[test]
    fn tokens_live_while_they_are_used() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let tokens = Tokens::new(TTL, start);
        tokens.change(assigned("a", "x.1"), start);
        tokens.change(assigned("a", "x.2"), start);
        for seconds in [5, 10, 20] {
            assert_eq!(tokens.resolve("x.1", at(seconds)).as_deref(), Some("a"));
        }
        assert_eq!(tokens.resolve("x.2", at(11)), None);
        assert_eq!(tokens.resolve("x.3", at(11)), None);
        tokens.sweep(at(11));
        assert_eq!((tokens.len(), tokens.holders.lock().len()), (1, 1));
        assert_eq!(tokens.resolve("x.1", at(31)), None);
        tokens.sweep(at(31));
        assert_eq!((tokens.len(), tokens.holders.lock().len()), (0, 0));
    }

    #[test]
    fn users_are_forgotten_at_once() {
        let now = Instant::now();
        let tokens = Tokens::new(TTL, now);
        for (user, token) in [("a", "x.1"), ("b", "x.2"), ("a", "x.3")] {
            tokens.change(assigned(user, token), now);
        }
        tokens.change(TokenChange::UserForgotten { user: "a".to_owned() }, now);
        tokens.change(assigned("a", "x.4"), now);
        let held = |token| tokens.resolve(token, now).map(|user| user.to_string());
        assert_eq!(
            ["x.1", "x.2", "x.3", "x.4"].map(held).map(|user| user.is_some()),
            [false, true, false, true]
        );
        tokens.sweep(now);
        assert_eq!(tokens.len(), 2);
        tokens.change(TokenChange::AllForgotten, now);
        assert_eq!((held("x.2"), held("x.4")), (None, None));
        tokens.change(assigned("a", "x.5"), now);
        assert_eq!(held("x.5").as_deref(), Some("a"));
    }

    #[test]
    fn their_number_is_bounded() {
        let start = Instant::now();
        let tokens = Tokens::new(TTL, start);
        let count = TOKENS_MAX + TOKENS_MAX / 4;
        for number in 0..count {
            let now = start + Duration::from_millis(number as u64 / 256);
            tokens.change(assigned("a", &format!("x.{number}")), now);
        }
        assert!(tokens.len() <= TOKENS_MAX);
        let last = start + Duration::from_millis(count as u64 / 256);
        assert!(tokens.resolve(&format!("x.{}", count - 1), last).is_some(), "the newest stay");
    }
}
