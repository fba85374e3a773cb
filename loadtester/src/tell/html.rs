//! report.html: one page without any outside part, made from the files of a run directory; and the page that shows several
//! runs side by side.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::measure::tally::Tally;
use crate::tell::{csv, hdr, json as run_json};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
const COMPARISON: &str = include_str!("comparison.js");

/// Wider than this, neighboring seconds are put together: a browser draws a day as well as a minute.
const POINTS_MAX: usize = 1200;

pub fn write(directory: &Path) -> Result<()> {
    let run = run_json::read(directory)?;
    let title = format!("Load test {}", run["run"].as_str().unwrap_or_default());
    let page = page(&title, &data(directory, run)?, SCRIPT);
    save(&directory.join("report.html"), &page)
}

pub fn write_comparison(runs: &[PathBuf], html: &Path) -> Result<()> {
    let entry = |path: &PathBuf| {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let run = run_json::read(path)?;
        Ok(json!({ "name": name, "run": slim(run) }))
    };
    let runs = runs.iter().map(entry).collect::<Result<Vec<_>>>()?;
    save(html, &page("Load tests compared", &json!({ "runs": runs }), COMPARISON))?;
    println!("wrote {}", html.display());
    Ok(())
}

fn save(path: &Path, page: &str) -> Result<()> {
    if let Err(error) = std::fs::write(path, page) {
        std::fs::remove_file(path).ok();
        return Err(error)
            .with_context(|| format!("write {}; free some space, or choose another place", path.display()));
    }
    Ok(())
}

fn page(title: &str, data: &Value, script: &str) -> String {
    // JSON has a "<" in its strings only. "</" would end the script element, and "<!--" and "<script" would keep it from ending.
    let data = data.to_string().replace('<', "\\u003c");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main></main>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
}

/// Without the histograms, which the page does not need.
fn slim(mut run: Value) -> Value {
    for latency in run["latencies"].as_array_mut().into_iter().flatten() {
        if let Some(members) = latency.as_object_mut() {
            members.remove("histogram");
        }
    }
    run
}

fn data(directory: &Path, run: Value) -> Result<Value> {
    let intervals = Series::read(&directory.join("intervals.csv"))?;
    let started_ms = run["started_us"].as_f64().unwrap_or(0.0) / 1000.0;
    let seconds: Vec<f64> =
        intervals.times_ms.iter().map(|ms| ((ms - started_ms) / 100.0).round() / 10.0).collect();
    let step = seconds.len().div_ceil(POINTS_MAX).max(1);
    let pick = |values: Vec<Option<f64>>| values.into_iter().step_by(step).collect::<Vec<_>>();
    let mut series = Map::new();
    for name in [
        "offered_rate",
        "acked_rate",
        "stored_rate",
        "backlog",
        "visible_p50_us",
        "visible_p99_us",
        "visible_max_us",
        "ack_p99_us",
    ] {
        series.insert(name.to_owned(), json!(pick(intervals.values(name))));
    }
    series.insert("wal_written".to_owned(), json!(pick(intervals.per_second("pg_wal_bytes_total"))));
    // The other files may miss seconds; each is laid onto the intervals' times.
    let mut add = |name: &str, file: &Series, values: Vec<Option<f64>>| {
        series.insert(name.to_owned(), json!(pick(file.laid_onto(&intervals.times_ms, &values))));
    };
    let host = Series::read(&directory.join("host.csv"))?;
    add("host_cpu_percent", &host, host.values("host_cpu_percent"));
    for resource in ["cpu", "io", "memory"] {
        let waiting = host.per_second(&format!("host_pressure_{resource}_waiting_seconds_total"));
        add(
            &format!("pressure_{resource}"),
            &host,
            // The kernel adds to these counters at moments of its own.
            waiting.into_iter().map(|v| v.map(|s| (s * 100.0).min(100.0))).collect(),
        );
    }
    let process = Series::read(&directory.join("process.csv"))?;
    for name in ["process_cpu_percent", "process_resident_memory_bytes"] {
        add(name, &process, process.values(name));
    }
    add("process_written", &process, process.per_second("process_written_bytes_total"));
    let disk = Series::read_summed(&directory.join("disk.csv"))?;
    add("disk_written", &disk, disk.per_second("host_disk_written_bytes_total"));
    let phases: Vec<&String> = intervals.phases.iter().step_by(step).collect();
    Ok(json!({
        "seconds": seconds.into_iter().step_by(step).collect::<Vec<_>>(),
        "phases": phases,
        "series": series,
        "heat": heat(directory, step)?,
        "spectra": spectra(&run)?,
        "classes": classes(&run),
        "use": resources(&run, &intervals, &host, &process, &disk),
        "run": slim(run),
    }))
}

