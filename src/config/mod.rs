//! Configuration in two steps: raw as written (TOML, unknown keys refused) and resolved as used (checked and typed).
//! A file a section: each has its defaults with their reasons. Here are reading, the environment's overrides, and the
//! relations between sections.

pub mod secret;
pub mod source;
mod units;
pub mod address;
mod collect;
mod serve;
mod tail;
mod limits;
mod kafka;
mod postgres;
mod redis;
mod lease;
mod threads;
mod guard;
mod metrics;
mod log;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use self::collect::{RawCollect, resolve_collect};
use self::guard::{RawGuard, resolve_guard};
use self::kafka::{RawKafka, resolve_kafka};
use self::lease::{RawLease, resolve_lease};
use self::limits::{default_memory_max, default_message_max, resolve_limits};
use self::log::{RawLog, resolve_log};
use self::metrics::{RawMetrics, resolve_metrics};
use self::postgres::{RawPostgres, resolve_postgres};
use self::redis::{RawLookup, RawRedis, resolve_lookup, resolve_redis};
use self::secret::Environment;
use self::serve::{RawServe, resolve_serve};
use self::tail::{RawTail, resolve_tail, split_channel};
use self::threads::{RawThreads, resolve_threads};
use self::units::Bytes;
use crate::base::spelling::did_you_mean;
use crate::model::RawModel;

// What the configuration is made of, as `Config` lists it: its users say `config::Kafka`, and the files are how it is kept.
pub use self::address::Listen;
pub use self::collect::{
    Ack, Batch, Collect, Form, JsonType, Names, Rate, RawMust, RawRoute, Require, Validate,
};
pub use self::guard::Guard;
pub use self::kafka::{Kafka, KafkaTls, Sasl, StartPosition};
pub use self::lease::Lease;
pub use self::limits::Limits;
pub use self::log::Log;
pub use self::metrics::{Metrics, Statsd, StatsdAddress, StatsdTags};
pub use self::postgres::Postgres;
pub use self::redis::{Lookup, Redis};
pub use self::serve::{
    ChartKind, Columns, Etag, Format, ParameterType, Place, PlanMode, RawChart, RawEndpoint, RawParameter,
    Scale, Serve, Shape, TimeUnit,
};
pub use self::tail::{AccountType, From, Names as FieldNames, Tail, Words};
pub use self::threads::Threads;

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
    collect: RawCollect,
    #[serde(default)]
    route: Vec<RawRoute>,
    #[serde(default)]
    serve: RawServe,
    #[serde(default)]
    endpoint: Vec<RawEndpoint>,
    #[serde(default)]
    tail: RawTail,
    #[serde(default)]
    model: Vec<RawModel>,
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
    /// `None` where there is no `[[route]]`.
    pub collect: Option<Collect>,
    /// `None` where there is no `[[endpoint]]`.
    pub serve: Option<Serve>,
    pub models: Vec<RawModel>,
}

/// What `collect` needs of a configuration: no database and no model, unless a route asks for them.
#[derive(Debug, Clone)]
pub struct Door {
    pub kafka: Kafka,
    pub collect: Collect,
    pub metrics: Metrics,
    pub log: Log,
    /// A call to a server that lasts longer ends the process.
    pub watchdog: std::time::Duration,
    /// Where the rate of all instances is told, and Redis is named.
    pub redis: Option<Redis>,
    /// Where a route asks whether what it is about is there.
    pub postgres: Option<Postgres>,
    /// The whole configuration, where a route asks what the models would make of a record.
    pub pipeline: Option<Box<Config>>,
}

/// What `serve` needs of a configuration: no Kafka, and no model.
#[derive(Debug, Clone)]
pub struct Window {
    pub postgres: Postgres,
    pub serve: Serve,
    pub metrics: Metrics,
    pub log: Log,
    /// A call to a server that lasts longer ends the process.
    pub watchdog: std::time::Duration,
}

/// What `tail` needs of a configuration: where events come from, and nothing else.
#[derive(Debug, Clone)]
pub struct View {
    pub tail: Tail,
    /// `None` where only Kafka is asked.
    pub redis: Option<Redis>,
    /// `None` where no topic is named.
    pub kafka: Option<Kafka>,
}

fn default_pipeline() -> String {
    "rowmill".to_owned()
}

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

/// What `collect` needs; the rest of the file may be another's.
pub fn read_door(path: &Path) -> Result<Door> {
    let mut door = read_part(path, resolve_door)?;
    if door.collect.routes.iter().any(|route| route.validate == Validate::Model) {
        let config = read(path)
            .context("a route has validate = \"model\", which needs the models and their database")?;
        door.pipeline = Some(Box::new(config));
    }
    Ok(door)
}

