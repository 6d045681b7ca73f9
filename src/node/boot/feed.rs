//! The committed entries of the log, to the machine and the member table, as far as they lack them.

use crate::apply::{self, Machine, Payload, payload};
use crate::base::clock::{Clock as _, SystemClock};
use crate::cluster::state::Cluster;
use crate::mvcc::backend::Op;
use crate::pb::raftpb::Entry;
use crate::raft::driver::Change;
use crate::storage::wal::{Wal, WalError};
use crate::v2::Time;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Feeds the committed entries: all to the cluster's tree and table, those above its position to
/// the machine. Rows that membership leaves in the engine are compared with what is there.
pub(super) fn feed(
    wal: &Wal,
    range: RangeInclusive<u64>,
    machine: &mut Machine,
    cluster: &mut Cluster,
) -> Result<(), String> {
    let mut rows = BTreeMap::new();
    if !range.is_empty() {
        let mut visit = |entry: Entry| {
            let left = feed_entry(&entry, machine, cluster)?;
            rows.extend(left.into_iter().map(|(bucket, key, value)| ((bucket, key), value)));
            Ok(())
        };
        let (from, commit) = range.into_inner();
        wal.reader().for_each(from, commit, &mut visit).map_err(|error| error.to_string())?;
    }
    let mended = machine.mend(rows).map_err(|error| error.to_string())?;
    if mended > 0 {
        tracing::info!(rows = mended, "wrote membership rows that the engine lacked");
    }
    Ok(())
}

/// What the entry leaves in the engine on behalf of membership.
fn feed_entry(
    entry: &Entry,
    machine: &mut Machine,
    cluster: &mut Cluster,
) -> Result<Vec<Op>, WalError> {
    let (index, term) = (entry.index, entry.term);
    if let Some(change) = Change::of(entry) {
        let mut rows = Vec::new();
        if let Change::V1(change) = &change {
            let outcome = cluster.change(change);
            if let Err(rejected) = &outcome {
                tracing::warn!(error = %rejected, index, "rejected a conf change");
            }
            rows = apply::conf_change_rows(&outcome, cluster.members());
        }
        machine.record(index, term, rows.clone());
        return Ok(rows);
    }
    let held =
        payload(entry).map_err(|error| WalError::Stopped(format!("entry {index}: {error}")))?;
    match held {
        Payload::V3(request) => {
            cluster.apply_v3(&request);
            if index > machine.position().0 {
                machine.apply(index, term, &request);
            }
            Ok(apply::v3_rows(&request))
        }
        Payload::V2(request) => {
            // What it refuses is refused by all members.
            let _ = cluster.apply_v2(&request, Time::of_day(SystemClock.unix()));
            let rows = apply::v2_rows(&request);
            machine.record(index, term, rows.clone());
            Ok(rows)
        }
        Payload::Empty => {
            machine.skip(index, term);
            Ok(Vec::new())
        }
    }
}
