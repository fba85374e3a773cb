//! Starts the threads of a run: the probe, where there is something to look at, and the generators, each with a producer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::base::clock::{Clock, SECOND_NS};
use crate::base::{descriptors, signals, thread};
use crate::measure::latency::{self, Collector, Set};
use crate::measure::newest::Newest;
use crate::message::known::Known;
use crate::message::payload::Writer;
use crate::message::stream::{self, STREAMS_MAX, Stream};
use crate::plan::Plan;
use crate::send::courier::{self, Courier, Routes};
use crate::send::generate::{self, Finished, Generator, Outlets, Shared};
use crate::send::reader::{self, Asking};
use crate::send::replay::{Replay, Score};
use crate::server::http::target::Server as Target;
use crate::server::kafka::{IN_FLIGHT_MAX, Producer};
use crate::verb::run::counts::Counts;
use crate::verb::run::readings::Readings;
use crate::verb::run::reporter::Reporter;
use crate::verb::run::setup::Setup;
use crate::watch::consumer::Consumer;
use crate::watch::counters;
use crate::watch::probe::{self, Probe};
use crate::watch::server::Server;

/// Between the set-up and the first message: threads start and producers connect.
const AHEAD: Duration = Duration::from_millis(500);

pub struct Started {
    pub generators: Vec<JoinHandle<Finished>>,
    pub probe: Option<Looking>,
    pub readers: Vec<JoinHandle<reader::Finished>>,
    pub reporter: Reporter,
    pub score: Score,
    pub cast: Cast,
    /// Ends the sending.
    pub stop: Arc<AtomicBool>,
}

/// The probe at work.
pub struct Looking {
    thread: JoinHandle<Result<Box<Set>>>,
    stop: Arc<AtomicBool>,
}

impl Looking {
    /// It looks once more, and leaves what it has not handed over.
    pub fn end(self) -> Result<Box<Set>> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("the probe does not panic")
    }
}

/// When the run begins, when it begins to count, and when the last message is due.
struct Times {
    clock: Clock,
    warmup_ns: i64,
    end_ns: i64,
}

/// One thread's part of the run, and the counters that others see of it.
struct Part {
    thread: usize,
    streams: Vec<Stream>,
    counters: Arc<generate::Counters>,
}

/// The streams of all threads of all parts, and which threads are ours.
#[derive(Clone)]
pub struct Cast {
    pub all: Vec<Vec<Stream>>,
    pub first: usize,
    pub threads: usize,
}

impl Cast {
    pub fn own(&self) -> &[Vec<Stream>] {
        &self.all[self.first..self.first + self.threads]
    }

    pub fn known(&self, plan: &Plan) -> Known {
        let all = self.all.iter().flatten().count();
        Known::new(plan.run, plan.models(), &self.own().concat(), all)
    }
}

