//! The two framings of peer streams as pure state machines: bytes in, messages out, and back.
//!
//! Both decoders are fed whatever arrived and keep only that: a length is compared with a bound
//! when it is read and never used to allocate.
//! Uses: pb

#[cfg(test)]
mod tests;

use std::mem::size_of;

use bytes::{Buf, BufMut, BytesMut};
use prost::Message as _;

use crate::pb::raftpb::{Entry, EntryType, Message, MessageType};

/// Largest message on a stream or in a pipeline POST (etcd v3.5.17 msg_codec.go readBytesLimit).
pub const FRAME_BYTES_MAX: u64 = 512 * 1024 * 1024;

const TYPE_LINK_HEARTBEAT: u8 = 0;
const TYPE_APP_ENTRIES: u8 = 1;
const TYPE_APP: u8 = 2;
const LENGTH_BYTES: usize = 8;

/// Why bytes from a peer were refused. The stream cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A length above the bound.
    #[error("rafthttp: error limit exceeded")]
    TooLarge,
    /// A msgapp frame of no known type.
    #[error("failed to parse type {0} in msgappv2 stream")]
    UnknownFrame(u8),
    /// Not a protobuf message.
    #[error("malformed raft message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A message that no member sends.
    #[error("impossible raft message: {0}")]
    Impossible(&'static str),
}

/// What a stream carried.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "passed on at once, never kept")]
pub enum Received {
    /// The peer is alive and has nothing to say.
    LinkHeartbeat,
    /// A message for raft.
    Message(Message),
}

/// The message that stands for a link heartbeat: raft itself sends none without from and to.
pub fn is_link_heartbeat(message: &Message) -> bool {
    message.msg_type == MessageType::MsgHeartbeat as i32 && message.from == 0 && message.to == 0
}

/// Refuses what no correct member sends and what the state machine would not survive.
pub fn check(message: &Message) -> Result<(), CodecError> {
    use MessageType as T;
    let Ok(kind) = T::try_from(message.msg_type) else {
        return Err(CodecError::Impossible("unknown message type"));
    };
    if message.from == 0 || message.to == 0 {
        return Err(CodecError::Impossible("no sender or no receiver"));
    }
    if message.entries.iter().any(|entry| EntryType::try_from(entry.entry_type).is_err()) {
        return Err(CodecError::Impossible("unknown entry type"));
    }
    match kind {
        T::MsgHup | T::MsgBeat | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum => {
            Err(CodecError::Impossible("message type is local to a member"))
        }
        T::MsgAppend => check_append(message),
        T::MsgPropose if message.entries.is_empty() => {
            Err(CodecError::Impossible("proposal without entries"))
        }
        T::MsgReadIndex | T::MsgReadIndexResp if message.entries.len() != 1 => {
            Err(CodecError::Impossible("read index without its one entry"))
        }
        T::MsgSnapshot if message.snapshot.is_none() => {
            Err(CodecError::Impossible("snapshot message without snapshot"))
        }
        _ => Ok(()),
    }
}

