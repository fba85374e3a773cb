//! What follows from a sample: columns, and the SQL and TOML for them. All that is printed is SQL, comments included, and no
//! name of a field can end a comment, a string or a line.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::sample::{FIELDS_MAX, Field, Sample};
use crate::base::printable::printable;
use crate::base::spelling::did_you_mean;
use crate::model::mode::Mode;
use crate::model::plan::quoted;
use crate::model::types::Type;

/// Fewer records say nothing about NOT NULL.
const CERTAIN: u64 = 100;

/// One value in so many may be of another kind than its field: what comes once in a hundred times is more likely a mistake of
/// its producer than a second way of writing, and a proposal that sets more aside would not be one. Fewer values than that
/// cannot tell the two apart, so each of them counts.
const ONE_OUTLIER_IN: u64 = 100;

/// What PostgreSQL has in every table already.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// What PostgreSQL cuts a name to.
const NAME_BYTES_MAX: usize = 63;

/// A table and a model for a topic.
pub(super) struct Proposal {
    topic: String,
    table: String,
    pub(super) columns: Vec<ProposedColumn>,
    head: Vec<String>,
    mode: Mode,
    /// So many of the columns are the key.
    keys: usize,
}

pub(super) struct ProposedColumn {
    pub(super) name: String,
    /// Empty where the column has no field.
    path: Vec<String>,
    /// What becomes of many rows, or of a time.
    fold: Option<&'static str>,
    pub(super) ty: Type,
    unit: Option<&'static str>,
    pub(super) not_null: bool,
    evidence: String,
}

impl Proposal {
    pub(super) fn of(topic: &str, table: &str, partitions: usize, sample: &Sample) -> Proposal {
        let mut head = vec![format!(
            "The newest {} records of topic {topic:?}, from {partitions} partitions.",
            sample.records
        )];
        if sample.overflow {
            head.push(format!(
                "More than {FIELDS_MAX} fields: are some of their names data? jsonb takes a whole object."
            ));
        }
        let (mut columns, mut names) = (Vec::new(), BTreeSet::new());
        let mut taken_whole: Option<&Vec<String>> = None;
        for (path, field) in &sample.fields {
            // Paths are in order, so what is below one follows it.
            if taken_whole.is_some_and(|whole| path.starts_with(whole)) {
                continue;
            }
            match field.role() {
                Role::Parts(others) => head.extend(note(path, field, others)),
                Role::Column => {
                    taken_whole = Some(path);
                    columns.push(ProposedColumn::new(path, field, sample.objects, &mut names));
                }
            }
        }
        let (topic, table) = (topic.to_owned(), table.to_owned());
        Proposal { topic, table, columns, head, mode: Mode::Append, keys: 0 }
    }

    /// Makes rows of one key one row. Where they are added up, integers are summed, and what is no number is left out.
    ///
    /// # Errors
    /// Where a column of the key is not there, or can be in none.
    pub(super) fn give_key(&mut self, mode: Mode, key: &[String]) -> Result<()> {
        let mut columns: Vec<ProposedColumn> = Vec::new();
        for name in key {
            let Some(place) = self.columns.iter().position(|column| column.name == *name) else {
                let names = self.columns.iter().map(|column| column.name.as_str());
                bail!("--key: no column {name:?} would be proposed{}", did_you_mean(name, names));
            };
            let mut column = self.columns.remove(place);
            if matches!(column.ty, Type::Float8 | Type::Numeric(_) | Type::Jsonb) {
                bail!(
                    "--key: column {name:?} would be of type {}, of which the same value can be written in two ways: choose another",
                    column.ty
                );
            }
            column.not_null = true;
            let is_bucket = mode == Mode::Add && column.ty == Type::Timestamptz;
            column.fold = is_bucket.then_some("floor = \"1m\"");
            columns.push(column);
        }
        (self.mode, self.keys) = (mode, columns.len());
        if mode == Mode::Add {
            let mut names: BTreeSet<String> =
                self.columns.iter().chain(&columns).map(|c| c.name.clone()).collect();
            columns.push(ProposedColumn::count(free_name("records".to_owned(), &mut names)));
            self.columns.retain(|column| column.ty == Type::Int8);
            self.columns.iter_mut().for_each(|column| column.fold = Some("fold = \"sum\""));
        }
        columns.append(&mut self.columns);
        self.columns = columns;
        Ok(())
    }

