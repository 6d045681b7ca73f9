//! The edge as a client sees it: real HTTP/2 on a loopback port, a fake node behind.

use super::testing::{FakeNode, FakeReads, Notes, QUOTA, options};
use super::{Services, status};
use crate::actors::watch_hub::tests::{World, compaction};
use crate::apply::{AuthReply, Reply};
use crate::base::error::Error;
use crate::base::ids::MemberId;
use crate::pb::{etcdserverpb as rpc, health as healthpb, mvccpb};
use prost::Message;
use rpc::auth_client::AuthClient;
use rpc::cluster_client::ClusterClient;
use rpc::kv_client::KvClient;
use rpc::lease_client::LeaseClient;
use rpc::maintenance_client::MaintenanceClient;
use rpc::watch_client::WatchClient;
use rpc::watch_request::RequestUnion;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

struct Server {
    node: Arc<FakeNode>,
    notes: Arc<Notes>,
    channel: Channel,
}

async fn serve() -> Server {
    serve_node(FakeNode::default()).await
}

async fn serve_node(node: FakeNode) -> Server {
    let (node, notes) = (Arc::new(node), Arc::new(Notes::default()));
    let services = Services::new(node.clone(), Arc::new(FakeReads), options(notes.clone()));
    let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let services = services.clone();
        async move { services.call(request).await.map(axum::body::Body::new) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let channel =
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Server { node, notes, channel }
}

impl Server {
    async fn noted(&self, wanted: &str) {
        for _ in 0..200 {
            if self.notes.0.lock().iter().any(|note| note == wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {wanted:?} in {:?}", self.notes.0.lock());
    }
}

fn assert_status<T: std::fmt::Debug>(result: Result<T, Status>, error: Error) {
    let (code, text) = status::code_and_text(error);
    let got = result.unwrap_err();
    assert_eq!((got.code(), got.message()), (code, text));
}

fn put_of(size: usize) -> rpc::PutRequest {
    rpc::PutRequest { key: "k".into(), value: vec![0; size].into(), ..Default::default() }
}

#[tokio::test]
async fn range_fills_the_header_and_reads_linearizably() {
    let server = serve().await;
    let mut kv = KvClient::new(server.channel.clone());
    let request = rpc::RangeRequest { key: "k".into(), ..Default::default() };
    let response = kv.range(request.clone()).await.unwrap().into_inner();
    let header = response.header.unwrap();
    assert_eq!(
        (header.cluster_id, header.member_id, header.revision, header.raft_term),
        (0x22, 0x11, 7, 2)
    );
    assert_eq!(*server.node.linearizable.lock(), 1);
    let serializable =
        rpc::RangeRequest { serializable: true, range_end: "z".into(), ..request.clone() };
    kv.range(serializable).await.unwrap();
    assert_eq!(*server.node.linearizable.lock(), 1);
    assert_status(kv.range(rpc::RangeRequest::default()).await, Error::EmptyKey);
    let future = rpc::RangeRequest { revision: 8, ..request };
    assert_status(kv.range(future).await, Error::FutureRev);
    server.noted("handled Range OutOfRange").await;
    let notes = server.notes.0.lock().clone();
    let first = [
        "client unary unknown",
        "started unary etcdserverpb.KV Range",
        "received Range",
        "sent Range",
        "handled Range Ok",
    ];
    assert_eq!(notes[..5], first);
}

#[tokio::test]
async fn put_proposes_and_errors_keep_code_and_text() {
    let server = serve().await;
    let mut kv = KvClient::new(server.channel.clone());
    let header = Some(rpc::ResponseHeader { revision: 42, ..Default::default() });
    *server.node.reply.lock() =
        Some(Ok(Reply::Put(rpc::PutResponse { header, ..Default::default() })));
    let response = kv.put(put_of(3)).await.unwrap().into_inner();
    assert_eq!(response.header.unwrap().revision, 42);
    assert!(server.node.proposed.lock()[0].put.is_some());
    for error in [Error::NoSpace, Error::TooManyRequests, Error::Timeout] {
        *server.node.reply.lock() = Some(Err(error));
        assert_status(kv.put(put_of(3)).await, error);
    }
}

#[tokio::test]
async fn sizes() {
    let server = serve().await;
    let mut kv = KvClient::new(server.channel.clone());
    assert_status(kv.put(put_of(1_572_864)).await, Error::RequestTooLarge);
    assert!(server.node.proposed.lock().is_empty());
    let error = kv.put(put_of(2 * 1024 * 1024)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.message(), "grpc: received message larger than max (2097160 vs. 2097152)");
}

#[tokio::test]
async fn beyond_the_quota_an_alarm_is_raised_before_any_other_check() {
    let server = serve().await;
    let mut kv = KvClient::new(server.channel.clone());
    *server.node.reply.lock() = Some(Ok(Reply::Alarm(rpc::AlarmResponse::default())));
    let mut large = put_of(QUOTA as usize);
    large.key = "".into();
    assert_status(kv.put(large).await, Error::NoSpace);
    let raise = rpc::AlarmRequest { action: 1, member_id: 0x11, alarm: 1 };
    let proposed = std::mem::take(&mut *server.node.proposed.lock());
    assert_eq!(proposed.len(), 1, "the put itself is not proposed");
    assert_eq!(proposed[0].alarm, Some(raise));
}

fn no_space() -> Vec<rpc::AlarmMember> {
    vec![rpc::AlarmMember { member_id: 5, alarm: 1 }]
}

#[tokio::test]
async fn while_there_is_no_space_a_nested_put_is_not_even_proposed() {
    let node = FakeNode { alarms: no_space(), ..FakeNode::default() };
    let server = serve_node(node).await;
    *server.node.reply.lock() = Some(Ok(Reply::Txn(rpc::TxnResponse::default())));
    let txn = |request| {
        let success = vec![rpc::RequestOp { request: Some(request) }];
        rpc::TxnRequest { success, ..Default::default() }
    };
    let put = txn(rpc::request_op::Request::RequestPut(put_of(1)));
    let mut kv = KvClient::new(server.channel.clone());
    let nested = txn(rpc::request_op::Request::RequestTxn(put));
    assert_status(kv.txn(nested).await, Error::NoSpace);
    assert!(server.node.proposed.lock().is_empty());
    let delete = rpc::DeleteRangeRequest { key: "k".into(), ..Default::default() };
    kv.txn(txn(rpc::request_op::Request::RequestDeleteRange(delete))).await.unwrap();
    // The size is looked at before, as in etcd, whose apply says the other.
    let large = txn(rpc::request_op::Request::RequestPut(put_of(1_572_864)));
    assert_status(kv.txn(large).await, Error::RequestTooLarge);
}

#[tokio::test]
async fn transactions() {
    let server = serve().await;
    let mut kv = KvClient::new(server.channel.clone());
    let response = kv.txn(rpc::TxnRequest::default()).await.unwrap().into_inner();
    assert!(response.succeeded, "evaluated by the reader");
    assert_eq!(*server.node.linearizable.lock(), 0, "no operations: serializable");
    let range = rpc::RangeRequest { key: "k".into(), ..Default::default() };
    let op = rpc::RequestOp { request: Some(rpc::request_op::Request::RequestRange(range)) };
    kv.txn(rpc::TxnRequest { success: vec![op], ..Default::default() }).await.unwrap();
    assert_eq!(*server.node.linearizable.lock(), 1);
    let put = rpc::RequestOp { request: Some(rpc::request_op::Request::RequestPut(put_of(1))) };
    let writes = rpc::TxnRequest { success: vec![put.clone()], ..Default::default() };
    *server.node.reply.lock() = Some(Ok(Reply::Txn(rpc::TxnResponse::default())));
    assert!(!kv.txn(writes).await.unwrap().into_inner().succeeded, "proposed");
    let twice = rpc::TxnRequest { success: vec![put.clone(), put], ..Default::default() };
    assert_status(kv.txn(twice).await, Error::DuplicateKey);
}

#[tokio::test]
async fn leases() {
    let server = serve().await;
    let mut client = LeaseClient::new(server.channel.clone());
    *server.node.reply.lock() = Some(Ok(Reply::LeaseGrant(rpc::LeaseGrantResponse::default())));
    client.lease_grant(rpc::LeaseGrantRequest { ttl: 5, id: 0 }).await.unwrap();
    let granted = server.node.proposed.lock()[0].lease_grant;
    assert_eq!(granted.unwrap().id, i64::MAX, "0 is drawn again, the sign bit is cleared");

    let asked = rpc::LeaseTimeToLiveRequest { id: 9, keys: true };
    let response = client.lease_time_to_live(asked).await.unwrap().into_inner();
    assert_eq!((response.id, response.ttl, response.header.unwrap().revision), (9, -1, 7));

    let listed = client.lease_leases(rpc::LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [1, 2]);

    let calls = [1, 3, 1, 2].map(|id| rpc::LeaseKeepAliveRequest { id });
    let answers = client.lease_keep_alive(futures_util::stream::iter(calls)).await.unwrap();
    let mut answers = answers.into_inner();
    for ttl in [60, 0, 60] {
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, ttl);
    }
    assert_status(answers.message().await, Error::Timeout);
    server.noted("handled LeaseKeepAlive Unavailable").await;
}

#[tokio::test]
async fn streams_that_require_a_leader_end_without_one() {
    let server = serve().await;
    let mut client = LeaseClient::new(server.channel.clone());
    let mut request = Request::new(futures_util::stream::pending());
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut answers = client.lease_keep_alive(request).await.unwrap().into_inner();
    server.node.raft.lock().leader = MemberId(0);
    assert_status(answers.message().await, Error::NoLeader);
    let mut again = Request::new(rpc::LeaseLeasesRequest {});
    again.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_status(client.lease_leases(again).await, Error::NoLeader);
    client.lease_leases(rpc::LeaseLeasesRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_learner_serves_status_and_serializable_ranges() {
    let node = FakeNode::default();
    node.raft.lock().is_learner = true;
    let server = serve_node(node).await;
    let mut kv = KvClient::new(server.channel.clone());
    let range = rpc::RangeRequest { key: "k".into(), ..Default::default() };
    assert_status(kv.range(range.clone()).await, Error::NotSupportedForLearner);
    kv.range(rpc::RangeRequest { serializable: true, ..range }).await.unwrap();
    assert_status(kv.put(put_of(1)).await, Error::NotSupportedForLearner);
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    assert!(maintenance.status(rpc::StatusRequest {}).await.unwrap().into_inner().is_learner);
    let mut cluster = ClusterClient::new(server.channel.clone());
    let listed = cluster.member_list(rpc::MemberListRequest { linearizable: false }).await;
    assert_status(listed, Error::NotSupportedForLearner);
}

#[tokio::test]
async fn status_members_auth_and_health() {
    let node = FakeNode { alarms: no_space(), ..FakeNode::default() };
    node.raft.lock().leader = MemberId(0);
    let server = serve_node(node).await;
    let mut maintenance = MaintenanceClient::new(server.channel.clone());
    let status = maintenance.status(rpc::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["etcdserver: no leader", "memberID:5 alarm:NOSPACE "]);
    assert_eq!((status.raft_index, status.raft_applied_index, status.raft_term), (9, 8, 2));
    assert_eq!((status.version.as_str(), status.db_size), ("3.5.17", 4096));
    let hash = maintenance.hash_kv(rpc::HashKvRequest { revision: 5 }).await.unwrap().into_inner();
    assert_eq!((hash.hash, hash.compact_revision, hash.header.unwrap().revision), (5, 4, 6));

    let mut cluster = ClusterClient::new(server.channel.clone());
    let listed = cluster.member_list(rpc::MemberListRequest { linearizable: true }).await;
    let listed = listed.unwrap().into_inner();
    assert_eq!((listed.members[0].id, listed.header.unwrap().revision), (0x11, 0));

    let mut auth = AuthClient::new(server.channel.clone());
    let told = rpc::AuthStatusResponse { auth_revision: 1, ..Default::default() };
    *server.node.reply.lock() = Some(Ok(Reply::Auth(AuthReply::Status(told))));
    let answer = auth.auth_status(rpc::AuthStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.enabled, answer.auth_revision), (false, 1));
    assert_eq!(answer.header.unwrap().revision, 7);
    let login = rpc::AuthenticateRequest { name: "root".into(), password: "p".into() };
    assert_status(auth.authenticate(login).await, Error::AuthNotEnabled);

    let mut health = healthpb::health_client::HealthClient::new(server.channel.clone());
    let whole = healthpb::HealthCheckRequest::default();
    assert_eq!(health.check(whole.clone()).await.unwrap().into_inner().status, 1);
    let mut watch = health.watch(whole).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    let other = healthpb::HealthCheckRequest { service: "x".into() };
    assert_eq!(health.check(other.clone()).await.unwrap_err().code(), Code::NotFound);
    let mut watch = health.watch(other).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 3);
}

#[tokio::test]
async fn deadlines_and_dropped_calls() {
    let server = serve().await;
    // tonic's own client would end the call itself.
    let options = options(server.notes.clone());
    let services = Services::new(server.node.clone(), Arc::new(FakeReads), options);
    let message = put_of(1).encode_to_vec();
    let mut body = vec![0, 0, 0, 0, message.len() as u8];
    body.extend(message);
    let request = http::Request::post("/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "50m")
        .body(axum::body::Body::from(body))
        .unwrap();
    let response = services.call(request).await;
    let got = Status::from_header_map(response.headers()).unwrap();
    assert_status::<()>(Err(got), Error::DeadlineExceeded);
    server.noted("handled Put DeadlineExceeded").await;
    let mut kv = KvClient::new(server.channel.clone());
    let call = tokio::time::timeout(Duration::from_millis(100), kv.put(put_of(1))).await;
    assert!(call.is_err());
    server.noted("handled Put Cancelled").await;
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let server = serve().await;
    for (path, text) in [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/a.B/C", "unknown service a.B"),
    ] {
        let mut client = tonic::client::Grpc::new(server.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<rpc::StatusRequest, rpc::StatusResponse>::default();
        let error = client
            .unary(Request::new(rpc::StatusRequest {}), path.parse().unwrap(), codec)
            .await
            .unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unimplemented, text));
    }
}

fn watch_for(create: rpc::WatchCreateRequest) -> rpc::WatchRequest {
    rpc::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

#[test]
fn watches_are_answered_as_etcd_answers_them() {
    actix_rt::System::new().block_on(async {
        let mut world = World::new();
        for _ in 0..3 {
            world.put(b"k", "v".into()).await;
        }
        world.apply(vec![compaction(3)]).await;
        let server =
            serve_node(FakeNode { hub: world.streams.tell(), ..FakeNode::default() }).await;
        let (asks, asked) = tokio::sync::mpsc::unbounded_channel();
        let asked = tokio_stream::wrappers::UnboundedReceiverStream::new(asked);
        let mut client = WatchClient::new(server.channel.clone());
        let mut answers = client.watch(asked).await.unwrap().into_inner();
        let key = rpc::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let header = |revision| rpc::ResponseHeader {
            cluster_id: 0x22,
            member_id: 0x11,
            revision,
            raft_term: 2,
        };
        let response = |revision, watch_id| rpc::WatchResponse {
            header: Some(header(revision)),
            watch_id,
            ..Default::default()
        };
        for (create, answer) in [
            (key.clone(), vec![rpc::WatchResponse { created: true, ..response(4, 0) }]),
            (
                rpc::WatchCreateRequest { range_end: "a".into(), ..key.clone() },
                vec![rpc::WatchResponse {
                    created: true,
                    canceled: true,
                    cancel_reason: "mvcc: watcher range is empty".into(),
                    ..response(4, -1)
                }],
            ),
            (
                rpc::WatchCreateRequest { watch_id: 9, start_revision: 2, ..key.clone() },
                vec![
                    rpc::WatchResponse { created: true, ..response(4, 9) },
                    rpc::WatchResponse { canceled: true, compact_revision: 3, ..response(0, 9) },
                ],
            ),
            (
                rpc::WatchCreateRequest { watch_id: 9, ..key.clone() },
                vec![rpc::WatchResponse {
                    created: true,
                    canceled: true,
                    cancel_reason: "mvcc: duplicate watch ID provided on the WatchStream".into(),
                    ..response(4, -1)
                }],
            ),
        ] {
            asks.send(watch_for(create)).unwrap();
            for expected in answer {
                assert_eq!(answers.message().await.unwrap().unwrap(), expected);
            }
        }
        // Once the client has nothing more to ask, its watchers go on.
        drop(asks);
        world.put(b"k", "new".into()).await;
        let news = answers.message().await.unwrap().unwrap();
        assert_eq!((news.watch_id, news.header), (0, Some(header(5))));
        let event = mvccpb::Event::decode(news.events[0].clone()).unwrap();
        assert_eq!(event.kv.unwrap().value, "new");
    });
}
