//! A tree out of the JSON of a `.snap` file (etcd v3.5.17 `v2store/store.go` Recovery). What is
//! missing in it is as in a new tree.

use super::event::{Action, Event, HISTORY_EVENTS, History, NodeView};
use super::node::{Children, Held, Node};
use super::stats::Stats;
use super::store::{Store, add_roots};
use super::time::{self, Time};
use super::{LEVELS_MAX, path};
use bytes::Bytes;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Brackets in each other: two for each level of the tree, and some around it.
const NESTING_MAX: usize = 2 * LEVELS_MAX + 8;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StoreJson {
    root: Option<NodeJson>,
    #[serde(default)]
    watcher_hub: HubJson,
    #[serde(default)]
    current_index: u64,
    #[serde(default)]
    stats: Stats,
    current_version: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NodeJson {
    path: String,
    created_index: u64,
    modified_index: u64,
    expire_time: Option<String>,
    value: String,
    children: Option<BTreeMap<String, NodeJson>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HubJson {
    event_history: HistoryJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HistoryJson {
    queue: Option<QueueJson>,
    start_index: u64,
    last_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct QueueJson {
    events: Vec<Option<EventJson>>,
    size: usize,
    front: usize,
    back: usize,
    capacity: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventJson {
    action: String,
    #[serde(default)]
    node: ViewJson,
    prev_node: Option<ViewJson>,
    #[serde(default)]
    refresh: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ViewJson {
    key: String,
    value: Option<String>,
    dir: bool,
    expiration: Option<String>,
    ttl: i64,
    nodes: Vec<ViewJson>,
    modified_index: u64,
    created_index: u64,
}

impl Store {
    /// The tree that etcd, or [`super::Image::json`], wrote; or why this is none.
    pub fn from_json(json: &[u8]) -> Result<Store, String> {
        if nesting(json) > NESTING_MAX {
            return Err(format!("the v2 store has more than {LEVELS_MAX} levels"));
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        reader.disable_recursion_limit();
        let read = StoreJson::deserialize(&mut reader).map_err(|error| error.to_string())?;
        reader.end().map_err(|error| error.to_string())?;
        let mut store = Store::new();
        let mut ends = Vec::new();
        let root = read.root.ok_or("the v2 store has no root")?;
        let mut root = node(b"/".to_vec(), root, &mut ends)?;
        if !root.is_dir() {
            root.held = Held::Dir(Children::new());
        }
        add_roots(&mut root);
        store.root = Arc::new(root);
        store.ends = ends.into_iter().collect();
        store.history = Arc::new(history(read.watcher_hub.event_history)?);
        store.index = read.current_index;
        store.stats = read.stats;
        store.version = read.current_version.unwrap_or(store.version);
        Ok(store)
    }
}

/// The most brackets that are open at once.
fn nesting(json: &[u8]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    let mut bytes = json.iter();
    let mut quoted = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                bytes.next();
            }
            b'{' | b'[' if !quoted => {
                open += 1;
                most = most.max(open);
            }
            b'}' | b']' if !quoted => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

fn node(at: Vec<u8>, read: NodeJson, ends: &mut Vec<(Time, Bytes)>) -> Result<Node, String> {
    let named = String::from_utf8_lossy(&at);
    if !read.path.is_empty() && read.path != named {
        return Err(format!("the v2 store has {:?} where {named:?} belongs", read.path));
    }
    let expires = read.expire_time.as_deref().map_or(Ok(None), time::read)?;
    let held = match read.children {
        None => Held::Value(read.value.into()),
        Some(children) => {
            let child = |(name, read): (String, NodeJson)| {
                let node = node(path::join(&at, name.as_bytes()), read, ends)?;
                Ok((Bytes::from(name), Arc::new(node)))
            };
            Held::Dir(children.into_iter().map(child).collect::<Result<_, String>>()?)
        }
    };
    let mut node = Node::new(at, read.created_index, expires, held);
    node.modified = read.modified_index;
    ends.extend(expires.map(|at| (at, node.path.clone())));
    Ok(node)
}

fn history(read: HistoryJson) -> Result<History, String> {
    let Some(queue) = read.queue else { return Ok(History::new()) };
    let QueueJson { events, size, front, back, capacity } = queue;
    let fits = capacity == events.len()
        && (1..=HISTORY_EVENTS).contains(&capacity)
        && size <= capacity
        && front < capacity
        && back < capacity
        && (0..size).all(|at| events[(front + at) % capacity].is_some());
    if !fits {
        return Err("the v2 store's queue of events does not fit itself".to_owned());
    }
    let read_event =
        |event: Option<EventJson>| event.map(|e| event_of(e).map(Arc::new)).transpose();
    Ok(History {
        ring: events.into_iter().map(read_event).collect::<Result<_, _>>()?,
        size,
        front,
        back,
        start_index: read.start_index,
        last_index: read.last_index,
    })
}

fn event_of(read: EventJson) -> Result<Event, String> {
    let unknown = || format!("the v2 store has an event of kind {:?}", read.action);
    let action = Action::from_name(&read.action).ok_or_else(unknown)?;
    let node = view(read.node)?;
    let etcd_index = node.modified_index;
    let prev_node = read.prev_node.map(view).transpose()?;
    Ok(Event { action, node, prev_node, refresh: read.refresh, etcd_index })
}

fn view(read: ViewJson) -> Result<NodeView, String> {
    Ok(NodeView {
        key: read.key.into(),
        value: read.value.map(Bytes::from),
        dir: read.dir,
        expiration: read.expiration.as_deref().map_or(Ok(None), time::read)?,
        ttl: read.ttl,
        nodes: read.nodes.into_iter().map(view).collect::<Result<_, _>>()?,
        modified_index: read.modified_index,
        created_index: read.created_index,
    })
}
