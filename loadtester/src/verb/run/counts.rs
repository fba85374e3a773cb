//! What all threads have counted, added up. Each counts for itself; nothing here is on the way of a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::judge::summary::Totals;
use crate::measure::latency::{Collector, Set};
use crate::send::generate;
use crate::send::reader;
use crate::watch::counters;

pub struct Counts {
    collectors: Vec<Collector>,
    generators: Vec<Arc<generate::Counters>>,
    readers: Vec<Arc<reader::Counters>>,
    pub probe: Arc<counters::Counters>,
    /// The histograms of the latest second, and of all so far.
    pub second: Set,
    pub total: Set,
}

impl Counts {
    /// `rows` of histograms: one for each model, then one for each reader.
    pub fn new(
        rows: usize,
        collectors: Vec<Collector>,
        generators: Vec<Arc<generate::Counters>>,
        readers: Vec<Arc<reader::Counters>>,
        probe: Arc<counters::Counters>,
    ) -> Self {
        Self { collectors, generators, readers, probe, second: Set::new(rows), total: Set::new(rows) }
    }

    /// Takes in what the threads have handed over since the last call, and what they left behind.
    pub fn collect(&mut self, left_behind: &[Box<Set>]) {
        self.second.clear();
        for collector in &self.collectors {
            collector.collect(&mut self.second);
        }
        left_behind.iter().for_each(|set| self.second.merge(set));
        self.total.merge(&self.second);
    }

    pub fn totals(&self) -> Totals {
        let sum = |of: fn(&generate::Counters) -> &AtomicU64| {
            self.generators.iter().map(|c| of(c).load(Relaxed)).sum()
        };
        let of_readers = |of: fn(&reader::Counters) -> &AtomicU64| {
            self.readers.iter().map(|c| of(c).load(Relaxed)).sum::<u64>()
        };
        Totals {
            sent: sum(|c| &c.sent),
            bytes: sum(|c| &c.bytes),
            acked: sum(|c| &c.acked),
            failed: sum(|c| &c.failed),
            indeterminate: sum(|c| &c.indeterminate),
            queue_full: sum(|c| &c.queue_full),
            steady_due: sum(|c| &c.steady_due),
            steady_sent: sum(|c| &c.steady_sent),
            stored: self.probe.stored.sum(),
            refused: sum(|c| &c.refused),
            retried: sum(|c| &c.retried),
            connects: sum(|c| &c.connects),
            closes: sum(|c| &c.closes),
            no_room: sum(|c| &c.no_room) + of_readers(|c| &c.no_room),
            asked: of_readers(|c| &c.asked),
            unanswered: of_readers(|c| &c.unanswered),
            wrong: of_readers(|c| &c.wrong),
        }
    }

    /// Where nobody looks, nothing is known of it.
    pub fn backlog(&self, totals: &Totals) -> Option<f64> {
        self.has_looked().then(|| totals.acked.saturating_sub(totals.stored) as f64)
    }

    /// Answers that came from the future.
    pub fn ahead(&self) -> u64 {
        self.readers.iter().map(|counters| counters.ahead.load(Relaxed)).sum()
    }

    pub fn has_looked(&self) -> bool {
        self.probe.looks.load(Relaxed) > 0
    }
}
