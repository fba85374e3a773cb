//! poll-N: takes records from librdkafka, keeps only those of the log that it should read, and passes them on in batches.
//!
//! Place in the flow: first. It assigns partitions by hand, as [`Ownership`] says; it never joins a group, never commits,
//! and never polls while the budget is used up: librdkafka's own bounded queue is the backpressure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Sender;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::{Message, Queue};
use crate::batch::{Headers, RawBatch, Record};
use crate::budget::Budget;
use crate::config;
use crate::cpu::Pulse;
use crate::fault::fault;
use crate::metrics::{PollMetrics, Wait, Waits};
use crate::mutant::{Bug, planted};
use crate::offsets::{Anchor, Partition};
use crate::ownership::{Claim, Ownership, Start};
use crate::protocol::{Gate, Verdict};
use crate::topics::Topic;

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

/// A topic whose credit has been used up without a break for this long is stuck; its partitions are set aside so that the
/// others flow. Setting aside costs a refetch of up to a second, so it must not happen to one that is only a little slow.
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

/// One partition that this poller reads.
struct Reading {
    claim: Arc<Claim>,
    gate: Gate,
    /// How the claim began; still true while nothing was passed on.
    start: Start,
    /// The last record that was passed on.
    last: Option<Anchor>,
    /// Not assigned at the moment, because its topic is stuck.
    aside: bool,
    /// Since when later records came while the one that proves the log did not.
    unproven_since: Option<Instant>,
}

/// The loop's own state.
struct State {
    queue: Queue,
    readings: BTreeMap<Partition, Reading>,
    /// Partitions that this consumer handle has read: stale records of theirs may still be inside it.
    touched: BTreeSet<Partition>,
    version: u64,
    /// For each topic and decoder: bytes and records of the batch before, so that the next one need not grow.
    hints: Vec<(usize, usize)>,
    /// For each topic: since when its credit has been used up without a break.
    starved: Vec<Option<Instant>>,
    /// For each topic: set aside until its tables take rows again.
    stuck: Vec<bool>,
    log_ends_at: Instant,
}

/// Creates the consumer. Its threads inherit the affinity of the thread that calls this, so it comes before pinning.
pub fn prepare(kafka: &config::Kafka) -> Result<Queue> {
    Queue::new(super::consumer(kafka)?, RECORDS_MAX)
}

/// Runs until the ownership closes or the decoders are gone.
pub fn run(poller: &Poller, queue: Queue) -> Result<()> {
    let mut state = State {
        queue,
        readings: BTreeMap::new(),
        touched: BTreeSet::new(),
        version: u64::MAX,
        hints: vec![(0, 0); poller.topics.len() * poller.decoders.len()],
        starved: vec![None; poller.topics.len()],
        stuck: vec![false; poller.topics.len()],
        log_ends_at: Instant::now(),
    };
    while !poller.ownership.is_closing() {
        poller.follow_ownership(&mut state)?;
        poller.note_log_ends(&mut state);
        state.queue.serve_log();
        if !poller.may_poll(&mut state)? {
            poller.waits.during(Wait::Memory, || poller.budget.wait(POLL));
            continue;
        }
        let polled_at = Instant::now();
        let batches = poller.poll(&mut state)?;
        if batches.is_empty() {
            poller.waits.add(Wait::Input, polled_at.elapsed());
        }
        let records: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
        for (decoder, mut batch) in batches {
            fault("after-poll");
            batch.set_charge(poller.budget.charge(batch.topic, batch.cost_bytes()));
            if poller.waits.during(Wait::Output, || poller.decoders[decoder].send(batch)).is_err() {
                return Ok(());
            }
        }
        if (1..MANY_RECORDS).contains(&records) {
            poller.waits.during(Wait::Pace, || std::thread::sleep(REST));
        }
    }
    Ok(())
}

impl Poller {
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
        let gone: Vec<Partition> = state
            .readings
            .iter()
            .filter(|(p, r)| {
                !r.claim.is_read() || self.ownership.get(**p).is_none_or(|held| !Arc::ptr_eq(&held, &r.claim))
            })
            .map(|(p, _)| *p)
            .collect();
        self.unassign(state, &gone)?;
        gone.iter().for_each(|p| drop(state.readings.remove(p)));

