//! Tests of the engine.

use super::*;
use crate::storage::wal::Metadata;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const ID: Metadata = Metadata { node_id: 7, cluster_id: 9 };
/// How long fjall may take to do what it does in the background.
const PATIENCE: Duration = Duration::from_secs(30);
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A small generator, so that failures repeat.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

fn open(dir: &Path) -> Opened {
    Engine::open(dir, ID, Box::new(|reason| panic!("{reason}"))).unwrap()
}

fn rows(engine: &Engine) -> Model {
    let mut rows = Model::new();
    let mut last: Option<Vec<u8>> = None;
    engine
        .scan(Bucket::Key, b"", None, &mut |key, value| {
            assert!(last.as_deref().is_none_or(|last| last < key));
            last = Some(key.to_vec());
            rows.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn batch(index: u64, ops: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Batch {
    Batch {
        ops: ops
            .into_iter()
            .map(|(k, v)| (Bucket::Key, Bytes::from(k), v.map(Bytes::from)))
            .collect(),
        consistent_index: index,
        term: 1 + index / 100,
        revision: index as i64 + 1,
        size_bytes: index * 4096,
    }
}

/// Batch `index` of a fixed history.
fn history(index: u64, size: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut rng = Rng(index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    (0..1 + rng.below(3))
        .map(|_| {
            let key = rng.below(60).to_be_bytes().to_vec();
            let size = rng.below(size) as usize;
            (key, (rng.below(4) != 0).then(|| rng.bytes(size)))
        })
        .collect()
}

fn advance(model: &mut Model, ops: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
    for (key, value) in ops {
        match value {
            Some(value) => model.insert(key, value),
            None => model.remove(&key),
        };
    }
}

#[test]
fn reads_its_writes_and_reopens() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("fjall");
    let opened = open(&dir);
    assert_eq!(opened.kind, OpenKind::Fresh);
    let engine = opened.engine;
    assert_eq!(engine.position(), (0, 0));
    let mut model = Model::new();
    for i in 1..=500 {
        let ops = history(i, 300);
        engine.submit(batch(i, ops.clone()));
        for (key, _) in &ops {
            let newest = ops.iter().rev().find(|op| op.0 == *key).and_then(|op| op.1.clone());
            assert_eq!(engine.get(Bucket::Key, key).unwrap().map(|b| b.to_vec()), newest);
        }
        advance(&mut model, ops);
        if i % 50 == 0 {
            assert_eq!(rows(&engine), model);
        }
        if i % 130 == 0 {
            engine.flush().unwrap();
            assert!(engine.shared.overlay.read().rows.is_empty());
            assert_eq!(engine.shared.queue.lock().bytes, 0);
        }
    }
    assert_eq!(engine.position(), (500, 6));
    engine.flush().unwrap();
    let index = engine.get(Bucket::Meta, b"consistent_index").unwrap().unwrap();
    assert_eq!(index[..], 500u64.to_be_bytes());
    assert_eq!(engine.get(Bucket::Auth, b"").unwrap(), None);
    engine.close().unwrap();
    drop(engine);

    let opened = open(&dir);
    assert_eq!(opened.kind, OpenKind::Existing);
    assert_eq!(opened.engine.position(), (500, 6));
    assert_eq!(opened.engine.revision(), 501);
    assert_eq!(rows(&opened.engine), model);
    opened.engine.verify().unwrap();
    assert_eq!(opened.engine.size_bytes(), 500 * 4096);
    opened.engine.mark_damaged("test").unwrap();
    drop(opened);

    let opened = open(&dir);
    assert!(matches!(opened.kind, OpenKind::Rebuilt(_)));
    assert_eq!(opened.engine.position(), (0, 0));
    assert!(rows(&opened.engine).is_empty());
    assert!(matches!(Engine::open(&dir, ID, Box::new(|_| {})), Err(EngineError::Locked(_))));
    drop(opened);
    let other = Metadata { node_id: 8, ..ID };
    let opened = Engine::open(&dir, other, Box::new(|_| {})).unwrap();
    assert!(matches!(opened.kind, OpenKind::Rebuilt(_)));
}

#[test]
fn ranges_and_breaks() {
    let tmp = tempfile::tempdir().unwrap();
    let engine = open(&tmp.path().join("fjall")).engine;
    let key = |i: u8| vec![i];
    engine.submit(batch(1, (0..100).map(|i| (key(i * 2), Some(vec![1]))).collect()));
    engine.flush().unwrap();
    engine.submit(batch(2, (0..50).map(|i| (key(i * 4 + 1), Some(vec![2]))).collect()));
    let mut seen = Vec::new();
    engine
        .scan(Bucket::Key, &[10], Some(&[30]), &mut |key, _| {
            seen.push(key[0]);
            if key[0] >= 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, [10, 12, 13, 14, 16, 17, 18, 20]);
    engine.scan(Bucket::Key, &[30], Some(&[10]), &mut |_, _| panic!("inverted")).unwrap();
}

/// Each batch writes the same number into every row: a scan that sees two numbers saw two moments.
#[test]
fn a_scan_sees_one_moment_while_rows_move() {
    const ROWS: u64 = 40;
    let tmp = tempfile::tempdir().unwrap();
    let engine = open(&tmp.path().join("fjall")).engine;
    let write = |i: u64| {
        // Also a row that is only there in every other batch.
        let mut ops: Vec<_> =
            (0..ROWS).map(|k| (k.to_be_bytes().to_vec(), Some(i.to_be_bytes().to_vec()))).collect();
        ops.push((b"~".to_vec(), i.is_multiple_of(2).then(|| i.to_be_bytes().to_vec())));
        engine.submit(batch(i, ops));
    };
    write(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let seen = rows(&engine);
                    let numbers: Vec<&Vec<u8>> = seen.values().collect();
                    assert!(numbers.windows(2).all(|w| w[0] == w[1]), "two moments");
                    let number = u64::from_be_bytes(numbers[0][..].try_into().unwrap());
                    assert_eq!(seen.len() as u64, ROWS + u64::from(number % 2 == 0));
                    assert!(number >= last, "went back");
                    last = number;
                    let one = engine.get(Bucket::Key, &3u64.to_be_bytes()).unwrap().unwrap();
                    assert!(u64::from_be_bytes(one[..].try_into().unwrap()) >= number);
                }
            });
        }
        for i in 2..3000 {
            write(i);
            if i % 7 == 0 {
                engine.flush().unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn the_overlay_is_bounded() {
    let tmp = tempfile::tempdir().unwrap();
    let engine = open(&tmp.path().join("fjall")).engine;
    let value = vec![5u8; 3 * 1024 * 1024];
    for i in 1..=40 {
        engine.submit(batch(i, vec![(i.to_be_bytes().to_vec(), Some(value.clone()))]));
        assert!(engine.shared.queue.lock().bytes <= OVERLAY_BYTES_MAX);
    }
    assert_eq!(rows(&engine).len(), 40);
}

#[test]
fn a_lost_batch_in_the_middle_is_seen() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("fjall");
    for extra in [true, false] {
        let engine = open(&dir).engine;
        for i in 1..=5 {
            engine.submit(batch(i, history(i, 100)));
            engine.flush().unwrap();
        }
        // What a loss leaves: the row of the batch before it stays; or none at all.
        let shared = &engine.shared;
        if extra {
            shared.rows.insert(&seq_key(2)[..], "").unwrap();
        } else {
            shared.rows.remove(&seq_key(5)[..]).unwrap();
        }
        drop(engine);
        let opened = open(&dir);
        let OpenKind::Rebuilt(reason) = opened.kind else { panic!("not seen") };
        assert!(reason.contains("missing in the middle"), "{reason}");
        assert_eq!(opened.engine.position(), (0, 0));
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn damage_never_gives_short_data_with_a_high_position() {
    const BATCHES: u64 = 700;
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("fjall");
    let engine = open(&dir).engine;
    let mut models = vec![Model::new()];
    for i in 1..=BATCHES {
        let ops = history(i, 3000);
        let mut model = models.last().unwrap().clone();
        advance(&mut model, ops.clone());
        models.push(model);
        engine.submit(batch(i, ops));
        if i % 3 == 0 {
            engine.flush().unwrap();
        }
    }
    engine.close().unwrap();
    drop(engine);
    let mut all = Vec::new();
    files(&dir, &mut all);
    all.sort();
    let kinds: Vec<String> =
        all.iter().map(|f| f.strip_prefix(&dir).unwrap().display().to_string()).collect();
    assert!(kinds.iter().any(|k| k.contains("tables/")), "{kinds:?}");
    assert!(kinds.iter().filter(|k| k.ends_with(".jnl")).count() >= 1, "{kinds:?}");

    // Journals are preallocated: only what is written counts.
    let all: Vec<(PathBuf, Vec<u8>, usize)> = all
        .iter()
        .map(|path| {
            let mut bytes = std::fs::read(path).unwrap();
            let size = bytes.len();
            bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
            (path.strip_prefix(&dir).unwrap().to_owned(), bytes, size)
        })
        .collect();
    let target = tmp.path().join("copy");
    let put = |name: &Path, bytes: &[u8], size: usize| {
        let path = target.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size as u64).unwrap();
    };
    let mut rng = Rng(4711);
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, whole, size) in &all {
        let flips = if name.extension().is_some_and(|e| e == "jnl") { 15 } else { 1 };
        for case in std::iter::repeat_n(0, flips).chain(4..9) {
            let _ = std::fs::remove_dir_all(&target);
            for (name, bytes, size) in &all {
                put(name, bytes, *size);
            }
            let mut bytes = whole.clone();
            let at = rng.below(bytes.len().max(1) as u64) as usize;
            match case {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
                6 if !bytes.is_empty() => {
                    let end = (at + 512).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                _ => {}
            }
            match case {
                4 => put(name, &bytes, at),
                5 => put(name, &bytes, size.saturating_sub(1)),
                7 => put(name, &bytes, 0),
                8 => std::fs::remove_file(target.join(name)).unwrap(),
                _ => put(name, &bytes, *size),
            }
            let what = format!("{} case {case} at {at}", name.display());
            let opened = open(&target);
            let position = opened.engine.position().0;
            match &opened.kind {
                OpenKind::Existing => {
                    assert!(position <= BATCHES, "{what}");
                    assert!(
                        rows(&opened.engine) == models[position as usize],
                        "{what}: {position}"
                    );
                    *outcomes
                        .entry(if position == BATCHES { "whole" } else { "prefix" })
                        .or_default() += 1;
                }
                OpenKind::Rebuilt(_) => {
                    assert_eq!(position, 0);
                    assert!(rows(&opened.engine).is_empty());
                    *outcomes.entry("rebuilt").or_default() += 1;
                }
                OpenKind::Fresh => panic!("{what}: taken for new"),
            }
        }
    }
    println!("{kinds:?} {outcomes:?}");
    assert!(outcomes.contains_key("rebuilt"), "{outcomes:?}");
}

#[test]
fn compacting_gives_back_space_while_batches_come() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(open(dir.path()).engine);
    let mut rng = Rng(3);
    let mut index = 0;
    // Incompressible, and far more than the memtable holds.
    for _ in 0..40 {
        index += 1;
        let ops = (0..16_u64).map(|key| (key.to_be_bytes().to_vec(), Some(rng.bytes(8_000))));
        engine.submit(batch(index, ops.collect()));
        engine.flush().unwrap();
    }
    let before = engine.disk_bytes();
    let removed = (1..16_u64).map(|key| (key.to_be_bytes().to_vec(), None)).collect();
    index += 1;
    engine.submit(batch(index, removed));
    let ended = Arc::new(AtomicBool::new(false));
    let writer = {
        let (engine, ended) = (engine.clone(), ended.clone());
        std::thread::spawn(move || {
            let mut index = index;
            loop {
                index += 1;
                let key = 100_u64.to_be_bytes().to_vec();
                engine.submit(batch(index, vec![(key, Some(index.to_be_bytes().to_vec()))]));
                engine.flush().unwrap();
                if ended.load(Ordering::Relaxed) {
                    return index;
                }
            }
        })
    };
    engine.compact().unwrap();
    ended.store(true, Ordering::Relaxed);
    let last = writer.join().unwrap();
    // One row of the sixteen. fjall's threads drop old tables when they get to it.
    let until = Instant::now() + PATIENCE;
    while engine.disk_bytes() >= 4 * 8_000 {
        assert!(Instant::now() < until, "{} of {before} are left", engine.disk_bytes());
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = rows(&engine);
    assert_eq!(left.keys().map(|key| key[7]).collect::<Vec<_>>(), [0, 100]);
    assert_eq!(left.values().next_back().unwrap()[..], last.to_be_bytes());
    engine.close().unwrap();
    drop(engine);
    let again = open(dir.path());
    assert_eq!((again.kind, rows(&again.engine)), (OpenKind::Existing, left));
}
