//! The bench: how fast rowmill drains a topic into a table, against two references taken in the same rounds, so that a
//! noisy machine is noisy for all of them: the raw ceiling (COPY from memory) and the naive pipe (COPY from Kafka, no
//! promise). Writes a directory of results that stays comparable: command, machine, versions, configuration, raw data.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use rowmill_bench::engine::Engine;
use rowmill_bench::kafka;
use rowmill_bench::metric::{self, Metric};
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::reference::Report;
use rowmill_bench::servers::{Servers, conditions};
use rowmill_bench::usage::{self, Usage};
use rowmill_bench::visible::median;

#[derive(Parser)]
#[command(about = "Measures rowmill against the raw ceiling and a naive pipe")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// Records in the topic, all of which each subject moves.
    #[arg(long, default_value_t = 3_000_000)]
    records: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value_t = 6)]
    partitions: i32,
    #[arg(long, default_value_t = 1000)]
    users: u64,
    /// Who takes part, in this order in every round. Of add and upsert, --users is how many keys there are.
    #[arg(long, value_delimiter = ',', default_value = "raw1,raw2,naive,rowmill")]
    subjects: Vec<Subject>,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "drain")]
    name: String,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
    /// A line for the top of rowmill's generated configuration, such as 'memory_max = "32MB"' or
    /// 'kafka.properties."check.crcs" = "false"'.
    #[arg(long)]
    setting: Vec<String>,
    /// Another rowmill, for example of the commit before: it drains the same topic in the same rounds, and the ratio to it is
    /// told.
    #[arg(long)]
    before: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Raw COPY, one connection.
    Raw1,
    /// Raw COPY, two connections.
    Raw2,
    Naive,
    Rowmill,
    /// rowmill into a table with a row for each user: how many records, the least and the greatest value.
    Add,
    /// The same by two processes, counted from when both have partitions.
    Add2,
    /// rowmill into a table with the newest record of each user.
    Upsert,
    /// Raw COPY, one connection, into a table whose key is new in each record.
    RawKeyed,
    /// rowmill into the same table: each record is appended, the last of its key, or the first.
    AppendKeyed,
    UpsertOnce,
    FirstOnce,
    /// What --before names.
    #[value(skip)]
    Before,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::Raw1 => "raw_copy_1",
            Subject::Raw2 => "raw_copy_2",
            Subject::Naive => "naive_pipe",
            Subject::Rowmill => "rowmill",
            Subject::Add => "rowmill_add",
            Subject::Add2 => "rowmill_add_2",
            Subject::Upsert => "rowmill_upsert",
            Subject::RawKeyed => "raw_copy_keyed",
            Subject::AppendKeyed => "rowmill_append_keyed",
            Subject::UpsertOnce => "rowmill_upsert_once",
            Subject::FirstOnce => "rowmill_first_once",
            Subject::Before => "before",
        }
    }

    /// The table that it fills.
    fn table(self) -> &'static str {
        match self {
            Subject::Raw1 | Subject::Raw2 | Subject::Naive | Subject::Rowmill | Subject::Before => "metric",
            Subject::Add | Subject::Add2 => "metric_sums",
            Subject::Upsert => "metric_latest",
            Subject::RawKeyed | Subject::AppendKeyed | Subject::UpsertOnce | Subject::FirstOnce => {
                "metric_once"
            }
        }
    }

    /// What stands in the model of one that is rowmill, up to the last column.
    fn model(self) -> Option<&'static str> {
        const STAMPED: &str = "[model.columns]\ntimestamp = { clock = \"write\" }\n";
        const ADD: &str = "mode = \"add\"\n[model.columns]\nn = { fold = \"count\" }\nlow = { fold = \"min\", field = \"value\" }\n\
                           high = { fold = \"max\", field = \"value\" }\n";
        match self {
            Subject::Raw1 | Subject::Raw2 | Subject::Naive | Subject::RawKeyed => None,
            Subject::Rowmill | Subject::Before | Subject::AppendKeyed => Some(STAMPED),
            Subject::Add | Subject::Add2 => Some(ADD),
            Subject::Upsert => Some("mode = \"upsert\"\nnewest = \"time\"\n[model.columns]\n"),
            Subject::UpsertOnce => {
                Some("mode = \"upsert\"\n[model.columns]\ntimestamp = { clock = \"write\" }\n")
            }
            Subject::FirstOnce => {
                Some("mode = \"first\"\n[model.columns]\ntimestamp = { clock = \"write\" }\n")
            }
        }
    }

    fn processes(self) -> usize {
        if self == Subject::Add2 { 2 } else { 1 }
    }
}

