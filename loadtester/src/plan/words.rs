//! The closed sets of words that flags take. What each word means is the business of who does it; here stands that it exists.

use clap::ValueEnum;
use serde::Serialize;

/// How much is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Nothing.
    None,
    /// Which messages are there, and how often.
    Count,
    /// Every column of every row too.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowTimestamp {
    /// now(): the start of the transaction.
    Now,
    /// clock_timestamp(): when the server inserted the row.
    Clock,
    /// The consumer's own clock.
    App,
    /// The message's time: says nothing about latency.
    Event,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum HostFormat {
    /// host.csv, disk.csv and net.csv only.
    Csv,
    /// And sadf-cpu.csv, sadf-disk.csv and so on.
    Sadf,
}

/// How the first column of the CSV files shows the time.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum CsvTime {
    Unix,
    UnixMs,
    UnixNs,
    Rfc3339,
}

/// How a request's body holds several messages.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum BatchFormat {
    /// A JSON array.
    Array,
    /// A message a line (NDJSON).
    Lines,
}

impl std::fmt::Display for BatchFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BatchFormat::Array => "array",
            BatchFormat::Lines => "lines",
        })
    }
}

/// How StatsD names carry tags.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum StatsdTags {
    None,
    Dogstatsd,
    Influx,
    Graphite,
}

/// Whose format `loadtester export` writes.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum ExportFormat {
    /// For `promtool tsdb create-blocks-from openmetrics`.
    Openmetrics,
    /// Line protocol, nanoseconds.
    Influx,
    /// For `zabbix_sender -T -i`.
    Zabbix,
    /// The machine's load as sysstat's `sadf -d` writes it.
    Sadf,
}
