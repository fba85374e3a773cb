//! When each row became visible: its own connection reads what is new in the tables every few milliseconds.
//!
//! The tables have no index on `path`, and none may be created, so rows are not looked up: the end of each table is read,
//! by place (a TID range scan), and every new row is read once. What makes that exact:
//!
//! - A row counts as new when its place (block, line) was not seen before.
//! - Rows of transactions that commit late lie before the end. Each read starts where the table ended before the oldest
//!   transaction began that was unfinished at the read before, and only takes rows of such transactions (`age(xmin)`).
//! - Once a second all rows of the last seconds are counted, in the snapshot of a read (see [`crate::watch::sweep`]). Where
//!   that is more than was seen, the next read takes everything, and reads start earlier from then on.
//! - A short row may fill the room that was left on a page seconds ago. Such rows are few; the probe does not see them, and
//!   the verification, which reads everything, counts them.
//!
//! What keeps it from disturbing what it measures: a look first asks for the server's snapshot, which costs a fortieth of a
//! read. As long as that is the same, no transaction has ended and nothing can have become visible. And after a look that
//! took long the probe leaves the server alone for as long.
//!
//! A row became visible between two looks. `visible` is the later one, which errs against the consumer; `visible_lower`
//! is the earlier one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, SimpleQueryMessage};

use crate::base::clock::{Clock, SECOND_NS};
use crate::measure::latency::{Latency, Recording, Set};
use crate::message::account::Bits;
use crate::message::index::Index;
use crate::message::known::{Found, Known};
use crate::message::model::{IDENTITY_MAX, Model, quoted};
use crate::send::replay::Replay;
use crate::server::copy_out::{self, Row};
use crate::server::pg::{Database, Forms, Leaf};
use crate::watch::counters::Counters;
use crate::watch::session::connect;
use crate::watch::sweep::{Job, Sweeper};

pub struct Settings {
    pub clock: Clock,
    pub interval_ns: i64,
    pub warmup_ns: i64,
    pub end_ns: i64,
    pub known: Known,
    pub forms: Forms,
    /// Where rows do not tell themselves which message they are, or when it was due.
    pub replay: Option<Replay>,
    /// The server keeps commit times.
    pub commit_times: bool,
}

/// What is asked of a model's rows: the columns of its identity, filled up to as many as the longest has, the due time, the
/// row's own time.
struct Asked {
    keys: String,
    due: String,
    received: String,
}

pub struct Probe {
    database: Database,
    settings: Settings,
    asked: Vec<Asked>,
    /// Columns of the longest identity.
    keys: usize,
    index: Index,
    client: Client,
    tables: Vec<Table>,
    seen: Vec<Stream>,
    recording: Recording,
    counters: Arc<Counters>,
    next_listing_ns: i64,
    /// The snapshot of the last read, as the server writes it.
    snapshot: String,
    sweeper: Sweeper,
    next_sweep_ns: i64,
    under_way: Option<UnderWay>,
}

/// A sweep that has not answered yet: when its snapshot was taken, and each table's end in it.
struct UnderWay {
    began_ns: i64,
    ends: Vec<u32>,
}

/// What was seen of one stream.
#[derive(Default)]
struct Stream {
    seqs: Bits,
    /// One above the highest sequence number of earlier reads; what comes below it now was overtaken.
    next: u64,
    /// The same, with the present read.
    next_now: u64,
}

/// One plain table and how far it was read.
struct Table {
    leaf: Leaf,
    places: Places,
    /// The highest block in which a row was seen.
    end: u32,
    /// Of earlier reads: the first transaction that had not begun, and the end. The first pair is from before the oldest
    /// transaction that was unfinished at the last read, so whatever is new lies behind that end.
    ends: VecDeque<(u64, u32)>,
    /// Blocks that a read starts before that, because a page may have had room left.
    overlap: u32,
    /// Of the last read; `None` before the first.
    oldest: Option<u64>,
    last_look_ns: i64,
    sweep: Sweep,
}

/// What the counts found.
struct Sweep {
    /// Where each of the last sweeps found the end; the first is where the count starts.
    ends: VecDeque<u32>,
    last_ns: i64,
    missed: bool,
}

