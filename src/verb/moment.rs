//! A point in time, as a person gives it to a command.

use jiff::{Span, Timestamp, Zoned};

/// A time with its offset, or a distance back from `now`, such as `10m` or `3d`; `None` for anything else.
pub fn past(text: &str, now: &Zoned) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let back = text.parse::<Span>().ok().filter(|span| !span.is_negative())?;
    now.checked_sub(back).ok().map(|at| at.timestamp())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn a_moment_is_a_time_or_some_time_ago() {
        let now = "2026-01-31T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC);
        for (text, expected) in [
            ("10m", "2026-01-31T11:50:00Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
            ("3d", "2026-01-28T12:00:00Z"),
            ("2026-01-31T00:00:00.123Z", "2026-01-31T00:00:00.123Z"),
        ] {
            assert_eq!(past(text, &now), Some(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "10", "yesterday", "-10m"] {
            assert_eq!(past(text, &now), None, "{text}");
        }
    }
}
