//! The raw ceiling: what this PostgreSQL takes at best. Binary COPY of rows that lie encoded in memory, into the same
//! table, one batch a transaction, over one connection or several. Prints one line of JSON with what it took.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use postgres::{Client, NoTls};
use rowmill_bench::metric::{COPY, COPY_HEADER, COPY_TRAILER, Metric};
use rowmill_bench::reference;
use rowmill_bench::visible::Visible;

#[derive(Parser)]
struct Options {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long, default_value_t = 3_000_000)]
    records: u64,
    #[arg(long, default_value_t = 1000)]
    users: u64,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    #[arg(long, default_value_t = 20_000)]
    batch_rows: u64,
}

/// Batches encoded before the clock starts. They are sent in turn, again and again: the table has no index, so the
/// server cannot know, and memory stays small.
const BATCHES: u64 = 16;

fn main() -> Result<()> {
    let options = Options::parse();
    let batches: Vec<Vec<u8>> = (0..BATCHES).map(|n| encode(n * options.batch_rows, &options)).collect();
    let next = AtomicU64::new(0);
    let count = options.records.div_ceil(options.batch_rows);
    let visible = Mutex::new(Visible::default());

    let work = || -> Result<()> {
        let mut client = Client::connect(&options.database_url, NoTls).context("connect to PostgreSQL")?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let mut copy = client.copy_in(COPY)?;
            copy.write_all(&batches[(number % BATCHES) as usize])?;
            let rows = copy.finish()?;
            let mut visible = visible.lock().expect("no holder panics");
            let before = visible.rows();
            visible.see(Instant::now(), before + rows);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.connections).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a connection's thread panicked"),
            }
        }
        Ok(())
    })?;

    reference::report(&visible.into_inner().expect("no holder panicked"))
}

fn encode(first: u64, options: &Options) -> Vec<u8> {
    let mut bytes = COPY_HEADER.to_vec();
    for number in first..first + options.batch_rows {
        let metric = Metric::nth(number, options.users);
        metric.write_tuple(metric.time_us, &mut bytes);
    }
    bytes.extend_from_slice(COPY_TRAILER);
    bytes
}
