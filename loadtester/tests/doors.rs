//! The load tester against a front door of HTTP that does wrong on request: every counter must read exactly what was done, with
//! scenarios that no line of Rust knows. Each test has a database of its own.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]
#![allow(clippy::disallowed_methods, reason = "a test's threads need no core plan")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use postgres::{Client, NoTls};
use serde_json::Value;

/// Who measures time has the machine.
static TURN: Mutex<()> = Mutex::new(());

struct Database {
    url: String,
    _turn: MutexGuard<'static, ()>,
}

/// A database with what a consumer needs.
fn database(name: &str, sql: &str) -> Database {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let url = std::env::var("DATABASE_URL")
        .expect("DATABASE_URL is not set: run through `make test`, which starts the servers");
    let mut admin = Client::connect(&url, NoTls).expect("connect to DATABASE_URL");
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
    let (login, _) = url.rsplit_once('/').expect("the URL names a database");
    let own = format!("{login}/{name}");
    Client::connect(&own, NoTls).unwrap().batch_execute(sql).unwrap();
    Database { url: own, _turn: turn }
}

/// The door at work.
struct Door {
    child: Child,
    port: u16,
}

impl Door {
    fn open(database: Option<&Database>, arguments: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtester-fake-door"));
        if let Some(database) = database {
            command.args(["--database", &database.url]);
        }
        let mut child = command.args(arguments.split_whitespace()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port =
            line.trim().strip_prefix("ready ").expect("the door says where it listens").parse().unwrap();
        Self { child, port }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Run {
    output: Output,
    directory: tempfile::TempDir,
}

impl Run {
    /// `scenario` is one that ships, or text; its port becomes the door's.
    fn start_in(
        directory: &Path,
        database: Option<&Database>,
        door: &Door,
        scenario: &str,
        arguments: &str,
    ) -> Child {
        let file = directory.join("scenario.toml");
        std::fs::write(&file, scenario.replace("127.0.0.1:3000", &format!("127.0.0.1:{}", door.port)))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtester"));
        if let Some(database) = database {
            command.args(["--database", &database.url]);
        }
        command
            .args(["--scenario", file.to_str().unwrap(), "--out", directory.to_str().unwrap(), "--quiet"])
            .args(arguments.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn of(database: Option<&Database>, door: &Door, scenario: &str, arguments: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Self::start_in(directory.path(), database, door, scenario, arguments);
        Self { output: child.wait_with_output().unwrap(), directory }
    }

    fn code(&self) -> i32 {
        self.output.status.code().expect("the tester ends by itself")
    }

    fn text(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        text(&self.output.stdout) + &text(&self.output.stderr)
    }

    fn json(&self) -> Value {
        let path = results(self.directory.path()).join("run.json");
        let text = std::fs::read_to_string(path).unwrap_or_else(|_| panic!("no run.json:\n{}", self.text()));
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    fn expect(&self, expected: &[(&str, f64)]) {
        let json = self.json();
        for (name, value) in expected {
            assert_eq!(json["results"][*name].as_f64(), Some(*value), "{name}: {}", self.text());
        }
    }

    fn result(&self, name: &str) -> f64 {
        self.json()["results"][name].as_f64().unwrap_or_else(|| panic!("{name}: {}", self.text()))
    }

    /// A busy machine may make a run invalid; it may not make it wrong.
    #[track_caller]
    fn expect_passed(&self) {
        assert!([0, 97].contains(&self.code()), "{}", self.text());
    }
}

fn results(directory: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.is_dir()).expect("a run leaves a directory")
}

const MEASUREMENTS: &str = include_str!("../scenarios/measurements.toml");
const EVENTS: &str = include_str!("../scenarios/events.toml");
const MACHINES: &str = include_str!("../scenarios/machines.toml");

const SAMPLE: &str =
    "CREATE TABLE sample (time BIGINT NOT NULL, tag TEXT NOT NULL, values DOUBLE PRECISION[] NOT NULL)";

/// Without the reader, where it would only disturb.
fn samples() -> &'static str {
    MEASUREMENTS.split_once("# Ten clients").unwrap().0
}

#[test]
fn measurements_are_sent_judged_and_read() {
    let database = database("door_measurements", SAMPLE);
    let door = Door::open(Some(&database), "--table sample --remember");
    let run =
        Run::of(Some(&database), &door, MEASUREMENTS, "--rate 500 --duration 5s --warmup 1s --connections 8");
    run.expect_passed();
    run.expect(&[("sent", 3000.0), ("acked", 3000.0), ("stored", 3000.0)]);
    run.expect(&[
        ("lost", 0.0),
        ("duplicated", 0.0),
        ("corrupted", 0.0),
        ("wrong", 0.0),
        ("unanswered", 0.0),
    ]);
    assert!(run.result("answer_count") > 30.0 && run.result("behind_count") > 10.0, "{}", run.text());
    assert!(run.result("visible_count") > 2000.0);
    // The door remembers before it stores, so its readers never lack what was acknowledged.
    assert_eq!(run.result("behind_max"), run.result("behind_min"), "{}", run.text());
}

#[test]
fn harm_on_the_way_is_counted_exactly() {
    let database = database("door_harm", SAMPLE);
    let door = Door::open(
        Some(&database),
        "--table sample --swallow 5 --forget 7 --double 4 --refuse 6 --hang-up 3 --slow 8 --every 61",
    );
    let flags =
        "--rate 1000 --duration 5s --warmup 0s --drain-timeout 3s --connections 32 --answer-within 4s";
    let run = Run::of(Some(&database), &door, samples(), flags);
    run.expect(&[
        ("sent", 5000.0),
        ("lost", 7.0),
        ("duplicated", 4.0),
        ("corrupted", 0.0),
        ("failed", 6.0),
        ("refused", 6.0),
        ("indeterminate", 8.0),
        ("stored_indeterminate", 8.0),
        ("acked", 5000.0 - 6.0 - 8.0),
        ("stored", 5000.0 - 6.0 - 7.0),
    ]);
    assert_eq!(run.code(), 98, "{}", run.text());
    let answers = &run.json()["answers"];
    for (name, count) in [("503", 6), ("no_answer", 5), ("connection_lost", 3), ("200", 5000 - 14)] {
        assert_eq!(answers[name], count, "{name}: {}", run.text());
    }
    let json = run.json();
    let of = |name: &str| {
        let latencies = json["latencies"].as_array().unwrap();
        let found = latencies.iter().find(|latency| latency["name"] == name).unwrap();
        let bytes = openssl::base64::decode_block(found["histogram"].as_str().unwrap()).unwrap();
        let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        histogram
    };
    assert!(of("ack").count_between(300_000, 10_000_000) >= 8, "the slow answers are counted as slow");
    assert_eq!(of("refused").len(), 6);
}

#[test]
fn what_was_refused_is_sent_again_and_stored_once() {
    let database = database("door_retries", SAMPLE);
    let door = Door::open(Some(&database), "--table sample --refuse 20 --hang-up 3 --every 37");
    let flags = "--rate 500 --duration 4s --warmup 0s --connections 8 --retries 5";
    let run = Run::of(Some(&database), &door, samples(), flags);
    run.expect(&[
        ("retried", 20.0),
        ("failed", 0.0),
        ("indeterminate", 3.0),
        ("lost", 0.0),
        ("duplicated", 0.0),
    ]);
    let door = Door::open(Some(&database), "--table sample --hang-up 3 --every 37");
    let run = Run::of(Some(&database), &door, samples(), &format!("{flags} --retry-unknown"));
    // The same message once more: this consumer does not recognize it.
    run.expect(&[("retried", 3.0), ("indeterminate", 0.0), ("lost", 0.0), ("duplicated", 3.0)]);
}

#[test]
fn batches_carry_all_messages() {
    let database = database("door_batches", SAMPLE);
    let door = Door::open(Some(&database), "--table sample");
    for format in ["array", "lines"] {
        let flags = format!(
            "--rate 4000 --duration 3s --warmup 0s --connections 4 --batch 100 --batch-format {format} --linger-ms 20"
        );
        let run = Run::of(Some(&database), &door, samples(), &flags);
        run.expect_passed();
        run.expect(&[("sent", 12_000.0), ("stored", 12_000.0), ("lost", 0.0), ("duplicated", 0.0)]);
        let requests = run.json()["answers"]["200"].as_u64().unwrap();
        assert!((120..1500).contains(&requests), "{format}: {requests} requests");
    }
}

#[test]
fn wrong_answers_of_a_reader_are_counted_exactly() {
    let database = database("door_readers", SAMPLE);
    let door = Door::open(Some(&database), "--table sample --remember --wrong 5 --fail 3 --behind 500");
    // Often enough that every tag has messages at any time; each answer is half a second behind.
    let scenario = MEASUREMENTS
        .replace("keys = 10000, spread = \"geometric(1%)\"", "keys = 4")
        .replace("keys = 100 }", "keys = 4 }")
        .replace("rate = 10", "rate = 30");
    let flags = "--rate 400 --duration 5s --warmup 2s --connections 8 --refused-max 100%";
    let run = Run::of(Some(&database), &door, &scenario, flags);
    run.expect(&[("unanswered", 3.0), ("lost", 0.0)]);
    // Besides the five, what was asked before there was anything half a second old.
    let wrong = run.result("wrong");
    let json = run.json();
    let early = json["readers"][0]["examples"].as_array().unwrap();
    assert!((5.0..=25.0).contains(&wrong), "{wrong} {early:?}");
    assert!((430e3..700e3).contains(&run.result("behind_p50")), "{}", run.text());
    assert_eq!(run.code(), 98);
}

#[test]
fn fast_refusals_make_no_success() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let door = Door::open(None, "--refuse-percent 73 --delay 20");
    let flags = format!("--to {} --rate 500 --duration 4s --warmup 0s --connections 32", door.url("/save"));
    let scenario = "[[model]]\nname = 'm'\nmessage = '{\"n\":${seq}}'";
    let run = Run::of(None, &door, scenario, &flags);
    assert!([97, 99].contains(&run.code()), "{}", run.text());
    run.expect(&[("sent", 2000.0), ("refused", 1460.0), ("acked", 540.0)]);
    // Those that were taken took 20 ms; the others are no part of that.
    assert!(run.result("ack_min") > 19e3 && run.result("ack_count") == 540.0, "{}", run.text());
    assert!(run.result("refused_p50") < run.result("ack_p50"), "{}", run.text());
    assert!(run.text().contains("refused_ratio<=1% (--refused-max)"), "{}", run.text());
    assert!(run.text().find("goodput").unwrap() < run.text().find("rate ").unwrap(), "{}", run.text());
}

#[test]
fn latency_counts_from_the_due_time() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let door = Door::open(None, "--delay 50");
    let scenario = "[[model]]\nname = 'm'\nmessage = '{\"n\":${seq}}'";
    // Two connections answer 40 requests a second, and 60 are due: the last waits for a third of the run.
    let flags =
        format!("--to {} --rate 60 --duration 3s --warmup 0s --threads 1 --connections 2", door.url("/"));
    let run = Run::of(None, &door, scenario, &flags);
    assert!(run.result("ack_min") > 49e3);
    assert!((1.2e6..2.5e6).contains(&run.result("ack_max")), "{}", run.text());
    let flags = format!("--to {} --rate 60 --duration 3s --warmup 0s --connections 16", door.url("/"));
    let run = Run::of(None, &door, scenario, &flags);
    assert!((49e3..60e3).contains(&run.result("ack_p50")), "{}", run.text());
}

/// A server's end of TLS before a door; it counts the requests that carry the bearer, and passes everything on.
fn guard(door: &Door, bearer: &'static str) -> (u16, Arc<AtomicUsize>) {
    let tls = PathBuf::from(std::env::var("STACK_DIR").expect("run through `make test`")).join("tls");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate_chain_file(tls.join("server.crt")).unwrap();
    acceptor.set_private_key_file(tls.join("server.key"), SslFiletype::PEM).unwrap();
    let (acceptor, upstream) = (acceptor.build(), door.port);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, seen) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (acceptor, counted) = (acceptor.clone(), counted.clone());
            std::thread::spawn(move || pass(&acceptor, socket, upstream, bearer, &counted));
        }
    });
    (port, seen)
}

