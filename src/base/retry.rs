//! Trying again: pauses that grow, and troubles that are said once.

use std::time::{Duration, Instant};

/// On top of each pause, so that many threads do not come back at the same moment.
const JITTER_MS: u32 = 50;

/// Pauses between tries, doubling from the first to the longest.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    longest: Duration,
    next: Duration,
    began_at: Instant,
}

impl BackOff {
    pub fn new(first: Duration, longest: Duration) -> BackOff {
        BackOff { longest, next: first, began_at: Instant::now() }
    }

    /// The pause before the next try.
    pub fn pause(&mut self) -> Duration {
        let jitter = self.began_at.elapsed().subsec_nanos() % JITTER_MS;
        let pause = self.next + Duration::from_millis(u64::from(jitter));
        self.next = (self.next * 2).min(self.longest);
        pause
    }
}

/// A trouble that lasts: it is said when it begins and when it ends, not at each try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Episode {
    lasts: bool,
}

impl Episode {
    /// True if it was not there before.
    pub fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.lasts, true)
    }

    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// True if it was there.
    pub fn ends(&mut self) -> bool {
        std::mem::take(&mut self.lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let ms = Duration::from_millis;
        let mut back_off = BackOff::new(ms(100), ms(350));
        for least in [100, 200, 350, 350] {
            let pause = back_off.pause();
            assert!(pause >= ms(least) && pause < ms(least + u64::from(JITTER_MS)), "{pause:?}");
        }
    }

    #[test]
    fn a_trouble_is_said_once_each_time_it_comes() {
        let mut trouble = Episode::default();
        assert!(!trouble.ends());
        assert!(trouble.begins() && !trouble.begins());
        assert!(trouble.ends() && !trouble.ends());
        assert!(trouble.begins());
    }
}
