//! Scale: what more partitions, tables, bytes a record and processes do to a drain. Each case is compared with the base
//! case, drained right before it, so that a noisy machine is noisy for both. A cost that grows faster than the work shows
//! as a cliff.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use rowmill_bench::engine::Engine;
use rowmill_bench::metric::mix;
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers::{Servers, conditions};
use rowmill_bench::visible::median;
use rowmill_bench::{kafka, usage};

#[derive(Parser)]
#[command(about = "Measures rowmill with more partitions, tables, bytes a record and processes")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Only cases with this in their name, such as "partitions".
    #[arg(long, default_value = "")]
    only: String,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "scale")]
    name: String,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

/// What is drained. All topics together hold `records`, in turn.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Case {
    partitions: i32,
    tables: u64,
    bytes: usize,
    processes: usize,
}

const BASE: Case = Case { partitions: 6, tables: 1, bytes: 160, processes: 1 };

/// A case is long enough at a million records, or at so many bytes.
const RECORDS_MAX: u64 = 1_000_000;
const BYTES_MAX: u64 = 400_000_000;

const CASES: [Case; 15] = [
    Case { partitions: 1, ..BASE },
    Case { partitions: 24, ..BASE },
    Case { partitions: 64, ..BASE },
    Case { partitions: 256, ..BASE },
    Case { tables: 2, ..BASE },
    Case { tables: 5, ..BASE },
    Case { tables: 20, ..BASE },
    Case { bytes: 100, ..BASE },
    Case { bytes: 1_000, ..BASE },
    Case { bytes: 10_000, ..BASE },
    Case { bytes: 100_000, ..BASE },
    Case { processes: 2, ..BASE },
    Case { processes: 3, ..BASE },
    Case { tables: 5, processes: 2, ..BASE },
    Case { tables: 5, partitions: 64, processes: 3, ..BASE },
];

struct Outcome {
    round: usize,
    case: Case,
    records: u64,
    /// rows/s, compared with the base right before.
    of_base: f64,
    rows_per_second: f64,
    own_cpu: f64,
    machine_cpu: f64,
    rss_peak_mb: f64,
}

