//! The database's side of `rowmill verify`: all of it inside one snapshot, so that a live system stands still for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use anyhow::{Context, Result};
use postgres::{Portal, Row, Transaction};

use super::judge::{Lane, Letter, Partition, Sum, WIDTH};
use crate::client::pg::escape_literal;
use crate::model::Kafka;
use crate::model::plan::{Plan, Source, TablePlan, quoted};

/// Rows of one fetch from a cursor.
const FETCH_ROWS: i32 = 1000;

/// A table whose rows say which record they come from.
pub(super) struct Traced {
    /// As the ledger has it.
    pub(super) target: String,
    /// `SELECT topic, partition, "offset" FROM ...`
    places_sql: String,
}

/// A table that can only be counted, and why.
pub(super) struct Counted {
    pub(super) target: String,
    pub(super) why: &'static str,
    pub(super) stored: i64,
    /// What the ledger and the retried dead letters let expect.
    pub(super) expected: i64,
    /// Its records may have many rows, so the ledger says how many there are at least.
    pub(super) at_least: bool,
    /// Old rows are dropped, so it may have fewer.
    pub(super) at_most: bool,
}

impl Counted {
    /// Rows too few.
    pub(super) fn lost(&self) -> i64 {
        if self.at_most { 0 } else { (self.expected - self.stored).max(0) }
    }

    /// Rows too many.
    pub(super) fn surplus(&self) -> i64 {
        if self.at_least { 0 } else { (self.stored - self.expected).max(0) }
    }
}

/// Rows of one partition in one table, or of no partition that the table should have.
pub(super) type Place = (Option<String>, Option<i64>);

/// The pipeline's ledger, and for each of its topics the id that it was read under.
pub(super) fn ledger(
    transaction: &mut Transaction<'_>,
    pipeline: &str,
) -> Result<(Vec<Partition>, BTreeMap<String, String>)> {
    let rows = transaction
        .query(
            "SELECT l.topic, l.partition, l.topic_id, l.target, l.start_offset, l.next_offset, l.rows, l.dead, l.skipped,
                    l.other, l.holes, coalesce(array_agg(g.from_offset) FILTER (WHERE g.from_offset IS NOT NULL), '{}'),
                    coalesce(array_agg(g.to_offset) FILTER (WHERE g.to_offset IS NOT NULL), '{}')
             FROM rowmill.ledger l LEFT JOIN rowmill.gap g USING (topic, partition, target)
             WHERE l.pipeline = $1
             GROUP BY l.topic, l.partition, l.target
             ORDER BY l.topic, l.partition, l.target",
            &[&pipeline],
        )
        .context("cannot read the ledger")?;
    let (mut partitions, mut ids): (Vec<Partition>, _) = (Vec::new(), BTreeMap::new());
    for row in rows {
        let (topic, id): (String, i32) = (row.get(0), row.get(1));
        ids.insert(topic.clone(), row.get(2));
        match partitions.last_mut() {
            Some(last) if last.topic == topic && last.id == id => last.lanes.push(lane(&row)),
            _ => partitions.push(Partition { topic, id, lanes: vec![lane(&row)], ..Partition::default() }),
        }
    }
    Ok((partitions, ids))
}

fn lane(row: &Row) -> Lane {
    let (from, to): (Vec<i64>, Vec<i64>) = (row.get(11), row.get(12));
    Lane {
        target: row.get(3),
        start: row.get(4),
        next: row.get(5),
        rows: row.get(6),
        dead: row.get(7),
        skipped: row.get(8),
        other: row.get(9),
        holes: row.get(10),
        gaps: from.into_iter().zip(to).map(|(from, to)| from..to).collect(),
        ..Lane::default()
    }
}

/// How each table of the ledger can be looked at. Tables that the configuration no longer has are in neither list.
pub(super) fn tables(
    transaction: &mut Transaction<'_>,
    plan: &Plan,
    targets: &[String],
) -> Result<(Vec<Traced>, Vec<Counted>)> {
    let (mut traced, mut counted) = (Vec::new(), Vec::new());
    // Of a table with keys, no row is one record's.
    let is_looked_at = |table: &TablePlan| targets.contains(&table.name) && table.keyed.is_none();
    for (index, table) in plan.tables.iter().enumerate().filter(|(_, table)| is_looked_at(table)) {
        let topics: Vec<String> = transaction
            .query("SELECT DISTINCT topic FROM rowmill.ledger WHERE target = $1", &[&table.name])?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let kept = table.retention.is_some().then_some("it keeps its rows for a time only");
        match kept.map_or_else(|| places_sql(plan, index, &topics), Err) {
            Ok(places_sql) => traced.push(Traced { target: table.name.clone(), places_sql }),
            Err(why) => {
                let (stored, expected) = count(transaction, &table.sql_name, &table.name)?;
                let at_least = has_lists(plan, index);
                let (target, at_most) = (table.name.clone(), kept.is_some());
                counted.push(Counted { target, why, stored, expected, at_least, at_most });
            }
        }
    }
    Ok((traced, counted))
}

