//! Puts the results of the parts of one run together: counts and rates are added, histograms are added and percentiles taken again,
//! and the verdict is drawn from the whole. Percentiles are never averaged.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use serde_json::{Map, Value, json};

use crate::base::quantity::show_us;
use crate::judge::verdict::{self, Beside, Exit, Severity};
use crate::measure::columns::{File, Kind};
use crate::measure::condition::Threshold;
use crate::measure::latency::{LATENCIES, Recorder};
use crate::measure::results::Results;
use crate::measure::tally::Tally;
use crate::plan::options::MergeArgs;
use crate::plan::words::Delivery;
use crate::tell::{csv, hdr, html, json as run_json};

pub fn merge(args: &MergeArgs) -> Result<Exit> {
    let runs = args.parts.iter().map(|part| run_json::read(part)).collect::<Result<Vec<_>>>()?;
    check(&runs)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let merged = merged(&runs)?;
    let exit = merged["exit_code"].as_u64().unwrap_or(1);
    write(args, &runs, &merged)?;
    print(&merged);
    println!("report    {}", args.out.join("report.html").display());
    Ok(exit_of(exit))
}

/// Parts of one run, each once.
fn check(runs: &[Value]) -> Result<()> {
    let mut parts = Vec::new();
    for run in runs {
        let part = &run["part"];
        let (Some(part), Some(of)) = (part[0].as_u64(), part[1].as_u64()) else {
            bail!("run {} is no part of another; only runs with --part can be put together", run["run"]);
        };
        ensure!(of == runs.len() as u64, "there are {of} parts, and {} were given", runs.len());
        ensure!(!parts.contains(&part), "part {part} was given twice");
        ensure!(
            run["run"] == runs[0]["run"] && run["config_hash"] == runs[0]["config_hash"],
            "part {part} belongs to another run, or was started with other flags"
        );
        parts.push(part);
    }
    Ok(())
}

fn merged(runs: &[Value]) -> Result<Value> {
    let mut whole = runs[0].clone();
    let tally = sum_of_tallies(runs.iter().map(|run| &run["verification"]));
    let latencies = latencies(runs.iter().map(|run| &run["latencies"]))?;
    let results = results(runs, &tally, &latencies);
    let mut reasons = reasons(runs);
    reasons.extend(clocks(runs));
    let violations = violations(runs, &tally, &results)?;
    let thresholds = thresholds(runs, &results);
    let exit = exit(runs, &violations, &reasons, &thresholds);
    let member = |name: &str| runs.iter().map(|run| run[name].clone()).collect::<Vec<_>>();
    let numbers = |name: &str| member(name).iter().filter_map(Value::as_f64).collect::<Vec<_>>();
    let set: [(&str, Value); 20] = [
        ("parts", json!(runs.len())),
        ("part", Value::Null),
        ("started_us", json!(numbers("started_us").into_iter().fold(f64::MAX, f64::min) as i64)),
        ("elapsed_seconds", json!(numbers("elapsed_seconds").into_iter().fold(0.0, f64::max))),
        ("exit", json!(exit)),
        ("exit_code", json!(exit.code())),
        ("error", member("error").into_iter().find(|error| !error.is_null()).unwrap_or(Value::Null)),
        ("violations", json!(violations)),
        ("reasons", json!(reasons)),
        ("thresholds", json!(thresholds)),
        ("verification", json!(tally)),
        ("results", json!(results)),
        (
            "latencies",
            json!(latencies.iter().map(|(name, recorder)| shown(name, recorder)).collect::<Vec<_>>()),
        ),
        ("totals", sums(runs.iter().map(|run| &run["totals"]))),
        ("answers", sums(runs.iter().map(|run| &run["answers"]))),
        ("models", of_each(runs, "models", "model")?),
        ("readers", of_each(runs, "readers", "reader")?),
        (
            "examples",
            json!(member("examples").iter().filter_map(Value::as_array).flatten().collect::<Vec<_>>()),
        ),
        ("machines", json!(member("machine"))),
        ("accounting_bytes", json!(numbers("accounting_bytes").iter().sum::<f64>() as u64)),
    ];
    for (name, value) in set {
        whole[name] = value;
    }
    Ok(whole)
}

