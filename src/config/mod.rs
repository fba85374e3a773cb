//! Configuration in two steps: raw as written (TOML, unknown keys refused) and resolved as used (checked and typed).
//! Every default stands here, with its reason.

pub mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};

use secret::Environment;

use crate::base::logging;
use crate::base::spelling::did_you_mean;
use crate::base::thread::Pin;
use crate::model::RawModel;

/// The whole file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default = "default_pipeline")]
    pipeline: String,
    #[serde(default = "default_memory_max")]
    memory_max: Bytes,
    #[serde(default = "default_message_max")]
    message_max: Bytes,
    #[serde(default)]
    kafka: RawKafka,
    #[serde(default)]
    postgres: RawPostgres,
    #[serde(default)]
    redis: RawRedis,
    #[serde(default)]
    lookup: BTreeMap<String, RawLookup>,
    #[serde(default)]
    lease: RawLease,
    #[serde(default)]
    threads: RawThreads,
    #[serde(default)]
    guard: RawGuard,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    model: Vec<RawModel>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKafka {
    brokers: Option<String>,
    group_id: Option<String>,
    start: Option<String>,
    tls: Option<RawKafkaTls>,
    sasl: Option<RawSasl>,
    #[serde(default)]
    plaintext: bool,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKafkaTls {
    ca: String,
    cert: Option<String>,
    key: Option<String>,
    key_password: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSasl {
    mechanism: String,
    username: String,
    password: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPostgres {
    url: Option<String>,
    password: Option<String>,
    lock_timeout: Option<Period>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedis {
    url: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    plaintext: bool,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLookup {
    key: String,
    ttl: Option<Period>,
    cache_max: Option<usize>,
    grace: Option<Period>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLease {
    duration: Option<Period>,
    session_lock: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThreads {
    pollers: Option<usize>,
    decoders: Option<usize>,
    writers: Option<usize>,
    pin: Option<RawPin>,
    watchdog: Option<Period>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    dead_letter_share: Option<f64>,
    dead_letter_window: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<logging::Format>,
    level: Option<LogLevel>,
}

/// Below debug, the clients' libraries would log what passes through them.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<String>,
    statsd: Option<String>,
    statsd_tags: Option<StatsdTags>,
    statsd_interval: Option<Period>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawPin {
    Word(String),
    Cores(Vec<usize>),
}

/// The whole configuration as used.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names the ledger's rows; several processes with the same name share the work.
    pub pipeline: String,
    pub kafka: Kafka,
    pub postgres: Postgres,
    pub redis: Option<Redis>,
    pub lookups: Vec<Lookup>,
    pub lease: Lease,
    pub threads: Threads,
    /// `None` where dead letters stop nothing.
    pub guard: Option<Guard>,
    pub metrics: Metrics,
    pub log: Log,
    pub limits: Limits,
    pub models: Vec<RawModel>,
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub brokers: String,
    /// Only named in the offsets that are committed for Kafka's lag tools; nobody joins it.
    pub group_id: String,
    pub start: StartPosition,
    pub tls: Option<KafkaTls>,
    pub sasl: Option<Sasl>,
    /// librdkafka's own properties, passed through.
    pub properties: BTreeMap<String, String>,
}

/// PEM files for TLS to Kafka; `cert` and `key` where the brokers ask for them.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaTls {
    /// `None` for the authorities that the system trusts.
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
    pub key_password: Option<String>,
}

/// A user for Kafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: String,
    pub username: String,
    pub password: String,
}

/// Where a topic begins that the ledger does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    Earliest,
    Latest,
    /// The first record at or after this time, in milliseconds since 1970 UTC.
    At(i64),
}

#[derive(Clone)]
pub struct Postgres {
    pub url: String,
    /// Instead of one in the URL.
    pub password: Option<String>,
    /// Bounds every wait for a lock; afterwards the batch is tried again.
    pub lock_timeout: Duration,
}

#[derive(Clone)]
pub struct Redis {
    pub url: String,
    /// Instead of those in the URL.
    pub username: Option<String>,
    pub password: Option<String>,
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

/// A URL may hold a password, so none of these is ever printed whole.
impl std::fmt::Debug for KafkaTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaTls").field("ca", &self.ca).field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sasl").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("lock_timeout", &self.lock_timeout).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// One kind of key in Redis, and how its answers are kept.
#[derive(Debug, Clone)]
pub struct Lookup {
    pub name: String,
    /// The key's text with `{}` where the token goes.
    pub key_prefix: String,
    pub key_suffix: String,
    /// A found value is asked again after this.
    pub ttl: Duration,
    /// Tokens kept; the oldest half goes when it is full.
    pub cache_max: usize,
    /// An unknown token is asked again for this long before its record is set aside.
    pub grace: Duration,
}

#[derive(Debug, Clone)]
pub struct Lease {
    /// A process that is silent for this long loses its partitions.
    pub duration: Duration,
    pub session_lock: bool,
}

#[derive(Debug, Clone)]
pub struct Threads {
    pub pollers: usize,
    pub decoders: usize,
    /// For each table.
    pub writers: usize,
    pub pin: Pin,
    /// A call to a server that lasts longer ends the process; the ledger makes that safe.
    pub watchdog: Duration,
}

/// When too many dead letters stop a topic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Above 0 and below 1.
    pub share: f64,
    /// How many outcomes are "recent". Fewer are judged as if the rest of them had been rows, so that three bad records of
    /// four stop nothing.
    pub window: u64,
}

/// How `run` logs.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    pub format: logging::Format,
    pub level: log::LevelFilter,
}

/// Who is told the figures.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// The file asks for this address. A default that is taken, by a second process of this machine, is no error.
    pub listen_is_wanted: bool,
    pub statsd: Option<Statsd>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statsd {
    pub address: StatsdAddress,
    pub tags: StatsdTags,
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatsdAddress {
    /// Host and port.
    Udp(String),
    /// A datagram socket's path.
    Unix(String),
}

/// How a StatsD server wants its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatsdTags {
    /// In the name, after a dot: every server reads that.
    #[default]
    None,
    Dogstatsd,
    Influx,
    Graphite,
}

#[derive(Debug, Clone)]
pub struct Limits {
    /// Raw and encoded records in hand.
    pub memory_max_bytes: usize,
    /// A larger record is set aside.
    pub message_max_bytes: usize,
}

fn default_pipeline() -> String {
    "rowmill".to_owned()
}

/// Enough for the largest batches that still gain speed, and leaves a process of 128 MB room for librdkafka and itself.
fn default_memory_max() -> Bytes {
    Bytes(24 << 20)
}

/// A connection waits for BEGIN and COMMIT a tenth of the time. Several tables use that time for each other; a lone one has a
/// second writer for it (1.26 to 1.32 million rows/s on two cores).
fn default_writers(models: &[RawModel]) -> usize {
    if models.iter().all(|model| model.table == models[0].table) { 2 } else { 1 }
}

/// Kafka's own default for `max.message.bytes` is 1 MiB; room for topics that were raised a little.
fn default_message_max() -> Bytes {
    Bytes(4 << 20)
}

/// Users change their tokens rarely, and a removed user should be noticed within a minute.
const LOOKUP_TTL: Duration = Duration::from_secs(60);

/// About 100 bytes each: 10 MB when full.
const LOOKUP_CACHE_MAX: usize = 100_000;

/// A collector may send before its user's token has reached Redis.
const LOOKUP_GRACE: Duration = Duration::from_secs(1);

/// Long enough for five heartbeats, short enough that a dead machine's partitions soon move on.
const LEASE: Duration = Duration::from_secs(5);

/// Long enough for an index build's short locks; afterwards the batch is sent again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Above every legal wait: the lock timeout, plus the time that a slow disk may need for one batch.
const WATCHDOG: Duration = Duration::from_secs(120);

/// So many records are a sample, and few enough to set aside before a bad deployment is noticed.
const DEAD_LETTER_WINDOW: u64 = 1000;

/// The guard keeps up to 16 bytes for each, for each topic.
const DEAD_LETTER_WINDOW_MAX: u64 = 100_000;

/// On loopback: who may see the figures is for the operator to say.
const METRICS_LISTEN: &str = "127.0.0.1:9753";

/// What most StatsD servers flush by.
const STATSD_INTERVAL: Duration = Duration::from_secs(10);

/// Batches count their bytes in 32 bits, and may grow to the whole budget.
const MEMORY_MAX_BYTES: usize = 1 << 30;

/// What one batch at least holds in hand, raw, encoded and in librdkafka, as a multiple of its largest record.
const MEMORY_PER_MESSAGE: usize = 5;

/// Reads and resolves a configuration file. Every setting outside of the models has an environment variable that comes
/// before the file: `ROWMILL_KAFKA__BROKERS` for `brokers` in `[kafka]`. Servers that neither names come from
/// `KAFKA_BROKERS`, `DATABASE_URL` and `REDIS_URL`.
pub fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {:?}", path.display().to_string()))?;
    let overrides = std::env::vars().filter(|(name, _)| name.starts_with(OVERRIDE));
    parse(&text, overrides, &|name| std::env::var(name).ok())
        .with_context(|| format!("in {}", path.display()))
}