/// One connection, a request and its answer by turns, until one of the ends closes.
fn pass(
    acceptor: &SslAcceptor,
    socket: TcpStream,
    upstream: u16,
    bearer: &str,
    seen: &AtomicUsize,
) -> Option<()> {
    let mut client = acceptor.accept(socket).ok()?;
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = client.read(&mut buffer).ok().filter(|n| *n > 0)?;
        let text = String::from_utf8_lossy(&buffer[..n]).to_ascii_lowercase();
        seen.fetch_add(text.matches(&format!("authorization: bearer {bearer}\r\n")).count(), SeqCst);
        server.write_all(&buffer[..n]).ok()?;
        let n = server.read(&mut buffer).ok().filter(|n| *n > 0)?;
        client.write_all(&buffer[..n]).ok()?;
    }
}

#[test]
fn requests_go_over_tls_and_carry_their_bearer() {
    let database = database("door_tls", SAMPLE);
    let door = Door::open(Some(&database), "--table sample");
    let (port, seen) = guard(&door, "s3cret");
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let ca = std::env::var("KAFKA_SSL_CA").expect("run through `make test`");
    let flags = format!(
        "--to https://127.0.0.1:{port}/save --rate 300 --duration 3s --warmup 0s --connections 4 --bearer-file {}",
        token.display()
    );
    let run = Run::of(Some(&database), &door, samples(), &format!("{flags} --http-ca {ca}"));
    run.expect_passed();
    run.expect(&[("sent", 900.0), ("acked", 900.0), ("stored", 900.0), ("lost", 0.0)]);
    assert_eq!(seen.load(SeqCst), 900);
    assert!(!run.text().contains("s3cret"), "{}", run.text());
    // Nobody whom the system or we trust has signed it: nothing is sent.
    let run = Run::of(Some(&database), &door, samples(), &flags);
    run.expect(&[("acked", 0.0), ("failed", 900.0), ("stored", 0.0)]);
    assert_eq!(seen.load(SeqCst), 900);
    assert!(run.text().contains("the server's certificate is refused"), "{}", run.text());
}

