//! Carries messages to servers of HTTP: puts them together into requests, sends again what the rules allow, and reports on each
//! message as the Kafka producer does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};

use crate::base::hash::{mix, unit};
use crate::message::account::Outcome;
use crate::message::model::{Format, Model};
use crate::message::payload::Written;
use crate::message::url::Url;
use crate::plan::Plan;
use crate::server::http::answer::{self, Answer, Verdict};
use crate::server::http::client::{Call, Client, Ended, Traffic, Why};
use crate::server::http::target::Server;

/// What all threads' couriers have in common.
#[derive(Clone, Debug)]
pub struct Routes {
    servers: Vec<Server>,
    /// By model; `None` where it goes to Kafka.
    routes: Vec<Option<Route>>,
    rules: Rules,
}

#[derive(Clone, Debug)]
struct Rules {
    /// For each server, of one thread.
    connections: usize,
    answer_within: Duration,
    batch_wait: Duration,
    retries: u32,
    retry_unknown: bool,
}

#[derive(Clone, Debug)]
struct Route {
    server: usize,
    method: Method,
    /// `None` where it is drawn for each message.
    uri: Option<Uri>,
    headers: HeaderMap,
    /// Those that are drawn for each message, with their place among the model's.
    drawn: Vec<(usize, HeaderName)>,
    batch: usize,
    format: Format,
}

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivery {
    pub number: usize,
    pub outcome: Outcome,
    /// The server said no, at least for now.
    pub refused: bool,
}

/// What came back, by status or by what went wrong; bounded by the statuses that there are.
pub type Answers = BTreeMap<String, u64>;

/// A request that has not come to its end.
struct Job {
    route: usize,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    numbers: Vec<u32>,
    tries: u32,
}

/// Messages that wait for more to come.
struct Batch {
    body: Vec<u8>,
    numbers: Vec<u32>,
    since: Instant,
}

pub struct Courier {
    routes: Vec<Option<Route>>,
    rules: Rules,
    client: Client,
    batches: Vec<Batch>,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// (when, job)
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    ended: Vec<(u64, Ended)>,
    seed: u64,
    pub answers: Answers,
    pub retried: u64,
}

/// Where a server names no time: doubled with each try, up to a hundred times.
const BACK_OFF: Duration = Duration::from_millis(100);

impl Routes {
    /// Looks up every server that messages go to; `None` where all go to Kafka.
    pub fn of(plan: &Plan) -> Result<Option<Self>> {
        let args = &plan.args;
        let bearer = args.bearer_file.as_deref().map(bearer).transpose()?;
        let mut urls: Vec<Url> = Vec::new();
        let mut routes = Vec::new();
        for model in plan.models() {
            let Some(http) = &model.http else {
                routes.push(None);
                continue;
            };
            let url = Url::parse(&http.url)?;
            let same = |known: &Url| (known.tls, &known.authority) == (url.tls, &url.authority);
            let server = urls.iter().position(same).unwrap_or_else(|| {
                urls.push(url.clone());
                urls.len() - 1
            });
            let route = Route::of(&model, server, &url, bearer.as_ref());
            routes.push(Some(route.with_context(|| format!("model {model}"))?));
        }
        if urls.is_empty() {
            return Ok(None);
        }
        let servers = urls.iter().map(|url| Server::resolve(url, args.http_ca.as_deref()));
        Ok(Some(Self {
            servers: servers.collect::<Result<_>>()?,
            routes,
            rules: Rules {
                connections: args.connections.div_ceil(args.threads),
                answer_within: args.answer_within,
                batch_wait: Duration::from_secs_f64((args.linger_ms / 1000.0).max(0.0)),
                retries: args.retries,
                retry_unknown: args.retry_unknown,
            },
        }))
    }
}

