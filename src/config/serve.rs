//! `[serve]` and `[[endpoint]]`: answers over HTTP from SQL.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::address::{Listen, is_origin};
use super::postgres::Postgres;
use super::secret::{self, Environment, Secret};
use super::units::{Bytes, Period};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServe {
    listen: Option<String>,
    tls: Option<RawTls>,
    threads: Option<usize>,
    url: Option<String>,
    password: Option<String>,
    connections: Option<usize>,
    prepare: Option<bool>,
    queue_max: Option<usize>,
    queue_wait: Option<Period>,
    after_wait: Option<Period>,
    statement_timeout: Option<Period>,
    rows_max: Option<u64>,
    body_max: Option<Bytes>,
    connections_max: Option<usize>,
    idle_timeout: Option<Period>,
    drain_delay: Option<Period>,
    tokens: Option<String>,
    #[serde(default)]
    cors_origins: Vec<String>,
    title: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: String,
    key: String,
}

/// One `[[endpoint]]` as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEndpoint {
    #[serde(default = "default_method")]
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub params: BTreeMap<String, RawParameter>,
    /// One statement with `:name` for each value.
    pub sql: String,
    /// It may change the database.
    #[serde(default)]
    pub write: bool,
    #[serde(default)]
    pub shape: Shape,
    /// The answer, with `":name"` for values of parameters and `"rows"` for the rows.
    pub response: Option<toml::Value>,
    /// The first is the one that is sent where nobody asks for another.
    #[serde(default)]
    pub formats: Vec<Format>,
    pub chart: Option<RawChart>,
    pub etag: Option<Etag>,
    pub(super) max_age: Option<Period>,
    pub(super) timeout: Option<Period>,
    /// No bound on the number of rows.
    #[serde(default)]
    pub stream: bool,
    /// Instead of `rows_max` in `[serve]`.
    pub rows_max: Option<u64>,
    #[serde(default)]
    pub plan: PlanMode,
    /// Equal questions at the same time are one.
    #[serde(default = "yes")]
    pub share: bool,
}

/// One parameter as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawParameter {
    #[serde(rename = "type")]
    pub ty: ParameterType,
    #[serde(rename = "in")]
    pub place: Option<Place>,
    #[serde(default)]
    pub description: String,
    /// Absent is NULL.
    #[serde(default)]
    pub optional: bool,
    pub default: Option<toml::Value>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub length_min: Option<usize>,
    /// In characters.
    pub length_max: Option<usize>,
    /// What the whole text must match.
    pub pattern: Option<String>,
    pub choices: Option<Vec<String>>,
    /// Elements of a list.
    pub items_max: Option<usize>,
    /// Another parameter, which this one must come after.
    pub after: Option<String>,
    /// How far after it, at least and at most.
    pub(super) span_min: Option<Span>,
    pub(super) span_max: Option<Span>,
    /// How long ago at most.
    pub(super) age_max: Option<Span>,
    /// What a whole number counts since 1970, where it is a time.
    pub unit: Option<TimeUnit>,
}

impl RawParameter {
    pub fn span_min(&self) -> Option<Duration> {
        self.span_min.map(|span| span.0)
    }

    pub fn span_max(&self) -> Option<Duration> {
        self.span_max.map(|span| span.0)
    }

    pub fn age_max(&self) -> Option<Duration> {
        self.age_max.map(|span| span.0)
    }
}

/// A duration that may be days: `"31d"`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some(days) = text.strip_suffix('d').and_then(|days| days.trim().parse::<u32>().ok()) {
            return Ok(Span(Duration::from_secs(u64::from(days) * 86_400)));
        }
        let period = Period::deserialize(serde::de::value::StringDeserializer::new(text))?;
        Ok(Span(period.0))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    S,
    Ms,
    Us,
    Ns,
}

impl TimeUnit {
    /// Of them in a second.
    pub fn per_second(self) -> i128 {
        match self {
            TimeUnit::S => 1,
            TimeUnit::Ms => 1_000,
            TimeUnit::Us => 1_000_000,
            TimeUnit::Ns => 1_000_000_000,
        }
    }
}

/// PostgreSQL's names of the types that a parameter may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    Text,
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Uuid,
    Date,
    Timestamp,
    Timestamptz,
    Jsonb,
    #[serde(rename = "text[]")]
    Texts,
    #[serde(rename = "int4[]")]
    Int4s,
    #[serde(rename = "int8[]")]
    Int8s,
    #[serde(rename = "float8[]")]
    Float8s,
    #[serde(rename = "uuid[]")]
    Uuids,
}

/// Where a parameter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    Path,
    Query,
    /// A member of the JSON object that is the request's body.
    Body,
}

/// What an answer in JSON looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// `[{"a":1,"b":2}, ..]`
    #[default]
    Rows,
    /// `[[1,2], ..]`
    Arrays,
    /// `{"a":1,"b":2}`, or 404.
    Object,
    /// `1`, or 404.
    Value,
    /// `{"a":[1, ..],"b":[2, ..]}`
    Columns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    /// One object a line.
    Ndjson,
    Csv,
    /// A chart.
    Svg,
}

