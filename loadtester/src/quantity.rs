//! Numbers as people write them: rates, durations, shapes.

use std::str::FromStr;
use std::time::Duration;

use crate::schedule::{Arrivals, Curve, Segment, Shape};

/// Messages per second: `20000`, `20k`, `0.5`, `20000/s`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let (digits, factor) = match bare.chars().last() {
            Some('k' | 'K') => (&bare[..bare.len() - 1], 1e3),
            Some('m' | 'M') => (&bare[..bare.len() - 1], 1e6),
            _ => (bare, 1.0),
        };
        match digits.parse::<f64>() {
            Ok(n) if n >= 0.0 && n.is_finite() => Ok(Rate(n * factor)),
            _ => {
                Err(format!("\"{text}\" is not a rate; write messages per second, such as 20000, 20k or 0.5"))
            }
        }
    }
}

/// `500ms`, `30s`, `5m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    match digits.parse::<f64>() {
        Ok(n) if n >= 0.0 && (n * factor).is_finite() && n * factor < 1e8 => {
            Ok(Duration::from_secs_f64(n * factor))
        }
        _ => Err(format!("\"{text}\" is not a duration; write 500ms, 30s, 5m or 1h")),
    }
}

/// `30s@0..20k, 2m@20k, 1m@sine(20k,5k,30s)`.
pub fn shape(text: &str) -> Result<Shape, String> {
    let segments = split_outside_parentheses(text).into_iter().map(segment).collect::<Result<Vec<_>, _>>()?;
    let shape = Shape::new(segments);
    if shape.messages() < 1.0 {
        return Err(format!("the shape \"{text}\" sends less than one message"));
    }
    Ok(shape)
}

fn segment(text: &str) -> Result<Segment, String> {
    let wrong =
        || format!("\"{text}\" is not a part of a shape; write 2m@20k, 30s@0..20k or 1m@sine(20k,5k,30s)");
    let (length, pace) = text.split_once('@').ok_or_else(wrong)?;
    let seconds = duration(length)?.as_secs_f64();
    if seconds <= 0.0 {
        return Err(wrong());
    }
    let curve = if let Some(arguments) = pace.trim().strip_prefix("sine(").and_then(|p| p.strip_suffix(')')) {
        let parts: Vec<&str> = arguments.split(',').collect();
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

pub fn arrivals(text: &str) -> Result<Arrivals, String> {
    let burst = || text.strip_prefix("burst(")?.strip_suffix(')')?.parse().ok().filter(|n: &u64| *n > 0);
    match text {
        "constant" => Ok(Arrivals::Constant),
        "poisson" => Ok(Arrivals::Poisson),
        "poisson-exact" => Ok(Arrivals::PoissonExact),
        _ => burst()
            .map(Arrivals::Burst)
            .ok_or_else(|| format!("\"{text}\" is none of constant, poisson, poisson-exact, burst(100)")),
    }
}

/// A span of time for a reader: `850 us`, `12.4 ms`, `3.25 s`.
pub fn show_us(us: f64) -> String {
    match us.abs() {
        n if n < 1e3 => format!("{us:.0} us"),
        n if n < 1e5 => format!("{:.2} ms", us / 1e3),
        n if n < 1e6 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// A count for a reader, in groups of three.
pub fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for text in ["", "-1", "k", "1e999", "fast", "1/m"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for (text, rate) in
            [("20000", 20000.0), ("20k", 20000.0), ("0.5", 0.5), ("1.5M/s", 1.5e6), ("20000/s", 20000.0)]
        {
            assert_eq!(text.parse(), Ok(Rate(rate)));
        }
    }

    #[test]
    fn durations() {
        for text in ["", "s", "-1s", "5 parsecs", "1d", "1e99h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("2", 2000), ("0.5s", 500)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn shapes() {
        for text in ["", "20k", "0s@1", "1s@0", "1m@sine(1k,2k,1s)", "1m@sine(1k,1k)", "1m@1k..x"] {
            assert!(shape(text).is_err(), "{text}");
        }
        let parsed = shape("30s@0..20k, 2m@20k, 1m@sine(20k,5k,30s), 10s@60k").unwrap();
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
        assert_eq!(arrivals("burst(50)"), Ok(Arrivals::Burst(50)));
        assert!(arrivals("burst(0)").is_err() && arrivals("gauss").is_err());
    }

    #[test]
    fn numbers_for_readers() {
        for (n, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(show_count(n), shown);
        }
        for (us, shown) in
            [(850.0, "850 us"), (12_400.0, "12.40 ms"), (250_000.0, "250 ms"), (3_250_000.0, "3.25 s")]
        {
            assert_eq!(show_us(us), shown);
        }
    }
}
