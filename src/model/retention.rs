//! How long a table keeps its rows, by partitions of time: which rows still have one, which partitions have to be made, and which
//! may go. Pure; times are microseconds since 1970 in UTC, and a partition is the half-open range from its begin on.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::duration::{self, DAY, SECOND};
use super::types::{Type, Unit};

/// Partitions beyond the one of now that rows may already go to: clocks of producers run ahead, and some data is a forecast. One more
/// is made, so that it is there when the first row of it comes.
const AHEAD: i64 = 2;

/// More partitions make each statement on the table slow to plan.
const PARTITIONS_MAX: i64 = 1000;

/// A record that was good when it was decoded has this long to be stored, at most, before its partition goes.
const GRACE_MAX: i64 = 600_000_000;

/// How the partition column counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// As PostgreSQL's times do, with or without a zone.
    Times {
        zoned: bool,
    },
    Dates,
    /// An integer, in units of ten to this power of microseconds.
    Integers {
        places: i64,
    },
}

/// What of a table is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Place of the partition column among the table's COPY columns; `None` where the server fills it.
    pub column: Option<usize>,
    /// Its name.
    pub name: String,
    keep: i64,
    every: i64,
    count: Count,
}

/// Whether a row has a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Kept,
    /// Its partition is gone, or goes now.
    Expired,
    /// It would be in one that is not made yet; this is where the last one ends.
    Ahead(i64),
}

/// A range of time: from, and where it ends. The least and the greatest number stand for no bound.
pub type Range = (i64, i64);

/// What has to be done with a table's partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub make: Vec<Range>,
    pub drop: Vec<Range>,
}

impl Retention {
    /// From the model's settings, as written.
    ///
    /// # Errors
    /// What is wrong with them, half a sentence.
    pub fn new(
        keep: &str,
        every: Option<&str>,
        unit: Option<Unit>,
        column: (Option<usize>, &str, &Type),
    ) -> Result<Retention, String> {
        let keep = span("retention", keep)?;
        let every = match every {
            Some(every) => span("partitions", every)?,
            None => default_every(keep),
        };
        let (column, name, ty) = column;
        let count = count(ty, unit).map_err(|text| format!("its partition column {name:?} {text}"))?;
        if count == Count::Dates && every % DAY != 0 {
            return Err("partitions by a date are whole days".into());
        }
        if every > keep {
            return Err("retention is shorter than one of its partitions, which go as a whole; make `partitions` shorter".into());
        }
        if keep / every > PARTITIONS_MAX {
            return Err(format!(
                "that would be {} partitions, and more than {PARTITIONS_MAX} make every statement slow to plan; make `partitions` longer",
                keep / every
            ));
        }
        Ok(Retention { column, name: name.to_owned(), keep, every, count })
    }

    /// The length of a partition.
    pub fn every(&self) -> Duration {
        Duration::from_micros(self.every.unsigned_abs())
    }

    /// Rows from this time on are kept.
    fn oldest(&self, now: i64) -> i64 {
        self.begin(now - self.keep)
    }

    /// Rows from this time on have no partition yet.
    fn beyond(&self, now: i64) -> i64 {
        self.begin(now) + (AHEAD + 1) * self.every
    }

    /// Where the partition begins that a time is in.
    fn begin(&self, time: i64) -> i64 {
        time.div_euclid(self.every) * self.every
    }

    /// Whether a time has a partition.
    pub fn age(&self, time: i64, now: i64) -> Age {
        if time < self.oldest(now) {
            Age::Expired
        } else if time >= self.beyond(now) {
            Age::Ahead(self.beyond(now))
        } else {
            Age::Kept
        }
    }

    /// The time in a field as PostgreSQL's binary COPY has it; what is beyond our calendar is as far as that.
    pub fn time_of(&self, value: &[u8]) -> Option<i64> {
        let raw = match value.len() {
            2 => i16::from_be_bytes(value.try_into().ok()?).into(),
            4 => i32::from_be_bytes(value.try_into().ok()?).into(),
            _ => i64::from_be_bytes(value.try_into().ok()?),
        };
        Some(match self.count {
            Count::Times { .. } => raw.saturating_add(CENTURY),
            Count::Dates => raw.saturating_mul(DAY).saturating_add(CENTURY),
            Count::Integers { places } => micros_of(raw, places),
        })
    }

