//! Once a second: collects what all threads have counted, writes it to every output, shows a line. Runs on the main
//! thread; nothing here is on the way of a message.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::Result;
use postgres::Client;

use crate::base::clock::{Clock, SECOND_NS};
use crate::judge::summary::{Drained, Totals};
use crate::judge::verdict::{self, Facts};
use crate::measure::columns::{Column, File, Values};
use crate::measure::condition::Threshold;
use crate::measure::latency::{Collector, LATENCIES, Latency, Recorder, Set};
use crate::measure::results::{Results, check_result_name, interval_name};
use crate::measure::tally::Tally;
use crate::plan::options::{Plan, RunArgs};
use crate::plan::shape::Shape;
use crate::send::generate::Counters;
use crate::server::pg::{self, ClockOffset};
use crate::tell::csv::Sheet;
use crate::tell::hdr::Log;
use crate::tell::statsd::Statsd;
use crate::tell::terminal::{self, Line};
use crate::tell::tui::{self, Screen, View};
use crate::watch::counters;
use crate::watch::observe::{self, OwnThread};
use crate::watch::target::Target;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Setup,
    Warmup,
    Steady,
    Drain,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Setup => "setup",
            Phase::Warmup => "warmup",
            Phase::Steady => "steady",
            Phase::Drain => "drain",
        }
    }
}

/// The files of a run directory. The first that cannot be written ends the writing, not the run.
struct Files {
    intervals: Sheet,
    process: Sheet,
    host: Sheet,
    disk: Sheet,
    net: Sheet,
    log: Log,
    failed: Option<String>,
}

impl Files {
    /// Adds the last histograms, and returns when all is on the disk.
    fn close(&mut self, last_ns: i64, now_ns: i64, rest: &Set) -> Result<()> {
        self.log.write(last_ns as f64 / 1e9, (now_ns - last_ns) as f64 / 1e9, rest)?;
        let sheets = [&mut self.intervals, &mut self.process, &mut self.host, &mut self.disk, &mut self.net];
        sheets.into_iter().try_for_each(Sheet::close)
    }
}

/// The threads hand their histograms over as a second ends; this much later all have, on a busy machine too. What comes
/// later is shown a second late, and nothing is lost.
const AFTER_NS: i64 = SECOND_NS / 4;

pub struct Reporter {
    pub clock: Clock,
    shape: Arc<Shape>,
    warmup_ns: i64,
    run: String,
    host_name: String,
    collectors: Vec<Collector>,
    counters: Vec<Arc<Counters>>,
    probe: Arc<counters::Counters>,
    observer: Option<Client>,
    host: observe::Host,
    files: Files,
    statsd: Option<Statsd>,
    screen: Option<Screen>,
    args: RunArgs,
    next_ns: i64,
    next_sample_ns: i64,
    interval: Set,
    total: Set,
    last: Totals,
    last_ns: i64,
    /// Of the steady phase: (seconds, backlog).
    backlog: Vec<(f64, f64)>,
    backlog_max: f64,
    cpu: CpuWatch,
    drift_us: i64,
    /// The server's clock, read every ten seconds: the most exact of the readings.
    offset: Option<ClockOffset>,
    next_offset_ns: i64,
    clock_step_us: i64,
    consumer: Consumer,
    latest: Results,
    aborts: Vec<Abort>,
    steady: Option<(i64, Totals)>,
    sending: Option<(i64, Totals)>,
    began: Instant,
}

struct Abort {
    condition: Threshold,
    grace_ns: i64,
    since_ns: Option<i64>,
    done: bool,
}

/// CPU of this program and its machine, between the end of the warm-up and the end of the sending.
#[derive(Default)]
struct CpuWatch {
    begin: Option<CpuReading>,
    end: Option<CpuReading>,
}

#[derive(Clone)]
struct CpuReading {
    at_ns: i64,
    threads: Vec<OwnThread>,
    own_s: f64,
    /// The probe's server process, where it runs here, and its CPU seconds; looks and reads of the probe.
    backend: Option<([i32; 2], f64)>,
    looks: u64,
    reads: u64,
    probe_busy_s: f64,
    host: Values,
}

