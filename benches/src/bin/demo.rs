//! The demo: five models through Kafka with TLS, fifty bad records among them, and the engine killed in the middle.
//! Then the judge reads Kafka and PostgreSQL again and compares record by record; it shares no code with the engine.
//!
//! produce -> Kafka -> rowmill run (SIGKILL, again) -> PostgreSQL
//!               `------------------ judge -----------------'

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rowmill_bench::kafka;
use rowmill_bench::metric::{mix, token, user_id};
use serde_json::{Map, Value, json};

#[derive(Parser)]
#[command(about = "Shows rowmill at work, kills it in the middle, and checks every record")]
struct Options {
    #[arg(long, env = "KAFKA_TLS_BROKERS")]
    brokers: String,
    #[arg(long, env = "KAFKA_SSL_CA")]
    ca: String,
    #[arg(long, env = "KAFKA_SSL_CERT")]
    cert: String,
    #[arg(long, env = "KAFKA_SSL_KEY")]
    key: String,
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long, env = "DATABASE_URL_TLS", hide_env_values = true)]
    database_url_tls: String,
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    #[arg(long, env = "REDIS_TLS_URL", hide_env_values = true)]
    redis_tls_url: String,
    #[arg(long, env = "STACK_DIR")]
    directory: PathBuf,
    #[arg(long, default_value = "models/demo.toml")]
    config: PathBuf,
    /// Good records for each of the five models.
    #[arg(long, default_value_t = 60_000)]
    records: u64,
    /// Records in a second, over all models.
    #[arg(long, default_value_t = 30_000)]
    rate: u64,
}

const MODELS: [&str; 5] = ["state", "metric", "log", "network_trace", "network_ping"];
const PARTITIONS: i32 = 6;
const USERS: u64 = 1000;
/// No news for so long after the last record was sent means that something is broken.
const STALL_MAX: Duration = Duration::from_secs(40);

/// What can be wrong with a record; one of each for every model makes fifty.
const BAD: [&str; 10] = [
    "cut off",
    "not an object",
    "no value",
    "wrong type",
    "too long",
    "unknown token",
    "missing field",
    "NUL character",
    "no such time",
    "not UTF-8",
];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let mut database = Client::connect(&options.database_url, NoTls).context("connect to PostgreSQL")?;
    fill_redis(options)?;
    kafka::create_topics(&client(options), &MODELS, PARTITIONS)?;
    println!("{USERS} users in Redis, {} topics of {PARTITIONS} partitions in Kafka", MODELS.len());

    let engine = Engine::new(options)?;
    engine.init()?;
    let mut running = engine.start()?;
    println!("rowmill runs as process {}, its log is {}", running.0.id(), engine.log.display());

    let truth = Arc::new(Truth::default());
    let total = (options.records + BAD.len() as u64) * MODELS.len() as u64;
    std::thread::scope(|scope| {
        let producing = scope.spawn(|| produce(options, &truth));
        let mut watch = Watch::new(&mut database, total);
        let mut killed = false;
        while !watch.drained() {
            std::thread::sleep(Duration::from_millis(200));
            if producing.is_finished() && truth.acknowledged.load(Ordering::Relaxed) < total {
                bail!("the producer stopped early");
            }
            watch.look(&truth)?;
            if let Some(status) = running.0.try_wait()? {
                bail!("rowmill ended by itself: {status}; see {}", engine.log.display());
            }
            if !killed && truth.acknowledged.load(Ordering::Relaxed) > total / 2 {
                killed = true;
                running.0.kill()?;
                running.0.wait()?;
                running = engine.start()?;
                println!("killed rowmill (SIGKILL) and started it again, as process {}", running.0.id());
            }
        }
        match producing.join() {
            Ok(result) => result,
            Err(_) => bail!("the producer panicked"),
        }
    })?;

    // A duplicate would come late: give it the chance, and the ledger its last commit.
    std::thread::sleep(Duration::from_millis(1500));
    kill(Pid::from_raw(running.0.id() as i32), Signal::SIGTERM)?;
    let status = running.0.wait()?;
    ensure!(
        status.success(),
        "rowmill did not end well after SIGTERM: {status}; see {}",
        engine.log.display()
    );

    let bad = truth.write(&options.directory.join("truth.csv"))?;
    judge(options, &mut database, &bad, total)
}

