use super::*;
use crate::mvcc::backend::{Backend as _, Batch, Bucket};
use crate::storage::bbolt;
use crate::storage::bbolt::{Direction, Item};
use crate::storage::wal::Metadata;
use tempfile::TempDir;

struct World {
    tmp: TempDir,
    engine: Engine,
    index: u64,
}

impl World {
    fn new() -> World {
        let tmp = tempfile::tempdir().unwrap();
        let id = Metadata { node_id: 7, cluster_id: 9 };
        let on_fatal = Box::new(|reason: &str| panic!("{reason}"));
        let engine = Engine::open(&tmp.path().join("fjall"), id, on_fatal).unwrap().engine;
        World { tmp, engine, index: 0 }
    }

    fn put(&mut self, key: u64, value: usize) {
        self.index += 1;
        let row = (Bucket::Key, Bytes::from(key.to_be_bytes().to_vec()), vec![7; value].into());
        let ops = vec![(row.0, row.1, Some(row.2))];
        let (consistent_index, revision) = (self.index, self.index as i64);
        let batch = Batch { ops, consistent_index, term: 3, revision, size_bytes: 0 };
        self.engine.submit(batch);
    }

    fn submit(&mut self, ops: Vec<(Bucket, Bytes, Option<Bytes>)>) {
        self.index += 1;
        let (consistent_index, revision) = (self.index, self.index as i64);
        self.engine.submit(Batch { ops, consistent_index, term: 3, revision, size_bytes: 0 });
    }

    /// A bucket's rows in the file.
    fn rows(&self, bucket: &[u8]) -> Vec<(Bytes, Bytes)> {
        let db = Db::open(File::open(self.tmp.path().join("db")).unwrap()).unwrap();
        let bucket = db.bucket(bucket).unwrap().unwrap();
        let row = |item| match item {
            Ok(Item::Row(key, value)) => (key, value),
            other => panic!("{other:?}"),
        };
        db.walk(&bucket, Direction::Forward).map(row).collect()
    }

    fn write(&self, checkpoint: &mut Checkpoint, way: Way) -> Result<u64> {
        let mut prepared = checkpoint.prepare(&self.engine, way, &mut || true);
        if let Err(CheckpointError::CannotGrow(_)) = prepared {
            assert!(way == Way::Grow && checkpoint.growth_bytes().is_none());
            prepared = checkpoint.prepare(&self.engine, Way::Rewrite, &mut || true);
        }
        let prepared = prepared?;
        assert_eq!(prepared.index(), self.index);
        let bytes = prepared.bytes();
        checkpoint.publish(prepared, &self.engine)?;
        Ok(bytes)
    }

    /// Checks the file as a whole: its index and its rows in bucket key.
    fn read(&self) -> (u64, usize) {
        let file = File::open(self.tmp.path().join("db")).unwrap();
        let db = Db::open(&file).unwrap();
        db.check().unwrap();
        assert!(is_known(&file, &self.engine).unwrap());
        let keys = db.bucket(b"key").unwrap().unwrap();
        let rows = db.walk(&keys, Direction::Forward);
        let rows = rows.filter(|item| matches!(item, Ok(Item::Row(..)))).count();
        (import::consistent_index(&file).unwrap(), rows)
    }

    fn len(&self) -> u64 {
        std::fs::metadata(self.tmp.path().join("db")).unwrap().len()
    }
}

#[test]
fn each_rewrite_is_whole_and_the_file_stays_within_bounds() {
    let mut world = World::new();
    let mut checkpoint = Checkpoint::none(world.tmp.path());
    assert_eq!((checkpoint.index(), checkpoint.bytes()), (None, 0));
    for n in 0..600 {
        world.put(n, 1000);
    }
    world.write(&mut checkpoint, Way::Rewrite).unwrap();
    assert_eq!(world.read(), (600, 600));
    let once = world.len();
    let (mut txid, mut largest) = (0, 0);
    for round in 1..=12 {
        world.put(1000 + round, 1000);
        let bytes = world.write(&mut checkpoint, Way::Rewrite).unwrap();
        assert_eq!(world.read(), (600 + round, 600 + round as usize));
        assert_eq!(checkpoint.index(), Some(600 + round));
        assert!(bytes.abs_diff(once) < once / 4, "{bytes} of {once}");
        let file = File::open(world.tmp.path().join("db")).unwrap();
        let now = Db::open(&file).unwrap().meta().txid;
        assert!(now > txid);
        txid = now;
        largest = largest.max(world.len());
    }
    assert!(largest > 2 * once && largest < 4 * once, "{largest} of {once}");
    // Opened anew: what it says of itself is enough to go on.
    let file = OpenOptions::new().read(true).write(true).open(world.tmp.path().join("db")).unwrap();
    let mut checkpoint = Checkpoint::of(world.tmp.path(), file).unwrap();
    assert_eq!(checkpoint.index(), Some(612));
    world.put(5000, 10);
    world.write(&mut checkpoint, Way::Rewrite).unwrap();
    assert_eq!(world.read(), (613, 613));
    world.write(&mut checkpoint, Way::Replace).unwrap();
    assert_eq!(world.read(), (613, 613));
    assert!(world.len() < once + once / 4);
    world.engine.close().unwrap();
}

