//! `[collect]` and `[[route]]`: the HTTP front door to Kafka.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::address::{Listen, is_origin};
use super::kafka::FIXED_PROPERTIES;
use super::secret::{self, Environment};
use super::units::{Bytes, Period};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCollect {
    listen: Option<String>,
    tls: Option<RawDoorTls>,
    threads: Option<usize>,
    inflight_max: Option<Bytes>,
    deliver_timeout: Option<Period>,
    body_max: Option<Bytes>,
    record_max: Option<Bytes>,
    records_max: Option<usize>,
    connections_max: Option<usize>,
    idle_timeout: Option<Period>,
    drain_delay: Option<Period>,
    overload: Option<u16>,
    tokens: Option<String>,
    #[serde(default)]
    cors_origins: Vec<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    rate: Option<RawRate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    path: Option<String>,
    field: Option<String>,
    name: Option<String>,
}

/// `[collect.rate]`: where the rate of all instances is told.
#[derive(Debug, Clone)]
pub struct Rate {
    pub path: String,
    /// Of the answer.
    pub field: String,
    /// Instances with the same one are counted together.
    pub name: String,
}

impl RawCollect {
    pub(super) fn has_rate(&self) -> bool {
        self.rate.is_some()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDoorTls {
    cert: String,
    key: String,
}

/// One `[[route]]` as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRoute {
    #[serde(default = "default_method")]
    pub method: String,
    pub path: String,
    pub topic: String,
    /// A field of each record, or a template over the request: `{path.account}`.
    pub key: Option<String>,
    /// Fields that say which record it is, or `Idempotency-Key`.
    #[serde(default)]
    pub id: Names,
    /// Fields that must be there, or what type each must have.
    #[serde(default)]
    pub require: Require,
    /// The record, built from the request, where it is not the body.
    pub record: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub batch: Batch,
    #[serde(default)]
    pub ack: Ack,
    #[serde(default)]
    pub validate: Validate,
    /// The only media type that is taken.
    pub content_type: Option<String>,
    #[serde(default)]
    pub answer: Form,
    /// What has to be in a table before anything is sent.
    pub must_exist: Option<RawMust>,
}

/// `must_exist` of a route, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMust {
    /// A template over the request.
    pub value: String,
    /// Without a schema it is in `public`.
    pub table: String,
    pub column: String,
    /// A boolean column; without it, being there is enough.
    pub active: Option<String>,
    cache: Option<Period>,
    unknown: Option<u16>,
    inactive: Option<u16>,
    channel: Option<String>,
}

/// For one that is there and active: how long that is believed.
const MUST_CACHE: Duration = Duration::from_secs(1);

/// Above it nobody would notice that a change was not heard of.
const MUST_CACHE_MAX: Duration = Duration::from_secs(3600);

impl RawMust {
    /// How long "active" is believed, and the statuses for what is unknown and for what is inactive.
    pub fn cache(&self) -> Duration {
        self.cache.map_or(MUST_CACHE, |period| period.0)
    }

    pub fn statuses(&self) -> (u16, u16) {
        (self.unknown.unwrap_or(404), self.inactive.unwrap_or(403))
    }

    /// Whose notifications say that something changed; the payload is the key, or nothing for all.
    pub fn channel(&self) -> &str {
        self.channel.as_deref().unwrap_or_else(|| self.table.rsplit('.').next().unwrap_or_default())
    }

    fn check(&self) -> Result<()> {
        let (unknown, inactive) = self.statuses();
        if ![unknown, inactive].iter().all(|status| (400..500).contains(status)) {
            bail!("must_exist.unknown and inactive are statuses of the client's mistakes, 400 to 499");
        }
        if self.cache() > MUST_CACHE_MAX {
            bail!("must_exist.cache must be at most 1h; \"0s\" asks each time");
        }
        Ok(())
    }
}

fn default_method() -> String {
    "POST".to_owned()
}

/// One name, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Names {
    One(String),
    Many(Vec<String>),
}

impl Default for Names {
    fn default() -> Names {
        Names::Many(Vec::new())
    }
}

