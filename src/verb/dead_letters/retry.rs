//! `rowmill dead-letters retry`: the records once more, through the decoder and the sink of the pipeline.
//!
//! `BEGIN; lock the letters that are still open; COPY rows; compare the table's definition; mark the letters; COMMIT`. Rows go
//! the writer's way, through its [`Sink`]. A letter is marked in the transaction that holds its rows, and one that is marked
//! is not taken again: whatever is lost on the way, running it again is right.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use postgres::types::Type;

use super::filter::{Decision, Filter, Parameter, count};
use super::letter::{self, Letter, Part};
use crate::base::failure::{Class, Failure};
use crate::base::thread::Pulse;
use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::decode::column::Encoded;
use crate::decode::lookup::{LookupCache, Wanted};
use crate::decode::record::{Limits, Messages, Parsed, RecordDecoder};
use crate::decode::reject::Reason;
use crate::figures::instruments::Waits;
use crate::model::mode::Mode;
use crate::model::plan::{Plan, TablePlan};
use crate::promise::batch::{Row, Rows, TableBatch};
use crate::promise::session::{Session, Sessions};
use crate::store::postgres::sink::Sink;
use crate::verb::out::{self, say};
use crate::verb::setup;

/// Letters of one transaction: a COMMIT's cost is spread, and little is done again when one is refused.
const LETTERS: i64 = 100;
/// Their values together; one letter alone may have more.
const BYTES: i64 = 16 << 20;

/// Redis is asked for so long; then a person had better look at it.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

/// A lock on a table is waited for so long.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Both run in the rows' transaction, under the role's own search_path: so each name and operator has its schema.
const LOCK_SQL: &str = "SELECT id FROM rowmill.dead_letter
     WHERE id OPERATOR(pg_catalog.=) ANY ($1) AND settled_at IS NULL ORDER BY id FOR UPDATE";
const SETTLE_SQL: &str = "UPDATE rowmill.dead_letter
     SET settled_at = pg_catalog.clock_timestamp(), settled_as = 'retried', settled_tables = $2
     WHERE id OPERATOR(pg_catalog.=) $1";

/// What became of a letter.
enum Outcome {
    /// In these tables.
    Retried(Vec<String>),
    /// It stays as it is, because of this.
    Refused(String),
    /// Somebody else settled it meanwhile.
    Settled,
}

/// For each table, by its index in the plan: its rows.
type RowsByTable = BTreeMap<usize, TableBatch>;

/// A letter that is rows now.
struct Ready {
    letter: Letter,
    encoded: RowsByTable,
}

/// A run of this verb has one plan.
const EDITION: u64 = 1;

struct Retry<'c> {
    client: &'c mut Client,
    sessions: Sessions,
    session: Option<Session>,
    plan: Arc<Plan>,
    /// One for each of the plan's tables.
    sinks: Vec<Sink>,
    decoders: Vec<RecordDecoder>,
    lookups: LookupCache,
    dry_run: bool,
}

