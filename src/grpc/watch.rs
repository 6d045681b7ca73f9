//! The Watch service: a client's requests to the hub, the hub's notices to the client.

use super::edge::Edge;
use super::status;
use crate::actors::handle::auth::{Authority, Credentials, Identity};
use crate::actors::handle::watch::{EVERY_WATCHER, Notice, Watching};
use crate::auth::{Access, Caller};
use crate::base::error::Error;
use crate::base::limits::WATCH_REQUESTS_MAX;
use crate::mvcc::watch::{Delivery, Event, Item, Spec};
use crate::pb::etcdserverpb as rpc;
use bytes::Bytes;
use futures_util::{Stream, stream};
use prost::Message as _;
use rpc::watch_create_request::FilterType;
use rpc::watch_request::RequestUnion;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Request, Response, Status, Streaming};

/// The smallest key, which an empty one stands for.
const FIRST_KEY: Bytes = Bytes::from_static(b"\0");
/// The id in an answer that is for no watcher.
const NO_WATCHER: i64 = -1;
/// Previous rows looked up in one response without leaving the thread that serves the stream.
const PREV_ROWS_INLINE_MAX: usize = 8;
/// Bytes of the tag of `WatchResponse.events`.
const EVENT_TAG_BYTES: usize = 1;

/// Watch over the hub.
pub struct Service(pub Arc<Edge>);