    /// Which partitions have to be made, and which may go. Where one is there already that covers a part of what is wanted,
    /// nothing is made: its bounds are somebody's wish.
    pub fn due(&self, now: i64, there: &[Range]) -> Due {
        let overlaps = |range: &Range| there.iter().any(|other| range.0 < other.1 && other.0 < range.1);
        let first = self.oldest(now);
        let wanted =
            (0..).map(|number| first + number * self.every).take_while(|begin| *begin <= self.beyond(now));
        let mut make: Vec<Range> =
            wanted.map(|begin| (begin, begin + self.every)).filter(|range| !overlaps(range)).collect();
        // Rows of now come first, and wait for theirs.
        let past = make.partition_point(|range| range.1 <= now);
        make.rotate_left(past);
        let grace = GRACE_MAX.min(self.every / 4);
        let drop = there.iter().copied().filter(|range| range.1 <= self.oldest(now - grace)).collect();
        Due { make, drop }
    }

    /// A bound as SQL has it in FOR VALUES.
    pub fn literal(&self, time: i64) -> String {
        let shown = |format: &str| match Timestamp::from_microsecond(time) {
            Ok(time) => format!("'{}'", time.strftime(format)),
            Err(_) => "MAXVALUE".to_owned(),
        };
        match self.count {
            Count::Times { zoned: true } => shown("%Y-%m-%d %H:%M:%S+00"),
            Count::Times { zoned: false } => shown("%Y-%m-%d %H:%M:%S"),
            Count::Dates => shown("%Y-%m-%d"),
            Count::Integers { places } if places >= 0 => (time / 10i64.pow(places as u32)).to_string(),
            Count::Integers { places } => (time * 10i64.pow(-places as u32)).to_string(),
        }
    }

    /// The same, read from what the server says of a partition (`pg_get_expr(relpartbound)` with its zone at UTC); `None` for the
    /// default partition, and for what is not understood.
    pub fn range(&self, expression: &str) -> Option<Range> {
        let (from, to) =
            expression.strip_prefix("FOR VALUES FROM (")?.strip_suffix(')')?.split_once(") TO (")?;
        Some((self.bound(from)?, self.bound(to)?))
    }

    fn bound(&self, text: &str) -> Option<i64> {
        match text {
            "MINVALUE" => return Some(i64::MIN),
            "MAXVALUE" => return Some(i64::MAX),
            _ => {}
        }
        let text = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).unwrap_or(text);
        let moment = |text: &str| {
            let time: DateTime = text.parse().ok()?;
            Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond())
        };
        match self.count {
            Count::Times { zoned: true } => moment(text.strip_suffix("+00")?),
            Count::Times { zoned: false } | Count::Dates => moment(text),
            Count::Integers { places } => Some(micros_of(text.parse().ok()?, places)),
        }
    }

    /// What a partition's name ends with: its begin, as far as its length needs.
    pub fn suffix(&self, begin: i64) -> String {
        let format = match self.every {
            every if every % DAY == 0 => "%Y%m%d",
            every if every % 60_000_000 == 0 => "%Y%m%d_%H%M",
            _ => "%Y%m%d_%H%M%S",
        };
        Timestamp::from_microsecond(begin).map(|time| time.strftime(format).to_string()).unwrap_or_default()
    }

    /// In words: how long, and by which parts.
    pub fn explain(&self) -> String {
        format!(
            "rows are kept for {} by {:?}, in partitions of {}; older records are skipped",
            in_words(self.keep),
            self.name,
            in_words(self.every)
        )
    }
}

/// PostgreSQL counts from 2000.
const CENTURY: i64 = 946_684_800_000_000;

fn count(ty: &Type, unit: Option<Unit>) -> Result<Count, String> {
    let places = unit.map(|unit| unit.places().ok_or("counts days: make it a date"));
    match (ty, places.transpose()?) {
        (Type::Timestamptz, None) => Ok(Count::Times { zoned: true }),
        (Type::Timestamp, None) => Ok(Count::Times { zoned: false }),
        (Type::Date, None) => Ok(Count::Dates),
        (Type::Int8, Some(places)) => Ok(Count::Integers { places }),
        (Type::Int8, None) => {
            Err("is a bigint: say what it counts since 1970, like partition_unit = \"ns\"".into())
        }
        (Type::Timestamptz | Type::Timestamp | Type::Date, Some(_)) => {
            Err(format!("is of type {ty}, and partition_unit is for bigint columns"))
        }
        _ => Err(format!(
            "is of type {ty}, and retention goes by a timestamptz, timestamp, date or bigint column"
        )),
    }
}

