//! TLS as etcd configures it: files re-read for each handshake, Go's verdicts and Go's words.

use crate::base::url::Url;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct,
    DistinguishedName, Error as TlsError, InvalidMessage, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme, SupportedCipherSuite,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls_pki_types::{ServerName, UnixTime};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// An outbound connection, TCP and TLS handshake together, ends after this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Probes on silent TCP connections start after this time (etcd: 30 s).
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Largest certificate, key or CRL file read.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Days in a year of `--self-signed-cert-validity`.
const DAYS_PER_YEAR: i64 = 365;
/// Where Linux distributions keep the public roots; the first that exists is used, as Go does.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Names for reverse look-ups.
const HOSTS_FILE: &str = "/etc/hosts";
/// What etcd says when the allowed CN or hostname is not in the certificate.
const NOT_ALLOWED: &str = "client certificate authentication failed";

/// Go's names of the suites that rustls has.
const SUITES: [(&str, CipherSuite); 11] = [
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Suites that Go knows and rustls leaves out.
const SUITES_LEFT_OUT: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// One endpoint's TLS flags. Both roles use the same value, as in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// `--cert-file` / `--peer-cert-file`, shown as server, and as client unless overridden.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// `--trusted-ca-file`; verifies clients and servers.
    pub trusted_ca_file: Option<PathBuf>,
    /// Shown as client instead of `cert_file`.
    pub client_cert_file: Option<PathBuf>,
    /// The key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// Serial numbers to refuse, DER or PEM.
    pub crl_file: Option<PathBuf>,
    /// Clients must show a certificate. A trusted CA implies it.
    pub client_cert_auth: bool,
    /// As client, accept any server.
    pub insecure_skip_verify: bool,
    /// Common names accepted, in both roles; empty accepts any.
    pub allowed_cn: Vec<String>,
    /// Host names one of which the certificate must carry, in both roles; empty accepts any.
    pub allowed_hostname: Vec<String>,
    /// Go's names; empty means all.
    pub cipher_suites: Vec<String>,
    /// `TLS1.2` or `TLS1.3`.
    pub min_version: Option<String>,
    /// `TLS1.2` or `TLS1.3`.
    pub max_version: Option<String>,
    /// Peer listeners do not compare the client's SAN with its address.
    pub skip_client_san_verify: bool,
    /// Made by [`self_cert`]: as client, accept any server.
    pub self_signed: bool,
    /// Name to ask for and verify instead of the URL's host.
    pub server_name: Option<String>,
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

fn tls_error(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn shown(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

/// Reads a file; errors have Go's text and keep their kind.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let named = |error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("open {}: {what}", path.display()))
    };
    if std::fs::metadata(path).map_err(named)?.len() > PEM_BYTES_MAX {
        return Err(invalid(format!("{} is too large", path.display())));
    }
    std::fs::read(path).map_err(named)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    if chain.is_empty() {
        return Err(invalid("tls: failed to find any PEM data in certificate input"));
    }
    Ok(chain)
}

fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| invalid("tls: failed to find any PEM data in key input"))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn version(name: &str) -> io::Result<u8> {
    match name {
        "TLS1.2" => Ok(2),
        "TLS1.3" => Ok(3),
        _ => Err(invalid(format!("unexpected TLS version {name:?}"))),
    }
}

