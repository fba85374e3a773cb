//! Readers at work: a thread each asks its endpoint at its rate, or as often as its clients get answers, and holds what comes
//! back against what must be.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use serde_json::Value as Json;

use crate::base::clock::{Clock, SECOND_NS};
use crate::measure::latency::{Latency, Recording, Set};
use crate::measure::newest::Newest;
use crate::message::ask::{Pace, Reader};
use crate::message::draw::{Draft, Identity};
use crate::send::courier::{Answers, name_of};
use crate::send::replay::Score;
use crate::server::http::client::{Call, Client, Ended};
use crate::server::http::target::Server;

/// What the other threads see of a reader.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    pub asked: AtomicU64,
    /// No answer, or one that says no.
    pub unanswered: AtomicU64,
    /// Something did not hold that must.
    pub wrong: AtomicU64,
    /// Values newer than this machine's clock.
    pub ahead: AtomicU64,
    pub no_room: AtomicU64,
}

/// Where and how a reader asks.
pub struct Desk {
    pub reader: Arc<Reader>,
    /// Its row among the histograms.
    pub row: usize,
    /// Its place among the readers.
    pub number: usize,
    pub server: Server,
    pub bearer: Option<HeaderValue>,
    pub answer_within: Duration,
    /// Of the model that its answers show.
    pub newest: Option<Arc<Newest>>,
    pub warmup_ns: i64,
    pub end_ns: i64,
    pub stop: Arc<AtomicBool>,
}

/// What a reader leaves behind.
pub struct Finished {
    pub reader: Arc<Reader>,
    pub row: usize,
    pub set: Box<Set>,
    pub answers: Answers,
    pub examples: Vec<String>,
    pub counters: Arc<Counters>,
}

/// A question that is under way.
struct Question {
    seq: u64,
    due_ns: i64,
    /// The newest message that was acknowledged when it was asked.
    published_us: Option<i64>,
}

pub struct Asking {
    desk: Desk,
    clock: Clock,
    draft: Draft,
    client: Client,
    headers: HeaderMap,
    drawn: Vec<(usize, HeaderName)>,
    recording: Recording,
    counters: Arc<Counters>,
    answers: Answers,
    examples: Vec<String>,
    seq: u64,
    open: Vec<Option<Question>>,
    free: Vec<usize>,
    /// Of clients in a closed loop, when each asks again.
    ready: VecDeque<i64>,
}

/// Of each reader.
const EXAMPLES: usize = 10;
/// The identities of questions are none that a message has: streams count from the other end.
const STREAM_LAST: usize = u16::MAX as usize;
/// A clock that is this far ahead is another one.
const AHEAD_US: i64 = 1_000_000;

impl Asking {
    pub fn new(desk: Desk, score: &Score, recording: Recording, counters: Arc<Counters>) -> Result<Self> {
        let reader = desk.reader.clone();
        let client = Client::new(vec![desk.server.clone()], reader.clients, desk.answer_within)
            .context("set up epoll")?;
        let (headers, drawn) = headers(&reader, desk.bearer.as_ref())?;
        Ok(Self {
            clock: score.clock,
            draft: Draft::new(score.seed, score.run, score.people.clone()),
            client,
            headers,
            drawn,
            recording,
            counters,
            answers: Answers::new(),
            examples: Vec::new(),
            seq: 0,
            open: Vec::new(),
            free: Vec::new(),
            ready: (0..reader.clients).map(|_| 0).collect(),
            desk,
        })
    }

    pub fn run(mut self) -> Finished {
        self.client.warm_up();
        while !self.desk.stop.load(Relaxed) {
            let now_ns = self.clock.now_ns();
            self.recording.hand_over_if_due(now_ns);
            let next_ns = self.next_due_ns();
            if next_ns.is_some_and(|due_ns| due_ns >= self.desk.end_ns) || now_ns >= self.desk.end_ns {
                break;
            }
            match next_ns {
                Some(due_ns) if due_ns <= now_ns => {
                    self.ask(due_ns);
                    self.take(Duration::ZERO);
                }
                next => {
                    let wait_ns = next.map_or(SECOND_NS / 10, |due_ns| due_ns - now_ns).min(SECOND_NS / 10);
                    self.take(Duration::from_nanos(wait_ns.max(0) as u64));
                }
            }
        }
        let until_ns = self.clock.now_ns() + self.desk.answer_within.as_nanos() as i64 + SECOND_NS;
        while self.client.open_calls() > 0 && self.clock.now_ns() < until_ns {
            self.take(Duration::from_millis(20));
        }
        Finished {
            reader: self.desk.reader,
            row: self.desk.row,
            set: self.recording.set,
            answers: self.answers,
            examples: self.examples,
            counters: self.counters,
        }
    }

    /// When the next question is due; `None` where every client waits for its answer.
    fn next_due_ns(&self) -> Option<i64> {
        match self.desk.reader.pace {
            Pace::Open(rate) => Some((self.seq as f64 / rate * SECOND_NS as f64) as i64),
            Pace::Closed(_) => self.ready.front().copied(),
        }
    }

    fn ask(&mut self, due_ns: i64) {
        if matches!(self.desk.reader.pace, Pace::Closed(_)) {
            self.ready.pop_front();
        }
        let seq = self.seq;
        self.seq += 1;
        self.counters.asked.fetch_add(1, Relaxed);
        self.draw(seq, due_ns);
        let call = match self.call() {
            Ok(call) => call,
            Err(problem) => return self.failed("no_request".to_owned(), problem),
        };
        let published_us = self.published_us();
        let at = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[at] = Some(Question { seq, due_ns, published_us });
        self.client.call(0, Call { number: at as u64, ..call });
    }

