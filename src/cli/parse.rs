//! From argv and the environment to a command: Go's flag grammar, then ETCD_* or the file.

use argh::FromArgs;
use serde_json::Value;
use std::path::PathBuf;

use super::config::{ADVERTISE_UNSET, Config, Refusal};
use super::file;
use super::flags::{FLAGS, Flag, Kind, USAGE, find, help};
use super::govalue;
use super::values::Values;
use crate::obs::log::{Level, Note};

/// What the process is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Run the server.
    Serve(Box<Config>),
    /// Print this to stdout and end with 0.
    Print(String),
    /// Print this to stderr and end.
    Exit {
        /// The whole text, with its newlines.
        stderr: String,
        /// The exit code.
        code: i32,
    },
    /// Check a data directory.
    CheckData {
        /// The directory.
        dir: PathBuf,
        /// Its log, if that is elsewhere.
        wal_dir: Option<PathBuf>,
    },
    /// A subcommand that is not built yet.
    NotYet(String),
}

/// The version etcd clients see.
pub const ETCD_VERSION: &str = "3.5.17";

/// The programs in this binary besides the server, whose flags are Go's and not argh's.
#[derive(FromArgs)]
struct Root {
    #[argh(subcommand)]
    command: Sub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Sub {
    Gateway(Gateway),
    GrpcProxy(GrpcProxy),
}

/// Run the TCP gateway.
#[derive(FromArgs)]
#[argh(subcommand, name = "gateway")]
struct Gateway {
    /// everything after the name
    #[argh(positional, greedy)]
    rest: Vec<String>,
}

/// Run the gRPC proxy.
#[derive(FromArgs)]
#[argh(subcommand, name = "grpc-proxy")]
struct GrpcProxy {
    /// everything after the name
    #[argh(positional, greedy)]
    rest: Vec<String>,
}

/// Check the data directory of a member that does not run: the write-ahead log, the snapshot
/// files, etcd's database file and the engine, each and against each other. Ends with 0 if all is
/// sound, 1 if the next start puts right what is not, 2 if something is damaged, 3 if the check
/// could not be done.
#[derive(FromArgs)]
#[argh(subcommand, name = "check-data")]
struct CheckData {
    /// the directory of the log, if it is not member/wal in the data directory
    #[argh(option)]
    wal_dir: Option<PathBuf>,
    /// the data directory
    #[argh(positional)]
    dir: PathBuf,
}

const SUBCOMMANDS: [&str; 2] = ["gateway", "grpc-proxy"];
/// Exit code of a check that could not be done.
pub const UNCHECKED: i32 = 3;

/// Reads the command line, whose first word is the program, and the environment.
pub fn parse(args: &[String], env: &[(String, String)]) -> Command {
    let words = args.get(1..).unwrap_or_default();
    if words.first().is_some_and(|word| word == "check-data") {
        return check_data(&words[1..]);
    }
    if let Some(name) = words.first().filter(|w| SUBCOMMANDS.contains(&w.as_str())) {
        return subcommand(name, &words[1..]);
    }
    let mut values = Values::default();
    let junk = match read_flags(words, &mut values) {
        Ok(junk) => junk,
        Err(Stop::Help) => return Command::Print(help()),
        Err(Stop::Bad(why)) => return exit(format!("{why}\n{USAGE}\n"), 2),
    };
    let mut notes = Vec::new();
    let outcome = match junk {
        Some(word) => Err(Refusal::Flags(format!("'{word}' is not a valid flag"))),
        None if values.bool("version") => return Command::Print(version()),
        None => configure(values, env, &mut notes),
    };
    match outcome {
        Ok(mut config) => {
            notes.push(running(args));
            config.startup_notes = notes;
            Command::Serve(Box::new(config))
        }
        Err(refusal) => refuse(refusal, args, notes),
    }
}

fn exit(stderr: String, code: i32) -> Command {
    Command::Exit { stderr, code }
}

fn check_data(words: &[String]) -> Command {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match CheckData::from_args(&["rusd", "check-data"], &words) {
        Ok(CheckData { dir, wal_dir }) => Command::CheckData { dir, wal_dir },
        Err(early) if early.status.is_ok() => Command::Print(early.output),
        Err(early) => exit(early.output, UNCHECKED),
    }
}

fn subcommand(name: &str, rest: &[String]) -> Command {
    let mut words = vec![name, "--"];
    words.extend(rest.iter().map(String::as_str));
    match Root::from_args(&["rusd"], &words) {
        Ok(root) => {
            let (name, rest) = match root.command {
                Sub::Gateway(Gateway { rest }) => ("gateway", rest),
                Sub::GrpcProxy(GrpcProxy { rest }) => ("grpc-proxy", rest),
            };
            if rest.iter().any(|word| word == "-h" || word == "--help") {
                return Command::Print(USAGE.into());
            }
            Command::NotYet(name.into())
        }
        Err(early) => exit(early.output, 1),
    }
}

/// The text of `--version`.
pub fn version() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: Not provided (rusd)\nGo Version: none (Rust)\nGo \
         OS/Arch: {}/{}\nrusd Version: {}\n",
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            arch => arch,
        },
        env!("CARGO_PKG_VERSION")
    )
}

fn running(args: &[String]) -> Note {
    Note::info("Running: ").field("args", Value::from(args.to_vec()))
}

