//! Generator threads: wait for the due time, write the message, hand it over, note what Kafka says.
//!
//! A thread owns all it touches per message: its schedule, producer, streams, buffers and histograms. What others may
//! read of it are its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::base::clock::{Clock, SECOND_NS};
use crate::measure::latency::{Latency, Recording, Set};
use crate::measure::newest::Newest;
use crate::message::account::{Outcome, StreamAccount};
use crate::message::draw::Identity;
use crate::message::model::Mix;
use crate::message::payload::{Writer, Written};
use crate::message::stream::Stream;
use crate::send::courier::{Answers, Courier, Delivery};
use crate::send::course::{Arrival, Course};
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
    /// Messages whose request a server of HTTP answered with no.
    pub refused: AtomicU64,
    /// Requests that were sent again.
    pub retried: AtomicU64,
    /// Connections that were opened, that ended, and that this machine had no room for.
    pub connects: AtomicU64,
    pub closes: AtomicU64,
    pub no_room: AtomicU64,
    /// Due after the warm-up.
    pub steady_due: AtomicU64,
    /// Of these, handed over before the schedule's end.
    pub steady_sent: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    // One writer: a plain load and store is enough and costs no bus lock.
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

/// Where messages go: each model's either to Kafka or over HTTP. Without both they are acknowledged at once, which shows what
/// the generator itself can do.
#[derive(Default)]
pub struct Outlets {
    pub kafka: Option<Box<Producer>>,
    pub http: Option<Courier>,
}

/// What all generator threads share.
pub struct Shared {
    pub clock: Clock,
    pub mix: Arc<Mix>,
    pub warmup_ns: i64,
    pub end_ns: i64,
    pub in_flight: usize,
    /// By model, what readers are told of; empty where there are none.
    pub newest: Vec<Arc<Newest>>,
    /// The user wants an end: send nothing more, wait for the reports.
    pub stop: Arc<AtomicBool>,
}

pub struct Generator {
    shared: Arc<Shared>,
    course: Course,
    outlets: Outlets,
    desk: Desk,
    writer: Writer,
    woke_ns: i64,
    refused: Option<String>,
}

/// Where a thread keeps its books: apart from the outlets, because reports are noted while these are being asked for them.
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
    /// What servers of HTTP answered.
    pub answers: Answers,
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
    fresh: Option<u64>,
}

/// At least this between two wake-ups of a thread: what falls due in between is sent together, at most so late, and counted
/// as such. A sleep for each message took a third of a core at 20,000 messages a second (measured: the tester as a whole
/// 69 % of a core, so 37 %).
const WAKE_NS: i64 = 500_000;
/// After this many messages in a row without a pause, a thread that is behind looks at its reports anyway.
const REPORTS_EVERY: u64 = 64;
/// The same over HTTP, where an answer also makes room for the next request.
const ANSWERS_EVERY: u64 = 16;
const OFFSET_EVERY: u64 = 1000;

impl Generator {
    pub fn new(
        shared: Arc<Shared>,
        course: Course,
        outlets: Outlets,
        streams: Vec<Stream>,
        writer: Writer,
        recording: Recording,
        counters: Arc<Counters>,
    ) -> Self {
        let places = shared.in_flight;
        let desk = Desk {
            shared: shared.clone(),
            accounts: vec![StreamAccount::default(); streams.len()],
            offsets: vec![Vec::new(); streams.len()],
            flight: Flight { places: vec![InFlight::default(); places], free: (0..places as u32).collect() },
            recording,
            counters,
            streams,
        };
        Self { shared, course, outlets, desk, writer, woke_ns: 0, refused: None }
    }

    pub fn run(mut self) -> Finished {
        let mut written = Written::default();
        while let Some(arrival) = self.course.next() {
            self.wait_until(arrival.due_ns);
            if self.shared.stop.load(Relaxed) {
                break;
            }
            self.send(arrival, &mut written);
        }
        self.settle();
        Finished {
            streams: self.desk.streams,
            accounts: self.desk.accounts,
            offsets: self.desk.offsets,
            set: self.desk.recording.set,
            refused: self.refused,
            answers: self.outlets.http.map_or(Answers::new(), |courier| courier.answers),
        }
    }

