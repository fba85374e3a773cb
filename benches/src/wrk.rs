//! The load generator wrk, and what it says.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// What one run of it saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Answers above 299, and troubles of its sockets.
    pub errors: u64,
}

/// Runs it with one thread for so many seconds; `script` is its Lua.
///
/// # Errors
/// Where it is not installed, or says something else than it does.
pub fn run(connections: usize, seconds: u64, script: &Path, url: &str) -> Result<Seen> {
    let output = Command::new("wrk")
        .args(["-t1", "--latency", "-c", &connections.to_string(), "-d", &format!("{seconds}s"), "-s"])
        .arg(script)
        .arg(url)
        .output()
        .context("cannot run wrk: install it")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk said: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let quantile = |words: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(words))
            .map_or(0.0, |text| milliseconds(text.trim()))
    };
    let failed = |words: &str| -> u64 {
        text.lines()
            .filter_map(|line| line.trim().strip_prefix(words))
            .flat_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()))
            .sum()
    };
    Ok(Seen {
        requests,
        p50_ms: quantile("50%"),
        p99_ms: quantile("99%"),
        errors: failed("Non-2xx or 3xx responses:") + failed("Socket errors:"),
    })
}

fn milliseconds(text: &str) -> f64 {
    let factor = match text {
        t if t.ends_with("us") => 1e-3,
        t if t.ends_with("ms") => 1.0,
        _ => 1e3,
    };
    text.trim_end_matches(|c: char| c.is_alphabetic()).parse::<f64>().unwrap_or(0.0) * factor
}