const SWEEPS_BACK: usize = 3;
/// Blocks before the oldest end that a sweep also counts: several writers fill several blocks at a time.
const SWEEP_MARGIN: u32 = 256;
const OVERLAP_FIRST: u32 = 2;
/// Some 4,000 rows, a third of a millisecond to step over. What lies farther back is left to the sweeps.
const OVERLAP_MAX: u32 = 64;
/// A transaction that stays open for long would have each read go back to its beginning. From here on that too is left to
/// the sweeps.
const BACK_MAX: u32 = 256;
/// Reads while one transaction stays open.
const ENDS_MAX: usize = 1024;

/// After a look the server is left alone for as long as the look took, up to a limit: on a machine that is short of
/// CPU the probe takes the less the shorter it is.
const PAUSE_MAX_NS: i64 = SECOND_NS / 20;

/// So many failures in a row are not a server that restarts; a table may be gone.
const FAILURES_MAX: u32 = 10;
const RECONNECT_WITHIN_NS: i64 = 60 * SECOND_NS;

impl Probe {
    /// Connects and steps over the rows that are there already.
    pub fn new(
        database: &Database,
        settings: Settings,
        leaves: Vec<Leaf>,
        recording: Recording,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let client = connect(database, &counters.backend)?;
        let seen = settings.known.streams.iter().map(|_| Stream::default()).collect();
        let of_table = |at: usize| settings.known.models[at].table.as_ref().map_or(0, |t| t.identity.len());
        let keys = (0..settings.known.models.len()).map(of_table).max().unwrap_or(0).max(1);
        let sweeper = Sweeper::start(database, &counters)?;
        let mut probe = Self {
            database: database.clone(),
            asked: asked(&settings, keys),
            keys,
            index: Index::default(),
            settings,
            client,
            tables: Vec::new(),
            seen,
            recording,
            counters,
            next_listing_ns: 0,
            snapshot: String::new(),
            sweeper,
            next_sweep_ns: 0,
            under_way: None,
        };
        for leaf in leaves {
            let table = probe.step_over(leaf)?;
            probe.tables.push(table);
        }
        Ok(probe)
    }

    /// A table from its present end on. The rows at the end are marked as seen, not counted.
    fn step_over(&mut self, leaf: Leaf) -> Result<Table> {
        let size: i64 = self
            .client
            .query_one("SELECT pg_relation_size($1::oid) / current_setting('block_size')::int", &[&leaf.oid])
            .with_context(|| format!("look up the size of {}", leaf.name))?
            .get(0);
        let end = (size as u32).saturating_sub(1);
        let first = end.saturating_sub(SWEEP_MARGIN);
        let mut table = Table::new(leaf, end, first);
        let mut read = table.begin_read(self.settings.clock.now_ns());
        read.first = first;
        let asked = &self.asked[table.leaf.model];
        let query = table.query(0, &read, asked, self.keys, self.settings.commit_times);
        let query = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
        let mut stream = self.client.copy_out(&query).with_context(|| format!("read {}", table.leaf.name))?;
        copy_out::read(&mut stream, |row| table.take(&mut read, &row).map(|_| ()))?;
        table.finish_read(&read)?;
        Ok(table)
    }

    /// Looks until told to stop, then once more.
    pub fn run(mut self, stop: &AtomicBool) -> Result<Box<Set>> {
        let mut next_ns = self.settings.clock.now_ns();
        let mut failures = 0;
        loop {
            let stopping = stop.load(Relaxed);
            let began_ns = self.settings.clock.now_ns();
            match self.look(began_ns) {
                Ok(()) => failures = 0,
                Err(error) if failures >= FAILURES_MAX => return Err(error),
                Err(error) => {
                    failures += 1;
                    self.reconnect(error, stop)?;
                }
            }
            let now_ns = self.settings.clock.now_ns();
            self.counters.busy_ns.fetch_add((now_ns - began_ns) as u64, Relaxed);
            self.recording.hand_over_if_due(now_ns);
            if stopping {
                return Ok(self.recording.set);
            }
            let pause_ns = (now_ns - began_ns).min(PAUSE_MAX_NS);
            next_ns = (next_ns + self.settings.interval_ns).max(now_ns + pause_ns);
            self.settings.clock.sleep_until(next_ns);
        }
    }

