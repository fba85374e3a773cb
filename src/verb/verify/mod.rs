//! `rowmill verify`: Kafka once more, against what the database has of it.
//!
//! One snapshot of the database, then one pass over each partition's log, then a closer look where the two differ.
//! [`database`] has the SQL, [`folded`] compares tables with keys, [`blank`] knows what is no message, [`judge`] the decisions, [`findings`] what came of them, [`report`] the words.

mod blank;
mod database;
mod findings;
mod folded;
mod judge;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postgres::Transaction;

use self::blank::Blanks;
use self::database::{Letters, Place, Places, Traced};
use self::findings::Findings;
use self::judge::{Partition, Seen, Served, Sum, WIDTH};

use crate::client::pg::Server;
use crate::config::{self, Config};
use crate::kafka::ask::Asker;
use crate::kafka::reread;
use crate::model::Tombstones;
use crate::model::plan::{Plan, TopicPlan};
use crate::promise::{dead_letter, ledger};
use crate::verb::setup;

/// For one answer of Kafka's. Nothing waits for this verb.
const ANSWER: Duration = Duration::from_secs(10);

/// True if nothing is wrong.
pub fn run(config: &Config) -> Result<bool> {
    let server = Server::of(&config.postgres)?;
    let mut client = server.connect("rowmill verify")?;
    ledger::check_version(&mut client)?;
    dead_letter::check_columns(&mut client)?;
    let plan = setup::plan(config, &mut client)?.map_err(setup::all_problems)?;
    let is_keyed = plan.tables.iter().any(|table| table.keyed.is_some());
    // What Kafka has is folded again into temporary tables.
    let snapshot = if is_keyed { client.writable_snapshot() } else { client.snapshot() };
    let mut transaction = snapshot.context("cannot take a snapshot of the database")?;
    // The log is read while the snapshot stands; a bound that the server sets for idle transactions would end it.
    transaction.batch_execute(
        "SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0",
    )?;
    let mut findings = look(config, &plan, &mut transaction)?;
    findings.database = server.address();
    report::tell(&findings);
    Ok(findings.is_good())
}

fn look(config: &Config, plan: &Plan, transaction: &mut Transaction<'_>) -> Result<Findings> {
    let taken_at = transaction.query_one("SELECT transaction_timestamp()::TEXT", &[])?.get(0);
    let (mut partitions, mut ids) = database::ledger(transaction, &config.pipeline)?;
    let read = |topic: &str| plan.topics.iter().any(|t| t.name == topic);
    let retired: Vec<String> = ids.keys().filter(|topic| !read(topic)).cloned().collect();
    ids.retain(|topic, _| read(topic));
    partitions.retain(|partition| read(&partition.topic));
    if partitions.is_empty() {
        bail!(
            "the ledger has nothing of pipeline {:?}: nothing was read yet, or another name was",
            config.pipeline
        );
    }
    note_deletions(plan, &mut partitions);
    let targets = targets(&partitions);
    log::info!("verify: adding up {} tables", targets.len());
    let (traced, counted) = database::tables(transaction, plan, &targets)?;
    let known = |t: &String| {
        traced.iter().any(|k| k.target == *t)
            || counted.iter().any(|k| k.target == *t)
            || plan.tables.iter().any(|table| table.keyed.is_some() && table.name == *t)
    };
    let mut findings = Findings {
        pipeline: config.pipeline.clone(),
        brokers: config.kafka.brokers.clone(),
        database: String::new(),
        taken_at,
        partitions: Vec::new(),
        traced: traced.iter().map(|t| t.target.clone()).collect(),
        unknown: targets.iter().filter(|t| !known(t)).cloned().collect(),
        counted,
        folded: Vec::new(),
        broken: Vec::new(),
        notes: retired
            .iter()
            .map(|topic| {
                format!("topic {topic:?} stands in the ledger, and no model reads it any more: not judged")
            })
            .collect(),
    };
    let mut sums: HashMap<String, HashMap<Place, BTreeMap<i64, Sum>>> = HashMap::new();
    for table in &traced {
        sums.insert(table.target.clone(), database::sums(transaction, table)?);
    }
    ask_kafka(config, &ids, &mut partitions, &mut findings)?;
    let rows: Vec<BTreeMap<i64, Sum>> = partitions.iter_mut().map(|p| take_rows(p, &mut sums)).collect();
    strays(&sums, &partitions, &mut findings);
    let mut blanks = Blanks::of(plan, config.limits.message_max_bytes);
    compare(&config.kafka, transaction, &traced, &mut blanks, &mut partitions, &rows)?;
    findings.folded = folded::compare(config, plan, transaction, &partitions)?;
    match database::stray_letters(transaction, &config.pipeline)? {
        0 => {}
        n => findings.broken.push(format!("{n} dead letters belong to no partition and table of the ledger")),
    }
    partitions.iter_mut().for_each(Partition::conclude);
    findings.partitions = partitions;
    Ok(findings)
}

