//! The newest message that was acknowledged, of all and by key: what a reader's answer is held against.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use crate::base::hash::mix;
use crate::base::lock::lock;

/// Generators note every message that was acknowledged; a lock for each 64th part of the keys keeps them from waiting for each
/// other.
const SHARDS: usize = 64;
/// Keys, at most: some 5 MB. What comes later is only noted for all together.
const KEYS_MAX: usize = 100_000;

#[derive(Debug)]
pub struct Newest {
    all: AtomicI64,
    keys: Vec<Mutex<HashMap<u64, i64>>>,
}

impl Default for Newest {
    fn default() -> Self {
        Self { all: AtomicI64::new(i64::MIN), keys: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Newest {
    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, i64>> {
        &self.keys[mix(key) as usize % SHARDS]
    }

    pub fn note(&self, key: Option<u64>, due_us: i64) {
        self.all.fetch_max(due_us, Relaxed);
        let Some(key) = key else { return };
        let mut shard = lock(self.shard(key));
        if shard.len() < KEYS_MAX / SHARDS || shard.contains_key(&key) {
            let newest = shard.entry(key).or_insert(due_us);
            *newest = due_us.max(*newest);
        }
    }

    /// `None` where nothing has been acknowledged yet.
    pub fn of(&self, key: Option<u64>) -> Option<i64> {
        match key {
            None => Some(self.all.load(Relaxed)).filter(|due_us| *due_us != i64::MIN),
            Some(key) => lock(self.shard(key)).get(&key).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stays() {
        let newest = Newest::default();
        assert_eq!((newest.of(None), newest.of(Some(1))), (None, None));
        for (key, due_us) in [(Some(1), 5), (Some(2), 9), (Some(1), 3), (None, 20)] {
            newest.note(key, due_us);
        }
        assert_eq!(
            (newest.of(None), newest.of(Some(1)), newest.of(Some(2)), newest.of(Some(3))),
            (Some(20), Some(5), Some(9), None)
        );
    }

    #[test]
    fn keys_are_bounded() {
        let newest = Newest::default();
        (0..2 * KEYS_MAX as u64).for_each(|key| newest.note(Some(key), 1));
        let kept: usize = newest.keys.iter().map(|shard| lock(shard).len()).sum();
        assert!(kept <= KEYS_MAX, "{kept}");
    }
}
