//! What travels between the stages: records as they came ([`RawBatch`]), rows as they go ([`TableBatch`]), and what was
//! set aside ([`DeadLetter`]). Data carries the claim under which it was read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use crate::base::budget::Charge;
use crate::base::hash::StableHash;
use crate::promise::claim::Claim;
use crate::promise::offsets::Anchor;
use crate::promise::span::{Counts, Span, Times};

/// One Kafka record, borrowed from the arena of the batch it was polled with.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970 UTC, as the producer or broker stamped it; `None` where the record has none.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone, which is not the same as an empty value.
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

impl Record<'_> {
    /// By which the record is known again: over key, value, timestamp and headers. Stored in the ledger.
    pub fn hash(&self) -> i64 {
        if let Some(cut) = self.headers.cut() {
            return cut.hash;
        }
        let mut hash = StableHash::default();
        for part in [self.key, self.value] {
            hash.eat(&part.map_or(-1, |p| p.len() as i64).to_le_bytes());
            hash.eat(part.unwrap_or_default());
        }
        hash.eat(&self.timestamp_ms.unwrap_or(-1).to_le_bytes());
        hash.eat(self.headers.0);
        hash.finish()
    }
}

/// What is known of a record that is too large to be held: its key and value are only their beginnings, and headers it has none
/// any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the whole record: key, value, and headers in the arena's form.
    pub bytes: i64,
    /// Bytes of the whole value; -1 if it is null.
    pub value_bytes: i64,
    /// [`Record::hash`] of the whole record.
    pub hash: i64,
}

/// So many bytes of the key and of the value of such a record are kept.
pub const CUT_KEEPS_BYTES: usize = 1024;

/// A record's headers in the arena's own form: for each `u32` name length, name, `i32` value length (-1: null), value,
/// all little-endian. Written only by [`Headers::append`]; or, in their place, what [`Headers::of_cut`] wrote.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a>(pub &'a [u8]);

/// No name is so long.
const IS_CUT: [u8; 4] = [0xff; 4];

impl<'a> Headers<'a> {
    /// What stands in the place of the headers of a record that was cut.
    pub fn of_cut(cut: Cut) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&IS_CUT);
        for (place, number) in [cut.bytes, cut.value_bytes, cut.hash].into_iter().enumerate() {
            bytes[4 + 8 * place..][..8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// What was cut off the record, if it was.
    #[inline]
    pub fn cut(self) -> Option<Cut> {
        let numbers = self.0.strip_prefix(&IS_CUT)?;
        let number =
            |place: usize| i64::from_le_bytes(numbers[8 * place..][..8].try_into().expect("eight bytes"));
        Some(Cut { bytes: number(0), value_bytes: number(1), hash: number(2) })
    }

    /// Appends one header to an arena.
    pub fn append(arena: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
        arena.extend_from_slice(&(name.len() as u32).to_le_bytes());
        arena.extend_from_slice(name);
        let length = value.map_or(-1, |v| v.len() as i32);
        arena.extend_from_slice(&length.to_le_bytes());
        arena.extend_from_slice(value.unwrap_or_default());
    }

    /// The headers in their order; names repeat as the producer wrote them.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone {
        let mut rest = if self.cut().is_some() { &[][..] } else { self.0 };
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let name_length = u32::from_le_bytes(take(&mut rest, 4).try_into().expect("four bytes")) as usize;
            let name = take(&mut rest, name_length);
            let value_length = i32::from_le_bytes(take(&mut rest, 4).try_into().expect("four bytes"));
            let value = usize::try_from(value_length).ok().map(|n| take(&mut rest, n));
            Some((name, value))
        })
    }
}

impl<'a> Record<'a> {
    /// The record as it is held where no part of it may have more than `part_max` bytes: itself, or, written into `cut`, what is
    /// kept of it.
    pub fn bounded<'b>(self, part_max: usize, cut: &'b mut [u8; 28]) -> Record<'b>
    where
        'a: 'b,
    {
        let bytes = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let parts = [bytes(self.key), bytes(self.value), self.headers.0.len()];
        if parts.iter().all(|bytes| *bytes <= part_max) || self.headers.cut().is_some() {
            return self;
        }
        *cut = Headers::of_cut(Cut {
            bytes: parts.iter().sum::<usize>() as i64,
            value_bytes: self.value.map_or(-1, |value| value.len() as i64),
            hash: self.hash(),
        });
        let kept = |part: Option<&'a [u8]>| part.map(|part| &part[..part.len().min(CUT_KEEPS_BYTES)]);
        Record { key: kept(self.key), value: kept(self.value), headers: Headers(cut), ..self }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    head
}