/// A query for the place of each row, or why there is none.
fn places_sql(plan: &Plan, table: usize, topics: &[String]) -> Result<String, &'static str> {
    let column = |part| column_of(plan, table, part);
    let partition =
        column(Kafka::Partition).ok_or("no column is { kafka = \"partition\" } in every model")?;
    let offset = column(Kafka::Offset).ok_or("no column is { kafka = \"offset\" } in every model")?;
    let topic = match (column(Kafka::Topic), topics) {
        (Some(name), _) => format!("{}::TEXT", quoted(name)),
        (None, [only]) => format!("{}::TEXT", escape_literal(only)),
        (None, _) => {
            return Err("several topics fill it and no column is { kafka = \"topic\" } in every model");
        }
    };
    let (place, name) = (quoted(offset), &plan.tables[table].sql_name);
    let partition = format!("{}::BIGINT", quoted(partition));
    let rows = format!("{topic} AS topic, {partition} AS partition, {place} AS place");
    if !has_lists(plan, table) {
        return Ok(format!("SELECT {rows} FROM {name}"));
    }
    // Of a record with many rows, each place once, and again for as often as one of its elements is there again.
    let element = column(Kafka::Element).map(|name| format!(", {}", quoted(name))).unwrap_or_default();
    let copy = if element.is_empty() {
        "1".to_owned()
    } else {
        format!("row_number() OVER (PARTITION BY {topic}, {partition}, {place}{element})")
    };
    Ok(format!(
        "SELECT topic, partition, place FROM (SELECT DISTINCT {rows}, {copy} AS copy FROM {name}) AS records"
    ))
}

/// True if a record may be many rows of the table.
fn has_lists(plan: &Plan, table: usize) -> bool {
    let is_list = |name: &str| plan.topics.iter().any(|t| t.name == name && t.envelope.records.is_some());
    plan.models.iter().any(|model| model.table == table && is_list(&model.topic))
}

/// The column that every model of the table fills with this part of a record.
fn column_of(plan: &Plan, table: usize, part: Kafka) -> Option<&str> {
    let columns = plan.tables[table].columns.iter().enumerate();
    let fills = |index: usize| {
        plan.models.iter().filter(|m| m.table == table).all(|m| m.sources[index] == Source::Kafka(part))
    };
    columns.into_iter().find(|(index, _)| fills(*index)).map(|(_, column)| column.name.as_str())
}

fn count(transaction: &mut Transaction<'_>, sql_name: &str, target: &str) -> Result<(i64, i64)> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM {sql_name}),
                (SELECT coalesce(sum(rows), 0)::BIGINT FROM rowmill.ledger WHERE target = $1)
                + (SELECT count(*) FROM rowmill.dead_letter WHERE $1 = ANY (settled_tables))"
    );
    let row = transaction
        .query_one(&sql, &[&target])
        .with_context(|| format!("cannot count the rows of table {target}"))?;
    Ok((row.get(0), row.get(1)))
}

/// The sums of a table's rows, for each partition and bucket: one scan, whatever its size.
pub(super) fn sums(
    transaction: &mut Transaction<'_>,
    table: &Traced,
) -> Result<HashMap<Place, BTreeMap<i64, Sum>>> {
    let sql = format!(
        "SELECT topic, partition, place / {WIDTH}, count(*), sum(p)::TEXT, sum(p * p)::TEXT, sum(p * p * p)::TEXT
         FROM (SELECT topic, partition, place, place % {WIDTH} AS p FROM ({}) AS places) AS weighed
         GROUP BY 1, 2, 3",
        table.places_sql
    );
    let mut sums: HashMap<Place, BTreeMap<i64, Sum>> = HashMap::new();
    for row in transaction
        .query(&sql, &[])
        .with_context(|| format!("cannot add up the rows of table {}", table.target))?
    {
        let power =
            |column| row.get::<_, Option<&str>>(column).and_then(|t| t.parse().ok()).unwrap_or_default();
        let sum = Sum { count: row.get(3), powers: [power(4), power(5), power(6)] };
        // A row without an offset belongs to no partition.
        let bucket: Option<i64> = row.get(2);
        let place = if bucket.is_some() { (row.get(0), row.get(1)) } else { (None, None) };
        sums.entry(place).or_default().entry(bucket.unwrap_or_default()).or_default().add(sum);
    }
    Ok(sums)
}

