//! TLS handshakes, the checks after them, and the words for those that fail.

use super::socket::Socket;
use super::{App, HANDSHAKE_TIMEOUT, PeerInfo, Shared, http};
use crate::transport::tls::{ServerTls, alternative_names, check_san, common_name, go_text};
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A refused client may read its alert for this long before the socket closes.
const ALERT_LINGER: Duration = Duration::from_secs(1);
/// Bytes read and dropped meanwhile.
const ALERT_LINGER_BYTES: usize = 64 * 1024;

/// One TLS connection from its hello to its end.
pub(super) async fn secure<A: App>(
    shared: &Arc<Shared<A>>,
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
            let common_name = common_name.map(Arc::from);
            let info = PeerInfo { common_name, tls: true, addr: addr.into() };
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