#[test]
fn connections_that_cannot_be_opened_are_refused_before_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("scenario.toml");
    std::fs::write(&scenario, "[[model]]\nname = 'm'\nmessage = '{\"n\":${seq}}'").unwrap();
    let output = Command::new("bash")
        .args(["-c", "ulimit -n 100; exec \"$@\"", "limited", env!("CARGO_BIN_EXE_loadtester")])
        .args(["--scenario", scenario.to_str().unwrap(), "--out", directory.path().to_str().unwrap()])
        .args("--to http://127.0.0.1:1/ --rate 500 --duration 3s --connections 200 --quiet".split(' '))
        .output()
        .unwrap();
    let run = Run { output, directory };
    assert_eq!(run.code(), 1, "{}", run.text());
    assert!(run.text().contains("file descriptors, and this process may open 100"), "{}", run.text());
}

/// What a consumer would do, done by the database itself.
const SUMS: &str = "
    CREATE TABLE per_user (username TEXT, metric TEXT, events BIGINT, total NUMERIC, lowest BIGINT, highest BIGINT,
        PRIMARY KEY (username, metric));
    CREATE TABLE event (username TEXT, count BIGINT, metric TEXT, time TIMESTAMPTZ);
    CREATE FUNCTION add() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO per_user AS p VALUES (NEW.username, NEW.metric, 1, NEW.count, NEW.count, NEW.count)
        ON CONFLICT (username, metric) DO UPDATE SET events = p.events + 1, total = p.total + NEW.count,
            lowest = least(p.lowest, NEW.count), highest = greatest(p.highest, NEW.count);
        RETURN NULL;
    END $$;
    CREATE TRIGGER add BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION add();";

