//! `rowmill init`: the schema, the user's tables, and the two changes to the ledger that only a person may ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use postgres::Transaction;
use postgres::types::Type;

use crate::client::pg::{FIXED_PATH, Server, describe};
use crate::promise::ledger::{self, SCHEMA_SQL, SCHEMA_VERSION};
use crate::verb::out::say;

/// The five built-in tables, and the same as TimescaleDB hypertables.
const TABLES_SQL: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/tables.sql"));
const TIMESCALEDB_SQL: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/tables.timescaledb.sql"));

/// Where the other verbs look.
const HERE: &str = "rowmill.toml";

const BUILT_IN: &[&str] = &["state", "metric", "log", "network_trace", "network_ping"];

#[derive(Args)]
pub struct Init {
    /// The PostgreSQL server, without a password; the role must be allowed to create a schema. Default: DATABASE_URL, and then what
    /// ./rowmill.toml says.
    #[arg(long)]
    url: Option<String>,
    /// Take the server from this configuration file.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Also create the five built-in tables: state, metric, log, network_trace, network_ping.
    #[arg(long)]
    models: bool,
    /// With --models: make them TimescaleDB hypertables.
    #[arg(long, requires = "models")]
    timescaledb: bool,
    /// Go on after records that Kafka no longer has, for example metric/3:100-250. The gap is recorded in rowmill.gap.
    #[arg(long, value_name = "TOPIC/PARTITION:FROM-TO")]
    accept_gap: Vec<Gap>,
    /// Move the ledger rows of another pipeline, which must not run, to the one in the configuration file.
    #[arg(long, value_name = "PIPELINE", requires = "config")]
    take_over: Option<String>,
}

/// Offsets `[from, to)` of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    topic: String,
    partition: i32,
    from: i64,
    to: i64,
}

impl std::str::FromStr for Gap {
    type Err = String;

    fn from_str(text: &str) -> Result<Gap, String> {
        let parse = || {
            let (place, range) = text.rsplit_once(':')?;
            let (topic, partition) = place.rsplit_once('/')?;
            let (from, to) = range.split_once('-')?;
            let gap = Gap {
                topic: topic.to_owned(),
                partition: partition.parse().ok()?,
                from: from.parse().ok()?,
                to: to.parse().ok()?,
            };
            (gap.from < gap.to && !gap.topic.is_empty()).then_some(gap)
        };
        parse().ok_or_else(|| format!("{text:?} is no gap: write it like metric/3:100-250"))
    }
}

pub fn run(init: &Init) -> Result<()> {
    let config = match &init.config {
        Some(path) => Some(crate::config::read(path)?),
        // As every other verb, unless a server was named.
        None if init.url.is_none()
            && std::env::var_os("DATABASE_URL").is_none()
            && Path::new(HERE).is_file() =>
        {
            Some(crate::config::read(Path::new(HERE))?)
        }
        None => None,
    };
    let server = match (&config, &init.url) {
        (Some(config), _) => Server::of(&config.postgres)?,
        (None, Some(url)) => {
            let server = Server::parse(url)?;
            if server.has_password() {
                bail!(
                    "--url holds a password, which everybody on this machine can see: use DATABASE_URL or --config"
                );
            }
            server
        }
        (None, None) => {
            let url = std::env::var("DATABASE_URL");
            Server::parse(
                &url.context("which server? Give --config, --url or DATABASE_URL, or have a ./rowmill.toml")?,
            )?
        }
    };
    let mut client = server.connect("rowmill init")?;
    let mut transaction = client.begin()?;
    migrate(&mut transaction)?;
    say!("schema rowmill, version {SCHEMA_VERSION}, on {}", server.address());
    if init.models {
        let sql = if init.timescaledb { TIMESCALEDB_SQL } else { TABLES_SQL };
        execute(&mut transaction, sql, "create the built-in tables")?;
        refuse_strange_tables(&mut transaction)?;
        say!("tables state, metric, log, network_trace, network_ping, in schema public");
    }
    if let (Some(other), Some(config)) = (&init.take_over, &config) {
        let moved = ledger::take_over(&mut transaction, other, &config.pipeline)?;
        say!("{moved} ledger rows moved from pipeline {other:?} to {:?}", config.pipeline);
    }
    for gap in &init.accept_gap {
        accept(&mut transaction, gap)?;
    }
    transaction.commit().context("cannot commit; nothing was changed")
}

