//! One peer on one topic, from an empty table: started, watched, killed, and its rows compared with the records.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use postgres::config::Host;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rowmill_bench::engine::Ending;
use rowmill_bench::{kafka, metric};

use crate::report::Fate;
use crate::{Options, PARTITIONS, Test};

/// Nothing has moved for so long: it never will. A group's session may last 45 s after a kill, and some retry for a while.
const PATIENCE: Duration = Duration::from_secs(75);
/// The same before the first row of all: a virtual machine on a busy host takes its time to start.
const STARTING_MAX: Duration = Duration::from_secs(240);
/// Between two counts of the table, where speed is not measured.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// How long a peer may go on when all is written: to commit its offsets, or to write the same rows once more.
const AFTERWARDS: Duration = Duration::from_secs(6);
/// How long a peer may take to end after SIGTERM.
const ENDING_MAX: Duration = Duration::from_secs(20);
/// A peer that ends by itself is started again so often, and so much later, as a service manager would.
const RESTARTS_MAX: usize = 2;
const RESTART_AFTER: Duration = Duration::from_secs(1);
const KAFKA_WAIT: Duration = Duration::from_secs(10);

/// What to wait for.
pub(crate) enum Goal {
    /// So many rows, whatever of: quickly counted, so that a kill comes in time.
    Rows(u64),
    /// Rows of so many different records.
    Records(u64),
}

pub(crate) struct Trial<'a> {
    options: &'a Options,
    peer: &'a str,
    topic: &'a str,
    records: u64,
    /// How many records the table has, where that is not the number of its rows: the peer's count.sql.
    count: Option<String>,
    group: String,
    log: PathBuf,
    client: Client,
    child: Ending,
    /// How often it ended by itself.
    ended: usize,
}

