//! From models as written to the plan: what stands together, what fits the table's types, and what models that share a
//! table agree on. Every problem is told, with its remedy.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use jiff::tz::TimeZone;

use super::keys;
use super::mode::{Fold, Join, Keyed};
use super::notation::{Format, Notation, TimeForm, Years};
use super::plan::{
    Condition, Envelope, Expected, Model, OPTIONAL_MAX, Path, Plan, PlanColumn, Source, TablePlan, TopicPlan,
};
use super::retention::Retention;
use super::types::{Column, Encoding, Table, Type, Unit};
use super::{Kafka, OnUnknown, RawModel, RawPath, RawSource, Scalar, Tombstones};
use crate::base::spelling::did_you_mean;

/// A sentence about what is wrong with the configuration, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks all models against the catalog. `tables` is keyed by [`RawModel::table`]; `lookups` are the configured names,
/// whose indexes the plan uses. All problems are reported, not only the first.
pub fn compile(
    models: &[RawModel],
    tables: &HashMap<String, Table>,
    lookups: &[String],
) -> Result<Plan, Vec<Problem>> {
    let mut problems = Vec::new();
    let drafts: Vec<Draft<'_>> = models
        .iter()
        .enumerate()
        .filter_map(|(index, raw)| draft(index, raw, tables, lookups, &mut problems))
        .collect();
    check_pairs(&drafts, &mut problems);
    let plan = assemble(drafts, &mut problems);
    if problems.is_empty() { Ok(plan) } else { Err(problems) }
}

/// One model by itself, before the models that share its table are known.
struct Draft<'a> {
    label: String,
    raw: &'a RawModel,
    table: &'a Table,
    envelope: Envelope,
    when: Vec<Condition>,
    delete_when: Vec<Condition>,
    /// The places of the key's columns in the table; none where rows are appended.
    key: Vec<usize>,
    /// One for each column of the table.
    columns: Vec<Filled>,
    /// The same: the length of a time's bucket in microseconds.
    floors: Vec<Option<i64>>,
}

enum Filled {
    By(Source),
    /// Left to the server, with the reason.
    Server(&'static str),
}

fn draft<'a>(
    index: usize,
    raw: &'a RawModel,
    tables: &'a HashMap<String, Table>,
    lookups: &[String],
    problems: &mut Vec<Problem>,
) -> Option<Draft<'a>> {
    let label = format!("model {} (topic {:?}, table {:?})", index + 1, raw.topic, raw.table);
    let mut problem = |text: String| problems.push(Problem(format!("{label}: {text}")));
    if raw.topic.is_empty() {
        problem("the topic has no name".into());
    }
    let Some(table) = tables.get(&raw.table) else {
        problem("the table could not be read".into());
        return None;
    };
    for name in raw.columns.keys().filter(|name| table.columns.iter().all(|column| column.name != **name)) {
        let names = table.columns.iter().map(|column| column.name.as_str());
        problem(format!("the table has no column {name:?}{}", did_you_mean(name, names)));
    }
    for (setting, conditions) in [("when", &raw.when), ("delete_when", &raw.delete_when)] {
        for path in conditions.keys().filter(|path| path.split('.').any(str::is_empty)) {
            problem(format!(
                "{setting}: the field's path {path:?} has an empty name: name the field that tells the records apart"
            ));
        }
    }
    let envelope = Envelope::new(raw).unwrap_or_else(|text| {
        problem(text);
        Envelope::default()
    });
    let conditions = |written: &BTreeMap<String, Scalar>| -> Vec<Condition> {
        let conditions = written.iter().map(|(path, value)| Condition::new(path, value));
        conditions.map(|condition| Condition { path: envelope.place(condition.path), ..condition }).collect()
    };
    let (when, delete_when) = (conditions(&raw.when), conditions(&raw.delete_when));
    keys::model_problems(raw, table).into_iter().for_each(&mut problem);
    let key = keys::key(raw, table).unwrap_or_else(|text| {
        problem(text);
        Vec::new()
    });
    let (mut columns, mut floors) = (Vec::new(), Vec::new());
    for (place, column) in table.columns.iter().enumerate() {
        let written = raw.columns.get(&column.name);
        let filled = fill(column, written, lookups).and_then(|filled| {
            check_join(raw, column, &filled, key.contains(&place))?;
            Ok(filled)
        });
        let floor = written.and_then(|written| written.floor.as_deref());
        match floor.map(|text| keys::bucket(text, &column.ty)).transpose() {
            Ok(floor) => floors.push(floor),
            Err(text) => problem(format!("column {:?}: {text}", column.name)),
        }
        match filled {
            Ok(Filled::By(Source::Kafka(Kafka::Element))) if envelope.records.is_none() => {
                problem(format!(
                    "column {:?}: kafka = \"element\" goes with `records` in the model",
                    column.name
                ));
            }
            Ok(Filled::By(source)) => columns.push(Filled::By(envelope.place_source(source))),
            Ok(filled) => columns.push(filled),
            Err(text) => problem(format!("column {:?}: {text}", column.name)),
        }
    }
    let is_whole = columns.len() == table.columns.len() && floors.len() == columns.len();
    is_whole.then_some(Draft { label, raw, table, envelope, when, delete_when, key, columns, floors })
}

/// What the mode asks of a column.
fn check_join(raw: &RawModel, column: &Column, filled: &Filled, is_key: bool) -> Result<(), String> {
    if let Filled::Server(why) = filled {
        let is_time = keys::time_of(raw) == Some(&column.name);
        return if is_key || is_time {
            Err(format!("is {why}, and mode = {:?} needs it in every record; map it", raw.mode.name()))
        } else {
            Ok(())
        };
    }
    keys::join(raw, column, is_key)?;
    let written = raw.columns.get(&column.name);
    if is_key && raw.tombstones == Tombstones::Delete && !keys::fits_tombstone(written) {
        return Err(
            "is in the key, and a tombstone has none but Kafka's: say { kafka = \"key\" }, or pass over tombstones and \
             let a message delete, with delete_when"
                .into(),
        );
    }
    Ok(())
}

/// How one model fills one column; the error is half a sentence with its remedy.
fn fill(column: &Column, written: Option<&RawSource>, lookups: &[String]) -> Result<Filled, String> {
    let Some(written) = written else {
        return match &column.ty {
            _ if column.fills_itself => Ok(Filled::Server("filled by the server")),
            Type::Unsupported(_) if column.has_default => Ok(Filled::Server("left to its default")),
            Type::Unsupported(ty) => Err(format!(
                "rowmill cannot write the type {ty}; leave the column to the server with {{ default = true }}{}",
                if column.not_null { " and give it a default, or allow NULL" } else { "" }
            )),
            _ => Ok(Filled::By(Source::Field {
                path: Path(vec![column.name.clone()]),
                notation: Notation::default(),
            })),
        };
    };
    if written.default == Some(true) {
        return fill_by_default(column, written);
    }
    if column.generated_or_identity_always {
        return Err("the server fills this column itself; remove the line".into());
    }
    if let Type::Unsupported(ty) = &column.ty {
        return Err(format!("rowmill cannot write the type {ty}; use {{ default = true }}"));
    }
    let source = source(column, written, lookups)?;
    check_type(column, &source)?;
    Ok(Filled::By(source))
}

