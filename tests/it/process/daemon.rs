//! Starts and stops members, and speaks to them. `RUSD_IT_BINARY` names another daemon to run
//! instead, so that a test without failpoints can be put to etcd.

use rusd::pb::etcdserverpb as rpc;
use rusd::pb::etcdserverpb::auth_client::AuthClient;
use rusd::pb::etcdserverpb::cluster_client::ClusterClient;
use rusd::pb::etcdserverpb::kv_client::KvClient;
use rusd::pb::etcdserverpb::lease_client::LeaseClient;
use rusd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use rusd::pb::etcdserverpb::watch_client::WatchClient;
use rusd::pb::v3electionpb::election_client::ElectionClient;
use rusd::pb::v3lockpb::lock_client::LockClient;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};

/// Ports are looked for from here on: below the range from which the system draws those of outgoing
/// connections, which could take one between two lives of a member.
const PORT_FIRST: u16 = 23_000;
const PORT_LAST: u16 = 23_999;
/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORT_LAST - PORT_FIRST + 1;
    let start = (std::process::id() % 89) as u16 * 11;
    for _ in 0..span {
        let port = PORT_FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % span;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// One member: its flags and directory last, its process comes and goes.
pub struct Member {
    pub client_port: u16,
    pub name: String,
    pub peer_url: String,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Child>,
    dir: TempDir,
}

/// Members of one new cluster, not started.
pub fn members(count: usize, extra: &[&str]) -> Vec<Member> {
    let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
    let peer = |i: usize| format!("m{i}=http://127.0.0.1:{}", ports[i].1);
    let cluster = (0..count).map(peer).collect::<Vec<_>>().join(",");
    let member = |(i, &(client, peer)): (usize, &(u16, u16))| {
        let dir = TempDir::new().unwrap();
        let (client_url, peer_url) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let data = dir.path().join("data").display().to_string();
        let name = format!("m{i}");
        let flags = [
            ("--name", &name),
            ("--data-dir", &data),
            ("--listen-client-urls", &client_url),
            ("--advertise-client-urls", &client_url),
            ("--listen-peer-urls", &peer_url),
            ("--initial-advertise-peer-urls", &peer_url),
            ("--initial-cluster", &cluster),
        ];
        let mut arguments: Vec<String> =
            flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.clone()]).collect();
        arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
        let log = dir.path().join("log");
        Member { client_port: client, name, peer_url, arguments, log, process: None, dir }
    };
    ports.iter().enumerate().map(member).collect()
}

/// A member that is to join these, not started: its own cluster flag names them and itself.
pub fn joiner(name: &str, others: &[&Member]) -> Member {
    let mut member = members(1, &["--initial-cluster-state", "existing"]).remove(0);
    member.more("--name", name);
    member.name = name.to_owned();
    let all = others.iter().copied().chain([&member]);
    let cluster: Vec<String> = all.map(|m| format!("{}={}", m.name, m.peer_url)).collect();
    member.more("--initial-cluster", &cluster.join(","));
    member
}

/// A single member that serves, with these failpoints.
pub async fn single(failpoints: &str) -> Member {
    let mut member = members(1, &[]).remove(0);
    member.start(failpoints);
    member.ready().await;
    member
}

/// A cluster that serves on every member.
pub async fn cluster(count: usize, failpoints: &str) -> Vec<Member> {
    start(members(count, &[]), failpoints).await
}

/// Starts members together; all of them serve.
pub async fn start(mut members: Vec<Member>, failpoints: &str) -> Vec<Member> {
    for member in &mut members {
        member.start(failpoints);
    }
    for member in &members {
        member.ready().await;
    }
    members
}

impl Member {
    /// Starts the process.
    pub fn start(&mut self, failpoints: &str) {
        assert!(self.process.is_none(), "started twice");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let binary = std::env::var("RUSD_IT_BINARY")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_rusd").to_owned());
        let process = Command::new(binary)
            .args(&self.arguments)
            .env("FAILPOINTS", failpoints)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    /// Waits until it serves linearizable reads.
    pub async fn ready(&self) {
        let started = Instant::now();
        loop {
            let probe = rpc::RangeRequest { key: "ready".into(), ..Default::default() };
            if self.kv().range(probe).await.is_ok() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "does not serve; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// From the next start on: a flag's last value counts.
    pub fn more(&mut self, flag: &str, value: &str) {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Everything it has stored is lost.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.data_dir()).unwrap();
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://127.0.0.1:{}", self.client_port))
            .unwrap()
            .connect_timeout(Duration::from_secs(2))
            .connect_lazy()
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    pub fn kv(&self) -> KvClient<Channel> {
        // A test reads all that a fast machine has written.
        KvClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }

    pub fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel())
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel())
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel())
    }

    pub fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel())
    }

    pub fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel())
    }

    /// Everything it has logged, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a text in the log.
    pub async fn logged(&self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            assert!(started.elapsed() < PATIENCE, "no {text:?} in the log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("runs");
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// SIGKILL, and the end of it.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Waits until the process has ended by itself: its exit code, `None` after a signal.
    pub async fn ended(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.as_mut().expect("runs").try_wait().unwrap() {
                self.process = None;
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "does not end; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn status(&self) -> rpc::StatusResponse {
        self.maintenance().status(rpc::StatusRequest {}).await.unwrap().into_inner()
    }

    pub async fn hash_kv(&self, revision: i64) -> rpc::HashKvResponse {
        let request = rpc::HashKvRequest { revision };
        self.maintenance().hash_kv(request).await.unwrap().into_inner()
    }

    /// The value of one series of `/metrics`, as it is written there.
    pub async fn metric(&self, series: &str) -> Option<String> {
        let mut stream =
            tokio::net::TcpStream::connect(("127.0.0.1", self.client_port)).await.ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut page = Vec::new();
        stream.read_to_end(&mut page).await.ok()?;
        let page = String::from_utf8_lossy(&page).into_owned();
        let line = page.lines().find_map(|line| line.strip_prefix(series))?;
        Some(line.trim().to_owned())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The member that the others follow, once all of them agree, and its index.
pub async fn leader(members: &[Member], running: &[usize]) -> usize {
    let started = Instant::now();
    loop {
        let mut leaders = Vec::new();
        let mut own = Vec::new();
        for &i in running {
            let mut maintenance = members[i].maintenance();
            if let Ok(status) = maintenance.status(rpc::StatusRequest {}).await {
                let status = status.into_inner();
                own.push((i, status.header.map_or(0, |header| header.member_id)));
                leaders.push(status.leader);
            }
        }
        let agreed = leaders.len() == running.len() && leaders.windows(2).all(|l| l[0] == l[1]);
        if agreed && let Some(&(i, _)) = own.iter().find(|(_, id)| leaders.first() == Some(id)) {
            return i;
        }
        assert!(started.elapsed() < PATIENCE, "no leader; a log:\n{}", members[running[0]].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