    /// The names of the key's columns.
    pub(super) fn key(&self) -> Vec<String> {
        self.columns[..self.keys].iter().map(|column| column.name.clone()).collect()
    }

    /// The table's name as SQL and a model write it.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// For rowmill.toml.
    pub(super) fn model(&self) -> String {
        let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
        let needs_quotes =
            !self.table.chars().all(plain) || self.table.starts_with(|c: char| c.is_ascii_digit());
        let table = if needs_quotes { quoted(&self.table) } else { self.table.clone() };
        let head = format!(
            "[[model]]\ntopic = {}\ntable = {}\n{}[model.columns]\n",
            toml_string(&self.topic),
            toml_string(&table),
            if self.keys > 0 { format!("mode = \"{}\"\n", self.mode.name()) } else { String::new() }
        );
        head + &self.columns.iter().filter_map(ProposedColumn::setting).collect::<String>()
    }

    /// All that is printed; `verdict` is what came of the trial, a line each.
    pub(super) fn text(&self, verdict: &[String]) -> String {
        let mut out = String::new();
        let comments = self.head.iter().chain(verdict);
        comments.for_each(|line| out += &format!("-- {}\n", printable(line)));
        out += &format!("CREATE TABLE {} (\n", quoted(&self.table));
        for (number, column) in self.columns.iter().enumerate() {
            let comma = if number + 1 < self.columns.len() || self.keys > 0 { "," } else { "" };
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            let (name, ty) = (quoted(&column.name), sql_type(&column.ty));
            out += &format!("    -- {}\n    {name} {ty}{not_null}{comma}\n", column.evidence);
        }
        if self.keys > 0 {
            let key: Vec<String> = self.key().iter().map(|name| quoted(name)).collect();
            out += &format!("    PRIMARY KEY ({})\n", key.join(", "));
        }
        let room = if self.mode == Mode::Add { " WITH (fillfactor = 70)" } else { "" };
        out += &format!(
            "){room};\n\n-- For rowmill.toml, without the four characters at the beginning of each line: sed -n 's/^--| //p'\n"
        );
        self.model().lines().for_each(|line| out += &format!("--| {line}\n"));
        out
    }
}

impl ProposedColumn {
    fn new(path: &[String], field: &Field, objects: u64, names: &mut BTreeSet<String>) -> ProposedColumn {
        let name = free_name(column_name(path), names);
        let (ty, unit) = field.proposed(&name);
        let certain = objects >= CERTAIN && field.values + field.objects == objects && field.nulls == 0;
        ProposedColumn {
            name,
            path: path.to_vec(),
            fold: None,
            ty,
            unit,
            not_null: certain,
            evidence: field.evidence(objects),
        }
    }

    /// How many records became one row.
    fn count(name: String) -> ProposedColumn {
        ProposedColumn {
            name,
            path: Vec::new(),
            fold: Some("fold = \"count\""),
            ty: Type::Int8,
            unit: None,
            not_null: true,
            evidence: "how many records".to_owned(),
        }
    }

    /// Its line of `[model.columns]`, if it needs one.
    fn setting(&self) -> Option<String> {
        let mut settings = Vec::new();
        if !self.path.is_empty() && self.path != [self.name.as_str()] {
            // A list of names, so that a dot within a name is no step.
            let parts: Vec<String> = self.path.iter().map(|part| toml_string(part)).collect();
            settings.push(format!("field = [{}]", parts.join(", ")));
        }
        settings.extend(self.unit.map(|unit| format!("unit = \"{unit}\"")));
        settings.extend(self.fold.map(str::to_owned));
        (!settings.is_empty()).then(|| format!("{} = {{ {} }}\n", self.name, settings.join(", ")))
    }
}

/// What becomes of a field that holds objects at times.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Column,
    /// Its members are columns; so many of its values are not stored.
    Parts(u64),
}

