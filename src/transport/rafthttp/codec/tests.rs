//! Tests of the codecs: round trips, truncation, lying lengths, impossible contents.

use super::*;

fn entry(term: u64, index: u64, data: &[u8]) -> Entry {
    Entry { term, index, data: data.to_vec().into(), ..Entry::default() }
}

fn append(term: u64, log_term: u64, index: u64, entries: Vec<Entry>, commit: u64) -> Message {
    let mut m =
        Message { from: 1, to: 2, term, log_term, index, entries, commit, ..Message::default() };
    m.set_msg_type(MessageType::MsgAppend);
    m
}

fn of(kind: MessageType) -> Message {
    let mut m = Message { from: 1, to: 2, term: 3, ..Message::default() };
    m.set_msg_type(kind);
    m
}

fn appends() -> Vec<Message> {
    vec![
        append(1, 0, 0, vec![entry(1, 1, b"")], 0),
        append(1, 1, 1, vec![entry(1, 2, b"a"), entry(1, 3, &[7; 3000])], 1),
        append(1, 1, 3, vec![], 3),
        append(1, 1, 3, vec![entry(1, 4, b"b")], 3),
        append(4, 1, 4, vec![entry(4, 5, b"c")], 4),
        append(4, 4, 5, vec![entry(4, 6, b"d")], 5),
        append(4, 4, 2, vec![], 5),
    ]
}

fn drain(decoder: &mut Decoder) -> Vec<Received> {
    let mut out = Vec::new();
    while let Some(item) = decoder.next_frame().unwrap() {
        out.push(item);
    }
    out
}

#[test]
fn msgapp_round_trip_uses_the_short_form() {
    let (mut encoder, mut out) = (Encoder::msgapp(), BytesMut::new());
    let mut kinds = Vec::new();
    for message in appends() {
        let at = out.len();
        encoder.encode(&message, &mut out);
        kinds.push(out[at]);
    }
    encoder.link_heartbeat(&mut out);
    assert_eq!(kinds, [2, 1, 1, 1, 2, 1, 2]);
    let mut decoder = Decoder::msgapp(2, 1);
    decoder.feed(&out);
    let mut want: Vec<_> = appends().into_iter().map(Received::Message).collect();
    want.push(Received::LinkHeartbeat);
    assert_eq!(drain(&mut decoder), want);
    assert!(decoder.is_between_frames());
}

#[test]
fn msgapp_bytes_are_as_documented() {
    let (mut encoder, mut out) = (Encoder::msgapp(), BytesMut::new());
    encoder.encode(&append(1, 0, 0, vec![], 0), &mut out);
    out.clear();
    encoder.encode(&append(1, 1, 0, vec![entry(1, 1, b"x")], 9), &mut out);
    // log_term 1 is the expected term and index 0 the expected index: the short form.
    let body = entry(1, 1, b"x").encode_to_vec();
    let mut want = vec![1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, body.len() as u8];
    want.extend_from_slice(&body);
    want.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(out, want);
}

#[test]
fn every_truncation_waits_and_then_continues() {
    let (mut encoder, mut out) = (Encoder::msgapp(), BytesMut::new());
    appends().iter().for_each(|m| encoder.encode(m, &mut out));
    let want: Vec<_> = appends().into_iter().map(Received::Message).collect();
    for cut in 0..=out.len() {
        let mut decoder = Decoder::msgapp(2, 1);
        decoder.feed(&out[..cut]);
        let mut got = drain(&mut decoder);
        assert_eq!(got.len() == want.len(), cut == out.len());
        decoder.feed(&out[cut..]);
        got.extend(drain(&mut decoder));
        assert_eq!(got, want);
    }
    let (mut encoder, mut out) = (Encoder::message(), BytesMut::new());
    encoder.encode(&of(MessageType::MsgHeartbeat), &mut out);
    encoder.link_heartbeat(&mut out);
    encoder.encode(&of(MessageType::MsgAppendResponse), &mut out);
    for cut in 0..=out.len() {
        let mut decoder = Decoder::message();
        decoder.feed(&out[..cut]);
        let mut got = drain(&mut decoder);
        decoder.feed(&out[cut..]);
        got.extend(drain(&mut decoder));
        assert_eq!(got.len(), 3);
        assert_eq!(got[1], Received::LinkHeartbeat);
        assert!(decoder.is_between_frames());
    }
}

