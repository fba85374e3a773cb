//! What `serve` shows of itself: instruments that the loops move, and what is made of them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::base::lock::lock;
use crate::base::retry::Episode;
use crate::figures::board::{self, Teller, Work};
use crate::figures::family::Family;
use crate::figures::instruments::Histogram;
use crate::http::event_loop::Shared;
use crate::verb::web::requests::Requests;

#[derive(Debug)]
pub struct Figures {
    endpoints: Vec<String>,
    requests: Requests,
    of: Vec<OfEndpoint>,
    /// By server.
    pub pools: Vec<OfPool>,
    /// Requests in work: asked and not answered.
    pub waiting: AtomicUsize,
    pub cancels: AtomicU64,
    /// Sessions that were closed because nobody knew whether a cancel request was over.
    pub replaced: AtomicU64,
    /// A loop turns every second, whatever it waits for; for the watchdog.
    turns: Vec<AtomicU64>,
}

/// Of one endpoint.
#[derive(Debug)]
pub struct OfEndpoint {
    /// From a question to the session that it got.
    pub queue_seconds: Histogram,
    /// From the statement's way to the server to its last row.
    pub query_seconds: Histogram,
    /// From the request to the first byte of its answer.
    pub answer_seconds: Histogram,
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    /// Requests that were answered by another one's statement.
    pub joined: AtomicU64,
    /// 304 by the ledger: the statement did not run.
    pub spared: AtomicU64,
}

/// Of the sessions with one server.
#[derive(Debug)]
pub struct OfPool {
    pub name: &'static str,
    pub wanted: usize,
    pub open: AtomicUsize,
    pub lent: AtomicUsize,
    was_open: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// Whether a server gives sessions.
#[derive(Debug, Default)]
struct Trouble {
    episode: Episode,
    since: Option<Instant>,
    reason: String,
}

/// Without a session for so long, a process is of no use.
const TROUBLE: Duration = Duration::from_secs(5);

impl Figures {
    pub fn new(endpoints: &[String], pools: Vec<(&'static str, usize)>, loops: Vec<Arc<Shared>>) -> Figures {
        let endpoint = |_: &String| OfEndpoint {
            queue_seconds: Histogram::of_seconds(),
            query_seconds: Histogram::of_seconds(),
            answer_seconds: Histogram::of_seconds(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            joined: AtomicU64::new(0),
            spared: AtomicU64::new(0),
        };
        let pool = |(name, wanted)| OfPool {
            name,
            wanted,
            open: AtomicUsize::new(0),
            lent: AtomicUsize::new(0),
            was_open: AtomicBool::new(false),
            trouble: Mutex::default(),
        };
        Figures {
            endpoints: endpoints.to_vec(),
            of: endpoints.iter().map(endpoint).collect(),
            pools: pools.into_iter().map(pool).collect(),
            waiting: AtomicUsize::new(0),
            cancels: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            turns: loops.iter().map(|_| AtomicU64::new(0)).collect(),
            requests: Requests::new(endpoints, loops),
        }
    }

    pub fn of(&self, endpoint: usize) -> &OfEndpoint {
        &self.of[endpoint]
    }

    /// An answer began to go out; `endpoint` is `None` where the request had none.
    pub fn answered(&self, endpoint: Option<usize>, status: StatusCode, took: Duration) {
        self.requests.answered(endpoint, status);
        if let Some(endpoint) = endpoint {
            self.of[endpoint].answer_seconds.observe(took.as_secs_f64());
        }
    }

    /// Once a second, by each loop.
    pub fn turned(&self, number: usize) {
        self.turns[number].fetch_add(1, Relaxed);
    }
}

impl OfPool {
    /// A session was opened.
    pub fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
        self.was_open.store(true, Relaxed);
        let mut trouble = lock(&self.trouble);
        trouble.since = None;
        if trouble.episode.ends() {
            log::info!("the {} gives sessions again", self.name);
        }
    }

    /// None could be opened.
    pub fn refused(&self, reason: String) {
        let mut trouble = lock(&self.trouble);
        trouble.since.get_or_insert_with(Instant::now);
        if trouble.episode.begins() {
            log::warn!(
                "no session with the {}: {reason}; it is tried again, and requests are answered with 503 meanwhile",
                self.name
            );
        }
        trouble.reason = reason;
    }
}

impl board::Service for Figures {
    fn ready(&self) -> Result<(), String> {
        for pool in &self.pools {
            let trouble = lock(&pool.trouble);
            if pool.open.load(Relaxed) > 0 {
                continue;
            }
            if !pool.was_open.load(Relaxed) && trouble.since.is_none() {
                return Err(format!("the first session with the {} is being opened", pool.name));
            }
            if let Some(since) = trouble.since.filter(|since| since.elapsed() > TROUBLE) {
                return Err(format!(
                    "the {} has given no session for {} s: {}",
                    pool.name,
                    since.elapsed().as_secs(),
                    trouble.reason
                ));
            }
        }
        Ok(())
    }

