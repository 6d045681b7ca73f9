//! The table and the schedule against models that are too simple to be wrong.

use super::schedule::{Checkpointed, Granted, RETRY, Renewal, Schedule};
use super::*;
use crate::mvcc::backend::{Batch, MemBackend};
use std::time::{Duration, Instant};

fn table(backend: &MemBackend, leased: &[(&'static [u8], i64)]) -> LeaseTable {
    let leased = leased.iter().map(|&(k, l)| (Bytes::from_static(k), l)).collect();
    LeaseTable::open(backend, 2, true, leased).unwrap()
}

#[test]
fn grants_within_bounds_and_survives_a_restart() {
    let backend = MemBackend::default();
    let mut leases = table(&backend, &[]);
    assert_eq!(leases.grant(LeaseId(0), 5).unwrap_err(), Error::LeaseNotFound);
    assert_eq!(leases.grant(LeaseId(5), TTL_MAX + 1).unwrap_err(), Error::LeaseTtlTooLarge);
    let (ttl, op) = leases.grant(LeaseId(5), 1).unwrap();
    assert_eq!(ttl, 2);
    assert_eq!(leases.grant(LeaseId(5), 7).unwrap_err(), Error::LeaseExist);
    let (_, op9) = leases.grant(LeaseId(9), TTL_MAX).unwrap();
    let checkpoint = leases.checkpoint(LeaseId(9), 40).unwrap().unwrap();
    assert!(leases.checkpoint(LeaseId(10), 40).is_none());
    backend.submit(Batch { ops: vec![op, op9, checkpoint], ..Batch::default() });

    let mut leases = table(&backend, &[(b"a", 5), (b"b", 77)]);
    let reader = leases.reader();
    assert_eq!(reader.list(), [LeaseId(5), LeaseId(9)]);
    assert_eq!(reader.get(LeaseId(5)), Some(2));
    let granted = |id, ttl, remaining| Granted { id: LeaseId(id), ttl, remaining };
    assert_eq!(reader.granted(), [granted(5, 2, 0), granted(9, TTL_MAX, 40)]);
    assert_eq!(reader.keys(LeaseId(5)), ["a"]);
    assert_eq!(reader.lease_of(b"b"), None);
    leases.revoke(LeaseId(5)).unwrap();
    assert_eq!(leases.revoke(LeaseId(5)).unwrap_err(), Error::LeaseNotFound);
}

#[test]
fn a_key_hangs_on_one_lease() {
    let backend = MemBackend::default();
    let mut leases = table(&backend, &[]);
    let reader = leases.reader();
    leases.hang(b"z", 1);
    leases.hang(b"a", 1);
    leases.hang(b"a", -1);
    assert_eq!(
        (reader.keys(LeaseId(1)), reader.keys(LeaseId(-1))),
        (vec!["z".into()], vec!["a".into()])
    );
    leases.hang(b"a", 1);
    assert_eq!(reader.keys(LeaseId(1)), ["a", "z"]);
    leases.hang(b"a", 0);
    leases.hang(b"z", 0);
    assert!(reader.keys(LeaseId(1)).is_empty() && reader.lease_of(b"z").is_none());
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Leases and keys as two flat maps.
#[derive(Default)]
struct TableModel {
    leases: BTreeMap<i64, (i64, i64)>,
    lease_of: BTreeMap<Bytes, i64>,
}

#[test]
fn the_table_is_what_a_naive_one_is() {
    for seed in 1..=50 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut model = TableModel::default();
        let backend = MemBackend::default();
        let mut table = LeaseTable::open(&backend, 3, true, BTreeMap::new()).unwrap();
        let mut index = 0;
        for _ in 0..400 {
            let id = random.below(8) as i64 - 2;
            let key = Bytes::from(vec![b'a' + random.below(6) as u8]);
            let op = match random.below(5) {
                0 => {
                    let ttl = [-5, 0, 2, 3, 90, TTL_MAX, TTL_MAX + 1][random.below(7) as usize];
                    let expected = match model.leases.get(&id) {
                        _ if id == 0 => Err(Error::LeaseNotFound),
                        _ if ttl > TTL_MAX => Err(Error::LeaseTtlTooLarge),
                        Some(_) => Err(Error::LeaseExist),
                        None => Ok(ttl.max(3)),
                    };
                    let granted = table.grant(LeaseId(id), ttl);
                    assert_eq!(granted.as_ref().map(|(ttl, _)| *ttl), expected.as_ref().copied());
                    expected.ok().map(|ttl| model.leases.insert(id, (ttl, 0)));
                    granted.ok().map(|(_, op)| op)
                }
                1 => {
                    let revoked = table.revoke(LeaseId(id));
                    assert_eq!(revoked.is_ok(), model.leases.remove(&id).is_some());
                    for (key, _) in model.lease_of.extract_if(.., |_, lease| *lease == id) {
                        table.hang(&key, 0);
                    }
                    revoked.ok()
                }
                2 => {
                    let remaining = random.below(100) as i64;
                    let noted = table.checkpoint(LeaseId(id), remaining);
                    let lease = model.leases.get_mut(&id);
                    assert_eq!(noted.is_some(), lease.is_some());
                    lease.into_iter().for_each(|lease| lease.1 = remaining);
                    noted.flatten()
                }
                3 if model.leases.contains_key(&id) => {
                    table.hang(&key, id);
                    model.lease_of.insert(key, id);
                    None
                }
                _ => {
                    table.hang(&key, 0);
                    model.lease_of.remove(&key);
                    None
                }
            };
            index += 1;
            let (ops, consistent_index) = (op.into_iter().collect(), index);
            backend.submit(Batch { ops, consistent_index, ..Default::default() });
            if random.below(20) == 0 {
                table = LeaseTable::open(&backend, 3, true, model.lease_of.clone()).unwrap();
            }
            model.check(&table.reader());
            let mut cost = 0;
            let mut add = |key: &[u8], row: &Bytes| {
                cost += row_cost(key.len(), row.len());
                ControlFlow::Continue(())
            };
            backend.scan(Bucket::Lease, &[], None, &mut add).unwrap();
            assert_eq!(table.cost(), cost);
        }
    }
}

impl TableModel {
    fn check(&self, reader: &LeaseReader) {
        let granted = |(&id, &(ttl, remaining)): (&i64, &(i64, i64))| Granted {
            id: LeaseId(id),
            ttl,
            remaining,
        };
        assert_eq!(reader.granted(), self.leases.iter().map(granted).collect::<Vec<_>>());
        for id in -3..8 {
            let keys = self.lease_of.iter().filter(|(_, lease)| **lease == id);
            let keys: Vec<Bytes> = keys.map(|(key, _)| key.clone()).collect();
            assert_eq!(reader.keys(LeaseId(id)), keys);
            assert_eq!(reader.count_keys(LeaseId(id), 2), keys.len().min(2));
            assert_eq!(reader.get(LeaseId(id)), self.leases.get(&id).map(|lease| lease.0));
        }
        for key in [&b"a"[..], b"c", b"f", b"z"] {
            let lease = self.lease_of.get(key).copied().map(LeaseId);
            assert_eq!(reader.lease_of(key), lease);
        }
    }
}

/// A lease as the model has it: end and checkpoint in seconds since the start.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: i64,
    remaining: i64,
    end: Option<i64>,
    revoking: Option<i64>,
}

const EXTENSION: i64 = 2;
const INTERVAL: i64 = 20;
const IDS: u64 = 12;

/// Everything is looked at each time; nothing is queued.
#[derive(Default)]
struct ScheduleModel {
    leases: BTreeMap<i64, Lease>,
    leading: bool,
    now: i64,
}

impl ScheduleModel {
    fn promote(&mut self) {
        self.leading = true;
        for lease in self.leases.values_mut() {
            let life = if lease.remaining > 0 { lease.remaining } else { lease.ttl };
            lease.end = Some(self.now + life + EXTENSION);
            lease.revoking = None;
        }
    }

    fn demote(&mut self) {
        self.leading = false;
        for lease in self.leases.values_mut() {
            (lease.end, lease.revoking) = (None, None);
        }
    }

    /// What is asked for again, and what has ended, each the oldest first.
    fn expired(&mut self, room: usize) -> Vec<i64> {
        let now = self.now;
        let retry = RETRY.as_secs() as i64;
        let mut lost: Vec<(i64, i64)> = self
            .leases
            .iter()
            .filter_map(|(id, lease)| Some((lease.revoking?, *id)))
            .filter(|(since, _)| now - since >= retry)
            .collect();
        lost.sort_unstable();
        lost.truncate(room);
        let mut ended: Vec<(i64, i64)> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.revoking.is_none())
            .filter_map(|(id, lease)| Some((lease.end?, *id)))
            .filter(|(end, _)| *end <= now)
            .collect();
        ended.sort_unstable();
        ended.truncate(room);
        let taken: Vec<i64> = lost.into_iter().chain(ended).map(|(_, id)| id).collect();
        for id in &taken {
            self.leases.get_mut(id).unwrap().revoking = Some(now);
        }
        taken
    }
}

