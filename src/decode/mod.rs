//! decode-N: raw batches in, rows for each table out.
//!
//! Place in the flow: second. It parses each record once ([`record`]), looks tokens up ([`lookup`]), and sets
//! aside what is no row. It never waits for a writer: a batch that finds no room is filled further, and the byte budget
//! bounds how far. Nor does a topic wait for another one's tokens: a batch whose tokens are not known yet is put off, and what comes
//! of its topic behind it.

pub mod record;
pub mod trial;
pub mod fields;
pub mod column;
pub mod stream;
pub mod scan;
pub mod value;
pub mod reject;
pub mod lookup;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, Select, Sender, TrySendError};

use crate::base::budget::Budget;
use crate::base::mutant::{Bug, planted};
use crate::decode::column::Encoded;
use crate::decode::lookup::{LookupCache, Tried, Wanted};
use crate::decode::record::{Limits, List, Message, Parsed, RecordDecoder};
use crate::decode::reject::{Reason, Reject, TABLE};
use crate::figures::instruments::{Wait, Waits};
use crate::model::Tombstones;
use crate::model::editions::{Edition, Editions};
use crate::model::plan::Plan;
use crate::promise::batch::{DeadLetter, RawBatch, Record, Row, Run, Segment, Shape, TableBatch};
use crate::promise::claim::{Claim, Ownership};
use crate::promise::span::{Counts, Span};
use crate::promise::topics::Topic;

/// What a decoder needs.
pub struct Decoder {
    pub editions: Arc<Editions>,
    pub topics: Arc<[Topic]>,
    pub ownership: Arc<Ownership>,
    pub limits: Limits,
    pub budget: Arc<Budget>,
    pub inlet: Receiver<RawBatch>,
    /// For each table, one for each of its writers.
    pub outlets: Vec<Vec<Sender<TableBatch>>>,
    pub waits: Arc<Waits>,
}

/// The loop's own state.
struct State {
    decoder: BatchDecoder,
    /// For each topic: batches that wait for a token, in their order, and when it is asked for again.
    delayed: Vec<Delayed>,
    /// One for each writer of each table.
    outlets: Vec<Outlet>,
    /// In the same order.
    senders: Vec<Sender<TableBatch>>,
}

/// Batches of one topic that wait for a token. Others go on meanwhile: whoever writes to a topic may send tokens that nobody knows as
/// long as they like.
#[derive(Default)]
struct Delayed {
    works: VecDeque<Work>,
    again_at: Option<Instant>,
}

impl Decoder {
    /// Runs until the pollers are gone and everything is passed on.
    pub fn run(self, lookups: LookupCache) -> Result<()> {
        let mut state = self.state(lookups);
        loop {
            match self.waits.during(state.waits_for(), || state.next_event(&self.inlet)) {
                Event::Batch(batch) => {
                    let topic = batch.topic;
                    state.delayed[topic].works.push_back(Work::new(Arc::new(batch)));
                    if state.delayed[topic].again_at.is_none() {
                        state.go_on(topic);
                    }
                }
                Event::Due(topic) => state.go_on(topic),
                Event::Sent => {}
                Event::End => {
                    self.finish(&mut state);
                    return Ok(());
                }
            }
        }
    }

    /// The pollers are gone. What waits for a token goes on waiting, unless everything ends.
    fn finish(&self, state: &mut State) {
        while let Some((topic, at)) = state.next_due()
            && !self.ownership.is_closing()
        {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            state.go_on(topic);
        }
        state.send_rest();
    }

    fn state(&self, lookups: LookupCache) -> State {
        let decoder =
            BatchDecoder::new(self.editions.clone(), &self.topics, self.limits, lookups, self.budget.clone());
        let outlets = self.outlets.iter().enumerate().flat_map(|(table, writers)| {
            (0..writers.len()).map(move |number| Outlet::new(table, number, writers.len()))
        });
        let delayed = self.topics.iter().map(|_| Delayed::default()).collect();
        State { decoder, delayed, outlets: outlets.collect(), senders: self.outlets.concat() }
    }
}

