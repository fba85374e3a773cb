//! How many records all instances of the door have stored in the last full second. Each adds its own to a tally in Redis, ten times a
//! second, and reads the sum; who asks is told what was read last. While Redis is away, or where there is none, it is this
//! instance's own, which the answer says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::figures::Figures;
use crate::base::retry::{BackOff, Episode};
use crate::base::thread::Pulse;
use crate::client::tally::Tally;
use crate::config;
use crate::http::reply::{Answer, JSON, answer, uncached};

/// Between two additions.
const STEP: Duration = Duration::from_millis(100);

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Says whose rate it is, where it is not everybody's.
const WHOSE: HeaderName = HeaderName::from_static("rowmill-rate");

/// What all loops share.
pub struct Rate {
    config: config::Rate,
    redis: Option<config::Redis>,
    /// Of the last full second.
    of_all: AtomicU64,
    own: AtomicU64,
    is_of_all: AtomicBool,
}

/// What one instance stored, by its own seconds. Pure.
#[derive(Default)]
struct Seconds {
    second: u64,
    now: u64,
    last: u64,
}

impl Seconds {
    /// Adds what was stored since the last call, in this second of its own; what the last full one had.
    fn add(&mut self, second: u64, count: u64) -> u64 {
        if second != self.second {
            self.last = if second == self.second + 1 { self.now } else { 0 };
            (self.second, self.now) = (second, 0);
        }
        self.now += count;
        self.last
    }
}

impl Rate {
    pub fn new(config: config::Rate, redis: Option<config::Redis>) -> Rate {
        let (of_all, own, is_of_all) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Rate { config, redis, of_all, own, is_of_all }
    }

    /// The answer, on its path.
    pub fn answer(&self, path: &str) -> Option<Answer> {
        if path != self.config.path {
            return None;
        }
        let is_of_all = self.is_of_all.load(SeqCst);
        let rate = if is_of_all { &self.of_all } else { &self.own };
        let body = Map::from_iter([(self.config.field.clone(), rate.load(SeqCst).into())]);
        let mut answer = uncached(answer(StatusCode::OK, JSON, Value::Object(body).to_string()));
        if !is_of_all {
            answer.headers_mut().insert(WHOSE, HeaderValue::from_static("instance"));
        }
        Some(answer)
    }

    /// Counts, and adds.
    ///
    /// # Errors
    /// Never: while Redis is away, the rate is this instance's own.
    pub fn count(&self, figures: &Figures, pulse: &Pulse) -> Result<()> {
        let (began, mut seconds, mut told) = (Instant::now(), Seconds::default(), 0);
        let mut tally: Option<Tally> = None;
        let mut trouble = Episode::default();
        // What was stored while Redis was away belongs to seconds that are over.
        let (mut added, mut retry, mut again) = (0, BackOff::new(RETRY_FIRST, RETRY_LONGEST), Instant::now());
        loop {
            std::thread::sleep(STEP);
            let stored = figures.delivered();
            self.own.store(seconds.add(began.elapsed().as_secs(), stored - told), SeqCst);
            told = stored;
            let Some(redis) = self.redis.as_ref().filter(|_| Instant::now() >= again) else { continue };
            let sum = pulse.during("adding to the rate in Redis", || {
                let tally = match &mut tally {
                    Some(tally) => tally,
                    None => {
                        added = stored;
                        tally.insert(Tally::open(redis, &self.config.name)?)
                    }
                };
                tally.add(stored - added)
            });
            match sum {
                Ok(sum) => {
                    added = stored;
                    retry = BackOff::new(RETRY_FIRST, RETRY_LONGEST);
                    self.of_all.store(sum, SeqCst);
                    self.is_of_all.store(true, SeqCst);
                    if trouble.ends() {
                        log::info!("the rate is that of all instances again");
                    }
                }
                Err(error) => {
                    tally = None;
                    again = Instant::now() + retry.pause();
                    self.is_of_all.store(false, SeqCst);
                    if trouble.begins() {
                        log::warn!("Redis: {error:#}; until it is back, the rate is this instance's own");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_full_second_counts() {
        let mut seconds = Seconds::default();
        for (second, count, expected) in
            [(0, 3, 0), (0, 4, 0), (1, 1, 7), (1, 0, 7), (2, 5, 1), (5, 2, 0), (6, 0, 2)]
        {
            assert_eq!(seconds.add(second, count), expected, "{second}");
        }
    }
}
