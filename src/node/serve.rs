//! Listeners: what is served where, and the line that says so.

use crate::actors::core::{Core, Shared};
use crate::actors::handle::NodeHandle;
use crate::base::url::Url;
use crate::cli::config::{Config, TlsConfig, TlsVersion};
use crate::grpc::messages::Sent;
use crate::grpc::{self, GrpcOptions};
use crate::http;
use crate::node::glue::Reads;
use crate::node::scrape::{self, Scrape};
use crate::pb::etcdserverpb as rpc;
use crate::transport::edge_threads::EdgeThreads;
use crate::transport::listen::{self, App, Listener, ServeOptions};
use crate::transport::rafthttp::Transport;
use crate::transport::tls::{self, TlsInfo};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Interval of the server's pings when the flags leave it open (grpc-go's default).
const PING_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
/// Time a ping may stay unanswered then (grpc-go's default).
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// grpc-go raises shorter intervals to this one.
const PING_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Shortest interval of watch progress notices (etcd: minWatchProgressInterval).
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// TLS of the two kinds of ports.
pub struct Tls {
    pub client: Option<Arc<TlsInfo>>,
    pub peer: Option<Arc<TlsInfo>>,
}

/// Bound sockets with the URL each stands for.
pub struct Listeners {
    pub peer: Vec<(Url, Listener)>,
    pub clients: ClientPorts,
}

/// The ports that clients use.
pub struct ClientPorts {
    /// gRPC, and HTTP unless [`ClientPorts::http`] has its own.
    pub client: Vec<ClientPort>,
    pub http: Vec<ClientPort>,
    pub metrics: Vec<(Url, Listener)>,
}

/// One client port: `http://` and `https://` URLs of the same address share it.
pub struct ClientPort {
    pub listener: Listener,
    pub address: String,
    pub plain: bool,
    pub tls: bool,
}

/// TLS from the flags; self-made certificates where `auto-tls` asks for them.
pub fn tls(config: &Config) -> Result<Tls, String> {
    let hosts = |urls: &[Url]| -> Vec<String> { urls.iter().map(|url| url.host.clone()).collect() };
    let client =
        endpoint(config, &config.client_tls, "client", &hosts(&config.listen_client_urls))?;
    let peer = endpoint(config, &config.peer_tls, "peer", &hosts(&config.listen_peer_urls))?;
    Ok(Tls { client, peer })
}

fn endpoint(
    config: &Config,
    flags: &TlsConfig,
    kind: &str,
    hosts: &[String],
) -> Result<Option<Arc<TlsInfo>>, String> {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let mut info = TlsInfo {
        cert_file: path(&flags.cert_file),
        key_file: path(&flags.key_file),
        trusted_ca_file: path(&flags.trusted_ca_file),
        client_cert_file: path(&flags.client_cert_file),
        client_key_file: path(&flags.client_key_file),
        crl_file: path(&flags.crl_file),
        client_cert_auth: flags.client_cert_auth,
        allowed_cn: flags.allowed_cn.clone(),
        allowed_hostname: flags.allowed_hostname.clone(),
        skip_client_san_verify: flags.skip_client_san_verification,
        ..TlsInfo::default()
    };
    if flags.auto_tls && info.is_empty() {
        let dir = config.data_dir.join("fixtures").join(kind);
        info = tls::self_cert(&dir, hosts, config.self_signed_cert_validity, kind == "peer")
            .map_err(|error| error.to_string())?;
    }
    let version = |version: TlsVersion| match version {
        TlsVersion::Unset => None,
        TlsVersion::V12 => Some("TLS1.2".to_owned()),
        TlsVersion::V13 => Some("TLS1.3".to_owned()),
    };
    tls::known_suites(&flags.cipher_suites).map_err(|error| error.to_string())?;
    info.cipher_suites = flags.cipher_suites.clone();
    info.min_version = version(flags.tls_min_version);
    info.max_version = version(flags.tls_max_version);
    if info.is_empty() && info.trusted_ca_file.is_none() {
        return Ok(None);
    }
    Ok(Some(Arc::new(info)))
}

