//! A topic as it grows, for `rowmill tail`: partitions assigned by hand from some places on, read-committed. No group is joined, and
//! no offset is asked for or moved.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};

use super::unpack::{Broken, Unpacker};
use super::{ClientLog, client_config, reread};
use crate::config;
use crate::promise::batch::Record;

/// One look at the queue.
const POLL: Duration = Duration::from_millis(200);

pub struct Follow {
    consumer: BaseConsumer<ClientLog>,
    topic: String,
    /// No part of a record may have more bytes.
    part_max: usize,
}

/// What one look at the queue brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Records, which were shown.
    Records,
    /// Nothing came.
    Nothing,
    /// Kafka has deleted what should come next.
    Expired,
}

impl Follow {
    /// Reads each partition from its offset on.
    pub fn new(kafka: &config::Kafka, topic: &str, places: &[(i32, i64)], part_max: usize) -> Result<Follow> {
        let consumer: BaseConsumer<ClientLog> = client_config(kafka)
            .create_with_context(ClientLog::default())
            .with_context(|| format!("cannot create a Kafka client for {}", kafka.brokers))?;
        let follow = Follow { consumer, topic: topic.to_owned(), part_max };
        follow.add(places)?;
        Ok(follow)
    }

    /// Reads more partitions.
    pub fn add(&self, places: &[(i32, i64)]) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in places {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*next))?;
        }
        self.consumer.incremental_assign(&list).with_context(|| format!("cannot read topic {:?}", self.topic))
    }

    /// Shows the record that comes next, or those of its batch.
    ///
    /// # Errors
    /// When no broker is there, or the topic may not be read.
    pub fn look(&self, mut see: impl FnMut(&Record<'_>) -> Result<()>) -> Result<Heard> {
        match self.consumer.poll(POLL) {
            None => Ok(Heard::Nothing),
            Some(Ok(message)) => {
                let mut headers = Vec::new();
                reread::append_headers(&message, &mut headers);
                let record = reread::record(&self.topic, &message, &headers);
                match Unpacker::of(record.value, self.part_max) {
                    Some(unpacker) => {
                        let unpacker = unpacker.map_err(|Broken(why)| anyhow!("{why}"))?;
                        // Whoever sees them knows which came before.
                        reread::take_apart(unpacker, &record, &(0..i64::MAX), self.part_max, &mut see)?;
                    }
                    None => see(&record.bounded(self.part_max, &mut [0; 28]))?,
                }
                Ok(Heard::Records)
            }
            Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange))) => {
                Ok(Heard::Expired)
            }
            Some(Err(error)) => match error.rdkafka_error_code() {
                // A connection of several: the client comes back by itself.
                Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve) => {
                    Ok(Heard::Nothing)
                }
                Some(Code::AllBrokersDown) => {
                    let why = self.consumer.context().last_error();
                    bail!("{}", why.unwrap_or_else(|| "no broker can be reached".to_owned()))
                }
                _ => Err(error).with_context(|| format!("cannot read topic {:?}", self.topic)),
            },
        }
    }
}
