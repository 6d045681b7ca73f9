//! Checks that need no state, made before a request goes to raft, in etcd's order.

use crate::base::error::{Error, Result};
use crate::base::ids::MemberId;
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use prost::Message;
use prost::encoding::encoded_len_varint;
use rpc::request_op::Request;
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

/// A range needs a key. (etcd 3.5 takes any sort order and target: unknown ones do not sort.)
pub fn range(request: &rpc::RangeRequest) -> Result<()> {
    require_key(&request.key)
}

/// A put needs a key, and nothing that it is told to ignore.
pub fn put(request: &rpc::PutRequest) -> Result<()> {
    require_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// A delete needs a key.
pub fn delete_range(request: &rpc::DeleteRangeRequest) -> Result<()> {
    require_key(&request.key)
}

/// A transaction: its size, its operations, and that no key is written twice on one path.
pub fn txn(request: &rpc::TxnRequest, max_ops: usize) -> Result<()> {
    operations(request, max_ops)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// Refuses what would be larger than `max_bytes` as a log entry. The node fills in the header
/// later; here it counts as etcd writes it: a request id that starts with the member's low 16 bits.
pub fn raft_request_size(
    request: &rpc::InternalRaftRequest,
    member: MemberId,
    max_bytes: usize,
) -> Result<()> {
    let id = match &request.header {
        Some(header) if header.id != 0 => 0,
        Some(header) => header_len(member, header) - header_field_len(header),
        None => header_len(member, &rpc::RequestHeader::default()),
    };
    if request.encoded_len() + id > max_bytes {
        return Err(Error::RequestTooLarge);
    }
    Ok(())
}

/// Bytes of the header field once it has a request id drawn by `member`.
fn header_len(member: MemberId, header: &rpc::RequestHeader) -> usize {
    /// The part of the id below the member, at its usual length: 40 bits of time, 8 of counter.
    const BELOW_MEMBER: u64 = (1 << 48) - 1;
    let id = (member.0 << 48) | BELOW_MEMBER;
    header_field_len(&rpc::RequestHeader { id, ..header.clone() })
}

/// Bytes of the header field as it is.
fn header_field_len(header: &rpc::RequestHeader) -> usize {
    const TAG: usize = 2;
    let len = header.encoded_len();
    TAG + encoded_len_varint(len as u64) + len
}

/// Whether every operation is a range; a nested transaction is not, whatever it holds.
pub fn is_readonly(request: &rpc::TxnRequest) -> bool {
    all_operations(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether every operation is a serializable range. True for a transaction without operations.
pub fn is_serializable(request: &rpc::TxnRequest) -> bool {
    all_operations(request)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn all_operations(request: &rpc::TxnRequest) -> impl Iterator<Item = &rpc::RequestOp> {
    request.success.iter().chain(&request.failure)
}

fn require_key(key: &[u8]) -> Result<()> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// The longest of the three lists counts against the limit; nested transactions get the rest.
fn operations(request: &rpc::TxnRequest, max_ops: usize) -> Result<()> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let rest = max_ops.checked_sub(longest).ok_or(Error::TooManyOps)?;
    request.compare.iter().try_for_each(|compare| require_key(&compare.key))?;
    all_operations(request).try_for_each(|op| match &op.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete_range(request),
        Some(Request::RequestTxn(request)) => operations(request, rest),
        None => Err(Error::KeyNotFound),
    })
}

/// What a list of operations writes: put keys and deleted intervals.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Intervals,
}

impl<'a> Writes<'a> {
    /// Collects, or finds a key that is put twice or both put and deleted. The two branches of a
    /// nested transaction exclude each other, so they may put the same key.
    fn of(operations: &'a [rpc::RequestOp]) -> Result<Self> {
        let mut all = Self::default();
        for op in operations {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                all.deletes.insert(&delete.key, &delete.range_end);
            }
        }
        for op in operations {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                all.absorb(Self::of(&txn.success)?, Self::of(&txn.failure)?)?;
            }
        }
        for op in operations {
            if let Some(Request::RequestPut(put)) = &op.request {
                all.check_deletes(&put.key)?;
                if !all.puts.insert(&put.key) {
                    return Err(Error::DuplicateKey);
                }
            }
        }
        Ok(all)
    }

    fn absorb(&mut self, success: Self, failure: Self) -> Result<()> {
        for key in &success.puts {
            self.check_deletes(key)?;
            if !self.puts.insert(key) {
                return Err(Error::DuplicateKey);
            }
        }
        for key in &failure.puts {
            self.check_deletes(key)?;
            if !self.puts.insert(key) && !success.puts.contains(key) {
                return Err(Error::DuplicateKey);
            }
        }
        self.deletes.union(success.deletes);
        self.deletes.union(failure.deletes);
        Ok(())
    }

    fn check_deletes(&self, key: &[u8]) -> Result<()> {
        if self.deletes.contains(key) { Err(Error::DuplicateKey) } else { Ok(()) }
    }
}