/// What one subject did in one round.
struct Outcome {
    round: usize,
    subject: Subject,
    span_rows: u64,
    seconds: f64,
    /// The subject's own, from its start to its last row.
    usage: Usage,
    /// The machine's, servers included, during the subject's whole run.
    machine_cpu_seconds: f64,
    stolen_cpu_seconds: f64,
    /// Cores that were busy just before, with something else.
    background_cores: f64,
}

impl Outcome {
    fn rows_per_second(&self) -> f64 {
        self.span_rows as f64 / self.seconds
    }
}

const TOPIC: &str = "metric";
/// More than this many cores busy before a run, and the summary says that the machine was not quiet.
const QUIET_CORES: f64 = 0.2;

fn main() -> ExitCode {
    exit_code("bench", run(Options::parse()))
}

fn run(mut options: Options) -> Result<()> {
    if options.before.is_some() {
        options.subjects.push(Subject::Before);
    }
    let bench = Bench::new(options)?;
    bench.prefill()?;
    bench.options.servers.fill_redis(bench.options.users)?;
    bench.warm_up()?;
    let mut outcomes = Vec::new();
    for round in 1..=bench.options.rounds {
        for &subject in &bench.options.subjects {
            let outcome = bench.measure(round, subject)?;
            println!(
                "round {round}  {:<11} {:>9.0} rows/s  {:.2} CPU-s per million  {:.0} MB",
                subject.name(),
                outcome.rows_per_second(),
                bench.cpu_per_million(&outcome),
                outcome.usage.rss_peak_mb()
            );
            outcomes.push(outcome);
        }
    }
    bench.write_results(&outcomes)
}

struct Bench {
    options: Options,
    programs: PathBuf,
    directory: PathBuf,
}

impl Bench {
    fn new(options: Options) -> Result<Bench> {
        let programs =
            std::env::current_exe()?.parent().context("find the programs beside this one")?.to_path_buf();
        let directory = result_directory(&options.results, &options.name)?;
        let mut text =
            String::from("# As used in this bench; the servers' addresses came from the environment.\n");
        for setting in &options.setting {
            text.push_str(setting);
            text.push('\n');
        }
        for &subject in &options.subjects {
            if let Some(more) = subject.model() {
                let model = model_of(subject.table(), more);
                fs::write(
                    directory.join(format!("{}.toml", subject.name())),
                    format!("{text}{LOOKUP}{model}"),
                )?;
            }
        }
        Ok(Bench { options, programs, directory })
    }

    /// Fills the topic, unless an earlier bench left just what is needed.
    fn prefill(&self) -> Result<()> {
        let Options { servers, records, partitions, users, .. } = &self.options;
        let write = |number, json: &mut Vec<u8>| Metric::nth(number, *users).write_json(json);
        if !kafka::ensure_filled(&servers.kafka(), TOPIC, *partitions, *records, write)? {
            println!("topic {TOPIC} holds {records} records already");
        }
        Ok(())
    }

    /// Makes the WAL files that all rounds will write over, and the code and the page cache warm. Not counted.
    fn warm_up(&self) -> Result<()> {
        println!("warming up");
        for _ in 0..2 {
            self.options.servers.fresh_tables(metric::CREATE_TABLE)?;
            self.run_reference(Subject::Raw2)?;
        }
        Ok(())
    }

