//! Times that ISO 8601 does not say: in a format of the column's own, or by the clocks of a time zone. Both are jiff's work, and
//! neither depends on the zone or the language of the machine.

use jiff::SignedDuration;
use jiff::civil::{DateTime, Time, date};
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::wrong::{Wrong, invalid_time, out_of_range};
use crate::client::binary::{MICROS_PER_DAY, micros_since_2000};
use crate::decode::reject::excerpt;
use crate::model::notation::{Format, Local};

/// Microseconds since 2000, as all below but for those of a day.
pub(super) fn timestamptz(text: &str, format: &Format, zone: Option<&TimeZone>) -> Result<i64, Wrong> {
    let local = read(text, format)?;
    match (local.instant(), zone, local.date_time()) {
        (Some(instant), ..) => since_2000(instant.as_nanosecond()),
        (None, Some(zone), Some(time)) if local.offset().is_none() => moment_in(zone, as_if_utc(time)?),
        _ => Err(invalid_time("there is no such time")),
    }
}

/// As in ISO 8601, an offset may be UTC's and no other.
pub(super) fn timestamp(text: &str, format: &Format) -> Result<i64, Wrong> {
    let local = read(text, format)?;
    if local.offset().is_some_and(|offset| offset.seconds() != 0) {
        return Err(invalid_time("a column without time zone takes UTC only: make it timestamptz"));
    }
    as_if_utc(local.date_time().ok_or_else(|| invalid_time("there is no such time"))?)
}

/// Days since 2000.
pub(super) fn date_of(text: &str, format: &Format) -> Result<i32, Wrong> {
    let day = read(text, format)?.date().ok_or_else(|| invalid_time("there is no such date"))?;
    let days = as_if_utc(day.to_datetime(Time::midnight()))?.div_euclid(MICROS_PER_DAY);
    i32::try_from(days).map_err(|_| out_of_range("PostgreSQL has no such date"))
}

/// Microseconds since midnight.
pub(super) fn time_of_day(text: &str, format: &Format) -> Result<i64, Wrong> {
    let time =
        read(text, format)?.time_of_day().ok_or_else(|| invalid_time("there is no such time of day"))?;
    let since_midnight = date(2000, 1, 1).to_datetime(time);
    as_if_utc(since_midnight)
}

/// When the clocks of the zone showed this time, which is given as if it were UTC.
pub(super) fn moment_in(zone: &TimeZone, micros: i64) -> Result<i64, Wrong> {
    let local = date(2000, 1, 1)
        .at(0, 0, 0, 0)
        .checked_add(SignedDuration::from_micros(micros))
        .map_err(|_| out_of_range("no time zone has rules for so far from now"))?;
    let name = zone.iana_name().unwrap_or("the zone");
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => Ok(micros - i64::from(offset.seconds()) * 1_000_000),
        AmbiguousOffset::Gap { .. } => Err(invalid_time(&format!(
            "the clocks of {name} never showed this time: they were set forward over it; send the offset from UTC"
        ))),
        AmbiguousOffset::Fold { .. } => Err(invalid_time(&format!(
            "the clocks of {name} showed this time twice: they were set back over it; send the offset from UTC"
        ))),
    }
}

fn read(text: &str, format: &Format) -> Result<Local, Wrong> {
    // What jiff says may quote the text.
    let unlike =
        |why: String| invalid_time(&format!("is not in the format {:?}: {}", format.text(), excerpt(&why)));
    format.read(text).map_err(unlike)
}

fn as_if_utc(time: DateTime) -> Result<i64, Wrong> {
    let since_1970 = time.duration_since(DateTime::from(date(1970, 1, 1)));
    since_2000(since_1970.as_nanos())
}

