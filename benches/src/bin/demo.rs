//! The demo: `loadtester` plays the collectors and judges, this program adds fifty bad records and kills the engine in the
//! middle. It shares no code with the engine.
//!
//! loadtester -> Kafka (TLS) -> rowmill run (SIGKILL, again) -> PostgreSQL -> loadtester's verdict
//!  bad records --^                                               `--> one dead letter for each bad record?

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use postgres::{Client, NoTls};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rowmill_bench::engine::{Ending, Engine};
use rowmill_bench::kafka;
use rowmill_bench::servers::Servers;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Shows rowmill at work, kills it in the middle, and has every record checked")]
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
    /// Good records in a second, over all models.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// How long to send them.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Where the load tester's report goes.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
}

const MODELS: [&str; 5] = ["metric", "state", "log", "network_trace", "network_ping"];
const MIX: &str = "metric=40,state=20,log=20,trace=10,ping=10";
const PARTITIONS: i32 = 6;
const WARMUP_SECONDS: u64 = 2;
/// A token that Redis knows: what is wrong with a bad record shall be one thing only.
const TOKEN: &str = "0123456789abcdef-demo";

/// What can be wrong with a record; one of each for every model makes fifty.
const BAD: [&str; 10] = [
    "cut off",
    "unknown token",
    "not an object",
    "no value",
    "wrong type",
    "too long",
    "missing field",
    "NUL character",
    "no such time",
    "not UTF-8",
];
/// What is not there after this is missing. A busy machine takes seconds.
const DEAD_LETTERS_WAIT: Duration = Duration::from_secs(60);
const BAD_RECORDS: u64 = (BAD.len() * MODELS.len()) as u64;

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
    let redis = redis::Client::open(options.redis_url.as_str()).context("read REDIS_URL")?;
    let mut redis = redis.get_connection().context("connect to Redis")?;
    redis::cmd("SET").arg(format!("user:{TOKEN}")).arg("demo").exec(&mut redis).context("write to Redis")?;
    kafka::create_topics(&client(options), &MODELS, PARTITIONS)?;

    let (servers, configuration) = (servers(options), configure(options)?);
    let engine = Engine {
        program: None,
        servers: &servers,
        configuration,
        log: options.directory.join("rowmill.log"),
    };
    engine.init(&["--models"])?;
    let mut running = engine.start()?;
    println!("rowmill runs as process {}, its log is {}", running.0.id(), engine.log.display());
    let mut bad = BadRecords::new(options)?;
    let mut tester = start_tester(options)?;
    let tested = watch(options, &mut database, &engine, &mut running, &mut bad, &mut tester.0)?;
    bad.send_up_to(BAD_RECORDS)?;
    wait_for_dead_letters(&mut database)?;

    engine.stop(running)?;
    judge(options, &mut database, &bad.places(), tested)
}

// --- the load tester -------------------------------------------------------------------------------------------------

/// Its servers stand in the environment that all of us share. Its progress goes to the terminal, its summary to a file.
fn start_tester(options: &Options) -> Result<Ending> {
    let (rate, seconds) = (options.rate.to_string(), options.seconds);
    fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let summary =
        File::create(options.out.join("summary.txt")).context("create the load tester's summary")?;
    println!("loadtester sends {rate} records a second of five models for {seconds} s:\n");
    let child = Command::new(std::env::current_exe()?.with_file_name("loadtester"))
        .args(["--tls", "--rate", &rate, "--duration", &format!("{seconds}s")])
        .args(["--warmup", &format!("{WARMUP_SECONDS}s"), "--mix", MIX, "--users", "1000"])
        .args(["--verify", "full", "--drain-timeout", "30s", "--out"])
        .arg(&options.out)
        .stdin(Stdio::null())
        .stdout(summary)
        .spawn()
        .context("start loadtester")?;
    Ok(Ending(child))
}

/// Until the tester has ended: adds a bad record now and then, and kills the engine once half is stored and while more
/// comes in. How far things are is what the ledger says.
fn watch(
    options: &Options,
    database: &mut Client,
    engine: &Engine<'_>,
    running: &mut Ending,
    bad: &mut BadRecords,
    tester: &mut Child,
) -> Result<ExitStatus> {
    let expected = options.rate * (options.seconds + WARMUP_SECONDS);
    let (mut stored, mut killed) = (0, false);
    loop {
        std::thread::sleep(Duration::from_millis(50));
        if let Some(status) = tester.try_wait()? {
            ensure!(killed || !status.success(), "the load test ended before rowmill was killed");
            return Ok(status);
        }
        if let Some(status) = running.0.try_wait()? {
            anyhow::bail!("rowmill ended by itself: {status}; see {}", engine.log.display());
        }
        let before =
            std::mem::replace(&mut stored, count(database, "SELECT sum(rows)::int8 FROM rowmill.ledger")?);
        // The last one goes well before the end, so that it is among the others.
        bad.send_up_to(BAD_RECORDS * stored * 10 / (expected * 9))?;
        if !killed && stored > expected / 2 && stored > before {
            killed = true;
            running.0.kill()?;
            running.0.wait()?;
            *running = engine.start()?;
            println!(
                "\nkilled rowmill (SIGKILL) with {stored} rows stored, {} of them in the last moment; started it again as process {}\n",
                stored - before,
                running.0.id()
            );
        }
    }
}

