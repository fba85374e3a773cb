//! What answers the requests of one loop: from a request to a question, and from what became of it to the answer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, ORIGIN, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::{Value as Json, json};

use super::docs;
use super::endpoint::{self, Endpoint, media, suffix};
use super::failure::Failure;
use super::house::House;
use super::look;
use super::parameter::{self, Given, Members, Value};
use super::works::{Drawn, End, Pipe, Question, Told, Works};
use crate::config::{Etag, Format};
use crate::http::coding::{Coding, Packed, Packer, TAKEN, takes_gzip};
use crate::http::exchange::{Exchange, NoBody, Ticket};
use crate::http::reply::{Answer, Body, Broken, Flow, JSON, answer, problem, uncached};
use crate::http::service::Service;
use crate::http::wire::Refusal;
use crate::verb::page;
use crate::verb::web::cors;
use crate::verb::web::paths::Found;
use crate::verb::web::refusals::{later, text, unauthorized, wrong_method};

/// One loop's window.
pub struct Window {
    house: Arc<House>,
    works: RefCell<Works>,
    /// Faults that were logged in this second.
    logged: Cell<(u64, u32)>,
}

const AFTER: HeaderName = HeaderName::from_static("rowmill-after");

/// Below it the frame costs more than it saves.
const PACKED_MIN: usize = 1024;

/// Lines about faults in a second; the others are counted by their status.
const LOGGED_MAX: u32 = 20;

/// Of our own page: nothing from elsewhere, no script but its own.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A place among those who wait; whoever drops it has left.
struct Seat {
    window: Rc<Window>,
    ticket: Ticket,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.window.house.figures.waiting.fetch_sub(1, Relaxed);
        self.window.works.borrow_mut().leave(self.ticket, Instant::now());
    }
}

/// An answer that flows to the client who led.
struct Reader {
    pipe: Rc<Pipe>,
    seat: Seat,
    packer: Option<Packer>,
    is_over: bool,
}

