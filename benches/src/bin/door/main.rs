//! The front door beside the bare floor: requests per CPU-second under wrk, in rounds that take turns; and records per
//! CPU-second in batches of a hundred lines; and how long an answer takes at a steady rate. `make door` runs it on servers of its
//! own.

mod latency;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rdkafka::ClientConfig;
use rowmill_bench::engine::Ending;
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::usage;
use rowmill_bench::visible::median;
use rowmill_bench::wrk::{self, Seen};
use rowmill_bench::{kafka, servers};

/// Times a front door against the floor under it.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Of load, in each round of each subject.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
    /// Further programs that listen: NAME=PORT=COMMAND.
    #[arg(long)]
    beside: Vec<String>,
}

fn main() -> ExitCode {
    exit_code("door", run(&Arguments::parse()))
}

const TOPIC: &str = "door";
const PARTITIONS: i32 = 6;

/// A record of 150 bytes.
const RECORD: &str = r#"{"time":1760000000000000000,"tag":"tag-0000001","values":[1.25,2.5,3.75,4.125,5.5,6.25,7.75,8.5,9.25,10.125],"source":"collector-01","seq":1}"#;

struct Subject {
    name: String,
    port: u16,
    command: Vec<String>,
    /// Records of one request.
    records: usize,
}

struct Measured {
    requests: u64,
    cpu_seconds: f64,
    p99_ms: f64,
    errors: u64,
}

fn run(arguments: &Arguments) -> Result<()> {
    let brokers =
        std::env::var("KAFKA_BROKERS").context("KAFKA_BROKERS is not set: run through make door")?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &brokers);
    kafka::replace_topic(&client, TOPIC, PARTITIONS)?;
    let out = result_directory(&arguments.results, "door")?;
    let program = |name: &str| arguments.programs.join(name).to_string_lossy().into_owned();
    let config = out.join("rowmill.toml");
    std::fs::write(
        &config,
        format!(
            "[metrics]\nlisten = \"off\"\n[collect]\nlisten = \"127.0.0.1:18403\"\nthreads = 1\n[[route]]\npath = \"/save\"\ntopic = \
             \"{TOPIC}\"\nkey = \"tag\"\n"
        ),
    )?;
    let floor = |name: &str, port: u16, when: &str| Subject {
        name: name.to_owned(),
        port,
        command: vec![program("http_floor"), port.to_string(), when.to_owned()],
        records: 1,
    };
    let door =
        vec![program("rowmill"), "collect".into(), "--config".into(), config.to_string_lossy().into_owned()];
    let mut subjects = vec![
        floor("floor, at once", 18401, "now"),
        floor("floor, later", 18402, "later"),
        Subject { name: "rowmill collect".into(), port: 18403, command: door.clone(), records: 1 },
        Subject { name: "rowmill collect, lines of 100".into(), port: 18403, command: door, records: 100 },
    ];
    for text in &arguments.beside {
        let mut parts = text.splitn(3, '=');
        let (Some(name), Some(port), Some(command)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("--beside {text:?}: write NAME=PORT=COMMAND");
        };
        subjects.push(Subject {
            name: name.to_owned(),
            port: port.parse()?,
            command: command.split_whitespace().map(str::to_owned).collect(),
            records: 1,
        });
    }
    let mut all: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
    let mut rounds = String::from("round,subject,requests,cpu_seconds,p99_ms,errors\n");
    for round in 1..=arguments.rounds {
        for (subject, found) in subjects.iter().zip(&mut all) {
            let measured =
                one(subject, arguments, &out).with_context(|| format!("round {round}, {}", subject.name))?;
            println!(
                "round {round}  {:<32} {:>8.1} k requests per CPU-s  {:>6} requests/s  p99 {:.2} ms  {} errors",
                subject.name,
                measured.requests as f64 / measured.cpu_seconds / 1e3,
                measured.requests / arguments.seconds,
                measured.p99_ms,
                measured.errors
            );
            writeln!(
                rounds,
                "{round},{:?},{},{:.3},{:.3},{}",
                subject.name, measured.requests, measured.cpu_seconds, measured.p99_ms, measured.errors
            )?;
            found.push(measured);
        }
    }
    std::fs::write(out.join("rounds.csv"), rounds)?;
    let waits = waits(arguments, &brokers, &subjects[DOOR], &out)?;
    std::fs::write(out.join("summary.md"), summary(arguments, &subjects, &all, &waits)?)?;
    println!("written to {}", out.display());
    Ok(())
}

/// Where the door itself stands among the subjects.
const DOOR: usize = 2;

/// For each round, the p99 of the door and of Kafka alone, in milliseconds.
fn waits(
    arguments: &Arguments,
    brokers: &str,
    door: &Subject,
    out: &std::path::Path,
) -> Result<Vec<(f64, f64)>> {
    let _running = start(door, out)?;
    let lasting = Duration::from_secs(arguments.seconds);
    // The first requests make the door's client find its brokers.
    latency::of_door(door.port, RECORD, Duration::from_secs(1))?;
    let mut waits = Vec::new();
    let mut rounds = String::from("round,door_p99_ms,kafka_p99_ms\n");
    for round in 1..=arguments.rounds {
        let both = (
            latency::of_door(door.port, RECORD, lasting)?,
            latency::of_kafka(brokers, TOPIC, RECORD, lasting)?,
        );
        println!(
            "round {round}  {}/s: p99 {:.2} ms at the door, {:.2} ms by Kafka alone",
            latency::RATE,
            both.0,
            both.1
        );
        writeln!(rounds, "{round},{:.3},{:.3}", both.0, both.1)?;
        waits.push(both);
    }
    std::fs::write(out.join("latency.csv"), rounds)?;
    Ok(waits)
}

