//! What answers the requests of one loop: from bytes to records to Kafka, and from delivery reports to the answer.
//!
//! A request is read whole, and every record of it is looked at before the first is sent. What was taken is counted in one budget
//! of the process until it is answered.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};
use slab::Slab;

use super::figures::{Fate, Figures};
use super::pace::Pace;
use super::rate;
use super::records::{Found, Reader, Record};
use super::route::{Id, Key, Must, Route, Routes};
use super::standing::{Standing, Standings};
use super::tables::{Judge, Tables};
use super::template::{Request, Source};
use super::verdict::{Failure, Kind, Outcome, retry_after, told};
use crate::config::{Ack, Batch as BatchMode, Collect, Validate};
use crate::figures::board::Board;
use crate::http::coding::{Coding, Packed, TAKEN};
use crate::http::exchange::{Exchange, NoBody, Ticket};
use crate::http::reply::{Answer, JSON, answer, problem, uncached};
use crate::http::service::Service;
use crate::http::wire::Refusal;
use crate::kafka::Packing;
use crate::kafka::lasting::Lasting;
use crate::kafka::native::send::{Failed, Place, Report, Sender};
use crate::kafka::send;
use crate::verb::page;
use crate::verb::web::cors::{self, Cors};
use crate::verb::web::paths::{Found as Path, decoded};
use crate::verb::web::refusals::{later, text, unauthorized, wrong_method};
use crate::verb::web::tokens::TokenFile;

/// What all loops share.
pub struct House {
    pub config: Collect,
    pub routes: Routes,
    /// `None` where everybody may send.
    pub tokens: Option<Arc<TokenFile>>,
    pub cors: Cors,
    pub figures: Arc<Figures>,
    pub board: Arc<Board>,
    pub openapi: String,
    pub hostname: String,
    /// The largest record of each topic, as its brokers said last.
    pub topics: Arc<super::topics::Topics>,
    /// Where a route asks what the models would make of a record.
    pub tables: Option<Arc<Tables>>,
    /// Where the rate of all instances is told.
    pub rate: Option<Arc<rate::Rate>>,
    /// Where a route asks whether what it is about is there.
    pub standings: Option<Arc<Standings>>,
}

/// What a request may wait for.
pub enum Verdict {
    Stored(Outcome),
    Standing(Standing),
}

/// One loop's door.
pub struct Door {
    house: Arc<House>,
    /// The loop's.
    number: usize,
    /// What was asked of PostgreSQL for requests of this loop.
    standings: Receiver<(Ticket, Standing)>,
    client: Lasting,
    /// For records that shared a batch with one that is too large: each in a batch of its own. Made when it is needed first.
    alone: OnceCell<Lasting>,
    make_alone: Box<dyn Fn() -> anyhow::Result<Lasting>>,
    /// For each route, what finds its records.
    readers: Vec<RefCell<Reader>>,
    batches: RefCell<Slab<Batch>>,
    rate: RefCell<Rate>,
    /// For each topic.
    paces: RefCell<Vec<Pace>>,
    judge: Option<RefCell<Judge>>,
}

/// The records of one request, until all are decided. Each was given to the client library once and is reported once, so a
/// batch ends however its client does.
struct Batch {
    /// `None` where nobody waits.
    ticket: Option<Ticket>,
    route: usize,
    left: u32,
    outcome: Outcome,
    bytes: usize,
    sent: Instant,
}

/// Bytes that Kafka acknowledges in a second, of the last seconds.
#[derive(Default)]
struct Rate {
    bytes: usize,
    per_second: f64,
}

/// Room that a body takes in the process's budget, given back by being dropped.
struct Room {
    figures: Arc<Figures>,
    bytes: usize,
}

/// What a record holds in the client library beside its bytes.
const RECORD_OVERHEAD: usize = 256;

const RECEIPT: HeaderName = HeaderName::from_static("rowmill-receipt");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of a record that says which one it is.
const ID: &std::ffi::CStr = c"rowmill-id";