#[tonic::async_trait]
impl rpc::watch_server::Watch for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<rpc::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<rpc::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let credentials = self.0.credentials_kept(&request);
        let session = Session::new(self.0.clone(), credentials, request.into_inner());
        let responses = stream::try_unfold(session, async |mut session| {
            let response = session.next().await?;
            Ok(Some((response, session)))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// What a watcher's client asked of its responses, and of whom.
struct Style {
    /// Whose watcher it is; nobody's if authentication was off.
    owner: Option<Arc<str>>,
    /// The count of changes of users at which they were asked.
    permitted_at: u64,
    key: Bytes,
    range_end: Bytes,
    prev_kv: bool,
    fragment: bool,
    /// Progress notices are wanted; true unless events went out since the last look.
    progress: Option<bool>,
}

/// A watcher asked for, until it is answered.
enum Creating {
    Asked(Style),
    /// Waits until those before it are answered: clients go by the order.
    Denied(String),
}

/// One stream.
struct Session {
    edge: Arc<Edge>,
    watching: Watching,
    /// Ends when the client has nothing more to ask; its watchers go on.
    requests: Option<Streaming<rpc::WatchRequest>>,
    /// Requests that the hub has not answered.
    unanswered: usize,
    /// Of the watchers asked for, in order.
    creating: VecDeque<Creating>,
    watchers: BTreeMap<i64, Style>,
    /// Events taken from the hub and not yet made into responses.
    items: VecDeque<Item>,
    /// Responses ready to go.
    ready: VecDeque<rpc::WatchResponse>,
    progress_look: Interval,
    credentials: Credentials,
    /// Counts changes of users and roles.
    auth_changes: Option<watch::Receiver<u64>>,
    /// Watchers whose cancelling the client knows of already.
    denied: BTreeSet<i64>,
}

impl Session {
    fn new(
        edge: Arc<Edge>,
        credentials: Credentials,
        requests: Streaming<rpc::WatchRequest>,
    ) -> Session {
        let watching = edge.node.watch();
        let period = jittered(edge.options.watch_progress_interval, watching.number());
        let mut progress_look = tokio::time::interval(period);
        progress_look.reset();
        progress_look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Session {
            credentials,
            auth_changes: edge.node.authority().map(Authority::changes),
            denied: BTreeSet::new(),
            edge,
            watching,
            requests: Some(requests),
            unanswered: 0,
            creating: VecDeque::new(),
            watchers: BTreeMap::new(),
            items: VecDeque::new(),
            ready: VecDeque::new(),
            progress_look,
        }
    }

    /// The next response; an error ends the stream.
    async fn next(&mut self) -> Result<rpc::WatchResponse, Status> {
        loop {
            if self
                .auth_changes
                .as_ref()
                .is_some_and(|changes| changes.has_changed().is_ok_and(|changed| changed))
            {
                self.look_at_permissions().await;
            }
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            if let Some(item) = self.items.pop_front() {
                self.respond(item).await?;
                continue;
            }
            let waiting = self.unanswered.max(self.creating.len());
            let open = waiting < WATCH_REQUESTS_MAX;
            tokio::select! {
                notice = self.watching.next() => match notice {
                    Some(notice) => self.take(notice),
                    None => return Err(status::of(Error::Stopped)),
                },
                request = asked(&mut self.requests), if open && self.requests.is_some() => {
                    match request? {
                        Some(request) => self.ask(request).await,
                        None => self.requests = None,
                    }
                }
                () = changed(&mut self.auth_changes) => {}
                _ = self.progress_look.tick() => self.look_for_progress(),
            }
        }
    }

    async fn ask(&mut self, request: rpc::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let mut style = Style {
                    owner: None,
                    permitted_at: self.auth_changes.as_ref().map_or(0, |changes| *changes.borrow()),
                    key: if create.key.is_empty() { FIRST_KEY } else { create.key.clone() },
                    range_end: create.range_end.clone(),
                    prev_kv: create.prev_kv,
                    fragment: create.fragment,
                    progress: create.progress_notify.then_some(true),
                };
                if let Err(refusal) = self.permit_anew(&mut style).await {
                    self.creating.push_back(Creating::Denied(status::watch_denial(refusal)));
                    self.answer_denied();
                    return;
                }
                let leaves_out = |kind: FilterType| create.filters.contains(&(kind as i32));
                let (no_put, no_delete) =
                    (leaves_out(FilterType::Noput), leaves_out(FilterType::Nodelete));
                let spec = Spec::new(&create.key, &create.range_end, no_put, no_delete);
                self.creating.push_back(Creating::Asked(style));
                self.watching.create(create.watch_id, create.start_revision, spec);
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.watching.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.watching.progress(),
            // Like etcd: what is not known is not answered.
            None => return,
        }
        self.unanswered += 1;
    }

    fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Created { id, revision } => {
                self.unanswered -= 1;
                let Some(Creating::Asked(style)) = self.creating.pop_front() else {
                    unreachable!("answers come in order");
                };
                let mut response = self.response(revision, NO_WATCHER);
                response.created = true;
                match id {
                    Ok(id) => {
                        // Users may have changed since it was asked for.
                        if let Some(changes) = &mut self.auth_changes
                            && *changes.borrow() != style.permitted_at
                        {
                            changes.mark_changed();
                        }
                        self.watchers.insert(id, style);
                        response.watch_id = id;
                    }
                    Err(refusal) => {
                        response.canceled = true;
                        response.cancel_reason = status::watch_refusal(refusal).to_owned();
                    }
                }
                self.ready.push_back(response);
                self.answer_denied();
            }
            Notice::Canceled { id, .. } if self.denied.remove(&id) => self.unanswered -= 1,
            Notice::Canceled { id, revision } => {
                self.unanswered -= 1;
                self.watchers.remove(&id);
                let response = self.response(revision, id);
                self.ready.push_back(rpc::WatchResponse { canceled: true, ..response });
            }
            Notice::Done => self.unanswered -= 1,
            // etcd leaves the header's revision at 0 here.
            Notice::Compacted { id, .. } if self.denied.remove(&id) => {}
            Notice::Compacted { id, compact_revision } => {
                self.watchers.remove(&id);
                let response = self.response(0, id);
                self.ready.push_back(rpc::WatchResponse {
                    canceled: true,
                    compact_revision,
                    ..response
                });
            }
            Notice::Progress { id, .. } if self.denied.contains(&id) => {}
            Notice::Progress { id, revision } => {
                let id = if id == EVERY_WATCHER { NO_WATCHER } else { id };
                let response = self.response(revision, id);
                self.ready.push_back(response);
            }
            Notice::Events(Delivery { items }) => self.items = items.into(),
        }
    }

    fn response(&self, revision: i64, watch_id: i64) -> rpc::WatchResponse {
        let mut header = rpc::ResponseHeader { revision, ..Default::default() };
        self.edge.fill_identity(&mut header);
        rpc::WatchResponse { header: Some(header), watch_id, ..Default::default() }
    }

    /// Whether the caller may make a watcher, by their token as it is now.
    async fn permit_anew(&self, style: &mut Style) -> crate::base::error::Result<()> {
        let Some(authority) = self.edge.authority() else { return Ok(()) };
        let identity = authority.identify(&self.credentials).await?;
        let caller = identity.as_ref().map_or(Caller::default(), Identity::caller);
        let state = authority.view().state();
        state.permit(&caller, Access::Read, &style.key, &style.range_end)?;
        style.owner = identity.map(|identity| identity.name);
        Ok(())
    }

    /// Denials at the head of the queue have nothing to wait for.
    fn answer_denied(&mut self) {
        while let Some(Creating::Denied(reason)) = self.creating.front_mut() {
            let cancel_reason = std::mem::take(reason);
            self.creating.pop_front();
            let response = self.response(self.edge.reads.revision(), NO_WATCHER);
            self.ready.push_back(rpc::WatchResponse {
                created: true,
                canceled: true,
                cancel_reason,
                ..response
            });
        }
    }

    /// Ends watchers whose owner may no longer read what they see.
    ///
    /// DEVIATION: in etcd they go on.
    async fn look_at_permissions(&mut self) {
        if let Some(changes) = &mut self.auth_changes {
            changes.mark_unchanged();
        }
        let Some(authority) = self.edge.authority() else { return };
        let mut denied = Vec::new();
        for (&id, style) in &mut self.watchers {
            if style.owner.is_none() {
                // Made while authentication was off.
                let identity = authority.identify(&self.credentials).await;
                style.owner = identity.ok().flatten().map(|identity| identity.name);
            }
            let state = authority.view().state();
            let caller = style
                .owner
                .as_ref()
                .map_or(Caller::default(), |name| Caller { name, revision: state.revision() });
            let allowed = state.permit(&caller, Access::Read, &style.key, &style.range_end);
            if let Err(refusal) = allowed {
                denied.push((id, status::watch_denial(refusal)));
            }
        }
        for (id, cancel_reason) in denied {
            self.watchers.remove(&id);
            self.ready.retain(|ready| ready.watch_id != id || ready.created);
            let response = self.response(self.edge.reads.revision(), id);
            self.ready.push_back(rpc::WatchResponse { canceled: true, cancel_reason, ..response });
            self.denied.insert(id);
            self.watching.cancel(id);
            self.unanswered += 1;
        }
    }

    async fn respond(&mut self, item: Item) -> Result<(), Status> {
        let mut response = self.response(item.revision, item.id);
        let Some(style) = self.watchers.get_mut(&item.id) else {
            return Ok(());
        };
        if style.progress.is_some() {
            // News of the watcher themselves say how far it is.
            style.progress = Some(false);
        }
        let fragment = style.fragment;
        if !style.prev_kv {
            response.events = item.events.iter().map(|event| event.encoded().clone()).collect();
        } else if item.events.len() <= PREV_ROWS_INLINE_MAX {
            response.events = with_prev(&self.edge, &item.events);
        } else {
            let edge = self.edge.clone();
            let looked = tokio::task::spawn_blocking(move || with_prev(&edge, &item.events)).await;
            response.events = looked.map_err(|error| Status::internal(error.to_string()))?;
        }
        if fragment {
            self.ready.extend(fragments(response, self.edge.message_bytes_max()));
        } else {
            self.ready.push_back(response);
        }
        Ok(())
    }

    /// etcd v3.5.17 `v3rpc/watch.go` sendLoop: a watcher that had events since the last look gets
    /// no notice.
    fn look_for_progress(&mut self) {
        for (&id, style) in &mut self.watchers {
            if let Some(due) = &mut style.progress
                && !std::mem::replace(due, true)
            {
                continue;
            }
            if style.progress.is_some() {
                self.watching.progress_of(id);
            }
        }
    }
}

