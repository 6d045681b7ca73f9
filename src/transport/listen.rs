//! Listening: plain and TLS on one port, HTTP/1 and HTTP/2, every wait bounded.

use crate::base::url::Url;
use crate::transport::conn_task::{ConnTask, StreamExecutor};
use crate::transport::tls::{
    ServerTls, TCP_KEEPALIVE, TlsInfo, alternative_names, check_san, common_name, go_text,
};
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

/// A connection must send its first byte within this time.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// A TLS handshake and the checks after it end within this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/1 headers arrive, and idle HTTP/1 connections end, within this time (etcd: 5 minutes).
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(300);
/// After a shutdown, open connections may finish for this long.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// A refused client may read its alert for this long before the socket closes.
const ALERT_LINGER: Duration = Duration::from_secs(1);
/// Bytes read and dropped meanwhile.
const ALERT_LINGER_BYTES: usize = 64 * 1024;
/// First and longest pause after a failed accept (no file descriptors left, mostly).
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
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
/// File descriptors kept back for files (etcd: 150).
const RESERVED_FDS: u64 = 150;
/// The first byte of every TLS record of a handshake.
const TLS_HANDSHAKE_BYTE: u8 = 0x16;

/// Who is on the other end; an extension of every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Of the verified client certificate.
    pub common_name: Option<String>,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// `ip:port`, or `@` for unix sockets.
    pub addr: String,
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket and its file, removed on drop.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// The address, with the port that the system chose.
    pub fn local_addr(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|addr| addr.to_string()).unwrap_or_default()
            }
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                // A client that is gone already is found out by the first read.
                let _ = stream.set_nodelay(true);
                let keepalive = socket2::TcpKeepalive::new()
                    .with_time(TCP_KEEPALIVE)
                    .with_interval(TCP_KEEPALIVE);
                let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
                Ok((Socket::Tcp(stream), Some(addr)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), None))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds `url`'s address. Must run inside the runtime.
pub fn bind(url: &Url) -> io::Result<Listener> {
    bind_with(url, false)
}

/// [`bind`], with `--socket-reuse-port`.
pub fn bind_with(url: &Url, reuse_port: bool) -> io::Result<Listener> {
    if url.is_unix() {
        let path = PathBuf::from(format!("{}{}", url.host, url.path));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        return Ok(Listener::Unix(UnixListener::bind(&path)?, path));
    }
    let port = url.host.rsplit_once(':').map_or("", |(_, port)| port);
    let addresses: Vec<SocketAddr> = if url.hostname().is_empty() {
        let port: u16 = port.parse().map_err(|_| invalid_address(url))?;
        vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))]
    } else {
        let mut all: Vec<SocketAddr> = url.host.to_socket_addrs()?.collect();
        // Go prefers IPv4 for names.
        all.sort_by_key(SocketAddr::is_ipv6);
        all
    };
    let mut last = invalid_address(url);
    for address in addresses {
        match bind_tcp(address, reuse_port) {
            Ok(listener) => return Ok(Listener::Tcp(listener)),
            Err(error) => {
                last = io::Error::new(error.kind(), format!("listen tcp {address}: {error}"));
            }
        }
    }
    Err(last)
}

fn invalid_address(url: &Url) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("listen tcp: no address in {url}"))
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket as Raw, Type};
    let raw = Raw::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Go listens on both families for [::] and on one otherwise.
        raw.set_only_v6(!address.ip().is_unspecified())?;
    }
    raw.set_reuse_address(true)?;
    if reuse_port {
        raw.set_reuse_port(true)?;
    }
    raw.set_nonblocking(true)?;
    raw.bind(&address.into())?;
    raw.listen(BACKLOG)?;
    TcpListener::from_std(raw.into())
}

/// How many connections a listener may hold: the process's file limit less etcd's reserve.
pub fn connection_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(u64::MAX, |limit| limit.saturating_sub(RESERVED_FDS));
    usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
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
        }
    }
}

struct Shared {
    options: ServeOptions,
    tls: Option<ServerTls>,
    app: axum::Router,
    stopping: watch::Receiver<bool>,
}

/// Serves until `shutdown` completes, then lets connections finish for [`SHUTDOWN_GRACE`].
/// Fails only at the start, when the TLS files cannot be used.
pub async fn serve(
    listener: Listener,
    options: ServeOptions,
    app: axum::Router,
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
                    tasks.spawn(async move {
                        let _permit = permit;
                        connection(&shared, socket, remote).await;
                    });
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
async fn connection(shared: &Arc<Shared>, socket: Socket, remote: Option<SocketAddr>) {
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
            let info = PeerInfo { common_name: None, tls: false, addr };
            return Box::pin(http(shared, socket, info)).await;
        }
    };
    Box::pin(secure(shared, tls, socket, remote, addr)).await;
}