/// Of a number in units of ten to the power of `places` microseconds; what is beyond our calendar is as far as that.
fn micros_of(raw: i64, places: i64) -> i64 {
    let power = 10i64.pow(places.unsigned_abs() as u32);
    if places >= 0 { raw.saturating_mul(power) } else { raw.div_euclid(power) }
}

/// About thirty partitions, of a length that people think in.
fn default_every(keep: i64) -> i64 {
    const LENGTHS: [i64; 5] = [1_000_000, 60_000_000, 3_600_000_000, DAY, 7 * DAY];
    LENGTHS.into_iter().rev().find(|length| keep / length >= 7).unwrap_or(LENGTHS[0])
}

/// `"30d"` in microseconds.
fn span(setting: &str, text: &str) -> Result<i64, String> {
    let micros = duration::parse(text, SECOND).filter(|micros| (1..=36_500 * DAY).contains(micros));
    micros.ok_or_else(|| {
        format!("{setting} = {text:?} is no duration of a second to a hundred years: write it like \"30d\", \"1d\" or \"12h\"")
    })
}

fn in_words(micros: i64) -> String {
    let (count, word) = duration::longest(micros);
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn retention(keep: &str, every: &str, ty: &Type, unit: Option<Unit>) -> Retention {
        Retention::new(keep, Some(every), unit, (Some(0), "time", ty)).unwrap()
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn a_row_is_kept_until_its_whole_partition_may_go() {
        let days = retention("7d", "1d", &Type::Timestamptz, None);
        let now = at("2026-03-10T15:00:00Z");
        let check = |time: &str, age: Age| assert_eq!(days.age(at(time), now), age, "{time}");
        check("2026-03-10T15:00:00Z", Age::Kept);
        check("2026-03-03T00:00:00Z", Age::Kept);
        check("2026-03-02T23:59:59.999999Z", Age::Expired);
        check("2026-03-12T23:59:59.999999Z", Age::Kept);
        check("2026-03-13T00:00:00Z", Age::Ahead(at("2026-03-13T00:00:00Z")));
        assert_eq!(days.age(i64::MIN, now), Age::Expired);
        assert_eq!(days.age(i64::MAX, now), Age::Ahead(at("2026-03-13T00:00:00Z")));
    }

    #[test]
    fn what_a_row_may_go_to_is_made_and_what_none_may_go_to_is_dropped() {
        let hours = retention("3h", "1h", &Type::Timestamptz, None);
        let now = at("1970-01-01T10:30:00Z");
        let due = hours.due(now, &[]);
        let begins: Vec<i64> = due.make.iter().map(|range| range.0 / HOUR).collect();
        assert_eq!(begins, [10, 11, 12, 13, 7, 8, 9], "now first");
        let mut there = due.make.clone();
        assert_eq!(hours.due(now, &there), Due::default());
        // An hour later: one more, and one less once the grace is over.
        assert_eq!(hours.due(now + HOUR, &there).make, [(14 * HOUR, 15 * HOUR)]);
        there.push((14 * HOUR, 15 * HOUR));
        let at_eleven = at("1970-01-01T11:05:00Z");
        assert_eq!(hours.due(at_eleven, &there).drop, [], "what was decoded before may still come");
        assert_eq!(hours.due(at_eleven + GRACE_MAX, &there).drop, [(7 * HOUR, 8 * HOUR)]);
        assert_eq!(hours.due(now + 100 * HOUR, &there).drop.len(), there.len());
        // Every row that has an age has a partition, at any moment.
        for minute in 0..300 {
            let now = now + minute * 60_000_000;
            let made: Vec<Range> = hours.due(now, &[]).make;
            for time in (0..24 * 60).map(|minute| minute * 60_000_000) {
                let has_one = made.iter().any(|range| (range.0..range.1).contains(&time));
                assert!(has_one || hours.age(time, now) != Age::Kept, "{time} at {now}");
            }
        }
    }

    #[test]
    fn a_week_passes_and_every_row_that_is_kept_has_a_partition_all_the_time() {
        let kept = retention("2d", "6h", &Type::Int8, Some(Unit::Nanos));
        let mut there: Vec<Range> = Vec::new();
        let (mut made, mut dropped) = (0, 0);
        // Somebody looks every hour and seven minutes, for nine days from some moment on.
        for look in 0..200 {
            let now = at("2026-03-07T10:30:00Z") + look * 67 * 60_000_000;
            let due = kept.due(now, &there);
            let goes = |range: &Range| due.drop.contains(range);
            assert!(!due.drop.iter().any(|range| range.1 > now - 2 * DAY), "a row of two days is still kept");
            made += due.make.len();
            dropped += due.drop.len();
            there.retain(|range| !goes(range));
            there.extend(due.make);
            for minutes in 0..67 {
                let now = now + minutes * 60_000_000;
                for time in (-60..30).map(|hours| now + hours * HOUR) {
                    let has_one = there.iter().any(|range| (range.0..range.1).contains(&time));
                    assert!(has_one || kept.age(time, now) != Age::Kept, "{time} at {now}");
                }
            }
            assert!(there.len() <= 13, "{} partitions", there.len());
        }
        assert!(made > 40 && dropped > 30, "{made} made, {dropped} dropped");
    }

    #[test]
    fn what_somebody_else_made_is_left() {
        let days = retention("2d", "1d", &Type::Timestamptz, None);
        let now = 10 * DAY + HOUR;
        let there = [(i64::MIN, 9 * DAY), (9 * DAY + HOUR, 10 * DAY), (12 * DAY, i64::MAX)];
        let due = days.due(now, &there);
        assert_eq!(due.make, [(10 * DAY, 11 * DAY), (11 * DAY, 12 * DAY)]);
        assert_eq!(due.drop, [], "a month that holds one kept day is kept");
        assert_eq!(days.due(now + 2 * DAY, &there).drop, [(i64::MIN, 9 * DAY), (9 * DAY + HOUR, 10 * DAY)]);
    }

    #[test]
    fn bounds_are_written_and_read_in_the_columns_own_way() {
        let day = at("2026-03-10T00:00:00Z");
        let check = |ty: Type, unit: Option<Unit>, literal: &str, field: &[u8]| {
            let retention = retention("7d", "1d", &ty, unit);
            assert_eq!(retention.literal(day), literal, "{ty}");
            let expression = format!("FOR VALUES FROM ({literal}) TO ({})", retention.literal(day + DAY));
            assert_eq!(retention.range(&expression), Some((day, day + DAY)), "{expression}");
            assert_eq!(retention.time_of(field), Some(day), "{ty}");
        };
        let since_2000 = (day - CENTURY).to_be_bytes();
        check(Type::Timestamptz, None, "'2026-03-10 00:00:00+00'", &since_2000);
        check(Type::Timestamp, None, "'2026-03-10 00:00:00'", &since_2000);
        check(Type::Date, None, "'2026-03-10'", &(((day - CENTURY) / DAY) as i32).to_be_bytes());
        check(Type::Int8, Some(Unit::Nanos), "1773100800000000000", &(day * 1000).to_be_bytes());
        check(Type::Int8, Some(Unit::Seconds), "1773100800", &(day / 1_000_000).to_be_bytes());
        let days = retention("7d", "1d", &Type::Int8, Some(Unit::Nanos));
        assert_eq!(
            days.range("FOR VALUES FROM (MINVALUE) TO ('1773100800000000000')"),
            Some((i64::MIN, day))
        );
        assert_eq!(days.range("DEFAULT"), None);
        assert_eq!(days.suffix(day), "20260310");
        assert_eq!(retention("9h", "1h", &Type::Timestamptz, None).suffix(day + HOUR), "20260310_0100");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let check = |keep: &str, every: Option<&str>, ty: &Type, unit: Option<Unit>, words: &str| {
            let found = Retention::new(keep, every, unit, (Some(0), "time", ty)).unwrap_err();
            assert!(found.contains(words), "{keep} {every:?}: {found}");
        };
        check("30", None, &Type::Timestamptz, None, "no duration");
        check("0d", None, &Type::Timestamptz, None, "no duration");
        check("1d", Some("2d"), &Type::Timestamptz, None, "shorter than one");
        check("365d", Some("1h"), &Type::Timestamptz, None, "8760 partitions");
        check("30d", Some("12h"), &Type::Date, None, "whole days");
        check("30d", None, &Type::Int8, None, "partition_unit");
        check("30d", None, &Type::Date, Some(Unit::Nanos), "for bigint");
        check("30d", None, &Type::Text, None, "is of type text");
        for (keep, every) in [("30d", DAY), ("365d", 7 * DAY), ("12h", HOUR), ("2d", HOUR), ("5s", 1_000_000)]
        {
            let found = Retention::new(keep, None, None, (None, "t", &Type::Timestamptz)).unwrap();
            assert_eq!(found.every, every, "{keep}");
        }
    }
}
