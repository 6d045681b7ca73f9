//! Growths against a model, with a power failure in every epoch, and what a growth costs.

use super::super::Writer;
use super::super::page::{Header, Kind, Meta};
use super::super::reader::{Db, Direction, Item, Metas, Seen};
use super::twin::{Twin, apply, crashed};
use super::*;
use crate::storage::fuzz::Dice;
use bytes::Bytes;
use proptest::prelude::*;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<Vec<u8>, Rows>;

const ETCD_FILE: &[u8] = include_bytes!("../../../../testdata/bbolt/etcd.db");
const SMALL: [&[u8]; 3] = [b"auth", b"lease", b"meta"];

fn content(db: &Db<Bytes>) -> Buckets {
    let mut buckets = Buckets::new();
    for item in db.walk(&db.root(), Direction::Forward) {
        let Item::Bucket(name, bucket) = item.unwrap() else { panic!("a row among the buckets") };
        let rows = db.walk(&bucket, Direction::Forward).map(|item| match item.unwrap() {
            Item::Row(key, value) => (key.to_vec(), value.to_vec()),
            Item::Bucket(..) => panic!("a bucket among the rows"),
        });
        buckets.insert(name.to_vec(), rows.collect());
    }
    buckets
}

/// The file's rows, all of it being sound.
fn sound(file: &Bytes) -> Buckets {
    let db = Db::open(file.clone()).unwrap();
    db.check().unwrap();
    content(&db)
}

/// What bbolt begins with.
fn new_file(page_bytes: u32) -> Vec<u8> {
    let page = |id, txid| {
        let meta = Meta { page_bytes, root: 3, freelist: Some(2), pages: 4, txid };
        meta.page(id)
    };
    let mut file = [page(0, 0), page(1, 1)].concat();
    for (id, kind) in [(2, Kind::Freelist), (3, Kind::Leaf)] {
        file.extend_from_slice(&Header { id, kind, count: 0, overflow: 0 }.bytes());
        file.resize((id as usize + 1) * page_bytes as usize, 0);
    }
    file
}

/// A revision's key, as etcd has them.
fn key(revision: u64) -> Vec<u8> {
    [&revision.to_be_bytes()[..], b"_", &0u64.to_be_bytes()].concat()
}

#[derive(Clone, Debug)]
struct Change {
    /// Sizes of the rows behind the last.
    rows: Vec<usize>,
    /// Which small buckets, and their rows.
    small: Vec<(usize, usize, usize)>,
    reopen: bool,
}

fn change() -> impl Strategy<Value = Change> {
    let size = prop_oneof![12 => 0usize..200, 3 => 200usize..1500, 1 => 3000usize..9000];
    let rows = prop_oneof![
        8 => prop::collection::vec(size.clone(), 0..12),
        1 => prop::collection::vec(size, 100..300),
    ];
    let count = prop_oneof![4 => 0usize..4, 1 => 20usize..150];
    let small = prop::collection::vec((0..SMALL.len(), count, 0usize..60), 0..3);
    (rows, small, prop::bool::weighted(0.2)).prop_map(|(rows, small, reopen)| Change {
        rows,
        small,
        reopen,
    })
}

fn grow<D: Disk>(grower: Grower<D>, buckets: &mut Buckets, change: &Change) -> Grower<D> {
    let rows = buckets.entry(b"key".to_vec()).or_default();
    let last =
        rows.keys().next_back().map_or(0, |last| u64::from_be_bytes(last[..8].try_into().unwrap()));
    let mut growth = grower.begin();
    growth.bucket(b"key").unwrap();
    for (i, size) in change.rows.iter().enumerate() {
        let (key, value) = (key(last + 1 + i as u64), vec![i as u8; *size]);
        growth.row(&key, &value).unwrap();
        rows.insert(key, value);
    }
    let mut done = BTreeSet::new();
    for (which, count, size) in &change.small {
        if !done.insert(which) {
            continue;
        }
        let rows: Rows =
            (0..*count).map(|i| (i.to_be_bytes().to_vec(), vec![*count as u8; *size])).collect();
        growth.bucket(SMALL[*which]).unwrap();
        rows.iter().for_each(|(key, value)| growth.row(key, value).unwrap());
        buckets.insert(SMALL[*which].to_vec(), rows);
    }
    growth.commit().unwrap()
}

/// Pages that either meta page reaches, where its state is sound.
fn reached(file: &Bytes) -> Vec<Seen> {
    let len = file.len() as u64;
    let metas = Metas::read(file, len).unwrap();
    let states = [0, 1].into_iter().filter_map(|page| metas.get(page));
    let sound = states.filter_map(|meta| {
        let listed = Meta { freelist: None, ..*meta };
        let mut seen = Db::at(file.clone(), listed, len).reach().ok()?.1;
        let run = meta.freelist.map(|page| {
            Db::at(file.clone(), *meta, len).run(page, &[Kind::Freelist], &mut seen).unwrap()
        });
        assert!(run.is_some() || meta.freelist.is_none());
        Some(seen)
    });
    sound.collect()
}

