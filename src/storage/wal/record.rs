//! The byte format of one WAL record: frame, `walpb.Record`, and the messages inside, written with
//! every scalar field present as etcd's encoder writes them.

use super::Metadata;
use crate::pb::raftpb::{ConfState, Entry, HardState};
use bytes::Bytes;

/// Length field in front of every record.
pub(super) const FRAME_BYTES: usize = 8;
/// A frame is padded to a multiple of this, so that a length field never straddles a sector.
const ALIGN: usize = 8;
/// The low bits of the length field that hold the length.
const LENGTH_BITS: u32 = 56;
/// Set in the top byte when the low three bits of that byte hold a padding.
const PADDED: u64 = 0x80;
/// The bits of the top byte that hold the padding.
const PAD_MASK: u64 = 0x7;
/// The unit in which a disk writes all or nothing.
pub(super) const SECTOR: u64 = 512;

/// Kinds of records.
pub(super) const METADATA: i64 = 1;
pub(super) const ENTRY: i64 = 2;
pub(super) const STATE: i64 = 3;
pub(super) const CRC: i64 = 4;
pub(super) const SNAPSHOT: i64 = 5;

/// Wire type of a length-delimited protobuf field.
const LEN_TYPE: u64 = 2;

/// A record as it lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Record<'a> {
    pub kind: i64,
    pub crc: u32,
    pub data: &'a [u8],
}

/// What the open pass needs of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct EntryHead {
    pub term: u64,
    pub index: u64,
}

/// Splits a length field into (record bytes, padding).
pub(super) fn unframe(field: u64) -> (u64, u64) {
    let length = field & ((1 << LENGTH_BITS) - 1);
    let top = field >> LENGTH_BITS;
    (length, if top & PADDED != 0 { top & PAD_MASK } else { 0 })
}

/// Padding behind a record of a length.
pub(super) fn padding(length: usize) -> usize {
    (ALIGN - length % ALIGN) % ALIGN
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_field(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3);
    put_varint(out, value);
}

/// Reads a varint at `at`, moving it on; `None` when it is cut short or too long.
fn varint(buf: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *buf.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Walks the fields of a message; `visit` gets (number, varint value, bytes). `None` if malformed.
fn fields<'a>(buf: &'a [u8], mut visit: impl FnMut(u64, u64, &'a [u8])) -> Option<()> {
    let mut at = 0;
    while at < buf.len() {
        let tag = varint(buf, &mut at)?;
        if tag >> 3 == 0 {
            return None;
        }
        match tag & 7 {
            0 => visit(tag >> 3, varint(buf, &mut at)?, &[]),
            LEN_TYPE => {
                let length = usize::try_from(varint(buf, &mut at)?).ok()?;
                let end = at.checked_add(length)?;
                visit(tag >> 3, 0, buf.get(at..end)?);
                at = end;
            }
            1 => at += 8,
            5 => at += 4,
            _ => return None,
        }
    }
    (at == buf.len()).then_some(())
}

/// Appends the frame of a record whose data `body` writes. Returns the checksum of the record,
/// which is `previous` continued over the data.
pub(super) fn put_record(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    previous: u32,
    kind: i64,
    body: impl FnOnce(&mut Vec<u8>),
) -> u32 {
    scratch.clear();
    body(scratch);
    let crc = crc32c::crc32c_append(previous, scratch);
    // A crc record has no data field at all.
    let has_data = kind != CRC;
    let mut length = 2 + 1 + varint_len(u64::from(crc));
    if has_data {
        length += 1 + varint_len(scratch.len() as u64) + scratch.len();
    }
    let pad = padding(length);
    let mut field = length as u64;
    if pad != 0 {
        field |= (PADDED | pad as u64) << LENGTH_BITS;
    }
    out.extend_from_slice(&field.to_le_bytes());
    put_field(out, 1, kind as u64);
    put_field(out, 2, u64::from(crc));
    if has_data {
        put_varint(out, 3 << 3 | LEN_TYPE);
        put_varint(out, scratch.len() as u64);
        out.extend_from_slice(scratch);
    }
    out.resize(out.len() + pad, 0);
    crc
}

/// Writes `raftpb.Entry`; the two fields that only the raft crate knows are not etcd's and stay
/// out.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_field(out, 1, entry.entry_type as u64);
    put_field(out, 2, entry.term);
    put_field(out, 3, entry.index);
    if !entry.data.is_empty() {
        put_varint(out, 4 << 3 | LEN_TYPE);
        put_varint(out, entry.data.len() as u64);
        out.extend_from_slice(&entry.data);
    }
}

/// Writes `raftpb.HardState`.
pub(super) fn put_state(out: &mut Vec<u8>, state: &HardState) {
    put_field(out, 1, state.term);
    put_field(out, 2, state.vote);
    put_field(out, 3, state.commit);
}