    fn measure(&self, round: usize, subject: Subject) -> Result<Outcome> {
        let mut client = self.options.servers.fresh_tables(&format!(
            "{}; {}; {KEYED_TABLES}",
            metric::CREATE_TABLE,
            metric::CREATE_KEYED_TABLE
        ))?;
        let background_cores = background_cores()?;
        let (busy, stolen) = usage::of_machine()?;
        let (span_rows, seconds, usage) = match subject.model() {
            Some(_) => self.run_rowmill(round, subject)?,
            None => self.run_reference(subject)?,
        };
        let (busy_after, stolen_after) = usage::of_machine()?;
        let count = match subject.table() {
            "metric_sums" => "SELECT sum(n)::BIGINT FROM metric_sums".to_owned(),
            // Which records others replaced, the ledger says.
            "metric_latest" => {
                "SELECT sum(rows)::BIGINT FROM rowmill.ledger WHERE target = 'public.metric_latest'"
                    .to_owned()
            }
            table => format!("SELECT count(*) FROM {table}"),
        };
        let stored: i64 = client.query_one(&count, &[])?.get(0);
        ensure!(
            stored as u64 == self.options.records,
            "{} stored {stored} rows of {}",
            subject.name(),
            self.options.records
        );
        Ok(Outcome {
            round,
            subject,
            span_rows,
            seconds,
            usage,
            machine_cpu_seconds: busy_after - busy,
            stolen_cpu_seconds: stolen_after - stolen,
            background_cores,
        })
    }

