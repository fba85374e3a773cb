//! Sizes and durations as the settings write them, with a unit.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// `"64MB"`, `"512kB"`, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) usize);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a size like \"64MB\" or \"512kB\"")]
        enum Written {
            Number(usize),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => parse_bytes(&text).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?} is no size: write it like \"64MB\" or \"512kB\""))
            }),
        }
    }
}

fn parse_bytes(text: &str) -> Option<Bytes> {
    let (number, factor) =
        split_unit(text, &[("kB", 1 << 10), ("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("B", 1)])?;
    Some(Bytes(number.checked_mul(factor)? as usize))
}

/// `"5s"`, `"500ms"`, `"2m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a duration like \"5s\", \"500ms\" or \"2m\"")]
        enum Written {
            Seconds(f64),
            Text(String),
        }
        let words = match Written::deserialize(deserializer)? {
            Written::Text(text) => match parse_period(&text) {
                Some(period) => return Ok(period),
                None => format!("{text:?} is no duration: write it like \"5s\", \"500ms\" or \"2m\""),
            },
            // Most mean seconds; which unit it is has to be said all the same.
            Written::Seconds(number) if number.fract() == 0.0 => {
                format!("{number} has no unit: write it like \"{number}s\"")
            }
            Written::Seconds(number) => {
                format!("{number} has no unit: write it like \"{}ms\"", number * 1000.0)
            }
        };
        Err(serde::de::Error::custom(words))
    }
}

fn parse_period(text: &str) -> Option<Period> {
    let (number, factor) = split_unit(text, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)])?;
    Some(Period(Duration::from_millis(number.checked_mul(factor)?)))
}

/// The number and the factor of its unit; longer units come first in the list where one ends another.
fn split_unit(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim().parse().ok()?, *factor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::check;

    #[test]
    fn sizes_and_durations_have_units() {
        check("memory_max = \"ten\"", Err("is no size"));
        assert_eq!(parse_bytes("64MB"), Some(Bytes(64 << 20)));
        assert_eq!(parse_bytes("1 kB"), Some(Bytes(1024)));
        assert_eq!(parse_bytes("64"), None);
        assert_eq!(parse_period("500ms"), Some(Period(Duration::from_millis(500))));
        assert_eq!(parse_period("5s"), Some(Period(Duration::from_secs(5))));
        assert_eq!(parse_period("5"), None);
    }
}
