//! The servers: their addresses, the stack's own commands, and signals to their processes.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};

/// What `stack/up` wrote down.
pub(crate) fn env(name: &str) -> Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: run through `make faults`, which starts the servers"))
}

/// Runs one of the stack's commands, for example `restart postgres`; what it printed.
pub(crate) fn stack(arguments: &[&str]) -> Result<String> {
    let command = PathBuf::from(env("STACK_BIN")?).join(arguments[0]);
    let output = Command::new(&command)
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.display()))?;
    if !output.status.success() {
        bail!("{arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends a signal to one of the servers: `kafka`, `postgres` or `redis`.
pub(crate) fn signal(server: &str, signal: Signal) -> Result<()> {
    let path = PathBuf::from(env("STACK_DIR")?).join(format!("{server}.pid"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pid: i32 = text.trim().parse().with_context(|| format!("{} holds no pid", path.display()))?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {server}"))
}

/// A session of ours: it may write while others may not, and is not among those that are ended.
pub(crate) fn connect(url: &str) -> Result<Client> {
    let mut config: postgres::Config = url.parse().context("cannot read the database's URL")?;
    config
        .application_name("campaign")
        .options("-c default_transaction_read_only=off -c lock_timeout=5s -c statement_timeout=20s")
        .connect_timeout(std::time::Duration::from_secs(5));
    config.connect(NoTls).context("cannot connect to PostgreSQL")
}

/// A URL with another host and port, or another database.
pub(crate) fn redirect(url: &str, address: Option<&str>, database: Option<&str>) -> String {
    let (rest, old_database) = url.rsplit_once('/').unwrap_or((url, ""));
    let (login, old_address) = rest.rsplit_once('@').unwrap_or(("", rest));
    format!("{login}@{}/{}", address.unwrap_or(old_address), database.unwrap_or(old_database))
}