    /// Raw COPY and the naive pipe report for themselves.
    fn run_reference(&self, subject: Subject) -> Result<(u64, f64, Usage)> {
        let mut command = match subject {
            Subject::Naive => Command::new(self.programs.join("naive_pipe")),
            _ => {
                let mut command = Command::new(self.programs.join("raw_copy"));
                command.args(["--records", &self.options.records.to_string()]);
                command.args(["--users", &self.options.users.to_string()]);
                command.args(["--connections", if subject == Subject::Raw2 { "2" } else { "1" }]);
                command.args((subject == Subject::RawKeyed).then_some("--keyed"));
                command
            }
        };
        let output = command
            .env("KAFKA_BROKERS", &self.options.servers.brokers)
            .env("DATABASE_URL", &self.options.servers.database_url)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("run {}", subject.name()))?;
        ensure!(output.status.success(), "{} failed: {}", subject.name(), output.status);
        let report: Report = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read what {} reported", subject.name()))?;
        Ok((report.span_rows, report.seconds, report.usage))
    }

    fn run_rowmill(&self, round: usize, subject: Subject) -> Result<(u64, f64, Usage)> {
        let name = subject.name();
        let file = |rest: &str| self.directory.join(format!("{name}-{round}{rest}"));
        let engine = Engine {
            program: self.options.before.as_deref().filter(|_| subject == Subject::Before),
            servers: &self.options.servers,
            configuration: self.directory.join(format!("{name}.toml")),
            log: file(".log"),
        };
        let drained = engine.drain(subject.processes(), self.options.records)?;
        fs::write(file("-threads.csv"), drained.threads)?;
        fs::write(file(".csv"), drained.samples)?;
        let (rows, seconds) = drained.together.span();
        ensure!(rows > 0, "{name} was done before there was anything to measure: more --records");
        Ok((rows, seconds, drained.usage))
    }

    fn cpu_per_million(&self, outcome: &Outcome) -> f64 {
        outcome.usage.cpu_per_million(self.options.records)
    }

    fn write_results(&self, outcomes: &[Outcome]) -> Result<()> {
        let mut csv = String::from(
            "round,subject,span_rows,seconds,rows_per_second,cpu_seconds,cpu_seconds_per_million,rss_peak_mb,\
             machine_cpu_seconds,stolen_cpu_seconds,background_cores\n",
        );
        for o in outcomes {
            csv.push_str(&format!(
                "{},{},{},{:.4},{:.0},{:.2},{:.3},{:.1},{:.2},{:.2},{:.2}\n",
                o.round,
                o.subject.name(),
                o.span_rows,
                o.seconds,
                o.rows_per_second(),
                o.usage.cpu_seconds,
                self.cpu_per_million(o),
                o.usage.rss_peak_mb(),
                o.machine_cpu_seconds,
                o.stolen_cpu_seconds,
                o.background_cores
            ));
        }
        fs::write(self.directory.join("runs.csv"), csv)?;
        let summary = self.summary(outcomes)?;
        File::create(self.directory.join("summary.md"))?.write_all(summary.as_bytes())?;
        println!("\n{summary}\nwritten to {}", self.directory.display());
        Ok(())
    }

    fn summary(&self, outcomes: &[Outcome]) -> Result<String> {
        let options = &self.options;
        let mut text = format!(
            "# {} of {} records, {} rounds\n\nrows/s from the first visible rows to the last; CPU-seconds are the \
             program's own, or the whole machine's with the servers; medians of the rounds.\n\n\
             | subject | rows/s | lowest | highest | own CPU-s per million | machine's | peak MB |\n\
             |---|---|---|---|---|---|---|\n",
            options.name, options.records, options.rounds
        );
        for &subject in &options.subjects {
            let of = |f: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
                outcomes.iter().filter(|o| o.subject == subject).map(f).collect()
            };
            let rates = of(&Outcome::rows_per_second);
            text.push_str(&format!(
                "| {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} |\n",
                subject.name(),
                median(&rates),
                rates.iter().copied().fold(f64::INFINITY, f64::min),
                rates.iter().copied().fold(0.0, f64::max),
                median(&of(&|o| self.cpu_per_million(o))),
                median(&of(&|o| usage::per_million(o.machine_cpu_seconds, options.records))),
                median(&of(&|o| o.usage.rss_peak_mb())),
            ));
        }
        let noise = outcomes.iter().map(|o| o.background_cores).fold(0.0, f64::max);
        if noise > QUIET_CORES {
            text.push_str(&format!(
                "\nNot quiet: before one of the runs, {noise:.1} cores were busy with something else.\n"
            ));
        }
        text.push_str(&self.ratios(outcomes));
        text.push_str(&conditions(&mut options.servers.postgres()?, "benches/run")?);
        text.push_str(&format!(
            "- topic: {} partitions, one broker, plaintext, no compression\n",
            options.partitions
        ));
        Ok(text)
    }

    /// Each ratio is taken within a round, then the median over the rounds: what disturbs a whole round cancels out.
    fn ratios(&self, outcomes: &[Outcome]) -> String {
        let find = |round: usize, subject: Subject| {
            outcomes.iter().find(|o| o.round == round && o.subject == subject)
        };
        let rate = |round, subject| find(round, subject).map(Outcome::rows_per_second);
        let over_rounds = |ratio: &dyn Fn(usize) -> Option<f64>| {
            let values: Vec<f64> = (1..=self.options.rounds).filter_map(ratio).collect();
            (!values.is_empty()).then(|| median(&values))
        };
        let ceiling = |round| {
            let best =
                rate(round, Subject::Raw1).unwrap_or(0.0).max(rate(round, Subject::Raw2).unwrap_or(0.0));
            (best > 0.0).then_some(best)
        };
        let cpu = |round, subject| find(round, subject).map(|o| o.usage.cpu_seconds);
        let mut text = String::from("\n| ratio | value | must be | aim |\n|---|---|---|---|\n");
        for (name, value, limits) in [
            (
                "ratio_to_raw_copy, rowmill",
                over_rounds(&|r| Some(rate(r, Subject::Rowmill)? / ceiling(r)?)),
                "at least 0.7 | 0.85",
            ),
            (
                "the same, to one connection's ceiling",
                over_rounds(&|r| Some(rate(r, Subject::Rowmill)? / rate(r, Subject::Raw1)?)),
                "- | -",
            ),
            (
                "ratio_to_raw_copy, naive pipe",
                over_rounds(&|r| Some(rate(r, Subject::Naive)? / ceiling(r)?)),
                "- | -",
            ),
            (
                "rows/s, rowmill to before",
                over_rounds(&|r| Some(rate(r, Subject::Rowmill)? / rate(r, Subject::Before)?)),
                "at least 0.97 | 1",
            ),
            (
                "rows/s, adding up to appending",
                over_rounds(&|r| Some(rate(r, Subject::Add)? / rate(r, Subject::Rowmill)?)),
                "at least 0.6 with 10,000 keys, 0.9 with 1,000 | 0.9",
            ),
            (
                "rows/s, replacing to appending",
                over_rounds(&|r| Some(rate(r, Subject::Upsert)? / rate(r, Subject::Rowmill)?)),
                "- | -",
            ),
            (
                "rows/s, two processes adding up to one",
                over_rounds(&|r| Some(rate(r, Subject::Add2)? / rate(r, Subject::Add)?)),
                "at least 1 | 1.3",
            ),
            (
                "rows/s, replacing, each key once, to raw COPY into the same primary key",
                over_rounds(&|r| Some(rate(r, Subject::UpsertOnce)? / rate(r, Subject::RawKeyed)?)),
                "at least 0.6 | 0.75",
            ),
            (
                "rows/s, the first stays, each key once, to the same",
                over_rounds(&|r| Some(rate(r, Subject::FirstOnce)? / rate(r, Subject::RawKeyed)?)),
                "at least 0.6 | 0.75",
            ),
            (
                "rows/s, appending into the same primary key, to the same",
                over_rounds(&|r| Some(rate(r, Subject::AppendKeyed)? / rate(r, Subject::RawKeyed)?)),
                "- | -",
            ),
            (
                "own CPU, rowmill to before",
                over_rounds(&|r| Some(cpu(r, Subject::Rowmill)? / cpu(r, Subject::Before)?)),
                "- | 1",
            ),
            (
                "own CPU, rowmill to naive pipe",
                over_rounds(&|r| Some(cpu(r, Subject::Rowmill)? / cpu(r, Subject::Naive)?)),
                "at most 1.2 | 0.8",
            ),
        ] {
            if let Some(value) = value {
                text.push_str(&format!("| {name} | {value:.2} | {limits} |\n"));
            }
        }
        text
    }
}