/// What an answer's ETag is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Etag {
    /// How far the tables are with their topics: 304 without running the statement.
    Ledger,
    /// The bytes of the answer, where it is small.
    Body,
}

/// How the server plans the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanMode {
    /// `custom` where the statement reads tables that have parts, `auto` elsewhere.
    #[default]
    Choose,
    /// As the server decides, from the sixth call on.
    Auto,
    /// Anew for each call's values: parts that they leave out are not opened.
    Custom,
    /// Once.
    Generic,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawChart {
    #[serde(default)]
    pub kind: ChartKind,
    /// The column across.
    pub x: String,
    /// The columns that are drawn.
    pub y: Columns,
    #[serde(default)]
    pub x_scale: Scale,
    #[serde(default)]
    pub y_scale: Scale,
    pub title: Option<String>,
    pub x_label: Option<String>,
    pub y_label: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChartKind {
    #[default]
    Line,
    Points,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    #[default]
    Linear,
    Log,
}

fn default_method() -> String {
    "GET".to_owned()
}

fn yes() -> bool {
    true
}

impl RawEndpoint {
    pub fn max_age(&self) -> Option<Duration> {
        self.max_age.map(|period| period.0)
    }

    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.map(|period| period.0)
    }
}

/// Answers as used.
#[derive(Debug, Clone)]
pub struct Serve {
    pub listen: Listen,
    /// Paths of the certificate chain and its key.
    pub tls: Option<(String, String)>,
    /// Event loops.
    pub threads: usize,
    /// Where statements are read, if that is another server than where they write.
    pub replica: Option<Postgres>,
    /// Sessions with each server, of the whole process.
    pub connections: usize,
    /// Statements stay prepared on their sessions. Not behind a pooler that gives each transaction another session.
    pub prepare: bool,
    /// Questions that wait for a session, with each server.
    pub queue_max: usize,
    pub queue_wait: Duration,
    /// How long `Rowmill-After` waits.
    pub after_wait: Duration,
    pub statement_timeout: Duration,
    pub rows_max: u64,
    /// Of a request.
    pub body_max_bytes: usize,
    pub connections_max: usize,
    pub idle_timeout: Duration,
    /// Between "not ready" and the first refused connection.
    pub drain_delay: Duration,
    /// Path of the file with who may ask.
    pub tokens: Option<String>,
    pub cors_origins: Vec<String>,
    /// Of the page for people.
    pub title: String,
    pub endpoints: Vec<RawEndpoint>,
}

/// On loopback, as everything that listens, until the operator says otherwise.
const LISTEN: &str = "127.0.0.1:8080";

/// One loop carries more small answers than a server of eight cores finds.
const THREADS: usize = 1;

/// Twice the cores of a small server; more at work at once take turns there instead of here.
const CONNECTIONS: usize = 8;

/// Eight for each session: at a few milliseconds each they are through long before they would be refused for waiting.
const QUEUE_MAX: usize = 64;

/// Who waits longer is better off with another server, or later.
const QUEUE_WAIT: Duration = Duration::from_secs(1);

/// Rows are there some tens of milliseconds after Kafka has them, as a rule.
const AFTER_WAIT: Duration = Duration::from_secs(1);

/// A person waits for so long; what takes longer says so at its endpoint.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Some ten megabytes. Larger answers are exports, and say `stream`.
const ROWS_MAX: u64 = 100_000;

/// Values of a statement, not records.
const BODY_MAX: usize = 1 << 20;

const CONNECTIONS_MAX: usize = 10_000;

/// Above the 60 s of common balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Above it a restart would take longer than our unit allows.
const DRAIN_DELAY_MAX: Duration = Duration::from_secs(60);

