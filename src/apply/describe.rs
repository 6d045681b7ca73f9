//! Requests as a line of the log shows them: what they touch, sizes in place of values, no secrets.

use crate::base::limits::{LOG_KEY_BYTES_MAX, LOG_REQUEST_BYTES_MAX};
use crate::pb::etcdserverpb as rpc;
use rpc::request_op::Request as Op;
use std::fmt::Write as _;

/// A log entry's request, by id and contents. Kinds that hold nothing worth a look, or a secret,
/// show their name only.
pub fn request(request: &rpc::InternalRaftRequest) -> String {
    let id = request.header.as_ref().map_or(request.id, |header| header.id);
    let mut out = Text(format!("header:<ID:{id}"));
    if let Some(header) = request.header.as_ref().filter(|header| !header.username.is_empty()) {
        out.bytes("username", header.username.as_bytes());
    }
    out.0.push_str(" > ");
    if let Some(range) = &request.range {
        out.nested("range", |out| out.range(range));
    } else if let Some(put) = &request.put {
        out.nested("put", |out| out.put(put));
    } else if let Some(delete) = &request.delete_range {
        out.nested("delete_range", |out| out.delete(delete));
    } else if let Some(txn) = &request.txn {
        out.nested("txn", |out| out.txn(txn));
    } else if let Some(compaction) = &request.compaction {
        out.nested("compaction", |out| {
            out.number("revision", compaction.revision);
            out.flag("physical", compaction.physical);
        });
    } else if let Some(grant) = &request.lease_grant {
        let _ = write!(out.0, "lease_grant:<ttl:{}-second id:{:016x} >", grant.ttl, grant.id);
    } else if let Some(revoke) = &request.lease_revoke {
        let _ = write!(out.0, "lease_revoke:<id:{:016x} >", revoke.id);
    } else if let Some(checkpoint) = &request.lease_checkpoint {
        let _ = write!(out.0, "lease_checkpoint:<leases:{} >", checkpoint.checkpoints.len());
    } else if request.alarm.is_some() {
        out.0.push_str("alarm:<>");
    } else {
        out.0.push_str("other:<>");
    }
    out.0
}

/// A range read.
pub fn range(request: &rpc::RangeRequest) -> String {
    let mut out = Text(String::new());
    out.range(request);
    out.0
}

/// A transaction.
pub fn txn(request: &rpc::TxnRequest) -> String {
    let mut out = Text(String::new());
    out.txn(request);
    out.0
}

struct Text(String);

impl Text {
    fn is_full(&self) -> bool {
        self.0.len() >= LOG_REQUEST_BYTES_MAX
    }

    fn nested(&mut self, name: &str, fill: impl FnOnce(&mut Text)) {
        let _ = write!(self.0, "{name}:<");
        fill(self);
        self.0.push('>');
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        let shown = &value[..value.len().min(LOG_KEY_BYTES_MAX)];
        let _ = write!(self.0, "{name}:\"{}\"", shown.escape_ascii());
        if shown.len() < value.len() {
            let _ = write!(self.0, "…({} bytes)", value.len());
        }
        self.0.push(' ');
    }

    fn number(&mut self, name: &str, value: i64) {
        if value != 0 {
            let _ = write!(self.0, "{name}:{value} ");
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            let _ = write!(self.0, "{name}:true ");
        }
    }

    fn range(&mut self, range: &rpc::RangeRequest) {
        self.bytes("key", &range.key);
        self.bytes("range_end", &range.range_end);
        self.number("limit", range.limit);
        self.number("revision", range.revision);
        self.number("sort_order", range.sort_order.into());
        self.number("sort_target", range.sort_target.into());
        self.flag("serializable", range.serializable);
        self.flag("keys_only", range.keys_only);
        self.flag("count_only", range.count_only);
        self.number("min_mod_revision", range.min_mod_revision);
        self.number("max_mod_revision", range.max_mod_revision);
        self.number("min_create_revision", range.min_create_revision);
        self.number("max_create_revision", range.max_create_revision);
    }

