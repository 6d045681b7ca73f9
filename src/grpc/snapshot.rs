//! Maintenance.Snapshot: an image of the store in messages of 32 KiB, and its SHA-256 behind it.
//!
//! The image is made on a blocking thread, a few messages at a time and only when the client has
//! taken those before: a slow client costs their memory and no thread. When it goes away the image
//! goes with its stream.

use super::edge::Image;
use super::status;
use crate::base::clock::{Clock, SystemClock};
use crate::obs::metrics::metrics;
use crate::pb::etcdserverpb::SnapshotResponse;
use bytes::Bytes;
use futures_util::{Stream, stream};
use ring::digest::{Context, SHA256};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::Status;

/// Bytes of the image in one message (etcd v3.5.17 `v3rpc/maintenance.go` snapshotSendBufferSize).
const MESSAGE_BYTES: usize = 32 * 1024;
/// Messages made at a time.
const MESSAGES_AHEAD: usize = 8;
/// A transfer is slow if it takes longer than at this many bytes a second
/// (etcd v3.5.17 `server/mvcc/backend/backend.go` Snapshot) …
const RATE_EXPECTED: u64 = 100 * 1024 * 1024;
/// … and longer than this.
const SLOW_MIN: Duration = Duration::from_secs(30);

/// The messages of a snapshot. `open` begins the image; it may block.
pub fn messages<F>(open: F) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send
where
    F: FnOnce() -> Result<Box<dyn Image>, String> + Send + 'static,
{
    let begin = Step::Begin(Box::new(open));
    stream::try_unfold(begin, |mut step| async {
        loop {
            step = match step {
                Step::Begin(open) => {
                    let begun = SystemClock.now();
                    let image = blocking(open).await?;
                    Step::Send(Box::new(Sending::new(image, begun)))
                }
                Step::Send(mut sending) => {
                    if let Some(message) = sending.ready.pop_front() {
                        return Ok(Some((message, Step::Send(sending))));
                    }
                    if sending.done {
                        sending.log_end();
                        return Ok(None);
                    }
                    let sending = blocking(move || sending.fill().map(|()| sending)).await?;
                    Step::Send(sending.watched())
                }
            };
        }
    })
}

type Open = Box<dyn FnOnce() -> Result<Box<dyn Image>, String> + Send>;

enum Step {
    Begin(Open),
    Send(Box<Sending>),
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string()).and_then(|result| result).map_err(|error| {
        tracing::error!(error, "failed to make a database snapshot");
        status::snapshot_failed()
    })
}

struct Sending {
    image: Box<dyn Image>,
    sha: Context,
    /// Bytes of the image, once they are known.
    total: Option<u64>,
    left: u64,
    ready: VecDeque<SnapshotResponse>,
    /// Everything is in `ready` or gone.
    done: bool,
    begun: Instant,
    /// Warns while the transfer takes too long.
    watch: Option<JoinHandle<()>>,
}

impl Sending {
    fn new(image: Box<dyn Image>, begun: Instant) -> Sending {
        Sending {
            image,
            sha: Context::new(&SHA256),
            total: None,
            left: 0,
            ready: VecDeque::new(),
            done: false,
            begun,
            watch: None,
        }
    }

    fn fill(&mut self) -> Result<(), String> {
        let Some(total) = self.total else {
            self.total = self.image.prepare()?;
            self.left = self.total.unwrap_or(0);
            if let Some(bytes) = self.total {
                let size = human(bytes);
                tracing::info!("total-bytes" = bytes, size, "sending database snapshot to client");
            }
            return Ok(());
        };
        while self.left > 0 && self.ready.len() < MESSAGES_AHEAD {
            let blob = self.image.read(MESSAGE_BYTES)?;
            if blob.is_empty() {
                return Err(format!("the image ends {} bytes early", self.left));
            }
            self.sha.update(&blob);
            self.left = self.left.saturating_sub(blob.len() as u64);
            self.push(blob);
        }
        if self.left == 0 {
            let sha = Bytes::copy_from_slice(self.sha.clone().finish().as_ref());
            let bytes = sha.len();
            tracing::info!(
                "total-bytes" = total,
                "checksum-size" = bytes,
                "sending database sha256 checksum to client"
            );
            self.push(sha);
            self.done = true;
        }
        Ok(())
    }

    fn push(&mut self, blob: Bytes) {
        let remaining_bytes = self.left;
        self.ready.push_back(SnapshotResponse { header: None, remaining_bytes, blob });
    }

