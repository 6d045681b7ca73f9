//! Who gets told about calls, and the one call that its two bodies share.

use super::methods::Method;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::Code;

/// Gets told about calls, for the `grpc_server_*` and `etcd_server_client_requests_total` counters.
/// Calls refused by admission are not counted as started.
pub trait Observer: Send + Sync + 'static {
    /// A client came; `kind` is "unary" or "stream", `version` what it says of itself.
    fn client_request(&self, kind: &'static str, version: &str);
    /// A call begins.
    fn started(&self, method: &'static Method);
    /// A call ended; once per started call. A call that the client dropped ends as Cancelled.
    fn handled(&self, method: &'static Method, code: Code);
    /// A message came in.
    fn msg_received(&self, method: &'static Method);
    /// A message went out.
    fn msg_sent(&self, method: &'static Method);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn client_request(&self, _: &'static str, _: &str) {}
    fn started(&self, _: &'static Method) {}
    fn handled(&self, _: &'static Method, _: Code) {}
    fn msg_received(&self, _: &'static Method) {}
    fn msg_sent(&self, _: &'static Method) {}
}

/// One call as the observer sees it; its two bodies share it.
pub struct Call {
    observer: Arc<dyn Observer>,
    method: &'static Method,
    handled: AtomicBool,
}

impl Call {
    /// Tells that the call begins.
    pub fn start(observer: Arc<dyn Observer>, method: &'static Method) -> Arc<Self> {
        observer.started(method);
        Arc::new(Self { observer, method, handled: AtomicBool::new(false) })
    }

    /// A message came in.
    pub fn received(&self) {
        self.observer.msg_received(self.method);
    }

    /// A message went out.
    pub fn sent(&self) {
        self.observer.msg_sent(self.method);
    }

    /// The call ended with `code`; later ends are ignored.
    pub fn handled(&self, code: Code) {
        if !self.handled.swap(true, Ordering::Relaxed) {
            self.observer.handled(self.method, code);
        }
    }
}

impl Drop for Call {
    /// Nobody can end it any more: the client went away.
    fn drop(&mut self) {
        self.handled(Code::Cancelled);
    }
}
