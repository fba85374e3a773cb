//! Latency from the moment a message is due to the moment other sessions see its row, as the load tester measures it: at
//! rates from nearly idle to half of what holds, and through a burst. The floor is what PostgreSQL takes with no pipeline at
//! all: COPY of one row, and COMMIT, on the idle server and beside each load.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rowmill_bench::engine::Engine;
use rowmill_bench::kafka;
use rowmill_bench::metric::{COPY, COPY_HEADER, COPY_TRAILER, Metric};
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers::{Servers, conditions};
use rowmill_bench::visible::median;
use serde_json::Value;

#[derive(Parser)]
#[command(about = "Measures rowmill's latency with the load tester")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// How long each rate is kept up.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How often each load is measured; medians count.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out the search for the highest rate that holds, and the measurement at half of it.
    #[arg(long)]
    no_maximum: bool,
    #[arg(long, default_value = "models/demo.toml")]
    config: PathBuf,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "latency")]
    name: String,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

const TOPICS: [&str; 5] = ["metric", "state", "log", "network_trace", "network_ping"];
const MIX: &str = "metric=40,state=20,log=20,trace=10,ping=10";
/// Of each topic. Each adds to what a batch of a few messages costs producer, broker and consumer: with 6, the generator and
/// the broker alone took 1.5 of 2 cores at 20,000 messages a second.
const PARTITIONS: i32 = 2;
/// Milliseconds that the producer waits for more messages; they are part of the latency.
const LINGER_MS: &str = "5";
const RATES: [u64; 3] = [100, 1_000, 20_000];
/// 200,000 messages in one second, with little before and after.
const BURST: &str = "3s@1000,1s@200000,6s@1000";
/// Where the search for the highest rate begins, in messages a second.
const SEARCH_FROM: u64 = 60_000;
/// Before anything is measured: the broker's code is compiled while it runs, and takes twice the CPU until it is.
const WARM_UP: &str = "20s@20000,10s@1000,5s@20000";
const FLOOR_TABLE: &str = "CREATE TABLE latency_floor (LIKE metric)";
/// Between two one-row transactions.
const FLOOR_EVERY: Duration = Duration::from_millis(20);
const FLOOR_SECONDS: u64 = 10;

/// What the results say of each load, in this order.
const FIGURES: [Figure; 11] = [
    Figure { title: "p50", column: "p50_ms", key: "visible_p50", unit: Unit::Time },
    // The look before the one that saw the row.
    Figure { title: "p99 from", column: "p99_lower_ms", key: "visible_lower_p99", unit: Unit::Time },
    Figure { title: "p99", column: "p99_ms", key: "visible_p99", unit: Unit::Time },
    Figure { title: "p99.9", column: "p999_ms", key: "visible_p999", unit: Unit::Time },
    Figure { title: "longest", column: "max_ms", key: "visible_max", unit: Unit::Time },
    // Until Kafka had acknowledged the message.
    Figure { title: "acknowledged p99", column: "ack_p99_ms", key: "ack_p99", unit: Unit::Time },
    // COPY of one row and COMMIT, meanwhile.
    Figure { title: "floor p99", column: "floor_p99_ms", key: FLOOR_P99, unit: Unit::Time },
    Figure { title: "lost", column: "lost", key: "lost", unit: Unit::Count },
    Figure { title: "duplicated", column: "duplicated", key: "duplicated", unit: Unit::Count },
    Figure {
        title: "tester CPU",
        column: "tester_cpu_percent",
        key: "generator_cpu_percent",
        unit: Unit::Percent,
    },
    Figure {
        title: "machine busy",
        column: "machine_cpu_percent",
        key: "host_cpu_percent",
        unit: Unit::Percent,
    },
];
/// Ours, put beside the load tester's own.
const FLOOR_P99: &str = "floor_p99";

struct Figure {
    /// In the summary, and in runs.csv.
    title: &'static str,
    column: &'static str,
    /// Among the results in run.json.
    key: &'static str,
    unit: Unit,
}