/// Records of one topic, copied out of librdkafka into one arena, in runs of one partition each.
#[derive(Debug)]
pub struct RawBatch {
    pub topic: usize,
    arena: Vec<u8>,
    records: Vec<RawRecord>,
    pub runs: Vec<Run>,
    /// What this batch, and the rows made of it, take from the budget; given back when the last of them is gone.
    charge: Option<Charge>,
    hint: (usize, usize),
}

/// Consecutive records of one partition: they fill the offsets `[first, next)`, holes included.
#[derive(Debug)]
pub struct Run {
    pub claim: Arc<Claim>,
    pub first: i64,
    pub next: i64,
    /// The run's last record; filled by [`RawBatch::note_anchors`].
    pub anchor: Anchor,
    /// When the run's records were stamped; filled with the anchor.
    pub times: Times,
    /// Where the run's records are in the batch.
    pub records: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
struct RawRecord {
    offset: i64,
    timestamp_ms: i64,
    start: u32,
    /// -1 is null.
    key: i32,
    value: i32,
    headers: u32,
}

/// What a record costs beside its bytes: its place here and its row's place in the table batch.
const RECORD_OVERHEAD_BYTES: usize = 64;

impl RawBatch {
    /// `hint_bytes` and `hint_records` are reserved with the first record: what the batch before it needed.
    pub fn new(topic: usize, hint_bytes: usize, hint_records: usize) -> RawBatch {
        RawBatch {
            topic,
            arena: Vec::new(),
            records: Vec::new(),
            runs: Vec::new(),
            charge: None,
            hint: (hint_bytes, hint_records),
        }
    }

    /// Appends a record. `first` is where its run begins if it begins one: the offset after the partition's last record.
    pub fn push(&mut self, claim: &Arc<Claim>, first: i64, record: &Record<'_>) {
        if self.records.is_empty() {
            // A buffer that doubles as it grows costs its bytes twice, in time and in memory.
            self.arena.reserve_exact(self.hint.0);
            self.records.reserve_exact(self.hint.1);
        }
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(record.key.unwrap_or_default());
        self.arena.extend_from_slice(record.value.unwrap_or_default());
        self.arena.extend_from_slice(record.headers.0);
        let index = self.records.len();
        self.records.push(RawRecord {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms.unwrap_or(i64::MIN),
            start,
            key: record.key.map_or(-1, |k| k.len() as i32),
            value: record.value.map_or(-1, |v| v.len() as i32),
            headers: record.headers.0.len() as u32,
        });
        let next = record.offset + 1;
        match self.runs.last_mut() {
            Some(run) if Arc::ptr_eq(&run.claim, claim) => {
                run.next = next;
                run.records.end = index + 1;
            }
            _ => self.runs.push(Run {
                claim: claim.clone(),
                first,
                next,
                anchor: Anchor { offset: record.offset, hash: 0 },
                times: Times::default(),
                records: index..index + 1,
            }),
        }
    }

    /// Ends the filling: hashes each run's last record, and notes its times.
    pub fn note_anchors(&mut self) {
        for i in 0..self.runs.len() {
            let records = self.runs[i].records.clone();
            self.runs[i].times = self.times(records.start, records.end - 1);
            let anchor = self.anchor(&self.runs[i].claim, self.runs[i].records.end - 1);
            self.runs[i].anchor = anchor;
        }
    }

    pub fn set_charge(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that the batch will hold until its rows are committed: the arena, about as much again for the encoded
    /// rows, and a fixed cost for each record.
    pub fn cost_bytes(&self) -> usize {
        self.arena.len() * 2 + self.records.len() * RECORD_OVERHEAD_BYTES
    }

    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Record `index`, of the run with this claim.
    pub fn record<'a>(&'a self, claim: &'a Claim, index: usize) -> Record<'a> {
        let raw = &self.records[index];
        let mut rest = &self.arena[raw.start as usize..];
        let mut part = |length: i32| {
            let count = usize::try_from(length).ok()?;
            Some(take(&mut rest, count))
        };
        let (key, value) = (part(raw.key), part(raw.value));
        let headers = Headers(take(&mut rest, raw.headers as usize));
        Record {
            topic: &claim.topic,
            partition: claim.partition.id,
            offset: raw.offset,
            timestamp_ms: (raw.timestamp_ms != i64::MIN).then_some(raw.timestamp_ms),
            key,
            value,
            headers,
        }
    }

    pub fn offset(&self, index: usize) -> i64 {
        self.records[index].offset
    }

    /// When records `first` and `last` were stamped.
    fn times(&self, first: usize, last: usize) -> Times {
        let stamp = |index: usize| Some(self.records[index].timestamp_ms).filter(|ms| *ms != i64::MIN);
        Times { first_ms: stamp(first), last_ms: stamp(last) }
    }

    /// The anchor that a commit up to and including record `index` leaves behind.
    pub fn anchor(&self, claim: &Claim, index: usize) -> Anchor {
        Anchor { offset: self.offset(index), hash: self.record(claim, index).hash() }
    }
}

/// Rows for one table, encoded, with everything that is needed to commit them, to send them again, and to set single
/// ones aside.
#[derive(Debug)]
pub struct TableBatch {
    pub table: usize,
    /// Which edition of the plan the rows were encoded for.
    pub edition: u64,
    /// COPY BINARY tuples, one after another.
    pub bytes: Vec<u8>,
    pub rows: Vec<Row>,
    pub dead: Vec<DeadLetter>,
    /// In the order of the rows; of one partition each.
    pub segments: Vec<Segment>,
}

/// One encoded row: where it ends in the bytes (it begins where the one before ended), and the record it came from.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub end: u32,
    pub record: u32,
    /// Which message of the record it is, where a record has many. All rows of a record stand together.
    pub element: Option<u16>,
    /// True where it has a key and nothing else: the row of that key is to be deleted.
    pub deletes: bool,
    pub shape: Shape,
}

/// Which columns a row leaves out, so that the server gives them their defaults: bit n is the n-th of the table's columns that
/// may be left out. Rows of one shape go in one COPY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(u64);

impl Shape {
    /// Nothing is left out.
    pub const WHOLE: Shape = Shape(0);

