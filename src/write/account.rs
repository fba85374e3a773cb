//! What a commit adds to the figures, and what the guard is told.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::hand::Written;
use super::told::Told;
use super::{State, Writer};
use crate::promise::batch::{DeadLetter, TableBatch};
use crate::promise::guard::Tally;
use crate::promise::span::Span;

impl Writer {
    /// Counts committed spans. They were written from the first batches in hand, which may hold more.
    pub(super) fn account(&self, state: &mut State, spans: &[Span], batches: usize) {
        let load = &state.hand.load()[..batches];
        let now_ms = jiff::Timestamp::now().as_millisecond();
        for span in spans {
            self.note(span, now_ms);
            self.metrics.rows.fetch_add(span.counts.rows as u64, Relaxed);
            self.metrics.dead.fetch_add(span.counts.dead as u64, Relaxed);
        }
        self.metrics.transactions.fetch_add(1, Relaxed);
        self.metrics.batch_rows.observe(spans.iter().map(|s| s.counts.rows).sum::<i64>() as f64);
        let written = Written::of(spans);
        let is_in = |part: &Span| written.holds(part);
        for batch in load {
            for segment in batch.segments.iter().filter(|s| is_in(&s.span)) {
                self.metrics.bytes.fetch_add(batch.rows_bytes(segment.rows.clone()).len() as u64, Relaxed);
            }
            for dead in batch.dead.iter().filter(|d| is_in(&batch.segments[d.segment].span)) {
                self.metrics.dead_letter(&dead.reason);
                self.tell(&mut state.told, batch, dead);
            }
        }
        if let Some(guard) = &self.guard {
            for (topic, tally) in tallies(load, is_in) {
                if guard.note(topic, tally) {
                    log::info!("topic {:?} goes on", self.topic_name(topic));
                }
            }
        }
    }

    /// Says that records are set aside, once in a while for each reason.
    fn tell(&self, told: &mut Told, batch: &TableBatch, dead: &DeadLetter) {
        if told.is_due(&dead.reason, Instant::now()) {
            log::warn!(
                "table {}: a record is set aside as {}, at {}; `rowmill dead-letters list` shows it and those that follow",
                self.name,
                dead.reason,
                place(batch, dead)
            );
        }
    }

    fn note(&self, span: &Span, now_ms: i64) {
        let lane = span.lane();
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
        if let Some(last_ms) = span.times.last_ms {
            lane.set_record_ms(last_ms);
        }
        if let Some(first_ms) = span.times.first_ms {
            self.metrics.age_seconds.observe((now_ms - first_ms) as f64 / 1000.0);
        }
    }
}

/// A duplicate is what a unique index is there to refuse: a producer that sends a day again is no disaster.
const DUPLICATE: &str = "sqlstate_23505";

/// The outcomes of the segments that `is_in` takes, by topic, as the guard counts them.
pub(super) fn tallies(load: &[TableBatch], is_in: impl Fn(&Span) -> bool) -> BTreeMap<usize, Tally> {
    let mut topics: BTreeMap<usize, Tally> = BTreeMap::new();
    for batch in load {
        for segment in batch.segments.iter().filter(|s| is_in(&s.span)) {
            let tally = topics.entry(segment.span.claim.partition.topic).or_default();
            tally.rows += segment.span.counts.rows as u64;
        }
        for dead in batch.dead.iter().filter(|d| d.reason != DUPLICATE) {
            let span = &batch.segments[dead.segment].span;
            if is_in(span) {
                topics.entry(span.claim.partition.topic).or_default().dead += 1;
            }
        }
    }
    topics
}

/// Where the record of a dead letter stands.
fn place(batch: &TableBatch, dead: &DeadLetter) -> String {
    let segment = &batch.segments[dead.segment];
    let raw = segment.raw.as_ref().expect("a segment with dead letters keeps its records");
    format!(
        "partition {}/{} offset {}",
        segment.span.claim.topic,
        segment.span.claim.partition.id,
        raw.offset(dead.record as usize)
    )
}

/// The reason that most of a topic's dead letters have, and where the first of those stands. The letter's own sentence may
/// show what a record holds, so it is left out.
pub(super) fn most_common_reason(load: &[TableBatch], topic: usize) -> String {
    let mut reasons: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for batch in load {
        for dead in &batch.dead {
            if batch.segments[dead.segment].span.claim.partition.topic == topic {
                reasons.entry(&dead.reason).or_insert_with(|| (0, place(batch, dead))).0 += 1;
            }
        }
    }
    let most = reasons.iter().max_by_key(|(_, (count, _))| *count);
    most.map_or_else(String::new, |(reason, (_, place))| format!("{reason}, as at {place}"))
}