impl TlsInfo {
    /// Whether no certificate is configured.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_none() && self.key_file.is_none()
    }

    /// Whether clients must show a verified certificate.
    pub fn requires_client_cert(&self) -> bool {
        self.trusted_ca_file.is_some() || self.client_cert_auth
    }

    /// Refuses what would fail at the first handshake, and warns once of suites that are skipped.
    pub fn validate(&self) -> io::Result<()> {
        for name in &self.cipher_suites {
            if SUITES_LEFT_OUT.contains(&name.as_str()) {
                tracing::warn!(cipher_suite = %name, "ignored unsupported TLS cipher suite");
            }
        }
        self.server_config()?;
        self.client_config(&[]).map(|_| ())
    }

    fn provider(&self) -> io::Result<Arc<CryptoProvider>> {
        let mut provider = rustls::crypto::ring::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(Arc::new(provider));
        }
        let mut kept = Vec::new();
        for name in &self.cipher_suites {
            match SUITES.iter().find(|(known, _)| known == name) {
                Some((_, suite)) => kept.push(*suite),
                None if SUITES_LEFT_OUT.contains(&name.as_str()) => {}
                None => return Err(invalid(format!("unexpected TLS cipher suite {name:?}"))),
            }
        }
        if kept.is_empty() {
            return Err(invalid("none of the given TLS cipher suites is supported"));
        }
        // Go applies the list to TLS 1.2 only.
        provider.cipher_suites.retain(|suite| {
            matches!(suite, SupportedCipherSuite::Tls13(_)) || kept.contains(&suite.suite())
        });
        Ok(Arc::new(provider))
    }

    fn versions(&self) -> io::Result<Vec<&'static rustls::SupportedProtocolVersion>> {
        let low = self.min_version.as_deref().map_or(Ok(2), version)?;
        let high = self.max_version.as_deref().map_or(Ok(3), version)?;
        if low > high {
            return Err(invalid("min version is greater than max version"));
        }
        let all = [(2, &rustls::version::TLS12), (3, &rustls::version::TLS13)];
        Ok(all.into_iter().filter(|(v, _)| (low..=high).contains(v)).map(|(_, v)| v).collect())
    }

    fn pair(cert: Option<&PathBuf>, key_file: Option<&PathBuf>) -> io::Result<Pair> {
        match (cert, key_file) {
            (Some(cert), Some(key_file)) => Ok((certificates(cert)?, key(key_file)?)),
            _ => Err(invalid(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                shown(key_file),
                shown(cert)
            ))),
        }
    }

    fn client_pair(&self) -> io::Result<Option<Pair>> {
        if self.is_empty() {
            return Ok(None);
        }
        match (&self.client_cert_file, &self.client_key_file) {
            (None, None) => Self::pair(self.cert_file.as_ref(), self.key_file.as_ref()).map(Some),
            (Some(cert), Some(key)) => Self::pair(Some(cert), Some(key)).map(Some),
            (cert, key) => Err(invalid(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: \
                 key: {}, cert: {}]",
                shown(key.as_ref()),
                shown(cert.as_ref())
            ))),
        }
    }

    fn allowed(&self) -> io::Result<Allowed> {
        if !self.allowed_cn.is_empty() && !self.allowed_hostname.is_empty() {
            return Err(invalid(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={:?}, hostnames={:?})",
                self.allowed_cn, self.allowed_hostname
            )));
        }
        Ok(Allowed { cns: self.allowed_cn.clone(), hosts: self.allowed_hostname.clone() })
    }

    /// The trusted roots, or the system's when no CA file is set.
    fn roots(&self) -> io::Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>)> {
        let ders = match &self.trusted_ca_file {
            Some(file) => certificates(file)?,
            None => SYSTEM_ROOTS
                .iter()
                .find_map(|path| certificates(Path::new(path)).ok())
                .unwrap_or_default(),
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(ders.iter().cloned());
        Ok((Arc::new(store), ders))
    }

    /// The server's side, read from the files now.
    pub fn server_config(&self) -> io::Result<Arc<ServerConfig>> {
        let provider = self.provider()?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.versions()?)
            .map_err(tls_error)?;
        let (chain, key) = Self::pair(self.cert_file.as_ref(), self.key_file.as_ref())?;
        self.client_pair()?;
        let allowed = self.allowed()?;
        let builder = if self.requires_client_cert() {
            let (store, ders) = self.roots()?;
            let webpki = if store.is_empty() {
                None
            } else {
                let verifier = WebPkiClientVerifier::builder_with_provider(store, provider.clone())
                    .build()
                    .map_err(|error| invalid(error.to_string()))?;
                Some(verifier)
            };
            builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                webpki,
                roots: ders,
                allowed,
                provider,
            }))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain, key).map_err(tls_error)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The client's side, read from the files now; `alpn` empty offers none.
    pub fn client_config(&self, alpn: &[Vec<u8>]) -> io::Result<Arc<ClientConfig>> {
        let provider = self.provider()?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.versions()?)
            .map_err(tls_error)?;
        let allowed = self.allowed()?;
        let verifier = if self.insecure_skip_verify || self.self_signed {
            ServerVerifier { mode: Mode::Any, roots: Vec::new(), allowed, provider }
        } else {
            let (store, roots) = self.roots()?;
            let mode = if store.is_empty() {
                Mode::Nobody
            } else {
                let verifier = WebPkiServerVerifier::builder_with_provider(store, provider.clone())
                    .build()
                    .map_err(|error| invalid(error.to_string()))?;
                Mode::WebPki(verifier)
            };
            ServerVerifier { mode, roots, allowed, provider }
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match self.client_pair()? {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(tls_error)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.to_vec();
        Ok(Arc::new(config))
    }

    /// Refuses a connection whose certificates' serials are in the CRL, which is read now.
    pub fn check_crl(&self, presented: &[CertificateDer<'_>]) -> io::Result<()> {
        let Some(path) = self.crl_file.as_ref().filter(|_| !presented.is_empty()) else {
            return Ok(());
        };
        let raw = read(path)?;
        let der = match CertificateRevocationListDer::from_pem_slice(&raw) {
            Ok(pem) => pem.as_ref().to_vec(),
            Err(_) => raw,
        };
        let (_, crl) =
            x509_parser::parse_x509_crl(&der).map_err(|error| invalid(format!("CRL: {error}")))?;
        let revoked: std::collections::HashSet<Vec<u8>> =
            crl.iter_revoked_certificates().map(|one| one.serial().to_bytes_be()).collect();
        for certificate in presented {
            let serial = parse(certificate)?.serial.to_bytes_be();
            if revoked.contains(&serial) {
                let hex: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(invalid(format!("transport: certificate serial {hex} revoked")));
            }
        }
        Ok(())
    }

    /// Files whose change makes a config stale.
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        [
            &self.cert_file,
            &self.key_file,
            &self.trusted_ca_file,
            &self.client_cert_file,
            &self.client_key_file,
        ]
        .into_iter()
        .map(|file| {
            let meta = std::fs::metadata(file.as_ref()?).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
        .collect()
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> io::Result<X509Certificate<'a>> {
    X509Certificate::from_der(der.as_ref())
        .map(|(_, certificate)| certificate)
        .map_err(|error| invalid(format!("x509: malformed certificate: {error}")))
}

/// The subject's common name, `None` when absent or empty.
pub fn common_name(der: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(der).ok()?;
    // Go keeps the last of several.
    let name = certificate.subject().iter_common_name().last()?.as_str().ok()?.to_owned();
    (!name.is_empty()).then_some(name)
}

/// IP and DNS subject alternative names.
pub fn alternative_names(der: &CertificateDer<'_>) -> (Vec<IpAddr>, Vec<String>) {
    let (mut ips, mut names) = (Vec::new(), Vec::new());
    let Ok(certificate) = parse(der) else { return (ips, names) };
    let Ok(Some(san)) = certificate.subject_alternative_name() else { return (ips, names) };
    for name in &san.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::IPAddress(raw) => {
                if let Ok(four) = <[u8; 4]>::try_from(*raw) {
                    ips.push(IpAddr::from(four));
                } else if let Ok(sixteen) = <[u8; 16]>::try_from(*raw) {
                    ips.push(IpAddr::from(sixteen));
                }
            }
            _ => {}
        }
    }
    (ips, names)
}

fn valid_for(der: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(der), ServerName::try_from(name))
    else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

/// Names of `ip` in the hosts file.
fn reverse_names(hosts: &str, ip: IpAddr) -> Vec<String> {
    hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            (address == ip).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        })
        .flatten()
        .collect()
}

