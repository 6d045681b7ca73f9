//! The walk over a transaction that the log and read-only transactions share: compares choose the
//! branches of all nested transactions first, then every request on the way is checked, then they
//! run.

use crate::mvcc;
use crate::pb::etcdserverpb as rpc;
use rpc::request_op::Request;
use rpc::response_op::Response;

/// The outcome of each transaction's compares on the way, outermost first, in order.
pub(super) struct Path(Vec<bool>);

fn branch(txn: &rpc::TxnRequest, succeeded: bool) -> &[rpc::RequestOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

impl Path {
    /// Evaluates compares; in each transaction those after the first that fails are not looked at.
    pub(super) fn choose<E>(
        txn: &rpc::TxnRequest,
        holds: &impl Fn(&rpc::Compare) -> Result<bool, E>,
    ) -> Result<Path, E> {
        let mut path = Vec::new();
        choose(txn, &mut path, holds)?;
        Ok(Path(path))
    }

    /// Applies a rule to every request on the way.
    pub(super) fn check<E>(
        &self,
        txn: &rpc::TxnRequest,
        rule: &impl Fn(&Request) -> Result<(), E>,
    ) -> Result<(), E> {
        check(txn, &mut self.0.iter().copied(), rule)
    }

    /// Runs every request on the way. As in etcd, only the outermost transaction's header gets a
    /// revision, from the caller.
    pub(super) fn run<E>(
        &self,
        txn: &rpc::TxnRequest,
        one: &mut impl FnMut(&Request) -> Result<Option<Response>, E>,
    ) -> Result<rpc::TxnResponse, E> {
        run(txn, &mut self.0.iter().copied(), one)
    }
}

fn choose<E>(
    txn: &rpc::TxnRequest,
    path: &mut Vec<bool>,
    holds: &impl Fn(&rpc::Compare) -> Result<bool, E>,
) -> Result<(), E> {
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(compare)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    for op in branch(txn, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            choose(nested, path, holds)?;
        }
    }
    Ok(())
}

fn check<E>(
    txn: &rpc::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
    rule: &impl Fn(&Request) -> Result<(), E>,
) -> Result<(), E> {
    for op in branch(txn, path.next().unwrap_or_default()) {
        match &op.request {
            Some(Request::RequestTxn(nested)) => check(nested, path, rule)?,
            Some(request) => rule(request)?,
            None => {}
        }
    }
    Ok(())
}

fn run<E>(
    txn: &rpc::TxnRequest,
    path: &mut impl Iterator<Item = bool>,
    one: &mut impl FnMut(&Request) -> Result<Option<Response>, E>,
) -> Result<rpc::TxnResponse, E> {
    let succeeded = path.next().unwrap_or_default();
    let ops = branch(txn, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(Request::RequestTxn(nested)) => {
                Some(Response::ResponseTxn(run(nested, path, one)?))
            }
            Some(request) => one(request)?,
            None => None,
        };
        responses.push(rpc::ResponseOp { response });
    }
    Ok(rpc::TxnResponse { header: Some(mvcc::header(0)), succeeded, responses })
}
