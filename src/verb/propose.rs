//! `rowmill propose`: reads a sample of a topic and prints a table and a model that would take all of it, each column with
//! the evidence. A proposal: what the records mean, only their author knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::config;
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::reread;

#[derive(Args)]
pub struct Propose {
    /// The topic to read; its offsets stay as they are.
    #[arg(long)]
    topic: String,
    /// Name of the proposed table. Default: the topic's, with _ for what SQL would quote.
    #[arg(long)]
    table: Option<String>,
    /// How many of the newest records to read, spread over the partitions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    records: u32,
    /// Take [kafka] from this file. Default: KAFKA_BROKERS and the ROWMILL_KAFKA__ variables.
    #[arg(short, long)]
    config: Option<PathBuf>,
}

/// Fields of one proposal; a topic with more has keys that are data.
const FIELDS_MAX: usize = 200;

/// Objects within objects are taken apart this deep; what lies deeper becomes jsonb.
const DEPTH_MAX: usize = 3;

/// Fewer records say nothing about NOT NULL.
const CERTAIN: u64 = 100;

pub fn run(propose: &Propose) -> Result<()> {
    let kafka = config::read_kafka(propose.config.as_deref())?;
    let ranges = newest(&kafka, &propose.topic, i64::from(propose.records))?;
    let mut sample = Sample::default();
    for (partition, offsets) in &ranges {
        reread::range(&kafka, &propose.topic, *partition, offsets.clone(), |_, value| {
            sample.see(value);
            Ok(())
        })?;
    }
    if sample.objects == 0 {
        bail!(
            "topic {:?} has no JSON object among {} records of {} partitions: there is nothing to propose from",
            propose.topic,
            sample.records,
            ranges.len()
        );
    }
    let table = propose.table.clone().unwrap_or_else(|| column_name(&[&propose.topic]));
    print!("{}", proposal(&propose.topic, &table, ranges.len(), &sample));
    Ok(())
}

type Ranges = Vec<(i32, std::ops::Range<i64>)>;

/// The last offsets of each partition, `count` in all.
fn newest(kafka: &config::Kafka, topic: &str, count: i64) -> Result<Ranges> {
    let asker = Asker::new(kafka, ANSWER)?;
    let partitions = asker.partitions(topic).with_context(|| format!("at {}", kafka.brokers))?;
    let each = (count / partitions.len() as i64).max(1);
    partitions
        .into_iter()
        .map(|partition| {
            let std::ops::Range { start, end } = asker.ends(topic, partition)?;
            Ok((partition, start.max(end - each)..end))
        })
        .collect()
}

/// What was seen of all records.
#[derive(Debug, Default)]
struct Sample {
    records: u64,
    /// Records that are JSON objects; others would become dead letters.
    objects: u64,
    fields: BTreeMap<Vec<String>, Field>,
    /// Fields beyond the bound were not looked at.
    overflow: bool,
}

/// What was seen of one field.
#[derive(Debug, Default)]
struct Field {
    values: u64,
    nulls: u64,
    bools: u64,
    integers: u64,
    /// Numbers with a fraction or an exponent, and integers beyond 64 bits.
    floats: u64,
    texts: u64,
    /// Objects that are too deep, and arrays.
    structures: u64,
    smallest: Option<i64>,
    largest: Option<i64>,
    longest: usize,
    times: u64,
    uuids: u64,
}

impl Sample {
    fn see(&mut self, value: Option<&[u8]>) {
        self.records += 1;
        let Some(Ok(Value::Object(object))) = value.map(serde_json::from_slice) else { return };
        self.objects += 1;
        self.object(&object, &mut Vec::new());
    }

    fn object(&mut self, object: &serde_json::Map<String, Value>, path: &mut Vec<String>) {
        for (name, value) in object {
            path.push(name.clone());
            match value {
                Value::Object(inner) if path.len() < DEPTH_MAX && !inner.is_empty() => {
                    self.object(inner, path)
                }
                _ if self.fields.len() >= FIELDS_MAX && !self.fields.contains_key(path) => {
                    self.overflow = true
                }
                _ => self.fields.entry(path.clone()).or_default().see(value),
            }
            path.pop();
        }
    }
}