/// A row of a small bucket.
fn small(
    bucket: Bucket,
    key: &'static str,
    value: Option<Vec<u8>>,
) -> (Bucket, Bytes, Option<Bytes>) {
    (bucket, Bytes::from_static(key.as_bytes()), value.map(Bytes::from))
}

#[test]
fn a_growth_costs_what_changed_and_the_file_is_whole_each_time() {
    let mut world = World::new();
    let mut checkpoint = Checkpoint::none(world.tmp.path());
    for n in 0..3_000 {
        world.put(n, 1000);
    }
    // The first file is written whole, whatever is asked for.
    world.write(&mut checkpoint, Way::Grow).unwrap();
    let once = world.len();
    for round in 1..=40 {
        world.put(5_000 + round, 1000);
        if round % 10 == 0 {
            let value = (round % 20 == 0).then(|| vec![round as u8; 20]);
            world.submit(vec![small(Bucket::Lease, "lease", value)]);
        }
        let bytes = world.write(&mut checkpoint, Way::Grow).unwrap();
        assert!(bytes < 14 * 4096, "{bytes} bytes in round {round}");
        assert_eq!(world.read(), (world.index, 3_000 + round as usize));
        assert_eq!(checkpoint.index(), Some(world.index));
        assert_eq!(
            world.rows(b"lease").len(),
            usize::from((20..30).contains(&round) || round == 40)
        );
    }
    assert!(world.len() < once + once / 8, "{} of {once}", world.len());
    // Opened anew, in turns with rewrites, and after what was not published.
    for way in
        [Way::Grow, Way::Rewrite, Way::Grow, Way::Rewrite, Way::Grow, Way::Replace, Way::Grow]
    {
        let path = world.tmp.path().join("db");
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        checkpoint = Checkpoint::of(world.tmp.path(), file).unwrap();
        for _ in 0..2 {
            world.put(6_000 + world.index, 5);
            let before = (checkpoint.index().unwrap(), world.read().1);
            checkpoint.prepare(&world.engine, way, &mut || true).unwrap();
            assert_eq!(world.read(), before);
            world.write(&mut checkpoint, way).unwrap();
            assert_eq!(world.read(), (world.index, before.1 + 1));
        }
    }
    world.engine.close().unwrap();
}

#[test]
fn what_a_compaction_removed_stays_until_a_rewrite_and_the_file_says_so() {
    let mut world = World::new();
    let mut checkpoint = Checkpoint::none(world.tmp.path());
    for n in 0..100 {
        world.put(n, 100);
    }
    world.write(&mut checkpoint, Way::Grow).unwrap();
    // A revision up to 100 is in the file; see below for those beyond.
    let mark = |revision: u64| Some([&revision.to_be_bytes()[..], b"_", &[0; 8]].concat());
    let marks = |world: &World| {
        let marks = world.rows(b"meta");
        let mark = |name: &str| marks.iter().find(|(key, _)| key == name).map(|row| row.1[7]);
        (mark("scheduledCompactRev"), mark("finishedCompactRev"))
    };
    for round in 1..=2 {
        let mut ops = vec![
            small(Bucket::Meta, "scheduledCompactRev", mark(round)),
            small(Bucket::Meta, "finishedCompactRev", mark(round)),
        ];
        let from = (round - 1) * 30;
        ops.extend(
            (from..from + 30)
                .map(|key| (Bucket::Key, Bytes::from(key.to_be_bytes().to_vec()), None)),
        );
        world.submit(ops);
        world.write(&mut checkpoint, Way::Grow).unwrap();
        assert_eq!(marks(&world), (Some(round as u8), (round > 1).then_some(1)));
        assert_eq!(world.read(), (world.index, 130 - 30 * round as usize));
        world.write(&mut checkpoint, Way::Rewrite).unwrap();
        assert_eq!(marks(&world), (Some(round as u8), Some(round as u8)));
        assert_eq!(world.read(), (world.index, 100 - 30 * round as usize));
    }
    // What the file never had may be compacted away already: its last row is 99.
    world.submit(vec![small(Bucket::Meta, "scheduledCompactRev", mark(101))]);
    assert!(checkpoint.growth_bytes().is_some());
    world.write(&mut checkpoint, Way::Grow).unwrap();
    assert_eq!(marks(&world), (Some(101), Some(2)), "rewritten");
    world.put(102, 10);
    let bytes = world.write(&mut checkpoint, Way::Grow).unwrap();
    assert!(bytes < 14 * 4096 && checkpoint.growth_bytes().is_some(), "grown");
    world.engine.close().unwrap();
}

