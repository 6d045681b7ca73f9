//! Bytes that nobody wrote: what drives the tests that feed them to the readers of etcd's formats.
//!
//! Each round comes from a number, so that a failure can be repeated. As ordinary tests they take a
//! second each; `make fuzz SECONDS=1800` runs each for so long, from other numbers, alone in its
//! process, and watches how much memory it asks for.

use super::snap;
use crate::cluster::state::Cluster;
use crate::pb::{raftpb, snappb};
use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long to go on, in seconds; without it, so many rounds as the test says.
const SECONDS: &str = "RUSD_FUZZ_SECONDS";
/// The first round's number, for a failure to be repeated.
const FIRST: &str = "RUSD_FUZZ_FIRST";
/// Address space that a run may ask for beyond what it begins with.
const GROWTH_MAX: u64 = 512 << 20;

/// Random numbers from a seed (splitmix64).
pub(super) struct Dice(pub u64);

impl Dice {
    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// A number of up to eight bytes that is likely to stand at some bound.
    pub(super) fn number(&mut self) -> u64 {
        let near = self.below(9).wrapping_sub(4);
        match self.below(6) {
            0 => near,
            1 => (1 << self.below(64)) + near % 2,
            2 => (1u64 << 32).wrapping_add(near),
            3 => (1u64 << 16).wrapping_add(near),
            4 => self.below(300),
            _ => self.below(u64::MAX),
        }
    }
}

/// Tells which round it was that panicked.
struct Round<'a>(&'a str, u64);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: round {}; repeat with {FIRST}={}", self.0, self.1, self.1);
        }
    }
}

fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Runs rounds until it has been enough.
pub(super) fn rounds(name: &str, count: u64, mut round: impl FnMut(&mut Dice)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (seconds, first) = (number(SECONDS), number(FIRST));
    let (begun, before) = (Instant::now(), address_space());
    // A long run tries others than the ordinary tests have.
    let start = first.unwrap_or(if seconds.is_some() { 1 << 32 } else { 0 });
    let mut done = 0;
    while match seconds {
        Some(seconds) => begun.elapsed() < Duration::from_secs(seconds),
        None => done < if first.is_some() { 1 } else { count },
    } {
        let told = Round(name, start + done);
        round(&mut Dice(told.1));
        done += 1;
    }
    if seconds.is_some() {
        let growth = address_space().saturating_sub(before);
        eprintln!("{name}: {done} rounds, {} MiB more asked for", growth >> 20);
        assert!(growth < GROWTH_MAX, "{growth} bytes were asked for");
    }
}

/// Changes bytes here and there, in one of the ways that go far.
pub(super) fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len() as u64;
        let at = dice.below(len) as usize;
        match dice.below(10) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << dice.below(8),
            2..4 => bytes[at] = dice.below(256) as u8,
            4..6 => {
                let number = dice.number().to_le_bytes();
                let width = [1, 2, 4, 8][dice.below(4) as usize];
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            6 => {
                let to = dice.below(len) as usize;
                let count = dice.below(64).min(len - at.max(to) as u64) as usize;
                bytes.copy_within(at..at + count, to);
            }
            7 => {
                let end = (at + 1 + dice.below(64) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            8 => {
                let count = dice.below(64) as usize;
                bytes.splice(at..at, std::iter::repeat_n(dice.below(256) as u8, count));
            }
            _ => {
                let end = (at + dice.below(600) as usize).min(bytes.len());
                bytes[at..end].fill(0);
            }
        }
    }
}

/// A v2 tree such as etcd writes, of one member.
fn tree() -> Bytes {
    let node = |path: &str, value: &str, children: Value| {
        json!({
            "Path": path, "CreatedIndex": 1, "ModifiedIndex": 1,
            "ExpireTime": "0001-01-01T00:00:00Z", "Value": value, "Children": children,
        })
    };
    let member = "/0/members/8e9e05c52164694d";
    let attributes = r#"{"name":"a","clientURLs":["http://localhost:2379"]}"#;
    let raft = r#"{"peerURLs":["http://localhost:2380"]}"#;
    let member_node = json!({
        "attributes": node(&format!("{member}/attributes"), attributes, Value::Null),
        "raftAttributes": node(&format!("{member}/raftAttributes"), raft, Value::Null),
    });
    let members = json!({ "8e9e05c52164694d": node(member, "", member_node) });
    let zero = json!({
        "members": node("/0/members", "", members),
        "version": node("/0/version", "3.5.0", Value::Null),
    });
    let root = node("/", "", json!({ "0": node("/0", "", zero) }));
    let tree = json!({ "Root": root, "CurrentIndex": 3, "CurrentVersion": 2 });
    tree.to_string().into()
}

#[test]
fn snap_files() {
    let metadata = raftpb::SnapshotMetadata { index: 9, term: 2, ..Default::default() };
    let tree = tree();
    assert!(Cluster::from_json(&tree).is_ok());
    let inner = raftpb::Snapshot { data: tree.clone(), metadata: Some(metadata) };
    let file = |data: Vec<u8>| {
        snappb::Snapshot { crc: crc32c::crc32c(&data), data: data.into() }.encode_to_vec()
    };
    let mut found = 0;
    rounds("snap_files", 4_000, |dice| {
        // The file itself, what its checksum covers, or the tree in that.
        let bytes = match dice.below(3) {
            0 => {
                let mut bytes = file(inner.encode_to_vec());
                mutate(&mut bytes, dice);
                bytes
            }
            1 => {
                let mut data = inner.encode_to_vec();
                mutate(&mut data, dice);
                file(data)
            }
            _ => {
                let mut data = tree.to_vec();
                mutate(&mut data, dice);
                file(raftpb::Snapshot { data: data.into(), ..inner.clone() }.encode_to_vec())
            }
        };
        let len = bytes.len();
        if let Ok(snap) = snap::parse(bytes.into()) {
            assert!(snap.tree.len() <= len);
            found += u64::from(Cluster::from_json(&snap.tree).is_ok());
        }
    });
    assert!(found > 0, "no round gets through to the members");
}
