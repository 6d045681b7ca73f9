//! Whether members disagree about the store: what follows from the hashes that they told
//! (etcd v3.5.17 `server/etcdserver/corrupt.go`). The asking is the actor's.

use crate::base::ids::MemberId;
pub use crate::mvcc::shared::KvHash;

/// A peer's answer: its hash up to the revision that it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub hash: u32,
    pub compact_revision: i64,
    /// Its newest revision.
    pub revision: i64,
}

/// What a start finds about one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    Same,
    /// The stores differ: this member must not serve.
    Differs,
    /// One has compacted further; nothing follows from different hashes.
    OtherCompaction,
}

/// Compares this member's hash with a peer's up to the same revision.
pub fn at_start(own: KvHash, told: Told) -> AtStart {
    if own.hash == told.hash {
        AtStart::Same
    } else if own.compact_revision == told.compact_revision {
        AtStart::Differs
    } else {
        AtStart::OtherCompaction
    }
}

/// What a leader holds against a member. It does not tell who is right, so that the alarm names
/// nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The leader's own hash changed and nothing else did.
    OwnChanged,
    /// A follower's revision is above the leader's.
    RevisionAhead(MemberId, Told),
    /// A follower has compacted what the leader has not.
    CompactedAhead(MemberId, Told),
    /// Different hashes, although the same was compacted.
    HashDiffers(MemberId, Told),
}

/// A leader's look at everyone: its hash before it asked, the answers, its hash after it made sure
/// that it still leads and has applied all that was committed.
pub fn periodic(before: KvHash, told: &[(MemberId, Told)], after: KvHash) -> Vec<Finding> {
    let mut findings = Vec::new();
    let unmoved =
        before.revision == after.revision && before.compact_revision == after.compact_revision;
    if unmoved && before.hash != after.hash {
        findings.push(Finding::OwnChanged);
    }
    for &(id, told) in told {
        if told.revision > after.revision {
            findings.push(Finding::RevisionAhead(id, told));
        }
        if told.compact_revision > after.compact_revision {
            findings.push(Finding::CompactedAhead(id, told));
        }
        if told.compact_revision == before.compact_revision && told.hash != before.hash {
            findings.push(Finding::HashDiffers(id, told));
        }
    }
    findings
}

/// The hashes of compactions that are still to be compared, the newest first.
pub fn unchecked(mut hashes: Vec<KvHash>, checked: i64) -> Vec<KvHash> {
    hashes.retain(|hash| hash.revision > checked);
    hashes.sort_by_key(|hash| std::cmp::Reverse(hash.revision));
    hashes
}

/// What the answers say about one compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Who agrees.
    pub same: Vec<MemberId>,
    /// The first who does not; nobody after it was looked at.
    pub differs: Option<(MemberId, Told)>,
}

