//! The ledger's only writers, beside sql/rowmill.sql: register, heartbeat, snapshot, claim, advance, resolve, release, and what
//! only a person may ask for.
//!
//! Every statement is unnamed or simple, so that a pooler in transaction mode may stand in between.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postgres::Transaction;
use postgres::types::Type;

use crate::client::pg::{Client, describe, escape_literal};
use crate::promise::decide::{Peer, Standing};
use crate::promise::duties::{Entry, Hold, Seen};
use crate::promise::looks::Sum;
use crate::promise::offsets::Anchor;
use crate::promise::reach::Reach;
use crate::promise::span::{Counts, Move};
use crate::promise::topics::NewPartition;

/// The schema as `rowmill init` creates it, safe to apply again.
pub const SCHEMA_SQL: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/rowmill.sql"));

/// Raised whenever the schema changes in a way that an older program must not run on.
pub const SCHEMA_VERSION: i32 = 2;

/// First key of all our advisory locks: "rowm" as an integer. Also written out in sql/rowmill.sql.
pub const LOCK_CLASS: i32 = 1_919_907_693;

/// This process, as the ledger knows it.
#[derive(Clone, Debug)]
pub struct Member {
    pub pipeline: String,
    pub name: String,
    pub lease: Duration,
}

impl Member {
    /// What our sessions are called: a take-over ends the sessions that carry the name of a dead member.
    pub fn application_name(&self) -> String {
        format!("rowmill {}", self.name)
    }
}

/// What a CLAIM got for one target.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub target: String,
    pub epoch: i64,
    pub next_offset: i64,
    pub anchor: Option<Anchor>,
    pub topic_id: String,
}

/// Refuses to run on a schema that is missing, older than this program needs, or newer than it knows.
pub fn check_version(client: &mut Client) -> Result<()> {
    let exists = client
        .query_typed("SELECT to_regclass('rowmill.version') IS NOT NULL", &[])
        .context("cannot look for the rowmill schema")?[0]
        .get::<_, bool>(0);
    if !exists {
        bail!("the database has no rowmill schema yet: run `rowmill init` first");
    }
    let rows = client
        .query_typed("SELECT version FROM rowmill.version", &[])
        .context("cannot read rowmill.version")?;
    match rows.first().map(|row| row.get::<_, i32>(0)) {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(newer) if newer > SCHEMA_VERSION => bail!(
            "the rowmill schema has version {newer} and this program knows {SCHEMA_VERSION}: a newer program migrated it; run \
             that one"
        ),
        _ => bail!("the rowmill schema is older than this program needs: run `rowmill init`"),
    }
}

/// Takes the session lock that shows others at once when this process dies. Held until the session ends.
pub fn begin_session(client: &mut Client) -> Result<i32> {
    let sql = "SELECT nextval('rowmill.session')::INTEGER";
    let session: i32 = client.query_typed(sql, &[]).context("cannot number the lease session")?[0].get(0);
    client
        .query_typed("SELECT pg_advisory_lock($1, $2)", &[(&LOCK_CLASS, Type::INT4), (&session, Type::INT4)])
        .context("cannot take the session lock")?;
    Ok(session)
}

/// HEARTBEAT: after a failover the row may be gone, so it is written whole.
pub fn heartbeat(client: &mut Client, me: &Member, session: Option<i32>, reach: Reach) -> Result<()> {
    client.execute_typed(
        "INSERT INTO rowmill.member (pipeline, member, lease, session, reach)
         VALUES ($1, $2, make_interval(secs => $3), $4, $5)
         ON CONFLICT (pipeline, member) DO UPDATE
         SET heartbeat_at = clock_timestamp(), lease = excluded.lease, session = excluded.session, reach = excluded.reach",
        &[
            (&me.pipeline, Type::TEXT),
            (&me.name, Type::TEXT),
            (&me.lease.as_secs_f64(), Type::FLOAT8),
            (&session, Type::INT4),
            (&(reach as i16), Type::INT2),
        ],
    )?;
    Ok(())
}

