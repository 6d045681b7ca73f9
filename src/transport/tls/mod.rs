//! TLS as etcd configures it: files re-read for each handshake, Go's verdicts and Go's words.
//! Uses: base

mod connect;
mod fresh;
mod names;
mod self_cert;
mod verify;
mod words;

pub use connect::{Connecting, Connector, Io};
pub use fresh::ServerTls;
pub use names::{alternative_names, check_san, common_name};
pub use self_cert::self_cert;
pub use words::go_text;

use names::parse;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CipherSuite, ClientConfig, Error as TlsError, RootCertStore, ServerConfig, SupportedCipherSuite,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use verify::{Allowed, ClientVerifier, Mode, ServerVerifier};

/// An outbound connection, TCP and TLS handshake together, ends after this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Probes on silent TCP connections start after this time (etcd: 30 s).
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Largest certificate, key or CRL file read.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Where Linux distributions keep the public roots; the first that exists is used, as Go does.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

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

/// Those of the named suites that can be used. A name that Go does not know is an error, also where
/// no port has TLS (etcd v3.5.17 server/embed/etcd.go updateCipherSuites).
pub fn known_suites(names: &[String]) -> io::Result<Vec<CipherSuite>> {
    let mut known = Vec::new();
    for name in names {
        match SUITES.iter().find(|(suite, _)| suite == name) {
            Some((_, suite)) => known.push(*suite),
            None if SUITES_LEFT_OUT.contains(&name.as_str()) => {}
            None => return Err(invalid(format!("unexpected TLS cipher suite {name:?}"))),
        }
    }
    Ok(known)
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
        let kept = known_suites(&self.cipher_suites)?;
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
    fn stamps(&self) -> fresh::Stamps {
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