/// What `serve` needs; the rest of the file may be another's.
pub fn read_window(path: &Path) -> Result<Window> {
    read_part(path, resolve_window)
}

/// What `tail` needs. `source` is Redis' URL with a channel at its end, and comes before the file, which need not be there then;
/// `plaintext` allows it to be on another machine without TLS.
pub fn read_view(path: &Path, source: Option<&str>, plaintext: bool) -> Result<View> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if source.is_some() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| {
            format!(
                "cannot read the configuration file {:?}: name one with --config, or a source like redis://localhost/events",
                path.display().to_string()
            )
        })?,
    };
    let overrides = std::env::vars().filter(|(name, _)| name.starts_with(OVERRIDE));
    let mut raw = read_raw(&text, overrides).with_context(|| format!("in {}", path.display()))?;
    if let Some(source) = source {
        let (url, channel) = split_channel(source);
        raw.redis.ask(url, plaintext);
        raw.tail = raw.tail.with_channel(channel);
    }
    resolve_view(raw, &|name| std::env::var(name).ok()).with_context(|| format!("in {}", path.display()))
}

/// The same from a text alone, for tests.
#[cfg(test)]
pub(crate) fn parse_window(text: &str) -> Result<Window> {
    read_raw(text, std::iter::empty()).and_then(|raw| resolve_window(raw, &|_| None))
}

fn read_part<T>(path: &Path, resolve: fn(RawConfig, Environment<'_>) -> Result<T>) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {:?}", path.display().to_string()))?;
    let overrides = std::env::vars().filter(|(name, _)| name.starts_with(OVERRIDE));
    let env: Environment<'_> = &|name| std::env::var(name).ok();
    read_raw(&text, overrides)
        .and_then(|raw| resolve(raw, env))
        .with_context(|| format!("in {}", path.display()))
}

/// True of a file that can be read and has no `[[model]]`.
pub fn has_no_models(path: &Path) -> bool {
    let overrides = std::env::vars().filter(|(name, _)| name.starts_with(OVERRIDE));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    read_raw(&text, overrides).is_ok_and(|raw| raw.model.is_empty())
}

fn resolve_door(raw: RawConfig, env: Environment<'_>) -> Result<Door> {
    if raw.route.is_empty() {
        bail!("there is no [[route]]: name at least one path and its topic");
    }
    let counts = raw.collect.has_rate() && raw.redis.is_named(env);
    let asks = raw.route.iter().any(|route| route.must_exist.is_some());
    Ok(Door {
        redis: counts.then(|| resolve_redis(raw.redis, env)).transpose()?,
        postgres: asks.then(|| resolve_postgres(raw.postgres, env)).transpose()?,
        kafka: resolve_kafka(raw.kafka, &raw.pipeline, env)?,
        collect: resolve_collect(raw.collect, raw.route, env)?,
        metrics: resolve_metrics(raw.metrics)?,
        log: resolve_log(&raw.log),
        watchdog: resolve_threads(raw.threads, &raw.model)?.watchdog,
        pipeline: None,
    })
}

fn resolve_window(raw: RawConfig, env: Environment<'_>) -> Result<Window> {
    if raw.endpoint.is_empty() {
        bail!("there is no [[endpoint]]: name at least one path and its statement");
    }
    let postgres = resolve_postgres(raw.postgres, env)?;
    Ok(Window {
        serve: resolve_serve(raw.serve, raw.endpoint, postgres.lock_timeout, env)?,
        postgres,
        metrics: resolve_metrics(raw.metrics)?,
        log: resolve_log(&raw.log),
        watchdog: resolve_threads(raw.threads, &raw.model)?.watchdog,
    })
}

fn resolve_view(raw: RawConfig, env: Environment<'_>) -> Result<View> {
    let tail = resolve_tail(raw.tail)?;
    if tail.needs_redis() && !raw.redis.is_named(env) {
        bail!(
            "no Redis is named: set url in [redis], REDIS_URL, or give a source like redis://localhost/events"
        );
    }
    Ok(View {
        redis: tail.needs_redis().then(|| resolve_redis(raw.redis, env)).transpose()?,
        kafka: tail.topic.is_some().then(|| resolve_kafka(raw.kafka, &raw.pipeline, env)).transpose()?,
        tail,
    })
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
            // After each, so that the one at fault can be named.
            raw = table.clone().try_into().map_err(|error| {
                anyhow::anyhow!("in the environment variable {name}: {}", with_nearest(error.message()))
            })?;
        }
    }
    Ok(raw)
}