/// The living members of the pipeline.
pub fn living(client: &mut Client, pipeline: &str) -> Result<Vec<Peer>> {
    let rows = client.query_typed(
        "SELECT member, reach FROM rowmill.member WHERE pipeline = $1 AND rowmill.alive(pipeline, member) ORDER BY member",
        &[(&pipeline, Type::TEXT)],
    )?;
    Ok(rows.iter().map(|row| Peer { name: row.get(0), reach: Reach::of(row.get(1)) }).collect())
}

/// The rows of all topics that the pipeline uses, whoever owns them; `living` are its members. By the key's first column, so
/// that the rows of others cost nothing, and in no order: sorting them would cost the server more than reading them.
pub fn entries(
    client: &mut Client,
    pipeline: &str,
    living: &[Peer],
    topics: &[String],
) -> Result<Vec<Entry>> {
    let living: BTreeSet<&str> = living.iter().map(|peer| &*peer.name).collect();
    let rows = client.query_typed(
        "SELECT topic, partition, target, owner, epoch, next_offset, routing_hash, pipeline, topic_id, cluster_id,
                anchor_offset, anchor_hash, table_oid, coalesce(extract(epoch FROM table_since), 0)::FLOAT8
         FROM rowmill.ledger WHERE topic = ANY ($1)",
        &[(&topics, Type::TEXT_ARRAY)],
    )?;
    let mut names = Names::default();
    let entry = |row: &postgres::Row| {
        let owner: Option<&str> = row.get(3);
        let the_pipeline: &str = row.get(7);
        Entry {
            topic: names.shared(row.get(0)),
            partition: row.get(1),
            target: names.shared(row.get(2)),
            owner: owner.map(|owner| names.shared(owner)),
            // Nothing depends on whether the members of another pipeline live.
            owner_alive: the_pipeline == pipeline && owner.is_some_and(|owner| living.contains(owner)),
            epoch: row.get(4),
            next_offset: row.get(5),
            routing_hash: row.get(6),
            pipeline: names.shared(the_pipeline),
            topic_id: names.shared(row.get(8)),
            cluster_id: names.shared(row.get(9)),
            anchor: anchor(row, 10),
            table: row.get::<_, Option<u32>>(12).map(|oid| Seen { oid, since_s: row.get(13) }),
        }
    };
    Ok(rows.iter().map(entry).collect())
}

/// What all rows of these topics come to, and the sum of where those of ours stand. The server reads them, and sends two numbers.
pub fn sum(client: &mut Client, me: &str, topics: &[String]) -> Result<(Sum, i128)> {
    let row = &client.query_typed(
        "SELECT count(*),
                coalesce(sum(hashtextextended(
                    concat_ws('|', topic, partition, target, coalesce(owner, '-'), epoch, routing_hash, pipeline, topic_id, cluster_id,
                              coalesce(table_oid::BIGINT, 0), extract(epoch FROM table_since)), 0)), 0)::TEXT,
                coalesce(sum(next_offset) FILTER (WHERE owner = $2), 0)::TEXT
         FROM rowmill.ledger WHERE topic = ANY ($1)",
        &[(&topics, Type::TEXT_ARRAY), (&me, Type::TEXT)],
    )?[0];
    let next: &str = row.get(2);
    let next = next.parse().context("the sum of offsets is no number")?;
    Ok((Sum { rows: row.get(0), hashes: row.get(1) }, next))
}

/// Names that many rows have, each once.
#[derive(Default)]
struct Names(HashSet<Arc<str>>);

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        name
    }
}

/// The anchor whose offset and hash are two columns, the first of which is number `at`.
fn anchor(row: &postgres::Row, at: usize) -> Option<Anchor> {
    Some(Anchor { offset: row.get::<_, Option<i64>>(at)?, hash: row.get::<_, Option<i64>>(at + 1)? })
}

/// What REGISTER needs to know of a topic.
#[derive(Debug)]
pub struct Registration<'a> {
    pub pipeline: &'a str,
    pub cluster_id: &'a str,
    pub topic_id: &'a str,
    pub routing_hash: i64,
    pub topic: &'a str,
    pub targets: &'a [String],
}

