//! librdkafka, and nothing else of Kafka anywhere: configuration, topics, a producer that costs one call a message, and a
//! reader of what lies at known offsets.
//!
//! The calls for a message go to librdkafka directly. The crate's own `send` makes a C string of the topic each time and
//! does not tell "certainly not stored" from "perhaps stored", which the account needs.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rdkafka_sys as sys;

use crate::message::account::Outcome;

/// How to reach the brokers.
#[derive(Clone, Debug)]
pub struct Kafka {
    pub brokers: String,
    /// librdkafka's properties beyond ours, as the user gave them. Values may be secret and are never printed.
    pub properties: BTreeMap<String, String>,
}

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Messages in flight over all threads. At some 300 bytes each this is what bounds the memory while a broker stalls;
/// from there on the stall shows as schedule lag.
pub const IN_FLIGHT_MAX: usize = 60_000;

impl Kafka {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "loadtester");
        // librdkafka's own account of what it is doing is for its developers; errors reach us as events.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config.set("socket.keepalive.enable", "true");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// The partitions of each topic.
    pub fn partitions(&self, topics: &[&str]) -> Result<Vec<i32>> {
        let client: BaseProducer = self.config().create().context("set up the Kafka client")?;
        let metadata = client.client().fetch_metadata(None, ANSWER_WITHIN).map_err(|error| {
            let reason = client.client().fatal_error().map_or(error.to_string(), |(_, reason)| reason);
            anyhow::anyhow!(
                "no Kafka broker answered at \"{}\" within {} s ({reason}); check the address, that the broker runs, and \
                 whether that port expects TLS (--tls)",
                self.brokers,
                ANSWER_WITHIN.as_secs()
            )
        })?;
        let count = |topic: &&str| {
            let found =
                metadata.topics().iter().find(|t| t.name() == *topic).map_or(0, |t| t.partitions().len());
            if found == 0 {
                bail!(
                    "Kafka at \"{}\" has no topic \"{topic}\"; create it, or let --create-topics 4 do it",
                    self.brokers
                );
            }
            Ok(found as i32)
        };
        topics.iter().map(count).collect()
    }

    /// Creates the topics that are missing.
    pub fn create_topics(&self, topics: &[&str], partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().context("set up the Kafka client")?;
        let wanted: Vec<_> =
            topics.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1))).collect();
        let options =
            AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
        let answers = block_on(admin.create_topics(&wanted, &options))
            .with_context(|| format!("create topics at \"{}\"", self.brokers))?;
        for answer in answers {
            match answer {
                Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => bail!("Kafka refused to create the topic \"{topic}\": {code}"),
            }
        }
        Ok(())
    }
}

/// What became of an attempt to hand a message over.
#[derive(Debug)]
pub enum Handed {
    Over,
    /// The producer's queue is full; poll for reports and try again.
    Full,
    Refused(String),
}

/// A delivery report: the number given with the message, what became of it, and where it lies.
pub struct Report {
    pub number: usize,
    pub outcome: Outcome,
    pub offset: i64,
}

/// One thread's producer.
pub struct Producer {
    // Before the client: topics and queue belong to it and go first.
    topics: Vec<TopicHandle>,
    queue: QueueHandle,
    _client: BaseProducer,
}

struct TopicHandle(*mut sys::rd_kafka_topic_t);
struct QueueHandle(*mut sys::rd_kafka_queue_t);

// SAFETY: librdkafka's handles may be used from any thread; each of ours is used by one.
unsafe impl Send for TopicHandle {}
unsafe impl Send for QueueHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_topic_new and is destroyed once.
        unsafe { sys::rd_kafka_topic_destroy(self.0) }
    }
}

impl Drop for QueueHandle {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_queue_get_main and is destroyed once.
        unsafe { sys::rd_kafka_queue_destroy(self.0) }
    }
}

impl Producer {
    /// Idempotent and acknowledged by all replicas: a broker's restart must not make duplicates that the consumer would
    /// be blamed for. `--kafka-property` may still say otherwise.
    pub fn new(kafka: &Kafka, topics: &[&str], in_flight: usize, linger_ms: f64) -> Result<Self> {
        let mut config = kafka.config();
        let ours = [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("linger.ms", linger_ms.to_string()),
            // With more requests under way librdkafka's sending thread spins while a partition waits for its turn: at 20,000
            // messages a second it took 1.5 cores and acknowledgements took seconds, against 0.5 and milliseconds with one.
            // What arrives meanwhile goes with the next request.
            ("max.in.flight", "1".to_owned()),
            ("queue.buffering.max.messages", in_flight.to_string()),
            ("queue.buffering.max.kbytes", "65536".to_owned()),
            // A broker that is away for longer than this makes the run's messages fail, and the report says so.
            ("message.timeout.ms", "60000".to_owned()),
            ("sticky.partitioning.linger.ms", "0".to_owned()),
        ];
        for (name, value) in ours {
            if !kafka.properties.contains_key(name) {
                config.set(name, value);
            }
        }
        let client: BaseProducer = config.create().context("set up the Kafka producer")?;
        let native = client.client().native_ptr();
        let mut handles = Vec::new();
        for topic in topics {
            let name = CString::new(*topic).context("a topic's name holds no zero byte")?;
            // SAFETY: the client is alive, the name is a C string, and a null configuration means the default one.
            let handle = unsafe { sys::rd_kafka_topic_new(native, name.as_ptr(), ptr::null_mut()) };
            if handle.is_null() {
                bail!("librdkafka refused the topic \"{topic}\"");
            }
            handles.push(TopicHandle(handle));
        }
        // SAFETY: the client is alive.
        let queue = QueueHandle(unsafe { sys::rd_kafka_queue_get_main(native) });
        Ok(Self { topics: handles, queue, _client: client })
    }

