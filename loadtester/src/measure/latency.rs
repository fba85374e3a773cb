//! Latency histograms: one set per thread, handed over once a second and merged by the reporter. No lock and, once the
//! histograms have grown to their range, no allocation on the way of a message.

use crossbeam_channel::{Receiver, Sender, bounded};
use hdrhistogram::Histogram;
use serde::Serialize;

/// What is measured. All but `AckService` count from the moment the message was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Latency {
    /// Handed to the producer.
    ScheduleLag,
    /// The broker's acknowledgement arrived.
    Ack,
    /// The same, counted from the hand-over: what the producer and the broker took.
    AckService,
    /// The row's own `timestamp`.
    Row,
    /// The commit of the row's transaction, where the server keeps commit times.
    Commit,
    /// The first read that saw the row.
    Visible,
    /// The read before it, which did not: the row became visible between the two.
    VisibleLower,
    /// A server's no.
    Refused,
    /// The answer to a reader.
    Answer,
    /// By how much the newest value that a reader got was older than the newest that had been acknowledged when it asked; this
    /// one does not count from a moment.
    Behind,
}

pub const LATENCIES: [Latency; 10] = [
    Latency::ScheduleLag,
    Latency::Ack,
    Latency::AckService,
    Latency::Row,
    Latency::Commit,
    Latency::Visible,
    Latency::VisibleLower,
    Latency::Refused,
    Latency::Answer,
    Latency::Behind,
];

impl Latency {
    pub fn name(self) -> &'static str {
        match self {
            Latency::ScheduleLag => "schedule_lag",
            Latency::Ack => "ack",
            Latency::AckService => "ack_service",
            Latency::Row => "row",
            Latency::Commit => "commit",
            Latency::Visible => "visible",
            Latency::VisibleLower => "visible_lower",
            Latency::Refused => "refused",
            Latency::Answer => "answer",
            Latency::Behind => "behind",
        }
    }
}

/// An hour in microseconds. What takes longer is counted there and as overflow.
const LONGEST_US: u64 = 3_600_000_000;

/// A histogram of microseconds with three significant digits. It grows with the largest value it has seen.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// 32 bits count the two thousand million messages of the largest run, in half the memory.
    pub histogram: Histogram<u32>,
    pub overflow: u64,
    /// Only the `row` latency can be negative: two clocks take part in it. These are counted, not dropped or clamped.
    pub negative: u64,
    pub most_negative_us: i64,
}

impl Default for Recorder {
    fn default() -> Self {
        let histogram = Histogram::new(3).expect("three digits are within the allowed range");
        Self { histogram, overflow: 0, negative: 0, most_negative_us: 0 }
    }
}

impl Recorder {
    pub fn record(&mut self, us: i64) {
        if us < 0 {
            self.negative += 1;
            self.most_negative_us = self.most_negative_us.min(us);
            return;
        }
        // Zero has no place on a logarithmic scale; a microsecond is the resolution.
        let value = (us as u64).max(1);
        self.overflow += u64::from(value > LONGEST_US);
        self.histogram.record(value.min(LONGEST_US)).expect("a resizing histogram takes any value");
    }

    pub fn merge(&mut self, other: &Recorder) {
        self.histogram.add(&other.histogram).expect("a resizing histogram takes any other");
        self.overflow += other.overflow;
        self.negative += other.negative;
        self.most_negative_us = self.most_negative_us.min(other.most_negative_us);
    }

    pub fn clear(&mut self) {
        self.histogram.reset();
        self.overflow = 0;
        self.negative = 0;
        self.most_negative_us = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    pub fn summary(&self) -> Summary {
        let at = |quantile| self.histogram.value_at_quantile(quantile).min(self.histogram.max());
        Summary {
            count: self.histogram.len(),
            min: if self.is_empty() { 0 } else { self.histogram.min() },
            mean: self.histogram.mean(),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: self.histogram.max(),
        }
    }
}

/// The percentiles that are printed everywhere, in microseconds. `p999` is the 99.9th.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub count: u64,
    pub min: u64,
    pub mean: f64,
    pub p50: u64,
    pub p75: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p999: u64,
    pub p9999: u64,
    pub max: u64,
}

