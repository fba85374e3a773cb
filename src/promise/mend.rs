//! mend: tries topics again that the guard stopped. Whatever was the cause, a table, a lookup or a producer, the records tell
//! whether it is gone: they are read again, and the guard judges them again before anything of them is committed.
//!
//! Place in the flow: beside it. It ends claims, so that the lease thread takes them anew; it commits nothing and reads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::Sender;

use crate::base::failure::Failure;
use crate::base::retry::BackOff;
use crate::base::thread::Pulse;
use crate::promise::claim::{Claim, Ownership, Wake};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Between two tries of one topic, from the first to the longest. A try reads the records again and sends their rows.
const TRIES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// What the thread needs.
pub struct Mend {
    pub ownership: Arc<Ownership>,
    /// Reads the definitions of a topic's tables again.
    pub renew: Box<dyn Fn(usize) -> Result<(), Failure> + Send>,
    pub wake: Sender<Wake>,
    pub pulse: Arc<Pulse>,
}

/// When stopped topics are tried again. Pure.
#[derive(Debug, Default)]
struct Patience(BTreeMap<usize, (BackOff, Instant)>);

impl Patience {
    /// Which of the topics that are stopped now are to be tried. One that was not stopped for the longest pause begins anew.
    fn due(&mut self, stopped: &BTreeSet<usize>, now: Instant) -> Vec<usize> {
        self.0.retain(|topic, (_, next)| stopped.contains(topic) || now < *next + TRIES.1);
        let mut due = Vec::new();
        for topic in stopped {
            let begin = || {
                let mut back_off = BackOff::new(TRIES.0, TRIES.1);
                let first = back_off.pause();
                (back_off, now + first)
            };
            let (back_off, next) = self.0.entry(*topic).or_insert_with(begin);
            if now >= *next {
                *next = now + back_off.pause();
                due.push(*topic);
            }
        }
        due
    }
}

impl Mend {
    /// Runs until the ownership closes.
    pub fn run(self) -> Result<()> {
        let mut patience = Patience::default();
        while !self.ownership.is_closing() {
            std::thread::sleep(LOOK);
            let halted: Vec<Arc<Claim>> =
                self.ownership.all().into_iter().filter(|claim| claim.is_halted()).collect();
            let topics = halted.iter().map(|claim| claim.partition.topic).collect();
            for topic in patience.due(&topics, Instant::now()) {
                self.try_again(topic, &halted);
            }
        }
        Ok(())
    }

    fn try_again(&self, topic: usize, halted: &[Arc<Claim>]) {
        if let Err(failure) = self.pulse.during("reading definitions", || (self.renew)(topic)) {
            // Without a table there is nothing to try; the writers say so when they have rows for it.
            log::debug!("cannot read the definitions of a stopped topic: {}", failure.words);
            return;
        }
        let claims = halted.iter().filter(|claim| claim.partition.topic == topic);
        claims.for_each(|claim| self.ownership.remove(claim));
        // A full channel already holds a wake-up.
        self.wake.try_send(Wake::Look).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_topic_is_tried_less_and_less_often() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        let mut tried = Vec::new();
        for second in 0..300 {
            let stopped = if second < 100 { BTreeSet::from([3]) } else { BTreeSet::new() };
            let due = patience.due(&stopped, start + Duration::from_secs(second));
            tried.extend(due.iter().map(|_| second));
        }
        let apart: Vec<u64> =
            std::iter::once(tried[0]).chain(tried.windows(2).map(|t| t[1] - t[0])).collect();
        assert_eq!(apart.len(), 4, "{tried:?}");
        for (apart, least) in apart.into_iter().zip([5, 10, 20, 40]) {
            assert!((least..=least + 1).contains(&apart), "a moment longer: {tried:?}");
        }
        assert!(patience.0.is_empty(), "what goes on is forgotten");
    }
}
