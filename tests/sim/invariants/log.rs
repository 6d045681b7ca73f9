//! Log matching and state machine safety: an index, once applied by anybody, holds the same entry
//! for everybody and for ever.

use std::collections::BTreeMap;

#[derive(Default)]
pub struct Log {
    entries: BTreeMap<u64, (u64, u64)>,
}

impl Log {
    /// A member applies an entry: its term and a number for its bytes. True if it is the first.
    pub fn applied(
        &mut self,
        member: u64,
        index: u64,
        term: u64,
        content: u64,
    ) -> Result<bool, String> {
        match self.entries.get(&index) {
            None => {
                self.entries.insert(index, (term, content));
                Ok(true)
            }
            Some(&entry) if entry == (term, content) => Ok(false),
            Some(entry) => Err(format!(
                "log matching: {member} applies {:?} at index {index}, others had {entry:?}",
                (term, content)
            )),
        }
    }

    /// The same of the entries of earlier terms: a leader has all of these that are committed.
    pub fn newest_before(&self, term: u64) -> (u64, u64) {
        let mut entries = self.entries.iter().rev();
        let found = entries.find(|(_, (own, _))| *own < term);
        found.map_or((0, 0), |(index, (own, _))| (*index, *own))
    }

    /// Index and term of the newest entry that anybody has applied.
    pub fn newest(&self) -> (u64, u64) {
        self.entries.last_key_value().map_or((0, 0), |(index, (term, _))| (*index, *term))
    }
}
