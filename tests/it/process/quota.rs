//! The space quota: the write that exceeds it raises the alarm, which stays until it is disarmed.
//! The same test passes with etcd 3.5.17 (`RUSD_IT_BINARY`).

use super::daemon::{Member, members};
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::alarm_request::AlarmAction;
use tonic::Code;

const QUOTA: usize = 4 * 1024 * 1024;
const VALUE: usize = 64 * 1024;
const TEXT: &str = "etcdserver: mvcc: database space exceeded";

async fn put(member: &Member, key: &str, bytes: usize) -> Result<i64, tonic::Status> {
    let value = vec![b'x'; bytes].into();
    let put = rpc::PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    let response = member.kv().put(put).await?.into_inner();
    Ok(response.header.unwrap().revision)
}

async fn alarm(member: &Member, action: AlarmAction) -> Vec<rpc::AlarmMember> {
    let kind = rpc::AlarmType::Nospace as i32;
    // As etcdctl does it: list everything, disarm what it was told of.
    let (member_id, alarm) = match action {
        AlarmAction::Get => (0, 0),
        _ => (member.status().await.header.unwrap().member_id, kind),
    };
    let request = rpc::AlarmRequest { action: action as i32, member_id, alarm };
    member.maintenance().alarm(request).await.unwrap().into_inner().alarms
}

#[tokio::test]
async fn beyond_the_quota_writes_are_refused_until_disarmed() {
    let mut member = members(1, &["--quota-backend-bytes", &QUOTA.to_string()]).remove(0);
    member.start("");
    member.ready().await;
    let id = member.status().await.header.unwrap().member_id;
    let raised = vec![rpc::AlarmMember { member_id: id, alarm: rpc::AlarmType::Nospace as i32 }];
    let key = |i: usize| format!("key/{i:03}");

    let mut revision = 1;
    let mut refused = None;
    // Far more than fit: etcd notices what it has written up to 100 ms later.
    for i in 0..20 * QUOTA / VALUE {
        match put(&member, &key(i), VALUE).await {
            Ok(at) => revision = at,
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("a write exceeds the quota");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, TEXT));
    assert_eq!(alarm(&member, AlarmAction::Get).await, raised, "raised before the answer");
    let errors = member.status().await.errors;
    assert_eq!(errors, [format!("memberID:{id} alarm:NOSPACE ")]);

    // Refused: puts however small, leases, transactions with puts. Served: the rest.
    let refused = put(&member, "small", 1).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, TEXT));
    let grant = rpc::LeaseGrantRequest { ttl: 60, id: 0 };
    assert_eq!(member.lease().lease_grant(grant).await.unwrap_err().message(), TEXT);
    let delete = rpc::DeleteRangeRequest { key: key(0).into(), ..Default::default() };
    let header = member.kv().delete_range(delete).await.unwrap().into_inner().header;
    assert!(header.unwrap().revision <= revision + 1, "no refused write took a revision");

    // Disarmed while there is still no room, it comes back with the next write.
    assert_eq!(alarm(&member, AlarmAction::Deactivate).await, raised);
    assert_eq!(alarm(&member, AlarmAction::Get).await, []);
    assert_eq!(put(&member, "large", VALUE).await.unwrap_err().message(), TEXT);
    assert_eq!(alarm(&member, AlarmAction::Get).await, raised);

    // The alarm outlives the process, and more room does not clear it.
    member.kill();
    member.more("--quota-backend-bytes", "1000000000");
    member.start("");
    member.ready().await;
    assert_eq!(alarm(&member, AlarmAction::Get).await, raised);
    assert_eq!(put(&member, "small", 1).await.unwrap_err().message(), TEXT);

    assert_eq!(alarm(&member, AlarmAction::Deactivate).await, raised);
    put(&member, "small", 1).await.unwrap();
}

/// Quotas are each member's own: what fits where it was proposed may not fit elsewhere.
#[tokio::test]
async fn a_member_without_room_raises_its_alarm_when_it_applies() {
    let mut members = members(2, &[]);
    members[1].more("--quota-backend-bytes", &QUOTA.to_string());
    for member in &mut members {
        member.start("");
    }
    for member in &members {
        member.ready().await;
    }
    let mut refused = None;
    for i in 0..20 * QUOTA / VALUE {
        if let Err(status) = put(&members[0], &format!("key/{i:03}"), VALUE).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("the other member's alarm stops writes");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, TEXT));
    let id = members[1].status().await.header.unwrap().member_id;
    let raised = vec![rpc::AlarmMember { member_id: id, alarm: rpc::AlarmType::Nospace as i32 }];
    for member in &members {
        assert_eq!(alarm(member, AlarmAction::Get).await, raised);
    }
}
