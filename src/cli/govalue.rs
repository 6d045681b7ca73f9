//! Go's spellings of flag values: booleans, integers and durations, with Go's error texts.

/// Reads a Go boolean.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

const SYNTAX: &str = "parse error";
const RANGE: &str = "value out of range";

/// Reads an unsigned number with Go's base prefixes.
pub fn unsigned(text: &str) -> Result<u64, &'static str> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    let prefixed = digits.len() < lower.len();
    let bytes = digits.as_bytes();
    // An underscore separates digits, or the base prefix from the digits, and needs a prefix.
    let lone = |i: usize| (i == 0 || bytes[i - 1] != b'_') && i + 1 < bytes.len();
    let underscores = bytes.iter().enumerate().filter(|(_, b)| **b == b'_');
    if !underscores.clone().all(|(i, _)| prefixed && lone(i)) {
        return Err(SYNTAX);
    }
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SYNTAX);
    }
    u64::from_str_radix(&digits, radix).map_err(|_| RANGE)
}

/// Reads a signed number with Go's base prefixes.
pub fn signed(text: &str) -> Result<i64, &'static str> {
    if let Some(rest) = text.strip_prefix('-') {
        return 0i64.checked_sub_unsigned(unsigned(rest)?).ok_or(RANGE);
    }
    let value = unsigned(text.strip_prefix('+').unwrap_or(text))?;
    i64::try_from(value).map_err(|_| RANGE)
}

/// Reads a Go duration such as `1h10m` or `-1.5s` as nanoseconds.
pub fn duration(text: &str) -> Result<i64, String> {
    let bad = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        if number.bytes().filter(|b| *b == b'.').count() > 1
            || !number.bytes().any(|b| b.is_ascii_digit())
        {
            return Err(bad());
        }
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if !whole.is_empty() {
            total += whole.parse::<u64>().map_err(|_| bad())? as i128 * scale;
        }
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let value: i128 = fraction.parse().map_err(|_| bad())?;
            total += value * scale / 10i128.pow(fraction.len() as u32);
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| bad())
}

/// Writes nanoseconds as Go prints a duration.
pub fn duration_text(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let abs = ns.unsigned_abs();
    let fraction = |unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", abs / unit, abs % unit);
        format!("{sign}{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match abs {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{abs}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let minute = 60_000_000_000;
            let (minutes, rest) = (abs / minute, abs % minute);
            let seconds = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_go() {
        for (text, want) in [
            ("12", Ok(12)),
            ("0x1F", Ok(31)),
            ("0b101", Ok(5)),
            ("017", Ok(15)),
            ("0o17", Ok(15)),
            ("0x_ff", Ok(255)),
            ("1_000", Err("parse error")),
            ("abc", Err("parse error")),
            ("-1", Err("parse error")),
            ("", Err("parse error")),
            ("99999999999999999999", Err("value out of range")),
        ] {
            assert_eq!(unsigned(text), want, "{text}");
        }
        assert_eq!(signed("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(signed("+5"), Ok(5));
        assert_eq!(signed("9223372036854775808"), Err("value out of range"));
    }

    #[test]
    fn durations_of_go() {
        for (text, ns, back) in [
            ("1s", 1_000_000_000, "1s"),
            ("100ms", 100_000_000, "100ms"),
            ("1h10m", 4_200_000_000_000, "1h10m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            (".5m", 30_000_000_000, "30s"),
            ("-2us", -2_000, "-2µs"),
            ("0", 0, "0s"),
            ("2h", 7_200_000_000_000, "2h0m0s"),
        ] {
            assert_eq!(duration(text), Ok(ns), "{text}");
            assert_eq!(duration_text(ns), back);
        }
        for text in ["", "5", "5x", "s", ".s", "1..2s", "9999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