fn main() -> ExitCode {
    exit_code("scale", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let directory = result_directory(&options.results, &options.name)?;
    let mut outcomes = Vec::new();
    BASE.fill(options)?;
    for case in CASES.iter().filter(|case| case.name().contains(&options.only)) {
        case.fill(options)?;
        for round in 1..=options.rounds {
            let base = measure(options, &directory, round, &BASE)?.rows_per_second;
            let mut outcome = measure(options, &directory, round, case)?;
            outcome.of_base = outcome.rows_per_second / base;
            println!(
                "{:<38} {:>9.0} rows/s, {:.2} of the base's  {:.2} own, {:.2} machine's CPU-s per million  {:.0} MB",
                case.name(),
                outcome.rows_per_second,
                outcome.of_base,
                outcome.own_cpu,
                outcome.machine_cpu,
                outcome.rss_peak_mb
            );
            outcomes.push(outcome);
        }
    }
    write_results(options, &directory, &outcomes)
}

fn measure(options: &Options, directory: &Path, round: usize, case: &Case) -> Result<Outcome> {
    options.servers.fresh_tables(&case.sql())?;
    let configuration = directory.join(format!("{}.toml", case.file()));
    fs::write(&configuration, case.configuration())?;
    let log = directory.join(format!("{}.log", case.file()));
    let engine = Engine { program: None, servers: &options.servers, configuration, log };
    let (busy, _) = usage::of_machine()?;
    let records = case.records();
    let drained = engine.drain(case.processes, records)?;
    let (busy_after, _) = usage::of_machine()?;
    Ok(Outcome {
        round,
        case: *case,
        of_base: 1.0,
        records,
        rows_per_second: drained.visible.rows_per_second(),
        own_cpu: drained.usage.cpu_per_million(records),
        machine_cpu: usage::per_million(busy_after - busy, records),
        rss_peak_mb: drained.usage.rss_peak_mb(),
    })
}

impl Case {
    /// What differs from the base.
    fn name(&self) -> String {
        let parts = [
            (self.partitions != BASE.partitions, format!("{} partitions", self.partitions)),
            (self.tables != BASE.tables, format!("{} tables", self.tables)),
            (self.bytes != BASE.bytes, format!("{} B", self.bytes)),
            (self.processes != BASE.processes, format!("{} processes", self.processes)),
        ];
        let different: Vec<String> = parts.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        if different.is_empty() { "base".to_owned() } else { different.join(", ") }
    }

    fn file(&self) -> String {
        self.name().replace([' ', ','], "-")
    }

    /// Tables, and the topics of the same names. The base keeps its own.
    fn tables(&self) -> Vec<String> {
        let prefix = if *self == BASE { "base" } else { "scale" };
        (0..self.tables).map(|number| format!("{prefix}_{number}")).collect()
    }

    fn records(&self) -> u64 {
        let records = RECORDS_MAX.min(BYTES_MAX / self.bytes as u64);
        records - records % self.tables
    }

    fn sql(&self) -> String {
        let tables = self.tables().into_iter().map(|table| {
            format!(
                "DROP TABLE IF EXISTS {table};
                 CREATE TABLE {table} (source TEXT NOT NULL, number BIGINT NOT NULL, time TIMESTAMPTZ NOT NULL,
                                       value DOUBLE PRECISION, body TEXT);"
            )
        });
        tables.collect()
    }

    /// One topic for each table.
    fn fill(&self, options: &Options) -> Result<()> {
        let client = options.servers.kafka();
        let mut json = Vec::new();
        write_json(0, 0, &mut json);
        let body = self.bytes.saturating_sub(json.len());
        for topic in self.tables() {
            let count = self.records() / self.tables;
            kafka::fill(&client, &topic, self.partitions, count, |n, json| write_json(n, body, json))?;
        }
        Ok(())
    }

    fn configuration(&self) -> String {
        let models =
            self.tables().into_iter().map(|t| format!("\n[[model]]\ntopic = \"{t}\"\ntable = \"{t}\"\n"));
        format!("pipeline = \"scale\"\nkafka.start = \"earliest\"\n{}", models.collect::<String>())
    }
}

/// A record whose body is noise that no compression makes shorter.
fn write_json(number: u64, body: usize, json: &mut Vec<u8>) {
    let random = mix(number);
    let (source, second, micros) = (random % 100, number / 1_000_000 % 60, number % 1_000_000);
    json.extend_from_slice(
        format!(
            r#"{{"source":"collector-{source:03}","number":{number},"time":"2026-01-01T00:00:{second:02}.{micros:06}Z","value":{},"body":""#,
            (random >> 40) as f64 / 100.0
        )
        .as_bytes(),
    );
    let mut word = random;
    let noise = std::iter::from_fn(|| {
        word = mix(word);
        Some(format!("{word:016x}").into_bytes())
    });
    json.extend(noise.flatten().take(body));
    json.extend_from_slice(b"\"}");
}

fn write_results(options: &Options, directory: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut csv = String::from(
        "round,case,records,rows_per_second,own_cpu_seconds_per_million,machine_cpu_seconds_per_million,rss_peak_mb\n",
    );
    for o in outcomes {
        csv.push_str(&format!(
            "{},{},{},{:.0},{:.3},{:.3},{:.1}\n",
            o.round,
            o.case.name().replace(',', " and"),
            o.records,
            o.rows_per_second,
            o.own_cpu,
            o.machine_cpu,
            o.rss_peak_mb
        ));
    }
    fs::write(directory.join("runs.csv"), csv)?;
    let summary = summary(options, outcomes)?;
    fs::write(directory.join("summary.md"), &summary)?;
    println!("\n{summary}\nwritten to {}", directory.display());
    Ok(())
}

fn summary(options: &Options, outcomes: &[Outcome]) -> Result<String> {
    let mut text = format!(
        "# Scale, {} rounds\n\nThe base: {} partitions, one topic and table, {} bytes a record, one process. Each case differs \
         from it as it says. Medians; CPU-seconds are per million records; memory is the largest process's peak.\n\n\
         | case | records | rows/s | of the base | MB/s | own CPU-s | machine's | peak MB |\n|---|---|---|---|---|---|---|---|\n",
        options.rounds, BASE.partitions, BASE.bytes
    );
    for case in CASES.iter().filter(|case| outcomes.iter().any(|o| o.case == **case)) {
        let of = |f: &dyn Fn(&Outcome) -> f64| {
            median(&outcomes.iter().filter(|o| o.case == *case).map(f).collect::<Vec<_>>())
        };
        let rate = of(&|o| o.rows_per_second);
        text.push_str(&format!(
            "| {} | {} | {rate:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.0} |\n",
            case.name(),
            case.records(),
            of(&|o| o.of_base),
            rate * case.bytes as f64 / 1e6,
            of(&|o| o.own_cpu),
            of(&|o| o.machine_cpu),
            of(&|o| o.rss_peak_mb),
        ));
    }
    text.push_str(&conditions(&mut options.servers.postgres()?, "scale")?);
    Ok(text)
}
