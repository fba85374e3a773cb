//! Whether this process reaches Kafka, by when it was last answered: partitions belong with members that do. A clock comes as
//! an argument; what follows is decided in [`super::decide::share`].

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::base::lock::lock;

/// Without an answer for so long, Kafka is out of reach. It is asked every second, so that this many questions in a row were
/// not answered; together with two heartbeats and a claim, others have the partitions within the lease and five seconds.
pub const CUT_AFTER: Duration = Duration::from_secs(5);

/// Without an answer for so long, it may soon turn out to be out of reach. Where all are cut off at once, the first to be sure
/// must not find another that still counts as well: they were answered last within a second of each other, and each says in its
/// heartbeat, a second apart at most, how it stands. That leaves a second of the difference to busy machines.
const UNSURE_AFTER: Duration = Duration::from_secs(2);

/// Who was cut off takes nothing for so long after its return: a network that comes and goes must not take partitions along.
pub const BACK_FOR: Duration = Duration::from_secs(60);

/// How well a member reaches Kafka. The numbers stand in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not at all.
    Cut = 0,
    /// Again, for a short time; or not yet, or not for a moment, which may be the beginning of a cut. It keeps what it has.
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
    /// When the lease thread last looked, which it does every second.
    looked: Instant,
}

/// Nobody looked for so long: this process itself stood still, and Kafka's silence says nothing.
const STOOD_STILL: Duration = Duration::from_secs(3);

impl Times {
    /// For how long there was no answer, while this process ran.
    fn silence(&self, now: Instant) -> Duration {
        let still = now.duration_since(self.looked);
        let still = if still >= STOOD_STILL { still } else { Duration::ZERO };
        now.duration_since(self.answered).saturating_sub(still)
    }
}

impl Contact {
    pub fn begin(now: Instant) -> Contact {
        Contact(Mutex::new(Times { answered: now, is_answered: false, back: None, looked: now }))
    }

    /// Kafka answered.
    pub fn answered(&self, now: Instant) {
        let mut times = lock(&self.0);
        // Who was never answered was never cut off: it takes its share at once.
        if times.is_answered && times.silence(now) >= CUT_AFTER {
            times.back = Some(now);
        }
        times.is_answered = true;
        times.answered = times.answered.max(now);
    }

    /// For how long there was no answer.
    pub fn silence(&self, now: Instant) -> Duration {
        lock(&self.0).silence(now)
    }

    /// To be asked every second: who does not ask stands still.
    pub fn look(&self, now: Instant) -> Reach {
        let mut times = lock(&self.0);
        // Kept as if the time that was missed had not been.
        times.answered = now.checked_sub(times.silence(now)).unwrap_or(now);
        times.looked = now;
        match times.back {
            _ if times.silence(now) >= CUT_AFTER => Reach::Cut,
            // At its start it may have claimed what nobody had; another that is answered first must not have it all.
            _ if times.silence(now) >= UNSURE_AFTER || !times.is_answered => Reach::Back,
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
            assert_eq!(contact.look(now), expected);
        }
        (0..5).for_each(|second| check(&contact, at(second), Reach::Back));
        (5..=20).for_each(|second| check(&contact, at(second), Reach::Cut));
        contact.answered(at(20));
        (20..22).for_each(|second| check(&contact, at(second), Reach::Well));
        (22..25).for_each(|second| check(&contact, at(second), Reach::Back));
        (25..30).for_each(|second| check(&contact, at(second), Reach::Cut));
        contact.answered(at(30));
        for second in 30..100 {
            check(&contact, at(second), if second < 90 { Reach::Back } else { Reach::Well });
            contact.answered(at(second));
        }
        assert_eq!(contact.silence(at(101)), Duration::from_secs(2));
        // A moment without an answer is forgotten with the next.
        check(&contact, at(101), Reach::Back);
        contact.answered(at(101));
        check(&contact, at(101), Reach::Well);
        // Frozen for a minute, whoever comes to his senses first: that was not Kafka's silence.
        check(&contact, at(160), Reach::Well);
        contact.answered(at(161));
        contact.answered(at(220));
        check(&contact, at(220), Reach::Well);
        (221..226).for_each(|second| _ = contact.look(at(second)));
        check(&contact, at(226), Reach::Cut);
        for number in [Reach::Cut, Reach::Back, Reach::Well] {
            assert_eq!(Reach::of(number as i16), number);
        }
    }
}
