//! The account: reads the tables back and says what became of every message.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use postgres::Client;
use serde::Serialize;

use crate::measure::tally::Tally;
use crate::message::account::{Bits, Outcome, StreamAccount};
use crate::message::draw::{Draft, Identity, People};
use crate::message::index::Index;
use crate::message::known::{Found, Known, NO_NUMBER};
use crate::message::model::{IDENTITY_MAX, Model};
use crate::message::stream::{self, Stream};
use crate::plan::words::Depth;
use crate::server::copy_out::{self, Row};
use crate::server::pg::{Forms, Leaf, as_the_role_finds};

/// One example of something bad.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    pub class: &'static str,
    pub stream: String,
    /// The stream's place among those of this part.
    #[serde(skip)]
    pub place: Option<usize>,
    pub seq: Option<u64>,
    pub topic: String,
    pub partition: i32,
    /// The message does not lie before this offset: where it would be if no other stream shared its partition.
    pub offset_at_least: Option<i64>,
    /// Where it lies, if it was found again in Kafka.
    pub offset: Option<i64>,
    pub detail: String,
}

impl Example {
    /// As verify_bad.csv has it.
    fn cells(&self) -> [String; BAD_COLUMNS.len()] {
        let cell = |number: Option<i64>| number.map_or(String::new(), |n| n.to_string());
        [
            self.class.to_owned(),
            self.stream.clone(),
            cell(self.seq.map(|seq| seq as i64)),
            self.topic.clone(),
            self.partition.to_string(),
            cell(self.offset_at_least),
            self.detail.clone(),
            cell(self.offset),
        ]
    }

    /// Where to look, for people.
    pub fn place(&self) -> String {
        match (self.offset, self.offset_at_least) {
            (Some(offset), _) => format!("offset {offset}"),
            (None, Some(offset)) => format!("offset {offset} or later"),
            (None, None) => "offset unknown".to_owned(),
        }
    }
}

/// The columns of verify_bad.csv.
pub const BAD_COLUMNS: [&str; 8] =
    ["class", "source", "seq", "topic", "partition", "offset_at_least", "detail", "offset"];

/// What is known of the streams before the tables are read.
pub struct Sent {
    pub run: u32,
    pub seed: u64,
    pub models: Vec<Arc<Model>>,
    pub topics: Vec<String>,
    pub people: Arc<People>,
    pub known: Known,
    /// Which rows of each model's table are of this run.
    pub conditions: Vec<String>,
    /// Of what rows do not tell themselves.
    pub index: Index,
    /// In the order of their ids.
    pub streams: Vec<Stream>,
    pub accounts: Vec<StreamAccount>,
    pub offsets: Vec<Vec<(u64, i64)>>,
}

pub struct Outcomes {
    /// In the order of the mix.
    pub models: Vec<Tally>,
    /// At most `EXAMPLES` of each class.
    pub examples: Vec<Example>,
    /// Why `bad` does not have all of them.
    pub not_written: Option<String>,
}

impl Outcomes {
    /// All models together.
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        self.models.iter().for_each(|model| all.add(model));
        all
    }

    /// Messages that became visible after a later one of their stream: the first become examples, the others go to `bad`.
    pub fn note_overtaken<W: Write>(
        &mut self,
        sent: &Sent,
        overtaken: &[(u16, u64)],
        bad: &mut csv::Writer<W>,
    ) {
        let detail = "became visible after a later message of its source";
        for (at, (stream, seq)) in overtaken.iter().enumerate() {
            let example = example(sent, "reordered", Some(usize::from(*stream)), Some(*seq), detail);
            match at < EXAMPLES {
                true => self.examples.push(example),
                false => self.write(&example, bad),
            }
        }
    }

    /// The examples too are bad rows; they come last, when their offsets are known.
    pub fn write_examples<W: Write>(&mut self, bad: &mut csv::Writer<W>) {
        let examples = std::mem::take(&mut self.examples);
        examples.iter().for_each(|example| self.write(example, bad));
        self.examples = examples;
        if let Err(error) = bad.flush() {
            self.not_written.get_or_insert(error.to_string());
        }
    }

    /// What a full disk does not take is still counted.
    fn write<W: Write>(&mut self, example: &Example, bad: &mut csv::Writer<W>) {
        if let Err(error) = bad.write_record(example.cells()) {
            self.not_written.get_or_insert(error.to_string());
        }
    }
}

