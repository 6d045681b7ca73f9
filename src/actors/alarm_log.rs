//! The lines that say an alarm came or went, as etcd words them.

use crate::pb::etcdserverpb as rpc;

fn name(alarm: &rpc::AlarmMember) -> &'static str {
    rpc::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name())
}

/// Logs the difference. As in etcd, only a kind's first alarm and its last are worth a line
/// (etcd v3.5.17 `apply.go` Alarm): what clients may do changes with these.
pub(super) fn changed(before: &[rpc::AlarmMember], after: &[rpc::AlarmMember]) {
    let has = |alarms: &[rpc::AlarmMember], kind| alarms.iter().any(|alarm| alarm.alarm == kind);
    for alarm in after.iter().filter(|alarm| !has(before, alarm.alarm)) {
        tracing::warn!(
            alarm = name(alarm),
            from = format!("{:x}", alarm.member_id),
            "alarm raised"
        );
    }
    for alarm in before.iter().filter(|alarm| !has(after, alarm.alarm)) {
        let from = format!("{:x}", alarm.member_id);
        tracing::warn!(alarm = name(alarm), from, "alarm disarmed");
    }
}