// --- the engine ------------------------------------------------------------------------------------------------------

struct Engine<'a> {
    options: &'a Options,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

/// A child that does not outlive a failing demo.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // Both fail where it has ended already, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Engine<'_> {
    fn new(options: &Options) -> Result<Engine<'_>> {
        let program = std::env::current_exe()?.with_file_name("rowmill");
        let mut text = fs::read_to_string(&options.config)
            .with_context(|| format!("read the configuration {:?}", options.config))?;
        // TOML's basic strings and Rust's debug form agree on quotes and backslashes, the only ones a path here may need.
        let Options { ca, cert, key, .. } = options;
        text.push_str(&format!("\n[kafka.tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n"));
        text.push_str(&format!("\n[redis]\nca = {ca:?}\n"));
        let config = options.directory.join("demo.toml");
        fs::write(&config, text)?;
        Ok(Engine { options, program, config, log: options.directory.join("rowmill.log") })
    }

    fn init(&self) -> Result<()> {
        let status = self.command("init")?.arg("--models").status().context("run rowmill init")?;
        ensure!(status.success(), "rowmill init failed: {status}; see {}", self.log.display());
        Ok(())
    }

    fn start(&self) -> Result<Ending> {
        Ok(Ending(self.command("run")?.spawn().context("run rowmill run")?))
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .arg(verb)
            .arg("--config")
            .arg(&self.config)
            .env("KAFKA_BROKERS", &self.options.brokers)
            .env("DATABASE_URL", &self.options.database_url_tls)
            .env("REDIS_URL", &self.options.redis_tls_url)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

// --- the producer ----------------------------------------------------------------------------------------------------

/// What the brokers acknowledged: how many records, and where the bad ones are.
#[derive(Default)]
struct Truth {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    bad: Mutex<Vec<Bad>>,
}

struct Bad {
    topic: String,
    partition: i32,
    offset: i64,
    kind: &'static str,
}

impl Truth {
    fn write(&self, path: &Path) -> Result<Vec<Bad>> {
        let bad = std::mem::take(&mut *self.bad.lock().expect("no holder panicked"));
        let mut text = String::from("topic,partition,offset,what\n");
        for b in &bad {
            text.push_str(&format!("{},{},{},{}\n", b.topic, b.partition, b.offset, b.kind));
        }
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(bad)
    }
}

struct Reports(Arc<Truth>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    /// 0 for a good record, 1 + its kind's number for a bad one.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, kind: usize) {
        match result {
            Ok(message) => {
                if kind > 0 {
                    let (topic, partition) = (message.topic().to_owned(), message.partition());
                    let bad = Bad { topic, partition, offset: message.offset(), kind: BAD[kind - 1] };
                    self.0.bad.lock().expect("no holder panics").push(bad);
                }
                self.0.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn produce(options: &Options, truth: &Arc<Truth>) -> Result<()> {
    // Idempotence: a record that the producer sent twice would be a duplicate that nobody downstream can know.
    let mut config = client(options);
    config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "5");
    let producer: ThreadedProducer<Reports> =
        config.create_with_context(Reports(truth.clone())).context("create a Kafka producer")?;
    let every = options.records / BAD.len() as u64;
    let began = Instant::now();
    for number in 0..options.records {
        for (index, model) in MODELS.iter().enumerate() {
            let message = message(model, number);
            let partition = (mix(number) % PARTITIONS as u64) as i32;
            let bytes = serde_json::to_vec(&message)?;
            send(&producer, model, partition, Some(&bytes), 0)?;
            // Each model's bad records lie evenly among its good ones, and those of different models apart.
            if every > 0 && number % every == (every * (2 * index as u64 + 1)) / (2 * MODELS.len() as u64) {
                let kind = (number / every) as usize;
                if kind < BAD.len() {
                    send(&producer, model, partition, spoil(message, BAD[kind]).as_deref(), kind + 1)?;
                }
            }
        }
        let due = Duration::from_secs_f64((number * MODELS.len() as u64) as f64 / options.rate as f64);
        if let Some(early) = due.checked_sub(began.elapsed()) {
            std::thread::sleep(early);
        }
    }
    producer.flush(Duration::from_secs(60)).context("flush the producer")?;
    let failed = truth.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "Kafka refused {failed} records");
    Ok(())
}

fn send(
    producer: &ThreadedProducer<Reports>,
    topic: &str,
    partition: i32,
    payload: Option<&[u8]>,
    kind: usize,
) -> Result<()> {
    let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(topic, kind).partition(partition);
    record.payload = payload;
    while let Err((error, back)) = producer.send(record) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
            _ => bail!("produce to {topic:?}: {error}"),
        }
        record = back;
    }
    Ok(())
}

