//! The command line as written: every flag with its default, and what its help says.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::base::quantity::{self, Rate};
use crate::measure::condition::{FailOn, Threshold};
use crate::message::keys::KeySpread;
use crate::message::model::Shares;
use crate::plan::shape::Arrivals;
use crate::plan::words::{
    BatchFormat, CsvTime, Delivery, Depth, ExportFormat, HostFormat, RowTimestamp, StatsdTags,
};

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
    /// Look at a scenario file without sending anything.
    Scenario(ScenarioArgs),
    /// Put the results of the parts of one run together.
    Merge(MergeArgs),
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
    #[arg(long, value_name = "KIND", default_value = "constant", help_heading = "Load")]
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

    /// The models and their shares: metric=60,state=20,log=10,trace=5,ping=5 [default: metric=1,state=1, or all models of
    /// the scenario as it has them].
    #[arg(long, value_name = "MIX", help_heading = "Messages")]
    pub mix: Option<Shares>,
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

    /// Send over HTTP instead of to Kafka: http://host:port/path. ${model} stands for the model's name, other places for what
    /// a message draws.
    #[arg(long, value_name = "URL", help_heading = "HTTP")]
    pub to: Option<String>,
    /// Connections over all threads, to each server.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "HTTP")]
    pub connections: usize,
    /// Messages in one request [default: 1, or as the scenario has it].
    #[arg(long, value_name = "N", help_heading = "HTTP")]
    pub batch: Option<usize>,
    /// How a request holds several messages [default: array, or as the scenario has it].
    #[arg(long, value_name = "FORMAT", help_heading = "HTTP")]
    pub batch_format: Option<BatchFormat>,
    /// A file with the token that every request carries as its bearer.
    #[arg(long, value_name = "FILE", help_heading = "HTTP")]
    pub bearer_file: Option<PathBuf>,
    /// The authority that signed the server's certificate (PEM), besides those of the system.
    #[arg(long, value_name = "FILE", help_heading = "HTTP")]
    pub http_ca: Option<PathBuf>,
    /// A request without an answer for so long is given up, and its connection closed.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = quantity::duration, help_heading = "HTTP")]
    pub answer_within: Duration,
    /// Send a request that was certainly not stored again, so many times, after the time that the server names.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "HTTP")]
    pub retries: u32,
    /// Also send again what may have been stored: the same message once more, which a consumer must recognize.
    #[arg(long, help_heading = "HTTP", requires = "retries")]
    pub retry_unknown: bool,

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
    /// Over HTTP: more than this share of the messages refused or not acknowledged, or of the readers' requests not answered,
    /// fails the run, although nothing is lost.
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share, help_heading = "Judging")]
    pub refused_max: f64,
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

    /// A TOML file with flags by their long names (what stands on the command line wins), and with the models that are sent,
    /// where it has its own.
    #[arg(long, value_name = "FILE", help_heading = "Other")]
    pub scenario: Option<PathBuf>,
    /// This is one of several load testers that make the load together: 1/3, 2/3 and 3/3, with the same flags, --run-id
    /// and --start-at. `loadtester merge` puts their results together.
    #[arg(long, value_name = "I/N", value_parser = part, requires_all = ["run_id", "start_at"], help_heading = "Parts")]
    pub part: Option<(u32, u32)>,
    /// The run's number, eight hexadecimal digits; every run needs another [default: made from the time].
    #[arg(long, value_name = "HEX", value_parser = run_id, help_heading = "Parts")]
    pub run_id: Option<u32>,
    /// When the first message is due, such as 2030-01-31T12:00:00Z; all parts say the same [default: as soon as all is set up].
    #[arg(long, value_name = "TIME", help_heading = "Parts")]
    pub start_at: Option<jiff::Timestamp>,

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
    #[arg(long, value_name = "MIX")]
    pub mix: Option<Shares>,
    /// The scenario whose models these are.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
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
pub struct ScenarioArgs {
    #[command(subcommand)]
    pub action: ScenarioAction,
}

#[derive(Subcommand, Debug)]
pub enum ScenarioAction {
    /// Print ten messages of each model, and what is wrong.
    Check { file: PathBuf },
    /// Print the scenario that is sent where there is no other.
    Show,
}

#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The directories of all parts.
    #[arg(required = true, num_args = 2..)]
    pub parts: Vec<PathBuf>,
    /// Where to write the results.
    #[arg(long, value_name = "DIR", default_value = "merged")]
    pub out: PathBuf,
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

fn part(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    let fits = parsed.filter(|(i, n)| (1..=*n).contains(i) && *n <= 256);
    fits.ok_or_else(|| format!("\"{text}\" is no part; write 1/3 for the first of three"))
}

fn run_id(text: &str) -> Result<u32, String> {
    let fits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parsed = u32::from_str_radix(text, 16).ok().filter(|_| fits);
    parsed.ok_or_else(|| format!("\"{text}\" is no run; write eight hexadecimal digits"))
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("\"{text}\" is not name=value"))?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn percent(text: &str) -> Result<f64, String> {
    let share = quantity::share(text).filter(|share| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| format!("\"{text}\" is not a share such as 5%"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = quantity::share(text).filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("\"{text}\" is not a share such as 1%"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn core_lists() {
        assert_eq!(cores("0-2,5"), Ok(Cores(vec![0, 1, 2, 5])));
        for text in ["", "a", "2-1", "0-99999"] {
            assert!(cores(text).is_err(), "{text}");
        }
    }
}
