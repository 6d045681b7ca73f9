//! How a connection to a peer URL comes about.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::base::url::Url;

/// A byte stream to a peer, TLS already done.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What [`Connect::connect`] returns.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Connects to a peer URL. The caller bounds the time.
pub trait Connect: Send + Sync + 'static {
    /// Opens a connection; for `https` and `unixs` the TLS handshake is part of it.
    fn connect(&self, url: &Url) -> Connecting;
}

/// TCP and unix sockets without TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainConnect;

impl Connect for PlainConnect {
    fn connect(&self, url: &Url) -> Connecting {
        let url = url.clone();
        Box::pin(async move {
            if url.is_tls() {
                let text = format!("no TLS configured for {url}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            let io: Box<dyn Io> = if url.is_unix() {
                Box::new(UnixStream::connect(format!("{}{}", url.host, url.path)).await?)
            } else {
                let stream = TcpStream::connect(&url.host).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            };
            Ok(io)
        })
    }
}
