//! The size that the store tells: equal on all members, near etcd's, and the quota's measure.

use super::model::Random;
use super::*;

fn sizes(w: &World) -> (u64, u64) {
    let reader = w.machine.reader();
    (reader.size_bytes(), reader.size_in_use_bytes())
}

fn random_entry(random: &mut Random, revision: i64) -> rpc::InternalRaftRequest {
    let key = format!("k{}", random.below(30));
    let id = 1 + random.below(20) as i64;
    let value = "v".repeat(random.below(3000) as usize);
    let mut request = rpc::InternalRaftRequest::default();
    match random.below(20) {
        0..12 => request.put = Some(put(&key, &value)),
        12..15 => request.delete_range = Some(del(&key, "k9")),
        15 => {
            let ops = [("a", 10), ("b", 900)]
                .map(|(key, len)| op(Request::RequestPut(put(key, &"x".repeat(len)))));
            request.txn = Some(rpc::TxnRequest { success: ops.into(), ..Default::default() });
        }
        16 | 17 => request.lease_grant = Some(rpc::LeaseGrantRequest { id, ttl: 60 }),
        18 => request.lease_revoke = Some(rpc::LeaseRevokeRequest { id }),
        _ => {
            let revision = revision - random.below(20) as i64;
            request.compaction = Some(rpc::CompactionRequest { revision, physical: false });
        }
    }
    request
}

/// One member removes compacted rows at once and restarts often, the other does neither.
#[test]
fn members_agree_on_the_size_whatever_they_have_removed_yet() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let (mut quick, mut slow) = (World::new(), World::new());
        let mut largest = 0;
        for step in 0..400 {
            let request = random_entry(&mut random, quick.machine.reader().revision());
            assert_eq!(quick.apply(request.clone()), slow.apply(request));
            if random.below(4) == 0 {
                quick.compact_all(7);
            }
            if random.below(15) == 0 {
                quick.reopen();
            }
            assert_eq!(sizes(&quick), sizes(&slow), "seed {seed} step {step}");
            let (on_disk, in_use) = sizes(&quick);
            assert!(on_disk > in_use && on_disk >= largest);
            largest = on_disk;
        }
        slow.reopen();
        assert_eq!(sizes(&quick), sizes(&slow), "seed {seed}");
        slow.machine.shrink();
        slow.reopen();
        let (on_disk, in_use) = sizes(&slow);
        assert_eq!(on_disk, in_use + 4096);
    }
}

#[test]
fn an_empty_store_has_etcds_size_and_compaction_frees_only_the_part_in_use() {
    let mut w = World::new();
    assert_eq!(sizes(&w), (20_480, 16_384));
    for _ in 0..1000 {
        w.put(put("k", &"v".repeat(256))).unwrap();
    }
    let (on_disk, in_use) = sizes(&w);
    assert_eq!(on_disk, in_use + 4096);
    w.compact(1001).unwrap();
    assert_eq!(sizes(&w), (on_disk, 16_384));
}
