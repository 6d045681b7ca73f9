//! Put, delete range and transactions.

use super::Machine;
use super::txn::Path;
use crate::base::error::Error;
use crate::base::ids::LeaseId;
use crate::mvcc::backend::BackendError;
use crate::mvcc::{self, Current, ReadError, Row};
use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::KeyValue;
use bytes::Bytes;
use rpc::compare::{CompareResult, CompareTarget, TargetUnion};
use rpc::request_op::Request;
use rpc::response_op::Response;
use std::cmp::Ordering;

impl Machine {
    /// In a transaction the lease was looked up before anything was written.
    pub(super) fn put(
        &mut self,
        r: &rpc::PutRequest,
        in_txn: bool,
    ) -> Result<rpc::PutResponse, ReadError> {
        if !in_txn {
            self.check_lease(r.lease)?;
        }
        let mut prev_kv = Bytes::new();
        let revision = if r.prev_kv || r.ignore_value || r.ignore_lease {
            self.store.count_ranges(1);
            let current = self.store.current(&r.key).map(|current| current.row()).transpose()?;
            if current.is_none() && (r.ignore_value || r.ignore_lease) {
                return Err(ReadError::Refused(Error::KeyNotFound));
            }
            let current = current.unwrap_or_default();
            let before = Row::parse(&current)?;
            let value = if r.ignore_value { before.value } else { &r.value };
            let lease = if r.ignore_lease { before.lease } else { r.lease };
            let revision = self.store.put(&r.key, value, lease);
            if r.prev_kv {
                prev_kv = current;
            }
            revision
        } else {
            self.store.put(&r.key, &r.value, r.lease)
        };
        Ok(rpc::PutResponse { header: Some(mvcc::header(revision)), prev_kv })
    }

    fn check_lease(&self, lease: i64) -> Result<(), ReadError> {
        if lease != 0 && !self.leases.contains(LeaseId(lease)) {
            return Err(ReadError::Refused(Error::LeaseNotFound));
        }
        Ok(())
    }

    pub(super) fn delete_range(
        &mut self,
        r: &rpc::DeleteRangeRequest,
    ) -> Result<rpc::DeleteRangeResponse, ReadError> {
        let mut prev_kvs = Vec::new();
        if r.prev_kv {
            self.store.count_ranges(1);
            let mut failed = None;
            self.store.visit_current(&r.key, &r.range_end, |current| match current.row() {
                Ok(row) => {
                    prev_kvs.push(row);
                    true
                }
                Err(damage) => {
                    failed = Some(damage);
                    false
                }
            });
            if let Some(damage) = failed {
                return Err(damage.into());
            }
        }
        let deleted = self.store.delete_range(&r.key, &r.range_end);
        let header = Some(mvcc::header(self.store.txn_revision()));
        Ok(rpc::DeleteRangeResponse { header, deleted, prev_kvs })
    }

    /// See [`Path`]; puts are checked before ranges. An error undoes everything (etcd's server
    /// panics if a write transaction fails after the checks).
    pub(super) fn txn(&mut self, r: &rpc::TxnRequest) -> Result<rpc::TxnResponse, ReadError> {
        let path = Path::choose(r, &|compare| self.holds(compare))?;
        path.check(r, &|request| self.check_put(request))?;
        path.check(r, &|request| self.check_range(request))?;
        self.store.end_tally();
        let mut response = path.run(r, &mut |request| self.run(request))?;
        response.header = Some(mvcc::header(self.store.txn_revision()));
        Ok(response)
    }

    fn holds(&self, compare: &rpc::Compare) -> Result<bool, BackendError> {
        let target = CompareTarget::try_from(compare.target);
        let mut any = false;
        let mut outcome = Ok(true);
        self.store.count_ranges(1);
        self.store.visit_current(&compare.key, &compare.range_end, |current| {
            any = true;
            outcome = holds_for(compare, target.ok(), Some(&current));
            matches!(outcome, Ok(true))
        });
        match (any, target) {
            (true, _) => outcome,
            // There is no way to say "no value", so that nothing equals it.
            (false, Ok(CompareTarget::Value)) => Ok(false),
            (false, target) => holds_for(compare, target.ok(), None),
        }
    }

