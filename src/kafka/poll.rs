//! poll-N: takes records from librdkafka, keeps only those of the log that it should read, and passes them on in batches.
//!
//! Place in the flow: first. It assigns partitions by hand, as [`Ownership`] says; it never joins a group, never commits,
//! and never polls while the budget is used up: librdkafka's own bounded queue is the backpressure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Sender;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::{Message, Queue};
use super::readings::{Reading, Readings};
use crate::base::budget::Budget;
use crate::base::fault::{Point, fault};
use crate::base::mutant::{Bug, planted};
use crate::base::thread::Pulse;
use crate::config;
use crate::figures::instruments::{PollMetrics, Wait, Waits};
use crate::promise::batch::{Headers, RawBatch, Record};
use crate::promise::claim::{Claim, Ownership};
use crate::promise::gate::Verdict;
use crate::promise::offsets::Partition;
use crate::promise::reach::Contact;
use crate::promise::topics::Topic;

/// Records taken at once. At 200 bytes each this is a 2 MB batch: large enough that its cost per record is gone, small
/// enough that the stages overlap.
const RECORDS_MAX: usize = 10_000;

/// Rest after a poll that brought little: a fetch response comes as one piece for each of its partitions, and without the
/// rest each piece woke every thread down to PostgreSQL. What has been polled is on its way already.
const REST: Duration = Duration::from_millis(2);

/// A poll that brought this many records is followed by the next at once.
const MANY_RECORDS: usize = 1_000;

/// A look at the ownership comes at least this often.
const POLL: Duration = Duration::from_millis(50);

/// A topic whose credit has been used up without a break for this long is stuck; its partitions are parked so that the
/// others flow. Parking costs a refetch of up to a second, so it must not happen to one that is only a little slow.
const STUCK: Duration = Duration::from_secs(2);

/// The record that was committed last must come again within this time of a later one; then the log is not the one that
/// was read, or compaction took the record.
const PROOF: Duration = Duration::from_secs(5);

/// Between two looks at the cached ends of the logs.
const LOG_ENDS: Duration = Duration::from_secs(1);

pub struct Poller {
    pub kafka: config::Kafka,
    pub topics: Arc<[Topic]>,
    pub ownership: Arc<Ownership>,
    pub contact: Arc<Contact>,
    pub budget: Arc<Budget>,
    /// One for each decoder; a partition always goes through the same one.
    pub decoders: Vec<Sender<RawBatch>>,
    /// This poller takes the partitions with this number, modulo `pollers`.
    pub number: usize,
    pub pollers: usize,
    pub metrics: Arc<PollMetrics>,
    pub waits: Arc<Waits>,
    pub pulse: Arc<Pulse>,
}

/// The loop's own state.
struct State {
    queue: Queue,
    readings: Readings,
    version: u64,
    /// For each topic and decoder: bytes and records of the batch before, so that the next one need not grow.
    hints: Vec<(usize, usize)>,
    /// For each topic: since when its credit has been used up without a break.
    starved: Vec<Option<Instant>>,
    /// For each topic: parked until its tables take rows again.
    stuck: Vec<bool>,
    log_ends_at: Instant,
}

/// Creates the consumer. Its threads inherit the affinity of the thread that calls this, so it comes before pinning.
pub fn prepare(kafka: &config::Kafka) -> Result<Queue> {
    Queue::new(super::consumer(kafka)?, RECORDS_MAX)
}

