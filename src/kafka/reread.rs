//! A range of one partition, read once more: for `rowmill verify`, which must not believe what the engine believed, and for
//! `rowmill backfill`.
//!
//! Each call gets a consumer of its own, read-committed and assigned by hand: one that has read nothing else can hold
//! nothing stale, and no group's offset is asked for or moved.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::ClientLog;
use super::ask::Asker;
use super::native::Named;
use super::unpack::{Broken, Step, Unpacker};
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
    let places: Vec<Named<'_>> = partitions.iter().map(|partition| (topic, *partition)).collect();
    let range = |(partition, ends): (i32, Result<Range<i64>>)| {
        let Range { start, end } = ends?;
        Ok((partition, start.max(end - each)..end))
    };
    partitions.iter().copied().zip(asker.all_ends(&places)).map(range).collect()
}

/// Shows every record that Kafka serves in `offsets`, in order, as it is held where no part of it may have more than `part_max`
/// bytes. Holes are passed over.
///
/// # Errors
/// When the range cannot be read whole, or when `see` does not want to go on.
pub fn range(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    offsets: Range<i64>,
    part_max: usize,
    see: impl FnMut(&Record<'_>) -> Result<()>,
) -> Result<()> {
    ranges(kafka, topic, &vec![(partition, offsets)], part_max, see)
}

/// Shows every record that Kafka serves in some ranges of one topic: those of one partition in order, those of different ones
/// as they come. One client reads all of them, so that a thousand partitions take little longer than one.
///
/// # Errors
/// As [`range`].
pub fn ranges(
    kafka: &config::Kafka,
    topic: &str,
    ranges: &Ranges,
    part_max: usize,
    mut see: impl FnMut(&Record<'_>) -> Result<()>,
) -> Result<()> {
    let mut open: BTreeMap<i32, Range<i64>> =
        ranges.iter().filter(|(_, offsets)| !offsets.is_empty()).cloned().collect();
    if open.is_empty() {
        return Ok(());
    }
    let place = |open: &BTreeMap<i32, Range<i64>>| match open.first_key_value() {
        Some((id, offsets)) => {
            format!("read offsets [{}, {}) of {topic}/{id} from Kafka", offsets.start, offsets.end)
        }
        None => format!("read topic {topic:?} from Kafka"),
    };
    let consumer = assigned(kafka, topic, open.iter().map(|(id, offsets)| (*id, offsets.start)))
        .with_context(|| format!("cannot {}", place(&open)))?;
    let mut heard_at = Instant::now();
    let mut headers = Vec::new();
    while !open.is_empty() {
        let done = match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard_at = Instant::now();
                // What was fetched of a partition before it was dropped may still come.
                let Some(offsets) = open.get(&message.partition()) else { continue };
                headers.clear();
                append_headers(&message, &mut headers);
                let record = record(topic, &message, &headers);
                match Unpacker::of(record.value, part_max) {
                    // A batch stands at its last offset.
                    Some(unpacker) => unpacker
                        .map_err(|Broken(why)| anyhow!("{why}"))
                        .and_then(|unpacker| take_apart(unpacker, &record, offsets, part_max, &mut see))
                        .with_context(|| format!("cannot {}", place(&open)))?,
                    None if record.offset < offsets.end => see(&record.bounded(part_max, &mut [0; 28]))?,
                    None => {}
                }
                (message.offset() + 1 >= offsets.end).then(|| message.partition())
            }
            // The range may end with holes, behind which no record stands.
            Some(Err(KafkaError::PartitionEOF(id))) => {
                heard_at = Instant::now();
                Some(id)
            }
            Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange))) => {
                bail!(
                    "cannot {}: Kafka deleted records there in the meantime; run `rowmill verify` again",
                    place(&open)
                )
            }
            Some(Err(error)) if is_final(&error) => bail!("cannot {}: {error}", place(&open)),
            Some(Err(_)) | None if heard_at.elapsed() < SILENCE_MAX => None,
            Some(Err(error)) => {
                bail!("cannot {}: {error}, for {} s", place(&open), SILENCE_MAX.as_secs())
            }
            None => {
                bail!("cannot {}: the brokers said nothing for {} s", place(&open), SILENCE_MAX.as_secs())
            }
        };
        if let Some(id) = done
            && open.remove(&id).is_some()
        {
            let mut list = TopicPartitionList::new();
            list.add_partition(topic, id);
            // What comes after its range is of no use.
            consumer.incremental_unassign(&list).with_context(|| format!("cannot {}", place(&open)))?;
        }
    }
    Ok(())
}

/// Shows the records of a batch that librdkafka does not unpack. `batch` is the one that holds it.
pub(super) fn take_apart(
    mut unpacker: Unpacker,
    batch: &Record<'_>,
    offsets: &Range<i64>,
    part_max: usize,
    see: &mut impl FnMut(&Record<'_>) -> Result<()>,
) -> Result<()> {
    loop {
        match unpacker.step().map_err(|Broken(why)| anyhow!("{why}"))? {
            Step::End => return Ok(()),
            Step::Working => {}
            Step::Record(found) if offsets.contains(&found.offset) => {
                see(&found.record(batch.topic, batch.partition).bounded(part_max, &mut [0; 28]))?;
            }
            Step::Record(_) => {}
        }
    }
}

pub(super) fn record<'a>(topic: &'a str, message: &'a BorrowedMessage<'_>, headers: &'a [u8]) -> Record<'a> {
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

pub(super) fn append_headers(message: &BorrowedMessage<'_>, arena: &mut Vec<u8>) {
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        Headers::append(arena, header.key.as_bytes(), header.value);
    }
}

fn assigned(
    kafka: &config::Kafka,
    topic: &str,
    places: impl IntoIterator<Item = (i32, i64)>,
) -> Result<BaseConsumer<ClientLog>> {
    let consumer: BaseConsumer<ClientLog> = super::client_config(kafka)
        .set("enable.partition.eof", "true")
        .create_with_context(ClientLog::default())?;
    let mut list = TopicPartitionList::new();
    for (partition, first) in places {
        list.add_partition_offset(topic, partition, Offset::Offset(first))?;
    }
    consumer.incremental_assign(&list)?;
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
