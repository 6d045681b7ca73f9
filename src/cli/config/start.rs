//! What etcd finds wrong only when it starts: at its listeners, and at a first start without data.

use super::{ClusterState, Config, Refusal, V2Deprecation};
use crate::base::url::{self, Url};
use std::collections::BTreeSet;

impl Config {
    /// What etcd finds only when it opens listeners.
    pub(super) fn check_start(&self) -> Result<(), Refusal> {
        let fail = |text: String| Err(Refusal::Start(text));
        let no_client_tls = self.client_tls.is_empty() && !self.client_tls.auto_tls;
        let clients = || self.listen_client_urls.iter().chain(&self.listen_client_http_urls);
        if let Some(url) = clients().find(|u| u.is_tls() && no_client_tls) {
            return fail(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} \
                 with HTTPS scheme"
            ));
        }
        let taken = |url: &&Url| {
            let same = |other: &&Url| other.host == url.host && other.path == url.path;
            self.listen_client_urls.iter().any(|other| same(&other))
        };
        if let Some(url) = self.listen_client_http_urls.iter().find(taken) {
            return fail(format!(
                "cannot bind both --client-listen-urls and --client-listen-http-urls on the same \
                 url {url}"
            ));
        }
        if self.enable_v2 && self.v2_deprecation != V2Deprecation::NotYet {
            return fail(format!(
                "--enable-v2 and --v2-deprecation={} are mutually exclusive",
                self.v2_deprecation.as_str()
            ));
        }
        if self.listen_metrics_urls.iter().any(|u| u.is_tls() && no_client_tls) {
            return fail(
                "client TLS key/cert (--cert-file, --key-file) must be provided for \
             metrics secure url"
                    .into(),
            );
        }
        Ok(())
    }

    /// What etcd checks when the member has no data yet. `resolve_equal` says why two lists of URLs
    /// that differ as text do not mean the same addresses either.
    pub fn check_bootstrap(
        &self,
        resolve_equal: impl Fn(&[Url], &[Url]) -> Result<(), String>,
    ) -> Result<(), String> {
        let cluster = parse_cluster(&self.initial_cluster_text)
            .map_err(|why| format!("error setting up initial cluster: {why}"))?;
        let Some((_, own)) = cluster.iter().find(|(name, _)| *name == self.name) else {
            return Err(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            ));
        };
        let advertised = &self.initial_advertise_peer_urls;
        if self.initial_cluster_state == ClusterState::New
            && own != advertised
            && let Err(why) = resolve_equal(advertised, own)
        {
            let missing = |from: &[Url], other: &[Url], prefix: &str| {
                let absent = from.iter().filter(|url| !other.contains(url));
                let texts: Vec<String> = absent.map(|url| format!("{prefix}{url}")).collect();
                texts.join(",")
            };
            let mine = format!("{}=", self.name);
            let absent = missing(own, advertised, &mine);
            if !absent.is_empty() {
                return Err(format!(
                    "--initial-cluster has {absent} but missing from \
                     --initial-advertise-peer-urls={} ({why})",
                    url::join(advertised)
                ));
            }
            let absent = missing(advertised, own, "");
            return Err(format!(
                "--initial-advertise-peer-urls has {absent} but missing from --initial-cluster={}",
                missing(advertised, &[], &mine)
            ));
        }
        let mut seen = BTreeSet::new();
        if !cluster.iter().flat_map(|(_, urls)| urls).all(|url| seen.insert(url)) {
            return Err(format!("initial cluster {} has duplicate url", self.initial_cluster_text));
        }
        Ok(())
    }
}

/// Reads `name=url,...`; a repeated name collects its URLs.
pub fn parse_cluster(text: &str) -> Result<Vec<(String, Vec<Url>)>, String> {
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let parsed = Url::parse(value)?;
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(parsed),
            None => members.push((name.into(), vec![parsed])),
        }
    }
    members.iter_mut().for_each(|(_, urls)| url::sort(urls));
    Ok(members)
}
