//! `rowmill status`: how far each table is, who owns what, and what was set aside.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::types::Type;

use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::decode::reject::printable;
use crate::kafka::tail::{Place, Tail, tails};
use crate::promise::ledger;
use crate::promise::reach::Reach;
use crate::verb::out::say;

/// Kafka need not answer for a status; then lag is unknown.
const ANSWER: Duration = Duration::from_secs(5);

pub fn run(config: &Config) -> Result<()> {
    let mut client = Server::of(&config.postgres)?.connect("rowmill status")?;
    ledger::check_version(&mut client)?;
    members(&mut client, &config.pipeline)?;
    partitions(&mut client, config)?;
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
    say!(
        "\n{:<28} {:>4} {:<24} {:>12} {:>8} {:>12} {:>6} {:>10}  owner",
        "topic",
        "part",
        "table",
        "next",
        "lag",
        "rows",
        "dead",
        "progress"
    );
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
        if let Some(since) = row.get::<_, Option<String>>(9) {
            say!("     the name belongs to another table than before since {since}");
        }
    }
    if tails.len() < places.len() {
        say!("lag is unknown where it is \"?\": Kafka at {} did not answer", config.kafka.brokers);
    }
    Ok(())
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

fn dead_letters(client: &mut Client, pipeline: &str) -> Result<()> {
    let rows = client
        .query_typed(
            "SELECT target, reason, count(*), max(created_at)::TEXT, (array_agg(message ORDER BY id DESC))[1]
             FROM rowmill.dead_letter WHERE pipeline = $1 AND settled_at IS NULL GROUP BY target, reason ORDER BY 1, 3 DESC",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the dead letters")?;
    if rows.is_empty() {
        say!("\nno open dead letters");
        return Ok(());
    }
    say!("\n{:<24} {:<20} {:>8}  newest", "open letters of table", "reason", "count");
    for row in rows {
        say!(
            "{:<24} {:<20} {:>8}  {}: {}",
            row.get::<_, String>(0),
            row.get::<_, String>(1),
            row.get::<_, i64>(2),
            row.get::<_, String>(3),
            printable(&row.get::<_, String>(4))
        );
    }
    Ok(())
}
