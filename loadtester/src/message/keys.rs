//! Which user a message belongs to: the skew decides how well a consumer's cache of users works.

use std::sync::Arc;

use crate::base::quantity::{self, arguments};

/// `--keys`, as written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeySpread {
    Uniform,
    /// The n-th most frequent user has 1 / n^s of the messages of the first.
    Zipf(f64),
    /// A share of the messages goes to the first n users, the rest to all others.
    Hot {
        share: f64,
        users: usize,
    },
    /// Users come to life one after another; the newest are the busiest.
    Latest,
    /// The first has this share of all messages, the second the same share of the rest, and so on.
    Geometric(f64),
}

/// The spread over a known number of users.
#[derive(Clone, Debug)]
pub struct Keys {
    users: usize,
    spread: KeySpread,
    /// Zipf and latest: the share of messages that go to users up to this one.
    up_to: Arc<Vec<f64>>,
}

/// After this many messages of a stream, `latest` moves on to the next user.
const LATEST_STEP: u64 = 1000;

impl Keys {
    pub fn new(users: usize, spread: KeySpread) -> Self {
        assert!(users > 0, "a message needs a user");
        let exponent = match spread {
            KeySpread::Zipf(s) => Some(s),
            KeySpread::Latest => Some(0.99),
            _ => None,
        };
        let up_to = exponent.map_or(Vec::new(), |s| cumulated(users, s));
        Self { users, spread, up_to: Arc::new(up_to) }
    }

    /// The user at `at`, a number from 0 up to, and never, 1, that was drawn for message `seq` of a stream.
    pub fn pick(&self, at: f64, seq: u64) -> usize {
        let spread_over = |at: f64, users: usize| ((at * users as f64) as usize).min(users - 1);
        match self.spread {
            KeySpread::Uniform => spread_over(at, self.users),
            KeySpread::Zipf(_) => self.ranked(at),
            KeySpread::Hot { share, users } if at < share || users >= self.users => {
                spread_over((at / share).min(1.0), users.min(self.users))
            }
            KeySpread::Hot { share, users } => {
                users + spread_over((at - share) / (1.0 - share), self.users - users)
            }
            KeySpread::Latest => {
                let newest = (seq / LATEST_STEP) as usize % self.users;
                (newest + self.users - self.ranked(at)) % self.users
            }
            KeySpread::Geometric(share) => geometric(at, share, self.users),
        }
    }

    fn ranked(&self, at: f64) -> usize {
        self.up_to.partition_point(|share| *share <= at).min(self.users - 1)
    }
}

/// What would fall behind the last user is spread over all of them in the same proportions.
fn geometric(at: f64, share: f64, users: usize) -> usize {
    let rest = 1.0 - share;
    let within = at * (1.0 - rest.powi(users.min(i32::MAX as usize) as i32));
    (((1.0 - within).ln() / rest.ln()) as usize).min(users - 1)
}

fn cumulated(users: usize, exponent: f64) -> Vec<f64> {
    let weights = (1..=users).map(|rank| (rank as f64).powf(-exponent));
    let total: f64 = weights.clone().sum();
    weights
        .scan(0.0, |sum, weight| {
            *sum += weight / total;
            Some(*sum)
        })
        .collect()
}

