//! The bodies of a call, seen message by message: counted, limited and ended early.

use super::observer::Call;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};

/// Bytes before each message: the compression flag and the length.
const PREFIX_BYTES: usize = 5;

/// Finds where messages begin in a body that arrives in arbitrary pieces.
#[derive(Default)]
pub struct Framing {
    prefix: [u8; PREFIX_BYTES],
    filled: usize,
    left: usize,
}

impl Framing {
    /// Takes the next piece and calls `on_message` with the length of each message that begins.
    pub fn feed<E>(
        &mut self,
        mut piece: &[u8],
        mut on_message: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        while !piece.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(piece.len());
                self.left -= taken;
                piece = &piece[taken..];
                continue;
            }
            let taken = (PREFIX_BYTES - self.filled).min(piece.len());
            self.prefix[self.filled..self.filled + taken].copy_from_slice(&piece[..taken]);
            self.filled += taken;
            piece = &piece[taken..];
            if self.filled == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.filled = 0;
                self.left = u32::from_be_bytes(length) as usize;
                on_message(self.left)?;
            }
        }
        Ok(())
    }
}

/// The body a client sends. A message over the limit ends it with grpc-go's error.
pub struct Received<B> {
    body: B,
    framing: Framing,
    call: Arc<Call>,
    message_bytes_max: usize,
}

impl<B> Received<B> {
    /// Wraps `body`.
    pub fn new(body: B, call: Arc<Call>, message_bytes_max: usize) -> Self {
        Self { body, framing: Framing::default(), call, message_bytes_max }
    }
}

impl<B> HttpBody for Received<B>
where
    B: HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let Poll::Ready(Some(Ok(frame))) = &polled else {
            return polled.map_err(Into::into);
        };
        if let Some(data) = frame.data_ref() {
            let max = this.message_bytes_max;
            let checked = this.framing.feed(data, |length| {
                if length > max {
                    return Err(too_large(length, max));
                }
                this.call.received(length);
                Ok(())
            });
            if let Err(status) = checked {
                return Poll::Ready(Some(Err(status.into())));
            }
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What grpc-go answers to a message over its receive limit.
fn too_large(length: usize, max: usize) -> Status {
    Status::resource_exhausted(format!(
        "grpc: received message larger than max ({length} vs. {max})"
    ))
}

/// What may end a response before the service does: the status to end it with.
pub type Interrupt = Pin<Box<dyn Future<Output = Status> + Send>>;

/// The body a service sends. The call counts as handled when its trailers pass.
pub struct Sent {
    body: Body,
    framing: Framing,
    /// `None` once nothing of the call is left to count.
    call: Option<Arc<Call>>,
    interrupts: Vec<Interrupt>,
    ended: bool,
}

impl Sent {
    /// Wraps `body`; the first of `interrupts` that is ready while the service has nothing to
    /// send ends it.
    pub fn new(body: Body, call: Arc<Call>, interrupts: Vec<Interrupt>) -> Self {
        let call = Some(call);
        Self { body, framing: Framing::default(), call, interrupts, ended: false }
    }

    /// Wraps the body of a call that ended with its headers.
    pub fn uncounted(body: Body) -> Self {
        let (framing, interrupts) = (Framing::default(), Vec::new());
        Self { body, framing, call: None, interrupts, ended: false }
    }

    fn poll_interrupts(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        for interrupt in &mut self.interrupts {
            if let Poll::Ready(status) = interrupt.as_mut().poll(cx) {
                return Poll::Ready(status);
            }
        }
        Poll::Pending
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(call) = &this.call else { return polled };
                if let Some(data) = frame.data_ref() {
                    let Ok(()) = this.framing.feed(data, |length| {
                        call.sent(length);
                        Ok::<(), std::convert::Infallible>(())
                    });
                } else if let Some(trailers) = frame.trailers_ref() {
                    call.handled(code_in(trailers).unwrap_or(Code::Unknown));
                }
                polled
            }
            Poll::Ready(_) => polled,
            Poll::Pending => match this.poll_interrupts(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(status) => {
                    this.ended = true;
                    this.body = Body::default();
                    this.interrupts.clear();
                    if let Some(call) = this.call.take() {
                        call.handled(status.code());
                    }
                    let mut trailers = HeaderMap::new();
                    match status.add_header(&mut trailers) {
                        Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                        Err(error) => Poll::Ready(Some(Err(error))),
                    }
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.interrupts.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// The code in headers or trailers, if the call ends there.
pub fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_in_any_pieces() {
        let body: Vec<u8> = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0]]
            .concat()
            .into_iter()
            .chain([7; 256])
            .collect();
        for step in [1, 2, 3, 5, 7, body.len()] {
            let mut framing = Framing::default();
            let mut lengths = Vec::new();
            for piece in body.chunks(step) {
                let fed: Result<(), ()> = framing.feed(piece, |length| {
                    lengths.push(length);
                    Ok(())
                });
                assert_eq!(fed, Ok(()));
            }
            assert_eq!(lengths, [3, 0, 256], "pieces of {step}");
            assert_eq!((framing.filled, framing.left), (0, 0));
        }
    }
}
