//! What a process has used so far, and what the machine has: read from /proc.

use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Usage {
    /// User and system time, threads that ended included.
    pub cpu_seconds: f64,
    pub rss_peak_kb: u64,
}

impl Usage {
    /// In millions of bytes.
    pub fn rss_peak_mb(&self) -> f64 {
        self.rss_peak_kb as f64 * 1024.0 / 1e6
    }

    pub fn cpu_per_million(&self, records: u64) -> f64 {
        per_million(self.cpu_seconds, records)
    }
}

/// Seconds for so many records, as seconds for a million of them.
pub fn per_million(seconds: f64, records: u64) -> f64 {
    seconds * 1e6 / records as f64
}

/// `pid` may be "self".
pub fn of(pid: &str) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read usage of process {pid}"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss_peak_kb = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Ok(Usage { cpu_seconds: cpu_seconds(&stat), rss_peak_kb })
}

/// CPU-seconds of a process and of its children, those that ended and were waited for included.
pub fn cpu_with_children(pid: &str) -> Result<f64> {
    let read = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat"));
    let own = read(pid).with_context(|| format!("read usage of process {pid}"))?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .with_context(|| format!("list the children of process {pid}"))?;
    // One that ends between the two reads is counted with the ended ones next time.
    let living: f64 =
        children.split_whitespace().filter_map(|child| read(child).ok()).map(|s| cpu_seconds(&s)).sum();
    Ok(cpu_seconds(&own) + ended_children_seconds(&own) + living)
}

/// Name and CPU-seconds of each living thread of a process, the busiest first, as CSV.
pub fn threads(pid: &str) -> Result<String> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends between the two reads is none of the busy ones.
        if let Ok(stat) = fs::read_to_string(task?.path().join("stat")) {
            let name =
                stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("", |(name, _)| name);
            threads.push((cpu_seconds(&stat), name.to_owned()));
        }
    }
    threads.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines = threads.iter().map(|(seconds, name)| format!("{name},{seconds:.2}\n"));
    Ok(format!("thread,cpu_seconds\n{}", lines.collect::<String>()))
}

/// utime and stime, fields 14 and 15 of a stat file.
fn cpu_seconds(stat: &str) -> f64 {
    two_fields_from(stat, 14)
}

/// cutime and cstime, fields 16 and 17.
fn ended_children_seconds(stat: &str) -> f64 {
    two_fields_from(stat, 16)
}

/// The sum of two fields of a stat file that count ticks, in seconds. The name before them (field 2), in parentheses, may
/// contain spaces.
fn two_fields_from(stat: &str, first: usize) -> f64 {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: f64 =
        after_name.split(' ').skip(first - 3).take(2).filter_map(|t| f64::from_str(t).ok()).sum();
    ticks / ticks_per_second()
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
