//! When each message of a thread is due: a pure function of the shape, the arrivals and the message's number.
//!
//! Nothing here knows what time it is. A generator that is late sends at once and keeps the schedule, so a stall shows
//! as latency and never as messages that were not sent.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::base::hash::mix;
use crate::plan::shape::{Arrivals, Shape};

/// One thread's share of the arrivals, in order. The threads' shares add up to the shape: every n-th arrival, or
/// independent Poisson streams of an n-th of the rate each.
pub struct Schedule {
    shape: Arc<Shape>,
    arrivals: Arrivals,
    thread: u64,
    threads: u64,
    next: u64,
    /// The sum of the exponential gaps so far; their mean is 1.
    gaps: f64,
    block: Block,
    random: Pcg64Mcg,
}

/// `PoissonExact` stretches each block of gaps to the block's length.
#[derive(Clone, Copy, Default)]
struct Block {
    begin: f64,
    scale: f64,
    left: u32,
}

const BLOCK: u32 = 1000;

impl Schedule {
    pub fn new(shape: Arc<Shape>, arrivals: Arrivals, seed: u64, thread: u64, threads: u64) -> Self {
        // Spread over all bits: this generator ignores its state's lowest one, and neighbors must not share their gaps.
        let random = Pcg64Mcg::seed_from_u64(mix(seed ^ mix(thread + 1)));
        Self { shape, arrivals, thread, threads, next: 0, gaps: 0.0, block: Block::default(), random }
    }

    /// Where the next arrival stands on the axis of all messages.
    fn position(&mut self) -> f64 {
        let k = self.next;
        self.next += 1;
        match self.arrivals {
            Arrivals::Constant => (self.thread + k * self.threads) as f64,
            Arrivals::Burst(n) => {
                let k = self.thread + k * self.threads;
                (k - k % n) as f64
            }
            Arrivals::Poisson => {
                self.gaps += gap(&mut self.random);
                self.gaps * self.threads as f64
            }
            Arrivals::PoissonExact => self.exact_position() * self.threads as f64,
        }
    }

    fn exact_position(&mut self) -> f64 {
        if self.block.left == 0 {
            // A second generator runs ahead to learn how long the block's gaps are together.
            let mut ahead = self.random.clone();
            let sum: f64 = (0..=BLOCK).map(|_| gap(&mut ahead)).sum();
            let begin = (self.next - 1) as f64;
            self.block = Block { begin, scale: f64::from(BLOCK) / sum, left: BLOCK };
            self.gaps = 0.0;
        }
        self.gaps += gap(&mut self.random);
        self.block.left -= 1;
        if self.block.left == 0 {
            // The closing gap belongs to the block's sum though no arrival ends it.
            let position = self.block.begin + self.gaps * self.block.scale;
            gap(&mut self.random);
            return position;
        }
        self.block.begin + self.gaps * self.block.scale
    }
}

impl Iterator for Schedule {
    /// Seconds from the start.
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        let position = self.position();
        self.shape.due(position)
    }
}

/// An exponential gap of mean 1. `1 - u` keeps the logarithm away from zero.
fn gap(random: &mut Pcg64Mcg) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(shape: &Shape, arrivals: Arrivals, threads: u64) -> Vec<f64> {
        let shape = Arc::new(shape.clone());
        let mut due: Vec<f64> =
            (0..threads).flat_map(|t| Schedule::new(shape.clone(), arrivals, 7, t, threads)).collect();
        due.sort_by(f64::total_cmp);
        due
    }

    #[test]
    fn threads_share_the_constant_schedule_without_gaps() {
        let shape = Shape::constant(1000.0, 3.0);
        for threads in [1, 2, 3, 8] {
            let due = all(&shape, Arrivals::Constant, threads);
            assert_eq!(due.len(), 3000);
            for (k, due) in due.iter().enumerate() {
                assert!((due - k as f64 / 1000.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_burst_is_due_at_one_moment() {
        let due = all(&Shape::constant(1000.0, 1.0), Arrivals::Burst(100), 4);
        assert_eq!(due.len(), 1000);
        for group in due.chunks(100) {
            assert_eq!(group[0], group[99]);
        }
        assert!((due[100] - 0.1).abs() < 1e-9);
    }

    /// The greatest distance between the gaps' distribution and the exponential one; 1.63 / sqrt(n) is passed by one
    /// sample in a hundred.
    fn kolmogorov_smirnov(gaps: &mut [f64], mean: f64) -> f64 {
        gaps.sort_by(f64::total_cmp);
        let n = gaps.len() as f64;
        let distance = |(i, gap): (usize, &f64)| {
            let exponential = 1.0 - (-gap / mean).exp();
            (exponential - i as f64 / n).abs().max((exponential - (i + 1) as f64 / n).abs())
        };
        gaps.iter().enumerate().map(distance).fold(0.0, f64::max)
    }

    #[test]
    fn poisson_gaps_are_exponential_over_all_threads() {
        for arrivals in [Arrivals::Poisson, Arrivals::PoissonExact] {
            let due = all(&Shape::constant(1000.0, 60.0), arrivals, 8);
            let mut gaps: Vec<f64> = due.windows(2).map(|w| w[1] - w[0]).collect();
            let limit = 1.63 / (gaps.len() as f64).sqrt();
            let distance = kolmogorov_smirnov(&mut gaps, 0.001);
            assert!(distance < limit, "{arrivals:?} {distance} {limit}");
            // The test can fail: an even schedule is far away.
            let mut even = vec![0.001; 1000];
            assert!(kolmogorov_smirnov(&mut even, 0.001) > 0.3);
        }
    }

    #[test]
    fn exact_poisson_sends_the_exact_count() {
        let due = all(&Shape::constant(1000.0, 64.0), Arrivals::PoissonExact, 8);
        assert_eq!(due.len(), 64_000);
        let poisson = all(&Shape::constant(1000.0, 64.0), Arrivals::Poisson, 8).len() as f64;
        assert!((poisson - 64_000.0).abs() < 4.0 * 64_000f64.sqrt());
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        let shape = Shape::constant(1000.0, 1.0);
        assert_eq!(all(&shape, Arrivals::Poisson, 2), all(&shape, Arrivals::Poisson, 2));
    }
}
