//! Everything that thresholds, comparisons and the summary speak of, by name, from what is known of a run that has ended.

use std::sync::atomic::Ordering::Relaxed;

use crate::judge::aggregate::OfAggregate;
use crate::judge::summary::{Drained, Totals};
use crate::judge::verdict::Facts;
use crate::measure::latency::{LATENCIES, Latency};
use crate::measure::results::{Results, check_result_name};
use crate::measure::tally::Tally;
use crate::verb::run::facts::steady_span;
use crate::verb::run::readings::Readings;
use crate::watch::cost::Span;
use crate::watch::observe;

pub fn results(
    readings: &Readings,
    tally: &Tally,
    aggregates: &[OfAggregate],
    drained: &Drained,
    facts: &Facts,
) -> Results {
    let mut results = Results::new();
    let mut add = |name: &str, value: f64| {
        debug_assert_eq!(check_result_name(name), Ok(()));
        results.insert(name.to_owned(), value);
    };
    latencies(readings, &mut add);
    tally.classes().iter().for_each(|(class, count, _)| add(class, *count as f64));
    let (steady_s, sent) = steady_span(readings);
    let totals = readings.counts.totals();
    add("achieved_ratio", facts.achieved_ratio);
    add("achieved_rate", facts.achieved_rate);
    add("steady_seconds", steady_s);
    add("steady_sent", sent as f64);
    add("drain_seconds", drained.seconds);
    add("queue_full", totals.queue_full as f64);
    add("sent_bytes", totals.bytes as f64);
    http(&totals, &mut add);
    let sum = |of: fn(&OfAggregate) -> u64| aggregates.iter().map(of).sum::<u64>() as f64;
    add("aggregate_missing", sum(|a| a.missing));
    add("aggregate_surplus", sum(|a| a.surplus));
    add("aggregate_wrong", sum(|a| a.wrong));
    backlog(readings, &mut add);
    rates(readings, &mut add);
    add("generator_rss_bytes", observe::own_use().1);
    if let Some(span) = readings.cost.span() {
        cost(&span, &mut add);
    }
    add("probe_found_late", readings.counts.probe.found_late.load(Relaxed) as f64);
    if let Some(percent) = readings.consumer.cpu_percent() {
        add("consumer_cpu_percent", percent);
    }
    if let Some(bytes) = readings.consumer.resident_bytes_max() {
        add("consumer_rss_bytes_max", bytes);
    }
    results
}

fn latencies(readings: &Readings, add: &mut impl FnMut(&str, f64)) {
    let of = |latency| readings.counts.total.all(latency);
    for latency in LATENCIES {
        let recorder = of(latency);
        if recorder.is_empty() {
            continue;
        }
        for (part, value) in recorder.summary().parts() {
            add(&format!("{}_{part}", latency.name()), value);
        }
    }
    let lower = of(Latency::VisibleLower);
    if !lower.is_empty() {
        add("visible_resolution", of(Latency::Visible).summary().mean - lower.summary().mean);
    }
    add("row_negative", of(Latency::Row).negative as f64);
}

fn http(totals: &Totals, add: &mut impl FnMut(&str, f64)) {
    let ratio = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    add("refused", totals.refused as f64);
    add("refused_ratio", ratio(totals.refused, totals.sent));
    if totals.connects > 0 {
        add("unacknowledged_ratio", ratio(totals.failed + totals.indeterminate, totals.sent));
    }
    add("retried", totals.retried as f64);
    add("connects", totals.connects as f64);
    add("no_room", totals.no_room as f64);
    add("asked", totals.asked as f64);
    add("unanswered", totals.unanswered as f64);
    add("unanswered_ratio", ratio(totals.unanswered, totals.asked));
    add("wrong", totals.wrong as f64);
}

fn backlog(readings: &Readings, add: &mut impl FnMut(&str, f64)) {
    add("backlog_max", readings.backlog.peak());
    if let Some((slope, error)) = readings.backlog.slope() {
        add("backlog_slope", slope);
        add("backlog_slope_error", error);
    }
}

/// From the first message that counts to the last, whoever stopped when.
fn rates(readings: &Readings, add: &mut impl FnMut(&str, f64)) {
    let (Some((begin_ns, begin)), Some((end_ns, end))) = (&readings.steady, &readings.sending) else {
        return;
    };
    let seconds = (end_ns - begin_ns) as f64 / 1e9;
    if seconds > 0.0 {
        let offered = readings.shape.messages_between(*begin_ns as f64 / 1e9, *end_ns as f64 / 1e9);
        add("offered_rate", offered / seconds);
        add("acked_rate", (end.acked - begin.acked) as f64 / seconds);
        add("stored_rate", (end.stored - begin.stored) as f64 / seconds);
    }
}

fn cost(span: &Span<'_>, add: &mut impl FnMut(&str, f64)) {
    add("generator_cpu_percent", span.own_percent());
    add("generator_busiest_thread_percent", span.busiest_generator_percent());
    add("generator_waiting_percent", span.longest_wait_percent());
    add("host_cpu_percent", span.host_busy_percent());
    let Some(cost) = span.probe() else { return };
    add("probe_looks_rate", cost.looks_per_second);
    add("probe_reads_rate", cost.reads_per_second);
    add("probe_busy_percent", cost.busy_percent);
    add("probe_thread_cpu_percent", cost.thread_percent);
    if let Some(percent) = cost.server_percent {
        add("probe_server_cpu_percent", percent);
    }
}
