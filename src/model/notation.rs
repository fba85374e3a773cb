//! How a field's value is written where the column's type alone does not say it, as the settings of a column decide it.
//! What a text then is, the decoder finds out; only a time in a format of its own is read here, since a format has to be tried
//! before any record comes.

use std::ops::Range;

use jiff::civil::{Date, DateTime, Time, date};
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::{Offset, TimeZone};

use super::types::{Encoding, Type, Unit};

#[derive(Clone, Debug, PartialEq)]
pub struct Notation {
    pub time: TimeForm,
    /// Whose clocks showed a time that has no offset from UTC.
    pub zone: Option<TimeZone>,
    /// A time outside of them is taken for a mistake.
    pub years: Option<Years>,
    pub encoding: Encoding,
    /// A string may hold the number, boolean or JSON value.
    pub from_text: bool,
    pub empty_is_null: bool,
}

/// How a date or time is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TimeForm {
    #[default]
    Iso8601,
    /// Since 1970; since midnight for a time of day.
    Number(Unit),
    Format(Format),
}

/// The years from the first to the last, both included. Those before the year 1 are counted as astronomers do: 0 is 1 BC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Years {
    pub first: i32,
    pub last: i32,
}

/// strftime's description of a time, known to be enough for its column.
#[derive(Clone, Debug, PartialEq)]
pub struct Format(String);

/// What a text in a [`Format`] says.
pub struct Local {
    time: BrokenDownTime,
}

impl Years {
    /// Where a number is a time only by its unit: seconds that are taken for milliseconds, or the other way round, are then
    /// seldom a time that anybody has lived in.
    pub const OF_NUMBERS: Years = Years { first: 1970, last: 2200 };

    /// PostgreSQL's calendar.
    const ALL: Years = Years { first: -4713, last: 294_276 };

    pub fn new([first, last]: [i32; 2]) -> Result<Years, String> {
        let Years { first: earliest, last: latest } = Years::ALL;
        if earliest <= first && first <= last && last <= latest {
            return Ok(Years { first, last });
        }
        Err(format!(
            "years takes the first and the last year, like [1970, 2200], from {earliest} to {latest}; found [{first}, {last}]"
        ))
    }

    /// The year of a day since 2000.
    pub fn of_day(day: i64) -> i32 {
        // 146,097 days are 400 years; from there it is a step or none.
        let near = 2000 + (day * 400).div_euclid(146_097) as i32;
        (near - 1..=near + 1).rev().find(|year| new_year(*year) <= day).unwrap_or(near)
    }

    /// Days since 2000.
    pub fn days(self) -> Range<i64> {
        new_year(self.first)..new_year(self.last + 1)
    }
}

impl Default for Notation {
    fn default() -> Self {
        Notation::PLAIN
    }
}

impl Notation {
    /// As the type alone says it.
    pub const PLAIN: Notation = Notation {
        time: TimeForm::Iso8601,
        zone: None,
        years: None,
        encoding: Encoding::Postgres,
        from_text: false,
        empty_is_null: false,
    };

    /// For `rowmill check`, behind the field's name.
    pub(super) fn explain(&self, ty: &Type) -> String {
        let mut words = String::new();
        match &self.time {
            TimeForm::Iso8601 => {}
            TimeForm::Number(unit) if *ty.scalar() == Type::Time => {
                words += &format!(", {} since midnight", unit.name())
            }
            TimeForm::Number(unit) => words += &format!(", {} since 1970", unit.name()),
            TimeForm::Format(Format(format)) => words += &format!(", in the format {format:?}"),
        }
        if let Some(zone) = self.zone.as_ref().and_then(TimeZone::iana_name) {
            words += &format!(", by the clocks of {zone} where it has no offset");
        }
        if let Some(Years { first, last }) = self.years {
            words += &format!(", in the years {first} to {last}");
        }
        if self.from_text {
            words += ", also as text";
        }
        if self.empty_is_null {
            words += ", NULL for an empty text";
        }
        words
    }
}

/// The first of January in days since 2000.
fn new_year(year: i32) -> i64 {
    const DAYS_0000_TO_2000: i64 = 730_485;
    let before = i64::from(year) - 1;
    let leap_days = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    // The year 0000 has 366 days, and the count of leap days begins behind it.
    365 * before + leap_days + 366 - DAYS_0000_TO_2000
}

