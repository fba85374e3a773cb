//! The command line, in two steps: as written (clap, a scenario file), and as used (`Plan`: checked, with defaults).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::base::quantity::{self, Rate};
use crate::measure::condition::{FailOn, Threshold};
use crate::measure::results;
use crate::message::keys::KeySpread;
use crate::message::model::Mix;
use crate::message::payload::Extra;
use crate::plan::shape::{self, Arrivals, Shape};
use crate::plan::words::{CsvTime, Delivery, Depth, ExportFormat, HostFormat, RowTimestamp, StatsdTags};
use crate::server::kafka::Kafka;
use crate::server::pg::Database;
use crate::server::users::Users;

/// Plays many data collectors against Kafka, a consumer and PostgreSQL, and judges the whole path from outside.
///
/// Without a verb it runs a test: it creates users in Redis, sends JSON messages to Kafka at the rate you ask for, watches
/// the rows arrive in PostgreSQL, reads all of them back, and says what was lost, doubled, swapped or altered, and how long
/// everything took. It works with any consumer that fills the tables.
#[derive(Debug, Parser)]
#[command(name = "loadtester", version, args_conflicts_with_subcommands = true, args_override_self = true)]
#[command(
    after_help = "Exit codes: 0 passed; 1 could not run; 2 wrong use; 97 the run is invalid (the generator or the machine \
    could not keep up); 98 messages were lost, doubled, swapped or altered; 99 a threshold was missed; 130 interrupted (the \
    report is written all the same).\n\nHow to read the report: docs/load-testing.md"
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Option<Verb>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a test (the default).
    Run(Box<RunArgs>),
    /// Measure what this PostgreSQL takes at best: raw binary COPY into tables of the same form.
    Ceiling(CeilingArgs),
    /// Compare two runs, or several older ones with a new one: differences, how sure they are, and whether they matter.
    Compare(CompareArgs),
    /// Write one page that shows several runs side by side.
    Report(ReportArgs),
    /// Write a run's measurements in another system's format, to standard output.
    Export(ExportArgs),
    /// Create or remove the simulated users.
    Users(UsersArgs),
}