enum Event {
    Batch(RawBatch),
    /// An open batch found room.
    Sent,
    /// A token of this topic is to be asked for again.
    Due(usize),
    /// The pollers are gone.
    End,
}

impl State {
    /// An open batch means that a writer has no room for it.
    fn waits_for(&self) -> Wait {
        if self.outlets.iter().any(Outlet::is_open) {
            Wait::Output
        } else if self.next_due().is_some() {
            Wait::Lookup
        } else {
            Wait::Input
        }
    }

    /// The topic whose token is to be asked for next, and when.
    fn next_due(&self) -> Option<(usize, Instant)> {
        let due = self.delayed.iter().enumerate().filter_map(|(topic, d)| Some((topic, d.again_at?)));
        due.min_by_key(|(_, at)| *at)
    }

    /// Decodes what there is of a topic, up to a token that is not known yet.
    fn go_on(&mut self, topic: usize) {
        let delayed = &mut self.delayed[topic];
        delayed.again_at = None;
        while let Some(work) = delayed.works.front_mut() {
            if let Progress::Later(pause) = self.decoder.go_on(work, &mut self.outlets) {
                delayed.again_at = Some(Instant::now() + pause);
                break;
            }
            delayed.works.pop_front();
        }
        self.try_send();
    }

    /// Waits in one place: for the next raw batch, for room at a writer that an open batch is for, or for the time at which a token
    /// is asked for again.
    fn next_event(&mut self, inlet: &Receiver<RawBatch>) -> Event {
        let mut select = Select::new();
        let inlet_index = select.recv(inlet);
        let waiting: Vec<usize> =
            (0..self.outlets.len()).filter(|index| self.outlets[*index].is_open()).collect();
        for index in &waiting {
            select.send(&self.senders[*index]);
        }
        let operation = match self.next_due() {
            None => select.select(),
            Some((topic, at)) => match select.select_deadline(at) {
                Ok(operation) => operation,
                Err(_) => return Event::Due(topic),
            },
        };
        if operation.index() == inlet_index {
            return operation.recv(inlet).map_or(Event::End, Event::Batch);
        }
        let index = waiting[operation.index() - inlet_index - 1];
        let batch = self.outlets[index].take().expect("only outlets with an open batch wait");
        drop(operation.send(&self.senders[index], batch));
        Event::Sent
    }

    fn try_send(&mut self) {
        self.outlets.iter_mut().zip(&self.senders).for_each(|(outlet, sender)| outlet.try_send(sender));
    }

    fn send_rest(&mut self) {
        for (outlet, sender) in self.outlets.iter_mut().zip(&self.senders) {
            while let Some(batch) = outlet.take() {
                // A writer that is gone takes the process down by itself.
                drop(sender.send(batch));
            }
        }
    }
}

/// One writer, and the batches that are being filled for it: one, or one for each edition of the plan while it has no room.
pub struct Outlet {
    table: usize,
    /// Among the table's writers.
    number: usize,
    writers: usize,
    /// The oldest first; only the last is filled.
    open: VecDeque<TableBatch>,
}

impl Outlet {
    /// The way to writer `number` of a table's `writers`.
    pub fn new(table: usize, number: usize, writers: usize) -> Outlet {
        Outlet { table, number, writers, open: VecDeque::new() }
    }

    /// What was decoded for this writer since the last time; to be asked until there is none.
    pub fn take(&mut self) -> Option<TableBatch> {
        self.open.pop_front()
    }

    fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    fn try_send(&mut self, sender: &Sender<TableBatch>) {
        while let Some(batch) = self.open.pop_front() {
            if let Err(TrySendError::Full(batch)) = sender.try_send(batch) {
                self.open.push_front(batch);
                return;
            }
        }
    }

    /// Takes back what came after a lane was opened.
    fn take_back(&mut self, lane: &OpenLane) {
        let open = self.batch();
        open.bytes.truncate(lane.first_byte);
        open.rows.truncate(lane.first_row);
        open.dead.truncate(lane.first_dead);
        if open.segments.is_empty() && open.is_positions_only() {
            self.open.pop_back();
        }
    }