    /// Never blocks. librdkafka copies the bytes.
    pub fn send(&self, topic: usize, partition: i32, key: &[u8], message: &[u8], number: usize) -> Handed {
        // SAFETY: the topic's handle is alive; pointers and lengths belong to slices that outlive the call, whose bytes
        // librdkafka copies (F_COPY); the opaque pointer is a plain number that is never dereferenced.
        let answer = unsafe {
            sys::rd_kafka_produce(
                self.topics[topic].0,
                partition,
                sys::RD_KAFKA_MSG_F_COPY,
                message.as_ptr() as *mut c_void,
                message.len(),
                key.as_ptr().cast(),
                key.len(),
                number as *mut c_void,
            )
        };
        if answer == 0 {
            return Handed::Over;
        }
        // SAFETY: reads the error that librdkafka left for this thread.
        let error = unsafe { sys::rd_kafka_last_error() };
        if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            return Handed::Full;
        }
        // SAFETY: librdkafka's error names are static C strings.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_err2str(error)) };
        Handed::Refused(name.to_string_lossy().into_owned())
    }

    /// Takes the delivery reports that are there, waiting up to `wait_ms` for the first.
    pub fn reports(&self, wait_ms: i32, mut on_report: impl FnMut(Report)) {
        let mut wait_ms = wait_ms;
        loop {
            // SAFETY: the queue is alive; the event is destroyed below.
            let event = unsafe { sys::rd_kafka_queue_poll(self.queue.0, wait_ms) };
            if event.is_null() {
                return;
            }
            // SAFETY: the event is alive until it is destroyed at the end of the block, and what is read from it only
            // lives as long.
            unsafe {
                match sys::rd_kafka_event_type(event) {
                    sys::RD_KAFKA_EVENT_DR => each_report(event, &mut on_report),
                    sys::RD_KAFKA_EVENT_ERROR => {
                        let text = CStr::from_ptr(sys::rd_kafka_event_error_string(event)).to_string_lossy();
                        log::warn!("Kafka: {}", text.trim());
                    }
                    _ => {}
                }
                sys::rd_kafka_event_destroy(event);
            }
            wait_ms = 0;
        }
    }
}

unsafe fn each_report(event: *mut sys::rd_kafka_event_t, on_report: &mut impl FnMut(Report)) {
    use sys::rd_kafka_msg_status_t as status;
    loop {
        // SAFETY: the caller keeps the event alive; the message belongs to it.
        let message = unsafe { sys::rd_kafka_event_message_next(event) };
        if message.is_null() {
            return;
        }
        // SAFETY: as above.
        let (number, offset, stored) = unsafe {
            ((*message)._private as usize, (*message).offset, sys::rd_kafka_message_status(message))
        };
        let outcome = match stored {
            status::RD_KAFKA_MSG_STATUS_PERSISTED => Outcome::Acked,
            status::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Outcome::Failed,
            status::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Outcome::Indeterminate,
        };
        on_report(Report { number, outcome, offset });
    }
}

/// A message as it lies in Kafka; it lives until the next is read.
pub struct Record<'a> {
    pub value: Option<&'a [u8]>,
    pub offset: i64,
}

/// Reads ranges of partitions again. It is a member of no group and commits nothing.
pub struct Reread {
    consumer: BaseConsumer,
}

impl Reread {
    pub fn new(kafka: &Kafka) -> Result<Self> {
        let mut config = kafka.config();
        let ours = [
            // librdkafka wants a name before it lets partitions be assigned by hand.
            ("group.id", "loadtester-reread"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // What Kafka has deleted is not there; the beginning or the end of what it has is no substitute.
            ("auto.offset.reset", "error"),
            // Ranges are short, so what is read ahead is mostly thrown away.
            ("queued.max.messages.kbytes", "4096"),
        ];
        ours.iter().for_each(|(name, value)| {
            config.set(*name, *value);
        });
        Ok(Self { consumer: config.create().context("set up the Kafka consumer")? })
    }

    /// Calls `on_record` for the records from one offset up to, and not, another, or the partition's end, until it returns
    /// false or time is up. Where Kafka has deleted the first of them, for none.
    pub fn range(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        before: Option<i64>,
        until: Instant,
        mut on_record: impl FnMut(Record<'_>) -> bool,
    ) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        self.consumer.assign(&list)?;
        while Instant::now() < until {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => {
                    let (value, offset) = (message.payload(), message.offset());
                    if before.is_some_and(|end| offset >= end) || !on_record(Record { value, offset }) {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(rdkafka::types::RDKafkaErrorCode::AutoOffsetReset) => return Ok(()),
                    // A broker that is away for a moment: librdkafka tries again by itself.
                    _ => log::debug!("reading {topic} partition {partition} again: {error}"),
                },
            }
        }
        Ok(())
    }
}
