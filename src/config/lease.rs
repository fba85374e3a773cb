//! `[lease]`: how long a silent process keeps its partitions.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::units::Period;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLease {
    duration: Option<Period>,
    session_lock: Option<bool>,
}

/// Long enough for five heartbeats, short enough that a dead machine's partitions soon move on.
const LEASE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Lease {
    /// A process that is silent for this long loses its partitions.
    pub duration: Duration,
    pub session_lock: bool,
}

pub(super) fn resolve_lease(raw: &RawLease) -> Result<Lease> {
    let lease = Lease {
        duration: raw.duration.map_or(LEASE, |s| s.0),
        session_lock: raw.session_lock.unwrap_or(true),
    };
    if lease.duration < Duration::from_secs(3) {
        bail!("lease.duration must be at least 3s: a heartbeat comes once a second");
    }
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn a_lease_outlasts_its_heartbeats() {
        check("[lease]\nduration = \"1s\"", Err("at least 3s"));
    }
}