/// What the header `Authorization` holds.
pub fn bearer(path: &std::path::Path) -> Result<HeaderValue> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("read the token from {}", path.display()))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .with_context(|| format!("the token in {} has characters that no header may have", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Route {
    fn of(model: &Model, server: usize, url: &Url, bearer: Option<&HeaderValue>) -> Result<Self> {
        let http = model.http.as_ref().context("it is sent over HTTP")?;
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&url.authority).context("the host")?);
        let kind = if http.format == Format::Lines { "application/x-ndjson" } else { "application/json" };
        if !model.message.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, bearer.clone());
        }
        let mut drawn = Vec::new();
        for (at, (name, value)) in http.headers.iter().enumerate() {
            let name = HeaderName::from_str(name).with_context(|| format!("\"{name}\" is no header"))?;
            match value.literal() {
                Some(text) => {
                    let value = HeaderValue::from_bytes(&text).with_context(|| format!("header {name}"))?;
                    headers.insert(name, value);
                }
                None => drawn.push((at, name)),
            }
        }
        let is_fixed = http.path.slots().next().is_none();
        let uri = Uri::from_str(&url.path).with_context(|| format!("\"{}\" is no path", url.path));
        Ok(Self {
            server,
            method: Method::from_str(&http.method).context("the method")?,
            uri: if is_fixed { Some(uri?) } else { None },
            headers,
            drawn,
            batch: http.batch,
            format: http.format,
        })
    }
}

impl Courier {
    pub fn new(routes: Routes, seed: u64) -> Result<Self> {
        let Routes { servers, routes, rules } = routes;
        let mut client =
            Client::new(servers, rules.connections, rules.answer_within).context("set up epoll")?;
        client.warm_up();
        let batch =
            |_: &Option<Route>| Batch { body: Vec::new(), numbers: Vec::new(), since: Instant::now() };
        Ok(Self {
            batches: routes.iter().map(batch).collect(),
            routes,
            rules,
            client,
            jobs: Vec::new(),
            free: Vec::new(),
            later: BinaryHeap::new(),
            ended: Vec::new(),
            seed,
            answers: Answers::new(),
            retried: 0,
        })
    }

    pub fn traffic(&self) -> Traffic {
        self.client.traffic
    }

    pub fn carries(&self, model: usize) -> bool {
        self.routes[model].is_some()
    }

    /// Takes a message over. It never waits: whoever sends bounds what is under way.
    pub fn send(&mut self, model: usize, written: &Written, number: usize) -> Result<(), String> {
        let route = self.routes[model].as_ref().expect("the model goes this way");
        if route.batch > 1 {
            self.add(model, written, number);
            return Ok(());
        }
        let uri = match &route.uri {
            Some(uri) => uri.clone(),
            None => {
                Uri::try_from(written.path.as_slice()).map_err(|error| format!("a path is none: {error}"))?
            }
        };
        let headers = with_drawn(route, written)?;
        let body = Bytes::copy_from_slice(&written.message);
        self.begin(Job { route: model, uri, headers, body, numbers: vec![number as u32], tries: 0 });
        Ok(())
    }

    fn add(&mut self, model: usize, written: &Written, number: usize) {
        let route = self.routes[model].as_ref().expect("the model goes this way");
        let (most, format) = (route.batch, route.format);
        let batch = &mut self.batches[model];
        if batch.numbers.is_empty() {
            batch.since = Instant::now();
        }
        if format == Format::Array {
            batch.body.push(if batch.numbers.is_empty() { b'[' } else { b',' });
        }
        batch.body.extend_from_slice(&written.message);
        if format == Format::Lines {
            batch.body.push(b'\n');
        }
        batch.numbers.push(number as u32);
        if batch.numbers.len() >= most {
            self.close_batch(model);
        }
    }

    fn close_batch(&mut self, model: usize) {
        let route = self.routes[model].as_ref().expect("the model goes this way");
        let batch = &mut self.batches[model];
        let numbers = std::mem::take(&mut batch.numbers);
        let capacity = batch.body.len() + batch.body.len() / 8;
        let mut body = std::mem::replace(&mut batch.body, Vec::with_capacity(capacity));
        if route.format == Format::Array {
            body.push(b']');
        }
        let uri = route.uri.clone().expect("the path of a batch is the same for all");
        let headers = route.headers.clone();
        self.begin(Job { route: model, uri, headers, body: Bytes::from(body), numbers, tries: 0 });
    }