    /// Rows of one edition are never put to those of another.
    fn turn_to(&mut self, edition: u64) {
        if self.open.back().is_none_or(|batch| batch.edition != edition) {
            self.open.push_back(TableBatch::new(self.table, edition));
        }
    }

    /// The batch that is filled, once it was turned to an edition.
    fn batch(&mut self) -> &mut TableBatch {
        self.open.back_mut().expect("a lane has turned to its edition")
    }
}

/// The step: records to rows.
pub struct BatchDecoder {
    editions: Arc<Editions>,
    edition: Edition,
    limits: Limits,
    /// For each topic, its decoder and the tables it feeds: `lanes[i]` is the table of the claim's lane `i`.
    topics: Vec<(RecordDecoder, Vec<usize>)>,
    lookups: LookupCache,
    budget: Arc<Budget>,
    /// The models of the record in work; kept so that it is not allocated for each.
    models: Vec<usize>,
}

/// A batch, and how far its decoding is.
pub struct Work {
    batch: Arc<RawBatch>,
    /// The first that is not decoded.
    run: usize,
    /// Tokens that must be known before it can be.
    wanted: Vec<Wanted>,
    received_ms: i64,
}

impl Work {
    pub fn new(batch: Arc<RawBatch>) -> Work {
        Work { batch, run: 0, wanted: Vec::new(), received_ms: jiff::Timestamp::now().as_millisecond() }
    }
}

/// How a batch went on.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// A token is not known yet; to be tried again after this.
    Later(Duration),
}

/// What one run becomes in one table, while it is decoded.
struct OpenLane {
    outlet: usize,
    table: usize,
    /// Records below are not for this table any more.
    from: i64,
    first_row: usize,
    first_byte: usize,
    first_dead: usize,
    /// Records that became rows.
    stored: i64,
    skipped: Vec<u32>,
    seen: i64,
}

/// What a list of messages is for the lanes.
enum ListOutcome {
    /// A token must be looked up first.
    NeedsLookup,
    /// For the home table, and no rows anywhere.
    Refused(Reject),
    Empty,
    /// In each lane, why it takes none of it; or its rows are written, if there are any. And where some were too old to be.
    Read {
        refused: Vec<Option<Reject>>,
        expired: Vec<bool>,
    },
}

/// Where a lane's batch ended before a list was written to it.
#[derive(Clone, Copy)]
struct Mark {
    bytes: usize,
    rows: usize,
}

impl BatchDecoder {
    pub fn new(
        editions: Arc<Editions>,
        topics: &[Topic],
        limits: Limits,
        lookups: LookupCache,
        budget: Arc<Budget>,
    ) -> BatchDecoder {
        let edition = editions.newest();
        let limits = Limits { tokens_max: lookups.tokens_max(), ..limits };
        let decoder = |(index, topic): (usize, &Topic)| {
            (RecordDecoder::new(edition.plan.clone(), index, limits), topic.tables.clone())
        };
        let topics = topics.iter().enumerate().map(decoder).collect();
        BatchDecoder { editions, edition, limits, topics, lookups, budget, models: Vec::new() }
    }

    /// From now on rows are encoded for the newest edition.
    fn renew(&mut self) {
        self.edition = self.editions.newest();
        for (index, (decoder, _)) in self.topics.iter_mut().enumerate() {
            *decoder = RecordDecoder::new(self.edition.plan.clone(), index, self.limits);
        }
    }

    /// Decodes a whole batch into the open batches. False if `keep_going` ended a wait for Redis.
    pub fn decode(
        &mut self,
        batch: &Arc<RawBatch>,
        outlets: &mut [Outlet],
        mut keep_going: impl FnMut() -> bool,
    ) -> bool {
        let mut work = Work::new(batch.clone());
        while let Progress::Later(pause) = self.go_on(&mut work, outlets) {
            if !keep_going() {
                return false;
            }
            std::thread::sleep(pause);
        }
        true
    }

