//! Starts the threads of a run: the probe, where there is something to look at, and the generators, each with a producer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::base::clock::{Clock, SECOND_NS};
use crate::base::{signals, thread};
use crate::measure::latency::{self, Collector, Set};
use crate::message::keys::Keys;
use crate::message::payload::Writer;
use crate::message::stream::{self, STREAMS_MAX, Stream};
use crate::plan::Plan;
use crate::plan::shape::Shape;
use crate::send::generate::{self, Finished, Generator, Shared};
use crate::send::schedule::Schedule;
use crate::server::kafka::IN_FLIGHT_MAX;
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
    pub reporter: Reporter,
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

pub fn start(plan: &Plan, directory: &Path, setup: Option<&Setup>) -> Result<Started> {
    let models = plan.args.mix.models();
    let streams = streams(plan, setup)?;
    let consumer = Consumer::start(&plan.args)?;
    let shape = Arc::new(plan.full_shape());
    let times = Times {
        clock: Clock::starting_in(AHEAD),
        warmup_ns: plan.args.warmup.as_nanos() as i64,
        end_ns: (shape.seconds() * SECOND_NS as f64) as i64,
    };
    let stop = signals::stop_flag();
    let seen = Arc::new(counters::Counters::new(models.len()));
    let mut collectors = Vec::new();
    let models_of: Vec<usize> = streams.iter().flatten().map(|stream| stream.model).collect();
    let probe =
        setup.map(|setup| start_probe(plan, setup, &times, models_of, &seen, &mut collectors)).transpose()?;
    let shared = Arc::new(shared(plan, &times, stop.clone()));
    let (mut generators, mut sent) = (Vec::new(), Vec::new());
    for (thread, streams) in streams.into_iter().enumerate() {
        let part = Part { thread, streams, counters: Arc::default() };
        sent.push(part.counters.clone());
        generators.push(start_generator(plan, &shape, &shared, part, &mut collectors)?);
    }
    let observer = setup.and_then(|_| plan.database.connect("observer").ok());
    let counts = Counts::new(models.len(), collectors, sent, seen);
    let readings = Readings::new(&plan.args, times.clock, shape, counts, consumer, Server::new(observer));
    Ok(Started { generators, probe, reporter: Reporter::new(plan, directory, readings)?, stop })
}

/// The streams of each thread.
fn streams(plan: &Plan, setup: Option<&Setup>) -> Result<Vec<Vec<Stream>>> {
    let threads = plan.args.threads;
    let partitions = setup.map_or(vec![1; plan.args.mix.0.len()], |setup| setup.partitions.clone());
    let streams = stream::streams(threads, &partitions);
    let all = streams.iter().flatten().count();
    if all > STREAMS_MAX {
        bail!(
            "{threads} threads with {partitions:?} partitions need {all} streams; {STREAMS_MAX} are the most"
        );
    }
    Ok(streams)
}

fn start_probe(
    plan: &Plan,
    setup: &Setup,
    times: &Times,
    streams: Vec<usize>,
    seen: &Arc<counters::Counters>,
    collectors: &mut Vec<Collector>,
) -> Result<Looking> {
    let models = plan.args.mix.models();
    let (recording, collector) = latency::recording(models.len());
    collectors.push(collector);
    let settings = probe::Settings {
        run: plan.run,
        clock: times.clock,
        interval_ns: plan.args.probe_interval.as_nanos() as i64,
        warmup_ns: times.warmup_ns,
        end_ns: times.end_ns,
        streams,
        models,
        commit_times: setup.commit_times,
    };
    let probe = Probe::new(&plan.database, settings, setup.leaves.clone(), recording, seen.clone())?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    Ok(Looking { thread: thread::spawn(thread::PROBE, move || probe.run(&told))?, stop })
}

fn shared(plan: &Plan, times: &Times, stop: Arc<AtomicBool>) -> Shared {
    Shared {
        clock: times.clock,
        mix: plan.args.mix.clone(),
        keys: Keys::new(plan.args.user_flags.users, plan.args.keys),
        tokens: Arc::new(plan.users.tokens()),
        seed: plan.args.user_flags.seed,
        warmup_ns: times.warmup_ns,
        end_ns: times.end_ns,
        in_flight: IN_FLIGHT_MAX / plan.args.threads,
        stop,
    }
}

fn start_generator(
    plan: &Plan,
    shape: &Arc<Shape>,
    shared: &Arc<Shared>,
    part: Part,
    collectors: &mut Vec<Collector>,
) -> Result<JoinHandle<Finished>> {
    let (args, number) = (&plan.args, part.thread);
    let models = args.mix.models();
    let (recording, collector) = latency::recording(models.len());
    collectors.push(collector);
    let kafka = (!args.null).then_some(&plan.kafka);
    let generator = Generator::new(
        shared.clone(),
        number,
        Schedule::new(shape.clone(), args.arrivals, shared.seed, number as u64, args.threads as u64),
        generate::sink(kafka, &models, &plan.topics, shared.in_flight, args.linger_ms)?,
        part.streams,
        plan.run,
        Writer::new(shared.seed, plan.run, plan.extra.clone()),
        recording,
        part.counters,
    );
    let core = args.pin.as_ref().map(|cores| cores.0[number % cores.0.len()]);
    thread::spawn(&format!("{}{number}", thread::GENERATOR), move || {
        prepare_thread(core);
        generator.run()
    })
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
