//! The guard against disasters: stops a topic when too large a share of its recent records became dead letters, so that
//! a bad deployment does not set a whole topic aside, exactly once.
//!
//! Writers ask it before letters are committed, and tell it what was. It knows no clock: "recent" is a number of records,
//! so the same records are judged the same at every speed.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::base::lock::lock;
use crate::config;

/// Outcomes of records: a record that goes into two tables has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub dead: u64,
}

impl Tally {
    fn total(self) -> u64 {
        self.rows + self.dead
    }

    /// At most `size` outcomes of it, in the same proportion: of a transaction that began before the window, its part.
    fn part(self, size: u64) -> Tally {
        if self.total() <= size {
            return self;
        }
        let dead = self.dead * size / self.total();
        Tally { rows: size - dead, dead }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.rows += more.rows;
        self.dead += more.dead;
    }
}

/// The decision: `recent` is what was committed, the newest last, and `now` what is about to be. Returns what the window
/// holds if it holds too many dead letters.
pub fn objection(limit: config::Guard, recent: &VecDeque<Tally>, now: Tally) -> Option<Tally> {
    let mut window = now;
    for tally in recent.iter().rev() {
        let room = limit.window.saturating_sub(window.total());
        window += tally.part(room);
    }
    let judged = window.total().max(limit.window);
    (now.dead > 0 && window.dead as f64 > limit.share * judged as f64).then_some(window)
}

/// Shared by all writers, since the tables of one topic are judged together.
#[derive(Debug)]
pub struct Guard {
    limit: config::Guard,
    /// By topic.
    recent: Vec<Mutex<Recent>>,
    /// By topic: why it is stopped, until something of it is committed again.
    stopped: Vec<Mutex<Option<String>>>,
}

/// Why what is about to be committed must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    pub why: String,
    /// False where the topic is stopped already, and was only tried again.
    pub is_new: bool,
}

/// What was committed, the newest last. Each entry is at least one outcome, and the oldest go when the window is full
/// without them: there are never more entries than the window's size.
#[derive(Debug, Default)]
struct Recent {
    tallies: VecDeque<Tally>,
    total: u64,
}

impl Guard {
    pub fn new(limit: config::Guard, topics: usize) -> Guard {
        let recent = (0..topics).map(|_| Mutex::default()).collect();
        Guard { limit, recent, stopped: (0..topics).map(|_| Mutex::default()).collect() }
    }

    /// Why what is about to be committed for a topic must not be, if so. `example` gives the most common reason of its dead
    /// letters, and where one of them stands.
    pub fn objection(&self, topic: usize, now: Tally, example: impl FnOnce() -> String) -> Option<Objection> {
        let window = objection(self.limit, &lock(&self.recent[topic]).tallies, now)?;
        let why = format!(
            "{} of its last {} records were no rows, more than the share of {} that dead_letter_share in [guard] allows; most \
             often {}. The {} that came last were not set aside: they are tried again, from every few seconds to once a \
             minute, and go on by themselves when the table, the lookup or the producer is mended. To set them aside \
             instead, start again with dead_letter_share = 1, and use `rowmill dead-letters retry` later",
            window.dead,
            window.total(),
            self.limit.share,
            example(),
            now.dead
        );
        let is_new = lock(&self.stopped[topic]).replace(why.clone()).is_none();
        Some(Objection { why, is_new })
    }

    /// Why a topic is stopped, if it is: also while it is tried again.
    pub fn stopped(&self, topic: usize) -> Option<String> {
        lock(&self.stopped[topic]).clone()
    }

    /// Says what was committed. True if the topic was stopped until now.
    pub fn note(&self, topic: usize, tally: Tally) -> bool {
        if tally.total() == 0 {
            return false;
        }
        self.remember(topic, tally);
        lock(&self.stopped[topic]).take().is_some()
    }

    fn remember(&self, topic: usize, tally: Tally) {
        let mut recent = lock(&self.recent[topic]);
        recent.tallies.push_back(tally);
        recent.total += tally.total();
        while let Some(oldest) = recent.tallies.front().map(|t| t.total())
            && recent.total - oldest >= self.limit.window
        {
            recent.total -= oldest;
            recent.tallies.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: config::Guard = config::Guard { share: 0.5, window: 100 };

    fn tally((rows, dead): (u64, u64)) -> Tally {
        Tally { rows, dead }
    }

    #[test]
    fn more_than_the_share_of_the_window_is_too_much() {
        #[track_caller]
        fn check(recent: &[(u64, u64)], now: (u64, u64), expected: Option<(u64, u64)>) {
            let recent = recent.iter().copied().map(tally).collect();
            assert_eq!(objection(LIMIT, &recent, tally(now)), expected.map(tally), "{recent:?} {now:?}");
        }
        check(&[], (0, 0), None);
        check(&[], (1000, 0), None);
        // Few records never stop a topic, however bad.
        check(&[], (1, 3), None);
        check(&[], (0, 50), None);
        check(&[], (0, 51), Some((0, 51)));
        check(&[(0, 50)], (0, 1), Some((0, 51)));
        check(&[(0, 50)], (1, 0), None);
        // Exactly the share is allowed.
        check(&[(100, 0)], (50, 50), None);
        check(&[(100, 0)], (49, 51), Some((49, 51)));
        // A large transaction is judged by itself.
        check(&[(0, 100)], (5000, 5000), None);
        check(&[(100, 0)], (4000, 6000), Some((4000, 6000)));
        // A small one together with those before it, and not with older ones.
        check(&[(0, 90), (60, 0)], (30, 10), None);
        check(&[(60, 0), (10, 30)], (29, 31), Some((39, 61)));
        check(&[(1_000_000, 0), (0, 49)], (0, 1), None);
        check(&[(1_000_000, 0), (0, 49)], (0, 2), Some((49, 51)));
        check(&[(0, 1_000_000), (49, 0)], (0, 1), Some((49, 51)));
        check(&[(500, 500), (10, 0)], (10, 10), None);
        check(&[(500, 500), (0, 10)], (10, 10), Some((45, 55)));
        // Rows are never held back for what was committed before.
        check(&[(0, 100)], (10, 0), None);
    }

    #[test]
    fn only_the_window_is_remembered() {
        let guard = Guard::new(LIMIT, 2);
        for _ in 0..1000 {
            guard.note(0, Tally { rows: 7, dead: 0 });
            guard.note(0, Tally::default());
        }
        assert_eq!(lock(&guard.recent[0]).tallies.len(), 15, "the fewest that hold 100");
        assert!(lock(&guard.recent[1]).tallies.is_empty());
        let said =
            guard.objection(1, Tally { rows: 20, dead: 60 }, || "wrong_type".into()).expect("too many");
        assert!(
            said.why.contains("60 of its last 80") && said.why.contains("most often wrong_type"),
            "{said:?}"
        );
        assert!(said.is_new && guard.stopped(1).as_ref() == Some(&said.why) && guard.stopped(0).is_none());
        let again = guard.objection(1, Tally { rows: 0, dead: 101 }, String::new).expect("too many");
        assert!(!again.is_new, "it was stopped already");
        assert!(guard.note(1, Tally { rows: 1, dead: 0 }) && guard.stopped(1).is_none());
        assert!(!guard.note(1, Tally { rows: 1, dead: 0 }));
    }
}