/// What a page of another origin may send and see.
pub fn cors(config: &Collect) -> Cors {
    Cors {
        origins: config.cors_origins.clone(),
        methods: "GET, POST, PUT, PATCH",
        sent: "Authorization, Content-Type, Content-Encoding, Idempotency-Key, Rowmill-Receipt",
        seen: "Retry-After, Rowmill-Receipt",
    }
}

/// An Idempotency-Key is a UUID as a rule.
const IDEMPOTENCY_KEY_MAX: usize = 200;

impl Room {
    /// # Errors
    /// Where the budget has none.
    fn take(figures: &Arc<Figures>, bytes: usize) -> Result<Room, ()> {
        let mut room = Room { figures: figures.clone(), bytes: 0 };
        room.resize(bytes)?;
        Ok(room)
    }

    fn resize(&mut self, bytes: usize) -> Result<(), ()> {
        let in_flight = &self.figures.bytes_in_flight;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if in_flight.fetch_add(more, Relaxed) + more > self.figures.bytes_in_flight_max {
                in_flight.fetch_sub(more, Relaxed);
                return Err(());
            }
        } else {
            in_flight.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// It is given back by somebody else.
    fn keep(mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.figures.bytes_in_flight.fetch_sub(self.bytes, Relaxed);
    }
}

impl Door {
    /// # Errors
    /// `make` makes a client: of records in batches, or each alone.
    pub fn new(
        house: Arc<House>,
        number: usize,
        standings: Receiver<(Ticket, Standing)>,
        make: impl Fn(Packing) -> anyhow::Result<Sender> + 'static,
    ) -> anyhow::Result<Door> {
        let pace = Pace::new(house.config.deliver_timeout, house.config.inflight_max_bytes);
        let paces = RefCell::new(vec![pace; house.routes.topics.len()]);
        let judge = house.tables.clone().map(|tables| RefCell::new(Judge::new(tables, &house.routes.topics)));
        let readers = house.routes.routes.iter().map(|route| RefCell::new(Reader::new(route))).collect();
        let make = Rc::new(make);
        let client_of = move |packing| {
            let make = make.clone();
            Lasting::new(move || make(packing))
        };
        Ok(Door {
            house,
            number,
            standings,
            client: client_of(Packing::Together)?,
            alone: OnceCell::new(),
            make_alone: Box::new(move || client_of(Packing::Alone)),
            readers,
            batches: RefCell::default(),
            rate: RefCell::default(),
            paces,
            judge,
        })
    }

    async fn take(&self, exchange: &mut Exchange<Verdict>, number: usize, parameters: Vec<String>) -> Answer {
        let route = &self.house.routes.routes[number];
        let token = match &self.house.tokens {
            None => None,
            Some(tokens) => match tokens.of(text(&exchange.head.headers, &AUTHORIZATION)) {
                None => return unauthorized(json!({"stored": "no"})),
                Some(token) if !token.may(&self.house.config.routes[number].path) => {
                    return problem(
                        StatusCode::FORBIDDEN,
                        &format!("the token {:?} may not send here", token.name),
                        json!({"stored": "no"}),
                    );
                }
                Some(token) => Some(token),
            },
        };
        let body = match self.body(exchange, route).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let (body, mut room) = body;
        let began = Instant::now();
        let asked = Asked { head: &exchange.head, parameters: &parameters, hostname: &self.house.hostname };
        let built = match built(route, &asked) {
            Ok(built) => built,
            Err(reason) => return problem(StatusCode::BAD_REQUEST, &reason, json!({"stored": "no"})),
        };
        let body = built.unwrap_or(body);
        let (records, refused) = match self.find(number, &body, &asked) {
            Ok(found) => found,
            Err(refusal) => return *refusal,
        };
        if let Some(must) = &route.must
            && let Err(refusal) = self.must(exchange, number, must, &parameters).await
        {
            return *refusal;
        }
        if room.resize(body.len() + RECORD_OVERHEAD * records.len()).is_err() {
            return self.no_room();
        }
        if let Some(token) = token
            && let Err(seconds) = token.take(records.len() as u32, began)
        {
            return later(
                StatusCode::TOO_MANY_REQUESTS,
                "the rate of this token is used up",
                seconds,
                json!({"stored": "no"}),
            );
        }
        self.house.figures.decided(number, Fate::Refused, refused.len() as u64);
        if records.is_empty() || (route.batch == BatchMode::Whole && !refused.is_empty()) {
            self.house.figures.decided(number, Fate::Refused, records.len() as u64);
            return self.told(route, &Outcome { failed: refused, ..Outcome::default() });
        }
        let wants_places =
            text(&exchange.head.headers, &RECEIPT).is_some_and(|v| v.eq_ignore_ascii_case("yes"));
        let total = records.len() as u32;
        let ticket = (route.ack == Ack::All).then(|| exchange.ticket());
        let outcome = Outcome {
            failed: refused,
            places: wants_places
                .then(|| vec![None; records.last().map_or(0, |record| record.index as usize + 1)]),
            ..Outcome::default()
        };
        let bytes = room.keep();
        let batch = Batch { ticket, route: number, left: total, outcome, bytes, sent: began };
        let slot = self.batches.borrow_mut().insert(batch);
        self.paces.borrow_mut()[route.topic].sent(bytes);
        self.send(slot, number, &body, &records);
        drop(body);
        // Nothing was taken, so no report will come: it ends here, whether anybody waits or not.
        if let Some((_, outcome)) = self.finished(slot) {
            return self.told(route, &outcome);
        }
        if route.ack == Ack::Queued {
            let taken = self.batches.borrow().get(slot).map_or(0, |batch| batch.left);
            return answer(StatusCode::ACCEPTED, JSON, format!("{{\"queued\":{taken}}}"));
        }
        match exchange.verdict().await {
            Verdict::Stored(outcome) => self.told(route, &outcome),
            // Nobody asks for one here.
            Verdict::Standing(_) => self.unanswered("it is not known what became of the request", "unknown"),
        }
    }

