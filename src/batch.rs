//! What travels between the stages: records as they came ([`RawBatch`]), rows as they go ([`TableBatch`]), and what was
//! set aside ([`DeadLetter`]). Data carries the claim under which it was read.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::budget::Charge;
use crate::ownership::Claim;
use crate::protocol::{Anchor, record_hash};

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

/// A record's headers in the arena's own form: for each `u32` name length, name, `i32` value length (-1: null), value,
/// all little-endian. Written only by [`Headers::append`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Headers<'a> {
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
        let mut rest = self.0;
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
}

/// Consecutive records of one partition: they fill the offsets `[first, next)`, holes included.
#[derive(Debug)]
pub struct Run {
    pub claim: Arc<Claim>,
    pub first: i64,
    pub next: i64,
    /// The run's last record; filled by [`RawBatch::seal`].
    pub anchor: Anchor,
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
    pub fn new(topic: usize) -> RawBatch {
        RawBatch { topic, arena: Vec::new(), records: Vec::new(), runs: Vec::new(), charge: None }
    }

    /// Appends a record. `first` is where its run begins if it begins one: the offset after the partition's last record.
    pub fn push(&mut self, claim: &Arc<Claim>, first: i64, record: &Record<'_>) {
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
                records: index..index + 1,
            }),
        }
    }

    /// Ends the filling: hashes each run's last record and takes the batch's bytes from the budget.
    pub fn seal(&mut self, charge: impl FnOnce(usize) -> Charge) {
        for i in 0..self.runs.len() {
            let anchor = self.anchor(&self.runs[i].claim, self.runs[i].records.end - 1);
            self.runs[i].anchor = anchor;
        }
        self.charge = Some(charge(self.cost_bytes()));
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

    pub fn is_tombstone(&self, index: usize) -> bool {
        self.records[index].value < 0
    }

    /// The anchor that a commit up to and including record `index` leaves behind.
    pub fn anchor(&self, claim: &Claim, index: usize) -> Anchor {
        Anchor { offset: self.offset(index), hash: record_hash(&self.record(claim, index)) }
    }
}

/// Rows for one table, encoded, with everything that is needed to commit them, to send them again, and to set single
/// ones aside.
#[derive(Debug)]
pub struct TableBatch {
    pub table: usize,
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
}

/// What became of the records of one run, for one table.
#[derive(Clone, Debug)]
pub struct Segment {
    pub claim: Arc<Claim>,
    /// Index into the claim's lanes.
    pub lane: usize,
    pub first: i64,
    pub next: i64,
    pub counts: Counts,
    /// The last record of `[first, next)`.
    pub anchor: Anchor,
    /// Which of the batch's rows.
    pub rows: Range<usize>,
    /// The records themselves, kept while rows or dead letters refer to them.
    pub raw: Option<Arc<RawBatch>>,
    /// Where the segment's records are in `raw`.
    pub records: Range<usize>,
    /// Indexes into `raw` of the records that are skipped by configuration; nearly always empty.
    pub skipped: Vec<u32>,
}

/// Outcomes: how many records became what. Offsets without a record are holes, which is what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub rows: i64,
    pub dead: i64,
    pub skipped: i64,
    pub other: i64,
}

impl Counts {
    pub fn records(&self) -> i64 {
        self.rows + self.dead + self.skipped + self.other
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.rows += more.rows;
        self.dead += more.dead;
        self.skipped += more.skipped;
        self.other += more.other;
    }
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

impl TableBatch {
    pub fn new(table: usize) -> TableBatch {
        TableBatch { table, bytes: Vec::new(), rows: Vec::new(), dead: Vec::new(), segments: Vec::new() }
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
}