pub fn start(plan: &Plan, directory: &Path, setup: Option<&Setup>) -> Result<Started> {
    let models = plan.models();
    let rows = models.len() + plan.readers.len();
    descriptors::make_room(connections(plan))?;
    let cast = cast(plan, setup)?;
    let consumer = Consumer::start(&plan.args)?;
    let shape = Arc::new(plan.full_shape());
    let times = Times {
        clock: clock(plan)?,
        warmup_ns: plan.args.warmup.as_nanos() as i64,
        end_ns: (shape.seconds() * SECOND_NS as f64) as i64,
    };
    let stop = signals::stop_flag();
    let seen = Arc::new(counters::Counters::new(models.len()));
    let mut collectors = Vec::new();
    let score = Score {
        run: plan.run,
        seed: plan.args.user_flags.seed,
        mix: plan.mix.clone(),
        people: plan.people(),
        shape: shape.clone(),
        arrivals: plan.args.arrivals,
        threads: plan.threads().0,
        clock: times.clock,
    };
    let looks = setup.filter(|_| plan.has_tables());
    let probe = looks
        .map(|setup| start_probe(plan, setup, &times, &score, &cast, &seen, &mut collectors))
        .transpose()?;
    let newest: Vec<Arc<Newest>> = match plan.readers.is_empty() {
        true => Vec::new(),
        false => models.iter().map(|_| Arc::default()).collect(),
    };
    let shared = Arc::new(shared(plan, &times, newest.clone(), stop.clone()));
    let routes = if plan.args.null { None } else { Routes::of(plan)? };
    let (mut generators, mut sent) = (Vec::new(), Vec::new());
    for (at, streams) in cast.own().iter().cloned().enumerate() {
        let part = Part { thread: cast.first + at, streams, counters: Arc::default() };
        sent.push(part.counters.clone());
        generators.push(start_generator(plan, &score, &shared, routes.clone(), part, &mut collectors)?);
    }
    let mut readers = Vec::new();
    if !plan.args.null {
        for number in 0..plan.readers.len() {
            readers.push(start_reader(plan, &score, &shared, &newest, number, &mut collectors)?);
        }
    }
    let (asked, readers): (Vec<_>, Vec<_>) = readers.into_iter().unzip();
    let observer = setup.filter(|_| plan.has_database()).and_then(|_| plan.database.connect("observer").ok());
    let counts = Counts::new(rows, collectors, sent, asked, seen);
    let shape = Arc::new(shape.scaled(plan.share()));
    let readings = Readings::new(&plan.args, times.clock, shape, counts, consumer, Server::new(observer));
    let reporter = Reporter::new(plan, directory, readings)?;
    Ok(Started { generators, readers, probe, reporter, score, cast, stop })
}

/// Of HTTP, at most.
fn connections(plan: &Plan) -> u64 {
    if plan.args.null {
        return 0;
    }
    let doors = plan.mix.0.iter().filter(|(model, _)| model.http.is_some()).count();
    let of_readers: usize = plan.readers.iter().map(|reader| reader.clients).sum();
    // Shared out among the threads, and rounded up.
    (doors * (plan.args.connections + plan.args.threads) + of_readers) as u64
}

fn clock(plan: &Plan) -> Result<Clock> {
    let Some(at) = plan.args.start_at else { return Ok(Clock::starting_in(AHEAD)) };
    let clock = Clock::starting_at(at.as_microsecond());
    if clock.now_ns() > -(AHEAD.as_nanos() as i64) {
        bail!(
            "--start-at {at} has passed, or comes before everything is set up; say a later time to all parts"
        );
    }
    Ok(clock)
}

fn cast(plan: &Plan, setup: Option<&Setup>) -> Result<Cast> {
    let (threads, first) = plan.threads();
    let partitions = setup.map_or(vec![1; plan.mix.0.len()], |setup| setup.partitions.clone());
    let all = stream::streams(threads, &partitions);
    let count = all.iter().flatten().count();
    if count > STREAMS_MAX {
        bail!(
            "{threads} threads with {partitions:?} partitions need {count} streams; {STREAMS_MAX} are the most"
        );
    }
    Ok(Cast { all, first, threads: plan.args.threads })
}

fn start_reader(
    plan: &Plan,
    score: &Score,
    shared: &Shared,
    newest: &[Arc<Newest>],
    number: usize,
    collectors: &mut Vec<Collector>,
) -> Result<(Arc<reader::Counters>, JoinHandle<reader::Finished>)> {
    let (models, asks) = (plan.models(), plan.readers[number].clone());
    let (recording, collector) = latency::recording(models.len() + plan.readers.len());
    collectors.push(collector);
    let of_model = asks.freshness.as_ref().and_then(|fresh| {
        let at = models.iter().position(|model| model.name == fresh.model)?;
        newest.get(at).cloned()
    });
    let desk = reader::Desk {
        server: Target::resolve(&asks.url, plan.args.http_ca.as_deref())?,
        bearer: plan.args.bearer_file.as_deref().map(courier::bearer).transpose()?,
        reader: asks,
        row: models.len() + number,
        number,
        answer_within: plan.args.answer_within,
        newest: of_model,
        warmup_ns: shared.warmup_ns,
        end_ns: shared.end_ns,
        stop: shared.stop.clone(),
    };
    let (counters, score): (Arc<reader::Counters>, _) = (Arc::default(), score.clone());
    let seen = counters.clone();
    let thread = thread::spawn(&format!("{}{number}", thread::READER), move || {
        prepare_thread(None);
        let asking = Asking::new(desk, &score, recording, counters);
        asking.expect("a thread may have an epoll of its own").run()
    })?;
    Ok((seen, thread))
}