struct ProbeCost {
    thread_percent: f64,
    server_percent: Option<f64>,
    busy_percent: f64,
    looks_per_second: f64,
    reads_per_second: f64,
}

#[derive(Clone, Copy, Default)]
struct Consumer {
    seen: bool,
    first: Option<(i64, f64)>,
    last: Option<(i64, f64)>,
    resident_max: f64,
}

impl Reporter {
    #[expect(clippy::too_many_arguments, reason = "the reporter reads from everybody")]
    pub fn new(
        plan: &Plan,
        directory: &Path,
        clock: Clock,
        shape: Arc<Shape>,
        collectors: Vec<Collector>,
        counters: Vec<Arc<Counters>>,
        probe: Arc<counters::Counters>,
        observer: Option<Client>,
    ) -> Result<Self> {
        let args = &plan.args;
        let sheet = |file| Sheet::create(directory, file, args.csv_time);
        let files = Files {
            intervals: sheet(File::Intervals)?,
            process: sheet(File::Process)?,
            host: sheet(File::Host)?,
            disk: sheet(File::Disk)?,
            net: sheet(File::Net)?,
            log: Log::create(directory, clock.wall_us(0))?,
            failed: None,
        };
        let (run, host_name) = (format!("{:08x}", plan.run), observe::host_name());
        let tags = vec![("run".to_owned(), run.clone()), ("host".to_owned(), host_name.clone())];
        let statsd =
            args.statsd.as_deref().map(|url| Statsd::connect(url, args.statsd_tags, tags)).transpose()?;
        let models = args.mix.0.len();
        let abort = |condition: &Threshold| Abort {
            condition: condition.clone(),
            grace_ns: args.abort_grace.as_nanos() as i64,
            since_ns: None,
            done: false,
        };
        Ok(Self {
            clock,
            shape,
            warmup_ns: args.warmup.as_nanos() as i64,
            run,
            host_name,
            collectors,
            counters,
            probe,
            observer,
            host: observe::Host::default(),
            files,
            statsd,
            screen: if args.tui { Screen::open() } else { None },
            args: args.clone(),
            next_ns: SECOND_NS + AFTER_NS,
            next_sample_ns: 0,
            interval: Set::new(models),
            total: Set::new(models),
            last: Totals::default(),
            last_ns: 0,
            backlog: Vec::new(),
            backlog_max: 0.0,
            cpu: CpuWatch::default(),
            drift_us: 0,
            offset: None,
            next_offset_ns: 5 * SECOND_NS,
            clock_step_us: 0,
            consumer: Consumer::default(),
            latest: Results::new(),
            aborts: args.abort_on.iter().map(abort).collect(),
            steady: None,
            sending: None,
            began: Instant::now(),
        })
    }

    /// (stream, sequence number) of messages that became visible after a later one of their stream.
    pub fn overtaken(&self) -> Vec<(u16, u64)> {
        self.probe.overtaken()
    }

    pub fn is_quiet(&self) -> bool {
        self.args.quiet
    }

    pub fn acked(&self) -> u64 {
        self.counters.iter().map(|c| c.acked.load(Relaxed)).sum()
    }

    pub fn duplicated(&self) -> u64 {
        self.probe.duplicated.load(Relaxed)
    }

    pub fn stored_by_model(&self) -> Vec<u64> {
        self.probe.stored.each()
    }

    pub fn stored(&self) -> u64 {
        self.probe.stored.sum()
    }

    fn totals(&self) -> Totals {
        let sum = |of: fn(&Counters) -> &AtomicU64| self.counters.iter().map(|c| of(c).load(Relaxed)).sum();
        Totals {
            sent: sum(|c| &c.sent),
            bytes: sum(|c| &c.bytes),
            acked: sum(|c| &c.acked),
            failed: sum(|c| &c.failed),
            indeterminate: sum(|c| &c.indeterminate),
            queue_full: sum(|c| &c.queue_full),
            steady_due: sum(|c| &c.steady_due),
            steady_sent: sum(|c| &c.steady_sent),
            stored: self.stored(),
        }
    }