/// The place and the parser's words. Never the line itself: it may hold a password.
fn unreadable(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let words = with_nearest(error.message());
    let Some(span) = error.span() else { return anyhow::anyhow!("{words}") };
    let before = &text[..span.start.min(text.len())];
    let line = 1 + before.matches('\n').count();
    match setting(before).filter(|name| !words.contains(name.as_str())) {
        Some(name) => anyhow::anyhow!("line {line}, {name}: {words}"),
        None => anyhow::anyhow!("line {line}: {words}"),
    }
}

/// The setting whose value begins where this text ends, with its section. Nothing of a value: it may be a password.
fn setting(before: &str) -> Option<String> {
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.\"".contains(c))
    };
    let (key, _) = before.lines().next_back()?.split_once('=')?;
    let key = Some(key.trim()).filter(|key| is_name(key))?;
    let section = before.lines().rev().find_map(|line| {
        let name = line.trim().strip_prefix('[')?.split(']').next()?.trim_start_matches('[');
        is_name(name).then(|| format!("{name}."))
    });
    Some(section.unwrap_or_default() + key)
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
    let limits = resolve_limits(raw.memory_max, raw.message_max)?;
    if raw.model.is_empty() {
        bail!("there is no [[model]]: name at least one topic and its table");
    }
    let lookups = raw
        .lookup
        .into_iter()
        .map(|(name, lookup)| resolve_lookup(name, lookup))
        .collect::<Result<Vec<_>>>()?;
    let redis = if lookups.is_empty() { None } else { Some(resolve_redis(raw.redis, env)?) };
    // Nothing of it is used here, and a section with a mistake is one.
    resolve_tail(raw.tail)?;
    let postgres = resolve_postgres(raw.postgres, env)?;
    let config = Config {
        redis,
        lookups,
        lease: resolve_lease(&raw.lease)?,
        threads: resolve_threads(raw.threads, &raw.model)?,
        kafka: resolve_kafka(raw.kafka, &raw.pipeline, env)?,
        // Judged where there is none as well, as the next one.
        serve: Some(resolve_serve(raw.serve, raw.endpoint, postgres.lock_timeout, env)?)
            .filter(|s| !s.endpoints.is_empty()),
        postgres,
        pipeline: raw.pipeline,
        guard: resolve_guard(&raw.guard)?,
        metrics: resolve_metrics(raw.metrics)?,
        log: resolve_log(&raw.log),
        limits,
        // Judged where there is none as well: a section with a mistake is one.
        collect: Some(resolve_collect(raw.collect, raw.route, env)?).filter(|c| !c.routes.is_empty()),
        models: raw.model,
    };
    if config.threads.watchdog < 2 * config.postgres.lock_timeout {
        bail!("threads.watchdog must be at least twice postgres.lock_timeout: it ends the process");
    }
    Ok(config)
}

/// Adds the nearest known key to the parser's "unknown field" message.
fn with_nearest(message: &str) -> String {
    let message = &in_plain_words(message.trim_end());
    let mut quoted = message.split('`').skip(1).step_by(2);
    match message.contains("unknown field").then(|| quoted.next()).flatten() {
        Some(unknown) => format!("{message}{}", did_you_mean(unknown, quoted)),
        None => message.to_owned(),
    }
}