enum Unit {
    /// Microseconds in run.json, milliseconds in what this prints.
    Time,
    Count,
    Percent,
}

impl Figure {
    fn text(&self, value: f64) -> String {
        match self.unit {
            Unit::Time => format!("{value:.1}"),
            Unit::Count => format!("{value}"),
            Unit::Percent => format!("{value:.0} %"),
        }
    }

    fn csv(&self, value: f64) -> String {
        match self.unit {
            Unit::Time => format!("{value:.3}"),
            Unit::Count => format!("{value}"),
            Unit::Percent => format!("{value:.1}"),
        }
    }

    /// Of all rounds: nothing lost or doubled may hide behind a median.
    fn of_rounds(&self, values: &[f64]) -> f64 {
        match self.unit {
            Unit::Count => values.iter().sum(),
            Unit::Time | Unit::Percent => median(values),
        }
    }
}

/// What was found at one load.
struct Measured {
    name: String,
    verdict: String,
    /// As [`FIGURES`] lists them.
    values: [f64; FIGURES.len()],
}

impl Measured {
    fn value(&self, key: &str) -> f64 {
        let place = FIGURES.iter().position(|figure| figure.key == key).expect("a key of the list");
        self.values[place]
    }
}

fn main() -> ExitCode {
    exit_code("latency", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let directory = result_directory(&options.results, &options.name)?;
    let raw = raw_directory(&directory)?;
    for topic in TOPICS {
        kafka::replace_topic(&options.servers.kafka(), topic, PARTITIONS)?;
    }
    options.servers.make_wal_files()?;
    // rowmill makes the tables.
    options.servers.fresh_tables(&format!("DROP TABLE IF EXISTS {}, latency_floor", TOPICS.join(", ")))?;
    let engine = Engine {
        program: None,
        servers: &options.servers,
        configuration: options.config.clone(),
        log: directory.join("rowmill.log"),
    };
    engine.init(&["--models"])?;
    options.servers.postgres()?.batch_execute(FLOOR_TABLE).context("create a table like metric")?;
    let idle = || {
        thread::sleep(Duration::from_secs(FLOOR_SECONDS));
        Ok(())
    };
    let ((), floor) = beside_floor(&options.servers, idle)?;
    println!("floor: COPY of one row and COMMIT: p50 {:.2} ms, p99 {:.2} ms", floor.0, floor.1);

    let running = engine.start()?;
    let pid = running.0.id().to_string();
    println!("warming up");
    test(options, &raw, "warm-up", &pid, &["--shape", WARM_UP])?;
    let mut found = Vec::new();
    let mut measure = |round: usize, name: &str, load: &[&str]| -> Result<()> {
        let measured = test(options, &raw, name, &pid, load)?;
        let times = FIGURES.iter().zip(measured.values).filter(|(f, _)| matches!(f.unit, Unit::Time));
        let times: Vec<String> = times.map(|(f, value)| format!("{} {}", f.title, f.text(value))).collect();
        println!("round {round}  {name}, ms: {}; {}", times.join(", "), measured.verdict);
        found.push(measured);
        Ok(())
    };
    let duration = format!("{}s", options.seconds);
    for round in 1..=options.rounds {
        for rate in RATES {
            measure(round, &format!("{rate}/s"), &["--rate", &rate.to_string(), "--duration", &duration])?;
        }
        measure(round, "burst of 200000 in one second", &["--shape", BURST])?;
    }
    if !options.no_maximum {
        let maximum = find_max(&raw, &pid)?;
        println!("the highest rate that holds, five models, generator on the same cores: {maximum}/s");
        let (half, name) = ((maximum / 2).to_string(), format!("half of {maximum}/s"));
        for round in 1..=options.rounds {
            measure(round, &name, &["--rate", &half, "--duration", &duration])?;
        }
    }
    engine.stop(running)?;
    fs::remove_dir_all(&raw).context("remove the load tester's raw data")?;
    write_results(options, &directory, floor, &found)
}

/// The load tester's own results, megabytes a run, are not kept.
fn raw_directory(directory: &Path) -> Result<PathBuf> {
    let raw = directory.join("raw");
    fs::create_dir(&raw).with_context(|| format!("create {}", raw.display()))?;
    Ok(raw)
}

/// Does `work` and takes the floor meanwhile: its result, and milliseconds for one row by COPY and COMMIT, (p50, p99).
fn beside_floor<T>(servers: &Servers, work: impl FnOnce() -> Result<T>) -> Result<(T, (f64, f64))> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| floor(servers, &stop));
        let result = work();
        stop.store(true, Relaxed);
        let floor = sampler.join().expect("the sampler does not panic");
        Ok((result?, floor?))
    })
}

