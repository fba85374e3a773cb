//! Dates and times in ISO 8601: by hand, because the shape is nearly fixed and every record has at least one. RFC 3339 is what
//! most of them are, and is looked for first.
//! Nothing here depends on a clock, a locale, a time zone or a session setting: "now" and "01/02/2023" are refused.

use jiff::tz::TimeZone;

use super::decimal::Decimal;
use super::formatted;
use super::read::Reading;
use super::wrong::{Written, Wrong, invalid_time, out_of_range};
use crate::client::binary::{MICROS_PER_DAY, micros_since_2000};
use crate::decode::reject::Reason;
use crate::model::notation::{TimeForm, Years};
use crate::model::types::Unit;

const MICROS_PER_SECOND: i64 = 1_000_000;
const DAYS_1970_TO_2000: i32 = 10_957;

/// Fractions below a microsecond are rounded to the nearest, ties to the even one, as the server does.
pub(super) fn from_epoch(number: Decimal<'_>, unit: Unit) -> Result<i64, Wrong> {
    number
        .shifted(unit.places().expect("days are for dates only, which compiling a model sees to"))
        .and_then(|shifted| micros_since_2000(shifted.nearest()))
        .ok_or_else(|| out_of_range(&format!("PostgreSQL has no time that many {} from 1970", unit.name())))
}

/// Microseconds since midnight. The end of a day is a time of day, as it is for the server.
pub(super) fn from_midnight(number: Decimal<'_>, unit: Unit) -> Result<i64, Wrong> {
    number
        .shifted(unit.places().expect("days are for dates only, which compiling a model sees to"))
        .and_then(|shifted| i64::try_from(shifted.nearest()).ok())
        .filter(|micros| (0..=MICROS_PER_DAY).contains(micros))
        .ok_or_else(|| out_of_range(&format!("a day has no time that many {} from midnight", unit.name())))
}

/// Days since 1970 to days since 2000, within the server's range: its day zero, and the year 5874897.
pub(super) fn days_from_epoch(number: Decimal<'_>) -> Result<i32, Wrong> {
    const DAYS: std::ops::Range<i128> = -2_451_545..2_145_031_949;
    let beyond = || out_of_range("PostgreSQL has no date that many days from 1970");
    let days = number.shifted(0).ok_or_else(beyond)?;
    if !days.is_exact() {
        return Err(Wrong::new(Reason::WrongType, "takes a whole number of days"));
    }
    let days = days.whole() - i128::from(DAYS_1970_TO_2000);
    if DAYS.contains(&days) { Ok(days as i32) } else { Err(beyond()) }
}

/// Refuses a time, in microseconds since 2000, on a day that the column's model takes for a mistake.
#[inline]
pub(super) fn check_micros(micros: i64, reading: &Reading) -> Written {
    match &reading.days {
        Some(_) => check_day(micros.div_euclid(MICROS_PER_DAY), reading),
        None => Ok(()),
    }
}

/// The same for a day, counted from 2000.
pub(super) fn check_day(day: i64, reading: &Reading) -> Written {
    match &reading.days {
        Some(days) if !days.contains(&day) => Err(implausible(day, reading)),
        _ => Ok(()),
    }
}

#[cold]
fn implausible(day: i64, reading: &Reading) -> Wrong {
    let Years { first, last } = reading.notation.years.expect("the days were counted from these");
    let hint = if matches!(reading.notation.time, TimeForm::Number(_)) { "is the unit right? " } else { "" };
    let why = format!(
        "this would be in the year {}, and the column takes {first} to {last}: {hint}the setting `years` widens it",
        Years::of_day(day)
    );
    Wrong::new(Reason::ImplausibleTime, why)
}

/// To microseconds since 2000. A time without an offset is what the clocks of the zone showed.
#[inline]
pub(super) fn parse_timestamptz(text: &str, zone: Option<&TimeZone>) -> Result<i64, Wrong> {
    if let Some(micros) = usual(text.as_bytes()) {
        return Ok(micros);
    }
    match (date_time(text.as_bytes())?, zone) {
        ((micros, Some(offset_seconds)), _) => Ok(micros - i64::from(offset_seconds) * MICROS_PER_SECOND),
        ((micros, None), Some(zone)) => formatted::moment_in(zone, micros),
        ((_, None), None) => Err(invalid_time(
            "the time has no offset from UTC: end it with Z or +hh:mm, or say `zone` in the model",
        )),
    }
}

