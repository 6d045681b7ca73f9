//! Requests of the log (etcd v3.5.17 `server/etcdserver/apply_v2.go`). What of them is the
//! cluster's own affair, `cluster` takes out before.

use super::error::Error;
use super::event::Event;
use super::store::{Expiry, Previous, Store};
use super::time::Time;
use crate::pb::etcdserverpb as rpc;
use std::sync::Arc;

/// What a request did; `None` where etcd answers nothing.
pub type Reply = Result<Option<Arc<Event>>, Error>;

impl Store {
    /// Applies a request. `now` is only for the seconds left that events tell.
    pub fn apply(&mut self, request: &rpc::Request, now: Time) -> Reply {
        let r = request;
        let at = (r.expiration != 0).then_some(Time(r.expiration));
        let expiry = Expiry { at, refresh: r.refresh == Some(true) };
        let held = (!r.dir).then_some(&r.val[..]);
        let previous = Previous { value: &r.prev_value, index: r.prev_index };
        let compared = previous != Previous::default();
        let done = match (r.method.as_str(), r.prev_exist) {
            ("POST", _) => self.create(&r.path, held, true, expiry, now),
            ("PUT", Some(false)) => self.create(&r.path, held, false, expiry, now),
            ("PUT", Some(true)) if !compared => self.update(&r.path, &r.val, expiry, now),
            ("PUT", _) if compared => self.compare_and_swap(&r.path, previous, &r.val, expiry, now),
            ("PUT", _) => self.set(&r.path, held, expiry, now),
            ("DELETE", _) if compared => self.compare_and_delete(&r.path, previous, now),
            ("DELETE", _) => self.delete(&r.path, r.dir, r.recursive, now),
            ("QGET", _) => self.get(&r.path, r.recursive, now).map(Arc::new),
            ("SYNC", _) => {
                self.delete_expired(Time(r.time), now);
                return Ok(None);
            }
            _ => return Err(Error::UnknownMethod),
        };
        done.map(Some)
    }
}
