//! How much one transaction takes, and how long its statements may last: a function of what the last ones took. Pure; the
//! simulator drives it as well.
//!
//! What a row costs the server is its own matter: a trigger may make it a thousand times dearer than its bytes, and may begin
//! to do so at any moment. So a transaction aims at a time. It is cut off where it lasts far longer, so that the server never
//! goes on with what nobody waits for, and fewer rows are sent then.

use std::time::Duration;

/// What a transaction with much to write should take: long enough that its own cost does not count, short enough that a table
/// that is slow is seen to go on, and that an orderly end need not wait.
const AIM: Duration = Duration::from_secs(1);

/// Rows of the first transaction, and of the one after one that was cut off: nothing is known of the table then. With a tenth
/// of a second a row they take little longer than is aimed at; a quick table is at its full size a few transactions later.
const FIRST_ROWS: usize = 16;

/// From one transaction to the next, at most.
const GROWTH: usize = 4;

/// No bound any more: the bytes are one before.
const ROWS_MAX: usize = 1 << 18;

/// Beside waits for locks, which have a bound of their own, a statement may last this long: several times what is aimed at.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a COMMIT takes where it makes nothing durable but itself creeps up to what it takes now, by a fourth each time.
const COMMIT_CREEP: (u32, u32) = (5, 4);

/// Where rows of one key become one, a transaction with about so many of them is as large as it should be.
const KEYS: usize = 16_000;

/// So many times as many bytes may then come before they are folded: what the writers of a process hold has a bound.
const WIDTH_MAX: usize = 4;

/// What is known of one table.
#[derive(Clone, Debug)]
pub struct Size {
    rows: usize,
    width: usize,
    patience: Duration,
    /// The shortest COMMIT of late: that much of each does not depend on its rows.
    commit_least: Option<Duration>,
}

impl Default for Size {
    fn default() -> Size {
        Size { rows: FIRST_ROWS, width: 1, patience: PATIENCE, commit_least: None }
    }
}

impl Size {
    /// Rows of the next transaction, at most.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many times the bytes of a transaction of rows without keys one may take: more than once where they fold into few.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows of a transaction were so many where each key has one.
    pub fn folded(&mut self, keys: usize) {
        if keys > 2 * KEYS {
            self.width = (self.width / 2).max(1);
        } else if keys <= KEYS {
            self.width = (self.width * 2).min(WIDTH_MAX);
        }
    }

    /// How long one of its statements may last, beside its waits for locks.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A transaction of so many rows went in. `begin` is what its BEGIN took, which does nothing: how slow the server, or the way to it, is
    /// for everything. `copy` is what their COPY took, `commit` the message with the COMMIT: constraints that are deferred until then
    /// cost as many times as there are rows.
    pub fn took(&mut self, rows: usize, begin: Duration, copy: Duration, commit: Duration) {
        self.patience = PATIENCE;
        let known = self.commit_least.unwrap_or(commit);
        let least = commit.min(known * COMMIT_CREEP.0 / COMMIT_CREEP.1);
        self.commit_least = Some(least);
        if rows == 0 {
            return;
        }
        // A COPY is two exchanges. Never more than a half, so that a BEGIN that was slow by chance hides little.
        let work = copy - (begin * 2).min(copy / 2) + (commit - least);
        let fits = (rows as f64 * AIM.as_secs_f64() / work.as_secs_f64().max(1e-6)) as usize;
        self.rows = if work > AIM {
            fits.max(1)
        } else {
            // A short one says how little its rows cost, not that fewer should go.
            fits.clamp(self.rows, self.rows * GROWTH).min(ROWS_MAX)
        };
    }

    /// A transaction of so many rows was cut off.
    pub fn cut_off(&mut self, rows: usize) {
        self.rows = FIRST_ROWS.min(rows / GROWTH).max(1);
    }

