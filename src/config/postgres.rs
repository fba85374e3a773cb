//! `[postgres]`: the database that holds the tables and the ledger.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::secret::{self, Environment};
use super::units::Period;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPostgres {
    url: Option<String>,
    password: Option<String>,
    lock_timeout: Option<Period>,
}

/// Long enough for an index build's short locks; afterwards the batch is sent again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Postgres {
    pub url: String,
    /// Instead of one in the URL.
    pub password: Option<String>,
    /// Bounds every wait for a lock; afterwards the batch is tried again.
    pub lock_timeout: Duration,
}

/// A URL may hold a password, so it is never printed whole.
impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("lock_timeout", &self.lock_timeout).finish_non_exhaustive()
    }
}

pub(super) fn resolve_postgres(raw: RawPostgres, env: Environment<'_>) -> Result<Postgres> {
    Ok(Postgres {
        url: secret::value(
            "postgres.url",
            &raw.url
                .or_else(|| env("DATABASE_URL"))
                .context("no PostgreSQL server: set url in [postgres], or DATABASE_URL")?,
            env,
        )?,
        password: secret::optional("postgres.password", raw.password, env)?,
        lock_timeout: raw.lock_timeout.map_or(LOCK_TIMEOUT, |s| s.0),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn a_wait_for_a_lock_ends_well_before_the_watchdog_does() {
        check("[postgres]\nlock_timeout = \"61s\"", Err("at least twice postgres.lock_timeout"));
        check("[postgres]\nlock_timeout = \"60s\"", Ok(()));
    }
}