/// A time as most programs write it, `YYYY-MM-DDTHH:MM:SS[.fraction]Z` with up to six digits of a fraction, all of it looked at once.
/// `None` for everything else, also for what is no time: [`date_time`] knows all forms and says what is wrong.
#[inline]
fn usual(text: &[u8]) -> Option<i64> {
    const FORM: [u8; 19] = *b"0000-00-00T00:00:00";
    let (head, [fraction @ .., b'Z']) = text.split_first_chunk::<19>()? else { return None };
    let mut digits = [0; 19];
    let mut is_other = false;
    for (at, form) in FORM.into_iter().enumerate() {
        digits[at] = head[at] ^ form;
        is_other |= digits[at] > if form == b'0' { 9 } else { 0 };
    }
    let two = |at: usize| i32::from(digits[at]) * 10 + i32::from(digits[at + 1]);
    let (year, month, day) = (two(0) * 100 + two(2), two(5), two(8));
    let (hour, minute, second) = (two(11), two(14), two(17));
    is_other |= year == 0 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59;
    if is_other || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let micros = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) => {
            (0..6).fold(0, |micros, at| micros * 10 + digits.get(at).map_or(0, |c| i64::from(c - b'0')))
        }
        _ => return None,
    };
    let seconds = i64::from((hour * 60 + minute) * 60 + second);
    let days = i64::from(days_since_2000(year, month, day));
    Some(days * MICROS_PER_DAY + seconds * MICROS_PER_SECOND + micros)
}

/// The same without an offset, or with UTC's.
pub(super) fn parse_timestamp(text: &str) -> Result<i64, Wrong> {
    match date_time(text.as_bytes())? {
        (micros, None | Some(0)) => Ok(micros),
        (_, Some(_)) => {
            Err(invalid_time("a column without time zone takes UTC only: send Z, or make it timestamptz"))
        }
    }
}

/// Days since 2000.
pub(super) fn parse_date(text: &str) -> Result<i32, Wrong> {
    let text = text.as_bytes();
    match (text.first_chunk(), text.len()) {
        (Some(day), 10) => days(day),
        (_, 8) => basic_days(text.first_chunk().expect("eight bytes")),
        _ => Err(invalid_time("takes a date like 2024-05-01")),
    }
}

/// Microseconds since midnight.
pub(super) fn parse_time(text: &str) -> Result<i64, Wrong> {
    match clock(text.as_bytes())? {
        // Half a leap second past midnight is on no day.
        (micros, []) if micros <= MICROS_PER_DAY => Ok(micros),
        _ => Err(invalid_time("takes a time like 12:30:00.5, without an offset")),
    }
}

/// `YYYY-MM-DDTHH:MM[:SS[.fraction]][offset]`, or ISO 8601's basic form of it, `YYYYMMDDTHHMM[SS[.fraction]][offset]`; `t`, `z`
/// and a space for the `T` are RFC 3339's own liberties. The offset is in seconds, not yet taken off.
#[inline]
fn date_time(text: &[u8]) -> Result<(i64, Option<i32>), Wrong> {
    let (days, (micros, rest)) = match text.split_at_checked(11) {
        Some(([day @ .., b'T' | b't' | b' '], rest)) => {
            (days(day.try_into().expect("eleven bytes less one"))?, clock(rest)?)
        }
        _ => basic_date_time(text)?,
    };
    Ok((i64::from(days) * MICROS_PER_DAY + micros, offset(rest)?))
}

/// Day, time, and what follows the time. Without the hyphens there is no telling whether a blank means a time.
#[cold]
fn basic_date_time(text: &[u8]) -> Result<(i32, (i64, &[u8])), Wrong> {
    match text.split_at_checked(9) {
        Some(([day @ .., b'T'], rest)) => {
            Ok((basic_days(day.try_into().expect("nine bytes less one"))?, basic_clock(rest)?))
        }
        _ => Err(invalid_time(SHAPE)),
    }
}