#[derive(Args, Clone, Debug)]
pub struct Servers {
    /// Kafka's brokers, host:port separated by commas.
    #[arg(
        long,
        value_name = "LIST",
        env = "KAFKA_BROKERS",
        default_value = "localhost:9092",
        help_heading = "Servers"
    )]
    pub brokers: String,
    /// Use TLS with Kafka. Brokers then come from KAFKA_TLS_BROKERS where that is set and --brokers is not.
    #[arg(long, help_heading = "Servers")]
    pub tls: bool,
    /// The authority that signed the brokers' certificates (PEM) [env with --tls: KAFKA_SSL_CA].
    #[arg(long, value_name = "FILE", help_heading = "Servers")]
    pub tls_ca: Option<PathBuf>,
    /// Our certificate, where the brokers ask for one (PEM) [env with --tls: KAFKA_SSL_CERT].
    #[arg(long, value_name = "FILE", help_heading = "Servers")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM) [env with --tls: KAFKA_SSL_KEY].
    #[arg(long, value_name = "FILE", help_heading = "Servers")]
    pub tls_key: Option<PathBuf>,
    /// A property of librdkafka, such as compression.type=zstd. May be given several times.
    #[arg(long, value_name = "K=V", value_parser = property, help_heading = "Servers")]
    pub kafka_property: Vec<(String, String)>,
    /// The database. TLS as in libpq: ?sslmode=verify-full&sslrootcert=FILE.
    #[arg(
        long,
        value_name = "URL",
        env = "DATABASE_URL",
        hide_env_values = true,
        help_heading = "Servers",
        default_value = "postgres://postgres@localhost:5432/postgres"
    )]
    pub database: String,
    /// Redis; rediss:// for TLS.
    #[arg(
        long,
        value_name = "URL",
        env = "REDIS_URL",
        hide_env_values = true,
        help_heading = "Servers",
        default_value = "redis://localhost:6379/0"
    )]
    pub redis: String,
    /// The authority that signed Redis's certificate (PEM).
    #[arg(long, value_name = "FILE", env = "REDIS_SSL_CA", help_heading = "Servers")]
    pub redis_ca: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct UserFlags {
    /// How many users to simulate.
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Messages")]
    pub users: usize,
    /// The Redis key of a user; {token} and {n} are filled in.
    #[arg(long, value_name = "TEMPLATE", default_value = "user:{token}", help_heading = "Messages")]
    pub user_key: String,
    /// The user id that Redis holds and column userid must show.
    #[arg(long, value_name = "TEMPLATE", default_value = "lt-user-{n}", help_heading = "Messages")]
    pub user_id: String,
    /// The same seed gives the same users, values and arrival times.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Messages")]
    pub seed: u64,
}

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Generator threads, each with its own producer.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Load")]
    pub threads: usize,
    /// Messages per second over ALL threads: 20000, 20k, 0.5.
    #[arg(long, value_name = "RATE", default_value = "1000", help_heading = "Load")]
    pub rate: Rate,
    /// How long to send at --rate.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::duration, help_heading = "Load")]
    pub duration: Duration,
    /// Send this long before anything is measured.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = quantity::duration, help_heading = "Load")]
    pub warmup: Duration,
    /// Instead of --rate and --duration: parts TIME@RATE, TIME@FROM..TO or TIME@sine(MEAN,AMPLITUDE,PERIOD), with commas.
    #[arg(long, value_name = "SHAPE", help_heading = "Load")]
    pub shape: Option<String>,
    /// The shape as lines of rate,duration.
    #[arg(long, value_name = "FILE", help_heading = "Load", conflicts_with = "shape")]
    pub shape_file: Option<PathBuf>,
    /// How messages fall around the rate: constant, poisson, poisson-exact or burst(N).
    #[arg(long, value_name = "KIND", default_value = "constant", value_parser = shape::arrivals, help_heading = "Load")]
    pub arrivals: Arrivals,
    /// Search for the highest rate that holds, starting at --rate; each step sends for --duration.
    #[arg(long, help_heading = "Load")]
    pub find_max: bool,
    /// How close --find-max gets: it stops when the failing rate is within this share of the passing one.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = percent, help_heading = "Load")]
    pub precision: f64,
    /// After the last message, wait this long at most for the rows to arrive.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::duration, help_heading = "Load")]
    pub drain_timeout: Duration,
    /// Keep generator threads on these cores, such as 0-3 or 0,2.
    #[arg(long, value_name = "CORES", value_parser = cores, help_heading = "Load")]
    pub pin: Option<Cores>,

    /// The models and their shares: metric=60,state=20,log=10,trace=5,ping=5.
    #[arg(long, value_name = "MIX", default_value = "metric=1,state=1", help_heading = "Messages")]
    pub mix: Mix,
    /// Which users the messages belong to: uniform, zipf(S), hot(P%,N) or latest.
    #[arg(long, value_name = "SPREAD", default_value = "uniform", help_heading = "Messages")]
    pub keys: KeySpread,
    #[command(flatten)]
    pub user_flags: UserFlags,
    /// Remove the users after the run.
    #[arg(long, help_heading = "Messages")]
    pub cleanup: bool,
    /// Pad every message to this many bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 0, help_heading = "Messages")]
    pub payload_size: usize,
    /// A JSON object a line; its members are added to the messages, one line after the other.
    #[arg(long, value_name = "FILE", help_heading = "Messages")]
    pub payload_file: Option<PathBuf>,
    /// Put this before every topic's name. The tables keep theirs.
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = "Messages")]
    pub topic_prefix: String,
    /// Create missing topics with this many partitions.
    #[arg(long, value_name = "PARTITIONS", help_heading = "Messages")]
    pub create_topics: Option<i32>,
    /// How long a producer may wait for more messages before it sends; it is part of the latency.
    #[arg(long, value_name = "MS", default_value_t = 1.0, help_heading = "Messages")]
    pub linger_ms: f64,

    #[command(flatten)]
    pub servers: Servers,

    /// How much to read back after the run.
    #[arg(long, value_name = "DEPTH", default_value = "full", help_heading = "Judging")]
    pub verify: Depth,
    /// What the consumer promises: with exactly-once, duplicated rows fail the run.
    #[arg(long, value_name = "PROMISE", default_value = "exactly-once", help_heading = "Judging")]
    pub delivery: Delivery,
    /// Fail unless this holds: visible_p99<500ms, lost<1, stored_rate>19000. May be given several times.
    #[arg(long, value_name = "CONDITION", help_heading = "Judging")]
    pub threshold: Vec<Threshold>,
    /// Stop early when this becomes true: backlog>100000, failed>0. May be given several times.
    #[arg(long, value_name = "CONDITION", help_heading = "Judging")]
    pub abort_on: Vec<Threshold>,
    /// How long an --abort-on condition must stay true.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = quantity::duration, help_heading = "Judging")]
    pub abort_grace: Duration,
    /// Compare with this earlier run at the end (its run.json).
    #[arg(long, value_name = "FILE", help_heading = "Judging")]
    pub baseline: Option<PathBuf>,
    /// A statement that returns source and path (text) of messages that the consumer set aside.
    #[arg(long, value_name = "SQL", help_heading = "Judging")]
    pub rejects_sql: Option<String>,
    /// What the consumer writes into column timestamp.
    #[arg(long, value_name = "KIND", default_value = "clock", help_heading = "Judging")]
    pub row_timestamp: RowTimestamp,

    /// Watch this process, with its children.
    #[arg(long, value_name = "PID", help_heading = "Watching", conflicts_with_all = ["target_cmd", "target_systemd_unit", "target_port"])]
    pub target_pid: Option<i32>,
    /// Start the consumer with this command, watch it, and end it after the run.
    #[arg(long, value_name = "COMMAND", help_heading = "Watching")]
    pub target_cmd: Option<String>,
    /// Watch the main process of this systemd unit, over restarts.
    #[arg(long, value_name = "UNIT", help_heading = "Watching")]
    pub target_systemd_unit: Option<String>,
    /// Watch the process that listens on this TCP port.
    #[arg(long, value_name = "PORT", help_heading = "Watching")]
    pub target_port: Option<u16>,
    /// Seconds between two readings of /proc.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = quantity::duration, help_heading = "Watching")]
    pub sample_interval: Duration,
    /// Time between two looks into the tables; it is the resolution of `visible`.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = quantity::duration, help_heading = "Watching")]
    pub probe_interval: Duration,

    /// Where to put the results; a directory for each run is made inside.
    #[arg(long, value_name = "DIR", default_value = "loadtester-results", help_heading = "Output")]
    pub out: PathBuf,
    /// Send measurements each second: udp://host:8125, unix:///path or tcp://host:8125.
    #[arg(long, value_name = "URL", env = "DD_DOGSTATSD_URL", help_heading = "Output")]
    pub statsd: Option<String>,
    /// How StatsD names carry tags.
    #[arg(long, value_name = "DIALECT", default_value = "none", help_heading = "Output")]
    pub statsd_tags: StatsdTags,
    /// Also send latencies as StatsD timers: of each at most 100 values a second, with their sampling rate.
    #[arg(long, help_heading = "Output", requires = "statsd")]
    pub statsd_timers: bool,
    /// How the first column of the CSV files shows the time.
    #[arg(long, value_name = "FORMAT", default_value = "unix_ms", help_heading = "Output")]
    pub csv_time: CsvTime,
    /// sadf: also write the machine's load as sysstat's `sadf -d` does, a file for each activity.
    #[arg(long, value_name = "FORMAT", default_value = "csv", help_heading = "Output")]
    pub host_format: HostFormat,
    /// Also write a JUnit file and a Markdown summary for CI.
    #[arg(long, help_heading = "Output")]
    pub ci: bool,
    /// Draw a screen instead of a line each second; on a terminal only.
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    pub tui: bool,
    /// Print nothing but the verdict.
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,

    /// Read flags from a TOML file, by their long names; what stands on the command line wins.
    #[arg(long, value_name = "FILE", help_heading = "Other")]
    pub scenario: Option<PathBuf>,
    /// Print what would be done, and do nothing.
    #[arg(long, help_heading = "Other")]
    pub dry_run: bool,
    /// Send nowhere: shows what the generator itself can do. No server is needed.
    #[arg(long, help_heading = "Other")]
    pub null: bool,
}