    /// A server that restarts during a run is part of many tests. What was seen stays known, so reading goes on where it
    /// ended.
    fn reconnect(&mut self, error: anyhow::Error, stop: &AtomicBool) -> Result<()> {
        log::warn!("the probe lost PostgreSQL ({error:#}); trying again");
        self.counters.reconnects.fetch_add(1, Relaxed);
        let limit_ns = self.settings.clock.now_ns() + RECONNECT_WITHIN_NS;
        loop {
            match connect(&self.database, &self.counters.backend) {
                Ok(client) => {
                    self.client = client;
                    return Ok(());
                }
                Err(_) if self.settings.clock.now_ns() < limit_ns && !stop.load(Relaxed) => {
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                Err(_) => return Err(error.context("the probe could not get back to PostgreSQL")),
            }
        }
    }

    fn look(&mut self, began_ns: i64) -> Result<()> {
        self.list_new_tables(began_ns)?;
        for table in &self.tables {
            let steady = self.settings.warmup_ns..self.settings.end_ns;
            if steady.contains(&began_ns) && table.last_look_ns > 0 {
                let gap_us = ((began_ns - table.last_look_ns) / 1000) as u64;
                self.counters.longest_gap_us.fetch_max(gap_us, Relaxed);
            }
        }
        self.counters.looks.fetch_add(1, Relaxed);
        self.finish_sweep();
        if self.under_way.is_none() && began_ns >= self.next_sweep_ns {
            return self.read_and_sweep(began_ns);
        }
        let ended = self.transactions_ended()?;
        if ended || self.tables.iter().any(Table::must_read) {
            return self.read_all(began_ns);
        }
        self.tables.iter_mut().for_each(|table| table.last_look_ns = began_ns);
        Ok(())
    }

    /// Whether any has since the last read; if not, the same rows are visible as then.
    fn transactions_ended(&mut self) -> Result<bool> {
        let messages =
            self.client.simple_query("SELECT pg_current_snapshot()").context("look for changes")?;
        let snapshot = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(snapshot.context("the server told no snapshot")? != self.snapshot)
    }

    /// A read whose rows are then counted by the sweeper.
    fn read_and_sweep(&mut self, began_ns: i64) -> Result<()> {
        self.next_sweep_ns = began_ns + SECOND_NS;
        self.client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .context("begin a read that is counted")?;
        self.read_all(began_ns)?;
        let snapshot = self.client.query_typed("SELECT pg_export_snapshot()", &[]);
        let snapshot = snapshot.context("export the read's snapshot")?[0].get(0);
        let to_count = |table: &Table| {
            let first = table.sweep.start();
            (table.leaf.name.clone(), first, table.places.count_from(first))
        };
        let job = Job { snapshot, tables: self.tables.iter().map(to_count).collect() };
        if self.sweeper.begin(job) {
            let ends = self.tables.iter().map(|table| table.end).collect();
            self.under_way = Some(UnderWay { began_ns, ends });
        }
        self.client.batch_execute("COMMIT").context("end a read that is counted")
    }

    /// Takes the answer of the sweep under way, if it is there.
    fn finish_sweep(&mut self) {
        let Some(missed) = self.under_way.as_ref().and_then(|_| self.sweeper.missed()) else { return };
        let UnderWay { began_ns, ends } = self.under_way.take().expect("one is under way");
        for ((table, missed), end) in self.tables.iter_mut().zip(missed).zip(ends) {
            table.finish_sweep(began_ns, end, missed);
        }
    }

    /// One statement for all tables: most of what a read costs is the round trip and the planning.
    fn read_all(&mut self, began_ns: i64) -> Result<()> {
        if let Some(replay) = &mut self.settings.replay {
            // A second ahead: what falls due before the server takes its snapshot may be in it.
            replay.fill(&mut self.index, self.settings.clock.now_ns() + SECOND_NS);
        }
        let Self { settings, asked, keys, index, client, tables, seen, counters, recording, .. } = self;
        if tables.is_empty() {
            return Ok(());
        }
        let mut reads: Vec<Read> = tables.iter_mut().map(|table| table.begin_read(began_ns)).collect();
        let parts = tables.iter().zip(&reads).enumerate();
        let parts: Vec<String> = parts
            .map(|(n, (table, read))| {
                table.query(n, read, &asked[table.leaf.model], *keys, settings.commit_times)
            })
            .collect();
        let query = format!("COPY ({}) TO STDOUT (FORMAT binary)", parts.join(" UNION ALL "));
        let mut answered_ns = None;
        let mut stream = client.copy_out(&query).context("read the tables")?;
        copy_out::read(&mut stream, |row| {
            // The snapshot is older than its first answer: what is in it was visible by then.
            let answered_ns = *answered_ns.get_or_insert_with(|| settings.clock.now_ns());
            let number = row.int8(0).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < tables.len());
            let number = number.context("the server sent a row of no table")?;
            let (table, read) = (&mut tables[number], &mut reads[number]);
            if !table.take(read, &row)? {
                return Ok(());
            }
            let (lower_ns, found_late) = (read.lower_ns, read.again);
            let keys = *keys;
            let mut sight =
                Sight { settings, index, keys, seen, counters, recording, answered_ns, lower_ns, found_late };
            sight.row(table.leaf.model, &row);
            Ok(())
        })
        .context("read the tables")?;
        for (table, read) in tables.iter_mut().zip(reads) {
            counters.rows.fetch_add(read.rows, Relaxed);
            counters.found_late.fetch_add(if read.again { read.rows } else { 0 }, Relaxed);
            table.finish_read(&read)?;
            self.snapshot = read.snapshot;
        }
        for stream in seen {
            stream.next = stream.next_now;
        }
        counters.reads.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Partitions and chunks come to life during a run.
    fn list_new_tables(&mut self, now_ns: i64) -> Result<()> {
        if now_ns < self.next_listing_ns {
            return Ok(());
        }
        self.next_listing_ns = now_ns + SECOND_NS;
        for leaf in crate::server::pg::list_leaves(&mut self.client, &self.settings.known.models)? {
            if !self.tables.iter().any(|t| t.leaf.oid == leaf.oid) {
                // It was not there a second ago: all its rows are new.
                self.tables.push(Table::new(leaf, 0, 0));
            }
        }
        Ok(())
    }
}

/// Of each model.
fn asked(settings: &Settings, width: usize) -> Vec<Asked> {
    let nothing = || "NULL::timestamptz".to_owned();
    let of_model = |(at, model): (usize, &Arc<Model>)| {
        let Some(table) = &model.table else {
            return Asked { keys: String::new(), due: nothing(), received: nothing() };
        };
        let form = |column: usize| settings.forms[at][column];
        let mut keys: Vec<String> =
            table.identity.iter().map(|column| form(*column).key_sql(&table.columns[*column].name)).collect();
        keys.resize(width, "NULL::text".to_owned());
        Asked {
            keys: keys.join(", "),
            due: table.due.map_or_else(nothing, |column| form(column).sql(&table.columns[column].name)),
            received: table
                .received
                .as_ref()
                .map_or_else(nothing, |name| format!("{}::timestamptz", quoted(name))),
        }
    };
    settings.known.models.iter().enumerate().map(of_model).collect()
}

/// One read of one table.
struct Read {
    began_ns: i64,
    /// Where it starts, and from which transaction on; `None` takes all.
    first: u32,
    oldest: Option<u64>,
    /// Which transactions it sees, as the server writes it: "oldest unfinished:first not begun:unfinished,...".
    snapshot: String,
    /// Takes everything, because the last count found more than was seen.
    again: bool,
    /// When the table was last looked at: what is new was not visible then.
    lower_ns: i64,
    rows: u64,
    lowest_new: u32,
}

impl Table {
    fn new(leaf: Leaf, end: u32, first: u32) -> Self {
        Self {
            leaf,
            places: Places::from(first),
            end,
            ends: VecDeque::from([(0, end)]),
            overlap: OVERLAP_FIRST,
            oldest: None,
            last_look_ns: 0,
            sweep: Sweep { ends: VecDeque::from([end]), last_ns: 0, missed: false },
        }
    }

