//! Applied ≤ committed ≤ on disk: a member applies, one by one and once in a life, what its own
//! disk has.

use super::Check;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Durable {
    applied: BTreeMap<u64, u64>,
}

impl Durable {
    /// A member starts with everything up to an index applied.
    pub fn starts(&mut self, member: u64, applied: u64) {
        self.applied.insert(member, applied);
    }

    /// A member applies an entry while its disk holds everything up to `synced` for good.
    pub fn applies(&mut self, member: u64, index: u64, synced: u64) -> Check {
        if index > synced {
            return Err(format!(
                "durability: {member} applies {index}, its disk holds what is up to {synced}"
            ));
        }
        let before = self.applied.insert(member, index).unwrap_or(0);
        if index != before + 1 {
            return Err(format!("order: {member} applies {index} after {before}"));
        }
        Ok(())
    }
}