    /// It was cut off, and nothing of it can be left for another one.
    pub fn wait_longer(&mut self) {
        self.patience *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_next_size_follows_what_the_last_one_took() {
        #[track_caller]
        fn check(rows: usize, sent: usize, copy: u64, commit: u64, expected: usize) {
            let mut size = Size { rows, commit_least: Some(ms(10)), ..Size::default() };
            size.took(sent, ms(0), ms(copy), ms(commit));
            assert_eq!(size.rows(), expected);
        }
        // Too long: as many as would have taken a second.
        check(16, 16, 1600, 0, 10);
        check(40_000, 40_000, 200_000, 0, 200);
        check(1, 1, 30_000, 0, 1);
        check(100, 10, 2000, 0, 5);
        // Quick: four times as many, and no more than fit into a second.
        check(16, 16, 2, 0, 64);
        check(16, 16, 500, 0, 32);
        check(16, 16, 1000, 0, 16);
        check(ROWS_MAX, ROWS_MAX, 100, 0, ROWS_MAX);
        // A few rows that came alone say little, and take nothing away.
        check(1000, 5, 2, 0, 2500);
        check(1000, 5, 900, 0, 1000);
        // Positions say nothing.
        check(1000, 0, 0, 900, 1000);
        // What each COMMIT takes is no reason for smaller ones; what grows with the rows is.
        check(1000, 1000, 100, 10, 4000);
        check(1000, 1000, 100, 5010, 196);
    }

    #[test]
    fn what_folds_into_little_may_be_more() {
        let width = |start: usize, keys: &[usize]| {
            let mut size = Size { width: start, ..Size::default() };
            keys.iter().for_each(|keys| size.folded(*keys));
            size.width()
        };
        assert_eq!(width(1, &[]), 1);
        assert_eq!(width(1, &[100]), 2);
        assert_eq!(width(1, &[100; 9]), WIDTH_MAX);
        // Each row has a key of its own.
        assert_eq!(width(1, &[KEYS, 2 * KEYS, 2 * KEYS]), 2);
        assert_eq!(width(WIDTH_MAX, &[4 * KEYS, 3 * KEYS]), 1);
        assert_eq!(width(1, &[usize::MAX]), 1);
    }

    #[test]
    fn a_commit_that_is_always_slow_makes_no_transaction_smaller() {
        let mut size = Size::default();
        for _ in 0..20 {
            size.took(size.rows(), ms(0), ms(20), ms(3000));
        }
        assert_eq!(size.rows(), ROWS_MAX);
    }

    /// Where each exchange takes long, fewer rows would make nothing shorter.
    #[test]
    fn a_server_that_is_slow_for_everything_gets_no_single_rows() {
        let mut size = Size::default();
        for _ in 0..20 {
            size.took(size.rows(), ms(600), ms(1200 + size.rows() as u64 / 100), ms(600));
        }
        assert!(size.rows() >= 16_000, "{}", size.rows());
        // A BEGIN that was slow once, before rows that are dear.
        let mut size = Size { rows: 10, ..Size::default() };
        size.took(10, ms(5000), ms(2000), ms(1));
        assert_eq!(size.rows(), 10);
    }

    #[test]
    fn what_was_cut_off_begins_again_with_little() {
        let mut size = Size { rows: 16_000, ..Size::default() };
        size.cut_off(16_000);
        assert_eq!((size.rows(), size.patience()), (FIRST_ROWS, PATIENCE));
        size.cut_off(16);
        size.cut_off(4);
        assert_eq!(size.rows(), 1);
        // One record that takes longer than all patience gets more, until it is in.
        size.wait_longer();
        size.wait_longer();
        assert_eq!((size.rows(), size.patience()), (1, PATIENCE * 4));
        size.took(1, ms(0), ms(18_000), ms(1));
        assert_eq!((size.rows(), size.patience()), (1, PATIENCE));
    }

    /// Tables whose rows take so long each: the whole time from the first row on.
    #[test]
    fn a_slow_table_goes_on_every_two_seconds() {
        for row_ms in [5, 20, 100, 700] {
            let mut size = Size::default();
            for _ in 0..50 {
                let took = ms(row_ms) * size.rows() as u32;
                assert!(took <= ms(2000).max(ms(row_ms * FIRST_ROWS as u64)), "{row_ms}: {took:?}");
                size.took(size.rows(), ms(1), took, ms(2));
            }
            assert!(ms(row_ms) * size.rows() as u32 >= ms(500), "{row_ms}: it uses its time");
        }
    }

    /// The same work in constraints that are deferred until the COMMIT. What a COMMIT takes by itself is only known from the
    /// shortest one of late, so sizes go up and down here.
    #[test]
    fn deferred_work_is_bounded_as_well() {
        let mut size = Size { rows: 16_000, commit_least: Some(ms(2)), ..Size::default() };
        for round in 0..50 {
            let took = ms(100) * size.rows() as u32;
            assert!(round < 2 || took <= ms(12_000), "{round}: {took:?}");
            size.took(size.rows(), ms(1), ms(10), took);
        }
    }
}
