//! `rusd check-data` on the directory of a member: in use, sound after a kill, to be repaired,
//! repaired by a start, damaged.

use super::daemon::{Member, single};
use rusd::pb::etcdserverpb as rpc;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code, and what it printed.
fn check(dir: &Path) -> (Option<i32>, String) {
    let rusd = Command::new(env!("CARGO_BIN_EXE_rusd")).arg("check-data").arg(dir).output();
    let rusd = rusd.unwrap();
    // Progress is for terminals.
    assert_eq!(String::from_utf8(rusd.stderr).unwrap(), "");
    (rusd.status.code(), String::from_utf8(rusd.stdout).unwrap())
}

fn assert_check(dir: &Path, code: i32, last: &str, line: &str) {
    let (found, text) = check(dir);
    let lines: Vec<&str> = text.lines().collect();
    let fits = found == Some(code) && lines.last().is_some_and(|found| found.starts_with(last));
    assert!(fits && lines.iter().any(|found| found.starts_with(line)), "{found:?}:\n{text}");
}

fn segment(member: &Member) -> PathBuf {
    let segments = fs::read_dir(member.data_dir().join("member/wal")).unwrap();
    let mut paths = segments.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "wal")).unwrap()
}

async fn put(member: &Member, count: usize) {
    for n in 0..count {
        let key = format!("check/{n:04}").into_bytes().into();
        let put = rpc::PutRequest { key, value: vec![b'v'; 300].into(), ..Default::default() };
        member.kv().put(put).await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_is_checked_while_nobody_uses_it() {
    let mut member = single("").await;
    let dir = member.data_dir();
    put(&member, 200).await;
    assert_check(&dir, 3, "verdict: unknown: ", "verdict");
    member.kill();
    assert_check(&dir, 0, "verdict: sound", "ok       member/wal: 1 segments, entries 1 to 2");

    // What a write left that nobody waited for.
    let path = segment(&member);
    let end = fs::read(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"left", end + 2_000).unwrap();
    assert_check(&dir, 1, "verdict: to be repaired by the next start", "repair   member/wal/");
    fs::write(dir.join("member/fjall/DAMAGED"), "for a test").unwrap();
    assert_check(&dir, 1, "verdict: to be repaired", "repair   member/fjall: it was marked");
    member.start("");
    member.ready().await;
    put(&member, 1).await;
    member.kill();
    assert_check(&dir, 0, "verdict: sound", "ok       member/fjall: every row reads");

    let mut bytes = fs::read(&path).unwrap();
    let half = (end as usize / 2..).find(|at| bytes[*at] != 0).unwrap();
    bytes[half] ^= 0x41;
    fs::write(&path, bytes).unwrap();
    assert_check(&dir, 2, "verdict: damaged", "damaged  member/wal/");
}

#[test]
fn what_is_no_directory_of_a_member_is_said() {
    let tmp = tempfile::tempdir().unwrap();
    assert_check(tmp.path(), 2, "verdict: damaged", "damaged  member/wal: wal: no log in ");
    let usage = Command::new(env!("CARGO_BIN_EXE_rusd")).arg("check-data").output().unwrap();
    assert_eq!(usage.status.code(), Some(3));
}
