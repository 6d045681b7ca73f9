//! Listening: plain and TLS on one port, HTTP/1 and HTTP/2, every wait bounded.
//! Uses: base

mod bind;
mod handshake;
mod socket;

pub use bind::{Listener, bind, bind_with, connection_limit};

use crate::transport::conn_task::{ConnTask, StreamExecutor};
use crate::transport::edge_threads::EdgeThreads;
use crate::transport::tls::{ServerTls, TlsInfo};
use axum::BoxError;
use axum::body::Body;
use axum::http::{Request, Response};
use handshake::secure;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket::{Detached, Socket};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

/// A connection must send its first byte within this time.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// A TLS handshake and the checks after it end within this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/1 headers arrive, and idle HTTP/1 connections end, within this time (etcd: 5 minutes).
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(300);
/// After a shutdown, open connections may finish for this long.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// First and longest pause after a failed accept (no file descriptors left, mostly).
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Response bytes buffered for one HTTP/2 stream.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;
/// Request bytes in flight on one stream.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Request bytes in flight on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Header bytes of one request (Go: 1 MiB).
const HEADER_BYTES_MAX: u32 = 1024 * 1024;
/// Streams that a client may reset before the server takes them up; clients cancel in bursts.
const PENDING_RESETS_MAX: usize = 1024;
/// The first byte of every TLS record of a handshake.
const TLS_HANDSHAKE_BYTE: u8 = 0x16;

/// Who is on the other end; an extension of every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Of the verified client certificate.
    pub common_name: Option<Arc<str>>,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// `ip:port`, or `@` for unix sockets.
    pub addr: Arc<str>,
}

/// What a listener speaks and its bounds.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// TLS is spoken.
    pub tls: Option<Arc<TlsInfo>>,
    /// Plain HTTP is spoken. Together with `tls` the first byte decides.
    pub plain: bool,
    /// Peer rules and words: the client's SAN is checked.
    pub peer: bool,
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
    /// `--grpc-keepalive-interval`; `None` sends no HTTP/2 pings.
    pub keepalive_interval: Option<Duration>,
    /// `--grpc-keepalive-timeout`.
    pub keepalive_timeout: Duration,
    /// Further connections wait in the kernel.
    pub max_connections: usize,
    /// Where connections are served; on the listener's own runtime if `None`.
    pub threads: Option<Arc<EdgeThreads>>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            tls: None,
            plain: true,
            peer: false,
            max_concurrent_streams: u32::MAX,
            keepalive_interval: Some(Duration::from_secs(2 * 60 * 60)),
            keepalive_timeout: Duration::from_secs(20),
            max_connections: connection_limit(),
            threads: None,
        }
    }
}

/// What answers the requests of a listener. It never fails: an error is an answer too.
pub trait App: Clone + Send + Sync + 'static {
    /// Of its responses.
    type Body: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
    /// Answers one request, which has a [`PeerInfo`] among its extensions.
    fn call(&self, request: Request<Incoming>)
    -> impl Future<Output = Response<Self::Body>> + Send;
}

impl App for axum::Router {
    type Body = Body;

    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        match self.clone().oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

struct Shared<A> {
    options: ServeOptions,
    tls: Option<ServerTls>,
    app: A,
    stopping: watch::Receiver<bool>,
}

/// Serves until `shutdown` completes, then lets connections finish for [`SHUTDOWN_GRACE`].
/// Fails only at the start, when the TLS files cannot be used.
pub async fn serve(
    listener: Listener,
    options: ServeOptions,
    app: impl App,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let tls = match &options.tls {
        Some(info) if info.is_empty() => {
            let text = format!(
                "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
                listener.local_addr()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Some(info) => Some(ServerTls::new(info.clone())?),
        None => None,
    };
    let permits = Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS)));
    let shared = Arc::new(Shared { options, tls, app, stopping });
    let mut tasks = JoinSet::new();
    let mut pause = ACCEPT_PAUSE.0;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            (accepted, permit) = next => match accepted {
                Ok((socket, remote)) => {
                    pause = ACCEPT_PAUSE.0;
                    let shared = shared.clone();
                    let place = shared.options.threads.as_ref().and_then(|threads| threads.place());
                    let Some(place) = place else {
                        tasks.spawn(async move {
                            let _permit = permit;
                            connection(&shared, socket, remote).await;
                        });
                        continue;
                    };
                    let runtime = place.runtime.clone();
                    let moved = async move {
                        let _held = (permit, place);
                        // A socket that the system will not hand over is gone.
                        if let Ok(socket) = socket.detach().and_then(Detached::attach) {
                            connection(&shared, socket, remote).await;
                        }
                    };
                    tasks.spawn_on(moved, &runtime);
                }
                Err(error) => {
                    tracing::warn!(%error, address = %listener.local_addr(), "failed to accept");
                    tokio::select! {
                        () = &mut shutdown => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            },
        }
    }
    drop(listener);
    let _ = stop.send(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    // What is left is aborted with the set.
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, drained).await;
    Ok(())
}

fn builder(options: &ServeOptions, streams: StreamExecutor) -> auto::Builder<StreamExecutor> {
    let mut http = auto::Builder::new(streams);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    http
}

/// One connection from its first byte to its end. The waits for a first byte stay small: what
/// follows is boxed when it starts.
async fn connection<A: App>(shared: &Arc<Shared<A>>, socket: Socket, remote: Option<SocketAddr>) {
    let mut stopping = shared.stopping.clone();
    let first = tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => return,
        first = tokio::time::timeout(FIRST_BYTE_TIMEOUT, socket.peek()) => first,
    };
    // Nothing, an error or too late: there is no one to tell.
    let Ok(Ok(Some(byte))) = first else { return };
    let addr = remote.map_or_else(|| "@".to_owned(), |addr| addr.to_string());
    let tls = match &shared.tls {
        Some(tls) if byte == TLS_HANDSHAKE_BYTE || !shared.options.plain => tls,
        None if byte == TLS_HANDSHAKE_BYTE => return,
        _ if !shared.options.plain => return,
        _ => {
            let info = PeerInfo { common_name: None, tls: false, addr: addr.into() };
            return Box::pin(http(shared, socket, info)).await;
        }
    };
    Box::pin(secure(shared, tls, socket, remote, addr)).await;
}

/// Go prints the authority of every HTTP/2 request when asked to through `GODEBUG`.
fn authority_debug() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        std::env::var("GODEBUG").is_ok_and(|all| all.split(',').any(|one| one == "http2debug=2"))
    })
}

async fn http<A, S>(shared: &Arc<Shared<A>>, stream: S, info: PeerInfo)
where
    A: App,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = shared.app.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if authority_debug()
            && let Some(authority) = request.uri().authority()
        {
            let line = format!(
                "http2: decoded hpack field header field \":authority\" = \"{authority}\"\n"
            );
            let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
        }
        request.extensions_mut().insert(info.clone());
        let app = app.clone();
        async move { Ok::<_, Infallible>(app.call(request).await) }
    });
    let streams = StreamExecutor::default();
    let http = builder(&shared.options, streams.clone());
    // Without upgrades: `Upgrade: h2c` is answered as HTTP/1.1, as Go does.
    let serving = http.serve_connection(TokioIo::new(stream), service);
    let mut serving = ConnTask::new(serving, streams);
    let mut stopping = shared.stopping.clone();
    tokio::select! {
        _ = &mut serving => return,
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    serving.connection().graceful_shutdown();
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, serving).await;
}
