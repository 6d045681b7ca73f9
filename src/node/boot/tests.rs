//! Tests of starts.

use super::*;
use crate::base::url::Url;
use crate::cli::{self, Command};
use crate::mvcc::backend::{Backend as _, Batch, Bucket};
use crate::pb::mvccpb::KeyValue;
use crate::pb::raftpb::Entry;
use crate::storage::bbolt::{Db, Writer};
use crate::transport::rafthttp;
use bytes::Bytes;
use prost::Message as _;
use std::fs::File;

/// No member is there.
struct Nobody;

impl Ask for Nobody {
    fn members(
        &self,
        _: &[Url],
        _: Duration,
    ) -> Result<(ClusterId, Vec<rafthttp::Member>), String> {
        Err("nobody is there".to_owned())
    }

    fn version(&self, _: &[Url], _: Duration) -> Result<(String, String), String> {
        Err("nobody is there".to_owned())
    }

    fn downgrade_enabled(&self, _: &[Url], _: Duration) -> Result<bool, String> {
        Err("nobody is there".to_owned())
    }
}

fn config(dir: &Path, words: &[&str]) -> Config {
    let mut args = vec!["rusd".to_owned(), format!("--data-dir={}", dir.display())];
    args.extend(words.iter().map(|word| (*word).to_owned()));
    match cli::parse(&args, &[]) {
        Command::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

/// A log that commits `committed` of three members' bootstrap entries and an entry behind.
fn write_cluster(config: &Config, committed: u64) -> MemberId {
    let members = [1, 2, 3].map(|n| {
        let peer_urls = vec![format!("http://m{n}:1")];
        let id = identity::member_id(&peer_urls, "").0;
        Member { id, peer_urls, ..Member::default() }
    });
    let (state, mut entries) = bootstrap(&members);
    entries.push(Entry { term: 1, index: 4, ..Entry::default() });
    let metadata = Metadata { node_id: members[1].id, cluster_id: 9 };
    let mut wal = Wal::create(&config.data_dir.join("member/wal"), metadata).unwrap();
    let state = HardState { commit: committed, ..state };
    wal.save(Some(&state), &entries, true).unwrap();
    MemberId(metadata.node_id)
}

#[test]
fn boot_forced_leaves_the_member_alone() {
    // All of the members are committed, and the entry behind stays; or not even this one.
    for (committed, commit) in [(3, 6), (0, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let (plain, forced) =
            (config(dir.path(), &[]), config(dir.path(), &["--force-new-cluster"]));
        let own = write_cluster(&plain, committed);
        // Again and again, as a start script may.
        for config in [&forced, &plain, &forced] {
            let booted = boot(config, &Nobody).unwrap();
            assert_eq!((booted.applied, booted.log.last_index), (commit, commit));
            assert!(booted.log.tail.is_empty());
            assert_eq!(booted.log.hard_state.commit, commit);
            assert_eq!(booted.log.conf_state.voters, [own.0]);
            let ids = booted.cluster.members().iter().map(|member| member.id);
            assert_eq!(ids.collect::<Vec<_>>(), [own.0]);
            booted.engine.close().unwrap();
        }
    }
}

#[test]
fn boot_forced_without_data_means_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let booted = boot(&config(dir.path(), &["--force-new-cluster"]), &Nobody).unwrap();
    assert_eq!((booted.applied, booted.log.last_index), (1, 1));
    booted.engine.close().unwrap();
}

#[test]
fn boot_mends_rows_of_an_older_engine() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let first = boot(&config, &Nobody).unwrap();
    let rows = [
        (Bucket::Members, Bytes::from(first.member.to_string())),
        (Bucket::Meta, Bytes::from_static(b"confState")),
        (Bucket::Auth, Bytes::from_static(b"authRevision")),
    ];
    let read = |booted: &Booted| rows.clone().map(|(b, key)| booted.engine.get(b, &key).unwrap());
    let before = read(&first);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let (consistent_index, term) = first.engine.position();
    assert_eq!((consistent_index, term), (1, 1));
    let ops = rows.clone().map(|(bucket, key)| (bucket, key, None)).to_vec();
    first.engine.submit(Batch { ops, consistent_index, term, ..Batch::default() });
    assert_eq!(read(&first), [None, None, None]);
    first.engine.close().unwrap();
    drop(first);
    let again = boot(&config, &Nobody).unwrap();
    assert_eq!(read(&again), before);
    again.engine.close().unwrap();
}

/// Makes etcd's database of a directory: at index 1 and with a row for each revision.
fn write_database(dir: &Path, revisions: std::ops::Range<u64>, txid: u64) {
    let mut writer = Writer::new(Vec::new());
    writer.bucket(b"key").unwrap();
    for main in revisions {
        let key = [&main.to_be_bytes()[..], b"_", &[0; 8]].concat();
        let row = KeyValue {
            key: format!("k{main}").into(),
            mod_revision: main as i64,
            create_revision: main as i64,
            version: 1,
            ..KeyValue::default()
        };
        writer.row(&key, &row.encode_to_vec()).unwrap();
    }
    writer.bucket(b"meta").unwrap();
    writer.row(b"consistent_index", &1u64.to_be_bytes()).unwrap();
    writer.row(b"term", &1u64.to_be_bytes()).unwrap();
    let (plan, pages) = writer.finish().unwrap();
    let file = [plan.meta_pages(txid), pages].concat();
    std::fs::write(dir.join("member/snap/db"), file).unwrap();
}

fn boot_revision(config: &Config) -> i64 {
    let booted = boot(config, &Nobody).unwrap();
    booted.engine.close().unwrap();
    assert_eq!(booted.cluster.members().iter().count(), 1);
    booted.machine.revision()
}

#[test]
fn boot_tells_a_damaged_database_from_a_changed_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    assert_eq!(boot_revision(&config), 1);
    write_database(dir.path(), 2..200, 4);
    assert_eq!(boot_revision(&config), 199);
    let db = dir.path().join("member/snap/db");
    let (bytes, engine) = (std::fs::read(&db).unwrap(), dir.path().join("member/fjall"));
    let at = bytes.windows(4).position(|key| key == b"k150").unwrap();
    let changed = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        std::fs::write(&db, bytes).unwrap();
    };
    // Written again as it was, as by a copy: no transaction, no other row.
    std::fs::write(&db, &bytes).unwrap();
    assert_eq!(boot_revision(&config), 199);
    // A row that is another, by no transaction.
    changed(at);
    let error = boot(&config, &Nobody).err().unwrap();
    assert!(error.contains("snap/db: bucket key, key 0000000000000096"), "{error}");
    assert!(error.contains("damaged"), "{error}");
    // A page that is none: the file is made again, from the engine.
    changed(at / 4096 * 4096 + 8);
    assert_eq!(boot_revision(&config), 199);
    let file = File::open(&db).unwrap();
    Db::open(&file).unwrap().check().unwrap();
    // Without the engine the file is all there is.
    changed(at / 4096 * 4096 + 8);
    std::fs::remove_dir_all(&engine).unwrap();
    let error = boot(&config, &Nobody).err().unwrap();
    assert!(error.contains("snap/db: bbolt: page"), "{error}");
}

