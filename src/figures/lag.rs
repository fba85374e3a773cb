//! How far a partition is behind, in records and in seconds: fed by the poller, the watch thread and the writers, for people
//! only. Nothing is decided by it.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// The lag of one claimed partition. Times are milliseconds since 1970 UTC by this machine's clock or by the records' own;
/// 0 is never.
#[derive(Debug)]
pub struct Lag {
    /// The log's end as last seen; -1 while unknown.
    log_end: AtomicI64,
    claimed: AtomicI64,
    /// The timestamp of the first record that the poller passed on.
    first_record: AtomicI64,
    /// When all tables were last seen to have everything.
    level: AtomicI64,
}

impl Lag {
    /// Of a partition that was claimed just now.
    pub fn begin() -> Lag {
        Lag {
            log_end: AtomicI64::new(-1),
            claimed: AtomicI64::new(now_ms()),
            first_record: AtomicI64::new(0),
            level: AtomicI64::new(0),
        }
    }

    /// Notes when the first record that was passed on was stamped; later ones change nothing.
    pub fn note_first(&self, first_ms: Option<i64>) {
        if self.first_record.load(Relaxed) == 0 {
            self.first_record.store(first_ms.unwrap_or_default(), Relaxed);
        }
    }

    /// Notes where the log ends; `committed` is the slowest table's next offset.
    pub fn set_log_end(&self, end: i64, committed: i64) {
        self.log_end.store(end, Relaxed);
        self.note_level(committed);
    }

    /// Notes that the log goes so far at least: what says so may be older than what was noted.
    pub fn raise_log_end(&self, end: i64, committed: i64) {
        self.log_end.fetch_max(end, Relaxed);
        self.note_level(committed);
    }

    fn note_level(&self, committed: i64) {
        if self.records(committed) == Some(0) {
            self.level.store(now_ms(), Relaxed);
        }
    }

    /// Records between a table's next offset and the log's end; `None` until the end is known.
    pub fn records(&self, committed: i64) -> Option<i64> {
        let end = self.log_end.load(Relaxed);
        (end >= 0).then(|| (end - committed).max(0))
    }

    /// For how long the oldest record that a table lacks has waited, in seconds; `last_ms` is when the last one that it has
    /// was stamped. As exact as records' timestamps are, and no larger than the time since the table was last seen to have
    /// everything.
    pub fn seconds(&self, committed: i64, last_ms: i64) -> Option<f64> {
        let records = self.records(committed)?;
        let [claimed, first, level] =
            [&self.claimed, &self.first_record, &self.level].map(|time| time.load(Relaxed));
        Some(lag_seconds(records, now_ms(), LagTimes { claimed, first, level, last: last_ms }))
    }
}

/// What is known about when a record may have been waiting since; 0 is unknown.
#[derive(Clone, Copy, Debug)]
struct LagTimes {
    claimed: i64,
    first: i64,
    level: i64,
    /// The last committed record's timestamp.
    last: i64,
}

/// A table that has everything has no lag. Otherwise the oldest record that it lacks came after the last one that it has,
/// and after the moment at which nothing was lacking.
fn lag_seconds(records: i64, now_ms: i64, times: LagTimes) -> f64 {
    if records == 0 {
        return 0.0;
    }
    let since = match times.last.max(times.level) {
        0 if times.first > 0 => times.first,
        // Right after a claim nothing was read yet: at least since then.
        0 => times.claimed,
        known => known,
    };
    (now_ms - since).max(0) as f64 / 1000.0
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_in_seconds_is_the_wait_of_the_oldest_record() {
        #[track_caller]
        fn check(records: i64, [claimed, first, level, last]: [i64; 4], expected: f64) {
            let seconds = lag_seconds(records, 100_000, LagTimes { claimed, first, level, last });
            assert!((seconds - expected).abs() < 1e-9, "{seconds}");
        }
        check(0, [90_000, 10_000, 0, 10_000], 0.0);
        // Taken over, and nothing read yet.
        check(5, [99_000, 0, 0, 0], 1.0);
        // Read, and not committed yet.
        check(5, [99_000, 40_000, 0, 0], 60.0);
        check(5, [99_000, 40_000, 0, 70_000], 30.0);
        // A quiet topic: the last record is an hour old, but nothing was lacking two seconds ago.
        check(1, [1, 1, 98_000, 10], 2.0);
        // A producer whose clock runs ahead.
        check(1, [1, 1, 0, 200_000], 0.0);
    }
}
