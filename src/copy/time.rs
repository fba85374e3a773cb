//! Dates and times: RFC 3339 by hand, because the shape is fixed and every record has at least one.
//! Nothing here depends on a clock, a locale, a time zone or a session setting: "now" and "01/02/2023" are refused.

use super::{Decimal, Wrong, out_of_range};
use crate::reject::Reason;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// From 1970-01-01, where the world counts from, to 2000-01-01, where PostgreSQL does.
const SECONDS_1970_TO_2000: i64 = 946_684_800;
const DAYS_1970_TO_2000: i32 = 10_957;

/// PostgreSQL's own range: 4713 BC (its day zero is in November of 4714 BC) up to, not including, the year 294277.
const MICROS_MIN: i64 = -211_813_488_000_000_000;
const MICROS_END: i64 = 9_223_371_331_200_000_000;

/// What a number in a time field counts since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "us")]
    Micros,
    #[serde(rename = "ns")]
    Nanos,
}

impl Unit {
    /// Powers of ten from the unit to microseconds.
    fn places(self) -> i64 {
        match self {
            Unit::Seconds => 6,
            Unit::Millis => 3,
            Unit::Micros => 0,
            Unit::Nanos => -3,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Millis => "milliseconds",
            Unit::Micros => "microseconds",
            Unit::Nanos => "nanoseconds",
        }
    }
}

/// Fractions below a microsecond are rounded to the nearest, ties to the even one, as the server does.
pub(super) fn from_epoch(number: Decimal<'_>, unit: Unit) -> Result<i64, Wrong> {
    number
        .shifted(unit.places())
        .and_then(|shifted| i64::try_from(shifted.nearest()).ok())
        .and_then(|micros| micros.checked_sub(SECONDS_1970_TO_2000 * MICROS_PER_SECOND))
        .filter(|micros| (MICROS_MIN..MICROS_END).contains(micros))
        .ok_or_else(|| out_of_range(&format!("PostgreSQL has no time that many {} from 1970", unit.name())))
}

/// A Kafka timestamp, in milliseconds since 1970, to microseconds since 2000; `None` beyond PostgreSQL's range.
pub fn micros_of_millis(millis: i64) -> Option<i64> {
    let micros = millis.checked_mul(1000)?.checked_sub(SECONDS_1970_TO_2000 * MICROS_PER_SECOND)?;
    (MICROS_MIN..MICROS_END).contains(&micros).then_some(micros)
}

/// RFC 3339 with its offset, to microseconds since 2000.
pub(super) fn parse_timestamptz(text: &str) -> Result<i64, Wrong> {
    match date_time(text.as_bytes())? {
        (micros, Some(offset_seconds)) => Ok(micros - i64::from(offset_seconds) * MICROS_PER_SECOND),
        (_, None) => Err(wrong("the time has no offset from UTC: end it with Z or +hh:mm")),
    }
}

/// The same without an offset, or with UTC's.
pub(super) fn parse_timestamp(text: &str) -> Result<i64, Wrong> {
    match date_time(text.as_bytes())? {
        (micros, None | Some(0)) => Ok(micros),
        (_, Some(_)) => {
            Err(wrong("a column without time zone takes UTC only: send Z, or make it timestamptz"))
        }
    }
}

/// Days since 2000.
pub(super) fn parse_date(text: &str) -> Result<i32, Wrong> {
    match text.as_bytes().split_at_checked(10) {
        Some((day, [])) => days(day.try_into().expect("ten bytes")),
        _ => Err(wrong("takes a date like 2024-05-01")),
    }
}

