//! Instruments: counters, histograms and clocks that the stages move, once a batch and never once a record. Nobody waits
//! for a reader: everything is a relaxed atomic, and whoever asks reads it as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::base::failure::Class;
use crate::base::lock::lock;

/// What one poller did.
#[derive(Debug, Default)]
pub struct PollMetrics {
    pub records: AtomicU64,
    /// Records that came twice, too late, or before the proof of their log.
    pub dropped: AtomicU64,
    pub bytes: AtomicU64,
}

impl PollMetrics {
    pub fn add(&self, records: u64, dropped: u64, bytes: u64) {
        self.records.fetch_add(records, Relaxed);
        self.dropped.fetch_add(dropped, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

/// Upper bounds in seconds: from a commit on a local disk to a table that is locked for a minute.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The same for a record's way from its producer: after an outage this is hours.
const AGES: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

const ROWS: &[f64] =
    &[1.0, 10.0, 100.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0];

/// A histogram with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what lies above them all.
    counts: Vec<AtomicU64>,
    /// In millionths, so that it can be added without a lock.
    sum_millionths: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    pub bounds: &'static [f64],
    /// Not cumulative; one more than bounds.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    /// For answers and commits: from a millisecond to a minute.
    pub fn of_seconds() -> Histogram {
        Histogram::new(SECONDS)
    }

    fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum_millionths: AtomicU64::new(0) }
    }

    /// `value` is in the unit of the bounds; what is below zero (a producer's clock runs ahead) counts as zero.
    pub fn observe(&self, value: f64) {
        let value = value.max(0.0);
        self.counts[self.bounds.partition_point(|bound| *bound < value)].fetch_add(1, Relaxed);
        self.sum_millionths.fetch_add((value * 1e6) as u64, Relaxed);
    }

    pub fn read(&self) -> Buckets {
        Buckets {
            bounds: self.bounds,
            counts: self.counts.iter().map(|c| c.load(Relaxed)).collect(),
            sum: self.sum_millionths.load(Relaxed) as f64 / 1e6,
        }
    }
}

/// What the writers of one table did.
#[derive(Debug)]
pub struct TableMetrics {
    /// Committed rows.
    pub rows: AtomicU64,
    /// Committed dead letters.
    pub dead: AtomicU64,
    pub transactions: AtomicU64,
    /// Encoded rows that were committed.
    pub bytes: AtomicU64,
    /// Batches that were sent again, by what went wrong.
    retries: [AtomicU64; Class::ALL.len()],
    /// Commits whose outcome had to be asked for.
    pub resolved: AtomicU64,
    pub fenced: AtomicU64,
    /// Chunks of rows that the server answered to while bad ones were looked for.
    pub tried: AtomicU64,
    pub batch_rows: Histogram,
    /// From the COMMIT's sending to its reply.
    pub commit_seconds: Histogram,
    /// From BEGIN to the COMMIT's reply.
    pub transaction_seconds: Histogram,
    /// From the timestamp of a span's oldest record to its commit.
    pub age_seconds: Histogram,
    dead_reasons: Mutex<BTreeMap<Cow<'static, str>, u64>>,
}

/// Distinct reasons of one table: ours, and as many SQLSTATEs. A table with triggers might invent more.
pub const REASONS_MAX: usize = 64;

/// Stands for all reasons beyond the bound.
const OTHER_REASON: &str = "other";

/// A sum of tables at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub rows: u64,
    pub dead: u64,
    pub transactions: u64,
}

impl TableMetrics {
    /// `reasons` are the codes of those dead letters that are known beforehand.
    pub fn new(reasons: impl IntoIterator<Item = &'static str>) -> TableMetrics {
        TableMetrics {
            rows: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            retries: Default::default(),
            resolved: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            batch_rows: Histogram::new(ROWS),
            commit_seconds: Histogram::new(SECONDS),
            transaction_seconds: Histogram::new(SECONDS),
            age_seconds: Histogram::new(AGES),
            // A series that appears with its first event hides that event from rate().
            dead_reasons: Mutex::new(reasons.into_iter().map(|code| (code.into(), 0)).collect()),
        }
    }

    pub fn totals<'a>(tables: impl IntoIterator<Item = &'a TableMetrics>) -> Totals {
        tables.into_iter().fold(Totals::default(), |sum, table| Totals {
            rows: sum.rows + table.rows.load(Relaxed),
            dead: sum.dead + table.dead.load(Relaxed),
            transactions: sum.transactions + table.transactions.load(Relaxed),
        })
    }

    pub fn retried(&self, class: Class) {
        self.retries[class as usize].fetch_add(1, Relaxed);
    }

    pub fn retries(&self) -> impl Iterator<Item = (Class, u64)> + '_ {
        Class::ALL.iter().map(|class| (*class, self.retries[*class as usize].load(Relaxed)))
    }

    /// Counts one committed dead letter.
    pub fn dead_letter(&self, reason: &str) {
        let mut reasons = lock(&self.dead_reasons);
        if let Some(count) = reasons.get_mut(reason) {
            *count += 1;
            return;
        }
        let known = if reasons.len() < REASONS_MAX { reason.to_owned() } else { OTHER_REASON.to_owned() };
        *reasons.entry(known.into()).or_default() += 1;
    }

    pub fn dead_letters(&self) -> Vec<(String, u64)> {
        let reasons = lock(&self.dead_reasons);
        reasons.iter().map(|(reason, count)| (reason.to_string(), *count)).collect()
    }

    /// Moves whenever the writers did something: committed, tried again, asked.
    pub fn signs_of_life(&self) -> u64 {
        let retries: u64 = self.retries().map(|(_, count)| count).sum();
        let others = [&self.transactions, &self.resolved, &self.fenced, &self.tried];
        retries + others.map(|counter| counter.load(Relaxed)).iter().sum::<u64>()
    }
}

