//! `rowmill verify` on a table as large as the disk allows: how long it takes, how much memory, and whether it still finds a
//! handful of damaged rows among all of them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rowmill_bench::engine::Engine;
use rowmill_bench::kafka;
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers::{Servers, conditions};
use rowmill_bench::usage::{self, Usage};

#[derive(Parser)]
#[command(about = "Times rowmill verify on a large table, intact and with a few damaged rows")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// Records of the topic; each takes about 90 bytes of disk, table and log together.
    #[arg(long, default_value_t = 100_000_000)]
    records: u64,
    #[arg(long, default_value_t = 12)]
    partitions: i32,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "verify-large")]
    name: String,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

const TOPIC: &str = "tally";
const CONFIGURATION: &str = r#"pipeline = "tally"
kafka.start = "earliest"

[[model]]
topic = "tally"
table = "tally"

[model.columns]
_partition = { kafka = "partition" }
_offset    = { kafka = "offset" }
"#;
const TABLE: &str = "
    DROP TABLE IF EXISTS tally;
    CREATE TABLE tally (_offset BIGINT NOT NULL, n BIGINT NOT NULL, _partition INT NOT NULL)";
/// Four rows away, two there twice, one of no record: as far apart as they get.
const DAMAGE: &str = "
    DELETE FROM tally WHERE (_partition = 0 AND _offset IN (0, 1000, 100001)) OR (_partition = 5 AND _offset = 7);
    INSERT INTO tally SELECT * FROM tally WHERE _partition IN (1, 2) AND _offset = 4321;
    INSERT INTO tally VALUES (-5, 0, 3)";
const FOUND: &str = "FAIL: 4 lost, 2 duplicated, 1 phantom";
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    exit_code("verify_large", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let directory = result_directory(&options.results, &options.name)?;
    let configuration = directory.join("rowmill.toml");
    fs::write(&configuration, CONFIGURATION)?;
    let engine = Engine {
        program: None,
        servers: &options.servers,
        configuration,
        log: directory.join("rowmill.log"),
    };
    fill(options)?;
    let mut client = options.servers.fresh_tables(TABLE)?;
    println!("storing {} records", options.records);
    let drained = engine.drain(1, options.records)?;
    println!("stored: {:.0} rows/s", drained.visible.rows_per_second());
    let mut text = format!(
        "# rowmill verify of {} rows in {} partitions\n\n| table | verdict | seconds | records/s | own CPU-s | peak MB |\n\
         |---|---|---|---|---|---|\n",
        options.records, options.partitions
    );
    for (table, damage, expected) in [("intact", "", "PASS: "), ("seven rows damaged", DAMAGE, FOUND)] {
        client.batch_execute(damage).context("damage the table")?;
        let verified = verify(&engine, &directory.join(format!("{}.txt", table.replace(' ', "-"))))?;
        let verdict = verified.text.lines().last().unwrap_or_default();
        ensure!(verdict.starts_with(expected), "{table}: expected {expected:?}, got {verdict:?}");
        let seconds = verified.took.as_secs_f64();
        let line = format!(
            "| {table} | {verdict} | {seconds:.0} | {:.0} | {:.0} | {:.0} |\n",
            options.records as f64 / seconds,
            verified.usage.cpu_seconds,
            verified.usage.rss_peak_mb(),
        );
        print!("{line}");
        text.push_str(&line);
    }
    let bytes: i64 = client.query_one("SELECT pg_table_size('tally')", &[])?.get(0);
    text.push_str(&conditions(&mut client, "verify_large")?);
    text.push_str(&format!("- table: {:.1} GB, no index\n", bytes as f64 / 1e9));
    fs::write(directory.join("summary.md"), &text)?;
    println!("\n{text}\nwritten to {}", directory.display());
    Ok(())
}

/// Fills the topic, unless an earlier run left just what is needed.
fn fill(options: &Options) -> Result<()> {
    let Options { servers, records, partitions, .. } = options;
    let write =
        |number, json: &mut Vec<u8>| json.extend_from_slice(format!(r#"{{"n":{number}}}"#).as_bytes());
    if !kafka::ensure_filled(&servers.kafka(), TOPIC, *partitions, *records, write)? {
        println!("topic {TOPIC} holds {records} records already");
    }
    Ok(())
}

struct Verified {
    text: String,
    took: Duration,
    usage: Usage,
}

/// Runs `rowmill verify` to its end; what it says goes to `output`, too.
fn verify(engine: &Engine, output: &std::path::Path) -> Result<Verified> {
    let began = Instant::now();
    let mut child = engine.verify(File::create(output)?)?;
    let mut usage = Usage::default();
    while child.0.try_wait()?.is_none() {
        // One that ended since has nothing left to read; the look before it stands.
        usage = usage::of(&child.0.id().to_string()).unwrap_or(usage);
        std::thread::sleep(LOOK_EVERY);
    }
    let took = began.elapsed();
    Ok(Verified { text: fs::read_to_string(output)?, took, usage })
}