fn fill_by_default(column: &Column, written: &RawSource) -> Result<Filled, String> {
    let alone = RawSource { default: Some(true), ..RawSource::default() };
    if *written != alone {
        return Err("default = true goes with no other setting".into());
    }
    if column.not_null && !column.has_default {
        return Err(
            "has no default and takes no NULL; map it to a field, or give it a default in the table".into()
        );
    }
    Ok(Filled::Server(if column.has_default { "left to its default" } else { "left NULL" }))
}

/// Sorts out which settings stand together.
fn source(column: &Column, written: &RawSource, lookups: &[String]) -> Result<Source, String> {
    if written.default == Some(false) || written.message == Some(false) {
        return Err("a setting of false has no meaning; remove it".into());
    }
    if written.fold == Some(Fold::Count) {
        let alone = RawSource { fold: written.fold, ..RawSource::default() };
        return if *written == alone {
            Ok(Source::One)
        } else {
            Err("fold = \"count\" counts records, whatever is in them: it goes with no other setting".into())
        };
    }
    let kinds = [
        written.lookup.is_some(),
        written.clock.is_some(),
        written.message.is_some(),
        written.kafka.is_some(),
        written.header.is_some(),
    ];
    if kinds.iter().filter(|is| **is).count() > 1 {
        return Err("takes one of lookup, clock, message, kafka, header, not several".into());
    }
    let is_field = kinds.iter().all(|is| !is);
    if written.field.is_some() && !is_field && written.lookup.is_none() {
        return Err("field goes with a plain field or a lookup only".into());
    }
    if !is_field && has_notation(written) {
        return Err("unit, format, zone, years, encoding, from and empty go with a plain field only".into());
    }
    if written.floor.is_some() && !is_field && written.kafka != Some(Kafka::Timestamp) {
        return Err("floor goes with a plain field or kafka = \"timestamp\" only".into());
    }
    if written.unknown.is_some() && written.lookup.is_none() {
        return Err("unknown goes with a lookup only".into());
    }
    let path = match &written.field {
        None => Path(vec![column.name.clone()]),
        Some(raw) => Path::new(raw)?,
    };
    Ok(if let Some(name) = &written.lookup {
        let Some(lookup) = lookups.iter().position(|known| known == name) else {
            let hint = did_you_mean(name, lookups.iter().map(String::as_str));
            return Err(format!("there is no lookup {name:?}{hint}; define it in [lookup.{name}]"));
        };
        let unknown = written.unknown.unwrap_or_default();
        if unknown == OnUnknown::Null && column.not_null {
            return Err("takes no NULL, so unknown = \"null\" cannot be; use \"dead_letter\"".into());
        }
        Source::Lookup { path, lookup, name: name.clone(), unknown }
    } else if written.clock.is_some() {
        Source::Clock
    } else if written.message.is_some() {
        Source::Message
    } else if let Some(part) = written.kafka {
        Source::Kafka(part)
    } else if let Some(name) = &written.header {
        if name.is_empty() {
            return Err("header is empty: name one of the record's headers".into());
        }
        Source::Header(name.clone())
    } else {
        Source::Field { path, notation: notation(&column.ty, written)? }
    })
}

fn has_notation(written: &RawSource) -> bool {
    let times = written.unit.is_some() || written.format.is_some() || written.zone.is_some();
    let others = written.encoding.is_some() || written.from.is_some() || written.empty.is_some();
    times || written.years.is_some() || others
}

/// How the field is written, as far as the column's type has a choice.
fn notation(ty: &Type, written: &RawSource) -> Result<Notation, String> {
    let scalar = ty.scalar();
    let for_types = |fits: bool, takers: &str| {
        if fits { Ok(()) } else { Err(format!("is of type {ty}, but {takers}")) }
    };
    if let Some(unit) = written.unit {
        let (fits, takers) = match unit {
            Unit::Days => (*scalar == Type::Date, "a unit of days is for date columns"),
            _ => (
                matches!(scalar, Type::Timestamptz | Type::Timestamp | Type::Time),
                "a unit is for timestamptz, timestamp and time columns, and \"d\" for date columns",
            ),
        };
        for_types(fits, takers)?;
        if written.format.is_some() || written.zone.is_some() {
            return Err("a number needs no format and no zone; remove them, or the unit".into());
        }
    }
    let is_time = matches!(scalar, Type::Timestamptz | Type::Timestamp | Type::Date | Type::Time);
    for_types(written.format.is_none() || is_time, "a format is for columns of dates and times")?;
    for_types(
        written.zone.is_none() || *scalar == Type::Timestamptz,
        "a zone is for timestamptz columns: the others store what the clock showed",
    )?;
    for_types(
        written.years.is_none() || (is_time && *scalar != Type::Time),
        "years are for timestamptz, timestamp and date columns",
    )?;
    let encoding = written.encoding.unwrap_or_default();
    for_types(encoding == Encoding::default() || *scalar == Type::Bytea, "an encoding is for bytea columns")?;
    let takes_values = matches!(scalar, Type::Bool | Type::Json | Type::Jsonb | Type::Numeric(_))
        || matches!(scalar, Type::Int2 | Type::Int4 | Type::Int8 | Type::Float4 | Type::Float8);
    for_types(
        written.from.is_none() || takes_values,
        "from = \"text\" is for columns of numbers, booleans and JSON: the others take text as it is",
    )?;
    let zone = written.zone.as_deref().map(zone).transpose()?;
    let time = match (written.unit, &written.format) {
        (Some(unit), _) => TimeForm::Number(unit),
        (None, Some(format)) => TimeForm::Format(Format::new(format, scalar, zone.as_ref())?),
        (None, None) => TimeForm::Iso8601,
    };
    let usual = matches!((&time, scalar), (TimeForm::Number(_), ty) if *ty != Type::Time)
        .then_some(Years::OF_NUMBERS);
    let years = written.years.map(Years::new).transpose()?.or(usual);
    let (from_text, empty_is_null) = (written.from.is_some(), written.empty.is_some());
    Ok(Notation { time, zone, years, encoding, from_text, empty_is_null })
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> = jiff::tz::db().available().map(|known| known.to_string()).collect();
        let hint = did_you_mean(name, known.iter().map(String::as_str));
        format!("there is no time zone {name:?}{hint}; a zone is named like \"Europe/Berlin\"")
    })
}