impl std::str::FromStr for KeySpread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let positive = |text: &str| text.parse().ok().filter(|s: &f64| *s > 0.0 && s.is_finite());
        match text {
            "uniform" => return Ok(Self::Uniform),
            "latest" => return Ok(Self::Latest),
            "zipf" => return Ok(Self::Zipf(1.0)),
            _ => {}
        }
        if let Some(exponent) = arguments(text, "zipf").and_then(positive) {
            return Ok(Self::Zipf(exponent));
        }
        let part = |share: &f64| *share > 0.0 && *share < 1.0;
        if let Some(share) = arguments(text, "geometric").and_then(quantity::share).filter(part) {
            return Ok(Self::Geometric(share));
        }
        if let Some((share, users)) = arguments(text, "hot").and_then(|a| a.split_once(',')) {
            let share = quantity::share(share.trim()).filter(|share| *share > 0.0 && *share < 1.0);
            let users = users.trim().parse().ok().filter(|n| *n > 0);
            if let (Some(share), Some(users)) = (share, users) {
                return Ok(Self::Hot { share, users });
            }
        }
        Err(format!("\"{text}\" is none of uniform, zipf(1.1), hot(90%,10), geometric(1%), latest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash::{mix, unit};

    fn counts(keys: &Keys, draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; keys.users];
        for seq in 0..draws {
            counts[keys.pick(unit(mix(seq + 1)), 0)] += 1.0;
        }
        counts
    }

    #[test]
    fn spreads_as_written() {
        for text in [
            "",
            "zipf()",
            "zipf(0)",
            "zipf(x)",
            "hot",
            "hot(90,10)",
            "hot(100%,1)",
            "hot(90%,0)",
            "geometric(0%)",
            "normal",
        ] {
            assert!(text.parse::<KeySpread>().is_err(), "{text}");
        }
        let rows = [
            ("uniform", KeySpread::Uniform),
            ("zipf(1.1)", KeySpread::Zipf(1.1)),
            ("hot(90%, 10)", KeySpread::Hot { share: 0.9, users: 10 }),
            ("latest", KeySpread::Latest),
            ("geometric(1%)", KeySpread::Geometric(0.01)),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse(), Ok(expected));
        }
    }

    /// The slope of log(count) over log(rank) by least squares.
    #[test]
    fn the_zipf_exponent_is_recovered() {
        for exponent in [0.8, 1.0, 1.2] {
            let keys = Keys::new(1000, KeySpread::Zipf(exponent));
            let points: Vec<(f64, f64)> = counts(&keys, 2_000_000)[..100]
                .iter()
                .enumerate()
                .map(|(rank, count)| (((rank + 1) as f64).ln(), count.ln()))
                .collect();
            let n = points.len() as f64;
            let (x, y) = points.iter().fold((0.0, 0.0), |(a, b), p| (a + p.0 / n, b + p.1 / n));
            let (xy, xx) = points
                .iter()
                .fold((0.0, 0.0), |(a, b), p| (a + (p.0 - x) * (p.1 - y), b + (p.0 - x).powi(2)));
            assert!((-xy / xx - exponent).abs() < 0.02, "{} for {exponent}", -xy / xx);
        }
    }

    #[test]
    fn hot_users_get_their_share() {
        let counts = counts(&Keys::new(1000, KeySpread::Hot { share: 0.9, users: 10 }), 1_000_000);
        let hot: f64 = counts[..10].iter().sum();
        assert!((hot / 1e6 - 0.9).abs() < 0.002, "{hot}");
        assert!(counts[10..].iter().all(|c| *c > 0.0));
    }

    #[test]
    fn each_has_its_share_of_the_rest() {
        let counts = counts(&Keys::new(10_000, KeySpread::Geometric(0.01)), 1_000_000);
        let mut rest = 1e6;
        for count in &counts[..20] {
            assert!((count / rest - 0.01).abs() < 0.0005, "{count} of {rest}");
            rest -= count;
        }
        let few = Keys::new(3, KeySpread::Geometric(0.5));
        assert_eq!([0.0, 0.58, 0.86, 0.999_999].map(|at| few.pick(at, 0)), [0, 1, 2, 2]);
    }

    #[test]
    fn the_newest_user_moves_on() {
        let keys = Keys::new(10, KeySpread::Latest);
        assert_eq!((keys.pick(0.0, 0), keys.pick(0.0, 1000), keys.pick(0.0, 10_000)), (0, 1, 0));
        assert_eq!(keys.pick(0.999, 0), 1);
    }
}