/// What one part has seen of all others' rows and letters is not added up.
fn sum_of_tallies<'a>(tallies: impl Iterator<Item = &'a Value>) -> Tally {
    let mut all = Tally::default();
    for value in tallies {
        let tally: Tally = serde_json::from_value(value.clone()).unwrap_or_default();
        let (foreign, letters) = (all.foreign.max(tally.foreign), all.dead_letters.max(tally.dead_letters));
        all.add(&tally);
        (all.foreign, all.dead_letters) = (foreign, letters);
    }
    all
}

/// Histograms by name, added.
fn latencies<'a>(lists: impl Iterator<Item = &'a Value>) -> Result<Vec<(&'static str, Recorder)>> {
    let mut all: Vec<(&'static str, Recorder)> =
        LATENCIES.iter().map(|latency| (latency.name(), Recorder::default())).collect();
    for entry in lists.filter_map(Value::as_array).flatten() {
        let found = all.iter_mut().find(|(name, _)| entry["name"] == **name);
        let Some((_, recorder)) = found else { continue };
        let number = |name: &str| entry[name].as_i64().unwrap_or(0);
        let histogram = entry["histogram"].as_str().unwrap_or_default();
        recorder.merge(&Recorder {
            histogram: if histogram.is_empty() {
                Recorder::default().histogram
            } else {
                hdr::decode(histogram)?
            },
            overflow: number("overflow") as u64,
            negative: number("negative") as u64,
            most_negative_us: number("most_negative_us"),
        });
    }
    Ok(all)
}

fn shown(name: &str, recorder: &Recorder) -> Value {
    let mut value = json!(recorder.summary());
    value["name"] = json!(name);
    value["overflow"] = json!(recorder.overflow);
    value["negative"] = json!(recorder.negative);
    value["most_negative_us"] = json!(recorder.most_negative_us);
    let histogram = hdr::encode(&mut V2DeflateSerializer::new(), &recorder.histogram).unwrap_or_default();
    value["histogram"] = json!(histogram);
    value
}

/// Numbers of the same name, added.
fn sums<'a>(objects: impl Iterator<Item = &'a Value>) -> Value {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for (name, value) in objects.filter_map(Value::as_object).flatten() {
        *all.entry(name.clone()).or_default() += value.as_u64().unwrap_or(0);
    }
    json!(all)
}

/// The models, or the readers, of all parts, by their name.
fn of_each(runs: &[Value], list: &str, name: &str) -> Result<Value> {
    let mut all: Vec<Value> = Vec::new();
    for first in runs[0][list].as_array().into_iter().flatten() {
        let same =
            |run: &Value| run[list].as_array()?.iter().find(|other| other[name] == first[name]).cloned();
        let parts: Vec<Value> = runs.iter().filter_map(same).collect();
        let mut whole = first.clone();
        if first["verification"].is_object() {
            whole["verification"] = json!(sum_of_tallies(parts.iter().map(|part| &part["verification"])));
        }
        if first["answers"].is_object() {
            whole["answers"] = sums(parts.iter().map(|part| &part["answers"]));
            for count in ["asked", "wrong"] {
                whole[count] = json!(parts.iter().filter_map(|part| part[count].as_u64()).sum::<u64>());
            }
        }
        let histograms = latencies(parts.iter().map(|part| &part["histograms"]))?;
        let known = |(name, _): &&(&str, Recorder)| {
            first["latencies"].as_array().is_some_and(|all| all.iter().any(|pair| pair[0] == **name))
        };
        whole["latencies"] = histograms
            .iter()
            .filter(known)
            .map(|(name, recorder)| json!([name, recorder.summary()]))
            .collect();
        whole["histograms"] = histograms.iter().filter(known).map(|(name, r)| shown(name, r)).collect();
        all.push(whole);
    }
    Ok(json!(all))
}

/// Results that add up over parts; of the others the largest is the whole's.
const ADDED: [&str; 20] = [
    "achieved_rate",
    "steady_sent",
    "backlog_max",
    "backlog_slope",
    "queue_full",
    "sent_bytes",
    "offered_rate",
    "acked_rate",
    "stored_rate",
    "probe_found_late",
    "row_negative",
    "refused",
    "retried",
    "connects",
    "no_room",
    "asked",
    "unanswered",
    "wrong",
    "aggregate_missing",
    "aggregate_surplus",
];