/// Only `[kafka]`, for verbs that need nothing else; without a file, from the environment alone.
pub fn read_kafka(path: Option<&Path>) -> Result<Kafka> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the configuration file {:?}", path.display().to_string())
        })?,
        None => String::new(),
    };
    let overrides = std::env::vars().filter(|(name, _)| name.starts_with(OVERRIDE));
    let raw = read_raw(&text, overrides)?;
    resolve_kafka(raw.kafka, &raw.pipeline, &|name| std::env::var(name).ok())
}

/// Begins the names of variables that come before the file; two underscores stand for a dot.
const OVERRIDE: &str = "ROWMILL_";

/// Resolves a configuration from its text and the environment's overrides; `environment` looks other variables up.
pub fn parse(
    text: &str,
    overrides: impl Iterator<Item = (String, String)>,
    environment: Environment<'_>,
) -> Result<Config> {
    resolve(read_raw(text, overrides)?, environment)
}

fn read_raw(text: &str, overrides: impl Iterator<Item = (String, String)>) -> Result<RawConfig> {
    let mut raw: RawConfig = toml::from_str(text).map_err(|error| unreadable(text, &error))?;
    let mut overrides = overrides.peekable();
    if overrides.peek().is_some() {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| unreadable(text, &error))?;
        for (name, value) in overrides {
            apply(&mut table, &name, &value)?;
        }
        raw = table.try_into().map_err(|error| {
            anyhow::anyhow!("in an environment variable: {}", with_nearest(error.message()))
        })?;
    }
    Ok(raw)
}

