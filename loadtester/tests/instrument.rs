//! The load tester against real servers and a consumer that does wrong on request: every counter must read exactly what
//! was done. Each test has topics, and a database with tables, of its own.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

fn server(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run through `make test`, which starts the servers"))
}

/// Who measures time has the machine: whoever has a database has the turn, until it is dropped.
static TURN: Mutex<()> = Mutex::new(());

/// A database of the test's own, with empty tables, and the turn.
struct Database {
    url: String,
    _turn: MutexGuard<'static, ()>,
}

impl std::ops::Deref for Database {
    type Target = str;

    fn deref(&self) -> &str {
        &self.url
    }
}

fn database(name: &str) -> Database {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let url = server("DATABASE_URL");
    let mut admin = Client::connect(&url, NoTls).expect("connect to DATABASE_URL");
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
    let (login, _) = url.rsplit_once('/').expect("the URL names a database");
    let own = format!("{login}/{name}");
    let mut client = Client::connect(&own, NoTls).unwrap();
    client.batch_execute(include_str!("../../sql/tables.sql")).unwrap();
    Database { url: own, _turn: turn }
}

struct Consumer(Child);

impl Consumer {
    fn start(database: &str, prefix: &str, faults: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadtester-fake-consumer"))
            .args(["--database", database, "--topic-prefix", prefix, "--tables", TABLES])
            .args(faults)
            .env("KAFKA_BROKERS", server("KAFKA_BROKERS"))
            .env("REDIS_URL", server("REDIS_URL"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const TABLES: &str = "metric,state,log,network_trace,network_ping";

struct Run {
    output: Output,
    directory: tempfile::TempDir,
}

impl Run {
    fn start(database: &str, prefix: &str, arguments: &str) -> (Child, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_loadtester"))
            .args([
                "--database",
                database,
                "--topic-prefix",
                prefix,
                "--out",
                directory.path().to_str().unwrap(),
            ])
            .args(arguments.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        (child, directory)
    }

    fn wait((child, directory): (Child, tempfile::TempDir)) -> Self {
        Self { output: child.wait_with_output().unwrap(), directory }
    }

    fn code(&self) -> i32 {
        self.output.status.code().expect("the tester ends by itself")
    }

    fn text(&self) -> String {
        format!(
            "{}{}",
            String::from_utf8_lossy(&self.output.stdout),
            String::from_utf8_lossy(&self.output.stderr)
        )
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        let run =
            std::fs::read_dir(&self.directory).unwrap().next().expect("a run leaves a directory").unwrap();
        run.path().join(name)
    }

    fn json(&self) -> Value {
        let text = std::fs::read_to_string(self.path("run.json"))
            .unwrap_or_else(|_| panic!("no run.json:\n{}", self.text()));
        serde_json::from_str(&text).unwrap()
    }
}

/// Returns when the run has sent for some seconds: when it starts depends on how busy the machine is.
fn wait_until_sending(directory: &tempfile::TempDir, seconds: usize) {
    let lines = || {
        let run = std::fs::read_dir(directory).ok()?.next()?.ok()?.path();
        Some(std::fs::read_to_string(run.join("intervals.csv")).ok()?.lines().count())
    };
    let limit = Instant::now() + Duration::from_secs(120);
    while lines().unwrap_or(0) <= seconds {
        assert!(Instant::now() < limit, "the run does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Topics come into being with a first, very short run.
fn create_topics(database: &str, prefix: &str) {
    let line =
        "--rate 10 --duration 200ms --warmup 0s --drain-timeout 0s --create-topics 4 --verify none --quiet";
    let mix = format!("{line} --mix metric=1,state=1,log=1,trace=1,ping=1");
    let run = Run::wait(Run::start(database, prefix, &mix));
    assert!([0, 97].contains(&run.code()), "{}", run.text());
}

#[test]
fn a_correct_consumer_passes_with_all_models_over_tls() {
    let (database, prefix) = (database("lt_correct"), "lt-correct-");
    create_topics(&database, prefix);
    let _consumer = Consumer::start(&database, prefix, &[]);
    let line = "--rate 2000 --duration 6s --warmup 2s --mix metric=60,state=20,log=10,trace=5,ping=5 --keys zipf(1.1) \
                --arrivals poisson --tls --threads 2 --ci --quiet --threshold lost<1";
    let run = Run::wait(Run::start(&database, prefix, line));
    let json = run.json();
    let v = &json["verification"];
    for class in ["lost", "duplicated", "corrupted", "reordered", "foreign", "failed", "unseen_by_probe"] {
        assert_eq!(v[class], 0, "{class}: {}", run.text());
    }
    assert_eq!(v["stored"], v["acked"]);
    assert!(v["sent"].as_u64().unwrap() > 15_000);
    // A busy machine may make a run invalid; it may not make it wrong.
    assert!([0, 97].contains(&run.code()), "{}", run.text());
    for name in [
        "intervals.csv",
        "process.csv",
        "host.csv",
        "disk.csv",
        "net.csv",
        "verify.csv",
        "latency.hlog",
        "visible.hgrm",
        "report.html",
        "junit.xml",
    ] {
        assert!(std::fs::metadata(run.path(name)).is_ok_and(|m| m.len() > 100), "{name}");
    }
    assert!(!run.text().contains("postgres://admin:"), "a password was printed");
}

#[test]
fn injected_faults_are_counted_exactly() {
    let (database, prefix) = (database("lt_faults"), "lt-faults-");
    create_topics(&database, prefix);
    let _consumer = Consumer::start(
        &database,
        prefix,
        &["--lose", "13", "--double", "7", "--swap", "11", "--corrupt", "5"],
    );
    let run = Run::wait(Run::start(
        &database,
        prefix,
        // Eight threads: two streams share each partition, so that offsets cannot be told from sequence numbers.
        "--rate 2000 --threads 8 --duration 6s --warmup 1s --drain-timeout 2s --quiet",
    ));
    let json = run.json();
    let v = &json["verification"];
    for (class, count) in
        [("lost", 13), ("duplicated", 7), ("reordered", 11), ("corrupted", 5), ("foreign", 0)]
    {
        assert_eq!(v[class], count, "{class}: {}", run.text());
    }
    assert_eq!(run.code(), 98);
    let bad = std::fs::read_to_string(run.path("verify_bad.csv")).unwrap();
    assert_eq!(bad.lines().count(), 1 + 13 + 7 + 5 + 11);
    let examples = json["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 10 + 7 + 5 + 10);
    for example in examples {
        let at = (example["topic"].as_str().unwrap(), example["partition"].as_i64().unwrap());
        let offset = example["offset"].as_i64().unwrap_or_else(|| panic!("{example}: {}", run.text()));
        let message = message_at(at.0, at.1 as i32, offset);
        let seq = message["path"].as_str().unwrap().rsplit('/').next().unwrap();
        assert_eq!((&message["source"], seq), (&example["stream"], example["seq"].to_string().as_str()));
    }
}

/// What lies at an offset, read by a consumer that has nothing to do with the tester's.
fn message_at(topic: &str, partition: i32, offset: i64) -> Value {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", server("KAFKA_BROKERS"))
        .set("group.id", "loadtester-tests")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(Duration::from_secs(20)).expect("Kafka has the message").unwrap();
    assert_eq!(message.offset(), offset);
    serde_json::from_slice(message.payload().unwrap()).unwrap()
}

#[test]
fn a_stalled_consumer_shows_as_a_ramp() {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let (database, prefix) = (database("lt_stall"), "lt-stall-");
    create_topics(&database, prefix);
    let consumer = Consumer::start(&database, prefix, &[]);
    let started = Run::start(&database, prefix, "--rate 1000 --duration 9s --warmup 1s --quiet");
    wait_until_sending(&started.1, 2);
    consumer.signal(SIGSTOP);
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let stall = stopped.elapsed().as_secs_f64();
    consumer.signal(SIGCONT);
    let run = Run::wait(started);
    let json = run.json();
    let result =
        |name: &str| json["results"][name].as_f64().unwrap_or_else(|| panic!("{name}: {}", run.text()));
    assert_eq!((result("lost"), result("duplicated")), (0.0, 0.0));
    // The lower bounds are exact: no busy machine makes a stall shorter. It may make it longer by what waits for a core.
    const BUSY: f64 = 2.0;
    let (max, p90, backlog) =
        (result("visible_max") / 1e6, result("visible_p90") / 1e6, result("backlog_max") / 1000.0);
    assert!((stall - 0.1..stall + BUSY).contains(&max), "{max} of {stall} s");
    assert!((stall - 0.3..stall + BUSY).contains(&backlog), "{backlog} of {stall} s");
    // Of 9,000 messages 3,000 were due during the stall and waited evenly between nothing and three seconds, so the
    // slowest tenth of all waited for seven tenths of it or longer. A tester that omits them would show milliseconds.
    assert!((0.6 * stall..0.7 * stall + BUSY).contains(&p90), "{p90} of {stall} s");
}

#[test]
fn an_interrupted_run_still_writes_its_report() {
    let (database, prefix) = (database("lt_interrupt"), "lt-interrupt-");
    create_topics(&database, prefix);
    let _consumer = Consumer::start(&database, prefix, &[]);
    let started = Run::start(&database, prefix, "--rate 500 --duration 60s --warmup 1s");
    wait_until_sending(&started.1, 3);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(started.0.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let run = Run::wait(started);
    assert_eq!(run.code(), 130, "{}", run.text());
    assert_eq!(run.json()["verification"]["lost"], 0);
    assert!(run.path("report.html").exists());
}

#[test]
fn a_full_disk_costs_files_not_the_verdict() {
    let (database, prefix) = (database("lt_full"), "lt-full-");
    create_topics(&database, prefix);
    let _consumer = Consumer::start(&database, prefix, &["--lose", "3"]);
    let directory = tempfile::tempdir().unwrap();
    // No file may become larger than 8 kB; without the signal that goes with it, that is an error like a full disk.
    let child = Command::new("bash")
        .args(["-c", "ulimit -f 8; trap '' XFSZ; exec \"$@\"", "limited", env!("CARGO_BIN_EXE_loadtester")])
        .args([
            "--database",
            &*database,
            "--topic-prefix",
            prefix,
            "--out",
            directory.path().to_str().unwrap(),
        ])
        .args("--rate 500 --duration 14s --warmup 1s --drain-timeout 2s --quiet".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let run = Run::wait((child, directory));
    assert_eq!(run.code(), 1, "{}", run.text());
    for words in ["the run goes on without files", "free some space", "3 lost", "there is no report"] {
        assert!(run.text().contains(words), "{words}: {}", run.text());
    }
    assert!(!run.path("run.json").exists(), "half a file is worse than none");
    let kept = std::fs::read_to_string(run.path("intervals.csv")).unwrap();
    assert!(kept.lines().count() > 3, "what was measured before is kept");
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    let database = database("lt_missing");
    let refused = |arguments: &str, words: &[&str]| {
        let run =
            Run::wait(Run::start(&database, "lt-missing-", &format!("{arguments} --duration 1s --quiet")));
        assert_eq!(run.code(), 1, "{}", run.text());
        for word in words {
            assert!(run.text().contains(word), "{arguments}: {}", run.text());
        }
    };
    refused("", &["no topic \"lt-missing-metric\"", "--create-topics"]);
    refused("--brokers 127.0.0.1:1", &["no Kafka broker answered at \"127.0.0.1:1\"", "check the address"]);
    refused(
        "--database postgres://nobody:secret@127.0.0.1:1/none",
        &["connect to PostgreSQL at postgres://nobody@127.0.0.1:1/none"],
    );
    refused("--redis redis://127.0.0.1:1/0", &["connect to Redis at redis://127.0.0.1:1/0"]);
    Client::connect(&database, NoTls).unwrap().batch_execute("DROP TABLE metric").unwrap();
    refused("", &["no table \"metric\"", "CREATE TABLE metric"]);
}