    /// Decodes the rest of a batch into the open batches, as far as its tokens are known.
    pub fn go_on(&mut self, work: &mut Work, outlets: &mut [Outlet]) -> Progress {
        if self.edition.number != self.editions.number() {
            self.renew();
        }
        self.lookups.begin_batch();
        if let Tried::Again(pause) = self.lookups.try_look_up(&work.wanted) {
            return Progress::Later(pause);
        }
        work.wanted.clear();
        let batch = work.batch.clone();
        self.topics[batch.topic].0.set_now(work.received_ms * 1000);
        while let Some(run) = batch.runs.get(work.run) {
            if run.claim.may_write()
                && let Progress::Later(pause) = self.decode_run(work, run, outlets)
            {
                return Progress::Later(pause);
            }
            work.run += 1;
        }
        Progress::Done
    }

    /// One run, whole or not at all.
    fn decode_run(&mut self, work: &mut Work, run: &Run, outlets: &mut [Outlet]) -> Progress {
        let batch = &work.batch.clone();
        let tables = self.topics[batch.topic].1.clone();
        let share = (batch.arena_bytes() / tables.len(), batch.len() / tables.len());
        let mut lanes: Vec<OpenLane> = tables
            .iter()
            .zip(&run.claim.lanes)
            .map(|(table, lane)| {
                open_lane(outlets, *table, self.edition.number, &run.claim, lane.first, share)
            })
            .collect();
        for index in run.records.clone() {
            while !self.decode_record(batch, &run.claim, index, &mut lanes, outlets) {
                let wanted = self.wanted(work, index);
                if let Tried::Again(pause) = self.lookups.try_look_up(&wanted) {
                    lanes.iter().for_each(|lane| outlets[lane.outlet].take_back(lane));
                    work.wanted = wanted;
                    return Progress::Later(pause);
                }
            }
        }
        for (number, lane) in lanes.into_iter().enumerate() {
            close_lane(batch, run, number, lane, &self.budget, outlets);
        }
        Progress::Done
    }

    /// False if a token must be looked up first; nothing was written then.
    fn decode_record(
        &mut self,
        batch: &RawBatch,
        claim: &Claim,
        index: usize,
        lanes: &mut [OpenLane],
        outlets: &mut [Outlet],
    ) -> bool {
        let record = batch.record(claim, index);
        let (decoder, _) = &mut self.topics[batch.topic];
        let parsed = decoder.parse(&record);
        self.models.clear();
        self.models.extend(decoder.models());
        // A token may be missing for the second table: nothing may be written for the first one before that is known.
        if let Ok(Parsed::Message(message)) = parsed
            && self.models.len() > 1
            && !all_cached(decoder, message, &self.lookups)
        {
            return false;
        }
        let offset = record.offset;
        match parsed {
            Ok(Parsed::Message(message)) if self.models.is_empty() => {
                let reject = decoder.unroutable(message);
                set_aside(&mut lanes[0], offset, index, reject, outlets);
            }
            Ok(Parsed::Message(message)) => {
                for model in &self.models {
                    let table = self.edition.plan.models[*model].table;
                    let lane = lanes
                        .iter_mut()
                        .find(|l| l.table == table)
                        .expect("a topic has a lane for each table");
                    if offset < lane.from {
                        continue;
                    }
                    let open = outlets[lane.outlet].batch();
                    match decoder.encode(*model, message, &self.lookups, &mut open.bytes) {
                        Ok(Encoded::Row(shape)) => {
                            push_row(open, index, None, shape);
                            lane.stored += 1;
                        }
                        Ok(Encoded::Deletion) => {
                            push_deletion(open, index, None);
                            lane.stored += 1;
                        }
                        Ok(Encoded::Expired) => lane.skipped.push(index as u32),
                        Ok(Encoded::NeedsLookup) => return false,
                        Err(reject) => set_aside(lane, offset, index, reject, outlets),
                    }
                }
            }
            Ok(Parsed::List(list)) => {
                if !self.decode_list(batch.topic, offset, index, list, lanes, outlets) {
                    return false;
                }
            }
            Ok(Parsed::Tombstone) if planted(Bug::TombstonesUncounted) => return true,
            Ok(Parsed::Tombstone) => self.tombstone(batch.topic, &record, index, lanes, outlets),
            // Nobody can say whose it is: the home table sets it aside, once.
            Err(reject) => set_aside(&mut lanes[0], offset, index, reject, outlets),
        }
        lanes.iter_mut().filter(|l| offset >= l.from).for_each(|l| l.seen += 1);
        true
    }