impl Summary {
    pub fn parts(&self) -> [(&'static str, f64); 11] {
        [
            ("min", self.min as f64),
            ("mean", self.mean),
            ("p50", self.p50 as f64),
            ("p75", self.p75 as f64),
            ("p90", self.p90 as f64),
            ("p95", self.p95 as f64),
            ("p99", self.p99 as f64),
            ("p999", self.p999 as f64),
            ("p9999", self.p9999 as f64),
            ("max", self.max as f64),
            ("count", self.count as f64),
        ]
    }
}

/// The recorders of one thread, by model and by what is measured.
#[derive(Clone, Debug)]
pub struct Set {
    models: Vec<[Recorder; LATENCIES.len()]>,
}

impl Set {
    pub fn new(models: usize) -> Self {
        Self { models: (0..models).map(|_| Default::default()).collect() }
    }

    pub fn of(&mut self, model: usize, latency: Latency) -> &mut Recorder {
        &mut self.models[model][latency as usize]
    }

    pub fn get(&self, model: usize, latency: Latency) -> &Recorder {
        &self.models[model][latency as usize]
    }

    /// One recorder for all models together.
    pub fn all(&self, latency: Latency) -> Recorder {
        let mut all = Recorder::default();
        for model in &self.models {
            all.merge(&model[latency as usize]);
        }
        all
    }

    pub fn merge(&mut self, other: &Set) {
        for (mine, theirs) in self.models.iter_mut().zip(&other.models) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                if !theirs.is_empty() || theirs.negative > 0 {
                    mine.merge(theirs);
                }
            }
        }
    }

    pub fn clear(&mut self) {
        // What was not used is not touched: most threads record two or three of them.
        let used = |recorder: &&mut Recorder| !recorder.is_empty() || recorder.negative > 0;
        self.models.iter_mut().flatten().filter(used).for_each(Recorder::clear);
    }
}

/// A thread's end of the hand-over. Two sets travel back and forth; where the reporter is late, recording goes on in the
/// set at hand and nothing is lost.
pub struct Recording {
    pub set: Box<Set>,
    full: Sender<Box<Set>>,
    empty: Receiver<Box<Set>>,
    next_ns: i64,
}

/// The reporter's end.
pub struct Collector {
    full: Receiver<Box<Set>>,
    empty: Sender<Box<Set>>,
}

const HAND_OVER_NS: i64 = 1_000_000_000;

pub fn recording(models: usize) -> (Recording, Collector) {
    let (full, collect) = bounded(2);
    let (give_back, empty) = bounded(2);
    give_back.send(Box::new(Set::new(models))).expect("the channel has room for two");
    let set = Box::new(Set::new(models));
    (Recording { set, full, empty, next_ns: 0 }, Collector { full: collect, empty: give_back })
}

impl Recording {
    pub fn hand_over_if_due(&mut self, now_ns: i64) {
        if now_ns < self.next_ns {
            return;
        }
        self.next_ns = now_ns.div_euclid(HAND_OVER_NS) * HAND_OVER_NS + HAND_OVER_NS;
        if let Ok(spare) = self.empty.try_recv() {
            let filled = std::mem::replace(&mut self.set, spare);
            self.full.send(filled).ok();
        }
    }
}

impl Collector {
    /// Adds what was handed over since the last call to `sum`.
    pub fn collect(&self, sum: &mut Set) {
        while let Ok(mut set) = self.full.try_recv() {
            sum.merge(&set);
            set.clear();
            self.empty.try_send(set).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_the_range_are_counted_not_lost() {
        let mut recorder = Recorder::default();
        for us in [-5, -1, 0, 1, 1000, 2 * LONGEST_US as i64] {
            recorder.record(us);
        }
        assert_eq!((recorder.negative, recorder.most_negative_us, recorder.overflow), (2, -5, 1));
        assert_eq!((recorder.summary().count, recorder.summary().min), (4, 1));
    }

    #[test]
    fn percentiles_are_within_three_digits() {
        let mut recorder = Recorder::default();
        (1..=100_000).for_each(|us| recorder.record(us));
        let summary = recorder.summary();
        for (found, expected) in [(summary.p50, 50_000.0), (summary.p99, 99_000.0), (summary.p999, 99_900.0)]
        {
            assert!((found as f64 / expected - 1.0).abs() < 0.001, "{found} {expected}");
        }
    }

    #[test]
    fn nothing_is_lost_while_the_reporter_is_late() {
        let (mut recording, collector) = recording(1);
        for second in 0..10 {
            recording.set.of(0, Latency::Ack).record(100);
            recording.hand_over_if_due(second * HAND_OVER_NS + 1);
        }
        let mut sum = Set::new(1);
        collector.collect(&mut sum);
        recording.hand_over_if_due(20 * HAND_OVER_NS);
        collector.collect(&mut sum);
        sum.merge(&recording.set);
        assert_eq!(sum.all(Latency::Ack).summary().count, 10);
    }
}