/// etcd's check of peers: the certificate's names must lead to the address it came from.
/// A certificate without names passes.
pub async fn check_san(der: &CertificateDer<'_>, remote: SocketAddr) -> io::Result<()> {
    let (ips, names) = alternative_names(der);
    let ip = remote.ip().to_canonical();
    if (ips.is_empty() && names.is_empty()) || ips.contains(&ip) {
        return Ok(());
    }
    if names.is_empty() {
        let list: Vec<_> = ips.iter().map(ToString::to_string).collect();
        return Err(invalid(format!(
            "x509: certificate is valid for {}, not {ip}",
            list.join(", ")
        )));
    }
    let known = reverse_names(&std::fs::read_to_string(HOSTS_FILE).unwrap_or_default(), ip);
    let (wild, exact): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with("*."));
    if known.iter().any(|name| {
        exact.contains(&name)
            || wild.iter().any(|wild| name.ends_with(wild.trim_start_matches('*')))
    }) {
        return Ok(());
    }
    let mut reason = String::new();
    for name in exact {
        match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(mut found) => {
                if found.any(|address| address.ip().to_canonical() == ip) {
                    return Ok(());
                }
            }
            Err(error) => reason = format!(" (lookup {name}: {error})"),
        }
    }
    let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    Err(invalid(format!(
        "tls: {:?} does not match any of DNSNames [{}]{reason}",
        ip.to_string(),
        quoted.join(" ")
    )))
}