/// Installs a peer and keeps its configuration beside the results. Returns its version.
pub(crate) fn prepare(options: &Options, peer: &str, results: &Path) -> Result<String> {
    let status = script(options, peer, "install")?.status().with_context(|| format!("install {peer}"))?;
    ensure!(status.success(), "{peer} could not be installed: {status}");
    let kept = results.join("configuration").join(peer);
    fs::create_dir_all(&kept)?;
    for file in fs::read_dir(options.scripts.join(peer))? {
        let file = file?;
        // The script stands in the repository at the commit that the results name.
        if file.file_name() != "peer" {
            fs::copy(file.path(), kept.join(file.file_name()))?;
        }
    }
    let output = script(options, peer, "version")?.output()?;
    ensure!(output.status.success(), "{peer} does not say its version: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn script(options: &Options, peer: &str, verb: &str) -> Result<Command> {
    let script = fs::canonicalize(options.scripts.join(peer).join("peer"))
        .with_context(|| format!("find the script of {peer:?}"))?;
    let mut command = Command::new(script);
    command.arg(verb).stdin(Stdio::null());
    Ok(command)
}

impl<'a> Trial<'a> {
    /// Starts a peer with an empty table, an empty directory for what it keeps, and a new group.
    pub(crate) fn start(
        options: &'a Options,
        peer: &'a str,
        topic: &'a str,
        records: u64,
        log: PathBuf,
    ) -> Result<Trial<'a>> {
        let mut sql = String::from(metric::CREATE_TABLE);
        // The peers do not stamp their rows as rowmill does, so the server does it for them.
        sql.push_str(";\n    ALTER TABLE metric ALTER timestamp SET DEFAULT now();\n");
        sql.push_str(&own(options, peer, "table.sql")?.unwrap_or_default());
        let client = options.servers.fresh_tables(&sql)?;
        let state = options.work.join("state").join(peer);
        if state.exists() {
            fs::remove_dir_all(&state).with_context(|| format!("empty {}", state.display()))?;
        }
        fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        let group = format!("{peer}-{}", since_1970.as_millis());
        let child = Ending(spawn(options, peer, topic, &group, &log)?);
        let count = count_of(options, peer)?;
        Ok(Trial { options, peer, topic, records, count, group, log, client, child, ended: 0 })
    }

    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.child = Ending(spawn(self.options, self.peer, self.topic, &self.group, &self.log)?);
        Ok(())
    }

    pub(crate) fn pid(&self) -> String {
        self.child.0.id().to_string()
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.0.try_wait()?.is_none())
    }

    /// Rows that sessions sent to the table, those of transactions that failed included. Up to a second late.
    pub(crate) fn rows_sent(&mut self) -> Result<u64> {
        if self.is_counted() {
            return self.rows();
        }
        const SENT: &str =
            "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'metric'";
        Ok(self.client.query_one(SENT, &[])?.get::<_, i64>(0) as u64)
    }

    /// Rows that can be seen, or the records that they are made of.
    pub(crate) fn rows(&mut self) -> Result<u64> {
        let count = self.count.as_deref().unwrap_or("SELECT count(*) FROM metric");
        Ok(self.client.query_one(count, &[])?.get::<_, i64>(0) as u64)
    }

    /// True where many records make a row, so that only their number can be compared.
    pub(crate) fn is_counted(&self) -> bool {
        self.count.is_some()
    }

    /// Waits until the goal is reached; false if nothing moved for long before. What ends by itself is started again.
    pub(crate) fn wait_for(&mut self, goal: Goal) -> Result<bool> {
        let mut restarts = 0;
        let (mut before, mut moved_at) = (self.rows()?, Instant::now());
        loop {
            std::thread::sleep(COUNT_EVERY);
            let all = self.rows()?;
            let moved = all != before;
            let reached = match goal {
                Goal::Rows(count) => all >= count,
                // Some may be there twice and others not yet: only the peer's own position says that it is through.
                Goal::Records(count) if self.is_counted() => all >= count && self.lag()? == Some(0),
                // Different ones are counted only once there are enough in all, because that takes seconds.
                Goal::Records(count) => all >= count && self.distinct()? >= count,
            };
            if reached {
                return Ok(true);
            }
            if moved {
                (before, moved_at) = (all, Instant::now());
            } else if moved_at.elapsed() > patience(all) {
                return Ok(false);
            }
            if !self.is_running()? {
                if restarts == RESTARTS_MAX {
                    return Ok(false);
                }
                restarts += 1;
                self.ended += 1;
                std::thread::sleep(RESTART_AFTER);
                self.start_again()?;
            }
        }
    }

    fn distinct(&mut self) -> Result<u64> {
        const DISTINCT: &str = "SELECT count(DISTINCT right(path, 10)) FROM metric";
        Ok(self.client.query_one(DISTINCT, &[])?.get::<_, i64>(0) as u64)
    }

    /// SIGKILL, wherever it is just now.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.0.kill().with_context(|| format!("kill {}", self.peer))?;
        self.child.0.wait()?;
        Ok(())
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.is_running()? {
            kill(Pid::from_raw(self.child.0.id() as i32), Signal::SIGTERM)?;
        }
        let began = Instant::now();
        while self.is_running()? && began.elapsed() < ENDING_MAX {
            std::thread::sleep(COUNT_EVERY);
        }
        self.child.0.kill().ok();
        self.child.0.wait()?;
        Ok(())
    }

    /// What became of each record, once the peer has had the time to put things in order.
    pub(crate) fn fate(mut self, test: Test, poisoned: Option<u64>, back_after: Vec<f64>) -> Result<Fate> {
        std::thread::sleep(AFTERWARDS);
        let running = self.is_running()?;
        let lag = self.lag()?;
        self.end()?;
        if self.is_counted() {
            let rows = self.rows()?;
            return Ok(Fate {
                peer: self.peer.to_owned(),
                test,
                records: self.records,
                lost: self.records.saturating_sub(rows),
                lost_range: None,
                doubled: rows.saturating_sub(self.records),
                poison_rows: 0,
                dead_letters: None,
                lag,
                ended: self.ended,
                running,
                back_after,
            });
        }
        const LOST: &str = "WITH stored AS (SELECT DISTINCT right(path, 10)::bigint AS number FROM metric)
            SELECT count(*), min(number), max(number)
            FROM (SELECT generate_series(0, $1::bigint - 1) AS number EXCEPT SELECT number FROM stored) AS missing
            WHERE number <> $2";
        let poisoned_number = poisoned.map_or(-1, |number| number as i64);
        let lost = self.client.query_one(LOST, &[&(self.records as i64), &poisoned_number])?;
        let poison_rows: i64 = self
            .client
            .query_one("SELECT count(*) FROM metric WHERE right(path, 10)::bigint = $1", &[&poisoned_number])?
            .get(0);
        let doubled = self.rows()? - self.distinct()?;
        let has_letters = "SELECT to_regclass('rowmill.dead_letter') IS NOT NULL";
        let dead_letters = match self.client.query_one(has_letters, &[])?.get(0) {
            true => {
                let count = self.client.query_one("SELECT count(*) FROM rowmill.dead_letter", &[])?;
                Some(count.get::<_, i64>(0) as u64)
            }
            false => None,
        };
        Ok(Fate {
            peer: self.peer.to_owned(),
            test,
            records: self.records,
            lost: lost.get::<_, i64>(0) as u64,
            lost_range: lost.get::<_, Option<i64>>(1).zip(lost.get(2)),
            doubled,
            poison_rows: poison_rows as u64,
            dead_letters,
            lag,
            ended: self.ended,
            running,
            back_after,
        })
    }

    /// Records that the peer's group has not committed yet; none where it never committed any.
    fn lag(&self) -> Result<Option<i64>> {
        let mut config = self.options.servers.kafka();
        let consumer: BaseConsumer =
            config.set("group.id", &self.group).create().context("create a Kafka client")?;
        let mut list = TopicPartitionList::new();
        list.add_partition_range(self.topic, 0, PARTITIONS - 1);
        let committed =
            consumer.committed_offsets(list, KAFKA_WAIT).context("ask for the group's offsets")?;
        let offsets: Vec<i64> = committed
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
            .collect();
        let records = kafka::records(&consumer, self.topic)? as i64;
        Ok((!offsets.is_empty()).then(|| records - offsets.iter().sum::<i64>()))
    }

    pub(crate) fn curve(&mut self) -> Result<Curve> {
        const COMMITS: &str =
            "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint, count(*)
            FROM metric GROUP BY xmin ORDER BY 1";
        let rows = self.client.query(COMMITS, &[]).context("ask for the times of the commits")?;
        Ok(Curve(rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64)).collect()))
    }
}

