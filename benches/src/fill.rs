//! What must be there before a subject starts: topics full of `metric` records, and users in Redis.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::kafka;
use crate::metric::{self, Metric};

/// A topic as a bench wants it: record `n` lies in partition `n` modulo `partitions`.
pub struct Topic<'a> {
    pub name: &'a str,
    pub records: u64,
    pub partitions: i32,
    pub users: u64,
    /// The number of the one record that is not as it should be, and its message.
    pub poison: Option<(u64, Vec<u8>)>,
}

/// Fills a topic, unless an earlier bench left one with as many records in as many partitions.
pub fn topic(brokers: &str, topic: &Topic<'_>) -> Result<()> {
    let (name, wanted) = (topic.name, topic.records);
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    let consumer = kafka::consumer(brokers)?;
    if kafka::partitions(&consumer, name)? == topic.partitions && kafka::records(&consumer, name)? == wanted {
        println!("topic {name} holds {wanted} records already");
        return Ok(());
    }
    kafka::delete_topic(&client, name)?;
    while kafka::partitions(&consumer, name)? > 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    kafka::create_topics(&client, &[name], topic.partitions)?;

    let began = Instant::now();
    let bytes = produce(&client, topic)?;
    let found = kafka::records(&consumer, name)?;
    ensure!(found == wanted, "produced {wanted} records, topic {name} holds {found}");
    println!(
        "filled {name} in {:.1} s; a message has about {} bytes",
        began.elapsed().as_secs_f64(),
        bytes / wanted.max(1)
    );
    Ok(())
}

/// Returns the bytes of all messages.
fn produce(client: &ClientConfig, topic: &Topic<'_>) -> Result<u64> {
    let producer: ThreadedProducer<DefaultProducerContext> = client
        .clone()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("queue.buffering.max.kbytes", "65536")
        .create()
        .context("create a Kafka producer")?;
    let mut json = Vec::new();
    let mut bytes = 0;
    for number in 0..topic.records {
        json.clear();
        match &topic.poison {
            Some((poisoned, message)) if *poisoned == number => json.extend_from_slice(message),
            _ => Metric::nth(number, topic.users).write_json(&mut json),
        }
        bytes += json.len() as u64;
        let partition = (number % topic.partitions as u64) as i32;
        let mut record = BaseRecord::<(), [u8]>::to(topic.name).partition(partition).payload(&json);
        while let Err((error, back)) = producer.send(record) {
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
                _ => bail!("produce record {number} of topic {}: {error}", topic.name),
            }
            record = back;
        }
        if (number + 1) % 500_000 == 0 {
            println!("filling topic {}: {} of {}", topic.name, number + 1, topic.records);
        }
    }
    producer.flush(Duration::from_secs(60)).context("flush the producer")?;
    Ok(bytes)
}

/// The users whose tokens the records carry.
pub fn redis_users(url: &str, users: u64) -> Result<()> {
    let client = redis::Client::open(url).context("read REDIS_URL")?;
    let mut connection = client.get_connection().context("connect to Redis")?;
    let mut pipe = redis::pipe();
    for user in 0..users {
        pipe.set(format!("user:{}", metric::token(user)), metric::user_id(user)).ignore();
    }
    pipe.query::<()>(&mut connection).context("write users to Redis")
}