    /// Does this second's work when it has passed.
    pub fn tick_if_due(&mut self, phase: Option<Phase>, target: &mut Option<Target>) -> Result<()> {
        let now_ns = self.clock.now_ns();
        if self.steady.is_none() && now_ns >= self.warmup_ns {
            self.steady = Some((now_ns, self.totals()));
            self.cpu.begin = Some(self.read_cpu(now_ns));
        }
        if now_ns < self.next_ns {
            return Ok(());
        }
        let phase = phase.unwrap_or(match now_ns - SECOND_NS / 2 {
            ns if ns < 0 => Phase::Setup,
            ns if ns < self.warmup_ns => Phase::Warmup,
            _ => Phase::Steady,
        });
        self.next_ns = now_ns.div_euclid(SECOND_NS) * SECOND_NS + SECOND_NS + AFTER_NS;
        self.tick(now_ns, phase, target);
        Ok(())
    }

    fn tick(&mut self, now_ns: i64, phase: Phase, target: &mut Option<Target>) {
        let totals = self.totals();
        self.interval.clear();
        for collector in &self.collectors {
            collector.collect(&mut self.interval);
        }
        self.total.merge(&self.interval);
        let drift_us = self.clock.wall_drift_us();
        self.clock_step_us = self.clock_step_us.max((drift_us - self.drift_us).abs());
        self.drift_us = drift_us;
        // Where nobody looks, nothing is known of it.
        let looked = self.probe.looks.load(Relaxed) > 0;
        let backlog = looked.then(|| totals.acked.saturating_sub(totals.stored) as f64);
        if let (Phase::Steady, Some(backlog)) = (phase, backlog) {
            self.backlog.push((now_ns as f64 / 1e9, backlog));
        }
        let values = self.interval_values(now_ns, phase, &totals, backlog);
        self.read_server_clock(now_ns);
        let process = target.as_mut().and_then(Target::sample);
        self.note_consumer(now_ns, phase, process.as_ref());
        self.write(now_ns, phase, &values, process.as_ref());
        self.note_latest(&values);
        if !self.args.quiet {
            self.show(now_ns, phase, &values, process.as_ref());
        }
        self.last = totals;
        self.last_ns = now_ns;
    }

    /// The second as a line, or as a frame of the screen.
    fn show(&self, now_ns: i64, phase: Phase, values: &Values, process: Option<&Values>) {
        let columns = &self.files.intervals.columns;
        let line = Line {
            at_s: now_ns as f64 / 1e9,
            all_s: self.shape.seconds(),
            phase: phase.name(),
            values: &|name| values.get(columns, name),
            slope: slope(&self.backlog).map(|s| s.0),
            process: process.map(|p| {
                let columns = &self.files.process.columns;
                (p.get(columns, "process_cpu_percent"), p.get(columns, "process_resident_memory_bytes"))
            }),
        };
        let Some(screen) = &self.screen else { return terminal::line(&line) };
        // What was due a moment ago may be on its way.
        let until_s = if phase == Phase::Drain { f64::INFINITY } else { now_ns as f64 / 1e9 - 0.1 };
        screen.show(tui::frame(&View {
            line: &line,
            run: &self.run,
            backlog_max: self.backlog_max,
            total: &|latency| self.total(latency).summary(),
            reasons: &verdict::reasons(&self.facts_until(until_s)),
            colors: tui::colors(),
        }));
    }

