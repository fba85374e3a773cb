//! What is known of a pipeline, from the ledger, from Kafka, and from the catalog. What this role may not see is said beside the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::error::SqlState;
use postgres::types::Type;
use serde::Serialize;

use crate::client::pg::Client;
use crate::config::Config;
use crate::kafka::tail::{Place, Tail, tails};
use crate::model::plan::TablePlan;
use crate::promise::reach::Reach;
use crate::store::postgres::partitions as parts;
use crate::verb::setup;

/// Kafka need not answer for a status; then lag is unknown.
const ANSWER: Duration = Duration::from_secs(5);

/// Also what `--json` prints: fields are added, and none is taken away or renamed.
#[derive(Debug, Default, Serialize)]
pub struct Status {
    pub pipeline: String,
    pub members: Vec<Member>,
    pub partitions: Vec<Part>,
    /// Who does not answer, where lag is unknown.
    pub kafka_is_silent: Option<String>,
    /// Tables that keep their rows for a time.
    pub kept: Vec<Kept>,
    /// Open ones, by table and reason.
    pub dead_letters: Vec<Letters>,
    /// What is not shown, why, and what to do.
    pub hidden: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Member {
    pub member: String,
    pub is_alive: bool,
    /// What is to be said of it beside that.
    pub remark: Option<&'static str>,
    pub partitions: i64,
    pub heartbeat_age_s: f64,
}

/// One table in one partition of one of its topics.
#[derive(Debug, Serialize)]
pub struct Part {
    pub topic: String,
    pub partition: i32,
    pub table: String,
    pub next_offset: i64,
    /// `None` where Kafka does not say.
    pub lag: Option<i64>,
    pub rows: i64,
    pub dead_letters: i64,
    pub owner: Option<String>,
    /// Since it moved; `None` before the first time.
    pub still_s: Option<f64>,
    /// Why it is not read any more, and what to do.
    pub stopped: Option<String>,
    /// What else keeps it where it is, or is to be known of it.
    pub remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Kept {
    pub table: String,
    pub partitions: usize,
    pub retention: String,
    pub missing: usize,
    pub overdue: Vec<Overdue>,
}

/// A partition that should be gone.
#[derive(Debug, Serialize)]
pub struct Overdue {
    pub partition: String,
    pub in_the_way: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Letters {
    pub table: String,
    pub reason: String,
    pub count: i64,
    pub newest_at: String,
    pub newest: String,
}

/// # Errors
/// Where the ledger cannot be read.
pub fn look(client: &mut Client, config: &Config) -> Result<Status> {
    let mut status = Status {
        pipeline: config.pipeline.clone(),
        members: members(client, &config.pipeline)?,
        ..Status::default()
    };
    partitions(client, config, &mut status)?;
    status.kept = kept(client, config)?;
    match dead_letters(client, &config.pipeline) {
        Ok(letters) => status.dead_letters = letters,
        Err(error) if is_forbidden(&error) => status.hidden.push(
            "dead letters: this role may not read them; log in as a member of rowmill_reader, as docs/operations.md shows".to_owned(),
        ),
        Err(error) => return Err(error),
    }
    Ok(status)
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<postgres::Error>().and_then(postgres::Error::code);
    code == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

fn members(client: &mut Client, pipeline: &str) -> Result<Vec<Member>> {
    let rows = client
        .query_typed(
            "SELECT m.member, rowmill.alive(m.pipeline, m.member), extract(epoch FROM clock_timestamp() - m.heartbeat_at)::FLOAT8,
                    (SELECT count(DISTINCT (l.topic, l.partition)) FROM rowmill.ledger l WHERE l.owner = m.member), m.reach
             FROM rowmill.member m WHERE m.pipeline = $1 ORDER BY 1",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the members")?;
    let member = |row: &postgres::Row| {
        let is_alive = row.get(1);
        let remark = match Reach::of(row.get(4)) {
            Reach::Cut => Some("cannot reach Kafka"),
            Reach::Back => Some("reaches Kafka again since less than a minute"),
            Reach::Well => None,
        };
        Member {
            member: row.get(0),
            is_alive,
            remark: remark.filter(|_| is_alive),
            partitions: row.get(3),
            heartbeat_age_s: row.get(2),
        }
    };
    Ok(rows.iter().map(member).collect())
}

fn partitions(client: &mut Client, config: &Config, status: &mut Status) -> Result<()> {
    let rows = client
        .query_typed(
            "SELECT topic, partition, target, next_offset, rows, dead, owner,
                    extract(epoch FROM clock_timestamp() - progress_at)::FLOAT8, stopped,
                    to_char(table_since, 'YYYY-MM-DD HH24:MI:SS TZ')
             FROM rowmill.ledger WHERE pipeline = $1 ORDER BY topic, target, partition",
            &[(&config.pipeline, Type::TEXT)],
        )
        .context("cannot read the ledger")?;
    let places = slowest(rows.iter().map(|row| (row.get(0), row.get(1), row.get(3))));
    let tails = tails(&config.kafka, &places, ANSWER)?;
    let mut furthest_behind: BTreeMap<(&str, i32), Table<'_>> = BTreeMap::new();
    for row in &rows {
        let table = Table { target: row.get(2), next: row.get(3), still_s: row.get(7) };
        let slowest = furthest_behind.entry((row.get(0), row.get(1))).or_insert(table);
        if table.next < slowest.next {
            *slowest = table;
        }
    }
    for row in &rows {
        let (topic, partition, next): (&str, i32, i64) = (row.get(0), row.get(1), row.get(3));
        let tail = tails.get(&(topic.to_owned(), partition));
        let lag = tail.and_then(|tail| tail.lag(next));
        let mut remarks: Vec<String> = tail.and_then(why_still).into_iter().collect();
        let table = Table { target: row.get(2), next, still_s: row.get(7) };
        if let Some(other) = waited_for(table, lag.unwrap_or_default(), furthest_behind[&(topic, partition)])
        {
            remarks.push(format!(
                "waits for table {}, which is {} offsets behind it",
                other.target,
                next - other.next
            ));
        }
        if let Some(since) = row.get::<_, Option<String>>(9) {
            remarks.push(format!("the name belongs to another table than before since {since}"));
        }
        status.partitions.push(Part {
            topic: topic.to_owned(),
            partition,
            table: row.get(2),
            next_offset: next,
            lag,
            rows: row.get(4),
            dead_letters: row.get(5),
            owner: row.get(6),
            still_s: row.get(7),
            stopped: row.get(8),
            remarks,
        });
    }
    if tails.len() < places.len() {
        status.kafka_is_silent = Some(config.kafka.brokers.clone());
    }
    Ok(())
}

/// One table of a partition.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Table<'r> {
    target: &'r str,
    next: i64,
    /// Since it moved, in seconds; `None` before the first time.
    still_s: Option<f64>,
}

/// A table with more to come that stands still for longer, while another of its topic is behind, waits for that one: they share
/// the topic's memory.
const STILL_S: f64 = 3.0;

/// The table that another one of its partition waits for, which has so many offsets before it.
fn waited_for<'r>(table: Table<'_>, lag: i64, slowest: Table<'r>) -> Option<Table<'r>> {
    let stands_still = table.still_s.is_some_and(|still_s| still_s > STILL_S);
    Some(slowest).filter(|slowest| lag > 0 && stands_still && slowest.next < table.next)
}

/// What keeps a table where it is, beside what its owner says.
fn why_still(tail: &Tail) -> Option<String> {
    match tail {
        Tail::Behind { .. } | Tail::Level => None,
        Tail::Gone => Some("the topic is gone, or it may not be seen".to_owned()),
        Tail::Open { since_ms, .. } => {
            let since = since_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let since = since.map_or_else(String::new, |since| format!(" since {since:.0}"));
            Some(format!("waits for a producer's transaction that is open{since}"))
        }
    }
}

/// Each partition with the position of the table that is furthest behind.
fn slowest(places: impl Iterator<Item = Place>) -> Vec<Place> {
    let mut slowest: BTreeMap<(String, i32), i64> = BTreeMap::new();
    for (topic, partition, next) in places {
        let least = slowest.entry((topic, partition)).or_insert(next);
        *least = next.min(*least);
    }
    slowest.into_iter().map(|((topic, partition), next)| (topic, partition, next)).collect()
}

/// The tables that keep their rows for a time: how many partitions each has, and who is in the way of those that should be gone.
fn kept(client: &mut Client, config: &Config) -> Result<Vec<Kept>> {
    if config.models.iter().all(|model| model.retention.is_none()) {
        return Ok(Vec::new());
    }
    // A table that does not fit its model is what `check` explains.
    let Ok(plan) = setup::plan(config, client)? else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    for table in &plan.tables {
        let look = kept_of(client, table);
        kept.extend(look.with_context(|| format!("cannot look at the partitions of table {}", table.name))?);
    }
    Ok(kept)
}

fn kept_of(client: &mut Client, table: &TablePlan) -> Result<Option<Kept>> {
    let Some(retention) = &table.retention else { return Ok(None) };
    let look = parts::look(client, table, retention)?;
    let mut overdue = Vec::new();
    for partition in &look.overdue {
        let in_the_way = parts::in_the_way(client, table, &partition.sql_name)?;
        overdue.push(Overdue { partition: partition.sql_name.clone(), in_the_way });
    }
    Ok(Some(Kept {
        table: table.name.clone(),
        partitions: look.count,
        retention: retention.explain(),
        missing: look.missing.len(),
        overdue,
    }))
}

fn dead_letters(client: &mut Client, pipeline: &str) -> Result<Vec<Letters>> {
    let rows = client
        .query_typed(
            "SELECT target, reason, count(*), max(created_at)::TEXT, (array_agg(message ORDER BY id DESC))[1]
             FROM rowmill.dead_letter WHERE pipeline = $1 AND settled_at IS NULL GROUP BY target, reason ORDER BY 1, 3 DESC",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the dead letters")?;
    let letters = |row: &postgres::Row| Letters {
        table: row.get(0),
        reason: row.get(1),
        count: row.get(2),
        newest_at: row.get(3),
        newest: row.get(4),
    };
    Ok(rows.iter().map(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_waits_for_the_one_that_is_behind() {
        #[track_caller]
        fn check(next: i64, still_s: Option<f64>, lag: i64, expected: bool) {
            let slow = Table { target: "slow", next: 100, still_s: Some(0.5) };
            let found = waited_for(Table { target: "fast", next, still_s }, lag, slow);
            assert_eq!(found, expected.then_some(slow));
        }
        check(5000, Some(10.0), 7, true);
        // It goes on, there is nothing more, it is the slow one itself, or it never moved.
        check(5000, Some(0.5), 7, false);
        check(5000, Some(10.0), 0, false);
        check(100, Some(10.0), 7, false);
        check(5000, None, 7, false);
    }
}
