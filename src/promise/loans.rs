//! Which session serves whom: there may be more tables than a server has room for sessions, so a session is lent for one
//! transaction, in the order of asking. Pure; the simulator drives it as well.
//!
//! A session that may still commit is lent to nobody: it comes back only after the server's own word that its transaction
//! ended, and whoever has no such word loses it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::mutant::{Bug, planted};

/// For so long after the server refused one, no further session is asked for: those that there are serve all.
const REFUSED: Duration = Duration::from_secs(10);

/// A session, by its number.
pub type Number = u64;

/// Who borrows, by a number of its own.
pub type Borrower = usize;

/// What one who asks is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loan {
    /// This one is open, and yours.
    Take(Number),
    /// Open one; it has this number.
    Open(Number),
    /// Ask again: others came before.
    Wait,
}

/// The sessions of one process.
#[derive(Debug)]
pub struct Loans {
    most: usize,
    lent: Vec<Number>,
    /// Open, each with the one that had it last; the one that rests longest comes first.
    idle: VecDeque<(Number, Borrower)>,
    waiting: VecDeque<Borrower>,
    refused_at: Option<Instant>,
    last: Number,
}

impl Loans {
    /// So many sessions at once.
    pub fn new(most: usize) -> Loans {
        Loans {
            most,
            lent: Vec::new(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            refused_at: None,
            last: 0,
        }
    }

    /// Asks for a session. Whoever is told to wait keeps its place, and asks again.
    pub fn ask(&mut self, borrower: Borrower, now: Instant) -> Loan {
        if !self.waiting.contains(&borrower) {
            self.waiting.push_back(borrower);
        }
        let place = self.waiting.iter().position(|b| *b == borrower).expect("just put there");
        let open = self.lent.len() + self.idle.len();
        let is_refused = self.refused_at.is_some_and(|at| now.duration_since(at) < REFUSED);
        let most = if is_refused { open.clamp(1, self.most) } else { self.most };
        if place >= most.saturating_sub(self.lent.len()) {
            return Loan::Wait;
        }
        self.waiting.remove(place);
        // Its own again, where the server knows its statements; else a new one, else what rests longest.
        let own = self.idle.iter().position(|(_, had)| *had == borrower);
        let number = match own {
            Some(at) => self.idle.remove(at).map(|(number, _)| number),
            None if open < most => None,
            None => self.idle.pop_front().map(|(number, _)| number),
        };
        let loan = number.map_or_else(|| Loan::Open(self.last + 1), Loan::Take);
        self.last += u64::from(number.is_none());
        self.lent.push(number.unwrap_or(self.last));
        loan
    }

    /// Has nothing to send any more: those behind it move up.
    pub fn leave(&mut self, borrower: Borrower) {
        self.waiting.retain(|waiting| *waiting != borrower);
    }

    /// The server said that its transaction ended.
    pub fn give_back(&mut self, number: Number, borrower: Borrower) {
        self.end(number);
        self.idle.push_back((number, borrower));
    }

    /// It is closed, or nobody knows what became of it.
    pub fn lose(&mut self, number: Number, borrower: Borrower) {
        if planted(Bug::UnknownIsLent) {
            return self.give_back(number, borrower);
        }
        self.end(number);
    }

    /// The server has no room for it.
    pub fn refuse(&mut self, number: Number, now: Instant) {
        self.end(number);
        self.refused_at = Some(now);
    }

    /// Forgets those that rest: a server that broke one connection broke them all. Returns their numbers.
    pub fn forget_idle(&mut self) -> Vec<Number> {
        self.idle.drain(..).map(|(number, _)| number).collect()
    }

    fn end(&mut self, number: Number) {
        let at = self.lent.iter().position(|lent| *lent == number).expect("only what was lent comes back");
        self.lent.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Loan::{Open, Take, Wait};

    #[test]
    fn each_gets_its_own_while_there_are_enough() {
        let (mut loans, now) = (Loans::new(2), Instant::now());
        assert_eq!((loans.ask(7, now), loans.ask(8, now)), (Open(1), Open(2)));
        loans.give_back(1, 7);
        loans.give_back(2, 8);
        assert_eq!((loans.ask(8, now), loans.ask(7, now)), (Take(2), Take(1)));
    }

    #[test]
    fn who_asks_first_is_served_first() {
        let (mut loans, now) = (Loans::new(1), Instant::now());
        assert_eq!(loans.ask(0, now), Open(1));
        assert_eq!([1, 2, 3, 1].map(|borrower| loans.ask(borrower, now)), [Wait; 4]);
        loans.give_back(1, 0);
        // Not even the one whose session it was comes before.
        assert_eq!([0, 2, 3].map(|borrower| loans.ask(borrower, now)), [Wait; 3]);
        assert_eq!(loans.ask(1, now), Take(1));
        loans.give_back(1, 1);
        assert_eq!(loans.ask(2, now), Take(1));
        loans.give_back(1, 2);
        // One that has nothing to send any more holds nobody up.
        assert_eq!(loans.ask(0, now), Wait);
        loans.leave(3);
        assert_eq!(loans.ask(0, now), Take(1));
    }

    #[test]
    fn what_may_still_commit_is_lent_to_nobody() {
        let (mut loans, now) = (Loans::new(1), Instant::now());
        assert_eq!(loans.ask(0, now), Open(1));
        loans.lose(1, 0);
        assert_eq!(loans.ask(0, now), Open(2));
        loans.give_back(2, 0);
        assert_eq!(loans.forget_idle(), [2]);
        assert_eq!(loans.ask(1, now), Open(3));
    }

    #[test]
    fn a_server_without_room_is_asked_again_after_a_while() {
        let (mut loans, now) = (Loans::new(3), Instant::now());
        assert_eq!((loans.ask(0, now), loans.ask(1, now)), (Open(1), Open(2)));
        loans.refuse(2, now);
        assert_eq!(loans.ask(1, now), Wait, "the first serves both");
        loans.give_back(1, 0);
        assert_eq!((loans.ask(1, now), loans.ask(0, now)), (Take(1), Wait));
        assert_eq!(loans.ask(0, now + REFUSED), Open(3));
        // Where there is none at all, somebody tries.
        let mut loans = Loans::new(3);
        assert_eq!(loans.ask(0, now), Open(1));
        loans.refuse(1, now);
        assert_eq!((loans.ask(0, now), loans.ask(1, now)), (Open(2), Wait));
    }

    /// Two hundred tables with work at any time and sixty sessions: each waits for three others at most.
    #[test]
    fn nobody_starves() {
        let (mut loans, now) = (Loans::new(60), Instant::now());
        let mut held: VecDeque<(Number, Borrower)> = VecDeque::new();
        let mut served = [0; 200];
        for _ in 0..40 {
            for (borrower, times) in served.iter_mut().enumerate() {
                if let Take(number) | Open(number) = loans.ask(borrower, now) {
                    held.push_back((number, borrower));
                    *times += 1;
                }
            }
            while let Some((number, borrower)) = held.pop_front() {
                loans.give_back(number, borrower);
            }
        }
        assert!(served.iter().all(|times| (10..=14).contains(times)), "{served:?}");
    }
}