impl Field {
    fn see(&mut self, value: &Value) {
        self.values += 1;
        match value {
            Value::Null => self.nulls += 1,
            Value::Bool(_) => self.bools += 1,
            Value::Number(number) => match number.as_i64() {
                Some(integer) => {
                    self.integers += 1;
                    self.smallest = Some(self.smallest.map_or(integer, |s| s.min(integer)));
                    self.largest = Some(self.largest.map_or(integer, |l| l.max(integer)));
                }
                None => self.floats += 1,
            },
            Value::String(text) => {
                self.texts += 1;
                self.longest = self.longest.max(text.chars().count());
                self.times += u64::from(is_time(text));
                self.uuids += u64::from(is_uuid(text));
            }
            Value::Array(_) | Value::Object(_) => self.structures += 1,
        }
    }

    /// The column's type, and the unit if it is a time that is written as a number.
    fn proposed(&self, name: &str) -> (&'static str, Option<&'static str>) {
        let found = self.values - self.nulls;
        let unit = self.epoch_unit(name);
        match found {
            0 => ("TEXT", None),
            n if n == self.bools => ("BOOLEAN", None),
            n if n == self.integers && unit.is_some() => ("TIMESTAMPTZ", unit),
            n if n == self.integers => ("BIGINT", None),
            n if n == self.integers + self.floats => ("DOUBLE PRECISION", None),
            n if n == self.times => ("TIMESTAMPTZ", None),
            n if n == self.uuids => ("UUID", None),
            // Numbers and booleans go into text as they were written.
            n if n == self.texts + self.integers + self.floats + self.bools => ("TEXT", None),
            _ => ("JSONB", None),
        }
    }

    /// Numbers that would be a moment of this century, in a field that is named after time.
    fn epoch_unit(&self, name: &str) -> Option<&'static str> {
        const NAMES: [&str; 6] = ["t", "ts", "time", "timestamp", "date", "at"];
        let last = name.rsplit('_').next().unwrap_or_default();
        let (smallest, largest) = (self.smallest?, self.largest?);
        // From 2001 to 2100.
        let units = [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)];
        let fits = |factor: i64| {
            smallest >= 978_307_200 * factor && largest < 4_102_444_800_i64.saturating_mul(factor)
        };
        units.iter().find(|(_, factor)| NAMES.contains(&last) && fits(*factor)).map(|(unit, _)| *unit)
    }

    /// What was seen, in words.
    fn evidence(&self, objects: u64) -> String {
        let mut kinds = Vec::new();
        for (count, kind) in [
            (self.bools, "boolean"),
            (self.integers, "integer"),
            (self.floats, "fraction"),
            (self.texts, "text"),
            (self.structures, "array or object"),
            (self.nulls, "null"),
        ] {
            if count > 0 {
                kinds.push(format!("{count} {kind}"));
            }
        }
        let mut words = format!("in {} of {objects}: {}", self.values, kinds.join(", "));
        if let (Some(smallest), Some(largest)) = (self.smallest, self.largest) {
            write!(words, "; {smallest} to {largest}").expect("a string takes all");
        }
        if self.texts > 0 {
            write!(words, "; longest {} characters", self.longest).expect("a string takes all");
        }
        words
    }
}

/// In the form that the decoder takes, except for details of the calendar.
fn is_time(text: &str) -> bool {
    text.as_bytes().get(10).is_some_and(|c| matches!(c, b'T' | b't' | b' '))
        && text.parse::<jiff::Timestamp>().is_ok()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// A name that SQL takes without quotes, from a path's parts.
fn column_name(parts: &[impl AsRef<str>]) -> String {
    let joined = parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("_");
    let mut name: String = joined
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        // What PostgreSQL cuts a name to.
        .take(63)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        name.insert(0, '_');
        name.truncate(63);
    }
    name
}

