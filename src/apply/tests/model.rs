//! Random histories against a model that keeps the whole state of every revision.

use super::*;
use crate::base::error::Error;
use std::collections::BTreeMap;

/// Small, seeded, good enough.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn key(&mut self) -> String {
        let len = 1 + self.below(2);
        (0..len).map(|_| char::from(b'a' + self.below(5) as u8)).collect()
    }

    fn end(&mut self) -> String {
        match self.below(4) {
            0 => String::new(),
            1 => "\0".into(),
            _ => self.key(),
        }
    }
}

/// Every revision's whole state.
struct Model {
    states: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
    compacted: i64,
}

impl Model {
    fn revision(&self) -> i64 {
        *self.states.keys().next_back().unwrap()
    }

    fn now(&self) -> BTreeMap<Bytes, KeyValue> {
        self.states[&self.revision()].clone()
    }

    fn put(state: &mut BTreeMap<Bytes, KeyValue>, main: i64, key: &Bytes, value: &Bytes) {
        let old = state.get(key);
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: old.map_or(main, |kv| kv.create_revision),
            mod_revision: main,
            version: old.map_or(1, |kv| kv.version + 1),
            lease: 0,
        };
        state.insert(key.clone(), kv);
    }

    fn covers(key: &Bytes, end: &Bytes, candidate: &Bytes) -> bool {
        match end.as_ref() {
            [] => candidate == key,
            [0] => candidate >= key,
            _ => candidate >= key && candidate < end,
        }
    }

    fn range(&self, r: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        let current = self.revision();
        if r.revision > current {
            return Err(Error::FutureRev);
        }
        let at = if r.revision > 0 { r.revision } else { current };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        let mut kvs: Vec<KeyValue> = self.states[&at]
            .values()
            .filter(|kv| Self::covers(&r.key, &r.range_end, &kv.key))
            .cloned()
            .collect();
        let count = kvs.len() as i64;
        if r.count_only {
            kvs.clear();
        }
        let lifted = r.sort_order != 0
            || [
                r.min_mod_revision,
                r.max_mod_revision,
                r.min_create_revision,
                r.max_create_revision,
            ] != [0; 4];
        if r.limit > 0 && !lifted {
            kvs.truncate(r.limit as usize + 1);
        }
        kvs.retain(|kv| {
            (r.min_mod_revision == 0 || kv.mod_revision >= r.min_mod_revision)
                && (r.max_mod_revision == 0 || kv.mod_revision <= r.max_mod_revision)
                && (r.min_create_revision == 0 || kv.create_revision >= r.min_create_revision)
                && (r.max_create_revision == 0 || kv.create_revision <= r.max_create_revision)
        });
        if r.sort_order != 0 || r.sort_target != 0 {
            kvs.sort_by(|a, b| {
                let order = match r.sort_target {
                    0 => a.key.cmp(&b.key),
                    1 => a.version.cmp(&b.version),
                    2 => a.create_revision.cmp(&b.create_revision),
                    3 => a.mod_revision.cmp(&b.mod_revision),
                    _ => a.value.cmp(&b.value),
                };
                if r.sort_order == 2 { order.reverse() } else { order }
            });
        }
        let more = r.limit > 0 && kvs.len() > r.limit as usize;
        if more {
            kvs.truncate(r.limit as usize);
        }
        if r.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let kvs = kvs.iter().map(|kv| kv.encode_to_vec().into()).collect();
        let header = Some(rpc::ResponseHeader { revision: current, ..Default::default() });
        Ok(rpc::RangeResponse { header, kvs, more, count })
    }
}

fn random_range(random: &mut Random, current: i64) -> rpc::RangeRequest {
    let sometimes = |random: &mut Random, bound: u64| match random.below(4) {
        0 => random.below(bound) as i64,
        _ => 0,
    };
    let span = current as u64 + 3;
    rpc::RangeRequest {
        key: random.key().into(),
        range_end: random.end().into(),
        limit: sometimes(random, 8) - i64::from(random.below(10) == 0),
        revision: if random.below(2) == 0 { 0 } else { random.below(span) as i64 - 1 },
        sort_order: sometimes(random, 3) as i32,
        sort_target: sometimes(random, 5) as i32,
        keys_only: random.below(5) == 0,
        count_only: random.below(8) == 0,
        min_mod_revision: sometimes(random, span),
        max_mod_revision: sometimes(random, span),
        min_create_revision: sometimes(random, span),
        max_create_revision: sometimes(random, span),
        ..Default::default()
    }
}