/// Seconds ahead of UTC; `None` for no offset. The forms are RFC 3339's, ISO 8601's others, and the one in which PostgreSQL
/// writes the local times of long ago.
#[inline]
fn offset(text: &[u8]) -> Result<Option<i32>, Wrong> {
    let (sign, hours, minutes, seconds) = match *text {
        [] => return Ok(None),
        [b'Z' | b'z'] => return Ok(Some(0)),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] | [sign @ (b'+' | b'-'), h1, h2, m1, m2] => {
            (sign, two(h1, h2)?, two(m1, m2)?, 0)
        }
        [sign @ (b'+' | b'-'), h1, h2] => (sign, two(h1, h2)?, 0, 0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2, b':', s1, s2] => {
            (sign, two(h1, h2)?, two(m1, m2)?, two(s1, s2)?)
        }
        _ => return Err(invalid_time(SHAPE)),
    };
    // The server refuses more, too; the world's clocks stay within 14 hours.
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(invalid_time("the offset from UTC is beyond 15:59"));
    }
    let ahead = (hours * 60 + minutes) * 60 + seconds;
    Ok(Some(if sign == b'-' { -ahead } else { ahead }))
}

const SHAPE: &str = "takes a time like 2024-05-01T12:30:00.123Z (ISO 8601)";

/// `YYYYMMDD`, as [`days`].
fn basic_days(text: &[u8; 8]) -> Result<i32, Wrong> {
    let [y1, y2, y3, y4, m1, m2, d1, d2] = *text;
    days(&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2])
}

/// Days since 2000 of a date that exists. The year 0000 does not: RFC 3339 has it, PostgreSQL's calendar has not.
#[inline]
fn days(text: &[u8; 10]) -> Result<i32, Wrong> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text else { return Err(invalid_time(SHAPE)) };
    let year = two(y1, y2)? * 100 + two(y3, y4)?;
    let (month, day) = (two(m1, m2)?, two(d1, d2)?);
    if year == 0 || !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(invalid_time("there is no such date"));
    }
    Ok(days_since_2000(year, month, day))
}

#[inline]
fn days_in_month(year: i32, month: i32) -> i32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Years are counted from March, so that the day that comes and goes is the last one of the year.
#[inline]
fn days_since_2000(year: i32, month: i32, day: i32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days_since_march_0000 = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    const MARCH_0000_TO_1970: i32 = 719_468;
    days_since_march_0000 - MARCH_0000_TO_1970 - DAYS_1970_TO_2000
}

/// Microseconds since midnight, and what follows the time. Seconds are left out by writers that do not like zeros.
#[inline]
fn clock(text: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    match text {
        [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] => {
            let (fraction, rest) = fraction(rest)?;
            Ok((time_of_day([*h1, *h2, *m1, *m2, *s1, *s2])? + fraction, rest))
        }
        [h1, h2, b':', m1, m2, rest @ ..] => Ok((time_of_day([*h1, *h2, *m1, *m2, b'0', b'0'])?, rest)),
        _ => Err(invalid_time(SHAPE)),
    }
}

/// `HHMMSS` or `HHMM`, as [`clock`].
fn basic_clock(text: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    let digits = text.iter().take_while(|c| c.is_ascii_digit()).count();
    match (digits, text) {
        (6, [h1, h2, m1, m2, s1, s2, rest @ ..]) => {
            let (fraction, rest) = fraction(rest)?;
            Ok((time_of_day([*h1, *h2, *m1, *m2, *s1, *s2])? + fraction, rest))
        }
        (4, [h1, h2, m1, m2, rest @ ..]) => Ok((time_of_day([*h1, *h2, *m1, *m2, b'0', b'0'])?, rest)),
        _ => Err(invalid_time(SHAPE)),
    }
}

