//! The operations (etcd v3.5.17 `v2store/store.go`), with the counters as etcd counts: a few
//! refusals are successes there.

use super::error::{Code, Error};
use super::event::{Action, Event, History, NodeView};
use super::json::Image;
use super::node::{Held, Node, node_mut};
use super::path;
use super::stats::Stats;
use super::time::Time;
use super::{CLUSTER, KEYS, LEVELS_MAX};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What etcd 3.5 calls its version of the store.
const VERSION: u64 = 2;
/// An end before the year 2000 is none when a node is created (etcd v3.5.17 minExpireTime).
const EXPIRY_MIN: Time = Time(946_684_800_000_000_000);

/// When a node is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// `None`: never.
    pub at: Option<Time>,
    /// Only this changes: the value stays, and watchers are not told.
    pub refresh: bool,
}

/// What a node has to be like; empty and 0 are anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous<'a> {
    pub value: &'a [u8],
    pub index: u64,
}

/// The outcome of an operation.
type Done = Result<Arc<Event>, Error>;

/// The tree. A clone shares all nodes with it.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) root: Arc<Node>,
    pub(super) history: Arc<History>,
    pub(super) index: u64,
    pub(super) stats: Stats,
    pub(super) version: u64,
    /// Nodes that will end, the next one first.
    pub(super) ends: BTreeSet<(Time, Bytes)>,
}

impl Default for Store {
    fn default() -> Self {
        Store::new()
    }
}

impl Store {
    /// The tree with which a member begins: two empty directories.
    pub fn new() -> Store {
        let mut root = Node::dir(b"/".to_vec(), 0);
        add_roots(&mut root);
        Store {
            root: Arc::new(root),
            history: Arc::new(History::new()),
            index: 0,
            stats: Stats::default(),
            version: VERSION,
            ends: BTreeSet::new(),
        }
    }

    /// The number of changes so far.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The newest events.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether any node will end.
    pub fn has_ttl_keys(&self) -> bool {
        !self.ends.is_empty()
    }

    /// The tree as it is now. Takes no time; what the store does later copies what it changes.
    pub fn image(&self) -> Image {
        Image {
            root: Arc::clone(&self.root),
            history: Arc::clone(&self.history),
            index: self.index,
            stats: self.stats,
            version: self.version,
        }
    }

    /// What etcd would save, made here and now.
    pub fn json(&self) -> Vec<u8> {
        self.image().json()
    }

    /// A file's value.
    pub fn value(&self, path: &str) -> Option<Bytes> {
        let node = self.find(&path::clean(path.as_bytes())).ok()?;
        (!node.is_dir()).then(|| node.value())
    }

    /// Names in a directory, hidden ones too; none if there is no such directory.
    pub fn names(&self, path: &str) -> Vec<Bytes> {
        let Ok(node) = self.find(&path::clean(path.as_bytes())) else { return Vec::new() };
        node.children().map(|child| Bytes::copy_from_slice(path::name(&child.path))).collect()
    }

    /// Looks at a node and its children, with `recursive` at everything below. Names in order.
    pub fn get(&mut self, path: &[u8], recursive: bool, now: Time) -> Result<Event, Error> {
        let found = self.look(path, recursive, now);
        match &found {
            Ok(_) => self.stats.gets_success += 1,
            Err(_) => self.stats.gets_fail += 1,
        }
        found
    }

    fn look(&self, path: &[u8], recursive: bool, now: Time) -> Result<Event, Error> {
        let node = self.find(&path::clean(path))?;
        let key = Bytes::copy_from_slice(path);
        let mut event = Event::new(Action::Get, key, node.modified, node.created);
        event.etcd_index = self.index;
        let view = &mut event.node;
        match &node.held {
            Held::Dir(_) => {
                view.dir = true;
                view.nodes = NodeView::children_of(node, recursive, now);
            }
            Held::Value(value) => view.value = Some(value.clone()),
        }
        view.expire(node.expires, now);
        Ok(event)
    }

    /// Makes a node that is not there yet. With `unique` its name is the next index.
    pub fn create(
        &mut self,
        path: &[u8],
        held: Option<&[u8]>,
        unique: bool,
        expiry: Expiry,
        now: Time,
    ) -> Done {
        let mut path = path.to_vec();
        if unique {
            path.extend_from_slice(format!("/{:020}", self.index + 1).as_bytes());
        }
        let placed = self.place(Action::Create, &path, held, expiry, now);
        match &placed {
            Ok(_) => self.stats.create_success += 1,
            Err(_) => self.stats.create_fail += 1,
        }
        Ok(self.record(placed?))
    }

