//! Logs that nobody wrote, inspected, opened and read: see `storage::fuzz`.

use super::record::{CRC, ENTRY, METADATA, SNAPSHOT, STATE, put_entry, put_record};
use super::*;
use crate::storage::fuzz::{Dice, mutate, rounds};

const SEGMENT_BYTES: u64 = 32 << 10;
const ID: Metadata = Metadata { node_id: 7, cluster_id: 9 };

type Records = Vec<(i64, Vec<u8>)>;

fn entry(index: u64, term: u64, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let entry = Entry { index, term, data: vec![index as u8; bytes].into(), ..Entry::default() };
    put_entry(&mut out, &entry);
    out
}

/// The records of a log, one of which is often not what it should be.
fn records(dice: &mut Dice) -> Records {
    let (mut metadata, mut snapshot) = (Vec::new(), Vec::new());
    record::put_metadata(&mut metadata, ID);
    record::put_snapshot(&mut snapshot, 0, 0);
    let mut records: Records = vec![(CRC, Vec::new()), (METADATA, metadata), (SNAPSHOT, snapshot)];
    let (mut next, mut term) = (1, 1);
    for _ in 0..dice.below(40) {
        let (kind, data) = match dice.below(12) {
            0 => {
                let mut out = Vec::new();
                let commit = dice.below(next);
                record::put_state(&mut out, &HardState { term, vote: 7, commit });
                (STATE, out)
            }
            1 => {
                let mut out = Vec::new();
                let index = if dice.below(3) == 0 { dice.number() } else { dice.below(next) };
                record::put_snapshot(&mut out, index, term);
                (SNAPSHOT, out)
            }
            2 => {
                // A new leader overwrites some, or one comes that leaves a gap.
                term += 1;
                next = if dice.below(4) == 0 { dice.number() } else { 1 + dice.below(next) };
                (ENTRY, entry(next, term, 20))
            }
            _ => (ENTRY, entry(next, term, dice.below(900) as usize)),
        };
        next = if kind == ENTRY { next.wrapping_add(1).max(1) } else { next };
        records.push((kind, data));
    }
    if dice.below(2) == 0 {
        let at = dice.below(records.len() as u64) as usize;
        match dice.below(3) {
            0 => records[at].0 = dice.number() as i64,
            1 => mutate(&mut records[at].1, dice),
            _ => drop(records.remove(at)),
        }
    }
    records
}

/// Segments with whole checksums, so that what is wrong lies deeper, and then perhaps those not.
fn segments(dice: &mut Dice) -> Vec<Vec<u8>> {
    let records = records(dice);
    let (mut segments, mut crc, mut scratch) = (vec![Vec::new()], 0, Vec::new());
    for (kind, data) in records {
        let mut last = segments.pop().unwrap_or_default();
        if last.len() > 9_000 && dice.below(3) == 0 {
            segments.push(last);
            last = Vec::new();
            put_record(&mut last, &mut scratch, crc, CRC, |_| {});
        }
        crc = put_record(&mut last, &mut scratch, crc, kind, |out| out.extend_from_slice(&data));
        segments.push(last);
    }
    if dice.below(2) == 0 {
        let at = dice.below(segments.len() as u64) as usize;
        mutate(&mut segments[at], dice);
    }
    let zeros = dice.below(3) * 2_000;
    if let Some(last) = segments.last_mut() {
        last.resize(last.len() + zeros as usize, 0);
    }
    segments
}

#[test]
fn logs() {
    let tmp = tempfile::tempdir().unwrap();
    let (mut opened, mut repaired) = (0u64, 0u64);
    let mut number = 0;
    rounds("logs", 500, |dice| {
        number += 1;
        let dir = tmp.path().join(number.to_string());
        std::fs::create_dir(&dir).unwrap();
        for (seq, bytes) in segments(dice).iter().enumerate() {
            std::fs::write(dir.join(segment_name(seq as u64, 0)), bytes).unwrap();
        }
        let seen = inspect(&dir, &mut |done, total| assert!(done <= total));
        let seen = seen.map(|seen| (seen.bounds, seen.hard_state, seen.torn));
        let found = Wal::open_sized(&dir, SEGMENT_BYTES);
        if let Ok((wal, replay)) = &found {
            opened += 1;
            repaired += u64::from(replay.repaired_at.is_some());
            let bounds = (replay.first_index, replay.last_index);
            assert_eq!(seen.unwrap(), (bounds, replay.hard_state, replay.repaired_at.is_some()));
            let _ = wal.reader().entries(bounds.0, bounds.1.wrapping_add(1), u64::MAX);
        }
        let bounds = found.ok().map(|(_, replay)| (replay.first_index, replay.last_index));
        if let Some(bounds) = bounds {
            // What was repaired stays as it was found.
            let again = inspect(&dir, &mut |_, _| {}).unwrap();
            assert_eq!((again.bounds, again.torn, again.dirty), (bounds, false, false));
        }
        std::fs::remove_dir_all(dir).unwrap();
    });
    assert!(opened > 0 && repaired > 0, "no round gets through: {opened}, {repaired} repaired");
}

/// Found by round 161: there is no index behind this one.
#[test]
fn the_highest_number_is_no_index() {
    let (mut snapshot, last) = (Vec::new(), u64::MAX);
    record::put_snapshot(&mut snapshot, last, 1);
    let cases = [(SNAPSHOT, snapshot, "malformed snapshot record"), (ENTRY, entry(last, 1, 1), "")];
    for (kind, data, reason) in cases {
        let tmp = tempfile::tempdir().unwrap();
        let (mut bytes, mut scratch, mut metadata) = (Vec::new(), Vec::new(), Vec::new());
        record::put_metadata(&mut metadata, ID);
        let mut crc = 0;
        for (kind, data) in [(CRC, Vec::new()), (METADATA, metadata), (kind, data)] {
            crc = put_record(&mut bytes, &mut scratch, crc, kind, |out| {
                out.extend_from_slice(&data);
            });
        }
        std::fs::write(tmp.path().join(segment_name(0, 0)), bytes).unwrap();
        let error = Wal::open_sized(tmp.path(), SEGMENT_BYTES).unwrap_err().to_string();
        assert!(error.contains("is damaged at offset") && error.contains(reason), "{error}");
    }
}