/// The place and the parser's words. Never the line itself: it may hold a password.
fn unreadable(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    let words = with_nearest(error.message());
    match line {
        Some(line) => anyhow::anyhow!("line {line}: {words}"),
        None => anyhow::anyhow!("{words}"),
    }
}

/// Puts one variable's value into the file's place for it.
fn apply(table: &mut toml::Table, name: &str, value: &str) -> Result<()> {
    let lower = name[OVERRIDE.len()..].to_ascii_lowercase();
    let path: Vec<&str> = lower.split("__").collect();
    let (key, sections) = path.split_last().expect("a text has at least one part");
    let mut place = table;
    for section in sections {
        let next = place.entry(*section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = next.as_table_mut().with_context(|| {
            format!("the environment variable {name} names no setting: {section:?} is no section")
        })?;
    }
    // Numbers, truth values and lists as in the file; everything else is text.
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let value = parsed
        .and_then(|mut table| table.remove("value"))
        .filter(|parsed| parsed.is_integer() || parsed.is_bool() || parsed.is_array())
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    place.insert((*key).to_owned(), value);
    Ok(())
}

fn resolve(raw: RawConfig, env: Environment<'_>) -> Result<Config> {
    let limits = Limits { memory_max_bytes: raw.memory_max.0, message_max_bytes: raw.message_max.0 };
    if limits.memory_max_bytes < limits.message_max_bytes.saturating_mul(MEMORY_PER_MESSAGE) {
        bail!(
            "memory_max ({} bytes) must be at least {MEMORY_PER_MESSAGE} times message_max ({} bytes): one record is held raw, \
             encoded and in the Kafka client at the same time",
            limits.memory_max_bytes,
            limits.message_max_bytes
        );
    }
    if limits.memory_max_bytes > MEMORY_MAX_BYTES {
        bail!("memory_max must be at most 1GB: more only means that more is read again after a crash");
    }
    if raw.model.is_empty() {
        bail!("there is no [[model]]: name at least one topic and its table");
    }
    let lookups = raw
        .lookup
        .into_iter()
        .map(|(name, lookup)| resolve_lookup(name, lookup))
        .collect::<Result<Vec<_>>>()?;
    let redis = if lookups.is_empty() { None } else { Some(resolve_redis(raw.redis, env)?) };
    let lease = Lease {
        duration: raw.lease.duration.map_or(LEASE, |s| s.0),
        session_lock: raw.lease.session_lock.unwrap_or(true),
    };
    if lease.duration < Duration::from_secs(3) {
        bail!("lease.duration must be at least 3s: a heartbeat comes once a second");
    }
    let lock_timeout = raw.postgres.lock_timeout.map_or(LOCK_TIMEOUT, |s| s.0);
    let threads = Threads {
        pollers: raw.threads.pollers.unwrap_or(1),
        decoders: raw.threads.decoders.unwrap_or(1),
        writers: raw.threads.writers.unwrap_or_else(|| default_writers(&raw.model)),
        pin: resolve_pin(raw.threads.pin)?,
        watchdog: raw.threads.watchdog.map_or(WATCHDOG, |s| s.0),
    };
    for (name, count) in
        [("pollers", threads.pollers), ("decoders", threads.decoders), ("writers", threads.writers)]
    {
        if !(1..=64).contains(&count) {
            bail!("threads.{name} must be between 1 and 64");
        }
    }
    if threads.watchdog < 2 * lock_timeout {
        bail!("threads.watchdog must be at least twice postgres.lock_timeout: it ends the process");
    }
    Ok(Config {
        kafka: resolve_kafka(raw.kafka, &raw.pipeline, env)?,
        postgres: Postgres {
            url: secret::value(
                "postgres.url",
                &raw.postgres
                    .url
                    .or_else(|| env("DATABASE_URL"))
                    .context("no PostgreSQL server: set url in [postgres], or DATABASE_URL")?,
                env,
            )?,
            password: optional("postgres.password", raw.postgres.password, env)?,
            lock_timeout,
        },
        pipeline: raw.pipeline,
        redis,
        lookups,
        lease,
        threads,
        guard: resolve_guard(&raw.guard)?,
        metrics: resolve_metrics(raw.metrics)?,
        log: Log {
            format: raw.log.format.unwrap_or_default(),
            level: match raw.log.level.unwrap_or(LogLevel::Info) {
                LogLevel::Error => log::LevelFilter::Error,
                LogLevel::Warn => log::LevelFilter::Warn,
                LogLevel::Info => log::LevelFilter::Info,
                LogLevel::Debug => log::LevelFilter::Debug,
            },
        },
        limits,
        models: raw.model,
    })
}

fn resolve_guard(raw: &RawGuard) -> Result<Option<Guard>> {
    let window = raw.dead_letter_window.unwrap_or(DEAD_LETTER_WINDOW);
    if !(10..=DEAD_LETTER_WINDOW_MAX).contains(&window) {
        bail!("guard.dead_letter_window must be between 10 and {DEAD_LETTER_WINDOW_MAX} records");
    }
    match raw.dead_letter_share {
        None if raw.dead_letter_window.is_some() => {
            bail!(
                "guard.dead_letter_window says nothing without dead_letter_share, which switches the guard on"
            )
        }
        None => Ok(None),
        Some(share) if share > 0.0 && share < 1.0 => Ok(Some(Guard { share, window })),
        Some(share) => {
            bail!(
                "guard.dead_letter_share is {share}: use a share between 0 and 1, like 0.5; without it nothing is stopped"
            )
        }
    }
}

fn optional(setting: &str, text: Option<String>, env: Environment<'_>) -> Result<Option<String>> {
    text.map(|text| secret::value(setting, &text, env)).transpose()
}

fn optional_path(setting: &str, text: Option<String>, env: Environment<'_>) -> Result<Option<String>> {
    text.map(|text| secret::path(setting, &text, env)).transpose()
}

fn resolve_kafka(raw: RawKafka, pipeline: &str, env: Environment<'_>) -> Result<Kafka> {
    let brokers = raw
        .brokers
        .or_else(|| env("KAFKA_BROKERS"))
        .context("no Kafka brokers: set brokers in [kafka], or KAFKA_BROKERS")?;
    let properties = checked_properties(raw.properties)?;
    let tls = raw.tls.map(|tls| resolve_kafka_tls(tls, env)).transpose()?;
    let sasl = raw.sasl.map(|sasl| resolve_sasl(sasl, env)).transpose()?;
    let is_local = brokers.split(',').all(|broker| is_loopback(host_of(broker)));
    if tls.is_none() && !is_local && !raw.plaintext {
        bail!(
            "the brokers {brokers} are on other machines and there is no [kafka.tls]: set ca there, or plaintext = true in \
             [kafka] if everybody in between may read and change the records"
        );
    }
    Ok(Kafka {
        brokers,
        group_id: raw.group_id.unwrap_or_else(|| pipeline.to_owned()),
        start: resolve_start(raw.start.as_deref())?,
        tls,
        sasl,
        properties,
    })
}

fn resolve_kafka_tls(raw: RawKafkaTls, env: Environment<'_>) -> Result<KafkaTls> {
    if raw.cert.is_some() != raw.key.is_some() {
        bail!("kafka.tls: cert and key belong together; set both or none");
    }
    Ok(KafkaTls {
        ca: if raw.ca == "system" { None } else { Some(secret::path("kafka.tls.ca", &raw.ca, env)?) },
        cert: optional_path("kafka.tls.cert", raw.cert, env)?,
        key: optional_path("kafka.tls.key", raw.key, env)?,
        key_password: optional("kafka.tls.key_password", raw.key_password, env)?,
    })
}

/// What librdkafka can do without a Kerberos library.
const SASL_MECHANISMS: [&str; 3] = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"];

fn resolve_sasl(raw: RawSasl, env: Environment<'_>) -> Result<Sasl> {
    if !SASL_MECHANISMS.contains(&raw.mechanism.as_str()) {
        bail!(
            "kafka.sasl.mechanism is {:?}: use one of {}{}",
            raw.mechanism,
            SASL_MECHANISMS.join(", "),
            did_you_mean(&raw.mechanism.to_uppercase(), SASL_MECHANISMS.into_iter())
        );
    }
    Ok(Sasl {
        mechanism: raw.mechanism,
        username: secret::value("kafka.sasl.username", &raw.username, env)?,
        password: secret::value("kafka.sasl.password", &raw.password, env)?,
    })
}

fn resolve_redis(raw: RawRedis, env: Environment<'_>) -> Result<Redis> {
    let url = raw
        .url
        .or_else(|| env("REDIS_URL"))
        .context("there is a [lookup] but no Redis: set url in [redis], or REDIS_URL")?;
    let url = secret::value("redis.url", &url, env)?;
    if url.contains('#') {
        bail!(
            "redis.url ends in #..., which would switch the check of certificates off: give the CA in redis.ca instead"
        );
    }
    let remote = match url.split_once("://") {
        Some(("redis", rest)) => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            Some(host_of(authority.rsplit('@').next().unwrap_or_default()))
        }
        Some(("rediss" | "unix" | "redis+unix", _)) => None,
        _ => bail!("redis.url must begin with rediss://, redis:// or unix://"),
    };
    if remote.is_some_and(|host| !is_loopback(host)) && !raw.plaintext {
        bail!(
            "Redis is on another machine and redis.url begins with redis://, which is plaintext: write rediss:// and its TLS \
             port, or plaintext = true in [redis] if everybody in between may read and change users"
        );
    }
    if raw.cert.is_some() != raw.key.is_some() {
        bail!("redis: cert and key belong together; set both or none");
    }
    Ok(Redis {
        url,
        username: optional("redis.username", raw.username, env)?,
        password: optional("redis.password", raw.password, env)?,
        ca: optional_path("redis.ca", raw.ca, env)?,
        cert: optional_path("redis.cert", raw.cert, env)?,
        key: optional_path("redis.key", raw.key, env)?,
    })
}

