//! The threads that serve connections: each has a runtime of its own and keeps its connections.
//!
//! Why not the tasks of one work-stealing runtime: each event there wakes a second worker to look
//! for more, which for a lone client is half of the context switches of a request. A connection is
//! one task (see `conn_task`), so there is nothing within it to share out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

struct Thread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    /// Dropped with the pool: the thread ends.
    _stop: oneshot::Sender<()>,
}

/// A fixed number of threads; they end when the pool is dropped.
pub struct EdgeThreads(Vec<Thread>);

impl std::fmt::Debug for EdgeThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EdgeThreads").field(&self.0.len()).finish()
    }
}

/// A connection's place on a thread, counted until it is dropped.
pub(super) struct Place {
    pub(super) runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EdgeThreads {
    /// Starts `count` threads, at least one.
    pub fn start(count: usize) -> io::Result<Self> {
        (0..count.max(1)).map(Thread::start).collect::<io::Result<_>>().map(Self)
    }

    /// A place on the thread that has the fewest connections.
    pub(super) fn place(&self) -> Option<Place> {
        let thread = self.0.iter().min_by_key(|t| t.connections.load(Ordering::Relaxed))?;
        thread.connections.fetch_add(1, Ordering::Relaxed);
        Some(Place { runtime: thread.runtime.clone(), connections: thread.connections.clone() })
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
            // The sender is never used, only dropped.
            let _ = runtime.block_on(stopped);
            // Reads on blocking threads may outlast the stop; nobody waits for them.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, connections: Arc::default(), _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_to_the_emptiest_thread_and_come_back() {
        let threads = EdgeThreads::start(2).unwrap();
        let counts = || -> Vec<usize> {
            threads.0.iter().map(|t| t.connections.load(Ordering::Relaxed)).collect()
        };
        let first = threads.place();
        let second = threads.place();
        assert_eq!(counts(), [1, 1]);
        drop(first);
        let third = threads.place();
        assert_eq!(counts(), [1, 1]);
        drop((second, third));
        assert_eq!(counts(), [0, 0]);
    }

    #[test]
    fn threads_run_what_they_get_and_end_with_the_pool() {
        let threads = EdgeThreads::start(1).unwrap();
        let place = threads.place().unwrap();
        let (reply, answer) = oneshot::channel();
        place.runtime.spawn(async move {
            let _ = reply.send(std::thread::current().name().map(str::to_owned));
        });
        assert_eq!(answer.blocking_recv().unwrap().as_deref(), Some("edge-0"));
        let (held, gone) = oneshot::channel::<()>();
        place.runtime.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(threads);
        assert!(gone.blocking_recv().is_err());
    }
}
