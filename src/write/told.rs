//! Which reasons for dead letters the log has heard of: each once in a while, and a bounded number of them. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::figures::instruments::REASONS_MAX;

/// Between two sentences about the same reason.
const TELL: Duration = Duration::from_secs(60);

/// When each reason was last said.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<String, Instant>);

impl Told {
    /// True where a reason is to be said now. As many are told apart as in the figures, however many a trigger invents.
    pub fn is_due(&mut self, reason: &str, now: Instant) -> bool {
        let is_due = match self.0.get(reason) {
            Some(at) => now.duration_since(*at) >= TELL,
            None => self.0.len() < REASONS_MAX,
        };
        if is_due {
            self.0.insert(reason.to_owned(), now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_in_a_while() {
        let (begin, mut told) = (Instant::now(), Told::default());
        let mut is_due = |reason: &str, seconds| told.is_due(reason, begin + Duration::from_secs(seconds));
        assert!(is_due("a", 0) && !is_due("a", 1) && is_due("b", 1) && !is_due("a", 59));
        assert!(is_due("a", 60) && !is_due("b", 60) && !is_due("a", 61));
        assert_eq!((0..200).filter(|n| is_due(&n.to_string(), 70)).count(), REASONS_MAX - 2);
    }
}