/// Whether the column's type can take what the source gives.
fn check_type(column: &Column, source: &Source) -> Result<(), String> {
    let ty = &column.ty;
    let is_time = matches!(ty, Type::Timestamptz | Type::Timestamp);
    let is_compound = matches!(ty, Type::Json | Type::Jsonb | Type::Array { .. });
    // A key and a header are bytes of their own.
    let fits_outside_bytes = !matches!(ty, Type::Array { .. } | Type::Date | Type::Time) && !is_time;
    let (fits, takers) = match source {
        Source::Field { .. } | Source::Null => (true, ""),
        // Which types count is the fold's matter.
        Source::One => (true, ""),
        Source::Lookup { .. } => {
            (!is_compound && *ty != Type::Bytea, "a lookup gives text, for a column of a single value")
        }
        Source::Clock => (is_time, "a clock is for timestamptz and timestamp columns"),
        Source::Message => (
            ty.is_text() || matches!(ty, Type::Json | Type::Jsonb),
            "a message is for jsonb, json and text columns",
        ),
        Source::Kafka(Kafka::Key) => (
            fits_outside_bytes,
            "a key is for text, bytea, jsonb and other columns of a single value, not for times",
        ),
        Source::Header(_) => (
            fits_outside_bytes,
            "a header is for text, bytea, jsonb and other columns of a single value, not for times",
        ),
        Source::Kafka(Kafka::Offset) => (*ty == Type::Int8, "an offset is for bigint columns"),
        Source::Kafka(Kafka::Partition) => {
            (matches!(ty, Type::Int4 | Type::Int8), "a partition is for integer and bigint columns")
        }
        Source::Kafka(Kafka::Element) => {
            (matches!(ty, Type::Int4 | Type::Int8), "an element's number is for integer and bigint columns")
        }
        Source::Kafka(Kafka::Timestamp) => (
            is_time || *ty == Type::Int8,
            "a record's timestamp is for timestamptz, timestamp and bigint columns",
        ),
        Source::Kafka(Kafka::Headers) => {
            (matches!(ty, Type::Json | Type::Jsonb), "headers are for jsonb and json columns")
        }
        Source::Kafka(Kafka::Topic) => (ty.is_text(), "a topic's name is for text columns"),
    };
    if fits { Ok(()) } else { Err(format!("is of type {ty}, but {takers}")) }
}