/// Compares the hash that a compaction left here with those it left elsewhere. A peer that did not
/// answer, or has compacted something else in between, counts for neither side.
pub fn compacted(own: KvHash, told: &[(MemberId, Option<Told>)]) -> Compared {
    let mut compared = Compared { same: Vec::new(), differs: None };
    for &(id, told) in told {
        match told.filter(|told| told.compact_revision == own.compact_revision) {
            None => {}
            Some(told) if told.hash == own.hash => compared.same.push(id),
            Some(told) => {
                compared.differs = Some((id, told));
                break;
            }
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store: the rows' worth, its newest revision, how far it is compacted.
    #[derive(Clone, Copy, Debug)]
    struct Member {
        rows: u32,
        revision: i64,
        compacted: i64,
    }

    const REVISIONS: std::ops::RangeInclusive<i64> = 1..=4;
    const COMPACTIONS: [i64; 4] = [-1, 1, 2, 3];

    impl Member {
        /// Every state in which a member may be.
        fn all(rows: u32) -> Vec<Member> {
            let states = REVISIONS.flat_map(|revision| COMPACTIONS.map(|c| (revision, c)));
            let possible = states.filter(|(revision, compacted)| compacted <= revision);
            possible.map(|(revision, compacted)| Member { rows, revision, compacted }).collect()
        }

        /// Rows, revision and compaction all change the hash.
        fn hash(&self, upto: i64) -> Option<KvHash> {
            let known = upto >= self.compacted && upto <= self.revision;
            let hash = self.rows * 1000 + upto as u32 * 10 + (self.compacted + 1) as u32;
            let compact_revision = self.compacted;
            known.then_some(KvHash { hash, revision: upto, compact_revision })
        }

        fn told(&self, upto: i64) -> Option<Told> {
            let KvHash { hash, compact_revision, .. } = self.hash(upto)?;
            Some(Told { hash, compact_revision, revision: self.revision })
        }

        /// Whether this may be the other at a later time.
        fn is_later(&self, than: &Member) -> bool {
            self.revision >= than.revision && self.compacted >= than.compacted
        }
    }

    #[test]
    fn members_with_the_same_rows_are_never_blamed() {
        let (mut looks, peer) = (0, MemberId(2));
        for leader in Member::all(7) {
            for after in Member::all(7).into_iter().filter(|after| after.is_later(&leader)) {
                // What the leader has applied by then covers what any follower has.
                for follower in Member::all(7).into_iter().filter(|f| after.is_later(f)) {
                    let before = leader.hash(leader.revision).unwrap();
                    let after = after.hash(after.revision).unwrap();
                    let Some(told) = follower.told(leader.revision) else { continue };
                    assert_eq!(periodic(before, &[(peer, told)], after), []);
                    assert_ne!(at_start(before, told), AtStart::Differs);
                    assert_eq!(compacted(before, &[(peer, Some(told))]).differs, None);
                    looks += 1;
                }
            }
        }
        assert!(looks > 100, "{looks}");
    }

    #[test]
    fn members_with_other_rows_are_found_where_they_can_be_compared() {
        let (mut looks, peer) = (0, MemberId(2));
        for leader in Member::all(7) {
            let own = leader.hash(leader.revision).unwrap();
            for follower in Member::all(8) {
                let Some(told) = follower.told(leader.revision) else { continue };
                let comparable = leader.compacted == follower.compacted;
                let found = periodic(own, &[(peer, told)], own);
                let differs = found.contains(&Finding::HashDiffers(peer, told));
                assert_eq!(differs, comparable, "{leader:?} {follower:?}");
                let ahead = found.contains(&Finding::RevisionAhead(peer, told));
                assert_eq!(ahead, follower.revision > leader.revision);
                let further = found.contains(&Finding::CompactedAhead(peer, told));
                assert_eq!(further, follower.compacted > leader.compacted);
                assert_eq!(at_start(own, told) == AtStart::Differs, comparable);
                let blamed = compacted(own, &[(peer, Some(told))]).differs;
                assert_eq!(blamed.is_some(), comparable);
                looks += 1;
            }
        }
        assert!(looks > 50, "{looks}");
        let own = Member { rows: 7, revision: 3, compacted: 1 };
        let changed = Member { rows: 8, ..own };
        let hash = |member: Member| member.hash(3).unwrap();
        assert_eq!(periodic(hash(own), &[], hash(changed)), [Finding::OwnChanged]);
        let moved = Member { compacted: 2, ..changed };
        assert_eq!(periodic(hash(own), &[], hash(moved)), []);
    }

    #[test]
    fn compactions_are_compared_from_the_newest_on() {
        let hash = |revision| KvHash { hash: revision as u32, revision, compact_revision: 1 };
        let hashes = vec![hash(3), hash(9), hash(5)];
        assert_eq!(unchecked(hashes.clone(), 0), [hash(9), hash(5), hash(3)]);
        assert_eq!(unchecked(hashes.clone(), 5), [hash(9)]);
        assert_eq!(unchecked(hashes, 9), []);
        let told = |hash, compact_revision| Some(Told { hash, compact_revision, revision: 10 });
        let peers = [
            (MemberId(2), told(9, 1)),
            (MemberId(3), None),
            (MemberId(4), told(8, 2)),
            (MemberId(5), told(8, 1)),
            (MemberId(6), told(9, 1)),
        ];
        let compared = compacted(hash(9), &peers);
        assert_eq!(compared.same, [MemberId(2)]);
        assert_eq!(compared.differs.map(|(id, _)| id), Some(MemberId(5)));
        let compared = compacted(hash(9), &peers[..3]);
        assert_eq!((compared.same.len(), compared.differs), (1, None));
    }
}
