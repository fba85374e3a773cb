//! What docs/message-format.md shows of the settings, run: each example's columns are compiled, and each message becomes the
//! row or has the reason that stands beside it. No servers are needed.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but does not see that their helpers are"
)]

use std::collections::HashMap;

use jiff::civil::{Date, DateTime, Time, date};
use jiff::{SignedDuration, ToSpan};
use rowmill::decode::column::{Encoded, Found, Lookups};
use rowmill::decode::record::{Limits, Messages, RecordDecoder};
use rowmill::decode::reject::Reason;
use rowmill::model::RawModel;
use rowmill::model::compile::compile;
use rowmill::model::types::{Column, Kind, Table, Type};
use rowmill::promise::batch::{Headers, Record};

const DOCUMENT: &str = include_str!("../docs/message-format.md");

/// Lines of a model, and what becomes of messages.
struct Example {
    model: String,
    columns: Vec<(String, Type)>,
    outcomes: Vec<(String, String)>,
}

#[test]
fn every_example_of_the_document() {
    let examples = examples();
    assert!(examples.len() >= 4, "the section was not read");
    for example in examples {
        assert!(!example.outcomes.is_empty(), "{}: nothing becomes of it", example.model);
        let mut decoder = decoder(&example);
        for (message, expected) in &example.outcomes {
            let found = outcome(&mut decoder, message.as_bytes(), &example.columns);
            assert_eq!(found, *expected, "{message}\n{}", example.model);
        }
    }
}

/// The blocks of the section, each with the table of messages that follows it.
fn examples() -> Vec<Example> {
    let (_, section) = DOCUMENT.split_once("## Settings by example").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("its end");
    section.split("```toml\n").skip(1).map(example).collect()
}

fn example(text: &str) -> Example {
    let (model, rest) = text.split_once("```").expect("the end of a block");
    let columns = model.lines().filter_map(|line| {
        let (setting, ty) = line.split_once(" # ")?;
        let (name, _) = setting.split_once('=').expect("a column's setting");
        Some((name.trim().to_owned(), type_of(ty.trim())))
    });
    // Lines that say no type are the model's own.
    let of_model = model.lines().filter(|line| !line.contains(" # "));
    let of_columns = model.lines().filter(|line| line.contains(" # "));
    let model = of_model.chain(["[model.columns]"]).chain(of_columns).collect::<Vec<_>>().join("\n");
    let rows = rest.lines().filter(|line| line.starts_with("| `"));
    let outcomes = rows.map(|line| {
        let (message, outcome) = line.trim_matches(['|', ' ']).split_once(" | ").expect("two cells");
        (message.trim_matches('`').to_owned(), outcome.trim().replace('`', ""))
    });
    Example { columns: columns.collect(), outcomes: outcomes.collect(), model }
}

fn type_of(sql: &str) -> Type {
    match sql {
        "timestamptz" => Type::Timestamptz,
        "timestamp" => Type::Timestamp,
        "date" => Type::Date,
        "time" => Type::Time,
        "integer" => Type::Int4,
        "bigint" => Type::Int8,
        "boolean" => Type::Bool,
        "double precision" => Type::Float8,
        "text" => Type::Text,
        "json" => Type::Json,
        _ => panic!("{sql} is not a type that this test can show"),
    }
}

fn decoder(example: &Example) -> RecordDecoder {
    #[derive(serde::Deserialize)]
    struct Models {
        model: Vec<RawModel>,
    }
    let columns = example.columns.iter().zip(1..).map(|((name, ty), attnum)| Column {
        name: name.clone(),
        attnum,
        ty: ty.clone(),
        not_null: false,
        has_default: false,
        generated_or_identity_always: false,
        fills_itself: false,
    });
    let table = Table {
        oid: 1,
        schema: "public".into(),
        name: "t".into(),
        sql_name: "\"public\".\"t\"".into(),
        columns: columns.collect(),
        primary_key: Vec::new(),
        fingerprint: String::new(),
        kind: Kind::Ordinary,
        ranged_by: None,
    };
    let text = format!("[[model]]\ntopic = \"t\"\ntable = \"t\"\n{}", example.model);
    let Models { model } = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let tables = HashMap::from([("t".to_owned(), table)]);
    let plan = compile(&model, &tables, &[]).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"));
    RecordDecoder::new(plan.into(), 0, Limits::default())
}

struct NoLookups;

impl Lookups for NoLookups {
    fn find(&self, _lookup: usize, _token: &str) -> Found<'_> {
        Found::Unknown
    }
}

/// The row as PostgreSQL shows it, or the reason.
fn outcome(decoder: &mut RecordDecoder, value: &[u8], columns: &[(String, Type)]) -> String {
    match decode(decoder, value) {
        Err(reason) => reason.code().to_owned(),
        Ok(rows) if rows.is_empty() => "skipped".to_owned(),
        Ok(rows) => rows.iter().map(|row| shown(row, columns)).collect::<Vec<_>>().join("; "),
    }
}

fn decode(decoder: &mut RecordDecoder, value: &[u8]) -> Result<Vec<Vec<u8>>, Reason> {
    let record = Record {
        topic: "t",
        partition: 0,
        offset: 0,
        timestamp_ms: None,
        key: None,
        value: Some(value),
        headers: Headers::default(),
    };
    let mut rows = Vec::new();
    let mut messages = Messages::of(decoder.parse(&record).map_err(|reject| reject.reason)?);
    while let Some(message) = messages.next(decoder).map_err(|reject| reject.reason)? {
        let (model, mut out) = (decoder.models().next().expect("one model takes all"), Vec::new());
        let encoded = decoder.encode(model, message, &NoLookups, &mut out).map_err(|reject| reject.reason)?;
        assert!(matches!(encoded, Encoded::Row(_)));
        rows.push(out);
    }
    Ok(rows)
}

/// The values that are not NULL.
fn shown(tuple: &[u8], columns: &[(String, Type)]) -> String {
    let (mut rest, mut values) = (&tuple[2..], Vec::new());
    for (_, ty) in columns {
        let (length, after) = rest.split_first_chunk().expect("a length");
        rest = after;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            let (bytes, after) = rest.split_at(length);
            values.push(value(ty, bytes));
            rest = after;
        }
    }
    assert!(rest.is_empty());
    values.join(", ")
}

fn value(ty: &Type, bytes: &[u8]) -> String {
    let number = || bytes.iter().fold(i64::from(bytes[0] as i8) >> 7, |n, byte| n << 8 | i64::from(*byte));
    let moment = || DateTime::from(day(0)) + SignedDuration::from_micros(number());
    match ty {
        Type::Timestamptz => moment().strftime("%F %T%.f+00").to_string(),
        Type::Timestamp => moment().strftime("%F %T%.f").to_string(),
        Type::Date => day(number()).to_string(),
        Type::Time => (Time::midnight() + SignedDuration::from_micros(number())).to_string(),
        Type::Int4 | Type::Int8 => number().to_string(),
        Type::Bool => (bytes == [1]).to_string(),
        Type::Float8 => f64::from_be_bytes(bytes.try_into().unwrap()).to_string(),
        _ => String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

fn day(since_2000: i64) -> Date {
    date(2000, 1, 1) + since_2000.days()
}
