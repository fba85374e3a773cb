//! poll-N: takes records from librdkafka, keeps only those of the log that it should read, and passes them on in batches.
//!
//! Place in the flow: first. It assigns partitions by hand, as [`Ownership`] says; it never joins a group, never commits,
//! and never polls while the budget is used up: librdkafka's own bounded queue is the backpressure.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Sender;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::large::{Batch, Large, Look, Next};
use super::native::{Message, Queue};
use super::readings::{Reading, Readings};
use super::unpack::{Broken, Step, Unpacker};
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

/// The same where another topic has room, and is not read only because of this one: nobody's slow table, or bad records, should
/// hold a neighbor up for a second.
const STUCK_BESIDE_OTHERS: Duration = Duration::from_millis(500);

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
    /// No part of a record that is passed on has more bytes: what is larger is cut.
    pub message_max_bytes: usize,
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
    /// Batches that are taken apart here, because librdkafka would take too much memory for it.
    large: Large,
}

/// What one poll takes in.
struct Intake {
    decoders: usize,
    /// One for each topic and decoder.
    batches: Vec<(usize, RawBatch)>,
    taken: u64,
    dropped: u64,
    troubles: Vec<(Option<Partition>, Code, String)>,
    /// What is not read from now on.
    left: Vec<Arc<Claim>>,
    /// The topic of the message before, by librdkafka's number for it: names need not be compared for each record.
    known: Option<(usize, Option<usize>)>,
    /// Of the message in work; kept so that it is not allocated for each.
    headers: Vec<u8>,
}

