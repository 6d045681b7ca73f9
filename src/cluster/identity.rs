//! How member and cluster ids are computed (etcd v3.5.17 `api/membership/{member,cluster}.go`).

use crate::base::ids::{ClusterId, MemberId};
use sha1::{Digest, Sha1};

fn leading_u64(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// Id of a member of the initial cluster: its sorted peer URLs and the cluster token, hashed.
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut sorted: Vec<&String> = peer_urls.iter().collect();
    sorted.sort();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    MemberId(leading_u64(hash))
}

/// Id of a member that joins later: no token, but the time at which it was asked for, in seconds
/// since 1970, so that the same URLs can come back as another member.
pub fn later_member_id(peer_urls: &[String], unix_seconds: u64) -> MemberId {
    member_id(peer_urls, &unix_seconds.to_string())
}

/// Id of a cluster: its initial member ids in ascending order, hashed.
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut sorted = members.to_vec();
    sorted.sort();
    let mut hash = Sha1::new();
    for id in sorted {
        hash.update(id.0.to_be_bytes());
    }
    ClusterId(leading_u64(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that a real etcd 3.5.17 gave itself.
    #[test]
    fn ids_are_those_of_etcd() {
        let member = member_id(&["https://localhost:20001".to_owned()], "new");
        assert_eq!(member.to_string(), "a8f3458387986d");
        assert_eq!(cluster_id(&[member]).to_string(), "34c21a2d427db393");
    }
}