/// How many cores are busy while the bench does nothing.
fn background_cores() -> Result<f64> {
    let time = Duration::from_millis(300);
    let (before, _) = usage::of_machine()?;
    std::thread::sleep(time);
    let (after, _) = usage::of_machine()?;
    Ok((after - before) / time.as_secs_f64())
}

const LOOKUP: &str = r#"pipeline = "bench"
kafka.start = "earliest"

[lookup.user]
key = "user:{}"

"#;

/// A model of the topic, with the users' names looked up; `more` ends with the columns.
fn model_of(table: &str, more: &str) -> String {
    format!(
        "[[model]]\ntopic = \"{TOPIC}\"\ntable = \"{table}\"\n{more}userid = {{ lookup = \"user\", field = \"token\" }}\n"
    )
}

/// Those with keys, beside `metric`.
const KEYED_TABLES: &str = "DROP TABLE IF EXISTS metric_sums, metric_latest;
    CREATE TABLE metric_sums (userid VARCHAR(100) COLLATE \"C\" PRIMARY KEY, n BIGINT NOT NULL, low DOUBLE PRECISION,
                              high DOUBLE PRECISION) WITH (fillfactor = 70);
    CREATE TABLE metric_latest (userid VARCHAR(100) COLLATE \"C\" PRIMARY KEY, path TEXT, value DOUBLE PRECISION,
                                time TIMESTAMPTZ NOT NULL) WITH (fillfactor = 70)";
