//! The plan: what decoding and writing need to know, fixed at start, and the words in which `rowmill check` shows it.

use std::fmt;

use crate::model::duration;
use crate::model::mode::Keyed;
use crate::model::notation::Notation;
use crate::model::retention::Retention;
use crate::model::types::Type;
pub use crate::model::types::quoted;
use crate::model::{Framing, Kafka, OnUnknown, Tombstones};

/// Everything that decoding and writing need to know, fixed at start.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub tables: Vec<TablePlan>,
    pub models: Vec<Model>,
    pub topics: Vec<TopicPlan>,
}

/// One target table with the column list of its COPY: the union over the models that feed it, clocks first.
#[derive(Clone, Debug, PartialEq)]
pub struct TablePlan {
    pub oid: u32,
    /// `schema.table`, as the ledger and people call it.
    pub name: String,
    /// `"schema"."table"`.
    pub sql_name: String,
    pub fingerprint: String,
    pub columns: Vec<PlanColumn>,
    /// How many of the first columns are stamped by the writer.
    pub clock_columns: usize,
    /// How rows of one key become one; `None` where each row is one more.
    pub keyed: Option<Keyed>,
    /// How long rows are kept, where the models say so.
    pub retention: Option<Retention>,
}

/// So many columns of a table may be left out of its rows: a row says which in one word.
pub const OPTIONAL_MAX: u8 = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct PlanColumn {
    pub name: String,
    pub ty: Type,
    pub not_null: bool,
    /// Where the column has a default, its number among the table's columns that may be left out: a record without the
    /// field leaves it to the server, as an INSERT would.
    pub optional: Option<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub topic: String,
    /// Index into [`Plan::tables`].
    pub table: usize,
    pub when: Vec<Condition>,
    pub tombstones: Tombstones,
    /// One for each of the table's COPY columns, in their order.
    pub sources: Vec<Source>,
    /// The same: the length of the bucket that a time is floored to, in microseconds.
    pub floors: Vec<Option<i64>>,
    /// A message that meets all of these deletes the row of its key; none does where there are none.
    pub delete_when: Vec<Condition>,
    /// Columns that the server fills, with the reason.
    pub left_out: Vec<(String, &'static str)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopicPlan {
    pub name: String,
    /// Indexes into [`Plan::models`], in the order of the configuration.
    pub models: Vec<usize>,
    pub tombstones: Tombstones,
    pub envelope: Envelope,
    /// One line for each model, sorted.
    pub(super) routes: Vec<String>,
}

/// Where in a record's value the message is; the same for all models of a topic, since a record is read once for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    pub framing: Option<Framing>,
    /// The object there is the message. Paths begin at the value all the same, so this one is their beginning.
    pub payload: Option<Path>,
    /// The list there has many messages, and paths begin at each of them.
    pub records: Option<Path>,
}

/// The way to a JSON field: one name for each object to enter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub Vec<String>);

/// A JSON field that must have a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub path: Path,
    pub equals: Expected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A JSON string with this content.
    Text(String),
    /// A number or boolean with this very text.
    Literal(String),
}

/// Where a column's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Field {
        path: Path,
        notation: Notation,
    },
    Lookup {
        path: Path,
        lookup: usize,
        name: String,
        unknown: OnUnknown,
    },
    Clock,
    Message,
    Kafka(Kafka),
    Header(String),
    /// One, which a count adds up.
    One,
    /// Another model of the same table fills the column.
    Null,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.equals {
            Expected::Text(text) => write!(f, "{} = {text:?}", self.path),
            Expected::Literal(text) => write!(f, "{} = {text}", self.path),
        }
    }
}

impl Path {
    /// The path to the same field where what it began at is found at `self`.
    pub(super) fn join(&self, inner: &Path) -> Path {
        Path(self.0.iter().chain(&inner.0).cloned().collect())
    }
}

impl Envelope {
    /// Where the list of messages is, if there is one; empty where the value is the list.
    pub fn list_path(&self) -> Option<Path> {
        let records = self.records.as_ref()?;
        Some(self.payload.as_ref().map_or_else(|| records.clone(), |payload| payload.join(records)))
    }