/// A second `60` is a leap second and becomes the second after it, as the server reads it (which refuses its fractions,
/// though; here they are kept). 24:00:00 is refused, as RFC 3339 does.
#[inline]
fn time_of_day([h1, h2, m1, m2, s1, s2]: [u8; 6]) -> Result<i64, Wrong> {
    let (hour, minute, second) = (two(h1, h2)?, two(m1, m2)?, two(s1, s2)?);
    if hour > 23 || minute > 59 || second > 60 {
        return Err(invalid_time("there is no such time of day"));
    }
    Ok(i64::from((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND)
}

/// Any number of digits after a point or comma. Those below a microsecond round to the nearest, ties to the even one.
#[inline]
fn fraction(text: &[u8]) -> Result<(i64, &[u8]), Wrong> {
    let [b'.' | b',', rest @ ..] = text else { return Ok((0, text)) };
    let count = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    if count == 0 {
        return Err(invalid_time(SHAPE));
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

#[inline]
fn two(tens: u8, ones: u8) -> Result<i32, Wrong> {
    if tens.is_ascii_digit() && ones.is_ascii_digit() {
        Ok(i32::from(tens - b'0') * 10 + i32::from(ones - b'0'))
    } else {
        Err(invalid_time(SHAPE))
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use jiff::{SignedDuration, Timestamp, ToSpan, civil};
    use proptest::prelude::*;

    use super::*;
    use crate::client::binary::{MICROS, SECONDS_1970_TO_2000};

    /// Microseconds since 2000 as somebody else counts them.
    fn micros(text: &str) -> i64 {
        let nanos = text.parse::<Timestamp>().unwrap().as_nanosecond();
        i64::try_from(nanos / 1000).unwrap() - SECONDS_1970_TO_2000 * MICROS_PER_SECOND
    }

    proptest! {
        /// What the quick way takes is what the other would have made of it, and nothing else goes that way.
        #[test]
        fn the_usual_form_is_read_as_all_forms_are(
            text in "[0-9]{1,4}-[0-3][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,8})?(Z|z|\\+00:00|/)"
        ) {
            if let Some(found) = usual(text.as_bytes()) {
                prop_assert_eq!(date_time(text.as_bytes()), Ok((found, Some(0))), "{}", text);
            }
        }
    }

    #[test]
    fn the_usual_form_goes_the_quick_way() {
        for (text, is_usual) in [
            ("2026-01-01T00:00:00Z", true),
            ("2026-12-31T23:59:59.9Z", true),
            ("2024-02-29T00:00:00.123456Z", true),
            ("2023-02-29T00:00:00Z", false),
            ("0000-01-01T00:00:00Z", false),
            ("2026-01-01T00:00:60Z", false),
            ("2026-01-01T24:00:00Z", false),
            ("2026-01-01T00:00:00.1234567Z", false),
            ("2026-01-01T00:00:00.Z", false),
            ("2026-01-01T00:00:00.1:Z", false),
            ("2026-01-01 00:00:00Z", false),
            ("2026-01-01T00:00:00", false),
            ("2026:01-01T00:00:00Z", false),
            ("2026-01-0:T00:00:00Z", false),
        ] {
            assert_eq!(usual(text.as_bytes()).is_some(), is_usual, "{text}");
        }
    }

    #[test]
    fn times_with_an_offset() {
        fn refused(text: &str) {
            let found = parse_timestamptz(text, None);
            assert_eq!(
                found.as_ref().map_err(|wrong| wrong.reason),
                Err(Reason::InvalidTime),
                "{text:?}: {found:?}"
            );
        }
        fn check(text: &str, expected: &str) {
            assert_eq!(parse_timestamptz(text, None), Ok(micros(expected)), "{text:?}");
        }
        for text in
            ["", "now", "today", "infinity", "-infinity", "epoch", "01/02/2023", "2024-05-01", "12:30:00Z"]
        {
            refused(text);
        }
        refused("2024-05-01T12:30:00"); // no offset
        refused("2024-05-01T12:30:00 Z");
        refused(" 2024-05-01T12:30:00Z");
        refused("2024-05-01T12:30:00Z ");
        refused("2024-05-01T12:30:00Z\0");
        refused("2024-05-01  12:30:00Z");
        refused("2024-05-01_12:30:00Z");
        refused("2024-05-01T12:30:00.Z");
        refused("2024-05-01T12:30");
        refused("2024-05-01T12:30:00,123");
        refused("2024-05-01T12Z"); // an hour is no time
        refused("2024-05-01T12:30.5Z");
        refused("2024-05-01T12:30:0Z");
        refused("2024-05-01T12:3Z");
        refused("2024-05-01T12:30:00+2");
        refused("2024-05-01T12:30:00+020");
        refused("2024-05-01T12:30:00+02:0");
        refused("2024-05-01T12:30:00+02:");
        refused("2024-05-01T12:30:00+0200:00");
        refused("2024-05-01T12:30:00+02:00:60");
        refused("2024-05-01T12:30:00+1600");
        refused("2024-05-01T12:30:00+16");
        refused("2024-05-01T12:30:00+0160");
        refused("2024-05-01 12:30:00 +0000");
        refused("2024-05-01 12:30:00 UTC");
        refused("2024-05-01 12:30:00+00 BC");
        refused("2024-05-01T12:30:00 Europe/Berlin");
        refused("20240501T123000"); // no offset
        refused("20240501 123000Z");
        refused("20240501T12:30:00Z");
        refused("2024-05-01T123000Z");
        refused("20240501T12300Z");
        refused("20240501T12Z");
        refused("20240501T1230001Z");
        refused("20240231T123000Z");
        refused("240501T123000Z");
        refused("20240501123000Z");
        refused("2024-05-01T12:30:00Z[UTC]");
        refused("2024-5-1T12:30:00Z");
        refused("+2024-05-01T12:30:00Z");
        refused("12024-05-01T12:30:00Z");
        refused("2024-W18-3T12:30:00Z");
        refused("2024-122T12:30:00Z");
        refused("2024-05-01T1２:30:00Z"); // a full-width digit
        refused("0000-01-01T00:00:00Z");
        refused("2024-00-01T00:00:00Z");
        refused("2024-13-01T00:00:00Z");
        refused("2024-01-00T00:00:00Z");
        refused("2024-01-32T00:00:00Z");
        refused("2024-04-31T00:00:00Z");
        refused("2024-02-30T00:00:00Z");
        refused("2023-02-29T00:00:00Z");
        refused("1900-02-29T00:00:00Z");
        refused("2024-05-01T24:00:00Z");
        refused("2024-05-01T23:60:00Z");
        refused("2024-05-01T23:59:61Z");
        refused("2024-05-01T12:30:00+16:00");
        refused("2024-05-01T12:30:00-16:00");
        refused("2024-05-01T12:30:00+01:60");
        refused("2024-05-01T12:30:00±01:00");

        check("2024-05-01T12:30:00Z", "2024-05-01T12:30:00Z");
        check("2024-05-01t12:30:00z", "2024-05-01T12:30:00Z");
        check("2024-05-01 12:30:00Z", "2024-05-01T12:30:00Z");
        check("2024-05-01T12:30:00-00:00", "2024-05-01T12:30:00Z");
        check("2024-05-01T12:30:00.000+0000", "2024-05-01T12:30:00Z");
        check("2024-05-01T12:30:00+0200", "2024-05-01T10:30:00Z");
        check("2024-05-01T12:30:00-0330", "2024-05-01T16:00:00Z");
        check("2024-05-01T12:30:00+08", "2024-05-01T04:30:00Z");
        check("2024-05-01T12:30:00-08", "2024-05-01T20:30:00Z");
        check("2024-05-01T12:30Z", "2024-05-01T12:30:00Z");
        check("2024-05-01T12:30+02:00", "2024-05-01T10:30:00Z");
        check("2024-05-01T12:30-0200", "2024-05-01T14:30:00Z");
        check("2024-05-01T12:30:00,5Z", "2024-05-01T12:30:00.5Z");
        check("2024-05-01 12:30:00.123+00", "2024-05-01T12:30:00.123Z");
        check("2024-05-01 12:30:00.123456+05:30", "2024-05-01T07:00:00.123456Z");
        check("1890-01-01 00:00:00+00:53:28", "1889-12-31T23:06:32Z");
        check("1890-01-01 00:00:00-00:53:28", "1890-01-01T00:53:28Z");
        check("20240501T123000Z", "2024-05-01T12:30:00Z");
        check("20240501T123000.25+0200", "2024-05-01T10:30:00.25Z");
        check("20240501T1230-08", "2024-05-01T20:30:00Z");
        check("2024-05-01T12:30:00+02:00", "2024-05-01T10:30:00Z");
        check("2024-05-01T12:30:00-03:30", "2024-05-01T16:00:00Z");
        check("2024-05-01T12:30:00+15:59", "2024-04-30T20:31:00Z");
        check("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z");
        check("2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z");
        check("0001-01-01T00:00:00+15:59", "0000-12-31T08:01:00Z");
        check("9999-12-30T11:59:59.999999-10:00", "9999-12-30T21:59:59.999999Z");
        check("1999-12-31T23:59:59.5Z", "1999-12-31T23:59:59.5Z");
        check("2024-05-01T12:30:00.1Z", "2024-05-01T12:30:00.100000Z");
        check("2024-05-01T12:30:00.123456789Z", "2024-05-01T12:30:00.123457Z");
        check("2024-05-01T12:30:00.1234565Z", "2024-05-01T12:30:00.123456Z");
        check("2024-05-01T12:30:00.1234575Z", "2024-05-01T12:30:00.123458Z");
        check("2024-05-01T12:30:00.12345650000000000001Z", "2024-05-01T12:30:00.123457Z");
        check("2024-12-31T23:59:59.9999999Z", "2025-01-01T00:00:00Z");
        check("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z");
        check("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.5Z");
    }

    #[test]
    fn times_without_an_offset() {
        fn refused(text: &str) {
            assert_eq!(
                parse_timestamp(text).map_err(|wrong| wrong.reason),
                Err(Reason::InvalidTime),
                "{text:?}"
            );
        }
        refused("2024-05-01T12:30:00+02:00");
        refused("2024-05-01T12:30:00-00:01");
        refused("now");
        refused("2024-05-01T12:30:00+02");
        refused("2024-05-01T12:30+0001");
        for text in [
            "2024-05-01T12:30:00",
            "2024-05-01 12:30:00Z",
            "2024-05-01T12:30:00+00:00",
            "2024-05-01T12:30:00,000+0000",
            "2024-05-01T12:30",
            "2024-05-01 12:30:00+00",
            "20240501T1230",
        ] {
            assert_eq!(parse_timestamp(text), Ok(micros("2024-05-01T12:30:00Z")), "{text:?}");
        }
    }

    #[test]
    fn dates_and_times_of_day() {
        for text in [
            "",
            "2024-05-01T00:00:00Z",
            "2024-02-30",
            "2024-5-1",
            "0000-01-01",
            "today",
            "05/01/2024",
            "2024-05-1é",
            "202405011",
            "2024051",
            "20240230",
            "01052024",
            "2024051é",
        ] {
            assert!(parse_date(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_date("2000-01-01"), Ok(0));
        assert_eq!(parse_date("1999-12-31"), Ok(-1));
        assert_eq!(parse_date("0001-01-01"), Ok(-730_119));
        assert_eq!(parse_date("20000102"), Ok(1));
        for text in [
            "",
            "12",
            "1230",
            "123000",
            "12:30.5",
            "24:00",
            "24:00:00",
            "12:30:00Z",
            "12:30:00+02:00",
            "noon",
            "12:30:61",
            "23:59:60.5",
            "-1:30:00",
        ] {
            assert!(parse_time(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_time("00:00:00"), Ok(0));
        assert_eq!(parse_time("12:30"), Ok(45_000 * MICROS_PER_SECOND));
        assert_eq!(parse_time("00:00:01,5"), Ok(1_500_000));
        assert_eq!(parse_time("23:59:59.999999"), Ok(MICROS_PER_DAY - 1));
        assert_eq!(parse_time("23:59:59.9999999"), Ok(MICROS_PER_DAY)); // the server's 24:00:00
        assert_eq!(parse_time("23:59:60"), Ok(MICROS_PER_DAY));
    }

    #[test]
    fn numbers_count_from_1970() {
        fn check(text: &str, unit: Unit, expected: Option<&str>) {
            let found = from_epoch(Decimal::parse(text).unwrap(), unit).ok();
            assert_eq!(found, expected.map(micros), "{text} {}", unit.name());
        }
        check("1e30", Unit::Seconds, None);
        check("1e400", Unit::Nanos, None);
        check("1700000000000000000", Unit::Seconds, None);
        check("9224318016000", Unit::Seconds, None); // the year 294277
        check("-210866803201", Unit::Seconds, None); // before PostgreSQL's day zero
        check("0", Unit::Seconds, Some("1970-01-01T00:00:00Z"));
        check("-1", Unit::Millis, Some("1969-12-31T23:59:59.999Z"));
        check("1700000000", Unit::Seconds, Some("2023-11-14T22:13:20Z"));
        check("1.7e9", Unit::Seconds, Some("2023-11-14T22:13:20Z"));
        check("1700000000.123", Unit::Seconds, Some("2023-11-14T22:13:20.123Z"));
        check("1700000000123", Unit::Millis, Some("2023-11-14T22:13:20.123Z"));
        check("1700000000123456", Unit::Micros, Some("2023-11-14T22:13:20.123456Z"));
        check("1700000000123456789", Unit::Nanos, Some("2023-11-14T22:13:20.123457Z"));
        check("1700000000123456500", Unit::Nanos, Some("2023-11-14T22:13:20.123456Z"));
        check("-500", Unit::Nanos, Some("1970-01-01T00:00:00Z"));
        check("-501", Unit::Nanos, Some("1969-12-31T23:59:59.999999Z"));
        assert_eq!(
            from_epoch(Decimal::parse("9224318015999").unwrap(), Unit::Seconds),
            Ok(MICROS.end - MICROS_PER_SECOND)
        );
        assert_eq!(from_epoch(Decimal::parse("-210866803200").unwrap(), Unit::Seconds), Ok(MICROS.start));
    }

    #[test]
    fn numbers_count_from_midnight_and_days_from_1970() {
        let time = |text: &str, unit| from_midnight(Decimal::parse(text).unwrap(), unit).ok();
        assert_eq!(time("45000", Unit::Seconds), Some(45_000_000_000));
        assert_eq!(time("45000000", Unit::Millis), Some(45_000_000_000));
        assert_eq!(time("45000000001", Unit::Micros), Some(45_000_000_001));
        assert_eq!(time("45000000000500", Unit::Nanos), Some(45_000_000_000));
        assert_eq!(time("0", Unit::Micros), Some(0));
        assert_eq!(time("86400", Unit::Seconds), Some(MICROS_PER_DAY));
        for beyond in ["-1", "86401", "1e30", "1e400"] {
            assert_eq!(time(beyond, Unit::Seconds), None, "{beyond}");
        }
        let date = |text: &str| days_from_epoch(Decimal::parse(text).unwrap()).map_err(|wrong| wrong.reason);
        assert_eq!(date("10957"), Ok(0));
        assert_eq!(date("0"), Ok(-DAYS_1970_TO_2000));
        assert_eq!(date("-1"), Ok(-DAYS_1970_TO_2000 - 1));
        assert_eq!(date("1.9844e4"), Ok(19_844 - DAYS_1970_TO_2000));
        assert_eq!(date("2145042905"), Ok(2_145_031_948));
        assert_eq!(date("1.5"), Err(Reason::WrongType));
        for beyond in ["2145042906", "-2440589", "1e30", "1e400"] {
            assert_eq!(date(beyond), Err(Reason::OutOfRange), "{beyond}");
        }
    }

    /// ISO 8601's basic form of the same time.
    fn written_without_punctuation(text: &str) -> String {
        text.char_indices().filter(|(at, c)| *c != ':' && (*c != '-' || *at > 10)).map(|(_, c)| c).collect()
    }

    proptest! {
        #[test]
        fn every_time_reads_as_jiff_reads_it(
            seconds in -62_135_510_400i64..253_402_207_200, // the years 1 to 9999, a day from each end
            nanos in 0i32..1_000_000_000,
            digits in 0usize..=9,
            offset_minutes in -959i64..=959,
        ) {
            let unit = 10i32.pow(9 - digits as u32);
            let nanos = nanos / unit * unit;
            let at = Timestamp::new(seconds, nanos).unwrap();
            let local = TimeZone::UTC.to_datetime(at) + offset_minutes.minutes();
            let sign = if offset_minutes < 0 { '-' } else { '+' };
            let (hours, minutes) = (offset_minutes.abs() / 60, offset_minutes.abs() % 60);
            let text = format!("{local:.digits$}{sign}{hours:02}:{minutes:02}");
            let rounded = SignedDuration::new(seconds, nanos);
            let half_even = jiff::SignedDurationRound::new().smallest(jiff::Unit::Microsecond).mode(jiff::RoundMode::HalfEven);
            let expected = rounded.round(half_even).unwrap().as_micros() as i64;
            let expected = Ok(expected - SECONDS_1970_TO_2000 * MICROS_PER_SECOND);
            for text in [text.clone(), text.replace('.', ","), written_without_punctuation(&text)] {
                prop_assert_eq!(parse_timestamptz(&text, None), expected.clone(), "{}", text);
            }
        }

        #[test]
        fn every_date_counts_as_jiff_counts_it(year in 1i16..=9999, month in 0i8..=13, day in 0i8..=32) {
            let expected = civil::Date::new(year, month, day)
                .ok()
                .map(|date| (date - civil::date(2000, 1, 1)).get_days());
            prop_assert_eq!(parse_date(&format!("{year:04}-{month:02}-{day:02}")).ok(), expected);
        }

        #[test]
        fn no_text_panics(text in "[0-9TtZz:. +-]{0,40}|\\PC*") {
            for parse in [parse_timestamp, parse_time] {
                parse(&text).ok();
            }
            parse_timestamptz(&text, None).ok();
            parse_timestamptz(&text, Some(&TimeZone::get("Europe/Berlin").unwrap())).ok();
            parse_date(&text).ok();
        }
    }
}