/// Returns when users or roles have changed; the change is still to be looked at.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        changes.mark_changed();
        return;
    }
    std::future::pending().await
}

async fn asked(
    requests: &mut Option<Streaming<rpc::WatchRequest>>,
) -> Result<Option<rpc::WatchRequest>, Status> {
    match requests {
        Some(requests) => requests.message().await,
        None => std::future::pending().await,
    }
}

fn with_prev(edge: &Edge, events: &[Arc<Event>]) -> Vec<Bytes> {
    let row_at = |key: &Bytes, revision| {
        let request = rpc::RangeRequest { key: key.clone(), revision, ..Default::default() };
        edge.reads.range(&request).ok()?.kvs.into_iter().next()
    };
    events.iter().map(|event| event.with_prev(row_at).clone()).collect()
}

/// Up to a tenth more, so that streams opened together are not due together.
fn jittered(interval: Duration, stream: u64) -> Duration {
    let mixed = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    interval + interval / 10 * (mixed >> 16) as u32 / 65_536
}

/// Takes a response apart so that none of several events reaches `bytes_max` (etcd v3.5.17
/// `v3rpc/watch.go` sendFragments). All but the last say that more follows.
fn fragments(mut whole: rpc::WatchResponse, bytes_max: usize) -> Vec<rpc::WatchResponse> {
    if whole.events.len() < 2 || whole.encoded_len() < bytes_max {
        return vec![whole];
    }
    let events = std::mem::take(&mut whole.events);
    let head = rpc::WatchResponse { fragment: true, ..whole };
    let mut parts = Vec::new();
    let mut part = head.clone();
    let mut bytes = head.encoded_len();
    for event in events {
        let cost = EVENT_TAG_BYTES + prost::length_delimiter_len(event.len()) + event.len();
        if !part.events.is_empty() && bytes + cost >= bytes_max {
            parts.push(std::mem::replace(&mut part, head.clone()));
            bytes = head.encoded_len();
        }
        bytes += cost;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_stay_below_the_limit_and_keep_order() {
        let sizes = [10usize, 50, 200, 3, 3, 90, 10];
        let events: Vec<Bytes> =
            sizes.iter().enumerate().map(|(at, &n)| Bytes::from(vec![at as u8; n])).collect();
        let whole =
            rpc::WatchResponse { watch_id: 7, events: events.clone(), ..Default::default() };
        for max in [0, 20, 64, 100, 250] {
            let parts = fragments(whole.clone(), max);
            let joined: Vec<Bytes> = parts.iter().flat_map(|part| part.events.clone()).collect();
            assert_eq!(joined, events, "limit {max}");
            let last = parts.len() - 1;
            for (at, part) in parts.iter().enumerate() {
                assert!(!part.events.is_empty());
                assert_eq!((part.watch_id, part.fragment), (7, at != last));
                assert!(part.encoded_len() < max || part.events.len() == 1, "limit {max}");
            }
        }
        assert_eq!(fragments(whole.clone(), 1000), std::slice::from_ref(&whole));
        let exact = whole.encoded_len();
        assert_eq!(fragments(whole.clone(), exact + 1).len(), 1);
        assert_eq!(fragments(whole, exact).len(), 2);
    }

    #[test]
    fn jitter_is_at_most_a_tenth() {
        let interval = Duration::from_secs(600);
        for stream in 0..1000 {
            let period = jittered(interval, stream);
            assert!(period >= interval && period <= interval + interval / 10, "{period:?}");
        }
        assert_ne!(jittered(interval, 1), jittered(interval, 2));
    }
}
