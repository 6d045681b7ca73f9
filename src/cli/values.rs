//! The flags that were given, by whichever way, as checked text.

use std::collections::{BTreeMap, BTreeSet};

use super::flags::{Flag, Kind, find};
use super::govalue;
use crate::base::url::{self, Url};

/// Text of every flag that was set; the others have their default.
#[derive(Clone, Debug, Default)]
pub struct Values {
    texts: BTreeMap<&'static str, String>,
    touched: BTreeSet<&'static str>,
}

impl Values {
    /// Checks `text` as the flag's kind demands and keeps it. The error is Go's.
    pub fn set(&mut self, flag: &'static Flag, text: &str) -> Result<(), String> {
        let kept = match flag.kind {
            Kind::Bool => {
                govalue::boolean(text).ok_or("parse error")?;
                text.to_string()
            }
            Kind::Int => govalue::signed(text)?.to_string(),
            Kind::Uint => govalue::unsigned(text)?.to_string(),
            Kind::Uint32 => {
                let wrong = |why: &str| format!("strconv.ParseUint: parsing {text:?}: {why}");
                match govalue::unsigned(text) {
                    Ok(n) if n <= u64::from(u32::MAX) => n.to_string(),
                    Ok(_) | Err("value out of range") => {
                        return Err(wrong("value out of range"));
                    }
                    Err(_) => return Err(wrong("invalid syntax")),
                }
            }
            Kind::Duration => {
                govalue::duration(text).map_err(|_| "parse error")?;
                text.to_string()
            }
            Kind::Text | Kind::Texts => text.to_string(),
            Kind::Urls(exception) => self.merge_urls(flag, text, exception)?,
            Kind::UniqueTexts => {
                let words: BTreeSet<&str> = text.split(',').collect();
                words.into_iter().collect::<Vec<_>>().join(",")
            }
            Kind::OneOf(words) if words.contains(&text) => text.to_string(),
            Kind::OneOf(_) => return Err("invalid value".into()),
            Kind::SomeOf(words) => {
                if let Some(bad) = text.split(',').find(|word| !words.contains(word)) {
                    return Err(format!("invalid value {bad:?}"));
                }
                let before = self.text(flag.name).to_string();
                let mut all: Vec<&str> = before.split(',').filter(|w| !w.is_empty()).collect();
                all.extend(text.split(','));
                all.sort_unstable();
                all.join(",")
            }
            Kind::Ignored => String::new(),
        };
        self.put(flag, kept);
        Ok(())
    }

    /// Keeps `text` without a check.
    pub fn put(&mut self, flag: &'static Flag, text: String) {
        self.touched.insert(flag.name);
        self.texts.insert(flag.name, text);
    }

    /// etcd's URL sets: an empty text or a repeat of a member changes nothing.
    fn merge_urls(&self, flag: &Flag, text: &str, exception: &str) -> Result<String, String> {
        let before = self.text(flag.name);
        if before.split(',').any(|url| url == text) {
            return Ok(before.into());
        }
        if text == exception {
            return Ok(match (before, text) {
                ("", text) => text.into(),
                (before, "") => before.into(),
                (before, text) => format!("{text},{before}"),
            });
        }
        let mut urls = Url::parse_list(text)?;
        urls.dedup();
        Ok(url::join(&urls))
    }

    /// Whether the flag was given.
    pub fn is_set(&self, name: &str) -> bool {
        self.touched.contains(name)
    }

    /// The flag's text, or its default.
    pub fn text(&self, name: &str) -> &str {
        let default = || find(name).map_or("", |flag| flag.default);
        self.texts.get(name).map_or_else(default, String::as_str)
    }

    /// The flag as a boolean.
    pub fn bool(&self, name: &str) -> bool {
        govalue::boolean(self.text(name)).unwrap_or_default()
    }

    /// The flag as an unsigned number.
    pub fn u64(&self, name: &str) -> u64 {
        govalue::unsigned(self.text(name)).unwrap_or_default()
    }

    /// The flag as a signed number.
    pub fn i64(&self, name: &str) -> i64 {
        govalue::signed(self.text(name)).unwrap_or_default()
    }

    /// The flag as nanoseconds.
    pub fn nanos(&self, name: &str) -> i64 {
        govalue::duration(self.text(name)).unwrap_or_default()
    }

    /// The flag as URLs.
    pub fn urls(&self, name: &str) -> Vec<Url> {
        match self.text(name) {
            "" => Vec::new(),
            text => Url::parse_list(text).unwrap_or_default(),
        }
    }

    /// The flag as a list of words; empty if it was not given.
    pub fn list(&self, name: &str) -> Vec<String> {
        if !self.is_set(name) && self.text(name).is_empty() {
            return Vec::new();
        }
        self.text(name).split(',').map(String::from).collect()
    }
}
