//! One run from beginning to end: set up, send, drain, verify, judge, report.

pub mod reporter;
pub mod setup;
pub mod summarize;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postgres::Client;

use crate::base::clock::{Clock, SECOND_NS};
use crate::base::signals;
use crate::judge::locate;
use crate::judge::summary::{Drained, Summary};
use crate::judge::verdict;
use crate::judge::verify::{self, Outcomes, Sent};
use crate::measure::latency::{self, Latency, Set};
use crate::measure::tally::Tally;
use crate::message::keys::Keys;
use crate::message::payload::Writer;
use crate::message::stream::{self, STREAMS_MAX};
use crate::plan::options::Plan;
use crate::plan::words::{Depth, HostFormat, RowTimestamp};
use crate::send::generate::{self, Counters, Finished, Generator, Shared};
use crate::send::schedule::Schedule;
use crate::server::kafka::IN_FLIGHT_MAX;
use crate::server::pg::{self, ClockOffset};
use crate::server::users;
use crate::tell::json;
use crate::tell::terminal;
use crate::verb::run::reporter::{Phase, Reporter};
use crate::verb::run::setup::{Setup, set_up};
use crate::verb::run::summarize::summarize;
use crate::watch::counters;
use crate::watch::probe::{self, Probe};
use crate::watch::target;

/// Between the set-up and the first message: threads start and producers connect.
const AHEAD: Duration = Duration::from_millis(500);
/// So long without a new row, and the drain counts what there is; and again so much later.
const QUIET_NS: i64 = 2 * SECOND_NS;
/// After the drain: what appears now appeared late.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Does the run and writes its results into `directory`.
pub fn run(plan: &Plan, directory: &Path) -> Result<Summary> {
    if plan.args.null {
        run_with(plan, directory, None)
    } else {
        run_with(plan, directory, Some(set_up(plan)?))
    }
}

