//! Numbers as people write and read them: rates, durations, counts.

use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::friendly::SpanParser;

/// Three years: more is a slip of the finger.
const DURATION_MAX: Duration = Duration::from_secs(100_000_000);

/// Messages per second: `20000`, `20k`, `0.5`, `20000/s`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let (digits, factor) = match bare.chars().last() {
            Some('k' | 'K') => (&bare[..bare.len() - 1], 1e3),
            Some('m' | 'M') => (&bare[..bare.len() - 1], 1e6),
            _ => (bare, 1.0),
        };
        match digits.parse::<f64>() {
            Ok(n) if n >= 0.0 && n.is_finite() => Ok(Rate(n * factor)),
            _ => {
                Err(format!("\"{text}\" is not a rate; write messages per second, such as 20000, 20k or 0.5"))
            }
        }
    }
}

/// `500ms`, `30s`, `5m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let found = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => SpanParser::new().parse_unsigned_duration(text).ok(),
    };
    found
        .filter(|found| *found < DURATION_MAX)
        .ok_or_else(|| format!("\"{text}\" is not a duration; write 500ms, 30s, 5m or 1h"))
}

/// `5%`, as 0.05.
pub fn share(text: &str) -> Option<f64> {
    text.strip_suffix('%')?.parse::<f64>().ok().map(|percent| percent / 100.0)
}

/// What stands in the parentheses of `name(...)`.
pub fn arguments<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

/// A span of time for a reader: `850 us`, `12.4 ms`, `3.25 s`.
pub fn show_us(us: f64) -> String {
    match us.abs() {
        n if n < 1e3 => format!("{us:.0} us"),
        n if n < 1e5 => format!("{:.2} ms", us / 1e3),
        n if n < 1e6 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// A count for a reader, in groups of three.
pub fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for text in ["", "-1", "k", "1e999", "fast", "1/m"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for (text, rate) in
            [("20000", 20000.0), ("20k", 20000.0), ("0.5", 0.5), ("1.5M/s", 1.5e6), ("20000/s", 20000.0)]
        {
            assert_eq!(text.parse(), Ok(Rate(rate)));
        }
    }

    #[test]
    fn durations() {
        for text in ["", "s", "-1s", "-1", "inf", "NaN", "5 parsecs", "1d", "1e99h", "99999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("2", 2000),
            ("0.5s", 500),
            ("1.5min", 90_000),
            ("1m30s", 90_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn shares() {
        for (text, share_of) in [("5%", Some(0.05)), ("5", None), ("%", None), ("x%", None), ("", None)] {
            assert_eq!(share(text), share_of, "{text}");
        }
    }

    #[test]
    fn arguments_stand_in_parentheses() {
        let rows = [("f(1,2)", Some("1,2")), ("f()", Some("")), ("f(", None), ("f", None), ("g(1)", None)];
        for (text, inside) in rows {
            assert_eq!(arguments(text, "f"), inside, "{text}");
        }
    }

    #[test]
    fn numbers_for_readers() {
        for (n, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(show_count(n), shown);
        }
        for (us, shown) in
            [(850.0, "850 us"), (12_400.0, "12.40 ms"), (250_000.0, "250 ms"), (3_250_000.0, "3.25 s")]
        {
            assert_eq!(show_us(us), shown);
        }
    }
}