#[test]
fn boot_imports_the_database_and_each_change_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    assert_eq!(boot_revision(&config), 1);
    // An etcd ran on the directory meanwhile.
    write_database(dir.path(), 2..6, 4);
    assert_eq!(boot_revision(&config), 5);
    assert_eq!(boot_revision(&config), 5);
    // With the engine lost it is made again from the file.
    std::fs::remove_dir_all(dir.path().join("member/fjall")).unwrap();
    assert_eq!(boot_revision(&config), 5);
    write_database(dir.path(), 2..9, 6);
    assert_eq!(boot_revision(&config), 8);
    // Revisions 9 to 11 are missing: no state of an etcd.
    let db = dir.path().join("member/snap/db");
    write_database(dir.path(), 12..14, 8);
    let error = boot(&config, &Nobody).err().unwrap();
    assert!(error.contains("hole: revision 12"), "{error}");
    std::fs::write(&db, [7; 20_000]).unwrap();
    let error = boot(&config, &Nobody).err().unwrap();
    assert!(error.contains("snap/db: checkpoint: bbolt: no valid meta page"), "{error}");
    write_database(dir.path(), 2..6, 10);
    assert_eq!(boot_revision(&config), 5);
    std::fs::remove_dir_all(dir.path().join("member/wal")).unwrap();
    let error = boot(&config, &Nobody).err().unwrap();
    assert!(error.contains("has no log beside it"), "{error}");
}
