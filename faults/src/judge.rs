//! The verdict: every record of the truth against every row and dead letter.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use postgres::Client;

use crate::world::TABLES;

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

pub(crate) const WRONGS: [&str; 5] = ["lost", "duplicated", "phantom", "corrupt", "ledger"];

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
    pub(crate) fn new(file: &Path) -> Result<Judge> {
        let mut judge = Judge { truth: HashMap::new(), findings: Findings::default() };
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
        let sql = "SELECT topic, partition, \"offset\", target, coalesce(md5(value), '-'), reason FROM rowmill.dead_letter";
        for row in client.query(sql, &[])? {
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
        let row = client.query_one("SELECT sum(rows)::BIGINT, sum(dead)::BIGINT FROM rowmill.ledger", &[])?;
        let (rows, dead): (i64, i64) = (row.get(0), row.get(1));
        if (rows as u64, dead as u64) != (self.findings.rows, self.findings.dead) {
            let found = format!("{} rows and {} letters", self.findings.rows, self.findings.dead);
            self.findings
                .wrong("ledger", format!("it counts {rows} rows and {dead} dead letters, there are {found}"));
        }
        Ok(())
    }
}
