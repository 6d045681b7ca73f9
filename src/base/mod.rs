//! Words that every layer shares: ids, errors, limits, time, URLs.
//! Uses: nothing

pub mod clock;
pub mod error;
pub mod failpoint;
pub mod gojson;
pub mod ids;
pub mod limits;
pub mod url;
