//! Directories that are sound, and what is said of each damage.

use super::*;
use crate::mvcc::backend::{Batch, Op};
use crate::pb::raftpb::{Entry, HardState, SnapshotMetadata};
use crate::pb::{raftpb, snappb};
use crate::storage::bbolt::Writer;
use crate::storage::import;
use crate::storage::wal::{Metadata, Wal};
use bytes::Bytes;
use prost::Message as _;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

const ID: Metadata = Metadata { node_id: 7, cluster_id: 9 };
/// Where the log, the database file and the engine are.
const LAST: u64 = 12;
const DATABASE: u64 = 5;
const ENGINE: u64 = 9;
/// Trees of `.snap` files.
const EMPTY: &str = r#"{"Root":{"Children":null}}"#;
const MEMBER: &str = r#"{"Root":{"Children":{"0":{"Path":"/0","Value":"","Children":{
    "members":{"Path":"/0/members","Value":"","Children":{"2a":{"Value":"","Children":{
    "raftAttributes":{"Value":"{\"peerURLs\":[\"http://b:2\"]}"}}}}}}}}}}"#;

#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    parts: Vec<String>,
}

impl Report for Found {
    fn finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn progress(&mut self, part: &str, done: u64, total: u64) {
        assert!(done <= total);
        self.parts.push(part.to_owned());
    }
}

fn key(revision: u64) -> Vec<u8> {
    [&revision.to_be_bytes()[..], b"_", &[0; 8]].concat()
}

fn value(revision: u64) -> Vec<u8> {
    format!("value of revision {revision}").into_bytes()
}

/// etcd's database file with a revision for each entry.
fn write_database(path: &Path, index: u64, term: u64) {
    let mut writer = Writer::new(Vec::new());
    writer.bucket(b"key").unwrap();
    for n in 1..=index {
        writer.row(&key(n), &value(n)).unwrap();
    }
    writer.bucket(b"lease").unwrap();
    writer.bucket(b"meta").unwrap();
    writer.row(b"consistent_index", &index.to_be_bytes()).unwrap();
    writer.row(b"term", &term.to_be_bytes()).unwrap();
    let (plan, pages) = writer.finish().unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&plan.meta_pages(3)).unwrap();
    file.write_all(&pages).unwrap();
}

fn batch(ops: Vec<Op>, index: u64) -> Batch {
    let revision = index as i64;
    Batch { ops, consistent_index: index, term: 2, revision, size_bytes: 0 }
}

fn row(bucket: crate::mvcc::backend::Bucket, key: Vec<u8>, value: Option<Vec<u8>>) -> Op {
    (bucket, key.into(), value.map(Bytes::from))
}