/// Where a record without a message is no empty one, because its model deletes by it.
fn note_deletions(plan: &Plan, partitions: &mut [Partition]) {
    for partition in partitions {
        let is_list = |topic: &&TopicPlan| topic.name == partition.topic && topic.envelope.records.is_some();
        let has_list = plan.topics.iter().any(|topic| is_list(&topic));
        for lane in &mut partition.lanes {
            lane.null_deletes = plan.models.iter().any(|model| {
                let is_here = model.topic == partition.topic && plan.tables[model.table].name == lane.target;
                is_here && model.tombstones == Tombstones::Delete
            });
            // Of lists, an empty one is passed over.
            lane.empty_deletes = lane.null_deletes && !has_list;
            lane.expires = plan.tables.iter().any(|t| t.name == lane.target && t.retention.is_some());
        }
    }
}

fn targets(partitions: &[Partition]) -> Vec<String> {
    let mut targets: Vec<String> =
        partitions.iter().flat_map(|p| &p.lanes).map(|l| l.target.clone()).collect();
    targets.sort();
    targets.dedup();
    targets
}

/// Finds out which part of each log is still there, and whether it is the one that was read.
fn ask_kafka(
    config: &Config,
    ids: &BTreeMap<String, String>,
    partitions: &mut [Partition],
    findings: &mut Findings,
) -> Result<()> {
    let asker = Asker::new(&config.kafka, ANSWER)?;
    let names: Vec<&str> = ids.keys().map(String::as_str).collect();
    let described = asker.describe(&names)?;
    for topic in names {
        let id = described.iter().find(|d| d.name == topic).map(|d| &d.id);
        let mine = || partitions.iter().enumerate().filter(|(_, p)| p.topic == topic).map(|(index, _)| index);
        let mine: Vec<usize> = mine().collect();
        if id.and_then(|id| id.as_ref().ok()) != ids.get(topic) {
            findings.broken.push(format!(
                "topic {topic:?} is not the one that was read: it was deleted or created again, so its offsets say nothing \
                 about the rows, which were compared with the ledger only"
            ));
            mine.into_iter().for_each(|index| partitions[index].checked_from = partitions[index].next());
            continue;
        }
        let compacted = asker.is_compacted(topic)?;
        let places: Vec<(&str, i32)> = mine.iter().map(|index| (topic, partitions[*index].id)).collect();
        for (index, log) in mine.into_iter().zip(asker.all_ends(&places)) {
            let (partition, log) = (&mut partitions[index], log?);
            partition.compacted = compacted;
            partition.checked_from = log.start.clamp(partition.start(), partition.next());
            if log.end < partition.next() {
                partition.broken.push(format!(
                    "the log ends at {}, before next_offset: Kafka lost records that were stored",
                    log.end
                ));
            }
        }
    }
    Ok(())
}