    fn interval_values(
        &mut self,
        now_ns: i64,
        phase: Phase,
        totals: &Totals,
        backlog: Option<f64>,
    ) -> Values {
        let columns = &self.files.intervals.columns;
        let mut values = Values::new(columns);
        let seconds = ((now_ns - self.last_ns) as f64 / 1e9).max(1e-9);
        let (from_s, to_s) = (self.last_ns as f64 / 1e9, now_ns as f64 / 1e9);
        let offered = (self.shape.count_at(to_s) - self.shape.count_at(from_s)) / seconds;
        let probe = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let rows = [
            ("offered_rate", if phase == Phase::Drain { 0.0 } else { offered }),
            ("sent_rate", (totals.sent - self.last.sent) as f64 / seconds),
            ("acked_rate", (totals.acked - self.last.acked) as f64 / seconds),
            ("stored_rate", (totals.stored - self.last.stored) as f64 / seconds),
            ("sent_total", totals.sent as f64),
            ("sent_bytes_total", totals.bytes as f64),
            ("acked_total", totals.acked as f64),
            ("failed_total", totals.failed as f64),
            ("indeterminate_total", totals.indeterminate as f64),
            ("stored_total", totals.stored as f64),
            ("duplicated_total", probe(&self.probe.duplicated)),
            ("reordered_total", self.probe.reordered.sum() as f64),
            ("foreign_total", self.probe.foreign.sum() as f64),
            ("queue_full_total", totals.queue_full as f64),
            ("row_negative_total", self.total.all(Latency::Row).negative as f64),
            ("statsd_dropped_total", self.statsd.as_ref().map_or(0.0, |s| s.dropped as f64)),
            ("probe_reads_total", probe(&self.probe.reads)),
            ("probe_rows_total", probe(&self.probe.rows)),
            ("probe_found_late_total", probe(&self.probe.found_late)),
            ("probe_busy_seconds_total", probe(&self.probe.busy_ns) / 1e9),
        ];
        for (name, value) in rows {
            values.set(columns, name, value);
        }
        if let Some(backlog) = backlog {
            values.set(columns, "backlog", backlog);
        }
        // A server that is away for a second is no reason to stop.
        if let Some(counters) = self.observer.as_mut().and_then(|client| pg::counters(client).ok()) {
            let rows = [
                ("pg_inserted_total", counters.inserted_total as f64),
                ("pg_commits_total", counters.commits_total as f64),
                ("pg_rollbacks_total", counters.rollbacks_total as f64),
                ("pg_deadlocks_total", counters.deadlocks_total as f64),
                ("pg_wal_bytes_total", counters.wal_bytes_total),
                ("pg_active_backends", counters.active_backends as f64),
                ("pg_waiting_backends", counters.waiting_backends as f64),
            ];
            for (name, value) in rows {
                values.set(columns, name, value);
            }
        }
        for latency in LATENCIES {
            let recorder = self.interval.all(latency);
            if recorder.is_empty() {
                continue;
            }
            for (part, value) in recorder.summary().parts() {
                let suffix = if part == "count" { "" } else { "_us" };
                values.set(columns, &format!("{}_{part}{suffix}", latency.name()), value);
            }
        }
        values
    }

    /// Eleven round trips, ten seconds apart.
    fn read_server_clock(&mut self, now_ns: i64) {
        if now_ns < self.next_offset_ns {
            return;
        }
        self.next_offset_ns = now_ns + 10 * SECOND_NS;
        let read = self.observer.as_mut().and_then(|client| pg::clock_offset(client).ok());
        if let Some(read) = read.filter(|read| self.offset.is_none_or(|best| read.within_us < best.within_us))
        {
            self.offset = Some(read);
        }
    }

    pub fn offset_during(&self) -> Option<ClockOffset> {
        self.offset
    }

    fn note_consumer(&mut self, now_ns: i64, phase: Phase, process: Option<&Values>) {
        let Some(process) = process else { return };
        let columns = &self.files.process.columns;
        self.consumer.seen = true;
        let get = |name| process.get(columns, name).unwrap_or(0.0);
        self.consumer.resident_max = self.consumer.resident_max.max(get("process_resident_memory_bytes"));
        if phase == Phase::Steady {
            let cpu = get("process_cpu_user_seconds_total") + get("process_cpu_system_seconds_total");
            self.consumer.first.get_or_insert((now_ns, cpu));
            self.consumer.last = Some((now_ns, cpu));
        }
    }