/// Microseconds since midnight.
pub(super) fn parse_time(text: &str) -> Result<i64, Wrong> {
    match clock(text.as_bytes())? {
        (micros, []) => Ok(micros),
        _ => Err(wrong("takes a time like 12:30:00.5, without an offset")),
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction][offset]`; `t`, `z` and a space for the `T` are RFC 3339's own liberties. The offset
/// is in seconds, not yet taken off.
fn date_time(text: &[u8]) -> Result<(i64, Option<i32>), Wrong> {
    let Some(([day @ .., b'T' | b't' | b' '], rest)) = text.split_at_checked(11) else {
        return Err(wrong(SHAPE));
    };
    let days = days(day.try_into().expect("eleven bytes less one"))?;
    let (micros, rest) = clock(rest)?;
    let offset = match *rest {
        [] => None,
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (two(h1, h2)?, two(m1, m2)?);
            // The server refuses more, too; the world's clocks stay within 14 hours.
            if hours > 15 || minutes > 59 {
                return Err(wrong("the offset from UTC is beyond 15:59"));
            }
            let seconds = (hours * 60 + minutes) * 60;
            Some(if sign == b'-' { -seconds } else { seconds })
        }
        _ => return Err(wrong(SHAPE)),
    };
    Ok((i64::from(days) * MICROS_PER_DAY + micros, offset))
}

const SHAPE: &str = "takes a time like 2024-05-01T12:30:00.123Z (RFC 3339)";

/// Days since 2000 of a date that exists. The year 0000 does not: RFC 3339 has it, PostgreSQL's calendar has not.
fn days(text: &[u8; 10]) -> Result<i32, Wrong> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text else { return Err(wrong(SHAPE)) };
    let year = two(y1, y2)? * 100 + two(y3, y4)?;
    let (month, day) = (two(m1, m2)?, two(d1, d2)?);
    if year == 0 || !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(wrong("there is no such date"));
    }
    Ok(days_since_2000(year, month, day))
}

fn days_in_month(year: i32, month: i32) -> i32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Years are counted from March, so that the day that comes and goes is the last one of the year.
fn days_since_2000(year: i32, month: i32, day: i32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days_since_march_0000 = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    const MARCH_0000_TO_1970: i32 = 719_468;
    days_since_march_0000 - MARCH_0000_TO_1970 - DAYS_1970_TO_2000
}

/// Microseconds since midnight, and what follows the time. `:60` is a leap second and becomes the second after it, as
/// the server reads it; 24:00:00 is refused, as RFC 3339 does.
fn clock(text: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = text else { return Err(wrong(SHAPE)) };
    let (hour, minute, second) = (two(*h1, *h2)?, two(*m1, *m2)?, two(*s1, *s2)?);
    if hour > 23 || minute > 59 || second > 60 {
        return Err(wrong("there is no such time of day"));
    }
    let (fraction, rest) = fraction(rest)?;
    let seconds = i64::from((hour * 60 + minute) * 60 + second);
    Ok((seconds * MICROS_PER_SECOND + fraction, rest))
}

/// Any number of digits after a point. Those below a microsecond round to the nearest, ties to the even one.
fn fraction(text: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    let [b'.', rest @ ..] = text else { return Ok((0, text)) };
    let count = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    if count == 0 {
        return Err(wrong(SHAPE));
    }
    let (digits, rest) = rest.split_at(count);
    let mut micros = 0;
    for place in 0..6 {
        micros = micros * 10 + digits.get(place).map_or(0, |c| i64::from(c - b'0'));
    }
    if let Some((seventh, below)) = digits.get(6..).and_then(<[u8]>::split_first) {
        let up = match seventh {
            b'5' if below.iter().all(|c| *c == b'0') => micros % 2 == 1,
            digit => *digit >= b'5',
        };
        micros += i64::from(up);
    }
    Ok((micros, rest))
}

fn two(tens: u8, ones: u8) -> Result<i32, Wrong> {
    if tens.is_ascii_digit() && ones.is_ascii_digit() {
        Ok(i32::from(tens - b'0') * 10 + i32::from(ones - b'0'))
    } else {
        Err(wrong(SHAPE))
    }
}

fn wrong(why: &str) -> Wrong {
    Wrong::new(Reason::InvalidTime, why)
}
