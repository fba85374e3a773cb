//! What a commit adds to the figures, and what the guard is told.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::Writer;
use super::hand::covers;
use crate::promise::batch::TableBatch;
use crate::promise::guard::Tally;
use crate::promise::span::Span;

impl Writer {
    /// Counts committed spans. `load` is what they were written from; it may hold more.
    pub(super) fn account(&self, spans: &[Span], load: &[TableBatch]) {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        for span in spans {
            self.note(span, now_ms);
            self.metrics.rows.fetch_add(span.counts.rows as u64, Relaxed);
            self.metrics.dead.fetch_add(span.counts.dead as u64, Relaxed);
        }
        self.metrics.transactions.fetch_add(1, Relaxed);
        self.metrics.batch_rows.observe(spans.iter().map(|s| s.counts.rows).sum::<i64>() as f64);
        for batch in load {
            let is_in = |part: &Span| spans.iter().any(|span| covers(span, part));
            for segment in batch.segments.iter().filter(|s| is_in(&s.span)) {
                self.metrics.bytes.fetch_add(batch.rows_bytes(segment.rows.clone()).len() as u64, Relaxed);
            }
            for dead in batch.dead.iter().filter(|d| is_in(&batch.segments[d.segment].span)) {
                self.metrics.dead_letter(&dead.reason);
            }
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
}

/// A span's outcomes, as the guard counts them.
pub(super) fn tally(span: &Span) -> Tally {
    Tally { rows: span.counts.rows as u64, dead: span.counts.dead as u64 }
}

/// The reason that most of a topic's dead letters have, and where the first of those stands. The letter's own sentence may
/// show what a record holds, so it is left out.
pub(super) fn most_common_reason(load: &[TableBatch], topic: usize) -> String {
    let mut reasons: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for batch in load {
        for dead in &batch.dead {
            let segment = &batch.segments[dead.segment];
            let partition = segment.span.claim.partition;
            let place = || {
                let raw = segment.raw.as_ref().expect("a segment with dead letters keeps its records");
                format!("partition {} offset {}", partition.id, raw.offset(dead.record as usize))
            };
            if partition.topic == topic {
                reasons.entry(&dead.reason).or_insert_with(|| (0, place())).0 += 1;
            }
        }
    }
    let most = reasons.iter().max_by_key(|(_, (count, _))| *count);
    most.map_or_else(String::new, |(reason, (_, place))| format!("{reason}, as at {place}"))
}
