//! Generator threads: wait for the due time, write the message, hand it over, note what Kafka says.
//!
//! A thread owns all it touches per message: its schedule, producer, streams, buffers and histograms. What others may
//! read of it are its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;

use crate::base::clock::{Clock, SECOND_NS};
use crate::base::hash::{mix, unit};
use crate::measure::latency::{Latency, Recording, Set};
use crate::message::account::{Outcome, StreamAccount};
use crate::message::keys::Keys;
use crate::message::model::{Mix, Model};
use crate::message::payload::{Identity, Writer};
use crate::message::stream::{self, Stream};
use crate::send::schedule::Schedule;
use crate::server::kafka::{Handed, Producer, Report};

/// What the other threads see of a generator. One thread writes, so nothing is contended.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    pub sent: AtomicU64,
    pub bytes: AtomicU64,
    pub acked: AtomicU64,
    pub failed: AtomicU64,
    pub indeterminate: AtomicU64,
    /// Messages that found the producer's queue full.
    pub queue_full: AtomicU64,
    /// Due after the warm-up.
    pub steady_due: AtomicU64,
    /// Of these, handed over before the schedule's end.
    pub steady_sent: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    // One writer: a plain load and store is enough and costs no bus lock.
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

/// Where messages go.
pub enum Sink {
    Kafka(Box<Producer>),
    /// Acknowledges at once: shows what the generator itself can do.
    Null,
}

/// What all generator threads share.
pub struct Shared {
    pub clock: Clock,
    pub mix: Mix,
    pub keys: Keys,
    pub tokens: Arc<Vec<String>>,
    pub seed: u64,
    pub warmup_ns: i64,
    pub end_ns: i64,
    pub in_flight: usize,
    /// The user wants an end: send nothing more, wait for the reports.
    pub stop: Arc<AtomicBool>,
}

pub struct Generator {
    shared: Arc<Shared>,
    thread: usize,
    schedule: Schedule,
    sink: Sink,
    desk: Desk,
    /// For each model of the mix, the places of its streams.
    by_model: Vec<Vec<usize>>,
    sources: Vec<String>,
    writer: Writer,
    arrival: u64,
    woke_ns: i64,
    refused: Option<String>,
}

/// Where a thread keeps its books: apart from the sink, because reports are noted while the sink is being asked for them.
struct Desk {
    shared: Arc<Shared>,
    streams: Vec<Stream>,
    accounts: Vec<StreamAccount>,
    offsets: Vec<Vec<(u64, i64)>>,
    flight: Flight,
    recording: Recording,
    counters: Arc<Counters>,
}

/// What a thread leaves behind.
pub struct Finished {
    pub streams: Vec<Stream>,
    pub accounts: Vec<StreamAccount>,
    /// For each stream, (sequence number, offset) of every thousandth message or so: enough to find a message again.
    pub offsets: Vec<Vec<(u64, i64)>>,
    pub set: Box<Set>,
    /// Why the producer refused messages, if it did.
    pub refused: Option<String>,
}

/// Messages that wait for their report. The report brings back the place's number.
struct Flight {
    places: Vec<InFlight>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct InFlight {
    stream: u32,
    seq: u64,
    due_ns: i64,
    sent_ns: i64,
}

/// At least this between two wake-ups of a thread: what falls due in between is sent together, at most so late, and counted
/// as such. A sleep for each message took a third of a core at 20,000 messages a second (measured: the tester as a whole
/// 69 % of a core, so 37 %).
const WAKE_NS: i64 = 500_000;
/// After this many messages in a row without a pause, a thread that is behind looks at its reports anyway.
const REPORTS_EVERY: u64 = 64;
const OFFSET_EVERY: u64 = 1000;

impl Generator {
    #[expect(clippy::too_many_arguments, reason = "the parts of a thread, each made elsewhere")]
    pub fn new(
        shared: Arc<Shared>,
        thread: usize,
        schedule: Schedule,
        sink: Sink,
        streams: Vec<Stream>,
        run: u32,
        writer: Writer,
        recording: Recording,
        counters: Arc<Counters>,
    ) -> Self {
        let places = shared.in_flight;
        let of_model = |model| (0..streams.len()).filter(|s| streams[*s].model == model).collect();
        let desk = Desk {
            shared: shared.clone(),
            accounts: vec![StreamAccount::default(); streams.len()],
            offsets: vec![Vec::new(); streams.len()],
            flight: Flight { places: vec![InFlight::default(); places], free: (0..places as u32).collect() },
            recording,
            counters,
            streams: streams.clone(),
        };
        Self {
            by_model: (0..shared.mix.0.len()).map(of_model).collect(),
            sources: streams.iter().map(|s| stream::source(run, s.id)).collect(),
            shared,
            thread,
            schedule,
            sink,
            desk,
            writer,
            arrival: 0,
            woke_ns: 0,
            refused: None,
        }
    }