    fn begin(&mut self, job: Job) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[at] = Some(job);
        self.call(at);
    }

    fn call(&mut self, at: usize) {
        let job = self.jobs[at].as_ref().expect("the job is there until it ends");
        let route = self.routes[job.route].as_ref().expect("the model goes this way");
        let call = Call {
            number: at as u64,
            method: route.method.clone(),
            uri: job.uri.clone(),
            headers: job.headers.clone(),
            body: job.body.clone(),
        };
        self.client.call(route.server, call);
    }

    /// Lets everything go that is not full yet.
    pub fn close_batches(&mut self) {
        for model in 0..self.batches.len() {
            if !self.batches[model].numbers.is_empty() {
                self.close_batch(model);
            }
        }
    }

    /// Waits up to `wait` for something to happen, and reports on the messages whose end is known.
    pub fn reports(&mut self, wait: Duration, mut on_delivery: impl FnMut(Delivery)) {
        let now = Instant::now();
        let mut until = now + wait;
        for model in 0..self.batches.len() {
            let batch = &self.batches[model];
            if batch.numbers.is_empty() {
                continue;
            }
            let due = batch.since + self.rules.batch_wait;
            if due <= now { self.close_batch(model) } else { until = until.min(due) }
        }
        while let Some(Reverse((when, at))) = self.later.peek().copied() {
            if when > now {
                until = until.min(when);
                break;
            }
            self.later.pop();
            self.call(at);
        }
        let mut ended = std::mem::take(&mut self.ended);
        self.client.turn(until.saturating_duration_since(now), |number, end| ended.push((number, end)));
        for (number, end) in ended.drain(..) {
            self.on_end(number as usize, end, &mut on_delivery);
        }
        self.ended = ended;
    }

    fn on_end(&mut self, at: usize, ended: Ended, on_delivery: &mut impl FnMut(Delivery)) {
        let records = self.jobs[at].as_ref().map_or(0, |job| job.numbers.len());
        let (verdicts, retry_after_s) = match &ended {
            Ended::Answered(answer) => (answer::verdicts(answer, records), answer.retry_after_s),
            Ended::NotSent(_) => (vec![unanswered(Outcome::Failed); records], None),
            Ended::Lost(_) => (vec![unanswered(Outcome::Indeterminate); records], None),
        };
        *self.answers.entry(name_of(&ended)).or_default() += 1;
        // A request goes again as a whole, so no part of it may have been taken.
        let again = verdicts.iter().all(|verdict| self.may_go_again(verdict));
        if again && self.jobs[at].as_ref().is_some_and(|job| job.tries < self.rules.retries) {
            return self.try_later(at, retry_after_s);
        }
        let job = self.jobs[at].take().expect("the job is there until it ends");
        self.free.push(at);
        for (number, verdict) in job.numbers.iter().zip(verdicts) {
            let refused = verdict.outcome != Outcome::Acked && verdict.status >= 300;
            on_delivery(Delivery { number: *number as usize, outcome: verdict.outcome, refused });
        }
    }

    fn may_go_again(&self, verdict: &Verdict) -> bool {
        verdict.passing
            && match verdict.outcome {
                Outcome::Failed => true,
                Outcome::Indeterminate => self.rules.retry_unknown,
                Outcome::Acked | Outcome::Pending => false,
            }
    }

    fn try_later(&mut self, at: usize, retry_after_s: Option<u32>) {
        let job = self.jobs[at].as_mut().expect("the job is there until it ends");
        let wait = match retry_after_s {
            Some(seconds) => Duration::from_secs(u64::from(seconds)),
            None => BACK_OFF * 2u32.saturating_pow(job.tries).min(100),
        };
        job.tries += 1;
        self.retried += 1;
        // Whoever was refused together does not come back together.
        let spread = 1.0 + 0.2 * unit(mix(self.seed ^ mix(self.retried)));
        self.later.push(Reverse((Instant::now() + wait.mul_f64(spread), at)));
    }
}

fn with_drawn(route: &Route, written: &Written) -> Result<HeaderMap, String> {
    let mut headers = route.headers.clone();
    for (at, name) in &route.drawn {
        let value = HeaderValue::from_bytes(&written.headers[*at])
            .map_err(|error| format!("header {name}: {error}"))?;
        headers.insert(name.clone(), value);
    }
    Ok(headers)
}

fn unanswered(outcome: Outcome) -> Verdict {
    Verdict { outcome, status: 0, passing: true }
}

/// How a request ended, in a word or by its status.
pub fn name_of(ended: &Ended) -> String {
    match ended {
        Ended::Answered(Answer { status, .. }) => status.to_string(),
        Ended::NotSent(Why::NoRoom) | Ended::Lost(Why::NoRoom) => "no_room".to_owned(),
        Ended::NotSent(_) => "not_connected".to_owned(),
        Ended::Lost(Why::Late) => "no_answer".to_owned(),
        Ended::Lost(Why::Nonsense) => "no_http".to_owned(),
        Ended::Lost(_) => "connection_lost".to_owned(),
    }
}