pub(super) fn resolve_serve(
    raw: RawServe,
    endpoints: Vec<RawEndpoint>,
    lock_timeout: Duration,
    env: Environment<'_>,
) -> Result<Serve> {
    let text = raw.listen.as_deref().unwrap_or(LISTEN);
    let listen = Listen::parse(text).with_context(|| {
        format!("serve.listen is {text:?}: write an IP address and a port like {LISTEN:?}, or \"systemd\"")
    })?;
    let path = |setting: &str, text: &str| secret::path(setting, text, env);
    let tls = match &raw.tls {
        None => None,
        Some(tls) => Some((path("serve.tls.cert", &tls.cert)?, path("serve.tls.key", &tls.key)?)),
    };
    let connections = raw.connections.unwrap_or(CONNECTIONS);
    let replica = match &raw.url {
        None => None,
        Some(url) => Some(Postgres {
            url: Secret::read("serve.url", url, env)?,
            password: Secret::optional("serve.password", raw.password.clone(), env)?,
            lock_timeout,
            sessions: connections,
        }),
    };
    if replica.is_none() && raw.password.is_some() {
        bail!(
            "serve.password belongs to serve.url, which is not set; the password of [postgres] is used without it"
        );
    }
    let serve = Serve {
        listen,
        tls,
        threads: raw.threads.unwrap_or(THREADS),
        replica,
        connections,
        prepare: raw.prepare.unwrap_or(true),
        queue_max: raw.queue_max.unwrap_or(QUEUE_MAX),
        queue_wait: raw.queue_wait.map_or(QUEUE_WAIT, |period| period.0),
        after_wait: raw.after_wait.map_or(AFTER_WAIT, |period| period.0),
        statement_timeout: raw.statement_timeout.map_or(STATEMENT_TIMEOUT, |period| period.0),
        rows_max: raw.rows_max.unwrap_or(ROWS_MAX),
        body_max_bytes: raw.body_max.map_or(BODY_MAX, |bytes| bytes.0),
        connections_max: raw.connections_max.unwrap_or(CONNECTIONS_MAX),
        idle_timeout: raw.idle_timeout.map_or(IDLE_TIMEOUT, |period| period.0),
        drain_delay: raw.drain_delay.map_or(Duration::ZERO, |period| period.0),
        tokens: raw.tokens.as_deref().map(|text| path("serve.tokens", text)).transpose()?,
        cors_origins: raw.cors_origins,
        title: raw.title.unwrap_or_else(|| "rowmill serve".to_owned()),
        endpoints,
    };
    check(&serve)?;
    Ok(serve)
}

fn check(serve: &Serve) -> Result<()> {
    if !(1..=64).contains(&serve.threads) {
        bail!("serve.threads must be between 1 and 64");
    }
    if !(serve.threads..=1000).contains(&serve.connections) {
        bail!(
            "serve.connections must be between serve.threads and 1000: each loop needs a session of its own"
        );
    }
    if !(1..=100_000).contains(&serve.queue_max) {
        bail!("serve.queue_max must be between 1 and 100000");
    }
    let waits = [("queue_wait", serve.queue_wait), ("after_wait", serve.after_wait)];
    for (name, wait) in waits {
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&wait) {
            bail!("serve.{name} must be between 1ms and 60s");
        }
    }
    let timeouts = serve.endpoints.iter().filter_map(RawEndpoint::timeout).chain([serve.statement_timeout]);
    for timeout in timeouts {
        if !(Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&timeout) {
            bail!("serve.statement_timeout, and timeout of an endpoint, must be between 1ms and 24h");
        }
    }
    if serve.rows_max == 0 || serve.endpoints.iter().any(|endpoint| endpoint.rows_max == Some(0)) {
        bail!("rows_max must be at least 1; for no bound, say stream = true at an endpoint");
    }
    if !(1..=64 << 20).contains(&serve.body_max_bytes) {
        bail!("serve.body_max must be between 1 byte and 64MB");
    }
    if !(1..=1_000_000).contains(&serve.connections_max) {
        bail!("serve.connections_max must be between 1 and 1000000");
    }
    if serve.idle_timeout < Duration::from_secs(1) {
        bail!("serve.idle_timeout must be at least 1s");
    }
    if serve.drain_delay > DRAIN_DELAY_MAX {
        bail!("serve.drain_delay must be at most 60s");
    }
    if let Some(origin) = serve.cors_origins.iter().find(|origin| !is_origin(origin)) {
        bail!(
            "serve.cors_origins has {origin:?}: write \"*\", or a scheme and a host like \"https://app.example.com\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[serve]\nlisten = \"localhost\"", Err("an IP address and a port"));
        check("[serve]\nlisten = \"systemd\"", Ok(()));
        check("[serve]\nthreads = 0", Err("between 1 and 64"));
        check("[serve]\nthreads = 4\nconnections = 3", Err("a session of its own"));
        check("[serve]\nqueue_wait = \"2m\"", Err("between 1ms and 60s"));
        check("[serve]\nrows_max = 0", Err("stream = true"));
        check("[serve]\npassword = \"x\"", Err("belongs to serve.url"));
        check("[serve]\ncors_origins = [\"app.example.com\"]", Err("a scheme and a host"));
        let endpoint = "[[endpoint]]\npath = \"/a\"\nsql = \"SELECT 1\"\n";
        check(endpoint, Ok(()));
        check(&format!("{endpoint}shapes = \"rows\""), Err("did you mean"));
        check(&format!("{endpoint}shape = \"row\""), Err("unknown variant"));
        check(&format!("{endpoint}params.a = {{ type = \"int\" }}"), Err("unknown variant"));
        check(&format!("{endpoint}params.a = {{ type = \"int8\", span_max = \"31d\" }}"), Ok(()));
        check(
            &format!("{endpoint}params.a = {{ type = \"int8\", span_max = \"31\" }}"),
            Err("is no duration"),
        );
        check(&format!("{endpoint}timeout = \"25h\""), Err("between 1ms and 24h"));
    }
}