/// Loses the power in each epoch of the last growth, several times.
fn crash(twin: &Twin, before: &Buckets, after: &Buckets, dice: &mut Dice) {
    let (mut file, epochs) = twin.take_epochs();
    assert_eq!(epochs.len(), 2, "pages, then a meta page");
    let page_bytes = Db::open(Bytes::from(file.clone())).unwrap().meta().page_bytes as u64;
    let reached = reached(&Bytes::from(file.clone()));
    assert!(!reached.is_empty());
    for (offset, bytes) in &epochs[0] {
        let pages = offset / page_bytes..(offset + bytes.len() as u64).div_ceil(page_bytes);
        for page in pages {
            assert!(reached.iter().all(|seen| !seen.has(page)), "page {page} is overwritten");
        }
    }
    for (i, epoch) in epochs.iter().enumerate() {
        for _ in 0..4 {
            let image = Bytes::from(crashed(&file, epoch, dice));
            let found = sound(&image);
            assert!(found == *before || (i == 1 && found == *after), "epoch {i}");
            // It goes on from there.
            let again = Twin::new(image.to_vec());
            let mut expected = found;
            let change = Change { rows: vec![300; 9], small: vec![(1, 30, 20)], reopen: false };
            grow(Grower::open(&again, b"key").unwrap(), &mut expected, &change);
            assert_eq!(sound(&again.file()), expected);
        }
        epoch.iter().for_each(|(offset, bytes)| apply(&mut file, *offset, bytes));
    }
    assert_eq!(sound(&Bytes::from(file.clone())), *after);
    // The newer meta page is lost later.
    let newest = Metas::read(&Bytes::from(file.clone()), file.len() as u64).unwrap();
    let (slot, _) = newest.newest().unwrap();
    file[slot as usize * page_bytes as usize + 40] ^= 1;
    assert_eq!(sound(&Bytes::from(file)), *before);
}

fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.div_ceil(8), ..config }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_instant_is_a_state(
        start in prop::sample::select(vec![0u32, 512, 1024, 4096]),
        changes in prop::collection::vec(change(), 1..12),
        seed in any::<u64>(),
    ) {
        let file = if start == 0 { ETCD_FILE.to_vec() } else { new_file(start) };
        let twin = Twin::new(file);
        let mut buckets = sound(&twin.file());
        let mut dice = Dice(seed);
        let mut grower = Grower::open(&twin, b"key").unwrap();
        for change in changes {
            if change.reopen {
                grower = Grower::open(&twin, b"key").unwrap();
            }
            let (before, txid) = (buckets.clone(), grower.meta().txid);
            grower = grow(grower, &mut buckets, &change);
            prop_assert!(grower.meta().txid > txid);
            prop_assert_eq!(grower.meta().txid % 2, grower.slot);
            crash(&twin, &before, &buckets, &mut dice);
        }
    }
}

