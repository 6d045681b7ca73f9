//! AuthActor: removes tokens that are over, and hands the work on passwords to threads of its own.
//! Derived: users and roles live in the replicated machine. Tokens are in a table beside it, which
//! a panic here leaves alone; work that was being handed on is asked for again.
//! Uses: apply, auth, base, lease, pb

pub mod handle;
mod jwt;
mod keys;
mod passwords;
mod proven;
mod provider;
mod shared;
#[cfg(test)]
mod tests;
mod tokens;

pub use passwords::Passwords;
pub use proven::Proven;
pub use provider::Provider;

use crate::actors::rt::{Handles, Life, Restartable, Supervised};
use crate::base::clock::Clock;
use crate::base::error::Error;
use crate::base::failpoint;
use actix::{Addr, Message};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often tokens that are over are removed (etcd v3.5.17 `server/auth/simple_token.go`
/// simpleTokenTTLResolution).
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Work on a password or a key. Its answer goes where it knows; `refused` hears if there is no
/// room.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Work {
    job: passwords::Job,
    refused: oneshot::Sender<Error>,
}

/// See the module.
pub struct AuthActor {
    provider: Arc<Provider>,
    passwords: Passwords,
    clock: Arc<dyn Clock>,
}

/// How others reach it.
pub type AuthAddr = Addr<Supervised<AuthActor>>;

impl AuthActor {
    /// Around what outlives it.
    pub fn new(provider: Arc<Provider>, passwords: Passwords, clock: Arc<dyn Clock>) -> AuthActor {
        AuthActor { provider, passwords, clock }
    }

    fn arm(life: &mut Life<'_, Self>) {
        life.later(SWEEP_INTERVAL, |actor, life| {
            failpoint::hit(failpoint::AUTH_SWEEP);
            actor.provider.sweep(actor.clock.now());
            Self::arm(life);
        });
    }
}

impl Restartable for AuthActor {
    const NAME: &'static str = "AuthActor";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        Self::arm(life);
    }
}

impl Handles<Work> for AuthActor {
    fn handle(&mut self, Work { job, refused }: Work, _: &mut Life<'_, Self>) {
        failpoint::hit(failpoint::AUTH_WORK);
        if self.passwords.submit(job).is_err() {
            // A caller that has gone needs no answer.
            let _ = refused.send(Error::TooManyRequests);
        }
    }
}