    /// Whether what a request is about is there and active; the refusal where it is not, or nobody knows.
    async fn must(
        &self,
        exchange: &Exchange<Verdict>,
        number: usize,
        must: &Must,
        parameters: &[String],
    ) -> Result<(), Box<Answer>> {
        let Some(standings) = &self.house.standings else { return Ok(()) };
        let asked = Asked { head: &exchange.head, parameters, hostname: &self.house.hostname };
        let refusal = |status, detail: &str| Err(Box::new(problem(status, detail, json!({"stored": "no"}))));
        let key = match must.value.text(&asked) {
            Ok(key) => key,
            Err(reason) => return refusal(StatusCode::BAD_REQUEST, &reason),
        };
        if standings.is_active(number, &key) {
            return Ok(());
        }
        if !standings.ask(number, key.clone(), self.number, exchange.ticket()) {
            return Err(Box::new(self.overloaded("more wait to be looked up than may; nothing was sent")));
        }
        let standing = match exchange.verdict().await {
            Verdict::Standing(standing) => standing,
            Verdict::Stored(_) => Standing::Unanswered,
        };
        let channel = &must.channel;
        match standing {
            Standing::Active => Ok(()),
            Standing::Inactive => refusal(must.inactive, &format!("{channel} {key} is not active")),
            Standing::Unknown => refusal(must.unknown, &format!("there is no {channel} {key}")),
            Standing::Unanswered => Err(Box::new(
                self.unanswered(&format!("nobody can say now whether {channel} {key} is there"), "no"),
            )),
        }
    }

    fn unanswered(&self, detail: &str, stored: &str) -> Answer {
        let mut refusal = problem(StatusCode::SERVICE_UNAVAILABLE, detail, json!({"stored": stored}));
        self.retry(&mut refusal);
        refusal
    }