/// A CSV file as columns over time.
struct Series {
    table: csv::Table,
    times_ms: Vec<f64>,
    phases: Vec<String>,
}

impl Series {
    fn read(path: &Path) -> Result<Self> {
        let table = csv::read(path)?;
        let times_ms = table
            .rows
            .iter()
            .map(|row| csv::time_ms(&table.header[0], &row[0]).unwrap_or(0) as f64)
            .collect();
        let phase = table.column("phase").context("a file of a run has a column \"phase\"")?;
        let phases = table.rows.iter().map(|row| row[phase].clone()).collect();
        Ok(Self { table, times_ms, phases })
    }

    /// A file with several devices a second, added up.
    fn read_summed(path: &Path) -> Result<Self> {
        let mut series = Self::read(path)?;
        let mut rows: Vec<Vec<String>> = Vec::new();
        for row in std::mem::take(&mut series.table.rows) {
            match rows.last_mut().filter(|last| last[0] == row[0]) {
                Some(last) => {
                    for (sum, cell) in last.iter_mut().zip(&row).skip(5) {
                        if let (Ok(a), Ok(b)) = (sum.parse::<f64>(), cell.parse::<f64>()) {
                            *sum = (a + b).to_string();
                        }
                    }
                }
                None => rows.push(row),
            }
        }
        series.times_ms = rows
            .iter()
            .map(|row| csv::time_ms(&series.table.header[0], &row[0]).unwrap_or(0) as f64)
            .collect();
        series.phases = rows.iter().map(|row| row[3].clone()).collect();
        series.table.rows = rows;
        Ok(series)
    }

    fn values(&self, name: &str) -> Vec<Option<f64>> {
        let Some(at) = self.table.column(name) else { return vec![None; self.times_ms.len()] };
        self.table.rows.iter().map(|row| row[at].parse().ok()).collect()
    }

    /// The growth of a counter.
    fn per_second(&self, name: &str) -> Vec<Option<f64>> {
        let values = self.values(name);
        let growth = |at: usize| {
            let (before, now) = (values.get(at.checked_sub(1)?).copied()??, values[at]?);
            let seconds = (self.times_ms[at] - self.times_ms[at - 1]) / 1000.0;
            (seconds > 0.0 && now >= before).then(|| (now - before) / seconds)
        };
        (0..values.len()).map(growth).collect()
    }

    fn laid_onto(&self, times_ms: &[f64], values: &[Option<f64>]) -> Vec<Option<f64>> {
        let at = |time: &f64| {
            let place = self.times_ms.partition_point(|t| t < &(time - 400.0));
            self.times_ms
                .get(place)
                .filter(|t| (*t - time).abs() <= 400.0)
                .and(values.get(place).copied().flatten())
        };
        times_ms.iter().map(at).collect()
    }

    /// First and last known value of the steady phase.
    fn steady(&self, name: &str) -> Vec<f64> {
        let values = self.values(name);
        values
            .iter()
            .zip(&self.phases)
            .filter(|(_, phase)| *phase == "steady")
            .filter_map(|(v, _)| *v)
            .collect()
    }

    fn steady_growth(&self, name: &str) -> Option<f64> {
        let values = self.steady(name);
        Some(values.last()? - values.first()?)
    }

