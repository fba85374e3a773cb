//! When each message is due: a pure function of the shape, the arrivals and the message's number.
//!
//! Nothing here knows what time it is. A generator that is late sends at once and keeps the schedule, so a stall shows
//! as latency and never as messages that were not sent.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::hash::mix;

/// How the rate runs over time, in messages per second over all threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    segments: Vec<Segment>,
    /// Before each segment: the seconds and the messages so far. One longer than `segments`.
    before: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    pub seconds: f64,
    pub curve: Curve,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    Linear { from: f64, to: f64 },
    Sine { mean: f64, amplitude: f64, period: f64 },
}

impl Segment {
    fn rate(&self, at: f64) -> f64 {
        match self.curve {
            Curve::Linear { from, to } => from + (to - from) * at / self.seconds,
            Curve::Sine { mean, amplitude, period } => {
                mean + amplitude * (at / period * std::f64::consts::TAU).sin()
            }
        }
    }

    /// Messages due in the first `at` seconds: the integral of the rate.
    fn count(&self, at: f64) -> f64 {
        match self.curve {
            Curve::Linear { from, to } => from * at + (to - from) * at * at / (2.0 * self.seconds),
            Curve::Sine { mean, amplitude, period } => {
                let omega = std::f64::consts::TAU / period;
                mean * at + amplitude / omega * (1.0 - (omega * at).cos())
            }
        }
    }

    /// The inverse of `count`. The form of the quadratic's root is the one that also holds for a rate that is constant,
    /// or that starts at zero.
    fn when(&self, count: f64) -> f64 {
        match self.curve {
            _ if count <= 0.0 => 0.0,
            Curve::Linear { from, to } => {
                let slope = (to - from) / self.seconds;
                2.0 * count / (from + (from * from + 2.0 * slope * count).max(0.0).sqrt())
            }
            Curve::Sine { .. } => self.bisect(count),
        }
    }

    fn bisect(&self, count: f64) -> f64 {
        let (mut low, mut high) = (0.0, self.seconds);
        // 60 halvings bring an hour below a nanosecond.
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if self.count(middle) < count { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    }
}

impl Shape {
    pub fn new(segments: Vec<Segment>) -> Self {
        let mut before = vec![(0.0, 0.0)];
        for segment in &segments {
            let (seconds, count) = before[before.len() - 1];
            before.push((seconds + segment.seconds, count + segment.count(segment.seconds)));
        }
        Self { segments, before }
    }

    pub fn constant(rate: f64, seconds: f64) -> Self {
        Self::new(vec![Segment { seconds, curve: Curve::Linear { from: rate, to: rate } }])
    }

    /// The same shape after a warm-up at its first rate, or at a tenth of its highest where it starts from nothing.
    pub fn with_warmup(&self, seconds: f64) -> Self {
        if seconds <= 0.0 {
            return self.clone();
        }
        let first = self.rate_at(0.0);
        let rate = if first > 0.0 { first } else { self.peak() / 10.0 };
        let warmup = Segment { seconds, curve: Curve::Linear { from: rate, to: rate } };
        Self::new(std::iter::once(warmup).chain(self.segments.iter().copied()).collect())
    }

    pub fn seconds(&self) -> f64 {
        self.before[self.segments.len()].0
    }

    /// All messages of the shape, as a real number: arrivals decide what becomes of the fraction.
    pub fn messages(&self) -> f64 {
        self.before[self.segments.len()].1
    }

    pub fn peak(&self) -> f64 {
        let highest = |s: &Segment| match s.curve {
            Curve::Linear { from, to } => from.max(to),
            Curve::Sine { mean, amplitude, .. } => mean + amplitude.abs(),
        };
        self.segments.iter().map(highest).fold(0.0, f64::max)
    }

    pub fn rate_at(&self, at: f64) -> f64 {
        let index = self.before.partition_point(|b| b.0 <= at).saturating_sub(1);
        self.segments.get(index).map_or(0.0, |s| s.rate(at - self.before[index].0))
    }

    /// Messages due in the first `at` seconds.
    pub fn count_at(&self, at: f64) -> f64 {
        let index = self.before.partition_point(|b| b.0 <= at).saturating_sub(1);
        match self.segments.get(index) {
            Some(segment) => self.before[index].1 + segment.count(at - self.before[index].0),
            None => self.messages(),
        }
    }

    pub fn messages_between(&self, from: f64, to: f64) -> f64 {
        self.count_at(to) - self.count_at(from)
    }

    /// The second at which the count reaches `position`, or `None` past the end.
    pub fn due(&self, position: f64) -> Option<f64> {
        if position >= self.messages() {
            return None;
        }
        let index = self.before.partition_point(|b| b.1 <= position).saturating_sub(1);
        let (seconds, count) = self.before[index];
        Some(seconds + self.segments[index].when(position - count))
    }
}

/// How messages are spread around the shape's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Evenly spaced.
    Constant,
    /// Independent of each other, as many collectors are: gaps are exponential.
    Poisson,
    /// Poisson, but every thousand arrivals of a thread take exactly their time, so the total is exact.
    PoissonExact,
    /// Evenly spaced groups of n that are due at the same moment.
    Burst(u64),
}

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

    fn linear(seconds: f64, from: f64, to: f64) -> Segment {
        Segment { seconds, curve: Curve::Linear { from, to } }
    }

    fn all(shape: &Shape, arrivals: Arrivals, threads: u64) -> Vec<f64> {
        let shape = Arc::new(shape.clone());
        let mut due: Vec<f64> =
            (0..threads).flat_map(|t| Schedule::new(shape.clone(), arrivals, 7, t, threads)).collect();
        due.sort_by(f64::total_cmp);
        due
    }

    #[test]
    fn due_is_the_inverse_of_the_count() {
        let sine =
            Segment { seconds: 10.0, curve: Curve::Sine { mean: 100.0, amplitude: 100.0, period: 3.0 } };
        for segment in [
            linear(10.0, 50.0, 50.0),
            linear(10.0, 0.0, 80.0),
            linear(10.0, 80.0, 0.0),
            linear(10.0, 3.0, 90.0),
            sine,
        ] {
            let shape = Shape::new(vec![linear(5.0, 20.0, 20.0), segment, linear(1.0, 7.0, 7.0)]);
            for k in 0..shape.messages() as u64 {
                let due = shape.due(k as f64).unwrap();
                assert!((shape.count_at(due) - k as f64).abs() < 1e-6, "{segment:?} {k} {due}");
            }
            assert_eq!(shape.due(shape.messages()), None);
        }
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
    fn the_interval_is_not_rounded() {
        // At three million a second the gap is 333.33 ns; whole nanoseconds would be a thousandth off.
        let shape = Shape::constant(3e6, 10.0);
        assert!((shape.due(29_999_999.0).unwrap() - 29_999_999.0 / 3e6).abs() < 1e-9);
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

    #[test]
    fn warm_up_runs_at_the_first_rate() {
        let shape = Shape::constant(100.0, 10.0).with_warmup(5.0);
        assert_eq!((shape.seconds(), shape.messages()), (15.0, 1500.0));
        let ramp = Shape::new(vec![linear(10.0, 0.0, 100.0)]).with_warmup(5.0);
        assert_eq!(ramp.rate_at(2.0), 10.0);
        assert_eq!(ramp.rate_at(10.0), 50.0);
        assert_eq!(ramp.rate_at(99.0), 0.0);
    }
}
