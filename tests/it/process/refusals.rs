//! Starts that etcd refuses are refused, with its words: settings that parse but cannot be meant.

use super::daemon::members;

/// Starts a member that has no data with further flags and waits for its end.
async fn refuses(flags: &[&str], said: &str) {
    let mut member = members(1, flags).remove(0);
    member.start("");
    assert_eq!(member.ended().await, Some(1), "{flags:?}: {}", member.log());
    let log = member.log().replace("\\\"", "\"");
    assert!(log.contains(said), "{flags:?}: no {said:?} in the log:\n{log}");
    assert!(!member.data_dir().join("member/wal").exists(), "{flags:?}: data was written");
}

#[tokio::test]
async fn a_cluster_in_which_this_member_is_another() {
    for (flags, said) in [
        (
            &["--initial-cluster", "m0=http://127.0.0.1:9999"][..],
            "--initial-cluster has m0=http://127.0.0.1:9999 but missing from \
             --initial-advertise-peer-urls=http://127.0.0.1:",
        ),
        (
            &["--initial-advertise-peer-urls", "http://localhost:1,http://localhost:2"],
            "but missing from --initial-advertise-peer-urls=http://localhost:1,http://localhost:2 \
             (len([\"http://localhost:1\" \"http://localhost:2\"]) != len([\"http://127.0.0.1:",
        ),
        (
            &["--name", "other"],
            "couldn't find local name \"other\" in the initial cluster configuration",
        ),
        (
            &["--initial-cluster", "m0=nonsense"],
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: \
             nonsense",
        ),
    ] {
        refuses(flags, said).await;
    }
}

#[tokio::test]
async fn a_cipher_suite_that_nobody_knows() {
    refuses(&["--cipher-suites", "NONE"], "unexpected TLS cipher suite \"NONE\"").await;
}
