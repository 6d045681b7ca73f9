//! Headers and versions that peers compare before they talk.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Config;
use crate::base::url::Url;

/// The version of etcd that this server speaks for.
pub(super) const SERVER_VERSION: &str = "3.5.17";
/// The oldest cluster it can join (etcd v3.5.17 MinClusterVersion).
pub(super) const MIN_CLUSTER_VERSION: &str = "3.0.0";
const LOCAL: Version = Version { major: 3, minor: 5 };
const LOCAL_MIN_CLUSTER: Version = Version { major: 3, minor: 0 };
/// The first version with both streams.
const FIRST_WITH_STREAMS: Version = Version { major: 2, minor: 1 };
/// What a peer without version headers is.
const UNSAID: Version = Version { major: 2, minor: 0 };

pub(super) const X_SERVER_FROM: HeaderName = HeaderName::from_static("x-server-from");
pub(super) const X_SERVER_VERSION: HeaderName = HeaderName::from_static("x-server-version");
pub(super) const X_MIN_CLUSTER_VERSION: HeaderName =
    HeaderName::from_static("x-min-cluster-version");
pub(super) const X_CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
pub(super) const X_RAFT_TO: HeaderName = HeaderName::from_static("x-raft-to");
pub(super) const X_PEER_URLS: HeaderName = HeaderName::from_static("x-peerurls");

pub(super) const INCOMPATIBLE_VERSION: &str = "incompatible version";
pub(super) const CLUSTER_ID_MISMATCH: &str = "cluster ID mismatch";

/// The part of a version that decides compatibility.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u64,
    minor: u64,
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let mut parts = text.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        parts.next().map(|_| Version { major, minor })
    }

    /// The version in header `name`; none if it is not one.
    fn of(headers: &HeaderMap, name: &HeaderName) -> Option<Version> {
        match text(headers, name) {
            "" => Some(UNSAID),
            value => Version::parse(value),
        }
    }
}

/// A header's text; empty if it is absent.
pub(super) fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The refusal of a request from a peer that cannot be talked to.
pub(super) fn refusal(headers: &HeaderMap, cluster: &str) -> Option<&'static str> {
    let server = Version::of(headers, &X_SERVER_VERSION);
    let min_cluster = Version::of(headers, &X_MIN_CLUSTER_VERSION);
    let fits = server.is_some_and(|version| version >= LOCAL_MIN_CLUSTER)
        && min_cluster.is_some_and(|version| version <= LOCAL);
    if !fits {
        return Some(INCOMPATIBLE_VERSION);
    }
    (text(headers, &X_CLUSTER_ID) != cluster).then_some(CLUSTER_ID_MISMATCH)
}

/// Whether the peer that answered has both streams.
pub(super) fn has_streams(headers: &HeaderMap) -> bool {
    Version::of(headers, &X_SERVER_VERSION).is_some_and(|version| version >= FIRST_WITH_STREAMS)
}

/// The headers with which a member introduces itself.
pub(super) fn introduction(config: &Config) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(X_SERVER_FROM, &config.local.to_string());
    put(X_SERVER_VERSION, SERVER_VERSION);
    put(X_MIN_CLUSTER_VERSION, MIN_CLUSTER_VERSION);
    put(X_CLUSTER_ID, &config.cluster.to_string());
    put(X_PEER_URLS, &config.local_urls.join(","));
    headers
}

/// A peer URL out of a header.
pub(super) fn parse_url(text: &str) -> Option<Url> {
    let (scheme, rest) = text.trim().split_once("://")?;
    if !matches!(scheme, "http" | "https" | "unix" | "unixs") {
        return None;
    }
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if host.is_empty() && path.is_empty() {
        return None;
    }
    Some(Url { scheme: scheme.to_owned(), host: host.to_owned(), path: path.to_owned() })
}
