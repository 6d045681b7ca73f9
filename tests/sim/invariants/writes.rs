//! What was acknowledged stays: its entry is in every member's history in the end, at the place
//! that the answer named.

use super::Check;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Writes {
    /// By request: the index at which it was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    /// By request: the index at which the log has it.
    logged: BTreeMap<u64, u64>,
}

impl Writes {
    /// The log has a request's entry.
    pub fn logged(&mut self, request: u64, index: u64) {
        self.logged.entry(request).or_insert(index);
    }

    /// A client was answered.
    pub fn acknowledged(&mut self, request: u64, index: u64) {
        self.acknowledged.insert(request, index);
    }

    /// At the end, when every member has applied everything up to `applied`.
    pub fn end(&self, applied: u64) -> Check {
        for (request, index) in &self.acknowledged {
            if *index > applied || self.logged.get(request) != Some(index) {
                return Err(format!("lost write: request {request}, acknowledged at {index}"));
            }
        }
        Ok(())
    }

    /// Writes that were acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.len()
    }
}
