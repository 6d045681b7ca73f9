//! The Maintenance service.

use super::edge::{Edge, VERSION, unexpected};
use super::{snapshot, status};
use crate::apply::Reply;
use crate::base::error::Error;
use crate::base::ids::MemberId;
use crate::pb::etcdserverpb as rpc;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Maintenance over the node and the reader.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::maintenance_server::Maintenance for Service {
    async fn alarm(
        &self,
        request: Request<rpc::AlarmRequest>,
    ) -> Result<Response<rpc::AlarmResponse>, Status> {
        let credentials = self.0.credentials(&request);
        let request = request.into_inner();
        let allowed = if request.action == rpc::alarm_request::AlarmAction::Get as i32 {
            self.0.require_user(&credentials).await
        } else {
            self.0.require_admin(&credentials).await
        };
        allowed.map_err(status::of)?;
        let request = rpc::InternalRaftRequest { alarm: Some(request), ..Default::default() };
        match self.0.propose_as(&credentials, request).await? {
            Reply::Alarm(mut response) => {
                self.0.fill(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(
        &self,
        _: Request<rpc::StatusRequest>,
    ) -> Result<Response<rpc::StatusResponse>, Status> {
        let raft = self.0.node.raft_status();
        let mut errors = Vec::new();
        if raft.leader.0 == 0 {
            errors.push(status::code_and_text(Error::NoLeader).1.to_owned());
        }
        errors.extend(self.0.node.alarms().iter().map(alarm_text));
        Ok(Response::new(rpc::StatusResponse {
            header: self.0.header(),
            version: VERSION.to_owned(),
            db_size: signed(self.0.reads.size_bytes()),
            leader: raft.leader.0,
            raft_index: raft.committed_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: signed(self.0.reads.size_in_use_bytes()),
            is_learner: raft.is_learner,
        }))
    }

    async fn defragment(
        &self,
        request: Request<rpc::DefragmentRequest>,
    ) -> Result<Response<rpc::DefragmentResponse>, Status> {
        self.root_only(&request).await?;
        tracing::info!("starting defragment");
        if let Err(reason) = self.0.node.defragment().await {
            tracing::warn!(error = reason, "failed to defragment");
            return Err(status::failed(&reason));
        }
        tracing::info!("finished defragment");
        Ok(Response::new(rpc::DefragmentResponse::default()))
    }

    async fn hash(
        &self,
        request: Request<rpc::HashRequest>,
    ) -> Result<Response<rpc::HashResponse>, Status> {
        self.root_only(&request).await?;
        let hash = self.blocking(|edge| edge.reads.hash()).await?;
        Ok(Response::new(rpc::HashResponse { header: self.0.header(), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<rpc::HashKvRequest>,
    ) -> Result<Response<rpc::HashKvResponse>, Status> {
        self.root_only(&request).await?;
        let asked = request.into_inner().revision;
        let (hash, revision, compact_revision) =
            self.blocking(move |edge| edge.reads.hash_kv(asked)).await?;
        let mut header = Some(rpc::ResponseHeader { revision, ..Default::default() });
        self.0.fill(&mut header);
        Ok(Response::new(rpc::HashKvResponse { header, hash, compact_revision }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<rpc::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<rpc::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.root_only(&request).await?;
        let reads = self.0.reads.clone();
        Ok(Response::new(Box::pin(snapshot::messages(move || reads.image()))))
    }

    async fn move_leader(
        &self,
        request: Request<rpc::MoveLeaderRequest>,
    ) -> Result<Response<rpc::MoveLeaderResponse>, Status> {
        self.0.require_admin(&self.0.credentials(&request)).await.map_err(status::of)?;
        let target = MemberId(request.into_inner().target_id);
        self.0.node.move_leader(target).await.map_err(status::of)?;
        Ok(Response::new(rpc::MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        request: Request<rpc::DowngradeRequest>,
    ) -> Result<Response<rpc::DowngradeResponse>, Status> {
        self.0.require_admin(&self.0.credentials(&request)).await.map_err(status::of)?;
        let downgrading = self.0.node.downgrading();
        let downgrading = downgrading.ok_or_else(|| status::of(Error::NotImplemented))?;
        let rpc::DowngradeRequest { action, version } = request.into_inner();
        let version = match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => downgrading.validate(&version).await,
            Ok(DowngradeAction::Enable) => downgrading.enable(&version).await,
            Ok(DowngradeAction::Cancel) => downgrading.cancel().await,
            Err(_) => return Err(status::of(Error::UnknownMethod)),
        };
        let version = version.map_err(status::of)?;
        let mut header = Some(rpc::ResponseHeader::default());
        self.0.fill(&mut header);
        Ok(Response::new(rpc::DowngradeResponse { header, version }))
    }
}

impl Service {
    /// Refuses everyone but root with etcd's untranslated errors.
    async fn root_only<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let allowed = self.0.require_admin(&self.0.credentials(request)).await;
        allowed.map_err(status::untranslated)
    }

    /// Hashes read the whole store: they run on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Edge) -> crate::base::error::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let edge = self.0.clone();
        match tokio::task::spawn_blocking(move || read(&edge)).await {
            Ok(result) => result.map_err(status::of),
            Err(error) => {
                tracing::error!(%error, "a hash did not finish");
                Err(Status::internal("etcdserver: read failed"))
            }
        }
    }
}

/// An alarm as protobuf's compact text format prints it, trailing blank included.
fn alarm_text(alarm: &rpc::AlarmMember) -> String {
    let mut text = String::new();
    if alarm.member_id != 0 {
        text.push_str(&format!("memberID:{} ", alarm.member_id));
    }
    match rpc::AlarmType::try_from(alarm.alarm) {
        Ok(rpc::AlarmType::None) => {}
        Ok(kind) => text.push_str(&format!("alarm:{} ", kind.as_str_name())),
        Err(_) => text.push_str(&format!("alarm:{} ", alarm.alarm)),
    }
    text
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