impl Poller {
    /// Runs until the ownership closes or the decoders are gone.
    pub fn run(self, queue: Queue) -> Result<()> {
        let mut state = State {
            queue,
            readings: Readings::default(),
            version: u64::MAX,
            hints: vec![(0, 0); self.topics.len() * self.decoders.len()],
            starved: vec![None; self.topics.len()],
            stuck: vec![false; self.topics.len()],
            log_ends_at: Instant::now(),
        };
        while !self.ownership.is_closing() {
            self.follow_ownership(&mut state)?;
            self.note_log_ends(&mut state);
            state.queue.serve_log();
            if !self.may_poll(&mut state)? {
                self.waits.during(Wait::Memory, || self.budget.wait(POLL));
                continue;
            }
            let polled_at = Instant::now();
            let batches = self.poll(&mut state)?;
            if batches.is_empty() {
                self.waits.add(Wait::Input, polled_at.elapsed());
            }
            let records: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
            if records > 0 {
                self.contact.answered(Instant::now());
            }
            for (decoder, mut batch) in batches {
                fault(Point::AfterPoll);
                batch.set_charge(self.budget.charge(batch.topic, batch.cost_bytes()));
                if self.waits.during(Wait::Output, || self.decoders[decoder].send(batch)).is_err() {
                    return Ok(());
                }
            }
            if (1..MANY_RECORDS).contains(&records) {
                self.waits.during(Wait::Pace, || std::thread::sleep(REST));
            }
        }
        Ok(())
    }

    fn is_mine(&self, partition: Partition) -> bool {
        (partition.topic + partition.id as usize) % self.pollers == self.number
    }

    /// Assigns and unassigns what changed since the last look.
    fn follow_ownership(&self, state: &mut State) -> Result<()> {
        let version = self.ownership.version();
        if version == state.version {
            return Ok(());
        }
        state.version = version;
        let left = state.readings.leave(&self.ownership);
        unassign(&state.queue, &left)?;
        for claim in self.ownership.all().iter().filter(|c| self.is_mine(c.partition) && c.is_read()) {
            let topic = claim.partition.topic;
            // Without credit it stays parked, and is resumed with its topic.
            if state.readings.enter(claim)
                && !state.stuck[topic]
                && self.budget.topic_has_room(topic, &state.stuck)
            {
                self.resume(state, &[claim.partition])?;
            }
        }
        Ok(())
    }

    /// Assigns partitions that are parked. Where nothing proves the first record of one, the client may hold stale ones, so
    /// it is replaced.
    fn resume(&self, state: &mut State, partitions: &[Partition]) -> Result<()> {
        let assignment = state.readings.resume(partitions);
        if assignment.needs_new_client {
            log::debug!("a new Kafka client: nothing else proves the first record");
            self.pulse.during("replacing a Kafka client", || -> Result<()> {
                state.queue = prepare(&self.kafka)?;
                Ok(())
            })?;
        }
        let mut list = TopicPartitionList::new();
        for (claim, at) in &assignment.places {
            list.add_partition_offset(&claim.topic, claim.partition.id, Offset::Offset(*at))?;
        }
        state
            .queue
            .consumer()
            .incremental_assign(&list)
            .context("cannot assign partitions to the Kafka client")
    }

    /// Decides whether the budget allows another poll, and parks stuck topics so that it may.
    fn may_poll(&self, state: &mut State) -> Result<bool> {
        let mut may = true;
        for topic in 0..self.topics.len() {
            let parked = state.readings.parked(topic);
            if state.stuck[topic] {
                // Only well below its credit, so that it does not come and go.
                if self.budget.topic_has_ample_room(topic) {
                    log::info!("topic {:?} flows again", self.topics[topic].name);
                    state.stuck[topic] = false;
                    self.resume(state, &parked)?;
                }
            } else if self.budget.topic_has_room(topic, &state.stuck) {
                state.starved[topic] = None;
                if !parked.is_empty() {
                    self.resume(state, &parked)?;
                }
            } else if state.readings.has(topic) {
                let since = *state.starved[topic].get_or_insert_with(Instant::now);
                if since.elapsed() >= STUCK {
                    self.park(state, topic)?;
                } else {
                    may = false;
                }
            }
        }
        Ok(may && self.budget.has_room(&state.stuck))
    }