fn start(subject: &Subject, out: &std::path::Path) -> Result<Ending> {
    let log = std::fs::File::create(out.join(format!("{}.log", subject.port)))?;
    let child = Command::new(&subject.command[0])
        .args(&subject.command[1..])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", subject.command[0]))?;
    let running = Ending(child);
    wait_for_port(subject.port, &running.0)?;
    Ok(running)
}

fn one(subject: &Subject, arguments: &Arguments, out: &std::path::Path) -> Result<Measured> {
    let ending = start(subject, out)?;
    let script = out.join(format!("post-{}.lua", subject.records));
    let body = format!("{RECORD}\n").repeat(subject.records);
    std::fs::write(
        &script,
        format!(
            "wrk.method = \"POST\"\nwrk.body = [==[{body}]==]\nwrk.headers[\"Content-Type\"] = \"application/json\"\n"
        ),
    )?;
    // The first second makes connections, and lets the client find its brokers.
    let url = format!("http://127.0.0.1:{}/save", subject.port);
    wrk::run(arguments.connections, 2, &script, &url)?;
    let pid = ending.0.id().to_string();
    let before = usage::of(&pid)?;
    let seen = wrk::run(arguments.connections, arguments.seconds, &script, &url)?;
    let after = usage::of(&pid)?;
    let Seen { requests, p99_ms, errors, .. } = seen;
    Ok(Measured { requests, cpu_seconds: after.cpu_seconds - before.cpu_seconds, p99_ms, errors })
}

fn wait_for_port(port: u16, child: &Child) -> Result<()> {
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "process {} does not listen on {port}",
            child.id()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn summary(
    arguments: &Arguments,
    subjects: &[Subject],
    all: &[Vec<Measured>],
    waits: &[(f64, f64)],
) -> Result<String> {
    let middle = |of: &dyn Fn(&Measured) -> f64, rounds: &[Measured]| {
        median(&rounds.iter().map(of).collect::<Vec<_>>())
    };
    let per_cpu = |m: &Measured| m.requests as f64 / m.cpu_seconds;
    let mut text = format!(
        "# The front door beside its floor, {} rounds of {} s\n\nPOST of {} bytes over {} connections by wrk with one thread; \
         acks=all on one broker. Requests per CPU-second of the server process, the Kafka client's threads included; medians of \
         the rounds, and the range.\n\n| subject | requests per CPU-s | lowest | highest | us a request | us a record | p99 ms | errors |\n\
         |---|---|---|---|---|---|---|---|\n",
        arguments.rounds,
        arguments.seconds,
        RECORD.len(),
        arguments.connections
    );
    for (subject, rounds) in subjects.iter().zip(all) {
        let values: Vec<f64> = rounds.iter().map(per_cpu).collect();
        let (low, high) = values.iter().fold((f64::MAX, 0.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
        let us = 1e6 / median(&values);
        writeln!(
            text,
            "| {} | {:.0} | {low:.0} | {high:.0} | {us:.1} | {:.2} | {:.2} | {} |",
            subject.name,
            median(&values),
            us / subject.records as f64,
            middle(&|m| m.p99_ms, rounds),
            rounds.iter().map(|m| m.errors).sum::<u64>()
        )?;
    }
    let ratio = |a: usize, b: usize| {
        let ratios: Vec<f64> = all[a].iter().zip(&all[b]).map(|(a, b)| per_cpu(a) / per_cpu(b)).collect();
        median(&ratios)
    };
    writeln!(text, "\n| ratio of the same round | value | must be | aim |\n|---|---|---|---|")?;
    writeln!(
        text,
        "| rowmill collect to the floor that answers later | {:.2} | 0.6 | 0.8 |",
        ratio(DOOR, 1)
    )?;
    for (number, subject) in subjects.iter().enumerate().skip(4) {
        writeln!(text, "| rowmill collect to {} | {:.2} | 3 | 6 |", subject.name, ratio(DOOR, number))?;
    }
    let p99 = |of: &dyn Fn(&(f64, f64)) -> f64| median(&waits.iter().map(of).collect::<Vec<_>>());
    writeln!(
        text,
        "\n| {} records a second, singly, in open loop | p99 ms, median of the rounds | must be | aim |\n|---|---|---|---|\n\
         | from when it was due to the 200 | {:.2} | | |\n\
         | by Kafka alone, linger included | {:.2} | | |\n\
         | the door's part, by rounds | {:.2} | 5 | 2 |",
        latency::RATE,
        p99(&|both| both.0),
        p99(&|both| both.1),
        p99(&|both| both.0 - both.1)
    )?;
    text.push_str(&servers::conditions_with(
        "make door --",
        "- wrk: one thread; one broker, six partitions, plaintext\n",
    )?);
    Ok(text)
}
