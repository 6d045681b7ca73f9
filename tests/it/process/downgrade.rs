//! A downgrade of the cluster: what is refused, and who may start while it is under way.

use super::daemon::{Member, leader, members, start};
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::downgrade_request::DowngradeAction;
use rustix::process::Signal;
use tonic::{Code, Status};

async fn ask(at: &Member, action: DowngradeAction, version: &str) -> Result<String, Status> {
    let request = rpc::DowngradeRequest { action: action as i32, version: version.to_owned() };
    let answer = at.maintenance().downgrade(request).await?.into_inner();
    assert_ne!(answer.header.unwrap().member_id, 0);
    Ok(answer.version)
}

async fn refused(at: &Member, action: DowngradeAction, version: &str) -> (Code, String) {
    let status = ask(at, action, version).await.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn a_downgrade_is_the_clusters_and_outlives_a_stop() {
    use DowngradeAction::{Cancel, Enable, Validate};
    let mut members = start(members(3, &[]), "").await;
    let at = leader(&members, &[0, 1, 2]).await;
    members[at].logged("set the cluster version").await;
    let format = "etcdserver: wrong downgrade target version format".to_owned();
    assert_eq!(refused(&members[0], Validate, "x").await, (Code::InvalidArgument, format));
    let target = "etcdserver: invalid downgrade target version".to_owned();
    assert_eq!(refused(&members[0], Enable, "3.3").await, (Code::InvalidArgument, target));
    let none = (Code::FailedPrecondition, "etcdserver: no inflight downgrade job".to_owned());
    assert_eq!(refused(&members[0], Cancel, "").await, none);
    assert_eq!(ask(&members[1], Validate, "3.4").await.unwrap(), "3.5.0");
    assert_eq!(ask(&members[1], Enable, "3.4.0").await.unwrap(), "3.5.0");
    // Another member knows at once.
    let under_way = "etcdserver: cluster has a downgrade job in progress".to_owned();
    let under_way = (Code::FailedPrecondition, under_way);
    assert_eq!(refused(&members[2], Validate, "3.4").await, under_way);
    // Only a member of the target's version may start. A stop writes down what is committed.
    let gone = (at + 1) % 3;
    members[gone].signal(Signal::TERM);
    assert_eq!(members[gone].ended().await, Some(0));
    members[gone].start("");
    assert_eq!(members[gone].ended().await, Some(1));
    let refusal = "server version is not allowed to join when downgrade is enabled";
    assert!(members[gone].log().contains(refusal), "{}", members[gone].log());
    assert_eq!(ask(&members[(at + 2) % 3], Cancel, "").await.unwrap(), "3.5.0");
    assert_eq!(refused(&members[at], Cancel, "").await, none);
}

#[tokio::test]
async fn a_member_alone_that_was_downgraded_waits_for_the_older_server() {
    let mut members = start(members(1, &[]), "").await;
    members[0].logged("set the cluster version").await;
    ask(&members[0], DowngradeAction::Enable, "3.4").await.unwrap();
    // A stop writes down that it is committed.
    members[0].signal(Signal::TERM);
    assert_eq!(members[0].ended().await, Some(0));
    for store_is_there in [true, false] {
        if !store_is_there {
            std::fs::remove_dir_all(members[0].data_dir().join("member/fjall")).unwrap();
        }
        members[0].start("");
        assert_eq!(members[0].ended().await, Some(1));
        assert!(members[0].log().contains("invalid downgrade"), "{}", members[0].log());
    }
}