/// REGISTER: inserts the rows that are missing for these partitions; returns how many.
pub fn register(client: &mut Client, what: &Registration<'_>, partitions: &[NewPartition]) -> Result<i32> {
    let partitions = serde_json::to_string(partitions).expect("numbers always serialize");
    let row = client.query_typed(
        "SELECT rowmill.register($1, $2, $3, $4, $5, $6, $7::TEXT::JSONB)",
        &[
            (&what.pipeline, Type::TEXT),
            (&what.cluster_id, Type::TEXT),
            (&what.topic_id, Type::TEXT),
            (&what.routing_hash, Type::INT8),
            (&what.topic, Type::TEXT),
            (&what.targets, Type::TEXT_ARRAY),
            (&partitions, Type::TEXT),
        ],
    )?;
    Ok(row[0].get(0))
}

/// Adopts a changed routing, which is possible only while nobody in the pipeline owns the topic and the tables of each
/// partition are level. Tables that the topic no longer feeds stay as they are. Returns how many rows were changed.
pub fn adopt_routing(
    client: &mut Client,
    pipeline: &str,
    topic: &str,
    routing_hash: i64,
    targets: &[String],
) -> Result<u64> {
    Ok(client.execute_typed(
        "UPDATE rowmill.ledger l SET routing_hash = $3
         WHERE l.pipeline = $1 AND l.topic = $2 AND l.routing_hash <> $3 AND l.target = ANY ($4)
           AND NOT EXISTS (SELECT FROM rowmill.ledger o WHERE o.pipeline = $1 AND o.topic = $2 AND o.owner IS NOT NULL
                             AND rowmill.alive(o.pipeline, o.owner))
           AND NOT EXISTS (SELECT FROM rowmill.ledger o
                           WHERE o.pipeline = $1 AND o.topic = $2 AND o.target = ANY ($4)
                           GROUP BY o.partition HAVING min(o.next_offset) <> max(o.next_offset))",
        &[
            (&pipeline, Type::TEXT),
            (&topic, Type::TEXT),
            (&routing_hash, Type::INT8),
            (&targets, Type::TEXT_ARRAY),
        ],
    )?)
}

/// Moves the rows of a pipeline that does not run to another; how many.
///
/// # Errors
/// Also where a member of it still lives.
pub fn take_over(transaction: &mut Transaction<'_>, other: &str, pipeline: &str) -> Result<u64> {
    let alive = transaction.query_typed_one(
        "SELECT EXISTS (SELECT FROM rowmill.member WHERE pipeline = $1 AND rowmill.alive(pipeline, member))",
        &[(&other, Type::TEXT)],
    )?;
    if alive.get(0) {
        bail!("pipeline {other:?} still runs: stop its processes first");
    }
    Ok(transaction.execute_typed(
        "UPDATE rowmill.ledger SET pipeline = $2, owner = NULL, epoch = epoch + 1 WHERE pipeline = $1",
        &[(&other, Type::TEXT), (&pipeline, Type::TEXT)],
    )?)
}

/// Moves the tables that stand inside a gap of a partition, `[first, next)`, to its end, and writes that down. Whoever owns
/// the partition is fenced by the new epoch. Returns each table that moved, and from where.
pub fn accept_gap(
    transaction: &mut Transaction<'_>,
    topic: &str,
    partition: i32,
    gap: Range<i64>,
) -> Result<Vec<(String, i64)>> {
    let moved = transaction.query_typed(
        "WITH stands AS (
             SELECT target, next_offset FROM rowmill.ledger
             WHERE topic = $1 AND partition = $2 AND next_offset >= $3 AND next_offset < $4
             FOR UPDATE)
         UPDATE rowmill.ledger l
         SET holes = holes + $4 - l.next_offset, next_offset = $4, anchor_offset = NULL, anchor_hash = NULL,
             owner = NULL, epoch = epoch + 1, stopped = NULL
         FROM stands
         WHERE l.topic = $1 AND l.partition = $2 AND l.target = stands.target
         RETURNING l.target, stands.next_offset",
        &[(&topic, Type::TEXT), (&partition, Type::INT4), (&gap.start, Type::INT8), (&gap.end, Type::INT8)],
    )?;
    let moved: Vec<(String, i64)> = moved.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (target, from) in &moved {
        transaction.execute_typed(
            "INSERT INTO rowmill.gap (topic, partition, target, from_offset, to_offset) VALUES ($1, $2, $3, $4, $5)",
            &[
                (&topic, Type::TEXT),
                (&partition, Type::INT4),
                (target, Type::TEXT),
                (from, Type::INT8),
                (&gap.end, Type::INT8),
            ],
        )?;
    }
    Ok(moved)
}