    fn write(&mut self, now_ns: i64, phase: Phase, values: &Values, process: Option<&Values>) {
        let time_us = self.clock.wall_us(now_ns);
        let (run, host_name, phase) = (&self.run, &self.host_name, phase.name());
        let host = self.host.sample();
        let files = &mut self.files;
        let disks = observe::disks(&files.disk.columns);
        let networks = observe::networks(&files.net.columns);
        if let Some(statsd) = &mut self.statsd {
            statsd.send(0, phase, &files.intervals.columns, values);
            statsd.send(1, phase, &files.host.columns, &host);
            if let Some(process) = process {
                statsd.send(2, phase, &files.process.columns, process);
            }
            if self.args.statsd_timers {
                statsd.send_timers(phase, &self.interval);
            }
        }
        if files.failed.is_some() {
            return;
        }
        let length_s = (now_ns - self.last_ns) as f64 / 1e9;
        let result = (|| -> Result<()> {
            files.intervals.write(time_us, &[run, host_name, phase], values)?;
            files.host.write(time_us, &[run, host_name, phase], &host)?;
            if let Some(process) = process {
                files.process.write(time_us, &[run, host_name, phase, "consumer"], process)?;
            }
            for (name, values) in &disks {
                files.disk.write(time_us, &[run, host_name, phase, name], values)?;
            }
            for (name, values) in &networks {
                files.net.write(time_us, &[run, host_name, phase, name], values)?;
            }
            files.log.write(self.last_ns as f64 / 1e9, length_s, &self.interval)
        })();
        if let Err(error) = result {
            let text = format!(
                "{error:#}; free some space; the run goes on without files, and what was written before is kept"
            );
            log::error!("{text}");
            files.failed = Some(text);
        }
    }

    /// This second's values under the names that conditions use.
    fn note_latest(&mut self, values: &Values) {
        let columns: &[Column] = &self.files.intervals.columns;
        for (column, value) in columns.iter().zip(&values.0) {
            if let Some(value) = value {
                self.latest.insert(interval_name(column).to_owned(), *value);
            }
        }
    }

    /// The sentence of the first --abort-on condition that has held for its grace time; once.
    pub fn must_abort(&mut self) -> Option<String> {
        let now_ns = self.clock.now_ns();
        for abort in self.aborts.iter_mut().filter(|a| !a.done) {
            if abort.condition.holds(&self.latest) != Some(true) {
                abort.since_ns = None;
                continue;
            }
            if now_ns - *abort.since_ns.get_or_insert(now_ns) >= abort.grace_ns {
                abort.done = true;
                return Some(format!("{} has held for {} s", abort.condition, abort.grace_ns / SECOND_NS));
            }
        }
        None
    }

    fn read_cpu(&mut self, at_ns: i64) -> CpuReading {
        CpuReading {
            at_ns,
            threads: observe::own_threads(),
            own_s: observe::own_use().0,
            backend: self.backend_cpu(),
            looks: self.probe.looks.load(Relaxed),
            reads: self.probe.reads.load(Relaxed),
            probe_busy_s: self.probe.busy_ns.load(Relaxed) as f64 / 1e9,
            host: observe::Host::default().sample(),
        }
    }

    /// The probe's server processes and their CPU seconds, where they run here.
    fn backend_cpu(&self) -> Option<([i32; 2], f64)> {
        let pids = [&self.probe.backend, &self.probe.sweep_backend].map(|pid| pid.load(Relaxed));
        let here = pids.iter().filter(|pid| **pid > 0);
        let cpu_s = here.map(|pid| observe::cpu_of(*pid)).sum::<Option<f64>>()?;
        (pids[0] > 0).then_some((pids, cpu_s))
    }