/// Of each class.
const EXAMPLES: usize = 10;

/// Reads all tables; every bad row that is not among the examples goes to `bad`, as CSV.
pub fn verify<W: Write>(
    client: &mut Client,
    (leaves, forms): &(Vec<Leaf>, Forms),
    sent: &Sent,
    depth: Depth,
    rejects_sql: Option<&str>,
    bad: &mut csv::Writer<W>,
) -> Result<Outcomes> {
    let mut reader = Reader::new(sent, forms, bad);
    if depth != Depth::None {
        for leaf in leaves {
            reader.read_table(client, leaf, depth)?;
        }
        reader.read_rejects(client, rejects_sql)?;
    }
    Ok(reader.conclude(depth))
}

/// What the producers know, where no table was read.
pub fn conclude_without_tables(sent: &Sent) -> Outcomes {
    let mut nowhere = csv::Writer::from_writer(std::io::sink());
    Reader::new(sent, &Vec::new(), &mut nowhere).conclude(Depth::None)
}

struct Reader<'a, W: Write> {
    sent: &'a Sent,
    forms: &'a Forms,
    draft: Draft,
    stored: Vec<Bits>,
    rejected: Vec<Bits>,
    models: Vec<Tally>,
    examples: Vec<Example>,
    counts: BTreeMap<&'static str, usize>,
    bad: &'a mut csv::Writer<W>,
    not_written: Option<String>,
}

impl<'a, W: Write> Reader<'a, W> {
    fn new(sent: &'a Sent, forms: &'a Forms, bad: &'a mut csv::Writer<W>) -> Self {
        let bits = vec![Bits::default(); sent.streams.len()];
        Self {
            sent,
            forms,
            draft: Draft::new(sent.seed, sent.run, sent.people.clone()),
            stored: bits.clone(),
            rejected: bits,
            models: vec![Tally::default(); sent.models.len()],
            examples: Vec::new(),
            counts: BTreeMap::new(),
            bad,
            not_written: None,
        }
    }

    fn read_table(&mut self, client: &mut Client, leaf: &Leaf, depth: Depth) -> Result<()> {
        let query = query(leaf, self.sent, self.forms, depth);
        let mut rows = client.copy_out(&query).with_context(|| format!("read {} back", leaf.name))?;
        copy_out::read(&mut rows, |row| {
            self.row(leaf.model, &row, depth);
            Ok(())
        })
        .with_context(|| format!("read {} back", leaf.name))?;
        Ok(())
    }

    fn row(&mut self, model: usize, row: &Row<'_>, depth: Depth) {
        let (stream, seq) = match self.find(model, row) {
            Found::Message(stream, seq) if seq < self.sent.accounts[stream].sent => (stream, seq),
            Found::Message(stream, _) => return self.note("corrupted", model, Some(stream), None, NO_NUMBER),
            Found::Damaged(stream, what) => return self.note("corrupted", model, stream, None, what),
            // The probe counts strangers as they come; what another part sent is that part's business.
            Found::Elsewhere | Found::Foreign => return,
        };
        if self.stored[stream].get(seq) == 1 {
            return self.note("duplicated", model, Some(stream), Some(seq), "one more row");
        }
        self.stored[stream].set(seq, 1);
        let tally = &mut self.models[model];
        tally.stored += 1;
        match self.sent.accounts[stream].outcome(seq) {
            Outcome::Acked => {}
            Outcome::Failed => tally.stored_failed += 1,
            Outcome::Indeterminate | Outcome::Pending => tally.stored_indeterminate += 1,
        }
        if depth == Depth::Full
            && let Some(column) = self.difference(model, stream, seq, row)
        {
            self.note("corrupted", model, Some(stream), Some(seq), &format!("column {column}"));
        }
    }

