//! Latency from the moment a message is due to the moment other sessions see its row, as the load tester measures it: at
//! rates from nearly idle to half of what holds, and through a burst. The floor is what PostgreSQL takes for the same with
//! no pipeline at all: COPY of one row, and COMMIT.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use postgres::Client;
use rowmill_bench::engine::Engine;
use rowmill_bench::kafka;
use rowmill_bench::metric::{self, COPY, COPY_HEADER, COPY_TRAILER, Metric};
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers::{Servers, conditions};
use serde_json::Value;

#[derive(Parser)]
#[command(about = "Measures rowmill's latency with the load tester")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// How long each rate is kept up.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
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
const PARTITIONS: i32 = 6;
const RATES: [u64; 3] = [100, 1_000, 20_000];
/// 200,000 messages in one second, with little before and after.
const BURST: &str = "3s@1000,1s@200000,6s@1000";
/// Where the search for the highest rate begins, in messages a second.
const SEARCH_FROM: u64 = 60_000;
const FLOOR_ROWS: u64 = 2_000;

/// What the load tester found at one rate; times in milliseconds.
struct Measured {
    name: String,
    verdict: String,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
    lost: f64,
    duplicated: f64,
    tester_cpu: f64,
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
    // The floor makes its own table, rowmill makes all of them.
    let mut client = options.servers.fresh_tables(&format!("DROP TABLE IF EXISTS {}", TOPICS.join(", ")))?;
    let floor = floor(&mut client)?;
    println!("floor: COPY of one row and COMMIT: p50 {:.2} ms, p99 {:.2} ms", floor.0, floor.1);

    let engine = Engine {
        servers: &options.servers,
        configuration: options.config.clone(),
        log: directory.join("rowmill.log"),
    };
    engine.init(&["--models"])?;
    let running = engine.start()?;
    let pid = running.0.id().to_string();
    let mut found = Vec::new();
    let mut measure = |name: &str, load: &[&str]| -> Result<()> {
        let measured = test(&raw, name, &pid, load)?;
        println!(
            "{name}: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; {}",
            measured.p50, measured.p99, measured.p999, measured.verdict
        );
        found.push(measured);
        Ok(())
    };
    let duration = format!("{}s", options.seconds);
    for rate in RATES {
        measure(&format!("{rate}/s"), &["--rate", &rate.to_string(), "--duration", &duration])?;
    }
    measure("burst of 200000 in one second", &["--shape", BURST])?;
    if !options.no_maximum {
        let maximum = find_max(&raw, &pid)?;
        println!("the highest rate that holds, five models, generator on the same cores: {maximum}/s");
        let half = (maximum / 2).to_string();
        measure(&format!("half of {maximum}/s"), &["--rate", &half, "--duration", &duration])?;
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

/// Milliseconds for one row by COPY and COMMIT: (p50, p99).
fn floor(client: &mut Client) -> Result<(f64, f64)> {
    client.batch_execute(metric::CREATE_TABLE).context("create table metric")?;
    let mut times = Vec::new();
    for number in 0..FLOOR_ROWS {
        let row = Metric::nth(number, 1000);
        let mut bytes = COPY_HEADER.to_vec();
        row.write_tuple(row.time_us, &mut bytes);
        bytes.extend_from_slice(COPY_TRAILER);
        let began = Instant::now();
        let mut copy = client.copy_in(COPY)?;
        std::io::Write::write_all(&mut copy, &bytes)?;
        copy.finish()?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        // As rare as at a low rate: a server in full swing is faster than one that has to wake up.
        std::thread::sleep(Duration::from_millis(1));
    }
    client.batch_execute("DROP TABLE metric")?;
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

fn tester(raw: &Path, pid: &str, load: &[&str], log: &Path) -> Result<()> {
    let log = File::create(log)?;
    let status = Command::new(std::env::current_exe()?.with_file_name("loadtester"))
        .args(["--mix", MIX, "--users", "1000", "--warmup", "3s", "--verify", "full"])
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

fn test(raw: &Path, name: &str, pid: &str, load: &[&str]) -> Result<Measured> {
    let out = raw.join(name.replace([' ', '/'], "-"));
    fs::create_dir(&out)?;
    tester(&out, pid, load, &out.join("log"))?;
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
        p99: number("visible_p99") / 1000.0,
        p999: number("visible_p999") / 1000.0,
        max: number("visible_max") / 1000.0,
        lost: number("lost"),
        duplicated: number("duplicated"),
        tester_cpu: number("generator_cpu_percent"),
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

fn write_results(options: &Options, directory: &Path, floor: (f64, f64), found: &[Measured]) -> Result<()> {
    let mut text = format!(
        "# Latency\n\nFrom the moment a message is due to the moment another session sees its row, in milliseconds; five \
         models ({MIX}), {} s each after 3 s of warm-up. The probe looks every 2 ms. Generator, Kafka, PostgreSQL, Redis \
         and rowmill share the cores.\n\n\
         The floor, COPY of one row and COMMIT with no pipeline: p50 {:.2} ms, p99 {:.2} ms.\n\n\
         | load | p50 | p99 | p99.9 | longest | p99 above the floor | lost | duplicated | tester CPU | verdict |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        options.seconds, floor.0, floor.1
    );
    let mut csv =
        String::from("load,p50_ms,p99_ms,p999_ms,max_ms,lost,duplicated,tester_cpu_percent,verdict\n");
    for m in found {
        text.push_str(&format!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {:.0} % | {} |\n",
            m.name,
            m.p50,
            m.p99,
            m.p999,
            m.max,
            m.p99 - floor.1,
            m.lost,
            m.duplicated,
            m.tester_cpu,
            m.verdict
        ));
        csv.push_str(&format!(
            "{},{:.3},{:.3},{:.3},{:.3},{},{},{:.1},\"{}\"\n",
            m.name, m.p50, m.p99, m.p999, m.max, m.lost, m.duplicated, m.tester_cpu, m.verdict
        ));
    }
    text.push_str(&conditions(&mut options.servers.postgres()?, "latency")?);
    fs::write(directory.join("runs.csv"), csv)?;
    fs::write(directory.join("summary.md"), &text)?;
    println!("\n{text}\nwritten to {}", directory.display());
    Ok(())
}