    /// What the probe costs: CPU in percent of a core, of its threads and (where they run here) its server processes; the share
    /// of time in which it was busy or waited for the server; looks and reads a second.
    fn probe_cost(&self) -> Option<ProbeCost> {
        let (begin, end) = (self.cpu.begin.as_ref()?, self.cpu.end.as_ref()?);
        let seconds = (end.at_ns - begin.at_ns) as f64 / 1e9;
        let cpu_s = |of: &CpuReading| {
            of.threads.iter().filter(|t| t.name.starts_with("lt-probe")).map(|t| t.cpu_s).sum::<f64>()
        };
        let server = begin.backend.zip(end.backend).filter(|(a, b)| a.0 == b.0).map(|(a, b)| b.1 - a.1);
        (seconds > 0.0 && end.looks > begin.looks).then(|| ProbeCost {
            thread_percent: (cpu_s(end) - cpu_s(begin)) / seconds * 100.0,
            server_percent: server.map(|s| s / seconds * 100.0),
            busy_percent: (end.probe_busy_s - begin.probe_busy_s) / seconds * 100.0,
            looks_per_second: (end.looks - begin.looks) as f64 / seconds,
            reads_per_second: (end.reads - begin.reads) as f64 / seconds,
        })
    }

    /// The generators have ended.
    pub fn sending_ended(&mut self) {
        let now_ns = self.clock.now_ns();
        self.sending = Some((now_ns, self.totals()));
    }

    pub fn say_verifying(&self) {
        if !self.args.quiet {
            eprintln!("reading the tables back ...");
        }
    }

    /// Takes in what the threads still held and closes the files.
    pub fn finish(&mut self, sets: &[Box<Set>]) -> Result<()> {
        self.interval.clear();
        for collector in &self.collectors {
            collector.collect(&mut self.interval);
        }
        sets.iter().for_each(|set| self.interval.merge(set));
        self.total.merge(&self.interval);
        let now_ns = self.clock.now_ns();
        if self.files.failed.is_none()
            && let Err(error) = self.files.close(self.last_ns, now_ns, &self.interval)
        {
            self.files.failed = Some(format!("{error:#}; free some space, or choose another --out"));
        }
        if let Some(statsd) = &mut self.statsd {
            if self.args.statsd_timers {
                statsd.send_timers(Phase::Drain.name(), &self.interval);
            }
            statsd.finish();
        }
        self.screen = None;
        Ok(())
    }

    /// The account, for StatsD.
    pub fn tell(&mut self, tally: &Tally) {
        if let Some(statsd) = &mut self.statsd {
            statsd.send_tally(tally);
        }
    }

    pub fn file_error(&self) -> Option<String> {
        self.files.failed.clone()
    }

    pub fn total(&self, latency: Latency) -> Recorder {
        self.total.all(latency)
    }

    pub fn of_model(&self, model: usize, latency: Latency) -> &Recorder {
        self.total.get(model, latency)
    }

    pub fn final_totals(&self) -> Totals {
        self.totals()
    }

    pub fn elapsed_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// What speaks about the run's validity.
    pub fn facts(&self) -> Facts {
        self.facts_until(f64::INFINITY)
    }

    /// The same of a run that goes on: what is due later than `until_s` is not held against it.
    fn facts_until(&self, until_s: f64) -> Facts {
        let (steady_s, sent) = self.steady_span();
        let totals = self.totals();
        let ratio = |part: u64, all: u64| if all == 0 { 1.0 } else { part as f64 / all as f64 };
        let has_probe = self.probe.looks.load(Relaxed) > 0;
        let (busiest, steal) = self.cpu_use();
        // What an interrupted run did not come to send is not held against it.
        let due = |at_s: f64| self.shape.count_at(at_s);
        let planned = (due(until_s) - due(self.warmup_ns as f64 / 1e9)).max(0.0);
        let missing = if self.args.arrivals == crate::plan::shape::Arrivals::Constant
            && crate::base::signals::count() == 0
        {
            ratio(sent, planned.round() as u64)
        } else {
            ratio(totals.steady_sent, totals.steady_due)
        };
        Facts {
            achieved_ratio: missing.min(1.0),
            achieved_rate: if steady_s > 0.0 { sent as f64 / steady_s } else { 0.0 },
            schedule_lag_p99_us: self.total(Latency::ScheduleLag).summary().p99 as f64,
            visible_p99_us: self.total(Latency::Visible).summary().p99 as f64,
            busiest_thread_percent: busiest,
            queue_full_ratio: if totals.sent == 0 {
                0.0
            } else {
                totals.queue_full as f64 / totals.sent as f64
            },
            probe_interval_us: self.args.probe_interval.as_micros() as f64,
            probe_longest_gap_us: self.probe.longest_gap_us.load(Relaxed) as f64,
            probe_cpu_percent: self
                .probe_cost()
                .map_or(0.0, |cost| cost.thread_percent + cost.server_percent.unwrap_or(0.0)),
            probe_reconnects: self.probe.reconnects.load(Relaxed),
            steal_percent: steal,
            clock_step_us: self.clock_step_us as f64,
            shares_cores: self.consumer.seen && self.args.pin.is_none(),
            has_probe,
        }
    }

