//! Two runs against each other, with what the noise between their seconds allows to say.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::judge::verdict::Exit;
use crate::measure::condition::FailOn;
use crate::plan::options::CompareArgs;
use crate::tell::{csv, hdr, json};

/// (result, per-second column, smallest difference that matters)
const COMPARED: [(&str, &str, f64); 17] = [
    ("stored_rate", "stored_rate", 1.0),
    ("achieved_rate", "sent_rate", 1.0),
    ("visible_p50", "visible_p50_us", 500.0),
    ("visible_p99", "visible_p99_us", 1000.0),
    ("visible_p999", "visible_p999_us", 2000.0),
    ("visible_max", "visible_max_us", 5000.0),
    ("row_p50", "row_p50_us", 500.0),
    ("row_p99", "row_p99_us", 1000.0),
    ("ack_p99", "ack_p99_us", 1000.0),
    ("acked_rate", "acked_rate", 1.0),
    ("answer_p50", "answer_p50_us", 500.0),
    ("answer_p99", "answer_p99_us", 1000.0),
    ("behind_p99", "behind_p99_us", 1000.0),
    ("refused_ratio", "", 0.001),
    ("backlog_max", "backlog", 100.0),
    ("consumer_cpu_percent", "", 2.0),
    ("consumer_rss_bytes_max", "", 2e6),
];

/// Percentiles of fewer messages than this say nothing that far out.
const COUNT_FOR_P999: f64 = 10_000.0;

struct Run {
    name: String,
    json: Value,
    intervals: Option<csv::Table>,
}

pub fn compare(args: &CompareArgs) -> Result<Exit> {
    let runs = args.runs.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let (new, bases) = runs.split_last().expect("two runs are required");
    for base in bases {
        if base.json["config_hash"] != new.json["config_hash"] && !args.force {
            bail!(
                "{} and {} were not run with the same configuration:\n{}compare them all the same with --force",
                base.name,
                new.name,
                differences(&base.json["config"], &new.json["config"])
            );
        }
    }
    println!("{:<24}{:>16}{:>16}{:>10}   95 % of the noise is within", "result", "before", "now", "change");
    let mut failed = Vec::new();
    for (name, column, least) in COMPARED {
        let before: Vec<f64> = bases.iter().filter_map(|b| result(b, name)).collect();
        let (false, Some(now)) = (before.is_empty(), result(new, name)) else { continue };
        if name.ends_with("p999")
            && bases.iter().chain([new]).any(|r| result(r, "visible_count").unwrap_or(0.0) < COUNT_FOR_P999)
        {
            println!("{name:<24} not compared: fewer than {COUNT_FOR_P999:.0} messages");
            continue;
        }
        let before = median(before);
        let noise = noise(bases, new, column);
        let change = if before == 0.0 { 0.0 } else { now / before - 1.0 };
        let matters = (now - before).abs() > least && noise.is_none_or(|n| (now - before).abs() > n);
        println!(
            "{name:<24}{before:>16.1}{now:>16.1}{:>+9.1} %   {}{}",
            change * 100.0,
            noise.map_or("unknown".to_owned(), |n| format!("{n:.1}")),
            if matters { "   <- differs" } else { "" }
        );
        failed.extend(
            args.fail_on
                .iter()
                .filter(|f| f.metric == name && f.fails(change) && matters)
                .map(FailOn::to_string),
        );
    }
    if let Some(distance) = bases.first().and_then(|base| distance(&base.json, &new.json)) {
        println!("distance of the `visible` distributions (Kolmogorov-Smirnov): {distance:.3}");
    }
    for condition in &args.fail_on {
        ensure!(
            COMPARED.iter().any(|(name, _, _)| *name == condition.metric),
            "\"{}\" is not compared",
            condition.metric
        );
    }
    for text in &failed {
        println!("failed: {text}");
    }
    Ok(if failed.is_empty() { Exit::Passed } else { Exit::Threshold })
}

fn read(path: &Path) -> Result<Run> {
    let json = json::read(path)?;
    let directory = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let intervals = csv::read(&directory.join("intervals.csv")).ok();
    Ok(Run { name: path.display().to_string(), json, intervals })
}

fn result(run: &Run, name: &str) -> Option<f64> {
    run.json["results"][name].as_f64()
}

fn differences(a: &Value, b: &Value) -> String {
    let empty = serde_json::Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let differ = a.iter().filter(|(name, value)| b.get(*name) != Some(value));
    differ
        .map(|(name, value)| format!("  {name}: {value} and {}\n", b.get(name).unwrap_or(&Value::Null)))
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How far the means of two runs' seconds lie apart by chance, 19 times in 20: Welch's error, with each run's count of
/// seconds cut down for seconds that resemble their neighbors.
fn noise(bases: &[Run], new: &Run, column: &str) -> Option<f64> {
    let base = bases.first()?;
    let (a, b) = (seconds(base, column)?, seconds(new, column)?);
    Some(1.96 * (error(&a)? + error(&b)?).sqrt())
}

fn seconds(run: &Run, column: &str) -> Option<Vec<f64>> {
    let table = run.intervals.as_ref()?;
    let (at, phase) = (table.column(column)?, table.column("phase")?);
    Some(
        table
            .rows
            .iter()
            .filter(|row| row[phase] == "steady")
            .filter_map(|row| row[at].parse().ok())
            .collect(),
    )
}

/// The squared standard error of the mean of a series whose neighbors are alike.
fn error(values: &[f64]) -> Option<f64> {
    if values.len() < 5 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    if variance == 0.0 {
        return Some(0.0);
    }
    let covariance: f64 = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / (n - 1.0);
    let likeness = (covariance / variance).clamp(0.0, 0.95);
    let effective = n * (1.0 - likeness) / (1.0 + likeness);
    Some(variance / effective)
}

/// The largest difference between two cumulated distributions.
fn distance(a: &Value, b: &Value) -> Option<f64> {
    let histogram = |run: &Value| {
        let found = run["latencies"].as_array()?.iter().find(|l| l["name"] == "visible")?;
        hdr::decode::<u64>(found["histogram"].as_str()?).ok().filter(|h| !h.is_empty())
    };
    let (a, b) = (histogram(a)?, histogram(b)?);
    let values = a.iter_recorded().chain(b.iter_recorded()).map(|v| v.value_iterated_to());
    Some(values.map(|v| (a.quantile_below(v) - b.quantile_below(v)).abs()).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_that_resemble_their_neighbors_count_less() {
        let random: Vec<f64> = (0..200).map(|n| crate::base::hash::unit(crate::base::hash::mix(n))).collect();
        let slow: Vec<f64> = (0..200).map(|n| (f64::from(n) / 30.0).sin()).collect();
        let independent = error(&random).unwrap() / (1.0 / 12.0 / 200.0);
        assert!((0.7..1.4).contains(&independent), "{independent}");
        assert!(error(&slow).unwrap() / (0.5 / 200.0) > 10.0);
        assert_eq!(error(&[1.0; 10]), Some(0.0));
        assert_eq!(error(&[1.0]), None);
    }
}