/// The allowed common names or host names.
#[derive(Debug)]
struct Allowed {
    cns: Vec<String>,
    hosts: Vec<String>,
}

impl Allowed {
    /// `NotValidForName` without context is ours alone: it sends bad_certificate, and
    /// [`go_text`] knows it.
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), TlsError> {
        let cn = common_name(leaf).unwrap_or_default();
        let fits = (self.cns.is_empty() && self.hosts.is_empty())
            || self.cns.contains(&cn)
            || self.hosts.iter().any(|host| valid_for(leaf, host));
        if fits { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
    }

    fn is_empty(&self) -> bool {
        self.cns.is_empty() && self.hosts.is_empty()
    }
}

/// Go accepts a leaf that is itself a root; webpki refuses a CA there. Validity and usage remain.
fn check_root_leaf(leaf: &CertificateDer<'_>, now: UnixTime, client: bool) -> Result<(), TlsError> {
    let certificate = parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > certificate.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let listed = if client { usage.value.client_auth } else { usage.value.server_auth };
        if !listed && !usage.value.any {
            return Err(CertificateError::InvalidPurpose.into());
        }
    }
    Ok(())
}

#[derive(Debug)]
struct ClientVerifier {
    webpki: Option<Arc<dyn ClientCertVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.as_ref().map_or(&[], |webpki| webpki.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        if self.roots.contains(leaf) {
            check_root_leaf(leaf, now, true)?;
        } else {
            let webpki = self.webpki.as_ref().ok_or(CertificateError::UnknownIssuer)?;
            webpki.verify_client_cert(leaf, intermediates, now).map_err(unknown_issuer)?;
        }
        self.allowed.check(leaf)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
enum Mode {
    /// Accept every server.
    Any,
    /// There is no root to trust.
    Nobody,
    WebPki(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct ServerVerifier {
    mode: Mode,
    roots: Vec<CertificateDer<'static>>,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match &self.mode {
            // Without verified chains etcd's allow list accepts nobody.
            Mode::Any if self.allowed.is_empty() => return Ok(ServerCertVerified::assertion()),
            Mode::Any => return Err(CertificateError::NotValidForName.into()),
            Mode::Nobody => return Err(CertificateError::UnknownIssuer.into()),
            Mode::WebPki(_) if self.roots.contains(leaf) => {
                check_root_leaf(leaf, now, false)?;
                let parsed = ParsedCertificate::try_from(leaf)?;
                verify_server_name(&parsed, name).map_err(|error| with_context(error, name))?;
            }
            Mode::WebPki(webpki) => {
                webpki
                    .verify_server_cert(leaf, intermediates, name, ocsp, now)
                    .map_err(|error| with_context(unknown_issuer(error), name))?;
            }
        }
        self.allowed.check(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if self.skips(dss.scheme) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if self.skips(dss.scheme) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.provider.signature_verification_algorithms.supported_schemes();
        if matches!(self.mode, Mode::Any) {
            schemes.push(SignatureScheme::ECDSA_NISTP521_SHA512);
        }
        schemes
    }
}

impl ServerVerifier {
    /// etcd's own self-signed certificates are P-521, which ring lacks. Where any certificate is
    /// accepted, its signature proves nothing either.
    fn skips(&self, scheme: SignatureScheme) -> bool {
        matches!(self.mode, Mode::Any) && scheme == SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// A root of the right name with another key is no issuer to Go; webpki calls it a bad signature.
fn unknown_issuer(error: TlsError) -> TlsError {
    match error {
        TlsError::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    }
}

/// Keeps a real name mismatch apart from [`Allowed::check`]'s.
fn with_context(error: TlsError, name: &ServerName<'_>) -> TlsError {
    match error {
        TlsError::InvalidCertificate(CertificateError::NotValidForName) => {
            CertificateError::NotValidForNameContext {
                expected: name.to_owned(),
                presented: Vec::new(),
            }
            .into()
        }
        other => other,
    }
}

fn alert_text(alert: AlertDescription) -> String {
    let known = match alert {
        AlertDescription::CloseNotify => "close notify",
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        AlertDescription::CertificateRequired => "certificate required",
        other => return format!("alert({})", u8::from(other)),
    };
    known.to_owned()
}

fn certificate_text(error: &CertificateError) -> String {
    let what = match error {
        CertificateError::NotValidForName => return NOT_ALLOWED.to_owned(),
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("certificate is valid for {}, not {}", presented.join(", "), expected.to_str())
        }
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {what}")
}

/// An I/O or TLS error in the words of Go's `crypto/tls`, which tests and operators search for.
pub fn go_text(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match inner {
        Some(TlsError::AlertReceived(alert)) => {
            format!("remote error: tls: {}", alert_text(*alert))
        }
        Some(TlsError::NoCertificatesPresented) => {
            "tls: client didn't provide a certificate".to_owned()
        }
        Some(TlsError::InvalidCertificate(error)) => certificate_text(error),
        Some(TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        )) => "tls: first record does not look like a TLS handshake".to_owned(),
        Some(TlsError::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon,
        )) => "tls: no cipher suite supported by both client and server".to_owned(),
        Some(TlsError::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        )) => "tls: client offered only unsupported versions".to_owned(),
        Some(other) => format!("tls: {other}"),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            _ => error.to_string(),
        },
    }
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

/// A value that is rebuilt when its files change. Resumption caches live in the configs, so
/// rebuilding each time would also cost every client a full handshake.
#[derive(Debug)]
struct Fresh<T> {
    info: Arc<TlsInfo>,
    last: Mutex<Option<(Stamps, Arc<T>)>>,
}

impl<T> Fresh<T> {
    fn get(&self, build: impl FnOnce(&TlsInfo) -> io::Result<Arc<T>>) -> io::Result<Arc<T>> {
        let now = self.info.stamps();
        let mut last = self.last.lock();
        if let Some((stamps, value)) = last.as_ref()
            && *stamps == now
            && now.iter().any(Option::is_some)
        {
            return Ok(value.clone());
        }
        let value = build(&self.info)?;
        *last = Some((now, value.clone()));
        Ok(value)
    }
}

/// A listener's TLS: current config for each handshake.
#[derive(Debug)]
pub struct ServerTls {
    fresh: Fresh<ServerConfig>,
}

impl ServerTls {
    /// Fails as etcd does when the files cannot be used.
    pub fn new(info: Arc<TlsInfo>) -> io::Result<Self> {
        info.validate()?;
        Ok(Self { fresh: Fresh { info, last: Mutex::new(None) } })
    }

    /// The flags.
    pub fn info(&self) -> &TlsInfo {
        &self.fresh.info
    }

    /// The config for a handshake that starts now.
    pub fn config(&self) -> io::Result<Arc<ServerConfig>> {
        let config = self.fresh.get(TlsInfo::server_config);
        if let Err(error) = &config {
            tracing::warn!(
                "cert-file" = %shown(self.fresh.info.cert_file.as_ref()),
                "key-file" = %shown(self.fresh.info.key_file.as_ref()),
                %error,
                "failed to create peer certificate"
            );
        }
        config
    }
}

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
        Self { tls: Arc::new(Fresh { info, last: Mutex::new(None) }), alpn: Arc::new(alpn) }
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
        let host = match &self.tls.info.server_name {
            Some(name) if !name.is_empty() => name.clone(),
            _ => host_only(&url.host).to_owned(),
        };
        let name = ServerName::try_from(host)
            .map_err(|_| invalid(format!("invalid server name in {url}")))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

/// `host` of `host:port`, without the brackets of IPv6.
pub fn host_only(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// `--auto-tls` / `--peer-auto-tls`: the pair in `dir`, made unless both files are there and
/// usable. `hosts` are `host:port`; peers also need the client usage.
pub fn self_cert(
    dir: &Path,
    hosts: &[String],
    years: u32,
    client_too: bool,
) -> io::Result<TlsInfo> {
    if years == 0 {
        return Err(invalid("selfSignedCertValidity is invalid,it should be greater than 0"));
    }
    std::fs::create_dir_all(dir)?;
    let dir = std::path::absolute(dir)?;
    let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
    let info = TlsInfo {
        cert_file: Some(cert_file.clone()),
        key_file: Some(key_file.clone()),
        client_cert_file: Some(cert_file.clone()),
        client_key_file: Some(key_file.clone()),
        self_signed: true,
        ..TlsInfo::default()
    };
    if cert_file.exists() && key_file.exists() {
        match info.server_config() {
            Ok(_) => return Ok(info),
            // etcd makes P-521 keys, which ring cannot use.
            Err(error) => {
                tracing::warn!(%error, path = %cert_file.display(), "replacing self-signed certificate")
            }
        }
    }
    let failed = |error: rcgen::Error| invalid(format!("cannot generate certificate: {error}"));
    let names: Vec<String> =
        hosts.iter().map(|host| host_only(host).to_owned()).filter(|h| !h.is_empty()).collect();
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "etcd");
    params.not_before = time::OffsetDateTime::now_utc();
    params.not_after = params
        .not_before
        .checked_add(time::Duration::days(i64::from(years).saturating_mul(DAYS_PER_YEAR)))
        .ok_or_else(|| invalid("self-signed certificate validity is too long"))?;
    params.key_usages =
        vec![rcgen::KeyUsagePurpose::KeyEncipherment, rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    if client_too {
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    }
    tracing::warn!(
        "certificate-validity-bound-not-after" = %params.not_after,
        "automatically generate certificates"
    );
    let pair = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&pair).map_err(failed)?;
    std::fs::write(&cert_file, certificate.pem())?;
    tracing::info!(path = %cert_file.display(), "created cert file");
    write_private(&key_file, pair.serialize_pem().as_bytes())?;
    tracing::info!(path = %key_file.display(), "created key file");
    Ok(info)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}