fn run_with(plan: &Plan, directory: &Path, setup: Option<Setup>) -> Result<Summary> {
    let args = &plan.args;
    let models = args.mix.models();
    let partitions = setup.as_ref().map_or(vec![1; models.len()], |s| s.partitions.clone());
    let streams = stream::streams(args.threads, &partitions);
    let all_streams = streams.concat();
    if all_streams.len() > STREAMS_MAX {
        bail!(
            "{} threads with {partitions:?} partitions need {} streams; {STREAMS_MAX} are the most",
            args.threads,
            all_streams.len()
        );
    }
    let mut target = target::start(args)?;
    let shape = Arc::new(plan.full_shape());
    let warmup_ns = args.warmup.as_nanos() as i64;
    let end_ns = (shape.seconds() * SECOND_NS as f64) as i64;
    let clock = Clock::starting_in(AHEAD);
    let stop = signals::stop_flag();

    let probe_counters = Arc::new(counters::Counters::new(models.len()));
    let stop_probe = Arc::new(AtomicBool::new(false));
    let (recording, collector) = latency::recording(models.len());
    let mut collectors = vec![collector];
    let probe = match &setup {
        None => None,
        Some(setup) => {
            let settings = probe::Settings {
                run: plan.run,
                clock,
                interval_ns: args.probe_interval.as_nanos() as i64,
                warmup_ns,
                end_ns,
                streams: all_streams.iter().map(|s| s.model).collect(),
                models: models.clone(),
                commit_times: setup.commit_times,
            };
            let probe = Probe::new(
                &plan.database,
                settings,
                setup.leaves.clone(),
                recording,
                probe_counters.clone(),
            )?;
            let stop = stop_probe.clone();
            Some(spawn("lt-probe", move || probe.run(&stop))?)
        }
    };

    let shared = Arc::new(Shared {
        clock,
        mix: args.mix.clone(),
        keys: Keys::new(args.user_flags.users, args.keys),
        tokens: Arc::new(plan.users.tokens()),
        seed: args.user_flags.seed,
        warmup_ns,
        end_ns,
        in_flight: IN_FLIGHT_MAX / args.threads,
        stop: stop.clone(),
    });
    let mut generators = Vec::new();
    let mut counters = Vec::new();
    for (thread, streams) in streams.into_iter().enumerate() {
        let (recording, collector) = latency::recording(models.len());
        collectors.push(collector);
        counters.push(Arc::new(Counters::default()));
        let kafka = (!args.null).then_some(&plan.kafka);
        let sink = generate::sink(kafka, &models, &plan.topics, shared.in_flight, args.linger_ms)?;
        let schedule =
            Schedule::new(shape.clone(), args.arrivals, shared.seed, thread as u64, args.threads as u64);
        let writer = Writer::new(shared.seed, plan.run, plan.extra.clone());
        let generator = Generator::new(
            shared.clone(),
            thread,
            schedule,
            sink,
            streams,
            plan.run,
            writer,
            recording,
            counters[thread].clone(),
        );
        let core = args.pin.as_ref().map(|cores| cores.0[thread % cores.0.len()]);
        generators.push(spawn(&format!("lt-gen-{thread}"), move || {
            prepare_thread(core);
            generator.run()
        })?);
    }

    let observer = setup.as_ref().and_then(|_| plan.database.connect("observer").ok());
    let mut reporter = Reporter::new(
        plan,
        directory,
        clock,
        shape.clone(),
        collectors,
        counters,
        probe_counters.clone(),
        observer,
    )?;
    let finished = wait_for_generators(generators, &mut reporter, &mut target, &stop)?;
    reporter.sending_ended();

    let (drained, late) = if probe.is_some() {
        drain(plan, &mut reporter, &mut target)?
    } else {
        (Drained { complete: true, ..Drained::default() }, Vec::new())
    };
    stop_probe.store(true, Relaxed);
    let mut error = finished
        .iter()
        .find_map(|f| f.refused.clone())
        .map(|reason| format!("the producer refused messages: {reason}"));
    let mut sets: Vec<Box<Set>> = finished.iter().map(|f| f.set.clone()).collect();
    if let Some(probe) = probe {
        match probe.join().expect("the probe does not panic") {
            Ok(set) => sets.push(set),
            Err(problem) => error = Some(format!("{problem:#}")),
        }
    }
    reporter.finish(&sets)?;

    let sent = sent(plan, &models, finished);
    let checked = match &setup {
        None => Ok((account_only(&sent), ClockOffset::default(), None)),
        Some(setup) => check(plan, setup, &sent, directory, &mut reporter),
    };
    let (mut outcomes, offset_after, users_found) = match checked {
        Ok(checked) => checked,
        Err(problem) => {
            error.get_or_insert(format!("{problem:#}"));
            (account_only(&sent), ClockOffset::default(), None)
        }
    };
    if let Some(problem) = &outcomes.not_written {
        error.get_or_insert(format!(
            "write verify_bad.csv: {problem}; the counts are complete, the list is not; free some space, or choose another --out"
        ));
    }
    if setup.is_some() {
        add_what_the_probe_saw(&mut outcomes.models, &probe_counters, &late, args.verify);
        reporter.tell(&outcomes.tally());
    }
    if args.cleanup && setup.is_some() {
        let mut redis = users::connect(&args.servers.redis, args.servers.redis_ca.as_deref())?;
        plan.users.remove(&mut redis)?;
    }
    error = error.or_else(|| event_time(plan, &probe_counters, &reporter));
    error = error.or_else(|| target.as_mut().and_then(|t| t.ended_by_itself()));
    drop(target);

    let mut summary = summarize(
        plan,
        directory,
        setup,
        offset_after,
        users_found,
        outcomes,
        drained,
        reporter,
        error,
        &sent,
    );
    let written = json::write(directory, &summary)
        .and_then(|()| crate::tell::html::write(directory))
        .and_then(|()| match args.host_format {
            HostFormat::Csv => Ok(()),
            HostFormat::Sadf => crate::tell::sadf::write_files(directory),
        })
        .and_then(|()| if args.ci { crate::tell::ci::write(directory, &summary) } else { Ok(()) });
    // What was measured is still worth printing.
    if let Err(problem) = written {
        summary.error.get_or_insert(format!("{problem:#}"));
        summary.exit = verdict::Exit::Error;
    }
    Ok(summary)
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).with_context(|| format!("start the thread {name}"))
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

