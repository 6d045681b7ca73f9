//! Rules about the source itself: which layer may name which, and what stands nowhere.

use rusd::cli::flags::{Effect, FLAGS};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the top. An import may only point further down.
const LAYERS: &[&str] = &[
    "node",
    "cli",
    "grpc",
    "http",
    "transport",
    "actors",
    "storage",
    "apply",
    "auth",
    "lease",
    "mvcc",
    "raft",
    "cluster",
    "v2",
    "obs",
    "pb",
    "base",
];
/// Crates and the only places that may name them.
const CRATES: &[(&str, &[&str])] = &[
    ("actix", &["src/actors/", "src/node/"]),
    ("actix_rt", &["src/actors/", "src/node/"]),
    ("fjall", &["src/storage/engine/"]),
    ("tonic", &["src/grpc/", "src/transport/", "src/pb/"]),
    ("tokio", &["src/actors/", "src/grpc/", "src/http/", "src/node/", "src/transport/"]),
];
/// Words that read a clock, and the places that may, with the reason.
const CLOCKS: &[&str] = &["Instant::now", "SystemTime::now", "OffsetDateTime::now_utc"];
const CLOCK_READERS: &[(&str, &str)] = &[
    ("src/base/clock.rs", "it is the clock"),
    ("src/grpc/layer.rs", "a deadline on tokio's clock, which its tests move"),
    ("src/obs/log/", "stamps of lines and names of rotated files"),
    ("src/transport/rafthttp/", "starts of intervals on tokio's clock"),
    ("src/transport/tls/self_cert.rs", "the first day of a certificate"),
];
/// What stands nowhere, in tests neither.
const NOWHERE: &[&str] = &["todo!", "unimplemented!", "#[ignore"];
/// What stands nowhere but in tests; `main` writes to its streams by name.
const PRINTS: &[&str] = &["println!", "eprintln!", "print!", "eprint!", "dbg!"];
/// Columns of a line of Rust.
const COLUMNS_MAX: usize = 100;
/// Whether a line is a row of its file's table.
type IsRow = fn(&str) -> bool;
/// Tables whose rows are one line each, and how a row begins.
const TABLES: &[(&str, IsRow)] = &[
    ("src/cli/flags.rs", |line| line.starts_with("    f(")),
    ("tests/it/golden.rs", |line| line.starts_with("    \"")),
    ("src/obs/metrics/mod.rs", |line| line.starts_with("    ") && line.contains(" = \"")),
];
/// What is not ours, by its path from the root.
const FOREIGN: &[&str] = &[".git", "target", "e2e/bin", "e2e/out"];
/// Flags that work, but not through a field of `Config` by their name.
const FIELDS: &[(&str, &str)] = &[
    ("config-file", ""),
    ("version", ""),
    ("logger", ""),
    ("heartbeat-interval", "heartbeat_interval_ms"),
    ("election-timeout", "election_timeout_ms"),
    ("auto-compaction-mode", "auto_compaction"),
    ("auto-compaction-retention", "auto_compaction"),
    ("log-outputs", "log"),
    ("experimental-snapshot-catchup-entries", "snapshot_catchup_entries"),
    ("log-level", "log"),
    ("enable-log-rotation", "log"),
    ("log-rotation-config-json", "log"),
    ("experimental-peer-skip-client-san-verification", "skip_client_san_verification"),
    // As in etcd, the language's listener does it in any case.
    ("socket-reuse-address", ""),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` that is ours, by its path from the root, in order.
fn files(dir: &Path, out: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if FOREIGN.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            files(&path, out);
        } else if fs::symlink_metadata(&path).unwrap().is_file() {
            out.insert(name, path);
        }
    }
}

fn rust() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for dir in ["src", "tests", "crates"] {
        files(&root().join(dir), &mut found);
    }
    found.insert("build.rs".to_owned(), root().join("build.rs"));
    let rust = found.into_iter().filter(|(name, _)| name.ends_with(".rs"));
    rust.map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
}

/// The text without what comments and literals say. Lines stay lines.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let rest = &chars[i..];
        let (end, keep) = match rest {
            ['/', '/', ..] => (until(rest, &['\n']), ""),
            ['/', '*', ..] => (until(rest, &['*', '/']) + 2, ""),
            ['r', '"', ..] | ['r', '#', '"' | '#', ..] => {
                let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
                let close: Vec<char> = std::iter::once('"').chain(vec!['#'; hashes]).collect();
                let body = hashes + 2;
                (body + until(&rest[body..], &close) + close.len(), "\"\"")
            }
            ['"', ..] => (quoted(rest), "\"\""),
            ['\'', '\\', _, ..] => (3 + until(&rest[3..], &['\'']) + 1, "' '"),
            ['\'', _, '\'', ..] => (3, "' '"),
            [c, ..] => {
                out.push(*c);
                i += 1;
                continue;
            }
            [] => break,
        };
        let end = end.min(rest.len());
        out.push_str(keep);
        out.extend(rest[..end].iter().filter(|c| **c == '\n'));
        i += end;
    }
    out
}

fn until(text: &[char], end: &[char]) -> usize {
    text.windows(end.len()).position(|window| window == end).unwrap_or(text.len())
}

/// Length of the string literal that `text` begins with.
fn quoted(text: &[char]) -> usize {
    let mut i = 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The code that a release is built from: without `#[cfg(test)]` modules.
fn shipped(files: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut tests = BTreeSet::new();
    let mut out = BTreeMap::new();
    for (name, text) in files.iter().filter(|(name, _)| name.starts_with("src/")) {
        let mut code = code(text);
        // A test module that other tests borrow from is visible in the crate.
        code = code.replace("#[cfg(test)]\npub(crate) mod ", "#[cfg(test)]\nmod ");
        while let Some(at) = code.find("#[cfg(test)]\nmod ") {
            let rest = &code[at + "#[cfg(test)]\nmod ".len()..];
            let module = rest.split([';', ' ']).next().unwrap().to_owned();
            if rest.starts_with(&format!("{module};")) {
                let dir = name.rsplit_once('/').unwrap().0;
                tests.insert(format!("{dir}/{module}"));
                code.replace_range(at..at + "#[cfg(test)]".len(), "");
            } else {
                // Inline test modules stand at the end of their file.
                code.truncate(at);
            }
        }
        out.insert(name.clone(), code);
    }
    out.retain(|name, _| {
        let stem = name.trim_end_matches(".rs");
        !tests.iter().any(|test| stem == test || stem.starts_with(&format!("{test}/")))
    });
    out
}

/// Whether `code` has `word` with no letter around it.
fn names(code: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let starts = !word.starts_with(inside) || !code[..at].ends_with(inside);
        starts && !code[at + word.len()..].chars().next().is_some_and(inside)
    })
}