    fn draw(&mut self, seq: u64, due_ns: i64) {
        let stream = (STREAM_LAST - self.desk.number) as u16;
        let id = Identity { stream, seq, due_us: self.clock.wall_us(due_ns) };
        self.draft.fill(&self.desk.reader.program, id);
    }

    fn call(&mut self) -> Result<Call, String> {
        let reader = self.desk.reader.clone();
        let (mut path, mut body) = (Vec::new(), Vec::new());
        self.draft.write(&reader.path, &mut path);
        self.draft.write(&reader.body, &mut body);
        let mut headers = self.headers.clone();
        for (at, name) in &self.drawn {
            let mut value = Vec::new();
            self.draft.write(&reader.headers[*at].1, &mut value);
            let value = HeaderValue::from_bytes(&value).map_err(|error| format!("header {name}: {error}"))?;
            headers.insert(name.clone(), value);
        }
        let uri = Uri::try_from(path).map_err(|error| format!("a path is none: {error}"))?;
        let method = Method::from_str(&reader.method).map_err(|error| error.to_string())?;
        Ok(Call { number: 0, method, uri, headers, body: Bytes::from(body) })
    }

    fn published_us(&mut self) -> Option<i64> {
        let newest = self.desk.newest.as_ref()?;
        let by = self.desk.reader.freshness.as_ref()?.by.as_ref().map(|(_, slot)| *slot);
        let key = by.map(|slot| self.draft.fold_plain(slot));
        newest.of(key)
    }

    fn take(&mut self, wait: Duration) {
        let mut ended = Vec::new();
        self.client.turn(wait, |number, end| ended.push((number as usize, end)));
        for (at, end) in ended {
            let question = self.open[at].take().expect("a question is open until it ends");
            self.free.push(at);
            self.on_end(&question, end);
        }
        self.counters.no_room.store(self.client.traffic.no_room, Relaxed);
    }

    fn on_end(&mut self, question: &Question, ended: Ended) {
        let now_ns = self.clock.now_ns();
        if let Pace::Closed(pause) = self.desk.reader.pace {
            // One that failed at once must not be asked again at once, or it would be all that is done.
            let least = if matches!(ended, Ended::Answered(_)) { 0 } else { SECOND_NS / 10 };
            self.ready.push_back(now_ns + (pause.as_nanos() as i64).max(least));
        }
        let name = name_of(&ended);
        let Ended::Answered(answer) = ended else {
            let why =
                if name == "no_room" { "this machine has no port or descriptor left" } else { "no answer" };
            return self.failed(name, why.to_owned());
        };
        if answer.status >= 300 {
            return self.failed(name, format!("status {}", answer.status));
        }
        *self.answers.entry(name).or_default() += 1;
        let steady = question.due_ns >= self.desk.warmup_ns;
        if steady {
            let late_us = (now_ns - question.due_ns) / 1000;
            self.recording.set.of(self.desk.row, Latency::Answer).record(late_us);
        }
        self.draw(question.seq, question.due_ns);
        let json: Json = serde_json::from_slice(&answer.body).unwrap_or(Json::Null);
        let fault = self.desk.reader.clone().fault(&mut self.draft, &json);
        if let Some(fault) = fault.or_else(|| self.freshness(question, &json, steady)) {
            self.counters.wrong.fetch_add(1, Relaxed);
            self.note(fault);
        }
    }

    /// How far behind the answer is; a sentence where it has no value and must have one.
    fn freshness(&mut self, question: &Question, json: &Json, steady: bool) -> Option<String> {
        let fresh = self.desk.reader.freshness.as_ref()?;
        let published_us = question.published_us?;
        let Some(newest_us) = fresh.newest_us(json) else {
            return Some("the answer has no newest value, and messages were acknowledged".to_owned());
        };
        if newest_us > self.clock.wall_us(self.clock.now_ns()) + AHEAD_US {
            self.counters.ahead.fetch_add(1, Relaxed);
            return None;
        }
        if steady {
            // What is newer than all that had been acknowledged lacks nothing.
            let behind_us = (published_us - newest_us).max(0);
            self.recording.set.of(self.desk.row, Latency::Behind).record(behind_us);
        }
        None
    }

    fn failed(&mut self, name: String, why: String) {
        *self.answers.entry(name).or_default() += 1;
        self.counters.unanswered.fetch_add(1, Relaxed);
        self.note(why);
    }

    fn note(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{}: {text}", self.desk.reader.name));
        }
    }
}

fn headers(reader: &Reader, bearer: Option<&HeaderValue>) -> Result<(HeaderMap, Vec<(usize, HeaderName)>)> {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_str(&reader.url.authority).context("the host")?);
    if let Some(bearer) = bearer {
        headers.insert(AUTHORIZATION, bearer.clone());
    }
    let mut drawn = Vec::new();
    for (at, (name, value)) in reader.headers.iter().enumerate() {
        let name = HeaderName::from_str(name).with_context(|| format!("\"{name}\" is no header"))?;
        match value.literal() {
            Some(text) => {
                headers.insert(name, HeaderValue::from_bytes(&text).context("a header's value")?);
            }
            None => drawn.push((at, name)),
        }
    }
    Ok((headers, drawn))
}
