//! How actors are started, and what a failure of one of them means. An actor that owns durable
//! state ends the process ([`or_abort`]); one whose state is derived is made anew ([`supervise`]).

use crate::base::clock::Clock;
use crate::base::limits::{ACTOR_RESTART_WINDOW, ACTOR_RESTARTS_MAX};
use crate::obs::metrics::metrics;
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use actix_rt::ArbiterHandle;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs a handler of an actor that owns durable state. A panic ends the process: restarting is the
/// tested recovery path, going on with half-changed state is not.
pub fn or_abort<T>(actor: &'static str, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => fatal(&format!("{actor} panicked: {}", panic_text(panic.as_ref()))),
    }
}

/// The text of a panic's payload.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "unknown panic".to_owned())
}

/// Logs the reason and ends the process without any further write to the data directory.
pub fn fatal(reason: &str) -> ! {
    tracing::error!(error = reason, "fatal: the member stops");
    std::process::exit(1);
}

/// An actor whose state is derived: it can be made again from what others publish. It runs inside
/// [`Supervised`], which catches its panics.
pub trait Restartable: Unpin + Sized + 'static {
    /// The name in logs and metrics.
    const NAME: &'static str;
    /// Messages that may wait; `do_send` ignores it, `try_send` does not.
    const MAILBOX_MAX: usize = crate::base::limits::RAFT_MAILBOX_MAX;

    /// Called for every life, the first included. Timers are armed here.
    fn started(&mut self, _: &mut Life<'_, Self>) {}
}

/// What a [`Restartable`] does with a message. A reply handle in a message that panics is dropped:
/// the one who asked sees a closed channel.
pub trait Handles<M: Message<Result = ()>>: Restartable {
    /// Must leave the actor consistent or panic.
    fn handle(&mut self, message: M, life: &mut Life<'_, Self>);
}

/// The context of one life of an actor. Its timers end with it; the address and the mailbox last.
pub struct Life<'a, A: Restartable> {
    context: &'a mut Context<Supervised<A>>,
    number: u64,
}

impl<A: Restartable> Life<'_, A> {
    /// The actor's own address.
    pub fn address(&self) -> Addr<Supervised<A>> {
        self.context.address()
    }

    /// Puts a message behind what is already in the mailbox.
    pub fn notify<M>(&mut self, message: M)
    where
        A: Handles<M>,
        M: Message<Result = ()> + 'static,
    {
        self.context.notify(message);
    }

    /// Runs `body` after `delay`, unless the actor was made anew meanwhile.
    pub fn later(
        &mut self,
        delay: Duration,
        body: impl FnOnce(&mut A, &mut Life<'_, A>) + 'static,
    ) {
        let number = self.number;
        self.context.run_later(delay, move |supervised, context| {
            if supervised.life == number {
                supervised.run(context, body);
            }
        });
    }
}

/// Counts restarts within a window.
#[derive(Debug, Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Whether one more is allowed at `now`.
    fn allow(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|&at| now.duration_since(at) >= ACTOR_RESTART_WINDOW) {
            self.0.pop_front();
        }
        if self.0.len() >= ACTOR_RESTARTS_MAX {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

/// Holds a [`Restartable`] and replaces it when it panics.
pub struct Supervised<A: Restartable> {
    actor: A,
    make: Box<dyn Fn() -> A>,
    /// Number of the actor's current life.
    life: u64,
    restarts: Restarts,
    clock: Arc<dyn Clock>,
}

/// Starts an actor that `make` makes, now and after each panic, from handles that outlive it.
pub fn supervise<A: Restartable>(
    arbiter: &ArbiterHandle,
    clock: Arc<dyn Clock>,
    make: impl Fn() -> A + Send + 'static,
) -> Addr<Supervised<A>> {
    Supervised::start_in_arbiter(arbiter, move |_| Supervised::new(clock, make))
}

impl<A: Restartable> Supervised<A> {
    fn new(clock: Arc<dyn Clock>, make: impl Fn() -> A + 'static) -> Supervised<A> {
        let actor = or_abort(A::NAME, &make);
        Supervised { actor, make: Box::new(make), life: 0, restarts: Restarts::default(), clock }
    }

    fn run(&mut self, context: &mut Context<Self>, body: impl FnOnce(&mut A, &mut Life<'_, A>)) {
        let number = self.life;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            body(&mut self.actor, &mut Life { context: &mut *context, number });
        }));
        if let Err(panic) = outcome {
            self.restart(context, &panic_text(panic.as_ref()));
        }
    }

    fn restart(&mut self, context: &mut Context<Self>, panic: &str) {
        if !self.restarts.allow(self.clock.now()) {
            fatal(&format!(
                "{} panicked: {panic}; it was made anew {ACTOR_RESTARTS_MAX} times within {} s",
                A::NAME,
                ACTOR_RESTART_WINDOW.as_secs(),
            ));
        }
        tracing::error!(actor = A::NAME, panic, "an actor panicked and is made anew");
        metrics().actor_restarts.with_label_values(&[A::NAME]).inc();
        self.life += 1;
        self.actor = or_abort(A::NAME, || (self.make)());
        self.run(context, A::started);
    }
}