fn results(runs: &[Value], tally: &Tally, latencies: &[(&'static str, Recorder)]) -> Results {
    let mut results = Results::new();
    for (name, value) in runs.iter().filter_map(|run| run["results"].as_object()).flatten() {
        let value = value.as_f64().unwrap_or(0.0);
        let entry =
            results.entry(name.clone()).or_insert(if ADDED.contains(&name.as_str()) { 0.0 } else { value });
        *entry = if ADDED.contains(&name.as_str()) { *entry + value } else { entry.max(value) };
    }
    for (name, recorder) in latencies.iter().filter(|(_, recorder)| !recorder.is_empty()) {
        for (part, value) in recorder.summary().parts() {
            results.insert(format!("{name}_{part}"), value);
        }
    }
    for (class, count, _) in tally.classes() {
        results.insert(class.to_owned(), count as f64);
    }
    let total = |name: &str| runs.iter().filter_map(|run| run["totals"][name].as_f64()).sum::<f64>();
    let ratio = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
    results.insert("refused_ratio".to_owned(), ratio(total("refused"), total("sent")));
    if results.contains_key("unacknowledged_ratio") {
        let unknown = total("failed") + total("indeterminate");
        results.insert("unacknowledged_ratio".to_owned(), ratio(unknown, total("sent")));
    }
    results.insert("unanswered_ratio".to_owned(), ratio(total("unanswered"), total("asked")));
    // The part that kept to its schedule least speaks for all.
    let least = runs.iter().filter_map(|run| run["results"]["achieved_ratio"].as_f64()).fold(1.0, f64::min);
    results.insert("achieved_ratio".to_owned(), least);
    results
}

fn reasons(runs: &[Value]) -> Vec<Value> {
    let of_part = |run: &Value| {
        let part = run["part"][0].clone();
        let reasons = run["reasons"].as_array().cloned().unwrap_or_default();
        reasons.into_iter().map(move |mut reason| {
            reason["text"] = json!(format!("part {part}: {}", reason["text"].as_str().unwrap_or_default()));
            reason
        })
    };
    runs.iter().flat_map(of_part).collect()
}

/// Parts whose clocks differ: what depends on them says nothing.
fn clocks(runs: &[Value]) -> Option<Value> {
    // The server's clock is the same for all, so that the difference to it tells theirs.
    let offset = |run: &Value| {
        let clock = &run["clock_before"];
        let within = clock["within_us"].as_i64().filter(|within| *within > 0)?;
        Some((clock["offset_us"].as_i64()?, within))
    };
    let offsets: Vec<(i64, i64)> = runs.iter().filter_map(offset).collect();
    let (least, most) = (offsets.iter().map(|o| o.0).min()?, offsets.iter().map(|o| o.0).max()?);
    let within: i64 = offsets.iter().map(|o| o.1).max()?;
    if most - least <= 2 * within + APART_US {
        return None;
    }
    let reads = runs.iter().any(|run| run["readers"].as_array().is_some_and(|readers| !readers.is_empty()));
    let severity = if reads { Severity::Invalid } else { Severity::Warning };
    let text = format!(
        "the clocks of the parts are {} apart: counts, rates and `visible` do not depend on that; `behind`, `row` and times in \
         the data do",
        show_us((most - least) as f64)
    );
    Some(json!({ "severity": severity, "text": text }))
}

/// Clocks that are kept by the network's time are nearer to each other than this.
const APART_US: i64 = 50_000;

fn violations(runs: &[Value], tally: &Tally, results: &Results) -> Result<Vec<String>> {
    let count = |name: &str| results.get(name).map_or(0, |n| *n as u64);
    let beside = Beside {
        answers: count("wrong"),
        missing: count("aggregate_missing"),
        surplus: count("aggregate_surplus"),
        values: count("aggregate_wrong"),
    };
    let delivery = match runs[0]["config"]["delivery"].as_str() {
        Some("at-least-once") => Delivery::AtLeastOnce,
        _ => Delivery::ExactlyOnce,
    };
    Ok(verdict::violations(tally, &beside, delivery))
}

/// Each condition on the whole; one that is no condition on results holds if it held for every part.
fn thresholds(runs: &[Value], results: &Results) -> Vec<(String, Option<bool>)> {
    let mut all: Vec<(String, Option<bool>)> = Vec::new();
    for pair in runs.iter().filter_map(|run| run["thresholds"].as_array()).flatten() {
        let text = pair[0].as_str().unwrap_or_default().to_owned();
        if all.iter().any(|(known, _)| *known == text) {
            continue;
        }
        let holds = match text.parse::<Threshold>() {
            Ok(threshold) => threshold.holds(results),
            Err(_) => pair[1].as_bool(),
        };
        all.push((text, holds));
    }
    all
}

fn exit(
    runs: &[Value],
    violations: &[String],
    reasons: &[Value],
    thresholds: &[(String, Option<bool>)],
) -> Exit {
    let any = |code: u8| runs.iter().any(|run| run["exit_code"].as_u64() == Some(u64::from(code)));
    verdict::exit(
        any(Exit::Error.code()),
        any(Exit::Interrupted.code()),
        !violations.is_empty(),
        reasons.iter().any(|reason| reason["severity"] == "invalid"),
        thresholds.iter().any(|(_, holds)| *holds != Some(true)),
    )
}

fn exit_of(code: u64) -> Exit {
    let all = [Exit::Passed, Exit::Invalid, Exit::Incorrect, Exit::Threshold, Exit::Interrupted];
    all.into_iter().find(|exit| u64::from(exit.code()) == code).unwrap_or(Exit::Error)
}

fn write(args: &MergeArgs, runs: &[Value], merged: &Value) -> Result<()> {
    let out = &args.out;
    let mut text = serde_json::to_string_pretty(merged).context("write run.json")?;
    text.push('\n');
    let save = |name: &str, text: &str| {
        std::fs::write(out.join(name), text).with_context(|| format!("write {}", out.join(name).display()))
    };
    save("run.json", &text)?;
    // Machines are not added up: these are the first part's.
    for name in ["process.csv", "host.csv", "disk.csv", "net.csv"] {
        std::fs::copy(args.parts[0].join(name), out.join(name))
            .with_context(|| format!("copy {name} of the first part"))?;
    }
    let seconds = histograms(&args.parts)?;
    write_log(out, merged, &seconds)?;
    save("intervals.csv", &intervals(&args.parts, runs, &seconds)?)?;
    html::write(out)
}

/// By second and latency, of all parts.
type Seconds = BTreeMap<(i64, usize), Histogram<u64>>;

fn histograms(parts: &[std::path::PathBuf]) -> Result<Seconds> {
    let mut all = Seconds::new();
    for part in parts {
        for (at, latency) in LATENCIES.iter().enumerate() {
            for (second, histogram) in hdr::read(&part.join("latency.hlog"), latency.name())? {
                // Each part's seconds count from its own first message. One that is read from a file does not grow.
                let grows = || Histogram::new(3).expect("three digits are within the allowed range");
                let whole = all.entry((second.round() as i64, at)).or_insert_with(grows);
                whole.add(&histogram).context("add histograms")?;
            }
        }
    }
    Ok(all)
}

fn write_log(out: &Path, merged: &Value, seconds: &Seconds) -> Result<()> {
    let mut log = hdr::Log::create(out, merged["started_us"].as_i64().unwrap_or(0))?;
    for ((second, latency), histogram) in seconds {
        log.write_one(LATENCIES[*latency].name(), *second as f64, 1.0, histogram)?;
    }
    log.flush()
}

/// A row each second: counters and rates added, percentiles of the histograms, the database's own figures of whoever saw most.
fn intervals(parts: &[std::path::PathBuf], runs: &[Value], seconds: &Seconds) -> Result<String> {
    let columns = File::Intervals.columns();
    let mut rows: BTreeMap<i64, (String, Vec<Option<f64>>)> = BTreeMap::new();
    for (part, run) in parts.iter().zip(runs) {
        let table = csv::read(&part.join("intervals.csv"))?;
        let started_ms = run["started_us"].as_i64().unwrap_or(0) / 1000;
        let phase = table.column("phase").context("intervals.csv has a column \"phase\"")?;
        for row in &table.rows {
            let time_ms = csv::time_ms(&table.header[0], &row[0]).unwrap_or(0);
            let second = (time_ms - started_ms).div_euclid(1000);
            let (_, whole) =
                rows.entry(second).or_insert_with(|| (row[phase].clone(), vec![None; columns.len()]));
            for (column, cell) in columns.iter().zip(whole.iter_mut()) {
                let value = table.column(&column.csv).and_then(|at| row[at].parse::<f64>().ok());
                let Some(value) = value else { continue };
                let adds = column.csv.ends_with("_rate")
                    || column.csv == "backlog"
                    || column.kind == Kind::Counter && !column.csv.starts_with("pg_");
                *cell = Some(match *cell {
                    Some(before) if adds => before + value,
                    Some(before) => before.max(value),
                    None => value,
                });
            }
        }
    }
    take_percentiles(&mut rows, &columns, seconds);
    let mut text = String::from("timestamp_ms,run,host,phase");
    columns.iter().for_each(|column| text.push_str(&format!(",{}", column.csv)));
    text.push('\n');
    let started_ms = runs.iter().filter_map(|run| run["started_us"].as_i64()).min().unwrap_or(0) / 1000;
    let run = runs[0]["run"].as_str().unwrap_or_default();
    for (second, (phase, values)) in rows {
        text.push_str(&format!("{},{run},all,{phase}", started_ms + second * 1000));
        for (column, value) in columns.iter().zip(values) {
            text.push(',');
            text.push_str(&value.map_or(String::new(), |value| csv::number(value, column.unit)));
        }
        text.push('\n');
    }
    Ok(text)
}

fn take_percentiles(
    rows: &mut BTreeMap<i64, (String, Vec<Option<f64>>)>,
    columns: &[crate::measure::columns::Column],
    seconds: &Seconds,
) {
    for ((second, latency), histogram) in seconds {
        let Some((_, values)) = rows.get_mut(second) else { continue };
        let quantiles = [
            ("p50", 0.5),
            ("p75", 0.75),
            ("p90", 0.9),
            ("p95", 0.95),
            ("p99", 0.99),
            ("p999", 0.999),
            ("p9999", 0.9999),
        ];
        let mut set = |part: &str, value: f64| {
            let suffix = if part == "count" { "" } else { "_us" };
            let name = format!("{}_{part}{suffix}", LATENCIES[*latency].name());
            if let Some(at) = columns.iter().position(|column| column.csv == name) {
                values[at] = Some(value);
            }
        };
        for (part, quantile) in quantiles {
            set(part, histogram.value_at_quantile(quantile).min(histogram.max()) as f64);
        }
        set("min", histogram.min() as f64);
        set("mean", histogram.mean());
        set("max", histogram.max() as f64);
        set("count", histogram.len() as f64);
    }
}

fn print(merged: &Value) {
    println!("{} parts together: {}", merged["parts"], merged["exit"].as_str().unwrap_or_default());
    let empty = Vec::new();
    for line in merged["violations"].as_array().unwrap_or(&empty) {
        println!("  {}", line.as_str().unwrap_or_default());
    }
    for reason in merged["reasons"].as_array().unwrap_or(&empty) {
        println!(
            "  {}: {}",
            reason["severity"].as_str().unwrap_or_default(),
            reason["text"].as_str().unwrap_or_default()
        );
    }
    let results = merged["results"].as_object().cloned().unwrap_or_else(Map::new);
    let get = |name: &str| results.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    println!(
        "rate      offered {:.0}/s, sent {:.0}/s, acked {:.0}/s, stored {:.0}/s",
        get("offered_rate"),
        get("achieved_rate"),
        get("acked_rate"),
        get("stored_rate")
    );
    for latency in merged["latencies"].as_array().unwrap_or(&empty) {
        if latency["count"].as_u64().unwrap_or(0) == 0 {
            continue;
        }
        let part = |name: &str| show_us(latency[name].as_f64().unwrap_or(0.0));
        println!(
            "{:<14} p50 {} p99 {} max {}, {} messages",
            latency["name"].as_str().unwrap_or_default(),
            part("p50"),
            part("p99"),
            part("max"),
            latency["count"]
        );
    }
    println!(
        "messages  sent {:.0}, stored {:.0}, lost {:.0}, duplicated {:.0}, corrupted {:.0}, reordered {:.0}",
        get("sent"),
        get("stored"),
        get("lost"),
        get("duplicated"),
        get("corrupted"),
        get("reordered")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part with every second of these latencies.
    fn part(number: u64, of: u64, values: impl Iterator<Item = i64>) -> Value {
        let mut recorder = Recorder::default();
        values.for_each(|us| recorder.record(us));
        let visible = shown("visible", &recorder);
        let tally = Tally { sent: 10, acked: 9, stored: 8, lost: 1, foreign: 5, ..Tally::default() };
        json!({
            "run": "00000001", "config_hash": "x", "part": [number, of], "started_us": 5, "elapsed_seconds": 1.0,
            "verification": tally, "latencies": [visible.clone()], "reasons": [{"severity": "warning", "text": "late"}],
            "thresholds": [["visible_p99<1ms", true], ["lost<2", true]], "results": {"acked_rate": 10.0, "drain_seconds": number},
            "totals": {"sent": 10, "refused": 1}, "exit_code": 0, "config": {"delivery": "exactly-once"},
            "clock_before": {"offset_us": 0, "within_us": 10}, "readers": [], "examples": [], "answers": {"200": 4},
            "models": [{"model": "m", "verification": tally, "latencies": [["visible", recorder.summary()]], "histograms": [visible]}],
        })
    }

    #[test]
    fn parts_give_what_the_whole_gives() {
        let value = |n: i64| n * n % 99_991 + 1;
        let whole = {
            let mut recorder = Recorder::default();
            (0..10_000).for_each(|n| recorder.record(value(n)));
            recorder.summary()
        };
        let runs: Vec<Value> = (0..4)
            .map(|p| part(p + 1, 4, (0..10_000).filter(move |n| n % 4 == p as i64).map(value)))
            .collect();
        check(&runs).unwrap();
        let merged = merged(&runs).unwrap();
        let visible =
            &merged["latencies"].as_array().unwrap().iter().find(|l| l["name"] == "visible").unwrap();
        for (name, expected) in whole.parts() {
            let found = visible[name].as_f64().unwrap();
            assert!((found - expected).abs() <= expected * 1e-9, "{name}: {found} {expected}");
            let of_model = &merged["models"][0]["latencies"][0][1][name];
            assert_eq!(of_model.as_f64().unwrap(), found, "{name}");
        }
        assert_eq!(merged["verification"]["sent"], 40);
        assert_eq!(merged["verification"]["foreign"], 5, "strangers are the same for all");
        assert_eq!(
            (&merged["results"]["acked_rate"], &merged["results"]["drain_seconds"]),
            (&json!(40.0), &json!(4.0))
        );
        assert_eq!(merged["answers"]["200"], 16);
        assert_eq!(merged["results"]["refused_ratio"], 0.1);
        // Drawn from the whole: four lost are no longer fewer than two.
        assert_eq!(merged["thresholds"], json!([["visible_p99<1ms", false], ["lost<2", false]]));
        assert_eq!((&merged["exit_code"], &merged["violations"]), (&json!(98), &json!(["4 lost"])));
    }

    #[test]
    fn only_the_parts_of_one_run_fit_together() {
        let parts = |numbers: &[(u64, u64)]| -> Vec<Value> {
            numbers.iter().map(|(number, of)| part(*number, *of, 0..1)).collect()
        };
        assert!(check(&parts(&[(1, 2), (2, 2)])).is_ok());
        assert!(check(&parts(&[(1, 2), (1, 2)])).is_err());
        assert!(check(&parts(&[(1, 3), (2, 3)])).is_err());
        let mut other = parts(&[(1, 2), (2, 2)]);
        other[1]["run"] = json!("00000002");
        assert!(check(&other).is_err());
        other[1]["part"] = Value::Null;
        assert!(check(&other).is_err());
    }

    #[test]
    fn other_clocks_are_said_and_change_no_count() {
        let mut runs = vec![part(1, 2, 0..100), part(2, 2, 0..100)];
        let before = merged(&runs).unwrap();
        runs[1]["clock_before"]["offset_us"] = json!(-240_000_000);
        let after = merged(&runs).unwrap();
        for member in ["verification", "latencies", "totals"] {
            assert_eq!(before[member], after[member], "{member}");
        }
        let text = after["reasons"].to_string();
        assert!(text.contains("240.00 s apart") && text.contains("warning"), "{text}");
        runs[0]["readers"] = json!([{"reader": "r"}]);
        let read = merged(&runs).unwrap();
        assert_eq!(read["reasons"].as_array().unwrap().last().unwrap()["severity"], "invalid");
    }

    #[test]
    fn percentiles_never_pass_the_maximum() {
        for count in [1, 2, 20] {
            let runs = vec![part(1, 2, 0..count), part(2, 2, 1000..1000 + count)];
            let merged = merged(&runs).unwrap();
            let visible =
                &merged["latencies"].as_array().unwrap().iter().find(|l| l["name"] == "visible").unwrap();
            let values: Vec<u64> = ["min", "p50", "p99", "p9999", "max"]
                .iter()
                .map(|name| visible[*name].as_u64().unwrap())
                .collect();
            assert!(values.is_sorted(), "{values:?}");
        }
    }
}