fn start_probe(
    plan: &Plan,
    setup: &Setup,
    times: &Times,
    score: &Score,
    cast: &Cast,
    seen: &Arc<counters::Counters>,
    collectors: &mut Vec<Collector>,
) -> Result<Looking> {
    let models = plan.models();
    let (recording, collector) = latency::recording(models.len() + plan.readers.len());
    collectors.push(collector);
    let settings = probe::Settings {
        clock: times.clock,
        interval_ns: plan.args.probe_interval.as_nanos() as i64,
        warmup_ns: times.warmup_ns,
        end_ns: times.end_ns,
        replay: Replay::is_needed(&models).then(|| Replay::new(score.clone(), 0, &cast.all)),
        known: cast.known(plan),
        forms: setup.tables.1.clone(),
        commit_times: setup.commit_times,
    };
    let probe = Probe::new(&plan.database, settings, setup.tables.0.clone(), recording, seen.clone())?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    Ok(Looking { thread: thread::spawn(thread::PROBE, move || probe.run(&told))?, stop })
}

fn shared(plan: &Plan, times: &Times, newest: Vec<Arc<Newest>>, stop: Arc<AtomicBool>) -> Shared {
    Shared {
        clock: times.clock,
        mix: plan.mix.clone(),
        warmup_ns: times.warmup_ns,
        end_ns: times.end_ns,
        in_flight: IN_FLIGHT_MAX / plan.args.threads,
        newest,
        stop,
    }
}

fn start_generator(
    plan: &Plan,
    score: &Score,
    shared: &Arc<Shared>,
    routes: Option<Routes>,
    part: Part,
    collectors: &mut Vec<Collector>,
) -> Result<JoinHandle<Finished>> {
    let (args, number) = (&plan.args, part.thread);
    let (recording, collector) = latency::recording(plan.mix.0.len() + plan.readers.len());
    collectors.push(collector);
    // Made here, because librdkafka's threads inherit the cores of the thread that makes them.
    let kafka = (!args.null && plan.has_topics()).then(|| producer(plan, shared.in_flight)).transpose()?;
    let course = score.course(number, &part.streams);
    let writer = Writer::new(score.seed, plan.run, score.people.clone(), plan.extra.clone());
    let (shared, seed) = (shared.clone(), score.seed ^ number as u64);
    let core = args.pin.as_ref().map(|cores| cores.0[number % cores.0.len()]);
    thread::spawn(&format!("{}{number}", thread::GENERATOR), move || {
        prepare_thread(core);
        let http = routes.map(|routes| Courier::new(routes, seed)).transpose();
        let http = http.expect("a thread may have an epoll of its own");
        let outlets = Outlets { kafka, http };
        Generator::new(shared, course, outlets, part.streams, writer, recording, part.counters).run()
    })
}

fn producer(plan: &Plan, in_flight: usize) -> Result<Box<Producer>> {
    // A topic by the name of what goes over HTTP must not come into being; nothing is sent to the one in its place.
    let is_kafka = |at: &usize| plan.mix.0[*at].0.http.is_none();
    let first = (0..plan.topics.len()).find(is_kafka).unwrap_or(0);
    let place = |at: usize| if is_kafka(&at) { at } else { first };
    let topics: Vec<&str> = (0..plan.topics.len()).map(|at| plan.topics[place(at)].as_str()).collect();
    Ok(Box::new(Producer::new(&plan.kafka, &topics, in_flight, plan.args.linger_ms)?))
}

/// Timers as exact as the kernel has them; pinned only now, because librdkafka's threads inherit the cores of the thread
/// that made them.
fn prepare_thread(core: Option<usize>) {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        log::debug!("timer slack stays as it is: {error}");
    }
    if let Some(id) = core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        log::warn!("core {id} of --pin is not available; the thread runs where the kernel puts it");
    }
}
