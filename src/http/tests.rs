//! The pages' texts and codes, as etcd 3.5.17 answers them.

use super::*;
use crate::actors::handle::watch::Watching;
use crate::actors::handle::{Answer, Node, NodeHandle, RaftStatus};
use crate::apply::Reply;
use crate::base::error::{Error, Result};
use crate::base::ids::{ClusterId, MemberId};
use crate::pb::etcdserverpb as rpc;
use crate::pb::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

#[derive(Clone, Default)]
struct Fake {
    alarm: Option<rpc::AlarmType>,
    leaderless: bool,
    stuck: bool,
    read_error: Option<Error>,
    lagging: bool,
}

const ID: u64 = 3_211_106_759_432_434_375;

impl Node for Fake {
    fn member_id(&self) -> MemberId {
        MemberId(ID)
    }
    fn cluster_id(&self) -> ClusterId {
        ClusterId(0xcf35_41d8_2322_dc81)
    }
    fn raft_status(&self) -> RaftStatus {
        RaftStatus {
            leader: MemberId(if self.leaderless { 0 } else { ID }),
            committed_index: 5,
            applied_index: if self.lagging { 4 } else { 5 },
            ..RaftStatus::default()
        }
    }
    fn propose(&self, _: rpc::InternalRaftRequest) -> Answer<'_, Result<Reply>> {
        Box::pin(async { Err(Error::NotImplemented) })
    }
    fn linearizable_read_notify(&self) -> Answer<'_, Result<()>> {
        Box::pin(async move {
            if self.stuck {
                std::future::pending::<()>().await;
            }
            self.read_error.map_or(Ok(()), Err)
        })
    }
    fn members(&self) -> Vec<rpc::Member> {
        vec![rpc::Member {
            id: ID,
            name: "a".into(),
            peer_ur_ls: vec!["http://127.0.0.1:34380".into()],
            client_ur_ls: vec!["http://127.0.0.1:34379".into()],
            is_learner: false,
        }]
    }
    fn cluster_version(&self) -> Option<String> {
        (!self.leaderless).then(|| "3.5.0".into())
    }
    fn lease_renew(&self, id: i64) -> Answer<'_, Result<i64>> {
        let behind = self.lagging;
        Box::pin(async move {
            match id {
                7 if behind => Err(Error::TimeoutWaitAppliedIndex),
                7 => Ok(60),
                _ => Err(Error::LeaseNotFound),
            }
        })
    }
    fn lease_time_to_live(
        &self,
        request: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>> {
        Box::pin(async move {
            let ttl = if request.id == 7 { 42 } else { -1 };
            Ok(rpc::LeaseTimeToLiveResponse { id: request.id, ttl, ..Default::default() })
        })
    }
    fn leases(&self) -> Answer<'_, Vec<i64>> {
        let leases = vec![7];
        Box::pin(async move { leases })
    }
    fn watch(&self) -> Watching {
        unreachable!("no page watches")
    }
    fn move_leader(&self, _: MemberId) -> Answer<'_, Result<()>> {
        Box::pin(async { Err(Error::NotImplemented) })
    }
    fn defragment(&self) -> Answer<'_, std::result::Result<(), String>> {
        Box::pin(async { Err("not here".to_owned()) })
    }
    fn alarms(&self) -> Vec<rpc::AlarmMember> {
        let one = |alarm| rpc::AlarmMember { member_id: ID, alarm: alarm as i32 };
        self.alarm.map(one).into_iter().collect()
    }
}

fn node(fake: Fake) -> NodeHandle {
    Arc::new(fake)
}

fn client(fake: Fake) -> axum::Router {
    let state = ClientHttp {
        node: node(fake),
        local_read: Arc::new(|| Ok(())),
        before_metrics: Arc::new(|| ()),
        request_timeout: Duration::from_secs(7),
    };
    with_access_control(client_router(state).fallback(not_found), AccessControl::default())
}

