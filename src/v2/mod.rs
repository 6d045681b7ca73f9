//! etcd's v2 store: the tree that its `.snap` files hold, with the members, the cluster version and
//! the keys of the v2 API (etcd v3.5.17 `server/etcdserver/api/v2store`). Pure and deterministic:
//! the time of day comes in with each operation. Whoever wants the tree as a file asks for an
//! [`Image`], which is free, and has the JSON made of it wherever there is time:
//!
//! - [`Store::new`], [`Store::from_json`]: a fresh tree, one out of a `.snap` file;
//! - [`Store::image`], [`Image::json`]: the tree as of now, and the bytes that etcd would save;
//! - [`Store::apply`]: a v2 request of the log; the operations themselves are methods, too.
//!
//! Uses: pb

mod error;
mod event;
mod json;
mod node;
pub mod path;
mod read;
mod request;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod time;

pub use error::{Code, Error};
pub use event::{Action, Event, History, NodeView};
pub use json::Image;
pub use request::Reply;
pub use stats::Stats;
pub use store::{Expiry, Previous, Store};
pub use time::Time;

/// The part of the tree that is the cluster's own.
pub const CLUSTER: &str = "/0";
/// The part that has the keys of the v2 API.
pub const KEYS: &str = "/1";
/// Levels that a path may have. Go's decoder, with which etcd reads its own snapshots, ends at some
/// 5,000; ours works on the stack, which has to last on any thread.
pub const LEVELS_MAX: usize = 200;
