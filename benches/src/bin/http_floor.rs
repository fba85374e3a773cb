//! The bare floor under an HTTP front door: hyper on a mio loop, one thread, which reads a POST whole and answers it with 200,
//! either at once or when another thread rings an eventfd, as a broker's report would. It has no limits, no deadlines and no
//! routes, so it is what the protocol and the kernel cost, and nothing else.
//!
//! `http_floor PORT now|later`. It shares no code with the engine.

#![allow(clippy::disallowed_methods, reason = "its threads need no core plan")]

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper::{Request, Response};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);
const BELL: Token = Token(usize::MAX - 1);
const BUFFER: usize = 16 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, when] = arguments.as_slice() else { bail!("usage: http_floor PORT now|later") };
    let mut poll = mio::Poll::new().context("no epoll")?;
    let done: Done = Arc::default();
    let queue = (when == "later").then(|| {
        let (sender, receiver) = channel();
        let (done, bell) = (done.clone(), mio::Waker::new(poll.registry(), BELL).expect("an eventfd"));
        std::thread::spawn(move || broker(receiver, &done, &bell));
        sender
    });
    let mut listener = TcpListener::bind(([127, 0, 0, 1], port.parse()?).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: Slab<Conn> = Slab::new();
    let mut events = Events::with_capacity(1024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => {
                    while let Ok((socket, _)) = listener.accept() {
                        let entry = connections.vacant_entry();
                        let place = entry.key();
                        entry.insert(Conn::new(socket, place, &poll, queue.clone())?);
                    }
                }
                BELL => {
                    let places = std::mem::take(&mut *done.lock().expect("nobody panics"));
                    for place in places {
                        if let Some(conn) = connections.get_mut(place) {
                            conn.desk.answer.set(true);
                            drive(&mut connections, place);
                        }
                    }
                }
                Token(place) => {
                    let Some(conn) = connections.get(place) else { continue };
                    conn.desk.readable.set(conn.desk.readable.get() || event.is_readable());
                    drive(&mut connections, place);
                }
            }
        }
    }
}

type Done = Arc<Mutex<Vec<usize>>>;

/// Stands for the client library: takes what is queued, and reports all of it at once from its own thread.
fn broker(queue: Receiver<(usize, Box<[u8]>)>, done: &Done, bell: &mio::Waker) {
    while let Ok((first, _)) = queue.recv() {
        let mut places = done.lock().expect("nobody panics");
        places.push(first);
        places.extend(queue.try_iter().map(|(place, _)| place));
        drop(places);
        bell.wake().expect("the loop lives");
    }
}

struct Desk {
    socket: RefCell<TcpStream>,
    readable: Cell<bool>,
    answer: Cell<bool>,
    out: RefCell<Vec<u8>>,
    place: usize,
    queue: Option<Sender<(usize, Box<[u8]>)>>,
}

struct Conn {
    desk: Rc<Desk>,
    http: Pin<Box<Connection<Io, Answerer>>>,
    again: Arc<Again>,
    waker: Waker,
}

impl Conn {
    fn new(
        mut socket: TcpStream,
        place: usize,
        poll: &mio::Poll,
        queue: Option<Sender<(usize, Box<[u8]>)>>,
    ) -> Result<Conn> {
        socket.set_nodelay(true)?;
        poll.registry().register(&mut socket, Token(place), Interest::READABLE)?;
        let desk = Rc::new(Desk {
            socket: RefCell::new(socket),
            readable: Cell::new(false),
            answer: Cell::new(false),
            out: RefCell::default(),
            place,
            queue,
        });
        let mut http = Builder::new();
        http.half_close(true).header_read_timeout(None);
        let http = Box::pin(http.serve_connection(Io(desk.clone()), Answerer(desk.clone())));
        let again = Arc::new(Again(AtomicBool::new(false)));
        Ok(Conn { desk, http, waker: Waker::from(again.clone()), again })
    }
}

fn drive(connections: &mut Slab<Conn>, place: usize) {
    let Some(conn) = connections.get_mut(place) else { return };
    let is_over = loop {
        conn.again.0.store(false, Relaxed);
        if conn.http.as_mut().poll(&mut Context::from_waker(&conn.waker)).is_ready() {
            break true;
        }
        if !conn.again.0.load(Relaxed) {
            break false;
        }
    };
    let mut out = conn.desk.out.borrow_mut();
    // Answers are small: a socket that does not take one is given up.
    let sent = out.is_empty() || conn.desk.socket.borrow_mut().write_all(&out).is_ok();
    out.clear();
    drop(out);
    if is_over || !sent {
        connections.remove(place);
    }
}

struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

struct Io(Rc<Desk>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.0.readable.get() {
            return Poll::Pending;
        }
        let mut bytes = [0; BUFFER];
        let room = buffer.remaining().min(BUFFER);
        match self.0.socket.borrow_mut().read(&mut bytes[..room]) {
            Ok(n) => {
                // A short read has emptied the socket.
                self.0.readable.set(n == room || n == 0);
                buffer.put_slice(&bytes[..n]);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.0.readable.set(false);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.out.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Answerer(Rc<Desk>);

type Answering = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>>>>;

impl Service<Request<Incoming>> for Answerer {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let desk = self.0.clone();
        Box::pin(async move {
            let mut body = request.into_body();
            let mut bytes = Bytes::new();
            while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                bytes = frame.into_data().unwrap_or_default();
            }
            if let Some(queue) = &desk.queue {
                desk.answer.set(false);
                // A copy, as the client library makes one.
                queue.send((desk.place, Box::from(&bytes[..]))).expect("the broker lives");
                poll_fn(|_| if desk.answer.take() { Poll::Ready(()) } else { Poll::Pending }).await;
            }
            Ok(Response::new(Full::new(Bytes::from_static(b"{\"delivered\":1}"))))
        })
    }
}
