//! A node and a store for tests of the edge.

use super::edge::{GrpcOptions, Image, Reads};
use super::methods::Method;
use super::observer::Observer;
use crate::actors::handle::watch::{Tell, Watching};
use crate::actors::handle::{Answer, Node, RaftStatus};
use crate::apply::Reply;
use crate::base::error::{Error, Result};
use crate::base::ids::{ClusterId, MemberId};
use crate::mvcc::watch::StreamId;
use crate::pb::etcdserverpb as rpc;
use parking_lot::Mutex;
use std::sync::Arc;
use tonic::Code;

/// Answers what it is told to.
pub struct FakeNode {
    pub raft: Mutex<RaftStatus>,
    pub reply: Mutex<Option<Result<Reply>>>,
    pub proposed: Mutex<Vec<rpc::InternalRaftRequest>>,
    pub linearizable: Mutex<usize>,
    pub alarms: Vec<rpc::AlarmMember>,
    pub hub: Tell,
}

impl Default for FakeNode {
    fn default() -> Self {
        let raft = RaftStatus {
            term: 2,
            leader: MemberId(0x11),
            committed_index: 9,
            applied_index: 8,
            is_learner: false,
        };
        Self {
            raft: Mutex::new(raft),
            reply: Mutex::new(None),
            proposed: Mutex::default(),
            linearizable: Mutex::default(),
            hub: Arc::new(|_| {}),
            alarms: Vec::new(),
        }
    }
}

impl Node for FakeNode {
    fn member_id(&self) -> MemberId {
        MemberId(0x11)
    }
    fn cluster_id(&self) -> ClusterId {
        ClusterId(0x22)
    }
    fn raft_status(&self) -> RaftStatus {
        *self.raft.lock()
    }
    /// Never returns without a reply to give.
    fn propose(&self, request: rpc::InternalRaftRequest) -> Answer<'_, Result<Reply>> {
        self.proposed.lock().push(request);
        let reply = self.reply.lock().clone();
        Box::pin(async move {
            match reply {
                Some(reply) => reply,
                None => std::future::pending().await,
            }
        })
    }
    fn linearizable_read_notify(&self) -> Answer<'_, Result<()>> {
        *self.linearizable.lock() += 1;
        Box::pin(async { Ok(()) })
    }
    fn members(&self) -> Vec<rpc::Member> {
        vec![rpc::Member { id: 0x11, name: "m".into(), ..Default::default() }]
    }
    fn cluster_version(&self) -> Option<String> {
        None
    }
    fn lease_renew(&self, id: i64) -> Answer<'_, Result<i64>> {
        Box::pin(async move {
            match id {
                1 => Ok(60),
                2 => Err(Error::Timeout),
                _ => Err(Error::LeaseNotFound),
            }
        })
    }
    fn lease_time_to_live(
        &self,
        _: rpc::LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<rpc::LeaseTimeToLiveResponse>> {
        Box::pin(async { Err(Error::LeaseNotFound) })
    }
    fn leases(&self) -> Answer<'_, Vec<i64>> {
        let leases = vec![1, 2];
        Box::pin(async move { leases })
    }
    fn watch(&self) -> Watching {
        Watching::open(StreamId(0), self.hub.clone())
    }
    fn alarms(&self) -> Vec<rpc::AlarmMember> {
        self.alarms.clone()
    }
    fn move_leader(&self, to: MemberId) -> Answer<'_, Result<()>> {
        let known = to == MemberId(0x11);
        Box::pin(async move { if known { Ok(()) } else { Err(Error::BadLeaderTransferee) } })
    }
    fn defragment(&self) -> Answer<'_, std::result::Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// What the store still has room for.
pub const QUOTA: u64 = 1_575_000;

/// A store at revision 7 that counts what it is asked.
pub struct FakeReads;

impl Reads for FakeReads {
    fn range(&self, request: &rpc::RangeRequest) -> Result<rpc::RangeResponse> {
        if request.revision > 7 {
            return Err(Error::FutureRev);
        }
        Ok(rpc::RangeResponse { count: 3, ..Default::default() })
    }
    fn txn_readonly(&self, _: &rpc::TxnRequest) -> Result<rpc::TxnResponse> {
        Ok(rpc::TxnResponse { succeeded: true, ..Default::default() })
    }
    fn revision(&self) -> i64 {
        7
    }
    fn hash_kv(&self, rev: i64) -> Result<(u32, i64, i64)> {
        Ok((rev as u32, 6, 4))
    }
    fn hash(&self) -> Result<u32> {
        Ok(77)
    }
    fn size_bytes(&self) -> u64 {
        4096
    }
    fn fits(&self, cost: u64) -> bool {
        cost < QUOTA
    }
    fn size_in_use_bytes(&self) -> u64 {
        4096
    }
    fn image(&self) -> std::result::Result<Box<dyn Image>, String> {
        Err("no image".to_owned())
    }
}

/// Writes down what it is told.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<String>>);

impl Observer for Notes {
    fn client_request(&self, kind: &'static str, version: &str) {
        self.0.lock().push(format!("client {kind} {version}"));
    }
    fn started(&self, method: &'static Method) {
        let Method { kind, service, name, .. } = method;
        self.0.lock().push(format!("started {} {service} {name}", kind.label()));
    }
    fn handled(&self, method: &'static Method, code: Code) {
        self.0.lock().push(format!("handled {} {code:?}", method.name));
    }
    fn msg_received(&self, method: &'static Method, _: usize) {
        self.0.lock().push(format!("received {}", method.name));
    }
    fn msg_sent(&self, method: &'static Method, _: usize) {
        self.0.lock().push(format!("sent {}", method.name));
    }
}

/// Default options; the first lease id drawn is 0, the second has the sign bit set.
pub fn options(notes: Arc<Notes>) -> GrpcOptions {
    let ids = Mutex::new(vec![u64::MAX, 0]);
    let mut options = GrpcOptions::new(Arc::new(move || ids.lock().pop().unwrap_or(5)));
    options.observer = notes;
    options.election_timeout = std::time::Duration::from_millis(20);
    options
}
