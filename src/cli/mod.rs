//! The command line: etcd's flags, environment and configuration file become one `Config`.
//! Uses: base, obs (log lines)

pub mod config;
pub mod file;
pub mod flags;
pub mod govalue;
pub mod parse;
#[cfg(test)]
mod tests;
pub mod values;

pub use config::{Config, TlsConfig};
pub use parse::{Command, parse};
