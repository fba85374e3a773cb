//! What the tester itself costs: CPU of its threads, of the probe's server processes and of the machine, between the end of
//! the warm-up and the end of the sending.

use std::sync::atomic::Ordering::Relaxed;

use crate::base::clock::SECOND_NS;
use crate::base::thread;
use crate::measure::columns::{Column, File, Values};
use crate::watch::counters::Counters;
use crate::watch::observe::{self, OwnThread};

/// Four readings a second while the generators run, because threads take their times with them when they end.
const EVERY_NS: i64 = SECOND_NS / 4;

#[derive(Default)]
pub struct Cost {
    begin: Option<Reading>,
    end: Option<Reading>,
    next_ns: i64,
}

struct Reading {
    at_ns: i64,
    threads: Vec<OwnThread>,
    own_s: f64,
    /// The probe's server processes, where they run here, and their CPU seconds.
    backends: Option<([i32; 2], f64)>,
    looks: u64,
    reads: u64,
    probe_busy_s: f64,
    host: Values,
}

impl Reading {
    fn take(at_ns: i64, probe: &Counters) -> Self {
        Self {
            at_ns,
            threads: observe::own_threads(),
            own_s: observe::own_use().0,
            backends: backends(probe),
            looks: probe.looks.load(Relaxed),
            reads: probe.reads.load(Relaxed),
            probe_busy_s: probe.busy_ns.load(Relaxed) as f64 / 1e9,
            host: observe::Host::default().sample(),
        }
    }

    /// Of the threads whose names begin so.
    fn threads<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a OwnThread> {
        self.threads.iter().filter(move |thread| thread.name.starts_with(prefix))
    }
}

fn backends(probe: &Counters) -> Option<([i32; 2], f64)> {
    let pids = [&probe.backend, &probe.sweep_backend].map(|pid| pid.load(Relaxed));
    let here = pids.iter().filter(|pid| **pid > 0);
    let cpu_s = here.map(|pid| observe::cpu_of(*pid)).sum::<Option<f64>>()?;
    (pids[0] > 0).then_some((pids, cpu_s))
}

impl Cost {
    pub fn begin(&mut self, at_ns: i64, probe: &Counters) {
        self.begin = Some(Reading::take(at_ns, probe));
    }

    /// The latest reading is the end.
    pub fn read_if_due(&mut self, at_ns: i64, probe: &Counters) {
        if at_ns >= self.next_ns {
            self.end = Some(Reading::take(at_ns, probe));
            self.next_ns = at_ns + EVERY_NS;
        }
    }

    pub fn span(&self) -> Option<Span<'_>> {
        let (begin, end) = (self.begin.as_ref()?, self.end.as_ref()?);
        let seconds = (end.at_ns - begin.at_ns) as f64 / 1e9;
        Some(Span { begin, end, seconds, columns: File::Host.columns() })
    }
}

/// From the first reading to the last. Percentages of CPU are of one core, but for those of the machine.
pub struct Span<'a> {
    begin: &'a Reading,
    end: &'a Reading,
    seconds: f64,
    columns: Vec<Column>,
}

/// What the probe costs: CPU of its threads and, where they run here, its server processes; the share of time in which it
/// was busy or waited for the server; looks and reads a second.
pub struct ProbeCost {
    pub thread_percent: f64,
    pub server_percent: Option<f64>,
    pub busy_percent: f64,
    pub looks_per_second: f64,
    pub reads_per_second: f64,
}

impl Span<'_> {
    fn percent(&self, seconds: f64) -> f64 {
        seconds / self.seconds * 100.0
    }

    pub fn own_percent(&self) -> f64 {
        self.percent(self.end.own_s - self.begin.own_s)
    }

    pub fn busiest_generator_percent(&self) -> f64 {
        self.most_of_a_generator(|thread| thread.cpu_s)
    }

    /// The time in which a generator was ready to run and did not get a core.
    pub fn longest_wait_percent(&self) -> f64 {
        self.most_of_a_generator(|thread| thread.run_delay_s)
    }

    fn most_of_a_generator(&self, time_s: fn(&OwnThread) -> f64) -> f64 {
        let grown = |thread: &OwnThread| {
            let before = self.begin.threads.iter().find(|t| t.name == thread.name).map_or(0.0, time_s);
            self.percent(time_s(thread) - before)
        };
        self.end.threads(thread::GENERATOR).map(grown).fold(0.0, f64::max)
    }

    /// Of all cores.
    pub fn host_busy_percent(&self) -> f64 {
        let idle = self.host_growth("host_cpu_idle_seconds_total")
            + self.host_growth("host_cpu_iowait_seconds_total");
        (1.0 - idle / (self.seconds * self.cores())).clamp(0.0, 1.0) * 100.0
    }

    /// Time that the machine's host gave to others, of all cores.
    pub fn steal_percent(&self) -> f64 {
        self.host_growth("host_cpu_steal_seconds_total") / (self.seconds * self.cores()) * 100.0
    }

    fn host_growth(&self, name: &str) -> f64 {
        let of = |reading: &Reading| reading.host.get(&self.columns, name).unwrap_or(0.0);
        of(self.end) - of(self.begin)
    }

    fn cores(&self) -> f64 {
        self.end.host.get(&self.columns, "host_cores").unwrap_or(1.0).max(1.0)
    }

    /// `None` where there is no probe.
    pub fn probe(&self) -> Option<ProbeCost> {
        let (begin, end) = (self.begin, self.end);
        let cpu_s = |of: &Reading| of.threads(thread::PROBE).map(|thread| thread.cpu_s).sum::<f64>();
        let server = begin.backends.zip(end.backends).filter(|(a, b)| a.0 == b.0).map(|(a, b)| b.1 - a.1);
        (self.seconds > 0.0 && end.looks > begin.looks).then(|| ProbeCost {
            thread_percent: self.percent(cpu_s(end) - cpu_s(begin)),
            server_percent: server.map(|seconds| self.percent(seconds)),
            busy_percent: self.percent(end.probe_busy_s - begin.probe_busy_s),
            looks_per_second: (end.looks - begin.looks) as f64 / self.seconds,
            reads_per_second: (end.reads - begin.reads) as f64 / self.seconds,
        })
    }
}
