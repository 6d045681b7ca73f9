//! Linearizable reads: one sees every write that was acknowledged before it began, and everything
//! that an earlier one saw; what it sees is what the history has at its revision.

use super::Check;
use std::collections::BTreeMap;

/// Mod revision and value; no value once deleted.
type Version = (i64, Option<Vec<u8>>);

#[derive(Default)]
pub struct Reads {
    /// The newest revision that some client knows of.
    known: i64,
    history: BTreeMap<String, Vec<Version>>,
    count: usize,
}

impl Reads {
    /// What a read that begins now has to see at least.
    pub fn known(&self) -> i64 {
        self.known
    }

    /// A client was told of a revision.
    pub fn told(&mut self, revision: i64) {
        self.known = self.known.max(revision);
    }

    /// The first time that a change is applied.
    pub fn changed(&mut self, key: &str, revision: i64, value: Option<Vec<u8>>) {
        self.history.entry(key.to_owned()).or_default().push((revision, value));
    }

    /// A read of a key that had to see `floor` gives an answer of `revision`.
    pub fn read(
        &mut self,
        key: &str,
        floor: i64,
        revision: i64,
        found: Option<(i64, Vec<u8>)>,
    ) -> Check {
        if revision < floor {
            return Err(format!("stale read of {key}: revision {revision}, {floor} was known"));
        }
        let versions = self.history.get(key).map_or(&[][..], |versions| versions);
        let newest = versions.iter().rfind(|(at, _)| *at <= revision);
        let expected = newest.and_then(|(at, value)| Some((*at, value.clone()?)));
        if expected != found {
            return Err(format!("wrong read of {key} at {revision}: {found:?}, not {expected:?}"));
        }
        self.told(revision);
        self.count += 1;
        Ok(())
    }

    /// Reads that were answered.
    pub fn count(&self) -> usize {
        self.count
    }
}
