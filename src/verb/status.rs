//! `rowmill status`: how far each table is, who owns what, and what was set aside.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::types::Type;

use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::kafka::tail::{Place, Tail, tails};
use crate::model::plan::TablePlan;
use crate::promise::ledger;
use crate::promise::reach::Reach;
use crate::store::postgres::partitions as parts;
use crate::verb::out::say;
use crate::verb::setup;

/// Kafka need not answer for a status; then lag is unknown.
const ANSWER: Duration = Duration::from_secs(5);

pub fn run(config: &Config) -> Result<()> {
    let mut client = Server::of(&config.postgres)?.connect("rowmill status")?;
    ledger::check_version(&mut client)?;
    members(&mut client, &config.pipeline)?;
    partitions(&mut client, config)?;
    kept(&mut client, config)?;
    dead_letters(&mut client, &config.pipeline)
}

fn members(client: &mut Client, pipeline: &str) -> Result<()> {
    let rows = client
        .query_typed(
            "SELECT m.member, rowmill.alive(m.pipeline, m.member), extract(epoch FROM clock_timestamp() - m.heartbeat_at)::FLOAT8,
                    (SELECT count(DISTINCT (l.topic, l.partition)) FROM rowmill.ledger l WHERE l.owner = m.member), m.reach
             FROM rowmill.member m WHERE m.pipeline = $1 ORDER BY 1",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the members")?;
    say!("pipeline {pipeline:?}, {} members", rows.len());
    for row in rows {
        let state = match (row.get(1), Reach::of(row.get(4))) {
            (false, _) => "gone",
            (true, Reach::Cut) => "alive, cannot reach Kafka",
            (true, Reach::Back) => "alive, reaches Kafka again since less than a minute",
            (true, Reach::Well) => "alive",
        };
        say!(
            "  {} {state}, {} partitions, heartbeat {:.1} s ago",
            row.get::<_, String>(0),
            row.get::<_, i64>(3),
            row.get::<_, f64>(2)
        );
    }
    Ok(())
}

fn partitions(client: &mut Client, config: &Config) -> Result<()> {
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
    say!();
    say!(
        "{:<28} {:>4} {:<24} {:>12} {:>8} {:>12} {:>6} {:>10}  owner",
        "topic",
        "part",
        "table",
        "next",
        "lag",
        "rows",
        "dead",
        "progress"
    );
    let mut furthest_behind: BTreeMap<(&str, i32), Table<'_>> = BTreeMap::new();
    for row in &rows {
        let table = Table { target: row.get(2), next: row.get(3), still_s: row.get(7) };
        let slowest = furthest_behind.entry((row.get(0), row.get(1))).or_insert(table);
        if table.next < slowest.next {
            *slowest = table;
        }
    }
    for row in &rows {
        let (topic, partition, next): (String, i32, i64) = (row.get(0), row.get(1), row.get(3));
        let tail = tails.get(&(topic.clone(), partition));
        let lag = tail.and_then(|tail| tail.lag(next)).map_or_else(|| "?".to_owned(), |lag| lag.to_string());
        let progress =
            row.get::<_, Option<f64>>(7).map_or_else(|| "never".to_owned(), |s| format!("{s:.0} s ago"));
        say!(
            "{topic:<28} {partition:>4} {:<24} {next:>12} {lag:>8} {:>12} {:>6} {progress:>10}  {}",
            row.get::<_, String>(2),
            row.get::<_, i64>(4),
            row.get::<_, i64>(5),
            row.get::<_, Option<String>>(6).unwrap_or_else(|| "nobody".to_owned())
        );
        if let Some(reason) = row.get::<_, Option<String>>(8) {
            say!("     STOPPED: {reason}");
        }
        if let Some(why) = tail.and_then(why_still) {
            say!("     {why}");
        }
        let table = Table { target: row.get(2), next, still_s: row.get(7) };
        let lag = tail.and_then(|tail| tail.lag(next)).unwrap_or_default();
        if let Some(other) = waited_for(table, lag, furthest_behind[&(topic.as_str(), partition)]) {
            say!("     waits for table {}, which is {} offsets behind it", other.target, next - other.next);
        }
        if let Some(since) = row.get::<_, Option<String>>(9) {
            say!("     the name belongs to another table than before since {since}");
        }
    }
    if tails.len() < places.len() {
        say!("lag is unknown where it is \"?\": Kafka at {} did not answer", config.kafka.brokers);
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
fn kept(client: &mut Client, config: &Config) -> Result<()> {
    if config.models.iter().all(|model| model.retention.is_none()) {
        return Ok(());
    }
    // A table that does not fit its model is what `check` explains.
    let Ok(plan) = setup::plan(config, client)? else { return Ok(()) };
    say!();
    for table in &plan.tables {
        kept_of(client, table)
            .with_context(|| format!("cannot look at the partitions of table {}", table.name))?;
    }
    Ok(())
}

fn kept_of(client: &mut Client, table: &TablePlan) -> Result<()> {
    let Some(retention) = &table.retention else { return Ok(()) };
    let look = parts::look(client, table, retention)?;
    say!("table {}: {} partitions; {}", table.name, look.count, retention.explain());
    if !look.missing.is_empty() {
        say!("     {} are missing; the log of a running rowmill says why", look.missing.len());
    }
    for partition in &look.overdue {
        let holders = parts::in_the_way(client, table, &partition.sql_name)?;
        let holders = if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") };
        say!("     {} should be gone; in the way: {holders}", partition.sql_name);
    }
    Ok(())
}

fn dead_letters(client: &mut Client, pipeline: &str) -> Result<()> {
    let rows = client
        .query_typed(
            "SELECT target, reason, count(*), max(created_at)::TEXT, (array_agg(message ORDER BY id DESC))[1]
             FROM rowmill.dead_letter WHERE pipeline = $1 AND settled_at IS NULL GROUP BY target, reason ORDER BY 1, 3 DESC",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the dead letters")?;
    say!();
    if rows.is_empty() {
        say!("no open dead letters");
        return Ok(());
    }
    say!("{:<24} {:<20} {:>8}  newest", "open letters of table", "reason", "count");
    for row in rows {
        say!(
            "{:<24} {:<20} {:>8}  {}: {}",
            row.get::<_, String>(0),
            row.get::<_, String>(1),
            row.get::<_, i64>(2),
            row.get::<_, String>(3),
            row.get::<_, String>(4)
        );
    }
    Ok(())
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