    /// So many columns of one table may be left out.
    pub const OPTIONAL_MAX: u8 = u64::BITS as u8;

    pub fn leave_out(&mut self, optional: u8) {
        self.0 |= 1 << optional;
    }

    pub fn leaves_out(self, optional: u8) -> bool {
        self.0 >> optional & 1 == 1
    }

    /// What both leave out.
    pub fn and(self, other: Shape) -> Shape {
        Shape(self.0 & other.0)
    }

    /// How many columns are left out.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// What became of the records of one run, for one table.
#[derive(Clone, Debug)]
pub struct Segment {
    pub span: Span,
    /// Which of the batch's rows.
    pub rows: Range<usize>,
    /// The records themselves, kept while rows or dead letters refer to them.
    pub raw: Option<Arc<RawBatch>>,
    /// Where the segment's records are in `raw`.
    pub records: Range<usize>,
    /// Indexes into `raw` of the records that are skipped by configuration; nearly always empty.
    pub skipped: Vec<u32>,
    /// What the rows take from the budget beyond what their records were charged for.
    pub extra: Option<Arc<Charge>>,
}

/// A record that is no row, and why. Its bytes are in the segment's raw batch.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Index into the batch's segments.
    pub segment: usize,
    /// Index into the segment's raw batch.
    pub record: u32,
    /// A stable code: one of the decoder's, or `sqlstate_` and the server's.
    pub reason: Cow<'static, str>,
    /// A sentence for people.
    pub message: String,
}

/// Where a record stands in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of its segment.
    segment: usize,
    /// Index into the segment's raw batch.
    record: u32,
}

impl TableBatch {
    pub fn new(table: usize, edition: u64) -> TableBatch {
        TableBatch {
            table,
            edition,
            bytes: Vec::new(),
            rows: Vec::new(),
            dead: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// True when nothing of it needs a COPY: only positions move.
    pub fn is_positions_only(&self) -> bool {
        self.rows.is_empty() && self.dead.is_empty()
    }

    /// Where row `index` lies in the bytes.
    pub fn row_bytes(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.rows[index - 1].end as usize };
        start..self.rows[index].end as usize
    }

    /// Where consecutive rows lie in the bytes.
    pub fn rows_bytes(&self, rows: Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        self.row_bytes(rows.start).start..self.row_bytes(rows.end - 1).end
    }

    /// The rows of each record that has any.
    pub fn records(&self) -> Vec<Range<usize>> {
        self.segments.iter().flat_map(|segment| records_of(&self.rows, segment.rows.clone())).collect()
    }

    /// All rows of the record that row `at` is of.
    pub fn record_rows(&self, at: usize) -> Range<usize> {
        let is_same = |row: &Row| row.record == self.rows[at].record;
        let within = &self.segments[self.segment_of(at)].rows;
        let before = self.rows[within.start..at].iter().rev().take_while(|row| is_same(row)).count();
        let after = self.rows[at..within.end].iter().take_while(|row| is_same(row)).count();
        at - before..at + after
    }

    fn segment_of(&self, row: usize) -> usize {
        let holds = |segment: &Segment| segment.rows.contains(&row);
        self.segments.iter().position(holds).expect("every row belongs to a segment")
    }
}

/// The same for some rows of one segment; another segment's records have numbers of their own.
fn records_of(rows: &[Row], within: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = within.start;
    rows[within].chunk_by(|one, next| one.record == next.record).map(move |record| {
        at += record.len();
        at - record.len()..at
    })
}

impl TableBatch {
    /// Moves row `at`, the first of its record, and everything after it into a new batch; what stays here can be committed by
    /// itself.
    pub fn split_off(&mut self, at: usize) -> TableBatch {
        match self.place_of_row(at) {
            Some(place) => {
                assert_eq!(self.record_rows(at).start, at, "a record's rows go in one transaction");
                self.split_off_at(place)
            }
            None => TableBatch::new(self.table, self.edition),
        }
    }

