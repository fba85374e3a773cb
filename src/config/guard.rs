//! `[guard]`: when too many dead letters stop a topic.

use anyhow::{Result, bail};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuard {
    dead_letter_share: Option<f64>,
    dead_letter_window: Option<u64>,
}

/// More bad records than good ones are no accident of single records.
const DEAD_LETTER_SHARE: f64 = 0.5;

/// So many records are a sample, and few enough to set aside before a bad deployment is noticed.
const DEAD_LETTER_WINDOW: u64 = 200;

/// The guard keeps up to 16 bytes for each, for each topic.
const DEAD_LETTER_WINDOW_MAX: u64 = 100_000;

/// When too many dead letters stop a topic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Above 0 and below 1.
    pub share: f64,
    /// How many outcomes are "recent". Fewer are judged as if the rest of them had been rows, so that three bad records of
    /// four stop nothing.
    pub window: u64,
}

pub(super) fn resolve_guard(raw: &RawGuard) -> Result<Option<Guard>> {
    let window = raw.dead_letter_window.unwrap_or(DEAD_LETTER_WINDOW);
    if !(10..=DEAD_LETTER_WINDOW_MAX).contains(&window) {
        bail!("guard.dead_letter_window must be between 10 and {DEAD_LETTER_WINDOW_MAX} records");
    }
    match raw.dead_letter_share {
        None => Ok(Some(Guard { share: DEAD_LETTER_SHARE, window })),
        Some(1.0) => Ok(None),
        Some(share) if share > 0.0 && share < 1.0 => Ok(Some(Guard { share, window })),
        Some(share) => {
            bail!(
                "guard.dead_letter_share is {share}: use a share between 0 and 1, like 0.5; 1 stops nothing"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        for share in ["0.0", "1.5", "-0.5", "nan", "inf"] {
            check(&format!("[guard]\ndead_letter_share = {share}"), Err("guard.dead_letter_share is"));
        }
        check("[guard]\ndead_letter_share = 0.5\ndead_letter_window = 9", Err("between 10 and 100000"));
    }
}