pub(super) fn run(config: &Config, client: &mut Client, decision: &Decision) -> Result<()> {
    let plan = Arc::new(setup::plan(config, client)?.map_err(setup::all_problems)?);
    // No thread is watched here; a lookup has a deadline of its own.
    let pulse = Arc::new(Pulse::new("retry"));
    let lookups: Vec<_> = config.lookups.iter().map(|lookup| (lookup.clone(), Arc::default())).collect();
    let lookups = LookupCache::new(config.redis.as_ref(), &lookups, pulse, Waits::new("retry"))?;
    let limits = Limits {
        value_bytes_max: config.limits.message_max_bytes,
        tokens_max: lookups.tokens_max(),
        ..Limits::default()
    };
    let topics = 0..plan.topics.len();
    let decoders = topics.map(|topic| RecordDecoder::new(plan.clone(), topic, limits)).collect();
    let sessions = Sessions {
        server: Server::of(&config.postgres)?,
        me: setup::member(config),
        lock_timeout: LOCK_TIMEOUT,
        prepare: config.lease.session_lock,
    };
    let sinks = plan.tables.iter().map(Sink::new).collect();
    let dry_run = decision.dry_run;
    let mut retry = Retry { client, sessions, session: None, plan, sinks, decoders, lookups, dry_run };

    let filter = &decision.filter;
    let (mut retried, mut refused, mut last) = (0, 0, 0);
    loop {
        let ids = retry.next_ids(&config.pipeline, filter, last)?;
        let Some(end) = ids.last() else { break };
        last = *end;
        let letters = letter::read(
            retry.client,
            "id = ANY ($1)",
            "id",
            &[(&ids, Type::INT8_ARRAY)],
            LETTERS,
            Part::Whole,
        )?;
        for (letter, outcome) in retry.letters(letters)? {
            match &outcome {
                Outcome::Retried(_) => retried += 1,
                Outcome::Refused(_) => refused += 1,
                Outcome::Settled => continue,
            }
            tell(&letter, &outcome, decision.json);
        }
    }
    if !decision.json {
        let rolled_back = if decision.dry_run { " (and rolled back)" } else { "" };
        say!("{}{rolled_back}, {} still refused", count(retried, "stored"), refused);
    }
    Ok(())
}

fn tell(letter: &Letter, outcome: &Outcome, json: bool) {
    let (word, tables, why) = match outcome {
        Outcome::Retried(tables) => ("retried", tables.as_slice(), None),
        Outcome::Refused(why) => ("refused", [].as_slice(), Some(why)),
        Outcome::Settled => ("settled", [].as_slice(), None),
    };
    if json {
        return out::json(
            &serde_json::json!({ "id": letter.id, "outcome": word, "tables": tables, "message": why }),
        );
    }
    match why {
        Some(why) => say!("{:>8}  {}  still refused: {why}", letter.id, letter.place()),
        None => say!("{:>8}  {}  stored in {}", letter.id, letter.place(), tables.join(", ")),
    }
}

