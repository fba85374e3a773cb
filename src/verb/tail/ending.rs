//! How the process ends: by itself, by a signal, by a count or a time; and with the terminal as it was found, whatever state the
//! line editor is in. A terminal that nobody reads holds nothing up.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;

use super::shelf::Shelf;
use crate::base::lock::lock;
use crate::base::thread::{Kind, Threads};

/// For whoever shows events to show the last ones. At a prompt nobody can be told, and nothing is to be shown.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The same where a program reads, which may be slow and wants whole lines.
const LAST_LINES: Duration = Duration::from_secs(5);

/// A gap, where that was asked for.
const EXIT_GAP: u8 = 3;

pub struct Ending {
    shelf: Arc<Shelf>,
    fails_on_gap: bool,
    last_words: Duration,
    is_requested: AtomicBool,
    /// Why it cannot go on.
    failure: Mutex<Option<anyhow::Error>>,
    /// The terminal as it was found; `None` where there is none.
    terminal: Mutex<Option<Termios>>,
}

impl Ending {
    pub fn new(shelf: Arc<Shelf>, fails_on_gap: bool, is_terminal: bool) -> Ending {
        Ending {
            shelf,
            fails_on_gap,
            last_words: if is_terminal { LAST_WORDS } else { LAST_LINES },
            is_requested: AtomicBool::new(false),
            failure: Mutex::new(None),
            terminal: Mutex::new(tcgetattr(std::io::stdin()).ok()),
        }
    }

    /// Takes signals from here on, in a thread of its own; they are blocked in every thread that is started after this call.
    pub fn watch(self: &Arc<Ending>, threads: &Threads) -> Result<()> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        let ending = self.clone();
        let wait = move |()| {
            signals.wait().context("cannot wait for signals")?;
            ending.is_requested.store(true, SeqCst);
            ending.shelf.wake.write(1).ok();
            std::thread::sleep(ending.last_words);
            ending.restore();
            let code = match ending.code() {
                Ok(0) => 0,
                Ok(code) => i32::from(code),
                Err(error) => {
                    log::error!("{error:#}");
                    1
                }
            };
            std::process::exit(code)
        };
        threads.spawn(Kind::Signals.only(), None, || Ok(()), wait)
    }

    /// The process is to end, as by a signal.
    pub fn request(&self) {
        // A process may always signal itself.
        kill(Pid::this(), Signal::SIGTERM).ok();
    }

    /// The same, where the caller looks at [`Ending::is_requested`] itself, once everything is shown.
    pub fn stop(&self) {
        self.is_requested.store(true, SeqCst);
    }

    /// It cannot go on, and why.
    pub fn fail(&self, error: anyhow::Error) {
        *lock(&self.failure) = Some(error);
        self.request();
    }

    pub fn is_requested(&self) -> bool {
        self.is_requested.load(SeqCst)
    }

    /// The line editor does so when it returns, and not when it is interrupted; this does not wait for a terminal that nobody reads.
    fn restore(&self) {
        if let Some(terminal) = &*lock(&self.terminal) {
            tcsetattr(std::io::stdin(), SetArg::TCSANOW, terminal).ok();
        }
    }

    /// What to end with.
    fn code(&self) -> Result<u8> {
        if let Some(error) = lock(&self.failure).take() {
            return Err(error);
        }
        let has_gap = self.shelf.missing.load(SeqCst) > 0;
        Ok(if self.fails_on_gap && has_gap { EXIT_GAP } else { 0 })
    }

    /// The same for `main`.
    pub fn exit_code(&self) -> Result<ExitCode> {
        self.code().map(ExitCode::from)
    }
}
