//! A consumer that can be told to do wrong: the measure for the load tester itself. It shares no code with the tester.
//!
//! It reads the topics from their end, looks up users, and COPYs rows into the tables, one transaction a batch. Told so,
//! it loses, doubles, swaps (stores a row only after its successors) or corrupts exactly N messages of those that carry a
//! sequence number, spread over the run. It prints `ready` when it reads from every partition.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use postgres::{Client, NoTls};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redis::Commands;
use serde_json::Value;

/// A row that is stored after its successors waits so long: they must be in the tables, and seen there, before it, also
/// where a busy machine lets this program or the probe wait for a while.
const HOLD: Duration = Duration::from_secs(2);

/// Reads Kafka and fills the tables, with exactly as many mistakes as it is told to make.
#[derive(Parser)]
struct Args {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: String,
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis: String,
    #[arg(long, default_value = "metric,state")]
    tables: String,
    #[arg(long, default_value = "")]
    topic_prefix: String,
    /// Messages never stored.
    #[arg(long, default_value_t = 0)]
    lose: u64,
    /// Messages stored twice.
    #[arg(long, default_value_t = 0)]
    double: u64,
    /// Messages stored in a later transaction than their successor.
    #[arg(long, default_value_t = 0)]
    swap: u64,
    /// Messages stored with another user.
    #[arg(long, default_value_t = 0)]
    corrupt: u64,
    /// One in so many messages is chosen for a mistake until all are made.
    #[arg(long, default_value_t = 97)]
    every: u64,
}

const COLUMNS: [(&str, &[&str]); 5] = [
    ("state", &["source", "path", "type", "value", "time"]),
    ("metric", &["source", "path", "value", "time"]),
    ("log", &["source", "path", "type", "category", "level", "message", "time"]),
    ("network_trace", &["source", "path", "type", "trace", "hop", "host", "latency", "time"]),
    ("network_ping", &["source", "path", "type", "ping", "host", "latency", "time"]),
];

struct Faults {
    left: [u64; 4],
    every: u64,
    seen: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Lose,
    Double,
    Swap,
    Corrupt,
}

impl Faults {
    /// Takes turns among what is left to do wrong.
    fn next(&mut self) -> Option<Fault> {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return None;
        }
        let kinds = [Fault::Lose, Fault::Double, Fault::Swap, Fault::Corrupt];
        let turn = (self.seen / self.every) as usize;
        let at = (0..4).map(|n| (turn + n) % 4).find(|at| self.left[*at] > 0)?;
        self.left[at] -= 1;
        Some(kinds[at])
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let tables: Vec<(&str, &[&str])> = args
        .tables
        .split(',')
        .map(|name| COLUMNS.iter().find(|c| c.0 == name).copied().context("unknown table"))
        .collect::<Result<_>>()?;
    let topics: Vec<String> = tables.iter().map(|(name, _)| format!("{}{name}", args.topic_prefix)).collect();
    let consumer = consumer(&args, &topics)?;
    let mut database = Client::connect(&args.database, NoTls).context("connect to PostgreSQL")?;
    let mut redis = redis::Client::open(args.redis.as_str())?.get_connection().context("connect to Redis")?;
    let mut users: HashMap<String, String> = HashMap::new();
    let mut faults =
        Faults { left: [args.lose, args.double, args.swap, args.corrupt], every: args.every, seen: 0 };
    // Rows held back: (when they may go, table, line).
    let mut held: Vec<(Instant, usize, String)> = Vec::new();
    let mut batches = vec![String::new(); tables.len()];
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        let began = Instant::now();
        let mut count = 0;
        while count < 5000 && began.elapsed() < Duration::from_millis(5) {
            let Some(message) = consumer.poll(Duration::from_millis(1)) else { continue };
            let message = match message {
                Ok(message) => message,
                // librdkafka goes on by itself, with nothing skipped.
                Err(error) => {
                    eprintln!("read from Kafka: {error}");
                    continue;
                }
            };
            let json: Value =
                serde_json::from_slice(message.payload().unwrap_or_default()).context("read a message")?;
            let at = topics.iter().position(|t| t == message.topic()).context("an unknown topic")?;
            let user = user(&mut users, &mut redis, json["token"].as_str().context("no token")?)?;
            count += 1;
            let line = line(&user, tables[at].1, &json)?;
            match faults.next() {
                Some(Fault::Lose) => continue,
                Some(Fault::Double) => batches[at].push_str(&line),
                Some(Fault::Swap) => {
                    held.push((Instant::now() + HOLD, at, line));
                    continue;
                }
                Some(Fault::Corrupt) => {
                    batches[at].push_str(&self::line("somebody-else", tables[at].1, &json)?);
                    continue;
                }
                None => {}
            }
            batches[at].push_str(&line);
        }
        let now = Instant::now();
        held.retain(|(when, at, line)| {
            if *when <= now {
                batches[*at].push_str(line);
            }
            *when > now
        });
        store(&mut database, &tables, &mut batches)?;
    }
}

fn consumer(args: &Args, topics: &[String]) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("group.id", "loadtester-fake-consumer")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "5")
        .set("fetch.queue.backoff.ms", "2")
        .create()?;
    let mut list = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer
            .fetch_metadata(Some(topic), Duration::from_secs(10))
            .context("ask Kafka for its topics")?;
        let partitions = metadata.topics()[0].partitions();
        if partitions.is_empty() {
            bail!("there is no topic {topic}");
        }
        for partition in partitions {
            let (_, end) = consumer.fetch_watermarks(topic, partition.id(), Duration::from_secs(10))?;
            list.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
        }
    }
    consumer.assign(&list)?;
    Ok(consumer)
}

fn user(users: &mut HashMap<String, String>, redis: &mut redis::Connection, token: &str) -> Result<String> {
    if let Some(user) = users.get(token) {
        return Ok(user.clone());
    }
    let user: Option<String> = redis.get(format!("user:{token}"))?;
    let user = user.with_context(|| format!("Redis has no user for token {token}"))?;
    users.insert(token.to_owned(), user.clone());
    Ok(user)
}

/// A line of COPY's text format, `timestamp` last.
fn line(user: &str, columns: &[&str], json: &Value) -> Result<String> {
    let mut line = escaped(user);
    for column in columns {
        let value = match &json[*column] {
            Value::String(text) => escaped(text),
            Value::Number(number) => number.to_string(),
            other => bail!("{column} is {other}"),
        };
        write!(line, "\t{value}")?;
    }
    let now = jiff::Timestamp::now();
    writeln!(line, "\t{now}")?;
    Ok(line)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

fn store(database: &mut Client, tables: &[(&str, &[&str])], batches: &mut [String]) -> Result<()> {
    if batches.iter().all(String::is_empty) {
        return Ok(());
    }
    let mut transaction = database.transaction()?;
    for ((table, columns), batch) in tables.iter().zip(batches.iter_mut()) {
        if batch.is_empty() {
            continue;
        }
        let names: Vec<String> = columns.iter().map(|c| format!("\"{c}\"")).collect();
        let copy = format!("COPY \"{table}\" (userid, {}, \"timestamp\") FROM STDIN", names.join(", "));
        let mut writer = transaction.copy_in(&copy)?;
        writer.write_all(batch.as_bytes())?;
        writer.finish()?;
        batch.clear();
    }
    transaction.commit().context("commit")
}
