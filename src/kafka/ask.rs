//! Questions about topics, each with an answer within a time or a sentence that says why not.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;

use super::native::{self, Description, Named, Which};
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
        self.all_ends(&[(topic, partition)]).remove(0)
    }

    /// The same of many logs, asked together, in the order of the question. What is wrong with one is said in its place.
    pub fn all_ends(&self, partitions: &[Named<'_>]) -> Vec<Result<Range<i64>>> {
        let (firsts, ends) = (self.offsets(partitions, Which::First), self.offsets(partitions, Which::End));
        let place = |(topic, partition): &Named<'_>| {
            format!("cannot read the log's ends of partition {topic}/{partition}")
        };
        let range = |first: Result<Option<i64>>, end: Result<Option<i64>>| {
            first?.zip(end?).map(|(first, end)| first..end).context("the broker did not say")
        };
        let both = partitions.iter().zip(firsts.into_iter().zip(ends));
        both.map(|(at, (first, end))| range(first, end).with_context(|| place(at))).collect()
    }

    /// The first offsets at or after a time, in milliseconds since 1970 UTC, in the order of the question; `None` where there
    /// is none yet.
    pub fn all_at(&self, partitions: &[Named<'_>], ms: i64) -> Vec<Result<Option<i64>>> {
        let found = self.offsets(partitions, Which::At(ms));
        found.into_iter().map(|offset| offset.context("cannot look an offset up by time")).collect()
    }

    /// What is wrong with one topic must not hold up others: where a request for several is refused, each is asked for alone.
    fn offsets(&self, partitions: &[Named<'_>], which: Which) -> Vec<Result<Option<i64>>> {
        let ask = |some: &[Named<'_>]| native::list_offsets(&self.consumer, some, which, true, self.answer);
        let each = |found: Vec<Result<Option<i64>, KafkaError>>| {
            found.into_iter().map(|offset| offset.map_err(anyhow::Error::from)).collect()
        };
        let asked_at = Instant::now();
        match ask(partitions) {
            Ok(found) => each(found),
            Err(error) => {
                let by_topic: Vec<&[Named<'_>]> = partitions.chunk_by(|one, next| one.0 == next.0).collect();
                // Brokers that do not answer would take their time for each.
                if by_topic.len() < 2 || asked_at.elapsed() >= self.answer {
                    return partitions.iter().map(|_| Err(anyhow!("{error:#}"))).collect();
                }
                by_topic.into_iter().flat_map(|some| self.offsets(some, which)).collect()
            }
        }
    }

    pub fn describe(&self, topics: &[&str]) -> Result<Vec<Description>> {
        native::describe_topics(&self.consumer, topics, self.answer)
    }

    /// Whether compaction may take records of a topic away.
    pub fn is_compacted(&self, topic: &str) -> Result<bool> {
        self.are_compacted(&[topic])?.remove(0)
    }

    /// The same of many topics, asked together, in the order of the question.
    pub fn are_compacted(&self, topics: &[&str]) -> Result<Vec<Result<bool>>> {
        native::are_compacted(&self.consumer, topics, self.answer)
    }

    /// One of a topic's settings as the brokers use it.
    pub fn setting(&self, topic: &str, setting: &str) -> Result<String> {
        native::topic_settings(&self.consumer, &[topic], setting, self.answer)?.remove(0)
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