    /// The body, unpacked, with its room in the budget; or why not.
    async fn body(&self, exchange: &mut Exchange<Verdict>, route: &Route) -> Result<(Bytes, Room), Answer> {
        let config = &self.house.config;
        if let Some(wanted) = &route.content_type {
            let found = text(&exchange.head.headers, &CONTENT_TYPE).unwrap_or_default();
            if !found.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted) {
                let detail = format!("this route takes {wanted}; Content-Type is {found:?}");
                return Err(problem(StatusCode::BAD_REQUEST, &detail, json!({"stored": "no"})));
            }
        }
        let named = text(&exchange.head.headers, &CONTENT_ENCODING).unwrap_or_default().to_owned();
        let Some(coding) = Coding::named(&named) else {
            let detail = format!("Content-Encoding {named:?} is not taken; {TAKEN} are");
            let mut refusal = problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, &detail, json!({"stored": "no"}));
            refusal.headers_mut().insert(hyper::header::ACCEPT_ENCODING, HeaderValue::from_static(TAKEN));
            return Err(refusal);
        };
        if !self.paces.borrow()[route.topic].has_room() {
            return Err(self
                .overloaded("Kafka takes less than comes for this topic; nothing of this request was kept"));
        }
        // Chunks do not say how many they will be.
        let announced = exchange.length().map_or(config.body_max_bytes, |length| length as usize);
        if announced > config.body_max_bytes {
            return Err(too_large(config.body_max_bytes));
        }
        let mut room = Room::take(&self.house.figures, announced).map_err(|()| self.no_room())?;
        let body = exchange.read(config.body_max_bytes).await.map_err(|why| match why {
            NoBody::TooLarge => too_large(config.body_max_bytes),
            NoBody::Broken(reason) => problem(StatusCode::BAD_REQUEST, reason, json!({"stored": "no"})),
            NoBody::Late => {
                problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time", json!({"stored": "no"}))
            }
        })?;
        if coding == Coding::Identity {
            room.resize(body.len()).map_err(|()| self.no_room())?;
            return Ok((body, room));
        }
        // What it may become, until it is known what it becomes.
        room.resize(body.len() + config.body_max_bytes).map_err(|()| self.no_room())?;
        let body = coding.unpack(body, config.body_max_bytes).map_err(|why| match why {
            Packed::TooLarge => too_large(config.body_max_bytes),
            Packed::Broken(why) => problem(
                StatusCode::BAD_REQUEST,
                &format!("the body is not what its Content-Encoding {named:?} says: {why}"),
                json!({"stored": "no"}),
            ),
        })?;
        room.resize(body.len()).map_err(|()| self.no_room())?;
        Ok((body, room))
    }

    /// Every record of a body, and what is wrong with the others.
    fn find(
        &self,
        number: usize,
        body: &Bytes,
        asked: &Asked<'_>,
    ) -> Result<(Vec<Record>, Vec<Failure>), Box<Answer>> {
        let config = &self.house.config;
        let route = &self.house.routes.routes[number];
        let prefix = match id_prefix(route, asked.head) {
            Ok(prefix) => prefix,
            Err(reason) => {
                return Err(Box::new(problem(StatusCode::BAD_REQUEST, &reason, json!({"stored": "no"}))));
            }
        };
        let key = match &route.key {
            Key::Template(template) => match template.text(asked) {
                Ok(key) => Some(key.into_bytes()),
                Err(reason) => {
                    return Err(Box::new(problem(StatusCode::BAD_REQUEST, &reason, json!({"stored": "no"}))));
                }
            },
            _ => None,
        };
        let topic_max = self.house.topics.record_max(route.topic);
        let bytes_max = config.record_max_bytes.min(topic_max.unwrap_or(usize::MAX));
        let mut found = self.readers[number].borrow_mut().read(route, body, bytes_max, config.records_max);
        if let Found::TooMany = found {
            let detail = format!("more than {} records in one request", config.records_max);
            return Err(Box::new(problem(StatusCode::PAYLOAD_TOO_LARGE, &detail, json!({"stored": "no"}))));
        }
        let Found::Records(records, failed) = &mut found else {
            return Err(Box::new(too_large(config.body_max_bytes)));
        };
        if records.is_empty() && failed.is_empty() {
            return Err(Box::new(problem(
                StatusCode::BAD_REQUEST,
                "the body holds no record",
                json!({"stored": "no"}),
            )));
        }
        for record in records.iter_mut() {
            if let Some(key) = &key {
                record.key = Some(key.clone());
            }
            if let Some(prefix) = &prefix {
                record.id = Some(format!("{prefix}/{}", record.index).into_bytes());
            }
        }
        let (mut records, mut failed) = (std::mem::take(records), std::mem::take(failed));
        if route.validate == Validate::Model {
            self.judge(route, body, &mut records, &mut failed);
        }
        Ok((records, failed))
    }

    /// Takes out what the models of the topic would refuse.
    fn judge(&self, route: &Route, body: &Bytes, records: &mut Vec<Record>, failed: &mut Vec<Failure>) {
        let Some(judge) = &self.judge else { return };
        let mut judge = judge.borrow_mut();
        records.retain(|record| {
            let refusal = judge.refusal(route.topic, record, body, &ID.to_string_lossy());
            let Some(reason) = refusal else { return true };
            let at = Some(record.range.start);
            failed.push(Failure { index: record.index, at, kind: Kind::Bad, reason });
            false
        });
        failed.sort_by_key(|failure| failure.index);
    }

    fn send(&self, slot: usize, number: usize, body: &Bytes, records: &[Record]) {
        let topic = self.house.routes.routes[number].topic;
        for record in records {
            let value = &body[record.range.clone()];
            let header = record.id.as_deref().map(|id| (ID, id));
            let tag = (slot as u64) << 32 | u64::from(record.index);
            if let Err(code) = self.client.send(topic, record.key.as_deref(), value, header, tag) {
                let (fate, reason) = send::refused(code, &self.house.routes.topics[topic]);
                let failure = Failure { index: record.index, at: None, kind: fate.into(), reason };
                self.decide(slot, failure.index, Err(failure), value.len());
            }
        }
    }

    fn topic_of(&self, slot: usize) -> &str {
        let route = self.batches.borrow().get(slot).map_or(0, |batch| batch.route);
        &self.house.routes.topics[self.house.routes.routes[route].topic]
    }

    /// One record's fate.
    fn decide(&self, slot: usize, index: u32, result: Result<Place, Failure>, bytes: usize) {
        let mut batches = self.batches.borrow_mut();
        let Some(batch) = batches.get_mut(slot) else { return };
        let figures = &self.house.figures;
        batch.left -= 1;
        match result {
            Ok(place) => {
                batch.outcome.delivered += 1;
                figures.bytes_delivered.fetch_add(bytes as u64, Relaxed);
                self.rate.borrow_mut().bytes += bytes;
                if let Some(at) =
                    batch.outcome.places.as_mut().and_then(|places| places.get_mut(index as usize))
                {
                    *at = Some(place);
                }
            }
            Err(failure) => {
                let fate = if failure.kind == Kind::Unknown { Fate::Unknown } else { Fate::NotStored };
                figures.decided(batch.route, fate, 1);
                batch.outcome.failed.push(failure);
            }
        }
    }

    /// The outcome of a batch with nothing left to be decided; its room is given back.
    fn finished(&self, slot: usize) -> Option<(Option<Ticket>, Outcome)> {
        let mut batches = self.batches.borrow_mut();
        if batches.get(slot).is_none_or(|batch| batch.left > 0) {
            return None;
        }
        let mut batch = batches.remove(slot);
        let figures = &self.house.figures;
        figures.bytes_in_flight.fetch_sub(batch.bytes, Relaxed);
        let waited = batch.sent.elapsed();
        figures.acknowledged_seconds.observe(waited.as_secs_f64());
        let topic = self.house.routes.routes[batch.route].topic;
        self.paces.borrow_mut()[topic].decided(batch.bytes, (batch.outcome.delivered > 0).then_some(waited));
        figures.decided(batch.route, Fate::Delivered, batch.outcome.delivered.into());
        batch.outcome.failed.sort_by_key(|failure| failure.index);
        Some((batch.ticket, batch.outcome))
    }

    /// The brokers refuse a whole batch for one record that is too large. True if the record was sent again, alone: then it is
    /// known which one that is.
    fn sent_again(&self, report: &Report<'_>) -> bool {
        if !report.result.is_err_and(Failed::is_too_large) {
            return false;
        }
        // Somebody made the topic's limit smaller.
        self.house.topics.look_soon();
        if self.alone.get().is_none() {
            match (self.make_alone)() {
                Ok(client) => drop(self.alone.set(client)),
                Err(error) => {
                    log::warn!("{error:#}; records beside one that is too large are refused with it")
                }
            }
        }
        let slot = (report.tag >> 32) as usize;
        let topic = self.batches.borrow().get(slot).map(|batch| self.house.routes.routes[batch.route].topic);
        match (self.alone.get(), topic) {
            (Some(alone), Some(topic)) => {
                let header = report.header(ID);
                alone.send(topic, report.key, report.value, header.map(|id| (ID, id)), report.tag).is_ok()
            }
            _ => false,
        }
    }

    fn reported(&self, report: &Report<'_>, verdicts: &mut Vec<(Ticket, Verdict)>) {
        let (slot, index) = ((report.tag >> 32) as usize, report.tag as u32);
        let result = report.result.map_err(|failed| {
            let (fate, reason) = send::failed(failed, self.topic_of(slot));
            Failure { index, at: None, kind: fate.into(), reason }
        });
        if let Err(failure) = &result
            && matches!(failure.kind, Kind::NotStored | Kind::Unknown)
        {
            self.house.figures.kafka(Err(&failure.reason), Instant::now());
        }
        let is_good = result.is_ok();
        self.decide(slot, index, result, report.value.len());
        if let Some((ticket, outcome)) = self.finished(slot) {
            if is_good {
                self.house.figures.kafka(Ok(()), Instant::now());
            }
            verdicts.extend(ticket.map(|ticket| (ticket, Verdict::Stored(outcome))));
        }
    }

    fn told(&self, route: &Route, outcome: &Outcome) -> Answer {
        let mut answer = told(outcome, route.batch, route.answer, &self.house.routes.topics[route.topic]);
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT].contains(&answer.status()) {
            self.retry(&mut answer);
        }
        answer
    }

    fn no_room(&self) -> Answer {
        self.overloaded("more is in flight than may be; nothing of this request was kept")
    }

    fn overloaded(&self, detail: &str) -> Answer {
        let status =
            StatusCode::from_u16(self.house.config.overload).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let mut refusal = problem(status, detail, json!({"stored": "no"}));
        self.retry(&mut refusal);
        refusal
    }

    fn retry(&self, answer: &mut Answer) {
        let in_flight = self.house.figures.bytes_in_flight.load(Relaxed);
        let dice = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros());
        let seconds = retry_after(in_flight, self.rate.borrow().per_second, dice);
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }

    /// What is answered without a route.
    fn aside(&self, head: &Parts) -> Option<Answer> {
        if let Some(answer) = cors::preflight(head) {
            return Some(answer);
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return None;
        }
        if let Some(answer) = self.house.rate.as_ref().and_then(|rate| rate.answer(head.uri.path())) {
            return Some(answer);
        }
        match head.uri.path() {
            "/debug/vars" => {
                Some(uncached(answer(StatusCode::OK, JSON, self.house.figures.vars().to_string())))
            }
            "/openapi.json" => Some(answer(StatusCode::OK, JSON, self.house.openapi.clone())),
            path => page::look(path, text(&head.headers, &ACCEPT).unwrap_or_default(), &self.house.board),
        }
    }
}