#[test]
fn byte_by_byte() {
    let (mut encoder, mut out) = (Encoder::msgapp(), BytesMut::new());
    appends().iter().for_each(|m| encoder.encode(m, &mut out));
    let mut decoder = Decoder::msgapp(2, 1);
    let mut got = Vec::new();
    for byte in &out {
        decoder.feed(&[*byte]);
        got.extend(drain(&mut decoder));
    }
    assert_eq!(got.len(), appends().len());
}

#[test]
fn lying_lengths_allocate_nothing() {
    let mut decoder = Decoder::message();
    decoder.feed(&FRAME_BYTES_MAX.to_be_bytes());
    assert!(decoder.next_frame().unwrap().is_none());
    assert!(decoder.buffer.capacity() < 1024);
    let mut decoder = Decoder::message();
    decoder.feed(&(FRAME_BYTES_MAX + 1).to_be_bytes());
    assert!(matches!(decoder.next_frame(), Err(CodecError::TooLarge)));

    let mut decoder = Decoder::msgapp(2, 1);
    decoder.feed(&[2, 255, 255, 255, 255, 255, 255, 255, 255]);
    assert!(matches!(decoder.next_frame(), Err(CodecError::TooLarge)));

    let (mut encoder, mut out) = (Encoder::msgapp(), BytesMut::new());
    encoder.encode(&append(1, 0, 0, vec![], 0), &mut out);
    let mut decoder = Decoder::msgapp(2, 1);
    decoder.feed(&out);
    decoder.feed(&[1, 0, 0, 0, 0, 0, 0, 255, 255]);
    drain(&mut decoder);
    assert!(decoder.buffer.capacity() < 1024);
    let mut decoder = Decoder::msgapp(2, 1);
    decoder.feed(&out);
    decoder.feed(&[1, 0, 0, 0, 1, 0, 0, 0, 0]);
    decoder.next_frame().unwrap();
    assert!(matches!(decoder.next_frame(), Err(CodecError::TooLarge)));
}

#[test]
fn impossible_contents_are_refused() {
    let mut unknown = of(MessageType::MsgHeartbeat);
    unknown.msg_type = 19;
    let mut entry_type = append(1, 1, 1, vec![entry(1, 2, b"")], 0);
    entry_type.entries[0].entry_type = 3;
    let bad = [
        unknown,
        entry_type,
        of(MessageType::MsgHup),
        of(MessageType::MsgBeat),
        of(MessageType::MsgUnreachable),
        of(MessageType::MsgSnapStatus),
        of(MessageType::MsgCheckQuorum),
        of(MessageType::MsgPropose),
        of(MessageType::MsgReadIndex),
        of(MessageType::MsgSnapshot),
        append(1, 1, 1, vec![entry(1, 3, b"")], 0),
        append(1, 1, u64::MAX, vec![entry(1, 0, b"")], 0),
        append(2, 2, 1, vec![entry(1, 2, b"")], 0),
        append(2, 1, 1, vec![entry(3, 2, b"")], 0),
        Message { from: 0, ..of(MessageType::MsgAppendResponse) },
        Message { to: 0, ..of(MessageType::MsgHeartbeat) },
    ];
    for message in bad {
        let mut out = BytesMut::new();
        put_sized(&mut out, &message);
        let mut decoder = Decoder::message();
        decoder.feed(&out);
        assert!(matches!(decoder.next_frame(), Err(CodecError::Impossible(_))), "{message:?}");
    }
    for bytes in [&[3u8][..], &[1, 0, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0, 1, 255]] {
        let mut decoder = Decoder::msgapp(2, 1);
        decoder.feed(bytes);
        assert!(decoder.next_frame().is_err());
    }
    let mut out = BytesMut::from(&[2u8][..]);
    put_sized(&mut out, &of(MessageType::MsgHeartbeat));
    let mut decoder = Decoder::msgapp(2, 1);
    decoder.feed(&out);
    assert!(decoder.next_frame().is_err());
}

#[test]
fn snapshot_header_limit_is_the_callers() {
    let mut decoder = Decoder::message_limited(3);
    decoder.feed(&4u64.to_be_bytes());
    assert!(matches!(decoder.next_frame(), Err(CodecError::TooLarge)));
}
