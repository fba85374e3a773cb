//! What every verb needs that runs until it is told to end: signals, the first thread that ends, the watchdog, the report
//! line and the ways out for figures. It knows no pipeline: which threads there are, and in which order they end, is the
//! verb's part.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::{SigSet, Signal};

use crate::base::queue;
use crate::base::retry::Episode;
use crate::base::thread::{Exit, Kind, Name, Threads};
use crate::config::Metrics;
use crate::figures::board::{Board, Service};
use crate::figures::notify::Manager;
use crate::figures::statsd;
use crate::verb::page;

/// Between two report lines, for a person who watches and for a log file.
const REPORT_TERMINAL: Duration = Duration::from_secs(1);
const REPORT_LOG: Duration = Duration::from_secs(10);

/// Between two looks at the threads' health.
const WATCH: Duration = Duration::from_secs(1);

/// A process that runs a service, or is about to.
pub struct Process {
    pub threads: Arc<Threads>,
    /// The first signal. A second one ends the process without asking anybody.
    pub signals: Receiver<Signal>,
    board: Arc<Board>,
    exits: Receiver<Exit>,
    /// Whose end was seen.
    ended: Vec<Name>,
}

impl Process {
    /// Starts what watches and tells, before there is anything to be told: `before` says what is waited for until then. A
    /// call or a part that hangs for longer than `watchdog` ends the process.
    ///
    /// # Errors
    /// Where signals cannot be blocked, systemd cannot be reached, or figures cannot be served as it is configured.
    pub fn start(watchdog: Duration, metrics: &Metrics, before: &'static str) -> Result<Process> {
        let (signal_sender, signals) = queue::bounded(1);
        let (exit_sender, exits) = queue::bounded(queue::EXITS);
        let threads = Arc::new(Threads::new(exit_sender));
        watch_signals(&threads, signal_sender)?;
        let board = Arc::new(Board::new(threads.clone(), watchdog, before));
        watch_health(&threads, &board, Manager::from_environment()?)?;
        tell(metrics, &threads, &board)?;
        Ok(Process { threads, signals, board, exits, ended: Vec::new() })
    }

    /// For whoever serves what it shows.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// The service runs from now on: it is watched, and its line is reported.
    pub fn show(&self, service: Arc<dyn Service>) -> Result<()> {
        self.board.show(service.clone());
        report(&self.threads, self.board.clone(), service)
    }

    /// Waits until the process is told to end, and makes it known; `doing` says what is done then.
    ///
    /// # Errors
    /// The first thread that ends while it should run: it takes the process down.
    pub fn run(&self, doing: &'static str) -> Result<()> {
        loop {
            crossbeam_channel::select! {
                recv(self.signals) -> _ => break,
                recv(self.exits) -> exit => match exit.expect("threads hold the other end") {
                    Exit { thread, result: Ok(()) } if thread.kind().may_end() => {}
                    exit => return Err(failed(exit)),
                },
            }
        }
        self.board.set_stopping(doing);
        log::info!("stopping: {doing}");
        Ok(())
    }

    /// Waits until these threads have ended; gives those that have not by the deadline.
    ///
    /// # Errors
    /// A thread that fails meanwhile. It counts as ended, so whoever does not mind asks again.
    pub fn wait_for<'a>(&mut self, threads: &'a [Name], deadline: Instant) -> Result<Vec<&'a str>> {
        loop {
            let late: Vec<&Name> = threads.iter().filter(|name| !self.ended.contains(name)).collect();
            if late.is_empty() {
                return Ok(Vec::new());
            }
            match self.exits.recv_deadline(deadline) {
                Ok(exit) => {
                    self.ended.push(exit.thread.clone());
                    if exit.result.is_err() {
                        return Err(failed(exit));
                    }
                }
                Err(_) => return Ok(late.into_iter().map(|name| &**name).collect()),
            }
        }
    }
}

/// A thread that ends while it should run.
fn failed(exit: Exit) -> anyhow::Error {
    let error = match exit.result {
        Err(error) => error,
        Ok(()) => anyhow!("it ended without being asked to"),
    };
    error.context(format!("thread {} failed", exit.thread))
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
    // Said once.
    let mut stopping = Episode::default();
    loop {
        if let Err(reason) = board.healthy() {
            log::error!("{reason}: ending the process, so that it can start again; nothing is lost");
            std::process::abort();
        }
        if let Some(manager) = &mut manager {
            manager.alive(board);
            if let Some(doing) = board.stopping()
                && stopping.begins()
            {
                manager.stopping(doing);
            }
        }
        board.wait(WATCH);
    }
}

/// Serves the figures as configured. A process whose default address is taken goes on without.
fn tell(metrics: &Metrics, threads: &Threads, board: &Arc<Board>) -> Result<()> {
    if let Some(address) = metrics.listen {
        match page::serve(address, board.clone(), threads) {
            Err(error) if !metrics.listen_is_wanted => {
                log::warn!("{error:#}; going on without metrics")
            }
            served => served?,
        }
    }
    let Some(statsd) = metrics.statsd.clone() else { return Ok(()) };
    let board = board.clone();
    threads.spawn(Kind::Statsd.only(), None, || Ok(()), move |()| statsd::run(&statsd, &board))
}

fn report(threads: &Threads, board: Arc<Board>, service: Arc<dyn Service>) -> Result<()> {
    let interval = if std::io::stderr().is_terminal() { REPORT_TERMINAL } else { REPORT_LOG };
    threads.spawn(
        Kind::Report.only(),
        None,
        || Ok(()),
        move |()| {
            let mut tell = service.teller();
            let mut still: Option<Instant> = None;
            loop {
                std::thread::sleep(interval);
                let line = tell(interval);
                // Whoever looks at the end of a long log must find the cause there.
                match board.ready() {
                    Ok(()) => {
                        still = None;
                        log::info!("{line}");
                    }
                    Err(why) => {
                        let since = still.get_or_insert_with(Instant::now).elapsed().as_secs();
                        log::info!("{line}; NOT READY for {since} s and more: {why}");
                    }
                }
            }
        },
    )
}
