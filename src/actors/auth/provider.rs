//! The kinds of tokens, chosen by `--auth-token` (etcd v3.5.17 `server/auth/store.go`
//! NewTokenProvider).

use super::jwt::Jwt;
use super::tokens::Tokens;
use crate::apply::TokenChange;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time to live of simple tokens where the flags say nothing.
const TTL_DEFAULT: Duration = Duration::from_secs(300);
/// What etcd ends with when the flag makes no sense.
const INVALID: &str = "auth: invalid auth options";

/// What tokens are.
pub enum Provider {
    /// Random words that members remember.
    Simple(Box<Tokens>),
    /// Signed statements.
    Jwt(Box<Jwt>),
    /// Nobody can log in.
    Nobody,
}

impl Provider {
    /// From the flags; `now` is where the table of simple tokens begins, `duration` reads Go's
    /// durations, to nanoseconds.
    pub fn new(
        flag: &str,
        ttl: Duration,
        now: Instant,
        duration: impl Fn(&str) -> Option<i64>,
    ) -> Result<Provider, String> {
        let (kind, options) = decompose(flag)?;
        match kind {
            "simple" => {
                tracing::warn!("simple token is not cryptographically signed");
                let ttl = if ttl.is_zero() { TTL_DEFAULT } else { ttl };
                Ok(Provider::Simple(Box::new(Tokens::new(ttl, now))))
            }
            "jwt" => Ok(Provider::Jwt(Box::new(Jwt::new(&options, duration)?))),
            "" => Ok(Provider::Nobody),
            unknown => Err(format!("{INVALID}: unknown token type {unknown:?}")),
        }
    }

    /// StoreActor only: what an entry did, before its answer leaves.
    pub fn change(&self, change: TokenChange, now: Instant) {
        if let Provider::Simple(tokens) = self {
            tokens.change(change, now);
        }
    }

    /// Removes what is over.
    pub fn sweep(&self, now: Instant) {
        match self {
            Provider::Simple(tokens) => tokens.sweep(now),
            Provider::Jwt(_) | Provider::Nobody => {}
        }
    }
}

/// `kind,name=value,…`; a name stands once.
fn decompose(flag: &str) -> Result<(&str, BTreeMap<&str, &str>), String> {
    let mut parts = flag.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let (name, value) = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| format!("{INVALID}: {part:?} in {flag:?}"))?;
        if options.insert(name, value).is_some() {
            return Err(format!("{INVALID}: {name:?} twice in {flag:?}"));
        }
    }
    Ok((kind, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        let kind = |flag: &str| {
            Provider::new(flag, Duration::ZERO, Instant::now(), |_| None).map(|provider| {
                match provider {
                    Provider::Simple(_) => "simple",
                    Provider::Jwt(_) => "jwt",
                    Provider::Nobody => "nobody",
                }
            })
        };
        assert_eq!(kind("simple"), Ok("simple"));
        assert_eq!(kind("simple,what=ever"), Ok("simple"));
        assert_eq!(kind(""), Ok("nobody"));
        for wrong in
            ["Simple", "simple,what", "simple,a=b=c", "simple,a=b,a=c", "jwt", "jwt,ttl=1s"]
        {
            assert!(kind(wrong).is_err_and(|error| error.starts_with(INVALID)), "{wrong}");
        }
    }
}
