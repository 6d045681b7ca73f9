//! Who gets told about calls, and the one call that its two bodies share.

use super::methods::{Kind, Method};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::Code;

/// Gets told about calls, for the `grpc_server_*` and `etcd_server_client_requests_total` counters.
/// Calls refused by admission are not counted as started, and unary ones without a readable message
/// neither: in etcd the interceptor that counts is behind both.
pub trait Observer: Send + Sync + 'static {
    /// A client came; `kind` is "unary" or "stream", `version` what it says of itself.
    fn client_request(&self, kind: &'static str, version: &str);
    /// A call begins.
    fn started(&self, method: &'static Method);
    /// A call ended; once per started call. A call that the client dropped ends as Cancelled.
    fn handled(&self, method: &'static Method, code: Code);
    /// A message of so many bytes came in.
    fn msg_received(&self, method: &'static Method, bytes: usize);
    /// A message of so many bytes went out.
    fn msg_sent(&self, method: &'static Method, bytes: usize);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn client_request(&self, _: &'static str, _: &str) {}
    fn started(&self, _: &'static Method) {}
    fn handled(&self, _: &'static Method, _: Code) {}
    fn msg_received(&self, _: &'static Method, _: usize) {}
    fn msg_sent(&self, _: &'static Method, _: usize) {}
}

/// One call as the observer sees it; its two bodies share it.
pub struct Call {
    observer: Arc<dyn Observer>,
    method: &'static Method,
    started: AtomicBool,
    handled: AtomicBool,
}

impl Call {
    /// A stream begins now, a unary call with its message.
    pub fn start(observer: Arc<dyn Observer>, method: &'static Method) -> Arc<Self> {
        let call = Self {
            observer,
            method,
            started: AtomicBool::new(false),
            handled: AtomicBool::new(false),
        };
        if method.kind != Kind::Unary {
            call.begin();
        }
        Arc::new(call)
    }

    fn begin(&self) {
        if !self.started.swap(true, Ordering::Relaxed) {
            self.observer.started(self.method);
        }
    }

    /// A message came in.
    pub fn received(&self, bytes: usize) {
        self.begin();
        self.observer.msg_received(self.method, bytes);
    }

    /// A message went out.
    pub fn sent(&self, bytes: usize) {
        self.observer.msg_sent(self.method, bytes);
    }

    /// The call ended with `code`; later ends are ignored.
    pub fn handled(&self, code: Code) {
        let started = self.started.load(Ordering::Relaxed);
        if started && !self.handled.swap(true, Ordering::Relaxed) {
            self.observer.handled(self.method, code);
        }
    }
}

impl Drop for Call {
    /// Nobody can end it any more: the client went away. etcd takes the end of a keep-alive stream
    /// for the loss of the leader (v3.5.17 `v3rpc/lease.go` LeaseKeepAlive).
    fn drop(&mut self) {
        let keep_alive = self.method.name == "LeaseKeepAlive";
        self.handled(if keep_alive { Code::Unavailable } else { Code::Cancelled });
    }
}
