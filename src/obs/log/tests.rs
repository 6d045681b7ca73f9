//! Lines, levels, notes and files.

use super::event::JsonLayer;
use super::sink::{RotatingFile, open};
use super::{Json, Level, LogConfig, Note, Rotation, init};
use serde_json::Value;
use std::cell::Cell as StdCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt;

/// Logs with `body` at a level into a file and reads the lines back.
fn logged(level: Level, body: impl FnOnce()) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sink = open(path.to_str().unwrap(), None).unwrap();
    let layer = JsonLayer::new(level, Arc::new(vec![sink]));
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, body);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn log_lines_have_zaps_shape() {
    let error = io::Error::other("no \"luck\"\n");
    let lines = logged(Level::Info, || {
        tracing::info!(
            "local-member-id" = "8e9e",
            count = 3u64,
            below = -1i64,
            ok = true,
            ratio = 0.5f64,
            nan = f64::NAN,
            shown = %"a\tb\u{1}",
            debug = ?Some(1),
            list = ?Json(serde_json::json!(["a", 1])),
            error = &error as &dyn std::error::Error,
            "hello {}",
            "world"
        );
    });
    let line = &lines[0];
    for (name, want) in [
        ("level", serde_json::json!("info")),
        ("msg", serde_json::json!("hello world")),
        ("local-member-id", serde_json::json!("8e9e")),
        ("count", serde_json::json!(3)),
        ("below", serde_json::json!(-1)),
        ("ok", serde_json::json!(true)),
        ("ratio", serde_json::json!(0.5)),
        ("nan", serde_json::json!("NaN")),
        ("shown", serde_json::json!("a\tb\u{1}")),
        ("debug", serde_json::json!("Some(1)")),
        ("list", serde_json::json!(["a", 1])),
        ("error", serde_json::json!("no \"luck\"\n")),
    ] {
        assert_eq!(line[name], want, "{name}");
    }
    let names: Vec<&String> = line.as_object().unwrap().keys().take(4).collect();
    assert_eq!(names, ["level", "ts", "caller", "msg"]);
    let ts = line["ts"].as_str().unwrap();
    assert_eq!((ts.len(), ts.ends_with('Z')), ("2006-01-02T15:04:05.000000Z".len(), true));
    let caller = line["caller"].as_str().unwrap();
    assert!(caller.starts_with("log/tests.rs:"), "{caller}");
}

#[test]
fn log_levels_filter() {
    let lines = |level| {
        logged(level, || {
            tracing::debug!("d");
            tracing::info!("i");
            tracing::warn!("w");
            tracing::error!("e");
            tracing::debug!(target: "h2::codec", "quiet");
            tracing::warn!(target: "h2::codec", "loud");
        })
        .iter()
        .map(|line| {
            format!("{} {}", line["level"].as_str().unwrap(), line["msg"].as_str().unwrap())
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(lines(Level::Debug), ["debug d", "info i", "warn w", "error e", "warn loud"]);
    assert_eq!(lines(Level::Warn), ["warn w", "error e", "warn loud"]);
    assert!(lines(Level::Fatal).is_empty());
}

#[test]
fn log_disabled_values_are_not_formatted() {
    struct Costly<'a>(&'a StdCell<u32>);
    impl fmt::Debug for Costly<'_> {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }
    let count = StdCell::new(0);
    logged(Level::Info, || tracing::debug!(costly = ?Costly(&count), "x"));
    assert_eq!(count.get(), 0);
}

#[test]
fn log_json_values_cannot_be_forged() {
    let lines = logged(Level::Info, || {
        tracing::info!(key = %"\"},{\"x\":1", other = ?"[1]", "m\u{2028}\u{7f}");
    });
    assert_eq!(lines[0]["key"], "\"},{\"x\":1");
    assert_eq!(lines[0]["other"], "\"[1]\"");
    assert_eq!(lines[0]["msg"], "m\u{2028}\u{7f}");
}

#[test]
fn log_notes_and_levels() {
    let note = Note::warn("m").text("error", "e").field("n", Value::from(1));
    let line: Value = serde_json::from_str(&note.line()).unwrap();
    assert_eq!(
        (&line["level"], &line["error"], &line["n"]),
        (&"warn".into(), &"e".into(), &1.into())
    );
    assert!(note.line().ends_with("}\n") && note.caller.starts_with("log/tests.rs:"));
    assert_eq!(Level::parse("WARN"), Some(Level::Warn));
    assert_eq!(Level::parse("weird"), None);
}

#[test]
fn log_file_errors_read_as_etcds() {
    let config = LogConfig { outputs: vec!["/a/b/c".into()], ..LogConfig::default() };
    let want = "couldn't open sink \"/a/b/c\": open /a/b/c: no such file or directory";
    assert_eq!(init(&config), Err(want.to_string()));
}

#[test]
fn log_files_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.log");
    let rotation = Rotation { maxsize: 1, maxbackups: 1, ..Rotation::default() };
    let mut file = RotatingFile::open(path.to_str().unwrap(), rotation).unwrap();
    let line = vec![b'x'; 700 << 10];
    for _ in 0..4 {
        file.write(&line).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 2);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64);
}