    fn find(&self, model: usize, row: &Row<'_>) -> Found {
        let columns = self.sent.models[model].table.as_ref().map_or(0, |table| table.identity.len());
        let mut keys = [None; IDENTITY_MAX];
        (0..columns).for_each(|at| keys[at] = row.bytes(at));
        self.sent.known.find(model, &keys[..columns], &self.sent.index)
    }

    /// What is wrong with the first column that is not what was sent.
    fn difference(&mut self, model: usize, stream: usize, seq: u64, row: &Row<'_>) -> Option<&'a str> {
        let sent = self.sent;
        let table = sent.models[model].table.as_ref()?;
        let stream = sent.streams[stream].id;
        // The columns follow those of the identity.
        let place = |column: usize| table.identity.len() + column;
        let due_us = match table.due {
            Some(column) => row.timestamp_us(place(column)),
            None => sent.index.due_us(stream, seq),
        };
        let Some(due_us) = due_us else {
            return Some(table.due.map_or("identity", |column| &table.columns[column].label));
        };
        self.draft.fill(&sent.models[model].program, Identity { stream, seq, due_us });
        let differs = |at: &usize| {
            let value = self.draft.value(table.columns[*at].slot);
            !self.forms[model][*at].same(&self.draft, value, row, place(*at))
        };
        (0..table.columns.len()).find(differs).map(|at| table.columns[at].label.as_str())
    }

    /// Dead letters of rowmill, where its table exists, or what the user's own statement returns: the columns of the identity.
    fn read_rejects(&mut self, client: &mut Client, rejects_sql: Option<&str>) -> Result<()> {
        let found = match rejects_sql {
            Some(sql) => self.rejects_of_the_user(client, sql)?,
            None => self.dead_letters(client)?,
        };
        for (stream, seq) in found {
            if seq < self.sent.accounts[stream].sent {
                self.models[self.sent.streams[stream].model].rejected +=
                    u64::from(self.rejected[stream].get(seq) == 0);
                self.rejected[stream].set(seq, 1);
            }
        }
        Ok(())
    }

    fn rejects_of_the_user(&self, client: &mut Client, sql: &str) -> Result<Vec<(usize, u64)>> {
        let rows = as_the_role_finds(client, |client| client.query(sql, &[]))?.context(
            "run --rejects-sql, which must return the columns of an identity (source and path) as text",
        )?;
        let mut found = Vec::new();
        for row in rows {
            let columns = (0..row.len()).map(|at| row.try_get::<_, Option<String>>(at));
            let columns = columns
                .collect::<Result<Vec<_>, postgres::Error>>()
                .context("read what --rejects-sql returns")?;
            let columns: Vec<Option<&[u8]>> =
                columns.iter().map(|text| text.as_ref().map(String::as_bytes)).collect();
            found.extend(self.of_any_model(&columns));
        }
        Ok(found)
    }

    fn of_any_model(&self, columns: &[Option<&[u8]>]) -> Option<(usize, u64)> {
        (0..self.sent.models.len()).find_map(|model| {
            let wanted = self.sent.models[model].table.as_ref()?.identity.len();
            match self.sent.known.find(model, columns.get(..wanted)?, &self.sent.index) {
                Found::Message(stream, seq) => Some((stream, seq)),
                _ => None,
            }
        })
    }

    fn dead_letters(&self, client: &mut Client) -> Result<Vec<(usize, u64)>> {
        let mut found = Vec::new();
        for (topic, value) in dead_letters(client, &self.sent.models, &self.sent.topics, self.sent.run)? {
            let Ok(json) = serde_json::from_slice(&value) else { continue };
            for model in (0..self.sent.models.len()).filter(|model| self.sent.topics[*model] == topic) {
                found.extend(self.sent.known.of_json(model, &json, &self.sent.index));
            }
        }
        Ok(found)
    }

    fn conclude(mut self, depth: Depth) -> Outcomes {
        for stream in 0..self.sent.streams.len() {
            let (account, model) = (&self.sent.accounts[stream], self.sent.streams[stream].model);
            self.models[model].sent += account.sent;
            for seq in 0..account.sent {
                let tally = &mut self.models[model];
                match account.outcome(seq) {
                    Outcome::Acked => tally.acked += 1,
                    Outcome::Failed => tally.failed += 1,
                    Outcome::Indeterminate | Outcome::Pending => tally.indeterminate += 1,
                }
                let found = self.stored[stream].get(seq) == 1 || self.rejected[stream].get(seq) == 1;
                if depth != Depth::None && !found && account.outcome(seq) == Outcome::Acked {
                    self.note(
                        "lost",
                        model,
                        Some(stream),
                        Some(seq),
                        "acknowledged, but in no table and no dead letter",
                    );
                }
            }
        }
        self.bad.flush().unwrap_or_else(|error| self.not_written = Some(error.to_string()));
        Outcomes { models: self.models, examples: self.examples, not_written: self.not_written }
    }

    fn note(
        &mut self,
        class: &'static str,
        model: usize,
        stream: Option<usize>,
        seq: Option<u64>,
        detail: &str,
    ) {
        match class {
            "lost" => self.models[model].lost += 1,
            "duplicated" => self.models[model].duplicated += 1,
            _ => self.models[model].corrupted += 1,
        }
        let example = example(self.sent, class, stream, seq, detail);
        let count = self.counts.entry(class).or_default();
        *count += 1;
        if *count <= EXAMPLES {
            self.examples.push(example);
        } else if let Err(error) = self.bad.write_record(example.cells()) {
            // What a full disk does not take is still counted.
            self.not_written.get_or_insert(error.to_string());
        }
    }
}

fn example(
    sent: &Sent,
    class: &'static str,
    stream: Option<usize>,
    seq: Option<u64>,
    detail: &str,
) -> Example {
    let known = stream.map(|s| (&sent.streams[s], &sent.offsets[s]));
    let offset = known.zip(seq).and_then(|((_, offsets), seq)| {
        let after = offsets.partition_point(|(at, _)| *at <= seq);
        let (at, offset) = offsets.get(after.checked_sub(1)?)?;
        // Messages of other streams may lie between, never fewer than our own.
        Some(offset + (seq - at) as i64)
    });
    Example {
        class,
        stream: known.map_or(String::new(), |(s, _)| stream::name(sent.run, s.id)),
        place: stream,
        seq,
        topic: known.map_or(String::new(), |(s, _)| sent.topics[s.model].clone()),
        partition: known.map_or(-1, |(s, _)| s.partition),
        offset_at_least: offset,
        offset: None,
        detail: detail.to_owned(),
    }
}

/// The columns of the identity, as text; then all that are compared, every type as the comparison wants it.
fn query(leaf: &Leaf, sent: &Sent, forms: &Forms, depth: Depth) -> String {
    let table = sent.models[leaf.model].table.as_ref().expect("a leaf is of a model's table");
    let named = |at: usize| (forms[leaf.model][at], table.columns[at].name.as_str());
    let mut columns: Vec<String> = table
        .identity
        .iter()
        .map(|at| {
            let (form, name) = named(*at);
            form.key_sql(name)
        })
        .collect();
    if depth == Depth::Full {
        columns.extend((0..table.columns.len()).map(|at| {
            let (form, name) = named(at);
            form.sql(name)
        }));
    }
    format!(
        "COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT (FORMAT binary)",
        columns.join(", "),
        leaf.name,
        sent.conditions[leaf.model]
    )
}

/// How many dead letters rowmill holds of each topic; none where it has no table here.
pub fn count_dead_letters(client: &mut Client, topics: &[String]) -> Result<Vec<u64>> {
    if !has_dead_letters(client)? {
        return Ok(vec![0; topics.len()]);
    }
    let rows = client
        .query(
            "SELECT topic, count(*) FROM rowmill.dead_letter WHERE topic = ANY($1) GROUP BY topic",
            &[&topics],
        )
        .context("count rowmill's dead letters; grant SELECT on rowmill.dead_letter to the tester's role")?;
    let counts: BTreeMap<&str, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(topics.iter().map(|topic| counts.get(topic.as_str()).map_or(0, |n| *n as u64)).collect())
}

fn has_dead_letters(client: &mut Client) -> Result<bool> {
    let row = client
        .query_one("SELECT to_regclass('rowmill.dead_letter') IS NOT NULL", &[])
        .context("look for rowmill's dead letters; grant USAGE on the schema rowmill to the tester's role")?;
    Ok(row.get(0))
}

/// (topic, value) of rowmill's dead letters that may be of this run: where every model's rows begin in the same way, those that
/// hold this; else all of the topics.
pub fn dead_letters(
    client: &mut Client,
    models: &[Arc<Model>],
    topics: &[String],
    run: u32,
) -> Result<Vec<(String, Vec<u8>)>> {
    if !has_dead_letters(client)? {
        return Ok(Vec::new());
    }
    let needle = needle(models, run).map_or(Vec::new(), String::into_bytes);
    let rows = client
        .query(
            "SELECT topic, value FROM rowmill.dead_letter WHERE topic = ANY($2) AND position($1::bytea IN value) > 0",
            &[&needle, &topics],
        )
        .context("read rowmill's dead letters")?;
    let letter = |row: &postgres::Row| Some((row.get(0), row.get::<_, Option<Vec<u8>>>(1)?));
    Ok(rows.iter().filter_map(letter).collect())
}

/// What every message of a run holds; `None` where the models have nothing of the kind in common.
pub fn needle(models: &[Arc<Model>], run: u32) -> Option<String> {
    let beginning = |model: &Arc<Model>| Some(model.table.as_ref()?.beginning(run)?.1);
    let first = beginning(models.first()?)?;
    models.iter().all(|model| beginning(model).as_ref() == Some(&first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::draw::Value;
    use crate::message::keys::{KeySpread, Keys};
    use crate::message::model::Scenario;
    use crate::server::form::Form;

    /// Ten messages of one stream, all acknowledged but the last two.
    fn sent() -> Sent {
        let mut account = StreamAccount::default();
        account.sent = 10;
        (0..8).for_each(|seq| account.settle(seq, Outcome::Acked));
        account.settle(8, Outcome::Failed);
        let models = Scenario::collectors().mix(Some(&"metric".parse().unwrap())).unwrap().models();
        let streams = vec![Stream { id: 0, model: 0, partition: 2 }];
        let names = |name: &str| Arc::new((0..3).map(|n| format!("{name}-{n}")).collect::<Vec<_>>());
        Sent {
            run: 7,
            seed: 1,
            topics: vec!["metric".into()],
            people: Arc::new(People {
                keys: Keys::new(3, KeySpread::Uniform),
                tokens: names("token"),
                ids: names("user"),
            }),
            known: Known::new(7, models.clone(), &streams, 1),
            conditions: vec!["true".into()],
            index: Index::default(),
            models,
            streams,
            accounts: vec![account],
            offsets: vec![vec![(0, 100)]],
        }
    }

    /// As the metric table has its columns: path, source, time, userid, value.
    fn forms() -> Forms {
        vec![vec![Form::Text, Form::Text, Form::Time, Form::Text, Form::Float8]]
    }

    /// A row as the server would send it, for message `seq`: source and path, then the columns.
    fn row(sent: &Sent, seq: u64, change: impl Fn(&mut Vec<Vec<u8>>)) -> Vec<u8> {
        let mut draft = Draft::new(sent.seed, sent.run, sent.people.clone());
        let model = &sent.models[0];
        draft.fill(&model.program, Identity { stream: 0, seq, due_us: 946_684_800_000_000 + seq as i64 });
        let table = model.table.as_ref().unwrap();
        let column = |at: usize| match draft.value(table.columns[at].slot) {
            Value::Text(span) => draft.text(span).to_vec(),
            Value::Decimal(n, 2) => (n as f64 / 100.0).to_be_bytes().to_vec(),
            Value::Time(us) => (us - 946_684_800_000_000).to_be_bytes().to_vec(),
            other => panic!("{other:?}"),
        };
        let identity = table.identity.iter().map(|at| column(*at));
        let mut columns: Vec<Vec<u8>> = identity.chain((0..table.columns.len()).map(column)).collect();
        change(&mut columns);
        let mut out = b"PGCOPY\n\xff\r\n\0".to_vec();
        out.extend([0; 8]);
        out.extend((columns.len() as i16).to_be_bytes());
        for column in columns {
            out.extend((column.len() as i32).to_be_bytes());
            out.extend(column);
        }
        out.extend((-1i16).to_be_bytes());
        out
    }

    fn check(rows: &[Vec<u8>]) -> (Tally, Vec<Example>) {
        let (sent, forms) = (sent(), forms());
        let mut bad = csv::Writer::from_writer(Vec::new());
        let mut reader = Reader::new(&sent, &forms, &mut bad);
        for bytes in rows {
            copy_out::read(&mut bytes.as_slice(), |row| {
                reader.row(0, &row, Depth::Full);
                Ok(())
            })
            .unwrap();
        }
        let outcomes = reader.conclude(Depth::Full);
        (outcomes.tally(), outcomes.examples)
    }

    #[test]
    fn every_class_is_counted_exactly() {
        let s = sent();
        let all = |n| (0..n).map(|seq| row(&s, seq, |_| {})).collect::<Vec<_>>();
        let (tally, examples) = check(&all(8));
        assert_eq!(
            tally,
            Tally { sent: 10, acked: 8, failed: 1, indeterminate: 1, stored: 8, ..Default::default() }
        );
        assert!(examples.is_empty());

        let (tally, _) = check(&all(10));
        assert_eq!((tally.stored_failed, tally.stored_indeterminate, tally.lost), (1, 1, 0));

        let (tally, examples) = check(&all(8)[..5]);
        assert_eq!((tally.stored, tally.lost), (5, 3));
        assert_eq!(
            (examples[0].seq, examples[0].partition, examples[0].offset_at_least),
            (Some(5), 2, Some(105))
        );

        let mut doubled = all(8);
        doubled.extend(all(2));
        assert_eq!(check(&doubled).0.duplicated, 2);
    }

    #[test]
    fn every_bad_row_is_in_the_file_once() {
        let sent = sent();
        let mut bad = csv::Writer::from_writer(Vec::new());
        let overtaken: Vec<(u16, u64)> = (0..EXAMPLES as u64 + 2).map(|seq| (0, seq % 10)).collect();
        let forms = forms();
        let mut outcomes = Reader::new(&sent, &forms, &mut bad).conclude(Depth::Full);
        outcomes.note_overtaken(&sent, &overtaken, &mut bad);
        outcomes.examples[0].offset = Some(1234);
        outcomes.write_examples(&mut bad);
        let text = String::from_utf8(bad.into_inner().unwrap()).unwrap();
        let count = |class: &str| text.lines().filter(|line| line.starts_with(class)).count();
        assert_eq!(
            (count("lost"), count("reordered"), text.lines().count()),
            (8, EXAMPLES + 2, 8 + EXAMPLES + 2)
        );
        let line =
            "lost,lt-00000007-000,0,metric,2,100,\"acknowledged, but in no table and no dead letter\",1234";
        assert!(text.lines().any(|found| found == line), "{text}");
    }

    #[test]
    fn every_altered_column_is_found() {
        let s = sent();
        let details = [
            (2, "column path or time"),
            (3, "column source"),
            (4, "column path or time"),
            (5, "column userid"),
            (6, "column value"),
        ];
        for (column, detail) in details {
            let altered = row(&s, 3, |columns| columns[column][1] ^= 1);
            let (tally, examples) = check(&[altered]);
            assert_eq!(tally.corrupted, 1, "{detail}");
            assert_eq!(examples[0].detail, detail);
        }
        for alter in [b"/nowhere".to_vec(), b"/a/99".to_vec()] {
            let (tally, _) = check(&[row(&s, 3, |columns| columns[1] = alter.clone())]);
            assert_eq!((tally.corrupted, tally.stored), (1, 0));
        }
        let (tally, _) = check(&[row(&s, 3, |columns| columns[0] = b"lt-00000007-009".to_vec())]);
        assert_eq!((tally.corrupted, tally.stored), (1, 0));
        let (tally, _) = check(&[row(&s, 3, |columns| columns[0] = b"lt-00000008-000".to_vec())]);
        assert_eq!((tally.corrupted, tally.stored), (0, 0), "another run's");
    }
}