    pub fn run(mut self) -> Finished {
        let mut message = Vec::with_capacity(2048);
        while let Some(due) = self.schedule.next() {
            let due_ns = (due * SECOND_NS as f64) as i64;
            self.wait_until(due_ns);
            if self.shared.stop.load(Relaxed) {
                break;
            }
            self.send(due_ns, &mut message);
        }
        self.settle();
        Finished {
            streams: self.desk.streams,
            accounts: self.desk.accounts,
            offsets: self.desk.offsets,
            set: self.desk.recording.set,
            refused: self.refused,
        }
    }

    /// Returns at `due_ns`, or at once where that has passed; takes reports on the way.
    fn wait_until(&mut self, due_ns: i64) {
        if self.arrival.is_multiple_of(REPORTS_EVERY) {
            self.reports(0);
        }
        loop {
            let now_ns = self.shared.clock.now_ns();
            self.desk.recording.hand_over_if_due(now_ns);
            let gap_ns = due_ns - now_ns;
            if gap_ns <= 0 || self.shared.stop.load(Relaxed) {
                return;
            }
            if gap_ns > 3_000_000 {
                // Waiting for reports wakes up with them; it only knows whole milliseconds, so it ends early.
                self.reports((gap_ns / 1_000_000 - 1).min(100) as i32);
            } else {
                self.reports(0);
                self.shared.clock.sleep_until(due_ns.max(self.woke_ns + WAKE_NS));
                self.woke_ns = self.shared.clock.now_ns();
            }
        }
    }

    fn send(&mut self, due_ns: i64, message: &mut Vec<u8>) {
        let at = self.pick_stream();
        let (model, seq) = (self.desk.streams[at].model, self.desk.accounts[at].sent);
        let id =
            Identity { stream: self.desk.streams[at].id, seq, due_us: self.shared.clock.wall_us(due_ns) };
        let user = self.writer.draft.user(&self.shared.keys, id);
        self.writer.write(message, self.shared.mix.0[model].0, id, self.shared.tokens[user].as_bytes());
        let outcome = self.hand_over(at, seq, due_ns, message);
        let now_ns = self.shared.clock.now_ns();
        self.desk.accounts[at].sent += 1;
        add(&self.desk.counters.sent, 1);
        add(&self.desk.counters.bytes, message.len() as u64);
        if due_ns >= self.shared.warmup_ns {
            self.desk.recording.set.of(model, Latency::ScheduleLag).record((now_ns - due_ns) / 1000);
            add(&self.desk.counters.steady_due, 1);
            add(&self.desk.counters.steady_sent, u64::from(now_ns < self.shared.end_ns + SECOND_NS / 100));
        }
        match outcome {
            None => {}
            Some(outcome) => {
                self.desk.note(InFlight { stream: at as u32, seq, due_ns, sent_ns: now_ns }, outcome, -1)
            }
        }
    }

    /// The model is drawn; the streams of a model take turns.
    fn pick_stream(&mut self) -> usize {
        let drawn = unit(mix(self.shared.seed ^ mix((self.thread as u64) << 48 | self.arrival)));
        self.arrival += 1;
        let streams = &self.by_model[self.shared.mix.pick(drawn)];
        streams[self.arrival as usize % streams.len()]
    }

