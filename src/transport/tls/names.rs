//! Who a certificate is: common name, alternative names, and whether they fit an address.

use super::invalid;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::{IpAddr, SocketAddr};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Names for reverse look-ups.
const HOSTS_FILE: &str = "/etc/hosts";

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> io::Result<X509Certificate<'a>> {
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

pub(super) fn valid_for(der: &CertificateDer<'_>, name: &str) -> bool {
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