/// Disjoint half-open intervals of keys: start → end.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    /// Adds one key, or `[key, range_end)`. An end that is not after the start covers nothing:
    /// etcd compares the from-key end `\0` as text here, so such deletes hide no duplicates.
    fn insert(&mut self, key: &Bytes, range_end: &Bytes) {
        let end = if range_end.is_empty() { successor(key) } else { range_end.clone() };
        self.insert_interval(key.clone(), end);
    }

    fn insert_interval(&mut self, mut start: Bytes, mut end: Bytes) {
        if end <= start {
            return;
        }
        // Swallow every interval that touches the new one.
        while let Some((s, e)) =
            self.0.range::<Bytes, _>(..=&end).next_back().filter(|(_, e)| **e >= start)
        {
            let (s, e) = (s.clone(), e.clone());
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    fn union(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.insert_interval(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .is_some_and(|(_, end)| key < end.as_ref())
    }
}

/// The smallest key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn b(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn put_op(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: b(key), ..Default::default() }))
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: b(key),
            range_end: b(range_end),
            prev_kv: false,
        }))
    }

    fn range_op(key: &'static str, serializable: bool) -> RequestOp {
        op(Request::RequestRange(RangeRequest { key: b(key), serializable, ..Default::default() }))
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(branches(success, failure)))
    }

    fn branches(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { compare: vec![], success, failure }
    }

    fn success(operations: Vec<RequestOp>) -> TxnRequest {
        branches(operations, vec![])
    }

    #[test]
    fn range_and_delete_need_a_key() {
        assert_eq!(range(&RangeRequest::default()), Err(Error::EmptyKey));
        assert_eq!(range(&RangeRequest { key: b("k"), ..Default::default() }), Ok(()));
        let unsorted = RangeRequest { key: b("k"), sort_target: 99, ..Default::default() };
        assert_eq!(range(&unsorted), Ok(()), "3.5 takes unknown sort targets");
        assert_eq!(delete_range(&DeleteRangeRequest::default()), Err(Error::EmptyKey));
        let delete = DeleteRangeRequest { key: b("k"), ..Default::default() };
        assert_eq!(delete_range(&delete), Ok(()));
    }

    #[test]
    fn put_rules_in_order() {
        let put_of = |key, value, lease, ignore_value, ignore_lease| {
            put(&PutRequest {
                key: b(key),
                value: b(value),
                lease,
                prev_kv: false,
                ignore_value,
                ignore_lease,
            })
        };
        for (result, want) in [
            (put_of("", "v", 1, true, true), Err(Error::EmptyKey)),
            (put_of("k", "v", 1, true, true), Err(Error::ValueProvided)),
            (put_of("k", "", 1, true, true), Err(Error::LeaseProvided)),
            (put_of("k", "", 0, true, true), Ok(())),
            (put_of("k", "v", 1, false, false), Ok(())),
            (put_of("k", "v", 0, false, true), Ok(())),
        ] {
            assert_eq!(result, want);
        }
    }

    #[test]
    fn txn_table() {
        let e = Err(Error::DuplicateKey);
        let cases: Vec<(&str, TxnRequest, Result<()>)> = vec![
            ("empty", success(vec![]), Ok(())),
            ("nil op", success(vec![RequestOp::default()]), Err(Error::KeyNotFound)),
            ("empty key", success(vec![put_op("")]), Err(Error::EmptyKey)),
            ("empty key in failure", branches(vec![], vec![put_op("")]), Err(Error::EmptyKey)),
            (
                "nested empty key",
                success(vec![txn_op(vec![put_op("")], vec![])]),
                Err(Error::EmptyKey),
            ),
            ("two puts", success(vec![put_op("a"), put_op("a")]), e),
            ("two puts in failure", branches(vec![], vec![put_op("a"), put_op("a")]), e),
            ("branches exclude", branches(vec![put_op("a")], vec![put_op("a")]), Ok(())),
            ("two deletes", success(vec![delete_op("a", ""), delete_op("a", "")]), Ok(())),
            ("put and delete", success(vec![put_op("a"), delete_op("a", "")]), e),
            ("delete and put", success(vec![delete_op("a", ""), put_op("a")]), e),
            ("put inside range", success(vec![put_op("b"), delete_op("a", "c")]), e),
            ("put at range end", success(vec![put_op("c"), delete_op("a", "c")]), Ok(())),
            ("put at range start", success(vec![put_op("a"), delete_op("a", "c")]), e),
            ("put before range", success(vec![put_op("a"), delete_op("b", "c")]), Ok(())),
            ("successor of deleted key", success(vec![put_op("a\0"), delete_op("a", "")]), Ok(())),
            (
                "from-key end is plain text",
                success(vec![put_op("b"), delete_op("a", "\0")]),
                Ok(()),
            ),
            (
                "overlapping deletes",
                success(vec![delete_op("a", "d"), delete_op("c", "f"), put_op("e")]),
                e,
            ),
            (
                "a gap between deletes",
                success(vec![delete_op("a", "c"), delete_op("d", "f"), put_op("c")]),
                Ok(()),
            ),
            (
                "nested put and put",
                success(vec![put_op("a"), txn_op(vec![put_op("a")], vec![])]),
                e,
            ),
            (
                "nested failure put and put",
                success(vec![put_op("a"), txn_op(vec![], vec![put_op("a")])]),
                e,
            ),
            (
                "nested branches exclude",
                success(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]),
                Ok(()),
            ),
            (
                "nested branches exclude, sibling does not",
                success(vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])]),
                e,
            ),
            (
                "nested put under delete",
                success(vec![txn_op(vec![put_op("b")], vec![]), delete_op("a", "c")]),
                e,
            ),
            (
                "put under nested delete",
                success(vec![put_op("b"), txn_op(vec![delete_op("a", "c")], vec![])]),
                e,
            ),
            (
                "put of a later sibling under nested delete",
                success(vec![
                    txn_op(vec![delete_op("a", "c")], vec![]),
                    txn_op(vec![put_op("b")], vec![]),
                ]),
                e,
            ),
            (
                "put of an earlier sibling escapes a later nested delete",
                success(vec![
                    txn_op(vec![put_op("b")], vec![]),
                    txn_op(vec![delete_op("a", "c")], vec![]),
                ]),
                Ok(()),
            ),
            (
                "delete in one branch, put in the other",
                success(vec![txn_op(vec![put_op("a")], vec![delete_op("a", "")])]),
                Ok(()),
            ),
            (
                "deep",
                success(vec![txn_op(vec![txn_op(vec![put_op("a")], vec![])], vec![]), put_op("a")]),
                e,
            ),
            ("range and put", success(vec![range_op("a", false), put_op("a")]), Ok(())),
        ];
        for (name, request, want) in cases {
            assert_eq!(txn(&request, 128), want, "{name}");
        }
    }

    #[test]
    fn txn_limits() {
        let keyless = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
        assert_eq!(txn(&keyless, 128), Err(Error::EmptyKey));
        assert_eq!(txn(&keyless, 0), Err(Error::TooManyOps));
        let three = success(vec![put_op("a"), put_op("b"), put_op("c")]);
        assert_eq!(txn(&three, 3), Ok(()));
        assert_eq!(txn(&three, 2), Err(Error::TooManyOps));
        let nested = success(vec![txn_op(vec![put_op("a"), put_op("b")], vec![])]);
        assert_eq!(txn(&nested, 3), Ok(()));
        assert_eq!(txn(&nested, 2), Err(Error::TooManyOps));
        let twice = success(vec![put_op("a"), put_op("a"), put_op("a")]);
        assert_eq!(txn(&twice, 2), Err(Error::TooManyOps), "size comes before duplicates");
        let empty_after_duplicates = branches(vec![put_op("a"), put_op("a")], vec![put_op("")]);
        assert_eq!(txn(&empty_after_duplicates, 9), Err(Error::EmptyKey));
    }

    #[test]
    fn readonly_and_serializable() {
        assert!(is_readonly(&success(vec![])) && is_serializable(&success(vec![])));
        assert!(is_readonly(&success(vec![range_op("a", false)])));
        assert!(!is_serializable(&success(vec![range_op("a", true), range_op("b", false)])));
        assert!(is_serializable(&branches(vec![range_op("a", true)], vec![range_op("b", true)])));
        assert!(!is_readonly(&success(vec![txn_op(vec![], vec![])])));
        assert!(!is_readonly(&branches(vec![range_op("a", true)], vec![put_op("a")])));
    }

    /// Asked of etcd v3.5.17 with key `k` and the default limit.
    #[test]
    fn raft_request_size_border_is_etcds() {
        let member = MemberId(3_982_666_145_420_501_407);
        for (size, want) in [(1_572_840, Ok(())), (1_572_841, Err(Error::RequestTooLarge))] {
            let put = PutRequest { key: b("k"), value: vec![0; size].into(), ..Default::default() };
            let request = rpc::InternalRaftRequest { put: Some(put), ..Default::default() };
            assert_eq!(raft_request_size(&request, member, 1_572_864), want);
        }
    }

    #[test]
    fn raft_request_size_counts_the_header() {
        let request = rpc::InternalRaftRequest {
            put: Some(PutRequest { key: b("k"), value: vec![0; 100].into(), ..Default::default() }),
            ..Default::default()
        };
        for member in
            [MemberId(0), MemberId(0x1234), MemberId(0x8e9e_05c5_2164_694d), MemberId(0xffff)]
        {
            let id = (member.0 << 48) | 0x1234_5678_9abc;
            for username in ["", "root"] {
                let auth_revision = username.len() as u64;
                let username = username.to_owned();
                let header = rpc::RequestHeader { id, username, auth_revision };
                let named = rpc::RequestHeader { id: 0, ..header.clone() };
                let with = |header| rpc::InternalRaftRequest { header, ..request.clone() };
                let full = with(Some(header.clone()));
                let size = full.encoded_len();
                assert_eq!(raft_request_size(&full, member, size), Ok(()));
                let bare = header.username.is_empty().then(|| with(None));
                for before in bare.into_iter().chain([with(Some(named))]) {
                    assert_eq!(raft_request_size(&before, member, size), Ok(()));
                    let refused = Err(Error::RequestTooLarge);
                    assert_eq!(raft_request_size(&before, member, size - 1), refused);
                }
            }
        }
    }
}