    fn steady_mean(&self, name: &str) -> Option<f64> {
        let values = self.steady(name);
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn steady_seconds(&self) -> f64 {
        let times = self.times_ms.iter().zip(&self.phases).filter(|(_, phase)| *phase == "steady");
        let times: Vec<f64> = times.map(|(time, _)| *time).collect();
        times.last().zip(times.first()).map_or(0.0, |(last, first)| (last - first) / 1000.0)
    }
}

/// For each second the counts by half powers of two: (bucket, count), the bucket b from 2^(b/2) us on.
fn heat(directory: &Path, step: usize) -> Result<Value> {
    let mut seconds = Vec::new();
    let mut rows: Vec<Vec<(u32, u64)>> = Vec::new();
    for (at, histogram) in hdr::read(&directory.join("latency.hlog"), "visible")?.into_iter().step_by(step) {
        seconds.push(at);
        rows.push(buckets(&histogram));
    }
    Ok(json!({ "seconds": seconds, "rows": rows }))
}

fn buckets(histogram: &Histogram<u64>) -> Vec<(u32, u64)> {
    let mut buckets: Vec<(u32, u64)> = Vec::new();
    for value in histogram.iter_recorded() {
        let bucket = ((value.value_iterated_to().max(1) as f64).log2() * 2.0) as u32;
        match buckets.last_mut().filter(|(last, _)| *last == bucket) {
            Some((_, count)) => *count += value.count_at_value(),
            None => buckets.push((bucket, value.count_at_value())),
        }
    }
    buckets
}

fn spectra(run: &Value) -> Result<Value> {
    let mut spectra = Map::new();
    for latency in run["latencies"].as_array().into_iter().flatten() {
        let (Some(name), Some(text)) = (latency["name"].as_str(), latency["histogram"].as_str()) else {
            continue;
        };
        if latency["count"].as_u64() != Some(0)
            && ["visible", "row", "ack", "schedule_lag", "commit", "answer"].contains(&name)
        {
            spectra.insert(name.to_owned(), json!(hdr::spectrum(&hdr::decode(text)?)));
        }
    }
    Ok(Value::Object(spectra))
}

fn classes(run: &Value) -> Value {
    let found = &run["verification"];
    let classes = Tally::default().classes();
    json!(
        classes.iter().map(|(class, _, meaning)| json!([class, found[*class], meaning])).collect::<Vec<_>>()
    )
}

/// Utilization, saturation and errors, a resource a line.
fn resources(run: &Value, intervals: &Series, host: &Series, process: &Series, disk: &Series) -> Value {
    let seconds = host.steady_seconds().max(1e-9);
    let share =
        |growth: Option<f64>| growth.map_or("–".to_owned(), |g| format!("{:.1} %", g / seconds * 100.0));
    let percent = |n: Option<f64>| n.map_or("–".to_owned(), |n| format!("{n:.1} %"));
    let number = |n: Option<f64>| n.map_or("–".to_owned(), |n| format!("{n:.0}"));
    let rate =
        |growth: Option<f64>| growth.map_or("–".to_owned(), |g| format!("{:.1} MB/s", g / seconds / 1e6));
    let cores = host.steady_mean("host_cores").unwrap_or(1.0);
    let memory =
        host.steady_mean("host_memory_available_bytes").zip(host.steady_mean("host_memory_total_bytes"));
    let result = |name: &str| run["results"][name].as_f64();
    json!([
        [
            "CPU, machine",
            format!("{} % of {cores:.0} cores", number(host.steady_mean("host_cpu_percent"))),
            format!(
                "{} of {cores:.0} ready to run; somebody waited {} of the time",
                number(host.steady_mean("host_procs_running")),
                share(host.steady_growth("host_pressure_cpu_waiting_seconds_total"))
            ),
            "–",
        ],
        [
            "CPU, consumer",
            result("consumer_cpu_percent")
                .map_or("not watched (--target-pid)".to_owned(), |p| format!("{p:.0} % of a core")),
            format!(
                "ready but waiting {} of the time",
                share(process.steady_growth("process_run_delay_seconds_total"))
            ),
            "–",
        ],
        [
            "Load tester",
            format!(
                "{} % of a core, of which looking into the tables {}",
                number(result("generator_cpu_percent")),
                percent(result("probe_thread_cpu_percent"))
            ),
            format!(
                "a generator thread waited for a core {} of the time; {} looks/s, {} of them reads; looking or waiting for the answer {} of the time; {} of a core in the server",
                percent(result("generator_waiting_percent")),
                number(result("probe_looks_rate")),
                number(result("probe_reads_rate")),
                percent(result("probe_busy_percent")),
                percent(result("probe_server_cpu_percent"))
            ),
            format!("{} rows found a second late", number(result("probe_found_late"))),
        ],
        [
            "Memory",
            memory
                .map_or("–".to_owned(), |(free, all)| format!("{:.0} % used", (1.0 - free / all) * 100.0)),
            format!(
                "{} pages swapped out; waited {} of the time",
                number(host.steady_growth("host_swap_out_pages_total")),
                share(host.steady_growth("host_pressure_memory_waiting_seconds_total"))
            ),
            format!("{} processes killed for memory", number(host.steady_growth("host_oom_kills_total"))),
        ],
        [
            "Disk",
            format!(
                "busy {} of the time, {} written",
                share(disk.steady_growth("host_disk_io_time_seconds_total")),
                rate(disk.steady_growth("host_disk_written_bytes_total"))
            ),
            format!(
                "somebody waited {} of the time",
                share(host.steady_growth("host_pressure_io_waiting_seconds_total"))
            ),
            "–",
        ],
        [
            "Network",
            "see net.csv",
            format!(
                "{} segments sent again, {} connections refused for a full queue",
                number(host.steady_growth("host_tcp_retrans_segs_total")),
                number(host.steady_growth("host_tcp_listen_overflows_total"))
            ),
            format!("{} packets dropped", number(host.steady_growth("host_softnet_dropped_total"))),
        ],
        [
            "Kafka",
            format!("{} messages/s acknowledged", number(result("acked_rate"))),
            format!(
                "backlog at most {}; {} times the producer's queue was full",
                number(result("backlog_max")),
                number(result("queue_full"))
            ),
            format!("{} failed", number(result("failed"))),
        ],
        [
            "PostgreSQL",
            format!(
                "{} rows/s inserted, {} of WAL, {} backends active",
                number(intervals.steady_growth("pg_inserted_total").map(|g| g / seconds)),
                rate(intervals.steady_growth("pg_wal_bytes_total")),
                number(intervals.steady_mean("pg_active_backends"))
            ),
            format!("{} of them waiting", number(intervals.steady_mean("pg_waiting_backends"))),
            format!(
                "{} rollbacks, {} deadlocks",
                number(intervals.steady_growth("pg_rollbacks_total")),
                number(intervals.steady_growth("pg_deadlocks_total"))
            ),
        ],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_no_outside_part_and_cannot_be_broken_out_of() {
        let hostile = json!({ "x": "</script><script>alert(1)", "y": "<!--<script>" });
        let page = page("</title><script>alert(1)", &hostile, SCRIPT);
        assert!(page.contains("<title>&lt;/title>&lt;script>alert(1)</title>"));
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = rest.split_once('<').unwrap();
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), hostile, "the first < ends the element");
        let inside = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!inside.contains("http://") && !inside.contains("https://"));
    }

    #[test]
    fn buckets_are_half_powers_of_two() {
        let mut histogram = Histogram::new(3).unwrap();
        for us in [1u64, 1, 2, 3, 1000, 1024] {
            histogram.record(us).unwrap();
        }
        assert_eq!(buckets(&histogram), [(0, 2), (2, 1), (3, 1), (19, 1), (20, 1)]);
    }
}