    /// Seconds of the steady phase and messages sent in time in it.
    fn steady_span(&self) -> (f64, u64) {
        let begin_s = self.warmup_ns as f64 / 1e9;
        let end_s = match self.sending {
            Some((ns, _)) => (ns as f64 / 1e9).min(self.shape.seconds()),
            None => self.shape.seconds(),
        };
        ((end_s - begin_s).max(0.0), self.totals().steady_sent)
    }

    /// The busiest generator thread, and the time stolen from the machine, in percent.
    fn cpu_use(&self) -> (f64, f64) {
        let (Some(begin), Some(end)) = (&self.cpu.begin, &self.cpu.end) else { return (0.0, 0.0) };
        let seconds = (end.at_ns - begin.at_ns) as f64 / 1e9;
        let used = |thread: &OwnThread| {
            let before = begin.threads.iter().find(|t| t.name == thread.name).map_or(0.0, |t| t.cpu_s);
            (thread.cpu_s - before) / seconds * 100.0
        };
        let busiest =
            end.threads.iter().filter(|t| t.name.starts_with("lt-gen-")).map(used).fold(0.0, f64::max);
        let columns = File::Host.columns();
        let host = |name: &str| {
            end.host.get(&columns, name).unwrap_or(0.0) - begin.host.get(&columns, name).unwrap_or(0.0)
        };
        let cores = end.host.get(&columns, "host_cores").unwrap_or(1.0).max(1.0);
        (busiest, host("host_cpu_steal_seconds_total") / (seconds * cores) * 100.0)
    }

    /// Between the seconds: the backlog's peak, and the CPU while the generators still run, because threads take their
    /// times with them.
    pub fn sample(&mut self) {
        let now_ns = self.clock.now_ns();
        if self.probe.looks.load(Relaxed) > 0 {
            self.backlog_max = self.backlog_max.max(self.acked().saturating_sub(self.stored()) as f64);
        }
        if self.steady.is_some() && self.sending.is_none() && now_ns >= self.next_sample_ns {
            self.cpu.end = Some(self.read_cpu(now_ns));
            self.next_sample_ns = now_ns + SECOND_NS / 4;
        }
    }