impl Service for Door {
    type Verdict = Verdict;

    async fn answer(self: Rc<Self>, mut exchange: Exchange<Verdict>) -> Answer {
        let began = Instant::now();
        let origin = exchange.head.headers.get(ORIGIN).cloned();
        let (mut answer, route) = match self.aside(&exchange.head) {
            Some(answer) => (answer, None),
            None => {
                let path = exchange.head.uri.path().to_owned();
                match self.house.routes.find(&exchange.head.method, &path) {
                    Path::Place(number, parameters) => {
                        let decoded = parameters.into_iter().map(|part| decoded(part).map(Cow::into_owned));
                        let answer = match decoded.collect::<Result<Vec<_>, _>>() {
                            Ok(parameters) => self.take(&mut exchange, number, parameters).await,
                            Err(reason) => problem(StatusCode::BAD_REQUEST, &reason, json!({"stored": "no"})),
                        };
                        (answer, Some(number))
                    }
                    Path::OtherMethods(methods) => (wrong_method(&methods, json!({"stored": "no"})), None),
                    Path::Nothing => (
                        problem(StatusCode::NOT_FOUND, "there is no such route", json!({"stored": "no"})),
                        None,
                    ),
                }
            }
        };
        self.house.cors.let_browsers_see(origin, &mut answer);
        self.house.figures.answered(route, answer.status(), route.map(|_| began.elapsed()));
        answer
    }

