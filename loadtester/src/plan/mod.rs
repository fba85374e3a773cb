//! What the user asks for: as written (`options`, `scenario`), and as it will be done (`Plan`: checked, with servers and
//! shape).

pub mod words;
pub mod shape;
pub mod options;
pub mod scenario;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::base::clock;
use crate::measure::results;
use crate::message::ask::Reader;
use crate::message::draw::People;
use crate::message::fold::Aggregate;
use crate::message::keys::Keys;
use crate::message::known::named_slots;
use crate::message::model::{COLLECTORS, Door, Mix, Model, Scenario, Shares};
use crate::message::payload::Extra;
use crate::plan::options::{RunArgs, Servers, UserFlags};
use crate::plan::shape::Shape;
use crate::server::kafka::Kafka;
use crate::server::pg::Database;
use crate::server::users::Users;

/// A run as it will be done.
#[derive(Clone)]
pub struct Plan {
    pub args: RunArgs,
    pub run: u32,
    /// Without the warm-up.
    pub shape: Shape,
    pub mix: Arc<Mix>,
    pub readers: Vec<Arc<Reader>>,
    pub aggregates: Vec<Arc<Aggregate>>,
    /// The scenario's models are its own, not those that ship.
    pub own_models: bool,
    pub extra: Extra,
    pub kafka: Kafka,
    pub database: Database,
    pub users: Users,
    pub topics: Vec<String>,
}

impl Plan {
    pub fn resolve(args: RunArgs) -> Result<Self> {
        if args.threads == 0 || args.threads > 256 {
            bail!("--threads must be 1 to 256");
        }
        if args.user_flags.users == 0 || args.user_flags.users > 10_000_000 {
            bail!("--users must be 1 to 10,000,000");
        }
        if args.payload_size > 1_000_000 {
            bail!("--payload-size must be at most 1,000,000 bytes, which is what Kafka takes by default");
        }
        for (flag, time) in
            [("--probe-interval", args.probe_interval), ("--sample-interval", args.sample_interval)]
        {
            if time < Duration::from_millis(1) || time > Duration::from_secs(60) {
                bail!("{flag} must be 1ms to 60s");
            }
        }
        if args.connections == 0 || args.connections > 60_000 {
            bail!("--connections must be 1 to 60,000: one address has no more ports to another");
        }
        if args.answer_within.is_zero() {
            bail!("--answer-within must be above zero");
        }
        for threshold in &args.threshold {
            results::check_result_name(&threshold.metric)
                .map_err(|problem| anyhow::anyhow!("--threshold {threshold}: {problem}"))?;
        }
        if let Some(unknown) = args.abort_on.iter().find(|c| !results::is_interval_name(&c.metric)) {
            bail!(
                "--abort-on {unknown}: there is no \"{}\"; the names are the columns of intervals.csv without _total and _us: backlog, failed, visible_p99, ...",
                unknown.metric
            );
        }
        let (scenario, mix, own_models) = scenario_of(&args)?;
        if args.part.is_some() && !scenario.aggregates.is_empty() {
            bail!(
                "aggregates can only be judged where all messages are known: run this scenario without --part"
            );
        }
        let users = users(&args.user_flags)?;
        let shape = shape(&args)?;
        let expected = shape.with_warmup(args.warmup.as_secs_f64()).messages();
        if expected > 2e9 {
            bail!(
                "the shape sends {expected:.0} messages; two thousand million are the most that one run can account for"
            );
        }
        Ok(Self {
            run: args.run_id.unwrap_or_else(|| {
                ((clock::wall_us() as u64 / 1000) ^ (u64::from(std::process::id()) << 20)) as u32
            }),
            shape,
            extra: extra(&args, &mix)?,
            kafka: kafka(&args.servers)?,
            database: Database { url: args.servers.database.clone() },
            users,
            topics: mix.models().iter().map(|m| format!("{}{}", args.topic_prefix, m.topic)).collect(),
            mix: Arc::new(mix),
            readers: scenario.readers,
            aggregates: scenario.aggregates,
            own_models,
            args,
        })
    }