/// What two models can do to each other: take one record twice, or disagree about tombstones.
fn check_pairs(drafts: &[Draft<'_>], problems: &mut Vec<Problem>) {
    for (index, one) in drafts.iter().enumerate() {
        for other in &drafts[index + 1..] {
            let what = if one.table.oid == other.table.oid { one.differs_in(other) } else { None };
            if let Some(what) = what {
                problems.push(Problem(format!(
                    "{} and {} differ in {what}, and all rows of a table are written alike; say the same in both",
                    one.label, other.label
                )));
            }
            if one.raw.topic != other.raw.topic {
                continue;
            }
            if one.table.oid == other.table.oid && !exclusive(&one.when, &other.when) {
                problems.push(Problem(format!(
                    "{} and {} could put one record twice into the same table; give both a `when` on the same field \
                     with different values",
                    one.label, other.label
                )));
            }
            if one.envelope != other.envelope {
                problems.push(Problem(format!(
                    "{} and {} differ in `framing`, `payload` or `records`, and a record of the topic is read once for both; say the same in each \
                     model of the topic",
                    one.label, other.label
                )));
            }
            let sets_aside = |draft: &Draft<'_>| draft.raw.tombstones == Tombstones::DeadLetter;
            if sets_aside(one) != sets_aside(other) {
                problems.push(Problem(format!(
                    "{} and {} differ in `tombstones`, and a record without a value belongs to both; say \"dead_letter\" in each \
                     model of the topic, or \"skip\" or \"delete\" in each",
                    one.label, other.label
                )));
            }
        }
    }
}

/// No record can meet both: some field would need two values at once.
fn exclusive(one: &[Condition], other: &[Condition]) -> bool {
    one.iter().any(|a| other.iter().any(|b| a.path == b.path && a.equals != b.equals))
}

/// Models of one table agree on one column list; topics get their models.
fn assemble(drafts: Vec<Draft<'_>>, problems: &mut Vec<Problem>) -> Plan {
    let mut plan = Plan { tables: Vec::new(), models: Vec::new(), topics: Vec::new() };
    // For each plan table: the places of its COPY columns in the catalog's list.
    let mut places: Vec<Vec<usize>> = Vec::new();
    for draft in &drafts {
        if plan.tables.iter().all(|table| table.oid != draft.table.oid) {
            let feeders: Vec<_> = drafts.iter().filter(|other| other.table.oid == draft.table.oid).collect();
            let (table, of_table) = merge(draft.table, &feeders, problems);
            plan.tables.push(table);
            places.push(of_table);
        }
    }
    for draft in drafts {
        let table = plan.tables.iter().position(|table| table.oid == draft.table.oid).expect("just added");
        let envelope = draft.envelope.clone();
        let model = finish(draft, table, &places[table]);
        let TablePlan { sql_name, keyed, columns, .. } = &plan.tables[table];
        let mode = keyed.as_ref().map(|keyed| format!(" {}", keyed.routing_text(columns)));
        let route = format!("{sql_name} {}{}", model.when_text(), mode.unwrap_or_default());
        let index = plan.models.len();
        match plan.topics.iter_mut().find(|topic| topic.name == model.topic) {
            Some(topic) => {
                topic.models.push(index);
                topic.routes.push(route);
                topic.routes.sort_unstable();
            }
            None => plan.topics.push(TopicPlan {
                name: model.topic.clone(),
                models: vec![index],
                tombstones: match model.tombstones {
                    // Which of the topic's tables delete is their models' matter.
                    Tombstones::Delete => Tombstones::Skip,
                    other => other,
                },
                envelope,
                routes: vec![route],
            }),
        }
        plan.models.push(model);
    }
    plan
}

/// The union of what the models fill: clocks first, then the key in its own order, then the rest in the catalog's.
fn merge(table: &Table, feeders: &[&Draft<'_>], problems: &mut Vec<Problem>) -> (TablePlan, Vec<usize>) {
    let mut problem = |column: &Column, text: &str| {
        problems.push(Problem(format!("table {}, column {:?}: {text}", table.sql_name, column.name)));
    };
    let (mut clocks, mut others) = (Vec::new(), Vec::new());
    let key = &feeders[0].key;
    for (place, column) in table.columns.iter().enumerate() {
        let filled = feeders.iter().filter(|draft| matches!(draft.columns[place], Filled::By(_))).count();
        let clocked =
            feeders.iter().filter(|draft| matches!(draft.columns[place], Filled::By(Source::Clock))).count();
        if clocked > 0 && clocked < feeders.len() {
            problem(
                column,
                "some models stamp it by a clock and some do not; all must, since all rows are stamped alike",
            );
        }
        match (clocked, filled) {
            (_, 0) => {}
            _ if key.contains(&place) => {}
            (0, _) => others.push(place),
            _ => clocks.push(place),
        }
    }
    let clock_columns = clocks.len();
    let places: Vec<_> = clocks.into_iter().chain(key.iter().copied()).chain(others).collect();
    // The tuple's field count is an int16; the server's own bound is 1600.
    assert!(places.len() <= 1600, "PostgreSQL tables have at most 1600 columns");
    let columns: Vec<&Column> = places.iter().map(|place| &table.columns[*place]).collect();
    let mut optional = 0..OPTIONAL_MAX;
    let mut plan_column = |(index, column): (usize, &&Column)| {
        // A clock always has a value; and of rows that are one, some could leave a column to its default and some not.
        let may_be_absent = column.has_default && index >= clock_columns && key.is_empty();
        let optional = may_be_absent.then(|| {
            optional.next().or_else(|| {
                problem(
                    column,
                    &format!(
                        "it is one of more than {OPTIONAL_MAX} columns with defaults that models fill; leave those that \
                         no record has to the server, with {{ default = true }}"
                    ),
                );
                None
            })
        });
        PlanColumn {
            name: column.name.clone(),
            ty: column.ty.clone(),
            not_null: column.not_null,
            optional: optional.flatten(),
        }
    };
    let columns = columns.iter().enumerate().map(&mut plan_column).collect();
    if places.is_empty() {
        problems.push(Problem(format!("table {}: no model fills any column of it", table.sql_name)));
    }
    let retention = retention(table, feeders[0].raw, &places).unwrap_or_else(|text| {
        problems.push(Problem(format!("table {}: {text}", table.sql_name)));
        None
    });
    let plan = TablePlan {
        oid: table.oid,
        name: plain_name(table),
        sql_name: table.sql_name.clone(),
        fingerprint: table.fingerprint.clone(),
        columns,
        clock_columns,
        keyed: (!key.is_empty()).then(|| keyed(table, feeders, &places)),
        retention,
    };
    (plan, places)
}

/// How long rows are kept, by models that agree; `places` are the table's COPY columns.
fn retention(table: &Table, raw: &RawModel, places: &[usize]) -> Result<Option<Retention>, String> {
    let Some(keep) = &raw.retention else {
        return match (&raw.partitions, raw.partition_unit) {
            (None, None) => Ok(None),
            _ => Err("partitions and partition_unit go with retention".into()),
        };
    };
    let column = table.ranged_by.as_ref().and_then(|name| table.columns.iter().position(|c| c.name == *name));
    let Some(place) = column else {
        return Err(
            "retention drops whole partitions, so the table has to be partitioned: CREATE TABLE .. PARTITION BY RANGE (its time)".into(),
        );
    };
    let Column { name, ty, .. } = &table.columns[place];
    let copied = places.iter().position(|copied| *copied == place);
    Retention::new(keep, raw.partitions.as_deref(), raw.partition_unit, (copied, name, ty)).map(Some)
}

/// How rows of one key become one, by models that agree.
fn keyed(table: &Table, feeders: &[&Draft<'_>], places: &[usize]) -> Keyed {
    let Draft { raw, key, .. } = feeders[0];
    let join = |place: &usize| {
        let column = &table.columns[*place];
        let fills = |draft: &&&Draft<'_>| matches!(draft.columns[*place], Filled::By(_));
        let by = feeders.iter().find(fills).map_or(*raw, |draft| draft.raw);
        // Where they do not agree, that is said, and there is no plan.
        keys::join(by, column, key.contains(place)).unwrap_or(Join::Whole)
    };
    let time = keys::time_of(raw);
    Keyed {
        mode: raw.mode,
        keys: key.len(),
        time: places.iter().position(|place| Some(&table.columns[*place].name) == time),
        joins: places.iter().map(join).collect(),
        deletes: feeders.iter().any(|draft| draft.deletes()),
    }
}

impl Draft<'_> {
    fn deletes(&self) -> bool {
        self.raw.tombstones == Tombstones::Delete || !self.delete_when.is_empty()
    }

    /// What two models of one table differ in, of that which decides what its rows are.
    fn differs_in(&self, other: &Draft<'_>) -> Option<String> {
        let settings = [
            ("mode", self.raw.mode == other.raw.mode),
            ("key", self.key == other.key),
            ("newest", self.raw.newest == other.raw.newest),
            ("oldest", self.raw.oldest == other.raw.oldest),
            ("retention", self.raw.retention == other.raw.retention),
            ("partitions", self.raw.partitions == other.raw.partitions),
            ("partition_unit", self.raw.partition_unit == other.raw.partition_unit),
        ];
        if let Some((setting, _)) = settings.iter().find(|(_, is_same)| !is_same) {
            return Some((*setting).to_owned());
        }
        let both = self.columns.iter().zip(&other.columns).zip(&self.table.columns).enumerate();
        both.filter(|(_, ((a, b), _))| matches!((a, b), (Filled::By(_), Filled::By(_)))).find_map(
            |(place, (_, column))| {
                let join = |draft: &Draft<'_>| keys::join(draft.raw, column, self.key.contains(&place)).ok();
                (join(self) != join(other)).then(|| format!("fold of column {:?}", column.name))
            },
        )
    }
}

fn finish(draft: Draft<'_>, table: usize, places: &[usize]) -> Model {
    let sources = places.iter().map(|place| match &draft.columns[*place] {
        Filled::By(source) => source.clone(),
        Filled::Server(_) => Source::Null,
    });
    let left_out =
        draft.columns.iter().zip(&draft.table.columns).enumerate().filter_map(|(place, (filled, column))| {
            match filled {
                Filled::Server(why) if !places.contains(&place) => Some((column.name.clone(), *why)),
                _ => None,
            }
        });
    Model {
        topic: draft.raw.topic.clone(),
        table,
        sources: sources.collect(),
        floors: places.iter().map(|place| draft.floors[*place]).collect(),
        delete_when: draft.delete_when,
        left_out: left_out.collect(),
        tombstones: draft.raw.tombstones,
        when: draft.when,
    }
}

impl Envelope {
    fn new(raw: &RawModel) -> Result<Envelope, String> {
        let path = |setting: &str, raw: &Option<RawPath>| {
            raw.as_ref().map(Path::new).transpose().map_err(|text| format!("{setting}: {text}"))
        };
        let records = match &raw.records {
            Some(RawPath::Dotted(document)) if document == "." => Some(Path(Vec::new())),
            written => path("records", written)?,
        };
        Ok(Envelope { framing: raw.framing, payload: path("payload", &raw.payload)?, records })
    }

    /// A path within the message, from where the value begins.
    fn place(&self, path: Path) -> Path {
        match &self.payload {
            // Of an element of the list, nothing but itself is read.
            Some(payload) if self.records.is_none() => payload.join(&path),
            _ => path,
        }
    }

    fn place_source(&self, source: Source) -> Source {
        match source {
            Source::Field { path, notation } => Source::Field { path: self.place(path), notation },
            Source::Lookup { path, lookup, name, unknown } => {
                Source::Lookup { path: self.place(path), lookup, name, unknown }
            }
            other => other,
        }
    }
}

impl Condition {
    fn new(path: &str, value: &Scalar) -> Self {
        let equals = match value {
            Scalar::Bool(b) => Expected::Literal(b.to_string()),
            Scalar::Integer(n) => Expected::Literal(n.to_string()),
            Scalar::Text(text) => Expected::Text(text.clone()),
        };
        Self { path: Path(path.split('.').map(str::to_owned).collect()), equals }
    }
}

impl Path {
    fn new(raw: &RawPath) -> Result<Self, String> {
        let parts: Vec<String> = match raw {
            RawPath::Dotted(text) => text.split('.').map(str::to_owned).collect(),
            RawPath::Parts(parts) => parts.clone(),
        };
        let broken =
            parts.is_empty() || (matches!(raw, RawPath::Dotted(_)) && parts.iter().any(String::is_empty));
        if broken { Err("the field's path has an empty name".into()) } else { Ok(Self(parts)) }
    }
}

/// `schema.table` where that needs no quotes, so that no two tables have the same name.
fn plain_name(table: &Table) -> String {
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain(&table.schema) && plain(&table.name) {
        format!("{}.{}", table.schema, table.name)
    } else {
        table.sql_name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::quoted;
    use crate::model::types::Kind;

    #[derive(Debug, serde::Deserialize)]
    struct Models {
        model: Vec<RawModel>,
    }

    fn column(name: &str, ty: Type) -> Column {
        Column {
            name: name.into(),
            attnum: 1,
            ty,
            not_null: true,
            has_default: false,
            generated_or_identity_always: false,
            fills_itself: false,
        }
    }

    fn nullable(name: &str, ty: Type) -> Column {
        Column { not_null: false, ..column(name, ty) }
    }

    fn with_default(column: Column) -> Column {
        Column { has_default: true, ..column }
    }

    fn table(oid: u32, name: &str, columns: Vec<Column>) -> Table {
        Table {
            oid,
            schema: "public".into(),
            name: name.into(),
            sql_name: format!("\"public\".{}", quoted(name)),
            columns,
            primary_key: Vec::new(),
            fingerprint: "f".into(),
            kind: Kind::Ordinary,
            ranged_by: None,
        }
    }

    fn tables() -> HashMap<String, Table> {
        let point = || Type::Unsupported("point".into());
        let ping = vec![
            column("userid", Type::Varchar(Some(100))),
            column("latency", Type::Float8),
            nullable("city", Type::Text),
            column("time", Type::Timestamptz),
            column("timestamp", Type::Timestamptz),
        ];
        let odd = vec![
            Column { fills_itself: true, has_default: true, ..column("id", Type::Int8) },
            Column {
                fills_itself: true,
                generated_or_identity_always: true,
                has_default: true,
                ..column("always", Type::Int8)
            },
            with_default(column("place", point())),
            with_default(column("note", Type::Text)),
            nullable("doc", Type::Jsonb),
            nullable("raw", Type::Bytea),
            nullable("tags", Type::Array { element: Box::new(Type::Text), element_oid: 25 }),
            nullable("odd \"name\"", Type::Int8),
        ];
        let sums = vec![
            column("n", Type::Int8),
            column("name", Type::Text),
            nullable("word", Type::Text),
            with_default(nullable("low", Type::Float8)),
            column("at", Type::Timestamptz),
            column("seen", Type::Timestamptz),
        ];
        [
            table(1, "ping", ping.clone()),
            table(2, "odd", odd),
            table(3, "spot", vec![nullable("place", point()), column("n", Type::Int4)]),
            table(4, "hard", vec![column("place", point())]),
            table(5, "serials", vec![Column { fills_itself: true, ..column("id", Type::Int8) }]),
            Table { primary_key: vec!["at".into(), "name".into()], ..table(6, "sums", sums) },
            Table {
                primary_key: vec!["ratio".into()],
                ..table(7, "floats", vec![column("ratio", Type::Float8)])
            },
        ]
        .into_iter()
        .map(|table| (table.name.clone(), table))
        .chain([("public.ping".to_owned(), table(1, "ping", ping))])
        .collect()
    }

    fn plan(models: &str) -> Result<Plan, Vec<Problem>> {
        let models: Models = toml::from_str(models).unwrap_or_else(|error| panic!("{error}\n{models}"));
        compile(&models.model, &tables(), &["user".to_owned(), "host".to_owned()])
    }

    fn one(table: &str, columns: &str) -> Result<Plan, Vec<Problem>> {
        plan(&format!("[[model]]\ntopic = \"t\"\ntable = \"{table}\"\n[model.columns]\n{columns}"))
    }

    #[test]
    fn a_condition_names_a_field() {
        for field in ["", "a.", ".a", "a..b"] {
            let model =
                format!("[[model]]\ntopic = \"t\"\ntable = \"ping\"\nwhen = {{ {field:?} = \"x\" }}\n");
            let problems = plan(&model).expect_err(field);
            assert!(
                problems.iter().any(|p| p.to_string().contains("has an empty name")),
                "{field}: {problems:?}"
            );
        }
    }

    #[test]
    fn unknown_settings_do_not_parse() {
        fn check(text: &str, expected: &str) {
            let found = toml::from_str::<Models>(text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}\n{found}");
        }
        let model = "[[model]]\ntopic = \"t\"\ntable = \"ping\"\n";
        check("[[model]]\ntopic = \"t\"", "missing field `table`");
        check(&format!("{model}tabel = \"x\""), "unknown field `tabel`");
        check(&format!("{model}tombstones = \"drop\""), "unknown variant `drop`");
        check(&format!("{model}when = {{ a = 1.5 }}"), "a string, an integer or a boolean");
        check(&format!("{model}columns.a = {{ look = \"user\" }}"), "unknown field `look`");
        check(&format!("{model}columns.a = {{ unit = \"m\" }}"), "unknown variant `m`");
        check(&format!("{model}framing = \"protobuf\""), "unknown variant `protobuf`");
        check(&format!("{model}columns.a = {{ from = \"csv\" }}"), "unknown variant `csv`");
        check(&format!("{model}columns.a = {{ empty = \"zero\" }}"), "unknown variant `zero`");
        check(&format!("{model}columns.a = {{ clock = \"read\" }}"), "unknown variant `read`");
        check(&format!("{model}columns.a = {{ kafka = \"value\" }}"), "unknown variant `value`");
        check(&format!("{model}columns.a = {{ encoding = \"postgres\" }}"), "unknown variant `postgres`");
        check(&format!("{model}columns.a = {{ field = 1 }}"), "a field name like");
    }

    #[test]
    fn problems_name_the_column_and_the_remedy() {
        fn check(table: &str, columns: &str, expected: &str) {
            let problems = one(table, columns).expect_err(columns);
            assert!(problems.iter().any(|problem| problem.0.contains(expected)), "{columns}\n{problems:#?}");
        }
        check("ping", "tiem = { field = \"t\" }", "no column \"tiem\"; did you mean \"time\"?");
        check("ping", "qqqqqqq = { field = \"t\" }", "no column \"qqqqqqq\"");
        check("missing", "", "could not be read");
        check("ping", "userid = { lookup = \"usr\" }", "no lookup \"usr\"; did you mean \"user\"?");
        check("ping", "userid = { lookup = \"user\", unknown = \"null\" }", "takes no NULL");
        check("ping", "userid = { default = true }", "has no default");
        check("ping", "city = { default = false }", "no meaning");
        check("ping", "city = { default = true, field = \"x\" }", "no other setting");
        check("ping", "city = { message = false }", "no meaning");
        check("ping", "city = { clock = \"write\" }", "of type text, but a clock is for timestamptz");
        check("ping", "time = { clock = \"write\", message = true }", "one of lookup, clock, message, kafka");
        check("ping", "time = { clock = \"write\", field = \"x\" }", "field goes with");
        check("ping", "time = { kafka = \"timestamp\", unit = \"s\" }", "go with a plain field only");
        check("ping", "city = { unknown = \"null\" }", "unknown goes with a lookup");
        check("ping", "city = { unit = \"s\" }", "a unit is for");
        check("ping", "city = { encoding = \"hex\" }", "an encoding is for");
        check("ping", "city = { kafka = \"element\" }", "an element's number is for integer and bigint");
        check(
            "spot",
            "n = { kafka = \"element\" }\nplace = { default = true }",
            "goes with `records` in the model",
        );
        check("ping", "city = { kafka = \"offset\" }", "an offset is for bigint");
        check("ping", "city = { kafka = \"headers\" }", "headers are for jsonb");
        check("ping", "latency = { message = true }", "a message is for");
        check("ping", "latency = { kafka = \"topic\" }", "a topic's name is for");
        check("ping", "time = { kafka = \"key\" }", "a key is for");
        check("ping", "city = { field = \"\" }", "empty name");
        check("ping", "city = { field = \"a..b\" }", "empty name");
        check("ping", "city = { field = [] }", "empty name");
        check("ping", "city = { from = \"text\" }", "the others take text as it is");
        check("ping", "time = { from = \"text\" }", "the others take text as it is");
        check("odd", "raw = { from = \"text\" }", "the others take text as it is");
        check("odd", "tags = { from = \"text\" }", "the others take text as it is");
        check("ping", "city = { lookup = \"user\", empty = \"null\" }", "go with a plain field only");
        check("ping", "city = { format = \"%Y\" }", "a format is for columns of dates and times");
        check("ping", "time = { format = \"%Y\" }", "the format \"%Y\" cannot be used");
        check("ping", "time = { format = \"%F %T\" }", "say zone");
        check("ping", "time = { format = \"%F %T %z\", unit = \"s\" }", "needs no format");
        check(
            "ping",
            "time = { zone = \"Europe/Berln\" }",
            "no time zone \"Europe/Berln\"; did you mean \"Europe/Berlin\"?",
        );
        check("ping", "city = { zone = \"UTC\" }", "a zone is for timestamptz");
        check("ping", "time = { zone = \"UTC\", unit = \"s\" }", "needs no format and no zone");
        check("ping", "time = { unit = \"d\" }", "a unit of days is for date columns");
        check("ping", "city = { years = [1, 2] }", "years are for");
        check("ping", "time = { years = [2, 1] }", "the first and the last year");
        check("ping", "time = { clock = \"write\", years = [1, 2] }", "go with a plain field only");
        check("odd", "doc = { lookup = \"user\" }", "a lookup gives text");
        check("odd", "always = { field = \"x\" }", "the server fills this column");
        check("odd", "place = { field = \"x\" }", "cannot write the type point");
        check("spot", "", "column \"place\": rowmill cannot write the type point");
        check("hard", "", "give it a default, or allow NULL");
        check("hard", "place = { default = true }", "has no default");
        check("serials", "", "no model fills any column");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems =
            one("ping", "userid = { lookup = \"x\" }\ntiem = {}\ncity = { unit = \"s\" }").unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:#?}");
    }

    #[test]
    fn models_that_share_a_table_agree() {
        fn check(models: &str, expected: Option<&str>) {
            match (plan(models), expected) {
                (Ok(_), None) => {}
                (Err(problems), Some(expected)) if problems.iter().any(|p| p.0.contains(expected)) => {}
                (found, _) => panic!("{models}\n{found:#?}"),
            }
        }
        fn pair(one: &str, other: &str) -> String {
            format!("[[model]]\ntopic = \"a\"\n{one}\n[[model]]\n{other}")
        }
        let twice = Some("twice into the same table");
        check(&pair("table = \"ping\"", "topic = \"a\"\ntable = \"public.ping\""), twice);
        check(&pair("table = \"ping\"", "topic = \"a\"\ntable = \"ping\"\nwhen = { kind = \"x\" }"), twice);
        let x = "table = \"ping\"\nwhen = { kind = \"x\" }";
        check(&pair(x, "topic = \"a\"\ntable = \"ping\"\nwhen = { type = \"y\" }"), twice);
        check(&pair(x, "topic = \"a\"\ntable = \"ping\"\nwhen = { kind = \"x\" }"), twice);
        check(&pair(x, "topic = \"a\"\ntable = \"ping\"\nwhen = { kind = \"y\" }"), None);
        check(&pair("table = \"ping\"", "topic = \"b\"\ntable = \"ping\""), None);
        check(&pair("table = \"ping\"", "topic = \"a\"\ntable = \"odd\""), None);
        check(
            &pair("table = \"ping\"", "topic = \"a\"\ntable = \"odd\"\ntombstones = \"skip\""),
            Some("differ in `tombstones`"),
        );
        check(
            &pair("table = \"ping\"", "topic = \"a\"\ntable = \"odd\"\npayload = \"p\""),
            Some("differ in `framing`, `payload`"),
        );
        check(&pair("table = \"ping\"", "topic = \"b\"\ntable = \"odd\"\npayload = \"p\""), None);
        check(
            &pair("table = \"ping\"", "topic = \"b\"\ntable = \"odd\"\npayload = \"p..q\""),
            Some("payload: the field's path"),
        );
        check(
            &pair("table = \"ping\"", "topic = \"a\"\ntable = \"odd\"\nframing = \"schema-registry\""),
            Some("differ in `framing`"),
        );
        check(
            &pair("table = \"ping\"", "topic = \"a\"\ntable = \"odd\"\nrecords = \".\""),
            Some("or `records`, and a record"),
        );
        check(
            &pair("table = \"ping\"", "topic = \"b\"\ntable = \"odd\"\nrecords = \"a..b\""),
            Some("records: the field's path"),
        );
        let clock = "columns.timestamp = { clock = \"write\" }";
        check(
            &pair(&format!("table = \"ping\"\n{clock}"), "topic = \"b\"\ntable = \"ping\""),
            Some("column \"timestamp\": some models stamp it"),
        );
        check(
            &pair("table = \"odd\"", "topic = \"b\"\ntable = \"odd\"\ncolumns.note = { default = true }"),
            None,
        );
        check(
            &pair("table = \"odd\"", "topic = \"b\"\ntable = \"odd\"\ncolumns.doc = { default = true }"),
            None,
        );
    }

    /// A model of the table `sums`, these settings first, and then these columns.
    fn keyed(settings: &str, columns: &str) -> Result<Plan, Vec<Problem>> {
        plan(&format!("[[model]]\ntopic = \"t\"\ntable = \"sums\"\n{settings}\n[model.columns]\n{columns}"))
    }

    const FOLDS: &str = "n = { fold = \"sum\" }\nword = { fold = \"last\" }\nlow = { fold = \"min\" }\n";

    #[test]
    fn settings_of_modes_stand_together() {
        #[track_caller]
        fn check(settings: &str, columns: &str, expected: &str) {
            let problems = keyed(settings, columns).expect_err(expected);
            assert!(problems.iter().any(|p| p.0.contains(expected)), "{settings}\n{columns}\n{problems:#?}");
        }
        let (add, upsert, first) = ("mode = \"add\"", "mode = \"upsert\"", "mode = \"first\"");
        let with = |mode: &str, more: &str| format!("{mode}\n{more}");
        check("key = [\"name\"]", "", "go with mode =");
        check("newest = \"at\"", "", "go with mode =");
        check("tombstones = \"delete\"", "", "go with mode = \"upsert\" only");
        check("delete_when = { op = \"d\" }", "", "go with mode = \"upsert\" only");
        check(&with(add, "delete_when = { op = \"d\" }"), FOLDS, "go with mode = \"upsert\" only");
        check(&with(upsert, "delete_when = { \"a..b\" = \"d\" }"), "", "has an empty name");
        check(&with(upsert, "oldest = \"seen\""), "", "with \"upsert\" say newest");
        check(&with(first, "newest = \"seen\""), "", "say oldest");
        check(
            &with(upsert, "newest = \"seen\"\ndelete_when = { op = \"d\" }"),
            "",
            "newest does not go with deletions",
        );
        check(&with(upsert, "newest = \"sen\""), "", "no column \"sen\"; did you mean \"seen\"?");
        check(&with(upsert, "newest = \"word\""), "", "must be a time, a date or an integer");
        check(&with(upsert, "newest = \"seen\""), "seen = { clock = \"write\" }", "when the thing happened");
        check(
            &with(upsert, "newest = \"seen\""),
            "seen = { floor = \"1m\" }",
            "floor makes many moments one",
        );
        check(&with(upsert, "key = [\"nam\"]"), "", "did you mean \"name\"?");
        check(&with(upsert, "key = [\"name\", \"name\"]"), "", "is there twice");
        check(&with(upsert, "key = [\"word\"]"), "", "may be NULL");
        check(&with(upsert, "key = [\"low\"]"), "", "0 and -0 are one number");
        check(upsert, "at = { clock = \"write\" }", "a key of its own");
        check(upsert, "n = { fold = \"sum\" }", "fold goes with mode = \"add\"");
        check(&with(upsert, "tombstones = \"delete\""), "", "a tombstone has none but Kafka's");
        check(add, "", "must say how many rows become one");
        check(add, "n = { fold = \"sum\" }\nname = { fold = \"max\" }", "is in the key");
        check(add, "word = { fold = \"sum\" }", "a sum is for smallint");
        check(add, "low = { fold = \"sum\" }", "depends on the order");
        check(add, "word = { fold = \"max\" }", "min and max are for");
        check(add, "word = { fold = \"count\" }", "a count is for integer columns");
        check(add, "n = { fold = \"count\", field = \"x\" }", "goes with no other setting");
        check(add, "word = { fold = \"last\" }", "needs a time");
        check(&with(add, "newest = \"seen\""), "seen = { fold = \"min\" }", "its greatest stays");
        check(add, "at = { floor = \"7m\" }", "does not divide a day");
        check(add, "n = { fold = \"sum\", floor = \"1m\" }", "floor is for timestamptz");
        check(upsert, "at = { kafka = \"offset\", floor = \"1m\" }", "floor goes with a plain field");
        let problems =
            plan("[[model]]\ntopic = \"t\"\ntable = \"ping\"\nmode = \"upsert\"").expect_err("no key");
        assert!(problems[0].0.contains("the table has no primary key"), "{problems:#?}");
        let problems =
            plan("[[model]]\ntopic = \"t\"\ntable = \"floats\"\nmode = \"upsert\"").expect_err("a float");
        assert!(problems[0].0.contains("0 and -0"), "{problems:#?}");
    }

    #[test]
    fn keys_stand_behind_clocks_in_their_own_order() {
        let columns = format!("{FOLDS}seen = {{ clock = \"write\" }}\nat = {{ floor = \"1m\" }}");
        let plan = keyed("mode = \"add\"\nnewest = \"at\"", &columns);
        assert!(
            plan.is_err_and(|p| p[0].0.contains("floor makes")),
            "the key cannot be the time that decides"
        );
        let columns = "n = { fold = \"count\" }\nword = { default = true }\nlow = { fold = \"min\" }\nseen = { clock = \"write\" }\n\
                       at = { kafka = \"timestamp\", floor = \"15m\" }";
        let plan = keyed("mode = \"add\"", columns).expect("a model that fits");
        let table = &plan.tables[0];
        let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["seen", "at", "name", "n", "low"]);
        assert!(
            table.columns.iter().all(|column| column.optional.is_none()),
            "rows that are one have one shape"
        );
        let keyed = table.keyed.as_ref().expect("it has keys");
        assert_eq!((keyed.keys, keyed.time, keyed.deletes), (2, None, false));
        assert_eq!(keyed.joins, [Join::Whole, Join::Key, Join::Key, Join::Sum, Join::Least]);
        assert_eq!(
            plan.topics[0].routing_text(),
            "\"public\".\"sums\" always add by (\"at\", \"name\") sum (\"n\") least (\"low\")"
        );
        let explained = plan.models[0].explain(&plan);
        assert_eq!(explained[0], "mode add: of rows with the same (\"at\", \"name\"), they are added up");
        assert!(
            explained.contains(
                &"\"at\" timestamptz: the record's timestamp; its 15 minutes in UTC; the key".to_owned()
            ),
            "{explained:#?}"
        );
        assert!(
            explained.contains(&"\"n\" bigint: 1 for each record; added up".to_owned()),
            "{explained:#?}"
        );
    }

    #[test]
    fn models_of_one_table_write_it_alike() {
        #[track_caller]
        fn check(one: &str, other: &str, expected: Option<&str>) {
            let model = |topic, more| format!("[[model]]\ntopic = \"{topic}\"\ntable = \"sums\"\n{more}\n");
            match (plan(&(model("a", one) + &model("b", other))), expected) {
                (Ok(_), None) => {}
                (Err(problems), Some(expected)) if problems.iter().any(|p| p.0.contains(expected)) => {}
                (found, _) => panic!("{one}\n{other}\n{found:#?}"),
            }
        }
        let upsert = "mode = \"upsert\"";
        check(upsert, upsert, None);
        check(upsert, "", Some("differ in mode"));
        check(upsert, "mode = \"upsert\"\nnewest = \"seen\"", Some("differ in newest"));
        check(upsert, "mode = \"upsert\"\nkey = [\"name\", \"at\"]", Some("differ in key"));
        let add = |n: &str| {
            format!(
                "mode = \"add\"\n[model.columns]\nn = {{ fold = {n:?} }}\nword = {{ default = true }}\nlow = {{ fold = \"min\" }}\nseen = {{ fold = \"max\" }}"
            )
        };
        check(&add("sum"), &add("count"), None);
        check(&add("sum"), &add("max"), Some("differ in fold of column \"n\""));
    }

    #[test]
    fn a_topics_models_pass_over_tombstones_or_delete_by_them() {
        let upsert = "[[model]]\ntopic = \"t\"\ntable = \"sums\"\nmode = \"upsert\"\nkey = [\"name\"]\ntombstones = \"delete\"\n\
                      columns.name = { kafka = \"key\" }\n";
        let ping = |more: &str| format!("{upsert}[[model]]\ntopic = \"t\"\ntable = \"ping\"\n{more}");
        let both = plan(&ping("tombstones = \"skip\"")).expect("they agree");
        assert_eq!(both.topics[0].tombstones, Tombstones::Skip);
        assert_eq!(both.models[0].tombstones, Tombstones::Delete);
        assert!(both.tables[0].keyed.as_ref().is_some_and(|keyed| keyed.deletes));
        let problems = plan(&ping("")).expect_err("a tombstone would be a dead letter for one");
        assert!(problems[0].0.contains("differ in `tombstones`"), "{problems:#?}");
    }

    #[test]
    fn clocks_come_first_and_the_rest_in_the_tables_order() {
        let plan = one(
            "ping",
            "timestamp = { clock = \"write\" }\nuserid = { lookup = \"user\", field = \"token\" }",
        );
        let plan = plan.unwrap();
        let table = &plan.tables[0];
        assert_eq!(table.clock_columns, 1);
        let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["timestamp", "userid", "latency", "city", "time"]);
        assert_eq!(
            plan.models[0].explain(&plan),
            [
                "\"timestamp\" timestamptz: stamped by the writer just before the row is sent",
                "\"userid\" varchar(100): what lookup \"user\" has for the token in field \"token\"; must be there; an \
                 unknown token makes a dead letter",
                "\"latency\" double precision: field \"latency\"; must be there",
                "\"city\" text: field \"city\"; NULL when absent",
                "\"time\" timestamptz: field \"time\"; must be there",
            ]
        );
    }

    #[test]
    fn check_shows_how_a_field_is_written() {
        fn check(setting: &str, expected: &str) {
            let plan = one("ping", &format!("time = {setting}")).unwrap();
            let explained = plan.models[0].explain(&plan);
            let line = explained.iter().find(|line| line.starts_with("\"time\"")).unwrap();
            assert_eq!(line, &format!("\"time\" timestamptz: field \"time\"{expected}; must be there"));
        }
        check("{}", "");
        check("{ unit = \"ms\" }", ", milliseconds since 1970, in the years 1970 to 2200");
        check("{ unit = \"s\", years = [1, 9999] }", ", seconds since 1970, in the years 1 to 9999");
        check("{ years = [2000, 2100] }", ", in the years 2000 to 2100");
        check("{ zone = \"Europe/Berlin\" }", ", by the clocks of Europe/Berlin where it has no offset");
        check("{ format = \"%F %T %z\" }", ", in the format \"%F %T %z\"");
        check("{ empty = \"null\" }", ", NULL for an empty text");
        let plan = one("ping", "latency = { from = \"text\", empty = \"null\" }").unwrap();
        let explained = plan.models[0].explain(&plan).join("\n");
        assert!(
            explained.contains("field \"latency\", also as text, NULL for an empty text; must"),
            "{explained}"
        );
    }

    #[test]
    fn paths_begin_in_the_payload() {
        let model = "[[model]]\ntopic = \"t\"\ntable = \"ping\"\nframing = \"schema-registry\"\npayload = [\"pay.load\", \"after\"]\n\
                     when = { kind = \"x\" }\ncolumns.userid = { lookup = \"user\" }\ncolumns.time = { field = \"a.t\" }";
        let plan = plan(model).unwrap();
        let explained = plan.models[0].explain(&plan);
        assert_eq!(
            explained[0],
            "the message follows the five bytes of a schema registry and is the object in field \"pay.load.after\""
        );
        assert!(explained[1].contains("token in field \"pay.load.after.userid\""), "{explained:#?}");
        assert!(explained.iter().any(|line| line.contains("field \"pay.load.after.a.t\"")), "{explained:#?}");
        assert_eq!(plan.models[0].when_text(), "when pay.load.after.kind = \"x\"");
        assert_eq!(plan.topics[0].envelope.payload, Some(Path(vec!["pay.load".into(), "after".into()])));
    }

    #[test]
    fn columns_with_a_default_may_be_absent() {
        let optional = |columns: &str| {
            let plan = one("odd", columns).expect("a model that fits");
            let columns = plan.tables[0].columns.clone();
            let numbers = columns.into_iter().filter_map(|c| Some((c.name, c.optional?)));
            numbers.collect::<Vec<_>>()
        };
        assert_eq!(optional("doc = { message = true }"), [("note".to_owned(), 0)]);
        assert_eq!(optional("id = { field = \"id\" }"), [("id".to_owned(), 0), ("note".to_owned(), 1)]);
        assert_eq!(optional("note = { default = true }"), []);
        let plan = one("odd", "doc = { message = true }").expect("a model that fits");
        let explained = plan.models[0].explain(&plan);
        assert!(explained.iter().any(|line| line.ends_with("its default when absent")), "{explained:#?}");
    }

    #[test]
    fn columns_that_fill_themselves_are_left_out() {
        let plan = one("odd", "note = { default = true }\ndoc = { message = true }").unwrap();
        let names: Vec<_> = plan.tables[0].columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["doc", "raw", "tags", "odd \"name\""]);
        let explained = plan.models[0].explain(&plan);
        assert!(explained.contains(&"\"id\": filled by the server".to_owned()), "{explained:#?}");
        assert!(explained.contains(&"\"note\": left to its default".to_owned()), "{explained:#?}");
        // A serial or identity-by-default column can be named.
        let plan = one("odd", "id = { kafka = \"offset\" }").unwrap();
        assert_eq!(plan.tables[0].columns[0].name, "id");
    }

    #[test]
    fn one_table_has_one_column_list() {
        let models = "[[model]]\ntopic = \"a\"\ntable = \"odd\"\n\
                      [[model]]\ntopic = \"b\"\ntable = \"odd\"\ncolumns.doc = { default = true }";
        let plan = plan(models).unwrap();
        assert_eq!((plan.tables.len(), plan.topics.len()), (1, 2));
        let doc = plan.tables[0].columns.iter().position(|column| column.name == "doc").unwrap();
        assert!(matches!(plan.models[0].sources[doc], Source::Field { .. }));
        assert_eq!(plan.models[1].sources[doc], Source::Null);
    }

    #[test]
    fn routing_does_not_depend_on_the_order_of_models() {
        let x = "[[model]]\ntopic = \"t\"\ntable = \"ping\"\nwhen = { \"meta.kind\" = \"x\" }\n";
        let y = "[[model]]\ntopic = \"t\"\ntable = \"odd\"\nwhen = { n = 3, ok = true }\n";
        let routing = |models: String| plan(&models).unwrap().topics[0].routing_text();
        assert_eq!(routing(format!("{x}{y}")), routing(format!("{y}{x}")));
        assert_eq!(
            routing(format!("{x}{y}")),
            "\"public\".\"odd\" when n = 3 and ok = true\n\"public\".\"ping\" when meta.kind = \"x\""
        );
        assert_eq!(
            plan("[[model]]\ntopic = \"t\"\ntable = \"ping\"").unwrap().topics[0].routing_text(),
            "\"public\".\"ping\" always"
        );
    }
}
