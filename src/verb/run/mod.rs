//! `run`: the list of its threads is the pipeline's, the order in which they end is here: the stages commit what they hold,
//! then the lease thread gives the partitions away.

pub mod definitions;
pub mod figures;
pub mod pipeline;
pub mod upkeep;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use pipeline::Pipeline;

use crate::base::failure::Class;
use crate::base::queue;
use crate::base::retry::Episode;
use crate::base::thread::Kind;
use crate::client::pg;
use crate::config::Config;
use crate::config::source::Source;
use crate::figures::instruments::Totals;
use crate::promise::claim::Wake;
use crate::verb::service::{Process, Reload};
use crate::verb::setup::{self, Setup};

/// With RELEASE_MAX well below the 30 s after which our unit kills. What is not committed by then is rolled back and read
/// again.
const STOP_MAX: Duration = Duration::from_secs(7);

/// For the lease thread to release everything, after the writers.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// Between two tries to read the catalog.
const SETUP_RETRY: Duration = Duration::from_secs(1);

/// What readiness says while there is no pipeline, and what is done when it ends.
const BEFORE: &str = "waiting for PostgreSQL: the catalog was not read yet";
const ENDING: &str = "committing what is in hand";

/// Runs the pipeline until a signal or a failure.
///
/// # Errors
/// What ended a thread; the ledger makes it safe to start again.
pub fn run(config: &Config, source: Source) -> Result<()> {
    let process = Process::start(config.threads.watchdog, &config.metrics, BEFORE)?;
    let Some(setup) = wait_for_setup(config, &process)? else { return Ok(()) };
    if let Err(small) = setup::memory(config) {
        log::warn!("{small}");
    }
    let me = setup::member(config);
    log::info!("pipeline {:?}, member {}", config.pipeline, me.name);
    let pipeline = Arc::new(pipeline::start(config, &setup, &me, &process.threads)?);
    process.show(pipeline.clone())?;
    // Secrets and certificates are read again at each login.
    let read = |path: &Path| crate::config::read(path).map(|config| config.log);
    process.run(ENDING, Reload { source, read, files: Vec::new() })?;
    end(process, &pipeline)?;
    let Totals { rows, dead, .. } = pipeline.totals();
    log::info!("stopped: {rows} rows and {dead} dead letters committed");
    Ok(())
}

/// Whoever holds data first, then whoever holds partitions.
fn end(mut process: Process, pipeline: &Pipeline) -> Result<()> {
    pipeline.ownership.close();
    let late = process.wait_for(&pipeline.stages, Instant::now() + STOP_MAX)?;
    if !late.is_empty() {
        log::warn!(
            "{late:?} did not finish in {} s: what they hold is rolled back and read again",
            STOP_MAX.as_secs()
        );
    }
    let deadline = Instant::now() + RELEASE_MAX;
    // The lease thread may be gone; then there is nobody to tell.
    pipeline.wake.send_deadline(Wake::Finish, deadline).ok();
    // Everything is committed, and a partition that is not given away changes hands when the lease runs out.
    while let Err(error) = process.wait_for(std::slice::from_ref(&pipeline.lease_thread), deadline) {
        log::debug!("while the partitions are given away: {error:#}");
    }
    Ok(())
}

/// The catalog is needed before anything can run, so a database that is not there yet is waited for. `None`: a signal came.
fn wait_for_setup(config: &Config, process: &Process) -> Result<Option<Setup>> {
    let name = Kind::Setup.only();
    let (sender, result) = queue::bounded(1);
    let (config, pulse) = (config.clone(), process.threads.pulse(&name));
    // One thread tries again and again: each that ends leaves a notice, and an outage may last.
    process.threads.spawn(
        name,
        None,
        || Ok(()),
        move |()| {
            loop {
                let read = pulse.during("reading the catalog", || setup::read(&config));
                let done = read.is_ok();
                // Nobody waits for it after a signal.
                if sender.send(read).is_err() || done {
                    return Ok(());
                }
                std::thread::sleep(SETUP_RETRY);
            }
        },
    )?;
    let mut trouble = Episode::default();
    loop {
        let read = crossbeam_channel::select! {
            recv(process.signals) -> _ => return Ok(None),
            recv(result) -> read => read.context("reading the catalog failed")?,
        };
        match read {
            Ok(setup) => return Ok(Some(setup)),
            Err(error) if !is_away(&error) => return Err(error),
            Err(error) if trouble.begins() => {
                log::warn!("{error:#}; trying again every second");
            }
            Err(_) => {}
        }
    }
}

/// The server will be back, so waiting helps. One that does not let us in at the start needs another setting.
fn is_away(error: &anyhow::Error) -> bool {
    matches!(pg::class_of(error), Class::World | Class::Lost) && !pg::is_refused(error)
}