/// A member's directory.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        let dir = Dir(tempfile::tempdir().unwrap());
        for name in ["member/snap", "member/fjall"] {
            std::fs::create_dir_all(dir.at(name)).unwrap();
        }
        std::fs::write(dir.at("member/rusd.lock"), b"").unwrap();
        let mut wal = Wal::create(&dir.at("member/wal"), ID).unwrap();
        let entry = |index| Entry { term: 2, index, data: vec![1; 900].into(), ..Entry::default() };
        let entries: Vec<Entry> = (1..=LAST).map(entry).collect();
        let state = HardState { term: 2, vote: 7, commit: 10 };
        wal.save(Some(&state), &entries, true).unwrap();
        drop(wal);
        write_database(&dir.at("member/snap/db"), DATABASE, 2);
        dir.fill_engine(&[]);
        dir
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes the engine from the database file and what came later, and then `ops`.
    fn fill_engine(&self, ops: &[Op]) {
        std::fs::remove_dir_all(self.at("member/fjall")).unwrap();
        let on_fatal = Box::new(|reason: &str| panic!("{reason}"));
        let engine = Engine::open(&self.at("member/fjall"), ID, on_fatal).unwrap().engine;
        import::import(&File::open(self.at("member/snap/db")).unwrap(), &engine).unwrap();
        for n in DATABASE + 1..=ENGINE {
            let key_row = row(crate::mvcc::backend::Bucket::Key, key(n), Some(value(n)));
            engine.submit(batch(vec![key_row], n));
        }
        engine.submit(batch(ops.to_vec(), ENGINE));
        engine.close().unwrap();
    }

    fn check(&self) -> (Verdict, Vec<Finding>) {
        let mut found = Found::default();
        let verdict = check(self.0.path(), None, &mut found).unwrap();
        let worst = found.findings.iter().map(|finding| finding.verdict).max();
        assert_eq!(worst, Some(verdict));
        (verdict, found.findings)
    }

    /// Checks that the verdict is this, because of this file for this reason.
    fn assert(&self, verdict: Verdict, file: &str, text: &str) {
        let (found, findings) = self.check();
        let named = findings.iter().any(|finding| {
            let path = finding.path.display().to_string();
            finding.verdict == verdict && path.contains(file) && finding.text.contains(text)
        });
        assert!(found == verdict && named, "{file}, {text}: {found:?}, {findings:#?}");
    }

    fn segment(&self) -> File {
        let name = "member/wal/0000000000000000-0000000000000000.wal";
        File::options().read(true).write(true).open(self.at(name)).unwrap()
    }

    fn write_snap(&self, index: u64, term: u64, tree: &str) -> PathBuf {
        let metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        let data = Bytes::copy_from_slice(tree.as_bytes());
        let data = raftpb::Snapshot { data, metadata: Some(metadata) }.encode_to_vec();
        let snap = snappb::Snapshot { crc: crc32c::crc32c(&data), data: data.into() };
        let path = self.at(&format!("member/snap/{term:016x}-{index:016x}.snap"));
        std::fs::write(&path, snap.encode_to_vec()).unwrap();
        path
    }
}

#[test]
fn a_sound_directory_is_sound() {
    let dir = Dir::new();
    let (verdict, findings) = dir.check();
    assert_eq!(verdict, Verdict::Sound, "{findings:#?}");
    let texts: Vec<&str> = findings.iter().map(|finding| &finding.text[..]).collect();
    assert!(texts[0].starts_with("1 segments, entries 1 to 12, commit index 10, member 7"));
    assert!(texts[1].contains("up to entry 5 and revision 5"), "{texts:?}");
    assert!(texts[2].contains("up to entry 9 and revision 9"), "{texts:?}");
    assert!(texts[3].starts_with("9 rows compared"), "{texts:?}");
    // A snapshot that the log does not have is passed over.
    dir.write_snap(4, 2, EMPTY);
    dir.assert(Verdict::Sound, ".snap", "the log does not have it");
    // Without an engine, as an etcd leaves it.
    std::fs::remove_dir_all(dir.at("member/fjall")).unwrap();
    dir.assert(Verdict::Sound, "member/fjall", "the next start makes it");
    // Without a database file, as a rusd may leave it.
    std::fs::remove_file(dir.at("member/snap/db")).unwrap();
    assert_eq!(dir.check().0, Verdict::Sound);
}

#[test]
fn what_compaction_takes_is_no_difference() {
    use crate::mvcc::backend::Bucket::{Key, Meta};
    let dir = Dir::new();
    let mark = row(Meta, b"scheduledCompactRev".to_vec(), Some(key(3)));
    dir.fill_engine(&[mark.clone(), row(Key, key(2), None)]);
    dir.assert(Verdict::Sound, "member/fjall", "rows compared");
    for ops in [[mark.clone(), row(Key, key(4), None)], [mark, row(Key, key(2), Some(vec![1]))]] {
        dir.fill_engine(&ops);
        dir.assert(Verdict::Damaged, "member/fjall", "bucket key, key 000000000000000");
    }
}

