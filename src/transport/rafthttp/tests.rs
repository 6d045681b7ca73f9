//! Transports that talk to each other over real sockets, and to a real etcd if there is one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::pb::raftpb::{Entry, MessageType, Snapshot, SnapshotMetadata};

const WAIT: Duration = Duration::from_secs(20);

struct Sink {
    taken: mpsc::UnboundedSender<Message>,
    /// While false, messages are handed over and not answered.
    answers: tokio::sync::watch::Sender<bool>,
    unreachable: AtomicUsize,
    removed: Mutex<Vec<MemberId>>,
    removed_by: AtomicUsize,
    statuses: Mutex<Vec<(MemberId, bool)>>,
    /// Databases by the index of their snapshot, and whether more are taken.
    databases: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
    full: AtomicBool,
}

struct Database(u64, Vec<u8>, Arc<Mutex<HashMap<u64, Vec<u8>>>>);

impl Incoming for Database {
    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.1.extend_from_slice(bytes);
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<(), String> {
        self.2.lock().insert(self.0, self.1);
        Ok(())
    }
}

/// A snapshot with a database of so many bytes, of which as many are made.
struct Fake {
    message: Message,
    bytes: u64,
    made: u64,
    until: u64,
}

impl Outgoing for Fake {
    fn prepare(&mut self) -> Result<Option<(Message, u64)>, String> {
        Ok(Some((self.message.clone(), self.bytes)))
    }
    fn read(&mut self, bytes: usize) -> Result<Bytes, String> {
        if self.made >= self.until && self.until < self.bytes {
            return Err("the disk is gone".to_owned());
        }
        let count = (bytes as u64).min(self.bytes - self.made);
        self.made += count;
        Ok(vec![7; count as usize].into())
    }
}

fn fake(from: u64, to: u64, index: u64, bytes: u64) -> Box<Fake> {
    let metadata = Some(SnapshotMetadata { index, term: 1, ..SnapshotMetadata::default() });
    let snapshot = Some(Snapshot { data: "tree".into(), metadata });
    let mut message = Message { from, to, term: 1, snapshot, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    Box::new(Fake { message, bytes, made: 0, until: bytes })
}

impl RaftSink for Sink {
    fn step_snapshot(&self, message: Message) -> Stepping {
        self.step(message)
    }
    fn receive(&self, index: u64) -> Result<Box<dyn Incoming>, String> {
        if self.full.load(Ordering::SeqCst) {
            return Err("no space".to_owned());
        }
        Ok(Box::new(Database(index, Vec::new(), Arc::clone(&self.databases))))
    }
    fn snapshot_status(&self, id: MemberId, delivered: bool) {
        self.statuses.lock().push((id, delivered));
    }
    fn step(&self, message: Message) -> Stepping {
        let sent = self.taken.send(message).map_err(|_| StepError::Stopped);
        let mut answers = self.answers.subscribe();
        Box::pin(async move {
            let _ = answers.wait_for(|answers| *answers).await;
            sent
        })
    }
    fn unreachable(&self, _id: MemberId) {
        self.unreachable.fetch_add(1, Ordering::SeqCst);
    }
    fn is_removed(&self, id: MemberId) -> bool {
        self.removed.lock().contains(&id)
    }
    fn is_known(&self, _id: MemberId) -> bool {
        false
    }
    fn removed_by_peer(&self, _peer: MemberId) {
        self.removed_by.fetch_add(1, Ordering::SeqCst);
    }
}

struct Node {
    transport: Transport,
    sink: Arc<Sink>,
    taken: mpsc::UnboundedReceiver<Message>,
    url: Url,
    server: Option<JoinSet<()>>,
}

fn tcp(address: std::net::SocketAddr) -> Url {
    Url { scheme: "http".into(), host: address.to_string(), path: String::new() }
}

/// Serves `router`; aborting the set closes the listener and all connections.
async fn serve(url: &Url, router: axum::Router) -> (Url, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    if url.is_unix() {
        let path = PathBuf::from(format!("{}{}", url.host, url.path));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                connections.spawn(connection(io, router.clone()));
            }
        });
        return (url.clone(), tasks);
    }
    let listener = TcpListener::bind(&url.host).await.unwrap();
    let url = tcp(listener.local_addr().unwrap());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((io, _)) = listener.accept().await {
            connections.spawn(connection(io, router.clone()));
        }
    });
    (url, tasks)
}

async fn connection(io: impl Io + 'static, router: axum::Router) {
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(router)).await;
}

