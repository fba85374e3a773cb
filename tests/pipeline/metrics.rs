//! What is told to monitoring, against what the tables hold.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::world::{Engine, World, record, wait_for};

/// A port that nobody listens on, and that nobody gets meanwhile: neither another test, nor the stack's servers (below 30000),
/// nor an outgoing connection (from 32768 on).
pub(crate) fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_add(ASKED.fetch_add(1, SeqCst));
        let port = 30_000 + (number % 2_768) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Status and body of a GET; `None` while nobody listens.
pub(crate) fn get(port: u16, path: &str, accept: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}

/// Every sample of a page by its name and labels.
pub(crate) fn scrape(port: u16) -> BTreeMap<String, f64> {
    let Some((200, body)) = get(port, "/metrics", "*/*") else { return BTreeMap::new() };
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
        })
        .collect()
}

/// All samples of a family that have the label.
pub(crate) fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    samples
        .iter()
        .filter(|(key, _)| key.starts_with(&format!("{name}{{")) && key.contains(label))
        .map(|(_, value)| value)
        .sum()
}

fn ready(engine: &Engine, port: u16) {
    wait_for(&format!("readiness: {}", engine.log()), 20, || {
        get(port, "/readyz", "*/*").is_some_and(|(status, _)| status == 200)
    });
}