    fn put(&mut self, put: &rpc::PutRequest) {
        self.bytes("key", &put.key);
        let _ = write!(self.0, "value_size:{} ", put.value.len());
        self.number("lease", put.lease);
        self.flag("prev_kv", put.prev_kv);
        self.flag("ignore_value", put.ignore_value);
        self.flag("ignore_lease", put.ignore_lease);
    }

    fn delete(&mut self, delete: &rpc::DeleteRangeRequest) {
        self.bytes("key", &delete.key);
        self.bytes("range_end", &delete.range_end);
        self.flag("prev_kv", delete.prev_kv);
    }

    /// Nesting is bounded by what a received message may nest.
    fn txn(&mut self, txn: &rpc::TxnRequest) {
        self.nested("compare", |out| {
            for compare in &txn.compare {
                if out.is_full() {
                    return;
                }
                out.number("target", compare.target.into());
                out.number("result", compare.result.into());
                out.bytes("key", &compare.key);
                out.bytes("range_end", &compare.range_end);
            }
        });
        for (name, ops) in [(" success", &txn.success), (" failure", &txn.failure)] {
            self.nested(name, |out| out.ops(ops));
        }
    }

    fn ops(&mut self, ops: &[rpc::RequestOp]) {
        for (done, op) in ops.iter().enumerate() {
            if self.is_full() {
                let _ = write!(self.0, "…({} more) ", ops.len() - done);
                return;
            }
            match &op.request {
                Some(Op::RequestRange(range)) => {
                    self.nested("request_range", |out| out.range(range));
                }
                Some(Op::RequestPut(put)) => self.nested("request_put", |out| out.put(put)),
                Some(Op::RequestDeleteRange(delete)) => {
                    self.nested("request_delete_range", |out| out.delete(delete));
                }
                Some(Op::RequestTxn(txn)) => self.nested("request_txn", |out| out.txn(txn)),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describe_shows_keys_and_sizes() {
        let put = rpc::PutRequest {
            key: "k\u{ff}\"".into(),
            value: "secret".into(),
            lease: 4660,
            prev_kv: true,
            ..Default::default()
        };
        let header = rpc::RequestHeader { id: 7, ..Default::default() };
        let entry = rpc::InternalRaftRequest {
            header: Some(header),
            put: Some(put.clone()),
            ..Default::default()
        };
        assert_eq!(
            request(&entry),
            r#"header:<ID:7 > put:<key:"k\xc3\xbf\"" value_size:6 lease:4660 prev_kv:true >"#
        );
        let read = rpc::RangeRequest { key: "a".into(), limit: 3, ..Default::default() };
        assert_eq!(range(&read), r#"key:"a" limit:3 "#);
        let ops = |op: Op| vec![rpc::RequestOp { request: Some(op) }];
        let both = rpc::TxnRequest {
            compare: vec![rpc::Compare { key: "c".into(), target: 3, ..Default::default() }],
            success: ops(Op::RequestPut(put)),
            failure: ops(Op::RequestRange(read)),
        };
        let text = txn(&both);
        assert!(text.starts_with(r#"compare:<target:3 key:"c" > success:<request_put:<key:"k"#));
        assert!(text.ends_with(r#" failure:<request_range:<key:"a" limit:3 >>"#), "{text}");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn describe_is_bounded() {
        let key = vec![b'k'; 1 << 20];
        let delete = rpc::DeleteRangeRequest { key: key.into(), ..Default::default() };
        let op = rpc::RequestOp { request: Some(Op::RequestDeleteRange(delete)) };
        let many = rpc::TxnRequest { success: vec![op; 128], ..Default::default() };
        let text = txn(&many);
        assert!(text.contains("more)") && text.contains("(1048576 bytes)"));
        assert!(text.len() < LOG_REQUEST_BYTES_MAX + 2 * LOG_KEY_BYTES_MAX);
    }

    #[test]
    fn describe_hides_passwords() {
        let user = rpc::AuthUserAddRequest {
            name: "u".into(),
            password: "secret".into(),
            ..Default::default()
        };
        let entry = rpc::InternalRaftRequest { auth_user_add: Some(user), ..Default::default() };
        assert_eq!(request(&entry), "header:<ID:0 > other:<>");
    }
}
