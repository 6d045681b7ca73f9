//! JSON as Go writes it.

use serde::Serialize;

/// The value in JSON; what HTML takes for markup, and its line separators, are escaped. All of them
/// can only stand in strings.
pub fn text(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("strings and numbers serialise");
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
    }
    escaped
}