/// Host and port of a broker; without one, Kafka's usual port.
pub fn address_of(broker: &str) -> (&str, u16) {
    const KAFKA_PORT: u16 = 9092;
    let port = broker.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    (host_of(broker), port.unwrap_or(KAFKA_PORT))
}

/// The host of `host:port`, where the port may be missing and an IPv6 address stands in brackets.
fn host_of(address: &str) -> &str {
    let address = address.trim().rsplit("://").next().unwrap_or_default();
    match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    }
}

/// True for a name or address of this machine, for which TLS protects nothing.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn resolve_lookup(name: String, raw: RawLookup) -> Result<Lookup> {
    let Some((prefix, suffix)) = raw.key.split_once("{}") else {
        bail!("lookup.{name}: key {:?} has no {{}} where the token goes", raw.key);
    };
    let lookup = Lookup {
        key_prefix: prefix.to_owned(),
        key_suffix: suffix.to_owned(),
        ttl: raw.ttl.map_or(LOOKUP_TTL, |s| s.0),
        cache_max: raw.cache_max.unwrap_or(LOOKUP_CACHE_MAX),
        grace: raw.grace.map_or(LOOKUP_GRACE, |s| s.0),
        name,
    };
    if lookup.cache_max < 1000 {
        bail!("lookup.{}: cache_max must be at least 1000, or one batch would not fit", lookup.name);
    }
    Ok(lookup)
}

