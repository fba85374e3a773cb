//! How much may wait for Kafka in one topic. Where Kafka takes less than comes, a longer queue gives nobody more: its records only
//! wait until their verdict comes too late, and are sent for nothing. So whoever comes then is refused at once.
//!
//! Pure. How fast a topic is can only be seen while it is too slow, by how long its requests waited. The slowest say little: one
//! partition without a leader makes them wait while all others flow. So the fastest of each second is looked at.

use std::time::Duration;

/// Of the time that a verdict may take. A queue of a quarter of it rides over what a broker does in between, and leaves those in
/// it three quarters to be acknowledged.
const TARGET: u32 = 4;

/// What may wait in any case: one batch of the brokers' usual size.
const WINDOW_MIN: usize = 1 << 20;

/// One topic, as one loop sees it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a queue may become.
    target: Duration,
    window_max: usize,
    /// Bytes that may wait.
    window: usize,
    waiting: usize,
    /// Of this second.
    acknowledged: usize,
    fastest: Option<Duration>,
    /// Bytes a second, of the last seconds in which there were any.
    rate: f64,
}

impl Pace {
    /// `window_max`: bytes that may wait while nothing is known of the topic's speed.
    pub fn new(deliver_timeout: Duration, window_max: usize) -> Pace {
        Pace {
            target: deliver_timeout / TARGET,
            window_max,
            window: window_max,
            waiting: 0,
            acknowledged: 0,
            fastest: None,
            rate: 0.0,
        }
    }

    /// Whether more may wait now.
    pub fn has_room(&self) -> bool {
        self.waiting < self.window
    }

    pub fn sent(&mut self, bytes: usize) {
        self.waiting += bytes;
    }

    /// As many bytes as were sent are decided; `waited` where Kafka took them.
    pub fn decided(&mut self, bytes: usize, waited: Option<Duration>) {
        self.waiting -= bytes;
        if let Some(waited) = waited {
            self.acknowledged += bytes;
            self.fastest = Some(self.fastest.map_or(waited, |fastest| fastest.min(waited)));
        }
    }

    /// Once a second. Where nothing was acknowledged, nothing is learned: the brokers are away, and memory is the limit.
    pub fn tick(&mut self) {
        let Some(fastest) = self.fastest.take() else {
            if self.waiting == 0 {
                self.window = self.window_max;
            }
            return;
        };
        let acknowledged = std::mem::take(&mut self.acknowledged) as f64;
        self.rate = if self.rate == 0.0 { acknowledged } else { (self.rate + acknowledged) / 2.0 };
        let window = if fastest > self.target {
            (self.rate * self.target.as_secs_f64()) as usize
        } else if fastest < self.target / 4 {
            self.window.saturating_mul(2)
        } else {
            // A longer queue shows only when its end is acknowledged: who lets it grow meanwhile lets it grow too far.
            self.window
        };
        self.window = window.clamp(WINDOW_MIN.min(self.window_max), self.window_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    /// A topic that takes so many bytes a second, and clients that send all they are let, in steps of a tenth of a second; the
    /// longest wait of the last seconds, in seconds, and what was taken in each of them.
    fn press(per_second: usize, seconds: usize) -> (f64, usize) {
        let mut pace = Pace::new(Duration::from_secs(8), 64 * MB);
        let mut queue = std::collections::VecDeque::new();
        let (mut longest, mut taken) = (0.0f64, 0);
        for step in 0..seconds * 10 {
            let now = step as f64 / 10.0;
            // Many small bodies.
            while pace.has_room() {
                pace.sent(MB / 64);
                queue.push_back((now, MB / 64));
            }
            // The client library gives those up that wait for too long.
            while let Some((_, bytes)) = queue.front().copied().filter(|(sent, _)| now - sent > 8.0) {
                queue.pop_front();
                pace.decided(bytes, None);
            }
            let mut room = per_second / 10;
            while let Some((sent, bytes)) = queue.front().copied().filter(|(_, bytes)| *bytes <= room) {
                queue.pop_front();
                room -= bytes;
                pace.decided(bytes, Some(Duration::from_secs_f64(now - sent)));
                if step + 50 > seconds * 10 {
                    longest = longest.max(now - sent);
                    taken += bytes;
                }
            }
            if step % 10 == 9 {
                pace.tick();
            }
        }
        (longest, taken / 5)
    }

    #[test]
    fn a_queue_is_as_long_as_it_may_be_and_never_empty() {
        for per_second in [MB, 2 * MB, 5 * MB] {
            let (longest, taken) = press(per_second, 60);
            assert!((1.0..5.0).contains(&longest), "{per_second}: {longest} s");
            assert!(taken * 10 >= per_second * 9, "{per_second}: {taken}");
        }
        // What is fast enough is never held up.
        let (longest, taken) = press(100 * MB, 30);
        assert!(longest < 2.0 && taken > 90 * MB, "{longest} {taken}");
    }

    #[test]
    fn the_fastest_says_whether_it_is_slow() {
        let check = |waited: &[f64], left: usize, expected: usize| {
            let mut pace = Pace::new(Duration::from_secs(8), 64 * MB);
            pace.sent(waited.len() * 3 * MB + left);
            for waited in waited {
                pace.decided(3 * MB, Some(Duration::from_secs_f64(*waited)));
            }
            pace.tick();
            assert_eq!(pace.window / MB, expected, "{waited:?} {left}");
        };
        check(&[], 0, 64);
        // Nothing was acknowledged, so nothing is known.
        check(&[], 10 * MB, 64);
        check(&[3.0, 4.0], 10 * MB, 12);
        // One partition waits, another flows.
        check(&[8.0, 0.1], 10 * MB, 64);
        check(&[1.0], 10 * MB, 64);
    }

    #[test]
    fn what_failed_says_nothing_of_how_fast_it_is() {
        let mut pace = Pace::new(Duration::from_secs(8), 64 * MB);
        pace.sent(2 * MB);
        pace.decided(MB, Some(Duration::from_secs(9)));
        pace.tick();
        assert_eq!(pace.window, 2 * MB);
        pace.decided(MB, None);
        pace.tick();
        assert_eq!(pace.window, 64 * MB, "nothing waits any more");
    }
}
