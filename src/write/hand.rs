//! What a writer has in hand: rows that no transaction took yet, and positions that wait without rows. Pure; the simulator
//! drives it as well.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::base::mutant::{Bug, planted};
use crate::promise::batch::{TableBatch, spans};
use crate::promise::decide::{Resolved, Standing, resolve};
use crate::promise::span::Span;

/// What is in hand of one table.
#[derive(Debug, Default)]
pub struct Hand {
    /// Spans without rows, one for each claim, waiting to be committed with the next rows.
    idle: Vec<Span>,
    /// The transaction's batches, in order.
    load: Vec<TableBatch>,
    /// What one transaction had no room for, in order; it comes before anything else.
    rest: VecDeque<TableBatch>,
}

impl Hand {
    /// What the transaction before had no room for.
    pub fn take_rest(&mut self) -> Option<TableBatch> {
        self.rest.pop_front()
    }

    /// Takes `first`, what is left from before, and what `more` gives, up to so much: what a batch has beyond that
    /// is the rest, and so is one of another edition. Behind a table that was stuck, one batch may have grown to the whole
    /// budget. A load of positions alone waits for rows.
    pub fn gather(&mut self, first: TableBatch, room: Room, mut more: impl FnMut() -> Option<TableBatch>) {
        let mut room = room;
        let mut next = Some(first);
        while let Some(mut batch) = next {
            if self.load.last().is_some_and(|before| before.edition != batch.edition) {
                self.rest.push_front(batch);
                break;
            }
            let rest = room.take(&mut batch, self.load.is_empty());
            self.load.push(batch);
            if let Some(rest) = rest {
                self.rest.push_front(rest);
                break;
            }
            next = self.rest.pop_front().or_else(&mut more);
        }
        self.load.retain(|batch| !batch.segments.is_empty());
        if self.load.iter().all(TableBatch::is_positions_only) {
            self.idle = self.spans();
            self.load.clear();
        }
    }

    /// Leaves in the load what has room, and one record at least: the rest is for later. False if that was everything.
    pub fn cut(&mut self, room: Room) -> bool {
        let mut room = room;
        let mut later: Vec<TableBatch> = Vec::new();
        for mut batch in std::mem::take(&mut self.load) {
            if !later.is_empty() {
                later.push(batch);
                continue;
            }
            later.extend(room.take(&mut batch, self.load.is_empty()));
            self.load.push(batch);
        }
        self.load.retain(|batch| !batch.segments.is_empty());
        let is_cut = !later.is_empty();
        later.into_iter().rev().for_each(|batch| self.rest.push_front(batch));
        is_cut
    }

    /// Takes more of the same edition to a load that cannot be written, however much is there: the budget bounds it.
    pub fn more(&mut self, mut more: impl FnMut() -> Option<TableBatch>) {
        while let Some(batch) = self.rest.pop_front().or_else(&mut more) {
            match self.edition() {
                Some(edition) if edition != batch.edition => {
                    self.rest.push_front(batch);
                    return;
                }
                _ => self.load.push(batch),
            }
        }
    }

    /// Rows of the load.
    pub fn rows(&self) -> usize {
        self.load.iter().map(|batch| batch.rows.len()).sum()
    }

    pub fn load(&self) -> &[TableBatch] {
        &self.load
    }

    /// Which edition of the plan the load's rows were encoded for; `None` without a load.
    pub fn edition(&self) -> Option<u64> {
        self.load.first().map(|batch| batch.edition)
    }

    pub fn load_mut(&mut self) -> &mut [TableBatch] {
        &mut self.load
    }

    /// The spans that wait without rows.
    pub fn idle(&self) -> &[Span] {
        &self.idle
    }

    /// Drops what must not be written: fenced, released, or stopped by the guard.
    pub fn drop_void(&mut self) {
        let is_spared = planted(Bug::HaltedIsWritten);
        self.keep(|span| span.claim.may_write() || is_spared && span.claim.is_current());
    }

    /// What a transaction of everything moves.
    pub fn spans(&self) -> Vec<Span> {
        spans(&self.idle, &self.load)
    }

