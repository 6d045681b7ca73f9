//! Listeners and connectors against each other, against curl, and against hostile clients.

use super::listen::{Listener, PeerInfo, ServeOptions, bind, serve};
use super::tls::{Connector, Io, TlsInfo, check_san, go_text, self_cert};
use crate::base::url::Url;
use axum::extract::Extension;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(cn: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !cn.is_empty() {
        params.distinguished_name.push(DnType::CommonName, cn);
    }
    params
}

fn ca(dir: &Path, name: &str) -> Ca {
    let mut params = params(name, &["localhost", "127.0.0.1"]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
        rcgen::KeyUsagePurpose::DigitalSignature,
    ];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), ca.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), ca.key().serialize_pem()).unwrap();
    ca
}

fn issue(dir: &Path, ca: &Ca, file: &str, cn: &str, names: &[&str], serial: u64) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(cn, names);
    params.serial_number = Some(SerialNumber::from(serial));
    let cert = params.signed_by(&key, ca).unwrap();
    std::fs::write(dir.join(format!("{file}.pem")), cert.pem()).unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A CA and the certificates that the tests share.
fn certs() -> (TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path(), "ca");
    issue(dir.path(), &ca, "server", "example.com", &NAMES, 11);
    issue(dir.path(), &ca, "client", "alice", &NAMES, 12);
    issue(dir.path(), &ca, "revoked", "mallory", &NAMES, 0xabcd);
    issue(dir.path(), &ca, "nocn", "", &NAMES, 14);
    issue(dir.path(), &ca, "elsewhere", "bob", &["10.1.2.3"], 15);
    (dir, ca)
}

fn info(dir: &Path, cert: &str, ca: Option<&str>) -> TlsInfo {
    let file = |name: String| Some(dir.join(name));
    TlsInfo {
        cert_file: file(format!("{cert}.pem")),
        key_file: file(format!("{cert}.key")),
        trusted_ca_file: ca.map(|ca| dir.join(format!("{ca}.pem"))),
        ..TlsInfo::default()
    }
}

fn url(scheme: &str, host: &str) -> Url {
    Url { scheme: scheme.into(), host: host.into(), path: String::new() }
}

struct Running {
    addr: String,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn who(Extension(info): Extension<PeerInfo>) -> String {
    format!("{} {}", info.common_name.as_deref().unwrap_or("-"), info.tls)
}

fn app() -> axum::Router {
    axum::Router::new().route("/who", axum::routing::get(who)).route(
        "/slow",
        axum::routing::get(|| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        }),
    )
}

fn start(listener: Listener, options: ServeOptions) -> Running {
    let addr = listener.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, options, app(), async {
        let _ = stopped.await;
    }));
    Running { addr, stop: Some(stop), task }
}

fn run(tls: Option<TlsInfo>, plain: bool, peer: bool) -> Running {
    let options = ServeOptions { tls: tls.map(Arc::new), plain, peer, ..ServeOptions::default() };
    start(bind(&url("http", "127.0.0.1:0")).unwrap(), options)
}

impl Running {
    async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(Duration::from_secs(9), self.task).await.unwrap().unwrap().unwrap();
    }

    fn port(&self) -> &str {
        self.addr.rsplit(':').next().unwrap()
    }
}

async fn request(mut stream: Box<dyn Io>, extra: &str) -> std::io::Result<String> {
    let text = format!("GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{extra}\r\n");
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The answer's last line, or the error in Go's words.
async fn ask(tls: Option<TlsInfo>, scheme: &str, host: &str) -> Result<String, String> {
    let connector = Connector::new(Arc::new(tls.unwrap_or_default()), Vec::new());
    let result = async { request(connector.connect(&url(scheme, host)).await?, "").await };
    match result.await {
        Ok(answer) => Ok(answer.lines().last().unwrap_or_default().to_owned()),
        Err(error) => Err(go_text(&error)),
    }
}

async fn curl(args: &[&str]) -> Option<(bool, String)> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let run = move || std::process::Command::new("curl").args(args).output();
    let out = tokio::task::spawn_blocking(run).await.unwrap().ok()?;
    Some((out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned()))
}

