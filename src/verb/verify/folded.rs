//! Tables with keys: what Kafka has is folded once more, into a table of its own beside the real one, and the two are compared key
//! by key. It goes through the decoder and the statements of the pipeline, so it finds what was lost, doubled or changed, and not
//! what the models get wrong.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use postgres::Transaction;

use super::judge::Partition;
use crate::client::binary::{HEADER, TRAILER};
use crate::config::Config;
use crate::decode::column::{Encoded, Found, Lookups};
use crate::decode::record::{Limits, Messages, Parsed, RecordDecoder};
use crate::decode::reject::Reject;
use crate::kafka::reread;
use crate::model::mode::{Join, Keyed, Mode};
use crate::model::plan::{Model, Plan, Source, TablePlan, quoted};
use crate::model::types::Type;
use crate::model::{Kafka, Tombstones};
use crate::promise::batch::Record;
use crate::store::postgres::fold::fold;
use crate::store::postgres::merge::Merge;

/// Rows that are held before they are folded, in bytes.
const HELD_BYTES: usize = 2 << 20;

/// Keys that are shown of each table that differs.
const SHOWN: i64 = 5;

/// A table with keys, and what became of the comparison.
pub(super) struct Compared {
    pub(super) target: String,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Keys(Differences),
    /// It cannot be compared, because of this.
    Not(String),
}

/// How many keys there should be, and how many of them are wrong.
#[derive(Default)]
pub(super) struct Differences {
    pub(super) keys: i64,
    pub(super) lost: i64,
    pub(super) phantom: i64,
    pub(super) different: i64,
    /// Some of them, each with its class.
    pub(super) shown: Vec<String>,
    /// Records that the models do not take now, and that have no dead letter.
    pub(super) refused: i64,
}

impl Compared {
    pub(super) fn differences(&self) -> Option<&Differences> {
        match &self.outcome {
            Outcome::Keys(differences) => Some(differences),
            Outcome::Not(_) => None,
        }
    }
}

/// The plan's tables with keys that the ledger knows.
pub(super) fn compare(
    config: &Config,
    plan: &Plan,
    transaction: &mut Transaction<'_>,
    partitions: &[Partition],
) -> Result<Vec<Compared>> {
    let plan = Arc::new(plan.clone());
    let mut compared = Vec::new();
    for (index, table) in plan.tables.iter().enumerate() {
        let has_lane = |partition: &Partition| partition.lanes.iter().any(|lane| lane.target == table.name);
        let Some(keyed) = table.keyed.as_ref().filter(|_| partitions.iter().any(has_lane)) else { continue };
        let outcome = match why_not(&plan, index, keyed, &config.pipeline, transaction, partitions)? {
            Some(why) => Outcome::Not(why),
            None => {
                log::info!("verify: folding the records of table {} again", table.name);
                let mut again = Again::new(config, &plan, index, keyed);
                Outcome::Keys(again.run(transaction, partitions)?)
            }
        };
        compared.push(Compared { target: table.name.clone(), outcome });
    }
    Ok(compared)
}

/// Why the rows of a table cannot be made again from what Kafka has.
fn why_not(
    plan: &Plan,
    index: usize,
    keyed: &Keyed,
    pipeline: &str,
    transaction: &mut Transaction<'_>,
    partitions: &[Partition],
) -> Result<Option<String>> {
    let target = &plan.tables[index].name;
    let models: Vec<&Model> = plan.models.iter().filter(|model| model.table == index).collect();
    if models.iter().flat_map(|model| &model.sources).any(|source| matches!(source, Source::Lookup { .. })) {
        return Ok(Some("a lookup's answer may be another one today".into()));
    }
    if plan.tables[index].retention.is_some() {
        return Ok(Some(
            "it keeps its rows for a time only, and drops those that later ones were added to".into(),
        ));
    }
    for partition in partitions {
        let Some(lane) = partition.lanes.iter().find(|lane| lane.target == *target) else { continue };
        let place = format!("{}/{}", partition.topic, partition.id);
        if lane.start < partition.checked_from {
            let (from, to) = (lane.start, partition.checked_from);
            return Ok(Some(format!("Kafka no longer has the offsets [{from}, {to}) of {place}")));
        }
        if partition.compacted && !is_mirror(keyed, plan, &models) {
            return Ok(Some(format!(
                "compaction takes records of {place} away, of which its rows were made"
            )));
        }
    }
    let topics: Vec<&str> = plan.topics.iter().map(|topic| topic.name.as_str()).collect();
    let others = transaction.query_one(
        "SELECT count(*) FROM rowmill.ledger WHERE target = $1 AND (topic <> ALL ($2) OR pipeline <> $3)",
        &[target, &topics, &pipeline],
    )?;
    Ok((others.get::<_, i64>(0) > 0).then(|| "other topics, or another pipeline, fill it as well".into()))
}

