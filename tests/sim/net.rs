//! The network between members: it loses, doubles, delays and cuts off, one way or both.

use crate::chance::Chance;
use std::collections::BTreeSet;

/// Longest time that a message takes while the network is well, in microseconds.
const DELAY_MAX: u64 = 3_000;
/// The same while it is not.
const DELAY_MAX_SLOW: u64 = 2_500_000;

/// How the network is at the moment.
#[derive(Debug, Default)]
pub struct Net {
    /// (from, to) that hear nothing.
    cut: BTreeSet<(u64, u64)>,
    /// One message in so many is lost; 0 if none.
    loss: u64,
    /// One in so many comes twice; 0 if none.
    doubles: u64,
    slow: bool,
}

impl Net {
    /// After how long a message arrives: never, once, or twice.
    pub fn arrivals(&self, from: u64, to: u64, chance: &mut Chance) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || self.loss > 0 && chance.one_in(self.loss) {
            return Vec::new();
        }
        let slow = self.slow && chance.one_in(4);
        let max = if slow { DELAY_MAX_SLOW } else { DELAY_MAX };
        let count = if self.doubles > 0 && chance.one_in(self.doubles) { 2 } else { 1 };
        (0..count).map(|_| chance.between(50, max)).collect()
    }

    /// Changes for the worse, or the better.
    pub fn change(&mut self, ids: &[u64], chance: &mut Chance) {
        self.loss = [0, 0, 50, 10, 3][chance.below(5) as usize];
        self.doubles = [0, 20, 5][chance.below(3) as usize];
        self.slow = chance.one_in(3);
        self.cut.clear();
        match chance.below(4) {
            0 => {
                // One member hears nothing, or is not heard, or both.
                let alone = ids[chance.below(ids.len() as u64) as usize];
                let (hears, heard) =
                    [(false, true), (true, false), (false, false)][chance.below(3) as usize];
                for &other in ids {
                    if !hears {
                        self.cut.insert((other, alone));
                    }
                    if !heard {
                        self.cut.insert((alone, other));
                    }
                }
            }
            1 => {
                // Two sides.
                let side: Vec<bool> = ids.iter().map(|_| chance.one_in(2)).collect();
                for (a, at_a) in ids.iter().zip(&side) {
                    for (b, at_b) in ids.iter().zip(&side) {
                        if at_a != at_b {
                            self.cut.insert((*a, *b));
                        }
                    }
                }
            }
            2 => {
                // Some links, one way.
                for &a in ids {
                    for &b in ids {
                        if chance.one_in(4) {
                            self.cut.insert((a, b));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Everything is well again.
    pub fn heal(&mut self) {
        *self = Net::default();
    }
}
