//! `rowmill status`: how far each table is, who owns what, and what was set aside.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::types::Type;

use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::decode::reject::printable;
use crate::kafka::ask::Asker;
use crate::promise::ledger;

/// Kafka need not answer for a status; then lag is unknown.
const ANSWER: Duration = Duration::from_secs(3);

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
                    (SELECT count(DISTINCT (l.topic, l.partition)) FROM rowmill.ledger l WHERE l.owner = m.member)
             FROM rowmill.member m WHERE m.pipeline = $1 ORDER BY 1",
            &[(&pipeline, Type::TEXT)],
        )
        .context("cannot read the members")?;
    println!("pipeline {pipeline:?}, {} members", rows.len());
    for row in rows {
        let state = if row.get(1) { "alive" } else { "gone" };
        println!(
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
    let ends = log_ends(config, rows.iter().map(|row| (row.get(0), row.get(1))));
    println!(
        "\n{:<28} {:>4} {:<24} {:>12} {:>8} {:>12} {:>6} {:>10}  owner",
        "topic", "part", "table", "next", "lag", "rows", "dead", "progress"
    );
    for row in &rows {
        let (topic, partition, next): (String, i32, i64) = (row.get(0), row.get(1), row.get(3));
        let lag = ends
            .get(&(topic.clone(), partition))
            .map_or_else(|| "?".to_owned(), |end| (end - next).max(0).to_string());
        let progress =
            row.get::<_, Option<f64>>(7).map_or_else(|| "never".to_owned(), |s| format!("{s:.0} s ago"));
        println!(
            "{topic:<28} {partition:>4} {:<24} {next:>12} {lag:>8} {:>12} {:>6} {progress:>10}  {}",
            row.get::<_, String>(2),
            row.get::<_, i64>(4),
            row.get::<_, i64>(5),
            row.get::<_, Option<String>>(6).unwrap_or_else(|| "nobody".to_owned())
        );
        if let Some(reason) = row.get::<_, Option<String>>(8) {
            println!("     STOPPED: {reason}");
        }
        if let Some(since) = row.get::<_, Option<String>>(9) {
            println!("     the name belongs to another table than before since {since}");
        }
    }
    if ends.is_empty() && !rows.is_empty() {
        println!("lag is unknown: Kafka at {} did not answer", config.kafka.brokers);
    }
    Ok(())
}

/// The ends of the logs; empty where Kafka does not answer.
fn log_ends(
    config: &Config,
    partitions: impl Iterator<Item = (String, i32)>,
) -> BTreeMap<(String, i32), i64> {
    let Ok(asker) = Asker::new(&config.kafka, ANSWER) else { return BTreeMap::new() };
    let mut ends = BTreeMap::new();
    for (topic, partition) in partitions {
        match asker.ends(&topic, partition) {
            Ok(log) => drop(ends.insert((topic, partition), log.end)),
            // One that does not answer is enough: each would take the whole timeout.
            Err(_) => break,
        }
    }
    ends
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
        println!("\nno open dead letters");
        return Ok(());
    }
    println!("\n{:<24} {:<20} {:>8}  newest", "open letters of table", "reason", "count");
    for row in rows {
        println!(
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