/// True where the newest record of each of Kafka's keys is all that the table shows: compaction takes nothing of that.
fn is_mirror(keyed: &Keyed, plan: &Plan, models: &[&Model]) -> bool {
    let is_kafkas = |model: &&Model| {
        let clocks = plan.tables[model.table].clock_columns;
        let key = &model.sources[clocks..clocks + keyed.keys];
        key.iter().all(|s| matches!(s, Source::Kafka(Kafka::Key | Kafka::Partition | Kafka::Topic)))
    };
    keyed.mode == Mode::Upsert && keyed.time.is_none() && models.iter().all(is_kafkas)
}

/// The folding of one table's records, once more.
struct Again<'c> {
    config: &'c Config,
    plan: Arc<Plan>,
    index: usize,
    keyed: &'c Keyed,
    /// As the real one, by another name.
    expected: TablePlan,
    merge: Merge,
    bytes: Vec<u8>,
    /// Where each row ends, and whether it deletes.
    rows: Vec<(usize, bool)>,
    refused: i64,
}

impl<'c> Again<'c> {
    fn new(config: &'c Config, plan: &Arc<Plan>, index: usize, keyed: &'c Keyed) -> Again<'c> {
        let sql_name = format!("pg_temp.\"rowmill expected {index}\"");
        let expected = TablePlan { sql_name, ..plan.tables[index].clone() };
        Again {
            config,
            plan: plan.clone(),
            index,
            keyed,
            merge: Merge::of(&expected, keyed),
            expected,
            bytes: Vec::new(),
            rows: Vec::new(),
            refused: 0,
        }
    }

    fn run(&mut self, transaction: &mut Transaction<'_>, partitions: &[Partition]) -> Result<Differences> {
        let target = self.expected.name.clone();
        transaction
            .batch_execute(&self.tables_sql())
            .with_context(|| format!("cannot make a temporary table beside {target}"))?;
        for partition in partitions {
            let Some(lane) = partition.lanes.iter().find(|lane| lane.target == target) else { continue };
            let letters = letters(transaction, partition, &target)?;
            self.partition(transaction, partition, lane.start..lane.next, &letters)?;
        }
        self.bring_in(transaction)?;
        let mut differences = self.differences(transaction)?;
        differences.refused = self.refused;
        Ok(differences)
    }

    fn tables_sql(&self) -> String {
        let columns = self.expected.columns.iter().map(|column| quoted(&column.name));
        let columns: Vec<String> = columns.collect();
        let clocks = self.expected.clock_columns;
        let (expected, stage) = (&self.expected.sql_name, &self.merge.stage);
        format!(
            "CREATE TEMPORARY TABLE {expected} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA;
             CREATE UNIQUE INDEX ON {expected} ({});
             CREATE TEMPORARY TABLE {stage} ON COMMIT DROP AS {} WITH NO DATA",
            columns.join(", "),
            self.plan.tables[self.index].sql_name,
            columns[clocks..clocks + self.keyed.keys].join(", "),
            self.merge.definition
        )
    }

    fn partition(
        &mut self,
        transaction: &mut Transaction<'_>,
        partition: &Partition,
        offsets: std::ops::Range<i64>,
        letters: &HashSet<i64>,
    ) -> Result<()> {
        let topic = self.plan.topics.iter().position(|topic| topic.name == partition.topic);
        let Some(topic) = topic else { return Ok(()) };
        let config = self.config;
        let part_max = config.limits.message_max_bytes;
        let limits = Limits { value_bytes_max: part_max, ..Limits::default() };
        let mut decoder = RecordDecoder::new(self.plan.clone(), topic, limits);
        reread::range(&config.kafka, &partition.topic, partition.id, offsets, part_max, |record| {
            if letters.contains(&record.offset) {
                return Ok(());
            }
            let mark = (self.bytes.len(), self.rows.len());
            if self.record(topic, &mut decoder, record).is_err() {
                self.bytes.truncate(mark.0);
                self.rows.truncate(mark.1);
                self.refused += 1;
            }
            if self.bytes.len() >= HELD_BYTES { self.bring_in(transaction) } else { Ok(()) }
        })
    }

    /// Appends the rows that a record is in this table. An error of a record that is for none is none.
    fn record(
        &mut self,
        topic: usize,
        decoder: &mut RecordDecoder,
        record: &Record<'_>,
    ) -> Result<(), Reject> {
        let mut messages = match decoder.parse(record) {
            // It has its letter at the topic's first table.
            Err(_) => return Ok(()),
            Ok(Parsed::Tombstone) => return self.tombstone(topic, decoder, record),
            Ok(parsed) => Messages::of(parsed),
        };
        while let Ok(Some(message)) = messages.next(decoder) {
            let models: Vec<usize> = decoder.models().collect();
            for model in models.into_iter().filter(|model| self.plan.models[*model].table == self.index) {
                let encoded = decoder.encode(model, message, &NoTokens, &mut self.bytes)?;
                if encoded != Encoded::Expired {
                    self.rows.push((self.bytes.len(), encoded == Encoded::Deletion));
                }
            }
        }
        Ok(())
    }

    fn tombstone(
        &mut self,
        topic: usize,
        decoder: &mut RecordDecoder,
        record: &Record<'_>,
    ) -> Result<(), Reject> {
        let plan = self.plan.clone();
        let deletes = |model: &&usize| {
            let model = &plan.models[**model];
            model.table == self.index && model.tombstones == Tombstones::Delete
        };
        if let Some(model) = plan.topics[topic].models.iter().find(deletes)
            && decoder.encode_tombstone(*model, record, &mut self.bytes)? != Encoded::Expired
        {
            self.rows.push((self.bytes.len(), true));
        }
        Ok(())
    }

    /// Folds what is held into the table beside the real one.
    fn bring_in(&mut self, transaction: &mut Transaction<'_>) -> Result<()> {
        let mut start = 0;
        let rows = self.rows.iter().map(|(end, deletes)| {
            let tuple = &self.bytes[start..*end];
            start = *end;
            (tuple, *deletes)
        });
        let target = &self.expected.name;
        let folded = fold(&self.expected, self.keyed, rows, 0).map_err(|_| {
            anyhow!("table {target}: a sum leaves its type where the records are cut in another way than they were")
        })?;
        let cannot = || format!("cannot fold the records of table {target} again");
        let mut copy = transaction.copy_in(&self.merge.copy).with_context(cannot)?;
        [&HEADER[..], &folded.bytes, &TRAILER].iter().try_for_each(|piece| copy.write_all(piece))?;
        copy.finish().with_context(cannot)?;
        let sql = format!("{}; {}", self.merge.statements(&folded), self.merge.clear);
        transaction.batch_execute(&sql).with_context(cannot)?;
        self.bytes.clear();
        self.rows.clear();
        Ok(())
    }

    fn differences(&self, transaction: &mut Transaction<'_>) -> Result<Differences> {
        let cannot = || format!("cannot compare table {} with what its records make", self.expected.name);
        let both = self.both_sql();
        let sql = format!("SELECT class, count(*) FROM ({both}) AS judged GROUP BY class");
        let counts = transaction.query(&sql, &[]).with_context(cannot)?;
        let counts: BTreeMap<Option<String>, i64> =
            counts.iter().map(|row| (row.get(0), row.get(1))).collect();
        let count = |class: &str| counts.get(&Some(class.to_owned())).copied().unwrap_or_default();
        let mut found = Differences {
            keys: counts.values().sum::<i64>() - count("PHANTOM"),
            lost: count("LOST"),
            phantom: count("PHANTOM"),
            different: count("DIFFERENT"),
            ..Differences::default()
        };
        if found.lost + found.phantom + found.different > 0 {
            let sql = format!(
                "SELECT concat(class, ' ', shown) FROM ({both}) AS judged WHERE class IS NOT NULL LIMIT {SHOWN}"
            );
            let shown = transaction.query(&sql, &[]).with_context(cannot)?;
            found.shown = shown.iter().map(|row| row.get(0)).collect();
        }
        Ok(found)
    }

    /// Each key of the two tables: what is wrong with it, and the key itself.
    fn both_sql(&self) -> String {
        let clocks = self.expected.clock_columns;
        let columns = &self.expected.columns;
        let key: Vec<String> =
            columns[clocks..clocks + self.keyed.keys].iter().map(|c| quoted(&c.name)).collect();
        let is_compared = |(index, _): &(usize, _)| *index >= clocks && self.keyed.joins[*index] != Join::Key;
        let differs = columns.iter().enumerate().filter(is_compared).map(|(_, column)| {
            let name = quoted(&column.name);
            // JSON letter for letter has no equality of its own.
            let cast = if *column.ty.scalar() == Type::Json { "::TEXT" } else { "" };
            format!("t.{name}{cast} IS DISTINCT FROM e.{name}{cast}")
        });
        let differs: Vec<String> = std::iter::once("false".to_owned()).chain(differs).collect();
        format!(
            "SELECT CASE WHEN e.{first} IS NULL THEN 'PHANTOM' WHEN t.{first} IS NULL THEN 'LOST' WHEN {} THEN 'DIFFERENT' END AS class,
                    row({})::TEXT AS shown
             FROM {} AS e FULL JOIN {} AS t USING ({})",
            differs.join(" OR "),
            key.join(", "),
            self.expected.sql_name,
            self.plan.tables[self.index].sql_name,
            key.join(", "),
            first = key[0],
        )
    }
}

/// The offsets of a partition whose records are dead letters of a table, and not in it by now.
fn letters(transaction: &mut Transaction<'_>, partition: &Partition, target: &str) -> Result<HashSet<i64>> {
    let rows = transaction
        .query(
            "SELECT \"offset\" FROM rowmill.dead_letter
             WHERE topic = $1 AND partition = $2 AND target = $3
               AND NOT (settled_as IS NOT DISTINCT FROM 'retried' AND $3 = ANY (settled_tables))",
            &[&partition.topic, &partition.id, &target],
        )
        .context("cannot read the dead letters")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Tables with lookups are not compared.
struct NoTokens;

impl Lookups for NoTokens {
    fn find(&self, _lookup: usize, _token: &str) -> Found<'_> {
        Found::Unknown
    }
}
