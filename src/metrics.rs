//! Counters: each thread adds to its own, once a batch; the reporter sums them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

/// What the writers of one table did.
#[derive(Debug, Default)]
pub struct TableMetrics {
    /// Committed rows.
    pub rows: AtomicU64,
    /// Committed dead letters.
    pub dead: AtomicU64,
    pub transactions: AtomicU64,
    /// Batches that were sent again.
    pub retries: AtomicU64,
    /// Commits whose outcome had to be asked for.
    pub resolved: AtomicU64,
    pub fenced: AtomicU64,
}

/// A sum of tables at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub rows: u64,
    pub dead: u64,
    pub transactions: u64,
}

impl TableMetrics {
    pub fn totals<'a>(tables: impl IntoIterator<Item = &'a TableMetrics>) -> Totals {
        tables.into_iter().fold(Totals::default(), |sum, table| Totals {
            rows: sum.rows + table.rows.load(Relaxed),
            dead: sum.dead + table.dead.load(Relaxed),
            transactions: sum.transactions + table.transactions.load(Relaxed),
        })
    }
}

/// What the report line shows beside the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Records between the tables and the logs' ends; `None` until it is known for all partitions.
    pub lag: Option<i64>,
    pub partitions: usize,
    pub stopped: usize,
    pub raw_batches: usize,
    pub table_batches: usize,
    pub bytes_in_hand: i64,
}

/// One line for people: what happened between two totals, `seconds` apart.
pub fn report_line(before: Totals, now: Totals, seconds: f64, gauges: Gauges) -> String {
    let rate = |from: u64, to: u64| (to - from) as f64 / seconds;
    let transactions = now.transactions - before.transactions;
    let batch = (now.rows - before.rows).checked_div(transactions).unwrap_or(0);
    let lag = gauges.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
    let mut line = format!(
        "{:.0} rows/s, lag {lag}, {} rows and {} dead letters, {:.0} commits/s of {batch} rows, {} partitions, queues {}+{}, \
         {:.1} MB in hand",
        rate(before.rows, now.rows),
        now.rows,
        now.dead,
        rate(before.transactions, now.transactions),
        gauges.partitions,
        gauges.raw_batches,
        gauges.table_batches,
        gauges.bytes_in_hand as f64 / 1e6,
    );
    if gauges.stopped > 0 {
        line.push_str(&format!(", {} partitions STOPPED (see rowmill status)", gauges.stopped));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_happened() {
        let before = Totals { rows: 100, dead: 1, transactions: 1 };
        let now = Totals { rows: 2100, dead: 3, transactions: 11 };
        let gauges = Gauges {
            lag: Some(5),
            partitions: 6,
            stopped: 1,
            raw_batches: 1,
            table_batches: 2,
            bytes_in_hand: 1_500_000,
        };
        assert_eq!(
            report_line(before, now, 2.0, gauges),
            "1000 rows/s, lag 5, 2100 rows and 3 dead letters, 5 commits/s of 200 rows, 6 partitions, queues 1+2, 1.5 MB in \
             hand, 1 partitions STOPPED (see rowmill status)"
        );
    }
}