    /// Makes a node, in place of a file that is there. `held` is the value; `None` a directory.
    pub fn set(&mut self, path: &[u8], held: Option<&[u8]>, expiry: Expiry, now: Time) -> Done {
        let done = self.try_set(path, held, expiry, now);
        match &done {
            Ok(_) => self.stats.sets_success += 1,
            Err(_) => self.stats.sets_fail += 1,
        }
        Ok(self.record(done?))
    }

    fn try_set(
        &mut self,
        path: &[u8],
        held: Option<&[u8]>,
        expiry: Expiry,
        now: Time,
    ) -> Result<Event, Error> {
        let before = match self.find(&path::clean(path)) {
            Ok(node) => Some(Arc::clone(node)),
            Err(error) if expiry.refresh || error.code() != Some(Code::KeyNotFound) => {
                return Err(error);
            }
            Err(_) => None,
        };
        let kept = before.as_ref().filter(|_| expiry.refresh).map(|node| node.value());
        let held = held.map(|value| kept.as_deref().unwrap_or(value));
        let mut event = self.place(Action::Set, path, held, expiry, now)?;
        event.refresh = expiry.refresh;
        if let Some(before) = before {
            let key = Bytes::copy_from_slice(path);
            event.prev_node = Some(NodeView { key, ..NodeView::of(&before, false, now) });
        }
        Ok(event)
    }

    /// Gives a file that is like `previous` another value.
    pub fn compare_and_swap(
        &mut self,
        path: &[u8],
        previous: Previous<'_>,
        value: &[u8],
        expiry: Expiry,
        now: Time,
    ) -> Done {
        let done = self.try_swap(path, previous, value, expiry, now);
        match code_of(&done) {
            None | Some(Code::RootReadOnly) => self.stats.compare_and_swap_success += 1,
            Some(_) => self.stats.compare_and_swap_fail += 1,
        }
        Ok(self.record(done?))
    }

    fn try_swap(
        &mut self,
        path: &[u8],
        previous: Previous<'_>,
        value: &[u8],
        expiry: Expiry,
        now: Time,
    ) -> Result<Event, Error> {
        let path = path::clean(path);
        self.writable(&path)?;
        let node = Arc::clone(self.find(&path)?);
        self.compare(&node, &path, previous)?;
        let value = if expiry.refresh { node.value() } else { Bytes::copy_from_slice(value) };
        self.index += 1;
        let mut event = self.event_on(Action::CompareAndSwap, &path, &node, self.index, now);
        self.write(&path, &mut event, value, expiry, now);
        Ok(event)
    }

    /// Changes a file's value and when it ends. A directory cannot be updated: etcd 3.5 means to
    /// let its end be changed, and fails.
    pub fn update(&mut self, path: &[u8], value: &[u8], expiry: Expiry, now: Time) -> Done {
        let done = self.try_update(path, value, expiry, now);
        match code_of(&done) {
            Some(Code::KeyNotFound | Code::NotDir) => self.stats.update_fail += 1,
            _ => self.stats.update_success += 1,
        }
        Ok(self.record(done?))
    }

    fn try_update(
        &mut self,
        path: &[u8],
        value: &[u8],
        expiry: Expiry,
        now: Time,
    ) -> Result<Event, Error> {
        let path = path::clean(path);
        self.writable(&path)?;
        let node = Arc::clone(self.find(&path)?);
        if node.is_dir() {
            if value.is_empty() {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(Error::UpdateOfDir { path });
            }
            return Err(Error::new(Code::NotFile, &path, self.index));
        }
        let value = if expiry.refresh { node.value() } else { Bytes::copy_from_slice(value) };
        self.index += 1;
        let mut event = self.event_on(Action::Update, &path, &node, self.index, now);
        self.write(&path, &mut event, value, expiry, now);
        Ok(event)
    }

    /// Removes a file; with `dir` an empty directory, with `recursive` a full one.
    pub fn delete(&mut self, path: &[u8], dir: bool, recursive: bool, now: Time) -> Done {
        let done = self.try_delete(path, dir || recursive, recursive, now);
        match code_of(&done) {
            None | Some(Code::RootReadOnly) => self.stats.delete_success += 1,
            Some(_) => self.stats.delete_fail += 1,
        }
        Ok(self.record(done?))
    }