    /// A record without a value: in each lane it deletes the row of its key, or is passed over.
    fn tombstone(
        &mut self,
        topic: usize,
        record: &Record<'_>,
        index: usize,
        lanes: &mut [OpenLane],
        outlets: &mut [Outlet],
    ) {
        let (decoder, _) = &mut self.topics[topic];
        let plan = &self.edition.plan;
        for lane in lanes.iter_mut().filter(|lane| record.offset >= lane.from) {
            // Models of one table have one key, so it does not matter whose it is.
            let deletes = |model: &&usize| {
                let model = &plan.models[**model];
                model.table == lane.table && model.tombstones == Tombstones::Delete
            };
            let Some(model) = plan.topics[topic].models.iter().find(deletes) else {
                lane.skipped.push(index as u32);
                continue;
            };
            let open = outlets[lane.outlet].batch();
            match decoder.encode_tombstone(*model, record, &mut open.bytes) {
                Ok(Encoded::Expired) => lane.skipped.push(index as u32),
                Ok(_) => {
                    push_deletion(open, index, None);
                    lane.stored += 1;
                }
                Err(reject) => set_aside(lane, record.offset, index, reject, outlets),
            }
        }
    }

    /// All messages of one record; in each lane its rows, or one letter. False as in `decode_record`.
    fn decode_list(
        &mut self,
        topic: usize,
        offset: i64,
        index: usize,
        list: List<'_>,
        lanes: &mut [OpenLane],
        outlets: &mut [Outlet],
    ) -> bool {
        let marks: Vec<Mark> = lanes.iter().map(|lane| Mark::of(outlets[lane.outlet].batch())).collect();
        let outcome = self.encode_list(topic, offset, index, list, lanes, outlets);
        let refused = match &outcome {
            ListOutcome::Read { refused, .. } => refused.iter().map(Option::is_some).collect(),
            _ => vec![true; lanes.len()],
        };
        let mut is_bare = Vec::new();
        for ((lane, mark), refused) in lanes.iter_mut().zip(marks).zip(refused) {
            let open = outlets[lane.outlet].batch();
            if refused {
                mark.restore(open);
            }
            is_bare.push(open.rows.len() == mark.rows);
            lane.stored += i64::from(open.rows.len() > mark.rows);
        }
        match outcome {
            ListOutcome::NeedsLookup => return false,
            ListOutcome::Refused(reject) => set_aside(&mut lanes[0], offset, index, reject, outlets),
            ListOutcome::Empty => {
                lanes.iter_mut().filter(|l| offset >= l.from).for_each(|l| l.skipped.push(index as u32));
            }
            ListOutcome::Read { refused, expired } => {
                for (place, (lane, reject)) in lanes.iter_mut().zip(refused).enumerate() {
                    match reject {
                        Some(reject) => set_aside(lane, offset, index, reject, outlets),
                        None if expired[place] && is_bare[place] => lane.skipped.push(index as u32),
                        None => {}
                    }
                }
            }
        }
        true
    }

