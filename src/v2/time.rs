//! Moments, as they stand in requests and in the JSON.

use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;
/// How Go writes the moment that is none.
const NONE: &str = "0001-01-01T00:00:00Z";

/// Nanoseconds since 1970 began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// The time of day on a clock that counts from 1970; one beyond the year 2262 is its end.
    pub fn of_day(unix: Duration) -> Time {
        Time(i64::try_from(unix.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Seconds until `self`, rounded up; before `now` they are rounded up, too.
    pub(super) fn seconds_after(self, now: Time) -> i64 {
        let left = self.0.saturating_sub(now.0);
        left / SECOND + i64::from(left % SECOND > 0)
    }
}

/// RFC 3339 in UTC without zeros at the end, as Go writes it.
pub(super) fn write(time: Option<Time>) -> String {
    let Some(Time(nanos)) = time else { return NONE.to_owned() };
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into());
    // Every number of 64 bits lies between the years 1677 and 2262.
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| NONE.to_owned())
}

/// What an etcd wrote, whatever its time zone; `None` inside for the moment that is none.
pub(super) fn read(text: &str) -> Result<Option<Time>, String> {
    if text == NONE {
        return Ok(None);
    }
    let odd = || format!("{text:?} is no time");
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| odd())?;
    let nanos = i64::try_from(time.unix_timestamp_nanos()).map_err(|_| odd())?;
    Ok(Some(Time(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_as_go_does() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
            (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
            (1, "1970-01-01T00:00:00.000000001Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
            (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
        ] {
            assert_eq!(write(Some(Time(nanos))), text);
            assert_eq!(read(text), Ok(Some(Time(nanos))));
        }
        assert_eq!(write(None), "0001-01-01T00:00:00Z");
        assert_eq!(read("0001-01-01T00:00:00Z"), Ok(None));
        let zoned = read("2023-11-14T23:43:20.5+01:30").unwrap();
        assert_eq!(zoned, Some(Time(1_700_000_000_500_000_000)));
        assert!(read("9999-01-01T00:00:00Z").is_err());
        assert!(read("yesterday").is_err());
    }

    #[test]
    fn seconds_are_rounded_up() {
        let after = |nanos: i64| Time(nanos).seconds_after(Time(0));
        assert_eq!([after(1), after(SECOND), after(SECOND + 1)], [1, 1, 2]);
        assert_eq!([after(0), after(-1), after(-SECOND - 1)], [0, 0, -1]);
        assert_eq!(Time(i64::MAX).seconds_after(Time(i64::MIN)), i64::MAX / SECOND + 1);
    }
}
