//! One task for each connection: the HTTP/2 streams of a connection are polled by the task that
//! drives it, not by tasks of their own.
//!
//! Why: when a group commit answers many streams of a connection at once, the connection's task is
//! woken once, all answers are framed, and one write carries them. As tasks of their own each
//! stream wakes the connection, which then writes answer by answer.

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Turns of connection and streams within one poll; then other tasks get the thread.
const TURNS_PER_POLL: usize = 16;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes up the streams that a connection starts. Their number is bounded by the connection's
/// `max_concurrent_streams`.
#[derive(Clone, Default)]
pub(super) struct StreamExecutor(Arc<Mutex<Vec<Task>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        self.0.lock().push(Box::pin(stream));
    }
}

/// A connection together with its streams. Dropping it drops the streams: their callers are gone.
pub(super) struct ConnTask<C> {
    connection: Pin<Box<C>>,
    started: StreamExecutor,
    streams: FuturesUnordered<Task>,
}

impl<C: Future> ConnTask<C> {
    /// `connection` must have been built with `executor`.
    pub(super) fn new(connection: C, executor: StreamExecutor) -> Self {
        Self {
            connection: Box::pin(connection),
            started: executor,
            streams: FuturesUnordered::new(),
        }
    }

    /// The connection, to ask it to end.
    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future> Future for ConnTask<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = &mut *self;
        for _ in 0..TURNS_PER_POLL {
            if let Poll::Ready(end) = this.connection.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            let started = std::mem::take(&mut *this.started.0.lock());
            let mut moved = !started.is_empty();
            this.streams.extend(started);
            while let Poll::Ready(Some(())) = this.streams.poll_next_unpin(cx) {
                moved = true;
            }
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    /// Ends after `polls` polls, waking itself each time.
    struct Turns(usize);

    impl Future for Turns {
        type Output = &'static str;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<&'static str> {
            if self.0 == 0 {
                return Poll::Ready("end");
            }
            self.0 -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    #[test]
    fn streams_run_within_the_connections_polls() {
        let executor = StreamExecutor::default();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let done = done.clone();
            executor.execute(async move {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut task = ConnTask::new(Turns(3), executor);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert_eq!(done.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn the_end_of_the_connection_drops_its_streams() {
        let executor = StreamExecutor::default();
        let held = Arc::new(());
        let stream = held.clone();
        executor.execute(async move {
            let _stream = stream;
            std::future::pending::<()>().await;
        });
        let mut task = ConnTask::new(Turns(2), executor);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert_eq!(Arc::strong_count(&held), 2);
        assert_eq!(Pin::new(&mut task).poll(&mut cx), Poll::Ready("end"));
        drop(task);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
