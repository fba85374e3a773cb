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

/// What the load tester found at one rate; times in milliseconds.
#[derive(Clone)]
struct Measured {
    name: String,
    verdict: String,
    p50: f64,
    /// The lower bound: the look before the one that saw the row.
    p99_lower: f64,
    p99: f64,
    p999: f64,
    max: f64,
    lost: f64,
    duplicated: f64,
    /// Until Kafka had acknowledged the message.
    ack_p99: f64,
    /// COPY of one row and COMMIT, meanwhile.
    floor_p99: f64,
    tester_cpu: f64,
    machine_cpu: f64,
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
        servers: &options.servers,
        configuration: options.config.clone(),
        log: directory.join("rowmill.log"),
    };
    engine.init(&["--models"])?;
    options.servers.postgres()?.batch_execute(FLOOR_TABLE).context("create a table like metric")?;
    let floor = idle_floor(&options.servers)?;
    println!("floor: COPY of one row and COMMIT: p50 {:.2} ms, p99 {:.2} ms", floor.0, floor.1);

    let running = engine.start()?;
    let pid = running.0.id().to_string();
    println!("warming up");
    test(options, &raw, "warm-up", &pid, &["--shape", WARM_UP])?;
    let mut found = Vec::new();
    let mut measure = |round: usize, name: &str, load: &[&str]| -> Result<()> {
        let measured = test(options, &raw, name, &pid, load)?;
        println!(
            "round {round}  {name}: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, floor p99 {:.1} ms; {}",
            measured.p50, measured.p99, measured.p999, measured.floor_p99, measured.verdict
        );
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

/// Milliseconds for one row by COPY and COMMIT, (p50, p99), while nothing else runs.
fn idle_floor(servers: &Servers) -> Result<(f64, f64)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| floor(servers, &stop));
        thread::sleep(Duration::from_secs(FLOOR_SECONDS));
        stop.store(true, Relaxed);
        sampler.join().expect("the sampler does not panic")
    })
}

/// The same, until `stop`.
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
    // Of an earlier round.
    fs::remove_dir_all(&out).ok();
    fs::create_dir(&out)?;
    // So that none comes by itself, in the middle of one load and not of another.
    options.servers.postgres()?.batch_execute("CHECKPOINT").context("checkpoint")?;
    let stop = AtomicBool::new(false);
    let floor = thread::scope(|scope| {
        let sampler = scope.spawn(|| floor(&options.servers, &stop));
        let tested = tester(&out, pid, load, &out.join("log"));
        stop.store(true, Relaxed);
        tested.and(sampler.join().expect("the sampler does not panic"))
    })?;
    let json = only_directory(&out)?.join("run.json");
    let run: Value = serde_json::from_slice(
        &fs::read(&json).with_context(|| format!("read the load tester's {}", json.display()))?,
    )?;
    let number = |name: &str| run["results"][name].as_f64().unwrap_or(f64::NAN);
    let reasons = run["reasons"].as_array().into_iter().flatten().filter_map(|r| r["text"].as_str());
    let reasons: Vec<&str> = reasons.collect();
    let exit = run["exit"].as_str().unwrap_or("?");
    Ok(Measured {
        name: name.to_owned(),
        verdict: if exit == "passed" { exit.to_owned() } else { format!("{exit}: {}", reasons.join("; ")) },
        p50: number("visible_p50") / 1000.0,
        p99_lower: number("visible_lower_p99") / 1000.0,
        p99: number("visible_p99") / 1000.0,
        p999: number("visible_p999") / 1000.0,
        max: number("visible_max") / 1000.0,
        lost: number("lost"),
        duplicated: number("duplicated"),
        ack_p99: number("ack_p99") / 1000.0,
        floor_p99: floor.1,
        tester_cpu: number("generator_cpu_percent"),
        machine_cpu: number("host_cpu_percent"),
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
        let of = |value: fn(&Measured) -> f64| median(&rounds.iter().map(|m| value(m)).collect::<Vec<_>>());
        let worst = rounds.iter().find(|m| m.verdict != "passed").unwrap_or(&rounds[0]);
        result.push(Measured {
            name: first.name.clone(),
            verdict: worst.verdict.clone(),
            p50: of(|m| m.p50),
            p99_lower: of(|m| m.p99_lower),
            p99: of(|m| m.p99),
            p999: of(|m| m.p999),
            max: of(|m| m.max),
            lost: rounds.iter().map(|m| m.lost).sum(),
            duplicated: rounds.iter().map(|m| m.duplicated).sum(),
            ack_p99: of(|m| m.ack_p99),
            floor_p99: of(|m| m.floor_p99),
            tester_cpu: of(|m| m.tester_cpu),
            machine_cpu: of(|m| m.machine_cpu),
        });
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
         | load | p50 | p99 from | p99 | p99.9 | longest | acknowledged p99 | floor p99 | p99 above the floor | lost | duplicated | \
         tester CPU | machine busy | verdict |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        options.seconds, options.rounds, floor.0, floor.1
    );
    for m in medians(found) {
        text.push_str(&format!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {:.0} % | {:.0} % | {} |\n",
            m.name,
            m.p50,
            m.p99_lower,
            m.p99,
            m.p999,
            m.max,
            m.ack_p99,
            m.floor_p99,
            m.p99 - m.floor_p99,
            m.lost,
            m.duplicated,
            m.tester_cpu,
            m.machine_cpu,
            m.verdict
        ));
    }
    let mut csv = String::from(
        "load,p50_ms,p99_lower_ms,p99_ms,p999_ms,max_ms,ack_p99_ms,floor_p99_ms,lost,duplicated,tester_cpu_percent,\
         machine_cpu_percent,verdict\n",
    );
    for m in found {
        csv.push_str(&format!(
            "{},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{},{},{:.1},{:.1},\"{}\"\n",
            m.name,
            m.p50,
            m.p99_lower,
            m.p99,
            m.p999,
            m.max,
            m.ack_p99,
            m.floor_p99,
            m.lost,
            m.duplicated,
            m.tester_cpu,
            m.machine_cpu,
            m.verdict
        ));
    }
    text.push_str(&conditions(&mut options.servers.postgres()?, "latency")?);
    fs::write(directory.join("runs.csv"), csv)?;
    fs::write(directory.join("summary.md"), &text)?;
    println!("\n{text}\nwritten to {}", directory.display());
    Ok(())
}
