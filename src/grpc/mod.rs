//! The gRPC edge: etcd's client services over a `Node` and a reader. It checks requests, asks the
//! node or the reader, and fills in headers; it holds no state of its own.
//! Uses: actors (handle), apply, auth, base, mvcc (watch), obs (metrics), pb, transport (listen)

pub mod access;
pub mod auth;
mod caller;
pub mod calls;
pub mod cluster;
pub mod edge;
pub mod election;
pub mod health;
pub mod kv;
pub mod layer;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod messages;
pub mod methods;
pub mod observer;
pub mod snapshot;
pub mod status;
pub mod validate;
pub mod watch;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use calls::Calls;
pub use edge::{Edge, GrpcOptions, Image, Reads, VERSION};
pub use observer::{NoObserver, Observer};

use crate::actors::handle::NodeHandle;
use crate::pb::{
    etcdserverpb as rpc, health as healthpb, v3electionpb as electionpb, v3lockpb as lockpb,
};
use bytes::Bytes;
use messages::Sent;
use std::sync::Arc;
use tonic::codegen::{Service as _, StdError};

/// Every service of the client port behind [`layer`]'s checks. Methods nobody serves answer
/// Unimplemented.
#[derive(Clone)]
pub struct Services(Arc<Parts>);

struct Parts {
    edge: Arc<Edge>,
    kv: rpc::kv_server::KvServer<kv::Service>,
    watch: rpc::watch_server::WatchServer<watch::Service>,
    lease: rpc::lease_server::LeaseServer<lease::Service>,
    cluster: rpc::cluster_server::ClusterServer<cluster::Service>,
    maintenance: rpc::maintenance_server::MaintenanceServer<maintenance::Service>,
    auth: rpc::auth_server::AuthServer<auth::Service>,
    lock: lockpb::lock_server::LockServer<lock::Service>,
    election: electionpb::election_server::ElectionServer<election::Service>,
    health: healthpb::health_server::HealthServer<health::Service>,
}

impl Services {
    /// The services around a node and its store.
    pub fn new(node: NodeHandle, reads: Arc<dyn Reads>, options: GrpcOptions) -> Self {
        let edge = Arc::new(Edge::new(node, reads, options));
        // The layer refuses larger messages first and with grpc-go's text; this one only has to
        // agree.
        let received_max = edge.message_bytes_max();
        macro_rules! serve {
            ($server:path, $service:expr) => {
                <$server>::new($service)
                    .max_decoding_message_size(received_max)
                    .max_encoding_message_size(usize::MAX)
            };
        }
        Self(Arc::new(Parts {
            kv: serve!(rpc::kv_server::KvServer<_>, kv::Service(edge.clone())),
            watch: serve!(rpc::watch_server::WatchServer<_>, watch::Service(edge.clone())),
            lease: serve!(rpc::lease_server::LeaseServer<_>, lease::Service(edge.clone())),
            cluster: serve!(rpc::cluster_server::ClusterServer<_>, cluster::Service(edge.clone())),
            maintenance: serve!(
                rpc::maintenance_server::MaintenanceServer<_>,
                maintenance::Service(edge.clone())
            ),
            auth: serve!(rpc::auth_server::AuthServer<_>, auth::Service(edge.clone())),
            lock: serve!(lockpb::lock_server::LockServer<_>, lock::Service(edge.clone())),
            election: serve!(
                electionpb::election_server::ElectionServer<_>,
                election::Service(edge.clone())
            ),
            health: serve!(healthpb::health_server::HealthServer<_>, health::Service(edge.clone())),
            edge,
        }))
    }

    /// Answers one call.
    pub async fn call<B>(&self, request: http::Request<B>) -> http::Response<Sent>
    where
        B: http_body::Body<Data = Bytes, Error: Into<StdError>> + Send + Unpin + 'static,
    {
        let parts = &*self.0;
        layer::guard(&parts.edge, request, |method, request| async move {
            macro_rules! to {
                ($server:ident) => {
                    parts.$server.clone().call(request)
                };
            }
            let answer = match method.service {
                "etcdserverpb.KV" => to!(kv),
                "etcdserverpb.Watch" => to!(watch),
                "etcdserverpb.Lease" => to!(lease),
                "etcdserverpb.Cluster" => to!(cluster),
                "etcdserverpb.Maintenance" => to!(maintenance),
                "etcdserverpb.Auth" => to!(auth),
                "v3lockpb.Lock" => to!(lock),
                "v3electionpb.Election" => to!(election),
                "grpc.health.v1.Health" => to!(health),
                other => return status::unknown_service(other).into_http(),
            };
            match answer.await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
        .await
    }
}