fn resolve_start(raw: Option<&str>) -> Result<StartPosition> {
    match raw {
        None | Some("earliest") => Ok(StartPosition::Earliest),
        Some("latest") => Ok(StartPosition::Latest),
        Some(text) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                anyhow::anyhow!("kafka.start is {text:?}: use \"earliest\", \"latest\" or a time like \"2026-01-31T00:00:00Z\"")
            })?;
            Ok(StartPosition::At(time.as_millisecond()))
        }
    }
}

fn resolve_pin(raw: Option<RawPin>) -> Result<Pin> {
    match raw {
        None => Ok(Pin::Auto),
        Some(RawPin::Word(word)) if word == "auto" => Ok(Pin::Auto),
        Some(RawPin::Word(word)) if word == "off" => Ok(Pin::Off),
        Some(RawPin::Cores(cores)) if !cores.is_empty() => Ok(Pin::Cores(cores)),
        Some(_) => bail!("threads.pin must be \"auto\", \"off\" or a list of cores like [2, 3]"),
    }
}

fn resolve_metrics(raw: RawMetrics) -> Result<Metrics> {
    let listen_is_wanted = raw.listen.is_some();
    let listen = match raw.listen.as_deref().unwrap_or(METRICS_LISTEN) {
        "off" => None,
        text => Some(text.parse().map_err(|_| {
            anyhow::anyhow!("metrics.listen is {text:?}: write an IP address and a port like {METRICS_LISTEN:?}, or \"off\"")
        })?),
    };
    let interval = raw.statsd_interval.map_or(STATSD_INTERVAL, |s| s.0);
    if interval < Duration::from_secs(1) {
        bail!("metrics.statsd_interval must be at least 1s");
    }
    let address = match raw.statsd.as_deref().map(|text| (text, text.split_once("://"))) {
        None => None,
        Some((_, Some(("udp", address)))) if address.contains(':') => {
            Some(StatsdAddress::Udp(address.to_owned()))
        }
        Some((_, Some(("unix", path)))) if path.starts_with('/') => {
            Some(StatsdAddress::Unix(path.to_owned()))
        }
        Some((text, _)) => bail!("metrics.statsd is {text:?}: write udp://host:8125 or unix:///path"),
    };
    let tags = raw.statsd_tags.unwrap_or_default();
    Ok(Metrics {
        listen,
        listen_is_wanted,
        statsd: address.map(|address| Statsd { address, tags, interval }),
    })
}