impl Retry<'_> {
    /// Open letters after `last`, so many that one transaction holds them.
    fn next_ids(&mut self, pipeline: &String, filter: &Filter, last: i64) -> Result<Vec<i64>> {
        let sql = format!(
            "SELECT id, coalesce(octet_length(value), 0)::BIGINT FROM rowmill.dead_letter
             WHERE {} AND settled_at IS NULL AND id > $8 ORDER BY id LIMIT {LETTERS}",
            Filter::SQL
        );
        let rows = self
            .client
            .query_typed(&sql, &filter.parameters(pipeline, &[(&last, Type::INT8)]))
            .context("cannot read the dead letters")?;
        let mut room = BYTES;
        let fits = rows.iter().take_while(|row| {
            let had_room = room > 0;
            room -= row.get::<_, i64>(1);
            had_room
        });
        Ok(fits.map(|row| row.get(0)).collect())
    }

    fn letters(&mut self, letters: Vec<Letter>) -> Result<Vec<(Letter, Outcome)>> {
        let mut outcomes = Vec::new();
        let mut ready = Vec::new();
        self.lookups.begin_batch();
        for letter in letters {
            match self.decode(&letter)? {
                Ok(encoded) => ready.push(Ready { letter, encoded }),
                Err(why) => outcomes.push((letter, Outcome::Refused(why))),
            }
        }
        outcomes.extend(self.store_all(ready)?);
        outcomes.sort_by_key(|(letter, _)| letter.id);
        Ok(outcomes)
    }

    /// The letter's rows for each table that missed it, or why there are none.
    fn decode(&mut self, letter: &Letter) -> Result<Result<RowsByTable, String>> {
        let Some(topic) = self.plan.topics.iter().position(|t| t.name == letter.topic) else {
            return Ok(Err(format!("no model reads topic {:?}", letter.topic)));
        };
        if let Some(bytes) = letter.whole_bytes() {
            return Ok(Err(format!(
                "only a beginning of its {bytes} bytes is kept: it can be discarded, and no more"
            )));
        }
        let (decoder, record) = (&mut self.decoders[topic], letter.record());
        let of_no_table =
            Reason::of(&letter.reason).is_some_and(|reason| reason.is_of_no_table(&letter.message));
        let missed = |table: usize| of_no_table || self.plan.tables[table].name == letter.target;
        look_up(&mut self.lookups, decoder, letter)?;
        let mut messages = match decoder.parse(&record) {
            Ok(Parsed::Tombstone) => return Ok(Err("it has no value: discard it".to_owned())),
            Ok(parsed) => Messages::of(parsed),
            Err(reject) => return Ok(Err(reject.message)),
        };
        let bytes_max = decoder.limits().value_bytes_max;
        let mut encoded = RowsByTable::new();
        loop {
            let message = match messages.next(decoder) {
                Ok(Some(message)) => message,
                Ok(None) if encoded.is_empty() => {
                    return Ok(Err(format!("no model of table {} takes it any more", letter.target)));
                }
                Ok(None) => return Ok(Ok(encoded)),
                Err(reject) => return Ok(Err(reject.message)),
            };
            let all: Vec<usize> = decoder.models().collect();
            if all.is_empty() && message.element().is_some() {
                return Ok(Err(decoder.unroutable(message).message));
            }
            for model in all.into_iter().filter(|model| missed(self.plan.models[*model].table)) {
                let table = self.plan.models[model].table;
                if let Some(why) = out_of_order(&self.plan.tables[table]) {
                    return Ok(Err(why));
                }
                let batch = encoded.entry(table).or_insert_with(|| TableBatch::new(table, EDITION));
                match decoder.encode(model, message, &self.lookups, &mut batch.bytes) {
                    Ok(Encoded::Row(shape)) => {
                        let (end, element) = (batch.bytes.len() as u32, message.element());
                        batch.rows.push(Row { end, record: 0, element, deletes: false, shape });
                        if element.is_some() && batch.bytes.len() > bytes_max {
                            return Ok(Err(format!("its rows would have more than {bytes_max} bytes")));
                        }
                    }
                    Ok(Encoded::Deletion) => unreachable!("what deletes goes by the order of offsets"),
                    Ok(Encoded::Expired) => {
                        return Ok(Err(
                            "the table keeps nothing that old any more (retention): discard it".to_owned()
                        ));
                    }
                    Ok(Encoded::NeedsLookup) => bail!("a token was forgotten while its letter was in work"),
                    Err(reject) => return Ok(Err(reject.message)),
                }
            }
        }
    }

    /// All in one transaction; if the server refuses a row, each in its own.
    fn store_all(&mut self, mut ready: Vec<Ready>) -> Result<Vec<(Letter, Outcome)>> {
        if ready.len() > 1 {
            match self.store(&mut ready) {
                Err(failure) if failure.class == Class::Row => {}
                Err(failure) => return Err(unsettled(failure)),
                Ok(stored) => return Ok(with_outcomes(ready, &stored, &self.plan)),
            }
        }
        let mut outcomes = Vec::new();
        for one in ready {
            let mut one = vec![one];
            match self.store(&mut one) {
                Ok(stored) => outcomes.extend(with_outcomes(one, &stored, &self.plan)),
                Err(Failure { class: Class::Row, words, .. }) => {
                    outcomes.extend(one.into_iter().map(|r| (r.letter, Outcome::Refused(words.clone()))));
                }
                Err(failure) => return Err(unsettled(failure)),
            }
        }
        Ok(outcomes)
    }

    /// One transaction; the ids of the letters that were still open, and are stored now. After an error the session is gone,
    /// and with it what the transaction did.
    fn store(&mut self, ready: &mut [Ready]) -> Result<Vec<i64>, Failure> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.sessions.open()?,
        };
        session.begin()?;
        let ids: Vec<i64> = ready.iter().map(|r| r.letter.id).collect();
        let open = session.client().query_typed(LOCK_SQL, &[(&ids, Type::INT8_ARRAY)])?;
        let open: Vec<i64> = open.iter().map(|row| row.get(0)).collect();
        for (index, sink) in self.sinks.iter().enumerate() {
            let taken = ready.iter_mut().filter(|r| open.contains(&r.letter.id));
            let mut rows = Rows::of(taken.filter_map(|r| r.encoded.get_mut(&index)));
            if !rows.is_empty() {
                sink.send_whole(&mut session, &mut rows)?;
                sink.check_definition(&mut session)?;
            }
        }
        for one in ready.iter().filter(|r| open.contains(&r.letter.id)) {
            let tables = tables_of(one, &self.plan);
            let parameters: [Parameter<'_>; 2] = [(&one.letter.id, Type::INT8), (&tables, Type::TEXT_ARRAY)];
            session.client().execute_typed(SETTLE_SQL, &parameters)?;
        }
        if self.dry_run {
            // What is checked at the end of a transaction is checked now.
            session.execute("SET CONSTRAINTS ALL IMMEDIATE")?;
            session.rollback()?;
        } else {
            session.commit_with("COMMIT")?;
        }
        self.session = Some(session);
        Ok(open)
    }
}