    /// Hands the message over, waiting for room as long as it takes. `Some` where the outcome is known at once.
    fn hand_over(&mut self, at: usize, seq: u64, due_ns: i64, message: &[u8]) -> Option<Outcome> {
        let mut waited = false;
        loop {
            let Sink::Kafka(producer) = &self.sink else { return Some(Outcome::Acked) };
            if let Some(place) = self.desk.flight.free.pop() {
                let sent_ns = self.shared.clock.now_ns();
                self.desk.flight.places[place as usize] =
                    InFlight { stream: at as u32, seq, due_ns, sent_ns };
                let stream = &self.desk.streams[at];
                let key = self.sources[at].as_bytes();
                match producer.send(stream.model, stream.partition, key, message, place as usize) {
                    Handed::Over => return None,
                    Handed::Full => self.desk.flight.free.push(place),
                    Handed::Refused(reason) => {
                        self.desk.flight.free.push(place);
                        self.refused.get_or_insert(reason);
                        return Some(Outcome::Failed);
                    }
                }
            }
            if !waited {
                add(&self.desk.counters.queue_full, 1);
                waited = true;
            }
            self.reports(1);
            self.desk.recording.hand_over_if_due(self.shared.clock.now_ns());
            if self.shared.stop.load(Relaxed) {
                return Some(Outcome::Failed);
            }
        }
    }

    fn reports(&mut self, wait_ms: i32) {
        match &self.sink {
            Sink::Kafka(producer) => producer.reports(wait_ms, |report| self.desk.report(report)),
            Sink::Null if wait_ms > 0 => std::thread::sleep(Duration::from_millis(wait_ms as u64)),
            Sink::Null => {}
        }
    }

    /// Waits until every message has its report. librdkafka gives up on a message after `message.timeout.ms`, so this
    /// ends; what is still open then counts as indeterminate.
    fn settle(&mut self) {
        let open = |flight: &Flight| flight.places.len() - flight.free.len();
        let limit_ns = self.shared.clock.now_ns() + 70 * SECOND_NS;
        while open(&self.desk.flight) > 0 && self.shared.clock.now_ns() < limit_ns {
            self.reports(20);
            self.desk.recording.hand_over_if_due(self.shared.clock.now_ns());
        }
        add(&self.desk.counters.indeterminate, open(&self.desk.flight) as u64);
    }
}

impl Desk {
    fn report(&mut self, report: Report) {
        let message = self.flight.places[report.number];
        self.flight.free.push(report.number as u32);
        self.note(message, report.outcome, report.offset);
    }

    fn note(&mut self, message: InFlight, outcome: Outcome, offset: i64) {
        let at = message.stream as usize;
        self.accounts[at].settle(message.seq, outcome);
        match outcome {
            Outcome::Acked => add(&self.counters.acked, 1),
            Outcome::Failed => add(&self.counters.failed, 1),
            Outcome::Indeterminate | Outcome::Pending => add(&self.counters.indeterminate, 1),
        }
        if outcome != Outcome::Acked {
            return;
        }
        if offset >= 0 && message.seq.is_multiple_of(OFFSET_EVERY) {
            self.offsets[at].push((message.seq, offset));
        }
        if message.due_ns >= self.shared.warmup_ns {
            let now_ns = self.shared.clock.now_ns();
            let model = self.streams[at].model;
            self.recording.set.of(model, Latency::Ack).record((now_ns - message.due_ns) / 1000);
            self.recording.set.of(model, Latency::AckService).record((now_ns - message.sent_ns) / 1000);
        }
    }
}

/// The producer of one thread, or none.
pub fn sink(
    kafka: Option<&crate::server::kafka::Kafka>,
    models: &[Model],
    topics: &[String],
    in_flight: usize,
    linger_ms: f64,
) -> Result<Sink> {
    let Some(kafka) = kafka else { return Ok(Sink::Null) };
    debug_assert_eq!(models.len(), topics.len());
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    Ok(Sink::Kafka(Box::new(Producer::new(kafka, &names, in_flight, linger_ms)?)))
}