async fn send(
    router: axum::Router,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> (u16, axum::http::HeaderMap, Vec<u8>) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn get(fake: Fake, path: &str) -> (u16, String) {
    let (code, _, body) = send(client(fake), "GET", path, Vec::new()).await;
    (code, String::from_utf8(body).unwrap())
}

fn expect(code: u16, text: &str) -> (u16, String) {
    (code, text.to_owned())
}

#[tokio::test]
async fn healthy_pages() {
    let ok = Fake::default;
    for (path, code, text) in [
        ("/health", 200, "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/health?serializable=true", 200, "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/livez", 200, "ok\n"),
        ("/livez?verbose", 200, "[+]serializable_read ok\nok\n"),
        (
            "/readyz?verbose",
            200,
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n",
        ),
        (
            "/readyz?verbose&exclude=data_corruption&exclude=nope",
            200,
            "[+]serializable_read ok\n[+]linearizable_read ok\nok\n",
        ),
        ("/readyz/data_corruption?verbose", 200, "[+]data_corruption ok\nok\n"),
        ("/readyz/nope", 404, "404 page not found\n"),
        ("/", 404, "404 page not found\n"),
        ("/version", 200, "{\"etcdserver\":\"3.5.17\",\"etcdcluster\":\"3.5.0\"}"),
    ] {
        assert_eq!(get(ok(), path).await, expect(code, text), "{path}");
    }
    let (code, headers, body) = send(client(ok()), "POST", "/health", Vec::new()).await;
    assert_eq!((code, body.as_slice()), (405, &b"Method Not Allowed\n"[..]));
    assert_eq!(headers["allow"], "GET");
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let (code, vars) = get(ok(), "/debug/vars").await;
    let vars: serde_json::Value = serde_json::from_str(&vars).unwrap();
    assert!(code == 200 && vars["file_descriptor_limit"].as_i64().unwrap() > 0);
    let (code, page) = get(ok(), "/metrics").await;
    assert!(code == 200 && page.contains("etcd_server_health_success"));
}

#[tokio::test]
async fn alarms_and_leaders() {
    let nospace = || Fake { alarm: Some(rpc::AlarmType::Nospace), ..Fake::default() };
    let text = "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n";
    assert_eq!(get(nospace(), "/health").await, expect(503, text));
    assert_eq!(get(nospace(), "/health?exclude=NOSPACE").await.0, 200);
    assert_eq!(get(nospace(), "/readyz").await, expect(200, "ok\n"));
    let corrupt = || Fake { alarm: Some(rpc::AlarmType::Corrupt), ..Fake::default() };
    let text = "[-]data_corruption failed: alarm activated: CORRUPT\n\
                [+]serializable_read ok\n[+]linearizable_read ok\n\n";
    assert_eq!(get(corrupt(), "/readyz").await, expect(503, text));
    assert_eq!(get(corrupt(), "/livez").await.0, 200);
    let alone = || Fake { leaderless: true, ..Fake::default() };
    let text = "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n";
    assert_eq!(get(alone(), "/health").await, expect(503, text));
    assert_eq!(get(alone(), "/health?serializable=true").await.0, 200);
    let text = "{\"etcdserver\":\"3.5.17\",\"etcdcluster\":\"not_decided\"}";
    assert_eq!(get(alone(), "/version").await, expect(200, text));
    let changed = || Fake { read_error: Some(Error::LeaderChanged), ..Fake::default() };
    let text = "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: leader changed\"}\n";
    assert_eq!(get(changed(), "/health").await, expect(503, text));
    let text = "[-]linearizable_read failed: etcdserver: leader changed\n\n";
    assert_eq!(get(changed(), "/readyz/linearizable_read").await, expect(503, text));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_read_waits_the_request_timeout() {
    let start = tokio::time::Instant::now();
    let stuck = Fake { stuck: true, ..Fake::default() };
    let (code, body) = get(stuck, "/health").await;
    assert!(code == 503 && body.contains("RANGE ERROR:context deadline exceeded"), "{body}");
    assert!(start.elapsed() >= Duration::from_secs(7));
}

#[tokio::test]
async fn access_rules() {
    let state = ClientHttp {
        node: node(Fake::default()),
        local_read: Arc::new(|| Ok(())),
        before_metrics: Arc::new(|| ()),
        request_timeout: REQUEST_TIMEOUT,
    };
    let rules = AccessControl { cors: vec!["http://a".into()], hosts: vec!["good".into()] };
    let router = with_access_control(client_router(state).fallback(not_found), rules);
    for (host, origin, code, shown) in [
        ("good:2379", "http://a", 200, Some("http://a")),
        ("good", "http://b", 200, None),
        ("evil", "http://a", 421, None),
    ] {
        let request = Request::builder().uri("/health").header("host", host);
        let request = request.header("origin", origin).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), code, "{host}");
        let allowed = response.headers().get("access-control-allow-origin");
        assert_eq!(allowed.map(|v| v.to_str().unwrap()), shown, "{host}");
    }
}

/// Revisions 4 to 9, compacted at 4.
fn hash_read() -> HashRead {
    Arc::new(|revision| match revision {
        1..4 => Err(Error::Compacted),
        10.. => Err(Error::FutureRev),
        revision => Ok((1000 + revision as u32, 9, 4)),
    })
}

