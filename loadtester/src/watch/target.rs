//! The consumer under test: found by pid, unit or port, or started here and ended after the run.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::measure::columns::Values;
use crate::plan::options::RunArgs;
use crate::watch::observe::{self, How};

pub struct Target {
    observed: observe::Target,
    child: Option<Child>,
}

/// How long a consumer may take to end by itself.
const END_WITHIN: Duration = Duration::from_secs(15);

pub fn start(args: &RunArgs) -> Result<Option<Target>> {
    let mut child = None;
    let how = if let Some(command) = &args.target_cmd {
        // A group of its own: a Ctrl-C at the terminal is for us, and the command may have children.
        let started = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start the consumer with --target-cmd \"{command}\""))?;
        let pid = started.id() as i32;
        child = Some(started);
        How::Pid(pid)
    } else if let Some(pid) = args.target_pid {
        How::Pid(pid)
    } else if let Some(unit) = &args.target_systemd_unit {
        How::Unit(unit.clone())
    } else if let Some(port) = args.target_port {
        How::Port(port)
    } else {
        return Ok(None);
    };
    let mut target = Target { observed: observe::Target::new(how.clone()), child };
    if !target.observed.is_there() {
        match how {
            How::Pid(pid) => bail!("there is no process {pid} to watch"),
            How::Unit(unit) => {
                bail!("the systemd unit \"{unit}\" has no running process; start it, or check its name")
            }
            How::Port(port) => bail!("no process listens on TCP port {port}, or it belongs to another user"),
        }
    }
    Ok(Some(target))
}

impl Target {
    pub fn sample(&mut self) -> Option<Values> {
        self.observed.sample()
    }

    /// A sentence, where the consumer that was started here has ended before it was told to.
    pub fn ended_by_itself(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(format!(
            "the consumer started with --target-cmd ended during the run ({status}); its own output says why"
        ))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let group = Pid::from_raw(child.id() as i32);
        let running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        if running(child) {
            killpg(group, Signal::SIGTERM).ok();
        }
        let limit = Instant::now() + END_WITHIN;
        while running(child) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(50));
        }
        if running(child) {
            log::warn!("the consumer did not end within {} s of SIGTERM; killing it", END_WITHIN.as_secs());
            killpg(group, Signal::SIGKILL).ok();
        }
        child.wait().ok();
    }
}