    fn woken(&self, verdicts: &mut Vec<(Ticket, Verdict)>) {
        verdicts.extend(
            self.standings.try_iter().map(|(ticket, standing)| (ticket, Verdict::Standing(standing))),
        );
        self.client.reports(|report| {
            if !self.sent_again(report) {
                self.reported(report, verdicts);
            }
        });
        if let Some(alone) = self.alone.get() {
            alone.reports(|report| self.reported(report, verdicts));
        }
    }

    fn nobody_waits(&self, verdict: Verdict) {
        if let Verdict::Stored(_) = verdict {
            self.house.figures.left.fetch_add(1, Relaxed);
        }
    }

    fn refused(&self, refusal: Refusal) {
        self.house.figures.answered(None, refusal.status, None);
    }

    fn tick(&self) {
        std::iter::once(&self.client).chain(self.alone.get()).for_each(Lasting::renew);
        let mut rate = self.rate.borrow_mut();
        // A few seconds: what was true a minute ago helps nobody to come back.
        rate.per_second = rate.per_second * 0.7 + rate.bytes as f64 * 0.3;
        rate.bytes = 0;
        self.paces.borrow_mut().iter_mut().for_each(Pace::tick);
    }
}

/// A request as templates see it.
struct Asked<'a> {
    head: &'a Parts,
    parameters: &'a [String],
    hostname: &'a str,
}

