//! Ctrl-C and SIGTERM: the first ends the sending, the second the waiting, the third the program.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static COUNT: AtomicU32 = AtomicU32::new(0);
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

extern "C" fn on_signal(_: i32) {
    // Only what is safe in a signal handler: atomics, and leaving at once.
    if COUNT.fetch_add(1, Relaxed) >= 2 {
        // SAFETY: _exit may be called from a signal handler.
        unsafe { nix::libc::_exit(130) }
    }
    if let Some(stop) = STOP.get() {
        stop.store(true, Relaxed);
    }
}

/// Installs the handler.
pub fn install() {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does only what is allowed in one.
        if let Err(error) = unsafe { sigaction(signal, &action) } {
            log::warn!("cannot take {signal} ({error}); it will end the program without a report");
        }
    }
}

/// Set by the first signal, or by whoever ends a run early.
pub fn stop_flag() -> Arc<AtomicBool> {
    let flag = STOP.get_or_init(Arc::default).clone();
    flag.store(COUNT.load(Relaxed) > 0, Relaxed);
    flag
}

pub fn count() -> u32 {
    COUNT.load(Relaxed)
}
