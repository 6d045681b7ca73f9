//! JSON web tokens (etcd v3.5.17 `server/auth/jwt.go`): who, at which auth revision, until when.

use super::keys::Keys;
use crate::actors::handle::auth::Identity;
use crate::base::error::{Error, Result};
use crate::base::limits::{JWT_CACHED_BYTES_MAX, JWT_CACHED_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How long tokens live where the flag does not say.
const TTL_DEFAULT_NS: i64 = 5 * 60 * NANOS;
const NANOS: i64 = 1_000_000_000;
/// Options of the flag that mean something.
const OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// Makes and checks tokens.
pub struct Jwt {
    keys: Keys,
    /// Nanoseconds. May be negative: then tokens are over as soon as they are made, as in etcd.
    ttl_ns: i64,
    /// Tokens whose signature was checked, since checking costs more than anything else that is
    /// done for a call. Emptied when it is full.
    checked: RwLock<HashMap<Box<str>, Checked>>,
}

/// What a token with a right signature says.
#[derive(Clone)]
struct Checked {
    identity: Identity,
    expires: Option<f64>,
    not_before: Option<f64>,
}

impl Jwt {
    /// From the options of the flag; reads the key files. `duration` reads Go's durations, to
    /// nanoseconds.
    pub fn new(
        options: &BTreeMap<&str, &str>,
        duration: impl Fn(&str) -> Option<i64>,
    ) -> std::result::Result<Jwt, String> {
        let invalid = |what: String| format!("auth: invalid auth options: {what}");
        let unknown: Vec<&&str> = options.keys().filter(|name| !OPTIONS.contains(name)).collect();
        if !unknown.is_empty() {
            tracing::warn!(keys = ?unknown, "unknown JWT options");
        }
        let set = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
        let ttl_ns = match set("ttl") {
            None => TTL_DEFAULT_NS,
            Some(text) => duration(text).ok_or_else(|| invalid(format!("ttl {text:?}")))?,
        };
        let read = |name: &str| {
            let path = set(name);
            path.map(|path| {
                std::fs::read(path).map_err(|error| invalid(format!("{path}: {error}")))
            })
            .transpose()
        };
        let (public, private) = (read("pub-key")?, read("priv-key")?);
        let method = set("sign-method").unwrap_or_default();
        let keys = Keys::new(method, public.as_deref(), private.as_deref()).map_err(invalid)?;
        Ok(Jwt { keys, ttl_ns, checked: RwLock::default() })
    }

    /// `VerifyOnlyKey` if there is no private key.
    pub fn may_sign(&self) -> Result<()> {
        if self.keys.can_sign() { Ok(()) } else { Err(Error::VerifyOnlyKey) }
    }

    /// The token of a user. `unix` is now.
    pub fn sign(&self, name: &str, revision: u64, unix: Duration) -> Result<String> {
        let now_ns = i64::try_from(unix.as_nanos()).unwrap_or(i64::MAX);
        let expires = now_ns.saturating_add(self.ttl_ns).div_euclid(NANOS);
        let header = json!({ "alg": self.keys.method, "typ": "JWT" }).to_string();
        let claims = json!({ "exp": expires, "revision": revision, "username": name }).to_string();
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.keys.sign(token.as_bytes()).ok_or(Error::VerifyOnlyKey)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Who a token says its bearer is, if it is ours and its time is now.
    pub fn verify(&self, token: &str, unix: Duration) -> Option<Identity> {
        let cached = self.checked.read().get(token).cloned();
        let checked = match cached {
            Some(checked) => checked,
            None => {
                let checked = self.check(token, unix)?;
                self.remember(token, &checked);
                checked
            }
        };
        // Whole seconds, as in etcd.
        let now = signed(unix) as f64;
        let over = checked.expires.is_some_and(|at| at <= now);
        let early = checked.not_before.is_some_and(|at| at > now);
        (!over && !early).then_some(checked.identity)
    }

    fn remember(&self, token: &str, checked: &Checked) {
        if token.len() > JWT_CACHED_BYTES_MAX {
            return;
        }
        let mut all = self.checked.write();
        if all.len() >= JWT_CACHED_MAX {
            all.clear();
        }
        all.insert(token.into(), checked.clone());
    }

    fn check(&self, token: &str, unix: Duration) -> Option<Checked> {
        let (signed_part, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed_part.split_once('.')?;
        let header: Map<String, Value> = decode(header)?;
        if header.get("alg")?.as_str()? != self.keys.method {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if !self.keys.verify(signed_part.as_bytes(), &signature) {
            return None;
        }
        let claims: Map<String, Value> = decode(claims)?;
        let issued = time(&claims, "iat")?;
        if issued.is_some_and(|at| at > signed(unix) as f64) {
            return None;
        }
        let name = claims.get("username")?.as_str()?.into();
        // A JSON number: whole ones beyond 2⁵³ are not exact in etcd either.
        let revision = claims.get("revision")?.as_f64()? as u64;
        Some(Checked {
            identity: Identity { name, revision },
            expires: time(&claims, "exp")?,
            not_before: time(&claims, "nbf")?,
        })
    }
}

/// A time among the claims: none and 0 mean always; `None` if it is no number.
fn time(claims: &Map<String, Value>, name: &str) -> Option<Option<f64>> {
    match claims.get(name) {
        None => Some(None),
        Some(value) => value.as_f64().map(|at| (at != 0.0).then_some(at)),
    }
}

fn decode(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn signed(unix: Duration) -> i64 {
    i64::try_from(unix.as_secs()).unwrap_or(i64::MAX)
}