/// Top-level modules that `code` names through `crate::`, grouped imports included.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut first = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => first = true,
                    c if depth == 1 && first && (c.is_alphanumeric() || c == '_') => word.push(c),
                    c if c.is_whitespace() => {}
                    _ => {
                        found.insert(std::mem::take(&mut word));
                        first = false;
                    }
                }
                if (c == ',' || depth == 0) && !word.is_empty() {
                    found.insert(std::mem::take(&mut word));
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            let inside = |c: &char| c.is_alphanumeric() || *c == '_';
            found.insert(rest.chars().take_while(inside).collect());
        }
    }
    found.retain(|name| LAYERS.contains(&name.as_str()));
    found
}

/// `//! Uses: a, b (why)` of a module's head: the line and those that continue it.
fn declared(text: &str) -> Option<BTreeSet<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("//! Uses: "));
    let mut list = lines.next()?.trim_start_matches("//! Uses: ").to_owned();
    while list.ends_with(',') {
        list.push_str(lines.next()?.trim_start_matches("//!"));
    }
    let words = list.split(',').map(|word| word.split_whitespace().next().unwrap_or_default());
    Some(words.filter(|word| *word != "nothing").map(str::to_owned).collect())
}

fn layer(name: &str) -> &str {
    let rest = name.strip_prefix("src/").unwrap_or_default();
    rest.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn nothing(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn heads_name_what_modules_use() {
    let all = rust();
    let shipped = shipped(&all);
    let mut wrong = Vec::new();
    for (name, text) in all.iter().filter(|(name, _)| shipped.contains_key(*name)) {
        let top = name.matches('/').count() == 1;
        let below = match name.strip_suffix("mod.rs") {
            Some(dir) => dir.to_owned(),
            None if top && name != "src/main.rs" && name != "src/lib.rs" => name.clone(),
            None => continue,
        };
        let mut real = BTreeSet::new();
        for (_, code) in shipped.iter().filter(|(other, _)| other.starts_with(&below)) {
            real.append(&mut uses(code));
        }
        real.remove(layer(name));
        if declared(text).as_ref() != Some(&real) {
            let real: Vec<&str> = real.iter().map(String::as_str).collect();
            let list = if real.is_empty() { "nothing".to_owned() } else { real.join(", ") };
            wrong.push(format!("{name}: should say `//! Uses: {list}`"));
        }
    }
    nothing(wrong);
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, code) in shipped(&rust()) {
        let from = layer(&name);
        let Some(rank) = LAYERS.iter().position(|layer| *layer == from) else {
            if !["src/main.rs", "src/lib.rs"].contains(&name.as_str()) {
                wrong.push(format!("{name}: no layer of this name"));
            }
            continue;
        };
        seen.insert(from.to_owned());
        for used in uses(&code) {
            let below = LAYERS.iter().position(|layer| *layer == used).unwrap();
            if below < rank {
                wrong.push(format!("{name}: {from} may not name {used}, which is above it"));
            }
        }
    }
    for layer in LAYERS.iter().filter(|layer| !seen.contains(**layer)) {
        wrong.push(format!("{layer}: a layer without code"));
    }
    nothing(wrong);
}

#[test]
fn crates_actors_and_clocks_stay_in_their_places() {
    let mut wrong = Vec::new();
    for (name, code) in shipped(&rust()) {
        for (word, places) in CRATES {
            if names(&code, word) && !places.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("{name}: names {word}"));
            }
        }
        // Edges hold a `NodeHandle`; which actor answers is not theirs to know.
        let handles = code.matches("crate::actors::handle").count();
        if ["grpc", "http", "transport"].contains(&layer(&name))
            && code.matches("crate::actors").count() != handles
        {
            wrong.push(format!("{name}: names an actor, not actors::handle"));
        }
        if CLOCK_READERS.iter().any(|(place, _)| name.starts_with(place)) {
            continue;
        }
        for clock in CLOCKS.iter().filter(|clock| names(&code, clock)) {
            wrong.push(format!("{name}: {clock}; take time from base::clock"));
        }
    }
    nothing(wrong);
}

