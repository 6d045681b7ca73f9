//! Watches while the hub panics: clients notice nothing.

use super::daemon::{Member, single};
use rpc::watch_request::RequestUnion;
use rusd::pb::etcdserverpb as rpc;
use rusd::pb::mvccpb::Event;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::Streaming;

const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn watch(member: &Member, start_revision: i64) -> Streaming<rpc::WatchResponse> {
    let create = rpc::WatchCreateRequest {
        key: "watched/".into(),
        range_end: "watched0".into(),
        start_revision,
        prev_kv: true,
        ..Default::default()
    };
    let request = rpc::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let asked = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut answers = member.watch().watch(asked).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    answers
}

/// Reads until the event of revision `last`: every revision from `next` on, once, in order, each
/// with the value before it.
pub(super) async fn read(answers: &mut Streaming<rpc::WatchResponse>, mut next: i64, last: i64) {
    while next <= last {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
        for event in answer.unwrap().unwrap().events {
            let event: Event = prost::Message::decode(event).unwrap();
            let kv = event.kv.unwrap();
            assert_eq!(kv.mod_revision, next);
            let before = event.prev_kv.map(|kv| kv.mod_revision);
            assert_eq!(before, (kv.create_revision < next).then_some(next - 1));
            next += 1;
        }
    }
}

#[tokio::test]
async fn watch_hub_panics_and_streams_go_on() {
    const PUTS: i64 = 400;
    let member = single("watch-events=50*off->2*panic").await;
    let mut from_now = watch(&member, 0).await;
    let mut kv = member.kv();
    let mut first = 0;
    for number in 0..PUTS {
        let value = number.to_string().into();
        let put = rpc::PutRequest { key: "watched/k".into(), value, ..Default::default() };
        let revision = kv.put(put).await.unwrap().into_inner().header.unwrap().revision;
        if number == 0 {
            first = revision;
        }
        assert_eq!(revision, first + number, "nobody else writes");
    }
    let last = first + PUTS - 1;
    read(&mut from_now, first, last).await;
    let mut from_history = watch(&member, first).await;
    read(&mut from_history, first, last).await;
    member.logged("an actor panicked and is made anew").await;
    let restarts = member.metric("rusd_actor_restarts_total{actor=\"WatchHub\"}").await;
    assert_eq!(restarts.as_deref(), Some("2"));
}