impl Format {
    /// Refuses a format that cannot give its column a whole value: it must read back a time that it wrote itself.
    pub fn new(text: &str, ty: &Type, zone: Option<&TimeZone>) -> Result<Format, String> {
        let format = Format(text.to_owned());
        let sample = date(2024, 11, 23).at(21, 34, 0, 0);
        let zoned = sample.to_zoned(zone.cloned().unwrap_or(TimeZone::UTC)).map_err(|e| e.to_string())?;
        let unusable = |why: &dyn std::fmt::Display| format!("the format {text:?} cannot be used: {why}");
        let written = BrokenDownTime::from(&zoned).to_string(text).map_err(|error| unusable(&error))?;
        let read = format.read(&written).map_err(|why| unusable(&why))?;
        let loses = |what: &str| Err(unusable(&format!("a column of type {ty} would lose {what}")));
        if read.time.iana_time_zone().is_some() {
            return Err(unusable(
                &"a zone in each text may not fit the offset; use %z, or the setting `zone`",
            ));
        }
        let whole = match ty {
            Type::Timestamptz => {
                if read.instant().is_none() && zone.is_none() {
                    return Err(unusable(
                        &"it has no offset from UTC (%z); say zone = \"Europe/Berlin\" or the like",
                    ));
                }
                read.date_time() == Some(sample) || read.instant() == Some(zoned.timestamp())
            }
            Type::Timestamp => read.date_time() == Some(sample),
            Type::Date if read.time.hour().is_some() => return loses("the time of day"),
            Type::Date => read.date() == Some(sample.date()),
            Type::Time if read.time.year().is_some() || read.time.day().is_some() => {
                return loses("the date");
            }
            _ => read.time_of_day() == Some(sample.time()),
        };
        if whole {
            return Ok(format);
        }
        let why = format!("it leaves something out: {sample} would be written {written:?}");
        Err(unusable(&why))
    }

    pub fn read(&self, text: &str) -> Result<Local, String> {
        let time = BrokenDownTime::parse(&self.0, text).map_err(|error| error.to_string())?;
        Ok(Local { time })
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

impl Local {
    /// `None` where the text has no offset, and no other way to say which moment it is.
    pub fn instant(&self) -> Option<jiff::Timestamp> {
        if self.time.iana_time_zone().is_some() {
            return self.time.to_zoned().ok().map(|zoned| zoned.timestamp());
        }
        self.time.to_timestamp().ok()
    }

    pub fn offset(&self) -> Option<Offset> {
        self.time.offset()
    }

    pub fn date_time(&self) -> Option<DateTime> {
        self.time.to_datetime().ok()
    }

    pub fn date(&self) -> Option<Date> {
        self.time.to_date().ok()
    }

    pub fn time_of_day(&self) -> Option<Time> {
        self.time.to_time().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_leaves_something_out_is_refused() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let check = |text: &str, ty: Type, zone: Option<&TimeZone>, expected: Option<&str>| match (
            Format::new(text, &ty, zone),
            expected,
        ) {
            (Ok(_), None) => {}
            (Err(found), Some(expected)) if found.contains(expected) => {}
            (found, _) => panic!("{text} for {ty}: {found:?}, not {expected:?}"),
        };
        let tz = Type::Timestamptz;
        check("%d/%b/%Y:%H:%M:%S %z", tz.clone(), None, None);
        check("%d/%b/%Y:%H:%M:%S %z", tz.clone(), Some(&berlin), None);
        check("%d/%b/%Y:%H:%M:%S", tz.clone(), None, Some("no offset from UTC (%z)"));
        check("%d/%b/%Y:%H:%M:%S", tz.clone(), Some(&berlin), None);
        check("%d/%b/%Y:%I:%M:%S %z", tz.clone(), None, Some("leaves something out"));
        check("%d/%b/%Y:%I:%M:%S %p %z", tz.clone(), None, None);
        check("%d/%b %H:%M:%S %z", tz.clone(), None, Some("cannot be used"));
        check("%d/%b/%Y", tz.clone(), Some(&berlin), Some("leaves something out"));
        check("%Y-%m-%d %H:%M %Q", tz.clone(), None, Some("a zone in each text"));
        check("%s", tz.clone(), None, None);
        check("%Y-%m-%d %H:%M %Z", tz.clone(), None, Some("cannot be used"));
        check("%J", tz.clone(), None, Some("cannot be used"));
        check("%", tz, None, Some("cannot be used"));
        check("", Type::Date, None, Some("cannot be used"));
        check("no directive", Type::Date, None, Some("cannot be used"));
        check("%d.%m.%y", Type::Date, None, None);
        check("%G-W%V-%u", Type::Date, None, None);
        check("%d.%m.%Y %H", Type::Date, None, Some("would lose the time of day"));
        check("%H.%M", Type::Time, None, None);
        check("%d %H.%M", Type::Time, None, Some("would lose the date"));
        check("%M", Type::Time, None, Some("cannot be used"));
        check("%Y-%m-%d %H:%M", Type::Timestamp, None, None);
        check("%Y-%m-%d", Type::Timestamp, None, Some("leaves something out"));
    }

    #[test]
    fn years_begin_and_end_where_the_calendar_says() {
        for (year, day) in
            [(2000, 0), (1970, -10_957), (2001, 366), (1, -730_119), (0, -730_485), (-4712, -2_451_507)]
        {
            assert_eq!(new_year(year), day, "{year}");
        }
        for year in (-4713..9999).chain([55_840, 294_276]) {
            assert_eq!((Years::of_day(new_year(year)), Years::of_day(new_year(year + 1) - 1)), (year, year));
            if (1..9999).contains(&year) {
                let since = date(year as i16, 1, 1).duration_since(date(2000, 1, 1));
                assert_eq!(new_year(year), since.as_hours() / 24, "{year}");
            }
        }
        assert!(Years::new([1, 9999]).is_ok() && Years::new([2024, 2024]).is_ok());
        for wrong in [[2025, 2024], [-4714, 2024], [1970, 294_277]] {
            assert!(Years::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
