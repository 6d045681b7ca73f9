//! A set of pages, as runs.

use super::super::tree::Run;
use std::collections::BTreeMap;

/// Runs that are looked at for one that is long enough, so that taking one is quick however many
/// there are.
const LOOK_MAX: usize = 256;

/// Pages, held as the first and the number of those in a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    runs: BTreeMap<u64, u64>,
    pages: u64,
}

impl Runs {
    /// Pages in the set.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// False, and nothing happens, if one of the pages is there.
    pub(super) fn insert(&mut self, run: Run) -> bool {
        if self.meets(run) {
            return false;
        }
        let (mut page, mut pages) = (run.page, run.pages);
        let end = page + pages;
        let before = self.runs.range(..page).next_back().map(|(page, pages)| (*page, *pages));
        if let Some((start, count)) = before.filter(|(start, count)| start + count == page) {
            self.runs.remove(&start);
            (page, pages) = (start, count + pages);
        }
        if let Some(count) = self.runs.remove(&end) {
            pages += count;
        }
        self.runs.insert(page, pages);
        self.pages += run.pages;
        true
    }

    /// Whether one of these pages is there.
    pub(super) fn meets(&self, run: Run) -> bool {
        let before = self.runs.range(..run.page + run.pages).next_back();
        before.is_some_and(|(page, pages)| page + pages > run.page)
    }

    /// Takes so many pages in a row out, near the beginning of the file.
    pub(super) fn take(&mut self, pages: u64) -> Option<Run> {
        let (page, found) = self
            .runs
            .iter()
            .take(LOOK_MAX)
            .find(|(_, found)| **found >= pages)
            .map(|(page, found)| (*page, *found))?;
        self.runs.remove(&page);
        if found > pages {
            self.runs.insert(page + pages, found - pages);
        }
        self.pages -= pages;
        Some(Run { page, pages })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(page, pages)| Run { page: *page, pages: *pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn equals_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..60, 1u64..6), 0..80)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (insert, page, pages) in ops {
                if insert {
                    let fresh = (page..page + pages).all(|page| !set.contains(&page));
                    prop_assert_eq!(runs.insert(Run { page, pages }), fresh);
                    if fresh {
                        set.extend(page..page + pages);
                    }
                } else {
                    let first = (0..70)
                        .find(|page| (*page..page + pages).all(|page| set.contains(&page)))
                        .map(|page| Run { page, pages });
                    prop_assert_eq!(runs.take(pages), first);
                    first.into_iter().for_each(|run| {
                        (run.page..run.page + run.pages).for_each(|page| { set.remove(&page); });
                    });
                }
                let held: Vec<u64> =
                    runs.iter().flat_map(|run| run.page..run.page + run.pages).collect();
                prop_assert_eq!(runs.pages(), set.len() as u64);
                prop_assert_eq!(held, set.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