/// etcd's last words for each kind of refusal.
fn refuse(refusal: Refusal, args: &[String], mut notes: Vec<Note>) -> Command {
    let lines = |notes: &[Note]| notes.iter().map(Note::line).collect::<String>();
    match refusal {
        Refusal::Flags(why) => {
            notes.push(running(args));
            notes.push(Note::warn("failed to verify flags").text("error", &why));
        }
        Refusal::AdvertiseUnset => {
            notes.push(running(args));
            notes.push(Note::warn("failed to verify flags").text("error", ADVERTISE_UNSET));
            notes.push(
                Note::warn("advertise client URLs are not set").text("error", ADVERTISE_UNSET),
            );
        }
        Refusal::Panic(why) => return exit(format!("{}panic: {why}\n", lines(&notes)), 2),
        Refusal::Plain(why) => return exit(why, 1),
        Refusal::Shadowed(variable) => {
            let text = "conflicting environment variable is shadowed by corresponding \
             command-line flag (either unset environment variable or disable flag))";
            notes.push(Note::new(Level::Fatal, text).text("environment-variable", &variable));
        }
        Refusal::Start(why) => {
            notes.push(running(args));
            notes.push(Note::warn("failed to start etcd").text("error", &why));
            notes.push(Note::new(Level::Fatal, "discovery failed").text("error", &why));
        }
    }
    exit(lines(&notes), 1)
}

enum Stop {
    Help,
    Bad(String),
}

/// Go's flag grammar. Returns the first word that is not a flag.
fn read_flags(words: &[String], values: &mut Values) -> Result<Option<String>, Stop> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let body = match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            Some("") if word == "--" => return Ok(words.next().cloned()),
            None | Some("") => return Ok(Some(word.clone())),
            Some(body) => body,
        };
        if body.starts_with(['-', '=']) {
            return Err(Stop::Bad(format!("bad flag syntax: {word}")));
        }
        let (name, given) = match body.split_once('=') {
            Some((name, text)) => (name, Some(text)),
            None => (body, None),
        };
        let Some(flag) = find(name) else {
            if name == "help" || name == "h" {
                return Err(Stop::Help);
            }
            let why = format!("flag provided but not defined: -{name}");
            return Err(Stop::Bad(why));
        };
        let text = match (flag.kind, given) {
            (_, Some(text)) => text,
            (Kind::Bool | Kind::Ignored, None) => "true",
            (_, None) => match words.next() {
                Some(next) => next.as_str(),
                None => return Err(Stop::Bad(format!("flag needs an argument: -{name}"))),
            },
        };
        values.set(flag, text).map_err(|why| {
            Stop::Bad(match flag.kind {
                Kind::Bool => format!("invalid boolean value {text:?} for -{name}: {why}"),
                _ => format!("invalid value {text:?} for flag -{name}: {why}"),
            })
        })?;
    }
    Ok(None)
}

fn configure(
    mut values: Values,
    env: &[(String, String)],
    notes: &mut Vec<Note>,
) -> Result<Config, Refusal> {
    let variable = env.iter().find(|(name, _)| name == "ETCD_CONFIG_FILE");
    let path = match (values.text("config-file"), variable) {
        ("", Some((_, path))) => path.clone(),
        (path, _) => path.to_string(),
    };
    if !path.is_empty() {
        let values = file::read(&path)?;
        let config = Config::from_values(&values, notes)?;
        notes.push(
            Note::info(
                "loaded server configuration, other configuration command line flags and \
             environment variables will be ignored if provided",
            )
            .text("path", &path),
        );
        return Ok(config);
    }
    read_env(env, &mut values, notes)?;
    for name in ["raft-read-timeout", "raft-write-timeout"] {
        if values.nanos(name) < 5_000_000_000 {
            let least = govalue::duration_text(5_000_000_000);
            notes.push(Note::info(format!("{name} increased to minimum value: {least}")));
        }
    }
    Config::from_values(&values, notes)
}

/// Sets flags from ETCD_*. As in etcd, a variable whose flag is also given ends the program.
fn read_env(
    env: &[(String, String)],
    values: &mut Values,
    notes: &mut Vec<Note>,
) -> Result<(), Refusal> {
    let version = "ETCD_VERSION";
    if let Some((_, text)) = env.iter().find(|(name, text)| name == version && !text.is_empty()) {
        notes.push(
            Note::warn("cannot set special environment variable")
                .text("key", version)
                .text("value", text),
        );
    }
    let mut flags: Vec<&'static Flag> = FLAGS.iter().collect();
    flags.sort_unstable_by_key(|flag| flag.name);
    let (mut used, mut shadowed, mut failure) = (vec![version.to_string()], Vec::new(), None);
    for flag in flags {
        let name = flag.env();
        if values.is_set(flag.name) {
            shadowed.push(name);
            continue;
        }
        let Some((_, text)) = env.iter().find(|(known, text)| *known == name && !text.is_empty())
        else {
            continue;
        };
        if name == version {
            continue;
        }
        match values.set(flag, text) {
            Ok(()) => notes.push(
                Note::info("recognized and used environment variable")
                    .text("variable-name", &name)
                    .text("variable-value", text),
            ),
            Err(why) => failure = Some(format!("invalid value {text:?} for {name}: {why}")),
        }
        used.push(name);
    }
    for (name, text) in env.iter().filter(|(name, _)| !used.contains(name)) {
        if shadowed.contains(name) {
            return Err(Refusal::Shadowed(name.clone()));
        }
        if name.starts_with("ETCD_") {
            notes.push(
                Note::warn("unrecognized environment variable")
                    .text("environment-variable", &format!("{name}={text}")),
            );
        }
    }
    failure.map_or(Ok(()), |why| Err(Refusal::Flags(why)))
}
