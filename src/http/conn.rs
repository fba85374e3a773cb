//! One connection: from its first byte to the last answer. It moves on whenever the loop drives it, and stops where it needs
//! the socket or a verdict.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::{Method, Request, StatusCode, Version};

use super::desk::{Desk, Io, Place, Stage};
use super::exchange::Exchange;
use super::limits::Limits;
use super::reply::{Answer, last_words};
use super::service::Service;
use super::wire::Refusal;

/// Requests of one connection before the others have their turn.
const TURNS_MAX: u32 = 4;

/// Polls of hyper in a row: it wakes itself to be fair to others, which the loop sees to.
const POLLS_MAX: u32 = 8;

/// Bytes of a client that sends on after its last answer.
const LINGER_MAX: usize = 64 << 10;

/// Time for the same.
const LINGER: Duration = Duration::from_secs(1);

/// Without a request for so long, a connection gives hyper's buffers back.
const REST: Duration = Duration::from_secs(1);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The one bit of a waker: hyper wants to be polled again although nothing happened on the socket. It wakes from inside `poll`
/// only.
struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// hyper's way to the service.
pub(super) struct Call<S: Service> {
    service: Rc<S>,
    desk: Rc<Desk<S::Verdict>>,
    peer: SocketAddr,
}

type Answering = Pin<Box<dyn Future<Output = Result<Answer, Infallible>>>>;

impl<S: Service> hyper::service::Service<Request<Incoming>> for Call<S> {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let (head, body) = request.into_parts();
        let (is_head, is_old) = (head.method == Method::HEAD, head.version == Version::HTTP_10);
        let desk = self.desk.clone();
        desk.enter(Stage::Body);
        desk.is_late.set(false);
        desk.ends.set(wants_end(&head));
        let exchange = Exchange { head, peer: self.peer, body: Some(body), desk: desk.clone() };
        let answer = self.service.clone().answer(exchange);
        Box::pin(async move { Ok(finished(answer.await, is_head, is_old, &desk)) })
    }
}

