//! The edges' side: who makes a call, and the work on passwords that AuthActor hands on.

use super::{AuthAddr, Proven, Provider, Work};
use crate::actors::core::Shared;
use crate::actors::handle::Answer;
use crate::actors::handle::auth::{Authority, Credentials, Identity};
use crate::auth::{AuthReader, password};
use crate::base::clock::Clock;
use crate::base::error::{Error, Result};
use crate::base::limits::ACTOR_RESTARTS_MAX;
use crate::lease::LeaseReader;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Letters of a simple token (etcd v3.5.17 `server/auth/simple_token.go`).
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Letters before the index.
const SEED_LETTERS: usize = 16;

/// See the module.
pub struct AuthHandle {
    pub view: AuthReader,
    pub leases: LeaseReader,
    pub provider: Arc<Provider>,
    pub proven: Proven,
    pub actor: AuthAddr,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    /// Whether the name in a client's certificate is a user (etcd: `--client-cert-auth`).
    pub certificates: bool,
    pub bcrypt_cost: u32,
    /// How long a token's entry may take to be applied here.
    pub patience: Duration,
}

impl AuthHandle {
    /// The user of a simple token. It ends with the index of the entry that made it, which may not
    /// be applied here yet.
    async fn holder(&self, tokens: &super::tokens::Tokens, token: &str) -> Option<Arc<str>> {
        let (_, index) = token.split_once('.')?;
        let index = parse_index(index)?;
        let applied = self.shared.wait_applied(index);
        tokio::time::timeout(self.patience, applied).await.ok()?.ok()?;
        tokens.resolve(token, self.clock.now())
    }

    /// Has work done by AuthActor's threads. An actor that is made anew meanwhile is asked again.
    async fn done<T: Send + 'static>(
        &self,
        work: impl Fn() -> T + Clone + Send + 'static,
    ) -> Result<T> {
        for _ in 0..=ACTOR_RESTARTS_MAX {
            let (reply, answer) = oneshot::channel();
            let (refused, refusal) = oneshot::channel();
            let work = work.clone();
            let job = Box::new(move || {
                if !reply.is_closed() {
                    let _ = reply.send(work());
                }
            });
            if self.actor.try_send(Work { job, refused }).is_err() {
                return Err(Error::TooManyRequests);
            }
            if let Ok(done) = answer.await {
                return Ok(done);
            }
            if let Ok(error) = refusal.await {
                return Err(error);
            }
        }
        Err(Error::Stopped)
    }
}

/// Digits only, as Go's ParseUint takes them.
fn parse_index(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl Authority for AuthHandle {
    fn view(&self) -> &AuthReader {
        &self.view
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.auth_changes()
    }

    fn leases(&self) -> &LeaseReader {
        &self.leases
    }

    fn identify<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Answer<'a, Result<Option<Identity>>> {
        Box::pin(async move {
            let Some(token) = &credentials.token else {
                let name = credentials.common_name.clone().filter(|_| self.certificates);
                return Ok(name.map(|name| Identity { name, revision: self.view.revision() }));
            };
            let identity = match &*self.provider {
                Provider::Simple(tokens) => {
                    let holder = self.holder(tokens, token).await;
                    holder.map(|name| Identity { name, revision: self.view.revision() })
                }
                Provider::Jwt(jwt) => jwt.verify(token, self.clock.unix()),
                Provider::Nobody => None,
            };
            identity.map(Some).ok_or_else(|| {
                tracing::warn!("invalid auth token");
                Error::InvalidAuthToken
            })
        })
    }

    fn check_password<'a>(&'a self, name: &'a str, password: String) -> Answer<'a, Result<u64>> {
        Box::pin(async move {
            let (hash, revision) = {
                let state = self.view.state();
                (state.password_hash(name)?, state.revision())
            };
            let question = self.proven.question(&password, &hash);
            if self.proven.is_proven(&question, self.clock.now()) {
                return Ok(revision);
            }
            if !self.done(move || password::verify(password.as_bytes(), &hash)).await? {
                return Err(Error::AuthFailed);
            }
            self.proven.proven(&question, self.clock.now());
            Ok(revision)
        })
    }

    fn hash_password(&self, password: String) -> Answer<'_, Result<String>> {
        Box::pin(async move {
            let mut salt = [0; password::SALT_BYTES];
            SystemRandom::new().fill(&mut salt).map_err(|_| Error::Stopped)?;
            let cost = self.bcrypt_cost;
            let hash = self.done(move || password::hash(password.as_bytes(), cost, salt)).await??;
            Ok(password::to_request(&hash))
        })
    }

    fn token_seed(&self) -> Result<String> {
        if !matches!(*self.provider, Provider::Simple(_)) {
            return Ok(String::new());
        }
        let mut seed = String::with_capacity(SEED_LETTERS);
        let mut bytes = [0; SEED_LETTERS];
        while seed.len() < SEED_LETTERS {
            SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Stopped)?;
            // Bytes beyond a multiple of their number would make some letters likelier.
            let even = bytes.iter().filter(|byte| usize::from(**byte) < 4 * LETTERS.len());
            let letters = even.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
            seed.extend(letters.take(SEED_LETTERS - seed.len()));
        }
        Ok(seed)
    }

    fn sign<'a>(&'a self, name: &'a str, revision: u64) -> Answer<'a, Result<Option<String>>> {
        Box::pin(async move {
            match &*self.provider {
                Provider::Simple(_) => Ok(None),
                Provider::Nobody => Err(Error::AuthFailed),
                Provider::Jwt(jwt) => {
                    jwt.may_sign()?;
                    let (provider, name) = (self.provider.clone(), name.to_owned());
                    let unix = self.clock.unix();
                    let signed = self.done(move || match &*provider {
                        Provider::Jwt(jwt) => jwt.sign(&name, revision, unix),
                        _ => Err(Error::AuthFailed),
                    });
                    Ok(Some(signed.await??))
                }
            }
        })
    }
}
