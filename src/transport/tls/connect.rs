//! Outbound connections: TCP, unix sockets and TLS on both.

use super::fresh::Fresh;
use super::{CONNECT_TIMEOUT, TCP_KEEPALIVE, TlsInfo, invalid};
use crate::base::url::Url;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The future of [`Connector::connect`].
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Outbound connections: TCP, unix sockets and TLS on both.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Arc<Fresh<ClientConfig>>,
    alpn: Arc<Vec<Vec<u8>>>,
}

impl Connector {
    /// `alpn` is empty for peers, which speak HTTP/1.1 without negotiation.
    pub fn new(info: Arc<TlsInfo>, alpn: Vec<Vec<u8>>) -> Self {
        Self { tls: Arc::new(Fresh::new(info)), alpn: Arc::new(alpn) }
    }

    /// Connects, and does the handshake for `https` and `unixs`, within [`CONNECT_TIMEOUT`].
    pub fn connect(&self, url: &Url) -> Connecting {
        let (this, url) = (self.clone(), url.clone());
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, this.dial(&url)).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("dial {url}: i/o timeout")))
            })
        })
    }

    async fn dial(&self, url: &Url) -> io::Result<Box<dyn Io>> {
        if url.is_unix() {
            let path = format!("{}{}", url.host, url.path);
            let stream = tokio::net::UnixStream::connect(path).await?;
            return if url.is_tls() { self.wrap(stream, url).await } else { Ok(Box::new(stream)) };
        }
        let stream = tokio::net::TcpStream::connect(&url.host).await?;
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        if url.is_tls() { self.wrap(stream, url).await } else { Ok(Box::new(stream)) }
    }

    async fn wrap<S: Io + 'static>(&self, stream: S, url: &Url) -> io::Result<Box<dyn Io>> {
        let config = self.tls.get(|info| info.client_config(&self.alpn))?;
        let host = match &self.tls.info().server_name {
            Some(name) if !name.is_empty() => name.clone(),
            _ => url.hostname().to_owned(),
        };
        let name = ServerName::try_from(host)
            .map_err(|_| invalid(format!("invalid server name in {url}")))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}
