//! Threads that hash passwords and sign tokens: work of milliseconds, kept away from everything
//! that others wait for.

use crate::actors::rt;
use crate::base::limits::PASSWORD_WORK_MAX;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How much the threads give way to others of the process.
const NICENESS: i32 = 5;

/// One piece of work; it answers by itself and does nothing if nobody waits any more.
pub type Job = Box<dyn FnOnce() + Send>;

/// The threads, reached through a bounded queue. They end when the last handle is dropped.
#[derive(Clone)]
pub struct Passwords(SyncSender<Job>);

impl Passwords {
    /// Starts `threads` threads.
    pub fn start(threads: usize) -> std::io::Result<Passwords> {
        let (jobs, queue) = sync_channel::<Job>(PASSWORD_WORK_MAX);
        // Held by the one thread that waits for work.
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let queue = queue.clone();
            std::thread::Builder::new().name("password".into()).spawn(move || work(&queue))?;
        }
        Ok(Passwords(jobs))
    }

    /// Queues a job; gives it back if there is no room.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        self.0.try_send(job).map_err(|refused| match refused {
            std::sync::mpsc::TrySendError::Full(job)
            | std::sync::mpsc::TrySendError::Disconnected(job) => job,
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    // Without the right to be nice it is not.
    let _ = rustix::process::nice(NICENESS);
    loop {
        let job = queue.lock().recv();
        let Ok(job) = job else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
            let panic = rt::panic_text(panic.as_ref());
            tracing::error!(panic, "work on a password panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_full_queue_refuses_and_a_panic_costs_one_job() {
        let passwords = Passwords::start(1).unwrap();
        let (started, starting) = channel();
        let (release, released) = channel::<()>();
        let blocking = Box::new(move || {
            started.send(()).unwrap();
            let _ = released.recv();
        });
        assert!(passwords.submit(blocking).is_ok());
        starting.recv().unwrap();
        assert!(passwords.submit(Box::new(|| panic!("on purpose"))).is_ok());
        let (done, finished) = channel();
        for _ in 1..PASSWORD_WORK_MAX {
            let done = done.clone();
            assert!(passwords.submit(Box::new(move || done.send(()).unwrap())).is_ok());
        }
        assert!(passwords.submit(Box::new(|| {})).is_err());
        drop((release, done));
        assert_eq!(finished.iter().count(), PASSWORD_WORK_MAX - 1);
    }
}
