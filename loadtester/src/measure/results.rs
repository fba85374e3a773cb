//! The results of a run as a flat list, and the names that thresholds, comparisons and conditions for an early end may use.

use std::collections::BTreeMap;

use crate::measure::columns::{Column, File};
use crate::measure::latency::{LATENCIES, Latency, Summary};
use crate::measure::tally::Tally;

/// The results of a run by name. Latencies are microseconds, all else is as its name says.
pub type Results = BTreeMap<String, f64>;

/// Results besides the latencies and the classes of the verification.
const OTHER_RESULTS: [&str; 39] = [
    "achieved_ratio",
    "achieved_rate",
    "steady_seconds",
    "steady_sent",
    "backlog_max",
    "drain_seconds",
    "queue_full",
    "sent_bytes",
    "backlog_slope",
    "backlog_slope_error",
    "offered_rate",
    "acked_rate",
    "stored_rate",
    "visible_resolution",
    "generator_cpu_percent",
    "generator_busiest_thread_percent",
    "generator_waiting_percent",
    "host_cpu_percent",
    "generator_rss_bytes",
    "probe_looks_rate",
    "probe_reads_rate",
    "probe_busy_percent",
    "probe_thread_cpu_percent",
    "probe_server_cpu_percent",
    "probe_found_late",
    "row_negative",
    "refused",
    "refused_ratio",
    "unacknowledged_ratio",
    "retried",
    "connects",
    "no_room",
    "asked",
    "unanswered",
    "unanswered_ratio",
    "wrong",
    "aggregate_missing",
    "aggregate_surplus",
    "aggregate_wrong",
];
const CONSUMER_RESULTS: [&str; 2] = ["consumer_cpu_percent", "consumer_rss_bytes_max"];

/// Whether a run has a result of this name; if not, which there are.
pub fn check_result_name(name: &str) -> Result<(), String> {
    let latencies = LATENCIES.map(Latency::name);
    let parts = Summary::default().parts().map(|(part, _)| part);
    let classes = Tally::default().classes().map(|(class, ..)| class);
    let is_latency =
        latencies.iter().any(|l| parts.iter().any(|p| name.strip_prefix(l) == Some(&format!("_{p}"))));
    if is_latency
        || classes.contains(&name)
        || OTHER_RESULTS.contains(&name)
        || CONSUMER_RESULTS.contains(&name)
    {
        return Ok(());
    }
    Err(format!(
        "there is no result \"{name}\"; there are {} with _{} behind it, {}, {} and, of a watched consumer, {}",
        latencies.join(", "),
        parts.join(", _"),
        classes.join(", "),
        OTHER_RESULTS.join(", "),
        CONSUMER_RESULTS.join(", ")
    ))
}

/// What conditions call a column of intervals.csv.
pub fn interval_name(column: &Column) -> &str {
    column.csv.trim_end_matches("_us").trim_end_matches("_total")
}

/// Whether --abort-on can speak of it.
pub fn is_interval_name(name: &str) -> bool {
    File::Intervals.columns().iter().any(|column| interval_name(column) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_results() {
        for name in ["visible_p99", "ack_service_max", "lost", "stored_rate", "consumer_cpu_percent"] {
            assert_eq!(check_result_name(name), Ok(()), "{name}");
        }
        for name in ["", "visible", "visble_p99", "visible_p98", "_p99", "offered"] {
            assert!(check_result_name(name).is_err(), "{name}");
        }
    }
}
