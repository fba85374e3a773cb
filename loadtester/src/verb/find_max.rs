//! `--find-max`: the highest rate that holds. Doubles until a step fails, then halves the distance. Each step is a run of
//! its own, drained before the next, so that no step inherits the backlog of the one before.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::base::quantity::show_count;
use crate::base::signals;
use crate::judge::summary::Summary;
use crate::judge::verdict::Exit;
use crate::measure::results::Results;
use crate::plan::Plan;
use crate::plan::shape::Shape;
use crate::tell::terminal;
use crate::verb::run;

/// The search itself, without the runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    precision: f64,
    /// The highest rate that passed.
    pub passed: Option<f64>,
    /// The lowest rate that failed.
    pub failed: Option<f64>,
    next: f64,
}

impl Search {
    pub fn new(first: f64, precision: f64) -> Self {
        Self { precision, passed: None, failed: None, next: first }
    }

    /// The rate to try, or `None` when the bracket is narrow enough, or no rate passes at all.
    pub fn next(&self) -> Option<f64> {
        match (self.passed, self.failed) {
            (Some(passed), Some(failed)) if failed / passed - 1.0 <= self.precision => None,
            (None, Some(failed)) if failed < 2.0 => None,
            _ => Some(self.next),
        }
    }

    pub fn note(&mut self, rate: f64, passed: bool) {
        if passed {
            self.passed = Some(self.passed.map_or(rate, |p| p.max(rate)));
        } else {
            self.failed = Some(self.failed.map_or(rate, |f| f.min(rate)));
        }
        self.next = match (self.passed, self.failed) {
            (Some(passed), Some(failed)) => (passed + failed) / 2.0,
            (Some(passed), None) => passed * 2.0,
            (None, Some(failed)) => failed / 2.0,
            (None, None) => self.next,
        };
    }
}

/// Why a step failed; `None` where it passed.
pub fn failure(results: &Results, exit: Exit) -> Option<String> {
    let get = |name: &str| results.get(name).copied().unwrap_or(0.0);
    match exit {
        Exit::Error => return Some("the run could not be completed".to_owned()),
        Exit::Invalid => return Some("the generator, not the consumer, was at its limit".to_owned()),
        Exit::Incorrect => return Some("messages were lost, doubled, swapped or altered".to_owned()),
        Exit::Threshold => return Some("a threshold was missed".to_owned()),
        Exit::Interrupted => return Some("interrupted".to_owned()),
        Exit::Passed => {}
    }
    if get("failed") > 0.0 {
        return Some(format!("{:.0} messages were not taken by Kafka", get("failed")));
    }
    // A backlog grows where its slope is above zero by more than chance, and by more than a thousandth of the rate.
    let (slope, error) = (get("backlog_slope"), get("backlog_slope_error"));
    if slope - 2.0 * error > 0.001 * get("achieved_rate") {
        return Some(format!("the backlog grew by {slope:.0} messages a second"));
    }
    None
}

const COLUMNS: &str = "step,offered_rate,achieved_rate,stored_rate,passed,visible_p50_us,visible_p90_us,visible_p99_us,visible_p999_us,visible_max_us,backlog_slope,drain_seconds,consumer_cpu_percent,host_cpu_percent,reason";

pub fn find_max(plan: Plan) -> Result<Exit> {
    let directory = run::directory(&plan)?;
    let mut search = Search::new(plan.args.rate.0, plan.args.precision);
    let path = directory.join("find_max.csv");
    let mut csv = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    writeln!(csv, "{COLUMNS}").with_context(|| format!("write {}", path.display()))?;
    let mut step = 0;
    let mut last_failure = String::new();
    while let Some(rate) = search.next() {
        step += 1;
        let (passed, reason) = hold(&plan, &directory, &mut csv, step, rate, 1.0)?;
        if signals::count() > 0 {
            return Ok(Exit::Interrupted);
        }
        if !passed {
            last_failure = reason;
        }
        search.note(rate, passed);
    }
    // The rate found must hold for longer than one step.
    while let Some(rate) = search.passed {
        step += 1;
        println!("\nconfirming {rate:.0}/s for twice as long");
        let (passed, reason) = hold(&plan, &directory, &mut csv, step, rate, 2.0)?;
        if passed || signals::count() > 0 {
            break;
        }
        last_failure = reason;
        search.failed = Some(rate);
        search.passed = Some(rate * (1.0 - plan.args.precision)).filter(|r| *r >= 1.0);
    }
    match search.passed {
        Some(passed) => {
            let failed =
                search.failed.map_or("the next rate".to_owned(), |f| format!("{}/s", show_count(f as u64)));
            println!(
                "\nthe highest rate that holds: {}/s; {failed} does not: {last_failure}",
                show_count(passed as u64)
            );
        }
        None => println!("\nno rate holds: {last_failure}"),
    }
    println!("steps     {}", path.display());
    if !last_failure.is_empty() {
        println!("which resource was at its limit stands in the report.html of the steps that did not hold");
    }
    Ok(if signals::count() > 0 {
        Exit::Interrupted
    } else if search.passed.is_some() {
        Exit::Passed
    } else {
        Exit::Threshold
    })
}

