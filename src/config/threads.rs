//! `[threads]`: how many of each, on which cores, and how long one may wait for a server.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::units::Period;
use crate::base::thread::Pin;
use crate::model::RawModel;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawThreads {
    pollers: Option<usize>,
    decoders: Option<usize>,
    writers: Option<usize>,
    pin: Option<RawPin>,
    watchdog: Option<Period>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawPin {
    Word(String),
    Cores(Vec<usize>),
}

/// A connection waits for BEGIN and COMMIT a tenth of the time. Several tables use that time for each other; a lone one has a
/// second writer for it (1.26 to 1.32 million rows/s on two cores).
fn default_writers(models: &[RawModel]) -> usize {
    if models.iter().all(|model| model.table == models[0].table) { 2 } else { 1 }
}

/// Above every legal wait: the lock timeout, plus the time that a slow disk may need for one batch.
const WATCHDOG: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct Threads {
    pub pollers: usize,
    pub decoders: usize,
    /// For each table.
    pub writers: usize,
    pub pin: Pin,
    /// A call to a server that lasts longer ends the process; the ledger makes that safe.
    pub watchdog: Duration,
}

pub(super) fn resolve_threads(raw: RawThreads, models: &[RawModel]) -> Result<Threads> {
    let threads = Threads {
        pollers: raw.pollers.unwrap_or(1),
        decoders: raw.decoders.unwrap_or(1),
        writers: raw.writers.unwrap_or_else(|| default_writers(models)),
        pin: resolve_pin(raw.pin)?,
        watchdog: raw.watchdog.map_or(WATCHDOG, |s| s.0),
    };
    for (name, count) in
        [("pollers", threads.pollers), ("decoders", threads.decoders), ("writers", threads.writers)]
    {
        if !(1..=64).contains(&count) {
            bail!("threads.{name} must be between 1 and 64");
        }
    }
    Ok(threads)
}

fn resolve_pin(raw: Option<RawPin>) -> Result<Pin> {
    match raw {
        None => Ok(Pin::Auto),
        Some(RawPin::Word(word)) if word == "auto" => Ok(Pin::Auto),
        Some(RawPin::Word(word)) if word == "off" => Ok(Pin::Off),
        Some(RawPin::Cores(cores)) if !cores.is_empty() => Ok(Pin::Cores(cores)),
        Some(_) => bail!("threads.pin must be \"auto\", \"off\" or a list of cores like [2, 3]"),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[threads]\npin = \"yes\"", Err("threads.pin"));
        check("[threads]\ndecoders = 0", Err("between 1 and 64"));
    }
}