impl Flow for Reader {
    fn next(&mut self) -> Poll<Option<Result<Bytes, Broken>>> {
        while !self.is_over {
            let (drawn, has_room) = self.pipe.draw();
            if has_room {
                self.seat.window.works.borrow_mut().go_on(self.seat.ticket);
            }
            let bytes = match drawn {
                Drawn::Dry => return Poll::Pending,
                Drawn::End(End::Broken) => {
                    self.is_over = true;
                    return Poll::Ready(Some(Err(Broken)));
                }
                Drawn::End(End::Whole) => {
                    self.is_over = true;
                    match self.packer.take() {
                        Some(packer) => packer.finish().into(),
                        None => break,
                    }
                }
                Drawn::Bytes(bytes) => match &mut self.packer {
                    Some(packer) => packer.push(&bytes).into(),
                    None => bytes,
                },
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        Poll::Ready(None)
    }
}

/// A request that was understood.
struct Understood {
    endpoint: usize,
    format: Format,
}

impl Window {
    pub fn new(house: Arc<House>, works: Works) -> Window {
        Window { house, works: RefCell::new(works), logged: Cell::default() }
    }

    async fn serve(
        self: &Rc<Self>,
        exchange: &mut Exchange<Told>,
        number: usize,
        in_path: &[&str],
        asked_by_suffix: Option<Format>,
    ) -> Answer {
        let endpoint = &self.house.endpoints[number];
        if let Err(refusal) = self.let_in(&exchange.head, endpoint) {
            return *refusal;
        }
        let accept = text(&exchange.head.headers, &ACCEPT).unwrap_or_default();
        let Some(format) = endpoint.accepted(asked_by_suffix, accept) else {
            return not_acceptable(endpoint);
        };
        let body = match self.body(exchange, endpoint).await {
            Ok(body) => body,
            Err(refusal) => return *refusal,
        };
        let values = match self.values(&exchange.head, endpoint, in_path, &body) {
            Ok(values) => values,
            Err(refusal) => return *refusal,
        };
        let none_match = text(&exchange.head.headers, &IF_NONE_MATCH).filter(|_| endpoint.etag.is_some());
        let question = Question {
            endpoint: number,
            format,
            values,
            // Only the ledger's tag spares the statement.
            none_match: none_match.filter(|_| endpoint.etag == Some(Etag::Ledger)).map(str::to_owned),
            after: match self.after(&exchange.head) {
                Ok(after) => after,
                Err(refusal) => return *refusal,
            },
        };
        let understood = Understood { endpoint: number, format };
        let is_crowded = !question.after.is_empty() && self.works.borrow().is_crowded();
        let ticket = exchange.ticket();
        self.house.figures.waiting.fetch_add(1, Relaxed);
        let seat = Seat { window: self.clone(), ticket };
        let asked = match is_crowded {
            true => Err(Failure::QueueFull),
            false => self.works.borrow_mut().ask(question, ticket, Instant::now()),
        };
        if let Err(failure) = asked {
            return self.failed(&failure, endpoint);
        }
        let told = exchange.verdict().await;
        self.answer_to(told, seat, &exchange.head, &understood)
    }

    /// Who may ask, and how often.
    fn let_in(&self, head: &Parts, endpoint: &Endpoint) -> Result<(), Box<Answer>> {
        let Some(tokens) = &self.house.tokens else { return Ok(()) };
        let Some(token) = tokens.of(text(&head.headers, &AUTHORIZATION)) else {
            return Err(Box::new(unauthorized(Json::Null)));
        };
        if !token.may(&endpoint.path_text) {
            let detail = format!("the token {:?} may not ask here", token.name);
            return Err(Box::new(problem(StatusCode::FORBIDDEN, &detail, Json::Null)));
        }
        token.take(1, Instant::now()).map_err(|seconds| {
            let detail = "the rate of this token is used up";
            Box::new(later(StatusCode::TOO_MANY_REQUESTS, detail, seconds, Json::Null))
        })
    }

    /// The members of the JSON object that is the body; none where the endpoint takes none.
    async fn body(&self, exchange: &mut Exchange<Told>, endpoint: &Endpoint) -> Result<Members, Box<Answer>> {
        let most = self.house.config.body_max_bytes;
        let refuse = |status, detail: &str| Err(Box::new(problem(status, detail, Json::Null)));
        let too_large = || {
            let detail = format!("a body has at most {most} bytes, as sent and as unpacked");
            Box::new(problem(StatusCode::PAYLOAD_TOO_LARGE, &detail, Json::Null))
        };
        if !endpoint.takes_body() {
            // What nobody reads is passed over, as far as it is here.
            return Ok(Members::default());
        }
        let named = text(&exchange.head.headers, &CONTENT_ENCODING).unwrap_or_default().to_owned();
        let Some(coding) = Coding::named(&named) else {
            let detail = format!("Content-Encoding {named:?} is not taken; {TAKEN} are");
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, &detail);
        };
        let media = text(&exchange.head.headers, &CONTENT_TYPE).unwrap_or("application/json");
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if media != "application/json" && !media.ends_with("+json") {
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this endpoint takes application/json");
        }
        let body = match exchange.read(most).await {
            Ok(body) => body,
            Err(NoBody::TooLarge) => return Err(too_large()),
            Err(NoBody::Broken(reason)) => return refuse(StatusCode::BAD_REQUEST, reason),
            Err(NoBody::Late) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        let body = coding.unpack(body, most).map_err(|why| match why {
            Packed::TooLarge => too_large(),
            Packed::Broken(why) => {
                let detail = format!("the body is not what its Content-Encoding {named:?} says: {why}");
                Box::new(problem(StatusCode::BAD_REQUEST, &detail, Json::Null))
            }
        })?;
        match serde_json::from_slice(&body) {
            Ok(members) => Ok(members),
            Err(error) if error.is_data() => {
                refuse(StatusCode::BAD_REQUEST, &format!("the body is not what is taken here: {error}"))
            }
            Err(error) => refuse(StatusCode::BAD_REQUEST, &format!("the body is no JSON: {error}")),
        }
    }

    fn values(
        &self,
        head: &Parts,
        endpoint: &Endpoint,
        in_path: &[&str],
        body: &Members,
    ) -> Result<Vec<Value>, Box<Answer>> {
        let names = endpoint.parameter_names_in_path().iter().map(String::as_str);
        let path: Vec<(&str, &str)> = names.zip(in_path.iter().copied()).collect();
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
        let given = Given { path: &path, query: head.uri.query().unwrap_or_default(), body, now_ns };
        parameter::values(&endpoint.parameters, &given).map_err(|wrong| {
            let listed: Vec<Json> =
                wrong.iter().map(|wrong| json!({ "name": wrong.name, "reason": wrong.reason })).collect();
            let first = &wrong[0];
            let detail = match wrong.len() {
                1 => format!("{:?} {}", first.name, first.reason),
                n => format!("{n} parameters are wrong; the first: {:?} {}", first.name, first.reason),
            };
            Box::new(problem(StatusCode::BAD_REQUEST, &detail, json!({ "parameters": listed })))
        })
    }

    fn after(&self, head: &Parts) -> Result<Vec<look::Place>, Box<Answer>> {
        let refuse = |detail: &str| Err(Box::new(problem(StatusCode::BAD_REQUEST, detail, Json::Null)));
        let Some(value) = head.headers.get(&AFTER) else { return Ok(Vec::new()) };
        if !self.house.has_ledger {
            return refuse("Rowmill-After: there is no ledger here that says how far the tables are");
        }
        match look::places(value.to_str().unwrap_or_default()) {
            Ok(places) => Ok(places),
            Err(reason) => refuse(&reason),
        }
    }

    fn answer_to(self: &Rc<Self>, told: Told, seat: Seat, head: &Parts, asked: &Understood) -> Answer {
        let endpoint = &self.house.endpoints[asked.endpoint];
        let packs = takes_gzip(text(&head.headers, &ACCEPT_ENCODING).unwrap_or_default());
        match told {
            Told::Failed(failure) => self.failed(&failure, endpoint),
            Told::NotModified { tag } => not_modified(endpoint, &tag),
            Told::Whole { body, tag } => {
                let by_body = endpoint.etag == Some(Etag::Body) && body.len() <= super::works::HELD;
                let tag = if by_body { Some(look::tag_of_body(&body)) } else { tag };
                let known = text(&head.headers, &IF_NONE_MATCH);
                if let (Some(tag), Some(known)) = (&tag, known)
                    && head.method != Method::POST
                    && look::matches(known, tag)
                {
                    return not_modified(endpoint, tag);
                }
                let packed = packs && body.len() >= PACKED_MIN && !head.method.eq(&Method::HEAD);
                let body = if packed {
                    let mut packer = Packer::default();
                    let mut bytes = packer.push(&body);
                    bytes.extend(packer.finish());
                    bytes.into()
                } else {
                    body
                };
                self.given(Body::whole(body), endpoint, asked, tag.as_deref(), packed)
            }
            Told::Begun { pipe, tag } => {
                let packer = packs.then(Packer::default);
                let reader = Reader { pipe, seat, packer, is_over: false };
                self.given(Body::flowing(reader), endpoint, asked, tag.as_deref(), packs)
            }
            Told::More => {
                problem(StatusCode::INTERNAL_SERVER_ERROR, "an answer went on before it began", Json::Null)
            }
        }
    }

    fn given(
        &self,
        body: Body,
        endpoint: &Endpoint,
        asked: &Understood,
        tag: Option<&str>,
        packed: bool,
    ) -> Answer {
        let mut answer = Answer::new(body);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media(asked.format)));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if packed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        match asked.format {
            // What a browser opens by itself must not run anything that came out of a table.
            Format::Svg => drop(headers.insert(
                CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
            )),
            Format::Csv => {
                let name = endpoint.path_text.rsplit('/').next().unwrap_or_default();
                let name: String =
                    name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
                let name = if name.is_empty() { "rows".to_owned() } else { name };
                if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}.csv\"")) {
                    headers.insert(CONTENT_DISPOSITION, value);
                }
            }
            Format::Json | Format::Ndjson => {}
        }
        self.cached(endpoint, answer, tag)
    }

    /// Who may keep the answer, and for how long.
    fn cached(&self, endpoint: &Endpoint, answer: Answer, tag: Option<&str>) -> Answer {
        cached(endpoint, answer, tag, self.house.tokens.is_some())
    }

    fn failed(&self, failure: &Failure, endpoint: &Endpoint) -> Answer {
        let has_values = !endpoint.parameters.is_empty();
        let id =
            if failure.is_fault(has_values, endpoint.write) { self.house.fault_id() } else { String::new() };
        if !id.is_empty() && self.may_log() {
            log::error!("endpoint {:?}, fault {id}: {}", endpoint.name, failure.words());
        }
        uncached(failure.answer(&id, has_values, endpoint.write))
    }

    fn may_log(&self) -> bool {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let (of, count) = self.logged.get();
        let count = if of == second { count + 1 } else { 1 };
        self.logged.set((second, count));
        count <= LOGGED_MAX
    }

    /// What is answered without an endpoint.
    fn aside(&self, head: &Parts) -> Option<Answer> {
        if let Some(answer) = cors::preflight(head) {
            return Some(answer);
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return None;
        }
        match head.uri.path() {
            "/openapi.json" => {
                Some(uncached(answer(StatusCode::OK, JSON, self.house.openapi().as_bytes().to_vec())))
            }
            "/docs" => {
                let page = docs::page(&self.house.config.title);
                let mut answer = answer(StatusCode::OK, "text/html; charset=utf-8", page);
                let policy = HeaderValue::from_static(PAGE_POLICY);
                answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
                Some(uncached(answer))
            }
            path => page::look(path, text(&head.headers, &ACCEPT).unwrap_or_default(), &self.house.board),
        }
    }
}