    fn park(&self, state: &mut State, topic: usize) -> Result<()> {
        log::warn!(
            "topic {:?} is stuck: its tables took nothing for {} s; other topics go on",
            self.topics[topic].name,
            STUCK.as_secs()
        );
        state.stuck[topic] = true;
        state.starved[topic] = None;
        unassign(&state.queue, &state.readings.park(topic))
    }

    /// Takes what is there and sorts it into a batch for each topic and decoder.
    fn poll(&self, state: &mut State) -> Result<Vec<(usize, RawBatch)>> {
        let decoders = self.decoders.len();
        let mut batches: Vec<(usize, RawBatch)> = state
            .hints
            .iter()
            .enumerate()
            .map(|(slot, (bytes, records))| {
                (slot % decoders, RawBatch::new(slot / decoders, *bytes, *records))
            })
            .collect();
        let mut headers = Vec::new();
        let mut troubles: Vec<(Option<Partition>, Code, String)> = Vec::new();
        // The topic of the message before, by librdkafka's number for it: names need not be compared for each record.
        let mut known: Option<(usize, Option<usize>)> = None;
        let readings = &mut state.readings;
        let (mut taken, mut dropped) = (0u64, 0u64);
        state.queue.take(POLL, |message| {
            let topic = match known {
                Some((number, topic)) if number == message.topic_number() => topic,
                _ => self.topic_of(message),
            };
            known = Some((message.topic_number(), topic));
            let partition = topic.map(|topic| Partition { topic, id: message.partition() });
            if let Some((code, text)) = message.error() {
                if planted(Bug::ErrorIsSwallowed) {
                    return;
                }
                // At once: a record that comes after one that cannot be read must not be taken.
                if sort(code) == Trouble::Data
                    && let Some(reading) = partition.and_then(|p| readings.get(p))
                {
                    reading.claim.stop(format!("Kafka serves a record that cannot be read: {text}"));
                    self.ownership.touch();
                }
                troubles.push((partition, code, text));
                return;
            }
            let Some(reading) = partition.and_then(|p| readings.of_record(p)) else {
                dropped += 1;
                return;
            };
            let partition = reading.claim.partition;
            headers.clear();
            message.headers(&mut headers);
            let record = Record {
                topic: &reading.claim.topic,
                partition: partition.id,
                offset: message.offset(),
                timestamp_ms: message.timestamp_ms(),
                key: message.key(),
                value: message.value(),
                headers: Headers(&headers),
            };
            let first = reading.gate.expected();
            match reading.gate.see(record.offset, || record.hash()) {
                Verdict::Take => {
                    let slot = partition.topic * decoders + partition.id as usize % decoders;
                    batches[slot].1.push(&reading.claim, first, &record);
                    taken += 1;
                }
                Verdict::Drop => dropped += 1,
                Verdict::Stop(reason) => {
                    reading.claim.stop(reason);
                    self.ownership.touch();
                }
            }
        });
        for ((_, batch), hint) in batches.iter_mut().zip(&mut state.hints) {
            *hint = (batch.arena_bytes(), batch.len());
            batch.note_anchors();
            state.readings.passed_on(batch);
        }
        self.metrics.add(taken, dropped, batches.iter().map(|(_, b)| b.arena_bytes() as u64).sum());
        for (partition, code, text) in troubles {
            self.trouble(state, partition, code, &text)?;
        }
        batches.retain(|(_, batch)| !batch.is_empty());
        Ok(batches)
    }

    fn topic_of(&self, message: &Message<'_>) -> Option<usize> {
        let name = message.topic()?.to_bytes();
        self.topics.iter().position(|t| t.name.as_bytes() == name)
    }

    /// Sorts an error that came in a record's place.
    fn trouble(&self, state: &State, partition: Option<Partition>, code: Code, text: &str) -> Result<()> {
        let reading = partition.and_then(|p| state.readings.get(p));
        match (sort(code), reading) {
            (Trouble::Fatal, _) => bail!("the Kafka client gave up: {text}"),
            (Trouble::Position, Some(reading)) => {
                // A new claim looks at the log again and decides; what is in hand of this one is void.
                log::warn!(
                    "Kafka refused the position of {}/{}: {text}",
                    reading.claim.topic,
                    reading.claim.partition.id
                );
                self.ownership.remove(&reading.claim);
            }
            // librdkafka goes on trying by itself, and says so in its log.
            (_, _) => log::debug!("kafka: {text}"),
        }
        Ok(())
    }

