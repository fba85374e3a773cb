//! How long an answer takes at a steady rate, beside how long Kafka alone takes for the same records in the same minute. Both in
//! open loop: a request counts from the moment when it was due.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

/// Requests a second.
pub(crate) const RATE: u32 = 1000;

/// As many as a request may wait in turn for.
const CONNECTIONS: u32 = 32;

/// Milliseconds at the 99th percentile.
pub(crate) fn of_door(port: u16, record: &str, lasting: Duration) -> Result<f64> {
    let began = Instant::now();
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let all = &all;
                scope.spawn(move || -> Result<()> {
                    let found = one_connection(port, record, began, number, lasting)?;
                    all.lock().expect("nobody panics with it").extend(found);
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    p99(all.into_inner().expect("nobody panics with it"))
}

fn one_connection(
    port: u16,
    record: &str,
    began: Instant,
    number: u32,
    lasting: Duration,
) -> Result<Vec<Duration>> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).context("connect to the door")?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request =
        format!("POST /save HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{record}", record.len());
    let mut found = Vec::new();
    let mut buffer = [0; 4096];
    for turn in 0.. {
        let due = began + Duration::from_secs(1) * (turn * CONNECTIONS + number) / RATE;
        if due > began + lasting {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        socket.write_all(request.as_bytes())?;
        let mut answer = 0;
        // An answer is `{"delivered":1}`.
        while !buffer[..answer].ends_with(b"}") {
            let read = socket.read(&mut buffer[answer..])?;
            ensure!(read > 0, "the door closed a connection");
            answer += read;
        }
        ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..answer]));
        found.push(due.elapsed());
    }
    Ok(found)
}

/// Hears when a record is acknowledged.
struct Acknowledged(Mutex<Sender<Duration>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, due: Box<Instant>) {
        if result.is_ok() {
            // The receiver outlives the producer.
            self.0.lock().expect("nobody panics with it").send(due.elapsed()).ok();
        }
    }
}

/// The same of a client with the door's settings and nothing before it: linger and the brokers' round trip.
pub(crate) fn of_kafka(brokers: &str, topic: &str, record: &str, lasting: Duration) -> Result<f64> {
    let (sender, acknowledged) = channel();
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("enable.idempotence", "true"),
        ("linger.ms", "2"),
        ("compression.codec", "lz4"),
    ] {
        config.set(name, value);
    }
    let producer: ThreadedProducer<Acknowledged> =
        config.create_with_context(Acknowledged(Mutex::new(sender))).context("create a Kafka client")?;
    // Until it has found the leaders, records wait for that.
    let warm = BaseRecord::<(), str, Box<Instant>>::with_opaque_to(topic, Box::new(Instant::now()));
    producer.send(warm.payload(record)).map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(30)).context("reach Kafka")?;
    let began = Instant::now();
    for number in 0.. {
        let due = began + Duration::from_secs(1) * number / RATE;
        if due > began + lasting {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let record =
            BaseRecord::<(), str, Box<Instant>>::with_opaque_to(topic, Box::new(due)).payload(record);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(30)).context("reach Kafka")?;
    drop(producer);
    p99(acknowledged.into_iter().skip(1).collect())
}

fn p99(mut all: Vec<Duration>) -> Result<f64> {
    ensure!(all.len() > 100, "only {} were acknowledged", all.len());
    all.sort();
    Ok(all[all.len() * 99 / 100].as_secs_f64() * 1e3)
}
