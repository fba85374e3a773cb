//! Where records come from. librdkafka is spoken to here only: [`kafka`] polls, [`watch`] asks about topics, [`reread`]
//! reads a range once more, [`native`] holds the calls for which the safe binding has no words.

pub mod kafka;
pub mod native;
pub mod reread;
pub mod watch;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;

use crate::config;
use crate::mutant::{Bug, planted};

/// A consumer whose log goes through ours.
pub type Consumer = BaseConsumer<Log>;

/// A new consumer handle. It joins no group: partitions are assigned by hand.
pub fn consumer(kafka: &config::Kafka) -> Result<Consumer> {
    client_config(kafka)
        .create_with_context(Log::default())
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
        // The queue is measured before a fetch, so one response may come on top of it.
        .set("fetch.max.bytes", "8388608")
        .set("topic.metadata.refresh.interval.ms", "30000");
    if let Some(tls) = &kafka.tls {
        config.set("security.protocol", "ssl").set("ssl.ca.location", &tls.ca);
        tls.cert.as_ref().map(|cert| config.set("ssl.certificate.location", cert));
        tls.key.as_ref().map(|key| config.set("ssl.key.location", key));
    }
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

/// librdkafka repeats itself on every reconnect: each facility is said once in this time, with a count.
const REPEAT: Duration = Duration::from_secs(30);

/// Facilities of librdkafka that are remembered to be said once; it has about forty.
const FACILITIES_MAX: usize = 64;

/// Passes librdkafka's log on, without its repetitions.
#[derive(Default)]
pub struct Log {
    said: Mutex<Vec<(String, Instant, u64)>>,
}

/// The least urgent of syslog's levels that people are shown.
const WARNING: i32 = 4;

impl Log {
    /// `level` is syslog's, 0 to 7.
    fn say(&self, level: i32, facility: &str, message: &str) {
        if level > WARNING {
            log::debug!("kafka: {facility} {message}");
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.say(level as i32, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.say(WARNING, &error.to_string(), reason);
    }
}

impl ConsumerContext for Log {}