    fn encode_list(
        &mut self,
        topic: usize,
        offset: i64,
        index: usize,
        mut list: List<'_>,
        lanes: &[OpenLane],
        outlets: &mut [Outlet],
    ) -> ListOutcome {
        let bytes_max = self.limits.value_bytes_max;
        let (decoder, _) = &mut self.topics[topic];
        let starts: Vec<usize> = lanes.iter().map(|lane| outlets[lane.outlet].batch().bytes.len()).collect();
        let mut refused: Vec<Option<Reject>> = lanes.iter().map(|_| None).collect();
        let mut expired = vec![false; lanes.len()];
        let mut is_empty = true;
        loop {
            let message = match decoder.next(&mut list) {
                Ok(Some(message)) => message,
                Ok(None) if is_empty => return ListOutcome::Empty,
                Ok(None) => return ListOutcome::Read { refused, expired },
                Err(reject) => return ListOutcome::Refused(reject),
            };
            is_empty = false;
            self.models.clear();
            self.models.extend(decoder.models());
            if self.models.is_empty() {
                return ListOutcome::Refused(decoder.unroutable(message));
            }
            for model in &self.models {
                let table = self.edition.plan.models[*model].table;
                let place = lanes.iter().position(|l| l.table == table);
                let place = place.expect("a topic has a lane for each table");
                if offset < lanes[place].from || refused[place].is_some() {
                    continue;
                }
                let open = outlets[lanes[place].outlet].batch();
                match decoder.encode(*model, message, &self.lookups, &mut open.bytes) {
                    Ok(encoded @ (Encoded::Row(_) | Encoded::Deletion)) => {
                        match encoded {
                            Encoded::Row(shape) => push_row(open, index, message.element(), shape),
                            _ => push_deletion(open, index, message.element()),
                        }
                        let bytes = open.bytes.len() - starts[place];
                        refused[place] =
                            (bytes > bytes_max).then(|| too_many_bytes(&self.edition.plan, table, bytes_max));
                    }
                    Ok(Encoded::Expired) => expired[place] = true,
                    Ok(Encoded::NeedsLookup) => return ListOutcome::NeedsLookup,
                    Err(reject) => refused[place] = Some(reject),
                }
            }
        }
    }

    /// The unknown tokens of this record and of those that come after it in the batch, so that one question, and one wait, serves
    /// all.
    fn wanted(&mut self, work: &Work, from: usize) -> Vec<Wanted> {
        let most = self.lookups.wanted_max();
        let lookups = &self.lookups;
        let batch = &work.batch;
        let (decoder, _) = &mut self.topics[batch.topic];
        let mut wanted: HashMap<(usize, Box<str>), i64> = HashMap::new();
        let runs = batch.runs[work.run..].iter().filter(|run| run.claim.may_write());
        let records = runs.flat_map(|run| run.records.clone().map(move |index| (run, index)));
        for (run, index) in records.filter(|(_, index)| *index >= from) {
            let record = batch.record(&run.claim, index);
            let mine = unknown_tokens(decoder, &record, lookups);
            // All of the first record's: it would ask for the rest again.
            if index > from && wanted.len() + mine.len() > most {
                break;
            }
            // A record without a timestamp, or from the future, is as old as its arrival.
            let stamped_ms = record.timestamp_ms.map_or(work.received_ms, |ms| ms.min(work.received_ms));
            for token in mine {
                let newest = wanted.entry(token).or_insert(stamped_ms);
                *newest = stamped_ms.max(*newest);
            }
        }
        let wanted = wanted.into_iter();
        wanted.map(|((lookup, token), newest)| Wanted { lookup, token, newest_ms: Some(newest) }).collect()
    }
}

/// Notes a row whose bytes were just appended.
fn push_row(open: &mut TableBatch, index: usize, element: Option<u16>, shape: Shape) {
    let (end, record) = (open.bytes.len() as u32, index as u32);
    open.rows.push(Row { end, record, element, deletes: false, shape });
}

/// The same of a key whose row is to be deleted.
fn push_deletion(open: &mut TableBatch, index: usize, element: Option<u16>) {
    let (end, record) = (open.bytes.len() as u32, index as u32);
    open.rows.push(Row { end, record, element, deletes: true, shape: Shape::WHOLE });
}

/// A list of small messages may be large rows, by what a column takes from the record around them.
#[cold]
fn too_many_bytes(plan: &Plan, table: usize, bytes_max: usize) -> Reject {
    let name = &plan.tables[table].name;
    let message = format!(
        "{TABLE}{name}: the rows of this list would have more bytes than a message may have, {bytes_max}"
    );
    Reject::new(Reason::TooLarge, message)
}

