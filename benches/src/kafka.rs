//! Kafka for the bench's programs: the settings that the pipes share, topics, and offsets.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const WAIT: Duration = Duration::from_secs(10);

/// A record of four megabytes has room, as it is; batches stay as large as the producer makes them.
const MESSAGE_BYTES_MAX: &str = "8388608";

/// The consumer as rowmill sets it, so that the naive pipe is not handicapped by librdkafka's defaults.
pub fn consumer(brokers: &str) -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "naive")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("socket.keepalive.enable", "true")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "8192")
        .create()
        .context("create a Kafka consumer")
}

pub fn assign_from_start(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<()> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list).with_context(|| format!("assign {topic:?}"))
}

/// How many partitions a topic has; 0 where there is none.
pub fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata =
        consumer.fetch_metadata(Some(topic), WAIT).with_context(|| format!("ask for topic {topic:?}"))?;
    Ok(metadata.topics().iter().find(|t| t.name() == topic).map_or(0, |t| t.partitions().len() as i32))
}

/// How many records a topic holds. A broker that has just started may not lead its partitions yet: that is waited for.
pub fn records(consumer: &BaseConsumer, topic: &str) -> Result<u64> {
    let give_up_at = Instant::now() + WAIT;
    let mut count = 0;
    for partition in 0..partitions(consumer, topic)? {
        let (low, high) = loop {
            match consumer.fetch_watermarks(topic, partition, WAIT) {
                Ok(ends) => break ends,
                Err(error) if Instant::now() > give_up_at => {
                    return Err(error).with_context(|| format!("ask how long {topic}/{partition} is"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        count += (high - low) as u64;
    }
    Ok(count)
}

/// Creates topics, replicated as the brokers do by default; one that exists is an error.
pub fn create_topics(client: &ClientConfig, topics: &[&str], partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client.create().context("create a Kafka admin client")?;
    let new: Vec<_> = topics
        .iter()
        .map(|name| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
            topic.set("max.message.bytes", MESSAGE_BYTES_MAX)
        })
        .collect();
    let results = block_on(admin.create_topics(&new, &AdminOptions::new().operation_timeout(Some(WAIT))))?;
    for result in results {
        if let Err((topic, code)) = result {
            bail!("create topic {topic:?}: {code}");
        }
    }
    Ok(())
}

/// Deletes a topic and waits until the broker has forgotten it; one that is not there is fine.
pub fn delete_topic(client: &ClientConfig, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client.create().context("create a Kafka admin client")?;
    for result in block_on(admin.delete_topics(&[topic], &AdminOptions::new().operation_timeout(Some(WAIT))))?
    {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => bail!("delete topic {topic:?}: {code}"),
        }
    }
    Ok(())
}

/// Creates a topic anew, empty.
pub fn replace_topic(client: &ClientConfig, topic: &str, partitions: i32) -> Result<()> {
    let consumer: BaseConsumer = client.create().context("create a Kafka consumer")?;
    delete_topic(client, topic)?;
    while self::partitions(&consumer, topic)? > 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    create_topics(client, &[topic], partitions)
}

/// Fills a topic as `fill` does, unless it is there with so many partitions and records. Returns whether it had to be filled.
pub fn ensure_filled(
    client: &ClientConfig,
    topic: &str,
    partitions: i32,
    count: u64,
    write: impl FnMut(u64, &mut Vec<u8>),
) -> Result<bool> {
    let consumer: BaseConsumer = client.create().context("create a Kafka consumer")?;
    if self::partitions(&consumer, topic)? == partitions && records(&consumer, topic)? == count {
        return Ok(false);
    }
    fill(client, topic, partitions, count, write)?;
    Ok(true)
}

/// Creates a topic anew and produces records 0 to `count`, as `write` makes their values, to the partitions in turn.
pub fn fill(
    client: &ClientConfig,
    topic: &str,
    partitions: i32,
    count: u64,
    mut write: impl FnMut(u64, &mut Vec<u8>),
) -> Result<()> {
    replace_topic(client, topic, partitions)?;
    let began = Instant::now();
    let producer: ThreadedProducer<DefaultProducerContext> = client
        .clone()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("queue.buffering.max.kbytes", "65536")
        .set("message.max.bytes", MESSAGE_BYTES_MAX)
        .create()
        .context("create a Kafka producer")?;
    let mut json = Vec::new();
    for number in 0..count {
        json.clear();
        write(number, &mut json);
        let partition = (number % partitions as u64) as i32;
        let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(&json);
        while let Err((error, back)) = producer.send(record) {
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
                _ => bail!("produce record {number} to {topic:?}: {error}"),
            }
            record = back;
        }
        if (number + 1) % 500_000 == 0 && number + 1 < count {
            println!("filling topic {topic}: {} of {count}", number + 1);
        }
    }
    producer.flush(Duration::from_secs(60)).context("flush the producer")?;
    let consumer: BaseConsumer = client.create().context("create a Kafka consumer")?;
    let found = records(&consumer, topic)?;
    ensure!(found == count, "produced {count} records, topic {topic:?} holds {found}");
    let (seconds, bytes) = (began.elapsed().as_secs_f64(), json.len());
    println!("filled topic {topic} in {seconds:.1} s; a message has about {bytes} bytes");
    Ok(())
}

/// The admin client answers with a future that its own thread completes: nothing has to be driven, only awaited.
fn block_on<F: Future>(future: F) -> F::Output {
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
