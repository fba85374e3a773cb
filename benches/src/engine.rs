//! rowmill as the benches run it: one process or several from a fresh ledger, until it says that all records are stored,
//! then SIGTERM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;

use crate::servers::Servers;
use crate::usage::{self, Usage};
use crate::visible::Visible;

/// How often the ledger is read: each look costs the server 0.2 ms.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// No row for so long means that something is broken.
const STALL_MAX: Duration = Duration::from_secs(60);

pub struct Engine<'a> {
    /// Which rowmill; `None` for the one beside this program.
    pub program: Option<&'a Path>,
    pub servers: &'a Servers,
    pub configuration: PathBuf,
    /// What the processes say, all of them.
    pub log: PathBuf,
}

/// What a drain took.
#[derive(Default)]
pub struct Drained {
    pub visible: Visible,
    /// The same from when each process had partitions: the later ones join with their next heartbeat.
    pub together: Visible,
    /// CPU of all processes together, memory of the largest.
    pub usage: Usage,
    /// Milliseconds since the start and rows, as CSV.
    pub samples: String,
    /// The first process's threads, as CSV.
    pub threads: String,
}

/// How many processes have partitions.
fn owners(client: &mut Client) -> Result<u64> {
    let row = client.query_one("SELECT count(DISTINCT owner) FROM rowmill.ledger", &[])?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// A child that does not outlive a failing bench.
pub struct Ending(pub Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // Both fail where it has ended already, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Engine<'_> {
    /// Prepares the ledger, and with `--models` the tables.
    pub fn init(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command("init")?.args(arguments).status().context("run rowmill init")?;
        ensure!(status.success(), "rowmill init failed: {status}; see {}", self.log.display());
        Ok(())
    }

    pub fn start(&self) -> Result<Ending> {
        Ok(Ending(self.command("run")?.spawn().context("run rowmill run")?))
    }

    /// `rowmill verify`, whose report goes to `report`; it is not waited for.
    pub fn verify(&self, report: File) -> Result<Ending> {
        Ok(Ending(self.command("verify")?.stdout(report).spawn().context("run rowmill verify")?))
    }

    /// SIGTERM, and the end that must follow.
    pub fn stop(&self, mut running: Ending) -> Result<()> {
        kill(Pid::from_raw(running.0.id() as i32), Signal::SIGTERM)?;
        let status = running.0.wait()?;
        ensure!(
            status.success(),
            "rowmill did not end well after SIGTERM: {status}; see {}",
            self.log.display()
        );
        Ok(())
    }

    /// Runs `processes` of them until `records` rows are stored.
    pub fn drain(&self, processes: usize, records: u64) -> Result<Drained> {
        self.init(&[])?;
        let mut client = self.servers.postgres()?;
        let mut children = (0..processes).map(|_| self.start()).collect::<Result<Vec<_>>>()?;
        let mut drained = Drained { samples: "milliseconds,rows\n".to_owned(), ..Drained::default() };
        let began = Instant::now();
        let mut progress_at = began;
        let mut has_joined = processes == 1;
        while drained.visible.rows() < records {
            std::thread::sleep(LOOK_EVERY);
            for child in &mut children {
                if let Some(status) = child.0.try_wait()? {
                    bail!("rowmill ended early: {status}; see {}", self.log.display());
                }
            }
            let (now, rows) = (Instant::now(), self.stored(&mut client)?);
            if rows > drained.visible.rows() {
                drained.samples.push_str(&format!("{},{rows}\n", (now - began).as_millis()));
                progress_at = now;
            }
            drained.visible.see(now, rows);
            has_joined = has_joined || owners(&mut client)? >= processes as u64;
            if has_joined {
                drained.together.see(now, rows);
            }
            ensure!(
                now - progress_at < STALL_MAX,
                "rowmill stands still at {rows} rows; see {}",
                self.log.display()
            );
        }
        for child in &children {
            let usage = usage::of(&child.0.id().to_string())?;
            drained.usage.cpu_seconds += usage.cpu_seconds;
            drained.usage.rss_peak_kb = drained.usage.rss_peak_kb.max(usage.rss_peak_kb);
        }
        drained.threads = usage::threads(&children[0].0.id().to_string())?;
        children.into_iter().try_for_each(|child| self.stop(child))?;
        Ok(drained)
    }

    fn stored(&self, client: &mut Client) -> Result<u64> {
        let row = client.query_one(
            "SELECT coalesce(sum(rows), 0)::bigint, coalesce(sum(dead), 0)::bigint FROM rowmill.ledger",
            &[],
        )?;
        let dead: i64 = row.get(1);
        ensure!(dead == 0, "rowmill made {dead} dead letters of good records; see {}", self.log.display());
        Ok(row.get::<_, i64>(0) as u64)
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let beside = std::env::current_exe()?.with_file_name("rowmill");
        let mut command = Command::new(self.program.unwrap_or(&beside));
        command
            .arg(verb)
            .arg("--config")
            .arg(&self.configuration)
            .env("KAFKA_BROKERS", &self.servers.brokers)
            .env("DATABASE_URL", &self.servers.database_url)
            .env("REDIS_URL", &self.servers.redis_url)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}