/// The partitions of a topic that have dead letters at all: most have none, and each cursor costs two round trips.
pub(super) fn partitions_with_letters(
    transaction: &mut Transaction<'_>,
    topic: &str,
) -> Result<BTreeSet<i32>> {
    let rows = transaction
        .query("SELECT DISTINCT partition FROM rowmill.dead_letter WHERE topic = $1", &[&topic])
        .context("cannot read the dead letters")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// One partition's dead letters in the order of their offsets, a few at a time.
pub(super) struct Letters {
    portal: Portal,
    ahead: VecDeque<Letter>,
    ended: bool,
}

impl Letters {
    /// Those with an offset in `from..to`.
    pub(super) fn open(
        transaction: &mut Transaction<'_>,
        partition: &Partition,
        from: i64,
        to: i64,
    ) -> Result<Letters> {
        let targets: Vec<&str> = partition.lanes.iter().map(|l| l.target.as_str()).collect();
        let portal = transaction
            .bind(
                "SELECT \"offset\", array_position($3, target), octet_length(value)::BIGINT, sha256(value),
                        whole_bytes, CASE settled_as WHEN 'retried' THEN settled_tables ELSE '{}' END
                 FROM rowmill.dead_letter
                 WHERE topic = $1 AND partition = $2 AND target = ANY ($3) AND \"offset\" >= $4 AND \"offset\" < $5
                 ORDER BY \"offset\"",
                &[&partition.topic, &partition.id, &targets, &from, &to],
            )
            .context("cannot read the dead letters")?;
        Ok(Letters { portal, ahead: VecDeque::new(), ended: false })
    }

    /// The dead letters of the next offset below `limit`.
    pub(super) fn below(
        &mut self,
        transaction: &mut Transaction<'_>,
        limit: i64,
    ) -> Result<Option<(i64, Vec<Letter>)>> {
        let Some(first) = self.front(transaction)?.map(|l| l.offset).filter(|offset| *offset < limit) else {
            return Ok(None);
        };
        let mut letters = Vec::new();
        while self.front(transaction)?.is_some_and(|l| l.offset == first) {
            letters.extend(self.ahead.pop_front());
        }
        Ok(Some((first, letters)))
    }

    fn front(&mut self, transaction: &mut Transaction<'_>) -> Result<Option<&Letter>> {
        if self.ahead.is_empty() && !self.ended {
            let rows =
                transaction.query_portal(&self.portal, FETCH_ROWS).context("cannot read the dead letters")?;
            self.ended = rows.len() < FETCH_ROWS as usize;
            self.ahead.extend(rows.iter().map(letter));
        }
        Ok(self.ahead.front())
    }
}

fn letter(row: &Row) -> Letter {
    let length: Option<i64> = row.get(2);
    Letter {
        offset: row.get(0),
        // Arrays count from one.
        lane: row.get::<_, i32>(1) as usize - 1,
        value: length.zip(row.get(3)),
        whole_bytes: row.get(4),
        retried_into: row.get(5),
    }
}

/// Single offsets of one table, for the buckets that differ, in their order.
pub(super) struct Places {
    portal: Portal,
    ahead: VecDeque<(i64, i64, i64)>,
    ended: bool,
}

impl Places {
    pub(super) fn open(
        transaction: &mut Transaction<'_>,
        table: &Traced,
        wanted: &[(&str, i32, i64)],
    ) -> Result<Places> {
        let topics: Vec<&str> = wanted.iter().map(|w| w.0).collect();
        let partitions: Vec<i64> = wanted.iter().map(|w| w.1.into()).collect();
        let buckets: Vec<i64> = wanted.iter().map(|w| w.2).collect();
        let sql = format!(
            "SELECT w.number, r.place, count(*)
             FROM ({}) AS r
             JOIN unnest($1::TEXT[], $2::BIGINT[], $3::BIGINT[]) WITH ORDINALITY AS w(topic, partition, bucket, number)
               ON r.topic = w.topic AND r.partition = w.partition AND r.place / {WIDTH} = w.bucket
             GROUP BY 1, 2 ORDER BY 1, 2",
            table.places_sql
        );
        let portal = transaction
            .bind(&sql, &[&topics, &partitions, &buckets])
            .with_context(|| format!("cannot read the offsets of table {}", table.target))?;
        Ok(Places { portal, ahead: VecDeque::new(), ended: false })
    }

    /// The next offset of the bucket with this number in the list, and how many rows name it.
    pub(super) fn next(
        &mut self,
        transaction: &mut Transaction<'_>,
        number: usize,
    ) -> Result<Option<(i64, i64)>> {
        if self.ahead.is_empty() && !self.ended {
            let rows = transaction
                .query_portal(&self.portal, FETCH_ROWS)
                .context("cannot read the rows' offsets")?;
            self.ended = rows.len() < FETCH_ROWS as usize;
            self.ahead.extend(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))));
        }
        // Ordinality counts from one.
        let is_here = self.ahead.front().is_some_and(|(of, ..)| *of == number as i64 + 1);
        let next = if is_here { self.ahead.pop_front() } else { None };
        Ok(next.map(|(_, offset, count)| (offset, count)))
    }
}

/// Dead letters of this pipeline whose partition or table the ledger does not know.
pub(super) fn stray_letters(transaction: &mut Transaction<'_>, pipeline: &str) -> Result<i64> {
    let row = transaction
        .query_one(
            "SELECT count(*) FROM rowmill.dead_letter d
             WHERE d.pipeline = $1 AND NOT EXISTS (
                 SELECT FROM rowmill.ledger l
                 WHERE l.topic = d.topic AND l.partition = d.partition AND l.target = d.target)",
            &[&pipeline],
        )
        .context("cannot read the dead letters")?;
    Ok(row.get(0))
}