#[test]
fn words_that_stand_nowhere() {
    let all = rust();
    let mut wrong = Vec::new();
    for (name, text) in &all {
        let code = code(text);
        for word in NOWHERE.iter().filter(|word| code.contains(**word)) {
            wrong.push(format!("{name}: {word}"));
        }
    }
    for (name, code) in shipped(&all) {
        for word in PRINTS.iter().filter(|word| names(&code, word.trim_end_matches('!'))) {
            if code.contains(*word) {
                wrong.push(format!("{name}: {word}; log it"));
            }
        }
    }
    nothing(wrong);
}

#[test]
fn lines_fit() {
    let mut wrong = Vec::new();
    for (name, text) in rust() {
        let table = TABLES.iter().find(|(file, _)| *file == name);
        for (number, line) in text.lines().enumerate() {
            let row = table.is_some_and(|(_, is_row)| is_row(line));
            if line.chars().count() > COLUMNS_MAX && !row {
                wrong.push(format!("{name}:{}", number + 1));
            }
        }
    }
    nothing(wrong);
}

#[test]
fn no_file_names_a_machine() {
    // In pieces, since this file is looked at too.
    let paths = ["home", "root", "work"].map(|dir| format!("/{dir}/"));
    let mut all = BTreeMap::new();
    files(root(), &mut all);
    let mut wrong = Vec::new();
    for (name, path) in all {
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (number, line) in text.lines().enumerate() {
            // A URL's path is no path of a machine.
            let at = paths.iter().find_map(|path| line.find(path.as_str()));
            let before = at.and_then(|at| line[..at].chars().next_back());
            if at.is_some() && !before.is_some_and(char::is_alphanumeric) {
                wrong.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    nothing(wrong);
}

/// A flag that works is read somewhere outside `cli`; one that waits is not.
#[test]
fn flags_are_what_the_table_says() {
    let shipped = shipped(&rust());
    let outside: String = shipped
        .iter()
        .filter(|(name, _)| !name.starts_with("src/cli/"))
        .map(|(_, code)| code.as_str())
        .collect();
    let mut wrong = Vec::new();
    for flag in FLAGS.iter().filter(|flag| flag.effect == Effect::Works) {
        let field = match FIELDS.iter().find(|(name, _)| *name == flag.name) {
            Some((_, "")) => continue,
            Some((_, field)) => (*field).to_owned(),
            // Both sides of TLS share their fields' names.
            None => flag.name.replace('-', "_"),
        };
        let tls = ["peer_", "client_", "peer_cert_", "client_cert_"];
        let plain = tls.iter().filter_map(|prefix| field.strip_prefix(prefix));
        let mut fields: Vec<&str> = plain.collect();
        fields.push(&field);
        if !fields.iter().any(|field| names(&outside, &format!(".{field}"))) {
            wrong.push(format!("--{}: nothing outside cli reads .{field}", flag.name));
        }
    }
    nothing(wrong);
}

#[test]
fn the_rules_see_what_they_forbid() {
    let text = "//! actix\n/* fjall */ let a = \"tonic \\\" x\"; let c = '\"';\n\
                let d = r#\"todo!\"#; let e: &'static str = b'\\'';\nuse tokio::x;\n";
    let code = code(text);
    assert_eq!(code.lines().count(), text.lines().count());
    for word in ["actix", "fjall", "tonic", "todo"] {
        assert!(!names(&code, word), "{word} in {code}");
    }
    assert!(names(&code, "tokio"));
    assert!(!names("monotonic", "tonic"));
    let found = uses("use crate::{base::ids::{A, B}, mvcc, obs::log}; crate::pb::x()");
    assert_eq!(Vec::from_iter(found), ["base", "mvcc", "obs", "pb"]);
    let head = "//! A.\n//! Uses: base, mvcc (reads),\n//! pb\n";
    assert_eq!(Vec::from_iter(declared(head).unwrap()), ["base", "mvcc", "pb"]);
    let file = |text: &str| ("src/a/mod.rs".to_owned(), text.to_owned());
    let other = ("src/a/testing.rs".to_owned(), "x".to_owned());
    let files = BTreeMap::from([
        file(
            "use crate::pb;\n#[cfg(test)]\nmod testing;\n\
             #[cfg(test)]\nmod tests {\nuse crate::mvcc;\n}\n",
        ),
        other,
    ]);
    let shipped = shipped(&files);
    assert_eq!(shipped.len(), 1);
    assert_eq!(Vec::from_iter(uses(&shipped["src/a/mod.rs"])), ["pb"]);
}