    fn works(&self) -> Vec<Work> {
        let work = |(number, turns): (usize, &AtomicU64)| Work {
            name: format!("serve-{number}"),
            // A statement may take as long as it is allowed to; a loop that does not turn is a hang.
            waiting: true,
            signs: turns.load(Relaxed),
        };
        self.turns.iter().enumerate().map(work).collect()
    }

    fn families(&self) -> Vec<Family> {
        let mut queue = Family::histogram(
            "rowmill_serve_queue_seconds",
            "From a question to the session that it got, by endpoint.",
        );
        let mut query = Family::histogram(
            "rowmill_serve_query_seconds",
            "From a statement's way to the server to its last row, by endpoint.",
        );
        let mut answer = Family::histogram(
            "rowmill_serve_answer_seconds",
            "From a request to the first byte of its answer, by endpoint.",
        );
        let mut counters = [
            Family::counter("rowmill_serve_rows_total", "Rows that the server sent, by endpoint."),
            Family::counter(
                "rowmill_serve_bytes_total",
                "Bytes of answers before they are packed, by endpoint.",
            ),
            Family::counter(
                "rowmill_serve_joined_total",
                "Requests that were answered by an equal one's statement, by endpoint.",
            ),
            Family::counter(
                "rowmill_serve_spared_total",
                "Answers 304 by the ledger, for which no statement ran, by endpoint.",
            ),
        ];
        for (name, of) in self.endpoints.iter().zip(&self.of) {
            let labels = [("route", name.as_str())];
            queue.add_buckets(&labels, of.queue_seconds.read());
            query.add_buckets(&labels, of.query_seconds.read());
            answer.add_buckets(&labels, of.answer_seconds.read());
            for (family, count) in counters.iter_mut().zip([&of.rows, &of.bytes, &of.joined, &of.spared]) {
                family.add(&labels, count.load(Relaxed) as f64);
            }
        }
        let mut sessions =
            Family::gauge("rowmill_serve_sessions", "Sessions with each server, by what they do.");
        for pool in &self.pools {
            let (open, lent) = (pool.open.load(Relaxed), pool.lent.load(Relaxed));
            for (state, count) in [
                ("idle", open.saturating_sub(lent)),
                ("lent", lent),
                ("missing", pool.wanted.saturating_sub(open)),
            ] {
                sessions.add(&[("server", pool.name), ("state", state)], count as f64);
            }
        }
        let mut families = self.requests.families();
        families.extend([queue, query, answer]);
        families.extend(counters);
        families.extend([
            sessions,
            Family::gauge("rowmill_serve_waiting", "Requests that were asked and not answered.")
                .with(self.waiting.load(Relaxed) as f64),
            Family::counter(
                "rowmill_serve_cancels_total",
                "Statements that were canceled since nobody waited for them.",
            )
            .with(self.cancels.load(Relaxed) as f64),
            Family::counter(
                "rowmill_serve_replaced_total",
                "Sessions that were closed since a cancel request might still have struck them.",
            )
            .with(self.replaced.load(Relaxed) as f64),
        ]);
        families
    }

    fn teller(self: Arc<Self>) -> Teller {
        let mut before = (0, 0, 0);
        Box::new(move |interval| {
            let (all, failed) = (self.requests.sum(|_| true), self.requests.sum(|code| code >= 500));
            let rows: u64 = self.of.iter().map(|of| of.rows.load(Relaxed)).sum();
            let per_second =
                |now: u64, before: u64| (now - before) as f64 / interval.as_secs_f64().max(0.001);
            let (answers, rate) = (per_second(all, before.0), per_second(rows, before.2));
            let bad = failed - before.1;
            before = (all, failed, rows);
            let lent: usize = self.pools.iter().map(|pool| pool.lent.load(Relaxed)).sum();
            let open: usize = self.pools.iter().map(|pool| pool.open.load(Relaxed)).sum();
            let trouble = match board::Service::ready(&*self) {
                Ok(()) => String::new(),
                Err(reason) => format!(", {reason}"),
            };
            format!(
                "{answers:.0} answers/s, {rate:.0} rows/s, {bad} failed, {} connections, {lent} of {open} sessions at work{trouble}",
                self.requests.connections()
            )
        })
    }
}