/// What every answer says of its connection. HTTP/1.0 has no chunks: there the connection's end is the body's.
fn finished<V>(mut answer: Answer, is_head: bool, is_http_10: bool, desk: &Desk<V>) -> Answer {
    desk.enter(Stage::Writing);
    let flows = answer.body().flows() && !is_head;
    let ends = desk.ends.get()
        || desk.hall.is_draining.get()
        || is_old(desk)
        || !desk.skip_body()
        || (flows && is_http_10);
    desk.flows.set(flows);
    desk.ends.set(ends);
    if ends {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else {
        answer.headers_mut().insert(KEEP_ALIVE, desk.hall.keep_alive.clone());
    }
    // hyper does not ask for a body that it will not send.
    desk.body_given.set(is_head || answer.body().is_empty());
    answer.body_mut().given = Some(desk.body_given.clone());
    answer.body_mut().broken = Some(desk.broken.clone());
    answer
}

/// The client wants no other request on this connection.
fn wants_end(head: &Parts) -> bool {
    let says = |word: &str| {
        let values = head.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    says("close") || (head.version == Version::HTTP_10 && !says("keep-alive"))
}

/// A tenth more or less, so that connections that began together do not end together.
fn is_old<V>(desk: &Desk<V>) -> bool {
    let age = desk.hall.clock.get().saturating_duration_since(desk.born);
    let spread = 90 + desk.slot.wrapping_mul(7) % 21;
    age >= desk.hall.limits.age * spread / 100
}

enum Layer<S: Service> {
    /// Between two requests: no state of hyper's is held.
    Asleep,
    /// The same for a moment, with hyper's buffers for a next request that comes soon.
    Resting {
        http: Box<Connection<Io<S::Verdict>, Call<S>>>,
        _place: Place,
    },
    Http(Box<Connection<Io<S::Verdict>, Call<S>>>),
    /// See [`Stage::Linger`], with the bytes that were dropped.
    Linger(usize),
}

/// What becomes of a connection after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The socket or a verdict has to come first.
    Waits,
    /// It could go on at once; others first.
    Again,
    Gone,
}

pub(super) struct Conn<S: Service> {
    pub(super) desk: Rc<Desk<S::Verdict>>,
    pub(super) peer: SocketAddr,
    layer: Layer<S>,
    again: Arc<Again>,
    waker: Waker,
}

impl<S: Service> Conn<S> {
    pub(super) fn new(desk: Desk<S::Verdict>, peer: SocketAddr) -> Conn<S> {
        let again = Arc::new(Again(AtomicBool::new(false)));
        let waker = Waker::from(again.clone());
        Conn { desk: Rc::new(desk), peer, layer: Layer::Asleep, again, waker }
    }

    /// Goes on until something is missing.
    pub(super) fn drive(&mut self, http: &Builder, service: &Rc<S>) -> Turn {
        for _ in 0..TURNS_MAX {
            match self.step(http, service) {
                Some(turn) => return turn,
                None if self.desk.has_more() => {}
                None => return Turn::Waits,
            }
        }
        Turn::Again
    }

    /// One request at most. `None`: it was answered, and the connection is at rest.
    fn step(&mut self, http: &Builder, service: &Rc<S>) -> Option<Turn> {
        if let Layer::Linger(_) = self.layer {
            return Some(self.linger());
        }
        match self.desk.greet() {
            Ok(true) => {}
            Ok(false) => return Some(Turn::Waits),
            Err(_) => return Some(Turn::Gone),
        }
        if self.desk.is_stalled() {
            match self.desk.flush() {
                Ok(true) => {}
                // The deadline for a stall ends a client that does not read.
                Ok(false) => return Some(Turn::Waits),
                Err(_) => return Some(Turn::Gone),
            }
        }
        if let Layer::Asleep | Layer::Resting { .. } = self.layer {
            match self.desk.next_head() {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Some(Turn::Waits),
                Ok(Err(refusal)) => return Some(self.refuse(refusal, service)),
                Err(_) => return Some(Turn::Gone),
            }
            self.layer = match std::mem::replace(&mut self.layer, Layer::Asleep) {
                Layer::Resting { http, .. } => Layer::Http(http),
                _ => {
                    let call = Call { service: service.clone(), desk: self.desk.clone(), peer: self.peer };
                    Layer::Http(Box::new(http.serve_connection(Io(self.desk.clone()), call)))
                }
            };
        }
        self.poll()
    }

    fn poll(&mut self) -> Option<Turn> {
        let Layer::Http(http) = &mut self.layer else { return Some(Turn::Waits) };
        let mut polls = 0;
        let is_done = loop {
            self.again.0.store(false, Relaxed);
            polls += 1;
            if Pin::new(&mut **http).poll(&mut Context::from_waker(&self.waker)).is_ready() {
                break true;
            }
            if !self.again.0.load(Relaxed) || polls == POLLS_MAX {
                break false;
            }
        };
        if self.desk.broken.get() {
            self.desk.reset();
            return Some(Turn::Gone);
        }
        let Ok(all_sent) = self.desk.flush() else { return Some(Turn::Gone) };
        // hyper would end a connection whose body nobody read; here it was passed over.
        if self.desk.answered.get() && !self.desk.ends.get() {
            if !all_sent {
                return Some(Turn::Waits);
            }
            // Where it has not seen all of the body, it takes no other request.
            let may_rest = !is_done && !self.desk.passed_over.get();
            self.layer = match std::mem::replace(&mut self.layer, Layer::Asleep) {
                Layer::Http(http) if may_rest => match self.desk.hall.resting_place() {
                    Some(_place) => Layer::Resting { http, _place },
                    None => Layer::Asleep,
                },
                _ => Layer::Asleep,
            };
            self.desk.rest();
            return None;
        }
        if is_done {
            return Some(self.part());
        }
        Some(if polls == POLLS_MAX { Turn::Again } else { Turn::Waits })
    }

    /// The answer to what is no request.
    fn refuse(&mut self, refusal: Refusal, service: &Rc<S>) -> Turn {
        service.refused(refusal);
        match self.desk.say(&last_words(refusal.status, refusal.reason)) {
            Ok(()) => self.part(),
            Err(_) => Turn::Gone,
        }
    }

    /// The last answer is out, or on its way.
    pub(super) fn part(&mut self) -> Turn {
        if self.desk.is_stalled() {
            self.layer = Layer::Linger(0);
            self.desk.enter(Stage::Writing);
            return Turn::Waits;
        }
        self.desk.hang_up();
        self.desk.enter(Stage::Linger);
        self.layer = Layer::Linger(0);
        self.linger()
    }

    fn linger(&mut self) -> Turn {
        if self.desk.stage.get() == Stage::Writing {
            return match self.desk.flush() {
                Ok(true) => self.part(),
                Ok(false) => Turn::Waits,
                Err(_) => Turn::Gone,
            };
        }
        let Layer::Linger(dropped) = &mut self.layer else { return Turn::Waits };
        loop {
            match self.desk.discard() {
                Ok(n) if n > 0 && *dropped < LINGER_MAX => *dropped += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Waits,
                _ => return Turn::Gone,
            }
        }
    }

    /// What follows from the time, once a second.
    pub(super) fn look_at_clock(&mut self, now: Instant, service: &Rc<S>) -> Turn {
        let desk = &self.desk;
        let stage = match desk.stage.get() {
            _ if desk.is_stalled() => Stage::Writing,
            // The client has all there is; the service knows how long the rest may take.
            Stage::Writing if desk.flows.get() => Stage::Waiting,
            stage => stage,
        };
        let since = now.saturating_duration_since(desk.since.get());
        if let Layer::Resting { .. } = self.layer
            && since >= REST
        {
            self.layer = Layer::Asleep;
        }
        if since < patience(stage, &desk.hall.limits) {
            return Turn::Waits;
        }
        match stage {
            // The service answers it, through hyper.
            Stage::Body => {
                desk.is_late.set(true);
                Turn::Again
            }
            // No answer is under way, so this may go past hyper.
            Stage::Head => self.refuse(
                Refusal {
                    status: StatusCode::REQUEST_TIMEOUT,
                    reason: "the head of the request did not come in time",
                },
                service,
            ),
            // Not a bare close: what the client may be sending must not meet a reset.
            Stage::Idle => self.part(),
            Stage::Waiting => Turn::Waits,
            Stage::Handshake | Stage::Writing | Stage::Linger => Turn::Gone,
        }
    }
}

/// How long a stage may last. A verdict is waited for as long as whoever gives it takes, which has limits of its own.
fn patience(stage: Stage, limits: &Limits) -> Duration {
    match stage {
        Stage::Handshake => limits.handshake,
        // A second more than is announced.
        Stage::Idle => limits.idle + Duration::from_secs(1),
        Stage::Head => limits.head,
        Stage::Body => limits.body,
        Stage::Waiting => Duration::MAX,
        Stage::Writing => limits.stall,
        Stage::Linger => LINGER,
    }
}
