//! What speaks about a run's validity, from what is known of it.

use std::sync::atomic::Ordering::Relaxed;

use crate::base::signals;
use crate::judge::verdict::Facts;
use crate::measure::latency::Latency;
use crate::plan::shape::Arrivals;
use crate::verb::run::readings::Readings;

/// Of a run that goes on, what is due later than `until_s` is not held against it.
pub fn facts(readings: &Readings, until_s: f64) -> Facts {
    let (probe, totals) = (&readings.counts.probe, readings.counts.totals());
    let cost = readings.cost.span();
    let (steady_s, sent) = steady_span(readings);
    let p99 = |latency| readings.counts.total.all(latency).summary().p99 as f64;
    Facts {
        achieved_ratio: achieved_ratio(readings, until_s),
        achieved_rate: if steady_s > 0.0 { sent as f64 / steady_s } else { 0.0 },
        schedule_lag_p99_us: p99(Latency::ScheduleLag),
        visible_p99_us: p99(Latency::Visible),
        busiest_thread_percent: cost.as_ref().map_or(0.0, |cost| cost.busiest_generator_percent()),
        queue_full_ratio: ratio(totals.queue_full, totals.sent).unwrap_or(0.0),
        probe_interval_us: readings.args.probe_interval.as_micros() as f64,
        probe_longest_gap_us: probe.longest_gap_us.load(Relaxed) as f64,
        probe_cpu_percent: cost
            .as_ref()
            .and_then(|cost| cost.probe())
            .map_or(0.0, |cost| cost.thread_percent + cost.server_percent.unwrap_or(0.0)),
        probe_reconnects: probe.reconnects.load(Relaxed),
        steal_percent: cost.as_ref().map_or(0.0, |cost| cost.steal_percent()),
        clock_step_us: readings.steps.largest_us() as f64,
        shares_cores: readings.consumer.is_seen() && readings.args.pin.is_none(),
        has_probe: readings.counts.has_looked(),
        no_room: totals.no_room,
        ahead: readings.counts.ahead(),
    }
}

/// Messages sent in time, of those due after the warm-up. Where arrivals are drawn, or the run was interrupted, what was due
/// is only known as far as the generators came: what they did not come to send is not held against them.
fn achieved_ratio(readings: &Readings, until_s: f64) -> f64 {
    let totals = readings.counts.totals();
    let due = |at_s: f64| readings.shape.count_at(at_s);
    let planned = (due(until_s) - due(readings.warmup_ns() as f64 / 1e9)).max(0.0);
    let due = if readings.args.arrivals == Arrivals::Constant && signals::count() == 0 {
        planned.round() as u64
    } else {
        totals.steady_due
    };
    ratio(totals.steady_sent, due).unwrap_or(1.0).min(1.0)
}

/// `None` of nothing.
fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

/// Seconds of the steady phase, and messages sent in time in it.
pub fn steady_span(readings: &Readings) -> (f64, u64) {
    let begin_s = readings.warmup_ns() as f64 / 1e9;
    let end_s = match readings.sending {
        Some((ns, _)) => (ns as f64 / 1e9).min(readings.shape.seconds()),
        None => readings.shape.seconds(),
    };
    ((end_s - begin_s).max(0.0), readings.counts.totals().steady_sent)
}
