//! The producer and the truth, both programs of the Java client.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::stack::env;
use crate::world::PREFIX;

/// Records acknowledged, records of aborted transactions, records that Kafka refused.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) acked: u64,
    pub(crate) aborted: u64,
    pub(crate) failed: u64,
}

pub(crate) struct Producer {
    child: Child,
    /// It stops when this is dropped.
    stdin: Option<ChildStdin>,
    sent: Arc<Mutex<Sent>>,
}

fn java(source: &Path) -> Result<Command> {
    let mut command = Command::new(Path::new(&env("STACK_BIN")?).join("java"));
    command.arg(source);
    Ok(command)
}

impl Producer {
    /// About `rate` records a second.
    pub(crate) fn start(source: &Path, brokers: &str, seed: u64, rate: u64, log: &Path) -> Result<Producer> {
        let mut child = java(source)?
            .args(["produce", brokers, PREFIX, &(seed >> 1).to_string(), &rate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log)?)
            .spawn()
            .context("cannot start the producer")?;
        let sent = Arc::new(Mutex::new(Sent::default()));
        let (lines, shared) = (BufReader::new(child.stdout.take().context("it is piped")?), sent.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
                if let [acked, aborted, failed] = numbers[..] {
                    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Sent { acked, aborted, failed };
                }
            }
        });
        Ok(Producer { stdin: child.stdin.take(), child, sent })
    }

    pub(crate) fn sent(&self) -> Sent {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, once everything is acknowledged.
    pub(crate) fn stop(mut self) -> Result<Sent> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the producer ended with {status}");
        Ok(self.sent())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Already ended is fine.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends one record that unpacks to much; its partition and offset.
pub(crate) fn send_bomb(source: &Path, brokers: &str, seed: u64) -> Result<(i32, i64)> {
    let output = java(source)?
        .args(["bomb", brokers, PREFIX, &seed.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the bomb's producer")?;
    ensure!(output.status.success(), "the bomb's producer ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let place = text.trim().split_once(' ').and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
    place.with_context(|| format!("the bomb's producer said {text:?}"))
}

/// Reads all topics, read-committed, into a file.
pub(crate) fn read_truth(source: &Path, brokers: &str, file: &Path) -> Result<()> {
    let status = java(source)?
        .args(["read", brokers, PREFIX])
        .arg(file)
        .status()
        .context("cannot start the reader of the truth")?;
    ensure!(status.success(), "the reader of the truth ended with {status}");
    Ok(())
}