    fn check_put(&self, request: &Request) -> Result<(), ReadError> {
        let Request::RequestPut(put) = request else { return Ok(()) };
        if put.ignore_value || put.ignore_lease {
            self.store.count_ranges(1);
            if self.store.current(&put.key).is_none() {
                return Err(ReadError::Refused(Error::KeyNotFound));
            }
        }
        self.check_lease(put.lease)
    }

    fn check_range(&self, request: &Request) -> Result<(), ReadError> {
        let Request::RequestRange(range) = request else { return Ok(()) };
        match range.revision {
            0 => Ok(()),
            asked if asked > self.store.revision() => Err(ReadError::Refused(Error::FutureRev)),
            asked if asked < self.store.compact_revision() => {
                Err(ReadError::Refused(Error::Compacted))
            }
            _ => Ok(()),
        }
    }

    fn run(&mut self, request: &Request) -> Result<Option<Response>, ReadError> {
        Ok(match request {
            Request::RequestRange(r) => Some(Response::ResponseRange(self.store.range(r)?)),
            Request::RequestPut(r) => Some(Response::ResponsePut(self.put(r, true)?)),
            Request::RequestDeleteRange(r) => {
                Some(Response::ResponseDeleteRange(self.delete_range(r)?))
            }
            Request::RequestTxn(_) => None,
        })
    }
}

/// Whether a compare holds for one row of the store; a missing key has zeros.
fn holds_for(
    compare: &rpc::Compare,
    target: Option<CompareTarget>,
    current: Option<&Current<'_>>,
) -> Result<bool, BackendError> {
    let mut subject = Subject::default();
    let row;
    if let Some(current) = current {
        subject.create_revision = current.create_revision();
        subject.mod_revision = current.mod_revision();
        subject.version = current.version();
        if matches!(target, Some(CompareTarget::Value | CompareTarget::Lease)) {
            row = current.row()?;
            let parsed = Row::parse(&row)?;
            subject.value = parsed.value;
            subject.lease = parsed.lease;
        }
    }
    Ok(subject.holds(compare))
}

/// Whether a compare holds for a decoded row.
pub(super) fn compares(compare: &rpc::Compare, kv: &KeyValue) -> bool {
    let subject = Subject {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value: &kv.value,
    };
    subject.holds(compare)
}

/// What a compare looks at.
#[derive(Default)]
struct Subject<'a> {
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    lease: i64,
    value: &'a [u8],
}

impl Subject<'_> {
    /// A target without its value is compared with zero; an unknown target or result is equal
    /// (etcd v3.5.17 `server/etcdserver/apply.go` applyCompare).
    fn holds(&self, compare: &rpc::Compare) -> bool {
        let wanted = compare.target_union.as_ref();
        let ordering = match CompareTarget::try_from(compare.target) {
            Ok(CompareTarget::Value) => match wanted {
                Some(TargetUnion::Value(value)) => self.value.cmp(value),
                _ => self.value.cmp(&[]),
            },
            Ok(CompareTarget::Create) => self.create_revision.cmp(&match wanted {
                Some(TargetUnion::CreateRevision(revision)) => *revision,
                _ => 0,
            }),
            Ok(CompareTarget::Mod) => self.mod_revision.cmp(&match wanted {
                Some(TargetUnion::ModRevision(revision)) => *revision,
                _ => 0,
            }),
            Ok(CompareTarget::Version) => self.version.cmp(&match wanted {
                Some(TargetUnion::Version(version)) => *version,
                _ => 0,
            }),
            Ok(CompareTarget::Lease) => self.lease.cmp(&match wanted {
                Some(TargetUnion::Lease(lease)) => *lease,
                _ => 0,
            }),
            Err(_) => Ordering::Equal,
        };
        match CompareResult::try_from(compare.result) {
            Ok(CompareResult::Equal) => ordering.is_eq(),
            Ok(CompareResult::NotEqual) => ordering.is_ne(),
            Ok(CompareResult::Greater) => ordering.is_gt(),
            Ok(CompareResult::Less) => ordering.is_lt(),
            Err(_) => true,
        }
    }
}
