//! What was found: a line a run for people who compute, and the summary for people who read.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rowmill_bench::program::result_directory;
use rowmill_bench::servers::conditions;
use rowmill_bench::usage::{self, Usage};
use rowmill_bench::visible::median;

use crate::{Options, PARTITIONS, Test};

pub(crate) struct Report {
    pub(crate) directory: PathBuf,
    pub(crate) versions: Vec<(String, String)>,
    pub(crate) speeds: Vec<Speed>,
    pub(crate) fates: Vec<Fate>,
}

pub(crate) struct Speed {
    pub(crate) peer: String,
    pub(crate) round: usize,
    pub(crate) records: u64,
    pub(crate) stored: u64,
    /// `None` where many records make a row, which its last transaction alone has signed.
    pub(crate) transactions: Option<u64>,
    pub(crate) rows_per_second: f64,
    /// The peer's own, from its start to its last row.
    pub(crate) usage: Usage,
    /// PostgreSQL's, over the same time.
    pub(crate) server_cpu_seconds: f64,
    /// From the start to the first rows: not part of the speed.
    pub(crate) first_rows_seconds: f64,
}

/// What became of the records in a test that disturbs.
pub(crate) struct Fate {
    pub(crate) peer: String,
    pub(crate) test: Test,
    pub(crate) records: u64,
    /// Good records without a row, and the first and the last of them.
    pub(crate) lost: u64,
    pub(crate) lost_range: Option<(i64, i64)>,
    /// Rows beyond the first of a record.
    pub(crate) doubled: u64,
    pub(crate) poison_rows: u64,
    /// Where there is a table for them.
    pub(crate) dead_letters: Option<u64>,
    /// Records that the group has not committed; none where it never committed any.
    pub(crate) lag: Option<i64>,
    /// How often it ended by itself, and whether it ran at the end.
    pub(crate) ended: usize,
    pub(crate) running: bool,
    /// Seconds until rows came again, after each kill.
    pub(crate) back_after: Vec<f64>,
}

impl Speed {
    pub(crate) fn line(&self) -> String {
        format!(
            "{:<15} {:>9.0} rows/s  {:>6.2} CPU-s per million  {:>5.0} MB  {} of {} rows{}",
            self.peer,
            self.rows_per_second,
            self.cpu_per_million(),
            self.usage.rss_peak_mb(),
            self.stored,
            self.records,
            self.transactions.map_or(String::new(), |count| format!(" in {count} transactions"))
        )
    }

    fn cpu_per_million(&self) -> f64 {
        self.usage.cpu_per_million(self.stored)
    }

    fn server_cpu_per_million(&self) -> f64 {
        usage::per_million(self.server_cpu_seconds, self.stored)
    }
}

impl Fate {
    pub(crate) fn line(&self) -> String {
        format!(
            "{:<15} {:<5} {} records: {} lost, {} doubled; {}",
            self.peer,
            self.test.name(),
            self.records,
            self.lost,
            self.doubled,
            self.verdict()
        )
    }

    /// In words, for a test with a poison record.
    fn verdict(&self) -> String {
        let range = self.lost_range.map_or(String::new(), |(first, last)| format!(" ({first} to {last})"));
        let lag = self.lag.map_or("no offsets committed".into(), |lag| format!("lag {lag}"));
        let end = match (self.running, self.ended) {
            (true, 0) => "runs on".into(),
            (true, ended) => format!("ended {ended} times and was started again, runs on"),
            (false, ended) => format!("has ended, {} times", ended + 1),
        };
        let letters = self.dead_letters.map_or(String::new(), |count| format!(", {count} dead letters"));
        format!("{end}, {lag}{letters}{range}")
    }
}

impl Report {
    pub(crate) fn new(options: &Options) -> Result<Report> {
        let directory = result_directory(&options.results, &options.name)?;
        Ok(Report { directory, versions: Vec::new(), speeds: Vec::new(), fates: Vec::new() })
    }

    /// After every run, so that what was measured is there if a later one fails.
    pub(crate) fn write(&self, options: &Options) -> Result<()> {
        let text = |value: Option<i64>| value.map_or(String::new(), |value| value.to_string());
        let mut csv = String::from(
            "round,peer,records,stored,transactions,rows_per_second,cpu_seconds_per_million,rss_peak_mb,\
             server_cpu_seconds_per_million,first_rows_seconds\n",
        );
        for s in &self.speeds {
            csv.push_str(&format!(
                "{},{},{},{},{},{:.0},{:.3},{:.1},{:.3},{:.2}\n",
                s.round,
                s.peer,
                s.records,
                s.stored,
                text(s.transactions.map(|count| count as i64)),
                s.rows_per_second,
                s.cpu_per_million(),
                s.usage.rss_peak_mb(),
                s.server_cpu_per_million(),
                s.first_rows_seconds
            ));
        }
        fs::write(self.directory.join("speed.csv"), csv)?;
        let mut csv = String::from(
            "peer,test,records,lost,lost_first,lost_last,doubled,poison_rows,dead_letters,lag,ended,running,back_after\n",
        );
        for f in &self.fates {
            let back: Vec<String> = f.back_after.iter().map(|seconds| format!("{seconds:.1}")).collect();
            csv.push_str(&format!(
                "{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
                f.peer,
                f.test.name(),
                f.records,
                f.lost,
                text(f.lost_range.map(|(first, _)| first)),
                text(f.lost_range.map(|(_, last)| last)),
                f.doubled,
                f.poison_rows,
                text(f.dead_letters.map(|count| count as i64)),
                text(f.lag),
                f.ended,
                f.running,
                back.join(" ")
            ));
        }
        fs::write(self.directory.join("fates.csv"), csv)?;
        fs::write(self.directory.join("summary.md"), self.summary(options)?)?;
        Ok(())
    }

