//! The ways to write: how fast the same rows come into the same table, tokens become users, and positions are kept, by each
//! of the ways that a consumer may go. Every way runs for the same few seconds in every round. docs/suggestions.md quotes it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use postgres::Client;
use postgres::types::ToSql;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rowmill_bench::kafka;
use rowmill_bench::metric::{self, COPY, COPY_HEADER, COPY_TRAILER, Metric, POSTGRES_EPOCH_US, write_field};
use rowmill_bench::program::result_directory;
use rowmill_bench::servers::Servers;
use rowmill_bench::visible::median;

#[derive(Parser)]
#[command(about = "Compares the ways to write rows, look tokens up and keep positions")]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// How long each way runs in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

/// Rows of one transaction, where many rows share one.
const BATCH: u64 = 10_000;
const USERS: u64 = 1000;
const TOPIC: &str = "ways";

/// What the ways work on.
struct World {
    client: Client,
    redis: redis::Connection,
    consumer: BaseConsumer,
    /// The users that the process has asked for.
    known: HashMap<String, String>,
}

/// Works on records numbered from the first one given, and says how many it did.
type Way = fn(&mut World, u64) -> Result<u64>;

const ROWS: &str = "Rows into PostgreSQL, one connection";
const TOKENS: &str = "Tokens to users";
const TABLES: &str = "What the table itself costs: COPY as binary, 10,000 rows";
const POSITIONS: &str = "Where the position is kept";

/// Tables like `metric`, with what people put on them.
const TABLES_SQL: &str = "
    DROP TABLE IF EXISTS metric_brin, metric_time, metric_user, metric_narrow, ways_position;
    CREATE TABLE metric_brin (LIKE metric);
    CREATE INDEX ON metric_brin USING brin (time);
    CREATE TABLE metric_time (LIKE metric);
    CREATE INDEX ON metric_time (time);
    CREATE TABLE metric_user (LIKE metric);
    CREATE INDEX ON metric_user (userid, path, time);
    CREATE TABLE metric_narrow (series INTEGER NOT NULL, value DOUBLE PRECISION NOT NULL, time TIMESTAMPTZ NOT NULL,
                                timestamp TIMESTAMPTZ NOT NULL);
    CREATE TABLE ways_position (next BIGINT);
    INSERT INTO ways_position VALUES (0)";

const WAYS: [(&str, &str, Way); 18] = [
    (ROWS, "INSERT of one row, COMMIT after each", |w, n| insert(&mut w.client, n, 1, 1)),
    (ROWS, "INSERT of one row, COMMIT after 10,000", |w, n| insert(&mut w.client, n, BATCH, 1)),
    (ROWS, "INSERT of 100 rows, COMMIT after 10,000", |w, n| insert(&mut w.client, n, BATCH, 100)),
    (ROWS, "INSERT of 1,000 rows, COMMIT after 10,000", |w, n| insert(&mut w.client, n, BATCH, 1000)),
    (ROWS, "INSERT ... SELECT unnest(...) of 10,000 rows", |w, n| unnest(&mut w.client, n)),
    (ROWS, "COPY as text, 10,000 rows", |w, n| copy_text(&mut w.client, n)),
    (ROWS, "COPY as binary, 10,000 rows", |w, n| copy_binary(&mut w.client, "metric", n)),
    (TABLES, "no index", |w, n| copy_binary(&mut w.client, "metric", n)),
    (TABLES, "a BRIN index on (time)", |w, n| copy_binary(&mut w.client, "metric_brin", n)),
    (TABLES, "a B-tree index on (time)", |w, n| copy_binary(&mut w.client, "metric_time", n)),
    (TABLES, "a B-tree index on (userid, path, time)", |w, n| copy_binary(&mut w.client, "metric_user", n)),
    (TABLES, "no index; a series number for userid, source and path", |w, n| copy_narrow(&mut w.client, n)),
    (TOKENS, "GET for each record", |w, n| get(&mut w.redis, n)),
    (TOKENS, "MGET for 500 records", |w, n| mget(&mut w.redis, n)),
    (TOKENS, "a cache in the process, GET for what it lacks", cached),
    (POSITIONS, "offset committed to Kafka after each record (no rows written)", |w, n| {
        commit_offset(&w.consumer, n + 1).map(|()| 1)
    }),
    (POSITIONS, "COPY of 10,000 rows, then their offset committed to Kafka", |w, n| {
        let rows = copy_binary(&mut w.client, "metric", n)?;
        commit_offset(&w.consumer, n + rows).map(|()| rows)
    }),
    (POSITIONS, "COPY of 10,000 rows and their position, in one transaction", |w, n| {
        copy_with_position(&mut w.client, n)
    }),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let servers = &options.servers;
    servers.fill_redis(USERS)?;
    let mut world = World {
        client: servers.postgres()?,
        redis: servers.redis()?,
        consumer: consumer(servers)?,
        known: HashMap::new(),
    };
    world.client.batch_execute(metric::CREATE_TABLE).context("create table metric")?;
    world.client.batch_execute(TABLES_SQL).context("create the tables beside it")?;

    let mut rates = vec![Vec::new(); WAYS.len()];
    for round in 1..=options.rounds {
        for ((_, name, way), rates) in WAYS.iter().zip(&mut rates) {
            let rate = measure(&mut world, *way, options.seconds).with_context(|| (*name).to_owned())?;
            println!("round {round}  {name:<66} {rate:>10.0} records/s");
            rates.push(rate);
        }
    }
    write_results(&options, &mut world.client, &rates)
}

