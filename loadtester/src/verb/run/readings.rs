//! Everything that is known of a run while it goes on: the threads' counts, what is read beside them, and what both say
//! about the second that has passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::base::clock::{Clock, Steps};
use crate::judge::summary::Totals;
use crate::measure::backlog::Backlog;
use crate::measure::columns::{Column, File, Values};
use crate::measure::latency::{LATENCIES, Latency, Set};
use crate::measure::phase::Phase;
use crate::plan::options::RunArgs;
use crate::plan::shape::Shape;
use crate::server::pg::ServerCounters;
use crate::verb::run::counts::Counts;
use crate::watch::consumer::Consumer;
use crate::watch::cost::Cost;
use crate::watch::server::Server;

pub struct Readings {
    pub args: RunArgs,
    pub clock: Clock,
    pub shape: Arc<Shape>,
    pub counts: Counts,
    pub consumer: Consumer,
    pub server: Server,
    pub cost: Cost,
    pub steps: Steps,
    pub backlog: Backlog,
    /// What was counted when the steady phase began, and when the last generator had ended.
    pub steady: Option<(i64, Totals)>,
    pub sending: Option<(i64, Totals)>,
    columns: Vec<Column>,
    last: Totals,
    last_ns: i64,
}

impl Readings {
    pub fn new(
        args: &RunArgs,
        clock: Clock,
        shape: Arc<Shape>,
        counts: Counts,
        consumer: Consumer,
        server: Server,
    ) -> Self {
        Self {
            args: args.clone(),
            clock,
            shape,
            counts,
            consumer,
            server,
            cost: Cost::default(),
            steps: Steps::default(),
            backlog: Backlog::default(),
            steady: None,
            sending: None,
            columns: File::Intervals.columns(),
            last: Totals::default(),
            last_ns: 0,
        }
    }

    pub fn warmup_ns(&self) -> i64 {
        self.args.warmup.as_nanos() as i64
    }

    /// When the second began that is under way.
    pub fn last_ns(&self) -> i64 {
        self.last_ns
    }

    pub fn begin_steady_if_due(&mut self, now_ns: i64) {
        if self.steady.is_none() && now_ns >= self.warmup_ns() {
            self.steady = Some((now_ns, self.counts.totals()));
            self.cost.begin(now_ns, &self.counts.probe);
        }
    }

    pub fn end_sending(&mut self) {
        self.sending = Some((self.clock.now_ns(), self.counts.totals()));
    }

    /// Between the seconds: the backlog's peak, and the CPU while the generators still run.
    pub fn glance(&mut self) {
        let now_ns = self.clock.now_ns();
        if let Some(backlog) = self.counts.backlog(&self.counts.totals()) {
            self.backlog.glance(backlog);
        }
        if self.steady.is_some() && self.sending.is_none() {
            self.cost.read_if_due(now_ns, &self.counts.probe);
        }
    }

    /// The row of intervals.csv for the second that ends now, and the consumer's, where one is watched.
    pub fn second(&mut self, now_ns: i64, phase: Phase) -> (Values, Option<Values>) {
        let totals = self.counts.totals();
        self.counts.collect(&[]);
        self.steps.look(&self.clock);
        let backlog = self.counts.backlog(&totals);
        if let (Phase::Steady, Some(backlog)) = (phase, backlog) {
            self.backlog.note(now_ns, backlog);
        }
        let mut values = Values::new(&self.columns);
        values.set_all(&self.columns, self.rates(now_ns, phase, &totals));
        values.set_all(&self.columns, self.sums(&totals));
        values.set_all(&self.columns, backlog.map(|backlog| ("backlog", backlog)));
        values.set_all(&self.columns, self.server.counters().iter().flat_map(of_the_server));
        set_latencies(&mut values, &self.columns, &self.counts.second);
        self.server.read_clock_if_due(now_ns);
        let process = self.consumer.sample(now_ns, phase == Phase::Steady);
        self.last = totals;
        (values, process)
    }

    /// What comes now belongs to the next second.
    pub fn end_second(&mut self, now_ns: i64) {
        self.last_ns = now_ns;
    }

    fn rates(&self, now_ns: i64, phase: Phase, totals: &Totals) -> [(&'static str, f64); 4] {
        let (from_s, to_s) = (self.last_ns as f64 / 1e9, now_ns as f64 / 1e9);
        let seconds = ((now_ns - self.last_ns) as f64 / 1e9).max(1e-9);
        let offered = (self.shape.count_at(to_s) - self.shape.count_at(from_s)) / seconds;
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        [
            ("offered_rate", if phase == Phase::Drain { 0.0 } else { offered }),
            ("sent_rate", rate(totals.sent, self.last.sent)),
            ("acked_rate", rate(totals.acked, self.last.acked)),
            ("stored_rate", rate(totals.stored, self.last.stored)),
        ]
    }

    fn sums(&self, totals: &Totals) -> [(&'static str, f64); 23] {
        let probe = &self.counts.probe;
        let of_probe = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        [
            ("sent_total", totals.sent as f64),
            ("sent_bytes_total", totals.bytes as f64),
            ("acked_total", totals.acked as f64),
            ("failed_total", totals.failed as f64),
            ("indeterminate_total", totals.indeterminate as f64),
            ("stored_total", totals.stored as f64),
            ("duplicated_total", of_probe(&probe.duplicated)),
            ("reordered_total", probe.reordered.sum() as f64),
            ("foreign_total", probe.foreign.sum() as f64),
            ("queue_full_total", totals.queue_full as f64),
            ("row_negative_total", self.counts.total.all(Latency::Row).negative as f64),
            ("probe_reads_total", of_probe(&probe.reads)),
            ("probe_rows_total", of_probe(&probe.rows)),
            ("probe_found_late_total", of_probe(&probe.found_late)),
            ("probe_busy_seconds_total", of_probe(&probe.busy_ns) / 1e9),
            ("refused_total", totals.refused as f64),
            ("retried_total", totals.retried as f64),
            ("connects_total", totals.connects as f64),
            ("closes_total", totals.closes as f64),
            ("no_room_total", totals.no_room as f64),
            ("asked_total", totals.asked as f64),
            ("unanswered_total", totals.unanswered as f64),
            ("wrong_total", totals.wrong as f64),
        ]
    }
}

fn of_the_server(counters: &ServerCounters) -> [(&'static str, f64); 7] {
    [
        ("pg_inserted_total", counters.inserted_total as f64),
        ("pg_commits_total", counters.commits_total as f64),
        ("pg_rollbacks_total", counters.rollbacks_total as f64),
        ("pg_deadlocks_total", counters.deadlocks_total as f64),
        ("pg_wal_bytes_total", counters.wal_bytes_total),
        ("pg_active_backends", counters.active_backends as f64),
        ("pg_waiting_backends", counters.waiting_backends as f64),
    ]
}

/// What was not measured in this second stays empty.
fn set_latencies(values: &mut Values, columns: &[Column], second: &Set) {
    for latency in LATENCIES {
        let recorder = second.all(latency);
        if recorder.is_empty() {
            continue;
        }
        for (part, value) in recorder.summary().parts() {
            let suffix = if part == "count" { "" } else { "_us" };
            values.set(columns, &format!("{}_{part}{suffix}", latency.name()), value);
        }
    }
}
