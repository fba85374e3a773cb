//! Lengths of time as settings have them, `"15m"`, and as people are told of them. In microseconds.

/// How a unit is written, its name, and its length; the longest first.
const UNITS: [(&str, &str, i64); 5] = [
    ("d", "day", DAY),
    ("h", "hour", 3_600_000_000),
    ("m", "minute", 60_000_000),
    ("s", "second", SECOND),
    ("ms", "millisecond", MILLISECOND),
];

pub(super) const DAY: i64 = 86_400_000_000;
pub(super) const SECOND: i64 = 1_000_000;
pub(super) const MILLISECOND: i64 = 1000;

/// A whole number of a unit that is no shorter than `least`.
pub(super) fn parse(text: &str, least: i64) -> Option<i64> {
    UNITS.iter().filter(|(.., micros)| *micros >= least).find_map(|(unit, _, micros)| {
        let number: i64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*micros)
    })
}

/// How many of the longest unit that fits a whole number of times, and its name.
pub(super) fn longest(micros: i64) -> (i64, &'static str) {
    let fits = |(.., length): &&(&str, &str, i64)| micros % length == 0;
    let (_, word, length) = UNITS.iter().find(fits).unwrap_or(&UNITS[UNITS.len() - 1]);
    (micros / length, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_told() {
        let check = |text: &str, micros: i64, count: i64, word: &str| {
            assert_eq!(parse(text, MILLISECOND), Some(micros), "{text}");
            assert_eq!(longest(micros), (count, word));
        };
        check("1d", DAY, 1, "day");
        check("36h", 36 * 3_600_000_000, 36, "hour");
        check("15 m", 15 * 60_000_000, 15, "minute");
        check("1s", SECOND, 1, "second");
        check("250ms", 250 * MILLISECOND, 250, "millisecond");
        for text in ["", "d", "1", "1y", "1.5d", "9223372036854775807d"] {
            assert_eq!(parse(text, MILLISECOND), None, "{text}");
        }
        assert_eq!(parse("1000ms", SECOND), None);
    }
}
