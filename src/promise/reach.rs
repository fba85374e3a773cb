//! Whether this process reaches Kafka, by when it was last answered: partitions belong with members that do. A clock comes as
//! an argument; what follows is decided in [`super::decide::share`].

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::base::lock::lock;

/// Without an answer for so long, Kafka is out of reach. It is asked every second, so that this many questions in a row were
/// not answered; together with two heartbeats and a claim, others have the partitions within the lease and five seconds.
pub const CUT_AFTER: Duration = Duration::from_secs(5);

/// Who was cut off takes nothing for so long after its return: a network that comes and goes must not take partitions along.
pub const BACK_FOR: Duration = Duration::from_secs(60);

/// How well a member reaches Kafka. The numbers stand in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not at all.
    Cut = 0,
    /// Again, for a short time.
    Back = 1,
    Well = 2,
}

impl Reach {
    /// By its number; what nobody knows is a member of a time when it was not asked.
    pub fn of(number: i16) -> Reach {
        match number {
            0 => Reach::Cut,
            1 => Reach::Back,
            _ => Reach::Well,
        }
    }
}

/// When Kafka answered, as the threads note it.
#[derive(Debug)]
pub struct Contact(Mutex<Times>);

#[derive(Debug)]
struct Times {
    /// The last answer, or the beginning.
    answered: Instant,
    /// There was an answer.
    is_answered: bool,
    /// When the last silence that was too long ended.
    back: Option<Instant>,
}

impl Contact {
    pub fn begin(now: Instant) -> Contact {
        Contact(Mutex::new(Times { answered: now, is_answered: false, back: None }))
    }

    /// Kafka answered.
    pub fn answered(&self, now: Instant) {
        let mut times = lock(&self.0);
        // Who was never answered was never cut off: it takes its share at once.
        if times.is_answered && now.duration_since(times.answered) >= CUT_AFTER {
            times.back = Some(now);
        }
        times.is_answered = true;
        times.answered = times.answered.max(now);
    }

    /// For how long there was no answer.
    pub fn silence(&self, now: Instant) -> Duration {
        now.duration_since(lock(&self.0).answered)
    }

    pub fn reach(&self, now: Instant) -> Reach {
        let times = lock(&self.0);
        match times.back {
            _ if !times.is_answered || now.duration_since(times.answered) >= CUT_AFTER => Reach::Cut,
            Some(back) if now.duration_since(back) < BACK_FOR => Reach::Back,
            _ => Reach::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_cut_off_is_well_again_after_a_while() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let contact = Contact::begin(begin);
        #[track_caller]
        fn check(contact: &Contact, now: Instant, expected: Reach) {
            assert_eq!(contact.reach(now), expected);
        }
        check(&contact, at(0), Reach::Cut);
        contact.answered(at(20));
        check(&contact, at(20), Reach::Well);
        check(&contact, at(24), Reach::Well);
        check(&contact, at(25), Reach::Cut);
        contact.answered(at(30));
        check(&contact, at(30), Reach::Back);
        (31..=100).for_each(|second| contact.answered(at(second)));
        check(&contact, at(89), Reach::Back);
        check(&contact, at(90), Reach::Well);
        assert_eq!(contact.silence(at(103)), Duration::from_secs(3));
        for number in [Reach::Cut, Reach::Back, Reach::Well] {
            assert_eq!(Reach::of(number as i16), number);
        }
    }
}