    /// Where the record of row `at` stands; `None` behind the last row.
    pub fn place_of_row(&self, at: usize) -> Option<Place> {
        let row = self.rows.get(at)?;
        Some(Place { segment: self.segment_of(at), record: row.record })
    }

    /// Where the record of the `nth` dead letter stands, in the order of the records; `None` where there are no more than `nth`.
    pub fn place_of_letter(&self, nth: usize) -> Option<Place> {
        if nth >= self.dead.len() {
            return None;
        }
        let place = |dead: &DeadLetter| Place { segment: dead.segment, record: dead.record };
        let mut places: Vec<Place> = self.dead.iter().map(place).collect();
        Some(*places.select_nth_unstable(nth).1)
    }

    /// Moves the record at a place, and everything after it, into a new batch.
    pub fn split_off_at(&mut self, cut: Place) -> TableBatch {
        let mut tail = TableBatch::new(self.table, self.edition);
        let within = self.segments[cut.segment].rows.clone();
        let at = within.start + self.rows[within.clone()].partition_point(|row| row.record < cut.record);
        let stored = records_of(&self.rows, within.start..at).count() as i64;
        let cut_bytes = if at == 0 { 0 } else { self.rows[at - 1].end as usize };
        tail.bytes = self.bytes.split_off(cut_bytes);
        tail.rows = self.rows.split_off(at);
        tail.rows.iter_mut().for_each(|row| row.end -= cut_bytes as u32);
        tail.segments = self.segments.split_off(cut.segment);
        let is_before = |d: &DeadLetter| (d.segment, d.record) < (cut.segment, cut.record);
        let (head_dead, mut tail_dead): (Vec<_>, Vec<_>) = self.dead.drain(..).partition(is_before);
        let head = Head { rows: at, record: cut.record as usize, stored };
        if let Some(head_segment) = tail.segments[0].split_off_head(&head, &head_dead, cut.segment) {
            self.segments.push(head_segment);
        }
        for segment in &mut tail.segments {
            segment.rows = segment.rows.start.saturating_sub(at)..segment.rows.end - at;
        }
        tail_dead.iter_mut().for_each(|d| d.segment -= cut.segment);
        self.dead = head_dead;
        tail.dead = tail_dead;
        tail
    }

    /// Turns records into dead letters, with all of their rows. `bad` is ascending, each record by one of its rows: row, reason,
    /// sentence.
    pub fn set_aside(&mut self, bad: Vec<(usize, Cow<'static, str>, String)>) {
        let mut gone: Vec<Range<usize>> = Vec::with_capacity(bad.len());
        for (row, reason, message) in bad {
            let segment = self.segment_of(row);
            self.segments[segment].span.counts.rows -= 1;
            self.segments[segment].span.counts.dead += 1;
            let record = self.rows[row].record;
            self.dead.push(DeadLetter { segment, record, reason, message });
            gone.push(self.record_rows(row));
        }
        // The ranges are ascending and apart.
        let is_gone = |row: usize| {
            gone.get(gone.partition_point(|rows| rows.end <= row)).is_some_and(|rows| rows.contains(&row))
        };
        self.rebuild(|_| true, |row| !is_gone(row));
    }

    /// Drops everything of the spans that `keep` refuses: they were fenced, or are committed.
    pub fn retain_spans(&mut self, keep: impl Fn(&Span) -> bool) {
        if !self.segments.iter().all(|s| keep(&s.span)) {
            self.rebuild(|s| keep(&s.span), |_| true);
        }
    }

    fn rebuild(&mut self, keep_segment: impl Fn(&Segment) -> bool, keep_row: impl Fn(usize) -> bool) {
        let old = std::mem::replace(self, TableBatch::new(self.table, self.edition));
        let mut new_index = vec![None; old.segments.len()];
        for (index, segment) in old.segments.iter().enumerate().filter(|(_, s)| keep_segment(s)) {
            let first_row = self.rows.len();
            for row in segment.rows.clone().filter(|row| keep_row(*row)) {
                self.bytes.extend_from_slice(&old.bytes[old.row_bytes(row)]);
                self.rows.push(Row { end: self.bytes.len() as u32, ..old.rows[row] });
            }
            new_index[index] = Some(self.segments.len());
            self.segments.push(Segment { rows: first_row..self.rows.len(), ..segment.clone() });
        }
        self.dead = old
            .dead
            .into_iter()
            .filter_map(|d| Some(DeadLetter { segment: new_index[d.segment]?, ..d }))
            .collect();
    }
}

/// Rows on their way to a table: parts of batches, in order.
pub struct Rows<'a> {
    parts: Vec<(&'a mut TableBatch, Range<usize>)>,
}

impl<'a> Rows<'a> {
    /// All rows of these batches.
    pub fn of(batches: impl IntoIterator<Item = &'a mut TableBatch>) -> Rows<'a> {
        let whole = |batch: &'a mut TableBatch| {
            let rows = 0..batch.rows.len();
            (batch, rows)
        };
        Rows { parts: batches.into_iter().map(whole).filter(|(_, rows)| !rows.is_empty()).collect() }
    }