/// A file of a peer's, if it has one of that name.
fn own(options: &Options, peer: &str, name: &str) -> Result<Option<String>> {
    let file = options.scripts.join(peer).join(name);
    if !file.exists() {
        return Ok(None);
    }
    fs::read_to_string(&file).map(Some).with_context(|| format!("read {}", file.display()))
}

/// The query of a peer of whose records many make a row.
pub(crate) fn count_of(options: &Options, peer: &str) -> Result<Option<String>> {
    own(options, peer, "count.sql")
}

/// How long nothing may move when there are so many rows.
pub(crate) fn patience(rows: u64) -> Duration {
    if rows == 0 { STARTING_MAX } else { PATIENCE }
}

fn spawn(options: &Options, peer: &str, topic: &str, group: &str, log: &Path) -> Result<Child> {
    let log = File::options().append(true).create(true).open(log)?;
    let servers = &options.servers;
    let config: postgres::Config = servers.database_url.parse().context("read DATABASE_URL")?;
    let Some(Host::Tcp(host)) = config.get_hosts().first() else { bail!("DATABASE_URL must name a host") };
    let state = fs::canonicalize(options.work.join("state").join(peer))?;
    script(options, peer, "run")?
        .env("KAFKA_BROKERS", &servers.brokers)
        .env("DATABASE_URL", &servers.database_url)
        .env("REDIS_URL", &servers.redis_url)
        .env("PGHOST", host)
        .env("PGPORT", config.get_ports().first().copied().unwrap_or(5432).to_string())
        .env("PGUSER", config.get_user().unwrap_or_default())
        .env("PGPASSWORD", String::from_utf8_lossy(config.get_password().unwrap_or_default()).as_ref())
        .env("PGDATABASE", config.get_dbname().unwrap_or_default())
        .env("PGSSLMODE", "disable")
        .env("TOPIC", topic)
        .env("GROUP", group)
        .env("STATE", state)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {peer}"))
}

