//! Many connections driven by one thread. Requests wait here until a connection is free, in the order in which they came; what
//! became of each comes back with the number it was given. Nothing here waits for a server but [`Client::turn`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use mio::net::TcpStream;
use mio::{Events, Interest, Token};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use openssl::ssl::HandshakeError;

use crate::server::http::answer::Answer;
use crate::server::http::target::Server;
use crate::server::http::wire::{Io, Socket, Wire, refused};

/// Of an answer's body; what is longer ends the connection.
const BODY_MAX: usize = 64 << 20;
/// Read at once.
const SCRATCH: usize = 64 << 10;
const EVENTS: usize = 256;
/// A server that refuses connections is tried again after so long, by each connection.
const RECONNECT: Duration = Duration::from_millis(50);
/// Requests that are too late are looked for so often.
const SWEEP: Duration = Duration::from_millis(100);

/// A request, and the number that comes back with its answer.
pub struct Call {
    pub number: u64,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// How a call ended.
#[derive(Debug, PartialEq)]
pub enum Ended {
    Answered(Answer),
    /// Nothing of it has left: it cannot have been stored.
    NotSent(Why),
    /// It left, and no whole answer came.
    Lost(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The server takes no connections.
    Refused,
    /// The connection ended.
    Closed,
    /// No answer in time.
    Late,
    /// What came is no HTTP, or too long.
    Nonsense,
    /// This machine has no port or no descriptor left for another connection: not the server's fault.
    NoRoom,
}

/// What the loop has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    pub connects: u64,
    /// Connections that ended, whoever ended them.
    pub closes: u64,
    /// Connections that this machine had no room for.
    pub no_room: u64,
}

type Sent = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// Connections to one server.
struct Pool {
    server: Server,
    waiting: VecDeque<Call>,
    idle: Vec<usize>,
    closed: Vec<usize>,
    /// No connection is tried before.
    again_at: Option<Instant>,
    /// Takes turns among the server's addresses, after one has failed.
    address: usize,
    /// That it cannot be reached, and why, was said since a connection last stood.
    is_said: bool,
}

struct Line {
    pool: usize,
    state: State,
}

enum State {
    Closed,
    /// The socket connects, or greets.
    Opening {
        wire: Rc<Wire>,
        since: Instant,
    },
    Open(Box<Open>),
}

struct Open {
    wire: Rc<Wire>,
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<Io, Full<Bytes>>,
    work: Option<Work>,
}

/// The request that is under way on a connection.
struct Work {
    number: u64,
    since: Instant,
    stage: Stage,
}

enum Stage {
    Sent(Sent),
    Reading { answer: Answer, body: Incoming },
}

/// hyper wants to be polled again although nothing happened on the socket.
struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

pub struct Client {
    poll: mio::Poll,
    events: Events,
    pools: Vec<Pool>,
    lines: Vec<Line>,
    scratch: Rc<RefCell<Box<[u8]>>>,
    again: Arc<Again>,
    waker: Waker,
    answer_within: Duration,
    ended: Vec<(u64, Ended)>,
    next_sweep: Instant,
    open_calls: usize,
    pub traffic: Traffic,
}

impl Client {
    /// `connections` is for each server.
    pub fn new(servers: Vec<Server>, connections: usize, answer_within: Duration) -> io::Result<Self> {
        let again = Arc::new(Again(AtomicBool::new(false)));
        let mut lines = Vec::new();
        let mut pools = Vec::new();
        for (pool, server) in servers.into_iter().enumerate() {
            let closed = (lines.len()..lines.len() + connections).rev().collect();
            lines.extend((0..connections).map(|_| Line { pool, state: State::Closed }));
            pools.push(Pool {
                server,
                waiting: VecDeque::new(),
                idle: Vec::new(),
                closed,
                again_at: None,
                is_said: false,
                address: 0,
            });
        }
        Ok(Self {
            poll: mio::Poll::new()?,
            events: Events::with_capacity(EVENTS),
            pools,
            lines,
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH].into_boxed_slice())),
            waker: Waker::from(again.clone()),
            again,
            answer_within,
            ended: Vec::new(),
            next_sweep: Instant::now() + SWEEP,
            open_calls: 0,
            traffic: Traffic::default(),
        })
    }

    /// Calls that have not ended.
    pub fn open_calls(&self) -> usize {
        self.open_calls
    }

    /// Opens all connections, so that the first requests do not wait for them.
    pub fn warm_up(&mut self) {
        for pool in 0..self.pools.len() {
            while let Some(line) = self.pools[pool].closed.pop() {
                if !self.connect(pool, line) {
                    break;
                }
            }
        }
    }

    /// Sends the call on a free connection, or keeps it until there is one.
    pub fn call(&mut self, pool: usize, call: Call) {
        self.open_calls += 1;
        match self.pools[pool].idle.pop() {
            Some(line) => self.begin(line, call),
            None => {
                self.pools[pool].waiting.push_back(call);
                self.open_one(pool);
            }
        }
    }

    /// Moves what can be moved, waiting up to `wait` for the first thing to happen, and hands out what has ended.
    pub fn turn(&mut self, wait: Duration, mut on_end: impl FnMut(u64, Ended)) {
        if self.ended.is_empty() && !wait.is_zero() {
            self.wait(wait);
        }
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => panic!("epoll fails only for wrong arguments: {error}"),
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.on_event(event);
        }
        self.events = events;
        self.sweep();
        for (number, ended) in self.ended.drain(..) {
            self.open_calls -= 1;
            on_end(number, ended);
        }
    }

    /// To the microsecond: epoll itself only counts milliseconds.
    fn wait(&self, wait: Duration) {
        // SAFETY: the descriptor is the epoll's, which outlives the call.
        let epoll = unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) };
        let mut descriptors = [PollFd::new(epoll, PollFlags::POLLIN)];
        // Interrupted or not: whoever called looks at the clock.
        ppoll(&mut descriptors, Some(TimeSpec::from_duration(wait)), None).ok();
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let at = event.token().0;
        let wire = match &self.lines[at].state {
            State::Closed => return,
            State::Opening { wire, .. } => wire.clone(),
            State::Open(open) => open.wire.clone(),
        };
        if event.is_readable() {
            wire.readable.set(true);
        }
        if event.is_writable() {
            wire.writable.set(true);
        }
        if event.is_read_closed() || event.is_error() {
            wire.readable.set(true);
            wire.peer_closed.set(true);
        }
        match &self.lines[at].state {
            State::Opening { .. } => self.go_on_opening(at, &wire),
            _ => self.drive(at),
        }
    }

    /// Lets one more connection come into being, where that may help.
    fn open_one(&mut self, pool: usize) {
        let now = Instant::now();
        let held_back = self.pools[pool].again_at.is_some_and(|at| at > now);
        if held_back {
            return;
        }
        if let Some(line) = self.pools[pool].closed.pop() {
            self.connect(pool, line);
        }
    }

    /// False where this machine has no room for it, or the server refused at once.
    fn connect(&mut self, pool: usize, line: usize) -> bool {
        let server = &self.pools[pool].server;
        let address = server.addresses[self.pools[pool].address % server.addresses.len()];
        match self.try_connect(address, line) {
            Ok(wire) => {
                self.traffic.connects += 1;
                self.lines[line].state = State::Opening { wire: Rc::new(wire), since: Instant::now() };
                true
            }
            Err(error) => {
                self.pools[pool].closed.push(line);
                self.fail_to_connect(pool, &error);
                false
            }
        }
    }

    fn try_connect(&self, address: std::net::SocketAddr, line: usize) -> io::Result<Wire> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        self.poll.registry().register(&mut stream, Token(line), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Wire::new(Socket::Plain(stream), self.scratch.clone()))
    }

    /// Nothing can be sent: what waits is told so, and the next try is later.
    fn fail_to_connect(&mut self, pool: usize, error: &io::Error) {
        let why = if no_room(error) { Why::NoRoom } else { Why::Refused };
        self.traffic.no_room += u64::from(why == Why::NoRoom);
        // Another connection to this server may still serve them.
        let is_busy = |line: &Line| matches!(&line.state, State::Open(open) if open.work.is_some());
        let busy = self.lines.iter().any(|line| line.pool == pool && is_busy(line));
        let pool = &mut self.pools[pool];
        if !std::mem::replace(&mut pool.is_said, true) {
            log::warn!("no connection to {}: {error}; trying again", pool.server.host);
        }
        pool.again_at = Some(Instant::now() + RECONNECT);
        pool.address = pool.address.wrapping_add(1);
        let alone = pool.idle.is_empty() && !busy;
        if alone {
            let waiting = std::mem::take(&mut pool.waiting);
            self.ended.extend(waiting.into_iter().map(|call| (call.number, Ended::NotSent(why))));
        }
    }

    fn go_on_opening(&mut self, at: usize, wire: &Rc<Wire>) {
        match self.opened(at, wire) {
            Ok(false) => {}
            Ok(true) => self.finish_opening(at, wire.clone()),
            Err(error) => {
                let pool = self.lines[at].pool;
                self.close(at);
                self.fail_to_connect(pool, &error);
            }
        }
    }

    /// Whether the connection stands, TLS included.
    fn opened(&mut self, at: usize, wire: &Rc<Wire>) -> io::Result<bool> {
        if let Socket::Plain(stream) = &*wire.socket.borrow() {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.peer_addr() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let server = &self.pools[self.lines[at].pool].server;
        let Some(connector) = &server.tls else { return Ok(true) };
        let mut socket = wire.socket.borrow_mut();
        if !matches!(*socket, Socket::Plain(_)) {
            drop(socket);
            return wire.greet();
        }
        let Socket::Plain(stream) = std::mem::replace(&mut *socket, Socket::Greeting(None)) else {
            return Ok(false);
        };
        match connector.connect(&server.host, stream) {
            Ok(stream) => {
                *socket = Socket::Tls(stream);
                Ok(true)
            }
            Err(HandshakeError::WouldBlock(handshake)) => {
                *socket = Socket::Greeting(Some(handshake));
                Ok(false)
            }
            Err(error) => Err(refused(&error)),
        }
    }

    fn finish_opening(&mut self, at: usize, wire: Rc<Wire>) {
        let mut context = Context::from_waker(&self.waker);
        let mut handshake = Box::pin(Builder::new().handshake::<_, Full<Bytes>>(Io(wire.clone())));
        // hyper's handshake of HTTP/1 sends nothing and waits for nothing.
        let Poll::Ready(Ok((sender, connection))) = handshake.as_mut().poll(&mut context) else {
            return self.close(at);
        };
        drop(handshake);
        self.lines[at].state = State::Open(Box::new(Open { wire, sender, connection, work: None }));
        let pool = &mut self.pools[self.lines[at].pool];
        (pool.again_at, pool.is_said) = (None, false);
        self.next_call(at);
    }

    /// A connection is free: it takes what has waited longest.
    fn next_call(&mut self, at: usize) {
        let pool = self.lines[at].pool;
        match self.pools[pool].waiting.pop_front() {
            Some(call) => self.begin(at, call),
            None => {
                self.pools[pool].idle.push(at);
                // hyper must have been polled once before it notices that the server closes.
                self.drive(at);
            }
        }
    }

    fn begin(&mut self, at: usize, call: Call) {
        let State::Open(open) = &mut self.lines[at].state else {
            unreachable!("only open connections are free")
        };
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = call.method;
        *request.uri_mut() = call.uri;
        *request.headers_mut() = call.headers;
        open.wire.has_sent.set(false);
        let sent: Sent = Box::pin(open.sender.send_request(request));
        open.work = Some(Work { number: call.number, since: Instant::now(), stage: Stage::Sent(sent) });
        self.drive(at);
    }

    /// Polls a connection until nothing moves any more.
    fn drive(&mut self, at: usize) {
        let State::Open(open) = &mut self.lines[at].state else { return };
        let mut context = Context::from_waker(&self.waker);
        let mut over = false;
        loop {
            self.again.0.store(false, Relaxed);
            if !over {
                over = Pin::new(&mut open.connection).poll(&mut context).is_ready();
            }
            let flushed = open.wire.flush();
            let ended = open.step(&mut context);
            over |= flushed.is_err();
            match ended {
                Some(ended) => {
                    let work = open.work.take().expect("only work ends");
                    let lost = !matches!(ended, Ended::Answered(_));
                    self.ended.push((work.number, ended));
                    if over || lost {
                        return self.close(at);
                    }
                    // hyper takes the next request once it has seen the end of the answer.
                    over = Pin::new(&mut open.connection).poll(&mut context).is_ready();
                    if over || open.sender.poll_ready(&mut context).is_pending() {
                        return self.close(at);
                    }
                    return self.next_call(at);
                }
                None if over => return self.close(at),
                None if self.again.0.load(Relaxed) => {}
                None => return,
            }
        }
    }

    /// Ends a connection, and what was under way on it.
    fn close(&mut self, at: usize) {
        let pool = self.lines[at].pool;
        if let State::Open(open) = std::mem::replace(&mut self.lines[at].state, State::Closed)
            && let Some(work) = open.work
        {
            let ended =
                if open.wire.has_sent.get() { Ended::Lost(Why::Closed) } else { Ended::NotSent(Why::Closed) };
            self.ended.push((work.number, ended));
        }
        self.traffic.closes += 1;
        self.pools[pool].idle.retain(|idle| *idle != at);
        self.pools[pool].closed.push(at);
        if !self.pools[pool].waiting.is_empty() {
            self.open_one(pool);
        }
    }

    /// Ends what takes too long, and tries closed connections again.
    fn sweep(&mut self) {
        let now = Instant::now();
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP;
        for at in 0..self.lines.len() {
            match &mut self.lines[at].state {
                State::Open(open) => {
                    if let Some(work) = open.work.take_if(|work| now - work.since > self.answer_within) {
                        self.ended.push((work.number, Ended::Lost(Why::Late)));
                        self.close(at);
                    }
                }
                State::Opening { since, .. } if now - *since > self.answer_within => {
                    let pool = self.lines[at].pool;
                    self.close(at);
                    self.fail_to_connect(pool, &io::ErrorKind::TimedOut.into());
                }
                _ => {}
            }
        }
        for pool in 0..self.pools.len() {
            for _ in 0..self.pools[pool].waiting.len().min(self.pools[pool].closed.len()) {
                self.open_one(pool);
            }
        }
    }
}