impl Names {
    pub fn list(&self) -> Vec<&str> {
        match self {
            Names::One(name) => vec![name],
            Names::Many(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// Fields that a record must have.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Require {
    Names(Vec<String>),
    Types(BTreeMap<String, JsonType>),
}

impl Default for Require {
    fn default() -> Require {
        Require::Names(Vec::new())
    }
}

/// What a field's value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonType {
    Any,
    Text,
    /// A number without a fraction.
    Int,
    Number,
    Bool,
    Array,
    Object,
}

impl JsonType {
    /// Behind "is not".
    pub fn words(self) -> &'static str {
        match self {
            JsonType::Any => "any value",
            JsonType::Text => "a text",
            JsonType::Int => "a whole number",
            JsonType::Number => "a number",
            JsonType::Bool => "true or false",
            JsonType::Array => "an array",
            JsonType::Object => "an object",
        }
    }
}

/// What one bad record of a request does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Batch {
    /// Nothing is sent.
    #[default]
    Whole,
    /// The others are sent, and the answer names it.
    Each,
}

/// When the answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// When all in-sync replicas have the record.
    #[default]
    All,
    /// At once, for those who accept that it may be lost.
    Queued,
}

/// What the door refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validate {
    /// What no model could ever store: no JSON, no object.
    #[default]
    Json,
    /// Also what the models of the topic would set aside, with the same words.
    Model,
    /// Nothing: bytes are bytes.
    None,
}

/// The body of a good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// How many were delivered.
    #[default]
    Count,
    /// 200 without a body.
    Empty,
    /// 204.
    None,
}

/// The front door as used.
#[derive(Debug, Clone)]
pub struct Collect {
    pub listen: Listen,
    /// Paths of the certificate chain and its key.
    pub tls: Option<(String, String)>,
    /// Event loops.
    pub threads: usize,
    /// Bodies that were read and not answered, of the whole process.
    pub inflight_max_bytes: usize,
    /// For the verdict on one record.
    pub deliver_timeout: Duration,
    /// Of one body, as sent and again as unpacked.
    pub body_max_bytes: usize,
    pub record_max_bytes: usize,
    /// Of one request.
    pub records_max: usize,
    pub connections_max: usize,
    pub idle_timeout: Duration,
    /// Between "not ready" and the first refused connection.
    pub drain_delay: Duration,
    /// 503, or 429 for those behind a proxy that takes a 503 for a broken server.
    pub overload: u16,
    /// Path of the file with who may send.
    pub tokens: Option<String>,
    pub cors_origins: Vec<String>,
    /// librdkafka's own properties for the producers.
    pub properties: BTreeMap<String, String>,
    /// `None` where nobody asks.
    pub rate: Option<Rate>,
    pub routes: Vec<RawRoute>,
}

/// On loopback, as everything that listens, until the operator says otherwise.
const LISTEN: &str = "127.0.0.1:3000";

/// A peak second of 200,000 records of 150 bytes is 30 MB.
const INFLIGHT_MAX: usize = 64 << 20;

/// Well below the minute after which most clients give up.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Others take 2 to 20 MB.
const BODY_MAX: usize = 4 << 20;

/// Kafka's and librdkafka's own bound, less what a record has around it.
const RECORD_MAX: usize = 1_000_000 - 1_000;

/// A request is one answer, which has to wait for all of them.
const RECORDS_MAX: usize = 10_000;

const CONNECTIONS_MAX: usize = 10_000;

/// Above the 60 s of common balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Above it a restart would take longer than our unit allows.
const DRAIN_DELAY_MAX: Duration = Duration::from_secs(60);

pub(super) fn resolve_collect(
    raw: RawCollect,
    routes: Vec<RawRoute>,
    env: Environment<'_>,
) -> Result<Collect> {
    let text = raw.listen.as_deref().unwrap_or(LISTEN);
    let listen = Listen::parse(text).with_context(|| {
        format!("collect.listen is {text:?}: write an IP address and a port like {LISTEN:?}, or \"systemd\"")
    })?;
    let path = |setting: &str, text: &str| secret::path(setting, text, env);
    let tls = match &raw.tls {
        None => None,
        Some(tls) => Some((path("collect.tls.cert", &tls.cert)?, path("collect.tls.key", &tls.key)?)),
    };
    let collect = Collect {
        listen,
        tls,
        threads: raw.threads.unwrap_or_else(|| crate::base::thread::cores().len().clamp(1, 64)),
        inflight_max_bytes: raw.inflight_max.map_or(INFLIGHT_MAX, |bytes| bytes.0),
        deliver_timeout: raw.deliver_timeout.map_or(DELIVER_TIMEOUT, |period| period.0),
        body_max_bytes: raw.body_max.map_or(BODY_MAX, |bytes| bytes.0),
        record_max_bytes: raw.record_max.map_or(RECORD_MAX, |bytes| bytes.0),
        records_max: raw.records_max.unwrap_or(RECORDS_MAX),
        connections_max: raw.connections_max.unwrap_or(CONNECTIONS_MAX),
        idle_timeout: raw.idle_timeout.map_or(IDLE_TIMEOUT, |period| period.0),
        drain_delay: raw.drain_delay.map_or(Duration::ZERO, |period| period.0),
        overload: raw.overload.unwrap_or(503),
        tokens: raw.tokens.as_deref().map(|text| path("collect.tokens", text)).transpose()?,
        cors_origins: raw.cors_origins,
        properties: raw.properties,
        rate: raw.rate.map(|rate| Rate {
            path: rate.path.unwrap_or_else(|| "/".to_owned()),
            field: rate.field.unwrap_or_else(|| "Rate".to_owned()),
            name: rate.name.unwrap_or_else(|| "collect".to_owned()),
        }),
        routes,
    };
    check(&collect)?;
    Ok(collect)
}