    /// For `rowmill check`; `None` where the value is the message.
    fn explain(&self) -> Option<String> {
        let framing =
            self.framing.map(|Framing::SchemaRegistry| "follows the five bytes of a schema registry".into());
        let payload =
            self.payload.as_ref().map(|path| format!("is the object in field {:?}", path.to_string()));
        let list = self.records.as_ref().map(|path| match path.0.as_slice() {
            [] => "is a list of records".into(),
            _ => format!("has a list of records in field {:?}", path.to_string()),
        });
        let words: Vec<String> = framing.into_iter().chain(payload).chain(list).collect();
        (!words.is_empty()).then(|| format!("the message {}", words.join(" and ")))
    }
}

impl AsRef<str> for PlanColumn {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl TablePlan {
    /// The table without its schema, for thread names.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

impl TopicPlan {
    /// Which tables the topic feeds, and which records go to each: the same text for the same routing, whatever the
    /// order of the models. A change means that stored progress may not describe what was written.
    pub fn routing_text(&self) -> String {
        self.routes.join("\n")
    }
}

impl Model {
    /// For `rowmill check`: where the message is, if that needs words, and one line a column, how it is filled.
    pub fn explain(&self, plan: &Plan) -> Vec<String> {
        let topic = plan.topics.iter().find(|topic| topic.name == self.topic);
        let envelope = topic.and_then(|topic| topic.envelope.explain());
        let table = &plan.tables[self.table];
        let filled = table.columns.iter().enumerate().map(|(index, column)| {
            let floor = self.floors[index].map(floor_words).unwrap_or_default();
            let join = table.keyed.as_ref().map_or("", |keyed| keyed.joins[index].words());
            let source = self.sources[index].explain(column);
            format!("{} {}: {source}{floor}{join}", quoted(&column.name), column.ty)
        });
        let left_out = self.left_out.iter().map(|(name, why)| format!("{}: {why}", quoted(name)));
        let mode = table.keyed.as_ref().map(|keyed| keyed.explain(&table.columns));
        let kept = table.retention.as_ref().map(Retention::explain);
        let deletes = (!self.delete_when.is_empty())
            .then(|| format!("a message deletes the row of its key {}", when_text(&self.delete_when)));
        mode.into_iter().chain(kept).chain(deletes).chain(envelope).chain(filled).chain(left_out).collect()
    }

    /// `always`, or its conditions.
    pub fn when_text(&self) -> String {
        when_text(&self.when)
    }
}

impl Source {
    fn explain(&self, column: &PlanColumn) -> String {
        let absent = match (column.optional, column.not_null) {
            (Some(_), _) => "its default when absent",
            (None, true) => "must be there",
            (None, false) => "NULL when absent",
        };
        match self {
            Source::Field { path, notation } => {
                format!("field {:?}{}; {absent}", path.to_string(), notation.explain(&column.ty))
            }
            Source::Lookup { path, name, unknown, .. } => {
                let unknown = match unknown {
                    OnUnknown::DeadLetter => "an unknown token makes a dead letter",
                    OnUnknown::Null => "NULL for an unknown token",
                };
                format!(
                    "what lookup {name:?} has for the token in field {:?}; {absent}; {unknown}",
                    path.to_string()
                )
            }
            Source::Clock => "stamped by the writer just before the row is sent".into(),
            Source::Message => "the whole message".into(),
            Source::Kafka(Kafka::Element) => "which element of the message's list it is, from 0".into(),
            Source::Kafka(part) => format!("the record's {}", part.name()),
            Source::Header(name) => format!("the record's header {name:?}; {absent}"),
            Source::One => "1 for each record".into(),
            Source::Null if column.optional.is_some() => {
                "its default: only other models of this table fill it".into()
            }
            Source::Null => "NULL: only other models of this table fill it".into(),
        }
    }
}

/// What a bucket is, of so many microseconds.
fn floor_words(micros: i64) -> String {
    match duration::longest(micros) {
        (1, word) => format!("; its {word} in UTC"),
        (count, word) => format!("; its {count} {word}s in UTC"),
    }
}

fn when_text(when: &[Condition]) -> String {
    if when.is_empty() {
        return "always".into();
    }
    let conditions: Vec<_> = when.iter().map(Condition::to_string).collect();
    format!("when {}", conditions.join(" and "))
}