/// Writes etcd's `Metadata`.
pub(super) fn put_metadata(out: &mut Vec<u8>, metadata: Metadata) {
    put_field(out, 1, metadata.node_id);
    put_field(out, 2, metadata.cluster_id);
}

/// Writes a `walpb.Snapshot` without a ConfState.
pub(super) fn put_snapshot(out: &mut Vec<u8>, index: u64, term: u64) {
    put_field(out, 1, index);
    put_field(out, 2, term);
}

/// Writes the `raftpb.ConfState` of a `walpb.Snapshot`. Nothing is ever joint here.
pub(super) fn put_conf_state(out: &mut Vec<u8>, state: &ConfState) {
    let mut inner = Vec::new();
    for (number, ids) in [(1, &state.voters), (2, &state.learners)] {
        ids.iter().for_each(|id| put_field(&mut inner, number, *id));
    }
    put_field(&mut inner, 5, u64::from(state.auto_leave));
    put_varint(out, 3 << 3 | LEN_TYPE);
    put_varint(out, inner.len() as u64);
    out.extend_from_slice(&inner);
}

/// Reads a record; `None` if it is no lawful protobuf.
pub(super) fn record(buf: &[u8]) -> Option<Record<'_>> {
    let mut record = Record { kind: 0, crc: 0, data: &[] };
    fields(buf, |number, value, bytes| match number {
        1 => record.kind = value as i64,
        2 => record.crc = value as u32,
        3 => record.data = bytes,
        _ => {}
    })?;
    Some(record)
}

/// The length that the head of a record's bytes implies. `None` if the head is cut short, or if
/// nothing but zeros follows what was read: then the rest may never have reached the disk.
fn implied_length(head: &[u8]) -> Option<u64> {
    let mut at = 0;
    let mut implied = || {
        for tag in [1u64 << 3, 2 << 3] {
            if varint(head, &mut at)? != tag {
                return Some(0);
            }
            varint(head, &mut at)?;
        }
        if varint(head, &mut at)? != (3 << 3 | LEN_TYPE) {
            return Some(0);
        }
        let length = varint(head, &mut at)?;
        Some((at as u64).saturating_add(length))
    };
    let length = implied();
    if head[at..].iter().all(|byte| *byte == 0) { None } else { length }
}

/// Term and index of an encoded entry.
pub(super) fn entry_head(buf: &[u8]) -> Option<EntryHead> {
    let mut head = EntryHead::default();
    fields(buf, |number, value, _| match number {
        2 => head.term = value,
        3 => head.index = value,
        _ => {}
    })?;
    Some(head)
}

/// An encoded entry; its data is one copy.
pub(super) fn entry(buf: &[u8]) -> Option<Entry> {
    let mut entry = Entry::default();
    fields(buf, |number, value, bytes| match number {
        1 => entry.entry_type = value as i32,
        2 => entry.term = value,
        3 => entry.index = value,
        4 => entry.data = Bytes::copy_from_slice(bytes),
        _ => {}
    })?;
    Some(entry)
}

/// An encoded hard state.
pub(super) fn state(buf: &[u8]) -> Option<HardState> {
    let mut state = HardState::default();
    fields(buf, |number, value, _| match number {
        1 => state.term = value,
        2 => state.vote = value,
        3 => state.commit = value,
        _ => {}
    })?;
    Some(state)
}

/// Two numbers in fields 1 and 2: metadata's ids, or a snapshot's index and term.
pub(super) fn pair(buf: &[u8]) -> Option<(u64, u64)> {
    let mut pair = (0, 0);
    fields(buf, |number, value, _| match number {
        1 => pair.0 = value,
        2 => pair.1 = value,
        _ => {}
    })?;
    Some(pair)
}

/// Whether a frame's length field can be believed. The head of a record says the length a second
/// time; where the two differ the field is damaged, and cutting the log there would drop what
/// follows. etcd does not look. A head that never reached the disk has nothing to say.
pub(super) fn length_agrees(offset: u64, length: u64, payload: &[u8]) -> bool {
    let share = ((SECTOR - offset % SECTOR) as usize).min(payload.len());
    let head = &payload[..share];
    head.iter().all(|byte| *byte == 0) || implied_length(head).is_none_or(|l| l == length)
}

/// etcd's rule for a record that fails its check at the end of the log: if any sector's share of it
/// is all zeros, that sector was never written and the record is torn, not damaged. `offset` is
/// the file offset of `payload` (record and padding).
pub(super) fn is_torn(offset: u64, payload: &[u8]) -> bool {
    let mut rest = payload;
    let mut at = offset;
    while !rest.is_empty() {
        let share = ((SECTOR - at % SECTOR) as usize).min(rest.len());
        let (head, tail) = rest.split_at(share);
        if head.iter().all(|byte| *byte == 0) {
            return true;
        }
        at += share as u64;
        rest = tail;
    }
    false
}
