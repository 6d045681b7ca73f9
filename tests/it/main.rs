//! Integration tests, one binary.

mod flags;
mod golden;
mod process;
mod tidy;
mod v2;
