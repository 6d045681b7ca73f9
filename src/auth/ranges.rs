//! Ranges of keys, merged, so that one lookup answers whether all of a range is covered.

use bytes::Bytes;

/// The range end that means "every key from the first one on".
const FROM_KEY: &[u8] = b"\0";

/// Where a range of keys ends. An open end is behind every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    /// Of a request or a permission: no range end is the key alone.
    fn of(key: &[u8], range_end: &[u8]) -> End {
        match range_end {
            FROM_KEY => End::Open,
            [] => {
                let mut after = Vec::with_capacity(key.len() + 1);
                after.extend_from_slice(key);
                after.push(0);
                End::Before(after.into())
            }
            end => End::Before(Bytes::copy_from_slice(end)),
        }
    }

    fn is_behind(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => end.as_ref() > key,
            End::Open => true,
        }
    }
}

/// Whether a permission may have this key and range end (etcd v3.5.17
/// `server/auth/range_perm_cache.go` isValidPermissionRange).
pub fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == FROM_KEY || key < range_end)
}

/// Ranges in order, none of which touches another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(Bytes, End)>);

impl Ranges {
    /// Merges ranges given as keys and range ends. Those that hold no key are left out.
    pub fn new<'a>(ranges: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> Ranges {
        let mut all: Vec<(Bytes, End)> = ranges
            .map(|(key, range_end)| (key.clone(), End::of(key, range_end)))
            .filter(|(key, end)| end.is_behind(key))
            .collect();
        all.sort();
        let mut merged: Vec<(Bytes, End)> = Vec::with_capacity(all.len());
        for (key, end) in all {
            match merged.last_mut() {
                Some((_, last)) if *last >= End::Before(key.clone()) => {
                    if end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((key, end)),
            }
        }
        Ranges(merged)
    }

    /// Whether every key of a range is covered. A range whose end is not after its key counts as
    /// that key, as in etcd, whose requests with one find nothing.
    pub fn cover(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self.0.partition_point(|(from, _)| from.as_ref() <= key);
        let Some((_, end)) = after.checked_sub(1).and_then(|at| self.0.get(at)) else {
            return false;
        };
        if !end.is_behind(key) {
            return false;
        }
        match range_end {
            [] => true,
            FROM_KEY => *end == End::Open,
            wanted => match end {
                End::Open => true,
                End::Before(end) => end.as_ref() >= wanted,
            },
        }
    }
}
