//! The raw ceiling: what this PostgreSQL takes at best. Binary COPY of rows that lie encoded in memory, into the same
//! table, one batch a transaction, over one connection or several. Prints one line of JSON with what it took.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use postgres::{Client, NoTls};
use rowmill_bench::metric::{self, COPY_HEADER, COPY_TRAILER, Metric};
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
    /// Into the table whose key is the path, where each row needs one of its own.
    #[arg(long)]
    keyed: bool,
}

/// Batches encoded before the clock starts. They are sent in turn, again and again: a table without an index cannot know, and
/// memory stays small. Where the path is a key, each time its last digits are new.
const BATCHES: u64 = 16;

fn main() -> Result<()> {
    let options = Options::parse();
    let batches: Vec<Batch> = (0..BATCHES).map(|n| encode(n * options.batch_rows, &options)).collect();
    let copy_sql = if options.keyed { metric::COPY_KEYED } else { metric::COPY };
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
            let batch = &batches[(number % BATCHES) as usize];
            let mut copy = client.copy_in(copy_sql)?;
            match options.keyed {
                true => copy.write_all(&batch.numbered(number * options.batch_rows))?,
                false => copy.write_all(&batch.bytes)?,
            }
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

/// One COPY, and where in it each row's number is.
struct Batch {
    bytes: Vec<u8>,
    numbers: Vec<usize>,
}

impl Batch {
    /// The same rows with other numbers.
    fn numbered(&self, first: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (number, place) in (first..).zip(&self.numbers) {
            let digits = format!("{number:0width$}", width = metric::NUMBER_DIGITS);
            bytes[*place..place + digits.len()].copy_from_slice(digits.as_bytes());
        }
        bytes
    }
}

fn encode(first: u64, options: &Options) -> Batch {
    let mut batch = Batch { bytes: COPY_HEADER.to_vec(), numbers: Vec::new() };
    for number in first..first + options.batch_rows {
        let record = Metric::nth(number, options.users);
        let at = batch.bytes.len();
        record.write_tuple(record.time_us, &mut batch.bytes);
        batch.numbers.push(at + metric::number_place(&record));
    }
    batch.bytes.extend_from_slice(COPY_TRAILER);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_batch_has_other_keys_each_time() {
        let options = Options {
            database_url: String::new(),
            records: 0,
            users: 10,
            connections: 1,
            batch_rows: 3,
            keyed: true,
        };
        let batch = encode(7, &options);
        assert_eq!(batch.numbered(7), batch.bytes);
        let other = batch.numbered(1_234_567_890);
        assert_eq!(other.len(), batch.bytes.len());
        let text = String::from_utf8_lossy(&other);
        assert!((0..3).all(|n| text.contains(&format!("/{}", 1_234_567_890 + n))), "{text}");
    }
}
