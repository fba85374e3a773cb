//! `[postgres]`: the database that holds the tables and the ledger.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::secret::{Environment, Secret};
use super::units::Period;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPostgres {
    url: Option<String>,
    password: Option<String>,
    lock_timeout: Option<Period>,
    sessions: Option<usize>,
}

/// As many as hardly anybody has tables; beyond that they are lent to one after another. Three processes fit into the hundred
/// that a server allows by itself.
const SESSIONS: usize = 30;

/// Long enough for an index build's short locks; afterwards the batch is sent again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Postgres {
    /// Only a password in it may change while a process runs.
    pub url: Secret,
    /// Instead of one in the URL.
    pub password: Option<Secret>,
    /// Bounds every wait for a lock; afterwards the batch is tried again.
    pub lock_timeout: Duration,
    /// Rows are written by so many sessions at most, however many tables there are.
    pub sessions: usize,
}

/// A URL may hold a password, so it is never printed whole.
impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("lock_timeout", &self.lock_timeout).finish_non_exhaustive()
    }
}

pub(super) fn resolve_postgres(raw: RawPostgres, env: Environment<'_>) -> Result<Postgres> {
    let sessions = raw.sessions.unwrap_or(SESSIONS);
    if !(1..=1000).contains(&sessions) {
        bail!("postgres.sessions must be between 1 and 1000");
    }
    Ok(Postgres {
        sessions,
        url: Secret::read(
            "postgres.url",
            &raw.url
                .or_else(|| env("DATABASE_URL"))
                .context("no PostgreSQL server: set url in [postgres], or DATABASE_URL")?,
            env,
        )?,
        password: Secret::optional("postgres.password", raw.password, env)?,
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

    #[test]
    fn rows_need_a_session() {
        check("[postgres]\nsessions = 0", Err("between 1 and 1000"));
        check("[postgres]\nsessions = 1", Ok(()));
    }
}
