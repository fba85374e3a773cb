//! How many messages are due by when, over all threads: the shape of a load as it is written, and as a function of time.

use std::str::FromStr;

use crate::base::quantity::{Rate, arguments, duration};

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

    /// The same shape with a share of its rate.
    pub fn scaled(&self, share: f64) -> Self {
        let scaled = |segment: &Segment| Segment {
            seconds: segment.seconds,
            curve: match segment.curve {
                Curve::Linear { from, to } => Curve::Linear { from: from * share, to: to * share },
                Curve::Sine { mean, amplitude, period } => {
                    Curve::Sine { mean: mean * share, amplitude: amplitude * share, period }
                }
            },
        };
        Self::new(self.segments.iter().map(scaled).collect())
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

/// `30s@0..20k, 2m@20k, 1m@sine(20k,5k,30s)`.
impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let segments =
            split_outside_parentheses(text).into_iter().map(segment).collect::<Result<Vec<_>, _>>()?;
        let shape = Shape::new(segments);
        if shape.messages() < 1.0 {
            return Err(format!("the shape \"{text}\" sends less than one message"));
        }
        Ok(shape)
    }
}

fn segment(text: &str) -> Result<Segment, String> {
    let wrong =
        || format!("\"{text}\" is not a part of a shape; write 2m@20k, 30s@0..20k or 1m@sine(20k,5k,30s)");
    let (length, pace) = text.split_once('@').ok_or_else(wrong)?;
    let seconds = duration(length)?.as_secs_f64();
    if seconds <= 0.0 {
        return Err(wrong());
    }
    let curve = if let Some(inside) = arguments(pace.trim(), "sine") {
        let parts: Vec<&str> = inside.split(',').collect();
        let [mean, amplitude, period] = parts[..] else { return Err(wrong()) };
        let curve = Curve::Sine {
            mean: rate(mean)?,
            amplitude: rate(amplitude)?,
            period: duration(period)?.as_secs_f64(),
        };
        match curve {
            Curve::Sine { mean, amplitude, period } if amplitude <= mean && period > 0.0 => curve,
            _ => {
                return Err(format!(
                    "\"{text}\" would send at a rate below zero; the mean must be at least the amplitude"
                ));
            }
        }
    } else if let Some((from, to)) = pace.split_once("..") {
        Curve::Linear { from: rate(from)?, to: rate(to)? }
    } else {
        Curve::Linear { from: rate(pace)?, to: rate(pace)? }
    };
    Ok(Segment { seconds, curve })
}

fn rate(text: &str) -> Result<f64, String> {
    Ok(text.parse::<Rate>()?.0)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// Lines of `rate,duration`; a first line that is no number is a header.
pub fn pace_file(text: &str) -> Result<Shape, String> {
    let mut segments = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (rate, length) =
            line.split_once(',').ok_or_else(|| format!("line {}: not \"rate,duration\"", number + 1))?;
        match (rate.parse::<Rate>(), duration(length)) {
            (Ok(rate), Ok(length)) if !length.is_zero() => {
                segments.push(Segment {
                    seconds: length.as_secs_f64(),
                    curve: Curve::Linear { from: rate.0, to: rate.0 },
                });
            }
            _ if number == 0 => {}
            (Err(error), _) | (_, Err(error)) => return Err(format!("line {}: {error}", number + 1)),
            _ => return Err(format!("line {}: the duration is zero", number + 1)),
        }
    }
    let shape = Shape::new(segments);
    if shape.messages() < 1.0 {
        return Err("it sends less than one message".to_owned());
    }
    Ok(shape)
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let burst = || arguments(text, "burst")?.parse().ok().filter(|n: &u64| *n > 0);
        match text {
            "constant" => Ok(Arrivals::Constant),
            "poisson" => Ok(Arrivals::Poisson),
            "poisson-exact" => Ok(Arrivals::PoissonExact),
            _ => burst()
                .map(Arrivals::Burst)
                .ok_or_else(|| format!("\"{text}\" is none of constant, poisson, poisson-exact, burst(100)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(seconds: f64, from: f64, to: f64) -> Segment {
        Segment { seconds, curve: Curve::Linear { from, to } }
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
    fn the_interval_is_not_rounded() {
        // At three million a second the gap is 333.33 ns; whole nanoseconds would be a thousandth off.
        let shape = Shape::constant(3e6, 10.0);
        assert!((shape.due(29_999_999.0).unwrap() - 29_999_999.0 / 3e6).abs() < 1e-9);
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

    #[test]
    fn shapes() {
        for text in ["", "20k", "0s@1", "1s@0", "1m@sine(1k,2k,1s)", "1m@sine(1k,1k)", "1m@1k..x"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
        let parsed: Shape = "30s@0..20k, 2m@20k, 1m@sine(20k,5k,30s), 10s@60k".parse().unwrap();
        assert_eq!(parsed.seconds(), 220.0);
        assert!((parsed.messages() - (300_000.0 + 2_400_000.0 + 1_200_000.0 + 600_000.0)).abs() < 1e-3);
        assert_eq!(parsed.peak(), 60_000.0);
        assert_eq!(pace_file("rate,duration\n20k,10s\n\n5,2s\n").unwrap().messages(), 200_010.0);
        for text in ["20k;10s", "20k,10s\nx,1s", "20k,10s\n5,0s", "rate,duration"] {
            assert!(pace_file(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arrivals_as_written() {
        assert_eq!("burst(50)".parse(), Ok(Arrivals::Burst(50)));
        assert!(["burst(0)", "gauss"].iter().all(|text| text.parse::<Arrivals>().is_err()));
    }
}
