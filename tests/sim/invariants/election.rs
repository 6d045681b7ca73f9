//! Election safety: a term has at most one leader. Leader completeness: its log ends with, or
//! behind, everything that is committed.

use super::Check;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Elections {
    leaders: BTreeMap<u64, u64>,
}

impl Elections {
    /// A member leads in a term; `last` and `committed` are (index, term) of entries.
    pub fn leads(
        &mut self,
        member: u64,
        term: u64,
        last: (u64, u64),
        committed: (u64, u64),
    ) -> Check {
        let leader = *self.leaders.entry(term).or_insert(member);
        if leader != member {
            return Err(format!("election safety: {leader} and {member} lead in term {term}"));
        }
        if (last.1, last.0) < (committed.1, committed.0) {
            return Err(format!(
                "leader completeness: {member} leads in term {term} with a log that ends with \
                 {last:?}, while {committed:?} is committed"
            ));
        }
        Ok(())
    }

    /// Terms that had a leader.
    pub fn count(&self) -> usize {
        self.leaders.len()
    }
}