    fn try_delete(
        &mut self,
        path: &[u8],
        dir: bool,
        recursive: bool,
        now: Time,
    ) -> Result<Event, Error> {
        let path = path::clean(path);
        self.writable(&path)?;
        let node = Arc::clone(self.find(&path)?);
        if node.is_dir() {
            if !dir {
                return Err(Error::new(Code::NotFile, &path, self.index));
            }
            if !recursive && node.children().next().is_some() {
                return Err(Error::new(Code::DirNotEmpty, &path, self.index));
            }
        }
        self.index += 1;
        let mut event = self.event_on(Action::Delete, &path, &node, self.index, now);
        event.node.dir = node.is_dir();
        self.remove(&path);
        Ok(event)
    }

    /// Removes a file that is like `previous`.
    pub fn compare_and_delete(&mut self, path: &[u8], previous: Previous<'_>, now: Time) -> Done {
        let done = self.try_compare_and_delete(path, previous, now);
        match code_of(&done) {
            Some(Code::KeyNotFound | Code::NotDir) => self.stats.compare_and_delete_fail += 1,
            _ => self.stats.compare_and_delete_success += 1,
        }
        Ok(self.record(done?))
    }

    fn try_compare_and_delete(
        &mut self,
        path: &[u8],
        previous: Previous<'_>,
        now: Time,
    ) -> Result<Event, Error> {
        let path = path::clean(path);
        let node = Arc::clone(self.find(&path)?);
        self.compare(&node, &path, previous)?;
        self.index += 1;
        let event = self.event_on(Action::CompareAndDelete, &path, &node, self.index, now);
        self.remove(&path);
        Ok(event)
    }

    /// Removes what ends at `cutoff` or before.
    pub fn delete_expired(&mut self, cutoff: Time, now: Time) {
        while let Some((at, path)) = self.ends.first().cloned() {
            if at > cutoff {
                break;
            }
            let Ok(node) = self.find(&path).cloned() else { unreachable!("no node {path:?}") };
            self.index += 1;
            let mut event = self.event_on(Action::Expire, &path, &node, self.index, now);
            event.node.dir = node.is_dir();
            self.remove(&path);
            self.stats.expire_count += 1;
            self.record(event);
        }
    }

    fn record(&mut self, mut event: Event) -> Arc<Event> {
        event.etcd_index = self.index;
        let event = Arc::new(event);
        Arc::make_mut(&mut self.history).add(Arc::clone(&event));
        event
    }

    fn event_on(&self, action: Action, path: &[u8], node: &Node, index: u64, now: Time) -> Event {
        let key = Bytes::copy_from_slice(path);
        let mut event = Event::new(action, key, index, node.created);
        event.prev_node = Some(NodeView::of(node, false, now));
        event
    }

    pub(super) fn find(&self, clean: &[u8]) -> Result<&Arc<Node>, Error> {
        let mut node = &self.root;
        for name in path::names(clean) {
            if !node.is_dir() {
                return Err(Error::new(Code::NotDir, &node.path, self.index));
            }
            node = node.child(name).ok_or_else(|| {
                Error::new(Code::KeyNotFound, &path::join(&node.path, name), self.index)
            })?;
        }
        Ok(node)
    }

    /// The roots are nobody's to change.
    fn writable(&self, clean: &[u8]) -> Result<(), Error> {
        if clean == b"/" || clean == CLUSTER.as_bytes() || clean == KEYS.as_bytes() {
            return Err(Error::new(Code::RootReadOnly, b"/", self.index));
        }
        Ok(())
    }

    fn compare(&self, node: &Node, path: &[u8], previous: Previous<'_>) -> Result<(), Error> {
        if node.is_dir() {
            return Err(Error::new(Code::NotFile, path, self.index));
        }
        let value = node.value();
        let index_fits = previous.index == 0 || previous.index == node.modified;
        let value_fits = previous.value.is_empty() || *previous.value == value[..];
        let values = [b"[", previous.value, b" != ", &value[..], b"]"].concat();
        let indexes = format!("[{} != {}]", previous.index, node.modified).into_bytes();
        let cause = match (value_fits, index_fits) {
            (true, true) => return Ok(()),
            (true, false) => indexes,
            (false, true) => values,
            (false, false) => [&values[..], b" ", &indexes].concat(),
        };
        Err(Error::new(Code::TestFailed, &cause, self.index))
    }

