//! How often the whole ledger is looked at, and how. Its rows are as many as partitions times tables, and a look at all of them every
//! second would cost more than the work where nothing happens. Where many rows stood still, the server only adds them up: as long as
//! they come to the same, a look would find what the last one found. Pure.

use std::time::{Duration, Instant};

use crate::promise::decide::Peer;

/// While partitions move, looks take this part of the time at most; else that one.
const MOVING_SHARE: u32 = 4;
const SETTLED_SHARE: u32 = 100;

/// What a person did by hand is seen within this time, however many rows there are. A failover breaks the connection, and a look
/// follows at once; a writer that was robbed is told by its own transaction.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Rows that are only added up are read after this time all the same: what each of them says of its table's progress is in no sum.
const READ_MAX: Duration = Duration::from_secs(300);

/// So many rows cost nothing that counts, even where a busy machine makes a look of them long.
const FEW_ROWS: usize = 1000;

/// What all rows come to, as the server adds them up: everything but how far each is, which their owners move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub rows: i64,
    /// Of the rows' hashes; a number of any length.
    pub hashes: String,
}

/// What the last looks were like.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    last: Option<Last>,
    /// Of the last look that read them.
    rows: usize,
}

#[derive(Clone, Debug)]
struct Last {
    at: Instant,
    took: Duration,
    /// The members that lived then: whenever these change, partitions must move.
    living: Vec<Peer>,
    is_settled: bool,
    /// When the rows were read.
    read_at: Instant,
    /// What they came to just before.
    sum: Option<Sum>,
}

/// A look at the rows themselves.
#[derive(Clone, Debug)]
pub struct Look {
    pub began_at: Instant,
    pub rows: usize,
    pub living: Vec<Peer>,
    pub is_settled: bool,
    /// What the rows came to before they were read, so that whatever changed since shows in the next sum.
    pub sum: Option<Sum>,
}

impl Looks {
    /// True where the next look is due; the first one always is.
    pub fn is_due(&self, now: Instant, living: &[Peer]) -> bool {
        let Some(last) = &self.last else { return true };
        let share = if last.is_settled { SETTLED_SHARE } else { MOVING_SHARE };
        last.living != living || now.duration_since(last.at) >= (last.took * share).min(LOOK_MAX)
    }

    /// True where there are so many rows that it pays to have them added up before they are read.
    pub fn are_many(&self) -> bool {
        self.rows > FEW_ROWS
    }

    /// True where nothing is to be done if the rows still come to `sum`.
    pub fn would_find_nothing(&self, now: Instant, living: &[Peer], sum: &Sum) -> bool {
        self.last.as_ref().is_some_and(|last| {
            last.is_settled
                && last.living == living
                && last.sum.as_ref() == Some(sum)
                && now.duration_since(last.read_at) < READ_MAX
        })
    }

    /// The rows came to the same again.
    pub fn note_sum(&mut self, began_at: Instant, now: Instant) {
        if let Some(last) = &mut self.last {
            (last.at, last.took) = (began_at, now.duration_since(began_at));
        }
    }

    pub fn note(&mut self, look: Look, now: Instant) {
        let Look { began_at, rows, living, is_settled, sum } = look;
        let took = if rows <= FEW_ROWS { Duration::ZERO } else { now.duration_since(began_at) };
        self.rows = rows;
        self.last = Some(Last { at: began_at, took, living, is_settled, read_at: began_at, sum });
    }

    /// Something changed: the next look is due at once, and reads the rows.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::reach::Reach;

    fn peer(name: &str, reach: Reach) -> Peer {
        Peer { name: name.into(), reach }
    }

    fn ours() -> Vec<Peer> {
        vec![peer("a", Reach::Well), peer("b", Reach::Well)]
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn sum(hashes: &str) -> Sum {
        Sum { rows: 2000, hashes: hashes.to_owned() }
    }

    /// A look that took so long.
    fn note(looks: &mut Looks, began_at: Instant, took: Duration, rows: usize, is_settled: bool) {
        let look =
            Look { began_at, rows, living: ours(), is_settled, sum: looks.are_many().then(|| sum("1")) };
        looks.note(look, began_at + took);
    }

    #[test]
    fn a_look_is_as_rare_as_it_is_dear() {
        let start = Instant::now();
        #[track_caller]
        fn check(looks: &Looks, start: Instant, after_ms: u64, living: &[Peer], expected: bool) {
            assert_eq!(looks.is_due(start + ms(after_ms), living), expected);
        }
        let mut looks = Looks::default();
        check(&looks, start, 0, &ours(), true);
        for (took_ms, is_settled, due_ms) in
            [(2, true, 200), (100, true, 10_000), (900, true, 30_000), (100, false, 400)]
        {
            note(&mut looks, start, ms(took_ms), FEW_ROWS + 1, is_settled);
            check(&looks, start, due_ms - 1, &ours(), false);
            check(&looks, start, due_ms, &ours(), true);
        }
        // Somebody came, went, or lost its way to Kafka.
        note(&mut looks, start, ms(900), FEW_ROWS, true);
        check(&looks, start, 0, &ours(), true);
        note(&mut looks, start, ms(900), FEW_ROWS + 1, true);
        check(&looks, start, 1000, &ours(), false);
        check(&looks, start, 1000, &ours()[..1], true);
        check(&looks, start, 1000, &[peer("a", Reach::Well), peer("b", Reach::Cut)], true);
        looks.forget();
        check(&looks, start, 1000, &ours(), true);
    }

    #[test]
    fn rows_that_come_to_the_same_need_not_be_read() {
        let start = Instant::now();
        let mut looks = Looks::default();
        let finds_nothing = |looks: &Looks, after: Duration, hashes| {
            looks.would_find_nothing(start + after, &ours(), &sum(hashes))
        };
        assert!(!looks.are_many() && !finds_nothing(&looks, ms(0), "1"), "nothing was read yet");
        note(&mut looks, start, ms(500), FEW_ROWS + 1, true);
        assert!(looks.are_many() && !finds_nothing(&looks, ms(0), "1"), "there was no sum");
        note(&mut looks, start, ms(500), FEW_ROWS + 1, true);
        assert!(finds_nothing(&looks, ms(10), "1") && !finds_nothing(&looks, ms(10), "2"));
        assert!(!looks.would_find_nothing(start, &ours()[..1], &sum("1")), "a member is gone");
        // The next look is as far away as the sum is dear.
        looks.note_sum(start + ms(1000), start + ms(1020));
        assert!(!looks.is_due(start + ms(2999), &ours()) && looks.is_due(start + ms(3000), &ours()));
        assert!(finds_nothing(&looks, READ_MAX - ms(1), "1") && !finds_nothing(&looks, READ_MAX, "1"));
        // What moves must be read.
        note(&mut looks, start, ms(500), FEW_ROWS + 1, false);
        assert!(!finds_nothing(&looks, ms(10), "1"));
        note(&mut looks, start, ms(500), FEW_ROWS + 1, true);
        looks.forget();
        assert!(looks.are_many() && !finds_nothing(&looks, ms(10), "1"));
    }
}