async fn node_at(id: u64, cluster: u64, url: Url) -> Node {
    node_with(id, cluster, url, Duration::from_secs(5)).await
}

async fn node_with(id: u64, cluster: u64, url: Url, read_timeout: Duration) -> Node {
    let (taken, rx) = mpsc::unbounded_channel();
    let sink = Arc::new(Sink {
        taken,
        answers: tokio::sync::watch::Sender::new(true),
        unreachable: AtomicUsize::new(0),
        removed: Mutex::default(),
        removed_by: AtomicUsize::new(0),
        statuses: Mutex::default(),
        databases: Arc::default(),
        full: AtomicBool::new(false),
    });
    let config = Config {
        local: MemberId(id),
        cluster: ClusterId(cluster),
        local_urls: vec![url.to_string()],
        connector: Arc::new(PlainConnect),
        dial_timeout: Duration::from_secs(2),
        election_timeout: Duration::from_secs(1),
        read_timeout,
        write_timeout: Duration::from_secs(5),
    };
    let transport = Transport::new(config, Arc::clone(&sink) as Arc<dyn RaftSink>);
    let (url, server) = serve(&url, transport.router()).await;
    Node { transport, sink, taken: rx, url, server: Some(server) }
}

async fn node(id: u64, cluster: u64) -> Node {
    // The URL is told to peers before anybody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node_at(id, cluster, tcp(free)).await
}

fn unix_url(dir: &Path, name: &str) -> Url {
    let path = dir.join(name).to_string_lossy().into_owned();
    Url { scheme: "unix".into(), host: String::new(), path }
}

fn introduce(nodes: &[&Node]) {
    for node in nodes {
        for other in nodes {
            let id = other.transport.inner.context.config.local;
            node.transport.add_peer(id, vec![other.url.clone()]);
        }
    }
}

async fn until(what: impl Fn() -> bool) {
    let waited = timeout(WAIT, async {
        while !what() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap();
}

fn writable(node: &Node, to: u64) -> bool {
    node.transport.peer(MemberId(to)).is_some_and(|peer| peer.is_writable())
}

fn response(from: u64, to: u64, index: u64) -> Message {
    let mut m = Message { from, to, term: 1, index, ..Message::default() };
    m.set_msg_type(MessageType::MsgAppendResponse);
    m
}

fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let entry =
        Entry { term: 1, index: index + 1, data: vec![0; bytes].into(), ..Entry::default() };
    let mut m = Message { from, to, term: 1, log_term: 1, index, ..Message::default() };
    m.set_msg_type(MessageType::MsgAppend);
    m.entries.push(entry);
    m
}

async fn expect(node: &mut Node, count: usize) -> Vec<Message> {
    let mut out = Vec::new();
    while out.len() < count {
        out.push(timeout(WAIT, node.taken.recv()).await.unwrap().unwrap());
    }
    out
}

async fn both_ways(mut a: Node, mut b: Node) {
    introduce(&[&a, &b]);
    until(|| writable(&a, 2) && writable(&b, 1)).await;
    for index in 1..=500 {
        a.transport.send(vec![append(1, 2, index, 100)]);
        b.transport.send(vec![response(2, 1, index)]);
    }
    let at_b: Vec<_> = expect(&mut b, 500).await.iter().map(|m| m.index).collect();
    let at_a: Vec<_> = expect(&mut a, 500).await.iter().map(|m| m.index).collect();
    assert_eq!(at_b, (1..=500).collect::<Vec<_>>());
    assert_eq!(at_a, at_b);
    assert!(a.transport.active_since(MemberId(2)).is_some());
    assert_eq!(a.transport.active_peers(), 1);
    // To nobody: dropped in silence.
    a.transport.send(vec![response(1, 9, 1), response(1, 0, 1)]);
    assert_eq!(a.sink.unreachable.load(Ordering::SeqCst), 0);
    a.transport.stop();
    b.transport.stop();
    assert!(a.transport.active_since(MemberId(2)).is_none());
}

#[tokio::test]
async fn two_members_over_tcp() {
    both_ways(node(1, 7).await, node(2, 7).await).await;
}

#[tokio::test]
async fn a_busy_raft_is_handed_a_bounded_number_of_messages() {
    let (a, mut b) = (node(1, 7).await, node(2, 7).await);
    introduce(&[&a, &b]);
    until(|| writable(&a, 2) && writable(&b, 1)).await;
    b.sink.answers.send_replace(false);
    let count = 4 * STEPS_PENDING_MAX;
    a.transport.send((1..=count as u64).map(|index| append(1, 2, index, 10)).collect());
    expect(&mut b, STEPS_PENDING_MAX + 1).await;
    assert!(timeout(Duration::from_millis(100), b.taken.recv()).await.is_err(), "no more of them");
    b.sink.answers.send_replace(true);
    expect(&mut b, count - STEPS_PENDING_MAX - 1).await;
}

#[tokio::test]
async fn two_members_over_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let a = node_at(1, 7, unix_url(dir.path(), "a")).await;
    let b = node_at(2, 7, unix_url(dir.path(), "b")).await;
    both_ways(a, b).await;
}

