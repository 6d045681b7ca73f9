//! A watch event, encoded once for all who receive it.

use crate::mvcc::row::{Row, put_varint};
use bytes::Bytes;
use std::sync::OnceLock;

/// Tags of `mvccpb.Event`: type (a varint), kv and prev_kv (messages).
const TYPE_TAG: u8 = 0x08;
const KV_TAG: u8 = 0x12;
const PREV_KV_TAG: u8 = 0x1a;
/// `mvccpb.Event.EventType.DELETE`.
const DELETE: u8 = 1;
/// Room for the type, the tag and the length of the kv.
const HEAD_BYTES: usize = 13;

/// One change as the store tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The user key.
    pub key: Bytes,
    /// Whether the key was deleted.
    pub delete: bool,
    /// Encoded `mvccpb.KeyValue`, with at least key and mod_revision.
    pub kv: Bytes,
}

/// One change as watchers get it.
#[derive(Debug)]
pub struct Event {
    /// The user key.
    pub key: Bytes,
    /// Whether the key was deleted.
    pub delete: bool,
    /// Revision of the transaction.
    pub mod_revision: i64,
    kv: Bytes,
    encoded: Bytes,
    with_prev: OnceLock<Bytes>,
}

impl Event {
    /// Encodes a change of transaction `mod_revision`.
    pub fn new(written: &Written, mod_revision: i64) -> Event {
        let mut out = Vec::with_capacity(HEAD_BYTES + written.kv.len());
        if written.delete {
            out.extend_from_slice(&[TYPE_TAG, DELETE]);
        }
        out.push(KV_TAG);
        put_varint(&mut out, written.kv.len() as u64);
        let at = out.len();
        out.extend_from_slice(&written.kv);
        let encoded = Bytes::from(out);
        Event {
            key: written.key.clone(),
            delete: written.delete,
            mod_revision,
            kv: encoded.slice(at..),
            encoded,
            with_prev: OnceLock::new(),
        }
    }

    /// Encoded `mvccpb.Event` without the previous row.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Encoded `mvccpb.Event` with the row that the change replaced, which `row_at` looks up by key
    /// and revision, once for all receivers. A key that was created has none; nor has one whose old
    /// row is compacted.
    pub fn with_prev(&self, row_at: impl FnOnce(&Bytes, i64) -> Option<Bytes>) -> &Bytes {
        self.with_prev.get_or_init(|| {
            let creates = !self.delete
                && Row::parse(&self.kv).is_ok_and(|row| row.create_revision == self.mod_revision);
            if creates {
                return self.encoded.clone();
            }
            let Some(prev) = row_at(&self.key, self.mod_revision - 1) else {
                return self.encoded.clone();
            };
            let mut out = Vec::with_capacity(self.encoded.len() + HEAD_BYTES + prev.len());
            out.extend_from_slice(&self.encoded);
            out.push(PREV_KV_TAG);
            put_varint(&mut out, prev.len() as u64);
            out.extend_from_slice(&prev);
            Bytes::from(out)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::kv_deleted;
    use crate::pb::mvccpb;
    use prost::Message as _;

    fn row(create_revision: i64, mod_revision: i64, value: &[u8]) -> Bytes {
        Row { key: b"k", create_revision, mod_revision, version: 1, value, lease: 0 }.encode()
    }

    #[test]
    fn events_are_what_prost_makes() {
        let old = row(2, 4, &[b'o'; 200]);
        for (delete, kv, prev) in [
            (false, row(5, 5, b"v"), None),
            (false, row(2, 5, &[b'v'; 20_000]), Some(old.clone())),
            (true, kv_deleted(b"k", 5), Some(old.clone())),
            (true, kv_deleted(b"k", 5), None),
        ] {
            let event = Event::new(&Written { key: "k".into(), delete, kv: kv.clone() }, 5);
            let decode = |bytes: &Bytes| mvccpb::KeyValue::decode(bytes.clone()).unwrap();
            let mut expected =
                mvccpb::Event { r#type: i32::from(delete), kv: Some(decode(&kv)), prev_kv: None };
            assert_eq!(*event.encoded(), expected.encode_to_vec());
            expected.prev_kv = prev.as_ref().map(decode);
            let found = prev.clone();
            let with_prev = event.with_prev(move |key, revision| {
                assert_eq!((&key[..], revision), (&b"k"[..], 4));
                found
            });
            assert_eq!(*with_prev, expected.encode_to_vec());
        }
    }

    #[test]
    fn the_previous_row_is_looked_up_once_and_never_for_a_new_key() {
        let written = Written { key: "k".into(), delete: true, kv: kv_deleted(b"k", 5) };
        let event = Event::new(&written, 5);
        let first = event.with_prev(|_, _| Some(row(2, 4, b"o"))).clone();
        assert_eq!(*event.with_prev(|_, _| panic!("again")), first);
        let written = Written { key: "k".into(), delete: false, kv: row(5, 5, b"v") };
        let event = Event::new(&written, 5);
        assert_eq!(event.with_prev(|_, _| panic!("a new key")), event.encoded());
    }
}