/// The tokens of all messages of a record that the cache does not have.
fn unknown_tokens(
    decoder: &mut RecordDecoder,
    record: &Record<'_>,
    lookups: &LookupCache,
) -> Vec<(usize, Box<str>)> {
    let mut unknown = Vec::new();
    let mut want = |lookup: usize, token: &str| {
        if !is_cached(lookups, lookup, token) {
            unknown.push((lookup, token.into()));
        }
    };
    match decoder.parse(record) {
        Ok(Parsed::Message(message)) => decoder.tokens(message, want),
        Ok(Parsed::List(mut list)) => {
            while let Ok(Some(message)) = decoder.next(&mut list) {
                decoder.tokens(message, &mut want);
            }
        }
        Ok(Parsed::Tombstone) | Err(_) => {}
    }
    unknown
}

impl Mark {
    fn of(batch: &TableBatch) -> Mark {
        Mark { bytes: batch.bytes.len(), rows: batch.rows.len() }
    }

    fn restore(self, batch: &mut TableBatch) {
        batch.bytes.truncate(self.bytes);
        batch.rows.truncate(self.rows);
    }
}

fn is_cached(lookups: &LookupCache, lookup: usize, token: &str) -> bool {
    use crate::decode::column::{Found, Lookups as _};
    !matches!(lookups.find(lookup, token), Found::NotCached)
}

fn all_cached(decoder: &mut RecordDecoder, message: Message<'_>, lookups: &LookupCache) -> bool {
    let mut all = true;
    decoder.tokens(message, |lookup, token| all &= is_cached(lookups, lookup, token));
    all
}

/// Finds the table's writer for this partition: always the same one. `share` is what a new batch makes room for: bytes, rows.
fn open_lane(
    outlets: &mut [Outlet],
    table: usize,
    edition: u64,
    claim: &Claim,
    from: i64,
    share: (usize, usize),
) -> OpenLane {
    let wanted = |o: &Outlet| o.table == table && claim.partition.id as usize % o.writers == o.number;
    let outlet = outlets.iter().position(wanted).expect("every table has a writer for every partition");
    outlets[outlet].turn_to(edition);
    let open = outlets[outlet].batch();
    if open.rows.is_empty() {
        // A buffer that doubles as it grows costs its bytes twice, in time and in memory.
        open.bytes.reserve(share.0);
        open.rows.reserve(share.1);
    }
    OpenLane {
        outlet,
        table,
        from,
        first_row: open.rows.len(),
        first_byte: open.bytes.len(),
        first_dead: open.dead.len(),
        stored: 0,
        skipped: Vec::new(),
        seen: 0,
    }
}

fn set_aside(lane: &mut OpenLane, offset: i64, index: usize, reject: Reject, outlets: &mut [Outlet]) {
    if offset < lane.from {
        return;
    }
    let open = outlets[lane.outlet].batch();
    let segment = open.segments.len();
    open.dead.push(DeadLetter {
        segment,
        record: index as u32,
        reason: reject.reason.code().into(),
        message: reject.message,
    });
}

/// Writes down what became of the run in one table.
fn close_lane(
    batch: &Arc<RawBatch>,
    run: &Run,
    number: usize,
    lane: OpenLane,
    budget: &Arc<Budget>,
    outlets: &mut [Outlet],
) {
    let first = run.first.max(lane.from);
    if first >= run.next {
        return;
    }
    let open = outlets[lane.outlet].batch();
    let rows = lane.first_row..open.rows.len();
    let dead = open.dead.len() - lane.first_dead;
    let mut counts =
        Counts { rows: lane.stored, dead: dead as i64, skipped: lane.skipped.len() as i64, other: 0 };
    counts.other = lane.seen - counts.records();
    // The batch was charged for about as many encoded bytes as it has raw ones; a wide table takes more.
    let encoded = open.bytes.len() - lane.first_byte;
    let charged = batch.arena_bytes() * run.records.len() / batch.len() / run.claim.lanes.len();
    let extra = (encoded > charged).then(|| Arc::new(budget.charge(batch.topic, encoded - charged)));
    let raw = (counts.rows + counts.dead > 0).then(|| batch.clone());
    let span = Span {
        claim: run.claim.clone(),
        lane: number,
        first,
        next: run.next,
        counts,
        anchor: run.anchor,
        times: run.times,
    };
    open.segments.push(Segment {
        span,
        rows,
        raw,
        records: run.records.clone(),
        skipped: lane.skipped,
        extra,
    });
}