    /// For a store that is asked whether it would take any.
    pub fn none() -> Rows<'a> {
        Rows { parts: Vec::new() }
    }

    /// One row of all that these batches have.
    pub fn nth(batches: &'a mut [TableBatch], place: usize) -> Rows<'a> {
        let mut before = 0;
        for batch in batches {
            let rows = batch.rows.len();
            if place < before + rows {
                return Rows::part(batch, place - before..place - before + 1);
            }
            before += rows;
        }
        Rows::none()
    }

    /// Some rows of one batch.
    pub fn part(batch: &'a mut TableBatch, rows: Range<usize>) -> Rows<'a> {
        Rows { parts: if rows.is_empty() { Vec::new() } else { vec![(batch, rows)] } }
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Each row's bytes, in order, and whether it deletes.
    pub fn tuples(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.parts.iter().flat_map(|(batch, rows)| {
            rows.clone().map(|row| (&batch.bytes[batch.row_bytes(row)], batch.rows[row].deletes))
        })
    }

    /// The shapes of these rows, in the order in which they first appear.
    pub fn shapes(&self) -> Vec<Shape> {
        let mut shapes: Vec<Shape> = Vec::new();
        for shape in self.all_shapes() {
            // Neighbors are nearly always alike.
            if shapes.last() != Some(&shape) && !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        shapes
    }

    /// The batches, each with those of its rows that have this shape, in stretches without a break.
    pub fn parts(&mut self, shape: Shape) -> impl Iterator<Item = (&mut TableBatch, Vec<Range<usize>>)> {
        self.parts.iter_mut().map(move |(batch, rows)| {
            let stretches = stretches(&batch.rows[rows.clone()], shape);
            let placed = stretches.map(|s| rows.start + s.start..rows.start + s.end).collect();
            (&mut **batch, placed)
        })
    }

    /// Where the `nth` row of a shape stands among all of these rows.
    pub fn place_of(&self, shape: Shape, nth: usize) -> Option<usize> {
        self.all_shapes().enumerate().filter(|(_, s)| *s == shape).nth(nth).map(|(place, _)| place)
    }

    fn all_shapes(&self) -> impl Iterator<Item = Shape> {
        self.parts.iter().flat_map(|(batch, rows)| batch.rows[rows.clone()].iter().map(|row| row.shape))
    }
}

/// Where rows of one shape stand next to each other.
fn stretches(rows: &[Row], shape: Shape) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    rows.chunk_by(|one, next| one.shape == next.shape).filter_map(move |chunk| {
        let stretch = at..at + chunk.len();
        at = stretch.end;
        (chunk[0].shape == shape).then_some(stretch)
    })
}

/// The spans of a transaction, one for each claim: positions that wait without rows, then those of the load.
pub fn spans(idle: &[Span], load: &[TableBatch]) -> Vec<Span> {
    let mut spans: Vec<Span> = idle.to_vec();
    // There may be thousands of partitions.
    let address = |span: &Span| Arc::as_ptr(&span.claim);
    let mut places: HashMap<*const Claim, usize> =
        spans.iter().enumerate().map(|(place, span)| (address(span), place)).collect();
    for Segment { span: more, .. } in load.iter().flat_map(|b| &b.segments) {
        match places.entry(address(more)) {
            Entry::Occupied(place) => spans[*place.get()].join(more),
            Entry::Vacant(place) => {
                place.insert(spans.len());
                spans.push(more.clone());
            }
        }
    }
    spans
}

/// What comes before a cut: rows, up to the first of `record`, of `stored` records of the segment that is cut.
struct Head {
    rows: usize,
    record: usize,
    stored: i64,
}

impl Segment {
    /// Cuts off the head; `self` keeps the rest. `None` if no record comes before. `dead` holds the dead letters before the
    /// cut, of this segment under the index `own`.
    fn split_off_head(&mut self, head: &Head, dead: &[DeadLetter], own: usize) -> Option<Segment> {
        let Head { rows: at, record, stored } = *head;
        let raw = self.raw.as_ref().expect("a segment with rows or dead letters keeps its records");
        let mut before = (self.records.start..record).filter(|i| raw.offset(*i) >= self.span.first);
        let records = before.clone().count() as i64;
        let last = before.next_back()?;
        let mut counts = Counts {
            rows: stored,
            dead: dead.iter().filter(|d| d.segment == own).count() as i64,
            skipped: self.skipped.iter().filter(|i| (**i as usize) < record).count() as i64,
            other: 0,
        };
        counts.other = records - counts.records();
        let cut = raw.offset(record);
        let head = Segment {
            span: Span {
                claim: self.span.claim.clone(),
                lane: self.span.lane,
                first: self.span.first,
                next: cut,
                counts,
                anchor: raw.anchor(&self.span.claim, last),
                times: raw.times(self.records.start, last),
            },
            rows: self.rows.start..at,
            raw: self.raw.clone(),
            records: self.records.start..record,
            skipped: self.skipped.iter().copied().filter(|i| (*i as usize) < record).collect(),
            extra: self.extra.clone(),
        };
        self.span.times.first_ms = raw.times(record, record).first_ms;
        self.span.first = cut;
        self.rows.start = at;
        self.records.start = record;
        self.skipped.retain(|i| *i as usize >= record);
        let left = &mut self.span.counts;
        left.rows -= counts.rows;
        left.dead -= counts.dead;
        left.skipped -= counts.skipped;
        left.other -= counts.other;
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_written() {
        let mut arena = Vec::new();
        Headers::append(&mut arena, b"a", Some(b"1"));
        Headers::append(&mut arena, b"", None);
        Headers::append(&mut arena, b"a", Some(b""));
        let read: Vec<_> = Headers(&arena).iter().collect();
        assert_eq!(read, [(&b"a"[..], Some(&b"1"[..])), (b"", None), (b"a", Some(b""))]);
        assert_eq!(Headers::default().iter().count(), 0);
    }

    #[test]
    fn a_record_that_is_cut_is_known_by_the_hash_of_all_of_it() {
        #[track_caller]
        fn check(key: usize, value: Option<usize>, header: usize, is_cut: bool) {
            let (key, value) = (vec![b'k'; key], value.map(|bytes| vec![b'v'; bytes]));
            let mut headers = Vec::new();
            Headers::append(&mut headers, &vec![b'h'; header], None);
            let whole = Record {
                topic: "t",
                partition: 0,
                offset: 1,
                timestamp_ms: Some(2),
                key: Some(&key),
                value: value.as_deref(),
                headers: Headers(&headers),
            };
            let mut room = [0; 28];
            let held = whole.bounded(4000, &mut room);
            assert_eq!((held.headers.cut().is_some(), held.hash()), (is_cut, whole.hash()));
            if let Some(cut) = held.headers.cut() {
                assert_eq!(cut.value_bytes, value.as_ref().map_or(-1, |v| v.len() as i64));
                assert_eq!(
                    cut.bytes as usize,
                    key.len() + value.as_ref().map_or(0, Vec::len) + headers.len()
                );
                assert_eq!(held.headers.iter().count(), 0);
                assert!(held.key.is_some_and(|key| key.len() <= CUT_KEEPS_BYTES));
            }
        }
        check(4000, Some(4000), 3992, false);
        check(4001, Some(0), 0, true);
        check(0, Some(4001), 0, true);
        check(0, None, 4000, true);
    }

    #[test]
    fn rows_go_in_one_copy_for_each_shape() {
        #[track_caller]
        fn check(shapes: &[u64], expected: &[(u64, &[(usize, usize)])]) {
            let mut batch = TableBatch::new(0, 1);
            for (index, shape) in shapes.iter().enumerate() {
                batch.rows.push(Row {
                    end: index as u32 + 1,
                    record: index as u32,
                    element: None,
                    deletes: false,
                    shape: Shape(*shape),
                });
            }
            let mut rows = Rows::of([&mut batch]);
            let found: Vec<u64> = rows.shapes().iter().map(|shape| shape.0).collect();
            assert_eq!(found, expected.iter().map(|(shape, _)| *shape).collect::<Vec<_>>());
            for (shape, stretches) in expected {
                let (_, found) = rows.parts(Shape(*shape)).next().expect("one batch");
                assert_eq!(found.iter().map(|s| (s.start, s.end)).collect::<Vec<_>>(), *stretches);
                let mut places = found.into_iter().flatten();
                for nth in 0..shapes.len() {
                    assert_eq!(rows.place_of(Shape(*shape), nth), places.next(), "row {nth} of {shape}");
                }
            }
        }
        check(&[], &[]);
        check(&[0, 0, 0], &[(0, &[(0, 3)])]);
        check(&[0, 0, 5, 5, 0], &[(0, &[(0, 2), (4, 5)]), (5, &[(2, 4)])]);
        check(&[1, 2, 1, 2], &[(1, &[(0, 1), (2, 3)]), (2, &[(1, 2), (3, 4)])]);
        let mut shape = Shape::WHOLE;
        shape.leave_out(0);
        shape.leave_out(63);
        assert!(shape.leaves_out(0) && shape.leaves_out(63) && !shape.leaves_out(1));
        assert_eq!(shape.count(), 2);
    }

    use crate::promise::claim::Lane;
    use crate::promise::offsets::Partition;

    fn claim(id: i32) -> Arc<Claim> {
        Arc::new(Claim::new(
            Partition { topic: 0, id },
            "t".into(),
            "id".into(),
            vec![Lane::new(0, 1, 100, None, Arc::default())],
        ))
    }

    /// Letters name outcomes, one record each: `r` row, `R` three rows, `d` dead, `s` skipped, `o` other, `.` a hole. Runs are separated
    /// by spaces, and alternate between two partitions.
    fn batch(runs: &str) -> TableBatch {
        let claims = [claim(0), claim(1)];
        let mut next = [100, 100];
        let mut table = TableBatch::new(0, 1);
        for (number, run) in runs.split_whitespace().enumerate() {
            let mut raw = RawBatch::new(0, 0, 0);
            let which = number % 2;
            let first = next[which];
            let mut counts = Counts::default();
            let (first_row, mut skipped) = (table.rows.len(), Vec::new());
            let mut run_first = first;
            for (i, letter) in run.chars().enumerate() {
                if letter == '.' {
                    continue;
                }
                let offset = first + i as i64;
                let value = [letter as u8];
                let record = Record {
                    topic: "t",
                    partition: which as i32,
                    offset,
                    timestamp_ms: None,
                    key: None,
                    value: Some(&value),
                    headers: Headers::default(),
                };
                raw.push(&claims[which], run_first, &record);
                run_first = offset + 1;
                let index = raw.len() as u32 - 1;
                match letter {
                    'r' | 'R' => {
                        let elements = if letter == 'r' { vec![None] } else { (0..3).map(Some).collect() };
                        for element in elements {
                            table.bytes.extend_from_slice(format!("row{offset};").as_bytes());
                            let (end, shape) = (table.bytes.len() as u32, Shape::WHOLE);
                            table.rows.push(Row { end, record: index, element, deletes: false, shape });
                        }
                        counts.rows += 1;
                    }
                    'd' => {
                        let segment = table.segments.len();
                        table.dead.push(DeadLetter {
                            segment,
                            record: index,
                            reason: "x".into(),
                            message: String::new(),
                        });
                        counts.dead += 1;
                    }
                    's' => {
                        skipped.push(index);
                        counts.skipped += 1;
                    }
                    _ => counts.other += 1,
                }
            }
            raw.note_anchors();
            next[which] = raw.runs[0].next;
            let (run_next, anchor, records) =
                (raw.runs[0].next, raw.runs[0].anchor, raw.runs[0].records.clone());
            table.segments.push(Segment {
                span: Span {
                    claim: claims[which].clone(),
                    lane: 0,
                    first,
                    next: run_next,
                    counts,
                    anchor,
                    times: Times::default(),
                },
                rows: first_row..table.rows.len(),
                raw: Some(Arc::new(raw)),
                records,
                skipped,
                extra: None,
            });
        }
        table
    }

    /// What a batch holds, independent of how it is cut: each outcome with its partition and offset.
    fn outcomes(batch: &TableBatch) -> Vec<(i32, i64, String)> {
        let mut all = Vec::new();
        let mut rows_seen = 0;
        for (number, segment) in batch.segments.iter().enumerate() {
            let raw = segment.raw.as_ref().unwrap();
            let partition = segment.span.claim.partition.id;
            assert_eq!(segment.rows.start, rows_seen, "segments follow each other");
            rows_seen = segment.rows.end;
            let mut counts = Counts::default();
            for row in segment.rows.clone() {
                let text = std::str::from_utf8(&batch.bytes[batch.row_bytes(row)]).unwrap();
                let offset = raw.offset(batch.rows[row].record as usize);
                assert_eq!(text, format!("row{offset};"));
                all.push((partition, offset, "row".to_owned()));
                counts.rows += i64::from(batch.rows[row].element.is_none_or(|number| number == 0));
            }
            for dead in batch.dead.iter().filter(|d| d.segment == number) {
                all.push((partition, raw.offset(dead.record as usize), "dead".to_owned()));
                counts.dead += 1;
            }
            for skipped in &segment.skipped {
                all.push((partition, raw.offset(*skipped as usize), "skipped".to_owned()));
                counts.skipped += 1;
            }
            counts.other = segment.span.counts.other;
            assert_eq!(counts, segment.span.counts);
            assert!(segment.span.holes() >= 0 && segment.span.first < segment.span.next);
            assert_eq!(segment.span.anchor.offset, raw.offset(segment.records.end - 1));
        }
        assert_eq!(rows_seen, batch.rows.len());
        all.sort();
        all
    }

    fn totals(batches: &[&TableBatch]) -> (Counts, i64) {
        let mut counts = Counts::default();
        let segments = batches.iter().flat_map(|b| &b.segments);
        segments.clone().for_each(|s| counts += s.span.counts);
        (counts, segments.map(|s| s.span.holes()).sum())
    }

    #[test]
    fn a_batch_can_be_cut_at_every_row_and_nothing_is_lost() {
        for runs in [
            "r",
            "rr",
            "drsor",
            "..r.r",
            "s.rd rr.o dddr",
            "sd rrr oo r..r",
            "ddd r",
            "oor sssr rr",
            "RrR dRs R.r",
            "R R RR",
        ] {
            let whole = batch(runs);
            let starts = whole.records().into_iter().map(|record| record.start);
            for at in starts.chain([whole.rows.len()]) {
                let mut head = batch(runs);
                let tail = head.split_off(at);
                assert_eq!(head.rows.len(), at, "{runs} at {at}");
                let mut both = outcomes(&head);
                both.extend(outcomes(&tail));
                both.sort();
                assert_eq!(both, outcomes(&whole), "{runs} at {at}");
                assert_eq!(totals(&[&head, &tail]), totals(&[&whole]), "{runs} at {at}");
            }
        }
    }

    #[test]
    fn a_batch_can_be_cut_at_every_dead_letter_and_nothing_is_lost() {
        for runs in ["d", "ddd", "rdrd", "..d.d", "s.rd rr.o dddr", "ddd ddd", "RdR sdo", "oosd d"] {
            let whole = batch(runs);
            assert_eq!(whole.place_of_letter(whole.dead.len()), None, "{runs}");
            for nth in 0..whole.dead.len() {
                let mut head = batch(runs);
                // A row that the server refuses becomes a letter behind those of the decoder.
                head.dead.reverse();
                let place = head.place_of_letter(nth).expect("there are so many");
                let tail = head.split_off_at(place);
                assert_eq!(head.dead.len(), nth, "{runs} at {nth}");
                let mut both = outcomes(&head);
                both.extend(outcomes(&tail));
                both.sort();
                assert_eq!(both, outcomes(&whole), "{runs} at {nth}");
                assert_eq!(totals(&[&head, &tail]), totals(&[&whole]), "{runs} at {nth}");
            }
        }
    }

    #[test]
    fn a_bad_row_becomes_a_dead_letter_in_its_place() {
        let mut whole = batch("rrr rr");
        whole.set_aside(vec![(1, "sqlstate_23505".into(), "again".into()), (3, "x".into(), String::new())]);
        let kinds: Vec<_> = outcomes(&whole).into_iter().collect();
        let expected =
            [(0, 100, "row"), (0, 101, "dead"), (0, 102, "row"), (1, 100, "dead"), (1, 101, "row")];
        assert_eq!(kinds, expected.map(|(p, o, k)| (p, o, k.to_owned())));
    }

    #[test]
    fn a_records_rows_stay_together() {
        // The first record of the second run has the number that the last one of the first has, and is another.
        let whole = batch("R r RR");
        assert_eq!(whole.records(), [0..3, 3..4, 4..7, 7..10]);
        for (row, rows) in [(0, 0..3), (2, 0..3), (3, 3..4), (4, 4..7), (6, 4..7), (7, 7..10)] {
            assert_eq!(whole.record_rows(row), rows, "{row}");
        }
        let mut whole = batch("RrR rR");
        whole.set_aside(vec![
            (2, "x".into(), "a".into()),
            (3, "x".into(), "b".into()),
            (9, "x".into(), "c".into()),
        ]);
        let row = |partition, offset| (partition, offset, "row".to_owned());
        let dead = |partition, offset| (partition, offset, "dead".to_owned());
        let expected =
            [dead(0, 100), dead(0, 101), row(0, 102), row(0, 102), row(0, 102), row(1, 100), dead(1, 101)];
        assert_eq!(outcomes(&whole), expected);
    }

    #[test]
    #[should_panic(expected = "go in one transaction")]
    fn a_record_is_never_cut() {
        batch("R").split_off(1);
    }

    #[test]
    fn a_fenced_partition_takes_only_its_own() {
        let mut whole = batch("rr drd rr");
        whole.retain_spans(|s| s.claim.partition.id == 1);
        let expected = [(1, 100, "dead"), (1, 101, "row"), (1, 102, "dead")];
        assert_eq!(outcomes(&whole), expected.map(|(p, o, k)| (p, o, k.to_owned())));
    }
}