#[test]
fn random_histories_answer_as_the_model() {
    for seed in 1..=24u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut w = World::new();
        let mut looked = None;
        if seed % 2 == 0 {
            w.machine.set_row_bytes_max(200);
        }
        let mut model = Model { states: BTreeMap::from([(1, BTreeMap::new())]), compacted: -1 };
        for step in 0..300 {
            let main = model.revision() + 1;
            let mut state = model.now();
            match random.below(20) {
                0..9 => {
                    let r = rpc::PutRequest {
                        prev_kv: random.below(2) == 0,
                        ..put(&random.key(), &format!("v{}", random.below(50)))
                    };
                    let prev = state.get(&r.key).map(Message::encode_to_vec).unwrap_or_default();
                    Model::put(&mut state, main, &r.key, &r.value);
                    model.states.insert(main, state);
                    let reply = w.put(r.clone()).unwrap();
                    assert_eq!(revision(&reply.header), main);
                    assert_eq!(reply.prev_kv, if r.prev_kv { prev } else { Vec::new() });
                }
                9..13 => {
                    let r = rpc::DeleteRangeRequest {
                        prev_kv: true,
                        ..del(&random.key(), &random.end())
                    };
                    let before = state.len();
                    state.retain(|key, _| !Model::covers(&r.key, &r.range_end, key));
                    let deleted = (before - state.len()) as i64;
                    if deleted > 0 {
                        model.states.insert(main, state);
                    }
                    let reply = w.delete(r).unwrap();
                    assert_eq!((reply.deleted, reply.prev_kvs.len() as i64), (deleted, deleted));
                    assert_eq!(revision(&reply.header), model.revision());
                }
                13..16 => {
                    let mut ops = Vec::new();
                    let mut changed = false;
                    for _ in 0..random.below(5) {
                        if random.below(3) == 0 {
                            let r = del(&random.key(), &random.end());
                            let before = state.len();
                            state.retain(|key, _| !Model::covers(&r.key, &r.range_end, key));
                            changed |= before != state.len();
                            ops.push(op(Request::RequestDeleteRange(r)));
                        } else {
                            let r = put(&random.key(), &format!("t{}", random.below(9)));
                            Model::put(&mut state, main, &r.key, &r.value);
                            changed = true;
                            ops.push(op(Request::RequestPut(r)));
                        }
                    }
                    // Sometimes the last request fails, and nothing may have happened.
                    let fails = random.below(4) == 0;
                    if fails {
                        ops.push(op(Request::RequestPut(rpc::PutRequest {
                            ignore_lease: true,
                            ..put("absent", "")
                        })));
                    }
                    let reply = w.txn(rpc::TxnRequest { success: ops, ..Default::default() });
                    if fails {
                        assert_eq!(reply, Err(Error::KeyNotFound));
                    } else {
                        if changed {
                            model.states.insert(main, state);
                        }
                        assert_eq!(revision(&reply.unwrap().header), model.revision());
                    }
                }
                16 => {
                    let at = random.below(main as u64 + 1) as i64;
                    let expected = match at {
                        _ if at <= model.compacted => Some(Error::Compacted),
                        _ if at >= main => Some(Error::FutureRev),
                        _ => None,
                    };
                    assert_eq!(w.compact(at).err(), expected, "compact at {at}");
                    if expected.is_none() {
                        model.compacted = at;
                    }
                }
                17 => {
                    let before: Vec<_> =
                        (model.compacted.max(0)..main).map(|at| w.hash(at)).collect();
                    // What a look finds may wait while other entries are applied.
                    let limit = 1 + random.below(9) as usize;
                    let found = looked.take();
                    let found = found.or_else(|| Some(w.machine.compaction_look(limit)?.run()));
                    match found {
                        Some(found) if random.below(2) == 0 => looked = Some(found),
                        Some(found) => drop(w.machine.compacted(found).unwrap()),
                        None => {}
                    }
                    let after: Vec<_> =
                        (model.compacted.max(0)..main).map(|at| w.hash(at)).collect();
                    // A finished compaction's own revision answers with the hash from before it;
                    // and where no key is alive, etcd hashes also what is about to go.
                    for (at, (before, after)) in
                        (model.compacted.max(0)..).zip(before.iter().zip(&after))
                    {
                        let own = at == w.machine.finished_compact_revision();
                        let dead = model.states.get(&at.max(1)).is_none_or(BTreeMap::is_empty);
                        assert!(own || dead || before == after, "seed {seed} step {step} at {at}");
                    }
                }
                18 => {
                    if let Some(looked) = looked.take() {
                        w.machine.compacted(looked).unwrap();
                    }
                    w.compact_all(1 + random.below(9) as usize);
                    assert_eq!(w.machine.compaction_pending(), None);
                }
                _ => {
                    looked = None;
                    // By its number: a compaction of revision 0 is remembered, as in etcd, and what
                    // is remembered does not outlive a restart.
                    let now = w.machine.reader().revision();
                    let remembered = now == w.machine.finished_compact_revision();
                    let hash = w.hash(now);
                    w.reopen();
                    if seed % 2 == 0 {
                        w.machine.set_row_bytes_max(200);
                    }
                    assert!(remembered || w.hash(now) == hash, "seed {seed} step {step}");
                }
            }
            let reader = w.machine.reader();
            assert_eq!(reader.revision(), model.revision());
            assert_eq!(reader.compact_revision(), model.compacted);
            for _ in 0..6 {
                let r = random_range(&mut random, model.revision());
                assert_eq!(reader.range(&r), model.range(&r), "seed {seed} step {step} {r:?}");
            }
        }
    }
}