/// Records per second, on an empty table.
fn measure(world: &mut World, way: Way, seconds: f64) -> Result<f64> {
    let empty = "TRUNCATE metric, metric_brin, metric_time, metric_user, metric_narrow; CHECKPOINT";
    world.client.batch_execute(empty).context("empty the tables")?;
    // The first one pays for statements, pages and connections.
    let mut number = way(world, 0)?;
    let first = number;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        number += way(world, number)?;
    }
    Ok((number - first) as f64 / began.elapsed().as_secs_f64())
}

/// `rows` rows in one transaction, `at_once` by one prepared statement.
fn insert(client: &mut Client, first: u64, rows: u64, at_once: u64) -> Result<u64> {
    let mut sql = "INSERT INTO metric (userid, source, path, value, time, timestamp) VALUES ".to_owned();
    for row in 0..at_once {
        let p = row * 5;
        let comma = if row > 0 { ", " } else { "" };
        write!(
            sql,
            "{comma}(${}, ${}, ${}, ${}, to_timestamp(${}::FLOAT8), clock_timestamp())",
            p + 1,
            p + 2,
            p + 3,
            p + 4,
            p + 5
        )?;
    }
    let mut transaction = client.transaction()?;
    let statement = transaction.prepare(&sql)?;
    for start in (first..first + rows).step_by(at_once as usize) {
        let records: Vec<_> = (start..start + at_once).map(|n| Metric::nth(n, USERS)).collect();
        let users: Vec<String> = records.iter().map(|m| metric::user_id(m.user)).collect();
        let times: Vec<f64> = records.iter().map(|m| m.time_us as f64 / 1e6).collect();
        let mut values: Vec<&(dyn ToSql + Sync)> = Vec::new();
        for (index, m) in records.iter().enumerate() {
            values.extend([
                &users[index] as &(dyn ToSql + Sync),
                &m.source,
                &m.path,
                &m.value,
                &times[index],
            ]);
        }
        transaction.execute(&statement, &values)?;
    }
    transaction.commit()?;
    Ok(rows)
}

fn unnest(client: &mut Client, first: u64) -> Result<u64> {
    let records: Vec<_> = (first..first + BATCH).map(|n| Metric::nth(n, USERS)).collect();
    let users: Vec<String> = records.iter().map(|m| metric::user_id(m.user)).collect();
    let sources: Vec<&str> = records.iter().map(|m| m.source.as_str()).collect();
    let paths: Vec<&str> = records.iter().map(|m| m.path.as_str()).collect();
    let values: Vec<f64> = records.iter().map(|m| m.value).collect();
    let times: Vec<f64> = records.iter().map(|m| m.time_us as f64 / 1e6).collect();
    client.execute(
        "INSERT INTO metric SELECT u, s, p, v, to_timestamp(t), clock_timestamp()
         FROM unnest($1::TEXT[], $2::TEXT[], $3::TEXT[], $4::FLOAT8[], $5::FLOAT8[]) AS r(u, s, p, v, t)",
        &[&users, &sources, &paths, &values, &times],
    )?;
    Ok(BATCH)
}

fn copy_text(client: &mut Client, first: u64) -> Result<u64> {
    let mut lines = String::new();
    for number in first..first + BATCH {
        let m = Metric::nth(number, USERS);
        let time = jiff::Timestamp::from_microsecond(m.time_us)?;
        writeln!(
            lines,
            "{}\t{}\t{}\t{}\t{time:.6}\t{time:.6}",
            metric::user_id(m.user),
            m.source,
            m.path,
            m.value
        )?;
    }
    let mut copy = client.copy_in("COPY metric (userid, source, path, value, time, timestamp) FROM STDIN")?;
    copy.write_all(lines.as_bytes())?;
    Ok(copy.finish()?)
}