        for claim in self.ownership.all() {
            if !self.is_mine(claim.partition) || !claim.is_read() {
                continue;
            }
            let Some(start) = claim.take_start() else { continue };
            let partition = claim.partition;
            let reading = Reading {
                claim,
                gate: start.gate.clone(),
                start,
                last: None,
                aside: true,
                unproven_since: None,
            };
            state.readings.insert(partition, reading);
            // Without credit it stays aside, and is taken back with its topic.
            if !state.stuck[partition.topic] && self.budget.topic_has_room(partition.topic, &state.stuck) {
                self.resume(state, &[partition])?;
            }
        }
        Ok(())
    }

    /// Assigns partitions that are aside, each at its place: from the last record that was passed on, which must come
    /// again to prove the log, or as its claim began. Where nothing proves the first record, the client may not hold stale
    /// ones, so it is replaced.
    fn resume(&self, state: &mut State, partitions: &[Partition]) -> Result<()> {
        let unproven = |p: &Partition| {
            let reading = &state.readings[p];
            reading.start.needs_new_client(reading.last, state.touched.contains(p))
        };
        if partitions.iter().any(unproven) {
            log::debug!("a new Kafka client: nothing else proves the first record");
            self.pulse.during("replacing a Kafka client", || -> Result<()> {
                state.queue = prepare(&self.kafka)?;
                Ok(())
            })?;
            state.touched.clear();
            let all: Vec<Partition> =
                state.readings.iter().filter(|(_, r)| !r.aside).map(|(p, _)| *p).collect();
            self.assign(state, &all)?;
        }
        self.assign(state, partitions)
    }

    fn assign(&self, state: &mut State, partitions: &[Partition]) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let reading =
                state.readings.get_mut(partition).expect("only partitions that are read are assigned");
            let (gate, at) = reading.start.place(&reading.gate, reading.last);
            reading.gate = gate;
            reading.aside = false;
            state.touched.insert(*partition);
            list.add_partition_offset(&reading.claim.topic, partition.id, Offset::Offset(at))?;
        }
        state
            .queue
            .consumer()
            .incremental_assign(&list)
            .context("cannot assign partitions to the Kafka client")
    }

    /// Stops fetching partitions. One that was never assigned would make the whole call fail, so those that are aside are
    /// left out.
    fn unassign(&self, state: &mut State, partitions: &[Partition]) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let reading =
                state.readings.get_mut(partition).expect("only partitions that are read are unassigned");
            if !std::mem::replace(&mut reading.aside, true) {
                list.add_partition(&reading.claim.topic, partition.id);
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        state
            .queue
            .consumer()
            .incremental_unassign(&list)
            .context("cannot take partitions from the Kafka client")
    }

    /// Decides whether the budget allows another poll, and sets stuck topics aside so that it may.
    fn may_poll(&self, state: &mut State) -> Result<bool> {
        let mut may = true;
        for topic in 0..self.topics.len() {
            let aside = state.readings.iter().any(|(p, r)| p.topic == topic && r.aside);
            if state.stuck[topic] {
                // Only well below its credit, so that it does not come and go.
                if self.budget.topic_has_ample_room(topic) {
                    log::info!("topic {:?} flows again", self.topics[topic].name);
                    state.stuck[topic] = false;
                    self.take_back(state, topic)?;
                }
            } else if self.budget.topic_has_room(topic, &state.stuck) {
                state.starved[topic] = None;
                if aside {
                    self.take_back(state, topic)?;
                }
            } else if state.readings.keys().any(|p| p.topic == topic) {
                let since = *state.starved[topic].get_or_insert_with(Instant::now);
                if since.elapsed() >= STUCK {
                    self.set_aside(state, topic)?;
                } else {
                    may = false;
                }
            }
        }
        Ok(may && self.budget.has_room(&state.stuck))
    }

    fn set_aside(&self, state: &mut State, topic: usize) -> Result<()> {
        log::warn!(
            "topic {:?} is stuck: its tables took nothing for {} s; other topics go on",
            self.topics[topic].name,
            STUCK.as_secs()
        );
        let partitions: Vec<Partition> =
            state.readings.keys().filter(|p| p.topic == topic).copied().collect();
        state.stuck[topic] = true;
        state.starved[topic] = None;
        self.unassign(state, &partitions)
    }

    /// Goes on where the topic was. The position is given anew, so that nothing depends on what a pause would keep.
    fn take_back(&self, state: &mut State, topic: usize) -> Result<()> {
        let aside = state.readings.iter().filter(|(p, r)| p.topic == topic && r.aside);
        let partitions: Vec<Partition> = aside.map(|(p, _)| *p).collect();
        self.resume(state, &partitions)
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
                    && let Some(reading) = partition.and_then(|p| readings.get(&p))
                {
                    reading.claim.stop(format!("Kafka serves a record that cannot be read: {text}"));
                    self.ownership.touch();
                }
                troubles.push((partition, code, text));
                return;
            }
            // A record of a partition that was unassigned a moment ago must not move its gate.
            let reading = partition.and_then(|p| Some((p, readings.get_mut(&p)?)));
            let Some((partition, reading)) = reading.filter(|(_, r)| !r.aside && r.claim.is_read()) else {
                dropped += 1;
                return;
            };
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
            for run in &batch.runs {
                run.claim.set_polled(run.next, run.times.first_ms);
                if let Some(reading) = state.readings.get_mut(&run.claim.partition) {
                    reading.last = Some(run.anchor);
                }
            }
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
        let reading = partition.and_then(|p| state.readings.get(&p));
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
        if !reading.gate.is_waiting_in_vain() {
            reading.unproven_since = None;
            return;
        }
        if reading.unproven_since.get_or_insert_with(Instant::now).elapsed() < PROOF {
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
        for reading in state.readings.values() {
            let claim = &reading.claim;
            let Some(end) = state.queue.log_end(&claim.topic, claim.partition.id) else { continue };
            let passed = match positions.get(&(claim.topic.to_string(), claim.partition.id)) {
                Some(Offset::Offset(position)) => *position >= end,
                _ => false,
            };
            claim.set_log_end(if passed { end.min(reading.gate.expected()) } else { end });
        }
        for reading in state.readings.values_mut() {
            self.judge_proof(reading);
        }
    }
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
        assert_eq!(sort(Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE), Trouble::Position);
        assert_eq!(sort(Code::RD_KAFKA_RESP_ERR__BAD_MSG), Trouble::Data);
        assert_eq!(sort(Code::RD_KAFKA_RESP_ERR__FATAL), Trouble::Fatal);
        assert_eq!(sort(Code::RD_KAFKA_RESP_ERR__TRANSPORT), Trouble::Passing);
    }
}