impl Service for Window {
    type Verdict = Told;

    async fn answer(self: Rc<Self>, mut exchange: Exchange<Told>) -> Answer {
        let began = Instant::now();
        let origin = exchange.head.headers.get(ORIGIN).cloned();
        let (mut answer, endpoint) = match self.aside(&exchange.head) {
            Some(answer) => (answer, None),
            None => {
                let path = exchange.head.uri.path().to_owned();
                let (found, format) = endpoint::find(&self.house.endpoints, &exchange.head.method, &path);
                match found {
                    Found::Place(number, in_path) => {
                        (self.serve(&mut exchange, number, &in_path, format).await, Some(number))
                    }
                    Found::OtherMethods(methods) => (wrong_method(&methods, Json::Null), None),
                    Found::Nothing => (
                        problem(
                            StatusCode::NOT_FOUND,
                            "there is no such endpoint; /docs shows all",
                            Json::Null,
                        ),
                        None,
                    ),
                }
            }
        };
        self.house.cors.let_browsers_see(origin, &mut answer);
        self.house.figures.answered(endpoint, answer.status(), began.elapsed());
        answer
    }

    fn source(&self, key: usize, readable: bool, writable: bool) {
        self.works.borrow_mut().source(key, readable, writable);
    }

    fn turn(&self, now: Instant, verdicts: &mut Vec<(Ticket, Told)>) {
        verdicts.extend(self.works.borrow_mut().turn(now));
    }