/// The floor, until `stop`.
fn floor(servers: &Servers, stop: &AtomicBool) -> Result<(f64, f64)> {
    let mut client = servers.postgres()?;
    let copy_sql = COPY.replacen("metric", "latency_floor", 1);
    let copy_sql = client.prepare(&copy_sql).context("prepare the floor's COPY")?;
    let mut times = Vec::new();
    while !stop.load(Relaxed) {
        let row = Metric::nth(times.len() as u64, 1000);
        let mut bytes = COPY_HEADER.to_vec();
        row.write_tuple(row.time_us, &mut bytes);
        bytes.extend_from_slice(COPY_TRAILER);
        let began = Instant::now();
        let mut copy = client.copy_in(&copy_sql)?;
        std::io::Write::write_all(&mut copy, &bytes)?;
        copy.finish()?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        thread::sleep(FLOOR_EVERY);
    }
    times.sort_by(f64::total_cmp);
    ensure!(!times.is_empty(), "the floor was not measured even once");
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

fn tester(raw: &Path, pid: &str, load: &[&str], log: &Path) -> Result<()> {
    let log = File::create(log)?;
    let status = Command::new(std::env::current_exe()?.with_file_name("loadtester"))
        .args(["--mix", MIX, "--users", "1000", "--warmup", "3s", "--verify", "full", "--threads", "1"])
        .args(["--linger-ms", LINGER_MS])
        .args(["--row-timestamp", "app", "--probe-interval", "2ms", "--target-pid", pid])
        .args(load)
        .arg("--out")
        .arg(raw)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("run loadtester")?;
    // 97 and 98 are verdicts that the table shows; 99 ends a search that found nothing.
    ensure!(matches!(status.code(), Some(0 | 97 | 98)), "loadtester failed: {status}");
    Ok(())
}

/// One run of the load tester, with the floor beside it.
fn test(options: &Options, raw: &Path, name: &str, pid: &str, load: &[&str]) -> Result<Measured> {
    let out = raw.join(name.replace([' ', '/'], "-"));
    fs::create_dir(&out)?;
    // So that none comes by itself, in the middle of one load and not of another.
    options.servers.postgres()?.batch_execute("CHECKPOINT").context("checkpoint")?;
    let ((), floor) = beside_floor(&options.servers, || tester(&out, pid, load, &out.join("log")))?;
    let json = only_directory(&out)?.join("run.json");
    let mut run: Value = serde_json::from_slice(
        &fs::read(&json).with_context(|| format!("read the load tester's {}", json.display()))?,
    )?;
    run["results"][FLOOR_P99] = (floor.1 * 1000.0).into();
    let reasons = run["reasons"].as_array().into_iter().flatten().filter_map(|r| r["text"].as_str());
    let reasons: Vec<&str> = reasons.collect();
    let exit = run["exit"].as_str().unwrap_or("?");
    Ok(Measured {
        name: name.to_owned(),
        verdict: if exit == "passed" { exit.to_owned() } else { format!("{exit}: {}", reasons.join("; ")) },
        values: FIGURES.map(|figure| {
            let value = run["results"][figure.key].as_f64().unwrap_or(f64::NAN);
            if matches!(figure.unit, Unit::Time) { value / 1000.0 } else { value }
        }),
    })
}

/// The highest rate that holds, rounded down to thousands of messages a second.
fn find_max(raw: &Path, pid: &str) -> Result<u64> {
    let out = raw.join("maximum");
    fs::create_dir(&out)?;
    let from = SEARCH_FROM.to_string();
    let load = ["--find-max", "--rate", &from, "--duration", "6s", "--precision", "15%"];
    tester(&out, pid, &load, &out.join("log"))?;
    let csv = fs::read_to_string(only_directory(&out)?.join("find_max.csv"))?;
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).context("a column of find_max.csv");
    let (rate, passed) = (column("offered_rate")?, column("passed")?);
    let best = lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .filter(|cells| cells[passed] == "true")
        .filter_map(|cells| cells[rate].parse::<f64>().ok())
        .fold(0.0, f64::max);
    if best == 0.0 {
        bail!("not even {SEARCH_FROM}/s hold here; --no-maximum leaves the search out");
    }
    Ok(best as u64 / 1000 * 1000)
}

