//! Reads the corpus, and the five tables and models that it is for. README.md says how a case is written.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rowmill::decode::column::{Found, Lookups};
use rowmill::decode::record::{Limits, RecordDecoder};
use rowmill::model::RawModel;
use rowmill::model::compile::compile;
use rowmill::model::types::{Column, Kind, Table, Type};
use rowmill::promise::batch::{Headers, Record};

/// The five models' topics, and their tables, which have the same names.
pub(crate) const TOPICS: [&str; 5] = ["state", "metric", "log", "network_trace", "network_ping"];

/// The only token that anybody has.
pub(crate) const TOKEN: &str = "corpus-token";

/// What the tests allow a message to have; the class `size` is made for it.
pub(crate) const MESSAGE_MAX: usize = 256 << 10;

const MODELS: &str = include_str!("../../models/models.toml");
const TABLES: &str = include_str!("../../sql/tables.sql");

/// One input, and what becomes of it.
pub(crate) struct Case {
    /// Class and file.
    pub(crate) name: String,
    /// `None` is a record without a value.
    pub(crate) value: Option<Vec<u8>>,
    expected: Expected,
}

/// A reason's code, or `row`: in every table, or in those that are named, and `row` in the others.
#[derive(Clone, serde::Deserialize)]
#[serde(untagged)]
enum Expected {
    Everywhere(String),
    In(BTreeMap<String, String>),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Outcomes {
    outcome: String,
    #[serde(default)]
    except: BTreeMap<String, Expected>,
}

impl Case {
    /// The reason why it is no row of this table; `None` if it is one.
    pub(crate) fn reason(&self, table: &str) -> Option<&str> {
        let outcome = match &self.expected {
            Expected::Everywhere(outcome) => outcome,
            Expected::In(tables) => tables.get(table).map_or("row", String::as_str),
        };
        (outcome != "row").then_some(outcome)
    }
}

/// Every case, in the order of their names.
pub(crate) fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let classes = sorted(&root).into_iter().filter(|path| path.is_dir());
    classes.flat_map(|class| class_of(&class)).collect()
}

fn class_of(class: &Path) -> Vec<Case> {
    let file = class.join("expected.toml");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut outcomes: Outcomes = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut cases = Vec::new();
    for path in sorted(class).into_iter().filter(|path| *path != file) {
        let name = name_of(&path);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let expected = outcomes.except.remove(&name);
        if let Some(Expected::In(tables)) = &expected {
            assert!(
                tables.keys().all(|t| TOPICS.contains(&&**t)),
                "{}: {name} names no table",
                file.display()
            );
        }
        cases.push(Case {
            value: (!name.ends_with(".null")).then_some(bytes),
            name: format!("{}/{name}", name_of(class)),
            expected: expected.unwrap_or(Expected::Everywhere(outcomes.outcome.clone())),
        });
    }
    let unused: Vec<_> = outcomes.except.keys().collect();
    assert!(unused.is_empty(), "{} names files that do not exist: {unused:?}", file.display());
    assert!(!cases.is_empty(), "{} has no cases", class.display());
    cases
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8").to_owned()
}

/// A good message for every table, unlike any other by its number.
pub(crate) fn good(number: usize) -> String {
    format!(
        "{{\"token\":\"{TOKEN}\",\"source\":\"good {number}\",\"path\":\"p\",\"type\":\"t\",\"value\":{}.5,\"category\":\"c\",\
         \"level\":\"l\",\"message\":\"m\",\"trace\":\"a\",\"hop\":3,\"ping\":\"b\",\"host\":\"h\",\"latency\":8.25,\
         \"time\":\"2024-05-01T12:30:00Z\"}}",
        number % 1000
    )
}

/// The models' text, one for each of [`TOPICS`].
pub(crate) fn models() -> Vec<String> {
    let models: Vec<_> = MODELS.split("[[model]]").skip(1).map(|text| format!("[[model]]{text}")).collect();
    assert_eq!(models.len(), TOPICS.len(), "models.toml has the five models");
    models
}

/// The decoder of one of [`TOPICS`], for the table as `sql/tables.sql` writes it.
pub(crate) fn decoder(topic: usize) -> RecordDecoder {
    #[derive(serde::Deserialize)]
    struct Models {
        model: Vec<RawModel>,
    }
    let Models { model } = toml::from_str(&models()[topic]).expect("a model");
    assert_eq!((&*model[0].topic, &*model[0].table), (TOPICS[topic], TOPICS[topic]));
    let tables = HashMap::from([(TOPICS[topic].to_owned(), table(TOPICS[topic]))]);
    let plan = compile(&model, &tables, &["user".to_owned()]).expect("a model that fits its table");
    let limits = Limits { value_bytes_max: MESSAGE_MAX, ..Limits::default() };
    RecordDecoder::new(plan.into(), 0, limits)
}

/// Reads a table from its `CREATE TABLE`: one column a line, which is how `sql/tables.sql` is written.
fn table(name: &str) -> Table {
    let (_, rest) =
        TABLES.split_once(&format!("CREATE TABLE IF NOT EXISTS public.{name} (\n")).expect("the table");
    let (lines, _) = rest.split_once("\n);").expect("its end");
    let columns = lines.lines().zip(1..).map(|(line, attnum)| {
        let (name, rest) = line.trim().trim_end_matches(',').split_once(' ').expect("name and type");
        let ty = rest.trim().strip_suffix(" NOT NULL").expect("all columns are NOT NULL");
        Column {
            name: name.to_owned(),
            attnum,
            ty: type_of(ty),
            not_null: true,
            has_default: false,
            generated_or_identity_always: false,
            fills_itself: false,
        }
    });
    Table {
        oid: 1,
        schema: "public".to_owned(),
        name: name.to_owned(),
        sql_name: format!("\"public\".\"{name}\""),
        columns: columns.collect(),
        primary_key: Vec::new(),
        fingerprint: String::new(),
        kind: Kind::Ordinary,
        ranged_by: None,
    }
}

fn type_of(sql: &str) -> Type {
    let length = sql.strip_prefix("VARCHAR(").and_then(|rest| rest.strip_suffix(')'));
    match (sql, length) {
        (_, Some(length)) => Type::Varchar(Some(length.parse().expect("a length"))),
        ("DOUBLE PRECISION", _) => Type::Float8,
        ("INTEGER", _) => Type::Int4,
        ("TEXT", _) => Type::Text,
        ("TIMESTAMPTZ", _) => Type::Timestamptz,
        _ => panic!("{sql} is no type of the five tables"),
    }
}

/// A record of that value, and nothing else.
pub(crate) fn record(value: Option<&[u8]>) -> Record<'_> {
    Record {
        topic: "t",
        partition: 0,
        offset: 0,
        timestamp_ms: Some(1_700_000_000_123),
        key: None,
        value,
        headers: Headers::default(),
    }
}

/// Knows [`TOKEN`] and no other.
pub(crate) struct Users;

impl Lookups for Users {
    fn find(&self, _lookup: usize, token: &str) -> Found<'_> {
        if token == TOKEN { Found::Value("4711") } else { Found::Unknown }
    }
}