/// CLAIM, for partitions of one topic at once: of each all targets, or none; it is missing from the answer then.
pub fn claim(
    client: &mut Client,
    me: &Member,
    topic: &str,
    partitions: &[i32],
    routing_hash: i64,
    targets: &[String],
) -> Result<BTreeMap<i32, Vec<Claimed>>> {
    let rows = client.query_typed(
        "SELECT p.id, c.target, c.epoch, c.next_offset, c.anchor_offset, c.anchor_hash, c.topic_id
         FROM unnest($4) AS p(id), LATERAL rowmill.claim($1, $2, $3, p.id, $5, $6) AS c",
        &[
            (&me.name, Type::TEXT),
            (&me.pipeline, Type::TEXT),
            (&topic, Type::TEXT),
            (&partitions, Type::INT4_ARRAY),
            (&routing_hash, Type::INT8),
            (&targets, Type::TEXT_ARRAY),
        ],
    )?;
    let mut claimed: BTreeMap<i32, Vec<Claimed>> = BTreeMap::new();
    for row in rows {
        claimed.entry(row.get(0)).or_default().push(Claimed {
            target: row.get(1),
            epoch: row.get(2),
            next_offset: row.get(3),
            anchor: anchor(&row, 4),
            topic_id: row.get(6),
        });
    }
    Ok(claimed)
}

/// RELEASE: gives up those of these rows that are still ours. Locked in key order, as an advance of ours may still run.
pub fn release(client: &mut Client, me: &str, holds: &[Hold<'_>]) -> Result<()> {
    let topics: Vec<&str> = holds.iter().map(|hold| hold.topic).collect();
    let partitions: Vec<i32> = holds.iter().map(|hold| hold.partition).collect();
    let targets: Vec<&str> = holds.iter().map(|hold| hold.target).collect();
    let epochs: Vec<i64> = holds.iter().map(|hold| hold.epoch).collect();
    client.execute_typed(
        "WITH ours AS (
             SELECT l.topic, l.partition, l.target
             FROM unnest($2, $3, $4, $5) AS h(topic, partition, target, epoch)
             JOIN rowmill.ledger l ON l.topic = h.topic AND l.partition = h.partition AND l.target = h.target
                                  AND l.owner = $1 AND l.epoch = h.epoch
             ORDER BY l.topic, l.partition, l.target
             FOR UPDATE OF l)
         UPDATE rowmill.ledger l SET owner = NULL FROM ours
         WHERE l.topic = ours.topic AND l.partition = ours.partition AND l.target = ours.target",
        &[
            (&me, Type::TEXT),
            (&topics, Type::TEXT_ARRAY),
            (&partitions, Type::INT4_ARRAY),
            (&targets, Type::TEXT_ARRAY),
            (&epochs, Type::INT8_ARRAY),
        ],
    )?;
    Ok(())
}

/// What `rowmill status` is told of a partition: why it does not go on, or that it does.
#[derive(Clone, Debug)]
pub struct Stop {
    pub topic: Arc<str>,
    pub partition: i32,
    pub reason: Option<String>,
}