/// Properties on which the promise rests: librdkafka would skip records or lose its place with other values.
const FIXED_PROPERTIES: [&str; 16] = [
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "isolation.level",
    "bootstrap.servers",
    "group.id",
    // [kafka.tls] and [kafka.sasl] say these, and check them.
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.key.password",
    "ssl.ca.location",
    "enable.ssl.certificate.verification",
    "ssl.endpoint.identification.algorithm",
];

fn checked_properties(properties: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    match properties.keys().find(|name| FIXED_PROPERTIES.contains(&name.as_str())) {
        Some(fixed) => bail!(
            "kafka.properties may not set {fixed:?}: the guarantee rests on its value, or [kafka], [kafka.tls] or [kafka.sasl] has \
             a setting for it"
        ),
        None => Ok(properties),
    }
}

/// `"64MB"`, `"512kB"`, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bytes(usize);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(usize),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => parse_bytes(&text).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?} is no size: write it like \"64MB\" or \"512kB\""))
            }),
        }
    }
}

fn parse_bytes(text: &str) -> Option<Bytes> {
    let (number, factor) =
        split_unit(text, &[("kB", 1 << 10), ("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("B", 1)])?;
    Some(Bytes(number.checked_mul(factor)? as usize))
}

/// `"5s"`, `"500ms"`, `"2m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Period(Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_period(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no duration: write it like \"5s\", \"500ms\" or \"2m\""
            ))
        })
    }
}

fn parse_period(text: &str) -> Option<Period> {
    let (number, factor) = split_unit(text, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)])?;
    Some(Period(Duration::from_millis(number.checked_mul(factor)?)))
}

/// The number and the factor of its unit; longer units come first in the list where one ends another.
fn split_unit(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim().parse().ok()?, *factor)))
}