/// Hands each partition the sums of its rows: over all its tables for the comparison, and each table's count.
fn take_rows(
    partition: &mut Partition,
    sums: &mut HashMap<String, HashMap<Place, BTreeMap<i64, Sum>>>,
) -> BTreeMap<i64, Sum> {
    let place = (Some(partition.topic.clone()), Some(i64::from(partition.id)));
    let mut all: BTreeMap<i64, Sum> = BTreeMap::new();
    for lane in &mut partition.lanes {
        let Some(table) = sums.get_mut(&lane.target) else { continue };
        lane.traced = true;
        for (bucket, sum) in table.remove(&place).unwrap_or_default() {
            lane.stored += sum.count;
            all.entry(bucket).or_default().add(sum);
        }
    }
    all
}

/// Rows that no partition of the ledger took: phantoms where the topic is ours, somebody else's where it is not.
fn strays(
    sums: &HashMap<String, HashMap<Place, BTreeMap<i64, Sum>>>,
    partitions: &[Partition],
    findings: &mut Findings,
) {
    for (target, places) in sums {
        for ((topic, id), buckets) in places {
            let count: i64 = buckets.values().map(|s| s.count).sum();
            match (topic, id) {
                (Some(topic), Some(id)) if partitions.iter().any(|p| p.topic == *topic) => findings.broken.push(format!(
                    "table {target} has {count} rows of {topic}/{id}, which the ledger does not know for it"
                )),
                _ => findings.notes.push(format!(
                    "{count} rows of table {target} name no topic, partition and offset of this pipeline: somebody else's"
                )),
            }
        }
    }
}

/// Reads every log, and looks closer at the buckets that differ.
fn compare(
    kafka: &config::Kafka,
    transaction: &mut Transaction<'_>,
    traced: &[Traced],
    blanks: &mut Blanks,
    partitions: &mut [Partition],
    rows: &[BTreeMap<i64, Sum>],
) -> Result<()> {
    let mut progress = Progress::new(partitions.iter().map(|p| p.next() - p.checked_from).sum());
    // Those of one topic stand together.
    for of_topic in partitions.chunk_by_mut(|one, next| one.topic == next.topic) {
        read_logs(kafka, transaction, blanks, of_topic, &mut progress)?;
    }
    progress.end();
    let differing: Vec<(usize, i64)> = partitions
        .iter()
        .enumerate()
        .filter(|(_, partition)| partition.is_traced())
        .flat_map(|(index, partition)| {
            partition.differing(&rows[index]).into_iter().map(move |bucket| (index, bucket))
        })
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    log::info!("verify: {} ranges of {WIDTH} offsets differ; looking for the records", differing.len());
    look_closer(kafka, transaction, traced, blanks, partitions, &differing)
}

/// One pass over a topic's logs, with their dead letters beside it.
fn read_logs(
    kafka: &config::Kafka,
    transaction: &mut Transaction<'_>,
    blanks: &mut Blanks,
    partitions: &mut [Partition],
    progress: &mut Progress,
) -> Result<()> {
    let topic = partitions[0].topic.clone();
    let with_letters = database::partitions_with_letters(transaction, &topic)?;
    let mut letters: BTreeMap<i32, Letters> = BTreeMap::new();
    for partition in partitions.iter().filter(|p| with_letters.contains(&p.id)) {
        letters.insert(partition.id, Letters::open(transaction, partition, i64::MIN, i64::MAX)?);
    }
    let places: HashMap<i32, usize> = partitions.iter().enumerate().map(|(at, p)| (p.id, at)).collect();
    let ranges = partitions.iter().map(|p| (p.id, p.checked_from..p.next())).collect();
    let done_before = progress.done;
    let mut seen = 0;
    reread::ranges(kafka, &topic, &ranges, blanks.part_max, |record| {
        let offset = record.offset;
        let partition = &mut partitions[places[&record.partition]];
        let mut here = Vec::new();
        if let Some(letters) = letters.get_mut(&record.partition) {
            while let Some((at, found)) = letters.below(transaction, offset + 1)? {
                if at == offset {
                    here = found;
                    break;
                }
                partition.see(at, Served::No, &found);
            }
        }
        partition.see(offset, blanks.served(&topic, record), &here);
        seen += 1;
        progress.at(done_before + seen);
        Ok(())
    })?;
    for (id, letters) in &mut letters {
        while let Some((at, found)) = letters.below(transaction, i64::MAX)? {
            partitions[places[id]].see(at, Served::No, &found);
        }
    }
    // Holes are offsets, too.
    progress.done = done_before + ranges.iter().map(|(_, offsets)| offsets.end - offsets.start).sum::<i64>();
    Ok(())
}

