//! The count that keeps the probe honest: all rows of the last seconds, counted on a connection of its own while the probe
//! goes on. It takes over the snapshot of one of the probe's reads, so both speak of the same rows.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};
use postgres::Client;

use crate::base::thread;
use crate::server::pg::Database;
use crate::watch::counters::Counters;
use crate::watch::session;

/// What to count.
pub struct Job {
    /// As `pg_export_snapshot` named it; its transaction must stay open until the sweep has begun.
    pub snapshot: String,
    /// Each table's quoted name, the first block to count, and how many rows were seen from there on.
    pub tables: Vec<(String, u32, u64)>,
}

/// The thread's end that the probe holds. Dropped, it ends the thread.
pub struct Sweeper {
    jobs: SyncSender<Job>,
    begun: Receiver<bool>,
    missed: Receiver<Vec<bool>>,
}

impl Sweeper {
    pub fn start(database: &Database, counters: &Arc<Counters>) -> Result<Self> {
        // One sweep at a time; the probe asks for the next when it has the answer.
        let (jobs, inlet) = sync_channel(1);
        let (begins, begun) = sync_channel(1);
        let (answers, missed) = sync_channel(1);
        let (database, counters) = (database.clone(), counters.clone());
        let work = move || {
            let mut client = None;
            for job in inlet {
                if let Err(error) = sweep(&database, &counters, &mut client, &job, &begins, &answers) {
                    log::debug!("a count of the probe's failed: {error:#}");
                    client = None;
                    // Whoever still waits for this sweep learns that there is none.
                    begins.try_send(false).ok();
                    answers.try_send(Vec::new()).ok();
                }
            }
        };
        thread::spawn(thread::SWEEP, work).context("start the probe's count")?;
        Ok(Self { jobs, begun, missed })
    }

    /// Hands a job over and waits until the sweep holds the snapshot. False where it could not.
    pub fn begin(&self, job: Job) -> bool {
        // What a failed one left behind.
        self.begun.try_iter().for_each(drop);
        self.missed.try_iter().for_each(drop);
        self.jobs.send(job).is_ok() && self.begun.recv().unwrap_or(false)
    }

    /// Of each table whether it holds rows that were not seen; empty where the count failed, `None` while it counts.
    pub fn missed(&self) -> Option<Vec<bool>> {
        self.missed.try_recv().ok()
    }
}

fn sweep(
    database: &Database,
    counters: &Counters,
    client: &mut Option<Client>,
    job: &Job,
    begins: &SyncSender<bool>,
    answers: &SyncSender<Vec<bool>>,
) -> Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(session::connect(database, &counters.sweep_backend)?),
    };
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        job.snapshot
    );
    client.batch_execute(&begin).context("take over the probe's snapshot")?;
    begins.send(true).context("tell the probe")?;
    let mut missed = Vec::new();
    for (name, first, seen) in &job.tables {
        let query = format!("SELECT count(*) FROM ONLY {name} WHERE ctid >= '({first},0)'");
        let counted: i64 =
            client.query_typed(&query, &[]).with_context(|| format!("count {name}"))?[0].get(0);
        missed.push(counted as u64 > *seen);
    }
    client.batch_execute("COMMIT").context("end the count")?;
    answers.send(missed).context("tell the probe")
}
