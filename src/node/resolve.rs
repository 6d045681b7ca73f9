//! Whether two lists of URLs mean the same addresses although they differ as text (etcd v3.5.17
//! pkg/netutil/netutil.go).

use crate::base::url::{self, Url};
use std::net::ToSocketAddrs;
use std::time::Duration;

/// Pause before a name is looked up again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The reason when they do not. Blocks; a name that is not known is asked for again until the time
/// is up.
pub(super) fn equal(a: &[Url], b: &[Url], timeout: Duration) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("len({}) != len({})", texts(a), texts(b)));
    }
    let mut tries = 1 + timeout.as_secs() / RETRY_INTERVAL.as_secs();
    let a = resolved(a, &mut tries)?;
    let b = resolved(b, &mut tries)?;
    match a.iter().zip(&b).find(|(a, b)| a != b) {
        None => Ok(()),
        Some((a, b)) => Err(format!("resolved urls: \"{a}\" != \"{b}\"")),
    }
}

/// As Go prints a list of strings with `%q`.
fn texts(urls: &[Url]) -> String {
    let quoted: Vec<String> = urls.iter().map(|url| format!("\"{url}\"")).collect();
    format!("[{}]", quoted.join(" "))
}

fn resolved(urls: &[Url], tries: &mut u64) -> Result<Vec<Url>, String> {
    let mut resolved = urls.to_vec();
    for url in &mut resolved {
        // Sockets have no address; localhost is taken by its name, as etcd does.
        if !url.is_unix() && url.hostname() != "localhost" {
            url.host = address(url, tries)?;
        }
    }
    url::sort(&mut resolved);
    Ok(resolved)
}

/// The first address of a URL's host, with its port.
fn address(url: &Url, tries: &mut u64) -> Result<String, String> {
    loop {
        *tries = tries.saturating_sub(1);
        let error = match url.host.to_socket_addrs().map(|mut addresses| addresses.next()) {
            Ok(Some(address)) => return Ok(address.to_string()),
            Ok(None) => "no address".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(%url, error, "failed to resolve URL Host");
        if *tries == 0 {
            return Err(format!("failed to resolve \"{url}\" ({error})"));
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_compared_by_address() {
        let list = |text: &str| Url::parse_list(text).unwrap();
        let check = |a: &str, b: &str| equal(&list(a), &list(b), Duration::ZERO);
        assert_eq!(check("http://127.0.0.1:1", "http://127.0.0.1:1"), Ok(()));
        assert_eq!(check("http://127.0.0.1:01", "http://127.0.0.1:1"), Ok(()));
        assert_eq!(check("unix://a:1", "unix://a:1"), Ok(()));
        assert_eq!(
            check("http://localhost:1", "http://127.0.0.1:1"),
            Err("resolved urls: \"http://localhost:1\" != \"http://127.0.0.1:1\"".into())
        );
        assert_eq!(
            check("http://a:1,http://b:1", "http://a:1"),
            Err("len([\"http://a:1\" \"http://b:1\"]) != len([\"http://a:1\"])".into())
        );
        let unknown = check("http://name.invalid:1", "http://127.0.0.1:1").unwrap_err();
        assert!(unknown.starts_with("failed to resolve \"http://name.invalid:1\" ("), "{unknown}");
    }
}
