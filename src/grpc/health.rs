//! The standard health service. Like etcd, it knows one service: the whole server, "".

use super::edge::Edge;
use crate::pb::health as pb;
use futures_util::{Stream, StreamExt, stream};
use pb::health_check_response::ServingStatus;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

/// Health of the edge.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl pb::health_server::Health for Service {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(*self.0.options.serving.borrow())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !request.into_inner().service.is_empty() {
            let unknown = pb::HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let once = stream::once(async move { Ok(unknown) });
            return Ok(Response::new(Box::pin(once.chain(stream::pending()))));
        }
        let changes = WatchStream::new(self.0.options.serving.clone());
        let answers = changes.map(|serving| Ok(answer(serving))).chain(stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer(serving: bool) -> pb::HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    pb::HealthCheckResponse { status: status.into() }
}
