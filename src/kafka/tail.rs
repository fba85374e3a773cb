//! What lies between a position and the end of its log: for `rowmill status`, which owns no partition and must not say less
//! than there is. A log may end in markers of transactions, which are no records, and in records of a transaction that is
//! still open, which nobody may read yet: neither shows in the log's ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::native::{self, Named, Which};
use super::{ClientLog, client_config};
use crate::config;

/// One look at the queue.
const POLL: Duration = Duration::from_millis(100);

/// What is behind a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Records, up to this end of the log.
    Behind { end: i64 },
    /// No record: at most markers.
    Level,
    /// Records, up to this end of the log, of which the first waits for a transaction to end. It was written then, in
    /// milliseconds since 1970 UTC.
    Open { end: i64, since_ms: Option<i64> },
    /// Kafka says that there is no such topic or partition, or that it may not be seen.
    Gone,
}

/// A topic, a partition, and the next offset.
pub type Place = (String, i32, i64);

/// What is behind each of these positions; what Kafka did not answer within `patience` is missing.
///
/// # Errors
/// When the configuration is none for librdkafka.
pub fn tails(
    kafka: &config::Kafka,
    places: &[Place],
    patience: Duration,
) -> Result<BTreeMap<(String, i32), Tail>> {
    let look = Look {
        all: consumer(kafka, "read_uncommitted")?,
        committed: consumer(kafka, "read_committed")?,
        deadline: Instant::now() + patience,
    };
    let mut topics: BTreeMap<&str, Vec<Position>> = BTreeMap::new();
    let names: Vec<Named<'_>> = places.iter().map(|(topic, id, _)| (topic.as_str(), *id)).collect();
    for ((topic, id, next), end) in places.iter().zip(look.ends(&names, false)) {
        topics.entry(topic).or_default().push((*id, *next, end));
    }
    let mut found = BTreeMap::new();
    for (topic, positions) in topics {
        let tails = look.topic(topic, positions)?;
        found.extend(tails.into_iter().map(|(id, tail)| ((topic.to_owned(), id), tail)));
    }
    Ok(found)
}

/// A partition, the next offset, and where the log ends. `None` is an error, too: there was no answer in time.
type Position = (i32, i64, Result<i64, Option<KafkaError>>);

struct Look {
    all: BaseConsumer<ClientLog>,
    committed: BaseConsumer<ClientLog>,
    deadline: Instant,
}

impl Tail {
    /// Offsets between a position and the end of the log; `None` where there is no log.
    pub fn lag(&self, next: i64) -> Option<i64> {
        match self {
            Tail::Behind { end } | Tail::Open { end, .. } => Some((end - next).max(0)),
            Tail::Level => Some(0),
            Tail::Gone => None,
        }
    }
}

impl Look {
    /// One topic, because the news that a partition is at its end does not say of which topic.
    fn topic(&self, topic: &str, positions: Vec<Position>) -> Result<BTreeMap<i32, Tail>> {
        let mut found = BTreeMap::new();
        let mut behind: Vec<(i32, i64, i64)> = Vec::new();
        for (id, next, end) in positions {
            match end {
                Ok(end) if end <= next => drop(found.insert(id, Tail::Level)),
                Ok(end) => behind.push((id, next, end)),
                Err(Some(error)) if is_gone(&error) => drop(found.insert(id, Tail::Gone)),
                Err(_) => {}
            }
        }
        let places: Vec<(i32, i64)> = behind.iter().map(|(id, next, _)| (*id, *next)).collect();
        if places.is_empty() {
            return Ok(found);
        }
        let firsts = self.firsts(&self.committed, topic, &places)?;
        let is_still = |(id, ..): &&(i32, i64, i64)| matches!(firsts.get(id), Some(First::Nothing));
        let still: Vec<Named<'_>> = behind.iter().filter(is_still).map(|(id, ..)| (topic, *id)).collect();
        let readable: BTreeMap<i32, Result<i64, _>> =
            still.iter().map(|(_, id)| *id).zip(self.ends(&still, true)).collect();
        for (id, next, end) in behind {
            let tail = match (firsts.get(&id), readable.get(&id)) {
                (Some(First::Record { .. }), _) => Tail::Behind { end },
                (Some(First::Nothing), Some(Ok(readable))) if *readable < end => {
                    Tail::Open { end, since_ms: self.stamp(topic, id, next.max(*readable))? }
                }
                (Some(First::Nothing), Some(Ok(_))) => Tail::Level,
                _ => continue,
            };
            found.insert(id, tail);
        }
        Ok(found)
    }

    /// Where these logs end, open transactions included or not, all asked together.
    fn ends(&self, places: &[Named<'_>], committed: bool) -> Vec<Result<i64, Option<KafkaError>>> {
        let rest = self.deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() || places.is_empty() {
            return places.iter().map(|_| Err(None)).collect();
        }
        if let Ok(found) = native::list_offsets(&self.all, places, Which::End, committed, rest) {
            return found.into_iter().map(|end| end.map_err(Some)?.ok_or(None)).collect();
        }
        // One topic that is gone fails the request for all.
        let by_topic: Vec<&[Named<'_>]> = places.chunk_by(|one, next| one.0 == next.0).collect();
        if let [(topic, id), ..] = by_topic[0]
            && by_topic.len() == 1
        {
            let rest = self.deadline.saturating_duration_since(Instant::now());
            let why = self.all.fetch_watermarks(topic, *id, rest).err();
            return places.iter().map(|_| Err(why.clone())).collect();
        }
        by_topic.into_iter().flat_map(|some| self.ends(some, committed)).collect()
    }

    /// When the record at this offset was written, whether it may be read or not.
    fn stamp(&self, topic: &str, id: i32, offset: i64) -> Result<Option<i64>> {
        let firsts = self.firsts(&self.all, topic, &[(id, offset)])?;
        Ok(match firsts.get(&id) {
            Some(First::Record { stamped_ms }) => *stamped_ms,
            _ => None,
        })
    }

    /// What this consumer meets first from each position on.
    fn firsts(
        &self,
        consumer: &BaseConsumer<ClientLog>,
        topic: &str,
        positions: &[(i32, i64)],
    ) -> Result<BTreeMap<i32, First>> {
        let mut list = TopicPartitionList::new();
        for (id, next) in positions {
            list.add_partition_offset(topic, *id, Offset::Offset(*next))?;
        }
        consumer.assign(&list).context("cannot assign partitions to a Kafka client")?;
        let mut firsts = BTreeMap::new();
        while firsts.len() < positions.len() && Instant::now() < self.deadline {
            match consumer.poll(POLL) {
                Some(Ok(message)) if message.topic() == topic => {
                    let first = First::Record { stamped_ms: message.timestamp().to_millis() };
                    firsts.entry(message.partition()).or_insert(first);
                }
                Some(Err(KafkaError::PartitionEOF(id))) => drop(firsts.entry(id).or_insert(First::Nothing)),
                Some(_) | None => {}
            }
        }
        Ok(firsts)
    }
}

/// What a consumer meets first behind a position.
enum First {
    Record {
        stamped_ms: Option<i64>,
    },
    /// The end of what it may read.
    Nothing,
}

fn consumer(kafka: &config::Kafka, isolation: &str) -> Result<BaseConsumer<ClientLog>> {
    client_config(kafka)
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create_with_context(ClientLog::default())
        .with_context(|| format!("cannot create a Kafka client for {}", kafka.brokers))
}

fn is_gone(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
    )
}