fn only_directory(out: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(out)?.filter_map(Result::ok).map(|e| e.path());
    entries
        .find(|path| path.is_dir())
        .with_context(|| format!("find the load tester's run in {}", out.display()))
}

/// The medians of each load's rounds, in the order of the first.
fn medians(found: &[Measured]) -> Vec<Measured> {
    let mut result: Vec<Measured> = Vec::new();
    for first in found {
        if result.iter().any(|m| m.name == first.name) {
            continue;
        }
        let rounds: Vec<&Measured> = found.iter().filter(|m| m.name == first.name).collect();
        let worst = rounds.iter().find(|m| m.verdict != "passed").unwrap_or(&rounds[0]);
        let values = std::array::from_fn(|place| {
            let values: Vec<f64> = rounds.iter().map(|m| m.values[place]).collect();
            FIGURES[place].of_rounds(&values)
        });
        result.push(Measured { name: first.name.clone(), verdict: worst.verdict.clone(), values });
    }
    result
}

fn write_results(options: &Options, directory: &Path, floor: (f64, f64), found: &[Measured]) -> Result<()> {
    let mut text = format!(
        "# Latency\n\nFrom the moment a message is due to the moment another session sees its row, in milliseconds; five \
         models ({MIX}), {PARTITIONS} partitions each, {} s each after 3 s of warm-up, on servers that are warm; medians of {} \
         round(s), and the sums of lost and doubled. The probe looks every 2 ms; `p99 from` is the look before the one that saw \
         the row. Generator (linger {LINGER_MS} ms), Kafka, PostgreSQL, Redis and rowmill share the cores; `acknowledged` is the \
         part until Kafka has the message.\n\n\
         The floor is COPY of one row and COMMIT with no pipeline: p50 {:.2} ms and p99 {:.2} ms on the idle server, and beside \
         each load as the table says.\n\n\
         | load | {} | p99 above the floor | verdict |\n|---|{}---|---|\n",
        options.seconds,
        options.rounds,
        floor.0,
        floor.1,
        FIGURES.map(|figure| figure.title).join(" | "),
        "---|".repeat(FIGURES.len()),
    );
    for m in medians(found) {
        let figures = FIGURES.iter().zip(m.values).map(|(figure, value)| figure.text(value));
        let above = m.value("visible_p99") - m.value(FLOOR_P99);
        let figures: Vec<String> = figures.collect();
        text.push_str(&format!("| {} | {} | {above:.1} | {} |\n", m.name, figures.join(" | "), m.verdict));
    }
    let mut csv = format!("load,{},verdict\n", FIGURES.map(|figure| figure.column).join(","));
    for m in found {
        let figures = FIGURES.iter().zip(m.values).map(|(figure, value)| figure.csv(value));
        csv.push_str(&format!("{},{},\"{}\"\n", m.name, figures.collect::<Vec<_>>().join(","), m.verdict));
    }
    text.push_str(&conditions(&mut options.servers.postgres()?, "latency")?);
    fs::write(directory.join("runs.csv"), csv)?;
    fs::write(directory.join("summary.md"), &text)?;
    println!("\n{text}\nwritten to {}", directory.display());
    Ok(())
}