    pub fn models(&self) -> Vec<Arc<Model>> {
        self.mix.models()
    }

    /// Whether messages speak of users.
    pub fn has_users(&self) -> bool {
        self.mix.0.iter().any(|(model, _)| model.has_users())
    }

    /// Whether messages go to Kafka.
    pub fn has_topics(&self) -> bool {
        self.mix.0.iter().any(|(model, _)| model.http.is_none())
    }

    pub fn is_to_kafka_only(&self) -> bool {
        self.mix.0.iter().all(|(model, _)| model.http.is_none())
    }

    /// Whether rows are judged.
    pub fn has_tables(&self) -> bool {
        self.mix.0.iter().any(|(model, _)| model.table.is_some())
    }

    /// Whether PostgreSQL is asked anything.
    pub fn has_database(&self) -> bool {
        self.has_tables() || !self.aggregates.is_empty()
    }

    /// Generator threads over all parts, and the number of this part's first.
    pub fn threads(&self) -> (usize, usize) {
        let (part, parts) = self.args.part.unwrap_or((1, 1));
        (self.args.threads * parts as usize, self.args.threads * (part as usize - 1))
    }

    /// Which share of the load is this part's.
    pub fn share(&self) -> f64 {
        1.0 / f64::from(self.args.part.map_or(1, |(_, parts)| parts))
    }

    pub fn people(&self) -> Arc<People> {
        let ids = (0..self.users.count).map(|n| self.users.id_of(n)).collect();
        Arc::new(People {
            keys: Keys::new(self.users.count, self.args.keys),
            tokens: Arc::new(self.users.tokens()),
            ids: Arc::new(ids),
        })
    }

    /// With the warm-up.
    pub fn full_shape(&self) -> Shape {
        self.shape.with_warmup(self.args.warmup.as_secs_f64())
    }
}

/// What `--mix` says where neither it nor a scenario says anything.
const MIX: &str = "metric=1,state=1";

/// The scenario, which of its models are sent, and whether it is the user's own.
fn scenario_of(args: &RunArgs) -> Result<(Scenario, Mix, bool)> {
    let format = args.batch_format.map(|format| format.to_string());
    let door = Door { url: args.to.clone(), batch: args.batch, format };
    let own = args.scenario.as_deref().map(|path| scenario::models(path, &door)).transpose()?.flatten();
    match own {
        Some(scenario) => {
            let mix = scenario.mix(args.mix.as_ref())?;
            Ok((scenario, mix, true))
        }
        None => {
            let (scenario, mix) = collectors(args.mix.as_ref(), &door)?;
            Ok((scenario, mix, false))
        }
    }
}

/// The models that ship, in these shares.
pub fn collectors(shares: Option<&Shares>, door: &Door) -> Result<(Scenario, Mix)> {
    let default = MIX.parse().expect("it is a mix");
    let raw = toml::from_str(COLLECTORS).context("read the scenario that ships")?;
    let scenario = Scenario::compile(&raw, door)?;
    let mix = scenario.mix(Some(shares.unwrap_or(&default)))?;
    Ok((scenario, mix))
}

pub fn users(flags: &UserFlags) -> Result<Users> {
    let users = Users {
        count: flags.users,
        seed: flags.seed,
        key: flags.user_key.clone(),
        id: flags.user_id.clone(),
    };
    users.check()?;
    Ok(users)
}

fn shape(args: &RunArgs) -> Result<Shape> {
    let wrong = |error: String| anyhow::anyhow!(error);
    if let Some(text) = &args.shape {
        return text.parse().map_err(wrong).context("read --shape");
    }
    if let Some(path) = &args.shape_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the shape from {}", path.display()))?;
        return shape::pace_file(&text)
            .map_err(wrong)
            .with_context(|| format!("read the shape from {}", path.display()));
    }
    let shape = Shape::constant(args.rate.0, args.duration.as_secs_f64());
    if shape.messages() < 1.0 {
        bail!("--rate {} over --duration {:?} sends less than one message", args.rate.0, args.duration);
    }
    Ok(shape)
}

