//! After a run: reads the tables back, and asks the servers for the rest of what became of the messages.

use std::path::Path;

use anyhow::{Context, Result};

use crate::judge::locate;
use crate::judge::verify::{self, Outcomes, Sent};
use crate::message::index::Index;
use crate::plan::Plan;
use crate::plan::words::Depth;
use crate::send::generate::Finished;
use crate::send::replay::{Replay, Score};
use crate::server::pg::{self, ClockOffset};
use crate::server::users;
use crate::tell::terminal;
use crate::verb::run::reporter::Reporter;
use crate::verb::run::settled::conditions;
use crate::verb::run::setup::Setup;
use crate::verb::run::start::Cast;
use crate::watch::counters::Counters;

/// All threads' accounts together, by stream id.
pub fn sent(plan: &Plan, score: &Score, cast: &Cast, finished: Vec<Finished>) -> Sent {
    let models = plan.models();
    let mut index = Index::default();
    if Replay::is_needed(&models) {
        Replay::new(score.clone(), 0, &cast.all).fill(&mut index, score.clock.now_ns());
    }
    let mut sent = Sent {
        run: plan.run,
        seed: score.seed,
        topics: plan.topics.clone(),
        people: score.people.clone(),
        known: cast.known(plan),
        conditions: conditions(plan, score.clock.wall_us(0)),
        index,
        models,
        streams: Vec::new(),
        accounts: Vec::new(),
        offsets: Vec::new(),
    };
    for thread in finished {
        sent.streams.extend(thread.streams);
        sent.accounts.extend(thread.accounts);
        sent.offsets.extend(thread.offsets);
    }
    debug_assert!(
        sent.streams.iter().zip(sent.known.first..).all(|(stream, id)| stream.id == id),
        "accounts stand in the order of their streams"
    );
    sent
}

/// What became of the messages, and what else was only known after the run.
pub struct Account {
    pub outcomes: Outcomes,
    pub clock_after: ClockOffset,
    pub users_present: Option<usize>,
}

impl Account {
    /// Where no table could be read.
    pub fn of_the_producers(sent: &Sent) -> Self {
        Self {
            outcomes: verify::conclude_without_tables(sent),
            clock_after: ClockOffset::default(),
            users_present: None,
        }
    }

    /// A sentence, where the list of bad rows is not complete.
    pub fn not_written(&self) -> Option<String> {
        let problem = self.outcomes.not_written.as_ref()?;
        Some(format!(
            "write verify_bad.csv: {problem}; the counts are complete, the list is not; free some space, or choose another --out"
        ))
    }

    /// Order, strangers and lateness are seen while the rows appear, not by reading back.
    pub fn add_what_the_probe_saw(&mut self, probe: &Counters, late: &[u64], depth: Depth) {
        let (seen, reordered, foreign) = (probe.stored.each(), probe.reordered.each(), probe.foreign.each());
        for (at, model) in self.outcomes.models.iter_mut().enumerate() {
            model.reordered = reordered[at];
            model.foreign = foreign[at];
            model.late_after_drain = late[at];
            if depth != Depth::None {
                model.unseen_by_probe = model.stored.saturating_sub(seen[at]);
            }
        }
    }
}

pub fn read_back(
    plan: &Plan,
    setup: &Setup,
    sent: &Sent,
    directory: &Path,
    reporter: &Reporter,
) -> Result<Account> {
    let mut client = plan.database.connect("verify")?;
    let clock_after = pg::clock_offset(&mut client)?;
    let tables = pg::leaves(&mut client, &plan.models())?;
    debug_assert!(tables.0.len() >= setup.tables.0.len());
    if !reporter.is_quiet() {
        eprintln!("reading the tables back ...");
    }
    let path = directory.join("verify_bad.csv");
    let file = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut bad = csv::Writer::from_writer(file);
    bad.write_record(verify::BAD_COLUMNS).with_context(|| format!("write {}", path.display()))?;
    let (depth, rejects_sql) = (plan.args.verify, plan.args.rejects_sql.as_deref());
    let mut outcomes = verify::verify(&mut client, &tables, sent, depth, rejects_sql, &mut bad)?;
    outcomes.note_overtaken(sent, &reporter.readings.counts.probe.overtaken(), &mut bad);
    name_offsets(plan, sent, reporter, &mut outcomes);
    outcomes.write_examples(&mut bad);
    let dead_letters = verify::count_dead_letters(&mut client, &plan.topics)?;
    for ((model, now), before) in outcomes.models.iter_mut().zip(dead_letters).zip(&setup.dead_letters) {
        model.dead_letters = now.saturating_sub(*before);
    }
    let users_present = if plan.has_users() {
        let mut redis = users::connect(&plan.args.servers.redis, plan.args.servers.redis_ca.as_deref())?;
        Some(plan.users.count_present(&mut redis)?)
    } else {
        None
    };
    Ok(Account { outcomes, clock_after, users_present })
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
