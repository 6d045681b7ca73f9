//! A member without data asks the members that are there: to join them, or to make sure that it
//! has not been one of them before (etcd v3.5.17 `etcdserver/cluster_util.go` and
//! `membership/cluster.go` ValidateClusterAndAssignIDs).

use crate::base::clock::{Clock, SystemClock};
use crate::base::ids::{ClusterId, MemberId};
use crate::base::url::Url;
use crate::cli::config::Config;
use crate::cluster::members::Member;
use crate::cluster::version::Version;
use crate::node::resolve;
use crate::transport::rafthttp;
use std::time::Duration;

/// How long one member may take to name the members to one that wants to join.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one member may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each member may take to say whether this one has been there before (etcd v3.5.17
/// `config.go` BootstrapTimeoutEffective).
const BOOTSTRAPPED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long names of all members may take to be known.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Cluster versions that a member of this version can join, both included.
const CLUSTER_VERSIONS: (Version, Version) =
    (Version { major: 3, minor: 0 }, Version { major: 3, minor: 5 });
/// The only one if the cluster is under way to an older version.
const CLUSTER_VERSION_ABOVE: Version = Version { major: 3, minor: 6 };

/// The questions, asked over peer ports; they block.
pub trait Ask {
    /// The cluster's id and members, from the first URL that answers within `wait`.
    fn members(
        &self,
        urls: &[Url],
        wait: Duration,
    ) -> Result<(ClusterId, Vec<rafthttp::Member>), String>;
    /// A member's server and cluster version.
    fn version(&self, urls: &[Url], wait: Duration) -> Result<(String, String), String>;
    /// Whether the cluster is under way to an older version.
    fn downgrade_enabled(&self, urls: &[Url], wait: Duration) -> Result<bool, String>;
}

/// What a member that joins is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub own: MemberId,
    pub cluster: ClusterId,
    /// All members, this one included.
    pub members: Vec<Member>,
}

/// Peer URLs of everyone in the flags but this member.
fn others(config: &Config) -> Vec<Url> {
    let others = config.initial_cluster.iter().filter(|(name, _)| *name != config.name);
    let mut urls: Vec<Url> = others.flat_map(|(_, urls)| urls.iter().cloned()).collect();
    crate::base::url::sort(&mut urls);
    urls
}

fn parse(texts: &[String]) -> Vec<Url> {
    texts.iter().filter_map(|text| Url::parse(text).ok()).collect()
}

/// The cluster that runs at the other URLs of the flags, and who of it this member is.
pub fn existing(config: &Config, ask: &dyn Ask) -> Result<Found, String> {
    let (cluster, members) = ask
        .members(&others(config), MEMBERS_TIMEOUT)
        .map_err(|error| format!("cannot fetch cluster info from peer urls: {error}"))?;
    let until = SystemClock.now() + RESOLVE_TIMEOUT;
    let equal = |a: &[Url], b: &[Url]| {
        resolve::equal(a, b, until.saturating_duration_since(SystemClock.now()))
    };
    let own = own_id(&config.initial_cluster, &config.name, &members, equal)
        .map_err(|why| format!("error validating peerURLs of cluster {cluster}: {why}"))?;
    let others: Vec<&rafthttp::Member> = members.iter().filter(|other| other.id != own).collect();
    if !compatible(&others, ask) {
        return Err("incompatible with current running cluster".to_owned());
    }
    let members = members
        .into_iter()
        .map(|member| Member {
            id: member.id.0,
            peer_urls: member.peer_urls,
            is_learner: member.is_learner,
            name: member.name,
            client_urls: member.client_urls,
        })
        .collect();
    Ok(Found { own, cluster, members })
}

