//! Once a second: takes a reading of everything, hands it to every output, shows a line. Runs on the main thread; nothing
//! here is on the way of a message.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::base::clock::SECOND_NS;
use crate::judge::abort::Aborts;
use crate::judge::verdict;
use crate::measure::columns::Values;
use crate::measure::latency::Set;
use crate::measure::phase::Phase;
use crate::measure::tally::Tally;
use crate::plan::Plan;
use crate::tell::files::{Files, Second};
use crate::tell::statsd::Statsd;
use crate::tell::terminal::{self, Line};
use crate::tell::tui::{self, Screen, View};
use crate::verb::run::facts::facts;
use crate::verb::run::readings::Readings;
use crate::watch::observe;

/// The threads hand their histograms over as a second ends; this much later all have, on a busy machine too. What comes
/// later is shown a second late, and nothing is lost.
const AFTER_NS: i64 = SECOND_NS / 4;

/// Between two looks of the main thread at the clock, while others work.
pub const GLANCE: Duration = Duration::from_millis(5);

pub struct Reporter {
    pub readings: Readings,
    run: String,
    host: observe::Host,
    files: Files,
    statsd: Option<Statsd>,
    screen: Option<Screen>,
    aborts: Aborts,
    next_ns: i64,
    began: Instant,
}

impl Reporter {
    pub fn new(plan: &Plan, directory: &Path, readings: Readings) -> Result<Self> {
        let args = &plan.args;
        let (run, host_name) = (format!("{:08x}", plan.run), observe::host_name());
        let tags = vec![("run".to_owned(), run.clone()), ("host".to_owned(), host_name.clone())];
        let start_us = readings.clock.wall_us(0);
        Ok(Self {
            files: Files::create(directory, run.clone(), host_name, args.csv_time, start_us)?,
            run,
            host: observe::Host::default(),
            statsd: args
                .statsd
                .as_deref()
                .map(|url| Statsd::connect(url, args.statsd_tags, tags))
                .transpose()?,
            screen: if args.tui { Screen::open() } else { None },
            aborts: Aborts::new(&args.abort_on, args.abort_grace.as_nanos() as i64),
            next_ns: SECOND_NS + AFTER_NS,
            began: Instant::now(),
            readings,
        })
    }

    /// Does this second's work when it has passed. Without a phase it follows from the time.
    pub fn tick_if_due(&mut self, phase: Option<Phase>) {
        let now_ns = self.readings.clock.now_ns();
        self.readings.begin_steady_if_due(now_ns);
        if now_ns < self.next_ns {
            return;
        }
        let phase = phase.unwrap_or(match now_ns - SECOND_NS / 2 {
            ns if ns < 0 => Phase::Setup,
            ns if ns < self.readings.warmup_ns() => Phase::Warmup,
            _ => Phase::Steady,
        });
        self.next_ns = now_ns.div_euclid(SECOND_NS) * SECOND_NS + SECOND_NS + AFTER_NS;
        self.tick(now_ns, phase);
    }

    fn tick(&mut self, now_ns: i64, phase: Phase) {
        let (mut values, process) = self.readings.second(now_ns, phase);
        let dropped = self.statsd.as_ref().map_or(0, |statsd| statsd.dropped);
        values.set(&self.files.intervals.columns, "statsd_dropped_total", dropped as f64);
        let host = self.host.sample();
        let second = Second {
            begin_ns: self.readings.last_ns(),
            end_ns: now_ns,
            time_us: self.readings.clock.wall_us(now_ns),
            phase,
            intervals: &values,
            host: &host,
            process: process.as_ref(),
            histograms: &self.readings.counts.second,
        };
        if let Some(statsd) = &mut self.statsd {
            statsd.send_second(&second, self.readings.args.statsd_timers);
        }
        let disks = observe::disks(&self.files.disk.columns);
        let networks = observe::networks(&self.files.net.columns);
        self.files.write(&second, &disks, &networks);
        self.aborts.note(&self.files.intervals.columns, &values);
        if !self.is_quiet() {
            self.show(now_ns, phase, &values, process.as_ref());
        }
        self.readings.end_second(now_ns);
    }

    /// The second as a line, or as a frame of the screen.
    fn show(&self, now_ns: i64, phase: Phase, values: &Values, process: Option<&Values>) {
        let columns = &self.files.intervals.columns;
        let line = Line {
            at_s: now_ns as f64 / 1e9,
            all_s: self.readings.shape.seconds(),
            phase,
            values: &|name| values.get(columns, name),
            slope: self.readings.backlog.slope().map(|(slope, _)| slope),
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
            backlog_max: self.readings.backlog.peak(),
            total: &|latency| self.readings.counts.total.all(latency).summary(),
            reasons: &verdict::reasons(&facts(&self.readings, until_s)),
            colors: tui::colors(),
        }));
    }

    pub fn is_quiet(&self) -> bool {
        self.readings.args.quiet
    }

    /// The sentence of an --abort-on condition that has held for its time of grace; once.
    pub fn must_abort(&mut self) -> Option<String> {
        self.aborts.due(self.readings.clock.now_ns())
    }

    /// Takes in what the threads still held and closes the files.
    pub fn finish(&mut self, left_behind: &[Box<Set>]) {
        self.readings.counts.collect(left_behind);
        let rest = &self.readings.counts.second;
        self.files.close(self.readings.last_ns(), self.readings.clock.now_ns(), rest);
        if let Some(statsd) = &mut self.statsd {
            if self.readings.args.statsd_timers {
                statsd.send_timers(Phase::Drain, rest);
            }
            statsd.finish();
        }
        self.screen = None;
    }

    /// The account, for StatsD.
    pub fn tell(&mut self, tally: &Tally) {
        if let Some(statsd) = &mut self.statsd {
            statsd.send_tally(tally);
        }
    }

    /// Why the files are not complete.
    pub fn file_error(&self) -> Option<String> {
        self.files.failed().map(str::to_owned)
    }

    pub fn elapsed_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
