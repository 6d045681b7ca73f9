//! The tree itself: shared between the store and its images, copied where it is written.

use super::path;
use super::time::Time;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Children by name.
pub(super) type Children = BTreeMap<Bytes, Arc<Node>>;

/// A file or a directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) path: Bytes,
    pub(super) created: u64,
    pub(super) modified: u64,
    pub(super) expires: Option<Time>,
    pub(super) held: Held,
}

/// What a node has in it.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Value(Bytes),
    Dir(Children),
}

impl Node {
    pub(super) fn new(path: Vec<u8>, index: u64, expires: Option<Time>, held: Held) -> Node {
        Node { path: path.into(), created: index, modified: index, expires, held }
    }

    pub(super) fn dir(path: Vec<u8>, index: u64) -> Node {
        Node::new(path, index, None, Held::Dir(Children::new()))
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.held, Held::Dir(_))
    }

    /// Listing a directory passes over nodes whose names begin like this.
    pub(super) fn is_hidden(&self) -> bool {
        path::name(&self.path).first() == Some(&b'_')
    }

    /// Empty for a file.
    pub(super) fn children(&self) -> impl Iterator<Item = &Arc<Node>> {
        match &self.held {
            Held::Dir(children) => Some(children.values()),
            Held::Value(_) => None,
        }
        .into_iter()
        .flatten()
    }

    pub(super) fn child(&self, name: &[u8]) -> Option<&Arc<Node>> {
        match &self.held {
            Held::Dir(children) => children.get(name),
            Held::Value(_) => None,
        }
    }

    pub(super) fn children_mut(&mut self) -> Option<&mut Children> {
        match &mut self.held {
            Held::Dir(children) => Some(children),
            Held::Value(_) => None,
        }
    }

    /// Empty for a directory.
    pub(super) fn value(&self) -> Bytes {
        match &self.held {
            Held::Value(value) => value.clone(),
            Held::Dir(_) => Bytes::new(),
        }
    }
}

/// The node at a clean path, for writing.
pub(super) fn node_mut<'a>(root: &'a mut Arc<Node>, clean: &[u8]) -> Option<&'a mut Node> {
    let mut node = Arc::make_mut(root);
    for name in path::names(clean) {
        node = Arc::make_mut(node.children_mut()?.get_mut(name)?);
    }
    Some(node)
}