    /// Whether a look reads even where no transaction has ended.
    fn must_read(&self) -> bool {
        self.sweep.missed || self.oldest.is_none()
    }

    fn start(&self) -> u32 {
        let begun = self.ends.front().map_or(0, |(_, end)| *end).saturating_sub(self.overlap);
        begun.max(self.end.saturating_sub(BACK_MAX))
    }

    fn begin_read(&mut self, began_ns: i64) -> Read {
        let again = std::mem::take(&mut self.sweep.missed);
        Read {
            began_ns,
            first: if again { self.sweep.start() } else { self.start() },
            oldest: self.oldest.filter(|_| !again),
            snapshot: String::new(),
            again,
            lower_ns: if again { self.sweep.last_ns } else { self.last_look_ns },
            rows: 0,
            lowest_new: u32::MAX,
        }
    }

    /// The first row tells of the snapshot. Every row begins with the table's number.
    fn query(&self, number: usize, read: &Read, asked: &Asked, keys: usize, commit_times: bool) -> String {
        let (name, first) = (&self.leaf.name, read.first);
        let recent =
            read.oldest.map_or(String::new(), |xid| format!(" AND age(xmin) <= age('{}'::xid)", xid as u32));
        let commit = if commit_times { "pg_xact_commit_timestamp(xmin)" } else { "NULL::timestamptz" };
        let (no_keys, Asked { keys, due, received }) = (", NULL::text".repeat(keys - 1), asked);
        format!(
            "SELECT {number}::int8, NULL::tid, pg_current_snapshot()::text{no_keys}, \
             NULL::timestamptz, NULL::timestamptz, NULL::timestamptz UNION ALL SELECT {number}::int8, ctid, {keys}, \
             {due}, {received}, {commit} FROM ONLY {name} WHERE ctid >= '({first},0)'{recent}"
        )
    }