#[test]
fn sums_are_held_against_the_truth() {
    let database = database("door_events", SUMS);
    let door = Door::open(Some(&database), "--table event");
    let flags = format!("--to {} --rate 500 --duration 3s --warmup 0s --connections 8", door.url("/event"));
    let run = Run::of(Some(&database), &door, EVENTS, &flags);
    run.expect_passed();
    run.expect(&[("aggregate_missing", 0.0), ("aggregate_surplus", 0.0), ("aggregate_wrong", 0.0)]);
    assert!(run.json()["aggregates"][0]["keys"].as_u64().unwrap() > 50);
    drop(door);
    // Again, on top of what is there, with harm: a message that is missing and one too many of the same key would make up for
    // each other.
    for (harm, missing, surplus) in [("--forget 5", 5.0, 0.0), ("--double 3", 0.0, 3.0)] {
        let door = Door::open(Some(&database), &format!("--table event {harm} --every 43"));
        let flags = format!("{flags} --to {} --drain-timeout 1s", door.url("/event"));
        let run = Run::of(Some(&database), &door, EVENTS, &flags);
        let expected =
            [("aggregate_missing", missing), ("aggregate_surplus", surplus), ("aggregate_wrong", 0.0)];
        run.expect(&expected);
        assert_eq!(run.code(), 98, "{}", run.text());
    }
}