#[test]
fn the_schedule_is_what_a_naive_one_is() {
    for seed in 1..=200 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut model = ScheduleModel::default();
        let start = Instant::now();
        let mut schedule = Schedule::new([], Some(Duration::from_secs(INTERVAL as u64)));
        for _ in 0..600 {
            let now = start + Duration::from_secs(model.now as u64);
            let id = random.below(IDS) as i64 + 1;
            match random.below(11) {
                0 | 1 => model.now += random.below(4) as i64,
                2 => {
                    model.demote();
                    schedule.demote();
                }
                3 => {
                    model.promote();
                    schedule.promote(now, Duration::from_secs(EXTENSION as u64));
                }
                4 | 5 if !model.leases.contains_key(&id) => {
                    let ttl = 2 + random.below(40) as i64;
                    let end = model.leading.then_some(model.now + ttl);
                    let lease = Lease { ttl, remaining: 0, end, revoking: None };
                    model.leases.insert(id, lease);
                    schedule.granted(LeaseId(id), ttl, now);
                }
                6 => {
                    let gone = model.leases.remove(&id).is_some_and(|l| l.revoking.is_some());
                    assert_eq!(schedule.revoked(LeaseId(id)), gone);
                }
                7 => {
                    let taken = schedule.take_checkpoints(now, 3);
                    for (id, left) in taken {
                        let lease = model.leases.get_mut(&id.0).unwrap();
                        assert_eq!(left, lease.end.unwrap() - model.now, "the true rest");
                        assert!(left < lease.ttl && lease.revoking.is_none() && model.leading);
                        lease.remaining = left;
                        assert_eq!(schedule.checkpointed(id, left, now), Checkpointed::Noted);
                    }
                }
                8 => {
                    let room = 1 + random.below(3) as usize;
                    let taken = schedule.take_expired(now, room, |_| 1);
                    let taken: Vec<i64> = taken.into_iter().map(|id| id.0).collect();
                    assert_eq!(taken, model.expired(room), "seed {seed} at {}", model.now);
                }
                _ => renew(&mut model, &mut schedule, id, now),
            }
            check(&model, &schedule, start);
        }
    }
}

