//! rowmill beside what one would use instead: the same topic, the same table, the same servers, one after the other.
//! Three questions for each: how fast and at what cost; what becomes of the rows around one poison record; what is lost
//! or doubled when it is killed under load and started again.
//!
//! A peer is a script, benches/peers/NAME/peer, with the verbs install, version and run; `run` becomes the program.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rowmill_bench::metric::Metric;
use rowmill_bench::program::exit_code;
use rowmill_bench::servers::Servers;
use rowmill_bench::{kafka, usage};

mod report;
mod trial;

use report::{Fate, Report, Speed};
use trial::{Curve, Goal, Trial};

#[derive(Parser)]
#[command(about = "Measures rowmill and what one would use instead, on the same topic and table")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    #[arg(long, env = "PG_PID_FILE")]
    pg_pid_file: PathBuf,
    /// Who takes part, in this order in every round: directories under benches/peers.
    #[arg(long, value_delimiter = ',', default_value = "naive,rowmill,go-consumer,debezium,telegraf,quix")]
    peers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "speed,row,json,kill")]
    tests: Vec<Test>,
    /// Rounds of the speed test.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Divides the number of records of every peer: for a quick look.
    #[arg(long, default_value_t = 1)]
    divide: u64,
    #[arg(long, default_value = "benches/peers")]
    scripts: PathBuf,
    /// Where programs are installed, and where they keep what they keep.
    #[arg(long, default_value = "target/peers")]
    work: PathBuf,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "peers")]
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Test {
    Speed,
    /// One record is good JSON, and the table refuses its row: `path` is too long.
    Row,
    /// One record is half a message.
    Json,
    /// SIGKILL at one and at two thirds of the rows, each followed by a start.
    Kill,
}

impl Test {
    fn name(self) -> &'static str {
        match self {
            Test::Speed => "speed",
            Test::Row => "row",
            Test::Json => "json",
            Test::Kill => "kill",
        }
    }
}

const PARTITIONS: i32 = 6;
const USERS: u64 = 1000;
/// The tests with a poison record take a tenth of the records, and at least so many.
const POISON_RECORDS_MIN: u64 = 10_000;
/// Between two looks at the processes: each reads a few files in /proc.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two looks into the table's statistics while speed is measured.
const ASK_EVERY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    exit_code("peers", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    // For rowmill's lookups.
    options.servers.fill_redis(USERS)?;
    let mut report = Report::new(options)?;
    for peer in &options.peers {
        let version = trial::prepare(options, peer, &report.directory)?;
        report.versions.push((peer.clone(), version));
    }
    if options.tests.contains(&Test::Speed) {
        for round in 1..=options.rounds {
            for peer in &options.peers {
                let speed = speed(options, &report, peer, round)?;
                println!("round {round}  {}", speed.line());
                report.speeds.push(speed);
                report.write(options)?;
            }
        }
    }
    for &test in options.tests.iter().filter(|&&test| test != Test::Speed) {
        for peer in options.peers.iter().filter(|&peer| !is_reference(peer)) {
            if test != Test::Kill && trial::count_of(options, peer)?.is_some() {
                // What is added up has no row for the one that is refused.
                continue;
            }
            let fate = match test {
                Test::Kill => kill(options, &report, peer)?,
                _ => poison(options, &report, peer, test)?,
            };
            println!("{}", fate.line());
            report.fates.push(fate);
            report.write(options)?;
        }
    }
    println!("\n{}\nwritten to {}", report.summary(options)?, report.directory.display());
    Ok(())
}

/// How many records a peer gets, so that it is busy for some tens of seconds.
fn records_of(peer: &str) -> u64 {
    match peer {
        "go-consumer" | "go-add" => 30_000,
        "quix" | "debezium-upsert" => 1_000_000,
        _ => 3_000_000,
    }
}

/// Measured for its speed only: it keeps no position, so that a kill or a poison record means the beginning.
fn is_reference(peer: &str) -> bool {
    peer == "naive"
}

fn records(options: &Options, peer: &str, test: Test) -> u64 {
    let records = (records_of(peer) / options.divide).max(POISON_RECORDS_MIN);
    match test {
        Test::Speed | Test::Kill => records,
        Test::Row | Test::Json => (records / 10).max(POISON_RECORDS_MIN),
    }
}