    /// What a transaction of the first batch moves, with the positions that wait.
    pub fn spans_of_first(&self) -> Vec<Span> {
        spans(&self.idle, &self.load[..1])
    }

    /// Cuts the first batch at a row: what comes after it is a batch of its own.
    pub fn cut_first(&mut self, at: usize) {
        let tail = self.load[0].split_off(at);
        if !tail.segments.is_empty() {
            self.load.insert(1, tail);
        }
    }

    /// The transaction of all spans is committed.
    pub fn committed(&mut self, spans: &[Span]) {
        note_committed(spans);
        self.load.clear();
        self.idle.clear();
    }

    /// The transaction of the first batch is committed.
    pub fn committed_first(&mut self, spans: &[Span]) {
        note_committed(spans);
        self.load.remove(0);
        self.idle.clear();
    }

    /// What became of spans whose COMMIT had no answer, by what the ledger says of each. From now on each lane shows the
    /// epoch that the ledger gave it.
    pub fn judge(spans: Vec<Span>, standings: Vec<Option<Standing>>) -> Vec<(Span, Resolved)> {
        let judge = |(span, standing): (Span, Option<Standing>)| {
            if let Some(standing) = standing {
                span.lane().set_epoch(standing.epoch);
            }
            let resolved = resolve(span.first, span.next, standing.map(|s| s.next_offset));
            (span, resolved)
        };
        spans.into_iter().zip(standings).map(judge).collect()
    }

    /// Drops what turned out to be committed.
    pub fn settle(&mut self, done: &[Span]) {
        note_committed(done);
        let written = Written::of(done);
        self.keep(|span| !written.holds(span));
    }

    fn keep(&mut self, keep: impl Fn(&Span) -> bool) {
        self.idle.retain(&keep);
        self.load.iter_mut().for_each(|batch| batch.retain_spans(&keep));
        self.load.retain(|batch| !batch.segments.is_empty());
    }
}

/// What one transaction still has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub bytes: usize,
    pub rows: usize,
    /// Dead letters; one at least, at first.
    pub letters: usize,
}

impl Room {
    const NONE: Room = Room { bytes: 0, rows: 0, letters: 0 };

    /// Makes room for a batch: what it has beyond that is cut off. Records go whole, and the first one of all, however large.
    fn take(&mut self, batch: &mut TableBatch, is_first: bool) -> Option<TableBatch> {
        let fits = batch.rows.partition_point(|row| row.end as usize <= self.bytes).min(self.rows);
        let has_more_rows = fits < batch.rows.len();
        let row = has_more_rows.then(|| {
            let record = batch.record_rows(fits);
            if record.start == 0 && is_first { record.end } else { record.start }
        });
        let row = row.and_then(|row| batch.place_of_row(row));
        let letter = batch.place_of_letter(self.letters);
        if let Some(cut) = row.into_iter().chain(letter).min() {
            *self = Room::NONE;
            return Some(batch.split_off_at(cut));
        }
        *self = match has_more_rows {
            true => Room::NONE,
            false => Room {
                bytes: self.bytes - batch.bytes.len(),
                rows: self.rows - batch.rows.len(),
                letters: self.letters - batch.dead.len(),
            },
        };
        None
    }
}

/// What a transaction wrote: of each claim, up to where. A lookup, because thousands of partitions may be in one transaction.
pub struct Written(HashMap<usize, i64>);

impl Written {
    pub fn of(spans: &[Span]) -> Written {
        Written(spans.iter().map(|span| (address(span), span.next)).collect())
    }

    /// True if it wrote what `part` stands for.
    pub fn holds(&self, part: &Span) -> bool {
        self.0.get(&address(part)).is_some_and(|next| part.next <= *next)
    }
}

/// Of the claim: a partition that is claimed again is another one.
fn address(span: &Span) -> usize {
    Arc::as_ptr(&span.claim) as usize
}

fn note_committed(spans: &[Span]) {
    spans.iter().for_each(|span| span.lane().set_committed(span.next));
}