async fn secure(
    shared: &Arc<Shared>,
    tls: &ServerTls,
    socket: Socket,
    remote: Option<SocketAddr>,
    addr: String,
) {
    let mut refused = Refused { addr: &addr, ..Refused::default() };
    let shook = tokio::select! {
        _ = async { shared.stopping.clone().wait_for(|stop| *stop).await.map(|_| ()) } => return,
        shook = tokio::time::timeout(
            HANDSHAKE_TIMEOUT,
            handshake(shared.options.peer, tls, socket, remote, &mut refused),
        ) => shook,
    };
    let error = match shook {
        Ok(Ok((stream, common_name))) => {
            let info = PeerInfo { common_name, tls: true, addr };
            return http(shared, stream, info).await;
        }
        Ok(Err(error)) => error,
        Err(_) => io::Error::from(io::ErrorKind::TimedOut),
    };
    refused.log(shared.options.peer, &error);
}

/// The fields of etcd's warning.
#[derive(Default)]
struct Refused<'a> {
    addr: &'a str,
    server_name: String,
    names: Option<(Vec<String>, Vec<String>)>,
}

impl Refused<'_> {
    fn log(&self, peer: bool, error: &io::Error) {
        let error = go_text(error);
        let name = &self.server_name;
        macro_rules! warn_as {
            ($text:literal) => {
                match &self.names {
                    Some((ips, dns)) => tracing::warn!(
                        "remote-addr" = %self.addr,
                        "server-name" = %name,
                        "ip-addresses" = ?ips,
                        "dns-names" = ?dns,
                        error = %error,
                        $text
                    ),
                    None => tracing::warn!(
                        "remote-addr" = %self.addr,
                        "server-name" = %name,
                        error = %error,
                        $text
                    ),
                }
            };
        }
        if peer {
            warn_as!("rejected connection on peer endpoint");
        } else {
            warn_as!("rejected connection on client endpoint");
        }
    }
}

async fn handshake(
    peer: bool,
    tls: &ServerTls,
    socket: Socket,
    remote: Option<SocketAddr>,
    refused: &mut Refused<'_>,
) -> io::Result<(TlsStream<Socket>, Option<String>)> {
    let mut acceptor =
        std::pin::pin!(LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket));
    let start = match acceptor.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            if let Some(socket) = acceptor.take_io() {
                linger(socket).await;
            }
            return Err(error);
        }
    };
    refused.server_name = start.client_hello().server_name().unwrap_or_default().to_owned();
    let accept = start.into_stream(tls.config()?).into_fallible();
    let stream = match accept.await {
        Ok(stream) => stream,
        Err((error, socket)) => {
            linger(socket).await;
            return Err(error);
        }
    };
    let certificates: Vec<CertificateDer<'static>> = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|all| all.iter().map(|one| one.clone().into_owned()).collect())
        .unwrap_or_default();
    let Some(leaf) = certificates.first() else { return Ok((stream, None)) };
    let info = tls.info();
    let checked = async {
        if peer
            && !info.skip_client_san_verify
            && let Some(remote) = remote
        {
            check_san(leaf, remote).await?;
        }
        info.check_crl(&certificates)
    };
    if let Err(error) = checked.await {
        let (ips, dns) = alternative_names(leaf);
        refused.names = Some((ips.iter().map(ToString::to_string).collect(), dns));
        return Err(error);
    }
    let cn = common_name(leaf);
    Ok((stream, cn))
}

/// Closing with unread bytes would reset the connection and lose the alert on its way.
async fn linger(mut socket: Socket) {
    let drain = async {
        socket.shutdown().await?;
        let mut buffer = [0u8; 1024];
        let mut left = ALERT_LINGER_BYTES;
        while left > 0 {
            let count = socket.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            left = left.saturating_sub(count);
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(ALERT_LINGER, drain).await;
}

/// Go prints the authority of every HTTP/2 request when asked to through `GODEBUG`.
fn authority_debug() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        std::env::var("GODEBUG").is_ok_and(|all| all.split(',').any(|one| one == "http2debug=2"))
    })
}

async fn http<S>(shared: &Arc<Shared>, stream: S, info: PeerInfo)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = shared.app.clone();
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        if authority_debug()
            && let Some(authority) = request.uri().authority()
        {
            let line = format!(
                "http2: decoded hpack field header field \":authority\" = \"{authority}\"\n"
            );
            let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
        }
        request.extensions_mut().insert(info.clone());
        app.clone().oneshot(request.map(Body::new))
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

/// An accepted connection of either kind.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// The first byte, left in place; `None` at the end of the stream.
    async fn peek(&self) -> io::Result<Option<u8>> {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8; 1];
        let count = match self {
            Self::Tcp(stream) => {
                stream
                    .async_io(Interest::READABLE, || {
                        Ok(recv(stream, &mut byte, RecvFlags::PEEK).map(|(_, count)| count)?)
                    })
                    .await?
            }
            Self::Unix(stream) => {
                stream
                    .async_io(Interest::READABLE, || {
                        Ok(recv(stream, &mut byte, RecvFlags::PEEK).map(|(_, count)| count)?)
                    })
                    .await?
            }
        };
        Ok((count > 0).then_some(byte[0]))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
