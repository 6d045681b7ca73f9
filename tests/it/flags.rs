//! Flags whose effect shows only in a running member, and the table's claims about all of them.

use rusd::pb::etcdserverpb as rpc;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the member may take for anything.
const WAIT: Duration = Duration::from_secs(60);

/// A member of its own cluster, ended with the test.
struct Member {
    child: Child,
    lines: mpsc::Receiver<String>,
    client: String,
    _dir: tempfile::TempDir,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn start(words: &[String]) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let client = free_address();
    let peer = dir.path().join("peer.sock").display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rusd"))
        .arg(format!("--data-dir={}", dir.path().join("data").display()))
        .arg(format!("--listen-client-urls=http://{client}"))
        .arg(format!("--advertise-client-urls=http://{client}"))
        .arg(format!("--listen-peer-urls=unix://{peer}"))
        .args(words)
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let member = Member { child, lines, client, _dir: dir };
    member.line("ready to serve client requests");
    member
}

impl Member {
    /// The next line of the log that contains `text`.
    fn line(&self, text: &str) -> String {
        let until = Instant::now() + WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no line: {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn put(key: &str) -> rpc::PutRequest {
    rpc::PutRequest { key: key.to_owned().into(), value: "secret".into(), ..Default::default() }
}

fn range(key: &str) -> rpc::RangeRequest {
    rpc::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn slow_requests_are_logged_and_counted() {
    let metrics = free_address();
    let member = start(&[
        "--experimental-warning-apply-duration=1ns".to_owned(),
        format!("--listen-metrics-urls=http://{metrics}"),
    ]);
    let mut kv =
        rpc::kv_client::KvClient::connect(format!("http://{}", member.client)).await.unwrap();
    kv.put(put("a")).await.unwrap();
    kv.range(range("b")).await.unwrap();
    let op = rpc::request_op::Request::RequestRange(range("c"));
    let read = rpc::TxnRequest {
        success: vec![rpc::RequestOp { request: Some(op) }],
        ..Default::default()
    };
    kv.txn(read).await.unwrap();
    for (prefix, request) in [
        ("", r#" put:<key:\"a\" value_size:6 >"#),
        ("read-only range ", r#"key:\"b\" "#),
        ("read-only txn ", r#"request_range:<key:\"c\" >"#),
    ] {
        let line = member.line("apply request took too long");
        assert!(line.contains(&format!("\"prefix\":\"{prefix}\"")), "{line}");
        assert!(line.contains(request), "{line}");
        assert!(line.contains("\"expected-duration\":\"1ns\""), "{line}");
        assert!(!line.contains("secret"));
    }
    let page = get(&metrics, "/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    let count = page.lines().find_map(|line| line.strip_prefix("etcd_server_slow_apply_total "));
    assert_eq!(count, Some("3"));
    assert!(get(&metrics, "/version").starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn compaction_keeps_the_pace_of_the_flags() {
    let member = start(&[
        "--experimental-compaction-batch-limit=1".to_owned(),
        "--experimental-compaction-sleep-interval=100ms".to_owned(),
    ]);
    let mut kv =
        rpc::kv_client::KvClient::connect(format!("http://{}", member.client)).await.unwrap();
    for _ in 0..6 {
        kv.put(put("a")).await.unwrap();
    }
    let begun = Instant::now();
    kv.compact(rpc::CompactionRequest { revision: 7, physical: true }).await.unwrap();
    // Five rows to remove, one a step.
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}