    /// Whether the row is a new one.
    fn take(&mut self, read: &mut Read, row: &Row<'_>) -> Result<bool> {
        let Some((block, line)) = row.tid(1) else {
            let snapshot = row.bytes(2).and_then(|text| std::str::from_utf8(text).ok());
            snapshot.unwrap_or_default().clone_into(&mut read.snapshot);
            return Ok(false);
        };
        if !self.places.insert(block, line)? {
            return Ok(false);
        }
        read.rows += 1;
        self.end = self.end.max(block);
        read.lowest_new = read.lowest_new.min(block);
        Ok(true)
    }

    fn finish_read(&mut self, read: &Read) -> Result<()> {
        let (oldest, next) = transactions(&read.snapshot)?;
        self.oldest = Some(oldest);
        self.ends.push_back((next, self.end));
        while self.ends.get(1).is_some_and(|(begun_from, _)| *begun_from <= oldest) {
            self.ends.pop_front();
        }
        // Where one transaction stays open, what matters is the pair from before it; the youngest few go.
        self.ends.truncate(ENDS_MAX);
        if read.again && read.rows > 0 {
            let overlap = self.end.saturating_sub(read.lowest_new) + OVERLAP_FIRST;
            self.overlap = overlap.clamp(self.overlap, OVERLAP_MAX);
        }
        self.last_look_ns = read.began_ns;
        Ok(())
    }

    fn finish_sweep(&mut self, began_ns: i64, end: u32, missed: bool) {
        self.sweep.missed = missed;
        if missed {
            return;
        }
        self.sweep.last_ns = began_ns;
        self.sweep.ends.push_back(end);
        if self.sweep.ends.len() > SWEEPS_BACK {
            self.sweep.ends.pop_front();
        }
        self.places.forget_before(self.sweep.start().min(self.start()));
    }
}

impl Sweep {
    fn start(&self) -> u32 {
        self.ends.front().map_or(0, |end| end.saturating_sub(SWEEP_MARGIN))
    }
}

/// The oldest unfinished transaction of a snapshot, and the first that had not begun.
fn transactions(snapshot: &str) -> Result<(u64, u64)> {
    let mut parts = snapshot.split(':').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(oldest)), Some(Ok(next))) => Ok((oldest, next)),
        _ => bail!("the server's snapshot \"{snapshot}\" cannot be read"),
    }
}

/// What a new row means.
struct Sight<'a> {
    settings: &'a Settings,
    index: &'a Index,
    keys: usize,
    seen: &'a mut [Stream],
    counters: &'a Counters,
    recording: &'a mut Recording,
    answered_ns: i64,
    lower_ns: i64,
    found_late: bool,
}