fn renew(model: &mut ScheduleModel, schedule: &mut Schedule, id: i64, now: Instant) {
    let renewal = schedule.renew(LeaseId(id), now);
    let Some(lease) = model.leases.get_mut(&id) else {
        let none = if model.leading { Renewal::Absent } else { Renewal::NotLeading };
        return assert_eq!(renewal, none);
    };
    let end = model.now + lease.ttl;
    match (model.leading, lease.revoking, lease.remaining) {
        (false, ..) => assert_eq!(renewal, Renewal::NotLeading),
        (_, Some(_), _) => assert_eq!(renewal, Renewal::Revoking),
        (.., 0) => {
            assert_eq!(renewal, Renewal::Renewed(lease.ttl));
            lease.end = Some(end);
        }
        _ => {
            assert_eq!(renewal, Renewal::Clearing { ask: true });
            assert_eq!(schedule.renew(LeaseId(id), now), Renewal::Clearing { ask: false });
            assert!(!schedule.clears_again(LeaseId(id), now));
            assert!(schedule.clears_again(LeaseId(id), now + RETRY));
            let cleared = schedule.checkpointed(LeaseId(id), 0, now);
            assert_eq!(cleared, Checkpointed::Renewed(lease.ttl));
            (lease.end, lease.remaining) = (Some(end), 0);
        }
    }
}