/// A record as a collector sends it. `source` and `path` together are its identity.
fn message(model: &str, number: u64) -> Value {
    let random = mix(number ^ model.len() as u64);
    let time = jiff::Timestamp::now();
    let source = format!("collector-{:02}", random % 20);
    let path = format!("fra2/rack-{:02}/node-{:03}/{number}", (random >> 8) % 40, (random >> 16) % 400);
    let host = format!("10.{}.{}.{}", (random >> 20) % 256, (random >> 28) % 256, (random >> 36) % 256);
    let latency = ((random >> 24) % 100_000) as f64 / 100.0;
    let mut message = json!({
        "token": token((random >> 40) % USERS),
        "source": source,
        "path": path,
        "time": format!("{time:.6}"),
    });
    let more = match model {
        "state" => json!({ "type": "link", "value": if random & 1 == 0 { "up" } else { "down" } }),
        "metric" => json!({ "value": latency }),
        "log" => json!({
            "type": "syslog", "category": "kernel", "level": "warning",
            "message": "link \"eth0\" is down\tC:\\log \u{1f525} Gerät\nsecond line",
        }),
        "network_trace" => json!({
            "type": "icmp", "trace": format!("trace-{}", number / 8), "hop": number % 8 + 1, "host": host,
            "latency": latency,
        }),
        _ => json!({ "type": "icmp", "ping": format!("ping-{number}"), "host": host, "latency": latency }),
    };
    if let (Value::Object(message), Value::Object(more)) = (&mut message, more) {
        message.extend(more);
    }
    message
}

/// The same record, made bad.
fn spoil(mut message: Value, kind: &str) -> Option<Vec<u8>> {
    match kind {
        "no value" => return None,
        "not an object" => message = json!([message]),
        "wrong type" => message["source"] = json!({ "name": "collector" }),
        "too long" => message["path"] = "é".repeat(201).into(),
        "unknown token" => message["token"] = "0123456789abcdef-nobody".into(),
        "missing field" => {
            message.as_object_mut().map(|fields| fields.remove("path"));
        }
        "NUL character" => message["path"] = "fra2/\0/node".into(),
        "no such time" => message["time"] = "2026-02-30T00:00:00Z".into(),
        _ => {}
    }
    let mut bytes = message.to_string().into_bytes();
    match kind {
        "cut off" => bytes.truncate(bytes.len() / 2),
        "not UTF-8" => {
            let at = bytes.windows(4).position(|w| w == b"fra2").unwrap_or(1);
            bytes[at] = 0xff;
        }
        _ => {}
    }
    Some(bytes)
}

fn client(options: &Options) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("security.protocol", "ssl")
        .set("ssl.ca.location", &options.ca)
        .set("ssl.certificate.location", &options.cert)
        .set("ssl.key.location", &options.key);
    config
}

fn redis(options: &Options) -> Result<redis::Connection> {
    let client = redis::Client::open(options.redis_url.as_str()).context("read REDIS_URL")?;
    client.get_connection().context("connect to Redis")
}

fn fill_redis(options: &Options) -> Result<()> {
    let mut pipe = redis::pipe();
    for user in 0..USERS {
        pipe.set(format!("user:{}", token(user)), user_id(user)).ignore();
    }
    pipe.query::<()>(&mut redis(options)?).context("write users to Redis")
}

// --- progress --------------------------------------------------------------------------------------------------------