/// Six columns of six types; grams become kilograms on the way, and every 500th piece another weight.
const PIECES: &str = "
    CREATE TABLE piece (site TEXT NOT NULL, line SMALLINT NOT NULL, serial BIGINT NOT NULL, moment TIMESTAMPTZ NOT NULL,
        weight_kg NUMERIC(12, 6) NOT NULL, passed BOOLEAN NOT NULL);
    CREATE TABLE told (site TEXT, line SMALLINT, serial BIGINT, moment TIMESTAMPTZ, weight_g NUMERIC, passed BOOLEAN);
    CREATE SEQUENCE turn;
    CREATE FUNCTION weigh() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO piece VALUES (NEW.site, NEW.line, NEW.serial, NEW.moment,
            NEW.weight_g / 1000 + CASE WHEN nextval('turn') % 500 = 0 THEN 0.000001 ELSE 0 END, NEW.passed);
        RETURN NULL;
    END $$;
    CREATE TRIGGER weigh BEFORE INSERT ON told FOR EACH ROW EXECUTE FUNCTION weigh();";

#[test]
fn a_table_of_somebody_else_is_judged_by_its_scenario() {
    let database = database("door_machines", PIECES);
    let door = Door::open(Some(&database), "--table told --forget 2");
    let flags = format!("--to {} --rate 500 --duration 4s --warmup 1s --drain-timeout 2s", door.url("/"));
    let run = Run::of(Some(&database), &door, MACHINES, &flags);
    // 2,500 sent, two of them forgotten: of 2,498 rows four were altered.
    run.expect(&[
        ("sent", 2500.0),
        ("stored", 2498.0),
        ("lost", 2.0),
        ("corrupted", 4.0),
        ("duplicated", 0.0),
    ]);
    let json = run.json();
    let corrupted = json["examples"].as_array().unwrap().iter().find(|e| e["class"] == "corrupted").unwrap();
    assert_eq!(corrupted["detail"], "column weight_kg");
    assert_eq!(run.code(), 98);
}

