//! The cluster's version: which one follows from the members', which one may follow another, and
//! what a downgrade asks for (etcd v3.5.17 `etcdserver/cluster_util.go`,
//! `api/membership/{cluster,downgrade}.go`).

use crate::base::error::{Error, Result};
use std::fmt;

/// The target of a downgrade is another version.
const NOT_ALLOWED: &str =
    "invalid downgrade; server version is not allowed to join when downgrade is enabled";

/// A version as clusters have it: without the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 3.
    pub major: u64,
    /// 5.
    pub minor: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

impl Version {
    /// Of `3.5.17` or `3.5.0-rc.1+build`; `None` if the text has not three numbers.
    pub fn parse(text: &str) -> Option<Version> {
        let core = text.split_once('+').map_or(text, |(core, _)| core);
        let core = core.split_once('-').map_or(core, |(core, _)| core);
        let mut parts = core.splitn(3, '.').map(str::parse::<u64>);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        parts.next()?.ok()?;
        Some(Version { major, minor })
    }

    /// The only one that a cluster of this version can go down to.
    fn below(self) -> Option<Version> {
        Some(Version { major: self.major, minor: self.minor.checked_sub(1)? })
    }

    /// Whether a cluster of this version takes `other` for its new one: any later minor, or the
    /// one below (etcd v3.5.17 IsValidVersionChange).
    pub fn may_become(self, other: Version) -> bool {
        self.below() == Some(other) || (self.major == other.major && self < other)
    }
}

/// What a downgrade to `target` of a cluster of version `cluster` comes to, while one to
/// `under_way` may be going on. The target may be written without the patch.
pub fn downgrade_target(
    target: &str,
    cluster: Option<&str>,
    under_way: Option<&str>,
) -> Result<Version> {
    let target = wanted(target)?;
    let cluster = cluster.and_then(Version::parse).ok_or(Error::ClusterVersionUnavailable)?;
    if cluster.below() != Some(target) {
        return Err(Error::InvalidDowngradeTargetVersion);
    }
    if under_way.is_some() {
        return Err(Error::DowngradeInProcess);
    }
    Ok(target)
}

/// The version that a caller writes; looked at before anything else.
pub fn wanted(target: &str) -> Result<Version> {
    let parsed = Version::parse(target).or_else(|| Version::parse(&format!("{target}.0")));
    parsed.ok_or(Error::WrongDowngradeVersionFormat)
}

/// Whether a member of version `own` may start in a cluster that has decided on `cluster` and is
/// under way down to `downgrade`; why not.
pub fn may_start(
    own: Version,
    cluster: Option<&str>,
    downgrade: Option<&str>,
) -> std::result::Result<(), &'static str> {
    if let Some(target) = downgrade {
        return match Version::parse(target) == Some(own) {
            true => Ok(()),
            false => Err(NOT_ALLOWED),
        };
    }
    match cluster.and_then(Version::parse) {
        Some(decided) if own < decided => {
            Err("invalid downgrade; server version is lower than determined cluster version")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_are_read_as_semver() {
        assert_eq!(version("3.5.17").to_string(), "3.5.0");
        assert_eq!(version("3.6.0-rc.1+x-y"), Version { major: 3, minor: 6 });
        for wrong in ["", "3", "3.5", "3.5.", "a.b.c", "3.5.x", "3.5.1.1", "not_decided", "-1.2.3"]
        {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_cluster_goes_up_or_one_down() {
        let may = |from: &str, to: &str| version(from).may_become(version(to));
        assert!(may("3.0.0", "3.5.0") && may("3.5.0", "3.4.0") && may("3.5.0", "3.6.0"));
        assert!(!may("3.5.0", "3.5.0") && !may("3.5.0", "3.3.0") && !may("3.5.0", "4.0.0"));
    }

    #[test]
    fn only_the_version_below_is_a_target() {
        let target =
            |target: &str, cluster, under_way| downgrade_target(target, cluster, under_way);
        let decided = Some("3.5.0");
        assert_eq!(target("3.4.0", decided, None), Ok(version("3.4.0")));
        assert_eq!(target("3.4", decided, None), Ok(version("3.4.0")));
        assert_eq!(target("3.4.9", decided, None), Ok(version("3.4.0")));
        assert_eq!(target("x", None, None), Err(Error::WrongDowngradeVersionFormat));
        assert_eq!(target("3", decided, None), Err(Error::WrongDowngradeVersionFormat));
        assert_eq!(target("3.4", None, None), Err(Error::ClusterVersionUnavailable));
        for wrong in ["3.5", "3.6", "3.3", "2.4"] {
            let refused = Err(Error::InvalidDowngradeTargetVersion);
            assert_eq!(target(wrong, decided, Some("3.4.0")), refused);
        }
        assert_eq!(target("3.4", decided, Some("3.4.0")), Err(Error::DowngradeInProcess));
    }

    #[test]
    fn a_member_starts_where_its_version_fits() {
        let may = |cluster, downgrade| may_start(version("3.5.17"), cluster, downgrade);
        assert!(may(None, None).is_ok() && may(Some("3.4.0"), None).is_ok());
        assert!(may(Some("3.5.0"), None).is_ok() && may(Some("3.6.0"), Some("3.5.0")).is_ok());
        assert!(may(Some("3.6.0"), None).unwrap_err().contains("lower than determined"));
        assert!(may(Some("3.5.0"), Some("3.4.0")).unwrap_err().contains("not allowed to join"));
    }
}
