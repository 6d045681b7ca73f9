//! `rusd check-data`: the report of `storage::check` as lines, and its exit code.
//!
//! A line of the report is the word `ok`, `repair` or `damaged`, the file or directory, and what
//! was found. Progress goes to the error stream, if that is a terminal.

use crate::base::clock::{Clock, SystemClock};
use crate::cli::parse::UNCHECKED;
use crate::storage::check::{Finding, Report, Verdict, check};
use std::io::{IsTerminal as _, Write, stderr, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Checks a directory and prints what was found; the exit code.
pub fn run(root: &Path, wal: Option<&Path>) -> i32 {
    let told = stderr().is_terminal().then(|| SystemClock.now());
    let mut lines = Lines { root, out: stdout(), told };
    let (last, code) = match check(root, wal, &mut lines) {
        Ok(Verdict::Sound) => ("sound".to_owned(), 0),
        Ok(Verdict::Repairable) => ("to be repaired by the next start".to_owned(), 1),
        Ok(Verdict::Damaged) => ("damaged".to_owned(), 2),
        Err(error) => (format!("unknown: {error}"), UNCHECKED),
    };
    lines.line(&format!("verdict: {last}"));
    code
}

struct Lines<'a, W> {
    root: &'a Path,
    out: W,
    /// When progress was shown, if it is.
    told: Option<Instant>,
}

impl<W: Write> Lines<'_, W> {
    /// Who does not read on has the exit code.
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }
}

impl<W: Write> Report for Lines<'_, W> {
    fn finding(&mut self, finding: Finding) {
        let word = match finding.verdict {
            Verdict::Sound => "ok",
            Verdict::Repairable => "repair",
            Verdict::Damaged => "damaged",
        };
        let path = finding.path.strip_prefix(self.root).unwrap_or(&finding.path);
        self.line(&format!("{word:<8} {}: {}", path.display(), finding.text));
    }

    fn progress(&mut self, part: &str, done: u64, total: u64) {
        let Some(told) = &mut self.told else { return };
        let now = SystemClock.now();
        if now.duration_since(*told) >= PROGRESS_INTERVAL {
            *told = now;
            let percent = done.saturating_mul(100) / total.max(1);
            let _ = writeln!(stderr(), "checking the {part}: {percent} %");
        }
    }
}
