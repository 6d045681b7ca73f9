//! Passwords that bcrypt has found right lately, so that clients which log in again and again, or
//! all at once after a restart, do not pay for it each time. What is kept cannot be told from
//! random bytes without a key that only this process has and that ends with it; a wrong password
//! costs as much as ever. Why: docs/decisions/0010-proven-passwords.md.

use crate::base::limits::PROVEN_MAX;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SystemRandom;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a proof counts: as long as the token that a login gives (etcd v3.5.17
/// `--auth-token-ttl`, 300 s).
const PROVEN_FOR: Duration = Duration::from_secs(300);

type Digest = [u8; 32];

/// See the module.
pub struct Proven {
    key: hmac::Key,
    /// When each was proven. Held to look one up or to put one in.
    proofs: Mutex<HashMap<Digest, Instant>>,
}

/// A password beside the stored hash that it may belong to. Another hash, or the same password of
/// another user, whose salt differs, is another question.
pub struct Question(Digest);

impl Proven {
    /// With a key of its own; the system may have no random numbers.
    pub fn new() -> Result<Proven, ring::error::Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        Ok(Proven { key, proofs: Mutex::default() })
    }

    /// Whether `password` is that of `hash`.
    pub fn question(&self, password: &str, hash: &[u8]) -> Question {
        let mut context = hmac::Context::with_key(&self.key);
        // bcrypt's hashes have one length; should one not, it is told from its neighbour.
        context.update(&(hash.len() as u64).to_be_bytes());
        context.update(hash);
        context.update(password.as_bytes());
        let tag = context.sign();
        let mut digest = Digest::default();
        digest.copy_from_slice(tag.as_ref());
        Question(digest)
    }

    /// Whether it was proven lately.
    pub fn is_proven(&self, question: &Question, now: Instant) -> bool {
        let proofs = self.proofs.lock();
        let proven = proofs.get(&question.0);
        proven.is_some_and(|at| now.saturating_duration_since(*at) < PROVEN_FOR)
    }

    /// Bcrypt has found it right. While there are too many, it is not kept.
    pub fn proven(&self, question: &Question, now: Instant) {
        let mut proofs = self.proofs.lock();
        if proofs.len() >= PROVEN_MAX {
            proofs.retain(|_, at| now.saturating_duration_since(*at) < PROVEN_FOR);
        }
        if proofs.len() < PROVEN_MAX {
            proofs.insert(question.0, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_password_of_the_same_hash_is_proven_and_not_for_ever() {
        let (proven, start) = (Proven::new().unwrap(), Instant::now());
        let ask = |password: &str, hash: &[u8]| proven.question(password, hash);
        proven.proven(&ask("pw", b"$2a$hash"), start);
        assert!(proven.is_proven(&ask("pw", b"$2a$hash"), start));
        assert!(!proven.is_proven(&ask("pW", b"$2a$hash"), start));
        assert!(!proven.is_proven(&ask("pw", b"$2a$other"), start));
        assert!(!proven.is_proven(&ask("hpw", b"$2a$has"), start));
        let last = start + PROVEN_FOR - Duration::from_millis(1);
        assert!(proven.is_proven(&ask("pw", b"$2a$hash"), last));
        assert!(!proven.is_proven(&ask("pw", b"$2a$hash"), start + PROVEN_FOR));
        // Another process has another key.
        let other = Proven::new().unwrap();
        assert_ne!(other.question("pw", b"$2a$hash").0, ask("pw", b"$2a$hash").0);
    }

    #[test]
    fn no_more_are_kept_than_the_bound() {
        let (proven, start) = (Proven::new().unwrap(), Instant::now());
        for n in 0..PROVEN_MAX {
            proven.proven(&proven.question(&n.to_string(), b"h"), start);
        }
        let late = proven.question("late", b"h");
        proven.proven(&late, start);
        assert!(!proven.is_proven(&late, start));
        assert_eq!(proven.proofs.lock().len(), PROVEN_MAX);
        // Those that are over make room.
        proven.proven(&late, start + PROVEN_FOR);
        assert!(proven.is_proven(&late, start + PROVEN_FOR));
        assert_eq!(proven.proofs.lock().len(), 1);
    }
}
