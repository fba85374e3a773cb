//! Where records come from. librdkafka is spoken to here only: [`poll`] takes records and [`readings`] knows where each
//! partition is, [`watch`] looks after topics, [`ask`] has the questions, [`reread`] reads a range once more, [`tail`] looks at
//! what lies behind a position, [`unpack`] takes batches apart that would be too much for librdkafka and [`large`] does so one at
//! a time, [`native`] holds the calls for which the safe binding has no words.

pub mod ask;
pub mod native;
pub mod send;
pub mod lasting;
pub mod readings;
pub mod reread;
pub mod follow;
pub mod tail;
pub mod unpack;
pub mod large;
pub mod watch;
pub mod poll;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};

use crate::base::lock::lock;
use crate::base::mutant::{Bug, planted};
use crate::client::tls;
use crate::config;

/// A consumer whose log goes through ours.
pub type Consumer = BaseConsumer<ClientLog>;

/// A new consumer handle. It joins no group: partitions are assigned by hand.
pub fn consumer(kafka: &config::Kafka) -> Result<Consumer> {
    client_config(kafka)
        .create_with_context(ClientLog::default())
        .with_context(|| format!("cannot create a Kafka client for {}", kafka.brokers))
}

/// How many records go to a broker in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As many as wait.
    Together,
    Alone,
}

/// A new producer handle, which reports every record once, whatever becomes of it, after `deliver` at the latest.
pub fn producer(
    kafka: &config::Kafka,
    collect: &config::Collect,
    packing: Packing,
) -> Result<BaseProducer<ClientLog>> {
    let mut config = ClientConfig::new();
    // Comfort and speed; collect.properties may say otherwise.
    config
        .set("client.id", "rowmill")
        .set("socket.keepalive.enable", "true")
        .set("compression.codec", "lz4")
        // Somebody waits for each record; what comes meanwhile is in the next batch.
        .set("linger.ms", "2")
        .set("topic.metadata.refresh.interval.ms", "30000")
        // A topic that is made a moment later is found in a moment.
        .set("topic.metadata.propagation.max.ms", "1000")
        // In hand at most; bytes are bounded before this. In kB.
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", (2 * collect.inflight_max_bytes / 1024).max(1024).to_string())
        .set("message.max.bytes", "1000000000");
    secure(&mut config, kafka);
    for (name, value) in &collect.properties {
        config.set(name, value);
    }
    // The promise rests on these.
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("delivery.report.only.error", "false")
        // The verdict is always the client's own, and never a guess of ours.
        .set("message.timeout.ms", collect.deliver_timeout.as_millis().to_string())
        // Where Java's producers put the same keys.
        .set("partitioner", "murmur2_random");
    if packing == Packing::Alone {
        config.set("batch.num.messages", "1");
    }
    config
        .create_with_context(ClientLog::default())
        .with_context(|| format!("cannot create a Kafka client for {}", kafka.brokers))
}

fn client_config(kafka: &config::Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Comfort and speed; kafka.properties may say otherwise.
    config
        .set("client.id", "rowmill")
        .set("socket.keepalive.enable", "true")
        .set("check.crcs", "true")
        // With the default of 1000 a consumer that is slower than its fetcher idles most of the time: 0.35 of the COPY
        // ceiling against 0.9, measured.
        .set("fetch.queue.backoff.ms", "5")
        // Prefetched bytes; the byte budget comes on top.
        .set("queued.max.messages.kbytes", "8192")
        // The queue is measured before a fetch, so one response may come on top of it; and its bytes do not count the operation
        // that librdkafka makes of each record, which for empty records is 60 times what they have in the response.
        .set("fetch.max.bytes", "2097152")
        // A broker sends a batch whole, whatever the bound of a response.
        .set("receive.message.max.bytes", "1000000000")
        .set("topic.metadata.refresh.interval.ms", "30000");
    secure(&mut config, kafka);
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    // The promise rests on these.
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("auto.offset.reset", if planted(Bug::ResetToLatest) { "latest" } else { "error" })
        .set("isolation.level", "read_committed");
    config
}

/// TLS and the user. Nothing of it falls back: a broker that does not speak TLS, or shows another certificate, is no broker.
fn secure(config: &mut ClientConfig, kafka: &config::Kafka) {
    let protocol = match (&kafka.tls, &kafka.sasl) {
        (Some(_), Some(_)) => "sasl_ssl",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (None, None) => "plaintext",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &kafka.tls {
        // "probe" looks where distributions keep the authorities that the system trusts.
        config.set("ssl.ca.location", tls.ca.as_deref().unwrap_or("probe"));
        config.set("ssl.endpoint.identification.algorithm", "https");
        let optional = [
            ("ssl.certificate.location", &tls.cert),
            ("ssl.key.location", &tls.key),
            ("ssl.key.password", &tls.key_password),
        ];
        for (name, value) in optional {
            value.as_ref().map(|value| config.set(name, value));
        }
    }
    if let Some(sasl) = &kafka.sasl {
        config
            .set("sasl.mechanisms", &sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", &sasl.password);
    }
}

/// librdkafka repeats itself on every reconnect: each facility is said once in this time, with a count.
const REPEAT: Duration = Duration::from_secs(30);

/// Facilities of librdkafka that are remembered to be said once; it has about forty.
const FACILITIES_MAX: usize = 64;

/// Passes librdkafka's log on, without its repetitions.
#[derive(Default)]
pub struct ClientLog {
    said: Mutex<Vec<(String, Instant, u64)>>,
    /// The last error of a connection, for those who wonder why a request was not answered.
    last_error: Mutex<Option<String>>,
}

/// The least urgent of syslog's levels that people are shown.
const WARNING: i32 = 4;

impl ClientLog {
    /// The last error of a connection, with what it means where that is known.
    pub fn last_error(&self) -> Option<String> {
        let words = lock(&self.last_error).clone()?;
        Some(tls::explain(&words).map_or_else(|| words.clone(), |sentence| format!("{sentence} ({words})")))
    }

    /// `level` is syslog's, 0 to 7.
    fn say(&self, level: i32, facility: &str, message: &str) {
        if level > WARNING {
            log::debug!("kafka: {facility} {message}");
            return;
        }
        // That all brokers are down says less than why the last one is.
        if !message.contains("brokers are down") {
            *lock(&self.last_error) = Some(message.to_owned());
        }
        let message =
            &tls::explain(message).map_or_else(|| message.to_owned(), |s| format!("{message}: {s}"));
        let mut said = lock(&self.said);
        if let Some((_, since, silent)) = said.iter_mut().find(|(name, ..)| name == facility) {
            if since.elapsed() < REPEAT {
                *silent += 1;
                return;
            }
            log::warn!("kafka: {} ({silent} more like it before)", message.escape_debug());
            (*since, *silent) = (Instant::now(), 0);
            return;
        }
        if said.len() < FACILITIES_MAX {
            said.push((facility.to_owned(), Instant::now(), 0));
        }
        log::warn!("kafka: {}", message.escape_debug());
    }
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.say(level as i32, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.say(WARNING, &error.to_string(), reason);
    }
}

impl ConsumerContext for ClientLog {}

impl ProducerContext for ClientLog {
    type DeliveryOpaque = ();

    /// Reports are taken from the queue by [`native::send`]; what is left when a client ends concerns nobody any more.
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
