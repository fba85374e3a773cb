//! A table's partitions by time, as the server has them, and the statements that make one and drop one. What is to be done is
//! decided by [`Retention::due`].
//!
//! No statement here waits for a lock longer than [`LOCK_WAIT`]: whoever waits for the parent's, all writers wait behind. Making a
//! partition needs a lock that readers and writers do not mind: the table is made by itself and then attached. Dropping one needs the
//! parent for itself, for a moment.

use std::time::Duration;

use postgres::types::Type;
use postgres::{Error, Transaction};

use crate::client::path::Client;
use crate::model::plan::{TablePlan, quoted};
use crate::model::retention::{Range, Retention};

/// Longer than a row's lock is held, shorter than anybody notices.
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

/// One that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub sql_name: String,
    /// `None` where its bounds are not understood, and for the default partition.
    pub range: Option<Range>,
}

/// What one instance did, while the others did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Yes,
    /// Another instance is at it.
    NotOurTurn,
}

/// A table's partitions as they are at one moment, and what has to be done with them.
#[derive(Clone, Debug)]
pub struct Look {
    /// By the server's clock, in microseconds since 1970.
    pub now: i64,
    /// How many there are.
    pub count: usize,
    pub missing: Vec<Range>,
    pub overdue: Vec<Partition>,
}

/// Looks at a table's partitions.
///
/// # Errors
/// The server's.
pub fn look(client: &mut Client, table: &TablePlan, retention: &Retention) -> Result<Look, Error> {
    let (there, now) = there(client, table, retention)?;
    let count = there.len();
    let ranges: Vec<Range> = there.iter().filter_map(|partition| partition.range).collect();
    let due = retention.due(now, &ranges);
    let is_overdue = |partition: &Partition| partition.range.is_some_and(|range| due.drop.contains(&range));
    let overdue = there.into_iter().filter(is_overdue).collect();
    Ok(Look { now, count, missing: due.make, overdue })
}

/// All partitions of a table, and the server's time.
fn there(
    client: &mut Client,
    table: &TablePlan,
    retention: &Retention,
) -> Result<(Vec<Partition>, i64), Error> {
    let mut transaction = client.begin()?;
    transaction.batch_execute("SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'")?;
    let rows = transaction.query_typed(
        "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
                pg_catalog.pg_get_expr(c.relpartbound, c.oid)
         FROM pg_catalog.pg_inherits i
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE i.inhparent = $1 AND c.relpartbound IS NOT NULL",
        &[(&table.oid, Type::OID)],
    )?;
    let now: i64 = transaction
        .query_typed_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT", &[])?
        .get(0);
    transaction.commit()?;
    let partition = |row: &postgres::Row| {
        // None of one that another instance has dropped since: the expression is looked up as things are now.
        let bounds: Option<&str> = row.get(1);
        Some(Partition { sql_name: row.get(0), range: retention.range(bounds?) })
    };
    Ok((rows.iter().filter_map(partition).collect(), now))
}

/// Makes a partition: an empty table like its parent, attached.
///
/// # Errors
/// The server's: no right to it, or a lock that did not come in time.
pub fn make(
    client: &mut Client,
    table: &TablePlan,
    retention: &Retention,
    range: Range,
) -> Result<Done, Error> {
    let mut transaction = client.begin()?;
    if !is_our_turn(&mut transaction, table)? {
        return Ok(Done::NotOurTurn);
    }
    let name = partition_name(&table.sql_name, &retention.suffix(range.0));
    let (parent, from, to) = (&table.sql_name, retention.literal(range.0), retention.literal(range.1));
    transaction.batch_execute(&format!(
        "SET LOCAL timezone = 'UTC';
         CREATE TABLE {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE);
         ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})"
    ))?;
    transaction.commit()?;
    Ok(Done::Yes)
}

/// Drops a partition with all of its rows.
///
/// # Errors
/// The server's: no right to it, or a lock that did not come in time.
pub fn drop(client: &mut Client, table: &TablePlan, partition: &str) -> Result<Done, Error> {
    let mut transaction = client.begin()?;
    if !is_our_turn(&mut transaction, table)? {
        return Ok(Done::NotOurTurn);
    }
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS {partition}"))?;
    transaction.commit()?;
    Ok(Done::Yes)
}

/// One instance at a time, by a lock that nobody waits for.
fn is_our_turn(transaction: &mut Transaction<'_>, table: &TablePlan) -> Result<bool, Error> {
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {}", LOCK_WAIT.as_millis()))?;
    let row = transaction.query_typed_one(
        "SELECT pg_try_advisory_xact_lock('rowmill.ledger'::regclass::oid::integer, $1::oid::integer)",
        &[(&table.oid, Type::OID)],
    )?;
    Ok(row.get(0))
}

/// Who holds locks on a table or one of its partitions that a drop waits for: for each, its number on the server, its name, and since
/// when its transaction has been open.
///
/// # Errors
/// The server's.
pub fn in_the_way(client: &mut Client, table: &TablePlan, partition: &str) -> Result<Vec<String>, Error> {
    let rows = client.query_typed(
        "SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'a session without a name'),
                coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::BIGINT
         FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'relation' AND l.granted AND a.pid <> pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND l.relation IN ($1, to_regclass($2)::oid)
         ORDER BY 3 DESC LIMIT 3",
        &[(&table.oid, Type::OID), (&partition, Type::TEXT)],
    )?;
    let holder = |row: &postgres::Row| {
        format!(
            "{} (process {} of PostgreSQL, in a transaction for {} s)",
            row.get::<_, &str>(1),
            row.get::<_, i32>(0),
            row.get::<_, i64>(2)
        )
    };
    Ok(rows.iter().map(holder).collect())
}

/// `"public"."ping"` and `20260310` make `"public"."ping_p20260310"`.
fn partition_name(parent: &str, suffix: &str) -> String {
    let (schema, name) = parent.split_once("\".\"").unwrap_or(("\"public", parent));
    let name = name.trim_end_matches('"').replace("\"\"", "\"");
    let room = NAME_BYTES_MAX - suffix.len() - "_p".len();
    let cut = (0..=room.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or_default();
    format!("{schema}\".{}", quoted(&format!("{}_p{suffix}", &name[..cut])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_called_like_its_table() {
        assert_eq!(partition_name("\"public\".\"ping\"", "20260310"), "\"public\".\"ping_p20260310\"");
        assert_eq!(partition_name("\"a\".\"odd \"\"name\"", "1"), "\"a\".\"odd \"\"name_p1\"");
        let long = format!("\"a\".\"{}é\"", "x".repeat(52));
        let name = partition_name(&long, "20260310");
        assert_eq!(name, format!("\"a\".\"{}_p20260310\"", "x".repeat(52)), "a letter is not cut in two");
    }
}