#[tokio::test]
async fn three_members_all_pairs() {
    let mut nodes = vec![node(1, 7).await, node(2, 7).await, node(3, 7).await];
    introduce(&nodes.iter().collect::<Vec<_>>());
    for from in 1..=3u64 {
        for to in (1..=3).filter(|to| *to != from) {
            until(|| writable(&nodes[from as usize - 1], to)).await;
            let messages = (1..=50).map(|index| response(from, to, index)).collect();
            nodes[from as usize - 1].transport.send(messages);
        }
    }
    for node in &mut nodes {
        let got = expect(node, 100).await;
        for from in 1..=3 {
            let order: Vec<_> = got.iter().filter(|m| m.from == from).map(|m| m.index).collect();
            assert!(order.is_empty() || order == (1..=50).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn reconnects_after_the_server_restarts() {
    let (a, mut b) = (node(1, 7).await, node(2, 7).await);
    introduce(&[&a, &b]);
    until(|| writable(&a, 2) && writable(&b, 1)).await;
    // a's server carries the streams that b reads.
    let mut a = a;
    a.server.take().unwrap().shutdown().await;
    until(|| !writable(&a, 2)).await;
    a.server = Some(serve(&a.url, a.transport.router()).await.1);
    until(|| writable(&a, 2)).await;
    a.transport.send(vec![append(1, 2, 5, 10)]);
    let mut got = expect(&mut b, 1).await;
    while got.last().unwrap().index != 5 {
        got = expect(&mut b, 1).await;
    }
}

#[tokio::test]
async fn posts_while_there_is_no_stream() {
    let (a, mut b) = (node(1, 7).await, node(2, 7).await);
    // b does not know a and never dials it: a has no stream to write to.
    a.transport.add_peer(MemberId(2), vec![b.url.clone()]);
    a.transport.send(vec![response(1, 2, 4)]);
    assert_eq!(expect(&mut b, 1).await[0].index, 4);
    // The introduction of the sender is enough for an answer.
    let mut a = a;
    b.transport.send(vec![response(2, 1, 6)]);
    assert_eq!(expect(&mut a, 1).await[0].index, 6);
    // Nobody listens: unreachable. A port given back by the system would be another test's soon.
    let gone = tcp(([127, 0, 0, 1], 1).into());
    a.transport.add_peer(MemberId(3), vec![gone.clone()]);
    a.transport.send(vec![response(1, 3, 4)]);
    until(|| a.sink.unreachable.load(Ordering::SeqCst) > 0).await;
    // With a second URL that works the next attempts get through.
    a.transport.remove_peer(MemberId(2));
    a.transport.add_peer(MemberId(2), vec![gone, b.url.clone()]);
    let begin = Instant::now();
    loop {
        a.transport.send(vec![response(1, 2, 8)]);
        if timeout(Duration::from_millis(100), b.taken.recv()).await.is_ok() {
            break;
        }
        assert!(begin.elapsed() < WAIT);
    }
}

#[tokio::test]
async fn a_slow_reader_costs_bounded_memory_and_is_unreachable() {
    let a = node(1, 7).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.transport.add_peer(MemberId(2), vec![tcp(gone.local_addr().unwrap())]);
    let mut raw = tokio::net::TcpStream::connect(&a.url.host).await.unwrap();
    let request = "GET /raft/stream/msgapp/2 HTTP/1.1\r\nHost: a\r\nX-Server-From: 2\r\n\
        X-Server-Version: 3.4.45\r\nX-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: 7\r\n\
        X-Raft-To: 1\r\n\r\n";
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![0; 1000];
    let read = timeout(WAIT, raw.read(&mut head)).await.unwrap().unwrap();
    let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("x-server-version: 3.5.17") && head.contains("chunked"), "{head}");
    // It never reads on. One shared megabyte, sent often, fills the queue by bytes.
    let big = append(1, 2, 5, 1024 * 1024);
    for _ in 0..200 {
        a.transport.send(vec![big.clone()]);
        tokio::task::yield_now().await;
    }
    let refused = a.sink.unreachable.load(Ordering::SeqCst);
    assert!((80..200).contains(&refused), "{refused}");
    // And within the write timeout it is given up.
    until(|| !a.transport.peer(MemberId(2)).unwrap().is_attached_msgapp()).await;
}

async fn status(url: &Url, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
    let mut map = http::HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    let request = client::request(http::Method::GET, url, path, map, Bytes::new()).unwrap();
    let (response, _guard) =
        client::exchange(&PlainConnect, url, request, WAIT, WAIT).await.unwrap();
    let status = response.status().as_u16();
    if status == 200 && path.contains("stream") {
        return (status, String::new());
    }
    let body = client::read_all(response.into_body(), 1 << 20, WAIT).await.unwrap();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn refusals() {
    let a = node(1, 7).await;
    a.transport.add_peer(MemberId(2), vec![a.url.clone()]);
    a.sink.removed.lock().push(MemberId(4));
    let good = [
        ("x-server-version", "3.5.17"),
        ("x-min-cluster-version", "3.0.0"),
        ("x-etcd-cluster-id", "7"),
        ("x-raft-to", "1"),
    ];
    let with = |name: &str, value: &'static str| {
        good.map(|(key, old)| (key, if key == name { value } else { old }))
    };
    let get =
        async |path: &str, headers: &[(&'static str, &str)]| status(&a.url, path, headers).await;
    let is = |code: u16, text: &str| (code, format!("{text}\n"));
    let path = "/raft/stream/message/2";
    assert_eq!(get(path, &good).await.0, 200);
    let other = with("x-etcd-cluster-id", "8");
    assert_eq!(get(path, &other).await, is(412, "cluster ID mismatch"));
    for (name, value) in [("x-server-version", "2.3.8"), ("x-min-cluster-version", "3.6.0")] {
        assert_eq!(get(path, &with(name, value)).await, is(412, "incompatible version"));
    }
    assert_eq!(get(path, &[]).await, is(412, "incompatible version"));
    assert_eq!(get(path, &with("x-raft-to", "3")).await, is(412, "to field mismatch"));
    assert_eq!(get("/raft/stream/message/4", &good).await, is(410, "removed member"));
    assert_eq!(get("/raft/stream/msgapp/9", &good).await, is(404, "error sender not found"));
    assert_eq!(get("/raft/stream/msgapp/zz", &good).await, is(404, "invalid from"));
    assert_eq!(get("/raft/stream/what/2", &good).await, is(404, "invalid path"));
    assert_eq!(get("/raft", &good).await, is(405, "Method Not Allowed"));
    let (code, body) = get("/raft/probing", &[]).await;
    assert!(code == 200 && body.starts_with("{\"OK\":true,\"Now\":\"20"), "{body}");

    let post = async |path: &str, message: &Message| {
        let mut map = http::HeaderMap::new();
        for (name, value) in good {
            map.insert(name, value.parse().unwrap());
        }
        let body = prost::Message::encode_to_vec(message).into();
        let request = client::request(http::Method::POST, &a.url, path, map, body).unwrap();
        let answer = client::exchange(&PlainConnect, &a.url, request, WAIT, WAIT).await.unwrap();
        answer.0.status().as_u16()
    };
    assert_eq!(post("/raft", &response(2, 1, 1)).await, 204);
    assert_eq!(post("/raft", &response(4, 1, 1)).await, 403);
    assert_eq!(post("/raft", &response(2, 3, 1)).await, 403);
    assert_eq!(post("/raft", &Message { msg_type: 77, ..response(2, 1, 1) }).await, 400);
    assert_eq!(post("/raft/snapshot", &response(2, 1, 1)).await, 400);
}

#[tokio::test]
async fn snapshots_reach_their_member_or_are_said_not_to() {
    const BYTES: u64 = 5 * 1024 * 1024 + 77;
    let (a, mut b) = (node(1, 7).await, node(2, 7).await);
    introduce(&[&a, &b]);
    let to = MemberId(2);
    let told = async |count: usize| {
        until(|| a.sink.statuses.lock().len() == count).await;
        *a.sink.statuses.lock().last().unwrap()
    };
    // A second one while the first is on its way.
    a.transport.send_snapshot(to, fake(1, 2, 40, BYTES));
    a.transport.send_snapshot(to, fake(1, 2, 41, BYTES));
    until(|| a.sink.statuses.lock().len() == 2).await;
    assert_eq!(*a.sink.statuses.lock(), [(to, false), (to, true)]);
    let message = expect(&mut b, 1).await.remove(0);
    assert_eq!(message.get_snapshot().get_metadata().index, 40);
    assert_eq!(message.get_snapshot().data, "tree");
    let databases = std::mem::take(&mut *b.sink.databases.lock());
    assert_eq!(databases, HashMap::from([(40, vec![7; BYTES as usize])]));
    // What breaks off in the middle is not taken for all there is.
    let broken = Fake { until: BYTES / 2, ..*fake(1, 2, 42, BYTES) };
    a.transport.send_snapshot(to, Box::new(broken));
    assert_eq!(told(3).await, (to, false));
    b.sink.full.store(true, Ordering::SeqCst);
    a.transport.send_snapshot(to, fake(1, 2, 43, BYTES));
    assert_eq!(told(4).await, (to, false));
    b.sink.full.store(false, Ordering::SeqCst);
    a.transport.send_snapshot(MemberId(9), fake(1, 9, 44, BYTES));
    assert_eq!(told(5).await, (MemberId(9), false));
    // For another member, from a removed one, and no snapshot at all.
    a.transport.send_snapshot(to, fake(1, 3, 45, 100));
    assert_eq!(told(6).await, (to, false));
    b.sink.removed.lock().push(MemberId(1));
    a.transport.send_snapshot(to, fake(1, 2, 46, 100));
    assert_eq!(told(7).await, (to, false));
    assert!(b.taken.try_recv().is_err());
    assert!(!b.sink.databases.lock().contains_key(&42));
}

#[tokio::test]
async fn another_cluster_and_a_removed_member_stay_out() {
    let (a, b) = (node(1, 7).await, node(2, 8).await);
    introduce(&[&a, &b]);
    sleep(Duration::from_millis(500)).await;
    assert!(!writable(&a, 2) && !writable(&b, 1));
    assert!(a.transport.active_since(MemberId(2)).is_none());
    let c = node(3, 7).await;
    a.sink.removed.lock().push(MemberId(3));
    c.transport.add_peer(MemberId(1), vec![a.url.clone()]);
    until(|| c.sink.removed_by.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test]
async fn questions_outside_raft() {
    let members = r#"[{"id":9372538179322589801,"peerURLs":["http://10.0.0.1:2380"],"name":"m1",
        "clientURLs":["http://10.0.0.1:2379"]},
        {"id":2,"peerURLs":["http://b:1"],"isLearner":true}]"#;
    let router = axum::Router::new()
        .route(
            "/version",
            axum::routing::any(|| async { r#"{"etcdserver":"3.4.45","etcdcluster":"3.4.0"}"# }),
        )
        .route(
            "/members",
            axum::routing::any(move || async move { ([("X-Etcd-Cluster-ID", "cdf8")], members) }),
        )
        .route("/leases", axum::routing::post(|body: Bytes| async move { body }));
    let (url, _server) = serve(&tcp(([127, 0, 0, 1], 0).into()), router).await;
    let gone = tcp(([127, 0, 0, 1], 1).into());
    let urls = [gone.clone(), url.clone()];
    let versions = get_version(&PlainConnect, &urls, WAIT).await.unwrap();
    assert_eq!(versions, ("3.4.45".to_owned(), "3.4.0".to_owned()));
    let (cluster, members) = get_members(&PlainConnect, &urls, WAIT).await.unwrap();
    assert_eq!(cluster, ClusterId(0xcdf8));
    assert_eq!(members[0].id, MemberId(9372538179322589801));
    assert!(members[1].is_learner && members[1].name.is_empty());
    let body = Bytes::from_static(b"\x08\x01");
    let kind = "application/protobuf";
    let pool = Pool::new(Arc::new(PlainConnect));
    for _ in 0..3 {
        let answer = pool.post(&url, "/leases", kind, body.clone(), WAIT).await.unwrap();
        assert_eq!(answer, (http::StatusCode::OK, body.clone()));
    }
    assert!(get_version(&PlainConnect, &[gone], WAIT).await.is_err());
}

/// Needs `ETCD_BIN`: a new cluster of two whose second member is a real etcd. Answers its
/// pre-vote and vote, so that it becomes leader over this transport, and takes its appends.
#[tokio::test]
async fn real_etcd_talks_to_this_transport() {
    let Some(etcd) = std::env::var_os("ETCD_BIN") else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = |port: u16| tcp(([127, 0, 0, 1], port).into());
    let (peer, client, ours) = (url(33480), url(33479), url(33380));
    let mut etcd = std::process::Command::new(etcd)
        .args(["--name", "m2", "--data-dir", &dir.path().to_string_lossy()])
        .args(["--listen-client-urls", &client.to_string()])
        .args(["--advertise-client-urls", &client.to_string()])
        .args(["--listen-peer-urls", &peer.to_string()])
        .args(["--initial-advertise-peer-urls", &peer.to_string()])
        .args(["--initial-cluster", &format!("m1={ours},m2={peer}")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (cluster, members) = loop {
        match get_members(&PlainConnect, std::slice::from_ref(&peer), WAIT).await {
            Ok(found) => break found,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let id = |of: &Url| members.iter().find(|m| m.peer_urls == [of.to_string()]).unwrap().id;
    let (us, them) = (id(&ours), id(&peer));
    let mut us_node = node_at(us.0, cluster.0, ours).await;
    us_node.transport.add_peer(them, vec![peer.clone()]);
    let mut seen = std::collections::BTreeMap::new();
    let (mut last, mut term) = (0, 0);
    let done = timeout(WAIT, async {
        while last < 5 || !seen.contains_key(&MessageType::MsgHeartbeat) {
            let message = us_node.taken.recv().await.unwrap();
            *seen.entry(message.msg_type()).or_insert(0) += 1;
            term = message.term;
            let mut answer =
                Message { from: us.0, to: them.0, term: message.term, ..Message::default() };
            let kind = match message.msg_type() {
                MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
                MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
                MessageType::MsgHeartbeat => MessageType::MsgHeartbeatResponse,
                MessageType::MsgAppend => {
                    last = message.entries.last().map_or(message.index, |entry| entry.index);
                    answer.index = last;
                    MessageType::MsgAppendResponse
                }
                other => panic!("{other:?}"),
            };
            answer.set_msg_type(kind);
            us_node.transport.send(vec![answer]);
        }
    });
    let done = done.await;
    let versions = get_version(&PlainConnect, std::slice::from_ref(&peer), WAIT).await;
    println!("seen {seen:?}, last {last}, versions {versions:?}");
    // The other way: a leader of the next term appends, first in the long form, then in the short.
    let lead = |log_term, index, data: &'static [u8]| {
        let mut m = append(us.0, them.0, index, 0);
        (m.term, m.log_term, m.commit) = (term + 1, log_term, last);
        (m.entries[0].term, m.entries[0].data) = (term + 1, data.into());
        m
    };
    us_node.transport.send(vec![lead(term, last, b""), lead(term + 1, last + 1, b"")]);
    us_node.transport.send(vec![lead(term + 1, last + 2, b"")]);
    let taken = timeout(WAIT, async {
        loop {
            let m = us_node.taken.recv().await.unwrap();
            if m.msg_type() == MessageType::MsgAppendResponse && m.index == last + 3 {
                break m.reject;
            }
        }
    });
    let taken = taken.await;
    // And by a single POST, as before there are streams.
    us_node.transport.remove_peer(them);
    us_node.transport.add_peer(them, vec![peer.clone()]);
    us_node.transport.send(vec![lead(term + 1, last + 3, b"")]);
    let posted = timeout(WAIT, async {
        loop {
            let m = us_node.taken.recv().await.unwrap();
            if m.msg_type() == MessageType::MsgAppendResponse && m.index == last + 4 {
                break m.reject;
            }
        }
    });
    let posted = posted.await;
    sleep(Duration::from_secs(5)).await;
    println!("round trip {:?}", us_node.transport.round_trip(them));
    etcd.kill().unwrap();
    etcd.wait().unwrap();
    done.unwrap();
    assert!(!taken.unwrap() && !posted.unwrap());
    assert!(us_node.transport.active_since(them).is_some() || writable(&us_node, them.0));
}

/// The other side sends heartbeats at a third of its own timeout, far too seldom for this one.
#[tokio::test]
async fn raft_read_timeout_ends_a_silent_stream() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let a = node_with(1, 7, tcp(free), Duration::from_millis(300)).await;
    let b = node(2, 7).await;
    introduce(&[&a, &b]);
    let peer = MemberId(2);
    let active = || async {
        loop {
            match a.transport.active_since(peer) {
                Some(since) => return since,
                None => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let first = timeout(WAIT, active()).await.unwrap();
    let again = async {
        while active().await == first {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT, again).await.expect("the silent stream was taken for dead");
}
