//! write-TABLE-N: rows of one table, in one transaction with the move of the ledger.
//!
//! Place in the flow: last. It takes all that is there, however little, and writes it: no flush timer, so batches grow with
//! the load. The transaction is `BEGIN; COPY rows; COPY dead letters; SELECT advance; COMMIT`, the last two in one message.
//!
//! What it never does: believe a COMMIT whose reply it did not see, use a connection after an error, or go on with a span
//! that somebody else owns.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use postgres::{Client, Statement};

use crate::batch::{Segment, TableBatch, spans};
use crate::copy::{HEADER, TRAILER};
use crate::cpu::Pulse;
use crate::dead_letter::{self, About};
use crate::failure::Class;
use crate::fault::fault;
use crate::guard::{Guard, Tally};
use crate::ledger::{self, Member, Target, moves};
use crate::metrics::{TableMetrics, Wait, Waits};
use crate::model::{TablePlan, patch_clocks};
use crate::mutant::{Bug, planted};
use crate::ownership::{Claim, Ownership, Wake};
use crate::pg::{self, Server, describe};
use crate::protocol::{FollowUp, Resolved, after_failure, resolve};

/// Rows of one transaction, in bytes: beyond this, a larger batch gains nothing, and a bad row costs more.
const GATHER_BYTES_MAX: usize = 2 << 20;

/// Bytes handed to the connection at once. It copies them, so a larger piece costs memory and overlaps less.
const WRITE_BYTES: usize = 64 << 10;

/// Between two BEGINs of a writer with little to write: four times what a transaction takes, within these bounds. Most of
/// what a small transaction costs the server does not depend on its rows, and one that takes long shows a server that is
/// short of time. Not a flush timer: a row that comes after a pause goes at once. With 20,000 rows/s into five tables on two
/// cores: 500 transactions/s, where 5 ms made 850 (measured).
const PACE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));
const PACE_TIMES: u32 = 4;

/// Where a transaction moves more ledger rows than this, the pace is the slower one.
const MANY_PARTITIONS: usize = 64;

/// A batch of this size is worth a transaction of its own and waits for nothing.
const PACE_BYTES_MAX: usize = 128 << 10;

/// Positions that move without rows are committed this often: it bounds what is read again after a crash.
const IDLE_COMMIT: Duration = Duration::from_secs(1);

/// Between two tries while PostgreSQL is away: from the first to the last value, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Isolation begins with this many rows under a savepoint and doubles while they are good.
const CHUNK_ROWS: usize = 64;

/// Bad rows of one transaction, and chunks of good ones: more than 64 subtransactions slow the whole server.
const BAD_ROWS_MAX: usize = 32;
const GOOD_CHUNKS_MAX: usize = 60;

pub struct Writer {
    pub me: Member,
    pub target: Target,
    pub table: TablePlan,
    pub server: Server,
    /// False where a pooler stands in between: its servers do not know what another one prepared.
    pub prepare: bool,
    pub lock_timeout: Duration,
    pub ownership: Arc<Ownership>,
    pub inlet: Receiver<TableBatch>,
    pub wake: Sender<Wake>,
    pub metrics: Arc<TableMetrics>,
    /// `None` where dead letters stop nothing.
    pub guard: Option<Arc<Guard>>,
    pub waits: Arc<Waits>,
    pub pulse: Arc<Pulse>,
}

/// A failed statement: what follows, and the words for it.
struct Failure {
    class: Class,
    words: String,
    /// The server's account of a bad row.
    error: Option<Box<postgres::error::DbError>>,
    /// The COMMIT was under way: its outcome is unknown unless the server said no.
    at_commit: bool,
}

impl Failure {
    /// The same, where a single row cannot be the cause.
    fn not_of_a_row(mut self) -> Failure {
        if self.class == Class::Row {
            self.class = Class::Setup;
        }
        self
    }
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Failure {
        let error_db = error.as_db_error().cloned().map(Box::new);
        Failure { class: pg::classify(&error), words: describe(&error), error: error_db, at_commit: false }
    }
}