#[test]
fn two_parts_make_one_run() {
    let database = database("door_parts", SAMPLE);
    let door = Door::open(Some(&database), "--table sample --delay 5");
    // Long enough for both to be set up on a busy machine.
    let start = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(10);
    let flags = "--rate 600 --duration 4s --warmup 1s --threads 1 --connections 16";
    let of_parts = format!("{flags} --run-id 0000abcd --start-at {start}");
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let children: Vec<Child> = directories
        .iter()
        .enumerate()
        .map(|(at, directory)| {
            let flags = format!("{of_parts} --part {}/2", at + 1);
            Run::start_in(directory.path(), Some(&database), &door, samples(), &flags)
        })
        .collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let mut runs = Vec::new();
    for (directory, output) in directories.into_iter().zip(outputs) {
        let run = Run { output, directory };
        run.expect_passed();
        run.expect(&[("sent", 1500.0), ("stored", 1500.0), ("lost", 0.0), ("foreign", 0.0)]);
        runs.push(run);
    }
    let merged = tempfile::tempdir().unwrap();
    let parts: Vec<PathBuf> = runs.iter().map(|run| results(run.directory.path())).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_loadtester"))
        .arg("merge")
        .args(&parts)
        .args(["--out", merged.path().to_str().unwrap()])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!([Some(0), Some(97)].contains(&output.status.code()), "{text}");
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(merged.path().join("run.json")).unwrap()).unwrap();
    let counts = ["sent", "acked", "stored"].map(|name| json["verification"][name].as_u64().unwrap());
    assert_eq!(counts, [3000, 3000, 3000], "{text}");
    let sum: u64 = runs.iter().map(|run| run.result("visible_count") as u64).sum();
    assert_eq!(json["results"]["visible_count"].as_f64(), Some(sum as f64));
    assert!(merged.path().join("report.html").exists() && merged.path().join("intervals.csv").exists());

    // The whole lies between its parts, to the histogram's three digits.
    for name in ["ack_p50", "ack_p99", "visible_p50"] {
        let whole = json["results"][name].as_f64().unwrap();
        let parts: Vec<f64> = runs.iter().map(|run| run.result(name)).collect();
        let (least, most) = (parts[0].min(parts[1]), parts[0].max(parts[1]));
        assert!((0.998 * least..=1.002 * most).contains(&whole), "{name}: {whole} of {parts:?}");
    }

    // One run of as many threads sends as many messages.
    let one = flags.replace("--threads 1", "--threads 2");
    let one = Run::of(Some(&database), &door, samples(), &one);
    one.expect(&[("sent", 3000.0), ("stored", 3000.0)]);
}

#[test]
fn scenarios_are_checked_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = directory.path().join("scenario.toml");
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_loadtester"))
            .args(["scenario", "check", file.to_str().unwrap()])
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    for scenario in [MEASUREMENTS, EVENTS, MACHINES] {
        let (code, text) = check(scenario);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("nothing is wrong"), "{text}");
    }
    assert_eq!(check(MEASUREMENTS).1.matches("\"tag\":").count(), 10);
    let (code, text) = check("[[model]]\nname = 'm'\nmessage = '{\"a\":\"${seq}\",}'");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no JSON") && text.contains("where its messages must arrive"), "{text}");
    let (code, text) = check("[[model]]\nname = 'm'\nmessage = '${x}'");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("there is no draw \"x\""), "{text}");
}

#[test]
fn addresses_cost_no_memory() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let door = Door::open(None, "");
    let scenario = "[draw]\naccount = {hex = 16}\n[[model]]\nname = 'm'\nmessage = ''\n[model.http]\n\
                    url = 'http://127.0.0.1:3000/${account}?data=${seq}'\nmethod = 'PUT'";
    let short = Run::of(None, &door, scenario, "--rate 5000 --duration 1s --warmup 0s --retries 1");
    let long = Run::of(None, &door, scenario, "--rate 5000 --duration 12s --warmup 0s --retries 1");
    assert!(long.result("acked") > 50_000.0, "{}", long.text());
    let grown = long.result("generator_rss_bytes") - short.result("generator_rss_bytes");
    assert!(grown < 20e6, "{grown} bytes for 55,000 more addresses");
}