/// Fills the topic of a test, unless it is there. Returns its name and, if it has one, its poison record's number.
fn topic(options: &Options, test: Test, records: u64) -> Result<(String, Option<u64>)> {
    let (name, poisoned) = match test {
        Test::Speed | Test::Kill => (format!("metric-{records}"), None),
        Test::Row | Test::Json => (format!("metric-{}-{records}", test.name()), Some(records / 2)),
    };
    kafka::ensure_filled(&options.servers.kafka(), &name, PARTITIONS, records, |number, json| {
        let mut record = Metric::nth(number, USERS);
        let is_poison = poisoned == Some(number);
        if is_poison && test == Test::Row {
            record.path = format!("{}{}", "x".repeat(250), record.path);
        }
        record.write_json(json);
        if is_poison && test == Test::Json {
            json.truncate(json.len() / 2);
        }
    })?;
    Ok((name, poisoned))
}

/// From an empty table until the last row. The server's commit times say afterwards what was visible when, so that
/// nothing but a look into its statistics disturbs the run. Where many records make a row, they are counted on the way.
fn speed(options: &Options, report: &Report, peer: &str, round: usize) -> Result<Speed> {
    let records = records(options, peer, Test::Speed);
    let (topic, _) = topic(options, Test::Speed, records)?;
    let postmaster = fs::read_to_string(&options.pg_pid_file)
        .with_context(|| format!("read {}", options.pg_pid_file.display()))?;
    let log = report.directory.join(format!("{peer}-speed-{round}.log"));
    let mut trial = Trial::start(options, peer, &topic, records, log)?;
    let began_at = SystemTime::now();
    let server_before = usage::cpu_with_children(postmaster.trim())?;

    let (mut samples, mut counted) = (Vec::new(), Vec::new());
    let (mut sent, mut moved_at, mut asked_at) = (0, Instant::now(), Instant::now());
    loop {
        std::thread::sleep(LOOK_EVERY);
        // Once it has ended, its last sample stands.
        if let (true, Ok(used)) = (trial.is_running()?, usage::of(&trial.pid())) {
            samples.push((SystemTime::now(), used, usage::cpu_with_children(postmaster.trim())?));
        }
        if asked_at.elapsed() < ASK_EVERY && !trial.is_counted() {
            continue;
        }
        asked_at = Instant::now();
        let now = trial.rows_sent()?;
        counted.push((SystemTime::now(), now));
        if now != sent {
            (sent, moved_at) = (now, Instant::now());
        }
        if (now >= records && trial.rows()? >= records) || moved_at.elapsed() > trial::patience(sent) {
            break;
        }
    }
    trial.end()?;
    let curve = if trial.is_counted() { Curve::counted(&counted) } else { trial.curve()? };
    fs::write(report.directory.join(format!("{peer}-speed-{round}.csv")), curve.csv())?;
    let (first, last) = curve.ends().with_context(|| format!("{peer} wrote nothing; see its log"))?;
    let sample = samples.iter().find(|(at, _, _)| *at >= last).or(samples.last());
    let &(_, usage, server) = sample.with_context(|| format!("{peer} ended at once; see its log"))?;
    Ok(Speed {
        peer: peer.to_owned(),
        round,
        records,
        stored: curve.rows(),
        transactions: (!trial.is_counted()).then(|| curve.commits()),
        rows_per_second: curve.rows_per_second(),
        usage,
        server_cpu_seconds: server - server_before,
        first_rows_seconds: first.duration_since(began_at).unwrap_or_default().as_secs_f64(),
    })
}

/// Runs until every good record has its row, or nothing has moved for long.
fn poison(options: &Options, report: &Report, peer: &str, test: Test) -> Result<Fate> {
    let records = records(options, peer, test);
    let (topic, poisoned) = topic(options, test, records)?;
    let log = report.directory.join(format!("{peer}-{}.log", test.name()));
    let mut trial = Trial::start(options, peer, &topic, records, log)?;
    trial.wait_for(Goal::Records(records - 1))?;
    trial.fate(test, poisoned, Vec::new())
}

/// Kills at one and at two thirds of the rows, and starts again at once.
fn kill(options: &Options, report: &Report, peer: &str) -> Result<Fate> {
    let records = records(options, peer, Test::Kill);
    let (topic, _) = topic(options, Test::Kill, records)?;
    let log = report.directory.join(format!("{peer}-kill.log"));
    let mut trial = Trial::start(options, peer, &topic, records, log)?;
    let mut back_after = Vec::new();
    for third in 1..=2 {
        // One that stands still is killed all the same; the figures will say it.
        trial.wait_for(Goal::Rows(records * third / 3))?;
        trial.kill()?;
        let before = trial.rows()?;
        let killed_at = Instant::now();
        trial.start_again()?;
        if trial.wait_for(Goal::Rows(before + 1))? {
            back_after.push(killed_at.elapsed().as_secs_f64());
        }
    }
    // Doubled rows do not stand in for missing ones.
    trial.wait_for(Goal::Records(records))?;
    trial.fate(Test::Kill, None, back_after)
}
