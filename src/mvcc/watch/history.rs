//! A pass over the history: what lagging watchers have missed, read from the store's rows. It may
//! wait for the disk, so it runs on a reader's thread.

use super::group::Group;
use super::{Event, Spec, Written};
use crate::base::ids::Revision;
use crate::mvcc::backend::{BackendError, Bucket};
use crate::mvcc::row::{Row, parse_revision_key, revision_key};
use crate::mvcc::{Reader, kv_deleted};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What to read, for whom.
#[derive(Debug)]
pub struct Pass {
    pub(super) number: u64,
    /// First and last revision.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Bytes of events after which it ends with the revision it is in.
    pub(super) bytes_max: usize,
    /// What each wants, and the revision it goes on from.
    pub(super) members: Vec<(Arc<Spec>, i64)>,
}

/// What a pass found.
#[derive(Debug)]
pub struct Outcome {
    pub(super) number: u64,
    /// The last revision that was read whole.
    pub(super) through: i64,
    /// Newest compacted revision after reading: rows below may have been missing.
    pub(super) compacted: i64,
    /// One for each member.
    pub(super) batches: Vec<Vec<Arc<Event>>>,
}

impl Outcome {
    /// Newest compacted revision after reading: rows below may have been missing.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }
}

impl Pass {
    /// Reads the rows. Stops early, after a whole revision, when what was found is large.
    pub fn read(&self, reader: &Reader) -> Result<Outcome, BackendError> {
        let mut group = Group::default();
        for (at, (spec, _)) in self.members.iter().enumerate() {
            group.insert(spec, u32::try_from(at).expect("a pass has a bounded number of members"));
        }
        let mut batches = vec![Vec::new(); self.members.len()];
        let (mut through, mut bytes, mut reading) = (self.to, 0, self.from);
        let mut failed = None;
        let low = revision_key(Revision { main: self.from.max(0), sub: 0 });
        let high = revision_key(Revision { main: self.to + 1, sub: 0 });
        let shared = arc_swap::Guard::into_inner(reader.shared());
        shared.backend.scan(Bucket::Key, &low, Some(&high), &mut |key, row| {
            let looked = parse_revision_key(key)
                .and_then(|(revision, delete)| Ok((revision.main, delete, Row::parse(row)?.key)));
            let (revision, delete, key) = match looked {
                Ok(looked) => looked,
                Err(damage) => {
                    failed = Some(damage);
                    return ControlFlow::Break(());
                }
            };
            if revision != reading && bytes >= self.bytes_max {
                through = revision - 1;
                return ControlFlow::Break(());
            }
            reading = revision;
            let mut event: Option<Arc<Event>> = None;
            group.visit(key, |at| {
                let (spec, next) = &self.members[at as usize];
                if *next <= revision && spec.wants(delete) {
                    let event = event.get_or_insert_with(|| {
                        let kv = if delete { kv_deleted(key, revision) } else { row.clone() };
                        let key = Bytes::copy_from_slice(key);
                        Arc::new(Event::new(&Written { key, delete, kv }, revision))
                    });
                    batches[at as usize].push(Arc::clone(event));
                }
            });
            bytes += event.map_or(0, |event| event.encoded().len());
            ControlFlow::Continue(())
        })?;
        if let Some(damage) = failed {
            return Err(damage);
        }
        let compacted = shared.compact_revision();
        Ok(Outcome { number: self.number, through, compacted, batches })
    }
}