/// Matches the flags' members with those that are there by their URLs; the id of the one `name`.
/// `equal` says why two lists of URLs do not mean the same addresses.
fn own_id(
    flags: &[(String, Vec<Url>)],
    name: &str,
    existing: &[rafthttp::Member],
    equal: impl Fn(&[Url], &[Url]) -> Result<(), String>,
) -> Result<MemberId, String> {
    if existing.len() != flags.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut own = None;
    for member in existing {
        let mut urls = parse(&member.peer_urls);
        crate::base::url::sort(&mut urls);
        let mut last = "none".to_owned();
        let same_text = flags.iter().find(|(_, flag)| *flag == urls);
        let matched = same_text.or_else(|| {
            flags.iter().find(|(_, flag)| match equal(&urls, flag) {
                Ok(()) => true,
                Err(why) => {
                    last = why;
                    false
                }
            })
        });
        let Some((matched, _)) = matched else {
            return Err(format!(
                "PeerURLs: no match found for existing member ({}, {:?}), last resolver error \
                 ({last})",
                member.id, member.peer_urls
            ));
        };
        if matched == name {
            own = Some(member.id);
        }
    }
    own.ok_or_else(|| format!("member {name:?} is not among the existing members"))
}

/// At least one member is of a version that this one can join, and none is not.
///
/// What counts is the version its cluster has decided on. A cluster of one that has just been told
/// of this member may not have decided: it cannot before this member votes. There its server's own
/// version counts, because a cluster never decides on a version above its members'.
fn compatible(others: &[&rafthttp::Member], ask: &dyn Ask) -> bool {
    let (lowest, highest) = match downgrade_enabled(others, ask) {
        true => (CLUSTER_VERSION_ABOVE, CLUSTER_VERSION_ABOVE),
        false => CLUSTER_VERSIONS,
    };
    let mut fits = false;
    for member in others {
        let (server, cluster) = match ask.version(&parse(&member.peer_urls), VERSION_TIMEOUT) {
            Ok(versions) => versions,
            Err(error) => {
                tracing::warn!("remote-member-id" = %member.id, error, "failed to get version");
                continue;
            }
        };
        let Some(version) = Version::parse(&cluster).or_else(|| Version::parse(&server)) else {
            continue;
        };
        if version < lowest || version > highest {
            tracing::warn!(
                "remote-member-id" = %member.id,
                "remote-member-server-version" = server,
                "remote-member-cluster-version" = cluster,
                "cluster version of remote member is not compatible"
            );
            return false;
        }
        fits = true;
    }
    fits
}

/// By the first member that answers, which asks a quorum.
fn downgrade_enabled(others: &[&rafthttp::Member], ask: &dyn Ask) -> bool {
    others
        .iter()
        .find_map(|member| {
            let answer = ask.downgrade_enabled(&parse(&member.peer_urls), VERSION_TIMEOUT);
            let failed = |error: &String| {
                tracing::warn!(
                    "remote-member-id" = %member.id,
                    error,
                    "failed to get downgrade enabled status"
                );
            };
            answer.inspect_err(failed).ok()
        })
        .unwrap_or(false)
}