#[tokio::test]
async fn hashes_for_peers() {
    let router = || peer_router(node(Fake::default()), hash_read()).fallback(not_found);
    let ask = async |body: &str| {
        let (code, headers, answer) =
            send(router(), "GET", "/members/hashkv", body.as_bytes().to_vec()).await;
        let kind = headers["content-type"].to_str().unwrap().to_owned();
        (code, kind, String::from_utf8(answer).unwrap())
    };
    let json = |text: &str| (200, "application/json".to_owned(), text.to_owned());
    let refused = |text: &str| (400, "text/plain; charset=utf-8".to_owned(), format!("{text}\n"));
    let newest = r#"{"header":{"revision":9},"hash":1000,"compact_revision":4}"#;
    assert_eq!(ask("{}").await, json(newest));
    let fifth = r#"{"header":{"revision":9},"hash":1005,"compact_revision":4}"#;
    assert_eq!(ask(r#"{"revision":5}"#).await, json(fifth));
    let compacted = "mvcc: required revision has been compacted";
    assert_eq!(ask(r#"{"revision":3}"#).await, refused(compacted));
    let future = "mvcc: required revision is a future revision";
    assert_eq!(ask(r#"{"revision":10}"#).await, refused(future));
    assert_eq!(ask("").await, refused("error unmarshalling request"));
    assert_eq!(send(router(), "POST", "/members/hashkv", vec![]).await.0, 405);
    for (id, code) in [("cf3541d82322dc81", 200), ("1", 412), ("", 200)] {
        let request = Request::builder().uri("/members/hashkv").header("x-etcd-cluster-id", id);
        let request = request.body(Body::from("{}")).unwrap();
        let response = router().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), code, "{id}");
    }
}

#[tokio::test]
async fn peer_pages() {
    let peer = |fake| peer_router(node(fake), hash_read()).fallback(not_found);
    let (code, headers, body) = send(peer(Fake::default()), "GET", "/members", vec![]).await;
    assert_eq!((code, &headers["x-etcd-cluster-id"]), (200, &"cf3541d82322dc81".parse().unwrap()));
    assert_eq!(
        String::from_utf8(body).unwrap(),
        "[{\"id\":3211106759432434375,\"peerURLs\":[\"http://127.0.0.1:34380\"],\"name\":\"a\",\
         \"clientURLs\":[\"http://127.0.0.1:34379\"]}]\n"
    );
    let keep = |id| rpc::LeaseKeepAliveRequest { id }.encode_to_vec();
    let (code, headers, body) = send(peer(Fake::default()), "POST", "/leases", keep(7)).await;
    assert_eq!((code, &headers["content-type"]), (200, &"application/protobuf".parse().unwrap()));
    let answer = rpc::LeaseKeepAliveResponse::decode(&body[..]).unwrap();
    assert_eq!((answer.id, answer.ttl), (7, 60));
    let ask = |id| {
        let inner = rpc::LeaseTimeToLiveRequest { id, keys: false };
        LeaseInternalRequest { lease_time_to_live_request: Some(inner) }.encode_to_vec()
    };
    let (_, _, body) = send(peer(Fake::default()), "POST", "/leases/internal", ask(7)).await;
    let answer = LeaseInternalResponse::decode(&body[..]).unwrap();
    assert_eq!(answer.lease_time_to_live_response.unwrap().ttl, 42);
    let follower = || Fake { leaderless: true, ..Fake::default() };
    let slow = || Fake { lagging: true, ..Fake::default() };
    for (fake, method, path, body, code, text) in [
        (Fake::default(), "GET", "/leases", vec![], 405, "Method Not Allowed\n"),
        (Fake::default(), "POST", "/leases", keep(5), 404, "lease not found\n"),
        (Fake::default(), "POST", "/leases/internal", ask(5), 404, "lease not found\n"),
        (Fake::default(), "POST", "/leases", b"zz".to_vec(), 400, "error unmarshalling request\n"),
        (Fake::default(), "POST", "/leases", vec![0; 1 << 20], 400, "error reading body\n"),
        (follower(), "POST", "/leases", keep(7), 400, "not a primary lessor\n"),
        (follower(), "POST", "/leases/internal", ask(7), 500, "not a primary lessor\n"),
        (Fake::default(), "POST", "/members", vec![], 405, "Method Not Allowed\n"),
        (Fake::default(), "GET", "/members/x", vec![], 404, "404 page not found\n"),
        (
            slow(),
            "POST",
            "/leases",
            keep(7),
            408,
            "waiting for node to catch up its applied index has timed out\n",
        ),
    ] {
        let (have, _, body) = send(peer(fake), method, path, body).await;
        assert_eq!((have, String::from_utf8(body).unwrap()), expect(code, text), "{method} {path}");
    }
}
