//! How the probe and its count reach the server.

use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use anyhow::{Context, Result};
use postgres::Client;

use crate::server::pg::Database;
use crate::watch::observe;

/// A session for reading the tables' ends; `backend` is told its server process.
pub fn connect(database: &Database, backend: &AtomicI32) -> Result<Client> {
    let mut client = database.connect("probe")?;
    // Planning must not choose by statistics that an empty table does not have yet.
    client
        .batch_execute("SET jit = off; SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off; SET statement_timeout = '60s'")
        .context("set up the probe's session")?;
    let row = client.query_one("SELECT pg_backend_pid(), inet_client_port()", &[])?;
    let pid = observe::backend_here(row.get(0), row.get(1));
    backend.store(pid.unwrap_or(0), Relaxed);
    Ok(client)
}
