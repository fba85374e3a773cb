//! Signals, the order of ending, the report line and the watchdog: what keeps a running pipeline honest.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::sys::signal::{SigSet, Signal};

use crate::board::{Board, Service};
use crate::config::Config;
use crate::cpu::{Exit, Kind, Name, Threads};
use crate::lease::Wake;
use crate::metrics::Totals;
use crate::notify::Manager;
use crate::pipeline;
use crate::queue;
use crate::setup::{self, Setup};
use crate::{http, statsd};

/// With RELEASE_MAX well below the 30 s after which our unit kills. What is not committed by then is rolled back and read
/// again.
const STOP_MAX: Duration = Duration::from_secs(7);

/// For the lease thread to release everything, after the writers.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// What readiness says while there is no pipeline, and what is done when it ends.
const BEFORE: &str = "waiting for PostgreSQL: the catalog was not read yet";
const ENDING: &str = "committing what is in hand";

/// Between two report lines, for a person who watches and for a log file.
const REPORT_TERMINAL: Duration = Duration::from_secs(1);
const REPORT_LOG: Duration = Duration::from_secs(10);

/// Between two looks at the threads' health.
const WATCH: Duration = Duration::from_secs(1);

/// Runs the pipeline until a signal or a failure.
///
/// # Errors
/// What ended a thread; the ledger makes it safe to start again.
pub fn run(config: &Config) -> Result<()> {
    let (signal_sender, signals) = queue::bounded(1);
    let (exit_sender, exits) = queue::bounded(queue::EXITS);
    let threads = Threads::new(exit_sender);
    watch_signals(&threads, signal_sender)?;

    let threads = Arc::new(threads);
    let board = Arc::new(Board::new(threads.clone(), config.threads.watchdog, BEFORE));
    watch_health(&threads, &board, Manager::from_environment()?)?;
    tell(config, &threads, &board)?;
    let Some(setup) = wait_for_setup(config, &threads, &signals)? else { return Ok(()) };
    let me = setup::member(config);
    log::info!("pipeline {:?}, member {}", config.pipeline, me.name);
    let pipeline = Arc::new(pipeline::start(config, &setup, &me, &threads)?);
    board.show(pipeline.clone());
    report(&threads, pipeline.clone())?;

    let mut ended: Vec<Name> = Vec::new();
    loop {
        crossbeam_channel::select! {
            recv(signals) -> _ => break,
            recv(exits) -> exit => match exit.expect("threads hold the other end") {
                Exit { thread, result: Ok(()) } if thread.kind().may_end() => {}
                exit => failed(exit)?,
            },
        }
    }
    board.set_stopping(ENDING);
    log::info!("stopping: {ENDING}");
    pipeline.ownership.close();
    let deadline = Instant::now() + STOP_MAX;
    while pipeline.stages.iter().any(|name| !ended.contains(name)) {
        match exits.recv_deadline(deadline) {
            Ok(Exit { thread, result: Ok(()) }) => ended.push(thread),
            Ok(exit) => failed(exit)?,
            Err(_) => {
                let late: Vec<&str> =
                    pipeline.stages.iter().filter(|name| !ended.contains(name)).map(|n| &**n).collect();
                log::warn!(
                    "{late:?} did not finish in {} s: what they hold is rolled back and read again",
                    STOP_MAX.as_secs()
                );
                break;
            }
        }
    }
    let deadline = Instant::now() + RELEASE_MAX;
    // The lease thread may be gone; then there is nobody to tell.
    pipeline.wake.send_deadline(Wake::Finish, deadline).ok();
    while !ended.contains(&pipeline.lease_thread) {
        match exits.recv_deadline(deadline) {
            Ok(exit) => ended.push(exit.thread),
            Err(_) => break,
        }
    }
    let Totals { rows, dead, .. } = pipeline.totals();
    log::info!("stopped: {rows} rows and {dead} dead letters committed");
    Ok(())
}

/// A thread that ends while it should run takes the process down.
fn failed(exit: Exit) -> Result<()> {
    let error = match exit.result {
        Err(error) => error,
        Ok(()) => anyhow!("it ended without being asked to"),
    };
    Err(error.context(format!("thread {} failed", exit.thread)))
}