impl Field {
    fn role(&self) -> Role {
        let others = self.values - self.nulls - self.empty_objects;
        let all = others + self.objects;
        if self.objects > 0 && others <= all / ONE_OUTLIER_IN { Role::Parts(others) } else { Role::Column }
    }

    /// The column's type, and the unit if it is a time that is written as a number.
    fn proposed(&self, name: &str) -> (Type, Option<&'static str>) {
        let found = self.values - self.nulls + self.objects;
        // All but the outliers.
        let is = |count: u64| found > 0 && count + found / ONE_OUTLIER_IN >= found;
        let unit = self.epoch_unit(name).filter(|_| self.integers == self.numbers());
        let texts = self.texts + self.numbers() + self.bools;
        match () {
            () if found == 0 => (Type::Text, None),
            () if is(self.bools) => (Type::Bool, None),
            () if is(self.numbers()) && unit.is_some() => (Type::Timestamptz, unit),
            () if is(self.numbers()) => (self.number_type(), None),
            () if is(self.times) => (Type::Timestamptz, None),
            () if is(self.uuids) => (Type::Uuid, None),
            // Numbers and booleans go into text as they were written.
            () if is(texts) => (Type::Text, None),
            () => (Type::Jsonb, None),
        }
    }

    /// The smallest type that keeps every digit.
    fn number_type(&self) -> Type {
        /// Above it, a double has not every integer.
        const EXACT: std::ops::RangeInclusive<i64> = -(1 << 53)..=1 << 53;
        let is_exact = |end: Option<i64>| end.is_none_or(|end| EXACT.contains(&end));
        match (self.large, self.floats) {
            (0, 0) => Type::Int8,
            (0, _) if is_exact(self.smallest) && is_exact(self.largest) => Type::Float8,
            _ => Type::Numeric(None),
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
}

/// Says of a field that is taken apart what is not stored of it.
fn note(path: &[String], field: &Field, others: u64) -> Option<String> {
    let places: Vec<String> = field.places.iter().map(ToString::to_string).collect();
    let more = if others > places.len() as u64 { "; ..." } else { "" };
    (others > 0).then(|| {
        format!(
            "Field {path:?} is no object in {others} records ({}{more}): what it holds there is not stored.",
            places.join("; ")
        )
    })
}

/// A name that SQL takes without quotes, from a path's parts.
pub(super) fn column_name(parts: &[impl AsRef<str>]) -> String {
    let joined = parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("_");
    let mut name: String = joined
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .take(NAME_BYTES_MAX)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        name.insert(0, '_');
        name.truncate(NAME_BYTES_MAX);
    }
    name
}

/// The name, or with a number behind it where another field or PostgreSQL has it.
fn free_name(name: String, names: &mut BTreeSet<String>) -> String {
    let numbered = |number: u32| {
        let end = format!("_{number}");
        format!("{}{end}", &name[..name.len().min(NAME_BYTES_MAX - end.len())])
    };
    let candidates = std::iter::once(name.clone()).chain((2..).map(numbered));
    let free = |name: &String| !SYSTEM_COLUMNS.contains(&name.as_str()) && !names.contains(name);
    let found = candidates.into_iter().find(free).expect("fewer fields than numbers");
    names.insert(found.clone());
    found
}

/// In capitals, as SQL's own words are.
fn sql_type(ty: &Type) -> String {
    ty.to_string().to_uppercase()
}

/// A string of TOML in one line of letters that do nothing to a terminal.
fn toml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if printable(c.encode_utf8(&mut [0; 4])).chars().eq([c]) => out.push(c),
            c => out += &format!("\\U{:08x}", u32::from(c)),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verb::propose::sample::Place;
    use crate::verb::propose::trial::Trial;

    fn places() -> impl Iterator<Item = Place> {
        (0..).map(|offset| Place { partition: 0, offset })
    }

    fn sample<S: AsRef<str>>(records: &[S]) -> Sample {
        let mut sample = Sample::default();
        places().zip(records).for_each(|(place, record)| sample.see(place, Some(record.as_ref().as_bytes())));
        sample
    }

