//! What a writer has in hand: rows that no transaction took yet, and positions that wait without rows. Pure; the simulator
//! drives it as well.

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
    /// What one transaction had no room for; it comes before anything else.
    rest: Option<TableBatch>,
}

impl Hand {
    /// What the transaction before had no room for.
    pub fn take_rest(&mut self) -> Option<TableBatch> {
        self.rest.take()
    }

    /// Takes `first` and what `more` gives, up to `bytes_max` of rows: what a batch has beyond that is the rest, and so is one
    /// of another edition. Behind a table that was stuck, one batch may have grown to the whole budget. A load of positions
    /// alone waits for rows.
    pub fn gather(
        &mut self,
        first: TableBatch,
        bytes_max: usize,
        mut more: impl FnMut() -> Option<TableBatch>,
    ) {
        let mut room = bytes_max;
        let mut next = Some(first);
        while let Some(mut batch) = next {
            if self.load.last().is_some_and(|before| before.edition != batch.edition) {
                self.rest = Some(batch);
                break;
            }
            let fits = batch.rows.partition_point(|row| row.end as usize <= room);
            if fits < batch.rows.len() {
                // Records go whole, and one at least, however large.
                let record = batch.record_rows(fits);
                let at = if record.start == 0 && self.load.is_empty() { record.end } else { record.start };
                self.rest = Some(batch.split_off(at)).filter(|rest| !rest.segments.is_empty());
                self.load.push(batch);
                break;
            }
            room -= batch.bytes.len();
            self.load.push(batch);
            next = more();
        }
        self.load.retain(|batch| !batch.segments.is_empty());
        if self.load.iter().all(TableBatch::is_positions_only) {
            for segment in self.load.drain(..).flat_map(|batch| batch.segments) {
                keep_idle(&mut self.idle, segment.span);
            }
        }
    }

    /// Takes more of the same edition to a load that cannot be written, however much is there: the budget bounds it.
    pub fn more(&mut self, mut more: impl FnMut() -> Option<TableBatch>) {
        while self.rest.is_none()
            && let Some(batch) = more()
        {
            match self.edition() {
                Some(edition) if edition != batch.edition => self.rest = Some(batch),
                _ => self.load.push(batch),
            }
        }
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
        self.keep(|span| !done.iter().any(|d| covers(d, span)));
    }

    fn keep(&mut self, keep: impl Fn(&Span) -> bool) {
        self.idle.retain(&keep);
        self.load.iter_mut().for_each(|batch| batch.retain_spans(&keep));
        self.load.retain(|batch| !batch.segments.is_empty());
    }
}

/// True if a transaction with `span` wrote what `part` stands for.
pub fn covers(span: &Span, part: &Span) -> bool {
    Arc::ptr_eq(&span.claim, &part.claim) && part.next <= span.next
}

fn keep_idle(idle: &mut Vec<Span>, span: Span) {
    match idle.iter_mut().find(|s| Arc::ptr_eq(&s.claim, &span.claim)) {
        Some(known) => known.join(&span),
        None => idle.push(span),
    }
}

fn note_committed(spans: &[Span]) {
    spans.iter().for_each(|span| span.lane().set_committed(span.next));
}