/// Looks at the tables from outside, once a second or so, and says what is there.
struct Watch<'a> {
    database: &'a mut Client,
    total: u64,
    stored: u64,
    dead: u64,
    looked_at: Instant,
    progress_at: Instant,
}

impl<'a> Watch<'a> {
    fn new(database: &'a mut Client, total: u64) -> Watch<'a> {
        let now = Instant::now();
        Watch { database, total, stored: 0, dead: 0, looked_at: now, progress_at: now }
    }

    fn drained(&self) -> bool {
        self.stored + self.dead >= self.total
    }

    fn look(&mut self, truth: &Truth) -> Result<()> {
        if self.looked_at.elapsed() < Duration::from_secs(1) {
            return Ok(());
        }
        self.looked_at = Instant::now();
        let before = self.stored + self.dead;
        self.stored = 0;
        for table in MODELS {
            self.stored += count(self.database, table)?;
        }
        self.dead = count(self.database, "rowmill.dead_letter")?;
        let sent = truth.acknowledged.load(Ordering::Relaxed);
        println!("sent {sent} of {}, stored {}, dead letters {}", self.total, self.stored, self.dead);
        if self.stored + self.dead > before {
            self.progress_at = Instant::now();
        }
        ensure!(
            self.progress_at.elapsed() < STALL_MAX,
            "nothing was stored for {} s: {} records are missing",
            STALL_MAX.as_secs(),
            self.total - self.stored - self.dead
        );
        Ok(())
    }
}

fn count(database: &mut Client, table: &str) -> Result<u64> {
    let row = database.query_one(&format!("SELECT count(*) FROM {table}"), &[])?;
    Ok(row.get::<_, i64>(0) as u64)
}

// --- the judge -------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Verdict {
    produced: u64,
    stored: u64,
    dead: u64,
    lost: u64,
    duplicated: u64,
    /// Rows that say something else than their record, or that no record says; dead letters of good records, or with
    /// other bytes than were sent.
    wrong: u64,
}

impl Verdict {
    fn seen(&mut self, times: u64) {
        match times {
            0 => self.lost += 1,
            n => self.duplicated += n - 1,
        }
    }
}

/// Partition and offset.
type Place = (i32, i64);
/// A record's bytes; none for a record without a value.
type Payload = Option<Vec<u8>>;

/// What Kafka holds of one topic, read again from the start, and how often each record was found in PostgreSQL.
#[derive(Default)]
struct Expected {
    good: HashMap<(String, String), (Map<String, Value>, u64)>,
    bad: HashMap<Place, (Payload, u64)>,
}

fn judge(options: &Options, database: &mut Client, bad: &[Bad], total: u64) -> Result<bool> {
    println!("\nreading Kafka and PostgreSQL again, to compare record by record");
    let users = users(options)?;
    let consumer: BaseConsumer = client(options).set("group.id", "judge").create()?;
    println!(
        "\n{:<14} {:>9} {:>9} {:>12} {:>6} {:>11} {:>6}",
        "table", "produced", "stored", "dead letters", "lost", "duplicated", "wrong"
    );
    let (mut produced, mut faults) = (0, 0);
    for topic in MODELS {
        let expected = read_topic(&consumer, topic, bad, &users)?;
        let v = compare(database, topic, expected)?;
        println!(
            "{topic:<14} {:>9} {:>9} {:>12} {:>6} {:>11} {:>6}",
            v.produced, v.stored, v.dead, v.lost, v.duplicated, v.wrong
        );
        produced += v.produced;
        faults += v.lost + v.duplicated + v.wrong;
    }
    println!("\ndead letters by reason:");
    for row in
        database.query("SELECT reason, count(*) FROM rowmill.dead_letter GROUP BY 1 ORDER BY 1", &[])?
    {
        println!("  {:<18} {:>3}", row.get::<_, &str>(0), row.get::<_, i64>(1));
    }
    if produced != total {
        println!("\nFAIL: {total} records were acknowledged, Kafka holds {produced}");
    } else if faults > 0 {
        println!("\nFAIL: {faults} of {total} records do not have exactly one outcome");
    } else {
        println!("\nPASS: each of {total} records has exactly one outcome, through a kill in the middle");
    }
    Ok(produced == total && faults == 0)
}