fn check(collect: &Collect) -> Result<()> {
    if !(1..=64).contains(&collect.threads) {
        bail!("collect.threads must be between 1 and 64");
    }
    if !(1..=100_000).contains(&collect.records_max) {
        bail!("collect.records_max must be between 1 and 100000");
    }
    if !(1..=1_000_000).contains(&collect.connections_max) {
        bail!("collect.connections_max must be between 1 and 1000000");
    }
    if collect.inflight_max_bytes < 2 * collect.body_max_bytes {
        bail!(
            "collect.inflight_max must be at least twice body_max: one body is held as sent and as unpacked"
        );
    }
    if collect.inflight_max_bytes > 1 << 30 {
        bail!("collect.inflight_max must be at most 1GB: more only means that clients wait longer");
    }
    let timeout = Duration::from_secs(1)..=Duration::from_secs(300);
    if !timeout.contains(&collect.deliver_timeout) {
        bail!("collect.deliver_timeout must be between 1s and 5m");
    }
    if collect.idle_timeout < Duration::from_secs(1) {
        bail!("collect.idle_timeout must be at least 1s");
    }
    if collect.drain_delay > DRAIN_DELAY_MAX {
        bail!("collect.drain_delay must be at most 60s");
    }
    if ![429, 503].contains(&collect.overload) {
        bail!("collect.overload must be 503 or 429");
    }
    let fixed =
        ["enable.idempotence", "acks", "request.required.acks", "message.timeout.ms", "delivery.timeout.ms"];
    let is_fixed =
        |name: &&String| fixed.contains(&name.as_str()) || FIXED_PROPERTIES.contains(&name.as_str());
    if let Some(name) = collect.properties.keys().find(is_fixed) {
        bail!(
            "collect.properties may not set {name:?}: what the answers promise rests on its value, or there is a setting for it"
        );
    }
    if collect.rate.as_ref().is_some_and(|rate| !rate.path.starts_with('/') || rate.name.is_empty()) {
        bail!("collect.rate needs a path that begins with a /, and a name");
    }
    for route in &collect.routes {
        if let Some(must) = &route.must_exist {
            must.check().with_context(|| format!("in the route \"{} {}\"", route.method, route.path))?;
        }
    }
    if let Some(origin) = collect.cors_origins.iter().find(|origin| !is_origin(origin)) {
        bail!(
            "collect.cors_origins has {origin:?}: write \"*\", or a scheme and a host like \"https://app.example.com\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[collect]\nlisten = \"localhost\"", Err("an IP address and a port"));
        check("[collect]\nlisten = \"systemd\"", Ok(()));
        check("[collect.rate]\npath = \"rate\"", Err("begins with a /"));
        check("[collect.rate]\nname = \"tracker\"", Ok(()));
        check("[collect]\nthreads = 0", Err("between 1 and 64"));
        check("[collect]\ninflight_max = \"5MB\"", Err("twice body_max"));
        check("[collect]\noverload = 500", Err("503 or 429"));
        check("[collect]\ndeliver_timeout = \"500ms\"", Err("between 1s and 5m"));
        check("[collect.properties]\n\"acks\" = \"1\"", Err("may not set"));
        check("[collect]\ncors_origins = [\"app.example.com\"]", Err("a scheme and a host"));
        let must = "[[route]]\npath = \"/{a}\"\ntopic = \"t\"\nmust_exist = { value = \"{path.a}\", table = \"t\", column = \"id\"";
        check(&format!("{must} }}"), Ok(()));
        check(&format!("{must}, unknown = 500 }}"), Err("400 to 499"));
        check(&format!("{must}, cache = \"2h\" }}"), Err("at most 1h"));
        check("[[route]]\npath = \"/a\"\ntopic = \"t\"\nacks = \"all\"", Err("did you mean"));
    }
}