/// Refuses to start as a member of a new cluster if that cluster runs and `own` has been in it:
/// its log is lost, and beginning anew would forget what it has acknowledged.
pub fn not_bootstrapped(config: &Config, own: MemberId, ask: &dyn Ask) -> Result<(), String> {
    let urls = others(config);
    if urls.is_empty() {
        return Ok(());
    }
    let Ok((_, members)) = ask.members(&urls, BOOTSTRAPPED_TIMEOUT) else { return Ok(()) };
    let started = |member: &rafthttp::Member| member.id == own && !member.client_urls.is_empty();
    if members.iter().any(started) {
        return Err(format!("member {own} has already been bootstrapped"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(list: &[(&str, &str)]) -> Vec<(String, Vec<Url>)> {
        let urls = |text: &str| Url::parse_list(text).unwrap();
        list.iter().map(|(name, text)| ((*name).to_owned(), urls(text))).collect()
    }

    fn there(id: u64, urls: &[&str]) -> rafthttp::Member {
        rafthttp::Member {
            id: MemberId(id),
            peer_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            name: String::new(),
            client_urls: Vec::new(),
            is_learner: false,
        }
    }

    #[test]
    fn members_are_matched_by_their_urls() {
        let flags = flags(&[("a", "http://a:1"), ("b", "http://b:1,http://b:2")]);
        let never = |_: &[Url], _: &[Url]| Err("no such host".to_owned());
        let both = [there(7, &["http://b:2", "http://b:1"]), there(9, &["http://a:1"])];
        assert_eq!(own_id(&flags, "b", &both, never), Ok(MemberId(7)));
        assert_eq!(own_id(&flags, "a", &both, never), Ok(MemberId(9)));
        let one = [there(7, &["http://a:1"])];
        assert_eq!(own_id(&flags, "a", &one, never), Err("member count is unequal".to_owned()));
        let other = [there(7, &["http://c:1"]), there(9, &["http://a:1"])];
        assert_eq!(
            own_id(&flags, "a", &other, never),
            Err("PeerURLs: no match found for existing member (7, [\"http://c:1\"]), last \
                 resolver error (no such host)"
                .to_owned())
        );
        let by_address = |a: &[Url], b: &[Url]| {
            if a[0].host == "c:1" && b[0].host == "b:1" { Ok(()) } else { never(a, b) }
        };
        assert_eq!(own_id(&flags, "b", &other, by_address), Ok(MemberId(7)));
    }

    struct Versions(Vec<Result<&'static str, ()>>, Result<bool, ()>);

    impl Ask for Versions {
        fn members(
            &self,
            _: &[Url],
            _: Duration,
        ) -> Result<(ClusterId, Vec<rafthttp::Member>), String> {
            let mut started = there(7, &["http://a:1"]);
            started.client_urls = vec!["http://a:2".to_owned()];
            Ok((ClusterId(1), vec![started, there(9, &["http://b:1"])]))
        }

        /// By the last digit of the URL.
        fn version(&self, urls: &[Url], _: Duration) -> Result<(String, String), String> {
            let at: usize = urls[0].port().parse().unwrap();
            let cluster = self.0[at].map_err(|()| "down".to_owned())?;
            let server = cluster.split_once(" of ").map_or("3.5.17", |(_, server)| server);
            Ok((server.to_owned(), cluster.to_owned()))
        }

        fn downgrade_enabled(&self, _: &[Url], _: Duration) -> Result<bool, String> {
            self.1.map_err(|()| "down".to_owned())
        }
    }

    #[test]
    fn a_cluster_of_another_version_is_not_joined() {
        let cases: [(&[Result<&'static str, ()>], bool); 8] = [
            (&[Ok("3.5.0")], true),
            (&[Ok("3.4.0"), Err(())], true),
            (&[Err(()), Err(())], false),
            (&[Ok("not_decided"), Err(())], true),
            (&[Ok("not_decided"), Ok("3.5.0")], true),
            (&[Ok("not_decided of 3.6.1")], false),
            (&[Ok("3.5.0"), Ok("3.6.0")], false),
            (&[Ok("2.3.0"), Ok("3.5.0")], false),
        ];
        for (versions, want) in cases {
            let members: Vec<rafthttp::Member> = (0..versions.len())
                .map(|at| there(at as u64 + 1, &[&format!("http://a:{at}")]))
                .collect();
            let members: Vec<&rafthttp::Member> = members.iter().collect();
            let ask = Versions(versions.to_vec(), Ok(false));
            assert_eq!(compatible(&members, &ask), want, "{versions:?}");
            let ask = Versions(versions.to_vec(), Err(()));
            assert_eq!(compatible(&members, &ask), want, "{versions:?}");
            // Under way down from 3.6, to this member's version.
            let ask = Versions(versions.to_vec(), Ok(true));
            let is_above = |version: &Result<&str, ()>| version.is_ok_and(|v| v.contains("3.6"));
            assert_eq!(compatible(&members, &ask), versions.iter().all(is_above), "{versions:?}");
        }
    }

    #[test]
    fn a_member_that_was_there_does_not_begin_anew() {
        use crate::cli::{self, Command};
        let words = ["rusd", "--name=a", "--initial-cluster=a=http://a:1,b=http://b:1"];
        let advertised = "--initial-advertise-peer-urls=http://a:1";
        let words: Vec<String> = words.into_iter().chain([advertised]).map(str::to_owned).collect();
        let Command::Serve(config) = cli::parse(&words, &[]) else { panic!("serves") };
        let ask = Versions(Vec::new(), Ok(false));
        let check = |id| not_bootstrapped(&config, MemberId(id), &ask);
        assert_eq!(check(7), Err("member 7 has already been bootstrapped".to_owned()));
        assert_eq!(check(9), Ok(()), "it has not started");
        assert_eq!(check(8), Ok(()), "another cluster");
    }
}