impl<A: Restartable> Actor for Supervised<A> {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(A::MAILBOX_MAX);
        metrics().actor_restarts.with_label_values(&[A::NAME]);
        self.run(context, A::started);
    }
}

impl<A, M> Handler<M> for Supervised<A>
where
    A: Handles<M>,
    M: Message<Result = ()> + 'static,
{
    type Result = ();

    fn handle(&mut self, message: M, context: &mut Self::Context) {
        self.run(context, |actor, life| actor.handle(message, life));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::SystemClock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::oneshot;

    #[test]
    fn restarts_are_counted_within_a_window() {
        let mut restarts = Restarts::default();
        let start = Instant::now();
        for i in 0..ACTOR_RESTARTS_MAX {
            assert!(restarts.allow(start + Duration::from_secs(i as u64)));
        }
        assert!(!restarts.allow(start + Duration::from_secs(30)));
        assert!(restarts.allow(start + ACTOR_RESTART_WINDOW));
        assert!(!restarts.allow(start + ACTOR_RESTART_WINDOW));
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    enum Ask {
        Break,
        Look(oneshot::Sender<(u64, bool)>),
    }

    struct Fragile {
        life: u64,
        whole: bool,
        fired: Arc<AtomicU64>,
    }

    impl Restartable for Fragile {
        const NAME: &'static str = "Fragile";

        fn started(&mut self, life: &mut Life<'_, Self>) {
            self.whole = true;
            let number = self.life;
            life.later(Duration::from_millis(100), move |actor, _| {
                assert_eq!(actor.life, number, "a timer outlived its actor");
                actor.fired.fetch_add(1, Ordering::Relaxed);
            });
        }
    }

    impl Handles<Ask> for Fragile {
        fn handle(&mut self, ask: Ask, _: &mut Life<'_, Self>) {
            match ask {
                Ask::Break => {
                    self.whole = false;
                    panic!("on purpose");
                }
                Ask::Look(reply) => reply.send((self.life, self.whole)).unwrap(),
            }
        }
    }

    #[test]
    fn a_panic_makes_the_actor_anew_and_ends_its_timers() {
        actix_rt::System::new().block_on(async {
            let fired = Arc::new(AtomicU64::new(0));
            let (lives, seen) = (AtomicU64::new(0), fired.clone());
            let arbiter = actix_rt::Arbiter::new();
            let address = supervise(&arbiter.handle(), Arc::new(SystemClock), move || Fragile {
                life: lives.fetch_add(1, Ordering::Relaxed),
                whole: false,
                fired: seen.clone(),
            });
            for expected in 0..3 {
                let (reply, answer) = oneshot::channel();
                address.do_send(Ask::Look(reply));
                assert_eq!(answer.await.unwrap(), (expected, true));
                if expected < 2 {
                    address.do_send(Ask::Break);
                }
            }
            actix_rt::time::sleep(Duration::from_millis(300)).await;
            assert!(fired.load(Ordering::Relaxed) > 0, "the last life's timer fires");
            // A timer of an earlier life would have panicked.
            assert_eq!(metrics().actor_restarts.with_label_values(&["Fragile"]).get(), 2);
        });
    }
}
