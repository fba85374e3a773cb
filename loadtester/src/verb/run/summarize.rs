//! Judges a run that has ended, and puts together what is known of it.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use hdrhistogram::serialization::V2DeflateSerializer;
use serde_json::{Value, json};

use crate::base::hash::mix;
use crate::base::signals;
use crate::judge::aggregate::OfAggregate;
use crate::judge::summary::{Drained, Measured, OfModel, OfReader, SCHEMA, Summary};
use crate::judge::verdict::{self, Beside, Severity};
use crate::judge::verify::Sent;
use crate::measure::latency::{LATENCIES, Latency, Recorder, Set};
use crate::measure::results::Results;
use crate::measure::tally::Tally;
use crate::plan::Plan;
use crate::plan::words::Depth;
use crate::send::courier::Answers;
use crate::send::reader;
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
    pub answers: Answers,
    pub readers: Vec<reader::Finished>,
    pub aggregates: Vec<OfAggregate>,
    pub drained: Drained,
    pub reporter: &'a Reporter,
    pub error: Option<String>,
}

pub fn summarize(plan: &Plan, directory: &Path, ended: Ended<'_>) -> Summary {
    let Ended { setup, sent, account, answers, readers, aggregates, drained, reporter, error } = ended;
    let (args, readings, tally) = (&plan.args, &reporter.readings, account.outcomes.tally());
    let total = &readings.counts.total;
    let facts = facts(readings, f64::INFINITY);
    let reasons = verdict::reasons(&facts);
    let results = results(readings, &tally, &aggregates, &drained, &facts);
    let mut thresholds: Vec<_> = args.threshold.iter().map(|t| (t.to_string(), t.holds(&results))).collect();
    thresholds.extend(refusals(&results, args.refused_max));
    let beside = beside(&results);
    let violations = setup.map_or(Vec::new(), |_| verdict::violations(&tally, &beside, args.delivery));
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
        users: setup.and_then(|setup| setup.users),
        users_present_after: account.users_present,
        facts,
        totals: readings.counts.totals(),
        drained,
        verification: tally,
        verified: if plan.has_tables() { args.verify } else { Depth::None },
        latencies: LATENCIES.iter().map(|l| measured(l.name(), &total.all(*l))).collect(),
        models: of_models(plan, total, &account.outcomes.models),
        answers,
        readers: readers.iter().map(|reader| of_reader(reader, total)).collect(),
        aggregates,
        part: args.part,
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
    let models = plan.mix.0.iter().enumerate();
    models
        .map(|(at, (model, _))| OfModel {
            model: model.to_string(),
            table: model.table_name().to_owned(),
            verification: tallies[at],
            latencies: latencies(at),
            histograms: histograms(total, at, &LATENCIES),
        })
        .collect()
}

/// Those that saw something.
fn histograms(total: &Set, row: usize, latencies: &[Latency]) -> Vec<Measured> {
    let used = latencies.iter().filter(|latency| !total.get(row, **latency).is_empty());
    used.map(|latency| measured(latency.name(), total.get(row, *latency))).collect()
}

fn of_reader(finished: &reader::Finished, total: &Set) -> OfReader {
    let counters = &finished.counters;
    let latencies = [Latency::Answer, Latency::Behind];
    OfReader {
        reader: finished.reader.name.clone(),
        asked: counters.asked.load(Relaxed),
        answers: finished.answers.clone(),
        wrong: counters.wrong.load(Relaxed),
        examples: finished.examples.clone(),
        latencies: latencies.iter().map(|l| (l.name(), total.get(finished.row, *l).summary())).collect(),
        histograms: histograms(total, finished.row, &latencies),
    }
}

/// A server that says no to many is no success, however quickly it says it: a condition of every run.
fn refusals(results: &Results, most: f64) -> Vec<(String, Option<bool>)> {
    let too_many = |name: &&str| results.get(*name).is_some_and(|ratio| *ratio > most);
    let names = ["refused_ratio", "unacknowledged_ratio", "unanswered_ratio"].into_iter().filter(too_many);
    names.map(|name| (format!("{name}<={}% (--refused-max)", most * 100.0), Some(false))).collect()
}

fn beside(results: &Results) -> Beside {
    let count = |name: &str| results.get(name).map_or(0, |n| *n as u64);
    Beside {
        answers: count("wrong"),
        missing: count("aggregate_missing"),
        surplus: count("aggregate_surplus"),
        values: count("aggregate_wrong"),
    }
}

/// What decides whether two runs measure the same thing. Addresses, names and secrets are not in it.
fn config(plan: &Plan) -> Value {
    let args = &plan.args;
    let mix: Vec<(String, f64)> =
        plan.mix.0.iter().map(|(model, share)| (model.to_string(), *share)).collect();
    let mut config = json!({
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
    });
    // Runs that use none of it are comparable with those of before there was any.
    if plan.own_models {
        let text = args.scenario.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
        config["scenario"] = hash(&json!(text.unwrap_or_default())).into();
    }
    if !plan.is_to_kafka_only() {
        config["connections"] = args.connections.into();
        config["batch"] = args.batch.into();
        config["retries"] = args.retries.into();
        config["retry_unknown"] = args.retry_unknown.into();
    }
    if let Some((_, parts)) = args.part {
        config["parts"] = parts.into();
    }
    config
}

fn hash(config: &Value) -> String {
    let folded = config.to_string().bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    format!("{folded:016x}")
}
