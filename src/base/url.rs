//! Listen, advertise and peer URLs, kept as they were written: member ids hash their text.

/// One URL of etcd's four kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// `http`, `https`, `unix` or `unixs`.
    pub scheme: String,
    /// `host:port`, or the socket's name for unix kinds.
    pub host: String,
    /// The path with its leading slash, or empty. For unix kinds it continues `host`.
    pub path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.host, self.path)
    }
}

impl Url {
    /// Whether connections are wrapped in TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.scheme.as_str(), "https" | "unixs")
    }

    /// Whether the address is a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.scheme.as_str(), "unix" | "unixs")
    }
}

/// Splits `host:port` by Go's rules. The error names the address as Go does.
pub fn split_host_port(addr: &str) -> Result<(&str, &str), String> {
    let bad = |why: &str| Err(format!("address {addr}: {why}"));
    let Some(colon) = addr.rfind(':') else {
        return bad("missing port in address");
    };
    let (host, port) = if let Some(inner) = addr.strip_prefix('[') {
        let Some(end) = inner.find(']') else {
            return bad("missing ']' in address");
        };
        let after = end + 2;
        if after == addr.len() {
            return bad("missing port in address");
        }
        if after != colon {
            return bad(if addr[after..].starts_with(':') {
                "too many colons in address"
            } else {
                "missing port in address"
            });
        }
        (&inner[..end], &addr[colon + 1..])
    } else {
        let host = &addr[..colon];
        if host.contains(':') {
            return bad("too many colons in address");
        }
        (host, &addr[colon + 1..])
    };
    if host.contains(['[', ']']) || port.contains(['[', ']']) {
        let which = if addr.matches('[').count() > usize::from(addr.starts_with('[')) {
            "unexpected '[' in address"
        } else {
            "unexpected ']' in address"
        };
        return bad(which);
    }
    Ok((host, port))
}

impl Url {
    /// Reads one URL with the rules and error texts of etcd's flags.
    pub fn parse(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let url = split(text).map_err(|why| format!("parse {text:?}: {why}"))?;
        match url.scheme.as_str() {
            "http" | "https" => {
                if split_host_port(&url.host).is_err() {
                    return Err(format!(
                        "URL address does not have the form \"host:port\": {text}"
                    ));
                }
                if url.path.starts_with('/') {
                    return Err(format!("URL must not contain a path: {text}"));
                }
            }
            "unix" | "unixs" => {}
            _ => {
                return Err(format!("URL scheme must be http, https, unix, or unixs: {text}"));
            }
        }
        Ok(url)
    }

    /// Reads a comma-separated list and sorts it by text.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
        let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
        sort(&mut urls);
        Ok(urls)
    }

    /// The host without port and without brackets.
    pub fn hostname(&self) -> &str {
        hostname(&self.host)
    }

    /// The port's text, empty when there is none.
    pub fn port(&self) -> &str {
        split_host_port(&self.host).map_or("", |(_, port)| port)
    }

    /// The file a unix kind listens on: host and path are one name.
    pub fn socket_path(&self) -> String {
        format!("{}{}", self.host, self.path)
    }
}

/// `host` of `host:port`, without the brackets of IPv6; an address without a port is its own host.
pub fn hostname(addr: &str) -> &str {
    match addr.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => addr.rsplit_once(':').map_or(addr, |(host, _)| host),
    }
}

/// Sorts by text, the order that member ids are hashed in.
pub fn sort(urls: &mut [Url]) {
    urls.sort_by_cached_key(Url::to_string);
}

/// Joins URLs with commas.
pub fn join(urls: &[Url]) -> String {
    let texts: Vec<String> = urls.iter().map(Url::to_string).collect();
    texts.join(",")
}

/// Go's generic URL grammar, as far as etcd's flags can reach it.
fn split(text: &str) -> Result<Url, String> {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL".into());
    }
    let (scheme, rest) = split_scheme(text)?;
    let Some(rest) = rest.strip_prefix("//") else {
        if scheme.is_empty() {
            let first = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if first.contains(':') {
                return Err("first path segment in URL cannot contain colon".into());
            }
        }
        return Ok(Url { scheme, host: String::new(), path: rest.into() });
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    check_host(host)?;
    Ok(Url { scheme, host: host.into(), path: path.into() })
}

fn split_scheme(text: &str) -> Result<(String, &str), String> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme".into()),
            ':' => return Ok((text[..i].to_ascii_lowercase(), &text[i + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = if host.starts_with('[') {
        match host.rfind(']') {
            Some(end) => &host[end + 1..],
            None => return Err("missing ']' in host".into()),
        }
    } else {
        host.rfind(':').map_or("", |colon| &host[colon..])
    };
    let digits = port.strip_prefix(':');
    if !port.is_empty() && !digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("invalid port {port:?} after host"));
    }
    match host.chars().find(|c| " \\^`{|}".contains(*c)) {
        Some(c) => Err(format!("invalid character {:?} in host name", c.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_rules_and_texts() {
        for (text, want) in [
            ("http://localhost:2379", Ok("http://localhost:2379")),
            (" https://[::1]:1 ", Ok("https://[::1]:1")),
            ("HTTP://a:1", Ok("http://a:1")),
            ("unix://localhost:20001", Ok("unix://localhost:20001")),
            ("unixs:///tmp/a.sock", Ok("unixs:///tmp/a.sock")),
            ("http://127.0.0.1:0", Ok("http://127.0.0.1:0")),
            ("ftp://a:1", Err("URL scheme must be http, https, unix, or unixs: ftp://a:1")),
            ("", Err("URL scheme must be http, https, unix, or unixs: ")),
            ("localhost:1", Err("URL scheme must be http, https, unix, or unixs: localhost:1")),
            (
                "http://localhost",
                Err("URL address does not have the form \"host:port\": http://localhost"),
            ),
            ("http://::1:2", Err("URL address does not have the form \"host:port\": http://::1:2")),
            ("http://a:1/x", Err("URL must not contain a path: http://a:1/x")),
            ("http://a:1/", Err("URL must not contain a path: http://a:1/")),
            ("http://a:b", Err("parse \"http://a:b\": invalid port \":b\" after host")),
            ("http://a b:1", Err("parse \"http://a b:1\": invalid character \" \" in host name")),
            (":foo", Err("parse \":foo\": missing protocol scheme")),
            (
                "127.0.0.1:80",
                Err("parse \"127.0.0.1:80\": first path segment in URL cannot contain colon"),
            ),
        ] {
            let got = Url::parse(text).map(|u| u.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn url_lists_are_sorted_by_text() {
        let urls = Url::parse_list("http://b:2,http://a:10,http://a:1").unwrap();
        assert_eq!(join(&urls), "http://a:1,http://a:10,http://b:2");
        assert_eq!(urls[0].hostname(), "a");
        assert_eq!(urls[1].port(), "10");
        assert!(Url::parse_list("http://a:1,").is_err());
    }

    #[test]
    fn url_host_and_port_of_go() {
        for (addr, want) in [
            ("a:1", Ok(("a", "1"))),
            ("[::1]:2", Ok(("::1", "2"))),
            (":3", Ok(("", "3"))),
            ("a", Err("address a: missing port in address")),
            ("::1", Err("address ::1: too many colons in address")),
            ("[::1]", Err("address [::1]: missing port in address")),
            ("[::1", Err("address [::1: missing ']' in address")),
        ] {
            assert_eq!(
                split_host_port(addr).map_err(|e| e.to_string()),
                want.map_err(String::from),
                "{addr}"
            );
        }
    }
}
