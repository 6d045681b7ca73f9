//! Rows of bucket Key: revision keys, and `mvccpb.KeyValue` encoded and read without copies.

use crate::base::ids::Revision;
use crate::mvcc::backend::BackendError;
use bytes::Bytes;

/// Length of a revision key without the tombstone mark.
pub(crate) const REVISION_LEN: usize = 17;
const TOMBSTONE_MARK: u8 = b't';

/// The key of a revision's row: big-endian main, `_`, big-endian sub.
pub(crate) fn revision_key(revision: Revision) -> [u8; REVISION_LEN] {
    let mut key = [b'_'; REVISION_LEN];
    key[..8].copy_from_slice(&revision.main.to_be_bytes());
    key[9..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

/// The key of a deletion's row: a revision key and `t`.
pub(crate) fn tombstone_key(revision: Revision) -> [u8; REVISION_LEN + 1] {
    let mut key = [TOMBSTONE_MARK; REVISION_LEN + 1];
    key[..REVISION_LEN].copy_from_slice(&revision_key(revision));
    key
}

/// Reads a key of bucket Key: the revision, and whether it is a deletion.
pub(crate) fn parse_revision_key(key: &[u8]) -> Result<(Revision, bool), BackendError> {
    let bad = || BackendError(format!("a row key of {} bytes in bucket key", key.len()));
    let tombstone = match key.get(REVISION_LEN..) {
        Some([]) => false,
        Some([TOMBSTONE_MARK]) => true,
        _ => return Err(bad()),
    };
    let number = |bytes: &[u8]| bytes.try_into().map(i64::from_be_bytes).map_err(|_| bad());
    Ok((Revision { main: number(&key[..8])?, sub: number(&key[9..REVISION_LEN])? }, tombstone))
}

/// A decoded `mvccpb.KeyValue` that borrows its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// Revision that created the key.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Number of writes since the creation, from 1.
    pub version: i64,
    /// The user value.
    pub value: &'a [u8],
    /// The lease it hangs on, or 0.
    pub lease: i64,
}

impl<'a> Row<'a> {
    /// Reads an encoded `mvccpb.KeyValue`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BackendError> {
        Self::try_parse(bytes)
            .ok_or_else(|| BackendError("a row of bucket key is no mvccpb.KeyValue".into()))
    }

    fn try_parse(mut rest: &'a [u8]) -> Option<Self> {
        let mut row = Self::default();
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            match tag & 7 {
                0 => {
                    let number = varint(&mut rest)? as i64;
                    match tag >> 3 {
                        2 => row.create_revision = number,
                        3 => row.mod_revision = number,
                        4 => row.version = number,
                        6 => row.lease = number,
                        _ => {}
                    }
                }
                2 => {
                    let len = usize::try_from(varint(&mut rest)?).ok()?;
                    let (field, after) = rest.split_at_checked(len)?;
                    rest = after;
                    match tag >> 3 {
                        1 => row.key = field,
                        5 => row.value = field,
                        _ => {}
                    }
                }
                1 => rest = rest.get(8..)?,
                5 => rest = rest.get(4..)?,
                _ => return None,
            }
        }
        Some(row)
    }

    /// Encodes as prost and gogo do: fields in order, defaults left out.
    pub fn encode(&self) -> Bytes {
        let capacity = self.key.len()
            + self.value.len()
            + 2
            + varint_len(self.key.len() as u64)
            + varint_len(self.value.len() as u64)
            + [self.create_revision, self.mod_revision, self.version, self.lease]
                .map(|n| if n == 0 { 0 } else { 1 + varint_len(n as u64) })
                .iter()
                .sum::<usize>();
        let mut out = Vec::with_capacity(capacity);
        put_bytes(&mut out, 0x0a, self.key);
        put_number(&mut out, 0x10, self.create_revision);
        put_number(&mut out, 0x18, self.mod_revision);
        put_number(&mut out, 0x20, self.version);
        put_bytes(&mut out, 0x2a, self.value);
        put_number(&mut out, 0x30, self.lease);
        Bytes::from(out)
    }
}

/// The row without its value, as `keys_only` wants it.
pub fn key_only(row: &[u8]) -> Result<Bytes, BackendError> {
    Ok(Row { value: &[], ..Row::parse(row)? }.encode())
}

/// What watchers get for a deletion: the key and its revision.
pub fn kv_deleted(key: &[u8], mod_revision: i64) -> Bytes {
    Row { key, mod_revision, ..Row::default() }.encode()
}

/// Where the key lies in a row made by [`Row::encode`], so that it can be sliced out.
pub(crate) fn key_in_row(row: &Bytes, key_len: usize) -> Bytes {
    if key_len == 0 {
        return Bytes::new();
    }
    let start = 1 + varint_len(key_len as u64);
    row.slice(start..start + key_len)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (at, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a protobuf varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(out: &mut Vec<u8>, tag: u8, value: i64) {
    if value != 0 {
        out.push(tag);
        put_varint(out, value as u64);
    }
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    if !value.is_empty() {
        out.push(tag);
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb;
    use prost::Message;

    #[test]
    fn rows_are_what_prost_makes() {
        for (key, value, lease, version) in [
            (vec![b'k'; 1], vec![], 0, 1),
            (vec![b'k'; 127], vec![b'v'; 128], 7, 300),
            (vec![0xff; 200], vec![0; 20_000], i64::MAX, i64::MAX),
            (vec![], vec![1], -5, 0),
        ] {
            let kv = mvccpb::KeyValue {
                key: key.clone().into(),
                value: value.clone().into(),
                create_revision: 5,
                mod_revision: 1 << 40,
                version,
                lease,
            };
            let row = Row {
                key: &key,
                value: &value,
                create_revision: 5,
                mod_revision: 1 << 40,
                version,
                lease,
            };
            let encoded = row.encode();
            assert_eq!(encoded, kv.encode_to_vec());
            assert_eq!(Row::parse(&encoded).unwrap(), row);
            assert_eq!(key_in_row(&encoded, key.len()), key);
        }
    }

    #[test]
    fn damage_is_an_error() {
        assert!(Row::parse(&[0x0a, 5, 1]).is_err());
        assert!(Row::parse(&[0x10]).is_err());
        assert!(parse_revision_key(&[0; 16]).is_err());
        assert!(parse_revision_key(&[b'x'; 18]).is_err());
        let revision = Revision { main: 3, sub: 9 };
        assert_eq!(parse_revision_key(&revision_key(revision)).unwrap(), (revision, false));
        assert_eq!(parse_revision_key(&tombstone_key(revision)).unwrap(), (revision, true));
    }
}