impl Intake {
    fn new(decoders: usize, hints: &[(usize, usize)]) -> Intake {
        let batch = |(slot, (bytes, records)): (usize, &(usize, usize))| {
            (slot % decoders, RawBatch::new(slot / decoders, *bytes, *records))
        };
        Intake {
            decoders,
            batches: hints.iter().enumerate().map(batch).collect(),
            taken: 0,
            dropped: 0,
            troubles: Vec::new(),
            left: Vec::new(),
            known: None,
            headers: Vec::new(),
        }
    }
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
            large: Large::default(),
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
        let mut entered = Vec::new();
        for claim in self.ownership.all().iter().filter(|c| self.is_mine(c.partition) && c.is_read()) {
            let topic = claim.partition.topic;
            // Without credit it stays parked, and is resumed with its topic.
            if state.readings.enter(claim)
                && !state.stuck[topic]
                && self.budget.topic_has_room(topic, &state.stuck)
            {
                entered.push(claim.partition);
            }
        }
        if entered.is_empty() { Ok(()) } else { self.resume(state, &entered) }
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
            state.large.forget(claim.partition);
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
                let for_long = state.starved[topic].get_or_insert_with(Instant::now).elapsed();
                if for_long >= self.patience(state, topic) {
                    self.park(state, topic, for_long)?;
                } else {
                    may = false;
                }
            }
        }
        Ok(may && self.budget.has_room(&state.stuck))
    }

    /// For how long nothing is read because this topic has no room.
    fn patience(&self, state: &State, topic: usize) -> Duration {
        let has_room = |other: usize| {
            other != topic
                && !state.stuck[other]
                && state.readings.has(other)
                && self.budget.topic_has_room(other, &state.stuck)
        };
        if (0..self.topics.len()).any(has_room) { STUCK_BESIDE_OTHERS } else { STUCK }
    }

    fn park(&self, state: &mut State, topic: usize, for_long: Duration) -> Result<()> {
        log::warn!(
            "topic {:?} is stuck: its tables took too little for {:.1} s; other topics go on",
            self.topics[topic].name,
            for_long.as_secs_f64()
        );
        state.stuck[topic] = true;
        state.starved[topic] = None;
        state.large.forget_topic(topic);
        unassign(&state.queue, &state.readings.park(topic))
    }

    /// Takes what is there and sorts it into a batch for each topic and decoder.
    fn poll(&self, state: &mut State) -> Result<Vec<(usize, RawBatch)>> {
        self.give_turn(state)?;
        let mut intake = Intake::new(self.decoders.len(), &state.hints);
        self.go_on_with_turn(state, &mut intake);
        let mut look = Look::default();
        if let Some(batch) = state.large.take_dense() {
            self.take_apart(&mut state.readings, &mut state.large, batch, &mut look, &mut intake);
        }
        if !state.large.has_dense() {
            let timeout = if state.large.is_busy() || intake.taken > 0 { Duration::ZERO } else { POLL };
            let State { queue, readings, large, .. } = state;
            queue.take(timeout, |message| {
                self.see(message, readings, large, &mut look, &mut intake);
                if large.has_dense() || look.is_over() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        }
        let Intake { mut batches, taken, dropped, troubles, left, .. } = intake;
        for ((_, batch), hint) in batches.iter_mut().zip(&mut state.hints) {
            *hint = (batch.arena_bytes(), batch.len());
            batch.note_anchors();
            state.readings.passed_on(batch);
        }
        self.metrics.add(taken, dropped, batches.iter().map(|(_, b)| b.arena_bytes() as u64).sum());
        unassign(&state.queue, &left)?;
        for (partition, code, text) in troubles {
            self.trouble(state, partition, code, &text)?;
        }
        batches.retain(|(_, batch)| !batch.is_empty());
        Ok(batches)
    }

    /// One message of librdkafka's.
    fn see(
        &self,
        message: &Message<'_>,
        readings: &mut Readings,
        large: &mut Large,
        look: &mut Look,
        intake: &mut Intake,
    ) {
        let topic = match intake.known {
            Some((number, topic)) if number == message.topic_number() => topic,
            _ => self.topic_of(message),
        };
        intake.known = Some((message.topic_number(), topic));
        let partition = topic.map(|topic| Partition { topic, id: message.partition() });
        if let Some((code, text)) = message.error() {
            if planted(Bug::ErrorIsSwallowed) {
                return;
            }
            // At once: a record that comes after one that cannot be read must not be taken.
            if sort(code) == Trouble::Data
                && let Some(reading) = partition.and_then(|p| readings.get(p))
            {
                self.stop_unreadable(&reading.claim, &text);
            }
            intake.troubles.push((partition, code, text));
            return;
        }
        let Some(reading) = partition.and_then(|p| readings.of_record(p)) else {
            intake.dropped += 1;
            return;
        };
        let claim = reading.claim.clone();
        let mut headers = std::mem::take(&mut intake.headers);
        headers.clear();
        message.headers(&mut headers);
        let record = Record {
            topic: &claim.topic,
            partition: claim.partition.id,
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            key: message.key(),
            value: message.value(),
            headers: Headers(&headers),
        };
        if large.must_hold(claim.partition) {
            if large.hold(&record) {
                intake.left.extend(readings.park_for_turn(claim.partition));
            }
        } else {
            match Unpacker::of(record.value, self.message_max_bytes) {
                None => self.judge(reading, &record, intake),
                Some(Ok(unpacker)) => {
                    look.note_batch(unpacker.batch().len());
                    let batch = Batch { claim: claim.clone(), unpacker };
                    self.take_apart(readings, large, batch, look, intake);
                }
                Some(Err(Broken(why))) => self.stop_unreadable(&claim, &why),
            }
        }
        intake.headers = headers;
    }

    /// Decides about one record, and takes it.
    fn judge(&self, reading: &mut Reading, record: &Record<'_>, intake: &mut Intake) {
        let first = reading.gate.expected();
        match reading.gate.see(record.offset, || record.hash()) {
            Verdict::Take => {
                let partition = reading.claim.partition;
                let slot = partition.topic * intake.decoders + partition.id as usize % intake.decoders;
                let mut cut = [0; 28];
                let bounded = record.bounded(self.message_max_bytes, &mut cut);
                intake.batches[slot].1.push(&reading.claim, first, &bounded);
                intake.taken += 1;
            }
            Verdict::Drop => intake.dropped += 1,
            Verdict::Stop(reason) => {
                reading.claim.stop(reason);
                self.ownership.touch();
            }
        }
    }

    fn stop_unreadable(&self, claim: &Claim, why: &str) {
        claim.stop(format!("Kafka serves a record that cannot be read: {why}"));
        self.ownership.touch();
    }

    /// Takes a sealed batch apart, as far as a look goes; the rest of it is put where it goes on.
    fn take_apart(
        &self,
        readings: &mut Readings,
        large: &mut Large,
        mut batch: Batch,
        look: &mut Look,
        intake: &mut Intake,
    ) {
        let Some(reading) = readings.of_claim(&batch.claim) else { return };
        while !look.is_over() {
            let before = batch.unpacker.unpacked_bytes();
            match batch.unpacker.step() {
                Ok(Step::Record(found)) => {
                    let record = found.record(&batch.claim.topic, batch.claim.partition.id);
                    self.judge(reading, &record, intake);
                }
                Ok(Step::Working) => {}
                Ok(Step::End) => return,
                Err(Broken(why)) => return self.stop_unreadable(&batch.claim, &why),
            }
            if !batch.claim.is_read() {
                return;
            }
            look.note(&batch.unpacker, before);
        }
        let partition = batch.claim.partition;
        if !large.go_on_with(batch) {
            log::debug!("{}/{} waits for its turn to be unpacked", reading.claim.topic, partition.id);
            intake.left.extend(readings.park_for_turn(partition));
        }
    }

    /// The partition whose large batch has the turn goes on by one look.
    fn go_on_with_turn(&self, state: &mut State, intake: &mut Intake) {
        let mut look = Look::default();
        while !look.is_over() {
            match state.large.go_on() {
                None => return,
                Some(Next::Batch(batch)) => {
                    self.take_apart(&mut state.readings, &mut state.large, batch, &mut look, intake);
                }
                Some(Next::Held(claim, held)) => {
                    let record = held.record(&claim);
                    let Some(reading) = state.readings.of_claim(&claim) else {
                        state.large.forget(claim.partition);
                        return;
                    };
                    match Unpacker::of(record.value, self.message_max_bytes) {
                        None => self.judge(reading, &record, intake),
                        Some(Ok(unpacker)) => {
                            let batch = Batch { claim: claim.clone(), unpacker };
                            self.take_apart(&mut state.readings, &mut state.large, batch, &mut look, intake);
                        }
                        Some(Err(Broken(why))) => self.stop_unreadable(&claim, &why),
                    }
                    look.note_batch(held.bytes());
                }
            }
        }
    }

    /// Goes on with a partition that waited for its turn.
    fn give_turn(&self, state: &mut State) -> Result<()> {
        if let Some(partition) = state.large.has_done_what_was_kept()
            && state.readings.waits_for_turn(partition)
            && !state.stuck[partition.topic]
        {
            return self.read_in_its_turn(state, partition, Instant::now());
        }
        if !state.large.has_waiting() {
            return Ok(());
        }
        let now = Instant::now();
        let Some(waiting) = state.large.next_waiting(now) else { return Ok(()) };
        let partition = waiting.partition;
        if !state.readings.waits_for_turn(partition) {
            return Ok(());
        }
        if state.stuck[partition.topic] || !self.budget.topic_has_room(partition.topic, &state.stuck) {
            state.large.wait_again(waiting);
            return Ok(());
        }
        if let Some((claim, batch)) =
            waiting.kept.filter(|(claim, _)| state.readings.of_claim(claim).is_some())
        {
            match Unpacker::new(batch, self.message_max_bytes) {
                Ok(unpacker) => state.large.begin_turn(Batch { claim, unpacker }),
                Err(Broken(why)) => self.stop_unreadable(&claim, &why),
            }
            return Ok(());
        }
        self.read_in_its_turn(state, partition, now)
    }

    /// Reads a partition again, which keeps the turn.
    fn read_in_its_turn(&self, state: &mut State, partition: Partition, now: Instant) -> Result<()> {
        self.resume(state, &[partition])?;
        if let Some(reading) = state.readings.get(partition) {
            state.large.reserve(reading.claim.clone(), now);
        }
        Ok(())
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
                // A large batch counts as one record until it is unpacked.
                Some(Offset::Offset(position)) => {
                    *position >= end && !state.large.has_more_of(claim.partition)
                }
                _ => false,
            };
            if passed {
                claim.set_log_end(end.min(reading.gate.expected()));
            } else {
                // As the last answer to a fetch had it: while none is sent, the watch thread knows better.
                claim.raise_log_end(end);
            }
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