/// Nanoseconds since 1970, rounded as everywhere: to the nearest microsecond, an exact half to the even one.
fn since_2000(nanos: i128) -> Result<i64, Wrong> {
    let (micros, rest) = (nanos.div_euclid(1000), nanos.rem_euclid(1000));
    let up = rest > 500 || (rest == 500 && micros % 2 != 0);
    micros_since_2000(micros + i128::from(up)).ok_or_else(|| out_of_range("PostgreSQL has no such time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::value::time::parse_timestamptz;
    use crate::model::types::Type;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn micros(text: &str) -> i64 {
        parse_timestamptz(text, None).unwrap()
    }

    #[test]
    fn a_time_without_an_offset_is_what_the_clocks_showed() {
        fn check(text: &str, expected: Result<&str, &str>) {
            let found = parse_timestamptz(text, Some(&berlin()));
            match (&found, expected) {
                (Ok(found), Ok(expected)) if *found == micros(expected) => {}
                (Err(found), Err(expected)) if found.why.contains(expected) => {}
                _ => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
        check("2024-05-01T12:30:00", Ok("2024-05-01T10:30:00Z"));
        check("2024-01-01 12:30:00.5", Ok("2024-01-01T11:30:00.5Z"));
        check("20240101T1230", Ok("2024-01-01T11:30:00Z"));
        check("1890-01-01T00:00:00", Ok("1889-12-31T23:06:32Z"));
        check("2016-12-31T23:59:60", Ok("2016-12-31T23:00:00Z"));
        // An offset of its own counts more than the zone.
        check("2024-05-01T12:30:00Z", Ok("2024-05-01T12:30:00Z"));
        check("2024-05-01T12:30:00-05:00", Ok("2024-05-01T17:30:00Z"));
        check("2024-10-27T02:30:00+01:00", Ok("2024-10-27T01:30:00Z"));
        // The last and the first moment that is unambiguous.
        check("2024-03-31T01:59:59.999999", Ok("2024-03-31T00:59:59.999999Z"));
        check("2024-03-31T02:00:00", Err("never showed this time"));
        check("2024-03-31T02:59:59.999999", Err("never showed this time"));
        check("2024-03-31T03:00:00", Ok("2024-03-31T01:00:00Z"));
        check("2024-10-27T01:59:59.999999", Ok("2024-10-26T23:59:59.999999Z"));
        check("2024-10-27T02:00:00", Err("showed this time twice"));
        check("2024-10-27T02:59:59.999999", Err("showed this time twice"));
        check("2024-10-27T03:00:00", Ok("2024-10-27T02:00:00Z"));
        check("2024-13-01T12:30:00", Err("no such date"));
        check("9999-12-31T23:59:60", Err("so far from now"));
    }

    #[test]
    fn a_format_reads_what_it_describes_and_nothing_else() {
        let format = |text: &str, ty: &Type, zone: Option<&TimeZone>| Format::new(text, ty, zone).unwrap();
        let common = format("%d/%b/%Y:%H:%M:%S %z", &Type::Timestamptz, None);
        let at = |text: &str| timestamptz(text, &common, None).map_err(|wrong| wrong.reason.code());
        assert_eq!(at("01/May/2024:14:30:05 +0200"), Ok(micros("2024-05-01T12:30:05Z")));
        assert_eq!(at("01/may/2024:14:30:05 -0330"), Ok(micros("2024-05-01T18:00:05Z")));
        for unlike in [
            "",
            "01/May/2024:14:30:05",
            "2024-05-01T12:30:05Z",
            "31/Apr/2024:14:30:05 +0200",
            "01/Mai/2024:14:30:05 +0200",
            "01/May/2024:14:30:05 +0200 ",
        ] {
            assert_eq!(at(unlike), Err("invalid_time"), "{unlike:?}");
        }
        let us = format("%m/%d/%Y %I:%M %p", &Type::Timestamptz, Some(&berlin()));
        let at = |text: &str| timestamptz(text, &us, Some(&berlin())).map_err(|wrong| wrong.why);
        assert_eq!(at("05/01/2024 02:30 PM"), Ok(micros("2024-05-01T12:30:00Z")));
        assert!(at("10/27/2024 02:30 AM").unwrap_err().contains("twice"));
        let seconds = format("%s", &Type::Timestamptz, None);
        assert_eq!(timestamptz("1700000000", &seconds, None), Ok(micros("2023-11-14T22:13:20Z")));
        let finer = format("%Y%m%d%H%M%S%.f", &Type::Timestamp, None);
        assert_eq!(timestamp("20240501123000.1234565", &finer), Ok(micros("2024-05-01T12:30:00.123456Z")));
        assert_eq!(timestamp("20240501123000.1234575", &finer), Ok(micros("2024-05-01T12:30:00.123458Z")));
        let offset = format("%Y-%m-%d %H:%M:%S %z", &Type::Timestamp, None);
        assert_eq!(timestamp("2024-05-01 12:30:00 +0000", &offset), Ok(micros("2024-05-01T12:30:00Z")));
        assert!(timestamp("2024-05-01 12:30:00 +0100", &offset).is_err());
        let day = format("%d.%m.%Y", &Type::Date, None);
        assert_eq!(date_of("02.01.2000", &day), Ok(1));
        assert_eq!(date_of("31.12.1999", &day), Ok(-1));
        assert!(date_of("31.02.2000", &day).is_err());
        let clock = format("%H.%M", &Type::Time, None);
        assert_eq!(time_of_day("12.30", &clock), Ok(45_000_000_000));
        assert!(time_of_day("25.30", &clock).is_err());
    }

    #[test]
    fn what_a_format_says_of_a_text_is_safe_to_print() {
        let format = Format::new("%Y-%m-%d", &Type::Date, None).unwrap();
        let wrong = date_of("\u{1b}[31m\n2024", &format).unwrap_err();
        assert!(!wrong.why.contains(char::is_control), "{:?}", wrong.why);
        let wrong = date_of(&"9".repeat(100_000), &format).unwrap_err();
        assert!(wrong.why.len() < 300, "{}", wrong.why.len());
    }
}