    /// Ends the wait for a record that does not come.
    fn judge_proof(&self, reading: &mut Reading) {
        if !reading.waited_in_vain(Instant::now(), PROOF) {
            return;
        }
        let seen = self.topics[reading.claim.partition.topic].seen();
        if seen.is_some_and(|s| s.compacted == Some(true)) {
            // A new claim knows that the record may be gone.
            self.ownership.remove(&reading.claim);
        } else if let Some(reason) = reading.gate.missing_anchor() {
            reading.claim.stop(reason);
            self.ownership.touch();
        }
    }

    /// Notes how far each log goes, for the lag. A log may end in transaction markers, which are no records: once the
    /// client has passed them, the log ends where the last record did.
    fn note_log_ends(&self, state: &mut State) {
        if state.log_ends_at.elapsed() < LOG_ENDS {
            return;
        }
        state.log_ends_at = Instant::now();
        let positions = state.queue.consumer().position().map(|list| list.to_topic_map()).unwrap_or_default();
        for reading in state.readings.iter() {
            let claim = &reading.claim;
            let Some(end) = state.queue.log_end(&claim.topic, claim.partition.id) else { continue };
            let passed = match positions.get(&(claim.topic.to_string(), claim.partition.id)) {
                Some(Offset::Offset(position)) => *position >= end,
                _ => false,
            };
            claim.set_log_end(if passed { end.min(reading.gate.expected()) } else { end });
        }
        for reading in state.readings.iter_mut() {
            self.judge_proof(reading);
        }
    }
}

/// Stops fetching partitions.
fn unassign(queue: &Queue, claims: &[Arc<Claim>]) -> Result<()> {
    if claims.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for claim in claims {
        list.add_partition(&claim.topic, claim.partition.id);
    }
    queue.consumer().incremental_unassign(&list).context("cannot take partitions from the Kafka client")
}

/// What an error of a partition calls for.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// The position is not in the log: find out why.
    Position,
    /// The data is damaged, or of a kind that this build cannot read.
    Data,
    /// The client itself is broken.
    Fatal,
    /// Brokers come and go.
    Passing,
}

fn sort(code: Code) -> Trouble {
    match code {
        Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE
        | Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | Code::RD_KAFKA_RESP_ERR__LOG_TRUNCATION => Trouble::Position,
        Code::RD_KAFKA_RESP_ERR__BAD_MSG
        | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
        | Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED
        | Code::RD_KAFKA_RESP_ERR_INVALID_MSG
        | Code::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE
        | Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE => Trouble::Data,
        Code::RD_KAFKA_RESP_ERR__FATAL => Trouble::Fatal,
        _ => Trouble::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_follows() {
        #[track_caller]
        fn check(codes: &[Code], expected: Trouble) {
            codes.iter().for_each(|code| assert_eq!(sort(*code), expected, "{code:?}"));
        }
        check(
            &[
                Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
                Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET,
                Code::RD_KAFKA_RESP_ERR__LOG_TRUNCATION,
            ],
            Trouble::Position,
        );
        check(
            &[
                Code::RD_KAFKA_RESP_ERR__BAD_MSG,
                Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION,
                Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED,
                Code::RD_KAFKA_RESP_ERR_INVALID_MSG,
                Code::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE,
                Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            ],
            Trouble::Data,
        );
        check(&[Code::RD_KAFKA_RESP_ERR__FATAL], Trouble::Fatal);
        check(
            &[
                Code::RD_KAFKA_RESP_ERR__TRANSPORT,
                Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
                Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            ],
            Trouble::Passing,
        );
    }
}