fn grown(twin: &Twin, name: &[u8], rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> u64 {
    let mut growth = Grower::open(twin, b"key").unwrap().begin();
    growth.bucket(name).unwrap();
    for (key, value) in rows {
        growth.row(&key, &value).unwrap();
    }
    let (bytes, gathered) = (growth.bytes(), growth.grower.space.written());
    let grower = growth.commit().unwrap();
    bytes + grower.space.written() - gathered
}

#[test]
fn much_costs_little_more_than_itself() {
    let twin = Twin::new(new_file(4096));
    let rows = |from| (from..from + 10_000).map(|n| (key(n), vec![n as u8; 256]));
    let payload = 10_000 * (17 + 256);
    for round in 0..3 {
        let bytes = grown(&twin, b"key", rows(1 + round * 10_000));
        assert!(bytes * 100 < payload * 110, "{bytes} bytes for {payload}");
    }
    assert_eq!(sound(&twin.file())[b"key".as_slice()].len(), 30_000);
}

#[test]
fn little_costs_a_few_pages_and_the_file_stays_small() {
    let twin = Twin::new(new_file(4096));
    grown(&twin, b"key", (1..=50_000).map(|n| (key(n), vec![7; 100])));
    let mut grower = Grower::open(&twin, b"key").unwrap();
    assert_eq!(grower.last_key(), Some(&key(50_000)[..]));
    let (pages, rows) = (grower.pages(), 3 * 200);
    for n in 0..200 {
        let before = grower.space.written();
        let mut growth = grower.begin();
        for name in [b"lease".as_slice(), b"meta"] {
            growth.bucket(name).unwrap();
            growth.row(b"consistent_index", &[n as u8; 8]).unwrap();
        }
        growth.bucket(b"key").unwrap();
        for i in 0..3 {
            growth.row(&key(50_001 + n * 3 + i), &[7; 100]).unwrap();
        }
        grower = growth.commit().unwrap();
        // Leaf, two branches, root, free list, meta page; one more when a leaf is full.
        let bytes = grower.space.written() - before;
        assert!(bytes <= 8 * 4096, "{bytes} bytes");
        assert!(grower.dead_pages() <= 24, "{} dead pages", grower.dead_pages());
    }
    assert!(grower.pages() - pages < rows * 133 / 4096 + 24 + 5);
    assert_eq!(grower.pages() * 4096, twin.len().unwrap());
    assert_eq!(sound(&twin.file())[b"key".as_slice()].len(), 50_600);
}

#[test]
fn a_large_row_is_not_written_again() {
    let twin = Twin::new(new_file(4096));
    grown(&twin, b"key", [(key(1), vec![1; 1 << 20]), (key(2), vec![2; 1 << 20])]);
    assert!(grown(&twin, b"key", [(key(3), vec![3; 10])]) < 10 * 4096);
    assert_eq!(sound(&twin.file())[b"key".as_slice()][&key(2)].len(), 1 << 20);
}

#[test]
fn a_long_list_of_free_pages_is_left_out_and_found_again() {
    let twin = Twin::new(new_file(512));
    let leases = |count: u32| (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![5; 400]));
    grown(&twin, b"lease", leases(9_000));
    grown(&twin, b"lease", leases(1));
    let file = twin.file();
    assert_eq!(Db::open(file.clone()).unwrap().meta().freelist, None);
    let free = Db::open(file).unwrap().check().unwrap().free_pages;
    assert!(free > 9_000);
    let mut grower = Grower::open(&twin, b"key").unwrap();
    assert_eq!(grower.dead_pages(), free);
    // They are used again, from the second growth on.
    let pages = grower.pages();
    for round in 0..2u64 {
        let mut growth = grower.begin();
        growth.bucket(b"key").unwrap();
        for n in 1..=round * 4_000 {
            growth.row(&key(n), &[1; 450]).unwrap();
        }
        grower = growth.commit().unwrap();
    }
    assert!(grower.pages() < pages + 20, "{} pages, {pages} before", grower.pages());
    assert!(grower.meta().freelist.is_some());
    assert_eq!(grower.dead_pages(), Db::open(twin.file()).unwrap().check().unwrap().free_pages);
    assert_eq!(sound(&twin.file())[b"key".as_slice()].len(), 4_000);
}

/// bbolt copies a file with its newest transaction on page 0, whatever its number.
#[test]
fn the_older_meta_page_is_the_one_that_is_replaced() {
    for (first, second, next) in [(8, 7, 9), (7, 6, 9), (6, 7, 8), (7, 8, 10), (9, 9, 11)] {
        let mut file = new_file(4096);
        for (page, txid) in [(0u64, first), (1, second)] {
            let meta = Meta { page_bytes: 4096, root: 3, freelist: Some(2), pages: 4, txid };
            apply(&mut file, page * 4096, &meta.page(page));
        }
        let twin = Twin::new(file);
        let before = Metas::read(&twin, 4 * 4096).unwrap().newest().unwrap();
        grown(&twin, b"key", [(key(1), vec![1])]);
        let metas = Metas::read(&twin, twin.len().unwrap()).unwrap();
        assert_eq!(metas.get(before.0), Some(&before.1));
        let (slot, meta) = metas.newest().unwrap();
        assert_eq!((slot, meta.txid), (1 - before.0, next), "{first} and {second}");
    }
}

