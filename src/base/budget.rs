//! The memory budget: bytes are taken when records are polled and given back when their last row is committed.
//!
//! There is one total for the process and a credit for each topic within it, so that a table that is stuck stops its
//! own topics and leaves room for the others.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::base::lock::lock;

/// Bytes that may be in hand, in all and by topic.
#[derive(Debug)]
pub struct Budget {
    total_max: i64,
    total: AtomicI64,
    topics: Vec<AtomicI64>,
    waiters: Mutex<()>,
    room: Condvar,
}

impl Budget {
    /// `bytes_max` in all.
    pub fn new(bytes_max: usize, topics: usize) -> Arc<Budget> {
        Arc::new(Budget {
            total_max: bytes_max as i64,
            total: AtomicI64::new(0),
            topics: (0..topics).map(|_| AtomicI64::new(0)).collect(),
            waiters: Mutex::new(()),
            room: Condvar::new(),
        })
    }

    /// True while another poll is allowed; `stuck` says which topics are set aside. One poll may overshoot by what
    /// librdkafka had prefetched, which its own queue bounds.
    pub fn has_room(&self, stuck: &[bool]) -> bool {
        self.free(stuck) > 0
    }

    /// A topic may hold no more than what is still free: one that is slow leaves half. A single topic may hold everything.
    pub fn topic_has_room(&self, topic: usize, stuck: &[bool]) -> bool {
        self.topics.len() == 1 || self.used_by(topic) < self.free(stuck)
    }

    /// True when a topic that was stuck holds so little again that it may come back without being stuck at once.
    pub fn topic_has_ample_room(&self, topic: usize) -> bool {
        self.used_by(topic) * 16 < self.total_max
    }

    /// What the topics that flow may still take. However much the stuck ones hold, a quarter of the budget is not theirs.
    fn free(&self, stuck: &[bool]) -> i64 {
        let held: i64 = (0..self.topics.len()).filter(|t| stuck[*t]).map(|t| self.used_by(t)).sum();
        let flowing = self.total.load(SeqCst) - held;
        self.total_max - held.min(self.total_max / 4 * 3) - flowing
    }

    fn used_by(&self, topic: usize) -> i64 {
        self.topics[topic].load(SeqCst)
    }

    /// Bytes in hand.
    pub fn used(&self) -> i64 {
        self.total.load(SeqCst)
    }

    /// Bytes that may be in hand.
    pub fn max(&self) -> i64 {
        self.total_max
    }

    /// Takes `bytes` for a topic; dropping the charge gives them back.
    pub fn charge(self: &Arc<Budget>, topic: usize, bytes: usize) -> Charge {
        self.total.fetch_add(bytes as i64, SeqCst);
        self.topics[topic].fetch_add(bytes as i64, SeqCst);
        Charge { budget: self.clone(), topic, bytes: bytes as i64 }
    }

    /// Waits until something was given back, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let guard = lock(&self.waiters);
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
        self.budget.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_topics_leave_room_for_the_others() {
        let budget = Budget::new(100, 3);
        let none = [false; 3];
        let first = budget.charge(0, 50);
        assert!(!budget.topic_has_room(0, &none) && budget.topic_has_room(1, &none));
        // Rows may turn out larger than their records: even more than everything leaves a quarter.
        let second = budget.charge(1, 60);
        assert!(!budget.has_room(&none));
        let stuck = [true, true, false];
        assert!(budget.has_room(&stuck) && budget.topic_has_room(2, &stuck));
        let third = budget.charge(2, 13);
        assert!(!budget.topic_has_room(2, &stuck) && budget.has_room(&stuck));
        drop((first, second));
        assert!(budget.topic_has_ample_room(0) && budget.topic_has_ample_room(1));
        drop(third);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_single_topic_may_use_everything() {
        let budget = Budget::new(100, 1);
        let charge = budget.charge(0, 99);
        assert!(budget.topic_has_room(0, &[false]));
        drop(charge);
    }
}