/// When each transaction was committed (microseconds since 1970), and its rows; in order.
pub(crate) struct Curve(pub(crate) Vec<(u64, u64)>);

impl Curve {
    /// From what was seen when, in all.
    pub(crate) fn counted(seen: &[(SystemTime, u64)]) -> Curve {
        let (mut before, mut steps) = (0, Vec::new());
        for (at, rows) in seen.iter().filter(|(_, rows)| *rows > 0) {
            if *rows > before {
                let since_1970 = at.duration_since(UNIX_EPOCH).unwrap_or_default();
                steps.push((since_1970.as_micros() as u64, rows - before));
                before = *rows;
            }
        }
        Curve(steps)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.0.iter().map(|(_, rows)| rows).sum()
    }

    pub(crate) fn commits(&self) -> u64 {
        self.0.len() as u64
    }

    /// The first commit and the last.
    pub(crate) fn ends(&self) -> Option<(SystemTime, SystemTime)> {
        let at = |us: u64| UNIX_EPOCH + Duration::from_micros(us);
        Some((at(self.0.first()?.0), at(self.0.last()?.0)))
    }

    /// As the bench counts them: what the first commit brought does not count.
    pub(crate) fn rows_per_second(&self) -> f64 {
        match (self.0.first(), self.0.last()) {
            (Some((from, before)), Some((to, _))) if to > from => {
                (self.rows() - before) as f64 * 1e6 / (to - from) as f64
            }
            _ => 0.0,
        }
    }

    /// Rows in all, in steps of 100 ms since the first commit.
    pub(crate) fn csv(&self) -> String {
        let mut csv = String::from("milliseconds,rows\n");
        let began = self.0.first().map_or(0, |(at, _)| *at);
        let (mut rows, mut step) = (0, 0);
        for (at, count) in &self.0 {
            let now = (at - began) / 100_000;
            if now > step {
                csv.push_str(&format!("{},{rows}\n", now * 100));
                step = now;
            }
            rows += count;
        }
        csv.push_str(&format!("{},{rows}\n", (step + 1) * 100));
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_commit_does_not_count() {
        for (commits, expected) in [
            (vec![], 0.0),
            (vec![(5_000_000, 100)], 0.0),
            (vec![(5_000_000, 100), (6_000_000, 200), (7_000_000, 300)], 250.0),
        ] {
            assert_eq!(Curve(commits).rows_per_second(), expected);
        }
    }

    #[test]
    fn what_was_counted_is_a_curve() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let curve = Curve::counted(&[(at(1), 0), (at(2), 100), (at(3), 100), (at(4), 250)]);
        assert_eq!(curve.0, [(2_000_000, 100), (4_000_000, 150)]);
        assert_eq!((curve.rows(), curve.rows_per_second()), (250, 75.0));
    }

    #[test]
    fn a_curve_in_steps_says_what_was_there_before_each() {
        let curve = Curve(vec![(1_000_000, 1), (1_050_000, 2), (1_320_000, 4)]);
        assert_eq!(curve.csv(), "milliseconds,rows\n300,3\n400,7\n");
    }
}