/// Collects what the crate logs on this thread.
#[derive(Clone, Default)]
struct Log(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    async fn has(&self, parts: &[&str]) {
        for _ in 0..300 {
            let text = String::from_utf8_lossy(&self.0.lock()).into_owned();
            if text.lines().any(|line| parts.iter().all(|part| line.contains(part))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {parts:?} in {}", String::from_utf8_lossy(&self.0.lock()));
    }
}

#[tokio::test]
async fn both_protocols_on_one_port() {
    let (dir, _) = certs();
    let server = run(Some(info(dir.path(), "server", None)), true, false);
    let client = TlsInfo { trusted_ca_file: Some(dir.path().join("ca.pem")), ..TlsInfo::default() };
    assert_eq!(ask(None, "http", &server.addr).await, Ok("- false".into()));
    assert_eq!(ask(Some(client.clone()), "https", &server.addr).await, Ok("- true".into()));
    let wrong = TlsInfo { server_name: Some("other".into()), ..client };
    let error = ask(Some(wrong), "https", &server.addr).await.unwrap_err();
    assert!(error.contains("not other"), "{error}");
    let (plain, secure) =
        (format!("http://{}/who", server.addr), format!("https://localhost:{}/who", server.port()));
    let ca = dir.path().join("ca.pem");
    let ca = ca.to_str().unwrap();
    for (args, text) in [
        (vec!["-s", &plain], "- false"),
        (vec!["-s", "--http2-prior-knowledge", &plain], "- false"),
        // The h2c upgrade is ignored: HTTP/1.1 answers.
        (vec!["-s", "-w", "%{http_version}", "--http2", &plain], "- false1.1"),
        (vec!["-s", "-w", "%{http_version}", "--http1.1", "--cacert", ca, &secure], "- true1.1"),
        (vec!["-s", "-w", "%{http_version}", "--http2", "--cacert", ca, &secure], "- true2"),
        (vec!["-s", "--tls-max", "1.2", "--cacert", ca, &secure], "- true"),
        (vec!["-s", "--no-alpn", "--cacert", ca, &secure], "- true"),
    ] {
        let Some(have) = curl(&args).await else { break };
        assert_eq!(have, (true, text.to_owned()), "{args:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn only_one_protocol() {
    let (dir, _) = certs();
    let (log, _guard) = Log::capture();
    let plain = run(None, true, false);
    let any = TlsInfo { insecure_skip_verify: true, ..TlsInfo::default() };
    assert!(ask(Some(any), "https", &plain.addr).await.is_err());
    assert_eq!(ask(None, "http", &plain.addr).await, Ok("- false".into()));
    let secure = run(Some(info(dir.path(), "server", None)), false, false);
    let _ = ask(None, "http", &secure.addr).await;
    log.has(&[
        "rejected connection on client endpoint",
        "first record does not look like a TLS handshake",
    ])
    .await;
    plain.stop().await;
    secure.stop().await;
}

#[tokio::test]
async fn client_certificates() {
    let (dir, _) = certs();
    let other = tempfile::tempdir().unwrap();
    let stranger = ca(other.path(), "ca");
    issue(other.path(), &stranger, "client", "eve", &NAMES, 1);
    let (log, _guard) = Log::capture();
    let server = run(Some(info(dir.path(), "server", Some("ca"))), false, false);
    let client = |cert| Some(info(dir.path(), cert, Some("ca")));
    assert_eq!(ask(client("client"), "https", &server.addr).await, Ok("alice true".into()));
    assert_eq!(ask(client("nocn"), "https", &server.addr).await, Ok("- true".into()));
    // Go takes a CA's own certificate as a leaf.
    assert_eq!(ask(client("ca"), "https", &server.addr).await, Ok("ca true".into()));
    let nothing =
        TlsInfo { trusted_ca_file: Some(dir.path().join("ca.pem")), ..TlsInfo::default() };
    let error = ask(Some(nothing), "https", &server.addr).await.unwrap_err();
    assert!(error.starts_with("remote error: tls: "), "{error}");
    log.has(&[
        "rejected connection on client endpoint",
        "remote-addr",
        "tls: client didn't provide a certificate",
    ])
    .await;
    let eve = TlsInfo {
        trusted_ca_file: Some(dir.path().join("ca.pem")),
        ..info(other.path(), "client", None)
    };
    let error = ask(Some(eve), "https", &server.addr).await.unwrap_err();
    assert!(error.starts_with("remote error: tls: "), "{error}");
    log.has(&["certificate signed by unknown authority"]).await;
    server.stop().await;
    // The CA as the server's own certificate, both roles.
    let server = run(Some(info(dir.path(), "ca", Some("ca"))), false, true);
    assert_eq!(ask(client("ca"), "https", &server.addr).await, Ok("ca true".into()));
    server.stop().await;
}

#[tokio::test]
async fn allowed_names_in_both_roles() {
    let (dir, _) = certs();
    let (log, _guard) = Log::capture();
    let allow = |cert, cns: &[&str], hosts: &[&str]| TlsInfo {
        allowed_cn: cns.iter().map(|cn| (*cn).to_owned()).collect(),
        allowed_hostname: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..info(dir.path(), cert, Some("ca"))
    };
    let server = run(Some(allow("server", &["alice", "carol"], &[])), false, true);
    let plain = |cert| Some(info(dir.path(), cert, Some("ca")));
    assert_eq!(ask(plain("client"), "https", &server.addr).await, Ok("alice true".into()));
    let error = ask(plain("nocn"), "https", &server.addr).await.unwrap_err();
    assert_eq!(error, "remote error: tls: bad certificate");
    log.has(&["rejected connection on peer endpoint", "client certificate authentication failed"])
        .await;
    // As client: the server's name is not allowed, and the server hears of it.
    let picky = allow("client", &["alice"], &[]);
    let error = ask(Some(picky), "https", &server.addr).await.unwrap_err();
    assert_eq!(error, "client certificate authentication failed");
    log.has(&["rejected connection on peer endpoint", "remote error: tls: bad certificate"]).await;
    server.stop().await;
    let server = run(Some(allow("server", &[], &["localhost"])), false, true);
    assert_eq!(ask(plain("client"), "https", &server.addr).await, Ok("alice true".into()));
    server.stop().await;
    let server = run(Some(allow("server", &[], &["example2.com"])), false, true);
    assert!(ask(plain("client"), "https", &server.addr).await.is_err());
    server.stop().await;
    assert!(allow("server", &["a"], &["b"]).validate().is_err());
}

#[tokio::test]
async fn peers_must_come_from_their_names() {
    let (dir, _) = certs();
    let (log, _guard) = Log::capture();
    let base = info(dir.path(), "server", Some("ca"));
    let peer = |cert| Some(info(dir.path(), cert, Some("ca")));
    let server = run(Some(base.clone()), false, true);
    assert_eq!(ask(peer("client"), "https", &server.addr).await, Ok("alice true".into()));
    assert!(ask(peer("elsewhere"), "https", &server.addr).await.is_err());
    log.has(&["rejected connection on peer endpoint", "10.1.2.3", "ip-addresses"]).await;
    server.stop().await;
    let skipping = TlsInfo { skip_client_san_verify: true, ..base.clone() };
    let server = run(Some(skipping), false, true);
    assert_eq!(ask(peer("elsewhere"), "https", &server.addr).await, Ok("bob true".into()));
    server.stop().await;
    let key = KeyPair::generate().unwrap();
    let named = params("x", &["localhost", "*.nowhere.invalid"]).self_signed(&key).unwrap();
    assert!(check_san(named.der(), "127.0.0.1:1".parse().unwrap()).await.is_ok());
    assert!(check_san(named.der(), "192.0.2.1:1".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn revocations_are_read_per_connection() {
    let (dir, ca) = certs();
    let (log, _guard) = Log::capture();
    let crl_file = dir.path().join("revoke.crl");
    let crl = |serials: &[u64]| {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            // Long expired: etcd does not care.
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2021, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&ca)
        .unwrap()
    };
    std::fs::write(&crl_file, crl(&[1]).der()).unwrap();
    let server = run(
        Some(TlsInfo {
            crl_file: Some(crl_file.clone()),
            ..info(dir.path(), "server", Some("ca"))
        }),
        false,
        false,
    );
    let mallory = || Some(info(dir.path(), "revoked", Some("ca")));
    assert_eq!(ask(mallory(), "https", &server.addr).await, Ok("mallory true".into()));
    std::fs::write(&crl_file, crl(&[1, 0xabcd]).pem().unwrap()).unwrap();
    assert!(!ask(mallory(), "https", &server.addr).await.is_ok_and(|text| text.contains("true")));
    log.has(&["transport: certificate serial abcd revoked"]).await;
    let alice = Some(info(dir.path(), "client", Some("ca")));
    assert_eq!(ask(alice, "https", &server.addr).await, Ok("alice true".into()));
    server.stop().await;
}

#[tokio::test]
async fn certificates_are_re_read() {
    let (dir, ca) = certs();
    let server = run(Some(info(dir.path(), "server", None)), false, false);
    let only = |cn: &str| {
        Some(TlsInfo {
            trusted_ca_file: Some(dir.path().join("ca.pem")),
            allowed_cn: vec![cn.to_owned()],
            ..TlsInfo::default()
        })
    };
    assert!(ask(only("example.com"), "https", &server.addr).await.is_ok());
    tokio::time::sleep(Duration::from_millis(20)).await;
    issue(dir.path(), &ca, "server", "renewed.example.com", &NAMES, 99);
    assert!(ask(only("renewed.example.com"), "https", &server.addr).await.is_ok());
    std::fs::remove_file(dir.path().join("server.pem")).unwrap();
    assert!(ask(only("renewed.example.com"), "https", &server.addr).await.is_err());
    server.stop().await;
}

#[test]
fn suites_and_versions() {
    let (dir, _) = certs();
    let with = |suites: &[&str], min: Option<&str>, max: Option<&str>| TlsInfo {
        cipher_suites: suites.iter().map(|name| (*name).to_owned()).collect(),
        min_version: min.map(str::to_owned),
        max_version: max.map(str::to_owned),
        ..info(dir.path(), "server", None)
    };
    let error = with(&["TLS_NOPE"], None, None).validate().unwrap_err();
    assert_eq!(error.to_string(), "unexpected TLS cipher suite \"TLS_NOPE\"");
    assert!(with(&["TLS_RSA_WITH_AES_128_CBC_SHA"], None, None).validate().is_err());
    let mixed = ["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"];
    let config = with(&mixed, None, None).server_config().unwrap();
    assert_eq!(config.crypto_provider().cipher_suites.len(), 4);
    assert!(with(&[], Some("TLS1.3"), Some("TLS1.2")).validate().is_err());
    assert!(with(&[], Some("TLS1.1"), None).validate().is_err());
    assert!(with(&[], Some("TLS1.2"), Some("TLS1.3")).validate().is_ok());
    let half = TlsInfo { key_file: None, ..info(dir.path(), "server", None) };
    assert!(half.validate().unwrap_err().to_string().contains("must both be present"));
    let missing = info(dir.path(), "absent", None).validate().unwrap_err();
    assert!(missing.to_string().contains("no such file or directory"), "{missing}");
}

#[tokio::test]
async fn versions_on_the_wire() {
    let (dir, _) = certs();
    let (log, _guard) = Log::capture();
    let new = TlsInfo { min_version: Some("TLS1.3".into()), ..info(dir.path(), "server", None) };
    let server = run(Some(new), false, false);
    let old = TlsInfo {
        max_version: Some("TLS1.2".into()),
        insecure_skip_verify: true,
        ..TlsInfo::default()
    };
    let error = ask(Some(old), "https", &server.addr).await.unwrap_err();
    assert_eq!(error, "remote error: tls: protocol version not supported");
    log.has(&["offered only unsupported versions"]).await;
    server.stop().await;
}

#[tokio::test]
async fn self_signed_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fixtures/peer");
    let hosts = ["127.0.0.1:2380".to_owned(), "localhost:2380".to_owned()];
    assert!(self_cert(&path, &hosts, 0, true).is_err());
    let made = self_cert(&path, &hosts, 1, true).unwrap();
    let first = std::fs::read(path.join("cert.pem")).unwrap();
    assert_eq!(self_cert(&path, &hosts, 1, true).unwrap(), made);
    assert_eq!(std::fs::read(path.join("cert.pem")).unwrap(), first);
    let server = run(Some(made.clone()), false, true);
    assert_eq!(ask(Some(made.clone()), "https", &server.addr).await, Ok("- true".into()));
    server.stop().await;
    std::fs::write(path.join("key.pem"), "junk").unwrap();
    assert!(self_cert(&path, &hosts, 1, true).unwrap().validate().is_ok());
}

#[tokio::test]
async fn unix_sockets() {
    let (dir, _) = certs();
    let path = dir.path().join("sock:1");
    std::fs::write(&path, "stale").unwrap();
    let host = path.to_str().unwrap();
    let options = ServeOptions {
        tls: Some(Arc::new(info(dir.path(), "server", None))),
        ..ServeOptions::default()
    };
    let server = start(bind(&url("unix", host)).unwrap(), options);
    assert_eq!(ask(None, "unix", host).await, Ok("- false".into()));
    let client = TlsInfo {
        trusted_ca_file: Some(dir.path().join("ca.pem")),
        server_name: Some("localhost".into()),
        ..TlsInfo::default()
    };
    assert_eq!(ask(Some(client), "unixs", host).await, Ok("- true".into()));
    server.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn stalls_and_garbage_do_not_hurt() {
    let (dir, _) = certs();
    let server = run(Some(info(dir.path(), "server", None)), true, false);
    let mut held = Vec::new();
    for start in
        [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n", b"GET / HT"]
    {
        for _ in 0..40 {
            let mut stream = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
            stream.write_all(start).await.unwrap();
            held.push(stream);
        }
    }
    let mut seed = 1u32;
    for _ in 0..60 {
        let junk: Vec<u8> = (0..200)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                seed.to_be_bytes()[0]
            })
            .collect();
        for first in [None, Some(0x16u8)] {
            let mut stream = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
            let _ = stream.write_all(first.as_slice()).await;
            let _ = stream.write_all(&junk).await;
        }
    }
    assert_eq!(ask(None, "http", &server.addr).await, Ok("- false".into()));
    let any = TlsInfo { insecure_skip_verify: true, ..TlsInfo::default() };
    assert_eq!(ask(Some(any), "https", &server.addr).await, Ok("- true".into()));
    server.stop().await;
}

#[tokio::test]
async fn a_full_listener_waits() {
    let options = ServeOptions { max_connections: 1, ..ServeOptions::default() };
    let server = start(bind(&url("http", "localhost:0")).unwrap(), options);
    let held = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let addr = server.addr.clone();
    let mut waiting = Box::pin(ask(None, "http", &addr));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    drop(held);
    assert_eq!(waiting.as_mut().await, Ok("- false".into()));
    server.stop().await;
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let server = run(None, true, false);
    let mut stream = tokio::net::TcpStream::connect(&server.addr).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reading = tokio::spawn(async move {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    });
    server.stop().await;
    assert!(reading.await.unwrap().ends_with("slow"));
}

#[tokio::test]
async fn bind_errors_name_the_address() {
    let first = bind(&url("http", "127.0.0.1:0")).unwrap();
    let error = bind(&url("http", &first.local_addr())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&first.local_addr()));
    assert!(bind(&url("http", "127.0.0.1")).is_err());
    assert!(bind(&url("http", ":0")).is_ok());
}

/// With `RUSD_ETCD_FIXTURES` set to etcd's `tests/fixtures`: every certificate there behaves.
#[tokio::test]
async fn etcds_own_fixtures() {
    let Ok(dir) = std::env::var("RUSD_ETCD_FIXTURES") else { return };
    let dir = PathBuf::from(dir);
    let fixture = |name: &str, ca: &str| TlsInfo {
        cert_file: Some(dir.join(format!("{name}.crt"))),
        key_file: Some(dir.join(format!("{name}.key.insecure"))),
        trusted_ca_file: Some(dir.join(ca)),
        ..TlsInfo::default()
    };
    let crl = TlsInfo { crl_file: Some(dir.join("revoke.crl")), ..fixture("server", "ca.crt") };
    let server = run(Some(crl), false, true);
    for (name, good) in [
        ("server", true),
        ("server2", true),
        ("server3", true),
        ("server-ecdsa", true),
        ("client-nocn", true),
        ("client-clientusage", true),
        ("server-serverusage", false),
        ("server-revoked", false),
    ] {
        let result = ask(Some(fixture(name, "ca.crt")), "https", &server.addr).await;
        assert_eq!(result.as_ref().is_ok_and(|t| t.contains("true")), good, "{name} {result:?}");
    }
    server.stop().await;
    let root = TlsInfo {
        key_file: Some(dir.join("CommonName-root.key")),
        ..fixture("CommonName-root", "CommonName-root.crt")
    };
    let server = run(Some(root.clone()), false, true);
    assert_eq!(ask(Some(root), "https", &server.addr).await, Ok("root true".into()));
    server.stop().await;
}

/// With `RUSD_AUTO_TLS_ETCD` set to `host:port` of a real etcd with `--auto-tls`, whose P-521
/// certificate ring cannot verify.
#[tokio::test]
async fn a_real_etcds_self_signed_certificate() {
    let Ok(addr) = std::env::var("RUSD_AUTO_TLS_ETCD") else { return };
    let dir = tempfile::tempdir().unwrap();
    let ours = self_cert(dir.path(), &["127.0.0.1:1".to_owned()], 1, true).unwrap();
    let connector = Connector::new(Arc::new(ours), Vec::new());
    let mut stream = connector.connect(&url("https", &addr)).await.unwrap();
    let text = "GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("etcdserver"), "{answer}");
}
