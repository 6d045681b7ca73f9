//! Transactions that only read: evaluated on the published store, at one revision, outside the log.

use super::kv::compares;
use super::txn::Path;
use crate::base::error::{Error, Result};
use crate::mvcc::counts::Tally;
use crate::mvcc::{self, Reader};
use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::KeyValue;
use prost::Message as _;
use rpc::request_op::Request;
use rpc::response_op::Response;
use std::cell::Cell;

/// How often a transaction is evaluated anew because a compaction overtook it.
const ATTEMPTS_MAX: usize = 10;

/// Evaluates a transaction whose operations are all ranges. As in the log, every compare is
/// evaluated first, then the ranges of the chosen branches are checked, then they run.
pub fn txn_readonly(reader: &Reader, request: &rpc::TxnRequest) -> Result<rpc::TxnResponse> {
    let mut outcome = Err(Error::Compacted);
    for _ in 0..ATTEMPTS_MAX {
        let at = At { reader, revision: reader.revision(), ranges: Cell::default() };
        outcome = at.txn(request);
        reader.end_tally(Tally { ranges: at.ranges.get(), ..Tally::default() });
        let overtaken = reader.compact_revision() > at.revision;
        if !overtaken {
            break;
        }
    }
    outcome
}

struct At<'a> {
    reader: &'a Reader,
    revision: i64,
    ranges: Cell<u64>,
}

impl At<'_> {
    fn txn(&self, request: &rpc::TxnRequest) -> Result<rpc::TxnResponse> {
        let path = Path::choose(request, &|compare| self.holds(compare))?;
        path.check(request, &|request| self.check(request))?;
        let mut response = path.run(request, &mut |request| self.run(request))?;
        response.header = Some(mvcc::header(self.revision));
        Ok(response)
    }

    fn holds(&self, compare: &rpc::Compare) -> Result<bool> {
        let found = self.range(&rpc::RangeRequest {
            key: compare.key.clone(),
            range_end: compare.range_end.clone(),
            ..rpc::RangeRequest::default()
        })?;
        if found.kvs.is_empty() {
            let value = compare.target == rpc::compare::CompareTarget::Value as i32;
            return Ok(!value && compares(compare, &KeyValue::default()));
        }
        for row in &found.kvs {
            let current = KeyValue::decode(row.clone()).map_err(|_| Error::Corrupt)?;
            if !compares(compare, &current) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let Request::RequestRange(range) = request else { return Ok(()) };
        match range.revision {
            0 => Ok(()),
            asked if asked > self.revision => Err(Error::FutureRev),
            asked if asked < self.reader.compact_revision() => Err(Error::Compacted),
            _ => Ok(()),
        }
    }

    fn run(&self, request: &Request) -> Result<Option<Response>> {
        Ok(match request {
            Request::RequestRange(range) => Some(Response::ResponseRange(self.range(range)?)),
            _ => None,
        })
    }

    fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        let mut fixed = request.clone();
        if fixed.revision <= 0 {
            fixed.revision = self.revision;
        }
        self.ranges.set(self.ranges.get() + 1);
        let mut response = self.reader.range_of_txn(&fixed)?;
        response.header = Some(mvcc::header(self.revision));
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{Machine, Options};
    use crate::mvcc::backend::MemBackend;
    use std::sync::Arc;

    fn check(revision: i64) -> Result<()> {
        let mut machine =
            Machine::open(Arc::new(MemBackend::default()), Options::default()).unwrap();
        for index in 1..=3 {
            let put = rpc::PutRequest { key: "a".into(), ..rpc::PutRequest::default() };
            machine.apply(
                index,
                1,
                &rpc::InternalRaftRequest { put: Some(put), ..Default::default() },
            );
        }
        let compaction = Some(rpc::CompactionRequest { revision: 3, physical: false });
        machine.apply(4, 1, &rpc::InternalRaftRequest { compaction, ..Default::default() });
        let range = rpc::RangeRequest { key: "a".into(), revision, ..Default::default() };
        let success = vec![rpc::RequestOp { request: Some(Request::RequestRange(range)) }];
        let txn = rpc::TxnRequest { success, ..Default::default() };
        txn_readonly(&machine.reader(), &txn).map(|_| ())
    }

    /// `make diff` seeds 1 to 13: a negative revision inside a transaction is a compacted one.
    #[test]
    fn revisions_are_checked_as_in_the_log() {
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(3), Ok(()));
        assert_eq!(check(2), Err(Error::Compacted));
        assert_eq!(check(-1), Err(Error::Compacted));
        assert_eq!(check(5), Err(Error::FutureRev));
    }
}
