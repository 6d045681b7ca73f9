//! Alarms: raised and cleared by entries, kept in bucket Alarm.

use super::{Effect, Machine};
use crate::mvcc;
use crate::mvcc::backend::{Backend, BackendError, Bucket, Op};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use prost::Message;
use rpc::alarm_request::AlarmAction;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The raised alarms, by kind and member.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    raised: BTreeSet<(i32, u64)>,
}

impl Alarms {
    pub(super) fn open(backend: &dyn Backend) -> Result<Self, BackendError> {
        let mut alarms = Self::default();
        backend.try_scan(Bucket::Alarm, &[], None, &mut |key, _| {
            let alarm = rpc::AlarmMember::decode(key)
                .map_err(|error| BackendError(format!("a row of bucket alarm: {error}")))?;
            alarms.raised.insert((alarm.alarm, alarm.member_id));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(alarms)
    }

    fn any(&self, kind: rpc::AlarmType) -> bool {
        self.raised.range((kind as i32, 0)..=(kind as i32, u64::MAX)).next().is_some()
    }

    pub(super) fn corrupt(&self) -> bool {
        self.any(rpc::AlarmType::Corrupt)
    }

    pub(super) fn no_space(&self) -> bool {
        self.any(rpc::AlarmType::Nospace)
    }

    /// The alarms of a kind; all for `None`.
    pub(super) fn get(&self, kind: rpc::AlarmType) -> Vec<rpc::AlarmMember> {
        let wanted = |alarm: i32| kind == rpc::AlarmType::None || alarm == kind as i32;
        self.raised
            .iter()
            .filter(|(alarm, _)| wanted(*alarm))
            .map(|&raised| member(raised))
            .collect()
    }
}

fn member((alarm, member_id): (i32, u64)) -> rpc::AlarmMember {
    rpc::AlarmMember { member_id, alarm }
}

fn row(alarm: &rpc::AlarmMember, value: Option<Bytes>) -> Op {
    (Bucket::Alarm, alarm.encode_to_vec().into(), value)
}

impl Machine {
    pub(super) fn alarm(&mut self, r: &rpc::AlarmRequest) -> rpc::AlarmResponse {
        let header = Some(mvcc::header(self.store.revision()));
        let mut alarms = Vec::new();
        // A kind of a newer etcd is not ours to raise.
        let Ok(kind) = rpc::AlarmType::try_from(r.alarm) else {
            return rpc::AlarmResponse { header, alarms };
        };
        let raised = (r.alarm, r.member_id);
        match AlarmAction::try_from(r.action) {
            Ok(AlarmAction::Get) => alarms = self.alarms.get(kind),
            Ok(AlarmAction::Activate) if kind != rpc::AlarmType::None => {
                let alarm = member(raised);
                if self.alarms.raised.insert(raised) {
                    self.ops.push(row(&alarm, Some(Bytes::new())));
                    self.effects.push(Effect::AlarmsChanged);
                }
                alarms.push(alarm);
            }
            Ok(AlarmAction::Deactivate) if self.alarms.raised.remove(&raised) => {
                let alarm = member(raised);
                self.ops.push(row(&alarm, None));
                self.effects.push(Effect::AlarmsChanged);
                alarms.push(alarm);
            }
            _ => {}
        }
        rpc::AlarmResponse { header, alarms }
    }
}
