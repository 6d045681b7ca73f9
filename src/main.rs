//! The daemon: parse, run, exit code.

use rusd::cli::{self, Command};
use std::io::Write as _;

/// Requests are allocated on one thread and freed on another, which the system's allocator pays for
/// with locks: 27 % of a put's CPU time before, see docs/benchmarks.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let code = match cli::parse(&args, &env) {
        Command::Serve(config) => {
            if let Err(error) = rusd::obs::log::init(&config.log) {
                let _ = writeln!(std::io::stderr(), "{error}");
                std::process::exit(1);
            }
            for note in &config.startup_notes {
                rusd::obs::log::write_note(note, &config.log);
            }
            match rusd::base::failpoint::setup() {
                Ok(None) => {}
                Ok(Some(asked)) => tracing::warn!(failpoints = asked, "failpoints are set up"),
                Err(error) => {
                    let fields: &[(&str, &dyn std::fmt::Display)] = &[("error", &error)];
                    rusd::obs::log::fatal_line("failed to start or run the member", fields);
                    std::process::exit(1);
                }
            }
            // In the log's shape, with the place; the thread's owner says what follows from it.
            std::panic::set_hook(Box::new(|panic| {
                let location = panic.location().map(ToString::to_string).unwrap_or_default();
                let text = rusd::actors::rt::panic_text(panic.payload());
                tracing::error!(location, panic = text, "a thread panicked");
            }));
            rusd::node::run(*config)
        }
        Command::Print(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Command::Exit { stderr, code } => {
            let _ = std::io::stderr().write_all(stderr.as_bytes());
            code
        }
        Command::CheckData { dir, wal_dir } => {
            rusd::node::check_data::run(&dir, wal_dir.as_deref())
        }
        Command::NotYet(name) => {
            let _ =
                writeln!(std::io::stderr(), "rusd: the {name} command comes in a later release");
            1
        }
    };
    std::process::exit(code);
}