/// Entries of an append follow each other and the entry before them.
fn check_append(message: &Message) -> Result<(), CodecError> {
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        if index.checked_add(1) != Some(entry.index) {
            return Err(CodecError::Impossible("append with a gap between entries"));
        }
        if entry.term < term || entry.term > message.term {
            return Err(CodecError::Impossible("append with terms out of order"));
        }
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

/// Decodes one checked message that fills `bytes`.
pub fn decode_message(bytes: &[u8]) -> Result<Message, CodecError> {
    let message = Message::decode(bytes)?;
    check(&message)?;
    Ok(message)
}

fn put_sized(out: &mut BytesMut, message: &impl prost::Message) {
    let len = message.encoded_len();
    out.reserve(LENGTH_BYTES + len);
    out.put_u64(len as u64);
    // A BytesMut grows, so that its capacity never falls short.
    let _ = message.encode(out);
}

/// The first eight bytes as a bounded length, if they are there.
fn peek_len(buffer: &BytesMut, limit: u64) -> Result<Option<usize>, CodecError> {
    let Some(mut head) = buffer.get(..LENGTH_BYTES) else { return Ok(None) };
    let len = head.get_u64();
    if len > limit {
        return Err(CodecError::TooLarge);
    }
    usize::try_from(len).map(Some).map_err(|_| CodecError::TooLarge)
}

/// Takes a length-prefixed body and hands it to `decode`. The body is copied out by prost, so
/// that a small message does not keep a large read buffer alive.
fn take_sized<T>(
    buffer: &mut BytesMut,
    limit: u64,
    decode: impl FnOnce(&[u8]) -> Result<T, CodecError>,
) -> Result<Option<T>, CodecError> {
    let Some(len) = peek_len(buffer, limit)? else { return Ok(None) };
    let Some(body) = buffer.get(LENGTH_BYTES..LENGTH_BYTES + len) else { return Ok(None) };
    let decoded = decode(body)?;
    buffer.advance(LENGTH_BYTES + len);
    Ok(Some(decoded))
}

/// Encoder of one stream.
#[derive(Debug)]
pub enum Encoder {
    /// Length-prefixed messages.
    Message,
    /// The msgapp stream: the term and index that the reader expects next.
    MsgApp {
        /// Term of the last append.
        term: u64,
        /// Index of the last entry sent.
        index: u64,
    },
}

impl Encoder {
    /// A fresh encoder for a message stream.
    pub fn message() -> Encoder {
        Encoder::Message
    }

    /// A fresh encoder for a msgapp stream.
    pub fn msgapp() -> Encoder {
        Encoder::MsgApp { term: 0, index: 0 }
    }

    /// Appends a link heartbeat to `out`.
    pub fn link_heartbeat(&self, out: &mut BytesMut) {
        match self {
            Encoder::Message => {
                let mut heartbeat = Message::default();
                heartbeat.set_msg_type(MessageType::MsgHeartbeat);
                put_sized(out, &heartbeat);
            }
            Encoder::MsgApp { .. } => out.put_u8(TYPE_LINK_HEARTBEAT),
        }
    }

    /// Appends `message` to `out`.
    pub fn encode(&mut self, message: &Message, out: &mut BytesMut) {
        let Encoder::MsgApp { term, index } = self else {
            return put_sized(out, message);
        };
        if *index == message.index && *term == message.log_term && message.log_term == message.term
        {
            out.put_u8(TYPE_APP_ENTRIES);
            out.put_u64(message.entries.len() as u64);
            for entry in &message.entries {
                put_sized(out, entry);
            }
            out.put_u64(message.commit);
            *index = index.wrapping_add(message.entries.len() as u64);
        } else {
            out.put_u8(TYPE_APP);
            put_sized(out, message);
            *term = message.term;
            *index = message.entries.last().map_or(message.index, |entry| entry.index);
        }
    }
}

/// Decoder of one stream.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    framing: Framing,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per stream")]
enum Framing {
    Message { limit: u64 },
    MsgApp(MsgAppState),
}

#[derive(Debug)]
struct MsgAppState {
    local: u64,
    remote: u64,
    term: u64,
    index: u64,
    pending: Option<PendingAppend>,
}

/// An append whose entries are still arriving.
#[derive(Debug)]
struct PendingAppend {
    message: Message,
    left: u64,
    /// Bytes that the rest of the entries may still take, in memory.
    budget: u64,
}

impl Decoder {
    /// Reads a message stream.
    pub fn message() -> Decoder {
        Decoder::message_limited(FRAME_BYTES_MAX)
    }

    /// Reads length-prefixed messages of at most `limit` bytes.
    pub fn message_limited(limit: u64) -> Decoder {
        Decoder { buffer: BytesMut::new(), framing: Framing::Message { limit } }
    }

    /// Reads the msgapp stream that `remote` sends to `local`.
    pub fn msgapp(local: u64, remote: u64) -> Decoder {
        let state = MsgAppState { local, remote, term: 0, index: 0, pending: None };
        Decoder { buffer: BytesMut::new(), framing: Framing::MsgApp(state) }
    }

    /// Adds what arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the stream ended between two frames.
    pub fn is_between_frames(&self) -> bool {
        let pending = matches!(&self.framing, Framing::MsgApp(state) if state.pending.is_some());
        self.buffer.is_empty() && !pending
    }

    /// What arrived behind the frames that were taken.
    pub fn into_rest(self) -> BytesMut {
        self.buffer
    }

    /// The next complete frame. After an error the decoder is of no use.
    pub fn next_frame(&mut self) -> Result<Option<Received>, CodecError> {
        match &mut self.framing {
            Framing::Message { limit } => take_sized(&mut self.buffer, *limit, |body| {
                let message = Message::decode(body)?;
                if is_link_heartbeat(&message) {
                    return Ok(Received::LinkHeartbeat);
                }
                check(&message)?;
                Ok(Received::Message(message))
            }),
            Framing::MsgApp(state) => state.next(&mut self.buffer),
        }
    }
}

impl MsgAppState {
    fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Received>, CodecError> {
        if let Some(pending) = self.pending.take() {
            return self.resume(pending, buffer);
        }
        let Some(kind) = buffer.first().copied() else { return Ok(None) };
        match kind {
            TYPE_LINK_HEARTBEAT => {
                buffer.advance(1);
                Ok(Some(Received::LinkHeartbeat))
            }
            TYPE_APP_ENTRIES => self.begin(buffer),
            TYPE_APP => self.full(buffer),
            other => Err(CodecError::UnknownFrame(other)),
        }
    }

    fn begin(&mut self, buffer: &mut BytesMut) -> Result<Option<Received>, CodecError> {
        if self.term == 0 {
            return Err(CodecError::Impossible("entries before any append"));
        }
        let Some(mut head) = buffer.get(1..=LENGTH_BYTES) else { return Ok(None) };
        let left = head.get_u64();
        if left > FRAME_BYTES_MAX / size_of::<Entry>() as u64 {
            return Err(CodecError::TooLarge);
        }
        buffer.advance(1 + LENGTH_BYTES);
        let mut message = Message {
            from: self.remote,
            to: self.local,
            term: self.term,
            log_term: self.term,
            index: self.index,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgAppend);
        self.resume(PendingAppend { message, left, budget: FRAME_BYTES_MAX }, buffer)
    }

    fn resume(
        &mut self,
        mut pending: PendingAppend,
        buffer: &mut BytesMut,
    ) -> Result<Option<Received>, CodecError> {
        while pending.left > 0 {
            let before = buffer.len();
            let entry = take_sized(buffer, pending.budget, |body| Ok(Entry::decode(body)?))?;
            let Some(entry) = entry else {
                self.pending = Some(pending);
                return Ok(None);
            };
            let cost = (before - buffer.len() + size_of::<Entry>()) as u64;
            pending.budget = pending.budget.checked_sub(cost).ok_or(CodecError::TooLarge)?;
            pending.message.entries.push(entry);
            pending.left -= 1;
        }
        let Some(mut commit) = buffer.get(..LENGTH_BYTES) else {
            self.pending = Some(pending);
            return Ok(None);
        };
        pending.message.commit = commit.get_u64();
        buffer.advance(LENGTH_BYTES);
        check(&pending.message)?;
        self.index = pending.message.entries.last().map_or(self.index, |entry| entry.index);
        Ok(Some(Received::Message(pending.message)))
    }

    fn full(&mut self, buffer: &mut BytesMut) -> Result<Option<Received>, CodecError> {
        // The type stays in front until the body is complete.
        let mut head = match buffer.get(1..=LENGTH_BYTES) {
            Some(head) => head,
            None => return Ok(None),
        };
        let len = head.get_u64();
        if len > FRAME_BYTES_MAX {
            return Err(CodecError::TooLarge);
        }
        let end = 1 + LENGTH_BYTES + usize::try_from(len).map_err(|_| CodecError::TooLarge)?;
        let Some(body) = buffer.get(1 + LENGTH_BYTES..end) else { return Ok(None) };
        let message = decode_message(body)?;
        if message.msg_type != MessageType::MsgAppend as i32 {
            return Err(CodecError::Impossible("no append on the msgapp stream"));
        }
        buffer.advance(end);
        self.term = message.term;
        self.index = message.entries.last().map_or(message.index, |entry| entry.index);
        Ok(Some(Received::Message(message)))
    }
}
