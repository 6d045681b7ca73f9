//! The same index gives the same answer and the same rows on every member.

use super::Check;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Machines {
    answers: BTreeMap<u64, u32>,
    rows: BTreeMap<u64, u32>,
}

impl Machines {
    /// A member has applied an entry; both are hashes.
    pub fn applied(&mut self, member: u64, index: u64, answer: u32, rows: Option<u32>) -> Check {
        if *self.answers.entry(index).or_insert(answer) != answer {
            return Err(format!("machine: {member} answers the entry at {index} as nobody else"));
        }
        let Some(rows) = rows else { return Ok(()) };
        self.has(member, index, rows)
    }

    /// A member has these rows at an index.
    pub fn has(&mut self, member: u64, index: u64, rows: u32) -> Check {
        if *self.rows.entry(index).or_insert(rows) != rows {
            return Err(format!("machine: {member} has other rows than others at {index}"));
        }
        Ok(())
    }
}
