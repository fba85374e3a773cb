//! Judges a run that has ended, and puts together what is known of it.

use std::path::Path;

use hdrhistogram::serialization::V2DeflateSerializer;
use serde_json::{Value, json};

use crate::base::hash::mix;
use crate::base::signals;
use crate::judge::summary::{Drained, Measured, OfModel, SCHEMA, Summary};
use crate::judge::verdict::{self, Severity};
use crate::judge::verify::Sent;
use crate::measure::latency::{LATENCIES, Recorder, Set};
use crate::measure::tally::Tally;
use crate::plan::Plan;
use crate::server::pg::ClockOffset;
use crate::tell::hdr;
use crate::verb::run::account::Account;
use crate::verb::run::facts::facts;
use crate::verb::run::reporter::Reporter;
use crate::verb::run::results::results;
use crate::verb::run::setup::Setup;
use crate::watch::observe;

/// What a run leaves to be judged.
pub struct Ended<'a> {
    /// `None` where nothing was sent anywhere.
    pub setup: Option<&'a Setup>,
    pub sent: &'a Sent,
    pub account: Account,
    pub drained: Drained,
    pub reporter: &'a Reporter,
    pub error: Option<String>,
}

pub fn summarize(plan: &Plan, directory: &Path, ended: Ended<'_>) -> Summary {
    let Ended { setup, sent, account, drained, reporter, error } = ended;
    let (args, readings, tally) = (&plan.args, &reporter.readings, account.outcomes.tally());
    let total = &readings.counts.total;
    let facts = facts(readings, f64::INFINITY);
    let reasons = verdict::reasons(&facts);
    let results = results(readings, &tally, &drained, &facts);
    let thresholds: Vec<_> = args.threshold.iter().map(|t| (t.to_string(), t.holds(&results))).collect();
    let violations = setup.map_or(Vec::new(), |_| verdict::violations(&tally, args.delivery));
    let error = error.or_else(|| reporter.file_error());
    let exit = verdict::exit(
        error.is_some(),
        signals::count() > 0,
        !violations.is_empty(),
        reasons.iter().any(|r| r.severity == Severity::Invalid),
        thresholds.iter().any(|(_, holds)| *holds != Some(true)),
    );
    let config = config(plan);
    Summary {
        schema: SCHEMA,
        program: "loadtester",
        version: env!("CARGO_PKG_VERSION"),
        run: format!("{:08x}", plan.run),
        started_us: readings.clock.wall_us(0),
        elapsed_seconds: reporter.elapsed_s(),
        directory: directory.to_owned(),
        exit,
        exit_code: exit.code(),
        error,
        violations,
        reasons,
        thresholds,
        seed: args.user_flags.seed,
        config_hash: hash(&config),
        config,
        machine: observe::machine(),
        versions: versions(setup),
        postgres: setup.map_or(Vec::new(), |setup| setup.settings.clone()),
        clock_before: setup.map_or(ClockOffset::default(), |setup| setup.offset_before),
        clock_during: readings.server.offset(),
        clock_after: account.clock_after,
        row_timestamp: args.row_timestamp,
        users: setup.map(|setup| setup.users),
        users_present_after: account.users_present,
        facts,
        totals: readings.counts.totals(),
        drained,
        verification: tally,
        verified: args.verify,
        latencies: LATENCIES.iter().map(|l| measured(l.name(), &total.all(*l))).collect(),
        models: of_models(plan, total, &account.outcomes.models),
        examples: account.outcomes.examples,
        results,
        accounting_bytes: sent.accounts.iter().map(|account| account.bytes()).sum(),
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

fn of_models(plan: &Plan, total: &Set, tallies: &[Tally]) -> Vec<OfModel> {
    let latencies = |model| LATENCIES.iter().map(|l| (l.name(), total.get(model, *l).summary())).collect();
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