/// Binds every port before anything else happens, as etcd does.
pub fn bind(config: &Config) -> Result<Listeners, String> {
    let one = |url: &Url| -> Result<Listener, String> {
        listen::bind_with(url, config.socket_reuse_port)
            .map_err(|error| format!("listen {url}: {error}"))
    };
    let each = |urls: &[Url]| -> Result<Vec<(Url, Listener)>, String> {
        urls.iter().map(|url| Ok((url.clone(), one(url)?))).collect()
    };
    let shared = |urls: &[Url]| -> Result<Vec<ClientPort>, String> {
        let mut ports: Vec<ClientPort> = Vec::new();
        for url in urls {
            let address = format!("{}{}", url.host, url.path);
            if let Some(port) = ports.iter_mut().find(|port| port.address == address) {
                port.plain |= !url.is_tls();
                port.tls |= url.is_tls();
                continue;
            }
            let (plain, tls) = (!url.is_tls(), url.is_tls());
            ports.push(ClientPort { listener: one(url)?, address, plain, tls });
        }
        Ok(ports)
    };
    Ok(Listeners {
        peer: each(&config.listen_peer_urls)?,
        clients: ClientPorts {
            client: shared(&config.listen_client_urls)?,
            http: shared(&config.listen_client_http_urls)?,
            metrics: each(&config.listen_metrics_urls)?,
        },
    })
}

/// What health checks read: a key that need not exist.
fn health_key() -> rpc::RangeRequest {
    rpc::RangeRequest { key: "health".into(), serializable: true, ..rpc::RangeRequest::default() }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn spawn(listener: Listener, options: ServeOptions, app: impl App, stop: watch::Receiver<bool>) {
    tokio::spawn(async move {
        if let Err(error) = listen::serve(listener, options, app, stopped(stop)).await {
            crate::actors::rt::fatal(&error.to_string());
        }
    });
}

/// Serves the peer ports.
pub fn peers(
    _config: &Config,
    tls: &Tls,
    listeners: Vec<(Url, Listener)>,
    core: &Arc<Core>,
    transport: &Transport,
    hash: http::HashRead,
    stopping: watch::Receiver<bool>,
) {
    let node: NodeHandle = core.clone();
    let app = transport.router().merge(http::peer_router(node, hash)).fallback(http::not_found);
    for (url, listener) in listeners {
        let options = ServeOptions {
            tls: url.is_tls().then(|| tls.peer.clone()).flatten(),
            plain: !url.is_tls(),
            peer: true,
            ..ServeOptions::default()
        };
        spawn(listener, options, app.clone(), stopping.clone());
    }
}

/// Interval of pings and how long one may stay unanswered. etcd passes its flags on only if both
/// are set (etcd v3.5.17 `server/embed/etcd.go` serveClients), and grpc-go has defaults for the
/// rest and a shortest interval.
fn keepalive(interval: Duration, timeout: Duration) -> (Duration, Duration) {
    if interval.is_zero() || timeout.is_zero() {
        return (PING_INTERVAL, PING_TIMEOUT);
    }
    (interval.max(PING_INTERVAL_MIN), timeout)
}

/// Everything of a client port: gRPC by its content type, as etcd tells it, and the rest.
#[derive(Clone)]
struct ClientApp {
    services: grpc::Services,
    web: axum::Router,
}

impl App for ClientApp {
    type Body = Either<Sent, axum::body::Body>;

    async fn call(&self, request: Request<Incoming>) -> Response<Self::Body> {
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            self.services.call(request).await.map(Either::Left)
        } else {
            App::call(&self.web, request).await.map(Either::Right)
        }
    }
}

fn announce(port: &ClientPort) {
    let secure = if port.tls { "securely" } else { "insecurely" };
    tracing::info!("traffic" = secure, address = %port.address, "serving client traffic");
    tracing::info!("ready to serve client requests");
}

