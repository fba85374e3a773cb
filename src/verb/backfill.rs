//! `rowmill backfill`: fills a table with what its topics held before it was there. A new table of a topic begins where its
//! siblings are; here its ledger rows grow downward, from `start_offset` to the begin of the log, while the pipeline goes on
//! above.
//!
//! `BEGIN; COPY rows; COPY dead letters; compare the table's definition; move start_offset; COMMIT`, a stretch at a time, the
//! newest first. The move compares where `start_offset` stands, so whatever is lost on the way, running it again is right, and
//! two that run at once do not write the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::base::budget::Budget;
use crate::base::failure::{Class, Failure};
use crate::base::thread::Pulse;
use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::decode::lookup::LookupCache;
use crate::decode::record::Limits;
use crate::decode::{BatchDecoder, Outlet};
use crate::figures::instruments::Waits;
use crate::kafka::ask::Asker;
use crate::kafka::reread;
use crate::model::editions::Editions;
use crate::model::mode::Mode;
use crate::model::plan::TablePlan;
use crate::promise::batch::{RawBatch, Rows, TableBatch};
use crate::promise::claim::{Claim, Lane};
use crate::promise::dead_letter;
use crate::promise::ledger::{self, Stretch};
use crate::promise::offsets::Partition;
use crate::promise::session::{Session, Sessions};
use crate::promise::span::Counts;
use crate::promise::topics::Topic;
use crate::store::postgres::sink::{Sink, stored_all};
use crate::verb::out::say;
use crate::verb::setup::{self, Setup};
use crate::write::isolate::{Records, isolate};

/// Offsets of one transaction at most; fewer where their records are large.
const STRETCH: i64 = 5_000;

/// For one answer of Kafka's. Nothing waits for this verb.
const ANSWER: Duration = Duration::from_secs(10);

/// Redis is asked for so long; then a person had better look at it.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

/// A lock on the table is waited for so long.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two tries while PostgreSQL is away, and between two words about how far it is.
const PAUSE: Duration = Duration::from_secs(2);
const TELL: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Which {
    /// The table, as in the models or with its schema. `rowmill run` must have begun with it.
    #[arg(long)]
    table: String,
}

struct Filling<'c> {
    config: &'c Config,
    setup: Setup,
    /// The table's index in the plan.
    table: usize,
    client: Client,
    sessions: Sessions,
    session: Option<Session>,
    sink: Sink,
    decoder: BatchDecoder,
    budget: Arc<Budget>,
    told: Instant,
}

/// How a stretch ended.
enum Ended {
    Done(Counts),
    /// Its records are more than memory should hold at once: fewer of them.
    TooLarge,
    /// `start_offset` is not where it was: another one moved it, or this one, and did not hear of it.
    Moved,
    /// PostgreSQL is away.
    Away(String),
}

pub fn run(config: &Config, which: &Which) -> Result<()> {
    let mut filling = Filling::new(config, &which.table)?;
    let target = filling.sink.target.name.clone();
    let stretches = ledger::stretches(&mut filling.client, &config.pipeline, &target)?;
    if stretches.is_empty() {
        bail!(
            "the ledger has no row of table {target} in pipeline {:?}: start `rowmill run` with its model first, which begins \
             where the topic's other tables are",
            config.pipeline
        );
    }
    let asker = Asker::new(&config.kafka, ANSWER)?;
    let mut all = Counts::default();
    for stretch in stretches {
        all += filling.partition(&asker, &stretch)?;
    }
    say!("table {target}: {} rows and {} dead letters before what it had", all.rows, all.dead);
    Ok(())
}