impl Sight<'_> {
    fn row(&mut self, model: usize, row: &Row<'_>) {
        let (number, seq) = match self.find(model, row) {
            // A number beyond any run's would make the set of seen ones as large.
            Found::Message(stream, seq) if seq < 1 << 36 => (stream, seq),
            Found::Foreign => return self.counters.foreign.add(model),
            // What is damaged is left to the verification, which calls it corrupted.
            Found::Message(..) | Found::Damaged(..) | Found::Elsewhere => return,
        };
        let stream = &mut self.seen[number];
        if stream.seqs.get(seq) == 1 {
            self.counters.duplicated.fetch_add(1, Relaxed);
            return;
        }
        stream.seqs.set(seq, 1);
        // What the probe itself overlooked for a second says nothing about the order of commits; and of messages that took
        // several connections nobody has promised an order.
        let ordered = self.settings.known.models[model].http.is_none();
        if seq < stream.next && !self.found_late && ordered {
            self.counters.reordered.add(model);
            self.counters.note_overtaken(number as u16, seq);
        }
        stream.next_now = stream.next_now.max(seq + 1);
        self.counters.stored.add(model);
        self.latencies(model, number, seq, row);
    }

    fn find(&self, model: usize, row: &Row<'_>) -> Found {
        let columns = self.settings.known.models[model].table.as_ref().map_or(0, |t| t.identity.len());
        let mut keys = [None; IDENTITY_MAX];
        (0..columns).for_each(|at| keys[at] = row.bytes(2 + at));
        self.settings.known.find(model, &keys[..columns], self.index)
    }

    fn latencies(&mut self, model: usize, stream: usize, seq: u64, row: &Row<'_>) {
        let due = 2 + self.keys;
        let known = &self.settings.known;
        let told = row.timestamp_us(due);
        let Some(time_us) = told.or_else(|| self.index.due_us(known.first + stream as u16, seq)) else {
            return;
        };
        let due_us = self.settings.clock.since_start_us(time_us);
        if due_us < self.settings.warmup_ns / 1000 {
            return;
        }
        let set = &mut self.recording.set;
        set.of(model, Latency::Visible).record(self.answered_ns / 1000 - due_us);
        set.of(model, Latency::VisibleLower).record((self.lower_ns / 1000 - due_us).max(0));
        if let Some(timestamp_us) = row.timestamp_us(due + 1) {
            set.of(model, Latency::Row).record(timestamp_us - time_us);
            self.counters.row_is_event_time.fetch_add(u64::from(timestamp_us == time_us), Relaxed);
        }
        if let Some(commit_us) = row.timestamp_us(due + 2) {
            set.of(model, Latency::Commit).record(commit_us - time_us);
        }
    }
}

/// The places (block, line) that were seen, from a first block on.
struct Places {
    first: u32,
    blocks: VecDeque<[u64; LINES / 64]>,
}

/// A block of 8 kB holds at most 291 rows.
const LINES: usize = 320;

impl Places {
    fn from(first: u32) -> Self {
        Self { first, blocks: VecDeque::new() }
    }

    /// Whether the place is new. Places before the first block were seen long ago.
    fn insert(&mut self, block: u32, line: u16) -> Result<bool> {
        ensure!(
            usize::from(line) < LINES,
            "a block holds more than {LINES} rows: the probe reads servers with the usual block size of 8 kB only"
        );
        let Some(index) = block.checked_sub(self.first) else { return Ok(false) };
        let index = index as usize;
        if index >= self.blocks.len() {
            self.blocks.resize(index + 1, [0; LINES / 64]);
        }
        let word = &mut self.blocks[index][usize::from(line) / 64];
        let bit = 1 << (line % 64);
        let new = *word & bit == 0;
        *word |= bit;
        Ok(new)
    }

    fn count_from(&self, block: u32) -> u64 {
        let skipped = block.saturating_sub(self.first) as usize;
        self.blocks.iter().skip(skipped).flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    fn forget_before(&mut self, block: u32) {
        let count = (block.saturating_sub(self.first) as usize).min(self.blocks.len());
        self.blocks.drain(..count);
        self.first += count as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_new_once() {
        let mut places = Places::from(10);
        assert!(!places.insert(9, 1).unwrap(), "before the first block");
        assert!(places.insert(10, 1).unwrap());
        assert!(!places.insert(10, 1).unwrap());
        assert!(places.insert(12, 291).unwrap());
        assert!(places.insert(1, 400).is_err());
        assert_eq!((places.count_from(0), places.count_from(11), places.count_from(13)), (2, 1, 0));
        places.forget_before(12);
        assert!(!places.insert(10, 1).unwrap(), "forgotten places are old");
        assert!(!places.insert(12, 291).unwrap());
        assert_eq!(places.count_from(12), 1);
        places.forget_before(100);
        assert!(places.insert(100, 1).unwrap());
    }
}