fn copy_binary(client: &mut Client, table: &str, first: u64) -> Result<u64> {
    let bytes = binary(first);
    let columns = "(userid, source, path, value, time, timestamp)";
    let mut copy = client.copy_in(&format!("COPY {table} {columns} FROM STDIN (FORMAT binary)"))?;
    copy.write_all(&bytes)?;
    Ok(copy.finish()?)
}

fn copy_narrow(client: &mut Client, first: u64) -> Result<u64> {
    let mut bytes = COPY_HEADER.to_vec();
    for number in first..first + BATCH {
        let m = Metric::nth(number, USERS);
        bytes.extend_from_slice(&4_i16.to_be_bytes());
        write_field(&(m.user as i32).to_be_bytes(), &mut bytes);
        write_field(&m.value.to_be_bytes(), &mut bytes);
        for _ in 0..2 {
            write_field(&(m.time_us - POSTGRES_EPOCH_US).to_be_bytes(), &mut bytes);
        }
    }
    bytes.extend_from_slice(COPY_TRAILER);
    let mut copy =
        client.copy_in("COPY metric_narrow (series, value, time, timestamp) FROM STDIN (FORMAT binary)")?;
    copy.write_all(&bytes)?;
    Ok(copy.finish()?)
}

fn binary(first: u64) -> Vec<u8> {
    let mut bytes = COPY_HEADER.to_vec();
    for number in first..first + BATCH {
        let m = Metric::nth(number, USERS);
        m.write_tuple(m.time_us, &mut bytes);
    }
    bytes.extend_from_slice(COPY_TRAILER);
    bytes
}

fn key(number: u64) -> String {
    format!("user:{}", metric::token(Metric::nth(number, USERS).user))
}

fn get(redis: &mut redis::Connection, number: u64) -> Result<u64> {
    let _user: String = redis::cmd("GET").arg(key(number)).query(redis)?;
    Ok(1)
}

fn mget(redis: &mut redis::Connection, first: u64) -> Result<u64> {
    let keys: Vec<String> = (first..first + 500).map(key).collect();
    let users: Vec<String> = redis::cmd("MGET").arg(keys).query(redis)?;
    Ok(users.len() as u64)
}

fn cached(world: &mut World, first: u64) -> Result<u64> {
    for key in (first..first + 500).map(key) {
        if !world.known.contains_key(&key) {
            let user: String = redis::cmd("GET").arg(&key).query(&mut world.redis)?;
            world.known.insert(key, user);
        }
    }
    Ok(500)
}

fn consumer(servers: &Servers) -> Result<BaseConsumer> {
    let mut config = servers.kafka();
    kafka::replace_topic(&config, TOPIC, 1)?;
    config
        .set("group.id", "ways")
        .set("enable.auto.commit", "false")
        .create()
        .context("create a Kafka consumer")
}

fn commit_offset(consumer: &BaseConsumer, next: u64) -> Result<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, Offset::Offset(next as i64))?;
    consumer.commit(&list, CommitMode::Sync).context("commit an offset to Kafka")
}

fn copy_with_position(client: &mut Client, first: u64) -> Result<u64> {
    let bytes = binary(first);
    let mut transaction = client.transaction()?;
    let mut copy = transaction.copy_in(COPY)?;
    copy.write_all(&bytes)?;
    let rows = copy.finish()?;
    let moved = transaction.execute("UPDATE ways_position SET next = $1", &[&((first + rows) as i64)])?;
    ensure!(moved == 1, "the position is one row");
    transaction.commit()?;
    Ok(rows)
}

fn write_results(options: &Options, client: &mut Client, rates: &[Vec<f64>]) -> Result<()> {
    let directory = result_directory(&options.results, "ways")?;
    let version: String = client.query_one("SHOW server_version", &[])?.get(0);
    let mut raw = "group,way,round,records_per_second\n".to_owned();
    let mut summary = format!(
        "# Ways to write, look up and keep positions\n\n`make ways`, {} rounds of {} s a way, medians; PostgreSQL {version}, everything on \
         this machine ({} cores).\n",
        options.rounds,
        options.seconds,
        std::thread::available_parallelism()?
    );
    let mut title = "";
    let mut base = 1.0;
    for ((group, way, _), rates) in WAYS.iter().zip(rates) {
        for (round, rate) in rates.iter().enumerate() {
            writeln!(raw, "\"{group}\",\"{way}\",{},{rate:.1}", round + 1)?;
        }
        let rate = median(rates);
        if *group != title {
            (title, base) = (group, rate);
            write!(summary, "\n| {group} | records/s | times the first |\n|---|---|---|\n")?;
        }
        writeln!(summary, "| {way} | {rate:.0} | {:.1} |", rate / base)?;
    }
    fs::write(directory.join("raw.csv"), raw)?;
    fs::write(directory.join("summary.md"), &summary)?;
    println!("\n{summary}\nwritten to {}", directory.display());
    Ok(())
}