fn wait_for_generators(
    generators: Vec<JoinHandle<Finished>>,
    reporter: &mut Reporter,
    target: &mut Option<target::Target>,
    stop: &AtomicBool,
) -> Result<Vec<Finished>> {
    while !generators.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(5));
        reporter.sample();
        reporter.tick_if_due(None, target)?;
        if let Some(reason) = reporter.must_abort() {
            log::warn!("{reason}; the run ends here");
            stop.store(true, Relaxed);
        }
    }
    Ok(generators.into_iter().map(|g| g.join().expect("a generator does not panic")).collect())
}

/// Waits until every acknowledged message has its row or dead letter, or the user's patience ends. Then, by model, how many
/// rows appeared after that.
fn drain(
    plan: &Plan,
    reporter: &mut Reporter,
    target: &mut Option<target::Target>,
) -> Result<(Drained, Vec<u64>)> {
    let began_ns = reporter.clock.now_ns();
    let patience_ns = plan.args.drain_timeout.as_nanos() as i64;
    let (mut last_stored, mut moved_ns, mut next_count_ns) = (0, began_ns, 0);
    let complete = loop {
        let now_ns = reporter.clock.now_ns();
        if last_stored != reporter.stored() {
            (last_stored, moved_ns) = (reporter.stored(), now_ns);
        }
        if last_stored >= reporter.acked() {
            break true;
        }
        if now_ns - began_ns > patience_ns || signals::count() > 1 {
            break false;
        }
        // Dead letters never become rows, and a row in a hole of a table is not seen by the probe.
        if now_ns - moved_ns > QUIET_NS && now_ns >= next_count_ns {
            if all_settled(plan, reporter) {
                break true;
            }
            next_count_ns = reporter.clock.now_ns() + QUIET_NS;
        }
        std::thread::sleep(Duration::from_millis(5));
        reporter.sample();
        reporter.tick_if_due(Some(Phase::Drain), target)?;
    };
    let ended_ns = if complete { moved_ns } else { reporter.clock.now_ns() };
    let stored = reporter.stored_by_model();
    let until_ns = reporter.clock.now_ns() + SECOND_LOOK.as_nanos() as i64;
    while reporter.clock.now_ns() < until_ns {
        std::thread::sleep(Duration::from_millis(5));
        reporter.tick_if_due(Some(Phase::Drain), target)?;
    }
    let late = reporter.stored_by_model().iter().zip(stored).map(|(now, then)| now - then).collect();
    Ok((Drained { seconds: (ended_ns - began_ns) as f64 / 1e9, complete }, late))
}

/// Counts what the tables and dead letters hold of this run. Where they do not answer, the drain goes on.
fn all_settled(plan: &Plan, reporter: &Reporter) -> bool {
    let count = || -> Result<u64> {
        let mut client = plan.database.connect("drain")?;
        let rejected = verify::dead_letters(&mut client, plan.run)?.len() as u64;
        let leaves = pg::list_leaves(&mut client, &plan.args.mix.models())?;
        Ok(pg::count_run(&mut client, &leaves, plan.run)?.saturating_sub(reporter.duplicated()) + rejected)
    };
    count().is_ok_and(|settled| settled >= reporter.acked())
}

/// All threads' accounts together, by stream id.
fn sent(plan: &Plan, models: &[crate::message::model::Model], finished: Vec<Finished>) -> Sent {
    let mut sent = Sent {
        run: plan.run,
        seed: plan.args.user_flags.seed,
        models: models.to_vec(),
        topics: plan.topics.clone(),
        keys: Keys::new(plan.args.user_flags.users, plan.args.keys),
        user_ids: (0..plan.users.count).map(|n| plan.users.id_of(n)).collect(),
        streams: Vec::new(),
        accounts: Vec::new(),
        offsets: Vec::new(),
    };
    for thread in finished {
        sent.streams.extend(thread.streams);
        sent.accounts.extend(thread.accounts);
        sent.offsets.extend(thread.offsets);
    }
    debug_assert!(sent.streams.iter().enumerate().all(|(at, stream)| usize::from(stream.id) == at));
    sent
}

