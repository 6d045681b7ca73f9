//! When a change of members is refused before it is proposed, because it could leave the cluster
//! without a quorum: `--strict-reconfig-check` (etcd v3.5.17 `etcdserver/server.go` mayAddMember,
//! mayRemoveMember, mayPromoteMember and `membership/cluster.go` IsReadyTo…).

use super::members::{Member, Members};
use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use std::time::Duration;

/// For how long a member must have been reachable to count as connected (etcd v3.5.17
/// HealthInterval).
pub const CONNECTED_FOR: Duration = Duration::from_secs(5);

/// How this member sees another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It cannot be reached.
    Down,
    /// Reachable, for less than [`CONNECTED_FOR`].
    New,
    /// Reachable for longer, or this member itself.
    Connected,
}

fn voters(members: &Members) -> impl Iterator<Item = &Member> {
    members.iter().filter(|member| !member.is_learner)
}

/// Refuses if those of `voters` that have started are no quorum, `joining` being one more of which
/// `started` says whether it has.
fn enough_started<'a>(
    voters: impl Iterator<Item = &'a Member>,
    joining: usize,
    started: usize,
) -> Result<()> {
    let (mut count, mut running) = (joining, started);
    for member in voters {
        count += 1;
        running += usize::from(member.is_started());
    }
    if running < count / 2 + 1 { Err(Error::MemberNotEnoughStarted) } else { Ok(()) }
}

/// Whether a member may be added; as a voter it counts for the quorum before it has started.
pub fn may_add(
    members: &Members,
    as_learner: bool,
    reach: impl Fn(MemberId) -> Reach,
) -> Result<()> {
    let started = voters(members).filter(|member| member.is_started()).count();
    // A single member must be able to grow, although the second is not there yet.
    let alone = started == 1 && voters(members).count() == 1;
    if !as_learner && !alone {
        enough_started(voters(members), 1, 0)?;
    }
    let connected = voters(members).all(|member| reach(MemberId(member.id)) == Reach::Connected);
    if connected { Ok(()) } else { Err(Error::Unhealthy) }
}

/// Whether the member may be removed.
pub fn may_remove(
    members: &Members,
    id: MemberId,
    reach: impl Fn(MemberId) -> Reach,
) -> Result<()> {
    if members.get(id).is_some_and(|member| member.is_learner) {
        return Ok(());
    }
    enough_started(voters(members).filter(|member| member.id != id.0), 0, 0)?;
    // Nobody relies on one that is down.
    if reach(id) == Reach::Down {
        return Ok(());
    }
    let count = voters(members).count();
    let connected = voters(members).filter(|m| reach(MemberId(m.id)) == Reach::Connected).count();
    // What is left of the connected ones must be a quorum of what is left.
    if connected < 2 + count.saturating_sub(1) / 2 { Err(Error::Unhealthy) } else { Ok(()) }
}

/// Whether a learner may become a voter, which counts as started.
pub fn may_promote(members: &Members) -> Result<()> {
    enough_started(voters(members), 1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::members::{add_change, publish_request};

    /// `voters` voters with ids from 1 on; bit n−1 of `started` says that n has started.
    fn table(count: u64, started: u32) -> Members {
        let mut members = Members::default();
        for id in 1..=count {
            let peer_urls = vec![format!("http://{id}:1")];
            members.apply(&add_change(&Member { id, peer_urls, ..Member::default() })).unwrap();
            if started >> (id - 1) & 1 == 1 {
                members.apply_v2(&publish_request(MemberId(id), "m", &[]));
            }
        }
        members
    }

    /// Whether some majority of the voters `1..=count` lies within `able`: tried out, not counted.
    fn some_majority(count: u64, able: u32) -> bool {
        let majority = |set: &u32| u64::from(set.count_ones()) > count / 2;
        (0..1u32 << count).filter(majority).any(|set| set & able == set)
    }

    /// The voters but `id`, closed up: a set over the `count` voters as one over the others.
    fn without(set: u32, id: u64) -> u32 {
        let low = (1u32 << (id - 1)) - 1;
        (set & low) | ((set >> 1) & !low)
    }

    #[test]
    fn rules_agree_with_trying_out_every_majority() {
        for count in 1..=6u64 {
            for started in 0..1u32 << count {
                let members = table(count, started);
                let all = |_: MemberId| Reach::Connected;
                // The new voter has the highest id and has not started.
                let alone = count == 1 && started == 1;
                let safe = alone || some_majority(count + 1, started);
                assert_eq!(may_add(&members, false, all).is_ok(), safe, "{count} {started:b}");
                assert!(may_add(&members, true, all).is_ok());
                let grown = started | 1 << count;
                let safe = some_majority(count + 1, grown);
                assert_eq!(may_promote(&members).is_ok(), safe, "{count} {started:b}");
                for id in 1..=count {
                    let left = without(started, id);
                    let safe = count > 1 && some_majority(count - 1, left);
                    let down = |_: MemberId| Reach::Down;
                    let answer = may_remove(&members, MemberId(id), down);
                    assert_eq!(answer.is_ok(), safe, "{count} {started:b} without {id}");
                }
            }
        }
    }

    #[test]
    fn whom_this_member_cannot_reach_counts_against_a_change() {
        for count in 2..=6u64 {
            let all_started = (1u32 << count) - 1;
            let members = table(count, all_started);
            for connected in 0..1u32 << count {
                // Member 1 is this one.
                let connected = connected | 1;
                let reach = |id: MemberId| match connected >> (id.0 - 1) & 1 {
                    1 => Reach::Connected,
                    _ => Reach::New,
                };
                let safe = connected == all_started;
                for learner in [false, true] {
                    let answer = may_add(&members, learner, reach);
                    assert_eq!(answer, if safe { Ok(()) } else { Err(Error::Unhealthy) });
                }
                for id in 1..=count {
                    // Whoever goes is counted as one of the connected (etcd does, too).
                    let others = connected.count_ones() - 1;
                    let safe = some_majority(count - 1, (1 << others) - 1);
                    let answer = may_remove(&members, MemberId(id), reach);
                    assert_eq!(answer.is_ok(), safe, "{count} {connected:b} without {id}");
                }
            }
        }
    }

    #[test]
    fn a_learner_goes_whenever_it_is_asked() {
        let mut members = table(2, 0);
        let peer_urls = vec!["http://9:1".to_owned()];
        let learner = Member { id: 9, is_learner: true, peer_urls, ..Member::default() };
        members.apply(&add_change(&learner)).unwrap();
        assert_eq!(may_remove(&members, MemberId(9), |_| Reach::New), Ok(()));
        assert_eq!(
            may_remove(&members, MemberId(1), |_| Reach::Connected),
            Err(Error::MemberNotEnoughStarted)
        );
    }
}