/// Offset by offset, through the buckets that differ.
fn look_closer(
    kafka: &config::Kafka,
    transaction: &mut Transaction<'_>,
    traced: &[Traced],
    blanks: &mut Blanks,
    partitions: &mut [Partition],
    differing: &[(usize, i64)],
) -> Result<()> {
    let wanted: Vec<(&str, i32, i64)> = differing
        .iter()
        .map(|(index, bucket)| (&*partitions[*index].topic, partitions[*index].id, *bucket))
        .collect();
    let mut tables: Vec<(&str, Places)> = Vec::new();
    for table in traced {
        tables.push((&table.target, Places::open(transaction, table, &wanted)?));
    }
    for (number, (index, bucket)) in differing.iter().enumerate() {
        let partition = &mut partitions[*index];
        let mut seen = served(kafka, blanks, partition, *bucket)?;
        letters(transaction, partition, *bucket, &mut seen)?;
        for (target, places) in &mut tables {
            while let Some((offset, count)) = places.next(transaction, number)? {
                if let Some(lane) = partition.lanes.iter().position(|l| l.target == **target) {
                    seen.entry(offset).or_default().rows.insert(lane, count);
                }
            }
        }
        partition.judge(&seen);
    }
    Ok(())
}

fn served(
    kafka: &config::Kafka,
    blanks: &mut Blanks,
    partition: &Partition,
    bucket: i64,
) -> Result<BTreeMap<i64, Seen>> {
    let mut seen: BTreeMap<i64, Seen> = BTreeMap::new();
    let from = partition.checked_from.max(bucket * WIDTH);
    let to = partition.next().min((bucket + 1) * WIDTH);
    reread::range(kafka, &partition.topic, partition.id, from..to, blanks.part_max, |record| {
        let found = blanks.served(&partition.topic, record);
        seen.entry(record.offset).or_default().served = Some(found.is_record());
        Ok(())
    })?;
    Ok(seen)
}

fn letters(
    transaction: &mut Transaction<'_>,
    partition: &Partition,
    bucket: i64,
    seen: &mut BTreeMap<i64, Seen>,
) -> Result<()> {
    let mut letters = Letters::open(transaction, partition, bucket * WIDTH, (bucket + 1) * WIDTH)?;
    while let Some((offset, found)) = letters.below(transaction, i64::MAX)? {
        let outcomes = found.iter().filter(|l| l.is_outcome()).map(|l| l.lane);
        seen.entry(offset).or_default().letters.extend(outcomes);
    }
    Ok(())
}

/// How much of the logs is read: on a terminal one line that changes every second, elsewhere a line every ten.
struct Progress {
    total: i64,
    done: i64,
    is_terminal: bool,
    said_at: Instant,
}

impl Progress {
    fn new(total: i64) -> Progress {
        Progress { total, done: 0, is_terminal: std::io::stderr().is_terminal(), said_at: Instant::now() }
    }

    fn at(&mut self, done: i64) {
        let every = Duration::from_secs(if self.is_terminal { 1 } else { 10 });
        // A clock for each record would cost more than the record.
        if done % 1024 != 0 || self.said_at.elapsed() < every {
            return;
        }
        self.said_at = Instant::now();
        let share = 100 * done / self.total.max(1);
        if self.is_terminal {
            // Nobody needs to know that a progress line could not be written.
            write!(std::io::stderr(), "\rverify: {done} of {} offsets read, {share} %", self.total).ok();
        } else {
            log::info!("verify: {done} of {} offsets read, {share} %", self.total);
        }
    }

    fn end(&self) {
        if self.is_terminal {
            write!(std::io::stderr(), "\r\x1b[K").ok();
        }
    }
}
