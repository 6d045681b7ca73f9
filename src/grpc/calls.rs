//! Counts gRPC calls for `/metrics`: every counter of a method is found once, at the start.

use super::methods::{METHODS, Method};
use super::observer::Observer;
use crate::obs::metrics::{GRPC_CODES, metrics};
use parking_lot::RwLock;
use prometheus::IntCounter;
use tonic::Code;

/// Client versions that are counted by name; what clients say of themselves has no bound.
const CLIENT_VERSIONS_MAX: usize = 64;

struct Counters {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    /// By code, in the order of [`GRPC_CODES`].
    handled: Vec<IntCounter>,
}

/// Counters of a client version: unary calls and streams.
struct Version {
    name: String,
    unary: IntCounter,
    stream: IntCounter,
}

/// The observer of the client port.
pub struct Calls {
    /// By [`Method::index`].
    methods: Vec<Counters>,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    /// Grows with the first call of a version, and is read by all others.
    versions: RwLock<Vec<Version>>,
}

impl Calls {
    /// All series of all methods, at zero.
    pub fn at_zero() -> Calls {
        let metrics = metrics();
        let methods = METHODS
            .iter()
            .map(|method| {
                let labels = [method.kind.label(), method.service, method.name];
                let handled = GRPC_CODES.map(|code| {
                    let [kind, service, name] = labels;
                    metrics.grpc_handled.with_label_values(&[kind, service, name, code])
                });
                Counters {
                    started: metrics.grpc_started.with_label_values(&labels),
                    received: metrics.grpc_msg_received.with_label_values(&labels),
                    sent: metrics.grpc_msg_sent.with_label_values(&labels),
                    handled: handled.into(),
                }
            })
            .collect();
        Calls {
            methods,
            received_bytes: metrics.client_grpc_received_bytes.clone(),
            sent_bytes: metrics.client_grpc_sent_bytes.clone(),
            versions: RwLock::default(),
        }
    }

    fn add_version(&self, name: &str) -> (IntCounter, IntCounter) {
        let mut versions = self.versions.write();
        let name = if versions.len() < CLIENT_VERSIONS_MAX { name } else { "unknown" };
        let [unary, stream] = ["unary", "stream"]
            .map(|kind| metrics().client_requests.with_label_values(&[kind, name]));
        if versions.len() < CLIENT_VERSIONS_MAX {
            let (unary, stream) = (unary.clone(), stream.clone());
            versions.push(Version { name: name.to_owned(), unary, stream });
        }
        (unary, stream)
    }
}

impl Observer for Calls {
    fn client_request(&self, kind: &'static str, version: &str) {
        let found = {
            let versions = self.versions.read();
            let known = versions.iter().find(|known| known.name == version);
            known.map(|known| (known.unary.clone(), known.stream.clone()))
        };
        let (unary, stream) = found.unwrap_or_else(|| self.add_version(version));
        if kind == "unary" { unary.inc() } else { stream.inc() }
    }

    fn started(&self, method: &'static Method) {
        self.methods[method.index].started.inc();
    }

    fn handled(&self, method: &'static Method, code: Code) {
        self.methods[method.index].handled[code as usize].inc();
    }

    fn msg_received(&self, method: &'static Method, bytes: usize) {
        self.methods[method.index].received.inc();
        self.received_bytes.inc_by(bytes as u64);
    }

    fn msg_sent(&self, method: &'static Method, bytes: usize) {
        self.methods[method.index].sent.inc();
        self.sent_bytes.inc_by(bytes as u64);
    }
}
