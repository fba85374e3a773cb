//! The verdict: every record of the truth against every row and dead letter.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use postgres::Client;

use crate::doors::Delivered;
use crate::world::{DOOR, KEYED, PREFIX, TABLES};

/// What a record must become.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Table, number, and a hash of the word.
    Row(u8, i64, u64),
    /// Table, and the md5 of the value.
    Dead(u8, String),
    Skip,
    /// A read-committed consumer must never see it.
    Aborted,
}

struct Truth {
    fate: Fate,
    found: u32,
}

/// Topic and partition; the records by offset.
pub(crate) struct Judge {
    /// What the doors acknowledged.
    delivered: Delivered,
    truth: HashMap<(String, i32), BTreeMap<i64, Truth>>,
    pub(crate) findings: Findings,
}

/// How many, and a few of each.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) records: u64,
    pub(crate) rows: u64,
    pub(crate) dead: u64,
    pub(crate) skipped: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) examples: Vec<String>,
}

pub(crate) const WRONGS: [&str; 6] = ["lost", "duplicated", "phantom", "corrupt", "ledger", "keyed"];

/// A key of the tables with keys, by the hash of its word; of the table of first rows also by its partition.
type Key = (&'static str, u64, i32);

impl Findings {
    fn wrong(&mut self, what: &'static str, example: String) {
        let count = self.counts.entry(what).or_default();
        *count += 1;
        if *count <= 10 {
            self.examples.push(format!("{what}: {example}"));
        }
    }
}

fn hash(word: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(word)
}

fn table(name: &str) -> Result<u8> {
    let index = TABLES.iter().position(|t| *t == name);
    Ok(index.with_context(|| format!("the truth names no table {name:?}"))? as u8)
}

fn parse_fate(text: &str, sum: &str) -> Result<Fate> {
    let parts: Vec<&str> = text.split(':').collect();
    Ok(match parts[..] {
        ["row", name, n, word] => Fate::Row(table(name)?, n.parse()?, hash(word)),
        ["dead", name] => Fate::Dead(table(name)?, sum.to_owned()),
        ["skip"] => Fate::Skip,
        ["aborted"] => Fate::Aborted,
        _ => anyhow::bail!("the truth says {text:?}"),
    })
}

impl Judge {
    /// Reads the truth.
    pub(crate) fn new(file: &Path, delivered: Delivered) -> Result<Judge> {
        let mut judge = Judge { delivered, truth: HashMap::new(), findings: Findings::default() };
        let lines = BufReader::new(std::fs::File::open(file).context("cannot open the truth")?).lines();
        for line in lines {
            let line = line?;
            let parts: Vec<&str> = line.split('\t').collect();
            let [topic, partition, offset, fate, sum] = parts[..] else {
                anyhow::bail!("the truth has the line {line:?}")
            };
            let fate = parse_fate(fate, sum)?;
            if fate == Fate::Aborted {
                judge
                    .findings
                    .wrong("phantom", format!("{topic}/{partition} offset {offset} was aborted and read"));
            }
            judge.findings.records += 1;
            let place = judge.truth.entry((topic.to_owned(), partition.parse()?)).or_default();
            place.insert(offset.parse()?, Truth { fate, found: 0 });
        }
        Ok(judge)
    }

    /// True if every table has every record behind it.
    pub(crate) fn is_drained(&self, client: &mut Client) -> bool {
        let sql = "SELECT topic, partition, min(next_offset) FROM rowmill.ledger GROUP BY 1, 2";
        let Ok(rows) = client.query(sql, &[]) else { return false };
        let reached: HashMap<(String, i32), i64> =
            rows.iter().map(|r| ((r.get(0), r.get(1)), r.get(2))).collect();
        let rows = client.query_one(&format!("SELECT count(*) FROM {DOOR}"), &[]);
        if rows.is_ok_and(|row| row.get::<_, i64>(0) < self.delivered.records as i64) {
            return false;
        }
        self.truth.iter().all(|(place, records)| {
            let last = records.keys().next_back().copied().unwrap_or(-1);
            reached.get(place).is_some_and(|next| *next > last)
        })
    }

    /// Compares, and takes the findings.
    pub(crate) fn judge(mut self, client: &mut Client) -> Result<Findings> {
        for (index, table) in TABLES.iter().enumerate() {
            self.rows(client, table, index as u8)?;
        }
        self.dead_letters(client)?;
        self.ledger(client)?;
        self.keyed(client)?;
        self.door(client)?;
        for ((topic, partition), records) in &self.truth {
            for (offset, truth) in records {
                let place = || format!("{topic}/{partition} offset {offset}, {:?}", truth.fate);
                match (&truth.fate, truth.found) {
                    (Fate::Skip, 0) => self.findings.skipped += 1,
                    (Fate::Row(..) | Fate::Dead(..), 1) | (Fate::Aborted, _) => {}
                    (Fate::Row(..) | Fate::Dead(..), 0) => self.findings.wrong("lost", place()),
                    (Fate::Skip, _) => self.findings.wrong("phantom", place()),
                    _ => self.findings.wrong("duplicated", place()),
                }
            }
        }
        Ok(self.findings)
    }

    fn rows(&mut self, client: &mut Client, name: &str, index: u8) -> Result<()> {
        let sql = format!("COPY (SELECT _topic, _partition, _offset, n, word FROM {name}) TO STDOUT");
        for line in BufReader::new(client.copy_out(&sql)?).lines() {
            let line = line?;
            let parts: Vec<&str> = line.split('\t').collect();
            let [topic, partition, offset, n, word] = parts[..] else {
                anyhow::bail!("{name} has the line {line:?}")
            };
            self.findings.rows += 1;
            let place = self.truth.get_mut(&(topic.to_owned(), partition.parse()?));
            let Some(truth) = place.and_then(|p| p.get_mut(&offset.parse().ok()?)) else {
                self.findings.wrong("phantom", format!("{name}: {line}"));
                continue;
            };
            truth.found += 1;
            match &truth.fate {
                Fate::Row(table, number, sum) if *table == index => {
                    if *number != n.parse::<i64>()? || *sum != hash(word) {
                        self.findings.wrong("corrupt", format!("{name}: {line}"));
                    }
                }
                _ => self.findings.wrong("phantom", format!("{name} has what belongs elsewhere: {line}")),
            }
        }
        Ok(())
    }

    fn dead_letters(&mut self, client: &mut Client) -> Result<()> {
        let sql = "SELECT topic, partition, \"offset\", target, coalesce(md5(value), '-'), reason FROM rowmill.dead_letter
                   WHERE target <> ALL ($1)";
        let keyed: Vec<String> = KEYED.iter().map(|table| format!("public.{table}")).collect();
        for row in client.query(sql, &[&keyed])? {
            let (topic, partition, offset): (String, i32, i64) = (row.get(0), row.get(1), row.get(2));
            let (target, sum, reason): (String, String, String) = (row.get(3), row.get(4), row.get(5));
            self.findings.dead += 1;
            let words = format!("dead letter {topic}/{partition} offset {offset} for {target}: {reason}");
            let Some(truth) = self.truth.get_mut(&(topic, partition)).and_then(|p| p.get_mut(&offset)) else {
                self.findings.wrong("phantom", words);
                continue;
            };
            truth.found += 1;
            match &truth.fate {
                Fate::Dead(table, _) if target != format!("public.{}", TABLES[*table as usize]) => {
                    self.findings.wrong("phantom", format!("{words}; it is another table's"));
                }
                Fate::Dead(_, expected) if *expected != sum => self.findings.wrong("corrupt", words),
                Fate::Dead(..) => {}
                other => self.findings.wrong("phantom", format!("{words}; it should be {other:?}")),
            }
        }
        Ok(())
    }

    /// The ledger's own sums, and its counters against the tables.
    fn ledger(&mut self, client: &mut Client) -> Result<()> {
        let sql = "SELECT topic, partition, target FROM rowmill.ledger
                   WHERE next_offset - start_offset <> rows + dead + skipped + other + holes OR stopped IS NOT NULL";
        for row in client.query(sql, &[])? {
            let place: (String, i32, String) = (row.get(0), row.get(1), row.get(2));
            self.findings.wrong("ledger", format!("{place:?} does not add up, or is stopped"));
        }
        let tables: Vec<String> = TABLES.iter().map(|table| format!("public.{table}")).collect();
        let sql = "SELECT sum(rows)::BIGINT, sum(dead)::BIGINT FROM rowmill.ledger WHERE target = ANY ($1)";
        let row = client.query_one(sql, &[&tables])?;
        let (rows, dead): (i64, i64) = (row.get(0), row.get(1));
        if (rows as u64, dead as u64) != (self.findings.rows, self.findings.dead) {
            let found = format!("{} rows and {} letters", self.findings.rows, self.findings.dead);
            self.findings
                .wrong("ledger", format!("it counts {rows} rows and {dead} dead letters, there are {found}"));
        }
        Ok(())
    }

    /// The tables with keys against what the truth comes to; and no letter of theirs is of a record that should be a row.
    fn keyed(&mut self, client: &mut Client) -> Result<()> {
        let mut found: BTreeMap<Key, Vec<i64>> = BTreeMap::new();
        for row in client.query("SELECT word, count, total, low, high FROM sums", &[])? {
            let values = (1..5).map(|column| row.get(column)).collect();
            found.insert(("sums", hash(row.get(0)), 0), values);
        }
        for row in client.query("SELECT word, n FROM latest", &[])? {
            found.insert(("latest", hash(row.get(0)), 0), vec![row.get(1)]);
        }
        for row in client.query("SELECT word, _partition, n FROM firsts", &[])? {
            found.insert(("firsts", hash(row.get(0)), row.get(1)), vec![row.get(2)]);
        }
        let expected = self.folded();
        for key in expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key))) {
            let (should, is) = (expected.get(key), found.get(key));
            if should != is {
                self.findings
                    .wrong("keyed", format!("{} has {is:?} for a key, it should be {should:?}", key.0));
            }
        }
        let keyed: Vec<String> = KEYED.iter().map(|table| format!("public.{table}")).collect();
        let sql =
            "SELECT topic, partition, \"offset\", target FROM rowmill.dead_letter WHERE target = ANY ($1)";
        for row in client.query(sql, &[&keyed])? {
            let (topic, partition, offset): (String, i32, i64) = (row.get(0), row.get(1), row.get(2));
            let truth = self.truth.get(&(topic.clone(), partition)).and_then(|place| place.get(&offset));
            if !matches!(truth, Some(Truth { fate: Fate::Dead(..), .. })) {
                let words =
                    format!("dead letter {topic}/{partition} offset {offset} for {}", row.get::<_, &str>(3));
                self.findings.wrong("keyed", words);
            }
        }
        Ok(())
    }

    /// The doors' table: each acknowledged record, and no other. Its key sees to it that none is there twice.
    fn door(&mut self, client: &mut Client) -> Result<()> {
        let records = self.delivered.records as i64;
        let sql = format!("SELECT count(*) FILTER (WHERE n >= 0 AND n < $1::BIGINT), count(*) FROM {DOOR}");
        let row = client.query_one(&sql, &[&records])?;
        let (known, all): (i64, i64) = (row.get(0), row.get(1));
        if known < records {
            self.findings.wrong("lost", format!("{} records that a door had acknowledged", records - known));
        }
        if all > known {
            self.findings.wrong("phantom", format!("{} records that no client sent", all - known));
        }
        Ok(())
    }

    /// What the rows of the first topic come to.
    fn folded(&self) -> BTreeMap<Key, Vec<i64>> {
        let mut folded: BTreeMap<Key, Vec<i64>> = BTreeMap::new();
        let topic = format!("{PREFIX}one");
        for ((_, partition), records) in self.truth.iter().filter(|((name, _), _)| *name == topic) {
            for truth in records.values() {
                let Fate::Row(_, n, word) = truth.fate else { continue };
                let sums = folded.entry(("sums", word, 0)).or_insert_with(|| vec![0, 0, n, n]);
                *sums = vec![sums[0] + 1, sums[1] + n, sums[2].min(n), sums[3].max(n)];
                let latest = folded.entry(("latest", word, 0)).or_insert_with(|| vec![n]);
                latest[0] = latest[0].max(n);
                folded.entry(("firsts", word, *partition)).or_insert_with(|| vec![n]);
            }
        }
        folded
    }
}