impl Open {
    /// What the request under way has come to.
    fn step(&mut self, context: &mut Context<'_>) -> Option<Ended> {
        let work = self.work.as_mut()?;
        loop {
            match &mut work.stage {
                Stage::Sent(sent) => match sent.as_mut().poll(context) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(response)) => {
                        let (head, body) = response.into_parts();
                        let answer = Answer {
                            status: head.status.as_u16(),
                            retry_after_s: retry_after(head.headers.get(RETRY_AFTER)),
                            body: Vec::new(),
                        };
                        work.stage = Stage::Reading { answer, body };
                    }
                    Poll::Ready(Err(error)) => return Some(self.failed(&error)),
                },
                Stage::Reading { answer, body } => match Pin::new(body).poll_frame(context) {
                    Poll::Pending => return None,
                    Poll::Ready(None) => return Some(Ended::Answered(std::mem::take(answer))),
                    Poll::Ready(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            answer.body.extend_from_slice(data);
                        }
                        if answer.body.len() > BODY_MAX {
                            return Some(Ended::Lost(Why::Nonsense));
                        }
                    }
                    Poll::Ready(Some(Err(_))) => return Some(Ended::Lost(Why::Closed)),
                },
            }
        }
    }

    fn failed(&self, error: &hyper::Error) -> Ended {
        match self.wire.has_sent.get() {
            false => Ended::NotSent(Why::Closed),
            true if error.is_parse() => Ended::Lost(Why::Nonsense),
            true => Ended::Lost(Why::Closed),
        }
    }
}

