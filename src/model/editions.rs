//! The plans that a running process has had. A table's definition may change while rows are on their way, so there can be
//! several at a time, and data says for which of them it was encoded. It never asks a server.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;
use crate::model::plan::Plan;

/// Older editions are forgotten. What is still encoded for one of those is read again, so this only has to be more than the
/// changes within the moment that data is in hand.
const KEPT: usize = 16;

/// The plan, and its number: 1 at the start, one more with each change.
#[derive(Clone, Debug)]
pub struct Edition {
    pub number: u64,
    pub plan: Arc<Plan>,
}

/// Shared by whoever reads a plan while it may change.
#[derive(Debug)]
pub struct Editions {
    newest: AtomicU64,
    /// The newest last; never empty.
    kept: Mutex<VecDeque<Edition>>,
}

impl Editions {
    pub fn begin(plan: Arc<Plan>) -> Editions {
        let first = Edition { number: 1, plan };
        Editions { newest: AtomicU64::new(first.number), kept: Mutex::new(VecDeque::from([first])) }
    }

    /// The newest edition's number: cheap, for one who has an edition and wants to know whether it is still the newest.
    pub fn number(&self) -> u64 {
        self.newest.load(SeqCst)
    }

    pub fn newest(&self) -> Edition {
        lock(&self.kept).back().expect("there is always one").clone()
    }

    /// The edition of this number, unless it is forgotten.
    pub fn get(&self, number: u64) -> Option<Edition> {
        lock(&self.kept).iter().find(|edition| edition.number == number).cloned()
    }

    /// Makes a plan the newest.
    pub fn publish(&self, plan: Plan) {
        let mut kept = lock(&self.kept);
        let number = kept.back().expect("there is always one").number + 1;
        kept.push_back(Edition { number, plan: Arc::new(plan) });
        if kept.len() > KEPT {
            kept.pop_front();
        }
        self.newest.store(number, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_editions_are_kept() {
        let plan = || Plan { tables: Vec::new(), models: Vec::new(), topics: Vec::new() };
        let editions = Editions::begin(Arc::new(plan()));
        assert_eq!((editions.number(), editions.newest().number), (1, 1));
        (0..KEPT).for_each(|_| editions.publish(plan()));
        let newest = KEPT as u64 + 1;
        assert_eq!((editions.number(), editions.newest().number), (newest, newest));
        assert!(editions.get(1).is_none() && editions.get(2).is_some() && editions.get(newest + 1).is_none());
    }
}
