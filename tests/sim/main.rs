//! The second world: members driven on one thread by one seed, with every fault at hand. See
//! docs/decisions/0008-simulation.md for what is real in it.

mod bug;
mod chance;
mod clients;
mod disk;
mod invariants;
mod member;
mod net;
mod world;

use bug::Bug;

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 40;
/// Seeds within which a mistake must be found.
const SEEDS_FOR_A_BUG: u64 = 1_000;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// `SEED` is the first seed, `SEEDS` their number; one seed alone says what it came to.
#[test]
fn no_seed_violates_anything() {
    let first = number("SEED").unwrap_or(1);
    let count = number("SEEDS").unwrap_or(if number("SEED").is_some() { 1 } else { SEEDS });
    let mut total = [0; 6];
    for seed in first..first + count {
        let report = world::run(seed, None);
        if count == 1 {
            eprint(&format!("{report:#?}"));
        }
        if let Some(violation) = &report.violation {
            panic!("seed {seed}: {violation} ({report:?})");
        }
        let sums = [
            report.entries,
            report.writes as u64,
            report.reads as u64,
            report.events as u64,
            report.crashes,
            report.installed,
        ];
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        if (seed - first) % 100 == 99 {
            eprint(&format!("{} of {count} seeds", seed - first + 1));
        }
    }
    let [entries, writes, reads, events, crashes, installed] = total;
    eprint(&format!(
        "{count} seeds, 0 violations: {entries} entries, {writes} acknowledged writes, \
         {reads} reads, {events} watch events, {crashes} crashes, {installed} snapshots installed"
    ));
    assert!(
        count < 20 || writes > 0 && reads > 0 && events > 0 && crashes > 0 && installed > 0,
        "a world where nothing happens"
    );
}

/// Past the capture of the test harness.
fn eprint(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in [3, 4, 11] {
        assert_eq!(world::run(seed, None), world::run(seed, None), "seed {seed}");
    }
}

/// The mistake is put back, and some seed finds it; the violation is of the kind that it must be.
/// The search begins close to where it was found before, so that the tests are quick.
fn finds(bug: Bug, first: u64, kinds: &[&str]) {
    for seed in first..first + SEEDS_FOR_A_BUG {
        if let Some(violation) = world::run(seed, Some(bug)).violation {
            let right = kinds.iter().any(|kind| violation.contains(kind));
            assert!(right, "{bug:?}, seed {seed}: {violation}");
            eprint(&format!("{bug:?} is found by seed {seed}: {violation}"));
            return;
        }
    }
    panic!("{bug:?} is not found within {SEEDS_FOR_A_BUG} seeds from {first} on");
}

#[test]
fn a_vote_that_is_not_saved_is_found() {
    finds(Bug::VoteNotSaved, 44, &["election safety", "log matching", "leader completeness"]);
}

#[test]
fn a_save_that_is_not_awaited_is_found() {
    finds(
        Bug::SaveNotAwaited,
        1,
        &["durability", "log matching", "the log ends at", "leader completeness"],
    );
}

#[test]
fn a_read_context_that_is_used_again_is_found() {
    finds(Bug::ReadContextReused, 305, &["stale read"]);
}

#[test]
fn a_deposed_leaders_revoke_is_found() {
    finds(Bug::RevokesByAnyone, 885, &["before its time"]);
}

#[test]
fn an_entry_applied_twice_is_found() {
    finds(Bug::AppliedTwice, 1, &["machine", "order", "leases", "watcher", "wrong read"]);
}

#[test]
fn a_read_that_is_not_awaited_is_found() {
    finds(Bug::ReadNotAwaited, 1, &["stale read"]);
}

#[test]
fn a_snapshot_that_forgets_leases_is_found() {
    finds(Bug::LeasesForgotten, 1, &["leases", "machine"]);
}

#[test]
fn skipped_history_is_found() {
    finds(Bug::HistorySkipped, 1, &["watcher"]);
}
