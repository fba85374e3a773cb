//! Questions about topics, each with an answer within a time or a sentence that says why not.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::native::{self, Description};
use super::{Consumer, consumer};
use crate::config;

/// For one answer: long enough for a change of the controller.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Events of the client that are taken at once. It makes a few a second at most, and has no records.
const EVENTS: usize = 16;

/// Nobody has a topic of this name.
const PING_TOPIC: &str = "rowmill.ping";

/// A client that only asks.
pub struct Asker {
    consumer: Consumer,
    /// How long one answer may take.
    answer: Duration,
}

impl Asker {
    /// # Errors
    /// When the configuration is none for librdkafka. Whether brokers are there shows at the first question.
    pub fn new(kafka: &config::Kafka, answer: Duration) -> Result<Asker> {
        Ok(Asker { consumer: consumer(kafka)?, answer })
    }

    pub fn cluster_id(&self) -> Option<String> {
        self.consumer.client().fetch_cluster_id(self.answer)
    }

    /// Asks for an answer, whatever it says: the brokers' own addresses and no topic.
    pub fn ping(&self) -> Result<()> {
        // A topic's name is needed, else all topics would be listed; an empty list of partitions is an answer, too.
        self.consumer.fetch_metadata(Some(PING_TOPIC), self.answer)?;
        Ok(())
    }

    /// The partitions of a topic, by their ids.
    ///
    /// # Errors
    /// Also where there is no such topic, or it may not be seen.
    pub fn partitions(&self, topic: &str) -> Result<Vec<i32>> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), self.answer)
            .with_context(|| format!("cannot list the partitions of topic {topic:?}"))?;
        let partitions: Vec<i32> =
            metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect();
        if partitions.is_empty() {
            bail!("there is no topic {topic:?}, or it may not be seen");
        }
        Ok(partitions)
    }

    /// Where a log begins, and the offset that its next record will get.
    pub fn ends(&self, topic: &str, partition: i32) -> Result<Range<i64>> {
        let (start, end) = self
            .consumer
            .fetch_watermarks(topic, partition, self.answer)
            .with_context(|| format!("cannot read the log's ends of partition {topic}/{partition}"))?;
        Ok(start..end)
    }

    /// The first offset at or after a time, in milliseconds since 1970 UTC; `None` if there is none yet.
    pub fn offset_at(&self, topic: &str, partition: i32, ms: i64) -> Result<Option<i64>> {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(topic, partition, Offset::Offset(ms))?;
        let found = self
            .consumer
            .offsets_for_times(times, self.answer)
            .context("cannot look an offset up by time")?;
        Ok(found.elements().first().and_then(|e| match e.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    pub fn describe(&self, topics: &[&str]) -> Result<Vec<Description>> {
        native::describe_topics(&self.consumer, topics, self.answer)
    }

    /// Whether compaction may take records of a topic away.
    pub fn is_compacted(&self, topic: &str) -> Result<bool> {
        native::is_compacted(&self.consumer, topic, self.answer)
    }

    /// Lets the client say what it has to say: its log, its errors, and how commits went.
    pub fn serve_events(&self) {
        for _ in 0..EVENTS {
            if let Some(Err(error)) = self.consumer.poll(Duration::ZERO) {
                log::debug!("kafka: {error}");
            }
        }
    }

    /// The last error of a connection, with what it means where that is known.
    pub fn last_error(&self) -> Option<String> {
        self.serve_events();
        self.consumer.context().last_error()
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }
}