/// What a thread waits for when it does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The stage before it has nothing.
    Input,
    /// The stage after it has no room.
    Output,
    /// The memory budget is used up.
    Memory,
    /// Redis has not answered.
    Lookup,
    /// The floor between two transactions.
    Pace,
    /// PostgreSQL refused or is away.
    Retry,
}

impl Wait {
    pub const ALL: &[Wait] =
        &[Wait::Input, Wait::Output, Wait::Memory, Wait::Lookup, Wait::Pace, Wait::Retry];

    /// Its name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Wait::Input => "input",
            Wait::Output => "output",
            Wait::Memory => "memory",
            Wait::Lookup => "lookup",
            Wait::Pace => "pace",
            Wait::Retry => "retry",
        }
    }
}

/// Where one thread of the pipeline loses its time.
#[derive(Debug)]
pub struct Waits {
    pub thread: String,
    /// Taken twice a batch, and by whoever asks.
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    waited: [Duration; Wait::ALL.len()],
    /// A wait that goes on: one of hours must not show up all at once when it ends.
    now: Option<(Wait, Instant)>,
}

impl Waits {
    pub fn new(thread: &str) -> Arc<Waits> {
        Arc::new(Waits { thread: thread.to_owned(), times: Mutex::default() })
    }

    /// Waits do not nest.
    pub fn during<T>(&self, wait: Wait, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        self.times().now = Some((wait, start));
        let result = call();
        let mut times = self.times();
        times.now = None;
        times.waited[wait as usize] += start.elapsed();
        result
    }

    pub fn add(&self, wait: Wait, time: Duration) {
        self.times().waited[wait as usize] += time;
    }

    pub fn seconds(&self, wait: Wait) -> f64 {
        let times = self.times();
        let going_on = times.now.filter(|(now, _)| *now == wait).map(|(_, start)| start.elapsed());
        (times.waited[wait as usize] + going_on.unwrap_or_default()).as_secs_f64()
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        lock(&self.times)
    }
}

/// How the answers of one lookup came about, in all decoders.
#[derive(Debug, Default)]
pub struct LookupMetrics {
    /// Records answered from the cache.
    pub hits: AtomicU64,
    /// Tokens that Redis was asked for and had.
    pub found: AtomicU64,
    /// Tokens that Redis was asked for and did not have.
    pub missing: AtomicU64,
    /// Questions that failed or were put off: Redis is away, or seems to have lost its data.
    pub retries: AtomicU64,
    pub trouble: Trouble,
}

/// What a server does not do at the moment, in words, and since when: for whoever asks why nothing goes on.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<(Instant, String)>>);

impl Trouble {
    /// It goes on, or begins now; the words are the newest ones.
    pub fn is(&self, words: &str) {
        let mut trouble = lock(&self.0);
        let since = trouble.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *trouble = Some((since, words.to_owned()));
    }

    pub fn ends(&self) {
        *lock(&self.0) = None;
    }

    /// For how long, and the words; `None` where all is well.
    pub fn shown(&self) -> Option<(Duration, String)> {
        lock(&self.0).as_ref().map(|(since, words)| (since.elapsed(), words.clone()))
    }
}

/// When the lease thread last heard from the ledger.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds since `start`, plus one; 0 before the first.
    at_ms: AtomicU64,
    /// Why there is none.
    pub trouble: Trouble,
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat { start: Instant::now(), at_ms: AtomicU64::new(0), trouble: Trouble::default() }
    }
}

impl Heartbeat {
    pub fn beat(&self) {
        self.at_ms.store(self.start.elapsed().as_millis() as u64 + 1, Relaxed);
        self.trouble.ends();
    }

    /// `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        let at = self.at_ms.load(Relaxed).checked_sub(1)?;
        Some(self.start.elapsed().saturating_sub(Duration::from_millis(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_once_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&[1.0, 10.0]);
        for value in [-5.0, 0.5, 1.0, 1.1, 10.0, 11.0] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read.counts, [3, 2, 1]);
        assert!((read.sum - 23.6).abs() < 1e-6, "{}", read.sum);
    }

    #[test]
    fn reasons_exist_before_their_first_letter_and_are_bounded() {
        let table = TableMetrics::new(["invalid_json", "too_long"]);
        assert_eq!(table.dead_letters(), [("invalid_json".to_owned(), 0), ("too_long".to_owned(), 0)]);
        for number in 0..1000 {
            table.dead_letter(&format!("sqlstate_{number:05}"));
        }
        table.dead_letter("too_long");
        let letters: BTreeMap<String, u64> = table.dead_letters().into_iter().collect();
        assert!(letters.len() <= REASONS_MAX + 1, "{}", letters.len());
        assert_eq!(letters.values().sum::<u64>(), 1001);
        assert_eq!(letters["too_long"], 1);
    }

    #[test]
    fn a_wait_is_seen_while_it_goes_on() {
        let waits = Waits::new("t");
        let seen = waits.during(Wait::Input, || {
            std::thread::sleep(Duration::from_millis(20));
            (waits.seconds(Wait::Input), waits.seconds(Wait::Output))
        });
        assert!(seen.0 >= 0.02 && seen.1 == 0.0, "{seen:?}");
        assert!(waits.seconds(Wait::Input) >= seen.0);
    }
}
