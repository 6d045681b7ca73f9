//! The words that settings are made of.

use std::time::Duration;

/// TLS settings of one side: clients or peers. Empty texts mean "not given".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificate of the listener.
    pub cert_file: String,
    /// Key of the listener.
    pub key_file: String,
    /// Certificate for outgoing connections; empty: `cert_file`.
    pub client_cert_file: String,
    /// Key for outgoing connections; empty: `key_file`.
    pub client_key_file: String,
    /// Authorities to check the other side against.
    pub trusted_ca_file: String,
    /// Whether the other side must show a certificate.
    pub client_cert_auth: bool,
    /// Revoked certificates.
    pub crl_file: String,
    /// Make a self-signed certificate if none is given.
    pub auto_tls: bool,
    /// Common names, one of which the certificate must have (peers only).
    pub allowed_cn: Vec<String>,
    /// Host names, one of which the certificate must be valid for.
    pub allowed_hostname: Vec<String>,
    /// Do not check connecting peers' addresses against their certificates (peers only).
    pub skip_client_san_verification: bool,
    /// TLS 1.2 suites by Go's names; empty: all supported.
    pub cipher_suites: Vec<String>,
    /// Lowest version.
    pub tls_min_version: TlsVersion,
    /// Highest version.
    pub tls_max_version: TlsVersion,
}

impl TlsConfig {
    /// Whether neither a certificate nor a key is given.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_empty() && self.key_file.is_empty()
    }
}

/// A TLS version bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// No bound given.
    #[default]
    Unset,
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

impl TlsVersion {
    pub(super) fn parse(text: &str) -> Result<TlsVersion, String> {
        match text {
            "" => Ok(TlsVersion::Unset),
            "TLS1.2" => Ok(TlsVersion::V12),
            "TLS1.3" => Ok(TlsVersion::V13),
            _ => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
        }
    }
}

/// Whether the member starts a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Bootstrap.
    New,
    /// Join.
    Existing,
}

/// What auto compaction keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// No auto compaction.
    Off,
    /// Keep this much time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

/// Detail of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsDetail {
    /// Counters only.
    Basic,
    /// With latency histograms of gRPC calls.
    Extensive,
}

/// Stage of the v2 store's removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V2Deprecation {
    /// The v2 store may hold user content.
    NotYet,
    /// User content stops the start.
    WriteOnly,
    /// User content is dropped.
    WriteOnlyDropData,
    /// There is no v2 store.
    Gone,
}

impl V2Deprecation {
    /// The flag's word.
    pub fn as_str(self) -> &'static str {
        match self {
            V2Deprecation::NotYet => "not-yet",
            V2Deprecation::WriteOnly => "write-only",
            V2Deprecation::WriteOnlyDropData => "write-only-drop-data",
            V2Deprecation::Gone => "gone",
        }
    }
}