#[test]
fn damage_is_told_with_file_and_reason() {
    type Harm = Box<dyn Fn(&Dir)>;
    let flip =
        |at: u64| -> Harm { Box::new(move |dir| dir.segment().write_all_at(&[0xff], at).unwrap()) };
    let database = |index, term| -> Harm {
        Box::new(move |dir| {
            write_database(&dir.at("member/snap/db"), index, term);
            dir.fill_engine(&[]);
        })
    };
    let garbage = |name: &'static str, at: u64| -> Harm {
        Box::new(move |dir| {
            let file = File::options().write(true).open(dir.at(name)).unwrap();
            file.write_all_at(&[0xff; 64], at).unwrap();
        })
    };
    use Verdict::{Damaged, Repairable};
    let end = |dir: &Dir| inspect(&dir.at("member/wal"), &mut |_, _| {}).unwrap().end.1;
    let cases: Vec<(Harm, Verdict, &str, &str)> = vec![
        (flip(3_000), Damaged, ".wal", ": crc mismatch"),
        (
            Box::new(move |dir| {
                // The last record's end never reached the disk.
                let file = dir.segment();
                let zeros = vec![0; 2_000];
                file.write_all_at(&zeros, end(dir) / 512 * 512).unwrap();
            }),
            Repairable,
            ".wal",
            "in a write that never finished",
        ),
        (
            Box::new(move |dir| dir.segment().write_all_at(b"left", end(dir) + 600).unwrap()),
            Repairable,
            ".wal",
            "has bytes behind its end",
        ),
        (
            Box::new(|dir| std::fs::remove_dir_all(dir.at("member/wal")).unwrap()),
            Damaged,
            "member/wal",
            "no log",
        ),
        (garbage("member/snap/db", 4096 * 3), Damaged, "snap/db", "bbolt: page 3"),
        (database(LAST + 1, 2), Damaged, "snap/db", "but the log ends at 12"),
        (database(DATABASE, 1), Damaged, "snap/db", "entry 5 in term 1, the log's is another"),
        (
            Box::new(|dir| write_database(&dir.at("member/snap/db"), DATABASE, 2)),
            Repairable,
            "member/fjall",
            "from another state of the database file",
        ),
        (
            Box::new(|dir| std::fs::write(dir.at("member/fjall/DAMAGED"), "it was").unwrap()),
            Repairable,
            "member/fjall",
            "the next start makes it again",
        ),
        (
            Box::new(|dir| {
                let path = dir.write_snap(4, 2, EMPTY);
                std::fs::write(path, b"nothing").unwrap();
            }),
            Repairable,
            ".snap",
            "",
        ),
        (Box::new(|dir| drop(dir.write_snap(4, 2, "{\"Root\""))), Repairable, ".snap", "EOF"),
        (
            Box::new(|dir| drop(dir.write_snap(4, 2, MEMBER))),
            Repairable,
            ".snap",
            "members 2a, its",
        ),
        (
            Box::new(|dir| {
                // The log has it, so a start would take it.
                let (mut wal, _) = Wal::open(&dir.at("member/wal")).unwrap();
                wal.save_snapshot(4, 2, &ConfState::default()).unwrap();
                dir.write_snap(4, 2, &MEMBER.replace("raftAttributes", "other"));
            }),
            Damaged,
            ".snap",
            "has no URLs",
        ),
        (
            Box::new(|dir| drop(dir.write_snap(4, 1, EMPTY))),
            Damaged,
            ".snap",
            "entry 4 in term 1, the log's is another",
        ),
    ];
    for (harm, verdict, file, text) in cases {
        let dir = Dir::new();
        harm(&dir);
        dir.assert(verdict, file, text);
        // Looking changed nothing.
        dir.assert(verdict, file, text);
    }
}

#[test]
fn who_uses_the_directory_is_not_disturbed() {
    let dir = Dir::new();
    let locked = |dir: &Dir| {
        let error = check(dir.0.path(), None, &mut Found::default()).unwrap_err();
        matches!(error, CheckError::Locked(_))
    };
    let held = Wal::open(&dir.at("member/wal")).unwrap();
    assert!(locked(&dir));
    drop(held);
    for name in ["member/rusd.lock", "member/snap/db"] {
        let file = File::open(dir.at(name)).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(locked(&dir), "{name}");
    }
    assert_eq!(dir.check().0, Verdict::Sound);
    let held = Engine::inspect(&dir.at("member/fjall"), ID).unwrap().unwrap();
    assert!(locked(&dir));
    drop(held);
}
