//! What the door shows of itself: instruments that the loops move, and what is made of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::base::lock::lock;
use crate::figures::board::{self, Teller, Work};
use crate::figures::family::Family;
use crate::figures::instruments::Histogram;
use crate::http::event_loop::Shared;
use crate::verb::web::requests::Requests;

/// Answers whose times `/debug/vars` knows.
const TIMES: usize = 256;

/// What became of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    /// At the door.
    Refused,
    /// By the brokers, or by time; not in Kafka.
    NotStored,
    Unknown,
}

impl Fate {
    const ALL: [(Fate, &'static str); 4] = [
        (Fate::Delivered, "delivered"),
        (Fate::Refused, "refused"),
        (Fate::NotStored, "not_stored"),
        (Fate::Unknown, "unknown"),
    ];
}

#[derive(Debug)]
pub struct Figures {
    routes: Vec<String>,
    requests: Requests,
    /// By route and fate.
    records: Vec<[AtomicU64; Fate::ALL.len()]>,
    /// Verdicts that came when their client had left.
    pub left: AtomicU64,
    /// Of bodies that were read and not answered.
    pub bytes_in_flight: AtomicUsize,
    pub bytes_in_flight_max: usize,
    pub bytes_delivered: AtomicU64,
    /// From the last byte of a body to the answer of the brokers.
    pub acknowledged_seconds: Histogram,
    /// Answers, for the watchdog: they move while requests wait.
    answers: AtomicU64,
    recent: Mutex<VecDeque<f32>>,
    trouble: Mutex<Trouble>,
}

/// Whether Kafka takes records.
#[derive(Debug, Default)]
struct Trouble {
    now: Option<Failing>,
}

/// Nothing was delivered since its begin.
#[derive(Debug)]
struct Failing {
    since: Instant,
    /// The last record that failed, and why.
    last: Instant,
    reason: String,
}

/// Without a failure for so long, brokers that answer are believed to take records again: where nobody sends any more, because it
/// is not ready, no record would ever show it.
const QUIET: Duration = Duration::from_secs(3);

/// Records that fail for so long mean that Kafka takes none.
const TROUBLE: Duration = Duration::from_secs(5);

impl Figures {
    pub fn new(routes: &[String], bytes_in_flight_max: usize, loops: Vec<Arc<Shared>>) -> Figures {
        Figures {
            routes: routes.to_vec(),
            requests: Requests::new(routes, loops),
            records: (0..routes.len()).map(|_| Default::default()).collect(),
            left: AtomicU64::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            bytes_in_flight_max,
            bytes_delivered: AtomicU64::new(0),
            acknowledged_seconds: Histogram::of_seconds(),
            answers: AtomicU64::new(0),
            recent: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// An answer went out; `route` is `None` where the request had none.
    pub fn answered(&self, route: Option<usize>, status: StatusCode, took: Option<Duration>) {
        self.requests.answered(route, status);
        self.answers.fetch_add(1, Relaxed);
        if let Some(took) = took {
            let mut recent = lock(&self.recent);
            if recent.len() == TIMES {
                recent.pop_front();
            }
            recent.push_back(took.as_secs_f32());
        }
    }

    pub fn decided(&self, route: usize, fate: Fate, records: u64) {
        let place = Fate::ALL.iter().position(|(other, _)| *other == fate).unwrap_or(0);
        self.records[route][place].fetch_add(records, Relaxed);
    }

    /// Records of all routes that Kafka has, since the start.
    pub fn delivered(&self) -> u64 {
        let place = Fate::ALL.iter().position(|(fate, _)| *fate == Fate::Delivered).unwrap_or(0);
        self.records.iter().map(|fates| fates[place].load(Relaxed)).sum()
    }

    /// Kafka took a record, or refused one for this reason.
    pub fn kafka(&self, result: Result<(), &str>, now: Instant) {
        let mut trouble = lock(&self.trouble);
        match result {
            Ok(()) => trouble.now = None,
            Err(reason) => {
                let since = trouble.now.as_ref().map_or(now, |failing| failing.since);
                trouble.now = Some(Failing { since, last: now, reason: reason.to_owned() });
            }
        }
    }

    pub fn is_failing(&self) -> bool {
        lock(&self.trouble).now.is_some()
    }

    /// The brokers answered a question.
    pub fn kafka_answers(&self, now: Instant) {
        let mut trouble = lock(&self.trouble);
        let is_quiet = |failing: &Failing| now.saturating_duration_since(failing.last) > QUIET;
        if trouble.now.as_ref().is_some_and(is_quiet) {
            trouble.now = None;
        }
    }

    fn records_of(&self, fate: Fate) -> u64 {
        let place = Fate::ALL.iter().position(|(other, _)| *other == fate).unwrap_or(0);
        self.records.iter().map(|route| route[place].load(Relaxed)).sum()
    }

    /// The counters under the names that readers of expvar know.
    pub fn vars(&self) -> Value {
        let recent = lock(&self.recent);
        let (least, most) = recent
            .iter()
            .fold((f32::INFINITY, 0.0f32), |(least, most), time| (least.min(*time), most.max(*time)));
        let least = if least.is_finite() { least } else { 0.0 };
        let average = if recent.is_empty() { 0.0 } else { recent.iter().sum::<f32>() / recent.len() as f32 };
        json!({
            "cmdline": [env!("CARGO_PKG_NAME")],
            "serverMetrics": {
                "requests": {
                    "total": self.requests.sum(|_| true),
                    "failed": self.requests.sum(|code| code >= 400),
                    // As those who read it spell it.
                    "successfull": self.requests.sum(|code| code < 400),
                },
                "responseTimes": { "minimum": least, "maximum": most, "average": average },
            },
        })
    }
}

impl board::Service for Figures {
    fn ready(&self) -> Result<(), String> {
        match &lock(&self.trouble).now {
            Some(Failing { since, reason, .. }) if since.elapsed() > TROUBLE => {
                Err(format!("Kafka has taken no record for {} s: {reason}", since.elapsed().as_secs()))
            }
            _ => Ok(()),
        }
    }

    fn works(&self) -> Vec<Work> {
        let signs = self.answers.load(Relaxed) + self.records_of(Fate::Delivered);
        let waiting = self.bytes_in_flight.load(Relaxed) > 0;
        vec![Work { name: "the door".to_owned(), waiting, signs }]
    }

    fn families(&self) -> Vec<Family> {
        let mut records = Family::counter(
            "rowmill_collect_records_total",
            "Records that came in, by route and what became of them.",
        );
        for (name, outcomes) in self.routes.iter().zip(&self.records) {
            for (count, (_, fate)) in outcomes.iter().zip(Fate::ALL) {
                records.add(&[("route", name), ("outcome", fate)], count.load(Relaxed) as f64);
            }
        }
        let mut seconds = Family::histogram(
            "rowmill_collect_acknowledged_seconds",
            "From the last byte of a request to the brokers' answer for all of its records.",
        );
        seconds.add_buckets(&[], self.acknowledged_seconds.read());
        let mut families = self.requests.families();
        families.extend([
            records,
            seconds,
            Family::counter(
                "rowmill_collect_clients_left_total",
                "Verdicts that came when their client had left.",
            )
            .with(self.left.load(Relaxed) as f64),
            Family::gauge("rowmill_collect_in_flight_bytes", "Bodies that were read and not answered.")
                .with(self.bytes_in_flight.load(Relaxed) as f64),
            Family::gauge(
                "rowmill_collect_in_flight_max_bytes",
                "The bound of the same (collect.inflight_max).",
            )
            .with(self.bytes_in_flight_max as f64),
            Family::counter(
                "rowmill_collect_delivered_bytes_total",
                "Bytes of records that all in-sync replicas have.",
            )
            .with(self.bytes_delivered.load(Relaxed) as f64),
        ]);
        families
    }

    fn teller(self: Arc<Self>) -> Teller {
        let mut before = (0, 0);
        Box::new(move |interval| {
            let delivered = self.records_of(Fate::Delivered);
            let failed = self.requests.sum(|code| code >= 400);
            let rate = (delivered - before.0) as f64 / interval.as_secs_f64().max(0.001);
            let bad = failed - before.1;
            before = (delivered, failed);
            let connections = self.requests.connections();
            let kib = self.bytes_in_flight.load(Relaxed) >> 10;
            let trouble = match board::Service::ready(&*self) {
                Ok(()) => String::new(),
                Err(reason) => format!(", {reason}"),
            };
            format!(
                "{rate:.0} records/s, {bad} requests failed, {connections} connections, {kib} kB in flight{trouble}"
            )
        })
    }
}