    /// Returns at `due_ns`, or at once where that has passed; takes reports on the way.
    fn wait_until(&mut self, due_ns: i64) {
        let every = if self.outlets.http.is_some() { ANSWERS_EVERY } else { REPORTS_EVERY };
        if self.course.arrivals().is_multiple_of(every) {
            self.reports(0);
        }
        loop {
            let now_ns = self.shared.clock.now_ns();
            self.desk.recording.hand_over_if_due(now_ns);
            let gap_ns = due_ns - now_ns;
            if gap_ns <= 0 || self.shared.stop.load(Relaxed) {
                return;
            }
            let wake_ns = due_ns.max(self.woke_ns + WAKE_NS);
            if self.outlets.http.is_some() {
                // Answers are taken as they come: when one is read is when it counts as arrived.
                self.reports((wake_ns - now_ns).min(SECOND_NS / 10));
                // An answer wakes the thread as well; what is due then is not to wait for that.
                let now_ns = self.shared.clock.now_ns();
                if now_ns >= wake_ns {
                    self.woke_ns = now_ns;
                }
            } else if gap_ns > 3_000_000 {
                // Waiting for reports wakes up with them; it only knows whole milliseconds, so it ends early.
                self.reports((gap_ns - 1_000_000).min(SECOND_NS / 10));
            } else {
                self.reports(0);
                self.shared.clock.sleep_until(wake_ns);
                self.woke_ns = self.shared.clock.now_ns();
            }
        }
    }

    fn send(&mut self, arrival: Arrival, written: &mut Written) {
        let Arrival { stream: at, model, seq, due_ns } = arrival;
        let id =
            Identity { stream: self.desk.streams[at].id, seq, due_us: self.shared.clock.wall_us(due_ns) };
        self.writer.write(written, &self.shared.mix.0[model].0, id);
        let outcome = self.hand_over(&arrival, written);
        let now_ns = self.shared.clock.now_ns();
        self.desk.accounts[at].sent = seq + 1;
        add(&self.desk.counters.sent, 1);
        add(&self.desk.counters.bytes, written.message.len() as u64);
        if due_ns >= self.shared.warmup_ns {
            self.desk.recording.set.of(model, Latency::ScheduleLag).record((now_ns - due_ns) / 1000);
            add(&self.desk.counters.steady_due, 1);
            add(&self.desk.counters.steady_sent, u64::from(now_ns < self.shared.end_ns + SECOND_NS / 100));
        }
        match outcome {
            None => {}
            Some(outcome) => self.desk.note(
                InFlight { stream: at as u32, seq, due_ns, sent_ns: now_ns, fresh: written.fresh },
                outcome,
                None,
            ),
        }
    }

