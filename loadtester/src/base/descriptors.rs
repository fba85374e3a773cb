//! File descriptors: a process may open as many as its limit allows, and most systems start it with fewer than it could have.

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For files, threads and servers beside the connections.
const BESIDES: u64 = 200;

/// Raises the limit as far as this process may, and refuses where that is not enough for so many connections.
pub fn make_room(connections: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = connections + BESIDES;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        bail!(
            "{connections} connections need {needed} file descriptors, and this process may open {hard}: raise the limit \
             (ulimit -n {needed}), or use fewer --connections"
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
    Ok(())
}