impl<'c> Filling<'c> {
    fn new(config: &'c Config, name: &str) -> Result<Filling<'c>> {
        let setup = setup::read(config)?;
        let is_meant = |table: &TablePlan| {
            table.name == name || setup.tables.get(name).is_some_and(|t| t.sql_name == table.sql_name)
        };
        let Some(table) = setup.plan.tables.iter().position(is_meant) else {
            bail!("no model fills a table {name:?}: write it as in the models, or as schema.table");
        };
        if let Some(why) = against_the_order(&setup.plan.tables[table]) {
            bail!(why);
        }
        let client = setup.server.connect("rowmill backfill")?;
        let sessions = Sessions {
            server: Server::of(&config.postgres)?,
            me: setup::member(config),
            lock_timeout: LOCK_TIMEOUT,
            prepare: config.lease.session_lock,
        };
        let lookups: Vec<_> = config.lookups.iter().map(|lookup| (lookup.clone(), Arc::default())).collect();
        // No thread is watched here; a lookup has a deadline of its own.
        let pulse = Arc::new(Pulse::new("backfill"));
        let lookups = LookupCache::new(config.redis.as_ref(), &lookups, pulse, Waits::new("backfill"))?;
        let limits = Limits { value_bytes_max: config.limits.message_max_bytes, ..Limits::default() };
        let budget = Budget::new(config.limits.memory_max_bytes, setup.topics.len());
        let editions = Arc::new(Editions::begin(setup.plan.clone()));
        let decoder = BatchDecoder::new(editions, &setup.topics, limits, lookups, budget.clone());
        let sink = Sink::new(&setup.plan.tables[table]);
        let told = Instant::now();
        let session = None;
        Ok(Filling { config, setup, table, client, sessions, session, sink, decoder, budget, told })
    }

    /// One partition, down to the begin of its log.
    fn partition(&mut self, asker: &Asker, stretch: &Stretch) -> Result<Counts> {
        let Some(topic) = self.setup.topics.iter().position(|t| *t.name == stretch.topic) else {
            say!("topic {:?}: no model reads it any more; left as it is", stretch.topic);
            return Ok(Counts::default());
        };
        let described = asker.describe(&[&stretch.topic])?;
        let id = described.first().and_then(|d| d.id.as_ref().ok());
        if id != Some(&stretch.topic_id) {
            bail!("topic {:?} is not the one that was read: it was deleted or created again", stretch.topic);
        }
        let log_start = asker.ends(&stretch.topic, stretch.partition)?.start;
        let (mut start, mut count, mut all) = (stretch.start, STRETCH, Counts::default());
        let mut is_away = false;
        while start > log_start {
            let from = log_start.max(start - count);
            match self.fill(topic, stretch, from, start)? {
                Ended::Done(counts) => {
                    (start, count, is_away) = (from, STRETCH.min(count * 2), false);
                    all += counts;
                    self.tell(stretch, start - log_start);
                }
                Ended::TooLarge => count = (count / 4).max(1),
                Ended::Moved => {
                    let now =
                        ledger::stretches(&mut self.client, &self.config.pipeline, &self.sink.target.name)?;
                    let same = |s: &&Stretch| s.topic == stretch.topic && s.partition == stretch.partition;
                    start = now.iter().find(same).context("the ledger row is gone")?.start;
                }
                Ended::Away(words) => {
                    if !std::mem::replace(&mut is_away, true) {
                        log::warn!("PostgreSQL is away: {words}; trying again until it works");
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(all)
    }

    fn tell(&mut self, stretch: &Stretch, left: i64) {
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            log::info!("partition {}/{}: {left} offsets to go", stretch.topic, stretch.partition);
        }
    }

    /// The offsets `[from, to)` of a partition, in one transaction.
    fn fill(&mut self, topic: usize, stretch: &Stretch, from: i64, to: i64) -> Result<Ended> {
        let claim = Arc::new(self.claim(topic, stretch, from));
        let mut raw = RawBatch::new(topic, 0, 0);
        let mut next = from;
        let bytes_max = self.config.limits.memory_max_bytes;
        let (topic_name, part_max) = (&stretch.topic, self.config.limits.message_max_bytes);
        let read =
            reread::range(&self.config.kafka, topic_name, stretch.partition, from..to, part_max, |record| {
                raw.push(&claim, next, record);
                next = record.offset + 1;
                if raw.cost_bytes() > bytes_max && to - from > 1 {
                    bail!(TooLarge);
                }
                Ok(())
            });
        match read {
            Err(error) if error.is::<TooLarge>() => return Ok(Ended::TooLarge),
            read => read?,
        }
        let batches = self.decode(raw)?;
        match self.store(batches, stretch, from, to) {
            Ok(Some(counts)) => Ok(Ended::Done(counts)),
            Ok(None) => Ok(Ended::Moved),
            Err(failure) => {
                // What the transaction did is gone with it, or is seen by the next look at start_offset.
                self.session = None;
                match failure.class {
                    Class::World | Class::Lost if failure.at_commit => Ok(Ended::Moved),
                    Class::World | Class::Lost => Ok(Ended::Away(failure.words)),
                    Class::TableChanged => bail!("{}; nothing of it was stored, run it again", failure.words),
                    _ => Err(anyhow!(
                        "cannot write to table {} ({}/{} offsets [{from}, {to})): {}",
                        self.sink.target.name,
                        stretch.topic,
                        stretch.partition,
                        failure.words
                    )),
                }
            }
        }
    }

    /// As if the partition had been claimed for this table only: what the topic's other tables take, they have.
    fn claim(&self, topic: usize, stretch: &Stretch, from: i64) -> Claim {
        let Topic { name, tables, .. } = &self.setup.topics[topic];
        let lane = |table: &usize| {
            let first = if *table == self.table { from } else { i64::MAX };
            Lane::new(*table, 0, first, None, Arc::default())
        };
        let place = Partition { topic, id: stretch.partition };
        Claim::new(place, name.clone(), stretch.topic_id.clone(), tables.iter().map(lane).collect())
    }

    fn decode(&mut self, mut raw: RawBatch) -> Result<Vec<TableBatch>> {
        if raw.is_empty() {
            return Ok(Vec::new());
        }
        raw.note_anchors();
        raw.set_charge(self.budget.charge(raw.topic, raw.cost_bytes()));
        let tables = 0..self.setup.plan.tables.len();
        let mut outlets: Vec<Outlet> = tables.map(|table| Outlet::new(table, 0, 1)).collect();
        let began = Instant::now();
        if !self.decoder.decode(&Arc::new(raw), &mut outlets, || began.elapsed() < LOOKUP_PATIENCE) {
            bail!(
                "Redis did not tell the tokens within {} s: run it again when it answers",
                LOOKUP_PATIENCE.as_secs()
            );
        }
        let outlet = &mut outlets[self.table];
        Ok(std::iter::from_fn(|| outlet.take()).collect())
    }

    /// What became of the records; `None` where `start_offset` is elsewhere.
    fn store(
        &mut self,
        batches: Vec<TableBatch>,
        stretch: &Stretch,
        from: i64,
        to: i64,
    ) -> Result<Option<Counts>, Failure> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.sessions.open()?,
        };
        session.begin()?;
        let mut done = Vec::new();
        for batch in batches {
            done.extend(sift(&self.sink, &mut session, batch)?);
        }
        let dead = done.iter().map(|batch| batch.dead.len()).sum();
        let letters = dead_letter::of(&done, &self.config.pipeline, &self.sink.target.name);
        stored_all(session.letters(letters)?, dead, "rowmill.dead_letter")?;
        self.sink.check_definition(&mut session)?;
        let mut counts = Counts::default();
        done.iter().flat_map(|batch| &batch.segments).for_each(|segment| counts += segment.span.counts);
        let extended = ledger::extend(
            session.client(),
            &self.config.pipeline,
            &self.sink.target.name,
            &Stretch { start: from, ..stretch.clone() },
            to,
            counts,
        )?;
        if !extended {
            session.rollback()?;
            return Ok(None);
        }
        session.commit_with("COMMIT")?;
        self.session = Some(session);
        Ok(Some(counts))
    }
}

/// Why older records cannot come after newer ones in this table, if they cannot.
fn against_the_order(table: &TablePlan) -> Option<String> {
    let keyed = table.keyed.as_ref().filter(|keyed| keyed.mode != Mode::Add && keyed.time.is_none())?;
    let (name, mode) = (&table.name, keyed.mode.name());
    let setting = if keyed.mode == Mode::First { "oldest" } else { "newest" };
    Some(format!(
        "table {name} has mode = {mode:?}, where the order of offsets decides, and a backfill comes with older records after newer \
         ones: say {setting} = \"...\" in the model, with a column that says when a record was true; or let a pipeline of another \
         name read the topic from its begin into a new table"
    ))
}

/// Sends a batch; what the server refuses is set aside. Each part that is judged becomes a batch of its own.
fn sift(sink: &Sink, session: &mut Session, batch: TableBatch) -> Result<Vec<TableBatch>, Failure> {
    let mut done = Vec::new();
    let mut rest = batch;
    while !rest.rows.is_empty() {
        let records = Records::of(&rest);
        let send = |range| {
            let mut rows = Rows::part(&mut rest, records.rows(&range));
            let refusal = sink.try_send(session, &mut rows)?;
            Ok::<_, Failure>(refusal.map(|refusal| records.refused(&rest, &range, refusal)))
        };
        let found = isolate(records.len(), send, || false)?;
        let tail = rest.split_off(records.rows_of_first(found.judged));
        let bad = found.bad.into_iter().map(|(record, refusal)| {
            (records.rows(&(record..record + 1)).start, refusal.code, refusal.message)
        });
        rest.set_aside(bad.collect());
        done.push(std::mem::replace(&mut rest, tail));
    }
    if !rest.segments.is_empty() {
        done.push(rest);
    }
    Ok(done)
}

/// Ends the reading of a stretch.
#[derive(Debug)]
struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the records are too large for memory_max")
    }
}

impl std::error::Error for TooLarge {}