fn retry_after(value: Option<&HeaderValue>) -> Option<u32> {
    value?.to_str().ok()?.trim().parse().ok()
}

/// EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS: the limits of the machine that sends.
fn no_room(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let codes = [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS];
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::message::url::Url;

    #[test]
    fn a_machine_without_room_is_told_from_a_server_that_refuses() {
        use nix::errno::Errno;
        for (code, own) in [
            (Errno::EMFILE, true),
            (Errno::EADDRNOTAVAIL, true),
            (Errno::ECONNREFUSED, false),
            (Errno::ETIMEDOUT, false),
        ] {
            assert_eq!(no_room(&io::Error::from_raw_os_error(code as i32)), own, "{code}");
        }
    }

    fn client(port: u16, connections: usize) -> Client {
        let url = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
        let server = Server::resolve(&url, None).unwrap();
        Client::new(vec![server], connections, Duration::from_millis(500)).unwrap()
    }

    fn call(number: u64) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::HOST, HeaderValue::from_static("127.0.0.1"));
        let body = Bytes::from_static(b"{}");
        Call { number, method: Method::POST, uri: Uri::from_static("/"), headers, body }
    }

    fn ended(client: &mut Client, count: usize) -> Vec<(u64, Ended)> {
        let mut all = Vec::new();
        let until = Instant::now() + Duration::from_secs(10);
        while all.len() < count && Instant::now() < until {
            client.turn(Duration::from_millis(50), |number, end| all.push((number, end)));
        }
        all.sort_by_key(|(number, _)| *number);
        all
    }

    /// Serves one connection after another: for each request the next of these, or nothing, and then the end.
    fn serve(replies: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let work = move || {
            let mut replies = replies.iter();
            while let Ok((mut socket, _)) = listener.accept() {
                let mut buffer = [0; 4096];
                while matches!(socket.read(&mut buffer), Ok(n) if n > 0) {
                    match replies.next() {
                        Some(reply) if !reply.is_empty() => socket.write_all(reply.as_bytes()).unwrap(),
                        _ => break,
                    }
                }
            }
        };
        crate::base::thread::spawn("test-server", work).unwrap();
        port
    }

    #[test]
    fn calls_end_as_their_answers_say() {
        let port = serve(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "",
            "nonsense\r\n\r\n",
        ]);
        let mut client = client(port, 1);
        (0..4).for_each(|number| client.call(0, call(number)));
        let all = ended(&mut client, 4);
        let answer = |status, retry_after_s, body: &[u8]| {
            Ended::Answered(Answer { status, retry_after_s, body: body.to_vec() })
        };
        let expected = [
            answer(200, None, b"ok"),
            answer(503, Some(7), b"abc"),
            Ended::Lost(Why::Closed),
            Ended::Lost(Why::Nonsense),
        ];
        for ((number, found), expected) in all.iter().zip(&expected) {
            assert_eq!(found, expected, "{number}");
        }
        assert_eq!((all.len(), client.open_calls()), (4, 0));
        assert_eq!((client.traffic.connects, client.traffic.closes), (2, 2));
    }

    #[test]
    fn a_server_that_is_not_there_or_says_nothing_is_given_up() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut nobody = client(closed, 2);
        nobody.call(0, call(1));
        assert_eq!(ended(&mut nobody, 1), [(1, Ended::NotSent(Why::Refused))]);
        // It takes the connection and never reads.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut silent = client(listener.local_addr().unwrap().port(), 1);
        silent.call(0, call(2));
        assert_eq!(ended(&mut silent, 1), [(2, Ended::Lost(Why::Late))]);
    }
}