/// SQL and TOML, one after the other.
fn proposal(topic: &str, table: &str, partitions: usize, sample: &Sample) -> String {
    let Sample { records, objects, .. } = sample;
    let (mut columns, mut sources, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for (path, field) in &sample.fields {
        let name = column_name(path);
        if !names.insert(name.clone()) {
            notes.push(format!("-- {path:?} is left out: its column would have the name of another, {name}"));
            continue;
        }
        let (kind, unit) = field.proposed(&name);
        let certain = *objects >= CERTAIN && field.values == *objects && field.nulls == 0;
        let not_null = if certain { " NOT NULL" } else { "" };
        columns.push((field.evidence(*objects), format!("    \"{name}\" {kind}{not_null}")));
        let mut source = Vec::new();
        if path.len() > 1 || path[0] != name {
            // A list of names, so that a dot within a name is no step.
            let parts = path.iter().map(|part| toml::Value::String(part.clone())).collect();
            source.push(format!("field = {}", toml::Value::Array(parts)));
        } else if unit.is_some() {
            source.push(format!("field = {}", toml::Value::String(name.clone())));
        }
        source.extend(unit.map(|unit| format!("unit = \"{unit}\"")));
        if !source.is_empty() {
            sources.push(format!("{name} = {{ {} }}", source.join(", ")));
        }
    }
    if sample.overflow {
        notes.push(format!(
            "-- More than {FIELDS_MAX} fields: are some of their names data? jsonb takes a whole object."
        ));
    }
    let mut out =
        format!("-- The newest {records} records of topic {topic:?}, from {partitions} partitions.\n");
    if objects < records {
        writeln!(out, "-- {} of them are no JSON objects and would become dead letters.", records - objects)
            .expect("a string takes all");
    }
    for note in &notes {
        writeln!(out, "{note}").expect("a string takes all");
    }
    writeln!(out, "CREATE TABLE \"{}\" (", table.replace('"', "\"\"")).expect("a string takes all");
    for (number, (evidence, column)) in columns.iter().enumerate() {
        let comma = if number + 1 < columns.len() { "," } else { "" };
        writeln!(out, "    -- {evidence}\n{column}{comma}").expect("a string takes all");
    }
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    write!(
        out,
        ");\n\n# For rowmill.toml\n[[model]]\ntopic = {}\ntable = {}\n[model.columns]\n{}\n",
        quoted(topic),
        quoted(table),
        sources.join("\n")
    )
    .expect("a string takes all");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(records: &[&str]) -> Sample {
        let mut sample = Sample::default();
        records.iter().for_each(|record| sample.see(Some(record.as_bytes())));
        sample
    }

    #[test]
    fn a_type_holds_all_that_was_seen() {
        #[track_caller]
        fn check(values: &[&str], name: &str, expected: &str, unit: Option<&str>) {
            let records: Vec<String> = values.iter().map(|value| format!("{{\"{name}\":{value}}}")).collect();
            let sample = sample(&records.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(sample.fields[&vec![name.to_owned()]].proposed(name), (expected, unit), "{values:?}");
        }
        check(&["null"], "x", "TEXT", None);
        check(&["true", "null"], "x", "BOOLEAN", None);
        check(&["1", "-9223372036854775808"], "x", "BIGINT", None);
        check(&["1", "9223372036854775808"], "x", "DOUBLE PRECISION", None);
        check(&["1", "1.5"], "x", "DOUBLE PRECISION", None);
        check(&["\"2024-05-01T12:30:00Z\""], "x", "TIMESTAMPTZ", None);
        check(&["\"2024-05-01T12:30:00Z\"", "\"soon\""], "x", "TEXT", None);
        check(&["\"00000000-0000-4000-8000-00000000000a\""], "x", "UUID", None);
        check(&["1", "\"a\""], "x", "TEXT", None);
        check(&["[1]", "\"a\""], "x", "JSONB", None);
        check(&["{}"], "x", "JSONB", None);
        check(&["1714566600"], "ts", "TIMESTAMPTZ", Some("s"));
        check(&["1714566600123"], "sent_at", "TIMESTAMPTZ", Some("ms"));
        check(&["1714566600123"], "x", "BIGINT", None);
        check(&["0", "1714566600123"], "time", "BIGINT", None);
    }

    #[test]
    fn names_fit_sql_and_nothing_is_taken_for_two() {
        assert_eq!(column_name(&["measured.At", "ms"]), "measured_at_ms");
        assert_eq!(column_name(&["7 days"]), "_7_days");
        assert_eq!(column_name(&["ä"]), "_");
        let sample = sample(&[r#"{"a":{"b":1},"a_b":2,"x y":[1],"z":"t"}"#, "[]"]);
        let text = proposal("t", "t", 1, &sample);
        assert!(text.contains("\"a_b\" BIGINT,\n") && text.contains("left out"), "{text}");
        assert!(text.contains("a_b = { field = [\"a\", \"b\"] }\nx_y = { field = [\"x y\"] }"), "{text}");
        assert!(text.contains("1 of them are no JSON objects"), "{text}");
        assert!(text.contains("-- in 1 of 1: 1 text; longest 1 characters\n    \"z\" TEXT\n);"), "{text}");
        assert!(!text.contains("NOT NULL"), "one record proves nothing");
    }
}