    pub(crate) fn summary(&self, options: &Options) -> Result<String> {
        let mut text = String::from("# rowmill and what one would use instead\n");
        if !self.speeds.is_empty() {
            text.push_str(&self.speed_table());
        }
        for (test, title) in [
            (Test::Row, "One record whose row the table refuses (`path` too long), in the middle"),
            (Test::Json, "One record that is half a message, in the middle"),
        ] {
            text.push_str(&self.poison_table(test, title));
        }
        text.push_str(&self.kill_table());
        text.push_str(&self.conditions(options)?);
        Ok(text)
    }

    fn speed_table(&self) -> String {
        let mut text = String::from(
            "\nRows/s from the first commit to the last, what the first brought not counted. CPU-seconds from the start to \
             the last row, start-up included; medians of the rounds.\n\n\
             | | records | rows/s | rows per transaction | own CPU-s per million | PostgreSQL's | peak MB | first rows after |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for (peer, _) in &self.versions {
            let of = |figure: &dyn Fn(&Speed) -> f64| -> f64 {
                let values: Vec<f64> = self.speeds.iter().filter(|s| s.peer == *peer).map(figure).collect();
                median(&values)
            };
            let Some(any) = self.speeds.iter().find(|s| s.peer == *peer) else { continue };
            let each = match any.transactions {
                Some(_) => {
                    format!("{:.0}", of(&|s| s.stored as f64 / s.transactions.unwrap_or_default() as f64))
                }
                None => "-".to_owned(),
            };
            text.push_str(&format!(
                "| {peer} | {} | {:.0} | {each} | {:.2} | {:.2} | {:.0} | {:.1} s |\n",
                any.records,
                of(&|s| s.rows_per_second),
                of(&Speed::cpu_per_million),
                of(&Speed::server_cpu_per_million),
                of(&|s| s.usage.rss_peak_mb()),
                of(&|s| s.first_rows_seconds)
            ));
        }
        for s in self.speeds.iter().filter(|s| s.stored != s.records) {
            text.push_str(&format!(
                "\n{}, round {}: {} rows of {} records.\n",
                s.peer, s.round, s.stored, s.records
            ));
        }
        text
    }

    fn poison_table(&self, test: Test, title: &str) -> String {
        let fates: Vec<&Fate> = self.fates.iter().filter(|f| f.test == test).collect();
        if fates.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "\n## {title}\n\n| | records | good ones without a row | doubled rows | rows of the bad one | and then |\n\
             |---|---|---|---|---|---|\n"
        );
        for f in fates {
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                f.peer,
                f.records,
                f.lost,
                f.doubled,
                f.poison_rows,
                f.verdict()
            ));
        }
        text
    }

    fn kill_table(&self) -> String {
        let fates: Vec<&Fate> = self.fates.iter().filter(|f| f.test == Test::Kill).collect();
        if fates.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "\n## SIGKILL at one and at two thirds of the rows, started again at once\n\n\
             | | records | lost | doubled | rows again after | and then |\n|---|---|---|---|---|---|\n",
        );
        for f in fates {
            let back: Vec<String> = f.back_after.iter().map(|seconds| format!("{seconds:.1} s")).collect();
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                f.peer,
                f.records,
                f.lost,
                f.doubled,
                back.join(", "),
                f.verdict()
            ));
        }
        text
    }

    fn conditions(&self, options: &Options) -> Result<String> {
        let mut client = options.servers.postgres()?;
        let mut text = conditions(&mut client, "benches/peers/run")?;
        let mut line = |name: &str, value: &str| text.push_str(&format!("- {name}: {}\n", value.trim()));
        let stamps: String = client.query_one("SHOW track_commit_timestamp", &[])?.get(0);
        line("track_commit_timestamp", &stamps);
        line("topics", &format!("{PARTITIONS} partitions, one broker, plaintext, no compression"));
        for (peer, version) in &self.versions {
            line(peer, version);
        }
        line("load average at the end", &fs::read_to_string("/proc/loadavg").unwrap_or_default());
        Ok(text)
    }
}
