//! Configuration in two steps: raw as written (TOML, unknown keys refused) and resolved as used (checked and typed).
//! Every default stands here, with its reason.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};

use crate::cpu::Pin;
use crate::model::RawModel;
use crate::spelling::did_you_mean;

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
    metrics: RawMetrics,
    #[serde(default)]
    model: Vec<RawModel>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKafka {
    brokers: Option<String>,
    group_id: Option<String>,
    start: Option<String>,
    tls: Option<KafkaTls>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPostgres {
    url: Option<String>,
    lock_timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedis {
    url: Option<String>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLookup {
    key: String,
    ttl: Option<Span>,
    cache_max: Option<usize>,
    grace: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLease {
    duration: Option<Span>,
    session_lock: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThreads {
    pollers: Option<usize>,
    decoders: Option<usize>,
    writers: Option<usize>,
    pin: Option<RawPin>,
    watchdog: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<String>,
    statsd: Option<String>,
    statsd_tags: Option<StatsdTags>,
    statsd_interval: Option<Span>,
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
    pub metrics: Metrics,
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
    /// librdkafka's own properties, passed through.
    pub properties: BTreeMap<String, String>,
}

/// PEM files for TLS to Kafka; `cert` and `key` where the brokers ask for them.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KafkaTls {
    pub ca: String,
    pub cert: Option<String>,
    pub key: Option<String>,
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
    /// Bounds every wait for a lock; afterwards the batch is tried again.
    pub lock_timeout: Duration,
}

#[derive(Clone)]
pub struct Redis {
    pub url: String,
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

/// A URL may hold a password, so neither is ever printed whole.
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
    Bytes(32 << 20)
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

/// On loopback: who may see the figures is for the operator to say.
const METRICS_LISTEN: &str = "127.0.0.1:9753";

/// What most StatsD servers flush by.
const STATSD_INTERVAL: Duration = Duration::from_secs(10);

/// Batches count their bytes in 32 bits, and may grow to the whole budget.
const MEMORY_MAX_BYTES: usize = 1 << 30;

/// What one batch at least holds in hand, raw, encoded and in librdkafka, as a multiple of its largest record.
const MEMORY_PER_MESSAGE: usize = 5;

/// Reads and resolves a configuration file. Servers that it does not name come from `KAFKA_BROKERS`, `DATABASE_URL` and
/// `REDIS_URL`.
pub fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {:?}", path.display().to_string()))?;
    parse(&text, |name| std::env::var(name).ok()).with_context(|| format!("in {}", path.display()))
}

/// Resolves a configuration from its text; `env` looks environment variables up.
pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
    let raw: RawConfig =
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", with_nearest(&error.to_string())))?;
    resolve(raw, env)
}

fn resolve(raw: RawConfig, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
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
    let redis_url = raw.redis.url.or_else(|| env("REDIS_URL"));
    let redis = match redis_url {
        Some(url) if !lookups.is_empty() => {
            Some(Redis { url, ca: raw.redis.ca, cert: raw.redis.cert, key: raw.redis.key })
        }
        None if !lookups.is_empty() => {
            bail!("there is a [lookup] but no Redis: set url in [redis], or REDIS_URL")
        }
        _ => None,
    };
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
        writers: raw.threads.writers.unwrap_or(1),
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
        kafka: Kafka {
            brokers: raw
                .kafka
                .brokers
                .or_else(|| env("KAFKA_BROKERS"))
                .context("no Kafka brokers: set brokers in [kafka], or KAFKA_BROKERS")?,
            group_id: raw.kafka.group_id.unwrap_or_else(|| raw.pipeline.clone()),
            start: resolve_start(raw.kafka.start.as_deref())?,
            tls: raw.kafka.tls,
            properties: checked_properties(raw.kafka.properties)?,
        },
        postgres: Postgres {
            url: raw
                .postgres
                .url
                .or_else(|| env("DATABASE_URL"))
                .context("no PostgreSQL server: set url in [postgres], or DATABASE_URL")?,
            lock_timeout,
        },
        pipeline: raw.pipeline,
        redis,
        lookups,
        lease,
        threads,
        metrics: resolve_metrics(raw.metrics)?,
        limits,
        models: raw.model,
    })
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
const FIXED_PROPERTIES: [&str; 7] = [
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "isolation.level",
    "bootstrap.servers",
    "group.id",
];

fn checked_properties(properties: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    match properties.keys().find(|name| FIXED_PROPERTIES.contains(&name.as_str())) {
        Some(fixed) => bail!(
            "kafka.properties may not set {fixed:?}: the guarantee rests on its value, or [kafka] has a setting for it"
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
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no duration: write it like \"5s\", \"500ms\" or \"2m\""
            ))
        })
    }
}

fn parse_span(text: &str) -> Option<Span> {
    let (number, factor) = split_unit(text, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)])?;
    Some(Span(Duration::from_millis(number.checked_mul(factor)?)))
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
            let error = format!("{:#}", parse(text, env).expect_err("refused"));
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
    }

    #[test]
    fn servers_come_from_the_environment_where_the_file_names_none() {
        let config = parse(&format!("[kafka]\nstart = \"2026-01-31T00:00:00Z\"\n{MODEL}"), env).unwrap();
        assert_eq!(config.kafka.brokers, "localhost:9092");
        assert_eq!(config.kafka.start, StartPosition::At(1_769_817_600_000));
        assert!(config.redis.is_none(), "no lookup, no Redis");
        let written = parse(
            &format!("[kafka]\nbrokers = \"k:1\"\n[lookup.user]\nkey = \"user:{{}}:id\"\n{MODEL}"),
            env,
        )
        .unwrap();
        assert_eq!(written.kafka.brokers, "k:1");
        assert_eq!((&*written.lookups[0].key_prefix, &*written.lookups[0].key_suffix), ("user:", ":id"));
        assert!(!format!("{written:?}").contains("s3cret"));
    }

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(parse_bytes("64MB"), Some(Bytes(64 << 20)));
        assert_eq!(parse_bytes("1 kB"), Some(Bytes(1024)));
        assert_eq!(parse_bytes("64"), None);
        assert_eq!(parse_span("500ms"), Some(Span(Duration::from_millis(500))));
        assert_eq!(parse_span("5s"), Some(Span(Duration::from_secs(5))));
        assert_eq!(parse_span("5"), None);
    }
}
