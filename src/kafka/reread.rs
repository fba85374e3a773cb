//! A range of one partition, read once more: for `rowmill verify`, which must not believe what the engine believed, and for
//! `rowmill backfill`.
//!
//! Each range gets a consumer of its own, read-committed and assigned by hand: one that has read nothing else can hold
//! nothing stale, and no group's offset is asked for or moved.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::ClientLog;
use super::ask::Asker;
use crate::config;
use crate::promise::batch::{Headers, Record};

/// Brokers that say nothing for so long are given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// One look at the queue.
const POLL: Duration = Duration::from_millis(200);

/// For some partitions of one topic: offsets.
pub type Ranges = Vec<(i32, Range<i64>)>;

/// The last offsets of each partition of a topic, `count` in all.
pub fn newest(asker: &Asker, topic: &str, count: i64) -> Result<Ranges> {
    let partitions = asker.partitions(topic)?;
    let each = (count / partitions.len() as i64).max(1);
    let range = |partition| {
        let Range { start, end } = asker.ends(topic, partition)?;
        Ok((partition, start.max(end - each)..end))
    };
    partitions.into_iter().map(range).collect()
}

/// Shows every record that Kafka serves in `offsets`, in order. Holes are passed over.
///
/// # Errors
/// When the range cannot be read whole, or when `see` does not want to go on.
pub fn range(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    offsets: Range<i64>,
    mut see: impl FnMut(&Record<'_>) -> Result<()>,
) -> Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let place =
        || format!("read offsets [{}, {}) of {topic}/{partition} from Kafka", offsets.start, offsets.end);
    let consumer =
        assigned(kafka, topic, partition, offsets.start).with_context(|| format!("cannot {}", place()))?;
    let mut heard_at = Instant::now();
    let mut headers = Vec::new();
    loop {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard_at = Instant::now();
                if message.offset() < offsets.end {
                    headers.clear();
                    append_headers(&message, &mut headers);
                    see(&record(topic, &message, &headers))?;
                }
                if message.offset() + 1 >= offsets.end {
                    return Ok(());
                }
            }
            // The range may end with holes, behind which no record stands.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange))) => {
                bail!(
                    "cannot {}: Kafka deleted records there in the meantime; run `rowmill verify` again",
                    place()
                )
            }
            Some(Err(error)) if is_final(&error) => bail!("cannot {}: {error}", place()),
            Some(Err(_)) | None if heard_at.elapsed() < SILENCE_MAX => {}
            Some(Err(error)) => bail!("cannot {}: {error}, for {} s", place(), SILENCE_MAX.as_secs()),
            None => bail!("cannot {}: the brokers said nothing for {} s", place(), SILENCE_MAX.as_secs()),
        }
    }
}

fn record<'a>(topic: &'a str, message: &'a BorrowedMessage<'_>, headers: &'a [u8]) -> Record<'a> {
    Record {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key(),
        value: message.payload(),
        headers: Headers(headers),
    }
}

fn append_headers(message: &BorrowedMessage<'_>, arena: &mut Vec<u8>) {
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        Headers::append(arena, header.key.as_bytes(), header.value);
    }
}

fn assigned(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    first: i64,
) -> Result<BaseConsumer<ClientLog>> {
    let consumer: BaseConsumer<ClientLog> = super::client_config(kafka)
        .set("enable.partition.eof", "true")
        .create_with_context(ClientLog::default())?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(first))?;
    consumer.assign(&list)?;
    Ok(consumer)
}

/// What waiting does not mend.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::Authentication
        )
    )
}
