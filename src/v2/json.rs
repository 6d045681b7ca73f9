//! The tree in JSON, byte for byte as etcd saves it: the names, their order and the escapes are
//! those of Go's encoder.

use super::event::{Event, History, NodeView};
use super::node::{Held, Node};
use super::stats::Stats;
use super::time;
use std::fmt::Write as _;
use std::sync::Arc;

/// The tree of one moment.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) root: Arc<Node>,
    pub(super) history: Arc<History>,
    pub(super) index: u64,
    pub(super) stats: Stats,
    pub(super) version: u64,
}

impl Image {
    /// The store's index at that moment.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// What etcd would save (etcd v3.5.17 `v2store/store.go` SaveNoCopy).
    pub fn json(&self) -> Vec<u8> {
        let mut out = Out(String::with_capacity(8 * 1024));
        out.raw("{\"Root\":");
        out.node(&self.root);
        out.raw(",\"WatcherHub\":{\"EventHistory\":");
        out.history(&self.history);
        let stats = serde_json::to_string(&self.stats).unwrap_or_default();
        out.fields(format_args!(
            "}},\"CurrentIndex\":{},\"Stats\":{stats},\"CurrentVersion\":{}}}",
            self.index, self.version
        ));
        out.0.into_bytes()
    }
}

struct Out(String);

impl Out {
    fn raw(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn fields(&mut self, fields: std::fmt::Arguments<'_>) {
        // A string takes everything.
        let _ = self.0.write_fmt(fields);
    }

    /// As Go's encoder does with `EscapeHTML`: what is no UTF-8 becomes U+FFFD, byte by byte.
    fn string(&mut self, bytes: &[u8]) {
        self.0.push('"');
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' => self.raw("\\\""),
                    '\\' => self.raw("\\\\"),
                    '\n' => self.raw("\\n"),
                    '\r' => self.raw("\\r"),
                    '\t' => self.raw("\\t"),
                    '\u{8}' => self.raw("\\b"),
                    '\u{c}' => self.raw("\\f"),
                    '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                        self.fields(format_args!("\\u{:04x}", u32::from(c)));
                    }
                    c => self.0.push(c),
                }
            }
            for _ in chunk.invalid() {
                self.raw("\\ufffd");
            }
        }
        self.0.push('"');
    }

    fn node(&mut self, node: &Node) {
        self.raw("{\"Path\":");
        self.string(&node.path);
        self.fields(format_args!(
            ",\"CreatedIndex\":{},\"ModifiedIndex\":{},\"ExpireTime\":\"{}\",\"Value\":",
            node.created,
            node.modified,
            time::write(node.expires)
        ));
        self.string(&node.value());
        self.raw(",\"Children\":");
        match &node.held {
            Held::Value(_) => self.raw("null"),
            Held::Dir(children) => {
                let mut comma = "{";
                for (name, child) in children {
                    self.raw(comma);
                    comma = ",";
                    self.string(name);
                    self.raw(":");
                    self.node(child);
                }
                self.raw(if children.is_empty() { "{}" } else { "}" });
            }
        }
        self.raw("}");
    }

    fn history(&mut self, history: &History) {
        self.raw("{\"Queue\":{\"Events\":[");
        for (at, event) in history.ring.iter().enumerate() {
            if at > 0 {
                self.raw(",");
            }
            match event {
                Some(event) => self.event(event),
                None => self.raw("null"),
            }
        }
        let History { ring, size, front, back, start_index, last_index } = history;
        self.fields(format_args!(
            "],\"Size\":{size},\"Front\":{front},\"Back\":{back},\"Capacity\":{}}},\
             \"StartIndex\":{start_index},\"LastIndex\":{last_index}}}",
            ring.len()
        ));
    }

    fn event(&mut self, event: &Event) {
        self.fields(format_args!("{{\"action\":\"{}\",\"node\":", event.action.name()));
        self.view(&event.node);
        if let Some(prev) = &event.prev_node {
            self.raw(",\"prevNode\":");
            self.view(prev);
        }
        self.raw(if event.refresh { ",\"refresh\":true}" } else { "}" });
    }

    fn view(&mut self, view: &NodeView) {
        let mut comma = "{";
        let mut next = |out: &mut Out, name: &str| {
            out.fields(format_args!("{comma}\"{name}\":"));
            comma = ",";
        };
        if !view.key.is_empty() {
            next(self, "key");
            self.string(&view.key);
        }
        if let Some(value) = &view.value {
            next(self, "value");
            self.string(value);
        }
        if view.dir {
            next(self, "dir");
            self.raw("true");
        }
        if view.expiration.is_some() {
            next(self, "expiration");
            self.fields(format_args!("\"{}\"", time::write(view.expiration)));
        }
        if view.ttl != 0 {
            next(self, "ttl");
            self.fields(format_args!("{}", view.ttl));
        }
        if !view.nodes.is_empty() {
            next(self, "nodes");
            let mut bracket = "[";
            for node in &view.nodes {
                self.raw(bracket);
                bracket = ",";
                self.view(node);
            }
            self.raw("]");
        }
        for (name, index) in
            [("modifiedIndex", view.modified_index), ("createdIndex", view.created_index)]
        {
            if index != 0 {
                next(self, name);
                self.fields(format_args!("{index}"));
            }
        }
        self.raw(if comma == "{" { "{}" } else { "}" });
    }
}

impl Event {
    /// What clients get (etcd v3.5.17 `v2store/event.go`).
    pub fn json(&self) -> Vec<u8> {
        let mut out = Out(String::new());
        out.event(self);
        out.0.into_bytes()
    }
}