    /// The whole proposal for these records of topic `t`, after its trial.
    fn proposed<S: AsRef<str>>(records: &[S]) -> String {
        let proposal = Proposal::of("t", "t", 1, &sample(records));
        let mut trial = Trial::new(&proposal).unwrap();
        places().zip(records).for_each(|(place, record)| trial.run(place, Some(record.as_ref().as_bytes())));
        proposal.text(&trial.verdict())
    }

    #[test]
    fn a_key_makes_many_rows_one() {
        let records = [r#"{"user":"a","at":"2024-05-01T12:30:10Z","n":1,"ratio":0.5}"#];
        let text = |mode, key: &[&str]| {
            let mut proposal = Proposal::of("t", "t", 1, &sample(&records));
            let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
            proposal.give_key(mode, &key).map(|()| {
                let mut trial = Trial::new(&proposal).unwrap();
                places().zip(&records).for_each(|(place, r)| trial.run(place, Some(r.as_bytes())));
                proposal.text(&trial.verdict())
            })
        };
        let added = text(Mode::Add, &["user", "at"]).unwrap();
        for expected in [
            "PRIMARY KEY (\"user\", \"at\")\n) WITH (fillfactor = 70);",
            "--| mode = \"add\"",
            "--| at = { floor = \"1m\" }",
            "--| records = { fold = \"count\" }",
            "--| n = { fold = \"sum\" }",
            "-- Tried: all 1 records would become rows.",
        ] {
            assert!(added.contains(expected), "{expected}\n{added}");
        }
        assert!(!added.contains("ratio"), "{added}");
        let upserted = text(Mode::Upsert, &["user"]).unwrap();
        assert!(upserted.contains("--| mode = \"upsert\"") && upserted.contains("\"ratio\""), "{upserted}");
        assert!(text(Mode::First, &["usr"]).is_err_and(|e| e.to_string().contains("did you mean \"user\"?")));
        assert!(text(Mode::First, &["ratio"]).is_err_and(|e| e.to_string().contains("in two ways")));
    }

    /// `count` times one value and once each of the others.
    fn mostly(count: usize, value: &str, others: &[&str]) -> Vec<String> {
        let values = std::iter::repeat_n(value, count).chain(others.iter().copied());
        values.map(|value| format!("{{\"x\":{value}}}")).collect()
    }

    #[test]
    fn a_type_holds_all_that_was_seen() {
        #[track_caller]
        fn check(values: &[&str], name: &str, expected: &str, unit: Option<&str>) {
            let records: Vec<String> = values.iter().map(|value| format!("{{\"{name}\":{value}}}")).collect();
            let (ty, found) = sample(&records).fields[&vec![name.to_owned()]].proposed(name);
            assert_eq!((sql_type(&ty).as_str(), found), (expected, unit), "{values:?}");
            let text = proposed(&records);
            assert!(text.contains("-- Tried: all"), "{text}");
        }
        check(&["null"], "x", "TEXT", None);
        check(&["true", "null"], "x", "BOOLEAN", None);
        check(&["1", "-9223372036854775808"], "x", "BIGINT", None);
        check(&["1", "9223372036854775808"], "x", "NUMERIC", None);
        check(&["18446744073709551615"], "x", "NUMERIC", None);
        check(&["1e400"], "x", "NUMERIC", None);
        check(&["1e-400", "1"], "x", "NUMERIC", None);
        check(&["0.12345678901234567890"], "x", "NUMERIC", None);
        check(&["9007199254740993", "0.5"], "x", "NUMERIC", None);
        check(&["1", "1.5"], "x", "DOUBLE PRECISION", None);
        check(&["1e300", "-0"], "x", "DOUBLE PRECISION", None);
        check(&["\"2024-05-01T12:30:00Z\""], "x", "TIMESTAMPTZ", None);
        check(&["\"2024-05-01T12:30Z\"", "\"2024-05-01 12:30:00,5+0200\""], "x", "TIMESTAMPTZ", None);
        check(&["\"2024-05-01T12:30:00Z\"", "\"soon\""], "x", "TEXT", None);
        check(&["\"00000000-0000-4000-8000-00000000000a\""], "x", "UUID", None);
        check(&["1", "\"a\""], "x", "TEXT", None);
        check(&["[1]", "\"a\""], "x", "JSONB", None);
        check(&["{}"], "x", "JSONB", None);
        check(&["1714566600"], "ts", "TIMESTAMPTZ", Some("s"));
        check(&["1714566600123"], "sent_at", "TIMESTAMPTZ", Some("ms"));
        check(&["1714566600123"], "x", "BIGINT", None);
        check(&["0", "1714566600123"], "time", "BIGINT", None);
        check(&["1714566600", "1714566600.5"], "ts", "DOUBLE PRECISION", None);
    }

    #[test]
    fn an_outlier_does_not_change_the_kind_and_is_named() {
        #[track_caller]
        fn check(records: &[String], column: &str, verdict: &[&str]) {
            let text = proposed(records);
            assert!(text.contains(column), "{text}");
            verdict.iter().for_each(|line| assert!(text.contains(line), "{line}\n{text}"));
        }
        let one = [
            "Tried: 1 of 758 records would become a dead letter",
            "--   partition 0, offset 757: wrong_type: ",
        ];
        check(&mostly(757, "7", &["\"many\""]), "\"x\" BIGINT NOT NULL", &one);
        check(&mostly(757, "true", &["1"]), "\"x\" BOOLEAN", &one);
        check(&mostly(757, "0.5", &["[]"]), "\"x\" DOUBLE PRECISION", &one);
        check(&mostly(757, "\"a\"", &["{\"b\":1}"]), "\"x\" TEXT", &one);
        let time = "\"2024-05-01T12:30:00Z\"";
        check(&mostly(757, time, &["\"soon\""]), "\"x\" TIMESTAMPTZ", &["offset 757: invalid_time: "]);
        // A number is no outlier among numbers.
        check(&mostly(757, "7", &["0.5"]), "\"x\" DOUBLE PRECISION", &["Tried: all 758 records"]);
        // More than one in a hundred is a second way of writing.
        check(&mostly(98, "7", &["\"many\"", "\"few\""]), "\"x\" TEXT", &["Tried: all 100 records"]);
        check(&mostly(98, "7", &["\"many\""]), "\"x\" TEXT", &["Tried: all 99 records"]);
        check(&mostly(99, "7", &["\"many\""]), "\"x\" BIGINT", &["Tried: 1 of 100"]);
    }

    #[test]
    fn an_object_that_is_null_at_times_is_taken_apart() {
        let records: Vec<String> = (0..200)
            .map(|n| {
                if n < 29 {
                    "{\"o\":null,\"n\":1}".into()
                } else {
                    format!("{{\"o\":{{\"a\":{n}}},\"n\":1}}")
                }
            })
            .collect();
        let text = proposed(&records);
        assert!(text.contains("Tried: all 200 records") && text.contains("\"o_a\" BIGINT\n"), "{text}");
        assert!(!text.contains("    \"o\" "), "{text}");
    }

    #[test]
    fn what_is_half_an_object_is_taken_whole() {
        let half: Vec<String> = (0..10)
            .map(|n| if n < 5 { format!("{{\"o\":{n}}}") } else { format!("{{\"o\":{{\"a\":{n}}}}}") })
            .collect();
        let text = proposed(&half);
        assert!(text.contains("Tried: all 10 records") && text.contains("\"o\" JSONB\n"), "{text}");
        assert!(!text.contains("o_a"), "{text}");
        let mut rare: Vec<String> = (0..200).map(|n| format!("{{\"o\":{{\"a\":{n}}},\"p\":1}}")).collect();
        rare[17] = "{\"o\":\"none\",\"p\":1}".into();
        let text = proposed(&rare);
        assert!(text.contains("\"o_a\" BIGINT,\n") && text.contains("Tried: all 200 records"), "{text}");
        assert!(
            text.contains("-- Field [\"o\"] is no object in 1 records (partition 0, offset 17)"),
            "{text}"
        );
    }

    #[test]
    fn every_refused_record_has_its_number_and_reason() {
        let text = proposed(&["{\"x\":1}", "[]", "no json", "{\"x\":2}", "{\"y\":null,\"x\":\"\\u0000\"}"]);
        assert!(text.contains("-- Tried: 3 of 5 records would become dead letters:"), "{text}");
        for line in ["offset 1: not_an_object: ", "offset 2: invalid_json: ", "offset 4: nul_character: "] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let many: Vec<String> =
            (0..300).map(|n| if n < 100 { "{\"x\":1}" } else { "[]" }.to_owned()).collect();
        let text = proposed(&many);
        assert!(
            text.contains("-- Tried: 200 of 300") && text.contains("--   and 100 more: not_an_object 100"),
            "{text}"
        );
        assert_eq!(text.matches("--   partition 0").count(), 100, "{text}");
    }

    #[test]
    fn names_fit_sql_and_nothing_is_taken_for_two() {
        assert_eq!(column_name(&["measured.At", "ms"]), "measured_at_ms");
        assert_eq!(column_name(&["7 days"]), "_7_days");
        assert_eq!(column_name(&["ä"]), "_");
        let text = proposed(&[r#"{"a":{"b":1},"a_b":2,"A_b":3,"x y":[1],"z":"t","ctid":5,"XMIN":6}"#, "[]"]);
        for line in [
            "    \"a_b\" BIGINT,\n",
            "    \"a_b_2\" BIGINT,\n",
            "    \"a_b_3\" BIGINT,\n",
            "    \"ctid_2\" BIGINT,\n",
            "    \"xmin_2\" BIGINT,\n",
            "--| a_b_2 = { field = [\"a\", \"b\"] }\n",
            "--| a_b = { field = [\"A_b\"] }\n",
            "--| ctid_2 = { field = [\"ctid\"] }\n",
            "--| xmin_2 = { field = [\"XMIN\"] }\n",
            "-- in 1 of 1: 1 text; longest 1 characters\n    \"z\" TEXT\n);",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("NOT NULL"), "one record proves nothing");
        let long = "x".repeat(100);
        let text = proposed(&[format!("{{\"{long}\":1,\"{long}y\":2}}")]);
        assert!(text.contains(&format!("    \"{}_2\" BIGINT", "x".repeat(61))), "{text}");
    }

    #[test]
    fn no_name_ends_a_line_a_string_or_a_comment() {
        for name in [
            "a\n); CREATE TABLE pwned(); --",
            "'''\n\"\"\"\n; DROP TABLE x",
            "*/ \" ' \\ \\\" $$",
            "\u{1b}[31m\u{9b}m\u{202e}\u{2028}\u{85}\r\0\u{7f}",
            "--| x = 1",
            "ä 日本 🚀",
        ] {
            let record = serde_json::json!({ name: 1, "n": { name: 2 } }).to_string();
            let sample = sample(&[&record]);
            let proposal = Proposal::of(name, "t", 1, &sample);
            let mut trial = Trial::new(&proposal).unwrap();
            places().zip([&record, name]).for_each(|(place, value)| trial.run(place, Some(value.as_bytes())));
            let text = proposal.text(&trial.verdict());
            let statement: Vec<&str> =
                text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            assert_eq!(statement.len(), 2 + 2 + 1, "the table, two columns, and an empty line\n{text}");
            assert!(
                statement[1..3].iter().all(|line| line.trim_end_matches(',').ends_with("BIGINT")),
                "{text}"
            );
            assert_eq!(printable(&text.replace('\n', "")), text.replace('\n', ""), "{text:?}");
            // And the model still means the field of that name.
            assert!(text.contains("--   partition 0, offset 1: invalid_json"), "{text}");
            assert!(text.contains("Tried: 1 of 2"), "{text}");
        }
    }

    #[test]
    fn a_table_of_any_name() {
        let proposal = Proposal::of("t", "My \"table\"", 1, &sample(&["{\"x\":1}"]));
        let text = proposal.text(&Trial::new(&proposal).unwrap().verdict());
        assert!(text.contains("CREATE TABLE \"My \"\"table\"\"\" ("), "{text}");
        assert!(text.contains("--| table = \"\\\"My \\\"\\\"table\\\"\\\"\\\"\"\n"), "{text}");
    }
}
