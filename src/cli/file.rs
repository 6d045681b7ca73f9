//! The `--config-file`: YAML with the flags' names as keys, read with etcd's types.

use serde_json::Value;

use super::config::Refusal;
use super::flags::{FLAGS, Flag, Kind, find};
use super::values::Values;
use crate::base::url::{self, Url};

/// Reads the file into values.
pub fn read(path: &str) -> Result<Values, Refusal> {
    let text = std::fs::read_to_string(path).map_err(|why| {
        let text = why.to_string();
        let plain = text.split(" (os error").next().unwrap_or_default();
        format!("open {path}: {}", plain.to_lowercase())
    })?;
    values(&text, path)
}

/// Reads the file's text into values. Keys that are absent or null stay unset; unknown keys
/// mean nothing.
pub fn values(text: &str, path: &str) -> Result<Values, Refusal> {
    let root: Value = match serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text) {
        Ok(yaml) => serde_json::to_value(yaml)
            .map_err(|why| format!("error converting YAML to JSON: yaml: {why}"))?,
        Err(why) => {
            return Err(format!("error converting YAML to JSON: yaml: {why}").into());
        }
    };
    let mut values = Values::default();
    if let Some(flag) = find("config-file") {
        values.put(flag, path.into());
    }
    for flag in FLAGS {
        let Some(key) = flag.yaml() else { continue };
        let found = key.split('.').try_fold(&root, |at, part| at.get(part));
        match found {
            None | Some(Value::Null) => {}
            Some(found) => set(&mut values, flag, &key, found)?,
        }
    }
    Ok(values)
}

fn set(values: &mut Values, flag: &'static Flag, key: &str, found: &Value) -> Result<(), Refusal> {
    let text = match flag.kind {
        Kind::Bool => found.as_bool().map(|b| b.to_string()),
        Kind::Int => found.as_i64().map(|n| n.to_string()),
        Kind::Uint => found.as_u64().map(|n| n.to_string()),
        Kind::Uint32 => found.as_u64().filter(|n| u32::try_from(*n).is_ok()).map(|n| n.to_string()),
        Kind::Duration => found.as_i64().map(|n| format!("{n}ns")),
        Kind::Texts => list(found),
        Kind::UniqueTexts if flag.name == "log-outputs" => list(found),
        _ => scalar(found),
    };
    let Some(text) = text else {
        return Err(mismatch(flag, key, found).into());
    };
    match flag.kind {
        Kind::Urls(_) | Kind::UniqueTexts | Kind::Texts if text.is_empty() => {}
        Kind::Urls("") => {
            let urls = Url::parse_list(&text).map_err(|why| {
                let name = match flag.name {
                    // etcd names the wrong flag here.
                    "advertise-client-urls" => "advertise-peer-urls",
                    name => name,
                };
                Refusal::Plain(format!("unexpected error setting up {name}: {why}\n"))
            })?;
            values.put(flag, url::join(&urls));
        }
        Kind::Urls(_) => values
            .set(flag, &text)
            .map_err(|why| Refusal::Panic(format!("new UniqueURLs should never fail: {why}")))?,
        Kind::OneOf(_) if flag.name != "initial-cluster-state" && !text.is_empty() => {
            let name = if flag.name == "proxy" { "proxyFlag" } else { "discovery-fallback flag" };
            values.set(flag, &text).map_err(|why| {
                Refusal::Plain(format!("unexpected error setting up {name}: {why}\n"))
            })?;
        }
        _ => values.put(flag, text),
    }
    Ok(())
}

/// Go's YAML reader makes texts of numbers and booleans where a text is wanted.
fn scalar(found: &Value) -> Option<String> {
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}

fn list(found: &Value) -> Option<String> {
    let words: Option<Vec<String>> = found.as_array()?.iter().map(scalar).collect();
    words.map(|words| words.join(","))
}

/// The text of Go's JSON decoder for a value of the wrong type.
fn mismatch(flag: &Flag, key: &str, found: &Value) -> String {
    let is = match found {
        Value::String(_) => "string".to_string(),
        Value::Number(_) if matches!(flag.kind, Kind::Bool | Kind::Texts | Kind::UniqueTexts) => {
            "number".to_string()
        }
        Value::Number(number) => format!("number {number}"),
        Value::Bool(_) => "bool".to_string(),
        Value::Array(_) => "array".to_string(),
        _ => "object".to_string(),
    };
    let wants = match flag.kind {
        Kind::Bool => "bool",
        Kind::Int if flag.name == "quota-backend-bytes" => "int64",
        Kind::Int => "int",
        Kind::Uint if flag.name.contains("snapshot-c") => "uint64",
        Kind::Uint => "uint",
        Kind::Uint32 => "uint32",
        Kind::Duration => "time.Duration",
        Kind::Texts => "[]string",
        Kind::UniqueTexts if flag.name == "log-outputs" => "[]string",
        _ => "string",
    };
    format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {is} into Go struct \
         field configYAML.Config.{key} of type {wants}"
    )
}
