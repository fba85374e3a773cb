//! What a process has used so far, and what the machine has: read from /proc.

use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, threads that ended included.
    pub cpu_seconds: f64,
    pub rss_peak_kb: u64,
}

/// `pid` may be "self".
pub fn of(pid: &str) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read usage of process {pid}"))?;
    // The program's name, in parentheses, may contain spaces: count after it. utime and stime are fields 14 and 15.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name.split(' ').skip(11).take(2).filter_map(|t| f64::from_str(t).ok()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss_peak_kb = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Ok(Usage { cpu_seconds: ticks / ticks_per_second(), rss_peak_kb })
}

/// CPU-seconds of the whole machine since it started: (busy, stolen by the hypervisor).
pub fn of_machine() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let at = |i: usize| ticks.get(i).copied().unwrap_or(0.0);
    let busy = at(0) + at(1) + at(2) + at(5) + at(6);
    Ok((busy / ticks_per_second(), at(7) / ticks_per_second()))
}

fn ticks_per_second() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}