/// Why a table takes no record again once others have come after it, if it does not.
fn out_of_order(table: &TablePlan) -> Option<String> {
    let keyed = table.keyed.as_ref().filter(|keyed| keyed.mode == Mode::Upsert && keyed.time.is_none())?;
    let name = &table.name;
    let deletes = if keyed.deletes { ", or have been deleted," } else { "" };
    Some(format!(
        "in table {name} the last record of a key by its offset replaces the others, and newer ones may be there{deletes} by now: \
         send it to its topic again if it is still true, or discard it; with newest = \"...\" in the model a record's own time decides"
    ))
}

/// Why nothing of a transaction can be said to be stored, where no row is at fault.
fn unsettled(failure: Failure) -> anyhow::Error {
    let words = failure.words;
    match failure.class {
        Class::Lost if failure.at_commit => anyhow!(
            "the connection broke during COMMIT ({words}): run the same command again, what was stored is not taken twice"
        ),
        Class::TableChanged => anyhow!("{words}; nothing was stored, run it again"),
        _ => anyhow!("cannot store dead letters: {words}"),
    }
}

/// Makes every token of the letter known to the cache.
fn look_up(lookups: &mut LookupCache, decoder: &mut RecordDecoder, letter: &Letter) -> Result<()> {
    let (mut wanted, record) = (Vec::new(), letter.record());
    let newest_ms = record.timestamp_ms;
    // What cannot be read is refused when it is decoded.
    let mut messages = decoder.parse(&record).map_or_else(|_| Messages::none(), Messages::of);
    while let Ok(Some(message)) = messages.next(decoder) {
        decoder
            .tokens(message, |lookup, token| wanted.push(Wanted { lookup, token: token.into(), newest_ms }));
    }
    let began = Instant::now();
    if !lookups.look_up(&wanted, || began.elapsed() < LOOKUP_PATIENCE) {
        bail!(
            "Redis did not tell the tokens of letter {} within {} s: see above, and run it again when it answers",
            letter.id,
            LOOKUP_PATIENCE.as_secs()
        );
    }
    Ok(())
}

fn tables_of(ready: &Ready, plan: &Plan) -> Vec<String> {
    ready.encoded.keys().map(|table| plan.tables[*table].name.clone()).collect()
}

fn with_outcomes(ready: Vec<Ready>, stored: &[i64], plan: &Plan) -> Vec<(Letter, Outcome)> {
    let outcome = |r: &Ready| {
        if stored.contains(&r.letter.id) { Outcome::Retried(tables_of(r, plan)) } else { Outcome::Settled }
    };
    ready.into_iter().map(|r| (outcome(&r), r)).map(|(outcome, r)| (r.letter, outcome)).collect()
}