    /// Hands the message over, waiting for room as long as it takes. `Some` where the outcome is known at once.
    fn hand_over(&mut self, arrival: &Arrival, written: &Written) -> Option<Outcome> {
        let Arrival { stream: at, seq, due_ns, .. } = *arrival;
        let mut waited = false;
        loop {
            if self.outlets.kafka.is_none() && self.outlets.http.is_none() {
                return Some(Outcome::Acked);
            }
            if let Some(place) = self.desk.flight.free.pop() {
                let sent_ns = self.shared.clock.now_ns();
                self.desk.flight.places[place as usize] =
                    InFlight { stream: at as u32, seq, due_ns, sent_ns, fresh: written.fresh };
                match self.outlets.send(&self.desk.streams[at], written, place as usize) {
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
            self.reports(1_000_000);
            self.desk.recording.hand_over_if_due(self.shared.clock.now_ns());
            if self.shared.stop.load(Relaxed) {
                return Some(Outcome::Failed);
            }
        }
    }

    /// Takes what Kafka and servers have said, waiting up to so long for the first of it.
    fn reports(&mut self, wait_ns: i64) {
        let desk = &mut self.desk;
        let wait_ms = (wait_ns / 1_000_000) as i32;
        match &mut self.outlets {
            Outlets { kafka: Some(producer), http: None } => {
                producer.reports(wait_ms, |report| desk.report(report));
            }
            Outlets { kafka, http: Some(courier) } => {
                if let Some(producer) = kafka {
                    producer.reports(0, |report| desk.report(report));
                }
                // With both, Kafka's reports are looked at every millisecond.
                let most_ns = if kafka.is_some() { wait_ns.min(1_000_000) } else { wait_ns };
                courier
                    .reports(Duration::from_nanos(most_ns.max(0) as u64), |delivery| desk.deliver(delivery));
                desk.count(courier);
            }
            Outlets { kafka: None, http: None } if wait_ms > 0 => {
                std::thread::sleep(Duration::from_millis(wait_ms as u64));
            }
            Outlets { kafka: None, http: None } => {}
        }
    }

    /// Waits until every message has its report. librdkafka gives up on a message after `message.timeout.ms`, so this
    /// ends; what is still open then counts as indeterminate.
    fn settle(&mut self) {
        let open = |flight: &Flight| flight.places.len() - flight.free.len();
        let limit_ns = self.shared.clock.now_ns() + 70 * SECOND_NS;
        if let Some(courier) = &mut self.outlets.http {
            courier.close_batches();
        }
        while open(&self.desk.flight) > 0 && self.shared.clock.now_ns() < limit_ns {
            self.reports(20_000_000);
            self.desk.recording.hand_over_if_due(self.shared.clock.now_ns());
        }
        add(&self.desk.counters.indeterminate, open(&self.desk.flight) as u64);
    }
}

impl Desk {
    fn report(&mut self, report: Report) {
        let message = self.flight.places[report.number];
        self.flight.free.push(report.number as u32);
        self.note(message, report.outcome, Some(report.offset));
    }

    fn deliver(&mut self, delivery: Delivery) {
        let message = self.flight.places[delivery.number];
        self.flight.free.push(delivery.number as u32);
        self.note(message, delivery.outcome, None);
        if delivery.refused {
            add(&self.counters.refused, 1);
            if message.due_ns >= self.shared.warmup_ns {
                // Apart from those that were taken: a no is quickly said.
                let late_us = (self.shared.clock.now_ns() - message.due_ns) / 1000;
                let model = self.streams[message.stream as usize].model;
                self.recording.set.of(model, Latency::Refused).record(late_us);
            }
        }
    }

    fn count(&self, courier: &Courier) {
        let traffic = courier.traffic();
        self.counters.retried.store(courier.retried, Relaxed);
        self.counters.connects.store(traffic.connects, Relaxed);
        self.counters.closes.store(traffic.closes, Relaxed);
        self.counters.no_room.store(traffic.no_room, Relaxed);
    }

    fn note(&mut self, message: InFlight, outcome: Outcome, offset: Option<i64>) {
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
        if let Some(offset) = offset.filter(|offset| *offset >= 0)
            && message.seq.is_multiple_of(OFFSET_EVERY)
        {
            self.offsets[at].push((message.seq, offset));
        }
        if let Some(newest) = self.shared.newest.get(self.streams[at].model) {
            newest.note(message.fresh, self.shared.clock.wall_us(message.due_ns));
        }
        if message.due_ns >= self.shared.warmup_ns {
            let now_ns = self.shared.clock.now_ns();
            let model = self.streams[at].model;
            self.recording.set.of(model, Latency::Ack).record((now_ns - message.due_ns) / 1000);
            self.recording.set.of(model, Latency::AckService).record((now_ns - message.sent_ns) / 1000);
        }
    }
}

impl Outlets {
    fn send(&mut self, stream: &Stream, written: &Written, number: usize) -> Handed {
        if let Some(courier) = self.http.as_mut().filter(|courier| courier.carries(stream.model)) {
            return match courier.send(stream.model, written, number) {
                Ok(()) => Handed::Over,
                Err(reason) => Handed::Refused(reason),
            };
        }
        match &self.kafka {
            Some(producer) => {
                producer.send(stream.model, stream.partition, &written.key, &written.message, number)
            }
            None => Handed::Refused("there is nobody to send this model's messages to".to_owned()),
        }
    }
}