#[test]
fn figures_agree_with_the_tables() {
    let world = World::new("metrics");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let port = free_port();
    let config = world.model("in", "t", "") + &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let engine = world.engine(&config, &[]);
    ready(&engine, port);
    world.produce("in", 0, (0..500).map(record));
    world.produce("in", 1, (0..300).map(record));
    world.produce("in", 1, ["{", "{\"n\":\"x\"}", "{}"].map(str::to_owned));
    world.wait_drained(&["in"], 30);

    // The last figure moves right after the commit that the ledger shows.
    let table = "table=\"public.t\"";
    wait_for("all rows in the figures", 5, || {
        sum(&scrape(port), "rowmill_records_total", "outcome=\"row\"") == 800.0
    });
    let samples = scrape(port);
    let ledger = world.count("SELECT sum(rows)::BIGINT FROM rowmill.ledger");
    assert_eq!(sum(&samples, "rowmill_records_total", "outcome=\"row\""), ledger as f64);
    assert_eq!(sum(&samples, "rowmill_records_total", "outcome=\"dead_letter\""), 3.0);
    assert_eq!(sum(&samples, "rowmill_dead_letters_total", table), 3.0);
    for reason in ["invalid_json", "wrong_type", "missing_field"] {
        let stored =
            world.count(&format!("SELECT count(*) FROM rowmill.dead_letter WHERE reason = '{reason}'"));
        let label = format!("reason=\"{reason}\"");
        assert_eq!(sum(&samples, "rowmill_dead_letters_total", &label), stored as f64, "{reason}");
    }
    assert_eq!(sum(&samples, "rowmill_batch_rows_sum", table), 800.0);
    assert_eq!(
        sum(&samples, "rowmill_batch_rows_count", table),
        sum(&samples, "rowmill_transactions_total", table)
    );
    assert_eq!(sum(&samples, "rowmill_polled_records_total", ""), 803.0);
    assert_eq!(sum(&samples, "rowmill_claimed_partitions", ""), 3.0);
    assert_eq!(sum(&samples, "rowmill_topic_partitions", ""), 3.0);
    assert!(sum(&samples, "rowmill_copied_bytes_total", table) > 800.0 * 20.0);
    assert!(sum(&samples, "rowmill_commit_seconds_count", table) >= 1.0);
    let next = sum(&samples, "rowmill_next_offset", "");
    assert_eq!(next, world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger") as f64);
    for name in ["decode-0", "poll-0", "write-t-0", "kafka-client"] {
        assert!(
            samples.contains_key(&format!("rowmill_thread_cpu_seconds_total{{thread=\"{name}\"}}")),
            "{name}"
        );
    }
    wait_for("no lag", 5, || sum(&scrape(port), "rowmill_lag_records", "") == 0.0);
    assert_eq!(sum(&scrape(port), "rowmill_lag_seconds", ""), 0.0);
    assert_eq!(get(port, "/healthz", "*/*").expect("it answers").0, 200);
    assert_eq!(get(port, "/other", "*/*").expect("it answers").0, 404);
    let (_, text) = get(port, "/metrics", "application/openmetrics-text").expect("it answers");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn lag_is_right_after_a_take_over_and_while_a_table_is_locked() {
    let world = World::new("metrics_lag");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let ports = [free_port(), free_port()];
    let config = |port: u16| {
        world.model("in", "t", "")
            + &format!(
                "[metrics]\nlisten = \"127.0.0.1:{port}\"\n[postgres]\nlock_timeout = \"1s\"\n[lease]\nduration = \"3s\"\n"
            )
    };
    let first = world.engine(&config(ports[0]), &[]);
    ready(&first, ports[0]);
    world.produce("in", 0, (0..100).map(record));
    world.produce("in", 1, (0..100).map(record));
    world.wait_drained(&["in"], 30);

    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE t IN SHARE MODE").expect("locked");
    world.produce("in", 0, (100..150).map(record));
    let produced = Instant::now();
    wait_for("lag of 50", 10, || sum(&scrape(ports[0]), "rowmill_lag_records", "") == 50.0);
    wait_for("a retry for the lock", 10, || {
        sum(&scrape(ports[0]), "rowmill_retries_total", "class=\"world\"") >= 1.0
    });

    first.kill();
    let second = world.engine(&config(ports[1]), &[]);
    ready(&second, ports[1]);
    wait_for("two partitions", 20, || sum(&scrape(ports[1]), "rowmill_claimed_partitions", "") == 2.0);
    wait_for("the same lag in another process", 10, || {
        sum(&scrape(ports[1]), "rowmill_lag_records", "") == 50.0
    });
    // The oldest record has waited since it was produced, whoever reads it.
    wait_for("its age", 10, || {
        let age = sum(&scrape(ports[1]), "rowmill_lag_seconds", "");
        (age - produced.elapsed().as_secs_f64()).abs() < 1.5
    });
    transaction.rollback().expect("unlocked");
    world.wait_drained(&["in"], 30);
    wait_for("no lag", 10, || sum(&scrape(ports[1]), "rowmill_lag_seconds", "") == 0.0);
    assert!(sum(&scrape(ports[1]), "rowmill_end_to_end_seconds_sum", "") > 1.0);
}

#[test]
fn readiness_follows_the_database() {
    let world = World::new("metrics_ready");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let port = free_port();
    let config = world.model("in", "t", "")
        + &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n[lease]\nduration = \"3s\"\n");
    let (base, _) = world.database_url.rsplit_once(':').expect("the URL has a port");
    let nowhere = format!("{base}:{}/x", free_port());
    let waiting = world.engine(&config, &[("DATABASE_URL", &nowhere)]);
    wait_for("an answer before the database", 10, || {
        get(port, "/readyz", "*/*").is_some_and(|(status, text)| status == 503 && text.contains("PostgreSQL"))
    });
    assert_eq!(get(port, "/healthz", "*/*").expect("it answers").0, 200);
    drop(waiting);
    let engine = world.engine(&config, &[]);
    ready(&engine, port);
    // A second process with the same address says so and does not start.
    let mut second = world.engine(&config, &[]);
    assert_eq!(second.wait(10).code(), Some(1));
    assert!(second.log().contains("set metrics.listen to a free address"), "{}", second.log());
}

/// Reads datagrams until `done`.
fn listen(
    mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
    done: impl Fn(&str) -> bool,
) -> String {
    let (mut all, mut buffer) = (String::new(), vec![0; 16_384]);
    wait_for("datagrams", 20, || {
        if let Ok(length) = receive(&mut buffer) {
            all.push_str(&String::from_utf8_lossy(&buffer[..length]));
            all.push('\n');
        }
        done(&all)
    });
    all
}

#[test]
fn the_same_figures_reach_a_statsd_server() {
    let world = World::new("metrics_statsd");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..100).map(record));
    let model = world.model("in", "t", "");
    let rows = |text: &str, needle: &str| -> f64 {
        let lines = text.lines().filter(|l| l.starts_with("rowmill.records_total") && l.contains(needle));
        lines.filter_map(|l| l.split(':').nth(1)?.split('|').next()?.parse::<f64>().ok()).sum()
    };

    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let address = udp.local_addr().expect("an address");
    let engine = world.engine(
        &format!(
            "{model}[metrics]\nlisten = \"off\"\nstatsd = \"udp://{address}\"\nstatsd_interval = \"1s\"\n"
        ),
        &[],
    );
    let text = listen(|b| udp.recv(b), |text| rows(text, ".row:") >= 100.0);
    assert_eq!(rows(&text, ".row:"), 100.0, "{text}");
    assert!(text.contains("rowmill.batch_rows.count.public_t:"), "{text}");
    engine.stop();

    let path = world.path("statsd.sock");
    let unix = UnixDatagram::bind(&path).expect("a socket");
    unix.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    world.produce("in", 0, (100..150).map(record));
    let _engine = world.engine(
        &format!(
            "{model}[metrics]\nlisten = \"off\"\nstatsd = \"unix://{}\"\nstatsd_tags = \"influx\"\nstatsd_interval = \"1s\"\n",
            path.display()
        ),
        &[],
    );
    // What another process stored before is not counted again.
    let text = listen(|b| unix.recv(b), |text| rows_influx(text) >= 50.0);
    assert_eq!(rows_influx(&text), 50.0, "{text}");
}

fn rows_influx(text: &str) -> f64 {
    let lines = text.lines().filter(|l| l.starts_with("rowmill.records_total,") && l.contains("outcome=row"));
    lines.filter_map(|l| l.rsplit_once(':')?.1.split('|').next()?.parse::<f64>().ok()).sum()
}
