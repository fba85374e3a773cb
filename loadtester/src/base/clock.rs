//! One monotonic clock for every interval, tied once to the wall clock for what travels in messages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

pub const SECOND_NS: i64 = 1_000_000_000;

/// Time since the start of a run; the start may lie ahead.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start_ns: i64,
    start_wall_us: i64,
}

impl Clock {
    /// A clock whose zero is `ahead` from now.
    pub fn starting_in(ahead: Duration) -> Self {
        let (monotonic_ns, wall_us) = both();
        Self {
            start_ns: monotonic_ns + ahead.as_nanos() as i64,
            start_wall_us: wall_us + ahead.as_micros() as i64,
        }
    }

    /// A clock whose zero is when the wall clock shows `wall_us`.
    pub fn starting_at(wall_us: i64) -> Self {
        let (monotonic_ns, now_us) = both();
        Self { start_ns: monotonic_ns + (wall_us - now_us) * 1000, start_wall_us: wall_us }
    }

    /// Nanoseconds since the start; negative before it.
    pub fn now_ns(&self) -> i64 {
        monotonic_ns() - self.start_ns
    }

    /// The wall clock's reading at `at_ns`, in microseconds since 1970 UTC, as the run's one reading has it.
    pub fn wall_us(&self, at_ns: i64) -> i64 {
        self.start_wall_us + at_ns.div_euclid(1000)
    }

    /// The inverse, in microseconds since the start.
    pub fn since_start_us(&self, wall_us: i64) -> i64 {
        wall_us - self.start_wall_us
    }

    /// How far the wall clock has run away from the monotonic one since the start.
    pub fn wall_drift_us(&self) -> i64 {
        let (monotonic_ns, wall_us) = both();
        wall_us - self.wall_us(monotonic_ns - self.start_ns)
    }

    /// Sleeps until `at_ns`. A signal may end the sleep early; the caller looks at the clock anyway.
    pub fn sleep_until(&self, at_ns: i64) {
        let at = (self.start_ns + at_ns).max(0);
        let time = TimeSpec::new(at / SECOND_NS, at % SECOND_NS);
        clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &time).ok();
    }
}

/// The wall clock against the monotonic one, looked at again and again.
#[derive(Default)]
pub struct Steps {
    drift_us: i64,
    largest_us: i64,
}

impl Steps {
    pub fn look(&mut self, clock: &Clock) {
        let drift_us = clock.wall_drift_us();
        self.largest_us = self.largest_us.max((drift_us - self.drift_us).abs());
        self.drift_us = drift_us;
    }

    /// The largest change between two looks.
    pub fn largest_us(&self) -> i64 {
        self.largest_us
    }
}

fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec() * SECOND_NS + now.tv_nsec()
}

pub fn wall_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// Both clocks at the same moment: of several tries the one with the least time between its two monotonic readings.
fn both() -> (i64, i64) {
    let pair = || {
        let before = monotonic_ns();
        let wall = wall_us();
        let after = monotonic_ns();
        (after - before, before + (after - before) / 2, wall)
    };
    let (_, monotonic, wall) = (0..5).map(|_| pair()).min().expect("there are five tries");
    (monotonic, wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_to_the_due_time() {
        let clock = Clock::starting_in(Duration::from_millis(20));
        assert!(clock.now_ns() < 0);
        clock.sleep_until(0);
        assert!(clock.now_ns() >= 0);
        assert!(clock.wall_drift_us().abs() < 100_000);
        assert_eq!(clock.since_start_us(clock.wall_us(5_000_000)), 5000);
    }
}
