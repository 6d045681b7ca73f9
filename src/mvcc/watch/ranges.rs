//! Which ranges hold a key: a treap ordered by start and end, whose nodes know the farthest end
//! below them. A lookup takes O(log n) steps and one for each range it finds.

use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeSet;

const NIL: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    start: Bytes,
    /// `None` is after all keys.
    end: Option<Bytes>,
    watchers: BTreeSet<u32>,
    priority: u64,
    left: u32,
    right: u32,
    /// The node with the farthest end among this and those below.
    farthest: u32,
}

/// Watchers by range.
#[derive(Debug)]
pub(super) struct Ranges {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    made: u64,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NIL, made: 0 }
    }
}

fn cmp_end(a: Option<&Bytes>, b: Option<&Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

/// A well mixed number that nobody outside can choose (splitmix64), so that no order of insertions
/// makes the treap deep.
fn priority(made: u64) -> u64 {
    let mut x = made.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Ranges {
    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    fn cmp(&self, start: &Bytes, end: Option<&Bytes>, at: u32) -> Ordering {
        let node = self.node(at);
        start.cmp(&node.start).then_with(|| cmp_end(end, node.end.as_ref()))
    }

    fn find(&self, start: &Bytes, end: Option<&Bytes>) -> u32 {
        let mut at = self.root;
        while at != NIL {
            at = match self.cmp(start, end, at) {
                Ordering::Less => self.node(at).left,
                Ordering::Greater => self.node(at).right,
                Ordering::Equal => return at,
            };
        }
        NIL
    }

    /// Adds a watcher to a range.
    pub(super) fn insert(&mut self, start: &Bytes, end: Option<&Bytes>, watcher: u32) {
        let found = self.find(start, end);
        if found != NIL {
            let fresh = self.node_mut(found).watchers.insert(watcher);
            assert!(fresh, "watcher {watcher} is added once");
            return;
        }
        self.made += 1;
        let node = Node {
            start: start.clone(),
            end: end.cloned(),
            watchers: BTreeSet::from([watcher]),
            priority: priority(self.made),
            left: NIL,
            right: NIL,
            farthest: NIL,
        };
        let new = match self.free.pop() {
            Some(at) => {
                *self.node_mut(at) = node;
                at
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer ranges than u32 counts")
            }
        };
        self.update(new);
        self.root = self.insert_below(self.root, new);
    }

    fn insert_below(&mut self, top: u32, new: u32) -> u32 {
        if top == NIL {
            return new;
        }
        if self.node(new).priority > self.node(top).priority {
            let (left, right) = self.split(top, new);
            let node = self.node_mut(new);
            (node.left, node.right) = (left, right);
            self.update(new);
            return new;
        }
        if self.is_before(new, top) {
            let left = self.insert_below(self.node(top).left, new);
            self.node_mut(top).left = left;
        } else {
            let right = self.insert_below(self.node(top).right, new);
            self.node_mut(top).right = right;
        }
        self.update(top);
        top
    }

    fn is_before(&self, a: u32, b: u32) -> bool {
        let node = self.node(a);
        self.cmp(&node.start, node.end.as_ref(), b).is_lt()
    }

    /// What is before and after `by`.
    fn split(&mut self, top: u32, by: u32) -> (u32, u32) {
        if top == NIL {
            return (NIL, NIL);
        }
        if self.is_before(top, by) {
            let (left, right) = self.split(self.node(top).right, by);
            self.node_mut(top).right = left;
            self.update(top);
            (top, right)
        } else {
            let (left, right) = self.split(self.node(top).left, by);
            self.node_mut(top).left = right;
            self.update(top);
            (left, top)
        }
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        if self.node(left).priority > self.node(right).priority {
            let merged = self.merge(self.node(left).right, right);
            self.node_mut(left).right = merged;
            self.update(left);
            left
        } else {
            let merged = self.merge(left, self.node(right).left);
            self.node_mut(right).left = merged;
            self.update(right);
            right
        }
    }

    fn update(&mut self, at: u32) {
        let node = self.node(at);
        let mut farthest = at;
        for below in [node.left, node.right] {
            if below != NIL {
                let candidate = self.node(below).farthest;
                let (a, b) = (self.node(candidate), self.node(farthest));
                if cmp_end(a.end.as_ref(), b.end.as_ref()).is_gt() {
                    farthest = candidate;
                }
            }
        }
        self.node_mut(at).farthest = farthest;
    }

    /// Takes a watcher from a range it was added to.
    pub(super) fn remove(&mut self, start: &Bytes, end: Option<&Bytes>, watcher: u32) {
        let found = self.find(start, end);
        assert!(found != NIL, "the range of watcher {watcher} is there");
        let node = self.node_mut(found);
        let removed = node.watchers.remove(&watcher);
        assert!(removed, "watcher {watcher} is in its range");
        if node.watchers.is_empty() {
            self.root = self.remove_below(self.root, start, end);
            let node = self.node_mut(found);
            (node.start, node.end) = (Bytes::new(), None);
            self.free.push(found);
        }
    }

    fn remove_below(&mut self, top: u32, start: &Bytes, end: Option<&Bytes>) -> u32 {
        assert!(top != NIL, "the range is below");
        match self.cmp(start, end, top) {
            Ordering::Equal => {
                return self.merge(self.node(top).left, self.node(top).right);
            }
            Ordering::Less => {
                let left = self.remove_below(self.node(top).left, start, end);
                self.node_mut(top).left = left;
            }
            Ordering::Greater => {
                let right = self.remove_below(self.node(top).right, start, end);
                self.node_mut(top).right = right;
            }
        }
        self.update(top);
        top
    }

    /// Visits the watchers of all ranges that hold a key.
    pub(super) fn visit(&self, key: &[u8], visit: &mut impl FnMut(u32)) {
        self.visit_below(self.root, key, visit);
    }

    fn visit_below(&self, top: u32, key: &[u8], visit: &mut impl FnMut(u32)) {
        if top == NIL {
            return;
        }
        let node = self.node(top);
        let reaches = |at: u32| self.node(at).end.as_ref().is_none_or(|end| key < &end[..]);
        if !reaches(node.farthest) {
            return;
        }
        self.visit_below(node.left, key, visit);
        if node.start <= key {
            if reaches(top) {
                node.watchers.iter().for_each(|&watcher| visit(watcher));
            }
            self.visit_below(node.right, key, visit);
        }
    }

    #[cfg(test)]
    pub(super) fn depth(&self) -> usize {
        fn below(ranges: &Ranges, top: u32) -> usize {
            if top == NIL {
                return 0;
            }
            let node = ranges.node(top);
            1 + below(ranges, node.left).max(below(ranges, node.right))
        }
        below(self, self.root)
    }
}