/// Serves the client ports, and says so once for each.
pub fn clients(
    config: &Config,
    tls: &Tls,
    ports: ClientPorts,
    core: &Arc<Core>,
    reads: Arc<Reads>,
    serving: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
) -> Result<(), String> {
    let node: NodeHandle = core.clone();
    let ids = core.clone();
    let options = GrpcOptions {
        max_request_bytes: config.max_request_bytes,
        max_txn_ops: config.max_txn_ops,
        election_timeout: Duration::from_millis(config.election_timeout_ms),
        slow_read: config.experimental_warning_apply_duration,
        watch_progress_interval: watch_progress_interval(config),
        serving,
        observer: Arc::new(grpc::Calls::at_zero()),
        ..GrpcOptions::new(Arc::new(move || ids.shared.ids.next()))
    };
    let local = reads.clone();
    scrape::constants(config, &core.shared);
    let scrape = Scrape {
        shared: core.shared.clone(),
        reader: reads.reader.clone(),
        turn: Mutex::default(),
    };
    let state = http::ClientHttp {
        node: node.clone(),
        before_metrics: Arc::new(move || scrape.read()),
        local_read: Arc::new(move || local.reader.range(&health_key()).map(|_| ())),
        request_timeout: core.request_timeout(),
    };
    let access = |router| {
        let cors = config.cors.iter().cloned().collect();
        let hosts = config.host_whitelist.iter().cloned().collect();
        http::with_access_control(router, http::AccessControl { cors, hosts })
    };
    let services = grpc::Services::new(node, reads, options);
    let separate = !ports.http.is_empty();
    let metrics_app = access(http::metrics_router(state.clone()).fallback(http::not_found));
    let web_routes = http::client_router(state);
    let web = access(web_routes.clone().fallback(http::not_found));
    let beside_grpc = if separate { axum::Router::new() } else { web_routes };
    let both = ClientApp { services, web: access(beside_grpc.fallback(http::not_found)) };
    let (keepalive_interval, keepalive_timeout) =
        keepalive(config.grpc_keepalive_interval, config.grpc_keepalive_timeout);
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = EdgeThreads::start(count)
        .map_err(|error| format!("failed to start the threads of client connections: {error}"))?;
    let threads = Arc::new(threads);
    let serve_options = |plain: bool, with_tls: bool| ServeOptions {
        threads: Some(threads.clone()),
        tls: with_tls.then(|| tls.client.clone()).flatten(),
        plain,
        peer: false,
        max_concurrent_streams: config.max_concurrent_streams,
        keepalive_interval: Some(keepalive_interval),
        keepalive_timeout,
        ..ServeOptions::default()
    };
    for port in ports.client {
        let options = serve_options(port.plain, port.tls);
        announce(&port);
        spawn(port.listener, options, both.clone(), stopping.clone());
    }
    for port in ports.http {
        let options = serve_options(port.plain, port.tls);
        announce(&port);
        spawn(port.listener, options, web.clone(), stopping.clone());
    }
    for (url, listener) in ports.metrics {
        let options = serve_options(!url.is_tls(), url.is_tls());
        spawn(listener, options, metrics_app.clone(), stopping.clone());
        tracing::info!(address = %url, "serving metrics");
    }
    Ok(())
}

/// etcd v3.5.17 `v3rpc/watch.go` NewWatchServer: shorter ones are raised.
fn watch_progress_interval(config: &Config) -> Duration {
    let asked = config.experimental_watch_progress_notify_interval;
    if asked < WATCH_PROGRESS_INTERVAL_MIN {
        tracing::warn!(
            minimum = ?WATCH_PROGRESS_INTERVAL_MIN,
            "adjusting watch progress notify interval to minimum period"
        );
    }
    asked.max(WATCH_PROGRESS_INTERVAL_MIN)
}

/// Resolves when the process is asked to end.
pub async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let signal = tokio::select! {
        _ = terminate.recv() => "terminated",
        _ = interrupt.recv() => "interrupt",
    };
    tracing::info!(signal, "received signal; shutting down");
}

/// Resolves when the cluster has removed this member, after the lines with which etcd ends then.
pub async fn removed(shared: &Shared) {
    shared.wait_removed().await;
    let error = "the member has been permanently removed from the cluster";
    tracing::warn!(error, "server error");
    tracing::warn!("data-dir used by this member must be removed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};

    #[tokio::test]
    async fn serve_reuse_port_lets_two_bind() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("peer").display().to_string();
        let config = |reuse: bool, port: &str| {
            let words = [
                "rusd".to_owned(),
                format!("--listen-client-urls=http://127.0.0.1:{port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{port}"),
                format!("--listen-peer-urls=unix://{socket}"),
                format!("--socket-reuse-port={reuse}"),
            ];
            match cli::parse(&words, &[]) {
                Command::Serve(config) => *config,
                other => panic!("{other:?}"),
            }
        };
        for reuse in [false, true] {
            let first = bind(&config(reuse, "0")).unwrap();
            let address = first.clients.client[0].listener.local_addr();
            let port = address.rsplit(':').next().unwrap();
            assert_eq!(bind(&config(reuse, port)).is_ok(), reuse);
        }
    }

    #[test]
    fn serve_keepalive_of_the_flags() {
        let seconds = Duration::from_secs;
        for (interval, timeout, want) in [
            (seconds(30), seconds(5), (seconds(30), seconds(5))),
            (Duration::from_millis(10), seconds(5), (seconds(1), seconds(5))),
            (seconds(0), seconds(5), (seconds(7200), seconds(20))),
            (seconds(30), seconds(0), (seconds(7200), seconds(20))),
        ] {
            assert_eq!(keepalive(interval, timeout), want);
        }
    }
}