fn account_only(sent: &Sent) -> Outcomes {
    verify::conclude_without_tables(sent)
}

type Checked = (Outcomes, ClockOffset, Option<usize>);

fn check(
    plan: &Plan,
    setup: &Setup,
    sent: &Sent,
    directory: &Path,
    reporter: &mut Reporter,
) -> Result<Checked> {
    let mut client: Client = plan.database.connect("verify")?;
    let offset = pg::clock_offset(&mut client)?;
    let leaves = pg::leaves(&mut client, &plan.args.mix.models())?;
    debug_assert!(leaves.len() >= setup.leaves.len());
    reporter.say_verifying();
    let path = directory.join("verify_bad.csv");
    let file = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut bad = std::io::BufWriter::new(file);
    writeln!(bad, "{}", verify::BAD_COLUMNS).with_context(|| format!("write {}", path.display()))?;
    let mut outcomes = verify::verify(
        &mut client,
        &leaves,
        sent,
        plan.args.verify,
        plan.args.rejects_sql.as_deref(),
        &mut bad,
    )?;
    outcomes.note_overtaken(sent, &reporter.overtaken(), &mut bad);
    name_offsets(plan, sent, reporter, &mut outcomes);
    outcomes.write_examples(&mut bad);
    let dead_letters = verify::count_dead_letters(&mut client, &plan.topics)?;
    for ((model, now), before) in outcomes.models.iter_mut().zip(dead_letters).zip(&setup.dead_letters) {
        model.dead_letters = now.saturating_sub(*before);
    }
    let mut redis = users::connect(&plan.args.servers.redis, plan.args.servers.redis_ca.as_deref())?;
    let present = plan.users.count_present(&mut redis)?;
    Ok((outcomes, offset, Some(present)))
}

/// The offsets of the examples, as far as Kafka still has them. Without them a bad row is still a bad row.
fn name_offsets(plan: &Plan, sent: &Sent, reporter: &Reporter, outcomes: &mut Outcomes) {
    if outcomes.examples.is_empty() {
        return;
    }
    let progress = |found, all| {
        if !reporter.is_quiet() {
            terminal::locating(found, all);
        }
    };
    match locate::locate(&plan.kafka, sent, &mut outcomes.examples, progress) {
        Ok(0) => {}
        Ok(missing) => log::warn!(
            "{missing} bad messages were not found again in Kafka: for them only an offset that they do not lie before is given"
        ),
        Err(error) => {
            log::warn!("{error:#}; for bad messages only an offset that they do not lie before is given")
        }
    }
}

/// Order, strangers and lateness are seen while the rows appear, not by reading back.
fn add_what_the_probe_saw(models: &mut [Tally], probe: &counters::Counters, late: &[u64], depth: Depth) {
    let (seen, reordered, foreign) = (probe.stored.each(), probe.reordered.each(), probe.foreign.each());
    for (at, model) in models.iter_mut().enumerate() {
        model.reordered = reordered[at];
        model.foreign = foreign[at];
        model.late_after_drain = late[at];
        if depth != Depth::None {
            model.unseen_by_probe = model.stored.saturating_sub(seen[at]);
        }
    }
}

/// Latency against a column that repeats the message's own time would be nothing but zeros.
fn event_time(plan: &Plan, probe: &counters::Counters, reporter: &Reporter) -> Option<String> {
    let rows = reporter.total(Latency::Row).summary().count;
    let equal = probe.row_is_event_time.load(Relaxed);
    (plan.args.row_timestamp != RowTimestamp::Event && rows > 100 && equal == rows).then(|| {
        "every row's timestamp is its time: this consumer writes event time there, so a latency against it means nothing; say \
         --row-timestamp event to leave it out"
            .to_owned()
    })
}

/// The directory of a run, named for its time and number.
pub fn directory(plan: &Plan) -> Result<PathBuf> {
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let directory = plan.args.out.join(format!("{now}-{:08x}", plan.run));
    std::fs::create_dir_all(&directory).with_context(|| {
        format!("create {} for the results; choose another place with --out", directory.display())
    })?;
    Ok(directory)
}