impl From<std::io::Error> for Failure {
    /// The COPY writer hides the client's own error in an I/O error.
    fn from(error: std::io::Error) -> Failure {
        match error.downcast::<postgres::Error>() {
            Ok(error) => error.into(),
            Err(error) => {
                Failure { class: Class::Lost, words: error.to_string(), error: None, at_commit: false }
            }
        }
    }
}

/// Runs until the decoders are gone and everything is committed or dropped.
pub fn run(writer: &Writer) -> Result<()> {
    let mut state = State {
        connection: None,
        idle: Vec::new(),
        idle_since: Instant::now(),
        began_at: Instant::now() - PACE.1,
        took: Duration::ZERO,
        rest: None,
    };
    loop {
        let wait = if state.idle.is_empty() {
            Duration::MAX
        } else {
            IDLE_COMMIT.saturating_sub(state.idle_since.elapsed())
        };
        let next = match state.rest.take() {
            Some(rest) => Ok(rest),
            None => writer.waits.during(Wait::Input, || receive(&writer.inlet, wait)),
        };
        let (mut load, ended) = match next {
            Ok(batch) => {
                if batch.bytes.len() < PACE_BYTES_MAX {
                    writer.waits.during(Wait::Pace, || state.pace());
                }
                (writer.gather(&mut state, batch), false)
            }
            Err(RecvTimeoutError::Timeout) => (Vec::new(), false),
            Err(RecvTimeoutError::Disconnected) => (Vec::new(), true),
        };
        if load.iter().all(TableBatch::is_positions_only) {
            load.drain(..).for_each(|batch| state.keep_idle(batch));
        }
        if !load.is_empty() || ended || state.idle_since.elapsed() >= IDLE_COMMIT {
            writer.commit(&mut state, load)?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn receive(inlet: &Receiver<TableBatch>, wait: Duration) -> Result<TableBatch, RecvTimeoutError> {
    if wait == Duration::MAX {
        return inlet.recv().map_err(|_| RecvTimeoutError::Disconnected);
    }
    inlet.recv_timeout(wait)
}

struct Connection {
    client: Client,
    /// The COPY of the rows, once it is prepared: else each transaction would ask the server what the statement means.
    copy: Option<Statement>,
}

/// What a writer keeps between transactions.
struct State {
    connection: Option<Connection>,
    /// Spans without rows, one for each claim, waiting to be committed with the next rows.
    idle: Vec<Segment>,
    idle_since: Instant,
    began_at: Instant,
    /// What the last transaction took.
    took: Duration,
    /// What one transaction had no room for; it comes before anything else.
    rest: Option<TableBatch>,
}

impl State {
    /// Waits until the next transaction may begin.
    fn pace(&self) {
        let floor = pace(self.took, self.idle.len());
        std::thread::sleep(floor.saturating_sub(self.began_at.elapsed()));
    }

    /// Takes over the positions of a batch without rows.
    fn keep_idle(&mut self, batch: TableBatch) {
        if self.idle.is_empty() {
            self.idle_since = Instant::now();
        }
        for segment in batch.segments {
            match self.idle.iter_mut().find(|s| Arc::ptr_eq(&s.claim, &segment.claim)) {
                Some(known) => known.join(&segment),
                None => self.idle.push(segment),
            }
        }
    }

    fn back_off(&self, pause: &mut Duration) {
        // Jitter, so that many writers do not come back at the same moment.
        let jitter = Instant::now().duration_since(self.began_at).subsec_nanos() % 50;
        std::thread::sleep(*pause + Duration::from_millis(u64::from(jitter)));
        *pause = (*pause * 2).min(BACK_OFF.1);
    }
}

/// From one BEGIN to the next at least, after a transaction that took this long.
fn pace(took: Duration, partitions: usize) -> Duration {
    match partitions {
        0..=MANY_PARTITIONS => (took * PACE_TIMES).clamp(PACE.0, PACE.1),
        _ => PACE.1,
    }
}

/// Drops what must not be written: fenced, released, or stopped by the guard.
fn drop_void(state: &mut State, load: &mut Vec<TableBatch>) {
    state.idle.retain(|s| s.claim.may_write());
    load.iter_mut().for_each(|b| b.retain_segments(|s| s.claim.may_write()));
    load.retain(|b| !b.segments.is_empty());
}

/// A segment's outcomes, as the guard counts them.
fn tally(segment: &Segment) -> Tally {
    Tally { rows: segment.counts.rows as u64, dead: segment.counts.dead as u64 }
}

/// The reason that most of a topic's dead letters have, and where the first of those stands. The letter's own sentence may
/// show what a record holds, so it is left out.
fn most_common_reason(load: &[TableBatch], topic: usize) -> String {
    let mut reasons: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for batch in load {
        for dead in &batch.dead {
            let segment = &batch.segments[dead.segment];
            let place = || {
                let raw = segment.raw.as_ref().expect("a segment with dead letters keeps its records");
                format!(
                    "partition {} offset {}",
                    segment.claim.partition.id,
                    raw.offset(dead.record as usize)
                )
            };
            if segment.claim.partition.topic == topic {
                reasons.entry(&dead.reason).or_insert_with(|| (0, place())).0 += 1;
            }
        }
    }
    let most = reasons.iter().max_by_key(|(_, (count, _))| *count);
    most.map_or_else(String::new, |(reason, (_, place))| format!("{reason}, as at {place}"))
}

/// A transaction in words, for errors: which offsets of which partitions.
fn place(spans: &[Segment]) -> String {
    let shown: Vec<String> = spans
        .iter()
        .take(3)
        .map(|s| format!("{}/{} offsets [{}, {})", s.claim.topic, s.claim.partition.id, s.first, s.next))
        .collect();
    let more = spans.len().saturating_sub(3);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

impl Writer {
    /// Takes what else is there, up to what one transaction should hold. What a batch has beyond that is kept for the next:
    /// behind a table that was stuck, a batch may have grown to the whole budget.
    fn gather(&self, state: &mut State, first: TableBatch) -> Vec<TableBatch> {
        let (mut load, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(mut batch) = next {
            let room = GATHER_BYTES_MAX - bytes;
            let fits = batch.rows.partition_point(|row| row.end as usize <= room);
            if fits < batch.rows.len() {
                let tail = batch.split_off(fits.max(usize::from(load.is_empty())));
                state.rest = Some(tail);
                load.push(batch);
                break;
            }
            bytes += batch.bytes.len();
            load.push(batch);
            next = self.inlet.try_recv().ok();
        }
        load.retain(|batch| !batch.segments.is_empty());
        load
    }

    /// Writes until everything is committed, or dropped because it is not ours any more.
    ///
    /// # Errors
    /// What only a person can mend: a missing table or privilege, a table that changed.
    fn commit(&self, state: &mut State, mut load: Vec<TableBatch>) -> Result<()> {
        let mut pause = BACK_OFF.0;
        let mut waiting = false;
        loop {
            drop_void(state, &mut load);
            if self.guard_stops(&load) {
                continue;
            }
            let spans = spans(&state.idle, &load);
            if spans.is_empty() {
                return Ok(());
            }
            let mut result = self.transaction(state, &mut load, &spans);
            let mut attempted = spans;
            if let Err(Failure { class: Class::Row, .. }) = &result {
                // Not the server's words: they quote the row.
                log::debug!("table {} refuses a row; looking for it", self.target.name);
                state.connection = None;
                (result, attempted) = self.isolate(state, &mut load);
            } else if result.is_ok() {
                state.took = state.began_at.elapsed();
                self.metrics.transaction_seconds.observe(state.took.as_secs_f64());
                self.committed(&attempted, &load);
                load.clear();
                state.idle.clear();
            }
            let Err(failure) = result else {
                if waiting {
                    log::info!("table {} takes rows again", self.target.name);
                }
                return Ok(());
            };
            self.after(state, &failure, &attempted, &mut load)?;
            if failure.class != Class::Fenced {
                self.metrics.retried(failure.class);
                if !std::mem::replace(&mut waiting, true) {
                    let (table, place) = (&self.target.name, place(&attempted));
                    log::warn!(
                        "cannot write to table {table} ({place}): {}; trying again until it works",
                        failure.words
                    );
                }
                self.waits.during(Wait::Retry, || state.back_off(&mut pause));
            }
        }
    }

    /// Asks the guard about the letters in a load that is about to be committed. True if it stopped a topic: nothing of that
    /// one may be.
    fn guard_stops(&self, load: &[TableBatch]) -> bool {
        let Some(guard) = self.guard.as_ref().filter(|_| load.iter().any(|b| !b.dead.is_empty())) else {
            return false;
        };
        let mut topics: BTreeMap<usize, Tally> = BTreeMap::new();
        for segment in load.iter().flat_map(|b| &b.segments) {
            *topics.entry(segment.claim.partition.topic).or_default() += tally(segment);
        }
        let mut any = false;
        for (topic, now) in topics {
            if let Some(why) = guard.objection(topic, now, || most_common_reason(load, topic)) {
                self.ownership.halt(topic, &why);
                any = true;
            }
        }
        any
    }

    /// Makes the load fit what became true: asks about a commit whose outcome is unknown, drops what is fenced.
    fn after(
        &self,
        state: &mut State,
        failure: &Failure,
        spans: &[Segment],
        load: &mut [TableBatch],
    ) -> Result<()> {
        state.connection = None;
        let done = match after_failure(failure.class, failure.at_commit) {
            FollowUp::SendAgain => return Ok(()),
            FollowUp::Stop => return Err(self.stopped(failure, spans)),
            FollowUp::Ask => self.resolve(state, spans, load),
        };
        let is_done = |s: &Segment| done.iter().any(|(c, next)| Arc::ptr_eq(c, &s.claim) && s.next <= *next);
        state.idle.retain(|s| !is_done(s));
        load.iter_mut().for_each(|b| b.retain_segments(|s| !is_done(s)));
        Ok(())
    }

    /// What only a person can mend, in words.
    fn stopped(&self, failure: &Failure, spans: &[Segment]) -> anyhow::Error {
        if failure.class == Class::TableChanged {
            return anyhow!(
                "the definition of table {} changed while rows for the old one were on their way ({}); nothing of them was \
                 stored; start again to go on with the new definition",
                self.target.name,
                failure.words
            );
        }
        anyhow!(
            "cannot write to table {} ({}): {}; run `rowmill check` for what is missing",
            self.target.name,
            place(spans),
            failure.words
        )
    }

    /// BEGIN to COMMIT, once.
    fn transaction(
        &self,
        state: &mut State,
        load: &mut [TableBatch],
        spans: &[Segment],
    ) -> Result<(), Failure> {
        self.begin(state)?;
        let connection = state.connection.as_mut().expect("begin has connected");
        let rows: usize = load.iter().map(|b| b.rows.len()).sum();
        if planted(Bug::AdvanceFirst) {
            let advance = ledger::advance_and_commit(&self.me.name, &self.target, &moves(spans));
            connection.client.batch_execute(&format!("{advance}; BEGIN"))?;
        }
        fault("before-copy");
        if rows > 0 {
            self.pulse.during("COPY of rows", || {
                self.copy_rows(connection, load.iter_mut().map(|b| (0..b.rows.len(), b)), rows)
            })?;
        }
        fault("after-copy");
        let result = self.finish(&mut connection.client, load, spans);
        // Without rows, none of them can be at fault: our schema is.
        result.map_err(|failure| if rows == 0 { failure.not_of_a_row() } else { failure })
    }

    fn begin(&self, state: &mut State) -> Result<(), Failure> {
        state.began_at = Instant::now();
        self.pulse.during("BEGIN", || {
            if state.connection.is_none() {
                let client = self.server.connect(&self.me.application_name()).map_err(|error| {
                    let class = error.downcast_ref::<postgres::Error>().map_or(Class::Setup, pg::classify);
                    Failure { class, words: format!("{error:#}"), error: None, at_commit: false }
                })?;
                state.connection = Some(Connection { client, copy: None });
            }
            // SET LOCAL, not session settings: a pooler in transaction mode may stand in between.
            let sql = format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}; \
                 SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL statement_timeout = 0",
                self.lock_timeout.as_millis(),
                self.me.lease.as_millis()
            );
            Ok(state.connection.as_mut().expect("just made").client.batch_execute(&sql)?)
        })
    }

    /// Sends rows of several batches as one COPY. The server must have stored every one of them.
    fn copy_rows<'a>(
        &self,
        Connection { client, copy }: &mut Connection,
        parts: impl Iterator<Item = (Range<usize>, &'a mut TableBatch)>,
        rows: usize,
    ) -> Result<(), Failure> {
        if self.prepare && copy.is_none() {
            *copy = Some(client.prepare(&self.table.copy_statement())?);
        }
        let mut copy = match copy {
            Some(statement) => client.copy_in(statement)?,
            None => client.copy_in(&self.table.copy_statement())?,
        };
        copy.write_all(&HEADER)?;
        for (range, batch) in parts.filter(|(range, _)| !range.is_empty()) {
            let bytes = batch.row_bytes(range.start).start..batch.row_bytes(range.end - 1).end;
            if self.table.clock_columns > 0 {
                let now = micros_since_2000();
                for row in range {
                    let place = batch.row_bytes(row);
                    patch_clocks(&mut batch.bytes[place], self.table.clock_columns, now);
                }
            }
            for piece in batch.bytes[bytes].chunks(WRITE_BYTES) {
                copy.write_all(piece)?;
            }
            fault("mid-copy");
        }
        copy.write_all(&TRAILER)?;
        stored_all(copy.finish()?, rows, &self.target.name)
    }

    /// Dead letters, then the move of the ledger and the COMMIT in one message.
    fn finish(&self, client: &mut Client, load: &[TableBatch], spans: &[Segment]) -> Result<(), Failure> {
        let dead: usize = load.iter().map(|b| b.dead.len()).sum();
        if dead > 0 {
            self.pulse
                .during("COPY of dead letters", || match planted(Bug::LettersOutside) {
                    true => {
                        self.copy_dead_letters(&mut self.server.connect("").expect("connected"), load, dead)
                    }
                    false => self.copy_dead_letters(client, load, dead),
                })
                .map_err(|failure| {
                    // Nothing that a record holds can be wrong for this table: our schema is.
                    let words = format!("the dead-letter table refused: {}", failure.words);
                    Failure { words, ..failure.not_of_a_row() }
                })?;
        }
        let mut sql = ledger::advance_and_commit(&self.me.name, &self.target, &moves(spans));
        if planted(Bug::AdvanceFirst) {
            sql = "COMMIT".to_owned();
        }
        if planted(Bug::AdvanceLater) {
            client.batch_execute("COMMIT; BEGIN")?;
        }
        fault("before-commit");
        let sent_at = Instant::now();
        let result = self.pulse.during("COMMIT", || client.batch_execute(&sql));
        if result.is_ok() {
            self.metrics.commit_seconds.observe(sent_at.elapsed().as_secs_f64());
        }
        fault("after-commit");
        result.map_err(|error| Failure { at_commit: true, ..error.into() })
    }

    fn copy_dead_letters(
        &self,
        client: &mut Client,
        load: &[TableBatch],
        count: usize,
    ) -> Result<(), Failure> {
        let mut copy = client.copy_in(dead_letter::COPY_SQL)?;
        copy.write_all(&HEADER)?;
        let mut tuple = Vec::new();
        for batch in load {
            for dead in &batch.dead {
                let segment = &batch.segments[dead.segment];
                let raw = segment.raw.as_ref().expect("a segment with dead letters keeps its records");
                let about = About {
                    pipeline: &self.me.pipeline,
                    target: &self.target.name,
                    reason: &dead.reason,
                    message: &dead.message,
                };
                tuple.clear();
                dead_letter::append(&mut tuple, &about, &raw.record(&segment.claim, dead.record as usize));
                copy.write_all(&tuple)?;
            }
        }
        copy.write_all(&TRAILER)?;
        fault("dead-letter-copy");
        stored_all(copy.finish()?, count, "rowmill.dead_letter")
    }

    /// What is true from now on. `load` is what the spans were written from; it may hold more.
    fn committed(&self, spans: &[Segment], load: &[TableBatch]) {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        for span in spans {
            let lane = &span.claim.lanes[span.lane];
            lane.set_committed(span.next);
            self.note(span, now_ms);
            self.metrics.rows.fetch_add(span.counts.rows as u64, Relaxed);
            self.metrics.dead.fetch_add(span.counts.dead as u64, Relaxed);
        }
        self.metrics.transactions.fetch_add(1, Relaxed);
        self.metrics.batch_rows.observe(spans.iter().map(|s| s.counts.rows).sum::<i64>() as f64);
        for batch in load {
            let is_in = |s: &Segment| {
                spans.iter().any(|span| Arc::ptr_eq(&span.claim, &s.claim) && s.next <= span.next)
            };
            for segment in batch.segments.iter().filter(|s| is_in(s)) {
                self.metrics.bytes.fetch_add(batch.rows_bytes(segment.rows.clone()).len() as u64, Relaxed);
            }
            for dead in batch.dead.iter().filter(|d| is_in(&batch.segments[d.segment])) {
                self.metrics.dead_letter(&dead.reason);
            }
        }
    }

    /// Counts a committed span.
    fn note(&self, span: &Segment, now_ms: i64) {
        let lane = &span.claim.lanes[span.lane];
        let metrics = &lane.metrics;
        let outcomes = [
            (&metrics.rows, span.counts.rows),
            (&metrics.dead, span.counts.dead),
            (&metrics.skipped, span.counts.skipped),
            (&metrics.other, span.counts.other),
            (&metrics.holes, span.holes()),
        ];
        for (counter, count) in outcomes {
            counter.fetch_add(count as u64, Relaxed);
        }
        metrics.progress_ms.store(now_ms, Relaxed);
        if let Some(guard) = &self.guard {
            guard.note(span.claim.partition.topic, tally(span));
        }
        if let Some(last_ms) = span.times.last_ms {
            lane.set_record_ms(last_ms);
        }
        if let Some(first_ms) = span.times.first_ms {
            self.metrics.age_seconds.observe((now_ms - first_ms) as f64 / 1000.0);
        }
    }

    /// RESOLVE: asks the ledger until it answers. Returns the claims whose spans turned out to be committed, and up to where;
    /// those that are not ours any more are ended.
    fn resolve(&self, state: &mut State, spans: &[Segment], load: &[TableBatch]) -> Vec<(Arc<Claim>, i64)> {
        self.metrics.resolved.fetch_add(1, Relaxed);
        let mut pause = BACK_OFF.0;
        let standings = loop {
            let asked = self.begin_free(state).and_then(|client| {
                let ask = || ledger::resolve(client, &self.me.name, &self.target.name, &moves(spans));
                Ok(self.pulse.during("asking what became of a COMMIT", ask)?)
            });
            match asked {
                Ok(standings) => break standings,
                Err(failure) => {
                    log::debug!("cannot ask the ledger yet: {}", failure.words);
                    state.connection = None;
                    self.metrics.retried(failure.class);
                    self.waits.during(Wait::Retry, || state.back_off(&mut pause));
                }
            }
        };
        let mut done = Vec::new();
        for (span, standing) in spans.iter().zip(standings) {
            let lane = &span.claim.lanes[span.lane];
            if let Some(standing) = standing {
                lane.set_epoch(standing.epoch);
            }
            match resolve(span.first, span.next, standing.map(|s| s.next_offset)) {
                Resolved::Committed => {
                    self.committed(std::slice::from_ref(span), load);
                    done.push((span.claim.clone(), span.next));
                }
                Resolved::NotCommitted => {}
                Resolved::Fenced => self.fenced(&span.claim),
            }
        }
        done
    }

    /// A connection outside of a transaction, with the lock timeout of the session.
    fn begin_free<'a>(&self, state: &'a mut State) -> Result<&'a mut Client, Failure> {
        state.connection = None;
        self.begin(state)?;
        let connection = state.connection.as_mut().expect("begin has connected");
        connection.client.batch_execute("ROLLBACK")?;
        Ok(&mut connection.client)
    }

    fn fenced(&self, claim: &Arc<Claim>) {
        self.metrics.fenced.fetch_add(1, Relaxed);
        if claim.is_current() {
            log::warn!(
                "fenced: partition {}/{} has another owner; its data in hand is dropped",
                claim.topic,
                claim.partition.id
            );
        }
        self.ownership.remove(claim);
        // A full channel already holds a wake-up.
        self.wake.try_send(Wake::Look).ok();
    }

    /// Finds the rows that the server refuses, sets them aside, and commits everything else. After an error the load holds
    /// what is not committed, and the spans of the commit that failed come with it.
    fn isolate(&self, state: &mut State, load: &mut Vec<TableBatch>) -> (Result<(), Failure>, Vec<Segment>) {
        while !load.is_empty() {
            let found = self.begin(state).and_then(|()| {
                let connection = state.connection.as_mut().expect("begin has connected");
                self.find_bad_rows(connection, &mut load[0])
            });
            let (at, bad) = match found {
                Ok(found) => found,
                Err(failure) => return (Err(failure), spans(&state.idle, load)),
            };
            let tail = load[0].split_off(at);
            load[0].set_aside(bad);
            if !tail.segments.is_empty() {
                load.insert(1, tail);
            }
            if self.guard_stops(&load[..1]) {
                // The transaction ends with its connection. What other topics had in it is tried again.
                state.connection = None;
                drop_void(state, load);
                continue;
            }
            let spans = spans(&state.idle, &load[..1]);
            let connection = state.connection.as_mut().expect("begin has connected");
            if let Err(failure) = self.finish(&mut connection.client, &load[..1], &spans) {
                // Each row was tried, deferred constraints included.
                return (Err(failure.not_of_a_row()), spans);
            }
            self.committed(&spans, &load[..1]);
            state.idle.clear();
            load.remove(0);
        }
        (Ok(()), Vec::new())
    }

    /// Sends rows in growing chunks, each under a savepoint. Returns how many rows were judged, and the bad ones among them.
    fn find_bad_rows(
        &self,
        connection: &mut Connection,
        batch: &mut TableBatch,
    ) -> Result<(usize, Vec<BadRow>), Failure> {
        let mut bad: Vec<BadRow> = Vec::new();
        let (mut at, mut chunk) = (0, CHUNK_ROWS);
        let mut good_chunks = 0;
        while at < batch.rows.len() && bad.len() < BAD_ROWS_MAX && good_chunks < GOOD_CHUNKS_MAX {
            let end = (at + chunk).min(batch.rows.len());
            let Some(refusal) = self.try_rows(connection, batch, at..end)? else {
                at = end;
                chunk *= 2;
                good_chunks += 1;
                continue;
            };
            let count = end - at;
            let line = refusal
                .where_()
                .and_then(|context| bad_line(context, &self.table.sql_name))
                .filter(|n| (1..=count).contains(n));
            chunk = (count / 2).max(1);
            match line {
                // Named by the server: then the rows before it must be good.
                Some(line) if count > 1 => {
                    let good = at..at + line - 1;
                    good_chunks += usize::from(!good.is_empty());
                    if good.is_empty() || self.try_rows(connection, batch, good)?.is_none() {
                        bad.push(bad_row(at + line - 1, &refusal));
                        at += line;
                        chunk = CHUNK_ROWS;
                    }
                }
                _ if count == 1 => {
                    bad.push(bad_row(at, &refusal));
                    at += 1;
                    chunk = CHUNK_ROWS;
                }
                // Not named: halve until it stands alone.
                _ => {}
            }
        }
        Ok((at, bad))
    }

    /// One chunk under a savepoint; the server's refusal if it is one of the rows' fault.
    fn try_rows(
        &self,
        connection: &mut Connection,
        batch: &mut TableBatch,
        rows: Range<usize>,
    ) -> Result<Option<postgres::error::DbError>, Failure> {
        let count = rows.len();
        let attempt = || -> Result<(), Failure> {
            connection.client.batch_execute("SAVEPOINT chunk")?;
            self.copy_rows(connection, std::iter::once((rows, batch)), count)?;
            // Deferred constraints fail here instead of at the COMMIT, where no row could be named.
            Ok(connection.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT chunk")?)
        };
        match self.pulse.during("COPY of a chunk", attempt) {
            Ok(()) => Ok(None),
            Err(Failure { class: Class::Row, error: Some(error), .. }) => {
                connection.client.batch_execute("ROLLBACK TO SAVEPOINT chunk; RELEASE SAVEPOINT chunk")?;
                Ok(Some(*error))
            }
            Err(failure) => Err(failure),
        }
    }
}

/// A refused row: its index, the reason's code, the sentence.
type BadRow = (usize, Cow<'static, str>, String);

fn bad_row(row: usize, refusal: &postgres::error::DbError) -> BadRow {
    let mut message = refusal.message().to_owned();
    if let Some(detail) = refusal.detail() {
        message.push_str(": ");
        message.push_str(detail);
    }
    (row, format!("sqlstate_{}", refusal.code().code()).into(), message)
}

/// The row, counted from 1, that a COPY error's context names. The words around it are translated, so it is the first
/// number after our table's name in the last line that has COPY and that name.
fn bad_line(context: &str, sql_name: &str) -> Option<usize> {
    let name = sql_name.rsplit("\".\"").next()?.trim_matches('"').replace("\"\"", "\"");
    let (_, after) = context.lines().rev().find_map(|line| line.strip_prefix("COPY ")?.split_once(&name))?;
    let digits = after.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A trigger or a rule may drop rows without a word; the ledger must never count those as stored.
fn stored_all(stored: u64, sent: usize, table: &str) -> Result<(), Failure> {
    if stored == sent as u64 || planted(Bug::CountIsIgnored) {
        return Ok(());
    }
    Err(Failure {
        class: Class::Setup,
        words: format!("{table} stored {stored} of {sent} rows: a trigger or a rule on it drops rows"),
        error: None,
        at_commit: false,
    })
}

/// Microseconds from 2000-01-01 to 1970-01-01, where the two clocks begin.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

pub(crate) fn micros_since_2000() -> i64 {
    jiff::Timestamp::now().as_microsecond() - POSTGRES_EPOCH_MICROS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bad_line_is_read_from_the_last_copy_context() {
        #[track_caller]
        fn check(context: &str, expected: Option<usize>) {
            assert_eq!(bad_line(context, "\"public\".\"metric\""), expected, "{context}");
        }
        check("", None);
        check("PL/pgSQL function f() line 3 at RAISE", None);
        check("COPY metric, line 17", Some(17));
        check("COPY metric, line 17, column value", Some(17));
        // A trigger's own lines come first; ours is the last.
        check("PL/pgSQL function f() line 3 at RAISE\nCOPY metric, line 5", Some(5));
        check("COPY other, line 5", None);
        check("COPY metric, Zeile 4", Some(4));
        // The table's own digits are part of its name.
        assert_eq!(bad_line("COPY t12, line 7", "\"s\".\"t12\""), Some(7));
    }

    #[test]
    fn small_transactions_leave_the_server_most_of_its_time() {
        let ms = Duration::from_millis;
        assert_eq!(pace(ms(0), 0), ms(5));
        assert_eq!(pace(ms(1), 6), ms(5));
        assert_eq!(pace(ms(3), 6), ms(12));
        assert_eq!(pace(ms(100), 6), ms(20), "a slow server is no reason to let rows wait for long");
        assert_eq!(pace(ms(1), 65), ms(20));
    }

    #[test]
    fn rows_that_a_trigger_swallowed_are_never_counted() {
        assert!(stored_all(3, 3, "t").is_ok());
        let failure = stored_all(2, 3, "t").expect_err("one row is missing");
        assert_eq!(failure.class, Class::Setup);
    }
}