/// Token to user id, as Redis has it.
fn users(options: &Options) -> Result<HashMap<String, String>> {
    let mut connection = redis(options)?;
    let keys: Vec<String> = redis::cmd("KEYS").arg("user:*").query(&mut connection)?;
    let values: Vec<String> = redis::cmd("MGET").arg(&keys).query(&mut connection)?;
    Ok(keys.into_iter().map(|key| key.trim_start_matches("user:").to_owned()).zip(values).collect())
}

fn read_topic(
    consumer: &BaseConsumer,
    topic: &str,
    bad: &[Bad],
    users: &HashMap<String, String>,
) -> Result<Expected> {
    let bad: Vec<Place> = bad.iter().filter(|b| b.topic == topic).map(|b| (b.partition, b.offset)).collect();
    let mut expected = Expected::default();
    let mut left = kafka::records(consumer, topic)?;
    let mut record_at = Instant::now();
    kafka::assign_from_start(consumer, topic, PARTITIONS)?;
    while left > 0 {
        // No record may also mean an event that concerns nobody here: only the time decides.
        let Some(message) =
            consumer.poll(Duration::from_secs(1)).transpose().with_context(|| format!("read {topic:?}"))?
        else {
            ensure!(
                record_at.elapsed() < Duration::from_secs(20),
                "Kafka gave no record of {topic:?} for 20 s"
            );
            continue;
        };
        record_at = Instant::now();
        left -= 1;
        let place = (message.partition(), message.offset());
        if bad.contains(&place) {
            expected.bad.insert(place, (message.payload().map(<[u8]>::to_vec), 0));
            continue;
        }
        let mut row: Map<String, Value> = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let token = row.remove("token").and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default();
        row.insert("userid".into(), users.get(&token).cloned().into());
        let before = expected.good.insert(identity(&row), (row, 0));
        ensure!(before.is_none(), "the producer gave two records of {topic:?} the same identity");
    }
    Ok(expected)
}

fn compare(database: &mut Client, table: &str, mut expected: Expected) -> Result<Verdict> {
    let produced = (expected.good.len() + expected.bad.len()) as u64;
    let mut verdict = Verdict { produced, ..Verdict::default() };
    for row in database.query(&format!("SELECT to_json(t)::text FROM {table} t"), &[])? {
        verdict.stored += 1;
        let row: Map<String, Value> = serde_json::from_str(row.get(0))?;
        match expected.good.get_mut(&identity(&row)) {
            Some((sent, times)) => {
                *times += 1;
                verdict.wrong += u64::from(!says_the_same(sent, &row));
            }
            None => verdict.wrong += 1,
        }
    }
    let letters = r#"SELECT partition, "offset", value FROM rowmill.dead_letter WHERE topic = $1"#;
    for row in database.query(letters, &[&table])? {
        verdict.dead += 1;
        match expected.bad.get_mut(&(row.get(0), row.get(1))) {
            Some((sent, times)) => {
                *times += 1;
                verdict.wrong += u64::from(*sent != row.get::<_, Payload>(2));
            }
            None => verdict.wrong += 1,
        }
    }
    expected.good.values().for_each(|(_, times)| verdict.seen(*times));
    expected.bad.values().for_each(|(_, times)| verdict.seen(*times));
    Ok(verdict)
}

fn identity(row: &Map<String, Value>) -> (String, String) {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("source"), text("path"))
}

/// Every field that was sent stands in the row with the same meaning, and the row has nothing else but the time of
/// writing, which is not before the time of the record.
fn says_the_same(sent: &Map<String, Value>, row: &Map<String, Value>) -> bool {
    let time = |value: Option<&Value>| value?.as_str()?.parse::<jiff::Timestamp>().ok();
    let fields = sent.iter().all(|(name, value)| match row.get(name) {
        Some(found) if name == "time" => time(Some(found)) == time(Some(value)),
        Some(found) => found == value || found.as_f64().is_some_and(|f| Some(f) == value.as_f64()),
        None => false,
    });
    fields && row.len() == sent.len() + 1 && time(row.get("timestamp")) >= time(row.get("time"))
}
