//! One run from beginning to end: set up, send, drain, verify, judge, report.

pub mod settled;
pub mod sums;
pub mod setup;
pub mod counts;
pub mod readings;
pub mod facts;
pub mod results;
pub mod reporter;
pub mod start;
pub mod drain;
pub mod account;
pub mod summarize;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::judge::summary::{Drained, Summary};
use crate::judge::verdict;
use crate::measure::latency::{Latency, Set};
use crate::measure::phase::Phase;
use crate::plan::Plan;
use crate::plan::words::{HostFormat, RowTimestamp};
use crate::send::courier::Answers;
use crate::send::generate::Finished;
use crate::send::reader;
use crate::server::users;
use crate::tell::{ci, html, json, sadf};
use crate::verb::run::account::{Account, read_back, sent};
use crate::verb::run::drain::drain;
use crate::verb::run::reporter::{GLANCE, Reporter};
use crate::verb::run::setup::set_up;
use crate::verb::run::start::{Started, start};
use crate::verb::run::summarize::{Ended, summarize};

/// Does the run and writes its results into `directory`.
pub fn run(plan: &Plan, directory: &Path) -> Result<Summary> {
    let setup = if plan.args.null { None } else { Some(set_up(plan)?) };
    let Started { generators, readers, probe, mut reporter, score, cast, stop } =
        start(plan, directory, setup.as_ref())?;
    let finished = wait_for_generators(generators, &mut reporter, &stop);
    reporter.readings.end_sending();
    let readers = wait_for_readers(readers, &mut reporter);
    let (drained, late) = match probe {
        Some(_) => drain(plan, setup.as_ref().map_or(0, |setup| setup.there_before), &mut reporter),
        None => (Drained { complete: true, ..Drained::default() }, Vec::new()),
    };

    let mut trouble = Trouble::default();
    let mut left_behind: Vec<Box<Set>> = finished.iter().map(|f| f.set.clone()).collect();
    match probe.map(|probe| probe.end()).transpose() {
        Ok(set) => left_behind.extend(set),
        Err(problem) => trouble.note(Some(format!("{problem:#}"))),
    }
    left_behind.extend(readers.iter().map(|reader| reader.set.clone()));
    trouble.note(refused(&finished));
    let answers = answers(&finished);
    let sent = sent(plan, &score, &cast, finished);
    let before = setup.as_ref().map_or(&[][..], |setup| &setup.aggregates);
    let aggregates = match setup.is_some() {
        true => sums::settle(plan, &score, &cast, &sent, before, &mut reporter),
        false => Ok(Vec::new()),
    };
    let aggregates = aggregates.unwrap_or_else(|problem| {
        trouble.note(Some(format!("{problem:#}")));
        Vec::new()
    });
    reporter.finish(&left_behind);

    let mut account = match setup.as_ref().filter(|_| plan.has_tables()) {
        None => Account::of_the_producers(&sent),
        Some(setup) => read_back(plan, setup, &sent, directory, &reporter).unwrap_or_else(|problem| {
            trouble.note(Some(format!("{problem:#}")));
            Account::of_the_producers(&sent)
        }),
    };
    trouble.note(account.not_written());
    if setup.is_some() && plan.has_tables() {
        account.add_what_the_probe_saw(&reporter.readings.counts.probe, &late, plan.args.verify);
        reporter.tell(&account.outcomes.tally());
    }
    if setup.is_some() {
        clean_up(plan)?;
    }
    trouble.note(event_time(plan, &reporter));
    trouble.note(reporter.readings.consumer.ended_by_itself());
    reporter.readings.consumer.end();

    let ended = Ended {
        setup: setup.as_ref(),
        sent: &sent,
        account,
        answers,
        readers,
        aggregates,
        drained,
        reporter: &reporter,
        error: trouble.0,
    };
    let mut summary = summarize(plan, directory, ended);
    // What was measured is still worth printing.
    if let Err(problem) = write(plan, directory, &summary) {
        summary.error.get_or_insert(format!("{problem:#}"));
        summary.exit = verdict::Exit::Error;
    }
    Ok(summary)
}

/// The first thing that went wrong and says nothing about the consumer.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn note(&mut self, problem: Option<String>) {
        self.0 = self.0.take().or(problem);
    }
}

fn wait_for_generators(
    generators: Vec<JoinHandle<Finished>>,
    reporter: &mut Reporter,
    stop: &AtomicBool,
) -> Vec<Finished> {
    while !generators.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(GLANCE);
        reporter.readings.glance();
        reporter.tick_if_due(None);
        if let Some(reason) = reporter.must_abort() {
            log::warn!("{reason}; the run ends here");
            stop.store(true, Relaxed);
        }
    }
    generators.into_iter().map(|g| g.join().expect("a generator does not panic")).collect()
}

/// Readers end when the last message is due, and when they have their answers.
fn wait_for_readers(
    readers: Vec<JoinHandle<reader::Finished>>,
    reporter: &mut Reporter,
) -> Vec<reader::Finished> {
    while !readers.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(GLANCE);
        reporter.tick_if_due(Some(Phase::Drain));
    }
    readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).collect()
}

/// Of all threads.
fn answers(finished: &[Finished]) -> Answers {
    let mut all = Answers::new();
    for (name, count) in finished.iter().flat_map(|thread| &thread.answers) {
        *all.entry(name.clone()).or_default() += count;
    }
    all
}

/// What set-up has created, where the user wants it gone.
fn clean_up(plan: &Plan) -> Result<()> {
    if plan.args.cleanup && plan.has_users() {
        let servers = &plan.args.servers;
        plan.users.remove(&mut users::connect(&servers.redis, servers.redis_ca.as_deref())?)?;
    }
    Ok(())
}

fn refused(finished: &[Finished]) -> Option<String> {
    let reason = finished.iter().find_map(|thread| thread.refused.as_ref())?;
    Some(format!("the producer refused messages: {reason}"))
}

/// Latency against a column that repeats the message's own time would be nothing but zeros.
fn event_time(plan: &Plan, reporter: &Reporter) -> Option<String> {
    let rows = reporter.readings.counts.total.all(Latency::Row).summary().count;
    let equal = reporter.readings.counts.probe.row_is_event_time.load(Relaxed);
    (plan.args.row_timestamp != RowTimestamp::Event && rows > 100 && equal == rows).then(|| {
        "every row's timestamp is its time: this consumer writes event time there, so a latency against it means nothing; say \
         --row-timestamp event to leave it out"
            .to_owned()
    })
}

/// The files of a finished run.
fn write(plan: &Plan, directory: &Path, summary: &Summary) -> Result<()> {
    json::write(directory, summary)?;
    html::write(directory)?;
    if plan.args.host_format == HostFormat::Sadf {
        sadf::write_files(directory)?;
    }
    if plan.args.ci { ci::write(directory, summary) } else { Ok(()) }
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