    /// Everything that thresholds, comparisons and the summary speak of, by name.
    pub fn results(&self, tally: &Tally, drained: &Drained, facts: &Facts) -> Results {
        let mut results = Results::new();
        for latency in LATENCIES {
            let recorder = self.total(latency);
            if recorder.is_empty() {
                continue;
            }
            for (part, value) in recorder.summary().parts() {
                results.insert(format!("{}_{part}", latency.name()), value);
            }
        }
        for (class, count, _) in tally.classes() {
            results.insert(class.to_owned(), count as f64);
        }
        let (steady_s, sent) = self.steady_span();
        let mut add = |name: &str, value: f64| {
            debug_assert_eq!(check_result_name(name), Ok(()));
            results.insert(name.to_owned(), value);
        };
        add("achieved_ratio", facts.achieved_ratio);
        add("achieved_rate", facts.achieved_rate);
        add("steady_seconds", steady_s);
        add("steady_sent", sent as f64);
        add("backlog_max", self.backlog_max);
        add("drain_seconds", drained.seconds);
        add("queue_full", self.totals().queue_full as f64);
        add("sent_bytes", self.totals().bytes as f64);
        if let Some((slope, error)) = slope(&self.backlog) {
            add("backlog_slope", slope);
            add("backlog_slope_error", error);
        }
        if let (Some((begin_ns, begin)), Some((end_ns, end))) = (&self.steady, &self.sending) {
            let seconds = (end_ns - begin_ns) as f64 / 1e9;
            if seconds > 0.0 {
                add(
                    "offered_rate",
                    self.shape.messages_between(*begin_ns as f64 / 1e9, *end_ns as f64 / 1e9) / seconds,
                );
                add("acked_rate", (end.acked - begin.acked) as f64 / seconds);
                add("stored_rate", (end.stored - begin.stored) as f64 / seconds);
            }
        }
        let lower = self.total(Latency::VisibleLower);
        if !lower.is_empty() {
            add("visible_resolution", self.total(Latency::Visible).summary().mean - lower.summary().mean);
        }
        if let (Some(begin), Some(end)) = (&self.cpu.begin, &self.cpu.end) {
            let seconds = (end.at_ns - begin.at_ns) as f64 / 1e9;
            add("generator_cpu_percent", (end.own_s - begin.own_s) / seconds * 100.0);
            add("generator_busiest_thread_percent", facts.busiest_thread_percent);
            add("generator_waiting_percent", longest_wait(begin, end));
            let columns = File::Host.columns();
            let grown = |name: &str| {
                end.host.get(&columns, name).unwrap_or(0.0) - begin.host.get(&columns, name).unwrap_or(0.0)
            };
            let cores = end.host.get(&columns, "host_cores").unwrap_or(1.0).max(1.0);
            let idle = grown("host_cpu_idle_seconds_total") + grown("host_cpu_iowait_seconds_total");
            add("host_cpu_percent", (1.0 - idle / (seconds * cores)).clamp(0.0, 1.0) * 100.0);
        }
        add("generator_rss_bytes", observe::own_use().1);
        if let Some(cost) = self.probe_cost() {
            add("probe_looks_rate", cost.looks_per_second);
            add("probe_reads_rate", cost.reads_per_second);
            add("probe_busy_percent", cost.busy_percent);
            add("probe_thread_cpu_percent", cost.thread_percent);
            if let Some(percent) = cost.server_percent {
                add("probe_server_cpu_percent", percent);
            }
        }
        add("probe_found_late", self.probe.found_late.load(Relaxed) as f64);
        add("row_negative", self.total(Latency::Row).negative as f64);
        if let (Some((from_ns, from)), Some((to_ns, to))) = (self.consumer.first, self.consumer.last)
            && to_ns > from_ns
        {
            add("consumer_cpu_percent", (to - from) / ((to_ns - from_ns) as f64 / 1e9) * 100.0);
        }
        if self.consumer.seen {
            add("consumer_rss_bytes_max", self.consumer.resident_max);
        }
        results
    }
}

/// The largest share of the time, in percent, in which a generator thread was ready to run and did not get a core.
fn longest_wait(begin: &CpuReading, end: &CpuReading) -> f64 {
    let seconds = (end.at_ns - begin.at_ns) as f64 / 1e9;
    let share = |thread: &OwnThread| {
        let before = begin.threads.iter().find(|t| t.name == thread.name).map_or(0.0, |t| t.run_delay_s);
        (thread.run_delay_s - before) / seconds * 100.0
    };
    end.threads.iter().filter(|t| t.name.starts_with("lt-gen-")).map(share).fold(0.0, f64::max)
}

/// The slope of points by least squares, with its standard error; `None` below three points.
pub fn slope(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(a, b), p| (a + p.0 / n, b + p.1 / n));
    let xx: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let xy: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let slope = xy / xx;
    let rest: f64 = points.iter().map(|p| (p.1 - y - slope * (p.0 - x)).powi(2)).sum();
    Some((slope, (rest / (n - 2.0) / xx).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
        let (rising, error) = slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]).unwrap();
        assert!((rising - 2.0).abs() < 1e-9 && error < 1e-9);
        let (flat, error) = slope(&[(0.0, 1.0), (1.0, -1.0), (2.0, 1.0), (3.0, -1.0), (4.0, 1.0)]).unwrap();
        assert!(flat.abs() < 1e-9 && error > 0.1);
    }
}
