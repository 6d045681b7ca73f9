//! What operations answer, and the newest of those that changed something.

use super::error::{Code, Error};
use super::node::{Held, Node};
use super::time::Time;
use bytes::Bytes;
use std::sync::Arc;

/// Events that are kept (etcd v3.5.17 `v2store/store.go` newStore).
pub(super) const HISTORY_EVENTS: usize = 1000;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Get,
    Create,
    Set,
    Update,
    Delete,
    CompareAndSwap,
    CompareAndDelete,
    Expire,
}

impl Action {
    const ALL: [Action; 8] = [
        Action::Get,
        Action::Create,
        Action::Set,
        Action::Update,
        Action::Delete,
        Action::CompareAndSwap,
        Action::CompareAndDelete,
        Action::Expire,
    ];

    /// etcd's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Get => "get",
            Action::Create => "create",
            Action::Set => "set",
            Action::Update => "update",
            Action::Delete => "delete",
            Action::CompareAndSwap => "compareAndSwap",
            Action::CompareAndDelete => "compareAndDelete",
            Action::Expire => "expire",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// A node as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub key: Bytes,
    pub value: Option<Bytes>,
    pub dir: bool,
    pub expiration: Option<Time>,
    /// Seconds left when it was looked at.
    pub ttl: i64,
    pub nodes: Vec<NodeView>,
    pub modified_index: u64,
    pub created_index: u64,
}

impl NodeView {
    /// The node, and with `recursive` everything below it that is not hidden, names in order.
    pub(super) fn of(node: &Node, recursive: bool, now: Time) -> NodeView {
        let mut view = NodeView {
            key: node.path.clone(),
            modified_index: node.modified,
            created_index: node.created,
            ..NodeView::default()
        };
        view.expire(node.expires, now);
        match &node.held {
            Held::Value(value) => view.value = Some(value.clone()),
            Held::Dir(_) => {
                view.dir = true;
                if recursive {
                    view.nodes = NodeView::children_of(node, true, now);
                }
            }
        }
        view
    }

    pub(super) fn children_of(node: &Node, recursive: bool, now: Time) -> Vec<NodeView> {
        let shown = node.children().filter(|child| !child.is_hidden());
        shown.map(|child| NodeView::of(child, recursive, now)).collect()
    }

    pub(super) fn expire(&mut self, at: Option<Time>, now: Time) {
        self.expiration = at;
        self.ttl = at.map_or(0, |at| at.seconds_after(now));
    }
}

/// What an operation did or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub action: Action,
    pub node: NodeView,
    pub prev_node: Option<NodeView>,
    /// Whether only the time to live changed, of which watchers are not told.
    pub refresh: bool,
    /// The store's index then.
    pub etcd_index: u64,
}

impl Event {
    pub(super) fn new(action: Action, key: Bytes, modified: u64, created: u64) -> Event {
        let node = NodeView {
            key,
            modified_index: modified,
            created_index: created,
            ..NodeView::default()
        };
        Event { action, node, prev_node: None, refresh: false, etcd_index: 0 }
    }

    fn is_of(&self, key: &[u8], recursive: bool) -> bool {
        let changed = &self.node.key;
        if changed == key {
            return true;
        }
        if recursive {
            let dir = key.strip_suffix(b"/").unwrap_or(key);
            if changed.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/')) {
                return true;
            }
        }
        let gone = matches!(self.action, Action::Delete | Action::Expire);
        let prev = self.prev_node.as_ref();
        gone && prev.is_some_and(|prev| prev.dir && key.starts_with(&prev.key))
    }
}

/// A ring of the newest events.
#[derive(Clone, Debug)]
pub struct History {
    pub(super) ring: Vec<Option<Arc<Event>>>,
    pub(super) size: usize,
    pub(super) front: usize,
    pub(super) back: usize,
    pub(super) start_index: u64,
    pub(super) last_index: u64,
}

impl History {
    pub(super) fn new() -> History {
        History {
            ring: vec![None; HISTORY_EVENTS],
            size: 0,
            front: 0,
            back: 0,
            start_index: 0,
            last_index: 0,
        }
    }

    pub(super) fn add(&mut self, event: Arc<Event>) {
        let capacity = self.ring.len();
        self.last_index = event.node.modified_index;
        self.ring[self.back] = Some(event);
        self.back = (self.back + 1) % capacity;
        if self.size == capacity {
            self.front = (self.front + 1) % capacity;
        } else {
            self.size += 1;
        }
        let oldest = self.ring[self.front].as_ref();
        self.start_index = oldest.map_or(0, |oldest| oldest.node.modified_index);
    }

    /// The first event from `index` on that concerns the key, or with `recursive` what is below.
    pub fn scan(
        &self,
        key: &[u8],
        recursive: bool,
        index: u64,
    ) -> Result<Option<Arc<Event>>, Error> {
        if index < self.start_index {
            let cause =
                format!("the requested history has been cleared [{}/{index}]", self.start_index);
            return Err(Error::new(Code::EventIndexCleared, cause.as_bytes(), 0));
        }
        if index > self.last_index {
            return Ok(None);
        }
        let capacity = self.ring.len();
        let skipped = usize::try_from(index - self.start_index).unwrap_or(usize::MAX);
        let kept = (skipped..self.size).map(|at| (self.front + at) % capacity);
        let mut kept = kept.filter_map(|at| self.ring[at].as_ref());
        Ok(kept.find(|event| !event.refresh && event.is_of(key, recursive)).cloned())
    }
}
