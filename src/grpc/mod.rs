//! The gRPC edge: etcd's client services over a `Node` and a reader. It checks requests, asks the
//! node or the reader, and fills in headers; it holds no state of its own.
//! Uses: actors (handle), apply, base, obs (metrics), pb

pub mod auth;
pub mod cluster;
pub mod edge;
pub mod health;
pub mod kv;
pub mod layer;
pub mod lease;
pub mod maintenance;
pub mod messages;
pub mod methods;
pub mod observer;
pub mod status;
pub mod validate;
pub mod watch;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use edge::{Edge, GrpcOptions, Reads, VERSION};
pub use observer::{NoObserver, Observer};

use crate::actors::handle::NodeHandle;
use crate::pb::{etcdserverpb as rpc, health as healthpb};
use std::sync::Arc;
use tonic::service::Routes;

/// Every service of the client port behind [`layer`]'s checks. Methods nobody serves answer
/// Unimplemented.
pub fn routes(node: NodeHandle, reads: Arc<dyn Reads>, options: GrpcOptions) -> axum::Router {
    let edge = Arc::new(Edge::new(node, reads, options));
    // The layer refuses larger messages first and with grpc-go's text; this one only has to agree.
    let received_max = edge.message_bytes_max();
    macro_rules! serve {
        ($server:path, $service:expr) => {
            <$server>::new($service)
                .max_decoding_message_size(received_max)
                .max_encoding_message_size(usize::MAX)
        };
    }
    let router = Routes::new(serve!(rpc::kv_server::KvServer<_>, kv::Service(edge.clone())))
        .add_service(serve!(rpc::watch_server::WatchServer<_>, watch::Service))
        .add_service(serve!(rpc::lease_server::LeaseServer<_>, lease::Service(edge.clone())))
        .add_service(serve!(rpc::cluster_server::ClusterServer<_>, cluster::Service(edge.clone())))
        .add_service(serve!(
            rpc::maintenance_server::MaintenanceServer<_>,
            maintenance::Service(edge.clone())
        ))
        .add_service(serve!(rpc::auth_server::AuthServer<_>, auth::Service(edge.clone())))
        .add_service(serve!(
            healthpb::health_server::HealthServer<_>,
            health::Service(edge.clone())
        ))
        .into_axum_router();
    router.layer(axum::middleware::from_fn_with_state(edge, layer::guard))
}
