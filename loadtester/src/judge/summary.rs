//! What a run has come to: everything that was measured and decided. The outputs of a finished run are made from this.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::judge::aggregate::OfAggregate;
use crate::judge::verdict::{Exit, Facts, Reason};
use crate::judge::verify::Example;
use crate::measure::latency::Summary as Percentiles;
use crate::measure::results::Results;
use crate::measure::tally::Tally;
use crate::plan::words::{Depth, RowTimestamp};
use crate::server::pg::ClockOffset;
use crate::server::users::Found;

/// Raised when a member changes its meaning.
pub const SCHEMA: u32 = 2;

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    #[serde(flatten)]
    pub summary: Percentiles,
    pub overflow: u64,
    pub negative: u64,
    pub most_negative_us: i64,
    /// HdrHistogram, V2, compressed, base64: percentiles can be taken again and runs merged without loss.
    pub histogram: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct OfModel {
    pub model: String,
    pub table: String,
    pub verification: Tally,
    pub latencies: Vec<(&'static str, Percentiles)>,
    /// Of the same, so that parts can be put together.
    pub histograms: Vec<Measured>,
}

/// What one reader got.
#[derive(Clone, Debug, Serialize)]
pub struct OfReader {
    pub reader: String,
    pub asked: u64,
    pub answers: BTreeMap<String, u64>,
    /// Answers in which something did not hold that must.
    pub wrong: u64,
    /// The first of them, and of those that came to nothing.
    pub examples: Vec<String>,
    pub latencies: Vec<(&'static str, Percentiles)>,
    pub histograms: Vec<Measured>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub schema: u32,
    pub program: &'static str,
    pub version: &'static str,
    pub run: String,
    pub started_us: i64,
    pub elapsed_seconds: f64,
    #[serde(skip)]
    pub directory: PathBuf,
    pub exit: Exit,
    pub exit_code: u8,
    pub error: Option<String>,
    pub violations: Vec<String>,
    pub reasons: Vec<Reason>,
    pub thresholds: Vec<(String, Option<bool>)>,
    pub seed: u64,
    pub config: Value,
    /// Of what must be equal for two runs to be comparable.
    pub config_hash: String,
    pub machine: Vec<(String, String)>,
    pub versions: Vec<(String, String)>,
    pub postgres: Vec<(String, String)>,
    pub clock_before: ClockOffset,
    /// Of the readings while messages were sent, the most exact; none in a run of a few seconds.
    pub clock_during: Option<ClockOffset>,
    pub clock_after: ClockOffset,
    pub row_timestamp: RowTimestamp,
    pub users: Option<Found>,
    pub users_present_after: Option<usize>,
    pub facts: Facts,
    pub totals: Totals,
    pub drained: Drained,
    pub verification: Tally,
    pub verified: Depth,
    pub examples: Vec<Example>,
    pub results: Results,
    pub latencies: Vec<Measured>,
    pub models: Vec<OfModel>,
    /// By status, or by what went wrong, how many requests came to that end.
    pub answers: BTreeMap<String, u64>,
    pub readers: Vec<OfReader>,
    pub aggregates: Vec<OfAggregate>,
    /// Which part of how many this is.
    pub part: Option<(u32, u32)>,
    pub accounting_bytes: usize,
}

/// Sums over the generator threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    pub sent: u64,
    pub bytes: u64,
    pub acked: u64,
    pub failed: u64,
    pub indeterminate: u64,
    pub queue_full: u64,
    pub steady_due: u64,
    pub steady_sent: u64,
    pub stored: u64,
    /// Messages whose request was answered with no.
    pub refused: u64,
    /// Requests that were sent again.
    pub retried: u64,
    /// Connections of HTTP: opened, ended, and those that this machine had no room for.
    pub connects: u64,
    pub closes: u64,
    pub no_room: u64,
    /// What readers asked, and what of it was not answered, or wrongly.
    pub asked: u64,
    pub unanswered: u64,
    pub wrong: u64,
}

/// How the drain went.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Drained {
    /// From the last message to the last row.
    pub seconds: f64,
    pub complete: bool,
}
