//! The Election service: a key with a proposal for each candidate, the oldest one leads (etcd
//! v3.5.17 `server/etcdserver/api/v3election`, `client/v3/concurrency/election.go`).

use super::caller::{Caller, Gone, by_creation, end_of, first_row, key_of, outliving, prefix_of};
use super::edge::Edge;
use crate::actors::handle::watch::{Notice, Watching};
use crate::mvcc::watch::Event;
use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::{self, KeyValue};
use crate::pb::v3electionpb as electionpb;
use bytes::Bytes;
use futures_util::{Stream, stream};
use prost::Message as _;
use rpc::range_request::SortOrder;
use rpc::request_op::Request as Op;
use rpc::response_op::Response as Answer;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Texts of etcd's services and of its client.
const MISSING_LEADER_KEY: &str = "\"leader\" field must be provided";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";

/// Election over the other services.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl electionpb::election_server::Election for Service {
    async fn campaign(
        &self,
        request: Request<electionpb::CampaignRequest>,
    ) -> Result<Response<electionpb::CampaignResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        outliving(|gone| campaign(caller, request, gone)).await.map(Response::new)
    }

    async fn proclaim(
        &self,
        request: Request<electionpb::ProclaimRequest>,
    ) -> Result<Response<electionpb::ProclaimResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        let leader = request.leader.ok_or_else(|| Status::unknown(MISSING_LEADER_KEY))?;
        let lease = caller.session(leader.lease).await?;
        let header = proclaim(&caller, &leader.key, leader.rev, request.value, lease).await?;
        Ok(Response::new(electionpb::ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<electionpb::LeaderRequest>,
    ) -> Result<Response<electionpb::LeaderResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        let oldest = by_creation(&prefix_of(&request.name), SortOrder::Ascend);
        let (header, kv) = caller.first(oldest).await?;
        let kv = Some(kv.ok_or_else(|| Status::unknown(NO_LEADER))?);
        Ok(Response::new(electionpb::LeaderResponse { header: Some(header), kv }))
    }

    type ObserveStream =
        Pin<Box<dyn Stream<Item = Result<electionpb::LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<electionpb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        let observer = Observer {
            caller,
            prefix: prefix_of(&request.name),
            follows: None,
            news: <_>::default(),
        };
        let news = stream::unfold(observer, async |mut observer| {
            let news = observer.next().await?;
            Some((Ok(news), observer))
        });
        Ok(Response::new(Box::pin(news)))
    }

    async fn resign(
        &self,
        request: Request<electionpb::ResignRequest>,
    ) -> Result<Response<electionpb::ResignResponse>, Status> {
        let (caller, request) = Caller::of(&self.0, request);
        let leader = request.leader.ok_or_else(|| Status::unknown(MISSING_LEADER_KEY))?;
        caller.session(leader.lease).await?;
        // One who is not the leader has resigned, as in etcd.
        let header = caller.release(&leader.key, leader.rev).await?;
        Ok(Response::new(electionpb::ResignResponse { header }))
    }
}

/// A caller that goes away while it waits, or before it is told that it was elected, resigns.
async fn campaign(
    caller: Caller,
    request: electionpb::CampaignRequest,
    mut gone: Gone,
) -> Result<electionpb::CampaignResponse, Status> {
    let lease = caller.session(request.lease).await?;
    let prefix = prefix_of(&request.name);
    let key = key_of(&prefix, lease);
    let value = request.value;
    let put = rpc::PutRequest { key: key.clone(), value: value.clone(), lease, ..<_>::default() };
    let own = rpc::RangeRequest { key: key.clone(), ..Default::default() };
    let (stand, find) = (vec![Op::RequestPut(put)], vec![Op::RequestRange(own)]);
    let response = caller.txn_if_created(&key, 0, stand, find).await?;
    let header = response.header.unwrap_or_default();
    let mut rev = header.revision;
    let new = response.succeeded;
    if let Some(own) = if new { None } else { only_row(&response)? } {
        rev = own.create_revision;
        if own.value != value
            && let Err(status) = proclaim(&caller, &key, rev, value, lease).await
        {
            let _ = caller.release(&key, rev).await;
            return Err(status);
        }
    }
    let waited = tokio::select! {
        waited = caller.wait_deletes(&prefix, rev - 1) => waited,
        () = gone.wait() => Err(Status::cancelled("context canceled")),
    };
    // One whose wait failed otherwise stays a candidate, as in etcd.
    if gone.already() && (new || waited.is_err()) {
        // If this fails too, the key ends with its lease.
        let _ = caller.release(&key, rev).await;
    }
    waited?;
    // etcd's header is that of the candidature, not of the election.
    let leader = electionpb::LeaderKey { name: request.name, key, rev, lease };
    Ok(electionpb::CampaignResponse { header: Some(header), leader: Some(leader) })
}

