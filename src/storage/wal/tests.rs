//! Tests of the log.

use super::*;
use crate::pb::raftpb::ConfState;
use bytes::Bytes;
use std::fs::OpenOptions;
use std::path::Path;

const SMALL: u64 = 4096;
const META: Metadata = Metadata { node_id: 0x1234, cluster_id: u64::MAX - 7 };

/// Opens a log that was just closed. Another test may be starting a program at this moment: until
/// its exec, the child holds every lock of this process.
fn open_sized(dir: &Path, segment_bytes: u64) -> Result<(Wal, Replay), WalError> {
    for _ in 0..100 {
        match Wal::open_sized(dir, segment_bytes) {
            Err(WalError::Locked(_)) => std::thread::sleep(std::time::Duration::from_millis(10)),
            opened => return opened,
        }
    }
    Wal::open_sized(dir, segment_bytes)
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|i| (i as u64 * 7 + index) as u8 | 1).collect();
    Entry { index, term, data: Bytes::from(data), ..Entry::default() }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 3, commit }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".wal"))
        .collect();
    names.sort();
    names
}

#[test]
fn round_trip_reopen_and_cut() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    assert!(!Wal::exists(&dir));
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    assert!(Wal::exists(&dir));
    assert!(matches!(Wal::create(&dir, META), Err(WalError::Exists(_))));
    assert!(matches!(Wal::open(&dir), Err(WalError::Locked(_))));
    let mut model = Vec::new();
    for i in 1..=200u64 {
        let e = entry(i, 1 + i / 60, (i as usize * 13) % 300);
        wal.save(
            (i % 3 == 0).then(|| state(1 + i / 60, i - 2)).as_ref(),
            std::slice::from_ref(&e),
            i % 2 == 0,
        )
        .unwrap();
        model.push(e);
        if i % 41 == 0 {
            drop(wal);
            let (w, replay) = open_sized(&dir, SMALL).unwrap();
            wal = w;
            assert_eq!(replay.last_index, i);
            assert_eq!(replay.metadata, META);
            assert_eq!(replay.tail.first().map(|e| e.index), Some(replay.hard_state.commit + 1));
            assert_eq!(replay.repaired_at, None);
        }
    }
    assert!(names(&dir).len() > 5, "{:?}", names(&dir));
    let reader = wal.reader();
    assert_eq!(reader.bounds(), (1, 200));
    assert_eq!(reader.entries(1, 201, u64::MAX).unwrap(), model);
    assert_eq!(reader.entries(57, 58, 0).unwrap(), model[56..57]);
    assert_eq!(reader.entries(100, 201, 1000).unwrap(), {
        let mut bytes = 0;
        let take = model[99..]
            .iter()
            .take_while(|e| {
                bytes += e.data.len();
                bytes <= 1000
            })
            .count();
        model[99..99 + take].to_vec()
    });
    assert!(matches!(reader.entries(0, 5, 1), Err(WalError::OutOfRange { .. })));
    assert!(matches!(reader.entries(5, 202, 1), Err(WalError::OutOfRange { .. })));
    let mut seen = Vec::new();
    reader
        .for_each(33, 160, &mut |e| {
            seen.push(e);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, model[32..160]);
    drop((wal, reader));
    let (_, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!(replay.term_runs, [(1, 1), (60, 2), (120, 3), (180, 4)]);
    assert_eq!(replay.hard_state, state(4, 196));
    assert_eq!(replay.tail, model[196..]);
    assert_eq!(replay.first_index, 1);
    assert_eq!(replay.snapshots, [(0, 0)]);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    let mut model: Vec<Entry> = Vec::new();
    let mut from = 1u64;
    for round in 0..40u64 {
        let fresh: Vec<Entry> =
            (from..from + 9).map(|i| entry(i, round + 1, (i * round % 90) as usize)).collect();
        model.truncate(from as usize - 1);
        model.extend(fresh.iter().cloned());
        wal.save(Some(&state(round + 1, 0)), &fresh, false).unwrap();
        assert_eq!(wal.reader().entries(1, from + 9, u64::MAX).unwrap(), model);
        from = (from + [9, 1, 0, 5, 9][round as usize % 5]).saturating_sub(round % 4).max(1);
    }
    assert!(matches!(
        wal.save(None, &[entry(model.len() as u64 + 2, 99, 1)], true),
        Err(WalError::Gap { .. })
    ));
    drop(wal);
    let (wal, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!(replay.tail, model);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for e in &model {
        if runs.last().is_none_or(|r| r.1 != e.term) {
            runs.push((e.index, e.term));
        }
    }
    assert_eq!(replay.term_runs, runs);
    for lo in 1..=model.len() as u64 {
        let got = wal.reader().entries(lo, model.len() as u64 + 1, u64::MAX).unwrap();
        assert_eq!(got, model[lo as usize - 1..]);
    }
}

/// A log of `count` entries in one segment; the offsets where records end.
fn written(dir: &Path, count: u64, size: usize) -> (Vec<u64>, PathBuf) {
    let mut wal = Wal::create(dir, META).unwrap();
    let mut ends = vec![wal.offset];
    for i in 1..=count {
        wal.save(None, &[entry(i, 1, size)], false).unwrap();
        ends.push(wal.offset);
    }
    (ends, wal.tail.path.clone())
}

#[test]
fn torn_tail_at_every_byte() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let (ends, path) = written(&dir, 3, 900);
    let whole = std::fs::read(&path).unwrap()[..ends[3] as usize].to_vec();
    for cut in ends[2]..ends[3] {
        // The file ends there: always repaired.
        std::fs::write(&path, &whole[..cut as usize]).unwrap();
        let (mut wal, replay) = open_sized(&dir, SMALL).unwrap();
        assert_eq!(replay.last_index, 2, "cut at {cut}");
        assert_eq!(replay.repaired_at, (cut != ends[2]).then_some(ends[2]));
        wal.save(None, &[entry(3, 2, 10)], true).unwrap();
        drop(wal);
        let (_, replay) = open_sized(&dir, SMALL).unwrap();
        assert_eq!((replay.last_index, replay.repaired_at), (3, None));
    }
    // Whole sectors of the last record were not written: repaired. Data that is wrong without a
    // zero sector is damage.
    for cut in ends[2]..ends[3] {
        let mut bytes = whole.clone();
        bytes[cut as usize..].fill(0);
        let sector_lost = {
            let from = (ends[2] + 8).max(cut.div_ceil(512) * 512);
            from < ends[3] || cut <= ends[2] + 8
        };
        bytes.resize(bytes.len() + 4096, 0);
        std::fs::write(&path, &bytes).unwrap();
        let opened = open_sized(&dir, SMALL);
        if cut == ends[2] || bytes[..ends[3] as usize] == whole {
            assert_eq!(opened.unwrap().1.repaired_at, None);
        } else if sector_lost {
            assert_eq!(opened.unwrap().1.last_index, 2, "cut at {cut}");
        } else {
            assert!(matches!(opened, Err(WalError::Corrupt { .. })), "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_byte_is_damage_and_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let (ends, path) = written(&dir, 5, 150);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..ends[4] as usize {
        for mask in [0x01u8, 0x80, 0xff] {
            let mut bytes = whole[..ends[5] as usize + 4096].to_vec();
            bytes[at] ^= mask;
            std::fs::write(&path, &bytes).unwrap();
            match open_sized(&dir, SMALL) {
                Err(WalError::Corrupt { file, offset, .. }) => {
                    assert_eq!(file, path);
                    // A damaged checksum in a crc record shows in the record behind it.
                    assert!(offset.abs_diff(at as u64) < 200, "{at} {offset}");
                }
                // Padding is covered by no checksum, in etcd neither.
                Ok((_, replay)) => assert_eq!(replay.last_index, 5, "byte {at} mask {mask:x}"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn damage_in_an_earlier_segment_is_never_repaired() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    for i in 1..=100 {
        wal.save(Some(&state(1, i)), &[entry(i, 1, 200)], false).unwrap();
    }
    drop(wal);
    let names = names(&dir);
    let path = dir.join(&names[1]);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(matches!(Wal::open(&dir), Err(WalError::Corrupt { .. })), "cut {cut}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Wal::open(&dir), Err(WalError::Corrupt { .. })));
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(Wal::open(&dir).unwrap().1.last_index, 100);
}

#[test]
fn everything_behind_the_tail_is_zero() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let (ends, path) = written(&dir, 3, 100);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
    // A zero frame, and behind it what is left of a write that never finished.
    let at = ends[3] as usize + 512;
    bytes[at..at + 100].fill(9);
    std::fs::write(&path, &bytes).unwrap();
    let (wal, replay) = Wal::open(&dir).unwrap();
    assert_eq!(replay.last_index, 3);
    drop(wal);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
    assert!(bytes[ends[3] as usize..].iter().all(|b| *b == 0));
}

#[test]
fn a_failed_write_is_the_last_one() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    wal.save(None, &[entry(1, 1, 10)], true).unwrap();
    let good = wal.tail.clone();
    // A descriptor that cannot be written to.
    let file = File::open(&good.path).unwrap();
    wal.tail = Arc::new(Segment { file, path: good.path.clone(), seq: 0 });
    assert!(matches!(wal.save(None, &[entry(2, 1, 10)], true), Err(WalError::Io { .. })));
    wal.tail = good;
    assert!(matches!(wal.save(None, &[entry(2, 1, 10)], true), Err(WalError::Poisoned(_))));
    assert!(matches!(wal.sync(), Err(WalError::Poisoned(_))));
    assert_eq!(wal.reader().bounds(), (1, 1));
}

/// Leaves a log for etcd to read: `RUSD_WAL_OUT=dir cargo test --lib storage`.
#[test]
fn leave_a_log_for_etcd() {
    let Some(out) = std::env::var_os("RUSD_WAL_OUT") else { return };
    let dir = PathBuf::from(out).join("wal");
    let mut wal = Wal::create_sized(&dir, META, 64 * 1024).unwrap();
    for i in 1..=1000 {
        let size = if i % 7 == 0 { 0 } else { (i * 3) as usize };
        wal.save(Some(&state(1 + i / 500, i - 1)), &[entry(i, 1 + i / 500, size)], true).unwrap();
    }
    wal.save(None, &[entry(990, 9, 5), entry(991, 9, 0)], true).unwrap();
}

/// Reads a log that etcd left: `RUSD_WAL_IN=dir cargo test --lib storage -- --nocapture`.
#[test]
fn read_a_log_of_etcd() {
    let Some(dir) = std::env::var_os("RUSD_WAL_IN") else { return };
    let (wal, replay) = Wal::open(Path::new(&dir)).unwrap();
    println!("{:?} {:?} {:?}", replay.metadata, replay.hard_state, replay.term_runs);
    println!("{}..={} tail {}", replay.first_index, replay.last_index, replay.tail.len());
    let mut entries = 0u64;
    let mut bytes = 0u64;
    wal.reader()
        .for_each(replay.first_index, replay.last_index, &mut |entry| {
            entries += 1;
            bytes += entry.data.len() as u64;
            Ok(())
        })
        .unwrap();
    println!("{entries} entries, {bytes} bytes");
}

#[test]
fn wal_without_fsync_asks_nothing_of_the_disk() {
    for no_fsync in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("wal");
        let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
        if no_fsync {
            wal.stop_syncing();
        }
        // A file that takes every write and refuses every sync.
        let file = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        wal.tail = Arc::new(Segment { file, path: "/dev/null".into(), seq: 0 });
        assert_eq!(wal.save(Some(&state(1, 0)), &[], true).is_ok(), no_fsync);
        assert_eq!(wal.sync().is_ok(), no_fsync);
    }
}

#[test]
fn released_segments_are_those_that_a_snapshot_covers() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    let mut firsts = vec![0];
    for i in 1..=90u64 {
        wal.save(Some(&state(1, i)), &[entry(i, 1, 300)], true).unwrap();
        if names(&dir).len() > firsts.len() {
            firsts.push(i + 1);
        }
    }
    let segments = firsts.len();
    assert!(segments > 6, "{firsts:?}");
    assert!(wal.written_bytes() > 90 * 300);
    let conf_state = ConfState { voters: vec![7], learners: vec![9], ..Default::default() };
    wal.save_snapshot(50, 1, &conf_state).unwrap();
    // Nothing before the first entry, and nothing that is to be kept.
    assert!(wal.release(0, 1).is_empty());
    assert!(wal.release(50, segments).is_empty());
    assert!(wal.release(firsts[1], 1).is_empty(), "the segment before stays");
    let released = wal.release(firsts[3] + 1, 1);
    assert_eq!(released.len(), 3);
    assert_eq!(wal.first_index(), firsts[3]);
    let reader = wal.reader();
    assert_eq!(reader.bounds(), (firsts[3], 90));
    assert!(reader.entries(firsts[3] - 1, 55, u64::MAX).is_err());
    assert_eq!(reader.entries(firsts[3], 55, u64::MAX).unwrap()[0].index, firsts[3]);
    for released in &released {
        released.remove().unwrap();
    }
    assert_eq!(names(&dir).len(), segments - 3);
    assert!(matches!(open_sized(&dir, SMALL), Err(WalError::Locked(_))));
    drop((wal, reader, released));
    let (mut wal, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (firsts[3], 90));
    assert_eq!(replay.snapshots, [(50, 1)]);
    wal.save(None, &[entry(91, 1, 10)], true).unwrap();
    assert_eq!(wal.reader().entries(85, 92, u64::MAX).unwrap().len(), 7);
    // As much as can be spared, but two.
    let count = wal.release(u64::MAX, 2).len();
    assert_eq!(names(&dir).len() - count, 2);
}

#[test]
fn a_snapshot_ahead_of_the_log_counts_once_it_is_committed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    wal.save(Some(&state(1, 3)), &[entry(1, 1, 5), entry(2, 1, 5), entry(3, 1, 5)], true).unwrap();
    wal.save_snapshot(100, 2, &ConfState::default()).unwrap();
    drop(wal);
    let (mut wal, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index, replay.hard_state.commit), (1, 3, 3));
    wal.save(Some(&state(2, 100)), &[], true).unwrap();
    drop(wal);
    let (_, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (101, 100));
}

#[test]
fn a_snapshot_that_contradicts_the_log_takes_its_place_once_it_is_committed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    let old: Vec<Entry> = (1..=9).map(|index| entry(index, 1, 5)).collect();
    wal.save(Some(&state(1, 3)), &old, true).unwrap();
    wal.install_snapshot(6, 3, &ConfState::default()).unwrap();
    assert_eq!(wal.reader().bounds(), (7, 6));
    drop(wal);
    // A stop before the hard state: the log is what it was, and goes on.
    let (mut wal, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (1, 9));
    wal.save(None, &[entry(10, 1, 5)], true).unwrap();
    drop(wal);
    let (mut wal, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (1, 10));
    wal.install_snapshot(6, 3, &ConfState::default()).unwrap();
    wal.save(Some(&state(3, 6)), &[], true).unwrap();
    wal.save(Some(&state(3, 7)), &[entry(7, 3, 5), entry(8, 3, 5)], true).unwrap();
    assert_eq!(wal.reader().entries(7, 9, u64::MAX).unwrap().len(), 2);
    drop(wal);
    let (_, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (7, 8));
    assert_eq!(replay.term_runs, [(7, 3)]);
    assert_eq!(replay.snapshots, [(0, 0), (6, 3), (6, 3)]);
}

#[test]
fn a_snapshot_that_the_log_leads_up_to_leaves_it() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let mut wal = Wal::create_sized(&dir, META, SMALL).unwrap();
    wal.save(Some(&state(1, 1)), &[entry(1, 1, 5), entry(2, 1, 5)], true).unwrap();
    // A stop came before its hard state, and then the entries themselves.
    wal.save_snapshot(4, 2, &ConfState::default()).unwrap();
    wal.save(Some(&state(2, 4)), &[entry(3, 2, 5), entry(4, 2, 5), entry(5, 2, 5)], true).unwrap();
    wal.save_snapshot(3, 2, &ConfState::default()).unwrap();
    drop(wal);
    let (_, replay) = open_sized(&dir, SMALL).unwrap();
    assert_eq!((replay.first_index, replay.last_index), (1, 5));
}