/// Leaves the reasons of stops where `rowmill status` finds them, or takes them away. Locked in key order.
pub fn mark_stopped(client: &mut Client, me: &str, stops: &[Stop]) -> Result<()> {
    let topics: Vec<&str> = stops.iter().map(|stop| &*stop.topic).collect();
    let partitions: Vec<i32> = stops.iter().map(|stop| stop.partition).collect();
    let reasons: Vec<Option<&str>> = stops.iter().map(|stop| stop.reason.as_deref()).collect();
    client.execute_typed(
        "WITH ours AS (
             SELECT l.topic, l.partition, l.target, s.reason
             FROM unnest($2, $3, $4) AS s(topic, partition, reason)
             JOIN rowmill.ledger l ON l.topic = s.topic AND l.partition = s.partition AND l.owner = $1
             ORDER BY l.topic, l.partition, l.target
             FOR UPDATE OF l)
         UPDATE rowmill.ledger l SET stopped = ours.reason FROM ours
         WHERE l.topic = ours.topic AND l.partition = ours.partition AND l.target = ours.target",
        &[
            (&me, Type::TEXT),
            (&topics, Type::TEXT_ARRAY),
            (&partitions, Type::INT4_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
        ],
    )?;
    Ok(())
}

/// Ends what this member still has under way on the server, beside the asking session: nobody waits for it any more, and
/// its locks would hold up who comes next. Returns how many sessions were ended.
pub fn end_my_work(client: &mut Client, me: &Member) -> Result<u64> {
    let ended = client.execute_typed(
        "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
         WHERE application_name = $1 AND pid <> pg_backend_pid() AND usename = current_user AND state <> 'idle'",
        &[(&me.application_name(), Type::TEXT)],
    )?;
    Ok(ended)
}

/// The member is gone in good order.
pub fn leave(client: &mut Client, me: &Member) -> Result<()> {
    client.execute_typed(
        "DELETE FROM rowmill.member WHERE pipeline = $1 AND member = $2",
        &[(&me.pipeline, Type::TEXT), (&me.name, Type::TEXT)],
    )?;
    Ok(())
}

/// Ends the sessions of members whose lease ran out: a process frozen in mid-COPY would otherwise hold its locks for
/// ever. Members that own nothing any more are then forgotten. Returns how many sessions were ended.
pub fn end_dead_members(client: &mut Client, me: &Member) -> Result<u64> {
    let ended = client.execute_typed(
        "SELECT pg_terminate_backend(a.pid)
         FROM rowmill.member m JOIN pg_catalog.pg_stat_activity a ON a.application_name = 'rowmill ' || m.member
         WHERE m.pipeline = $1 AND m.member <> $2 AND a.usename = current_user
           AND NOT rowmill.alive(m.pipeline, m.member)",
        &[(&me.pipeline, Type::TEXT), (&me.name, Type::TEXT)],
    )?;
    client.execute_typed(
        "DELETE FROM rowmill.member m
         WHERE m.pipeline = $1 AND m.member <> $2
           AND m.heartbeat_at NOT BETWEEN clock_timestamp() - 10 * m.lease AND clock_timestamp() + m.lease
           AND NOT EXISTS (SELECT FROM rowmill.ledger l WHERE l.pipeline = m.pipeline AND l.owner = m.member)",
        &[(&me.pipeline, Type::TEXT), (&me.name, Type::TEXT)],
    )?;
    Ok(ended)
}

/// What a writer needs to advance its table.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the ledger's key has it: schema and table.
    pub name: String,
    /// As SQL has it, quoted.
    pub sql_name: String,
    pub fingerprint: String,
}

/// ADVANCE and COMMIT as one message: no ledger row is ever locked while the server waits for the client, and if the
/// advance raises, the server skips the COMMIT. The definition that it compares is that of the table which has the name now:
/// rows went there by name, and their lock keeps the name until the end. It is sent under the role's own search_path, so
/// every name in it has its schema.
pub fn advance_and_commit(me: &str, target: &Target, spans: &[Move]) -> String {
    let spans = serde_json::to_string(spans).expect("numbers and strings always serialize");
    format!(
        "SELECT rowmill.advance({}, {}, pg_catalog.to_regclass({})::pg_catalog.oid, {}, {}::pg_catalog.jsonb); COMMIT",
        escape_literal(me),
        escape_literal(&target.name),
        escape_literal(&target.sql_name),
        escape_literal(&target.fingerprint),
        escape_literal(&spans)
    )
}