/// Rust's names of types mean nothing to those who write a configuration.
fn in_plain_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let plain = match expected {
        "usize" | "u8" | "u16" | "u32" | "u64" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "a sequence" => "a list in square brackets",
        other => other,
    };
    format!("{found}, expected {plain}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::thread::Pin;

    pub(super) const MODEL: &str = "[[model]]\ntopic = \"t\"\ntable = \"t\"\n";

    pub(super) fn env(name: &str) -> Option<String> {
        match name {
            "KAFKA_BROKERS" => Some("localhost:9092".into()),
            "DATABASE_URL" => Some("postgresql://u:s3cret@localhost/d".into()),
            "REDIS_URL" => Some("redis://localhost".into()),
            _ => None,
        }
    }

    /// Whether a configuration with these sections is right, or refused with these words.
    #[track_caller]
    pub(super) fn check(sections: &str, expected: Result<(), &str>) {
        match (parse(&format!("{sections}\n{MODEL}"), std::iter::empty(), &env), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{error:#}"),
            (Err(error), Ok(())) => panic!("{sections}: {error:#}"),
            (Ok(_), Err(words)) => panic!("{sections} was accepted, expected: {words}"),
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        let error = parse("", std::iter::empty(), &env).expect_err("refused");
        assert!(error.to_string().contains("no [[model]]"), "{error:#}");
        check("pipelin = \"x\"", Err("did you mean \"pipeline\"?"));
        check("[kafka]\nbroker = \"x\"", Err("did you mean \"brokers\"?"));
    }

    #[test]
    fn servers_come_from_the_environment_where_the_file_names_none() {
        let config = parse(MODEL, std::iter::empty(), &env).unwrap();
        assert_eq!(config.kafka.brokers, "localhost:9092");
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
            error.contains("in the environment variable ROWMILL_THREADS__DECODER: ")
                && error.contains("did you mean \"decoders\"?"),
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
            "tokens.toml",
        ]
        .into_iter()
        .chain(["secrets/database-password", "secrets/redis-password"])
        {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        let text = example(dir.path().to_str().unwrap());
        parse(&text, std::iter::empty(), &|_| None).unwrap();
        let shown: toml::Table = toml::from_str(&text).unwrap();
        check_shown("", &shown);
        for list in ["model", "route", "endpoint"] {
            let all = shown[list].as_array().unwrap();
            for name in settings(&format!("[[{list}]]")).expect("a section") {
                assert!(all.iter().any(|one| one.get(&name).is_some()), "no [[{list}]] has {name:?}");
            }
        }
    }

    /// Every setting that a section takes is in the example, and so on in the sections below it.
    fn check_shown(path: &str, shown: &toml::Table) {
        let header = if path.is_empty() { String::new() } else { format!("[{path}]") };
        for name in settings(&header).unwrap_or_default() {
            assert!(shown.contains_key(&name), "the example lacks {name:?} in [{path}]");
        }
        if path == "lookup" {
            // Some of their settings exclude each other, so they show them together.
            for name in settings("[lookup.any]").expect("a section") {
                assert!(shown.values().any(|lookup| lookup.get(&name).is_some()), "no [lookup] has {name:?}");
            }
            return;
        }
        for (name, value) in shown {
            if let toml::Value::Table(inner) = value {
                check_shown([path, name].join(".").trim_start_matches('.'), inner);
            }
        }
    }

    /// What a section takes: serde names it all when it meets a setting that it does not know. `None` where the keys are
    /// the user's own words.
    fn settings(header: &str) -> Option<Vec<String>> {
        let error = toml::from_str::<RawConfig>(&format!("{header}\nno_such_setting = 1\n")).unwrap_err();
        let words = error.message();
        let names = words.split('`').skip(1).step_by(2).skip(1).map(str::to_owned);
        words.starts_with("unknown field").then(|| names.collect())
    }

    #[test]
    fn a_wrong_value_is_said_with_its_setting_and_what_to_write() {
        #[track_caller]
        fn refused(text: &str, expected: &str) {
            let error = parse(&format!("{text}\n{MODEL}"), std::iter::empty(), &env).expect_err(text);
            assert!(format!("{error:#}").contains(expected), "{text}: {error:#}");
        }
        refused("[lease]\nduration = 5", "line 2, lease.duration: 5 has no unit: write it like \"5s\"");
        refused("[lease]\nduration = 0.5", "0.5 has no unit: write it like \"500ms\"");
        refused("[lease]\nduration = true", "lease.duration: expected a duration");
        refused("[lease]\nduration = \"5\"", "line 2, lease.duration: \"5\" is no duration");
        refused(
            "[threads]\nwriters = \"two\"",
            "line 2, threads.writers: invalid type: string \"two\", expected a whole number",
        );
        refused(
            "[lease]\nsession_lock = \"no\"",
            "lease.session_lock: invalid type: string \"no\", expected true or false",
        );
        refused("memory_max = true", "line 1, memory_max: expected a size");
        refused(
            "[kafka]\nbrokers = 9092",
            "line 2, kafka.brokers: invalid type: integer `9092`, expected a text in quotes",
        );
        refused(
            "[[model]]\ntopic = \"t\"\ntable = \"t\"\nwhen = { kind = 1.5 }",
            "line 4, model.when: expected a string, an integer or a boolean",
        );
        let variables = [
            ("ROWMILL_PIPELINE", "p"),
            ("ROWMILL_THREADS__WRITERS", "two"),
            ("ROWMILL_LEASE__DURATION", "9s"),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let error = format!("{:#}", parse(MODEL, variables, &env).expect_err("two is no number"));
        assert!(error.contains("in the environment variable ROWMILL_THREADS__WRITERS: invalid type: string \"two\", expected a whole number"), "{error}");
    }

    #[test]
    fn a_section_tells_its_settings() {
        assert_eq!(settings("[guard]").unwrap(), ["dead_letter_share", "dead_letter_window"]);
        assert_eq!(settings("[log]").unwrap(), ["format", "level"]);
        assert!(settings("").unwrap().contains(&"guard".to_owned()));
        assert_eq!(settings("[lookup]"), None);
        assert_eq!(settings("[kafka.properties]"), None);
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
}