impl Request for Asked<'_> {
    fn text(&self, source: &Source) -> Option<Cow<'_, str>> {
        match source {
            Source::Path(number) => self.parameters.get(*number).map(Cow::from),
            Source::Query(name) => {
                let pairs = self.head.uri.query()?.split('&');
                let pair = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                // The first of several; a + is a blank, as forms write it.
                let (_, value) =
                    pair.into_iter().find(|(key, _)| decoded(key).is_ok_and(|key| key == *name))?;
                decoded(&value.replace('+', " ")).ok().map(|value| Cow::Owned(value.into_owned()))
            }
            Source::Header(name) => self.head.headers.get(name)?.to_str().ok().map(Cow::from),
            Source::Now => Some(Cow::Owned(now())),
            Source::Hostname => Some(self.hostname.into()),
        }
    }

    fn now_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
    }
}

/// RFC 3339 in UTC, with milliseconds.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// The record that a route makes of the request, as a body; `None` where the body is the record.
fn built(route: &Route, asked: &Asked<'_>) -> Result<Option<Bytes>, String> {
    let Some(fields) = &route.record else { return Ok(None) };
    let mut record = Map::new();
    for (name, template) in fields {
        record.insert(name.clone(), template.value(asked)?);
    }
    Ok(Some(Value::Object(record).to_string().into()))
}

/// What the ids of a request's records begin with; `None` where they are made of fields, or there are none.
fn id_prefix(route: &Route, head: &Parts) -> Result<Option<String>, String> {
    let (name, shown) = match &route.id {
        Id::IdempotencyKey => (&IDEMPOTENCY_KEY, "Idempotency-Key"),
        Id::Header(name) => (name, name.as_str()),
        Id::None | Id::Fields(_) => return Ok(None),
    };
    match text(&head.headers, name).map(|key| key.trim().trim_matches('"')) {
        Some(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_MAX => Ok(Some(key.to_owned())),
        Some(_) => Err(format!("{shown} is empty, or longer than 200 bytes")),
        None => {
            Err(format!("this route wants {shown}: any text that is the same in each retry of this request"))
        }
    }
}

fn too_large(bytes_max: usize) -> Answer {
    problem(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("a body has at most {bytes_max} bytes, as sent and as unpacked"),
        json!({"stored": "no"}),
    )
}
