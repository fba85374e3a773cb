//! A data model is data, not code: which topic fills which table, and how each column gets its value.
//! Three steps: `RawModel` as written in TOML, here; [`plan::Plan`] as used; and [`compile`], from the one to the other,
//! checked against the catalog. Nothing here sees a record.
//!
//! Which columns a model fills: every column of the table from the JSON field of its own name, except
//! - what `[model.columns]` says otherwise,
//! - generated, identity and serial columns, which fill themselves (an identity "by default" or serial column may be named),
//! - columns of a type that rowmill does not write, if they have a default.
//!
//! A column with an ordinary default is filled like any other, and left to the server in a record without the field, as in an
//! INSERT that leaves it out; `{ default = true }` leaves it to the server always.

mod duration;
pub mod types;
pub mod notation;
pub mod mode;
pub mod plan;
mod keys;
pub mod retention;
pub mod compile;
pub mod editions;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::mode::{Fold, Mode};
use crate::model::types::{Encoding, Unit};

/// One `[[model]]` as written.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    pub topic: String,
    /// `table` or `schema.table`, as in SQL.
    pub table: String,
    /// JSON fields (dots lead into objects) that must have these values; all of them.
    #[serde(default)]
    pub when: BTreeMap<String, Scalar>,
    #[serde(default)]
    pub tombstones: Tombstones,
    /// What stands before the JSON text.
    pub framing: Option<Framing>,
    /// Where in an envelope the message is.
    pub payload: Option<RawPath>,
    /// Where in that a list of messages is; `"."` where it is a list itself.
    pub records: Option<RawPath>,
    #[serde(default)]
    pub mode: Mode,
    /// The columns by which rows are the same one; default: the primary key's.
    pub key: Option<Vec<String>>,
    /// The column whose greatest value is the newest row's, whatever came last.
    pub newest: Option<String>,
    /// The column whose least value is the first row's, whatever came first.
    pub oldest: Option<String>,
    /// JSON fields with which a message deletes the row of its key; all of them.
    #[serde(default)]
    pub delete_when: BTreeMap<String, Scalar>,
    /// How long the table keeps its rows, like `"30d"`: its partitions are made and dropped in time.
    pub retention: Option<String>,
    /// The length of those partitions; by itself one that makes some tens of them.
    pub partitions: Option<String>,
    /// What a partition column that is an integer counts since 1970.
    pub partition_unit: Option<Unit>,
    #[serde(default)]
    pub columns: BTreeMap<String, RawSource>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged, expecting = "expected a string, an integer or a boolean")]
pub enum Scalar {
    Bool(bool),
    Integer(i64),
    Text(String),
}

/// What happens to a record without a value, which Kafka calls a tombstone.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Tombstones {
    #[default]
    DeadLetter,
    Skip,
    /// The row of its key is deleted.
    Delete,
}

/// The right side of one line of `[model.columns]`. Which settings go together is checked by [`compile::compile`], whose
/// sentences are better than a parser's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RawSource {
    pub field: Option<RawPath>,
    pub unit: Option<Unit>,
    pub encoding: Option<Encoding>,
    /// The IANA name of the zone whose clocks showed a time that has no offset.
    pub zone: Option<String>,
    /// strftime's description of a time.
    pub format: Option<String>,
    /// The first and the last year that is no mistake.
    pub years: Option<[i32; 2]>,
    pub from: Option<From>,
    pub empty: Option<Empty>,
    pub lookup: Option<String>,
    pub unknown: Option<OnUnknown>,
    pub clock: Option<Clock>,
    pub message: Option<bool>,
    pub kafka: Option<Kafka>,
    /// The name of one of the record's headers; of several by that name, the last.
    pub header: Option<String>,
    pub default: Option<bool>,
    /// How many rows of a key become one value.
    pub fold: Option<Fold>,
    /// The length of a bucket that a time is floored to, like `"1m"`.
    pub floor: Option<String>,
}

/// Bytes that a serializer puts before the text.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// A zero byte, and the number of a schema in four.
    SchemaRegistry,
}

/// What a number, boolean or JSON value may be given as beside itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum From {
    Text,
}

/// What an empty string stands for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Empty {
    Null,
}

/// `"a.b"` leads into objects; `["a.b"]` is one field whose name has a dot.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged, expecting = "expected a field name like \"a.b\", or a list of names like [\"a\", \"b\"]")]
pub enum RawPath {
    Dotted(String),
    Parts(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    #[default]
    DeadLetter,
    Null,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The moment just before the row is sent to the server, and again when it is sent again.
    Write,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kafka {
    Key,
    Offset,
    Partition,
    Timestamp,
    Headers,
    Topic,
    /// Of a list of messages in one record: which of them, from 0.
    Element,
}

impl Kafka {
    pub fn name(self) -> &'static str {
        match self {
            Kafka::Key => "key",
            Kafka::Offset => "offset",
            Kafka::Partition => "partition",
            Kafka::Timestamp => "timestamp",
            Kafka::Headers => "headers",
            Kafka::Topic => "topic",
            Kafka::Element => "element",
        }
    }
}