    /// Has somebody look at the time from now on, if the size is known.
    fn watched(mut self: Box<Self>) -> Box<Self> {
        if let (Some(total), None) = (self.total, &self.watch) {
            self.watch = Some(tokio::spawn(warn_while_slow(total, self.begun)));
        }
        self
    }

    fn log_end(&self) {
        let bytes = self.total.unwrap_or(0);
        tracing::info!(
            "total-bytes" = bytes,
            size = human(bytes),
            took = ?SystemClock.now().duration_since(self.begun),
            "successfully sent database snapshot to client"
        );
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let took = SystemClock.now().duration_since(self.begun);
        metrics().backend_snapshot.observe(took.as_secs_f64());
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

async fn warn_while_slow(bytes: u64, begun: Instant) {
    let expected = Duration::from_secs_f64(bytes as f64 / RATE_EXPECTED as f64);
    let mut late = tokio::time::interval(expected.max(SLOW_MIN));
    late.tick().await;
    loop {
        late.tick().await;
        tracing::warn!(
            taking = ?SystemClock.now().duration_since(begun),
            bytes,
            size = human(bytes),
            "snapshotting taking too long to transfer"
        );
    }
}

/// A size for the log: two digits and a unit of 1000.
fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if size < 999.5 {
            return if size < 9.95 && unit != "B" {
                format!("{size:.1} {unit}")
            } else {
                format!("{size:.0} {unit}")
            };
        }
        size /= 1000.0;
    }
    format!("{size:.0} PB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::sync::Arc;

    /// Bytes that count up, known after two slices of preparing.
    struct Counted {
        prepared: usize,
        left: usize,
        broken: bool,
        _held: Arc<()>,
    }

    impl Image for Counted {
        fn prepare(&mut self) -> Result<Option<u64>, String> {
            self.prepared += 1;
            Ok((self.prepared > 2).then_some(self.left as u64))
        }

        fn read(&mut self, bytes: usize) -> Result<Bytes, String> {
            if self.broken {
                return Err("no more".to_owned());
            }
            let bytes = bytes.min(self.left);
            self.left -= bytes;
            Ok(vec![self.left as u8; bytes].into())
        }
    }

    fn counted(left: usize, broken: bool, held: &Arc<()>) -> Box<dyn Image> {
        Box::new(Counted { prepared: 0, left, broken, _held: held.clone() })
    }

    #[tokio::test]
    async fn messages_hold_the_image_and_its_digest() {
        for (total, blobs) in [(32 * 1024 * 20, 20), (32 * 1024 + 1, 2), (4096, 1)] {
            let held = Arc::new(());
            let image = counted(total, false, &held);
            let sent: Vec<_> = messages(move || Ok(image)).collect().await;
            let sent: Vec<SnapshotResponse> = sent.into_iter().map(Result::unwrap).collect();
            assert_eq!(sent.len(), blobs + 1);
            let mut sha = Context::new(&SHA256);
            let mut left = total;
            for message in &sent[..blobs] {
                sha.update(&message.blob);
                left -= message.blob.len();
                assert_eq!(message.remaining_bytes, left as u64);
                assert!(left == 0 || message.blob.len() == MESSAGE_BYTES);
                assert_eq!(message.header, None);
            }
            assert_eq!(left, 0);
            assert_eq!(sent[blobs].blob, sha.finish().as_ref());
            assert_eq!(sent[blobs].remaining_bytes, 0);
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_frees_the_image() {
        let held = Arc::new(());
        let image = counted(32 * 1024 * 100, false, &held);
        let mut sent = Box::pin(messages(move || Ok(image)));
        assert_eq!(sent.next().await.unwrap().unwrap().blob.len(), MESSAGE_BYTES);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(sent);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn what_fails_ends_the_stream() {
        let image = counted(4096, true, &Arc::new(()));
        let sent: Vec<_> = messages(move || Ok(image)).collect().await;
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].as_ref().unwrap_err().code(), tonic::Code::Internal);
        let sent: Vec<_> = messages(|| Err("engine".to_owned())).collect().await;
        assert!(sent[0].is_err());
    }

    #[test]
    fn sizes_read_well() {
        let sizes = [(0, "0 B"), (999, "999 B"), (20_480, "20 kB"), (5_300_000, "5.3 MB")];
        for (bytes, text) in sizes {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human(8_589_934_592), "8.6 GB");
    }
}