fn extra(args: &RunArgs, mix: &Mix) -> Result<Extra> {
    let mut members = Vec::new();
    if let Some(path) = &args.payload_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read sample messages from {}", path.display()))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("read sample message {} of {}", number + 1, path.display());
            let mut object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).with_context(place)?;
            for (model, _) in &mix.0 {
                for (ours, _) in named_slots(&model.message) {
                    object.remove(&ours);
                }
            }
            if !object.is_empty() {
                let json = serde_json::to_vec(&object).with_context(place)?;
                members.push(json[1..json.len() - 1].to_vec());
            }
        }
    }
    Ok(Extra { members: std::sync::Arc::new(members), bytes: args.payload_size })
}

pub fn kafka(servers: &Servers) -> Result<Kafka> {
    let mut properties = BTreeMap::new();
    let mut brokers = servers.brokers.clone();
    if servers.tls {
        let from_env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let file = |flag: &Option<PathBuf>, name: &str| {
            flag.as_ref().map(|p| p.display().to_string()).or_else(|| from_env(name))
        };
        properties.insert("security.protocol".to_owned(), "ssl".to_owned());
        let files = [
            ("ssl.ca.location", "--tls-ca", &servers.tls_ca, "KAFKA_SSL_CA"),
            ("ssl.certificate.location", "--tls-cert", &servers.tls_cert, "KAFKA_SSL_CERT"),
            ("ssl.key.location", "--tls-key", &servers.tls_key, "KAFKA_SSL_KEY"),
        ];
        for (name, flag, given, variable) in files {
            if let Some(path) = file(given, variable) {
                if !std::path::Path::new(&path).exists() {
                    bail!("{flag} or {variable}: there is no file {path}");
                }
                properties.insert(name.to_owned(), path);
            }
        }
        let given = std::env::args().any(|a| a == "--brokers" || a.starts_with("--brokers="));
        if let Some(tls_brokers) = from_env("KAFKA_TLS_BROKERS").filter(|_| !given) {
            brokers = tls_brokers;
        }
    } else if servers.tls_ca.is_some() || servers.tls_cert.is_some() || servers.tls_key.is_some() {
        bail!("--tls-ca, --tls-cert and --tls-key say how to use TLS; add --tls to use it");
    }
    properties.extend(servers.kafka_property.iter().cloned());
    Ok(Kafka { brokers, properties })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::plan::options::Cli;

    fn parse(line: &str) -> Result<RunArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("loadtester").chain(line.split_whitespace())).map(|cli| cli.run)
    }

    #[test]
    fn wrong_use_is_refused() {
        let rows = [
            "--rate fast",
            "--threads x",
            "--mix metric=x",
            "--shape 5s@1 --shape-file x",
            "--keys zipf(",
            "--verify some",
            "--threshold visible_p99",
            "--precision 5",
            "--pin 3-1",
            "--unknown",
            "--arrivals never",
        ];
        for line in rows {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in [
            "--threads 0",
            "--mix disk=1",
            "--users 0",
            "--rate 0",
            "--rate 1M --duration 10h",
            "--tls-ca /x",
            "--user-id same",
            "--threshold visble_p99<1ms",
            "--abort-on backlogs>1",
        ] {
            assert!(Plan::resolve(parse(line).unwrap()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_readme_line_works() {
        let plan = Plan::resolve(parse("--threads 8 --rate 20000").unwrap()).unwrap();
        assert_eq!(plan.shape.messages(), 1_200_000.0);
        assert_eq!(plan.topics, ["metric", "state"]);
    }
}
