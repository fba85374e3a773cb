//! A scenario file as it is written: which models of messages there are, what is drawn for each, and where each must arrive.
//! Unknown members are refused.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The tables of a scenario file; its plain members are flags, and not here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawScenario {
    #[serde(default, rename = "model")]
    pub models: Vec<RawModel>,
    /// For all models.
    #[serde(default, rename = "draw")]
    pub draws: BTreeMap<String, RawDraw>,
    #[serde(default, rename = "reader")]
    pub readers: Vec<RawReader>,
    #[serde(default, rename = "aggregate")]
    pub aggregates: Vec<RawAggregate>,
}

/// The names of these tables: a file that has one of them says more than flags.
pub const TABLES: [&str; 4] = ["model", "draw", "reader", "aggregate"];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    pub name: String,
    /// Other names that `--mix` takes.
    #[serde(default)]
    pub also: Vec<String>,
    /// The name, where it is left out.
    pub topic: Option<String>,
    /// Of all messages, as `--mix` says it.
    pub share: Option<f64>,
    /// Messages per second; the rates of all models are the run's, where `--rate` does not say otherwise.
    pub rate: Option<f64>,
    #[serde(default)]
    pub key: String,
    pub message: String,
    #[serde(default, rename = "draw")]
    pub draws: BTreeMap<String, RawDraw>,
    pub table: Option<RawTable>,
    pub http: Option<RawHttp>,
}

/// Messages that go to a server of HTTP instead of Kafka.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawHttp {
    /// With places in path and query; the host is the same for all messages.
    pub url: String,
    pub method: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Messages in one request.
    pub batch: Option<usize>,
    /// array or lines; the body of a single message is the message.
    pub format: Option<String>,
}

/// Where every message of a model must be one row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTable {
    /// As the role's own search_path finds it, or with its schema; the model's name, where it is left out.
    pub name: Option<String>,
    /// The columns that say together which message a row is.
    pub identity: Vec<String>,
    /// Each column with the draw that it must hold: its name, or a draw of the column's own.
    pub columns: BTreeMap<String, RawColumn>,
    /// The column in which the consumer writes when it stored the row.
    pub received: Option<String>,
    /// Which of the table's rows may be of this run.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// The statement for a reader who has no such table yet.
    pub create: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawColumn {
    Name(String),
    Draw(Box<RawDraw>),
}

/// Who asks an endpoint while messages are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawReader {
    pub name: String,
    pub url: String,
    pub method: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub body: String,
    /// Requests per second, due whether the ones before were answered or not.
    pub rate: Option<f64>,
    /// Clients that each ask again when they have their answer; with a rate, connections.
    pub clients: Option<usize>,
    /// What a client waits after an answer.
    pub pause: Option<String>,
    #[serde(default, rename = "draw")]
    pub draws: BTreeMap<String, RawDraw>,
    #[serde(default)]
    pub check: Vec<RawCheck>,
    pub freshness: Option<RawFreshness>,
}

/// What must hold at a place of the answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCheck {
    pub path: String,
    pub is: Option<String>,
    pub length: Option<usize>,
    pub at_least: Option<String>,
    pub at_most: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFreshness {
    /// Where the answer has the time of its newest value.
    pub path: String,
    pub unit: String,
    /// Whose messages they are.
    pub model: String,
    /// The draw, of reader and model, that says which of them.
    pub by: Option<String>,
}

/// A table that messages are added up in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAggregate {
    pub name: String,
    /// As the role's own search_path finds it; the name, where it is left out.
    pub table: Option<String>,
    /// All, where they are left out.
    pub models: Option<Vec<String>>,
    /// The columns of the key, each with the draw that it must hold.
    pub key: BTreeMap<String, String>,
    /// The columns of values, each with what is added up in it.
    #[serde(default)]
    pub values: BTreeMap<String, RawFold>,
    #[serde(rename = "where")]
    pub filter: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFold {
    pub count: Option<bool>,
    pub sum: Option<String>,
    pub min: Option<String>,
    pub max: Option<String>,
    /// Of the message that was due first.
    pub first: Option<String>,
}

/// What is drawn, and from what. One of the first members says what; the rest refine it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDraw {
    pub constant: Option<toml::Value>,
    pub null: Option<bool>,
    pub text: Option<String>,
    /// A list of constants or of tables, or the name of a list in a chosen table.
    pub choice: Option<RawChoice>,
    pub integer: Option<[i64; 2]>,
    pub decimal: Option<[f64; 2]>,
    pub counter: Option<i64>,
    pub hex: Option<u32>,
    pub walk: Option<[RawBound; 2]>,
    pub tail: Option<[f64; 2]>,
    pub check: Option<u32>,
    pub due: Option<String>,
    pub user: Option<String>,
    pub keys: Option<usize>,
    pub flag: Option<f64>,
    pub number: Option<bool>,
    pub of: Option<String>,

    pub salt: Option<u64>,
    pub cycle: Option<u64>,
    pub group: Option<u64>,
    pub shift: Option<u32>,
    pub by: Option<String>,
    pub index: Option<String>,
    pub plus: Option<String>,
    pub times: Option<f64>,
    pub offset: Option<f64>,
    pub decimals: Option<u8>,
    pub length: Option<u32>,
    pub every: Option<RawEvery>,
    pub noise: Option<f64>,
    pub spread: Option<String>,
    pub before: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawChoice {
    Member(String),
    Items(Vec<toml::Value>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawBound {
    Number(f64),
    Member(String),
}

/// So many messages, or a span of time.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawEvery {
    Messages(u64),
    Time(String),
}
