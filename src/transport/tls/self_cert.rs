//! `--auto-tls`: a pair of our own making.

use super::{TlsInfo, invalid};
use crate::base::url::hostname;
use std::io;
use std::path::Path;

/// Days in a year of `--self-signed-cert-validity`.
const DAYS_PER_YEAR: i64 = 365;

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
                tracing::warn!(%error, path = %cert_file.display(), "replacing self-signed \
                 certificate")
            }
        }
    }
    let failed = |error: rcgen::Error| invalid(format!("cannot generate certificate: {error}"));
    let names: Vec<String> =
        hosts.iter().map(|host| hostname(host).to_owned()).filter(|h| !h.is_empty()).collect();
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