#[test]
fn a_file_that_cannot_grow_is_rewritten() {
    let mut world = World::new();
    for n in 0..300 {
        world.put(n, 1000);
    }
    // There is no transaction behind the next.
    let path = world.tmp.path().join("db");
    let mut writer = bbolt::Writer::new(Vec::new());
    writer.bucket(b"meta").unwrap();
    writer.row(b"consistent_index", &9_u64.to_be_bytes()).unwrap();
    let (plan, pages) = writer.finish().unwrap();
    std::fs::write(&path, [plan.meta_pages(u64::MAX - 1), pages].concat()).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut checkpoint = Checkpoint::of(world.tmp.path(), file).unwrap();
    assert!(checkpoint.growth_bytes().is_some());
    world.write(&mut checkpoint, Way::Grow).unwrap();
    assert_eq!(world.read(), (300, 300));
    world.engine.close().unwrap();
}

#[test]
fn what_was_not_published_does_not_count() {
    let mut world = World::new();
    let mut checkpoint = Checkpoint::none(world.tmp.path());
    for n in 0..600 {
        world.put(n, 1000);
    }
    world.write(&mut checkpoint, Way::Rewrite).unwrap();
    for way in [Way::Rewrite, Way::Replace] {
        world.put(700, 5);
        checkpoint.prepare(&world.engine, way, &mut || true).unwrap();
        assert_eq!(world.read(), (600, 600));
        let stopped = checkpoint.prepare(&world.engine, way, &mut || false);
        assert!(matches!(stopped, Err(CheckpointError::Stopped)));
        assert_eq!(world.read(), (600, 600));
    }
    remove_temporary(world.tmp.path()).unwrap();
    assert!(!world.tmp.path().join(TEMPORARY).exists());
    // An interrupted rewrite is no touch, any other change is one.
    let file = OpenOptions::new().read(true).write(true).open(world.tmp.path().join("db")).unwrap();
    let state = fingerprint::state(&file).unwrap();
    world.engine.writing_origin([state, Bytes::from(vec![0; 32])].concat().into()).unwrap();
    assert!(is_known(&file, &world.engine).unwrap());
    file.write_all_at(&[1], world.len() - 1).unwrap();
    assert!(is_known(&file, &world.engine).unwrap());
    world.engine.wrote_origin(Bytes::from(vec![0; 32]));
    assert!(!is_known(&file, &world.engine).unwrap());
    world.engine.close().unwrap();
}

#[test]
fn a_rewrite_in_a_file_of_etcd_leaves_its_pages_alone() {
    let mut world = World::new();
    for n in 0..50 {
        world.put(n, 100);
    }
    // As if bbolt had written it: another tree, another transaction.
    let mut writer = bbolt::Writer::new(Vec::new());
    writer.bucket(b"key").unwrap();
    writer.row(b"etcd's", &[1; 3000]).unwrap();
    writer.bucket(b"meta").unwrap();
    writer.row(b"consistent_index", &9_u64.to_be_bytes()).unwrap();
    let (plan, pages) = writer.finish().unwrap();
    let path = world.tmp.path().join("db");
    std::fs::write(&path, [plan.meta_pages(41), pages].concat()).unwrap();
    let before = world.len();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(!is_known(&file, &world.engine).unwrap());
    let mut checkpoint = Checkpoint::of(world.tmp.path(), file).unwrap();
    assert_eq!(checkpoint.index(), Some(9));
    let old = std::fs::read(&path).unwrap();
    world.write(&mut checkpoint, Way::Rewrite).unwrap();
    assert_eq!(world.read(), (50, 50));
    let new = std::fs::read(&path).unwrap();
    assert_eq!(old[4096 * 2..], new[4096 * 2..before as usize]);
    let file = File::open(&path).unwrap();
    assert_eq!(Db::open(&file).unwrap().meta().txid, 42);
    world.engine.close().unwrap();
}