/// The catalog is needed before anything can run, so a database that is not there yet is waited for. `None`: a signal came.
fn wait_for_setup(config: &Config, threads: &Threads, signals: &Receiver<Signal>) -> Result<Option<Setup>> {
    let mut waiting = false;
    let pulse = threads.pulse(&Kind::Setup.only());
    loop {
        let (sender, result) = queue::bounded(1);
        let (config, pulse) = (config.clone(), pulse.clone());
        threads.spawn(
            Kind::Setup.only(),
            None,
            || Ok(()),
            move |()| {
                // Nobody waits for it after a signal.
                sender.send(pulse.during("reading the catalog", || setup::read(&config))).ok();
                Ok(())
            },
        )?;
        let read = crossbeam_channel::select! {
            recv(signals) -> _ => return Ok(None),
            recv(result) -> read => read.context("reading the catalog failed")?,
        };
        let error = match read {
            Ok(setup) => return Ok(Some(setup)),
            Err(error) => error,
        };
        use crate::pg::{Class, classify};
        let class = error.downcast_ref::<postgres::Error>().map_or(Class::Setup, classify);
        if !matches!(class, Class::World | Class::Lost) {
            return Err(error);
        }
        if !std::mem::replace(&mut waiting, true) {
            log::warn!("{error:#}; trying again every second");
        }
        match signals.recv_timeout(Duration::from_secs(1)) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(None),
        }
    }
}

/// Blocks the signals in every thread that is started after this call, and waits for them in one. The first asks for an
/// orderly end; the second ends the process at once, which the ledger makes safe.
fn watch_signals(threads: &Threads, sender: Sender<Signal>) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block().context("cannot block signals")?;
    threads.spawn(
        Kind::Signals.only(),
        None,
        || Ok(()),
        move |()| {
            // The receiver lives as long as the process.
            sender.send(set.wait().context("cannot wait for signals")?).ok();
            let second = set.wait().context("cannot wait for signals")?;
            log::warn!("{second} again: ending at once; what was not committed is read again");
            std::process::exit(130)
        },
    )
}

/// Ends the process when a thread hangs: nothing inside a client library can time such a call out. systemd hears from here
/// that all is well, and so ends a process in which even this thread hangs.
fn watch_health(threads: &Threads, board: &Arc<Board>, manager: Option<Manager>) -> Result<()> {
    let board = board.clone();
    threads.spawn(Kind::Watchdog.only(), None, || Ok(()), move |()| watch(&board, manager))
}

fn watch(board: &Board, mut manager: Option<Manager>) -> Result<()> {
    let mut told_stopping = false;
    loop {
        if let Err(reason) = board.healthy() {
            log::error!("{reason}: ending the process, so that it can start again; nothing is lost");
            std::process::abort();
        }
        if let Some(manager) = &mut manager {
            manager.alive(board);
            if let Some(doing) = board.stopping()
                && !std::mem::replace(&mut told_stopping, true)
            {
                manager.stopping(doing);
            }
        }
        board.wait(WATCH);
    }
}

/// Serves the figures as configured. A process whose default address is taken goes on without.
fn tell(config: &Config, threads: &Threads, board: &Arc<Board>) -> Result<()> {
    if let Some(address) = config.metrics.listen {
        match http::serve(address, board.clone()) {
            Err(error) if !config.metrics.listen_is_wanted => {
                log::warn!("{error:#}; going on without metrics")
            }
            served => served?,
        }
    }
    let Some(statsd) = config.metrics.statsd.clone() else { return Ok(()) };
    let board = board.clone();
    threads.spawn(Kind::Statsd.only(), None, || Ok(()), move |()| statsd::run(&statsd, &board))
}

fn report(threads: &Threads, service: Arc<dyn Service>) -> Result<()> {
    let interval = if std::io::stderr().is_terminal() { REPORT_TERMINAL } else { REPORT_LOG };
    threads.spawn(
        Kind::Report.only(),
        None,
        || Ok(()),
        move |()| {
            let mut tell = service.teller();
            loop {
                std::thread::sleep(interval);
                log::info!("{}", tell(interval));
            }
        },
    )
}
