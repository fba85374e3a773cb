//! What every verb needs that runs until it is told to end: signals, the first thread that ends, the watchdog, the report
//! line and the ways out for figures. It knows no pipeline: which threads there are, and in which order they end, is the
//! verb's part.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::{SigSet, Signal};

use crate::base::logging;
use crate::base::queue;
use crate::base::retry::Episode;
use crate::base::thread::{Exit, Kind, Name, Threads};
use crate::config::source::Source;
use crate::config::{Log, Metrics};
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
    /// The first signal that asks for the end. A second one ends the process without asking anybody.
    pub signals: Receiver<Signal>,
    /// The configuration may have changed.
    hangups: Receiver<()>,
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
        let (hangup_sender, hangups) = queue::bounded(1);
        let (exit_sender, exits) = queue::bounded(queue::EXITS);
        let threads = Arc::new(Threads::new(exit_sender));
        watch_signals(&threads, signal_sender, hangup_sender)?;
        let board = Arc::new(Board::new(threads.clone(), watchdog, before));
        watch_health(&threads, &board, Manager::from_environment()?)?;
        tell(metrics, &threads, &board)?;
        Ok(Process { threads, signals, hangups, board, exits, ended: Vec::new() })
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

    /// Waits until the process is told to end, and makes it known; `doing` says what is done then. Meanwhile the configuration is
    /// read again whenever somebody asks for it.
    ///
    /// # Errors
    /// The first thread that ends while it should run: it takes the process down.
    pub fn run(&self, doing: &'static str, mut reload: Reload) -> Result<()> {
        loop {
            crossbeam_channel::select! {
                recv(self.signals) -> _ => break,
                recv(self.hangups) -> _ => reload.now(),
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

/// A file that the configuration names, by what it is, and how it is read again.
pub type File = (&'static str, Box<dyn Fn() -> Result<()>>);

/// What a service does when its configuration may have changed.
pub struct Reload {
    pub source: Source,
    /// Reads the whole file as the verb does, for what of it may change while the process runs.
    pub read: fn(&Path) -> Result<Log>,
    pub files: Vec<File>,
}

impl Reload {
    /// Takes over what may change, and names the rest. A file that cannot be used changes nothing.
    fn now(&mut self) {
        let log = match (self.read)(&self.source.path) {
            Ok(log) => log,
            Err(error) => {
                log::error!("the configuration cannot be used as it is now, so nothing changes: {error:#}");
                return;
            }
        };
        for (what, read_again) in &self.files {
            match read_again() {
                Ok(()) => log::info!("{what} were read again"),
                Err(error) => log::error!("{what} stay as they are: {error:#}"),
            }
        }
        let later: Vec<String> = self.source.changes().into_iter().filter(|name| name != "[log]").collect();
        if later.is_empty() {
            log::info!("the configuration was read again");
        } else {
            log::warn!(
                "the configuration was read again; what changed in {} counts from the next start, which loses nothing",
                later.join(", ")
            );
        }
        logging::set_level(log.level);
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
/// orderly end; the second ends the process at once, which the ledger makes safe. SIGHUP asks for the configuration.
fn watch_signals(threads: &Threads, sender: Sender<Signal>, hangups: Sender<()>) -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    set.thread_block().context("cannot block signals")?;
    threads.spawn(
        Kind::Signals.only(),
        None,
        || Ok(()),
        move |()| {
            let mut ends = false;
            loop {
                match set.wait().context("cannot wait for signals")? {
                    // One that waits serves for all.
                    Signal::SIGHUP => drop(hangups.try_send(())),
                    // The receiver lives as long as the process.
                    first if !std::mem::replace(&mut ends, true) => drop(sender.send(first)),
                    second => {
                        log::warn!("{second} again: ending at once; what was not committed is read again");
                        std::process::exit(130)
                    }
                }
            }
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
                        let since =
                            if since > 0 { format!(" for {since} s and more") } else { String::new() };
                        log::info!("{line}; NOT READY{since}: {why}");
                    }
                }
            }
        },
    )
}
