//! Conditions as people write them: on a run, `visible_p99<500ms`, and on its change against another, `visible_p99>+10%`.

use std::fmt;
use std::str::FromStr;

use crate::base::quantity::{Rate, duration, share};
use crate::measure::results::Results;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    pub metric: String,
    pub comparison: Comparison,
    /// In the metric's own unit.
    pub value: f64,
}

impl Threshold {
    /// Whether the condition holds; `None` where there is no such result.
    pub fn holds(&self, results: &Results) -> Option<bool> {
        let found = *results.get(&self.metric)?;
        Some(match self.comparison {
            Comparison::Less => found < self.value,
            Comparison::AtMost => found <= self.value,
            Comparison::More => found > self.value,
            Comparison::AtLeast => found >= self.value,
            Comparison::Equal => found == self.value,
        })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const COMPARISONS: [(&str, Comparison); 5] = [
    // The longer signs first: "<" begins "<=".
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("==", Comparison::Equal),
    ("<", Comparison::Less),
    (">", Comparison::More),
];

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is not a condition; write visible_p99<500ms, lost<1 or stored_rate>=19k");
        let place = |(sign, comparison)| text.find(sign).map(|at| (at, sign, comparison));
        let (at, sign, comparison) = COMPARISONS.into_iter().find_map(place).ok_or_else(wrong)?;
        let (metric, value) = (text[..at].trim(), text[at + sign.len()..].trim());
        let name_is_plain =
            !metric.is_empty() && metric.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let value = value_of(value).filter(|_| name_is_plain).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), metric: metric.to_owned(), comparison, value })
    }
}

/// A duration becomes microseconds, a share its ratio, a rate its number.
fn value_of(text: &str) -> Option<f64> {
    if let Ok(Rate(rate)) = text.parse() {
        return Some(rate);
    }
    share(text).or_else(|| duration(text).ok().map(|d| d.as_secs_f64() * 1e6))
}

/// `visible_p99>+10%`: a growth that fails the comparison; with `<-10%` a decline.
#[derive(Clone, Debug, PartialEq)]
pub struct FailOn {
    text: String,
    pub metric: String,
    growth: bool,
    share: f64,
}

impl FromStr for FailOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a condition such as visible_p99>+10% or stored_rate<-5%");
        let (at, growth) = match (text.find(">+"), text.find("<-")) {
            (Some(at), None) => (at, true),
            (None, Some(at)) => (at, false),
            _ => return Err(wrong()),
        };
        let share = share(&text[at + 2..]).filter(|share| *share >= 0.0).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), metric: text[..at].trim().to_owned(), growth, share })
    }
}

impl FailOn {
    /// Whether a result that changed by this share fails the comparison.
    pub fn fails(&self, change: f64) -> bool {
        if self.growth { change > self.share } else { change < -self.share }
    }
}

impl fmt::Display for FailOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        for text in ["", "visible_p99", "visible_p99<", "<5", "a b<5", "visible_p99<fast", "lost=>1"] {
            assert!(text.parse::<Threshold>().is_err(), "{text}");
        }
        let results = Results::from([
            ("visible_p99".into(), 400_000.0),
            ("lost".into(), 0.0),
            ("achieved_ratio".into(), 0.995),
        ]);
        let rows = [
            ("visible_p99<500ms", Some(true)),
            ("visible_p99 < 0.3s", Some(false)),
            ("visible_p99<=400ms", Some(true)),
            ("lost<1", Some(true)),
            ("lost>0", Some(false)),
            ("lost==0", Some(true)),
            ("achieved_ratio>=99%", Some(true)),
            ("visible_p99>20k", Some(true)),
            ("no_such>1", None),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Threshold>().unwrap().holds(&results), expected, "{text}");
        }
    }

    #[test]
    fn changes() {
        for text in ["", "visible_p99", "visible_p99>10%", "visible_p99>+x%", "a>+1"] {
            assert!(text.parse::<FailOn>().is_err(), "{text}");
        }
        let grown: FailOn = "visible_p99>+10%".parse().unwrap();
        let fallen: FailOn = "stored_rate<-5%".parse().unwrap();
        assert_eq!(
            (grown.fails(0.11), grown.fails(0.09), fallen.fails(-0.06), fallen.fails(0.5)),
            (true, false, true, false)
        );
    }
}
