//! Go's verdicts on certificates, as rustls verifiers for both roles.

use super::names::{common_name, parse, valid_for};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// The allowed common names or host names.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) cns: Vec<String>,
    pub(super) hosts: Vec<String>,
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
pub(super) struct ClientVerifier {
    pub(super) webpki: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) allowed: Allowed,
    pub(super) provider: Arc<CryptoProvider>,
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
pub(super) enum Mode {
    /// Accept every server.
    Any,
    /// There is no root to trust.
    Nobody,
    WebPki(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) mode: Mode,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) allowed: Allowed,
    pub(super) provider: Arc<CryptoProvider>,
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
