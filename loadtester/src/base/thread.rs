//! Threads have names: /proc tells them apart by these, and so does the tester when it adds up what it costs.

use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};

/// And the thread's number.
pub const GENERATOR: &str = "lt-gen-";
pub const READER: &str = "lt-read-";
pub const PROBE: &str = "lt-probe";
/// Begins with the probe's name, because its cost is the probe's.
pub const SWEEP: &str = "lt-probe-sweep";
pub const SCREEN: &str = "lt-tui";

pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).with_context(|| format!("start the thread {name}"))
}