fn only_row(response: &rpc::TxnResponse) -> Result<Option<KeyValue>, Status> {
    match response.responses.first().and_then(|op| op.response.as_ref()) {
        Some(Answer::ResponseRange(range)) => first_row(range),
        _ => Ok(None),
    }
}

/// A new value for the leader that `rev` created.
async fn proclaim(
    caller: &Caller,
    key: &Bytes,
    rev: i64,
    value: Bytes,
    lease: i64,
) -> Result<Option<rpc::ResponseHeader>, Status> {
    let put = rpc::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    let response = caller.txn_if_created(key, rev, vec![Op::RequestPut(put)], Vec::new()).await?;
    if !response.succeeded {
        return Err(Status::unknown(NOT_LEADER));
    }
    Ok(response.header)
}

/// Follows one leader after the other. As in etcd, its stream ends without an error when it can no
/// longer read or watch.
struct Observer {
    caller: Caller,
    prefix: Vec<u8>,
    /// The watch of the leader's key; none while the leader is looked for.
    follows: Option<Watching>,
    /// Events of that key which are not told yet, and the revision of their delivery.
    news: (i64, VecDeque<Arc<Event>>),
}

impl Observer {
    async fn next(&mut self) -> Option<electionpb::LeaderResponse> {
        loop {
            let Some(watching) = &mut self.follows else {
                let (header, kv) = self.find().await?;
                let watch = self.caller.watch(&kv.key, &[], header.revision + 1);
                self.follows = Some(watch);
                return Some(told(header, kv));
            };
            let (revision, events) = &mut self.news;
            match events.pop_front() {
                Some(event) if event.delete => {
                    events.clear();
                    self.follows = None;
                }
                Some(event) => {
                    if !self.caller.may_read(&event.key).await {
                        return None;
                    }
                    return Some(told(self.caller.header_at(*revision), kv_of(&event)?));
                }
                None => self.news = events_of(watching).await?,
            }
        }
    }

    /// The leader, once there is one. Of a leader that was waited for, the header is at its
    /// proposal.
    async fn find(&self) -> Option<(rpc::ResponseHeader, KeyValue)> {
        let oldest = by_creation(&self.prefix, SortOrder::Ascend);
        let (header, kv) = self.caller.first(oldest).await.ok()?;
        if let Some(kv) = kv {
            return Some((header, kv));
        }
        let mut candidates =
            self.caller.watch(&self.prefix, &end_of(&self.prefix), header.revision);
        loop {
            let (_, events) = events_of(&mut candidates).await?;
            if let Some(event) = events.iter().find(|event| !event.delete) {
                if !self.caller.may_read(&event.key).await {
                    return None;
                }
                return Some((self.caller.header_at(event.mod_revision), kv_of(event)?));
            }
        }
    }
}

fn told(header: rpc::ResponseHeader, kv: KeyValue) -> electionpb::LeaderResponse {
    electionpb::LeaderResponse { header: Some(header), kv: Some(kv) }
}

fn kv_of(event: &Event) -> Option<KeyValue> {
    mvccpb::Event::decode(event.encoded().clone()).ok()?.kv
}

/// The next events of a watch with one watcher; `None` when it has ended.
async fn events_of(watching: &mut Watching) -> Option<(i64, VecDeque<Arc<Event>>)> {
    loop {
        match watching.next().await? {
            Notice::Events(delivery) => {
                let revision = delivery.items.last()?.revision;
                let events = delivery.items.into_iter().flat_map(|item| item.events).collect();
                return Some((revision, events));
            }
            Notice::Compacted { .. } => return None,
            _ => {}
        }
    }
}