/// A list of core numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cores(pub Vec<usize>);

#[derive(Args, Debug)]
pub struct CeilingArgs {
    #[command(flatten)]
    pub servers: Servers,
    /// The models whose tables are copied in form.
    #[arg(long, value_name = "MIX", default_value = "metric=1,state=1")]
    pub mix: Mix,
    /// How long each measurement takes.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = quantity::duration)]
    pub duration: Duration,
    /// Rows in one COPY and commit.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub batch: usize,
}

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Older runs, then the new one: directories, or their run.json.
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// Fail when a metric got worse by more than this: visible_p99>+10%. May be given several times.
    #[arg(long, value_name = "CONDITION")]
    pub fail_on: Vec<FailOn>,
    /// Compare runs of different configuration all the same.
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct ReportArgs {
    /// The runs: directories, or their run.json.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Where to write the page.
    #[arg(long, value_name = "FILE", default_value = "comparison.html")]
    pub html: PathBuf,
}

#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The run's directory.
    pub run: PathBuf,
    #[arg(long, value_name = "FORMAT")]
    pub format: ExportFormat,
}

#[derive(Args, Debug)]
pub struct UsersArgs {
    #[arg(value_name = "create|check|cleanup")]
    pub action: UsersAction,
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub user_flags: UserFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum UsersAction {
    /// Create those that are missing.
    Create,
    /// Count those that are there.
    Check,
    /// Remove them.
    Cleanup,
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("\"{text}\" is not name=value"))?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn percent(text: &str) -> Result<f64, String> {
    let share = quantity::share(text).filter(|share| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| format!("\"{text}\" is not a share such as 5%"))
}

fn cores(text: &str) -> Result<Cores, String> {
    let wrong = || format!("\"{text}\" is not a list of cores such as 0-3 or 0,2");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if last < first || last > 4095 {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(Cores(cores))
}

/// A run as it will be done.
#[derive(Clone)]
pub struct Plan {
    pub args: RunArgs,
    pub run: u32,
    /// Without the warm-up.
    pub shape: Shape,
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
        let users = users(&args.user_flags)?;
        let shape = shape(&args)?;
        let expected = shape.with_warmup(args.warmup.as_secs_f64()).messages();
        if expected > 2e9 {
            bail!(
                "the shape sends {expected:.0} messages; two thousand million are the most that one run can account for"
            );
        }
        Ok(Self {
            run: ((crate::base::clock::wall_us() as u64 / 1000) ^ (u64::from(std::process::id()) << 20))
                as u32,
            shape,
            extra: extra(&args)?,
            kafka: kafka(&args.servers)?,
            database: Database { url: args.servers.database.clone() },
            users,
            topics: args.mix.models().iter().map(|m| format!("{}{}", args.topic_prefix, m.table())).collect(),
            args,
        })
    }

    /// With the warm-up.
    pub fn full_shape(&self) -> Shape {
        self.shape.with_warmup(self.args.warmup.as_secs_f64())
    }
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
        return shape::shape(text).map_err(wrong).context("read --shape");
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

fn extra(args: &RunArgs) -> Result<Extra> {
    let mut members = Vec::new();
    if let Some(path) = &args.payload_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read sample messages from {}", path.display()))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("read sample message {} of {}", number + 1, path.display());
            let mut object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).with_context(place)?;
            for ours in [
                "token", "time", "source", "path", "type", "value", "category", "level", "message", "trace",
                "hop", "host", "latency", "ping",
            ] {
                object.remove(ours);
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

/// The command line with the scenario file's flags before it, so that those written by hand win.
pub fn arguments(given: Vec<String>) -> Result<Vec<String>> {
    let at = given.iter().position(|a| a == "--scenario" || a.starts_with("--scenario="));
    let Some(at) = at else { return Ok(given) };
    let path = match given[at].split_once('=') {
        Some((_, path)) => path.to_owned(),
        None => given.get(at + 1).cloned().context("--scenario needs a file")?,
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("read the scenario {path}"))?;
    let flags = scenario_flags(&text).with_context(|| format!("read the scenario {path}"))?;
    // Behind the program's name and the verb, where one is given.
    let start = if given.get(1).is_some_and(|a| a == "run") { 2 } else { 1 };
    let mut all = given[..start].to_vec();
    all.extend(flags);
    all.extend_from_slice(&given[start..]);
    Ok(all)
}

fn scenario_flags(text: &str) -> Result<Vec<String>> {
    use clap::CommandFactory;
    let table: toml::Table = text.parse()?;
    let command = Cli::command();
    let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    let mut flags = Vec::new();
    for (name, value) in table {
        let flag = name.replace('_', "-");
        if !known.contains(&flag.as_str()) || flag == "scenario" {
            bail!("there is no setting \"{name}\"; the settings are the long flags of `loadtester --help`");
        }
        match value {
            toml::Value::Boolean(true) => flags.push(format!("--{flag}")),
            toml::Value::Boolean(false) => {}
            toml::Value::Array(items) => {
                flags.extend(items.iter().map(|item| format!("--{flag}={}", plain(item))))
            }
            other => flags.push(format!("--{flag}={}", plain(&other))),
        }
    }
    Ok(flags)
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<RunArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("loadtester").chain(line.split_whitespace())).map(|cli| cli.run)
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_use_is_refused() {
        let rows = [
            "--rate fast",
            "--threads x",
            "--mix disk=1",
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

    #[test]
    fn the_command_line_wins_over_the_scenario() {
        let flags = scenario_flags(
            "rate = '5k'\nthreads = 3\nnull = true\ncleanup = false\nthreshold = ['lost<1', 'failed<1']",
        )
        .unwrap();
        let line = format!("{} --rate 7k", flags.join(" "));
        let args = parse(&line).unwrap();
        assert_eq!((args.rate, args.threads, args.null, args.cleanup), (Rate(7000.0), 3, true, false));
        assert_eq!(args.threshold.len(), 2);
        assert!(scenario_flags("rates = 1").is_err());
    }

    #[test]
    fn core_lists() {
        assert_eq!(cores("0-2,5"), Ok(Cores(vec![0, 1, 2, 5])));
        for text in ["", "a", "2-1", "0-99999"] {
            assert!(cores(text).is_err(), "{text}");
        }
    }
}
