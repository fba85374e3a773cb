//! Judges a run that has ended, and puts together what is known of it.

use std::path::Path;

use hdrhistogram::serialization::V2DeflateSerializer;
use serde_json::{Value, json};

use crate::base::hash::mix;
use crate::base::signals;
use crate::judge::summary::{Drained, Measured, OfModel, SCHEMA, Summary};
use crate::judge::verdict::{self, Exit, Facts, Reason};
use crate::judge::verify::{Outcomes, Sent};
use crate::measure::latency::{LATENCIES, Recorder};
use crate::measure::results::Results;
use crate::measure::tally::Tally;
use crate::plan::options::Plan;
use crate::server::pg::ClockOffset;
use crate::tell::hdr;
use crate::verb::run::reporter::Reporter;
use crate::verb::run::setup::Setup;
use crate::watch::observe;

#[expect(clippy::too_many_arguments, reason = "everything that a run has come to ends here")]
pub fn summarize(
    plan: &Plan,
    directory: &Path,
    setup: Option<Setup>,
    offset_after: ClockOffset,
    users_present: Option<usize>,
    outcomes: Outcomes,
    drained: Drained,
    reporter: Reporter,
    error: Option<String>,
    sent: &Sent,
) -> Summary {
    let facts = reporter.facts();
    let reasons = verdict::reasons(&facts);
    let results = reporter.results(&outcomes.tally(), &drained, &facts);
    let thresholds: Vec<(String, Option<bool>)> =
        plan.args.threshold.iter().map(|t| (t.to_string(), t.holds(&results))).collect();
    let violations = match plan.args.verify {
        _ if setup.is_none() => Vec::new(),
        _ => verdict::violations(&outcomes.tally(), plan.args.delivery),
    };
    let exit = verdict::exit(
        error.is_some() || reporter.file_error().is_some(),
        signals::count() > 0,
        !violations.is_empty(),
        reasons.iter().any(|r| r.severity == verdict::Severity::Invalid),
        thresholds.iter().any(|(_, holds)| *holds != Some(true)),
    );
    let account_bytes = sent.accounts.iter().map(|a| a.bytes()).sum();
    summary(
        plan,
        directory,
        setup,
        offset_after,
        users_present,
        outcomes,
        drained,
        reporter,
        facts,
        reasons,
        results,
        thresholds,
        violations,
        exit,
        error,
        account_bytes,
    )
}

#[expect(clippy::too_many_arguments, reason = "everything that a run has come to ends here")]
fn summary(
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
