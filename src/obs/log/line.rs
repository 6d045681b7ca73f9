//! A log line in zap's JSON shape, as text.

use super::level::Level;
use std::fmt::Write as _;
use time::OffsetDateTime;

/// Everything up to the fields.
pub(super) fn begin(line: &mut String, level: Level, caller: &str, msg: &str) {
    let now = OffsetDateTime::now_utc();
    let (date, clock) = (now.date(), now.time());
    let _ = write!(
        line,
        "{{\"level\":\"{}\",\"ts\":\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z\"",
        level.as_str(),
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.microsecond()
    );
    push_name(line, "caller");
    push_text(line, caller);
    push_name(line, "msg");
    push_text(line, msg);
}

/// The last directory, the file and the line.
pub(super) fn push_caller(out: &mut String, file: &str, line: u32) {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(i, _)| i + 1);
    let _ = write!(out, "{}:{line}", &file[start..]);
}

pub(super) fn push_name(line: &mut String, name: &str) {
    line.push(',');
    push_text(line, name);
    line.push(':');
}

/// A JSON text; zap escapes the same characters.
pub(super) fn push_text(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c < ' ' || c == '\u{7f}' || c == '\u{2028}' || c == '\u{2029}' => {
                let _ = write!(line, "\\u{:04x}", c as u32);
            }
            c => line.push(c),
        }
    }
    line.push('"');
}