fn count(database: &mut Client, query: &str) -> Result<u64> {
    let row = database.query_one(query, &[]).with_context(|| format!("ask PostgreSQL: {query}"))?;
    Ok(row.get::<_, Option<i64>>(0).unwrap_or(0) as u64)
}

/// An unknown token is asked for again before it is given up, so the last dead letter may come late.
fn wait_for_dead_letters(database: &mut Client) -> Result<()> {
    let limit = Instant::now() + DEAD_LETTERS_WAIT;
    while count(database, "SELECT count(*) FROM rowmill.dead_letter")? < BAD_RECORDS && Instant::now() < limit
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

// --- the engine ------------------------------------------------------------------------------------------------------

/// Everything over TLS.
fn servers(options: &Options) -> Servers {
    Servers {
        brokers: options.brokers.clone(),
        database_url: options.database_url_tls.clone(),
        redis_url: options.redis_tls_url.clone(),
    }
}

/// The configuration that the user sees, and where this stack's certificates are.
fn configure(options: &Options) -> Result<PathBuf> {
    let mut text = fs::read_to_string(&options.config)
        .with_context(|| format!("read the configuration {:?}", options.config))?;
    // TOML's basic strings and Rust's debug form agree on quotes and backslashes, the only ones a path here may need.
    let Options { ca, cert, key, .. } = options;
    text.push_str(&format!("\n[kafka.tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n"));
    text.push_str(&format!("\n[redis]\nca = {ca:?}\n"));
    let config = options.directory.join("demo.toml");
    fs::write(&config, text)?;
    Ok(config)
}

// --- the bad records -------------------------------------------------------------------------------------------------

/// Where Kafka put a bad record, and what it holds.
#[derive(Clone, PartialEq)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
    value: Option<Vec<u8>>,
}

struct BadRecords {
    producer: ThreadedProducer<Acknowledged>,
    acknowledged: Arc<Mutex<Vec<Place>>>,
    sent: u64,
}

struct Acknowledged(Arc<Mutex<Vec<Place>>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        // What is not acknowledged is missed in the count.
        if let Ok(message) = result {
            let (topic, value) = (message.topic().to_owned(), message.payload().map(<[u8]>::to_vec));
            let place = Place { topic, partition: message.partition(), offset: message.offset(), value };
            self.0.lock().expect("no holder panics").push(place);
        }
    }
}

impl BadRecords {
    fn new(options: &Options) -> Result<BadRecords> {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        // Idempotence: a record that the producer sent twice would be a second dead letter that nobody is to blame for.
        let mut config = client(options);
        config.set("enable.idempotence", "true").set("acks", "all");
        let producer = config
            .create_with_context(Acknowledged(acknowledged.clone()))
            .context("create a Kafka producer")?;
        Ok(BadRecords { producer, acknowledged, sent: 0 })
    }

    /// Sends in turn, to all models and partitions, until so many are sent.
    fn send_up_to(&mut self, wanted: u64) -> Result<()> {
        for number in self.sent..wanted.min(BAD_RECORDS) {
            let (model, kind) = (MODELS[number as usize % MODELS.len()], BAD[number as usize / MODELS.len()]);
            let value = spoil(message(model), kind);
            let mut record = BaseRecord::<(), [u8]>::to(model).partition((number % PARTITIONS as u64) as i32);
            record.payload = value.as_deref();
            self.producer
                .send(record)
                .map_err(|(error, _)| error)
                .with_context(|| format!("produce to {model:?}"))?;
            self.sent = number + 1;
        }
        Ok(())
    }

    fn places(&self) -> Vec<Place> {
        self.acknowledged.lock().expect("no holder panics").clone()
    }
}