/// Adds the nearest known key to the parser's "unknown field" message.
fn with_nearest(message: &str) -> String {
    let message = message.trim_end();
    let mut quoted = message.split('`').skip(1).step_by(2);
    match message.contains("unknown field").then(|| quoted.next()).flatten() {
        Some(unknown) => format!("{message}{}", did_you_mean(unknown, quoted)),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[[model]]\ntopic = \"t\"\ntable = \"t\"\n";

    fn env(name: &str) -> Option<String> {
        match name {
            "KAFKA_BROKERS" => Some("localhost:9092".into()),
            "DATABASE_URL" => Some("postgresql://u:s3cret@localhost/d".into()),
            "REDIS_URL" => Some("redis://localhost".into()),
            _ => None,
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = format!("{:#}", parse(text, std::iter::empty(), &env).expect_err("refused"));
            assert!(error.contains(expected), "{error}");
        }
        check("", "no [[model]]");
        check(&format!("pipelin = \"x\"\n{MODEL}"), "did you mean \"pipeline\"?");
        check(&format!("[kafka]\nbroker = \"x\"\n{MODEL}"), "did you mean \"brokers\"?");
        check(&format!("memory_max = \"10MB\"\n{MODEL}"), "at least 5 times message_max");
        check(&format!("memory_max = \"ten\"\n{MODEL}"), "is no size");
        check(&format!("[lease]\nduration = \"1s\"\n{MODEL}"), "at least 3s");
        check(&format!("[lookup.user]\nkey = \"user\"\n{MODEL}"), "no {} where the token goes");
        check(&format!("[kafka]\nstart = \"now\"\n{MODEL}"), "\"earliest\", \"latest\"");
        check(&format!("[kafka.properties]\n\"auto.offset.reset\" = \"latest\"\n{MODEL}"), "may not set");
        check(&format!("[threads]\npin = \"yes\"\n{MODEL}"), "threads.pin");
        check(&format!("[metrics]\nlisten = \"localhost\"\n{MODEL}"), "an IP address and a port");
        check(&format!("[metrics]\nstatsd = \"localhost:8125\"\n{MODEL}"), "udp://host:8125");
        check(&format!("[threads]\ndecoders = 0\n{MODEL}"), "between 1 and 64");
        for share in ["0.0", "1.0", "-0.5", "nan", "inf"] {
            check(&format!("[guard]\ndead_letter_share = {share}\n{MODEL}"), "guard.dead_letter_share is");
        }
        check(&format!("[guard]\ndead_letter_window = 500\n{MODEL}"), "without dead_letter_share");
        check(
            &format!("[guard]\ndead_letter_share = 0.5\ndead_letter_window = 9\n{MODEL}"),
            "between 10 and 100000",
        );
    }

    #[test]
    fn servers_come_from_the_environment_where_the_file_names_none() {
        let config =
            parse(&format!("[kafka]\nstart = \"2026-01-31T00:00:00Z\"\n{MODEL}"), std::iter::empty(), &env)
                .unwrap();
        assert_eq!(config.kafka.brokers, "localhost:9092");
        assert_eq!(config.kafka.start, StartPosition::At(1_769_817_600_000));
        assert!(config.redis.is_none(), "no lookup, no Redis");
        let written = parse(
            &format!(
                "[kafka]\nbrokers = \"k:1\"\nplaintext = true\n[lookup.user]\nkey = \"user:{{}}:id\"\n{MODEL}"
            ),
            std::iter::empty(),
            &env,
        )
        .unwrap();
        assert_eq!(written.kafka.brokers, "k:1");
        assert_eq!((&*written.lookups[0].key_prefix, &*written.lookups[0].key_suffix), ("user:", ":id"));
        assert!(!format!("{written:?}").contains("s3cret"));
    }

    #[test]
    fn variables_come_before_the_file() {
        let parse_with = |overrides: &[(&str, &str)]| {
            let overrides = overrides.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            parse(&format!("[threads]\ndecoders = 2\n{MODEL}"), overrides, &env)
        };
        let config = parse_with(&[
            ("ROWMILL_PIPELINE", "other"),
            ("ROWMILL_THREADS__DECODERS", "4"),
            ("ROWMILL_THREADS__PIN", "[1, 2]"),
            ("ROWMILL_METRICS__LISTEN", "off"),
            ("ROWMILL_KAFKA__START", "2026-01-31T00:00:00Z"),
        ])
        .unwrap();
        assert_eq!((config.pipeline.as_str(), config.threads.decoders), ("other", 4));
        assert_eq!(config.threads.pin, Pin::Cores(vec![1, 2]));
        assert!(config.metrics.listen.is_none());
        assert_eq!(config.kafka.start, StartPosition::At(1_769_817_600_000));
        let error = format!("{:#}", parse_with(&[("ROWMILL_THREADS__DECODER", "4")]).unwrap_err());
        assert!(
            error.contains("environment variable") && error.contains("did you mean \"decoders\"?"),
            "{error}"
        );
        assert!(parse_with(&[("ROWMILL_PIPELINE__X", "4")]).is_err());
    }

    /// The example with every default written out, and its files in a directory that exists.
    fn example(directory: &str) -> String {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/rowmill.example.toml"))
            .replace("/etc/rowmill", directory);
        let is_setting = |line: &str| {
            line.strip_prefix('#').is_some_and(|rest| {
                rest.starts_with('[')
                    || rest.starts_with('"')
                    || rest
                        .split_once(" = ")
                        .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            })
        };
        text.lines()
            .map(|line| if is_setting(line) { &line[1..] } else { line })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_is_right_and_shows_every_setting() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("secrets")).unwrap();
        for file in [
            "ca.crt",
            "client.crt",
            "client.key",
            "secrets/kafka.key",
            "secrets/kafka.key.password",
            "secrets/kafka-password",
        ]
        .into_iter()
        .chain(["secrets/database-password", "secrets/redis-password"])
        {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        let text = example(dir.path().to_str().unwrap());
        parse(&text, std::iter::empty(), &|_| None).unwrap();
        let shown: toml::Table = toml::from_str(&text).unwrap();
        // serde names all fields of a section when it meets one that it does not know.
        for path in [
            "",
            "kafka",
            "kafka.tls",
            "kafka.sasl",
            "postgres",
            "redis",
            "lookup.user",
            "lease",
            "threads",
            "metrics",
            "log",
        ] {
            let header = if path.is_empty() { String::new() } else { format!("[{path}]\n") };
            let words = toml::from_str::<RawConfig>(&format!("{header}no_such_setting = 1\n"))
                .unwrap_err()
                .to_string();
            let section = path.split('.').filter(|name| !name.is_empty()).fold(&shown, |table, name| {
                table
                    .get(name)
                    .and_then(toml::Value::as_table)
                    .unwrap_or_else(|| panic!("the example lacks [{path}]"))
            });
            let fields: Vec<&str> = words.split('`').skip(1).step_by(2).skip(1).collect();
            assert!(fields.len() >= 2, "{words}");
            for field in fields
                .iter()
                .filter(|name| **name != "no_such_setting" && !name.contains(char::is_whitespace))
            {
                assert!(section.contains_key(*field), "the example lacks {field:?} in [{path}]");
            }
        }
    }

    #[test]
    fn what_would_be_plaintext_between_machines_must_be_asked_for() {
        #[track_caller]
        fn check(section: &str, expected: Result<(), &str>) {
            let text = format!("{section}\n[lookup.user]\nkey = \"{{}}\"\n{MODEL}");
            match (parse(&text, std::iter::empty(), &env), expected) {
                (Ok(_), Ok(())) => {}
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{error:#}"),
                (Err(error), Ok(())) => panic!("{section}: {error:#}"),
                (Ok(_), Err(words)) => panic!("{section} was accepted, expected: {words}"),
            }
        }
        check("[kafka]\nbrokers = \"k-1:9092,localhost:1\"", Err("no [kafka.tls]"));
        check("[kafka]\nbrokers = \"k-1:9092\"\nplaintext = true", Ok(()));
        check("[kafka]\nbrokers = \"[::1]:9092, 127.0.0.1:1\"", Ok(()));
        check("[kafka.tls]\nca = \"system\"\n[kafka]\nbrokers = \"k-1:9092\"", Ok(()));
        check("[kafka.tls]\nca = \"/nowhere/ca.crt\"", Err("cannot read kafka.tls.ca \"/nowhere/ca.crt\""));
        check("[kafka.tls]\nca = \"system\"\ncert = \"/x\"", Err("belong together"));
        check("[kafka.sasl]\nmechanism = \"GSSAPI\"\nusername = \"u\"\npassword = \"p\"", Err("use one of"));
        check("[kafka.properties]\n\"sasl.password\" = \"x\"", Err("may not set"));
        check("[redis]\nurl = \"redis://:pw@10.0.0.1:6379/0\"", Err("plaintext"));
        check("[redis]\nurl = \"redis://10.0.0.1\"\nplaintext = true", Ok(()));
        check("[redis]\nurl = \"rediss://10.0.0.1\"", Ok(()));
        check("[redis]\nurl = \"rediss://10.0.0.1/#insecure\"", Err("certificates"));
        check("[redis]\nurl = \"REDIS://10.0.0.1\"", Err("must begin with"));
    }

    #[test]
    fn a_password_is_never_quoted() {
        for text in [
            "[postgres]\npasword = \"canary\"\n",
            "[postgres]\npassword = canary\n",
            "[kafka.sasl]\nmechanism = 7\nusername = \"canary\"\npassword = \"canary\"\n",
            "[redis]\nurl = \"redis://:canary@far.example\"\n[lookup.user]\nkey = \"{}\"\n",
        ] {
            let error = parse(&format!("{text}{MODEL}"), std::iter::empty(), &env).expect_err("refused");
            assert!(!format!("{error:#} {error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(parse_bytes("64MB"), Some(Bytes(64 << 20)));
        assert_eq!(parse_bytes("1 kB"), Some(Bytes(1024)));
        assert_eq!(parse_bytes("64"), None);
        assert_eq!(parse_period("500ms"), Some(Period(Duration::from_millis(500))));
        assert_eq!(parse_period("5s"), Some(Period(Duration::from_secs(5))));
        assert_eq!(parse_period("5"), None);
    }
}
