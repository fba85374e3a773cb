//! run.json: everything that was measured and decided, for programs. `schema` is raised when a member changes its meaning;
//! members may be added at any time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hdrhistogram::serialization::V2DeflateSerializer;
use serde::Serialize;
use serde_json::{Value, json};

use crate::hash::mix;
use crate::latency::{LATENCIES, Recorder, Summary as Percentiles};
use crate::observe;
use crate::options::Plan;
use crate::output::hdr;
use crate::pg::ClockOffset;
use crate::reporter::{Reporter, Totals};
use crate::results::Results;
use crate::run::{Drained, Setup};
use crate::tally::Tally;
use crate::users::Found;
use crate::verdict::{Exit, Facts, Reason};
use crate::verify::{Example, Outcomes};
use crate::words::{Depth, RowTimestamp};

pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    #[serde(flatten)]
    pub summary: Percentiles,
    pub overflow: u64,
    pub negative: u64,
    pub most_negative_us: i64,
    /// HdrHistogram, V2, compressed, base64: percentiles can be taken again and runs merged without loss.
    pub histogram: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct OfModel {
    pub model: String,
    pub table: &'static str,
    pub verification: Tally,
    pub latencies: Vec<(&'static str, Percentiles)>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub schema: u32,
    pub program: &'static str,
    pub version: &'static str,
    pub run: String,
    pub started_us: i64,
    pub elapsed_seconds: f64,
    #[serde(skip)]
    pub directory: PathBuf,
    pub exit: Exit,
    pub exit_code: u8,
    pub error: Option<String>,
    pub violations: Vec<String>,
    pub reasons: Vec<Reason>,
    pub thresholds: Vec<(String, Option<bool>)>,
    pub seed: u64,
    pub config: Value,
    /// Of what must be equal for two runs to be comparable.
    pub config_hash: String,
    pub machine: Vec<(String, String)>,
    pub versions: Vec<(String, String)>,
    pub postgres: Vec<(String, String)>,
    pub clock_before: ClockOffset,
    /// Of the readings while messages were sent, the most exact; none in a run of a few seconds.
    pub clock_during: Option<ClockOffset>,
    pub clock_after: ClockOffset,
    pub row_timestamp: RowTimestamp,
    pub users: Option<Found>,
    pub users_present_after: Option<usize>,
    pub facts: Facts,
    pub totals: Totals,
    pub drained: Drained,
    pub verification: Tally,
    pub verified: Depth,
    pub examples: Vec<Example>,
    pub results: Results,
    pub latencies: Vec<Measured>,
    pub models: Vec<OfModel>,
    pub accounting_bytes: usize,
}

#[expect(clippy::too_many_arguments, reason = "everything that a run has come to ends here")]
pub fn summary(
    plan: &Plan,
    directory: &Path,
    setup: Option<Setup>,
    clock_after: ClockOffset,
    users_present_after: Option<usize>,
    outcomes: Outcomes,
    drained: Drained,
    reporter: Reporter,
    facts: Facts,
    reasons: Vec<Reason>,
    results: Results,
    thresholds: Vec<(String, Option<bool>)>,
    violations: Vec<String>,
    exit: Exit,
    error: Option<String>,
    accounting_bytes: usize,
) -> Summary {
    let config = config(plan);
    Summary {
        schema: SCHEMA,
        program: "loadtester",
        version: env!("CARGO_PKG_VERSION"),
        run: format!("{:08x}", plan.run),
        started_us: reporter.clock.wall_us(0),
        elapsed_seconds: reporter.elapsed_s(),
        directory: directory.to_owned(),
        exit,
        exit_code: exit.code(),
        error: error.or_else(|| reporter.file_error()),
        violations,
        reasons,
        thresholds,
        seed: plan.args.user_flags.seed,
        config_hash: hash(&config),
        config,
        machine: observe::machine(),
        versions: versions(setup.as_ref()),
        postgres: setup.as_ref().map_or(Vec::new(), |s| s.settings.clone()),
        clock_before: setup.as_ref().map_or(ClockOffset::default(), |s| s.offset_before),
        clock_during: reporter.offset_during(),
        clock_after,
        row_timestamp: plan.args.row_timestamp,
        users: setup.as_ref().map(|s| s.users),
        users_present_after,
        facts,
        totals: reporter.final_totals(),
        drained,
        verification: outcomes.tally(),
        verified: plan.args.verify,
        examples: outcomes.examples,
        results,
        latencies: LATENCIES.iter().map(|l| measured(l.name(), &reporter.total(*l))).collect(),
        models: of_models(plan, &reporter, &outcomes.models),
        accounting_bytes,
    }
}

/// A broker does not tell its version; PostgreSQL's is among its settings.
fn versions(setup: Option<&Setup>) -> Vec<(String, String)> {
    let mut versions = vec![
        ("loadtester".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("librdkafka".to_owned(), rdkafka::util::get_rdkafka_version().1),
    ];
    versions.extend(setup.and_then(|s| s.redis_version.clone()).map(|v| ("redis".to_owned(), v)));
    versions
}

fn measured(name: &'static str, recorder: &Recorder) -> Measured {
    let histogram = hdr::encode(&mut V2DeflateSerializer::new(), &recorder.histogram).unwrap_or_default();
    Measured {
        name,
        summary: recorder.summary(),
        overflow: recorder.overflow,
        negative: recorder.negative,
        most_negative_us: recorder.most_negative_us,
        histogram,
    }
}

fn of_models(plan: &Plan, reporter: &Reporter, tallies: &[Tally]) -> Vec<OfModel> {
    let latencies =
        |model| LATENCIES.iter().map(|l| (l.name(), reporter.of_model(model, *l).summary())).collect();
    let models = plan.args.mix.0.iter().enumerate();
    models
        .map(|(at, (model, _))| OfModel {
            model: model.to_string(),
            table: model.table(),
            verification: tallies[at],
            latencies: latencies(at),
        })
        .collect()
}

/// What decides whether two runs measure the same thing. Addresses, names and secrets are not in it.
fn config(plan: &Plan) -> Value {
    let args = &plan.args;
    let mix: Vec<(String, f64)> =
        args.mix.0.iter().map(|(model, share)| (model.to_string(), *share)).collect();
    json!({
        "threads": args.threads,
        "shape_messages": plan.shape.messages().round(),
        "shape_seconds": plan.shape.seconds(),
        "shape_peak": plan.shape.peak(),
        "warmup_seconds": args.warmup.as_secs_f64(),
        "arrivals": format!("{:?}", args.arrivals),
        "mix": mix,
        "keys": format!("{:?}", args.keys),
        "users": args.user_flags.users,
        "payload_size": args.payload_size,
        "linger_ms": args.linger_ms,
        "tls": args.servers.tls,
        "kafka_properties": args.servers.kafka_property.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
        "verify": args.verify,
        "delivery": args.delivery,
        "probe_interval_ms": args.probe_interval.as_secs_f64() * 1000.0,
        "null": args.null,
    })
}

fn hash(config: &Value) -> String {
    let folded = config.to_string().bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    format!("{folded:016x}")
}

pub fn write(directory: &Path, summary: &Summary) -> Result<()> {
    let path = directory.join("run.json");
    let mut text = serde_json::to_string_pretty(summary).context("write run.json")?;
    text.push('\n');
    if let Err(error) = std::fs::write(&path, text) {
        // Half of it would only confuse the next reader.
        std::fs::remove_file(&path).ok();
        return Err(error)
            .with_context(|| format!("write {}; free some space, or choose another --out", path.display()));
    }
    let visible = summary.latencies.iter().find(|l| l.name == "visible");
    if let Some(visible) = visible.filter(|v| v.summary.count > 0) {
        hdr::write_spectrum(&directory.join("visible.hgrm"), &hdr::decode(&visible.histogram)?)?;
    }
    write_verification(&directory.join("verify.csv"), summary)
}

fn write_verification(path: &Path, summary: &Summary) -> Result<()> {
    let mut text = String::from("timestamp_ms,run,class,count,model\n");
    let each = summary.models.iter().map(|m| (m.model.as_str(), m.verification));
    for (model, tally) in [("all", summary.verification)].into_iter().chain(each) {
        for (class, count, _) in tally.classes() {
            text.push_str(&format!(
                "{},{},{class},{count},{model}\n",
                summary.started_us / 1000,
                summary.run
            ));
        }
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The run.json of a directory, or the file itself.
pub fn read(run: &Path) -> Result<Value> {
    let path = if run.is_dir() { run.join("run.json") } else { run.to_owned() };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}; give the directory of a finished run", path.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let schema = value["schema"].as_u64().unwrap_or(0);
    anyhow::ensure!(
        schema == u64::from(SCHEMA),
        "{} has schema {schema}; this program reads schema {SCHEMA}",
        path.display()
    );
    Ok(value)
}