fn check(model: &ScheduleModel, schedule: &Schedule, start: Instant) {
    let now = start + Duration::from_secs(model.now as u64);
    assert_eq!(schedule.is_leading(), model.leading);
    let revoking = model.leases.values().filter(|lease| lease.revoking.is_some()).count();
    assert_eq!(schedule.revoking_weight(), revoking);
    let mut order: Vec<(u8, i64, i64)> = Vec::new();
    for (&id, lease) in &model.leases {
        let (ttl, left) = schedule.remaining(LeaseId(id), now).unwrap();
        assert_eq!(ttl, lease.ttl);
        match (lease.revoking, lease.end) {
            (Some(since), _) => order.push((0, since, id)),
            (None, Some(end)) => order.push((1, end, id)),
            (None, None) => order.push((2, 0, id)),
        }
        let expected = match (lease.revoking, lease.end) {
            (Some(_), _) => Duration::ZERO,
            (None, Some(end)) => Duration::from_secs((end - model.now).max(0) as u64),
            (None, None) => Duration::MAX,
        };
        assert_eq!(left, expected);
    }
    order.sort_unstable();
    let ids: Vec<i64> = schedule.by_end().into_iter().map(|id| id.0).collect();
    assert_eq!(ids, order.into_iter().map(|(.., id)| id).collect::<Vec<_>>());
    let size = schedule.queued();
    assert!(size <= 3 * model.leases.len(), "{size} pairs for {} leases", model.leases.len());
}

#[test]
fn a_checkpoint_that_a_renewal_overtook_is_removed() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let lease = Granted { id: LeaseId(7), ttl: 1000, remaining: 0 };
    let mut schedule = Schedule::new([lease], Some(Duration::from_secs(300)));
    schedule.promote(at(0), Duration::ZERO);
    assert!(schedule.take_checkpoints(at(299), 10).is_empty());
    assert_eq!(schedule.take_checkpoints(at(300), 10), [(LeaseId(7), 700)]);
    assert_eq!(schedule.renew(LeaseId(7), at(301)), Renewal::Renewed(1000));
    assert_eq!(schedule.checkpointed(LeaseId(7), 700, at(301)), Checkpointed::Outdated);
    assert_eq!(schedule.checkpointed(LeaseId(7), 0, at(302)), Checkpointed::Renewed(1000));
    assert_eq!(schedule.remaining(LeaseId(7), at(302)).unwrap().1.as_secs(), 1000);
    // What another leader noted counts for the next one.
    schedule.demote();
    assert_eq!(schedule.checkpointed(LeaseId(7), 300, at(400)), Checkpointed::Noted);
    schedule.promote(at(400), Duration::from_secs(1));
    assert_eq!(schedule.remaining(LeaseId(7), at(400)).unwrap().1.as_secs(), 301);
}

#[test]
fn heavy_leases_wait_for_room_and_go_alone() {
    let start = Instant::now();
    let leases = [(1, 1), (2, 50), (3, 2000), (4, 1)];
    let granted = leases.map(|(id, _)| Granted { id: LeaseId(id), ttl: id, remaining: 0 });
    let mut schedule = Schedule::new(granted, None);
    schedule.promote(start, Duration::ZERO);
    let now = start + Duration::from_secs(10);
    let weigh = |id: LeaseId| leases.iter().find(|(other, _)| *other == id.0).unwrap().1;
    let take = |schedule: &mut Schedule| {
        let room = 100_usize.saturating_sub(schedule.revoking_weight());
        schedule.take_expired(now, room, weigh)
    };
    assert_eq!(take(&mut schedule), [LeaseId(1), LeaseId(2)]);
    assert!(take(&mut schedule).is_empty());
    assert!(schedule.revoked(LeaseId(1)) && schedule.revoked(LeaseId(2)));
    assert_eq!(take(&mut schedule), [LeaseId(3)]);
    assert!(take(&mut schedule).is_empty());
    assert!(schedule.revoked(LeaseId(3)));
    assert_eq!(take(&mut schedule), [LeaseId(4)]);
}
