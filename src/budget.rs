//! The memory budget: bytes are taken when records are polled and given back when their last row is committed.
//!
//! There is one total for the process and a credit for each topic within it, so that a table that is stuck stops its
//! own topics and leaves room for the others.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

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

    /// True while another poll is allowed. One poll may overshoot by what librdkafka had prefetched, which its own
    /// queue bounds.
    pub fn has_room(&self) -> bool {
        self.total.load(SeqCst) < self.total_max
    }

    /// A topic may hold no more than what is still free: one that is stuck leaves half, and however many are stuck, there
    /// is room for the next. A single topic may hold everything.
    pub fn topic_has_room(&self, topic: usize) -> bool {
        self.topics.len() == 1 || self.topics[topic].load(SeqCst) < self.free()
    }

    /// True when a topic holds less than half of what it may.
    pub fn topic_has_ample_room(&self, topic: usize) -> bool {
        self.topics.len() == 1 || self.topics[topic].load(SeqCst) * 2 < self.free()
    }

    fn free(&self) -> i64 {
        self.total_max - self.total.load(SeqCst)
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
        self.budget.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_topics_leave_room_for_the_others() {
        let budget = Budget::new(100, 3);
        let first = budget.charge(0, 50);
        assert!(!budget.topic_has_room(0) && budget.topic_has_room(1) && budget.has_room());
        let second = budget.charge(1, 25);
        assert!(!budget.topic_has_room(1) && budget.topic_has_room(2) && budget.has_room());
        drop(first);
        assert!(budget.topic_has_ample_room(1) && budget.topic_has_room(0));
        assert_eq!(budget.used(), 25);
        drop(second);
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