    fn due(&self) -> Option<Instant> {
        self.works.borrow().due()
    }

    fn tick(&self) {
        self.works.borrow().tick();
    }

    fn leaves_with_its_half(&self) -> bool {
        true
    }

    fn refused(&self, refusal: Refusal) {
        self.house.figures.answered(None, refusal.status, Duration::ZERO);
    }
}

fn cached(endpoint: &Endpoint, mut answer: Answer, tag: Option<&str>, is_private: bool) -> Answer {
    let headers = answer.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    let scope = if is_private { "private, " } else { "" };
    let control = match (endpoint.max_age_s, tag) {
        _ if endpoint.write => "no-store".to_owned(),
        (Some(seconds), _) => format!("{scope}max-age={seconds}"),
        (None, Some(_)) => format!("{scope}no-cache"),
        (None, None) => "no-store".to_owned(),
    };
    if let Ok(control) = HeaderValue::try_from(control) {
        headers.insert(CACHE_CONTROL, control);
    }
    if is_private {
        headers.append(VARY, HeaderValue::from_static("Authorization"));
    }
    if let Some(tag) = tag.and_then(|tag| HeaderValue::try_from(tag).ok()) {
        headers.insert(ETAG, tag);
    }
    answer
}

fn not_modified(endpoint: &Endpoint, tag: &str) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    cached(endpoint, answer, Some(tag), false)
}

fn not_acceptable(endpoint: &Endpoint) -> Answer {
    let media: Vec<&str> = endpoint.formats.iter().map(|format| media(*format)).collect();
    let mut detail = format!("this endpoint answers with {}", media.join(", "));
    if endpoint.has_suffixes {
        let ends: Vec<&str> = endpoint.formats.iter().map(|format| suffix(*format)).collect();
        detail.push_str(&format!("; the end of its path may say which: {}", ends.join(", ")));
    }
    problem(StatusCode::NOT_ACCEPTABLE, &detail, json!({ "formats": media }))
}
