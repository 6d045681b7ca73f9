//! The Watch service: not served yet.

use super::status;
use crate::base::error::Error;
use crate::pb::etcdserverpb as rpc;
use futures_util::stream::Empty;
use tonic::{Request, Response, Status, Streaming};

/// Answers Unimplemented.
pub struct Service;

#[tonic::async_trait]
impl rpc::watch_server::Watch for Service {
    type WatchStream = Empty<Result<rpc::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<Streaming<rpc::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(status::of(Error::NotImplemented))
    }
}
