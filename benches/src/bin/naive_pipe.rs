//! The naive pipe, what one would write in an afternoon: poll, decode with serde, COPY. No ledger, no lookups, no dead
//! letters, and after a crash it would start from the beginning. rowmill must not be slower than this, nor dearer.
//!
//! Copies the whole topic into table `metric` and prints one line of JSON with what it took.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use postgres::{Client, NoTls};
use rdkafka::Message;
use rowmill_bench::metric::{COPY, COPY_HEADER, COPY_TRAILER, write_tuple};
use rowmill_bench::visible::Visible;
use rowmill_bench::{kafka, reference};
use serde::Deserialize;

#[derive(Parser)]
struct Options {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long, default_value = "metric")]
    topic: String,
    /// Rows in one COPY, at most.
    #[arg(long, default_value_t = 20_000)]
    batch_rows: usize,
}

#[derive(Deserialize)]
struct Metric<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    value: f64,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let consumer = kafka::consumer(&options.brokers)?;
    let partitions = kafka::partitions(&consumer, &options.topic)?;
    let records = kafka::records(&consumer, &options.topic)?;
    let mut client = Client::connect(&options.database_url, NoTls).context("connect to PostgreSQL")?;
    kafka::assign_from_start(&consumer, &options.topic, partitions)?;

    let mut visible = Visible::default();
    let mut tuples = COPY_HEADER.to_vec();
    let mut rows = 0;
    let mut timestamp_us = now_us();
    while visible.rows() < records {
        let message = consumer.poll(Duration::from_millis(5)).transpose().context("poll")?;
        let idle = message.is_none();
        if let Some(message) = message {
            let metric: Metric<'_> = serde_json::from_slice(message.payload().unwrap_or_default())?;
            let time: jiff::Timestamp = metric.time.parse()?;
            let (userid, time_us) = (&metric.token, time.as_microsecond());
            write_tuple(
                userid,
                &metric.source,
                &metric.path,
                metric.value,
                time_us,
                timestamp_us,
                &mut tuples,
            );
            rows += 1;
        }
        if rows == options.batch_rows || (idle && rows > 0) {
            tuples.extend_from_slice(COPY_TRAILER);
            let mut copy = client.copy_in(COPY)?;
            copy.write_all(&tuples)?;
            copy.finish()?;
            visible.see(Instant::now(), visible.rows() + rows as u64);
            tuples.truncate(COPY_HEADER.len());
            rows = 0;
            timestamp_us = now_us();
        }
    }
    reference::report(&visible)
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
