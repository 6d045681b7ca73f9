//! Binding addresses as Go does, and accepting connections.

use super::socket::Socket;
use crate::base::url::Url;
use crate::transport::tls::TCP_KEEPALIVE;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// File descriptors kept back for files (etcd: 150).
const RESERVED_FDS: u64 = 150;

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

    pub(super) async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
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