#[test]
fn what_cannot_grow_is_refused_and_left_as_it_is() {
    let mut writer = Writer::new(Vec::new());
    writer.bucket(b"key").unwrap();
    writer.row(&key(5), b"five").unwrap();
    let (plan, pages) = writer.finish().unwrap();
    let file = [plan.meta_pages(5), pages].concat();
    let refused = |feed: &dyn Fn(&mut Growth<&Twin>) -> Result<()>| {
        let twin = Twin::new(file.clone());
        let mut growth = Grower::open(&twin, b"key").unwrap().begin();
        growth.bucket(b"meta").unwrap();
        growth.row(b"k", &vec![1; 2 << 20]).unwrap();
        let error = feed(&mut growth).unwrap_err();
        drop(growth);
        assert_eq!(sound(&twin.file()), sound(&Bytes::from(file.clone())));
        grown(&twin, b"key", [(key(6), vec![])]);
        assert_eq!(sound(&twin.file())[b"key".as_slice()].len(), 2);
        error
    };
    for last in [5, 4] {
        let error = refused(&|growth| {
            growth.bucket(b"key")?;
            growth.row(&key(last), b"")
        });
        assert!(matches!(&error, GrowError::NotNext { bucket } if bucket == "key"), "{error}");
    }
    let row = |error: &GrowError| matches!(error, GrowError::Row(_));
    assert!(row(&refused(&|growth| growth.row(b"k", b""))));
    assert!(row(&refused(&|growth| growth.row(&[1; 40_000], b""))));
    assert!(row(&refused(&|growth| growth.bucket(b"meta"))));
    assert!(row(&refused(&|growth| growth.bucket(b""))));
    assert!(row(&refused(&|growth| {
        growth.bucket(b"key")?;
        growth.row(b"", b"")
    })));
}

#[test]
fn a_file_to_be_written_anew_says_why() {
    let sound_file = new_file(4096);
    let metas = |older: Meta, newer: Meta| {
        let mut file = sound_file.clone();
        apply(&mut file, 0, &older.page(0));
        apply(&mut file, 4096, &newer.page(1));
        Grower::open(&Twin::new(file), b"key").unwrap_err().to_string()
    };
    let meta = Meta { page_bytes: 4096, root: 3, freelist: Some(2), pages: 4, txid: 0 };
    let newer = Meta { txid: 1, ..meta };
    assert!(metas(meta, Meta { pages: 5, ..newer }).contains("too few for its 5 pages"));
    assert!(metas(meta, Meta { txid: u64::MAX, ..newer }).contains("no greater transaction"));
    let larger = [&sound_file[..], &[0; 4096]].concat();
    let older = Meta { pages: 5, ..meta };
    for (file, refused) in [(larger, true), (sound_file.clone(), false)] {
        let mut file = file;
        apply(&mut file, 0, &older.page(0));
        let twin = Twin::new(file);
        let opened = Grower::open(&twin, b"key").map_err(|error| error.to_string());
        match opened {
            Ok(grower) => {
                // What is gone of the older state is nobody's.
                assert!(!refused);
                let growth = grower.begin();
                growth.commit().unwrap();
                assert_eq!(sound(&twin.file()), Buckets::new());
            }
            Err(error) => assert!(refused && error.contains("older meta page has more"), "{error}"),
        }
    }
    // A free list that names a page in use: seen at once, or when the page is given back.
    let mut file = sound_file.clone();
    apply(&mut file, 2 * 4096 + 10, &[1]);
    apply(&mut file, 2 * 4096 + 16, &[2]);
    let error = Grower::open(&Twin::new(file.clone()), b"key").unwrap_err().to_string();
    assert!(error.contains("page 2: lists page 2, which is not free"), "{error}");
    apply(&mut file, 2 * 4096 + 16, &[3]);
    let twin = Twin::new(file.clone());
    let error = Grower::open(&twin, b"key").unwrap().begin().commit().unwrap_err().to_string();
    assert!(error.contains("page 3 is both free and in use"), "{error}");
    assert_eq!(Metas::read(&twin, 4 * 4096).unwrap().newest().unwrap().1, newer);
    for bytes in [&b""[..], b"\0", &sound_file[..4096 + 100]] {
        assert!(Grower::open(&Twin::new(bytes.to_vec()), b"key").is_err());
    }
}

/// The disk refuses: no state is lost, and the failure is told.
#[test]
fn a_failed_sync_ends_the_growth() {
    #[derive(Debug)]
    struct Failing<'a>(&'a Twin, std::cell::Cell<u32>);
    impl Source for Failing<'_> {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_exact_at(buf, offset)
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
    }
    impl Disk for Failing<'_> {
        fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_all_at(bytes, offset)
        }
        fn sync(&self) -> io::Result<()> {
            self.1.set(self.1.get() - 1);
            if self.1.get() == 0 { Err(io::Error::other("lost")) } else { self.0.sync() }
        }
    }
    for (syncs, rows) in [(1, 0), (2, 1)] {
        let twin = Twin::new(new_file(4096));
        let disk = Failing(&twin, std::cell::Cell::new(syncs));
        let mut growth = Grower::open(disk, b"key").unwrap().begin();
        growth.bucket(b"key").unwrap();
        growth.row(&key(1), b"").unwrap();
        assert!(matches!(growth.commit().unwrap_err(), GrowError::Io(_)));
        let found = sound(&twin.file()).get(b"key".as_slice()).map_or(0, Rows::len);
        assert_eq!(found, rows, "the failed sync is number {syncs}");
    }
}