fn hold(
    plan: &Plan,
    directory: &Path,
    csv: &mut std::fs::File,
    step: u32,
    rate: f64,
    times: f64,
) -> Result<(bool, String)> {
    let mut plan = plan.clone();
    plan.run = plan.run.wrapping_add(step);
    plan.shape = Shape::constant(rate, plan.args.duration.as_secs_f64() * times);
    let directory = directory.join(format!("step-{step:02}-{rate:.0}"));
    std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    println!("\nstep {step}: {rate:.0}/s");
    let summary = run::run(&plan, &directory)?;
    let failure = failure(&summary.results, summary.exit);
    match &failure {
        None => println!("step {step}: {rate:.0}/s holds"),
        Some(reason) => {
            println!("step {step}: {rate:.0}/s does not hold: {reason}");
            terminal::reasons(&summary).iter().for_each(|line| println!("  {line}"));
            let result = |name: &str| summary.results.get(name).map_or("?".to_owned(), |v| format!("{v:.0}"));
            println!(
                "  the machine was {} % busy, the consumer used {} % of a core",
                result("host_cpu_percent"),
                result("consumer_cpu_percent")
            );
        }
    }
    write_row(csv, step, rate, &summary, failure.as_deref()).context("write find_max.csv")?;
    Ok((failure.is_none(), failure.unwrap_or_default()))
}

fn write_row(
    csv: &mut std::fs::File,
    step: u32,
    rate: f64,
    summary: &Summary,
    failure: Option<&str>,
) -> std::io::Result<()> {
    let cell = |name: &str| summary.results.get(name).map_or(String::new(), |v| format!("{v:.1}"));
    let names = [
        "visible_p50",
        "visible_p90",
        "visible_p99",
        "visible_p999",
        "visible_max",
        "backlog_slope",
        "drain_seconds",
        "consumer_cpu_percent",
        "host_cpu_percent",
    ];
    let cells: Vec<String> = names.iter().map(|name| cell(name)).collect();
    writeln!(
        csv,
        "{step},{rate:.1},{},{},{},{},\"{}\"",
        cell("achieved_rate"),
        cell("stored_rate"),
        failure.is_none(),
        cells.join(","),
        failure.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for a known limit and returns the bracket and the number of steps.
    fn search(first: f64, limit: f64) -> (Search, usize) {
        let mut search = Search::new(first, 0.05);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            search.note(rate, rate <= limit);
            steps += 1;
            assert!(steps < 50);
        }
        (search, steps)
    }

    #[test]
    fn the_limit_is_bracketed() {
        for (first, limit) in [(1000.0, 70_000.0), (1000.0, 1000.0), (50_000.0, 1234.0), (8.0, 3.0)] {
            let (search, steps) = search(first, limit);
            let (passed, failed) = (search.passed.unwrap(), search.failed.unwrap());
            assert!(passed <= limit && limit < failed && failed / passed <= 1.05, "{search:?}");
            assert!(steps < 20, "{steps}");
        }
        assert_eq!(search(1000.0, 0.0).0.passed, None);
    }

    #[test]
    fn a_growing_backlog_fails_a_step() {
        let results = |slope: f64, error: f64| {
            Results::from([
                ("achieved_rate".into(), 1000.0),
                ("backlog_slope".into(), slope),
                ("backlog_slope_error".into(), error),
            ])
        };
        let rows =
            [(0.0, 1.0, true), (-50.0, 1.0, true), (0.9, 0.0, true), (5.0, 1.0, false), (5.0, 3.0, true)];
        for (slope, error, passes) in rows {
            assert_eq!(failure(&results(slope, error), Exit::Passed).is_none(), passes, "{slope} {error}");
        }
        assert!(failure(&results(0.0, 0.0), Exit::Invalid).is_some());
    }
}