    /// Writes a file that is there, at the store's index.
    fn write(&mut self, path: &[u8], event: &mut Event, value: Bytes, expiry: Expiry, now: Time) {
        let Some(node) = node_mut(&mut self.root, path) else { unreachable!("it was found") };
        if let Some(before) = node.expires {
            self.ends.remove(&(before, node.path.clone()));
        }
        node.modified = self.index;
        node.expires = expiry.at;
        node.held = Held::Value(value.clone());
        if let Some(at) = expiry.at {
            self.ends.insert((at, node.path.clone()));
        }
        event.node.value = Some(value);
        event.node.expire(expiry.at, now);
        event.refresh = expiry.refresh;
    }

    /// Puts a new node into the tree, with the directories that lead there.
    fn place(
        &mut self,
        action: Action,
        path: &[u8],
        held: Option<&[u8]>,
        expiry: Expiry,
        now: Time,
    ) -> Result<Event, Error> {
        let path = path::clean(path);
        self.writable(&path)?;
        if path::names(&path).count() > LEVELS_MAX {
            return Err(Error::TooDeep);
        }
        let (dir, name) = path::split(&path);
        let blocked = match self.find(dir) {
            Ok(dir) if !dir.is_dir() => Some(Error::new(Code::NotDir, &dir.path, self.index)),
            Err(error) if error.code() == Some(Code::NotDir) => Some(error),
            _ => None,
        };
        if let Some(error) = blocked {
            self.stats.sets_fail += 1;
            return Err(error);
        }
        let before = self.find(&path).ok().cloned();
        if let Some(before) = &before {
            if action != Action::Set {
                return Err(Error::new(Code::NodeExist, &path, self.index));
            }
            if before.is_dir() {
                return Err(Error::new(Code::NotFile, &path, self.index));
            }
            self.forget_ends(before);
        }
        self.index += 1;
        let at = expiry.at.filter(|at| *at >= EXPIRY_MIN);
        let held = held.map(Bytes::copy_from_slice);
        let mut event = Event::new(action, Bytes::copy_from_slice(&path), self.index, self.index);
        event.prev_node = before.map(|before| NodeView::of(&before, false, now));
        event.node.dir = held.is_none();
        event.node.value.clone_from(&held);
        event.node.expire(at, now);
        let held = held.map_or_else(|| Held::Dir(Default::default()), Held::Value);
        let node = Node::new(path.clone(), self.index, at, held);
        if let Some(at) = at {
            self.ends.insert((at, node.path.clone()));
        }
        let index = self.index;
        let mut parent = Arc::make_mut(&mut self.root);
        for name in path::names(dir) {
            let child = path::join(&parent.path, name);
            let Some(children) = parent.children_mut() else { unreachable!("it is a directory") };
            let made = || Arc::new(Node::dir(child, index));
            parent =
                Arc::make_mut(children.entry(Bytes::copy_from_slice(name)).or_insert_with(made));
        }
        let Some(children) = parent.children_mut() else { unreachable!("it is a directory") };
        children.insert(Bytes::copy_from_slice(name), Arc::new(node));
        Ok(event)
    }

    fn remove(&mut self, path: &[u8]) {
        let (dir, name) = path::split(path);
        let removed =
            node_mut(&mut self.root, dir).and_then(Node::children_mut).and_then(|c| c.remove(name));
        if let Some(removed) = removed {
            self.forget_ends(&removed);
        }
    }

    fn forget_ends(&mut self, node: &Node) {
        if self.ends.is_empty() {
            return;
        }
        if let Some(at) = node.expires {
            self.ends.remove(&(at, node.path.clone()));
        }
        for child in node.children() {
            self.forget_ends(child);
        }
    }
}

/// Puts in place what every tree has.
pub(super) fn add_roots(root: &mut Node) {
    let Some(children) = root.children_mut() else { return };
    for path in [CLUSTER, KEYS] {
        let name = Bytes::from_static(path::name(path.as_bytes()));
        children.entry(name).or_insert_with(|| Arc::new(Node::dir(path.as_bytes().to_vec(), 0)));
    }
}

/// The error's number, as far as it counts: what has none is a success for etcd's counters.
fn code_of<T>(done: &Result<T, Error>) -> Option<Code> {
    done.as_ref().err().and_then(Error::code)
}
