//! Corruption: while this member leads, it compares its store with everyone's, as
//! `--experimental-corrupt-check-time` and `--experimental-compact-hash-check-enabled` ask for, and
//! has the CORRUPT alarm raised where they differ (etcd v3.5.17 `server.go` monitorKVHash,
//! monitorCompactHash). The waiting is done by a task; the actor is told when it has ended.
//! Uses: base, mvcc, pb

mod check;
#[cfg(test)]
mod tests;

pub use check::{AskError, Checker, PeerHashes};

use crate::actors::rt::{Handles, Life, Restartable};
use crate::base::failpoint;
use actix::Message;
use std::time::Duration;
use tokio::runtime::Handle;

/// The two kinds of looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// At the whole store.
    Store,
    /// At what compactions have hashed.
    Compactions,
}

/// How often; `None` is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Intervals {
    pub store: Option<Duration>,
    pub compactions: Option<Duration>,
}

impl Intervals {
    /// Whether there is nothing to do.
    pub fn are_none(&self) -> bool {
        self.store.is_none() && self.compactions.is_none()
    }

    fn of(&self, look: Look) -> Option<Duration> {
        match look {
            Look::Store => self.store,
            Look::Compactions => self.compactions,
        }
    }
}

/// A look has ended, however it went.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ended {
    look: Look,
    /// The newest compaction that all members are known to agree on.
    checked: Option<i64>,
}

/// See the module.
pub struct Corruption {
    checker: Checker,
    intervals: Intervals,
    /// Where the tasks run.
    runtime: Handle,
    /// Compactions up to here need not be compared again. Lost with a life, which costs a look.
    checked: i64,
    /// Looks that are under way.
    busy: Vec<Look>,
}

impl Corruption {
    /// Knows nothing yet.
    pub fn new(checker: Checker, intervals: Intervals, runtime: Handle) -> Corruption {
        Corruption { checker, intervals, runtime, checked: 0, busy: Vec::new() }
    }

    fn arm(&self, look: Look, life: &mut Life<'_, Self>) {
        if let Some(interval) = self.intervals.of(look) {
            life.later(interval, move |actor, life| actor.look(look, life));
        }
    }

    fn look(&mut self, look: Look, life: &mut Life<'_, Self>) {
        failpoint::hit(failpoint::CORRUPTION_LOOK);
        self.arm(look, life);
        if self.busy.contains(&look) || !self.checker.shared.standing().is_leader {
            return;
        }
        self.busy.push(look);
        let (checker, checked, address) = (self.checker.clone(), self.checked, life.address());
        let work = self.runtime.spawn(async move {
            match look {
                Look::Store => {
                    if let Err(error) = checker.store().await {
                        tracing::warn!(?error, "failed to check hash KV");
                    }
                    checked
                }
                Look::Compactions => checker.compactions(checked).await,
            }
        });
        self.runtime.spawn(async move {
            let checked = work.await.ok();
            address.do_send(Ended { look, checked });
        });
    }
}

impl Restartable for Corruption {
    const NAME: &'static str = "Corruption";

    fn started(&mut self, life: &mut Life<'_, Self>) {
        if let Some(interval) = self.intervals.store {
            tracing::info!(
                "local-member-id" = %self.checker.shared.member_id,
                interval = ?interval,
                "enabled corruption checking"
            );
        }
        self.arm(Look::Store, life);
        self.arm(Look::Compactions, life);
    }
}

impl Handles<Ended> for Corruption {
    fn handle(&mut self, Ended { look, checked }: Ended, _: &mut Life<'_, Self>) {
        self.busy.retain(|busy| *busy != look);
        self.checked = self.checked.max(checked.unwrap_or_default());
    }
}