/// A record as a collector sends it.
fn message(model: &str) -> Value {
    let mut message = json!({
        "token": TOKEN, "source": "demo", "path": "fra2/rack-07/node-011", "time": "2026-01-31T12:00:00.000001Z",
    });
    let more = match model {
        "state" => json!({ "type": "link", "value": "up" }),
        "metric" => json!({ "value": 0.5 }),
        "log" => {
            json!({ "type": "syslog", "category": "kernel", "level": "warning", "message": "link is down" })
        }
        "network_trace" => {
            json!({ "type": "icmp", "trace": "1", "hop": 1, "host": "10.0.0.1", "latency": 0.5 })
        }
        _ => json!({ "type": "icmp", "ping": "1", "host": "10.0.0.1", "latency": 0.5 }),
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

// --- the judge -------------------------------------------------------------------------------------------------------

fn judge(options: &Options, database: &mut Client, bad: &[Place], tested: ExitStatus) -> Result<bool> {
    let code = tested.code().context("the load tester was killed")?;
    ensure!(
        matches!(code, 0 | 97 | 98),
        "the load tester could not judge (exit code {code}); {}/summary.txt or the lines above say why",
        options.out.display()
    );
    let directory = newest(&options.out)?;
    let text = fs::read_to_string(directory.join("run.json")).context("read the load tester's verdict")?;
    let run: Value = serde_json::from_str(&text).context("read the load tester's verdict")?;
    println!(
        "\n{:<14} {:>9} {:>9} {:>12} {:>6} {:>11} {:>6}",
        "table", "produced", "stored", "dead letters", "lost", "duplicated", "wrong"
    );
    let (mut produced, mut dead, mut faults) = (0, 0, 0);
    for model in run["models"].as_array().context("run.json has no models")? {
        let table = model["table"].as_str().context("a model has no table")?;
        let tester = |class: &str| model["verification"][class].as_u64().unwrap_or(0);
        let letters = dead_letters(database, table)?;
        let bad: Vec<&Place> = bad.iter().filter(|place| place.topic == table).collect();
        let times: Vec<usize> =
            bad.iter().map(|place| letters.iter().filter(|l| l == place).count()).collect();
        let all = tester("acked") + bad.len() as u64;
        let lost = tester("lost") + times.iter().filter(|n| **n == 0).count() as u64;
        let duplicated = tester("duplicated") + times.iter().map(|n| n.saturating_sub(1) as u64).sum::<u64>();
        let wrong = ["corrupted", "reordered", "foreign"].map(tester).iter().sum::<u64>()
            + letters.iter().filter(|letter| !bad.contains(letter)).count() as u64;
        println!(
            "{table:<14} {all:>9} {:>9} {:>12} {lost:>6} {duplicated:>11} {wrong:>6}",
            tester("stored"),
            letters.len()
        );
        produced += all;
        dead += letters.len() as u64;
        faults += lost + duplicated + wrong;
    }
    println!("\ndead letters by reason:");
    for row in
        database.query("SELECT reason, count(*) FROM rowmill.dead_letter GROUP BY 1 ORDER BY 1", &[])?
    {
        println!("  {:<18} {:>3}", row.get::<_, &str>(0), row.get::<_, i64>(1));
    }
    let kept = faults == 0 && dead == BAD_RECORDS && bad.len() as u64 == BAD_RECORDS && code != 98;
    if kept {
        println!("\nPASS: each of {produced} records has exactly one outcome, through a kill in the middle");
    } else {
        println!(
            "\nFAIL: {faults} of {produced} records do not have exactly one outcome; {dead} dead letters for {BAD_RECORDS} bad records"
        );
    }
    say_what_the_tester_says(&run, code, &directory);
    Ok(kept)
}

fn say_what_the_tester_says(run: &Value, code: i32, directory: &Path) {
    let visible = |part: &str| run["results"][part].as_f64().unwrap_or(0.0) / 1000.0;
    let verdict = run["exit"].as_str().unwrap_or("unknown");
    println!(
        "load tester: {verdict}; half of the rows were visible within {:.0} ms, the slowest, which waited for the kill, within {:.0} ms",
        visible("visible_p50"),
        visible("visible_max")
    );
    if code == 97 {
        println!(
            "  (\"invalid\" speaks of this machine: it was too busy to send in time, so the latencies are not rowmill's alone)"
        );
    }
    println!("report: {}", directory.join("report.html").display());
}

/// Runs are named for their time.
fn newest(out: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(out).with_context(|| format!("look for the report in {}", out.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths
        .into_iter()
        .filter(|path| path.is_dir())
        .max()
        .with_context(|| format!("the load tester left no report in {}", out.display()))
}

fn dead_letters(database: &mut Client, topic: &str) -> Result<Vec<Place>> {
    let query = r#"SELECT topic, partition, "offset", value FROM rowmill.dead_letter WHERE topic = $1"#;
    let rows = database.query(query, &[&topic]).context("read the dead letters")?;
    let place = |row: &postgres::Row| Place {
        topic: row.get(0),
        partition: row.get(1),
        offset: row.get(2),
        value: row.get(3),
    };
    Ok(rows.iter().map(place).collect())
}
