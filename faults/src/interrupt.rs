//! A signal that asks for the end. The campaign then ends early but in order, so that no process which it started, and no
//! fault which it made, outlives it.

use std::sync::{Arc, OnceLock};
use std::thread::spawn;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

/// The first signal that came.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<OnceLock<Signal>>);

impl Interrupt {
    /// Blocks the signals in every thread that is started after this call, and waits for them in one. Children are not
    /// concerned: the standard library gives them an empty mask.
    pub(crate) fn watch() -> Result<Interrupt> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        signals.thread_block().context("cannot block signals")?;
        let interrupt = Interrupt::default();
        let seen = interrupt.clone();
        spawn(move || {
            // The set is a valid one, which is all that this could fail for.
            while let Ok(signal) = signals.wait() {
                println!("{signal}: ending the fault at hand, and then all that was started");
                seen.0.get_or_init(|| signal);
            }
        });
        Ok(interrupt)
    }

    pub(crate) fn came(&self) -> bool {
        self.0.get().is_some()
    }

    /// # Errors
    /// Once a signal came.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(signal) = self.0.get() {
            bail!("{signal} ended it early");
        }
        Ok(())
    }
}
