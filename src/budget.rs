//! The memory budget: bytes are taken when records are polled and given back when their last row is committed.
//!
//! There is one total for the process and a credit for each topic within it, so that a table that is stuck stops its
//! own topics and leaves room for the others.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may be in hand, in all and by topic.
#[derive(Debug)]
pub struct Budget {
    total_max: i64,
    topic_max: i64,
    total: AtomicI64,
    topics: Vec<AtomicI64>,
    /// Moves whenever a topic gets bytes back: a topic without credit whose number stands still is stuck.
    returns: Vec<AtomicU64>,
    waiters: Mutex<()>,
    room: Condvar,
}

impl Budget {
    /// `bytes_max` in all. With several topics, one of them may hold half.
    pub fn new(bytes_max: usize, topics: usize) -> Arc<Budget> {
        let total_max = bytes_max as i64;
        Arc::new(Budget {
            total_max,
            topic_max: if topics > 1 { total_max / 2 } else { total_max },
            total: AtomicI64::new(0),
            topics: (0..topics).map(|_| AtomicI64::new(0)).collect(),
            returns: (0..topics).map(|_| AtomicU64::new(0)).collect(),
            waiters: Mutex::new(()),
            room: Condvar::new(),
        })
    }

    /// True while another poll is allowed. One poll may overshoot by what librdkafka had prefetched, which its own
    /// queue bounds.
    pub fn has_room(&self) -> bool {
        self.total.load(SeqCst) < self.total_max
    }

    pub fn topic_has_room(&self, topic: usize) -> bool {
        self.topics[topic].load(SeqCst) < self.topic_max
    }

    /// How often the topic got bytes back so far.
    pub fn returns(&self, topic: usize) -> u64 {
        self.returns[topic].load(SeqCst)
    }

    /// Bytes in hand.
    pub fn used(&self) -> i64 {
        self.total.load(SeqCst)
    }

    /// Takes `bytes` for a topic; dropping the charge gives them back.
    pub fn charge(self: &Arc<Budget>, topic: usize, bytes: usize) -> Charge {
        self.total.fetch_add(bytes as i64, SeqCst);
        self.topics[topic].fetch_add(bytes as i64, SeqCst);
        Charge { budget: self.clone(), topic, bytes: bytes as i64 }
    }

    /// Waits until something was given back, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let guard = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.room.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Bytes taken from the budget.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    topic: usize,
    bytes: i64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.total.fetch_sub(self.bytes, SeqCst);
        self.budget.topics[self.topic].fetch_sub(self.bytes, SeqCst);
        self.budget.returns[self.topic].fetch_add(1, SeqCst);
        self.budget.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_topic_leaves_room_for_the_others() {
        let budget = Budget::new(100, 2);
        let stuck = budget.charge(0, 50);
        assert!(!budget.topic_has_room(0) && budget.topic_has_room(1) && budget.has_room());
        let more = budget.charge(1, 60);
        assert!(!budget.has_room());
        drop(more);
        assert_eq!((budget.used(), budget.returns(0), budget.returns(1)), (50, 0, 1));
        drop(stuck);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_single_topic_may_use_everything() {
        let budget = Budget::new(100, 1);
        let charge = budget.charge(0, 99);
        assert!(budget.topic_has_room(0));
        drop(charge);
    }
}