/// A table that was there before may be somebody else's, with triggers that do what they like with our rights, and rights of theirs on
/// our rows. `sql/tables.sql` would leave it as it is.
fn refuse_strange_tables(transaction: &mut Transaction<'_>) -> Result<()> {
    let rows = transaction.query_typed(
        "SELECT format('%I.%I', n.nspname, c.relname), pg_get_userbyid(c.relowner)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND c.relname = ANY ($1) AND NOT pg_has_role(current_user, c.relowner, 'USAGE')",
        &[(&BUILT_IN, Type::TEXT_ARRAY)],
    )?;
    if let Some(row) = rows.first() {
        let (table, owner): (&str, &str) = (row.get(0), row.get(1));
        bail!(
            "table {table} is there already and belongs to {owner}, who may do with its rows, and have done with them, as they like: \
             look at its triggers, then give it to this role (ALTER TABLE {table} OWNER TO ..) or drop it; nothing was changed"
        );
    }
    Ok(())
}

fn migrate(transaction: &mut Transaction<'_>) -> Result<()> {
    let present = transaction
        .query_typed_one("SELECT to_regclass('rowmill.version') IS NOT NULL", &[])?
        .get::<_, bool>(0);
    if present {
        let version: Option<i32> =
            transaction.query_typed_opt("SELECT version FROM rowmill.version", &[])?.map(|row| row.get(0));
        if version.is_some_and(|v| v > SCHEMA_VERSION) {
            bail!(
                "the schema has a newer version than this program knows ({SCHEMA_VERSION}): use the newer program"
            );
        }
    }
    execute(transaction, SCHEMA_SQL, "create the rowmill schema")?;
    transaction.execute_typed(
        "INSERT INTO rowmill.version (version) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET version = excluded.version",
        &[(&SCHEMA_VERSION, Type::INT4)],
    )?;
    Ok(())
}

/// Runs one of the SQL files. Each leaves the search_path as the role has it, for those who run it by hand. That something is there
/// already is no news.
fn execute(transaction: &mut Transaction<'_>, sql: &str, what: &str) -> Result<()> {
    transaction
        .batch_execute(&format!("SET LOCAL client_min_messages = warning;{sql};{FIXED_PATH}"))
        .map_err(|error| anyhow::anyhow!("cannot {what}: {}; nothing was changed", describe(&error)))
}

/// Lets a pipeline go on behind records that Kafka no longer has.
fn accept(transaction: &mut Transaction<'_>, gap: &Gap) -> Result<()> {
    let Gap { topic, partition, from, to } = gap;
    let moved = ledger::accept_gap(transaction, topic, *partition, *from..*to)?;
    if moved.is_empty() {
        bail!(
            "no table stands inside [{from}, {to}) of {topic}/{partition}: see `rowmill status` for where they are"
        );
    }
    for (target, stood) in moved {
        say!("gap [{stood}, {to}) of {topic}/{partition} accepted for table {target}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_written_like_the_stop_says() {
        #[track_caller]
        fn check(text: &str, expected: Option<(&str, i32, i64, i64)>) {
            let parsed = text.parse::<Gap>().ok();
            assert_eq!(parsed.as_ref().map(|g| (&*g.topic, g.partition, g.from, g.to)), expected, "{text}");
        }
        check("", None);
        check("metric:1-2", None);
        check("metric/3:100", None);
        check("metric/3:250-100", None);
        check("metric/3:100-250", Some(("metric", 3, 100, 250)));
        check("a:b/c/0:0-1", Some(("a:b/c", 0, 0, 1)));
    }
}