/// RESOLVE, after a commit with an unknown outcome: waits for the old backend, fences it, and tells where the ledger
/// stands. `None`: not ours any more. In key order, one transaction.
pub fn resolve(
    client: &mut Client,
    me: &str,
    target: &str,
    spans: &[Move],
) -> Result<Vec<Option<Standing>>, postgres::Error> {
    let mut transaction = client.begin()?;
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_unstable_by_key(|i| (&spans[*i].topic, spans[*i].partition.id));
    let mut standings = vec![None; spans.len()];
    for i in order {
        let span = &spans[i];
        let row = transaction.query_typed_opt(
            "UPDATE rowmill.ledger SET epoch = epoch + 1
             WHERE topic = $1 AND partition = $2 AND target = $3 AND owner = $4 AND epoch = $5
             RETURNING epoch, next_offset",
            &[
                (&&*span.topic, Type::TEXT),
                (&span.partition.id, Type::INT4),
                (&target, Type::TEXT),
                (&me, Type::TEXT),
                (&span.epoch, Type::INT8),
            ],
        )?;
        standings[i] = row.map(|row| Standing { epoch: row.get(0), next_offset: row.get(1) });
    }
    transaction.commit()?;
    Ok(standings)
}

/// From where on a table has one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub topic: String,
    pub partition: i32,
    pub topic_id: String,
    pub start: i64,
}

/// All partitions that a table has.
pub fn stretches(client: &mut Client, pipeline: &str, target: &str) -> Result<Vec<Stretch>> {
    let rows = client
        .query_typed(
            "SELECT topic, partition, topic_id, start_offset FROM rowmill.ledger
             WHERE pipeline = $1 AND target = $2 ORDER BY topic, partition",
            &[(&pipeline, Type::TEXT), (&target, Type::TEXT)],
        )
        .context("cannot read the ledger")?;
    let stretch = |row: &postgres::Row| Stretch {
        topic: row.get(0),
        partition: row.get(1),
        topic_id: row.get(2),
        start: row.get(3),
    };
    Ok(rows.iter().map(stretch).collect())
}

/// EXTEND, within the transaction that holds the rows: the table has the partition from `stretch.start` on, and no longer from
/// `old_start`. False where it had it from elsewhere. Every name in the statement has its schema.
pub fn extend(
    client: &mut postgres::Client,
    pipeline: &str,
    target: &str,
    stretch: &Stretch,
    old_start: i64,
    counts: Counts,
) -> Result<bool, postgres::Error> {
    let row = client.query_typed_one(
        "SELECT rowmill.extend($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            (&pipeline, Type::TEXT),
            (&stretch.topic, Type::TEXT),
            (&stretch.partition, Type::INT4),
            (&target, Type::TEXT),
            (&stretch.start, Type::INT8),
            (&old_start, Type::INT8),
            (&counts.rows, Type::INT8),
            (&counts.dead, Type::INT8),
            (&counts.skipped, Type::INT8),
            (&counts.other, Type::INT8),
        ],
    )?;
    Ok(row.get(0))
}

/// Adds what was attempted to an error of the ledger.
pub fn context(error: anyhow::Error, attempted: &str) -> anyhow::Error {
    match error.downcast_ref::<postgres::Error>() {
        Some(cause) => anyhow::anyhow!("cannot {attempted}: {}", describe(cause)),
        None => error.context(format!("cannot {attempted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::offsets::Partition;

    #[test]
    fn names_with_quotes_stay_names() {
        let target = Target {
            name: "public.o'brien\\".into(),
            sql_name: "\"public\".\"o'brien\\\"".into(),
            fingerprint: "f".into(),
        };
        let span = Move {
            topic: "t'\"; DROP TABLE x --".into(),
            partition: Partition { topic: 3, id: 7 },
            epoch: 1,
            first: 0,
            next: 1,
            counts: Counts { rows: 1, ..Counts::default() },
            holes: 0,
            anchor: Anchor { offset: 0, hash: -1 },
        };
        let sql = advance_and_commit("me", &target, &[span]);
        assert!(sql.contains("t''"), "{sql}");
        assert!(sql.contains("\"partition\":7,") && sql.contains("\"anchor_hash\":-1"), "{sql}");
        assert!(sql.contains("o''brien"), "{sql}");
        assert!(sql.ends_with("; COMMIT"), "{sql}");
    }
}
