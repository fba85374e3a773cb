//! What the loop, the socket and the service of one connection know together; and hyper's way to the socket through it.
//!
//! hyper owns its `Io`, which nobody can reach again, so socket and readiness live in a `Rc` beside it. The loop polls the
//! connection on every event, so no waker is kept.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};

use super::limits::Limits;
use super::tls::Link;
use super::wire::{self, Framing, Head, Refusal};

/// Read from a socket at once, whatever waits.
const SCRATCH: usize = 64 << 10;

/// Answers that one turn of a connection may gather before they are sent.
const OUT_MAX: usize = 64 << 10;

/// Buffers that are kept for the next connection with a request in work.
const SPARE_MAX: usize = 64;

/// Connections that keep hyper's state from one request to the next, 20 kB each: making it costs a tenth of a small request.
const RESTING_MAX: usize = 256;

/// What all connections of a loop share.
pub(super) struct Hall {
    pub(super) limits: Limits,
    /// How long an idle connection stays, as answers announce it.
    pub(super) keep_alive: HeaderValue,
    /// As of this turn of the loop.
    pub(super) clock: Cell<Instant>,
    /// One counter for the whole loop: a slot that is used again never meets an old ticket.
    pub(super) requests: Cell<u32>,
    /// Each answer announces the end of its connection.
    pub(super) is_draining: Cell<bool>,
    scratch: RefCell<Box<[u8]>>,
    /// What the connection that is being polled wants to send: one write after the poll, so that a head and its body, and the
    /// answers to pipelined requests, leave together.
    out: RefCell<Vec<u8>>,
    spare: RefCell<Vec<Vec<u8>>>,
    /// Connections that keep hyper's state between two requests.
    resting: Rc<Cell<usize>>,
}

/// One of [`RESTING_MAX`]; dropped, it is free again.
pub(super) struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Hall {
    pub(super) fn new(limits: Limits) -> Hall {
        let keep_alive = format!("timeout={}", limits.idle.as_secs());
        Hall {
            limits,
            keep_alive: HeaderValue::try_from(keep_alive).expect("digits are a header's value"),
            clock: Cell::new(Instant::now()),
            requests: Cell::new(0),
            is_draining: Cell::new(false),
            scratch: RefCell::new(vec![0; SCRATCH].into()),
            out: RefCell::default(),
            spare: RefCell::default(),
            resting: Rc::default(),
        }
    }

    /// A place for hyper's state of a connection that rests, while there is one.
    pub(super) fn resting_place(&self) -> Option<Place> {
        let taken = self.resting.get();
        (taken < RESTING_MAX).then(|| {
            self.resting.set(taken + 1);
            Place(self.resting.clone())
        })
    }
}

/// Where a connection is, which decides how long it may stay there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Handshake,
    Idle,
    Head,
    Body,
    /// For its verdict.
    Waiting,
    Writing,
    /// Answered for the last time; what the client still sends is read and dropped, else a reset may overtake the answer.
    Linger,
}

/// See above.
pub(super) struct Desk<V> {
    pub(super) hall: Rc<Hall>,
    pub(super) slot: u32,
    /// Of the request in work.
    pub(super) number: Cell<u32>,
    pub(super) stage: Cell<Stage>,
    pub(super) since: Cell<Instant>,
    pub(super) born: Instant,
    pub(super) verdict: Cell<Option<V>>,
    /// The body did not come in time.
    pub(super) is_late: Cell<bool>,
    /// Why the bytes of the body were no body.
    pub(super) refusal: Cell<Option<Refusal>>,
    pub(super) readable: Cell<bool>,
    pub(super) writable: Cell<bool>,
    pub(super) peer_closed: Cell<bool>,
    /// The last byte of the answer is with hyper.
    pub(super) body_given: Rc<Cell<bool>>,
    /// The body of the answer is not whole yet.
    pub(super) flows: Cell<bool>,
    /// It never will be.
    pub(super) broken: Rc<Cell<bool>>,
    /// hyper has nothing more to write for this request.
    pub(super) answered: Cell<bool>,
    /// The connection ends with this answer.
    pub(super) ends: Cell<bool>,
    link: RefCell<Option<Link>>,
    inbox: RefCell<Inbox>,
    /// Of the request in work: what hyper has not seen yet.
    head_left: Cell<usize>,
    body_left: Cell<Framing>,
    /// Of that body, hyper was not shown all.
    pub(super) passed_over: Cell<bool>,
    /// What the kernel did not take.
    unsent: RefCell<Vec<u8>>,
}

/// What was read and not passed on.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    at: usize,
    /// Of the bytes from `at` on, how many were searched for the end of a head.
    searched: usize,
}

impl Inbox {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

impl<V> Desk<V> {
    pub(super) fn new(hall: &Rc<Hall>, slot: u32, link: Link) -> Desk<V> {
        let now = hall.clock.get();
        Desk {
            hall: hall.clone(),
            slot,
            number: Cell::new(0),
            stage: Cell::new(if link.is_plain() { Stage::Idle } else { Stage::Handshake }),
            since: Cell::new(now),
            born: now,
            verdict: Cell::new(None),
            is_late: Cell::new(false),
            refusal: Cell::new(None),
            readable: Cell::new(false),
            writable: Cell::new(true),
            peer_closed: Cell::new(false),
            body_given: Rc::default(),
            flows: Cell::new(false),
            broken: Rc::default(),
            answered: Cell::new(false),
            ends: Cell::new(false),
            link: RefCell::new(Some(link)),
            inbox: RefCell::default(),
            head_left: Cell::new(0),
            body_left: Cell::new(Framing::Length(0)),
            passed_over: Cell::new(false),
            unsent: RefCell::default(),
        }
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        self.since.set(self.hall.clock.get());
    }

    /// True once a handshake, where there is one, is done.
    pub(super) fn greet(&self) -> io::Result<bool> {
        let done = self.link.borrow_mut().as_mut().ok_or(ErrorKind::NotConnected)?.greet()?;
        if done && self.stage.get() == Stage::Handshake {
            self.enter(Stage::Idle);
        }
        Ok(done)
    }

    pub(super) fn hang_up(&self) {
        if let Some(link) = self.link.borrow_mut().as_mut() {
            link.hang_up();
        }
    }

    /// The client sees an error, whatever it was sent before, and not an end.
    pub(super) fn reset(&self) {
        self.hall.out.borrow_mut().clear();
        if let Some(link) = self.link.borrow().as_ref() {
            link.reset_at_close();
        }
    }

    /// The descriptor closes and leaves `epoll`.
    pub(super) fn close(&self) {
        *self.link.borrow_mut() = None;
        self.hall.give_back(std::mem::take(&mut self.inbox.borrow_mut().bytes));
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut link = self.link.borrow_mut();
        let link = link.as_mut().ok_or(ErrorKind::NotConnected)?;
        loop {
            match link.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable.set(false);
                    return Err(error);
                }
                // A short read has emptied the socket: no second read to be told so. Not once the peer has closed: its end
                // makes no second event.
                Ok(n) if n < buffer.len() && link.is_plain() && !self.peer_closed.get() => {
                    self.readable.set(false);
                    return Ok(n);
                }
                other => return other,
            }
        }
    }

    /// Reads what is there into the inbox; how much that was, 0 at the end of all.
    fn fill(&self) -> io::Result<usize> {
        let mut scratch = self.hall.scratch.borrow_mut();
        let n = self.read(&mut scratch)?;
        let mut inbox = self.inbox.borrow_mut();
        if inbox.bytes.capacity() == 0 {
            inbox.bytes = self.hall.spare.borrow_mut().pop().unwrap_or_default();
        }
        let at = inbox.at;
        inbox.bytes.drain(..at);
        inbox.at = 0;
        inbox.bytes.extend_from_slice(&scratch[..n]);
        Ok(n)
    }

    /// Reads and throws away; how much that was.
    pub(super) fn discard(&self) -> io::Result<usize> {
        self.read(&mut self.hall.scratch.borrow_mut())
    }

    /// The next request's head, once it is whole; `None` while the client has more to say.
    ///
    /// # Errors
    /// What ended the connection.
    pub(super) fn next_head(&self) -> io::Result<Result<Option<Head>, Refusal>> {
        loop {
            let found = {
                let mut inbox = self.inbox.borrow_mut();
                // Some clients end a body with an empty line that is not of it (RFC 9112, 2.2).
                if self.stage.get() == Stage::Idle && inbox.rest().starts_with(b"\r\n") {
                    inbox.at += 2;
                }
                let found = wire::head(inbox.rest(), inbox.searched);
                inbox.searched = inbox.rest().len();
                found
            };
            match found {
                Ok(None) if self.readable.get() => {}
                Ok(Some(head)) => {
                    self.inbox.borrow_mut().searched = 0;
                    self.head_left.set(head.length);
                    self.body_left.set(head.body);
                    return Ok(Ok(Some(head)));
                }
                other => return Ok(other),
            }
            match self.fill() {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.stage.get() == Stage::Idle => self.enter(Stage::Head),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Ok(None)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Something of a next request is here already.
    pub(super) fn has_more(&self) -> bool {
        !self.inbox.borrow().rest().is_empty() || self.readable.get()
    }

    /// The answer is out: an idle connection keeps no buffer.
    pub(super) fn rest(&self) {
        self.enter(Stage::Idle);
        let mut inbox = self.inbox.borrow_mut();
        inbox.searched = 0;
        if inbox.rest().is_empty() {
            inbox.at = 0;
            self.hall.give_back(std::mem::take(&mut inbox.bytes));
        }
        self.answered.set(false);
        self.passed_over.set(false);
        self.body_given.set(false);
        self.flows.set(false);
        self.verdict.set(None);
    }

    /// Passes over what is left of a body that nobody wants; false where not all of it is here.
    pub(super) fn skip_body(&self) -> bool {
        let mut left = self.body_left.get();
        if left.is_done() {
            return true;
        }
        self.passed_over.set(true);
        let mut inbox = self.inbox.borrow_mut();
        let Ok(part) = wire::within(&mut left, inbox.rest()) else { return false };
        inbox.at += part.end;
        self.body_left.set(left);
        left.is_done()
    }

    /// Sends what it can; how much that was.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut link = self.link.borrow_mut();
        let link = link.as_mut().ok_or(ErrorKind::NotConnected)?;
        let mut sent = 0;
        while sent < bytes.len() && self.writable.get() {
            match link.write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable.set(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// After a poll, and when the socket takes more; true if all is with the kernel.
    pub(super) fn flush(&self) -> io::Result<bool> {
        let mut out = self.hall.out.borrow_mut();
        let pushed = self.push(&out);
        // On every path, else the next connection would send it.
        out.clear();
        pushed?;
        Ok(self.unsent.borrow().is_empty())
    }

    /// The same with these bytes, past hyper.
    pub(super) fn say(&self, bytes: &[u8]) -> io::Result<()> {
        self.push(bytes)
    }

    pub(super) fn is_stalled(&self) -> bool {
        !self.unsent.borrow().is_empty()
    }

    fn push(&self, out: &[u8]) -> io::Result<()> {
        let mut unsent = self.unsent.borrow_mut();
        if !unsent.is_empty() {
            let n = self.send(&unsent)?;
            if n > 0 {
                self.since.set(self.hall.clock.get());
            }
            unsent.drain(..n);
            if !unsent.is_empty() {
                unsent.extend_from_slice(out);
                return Ok(());
            }
            *unsent = Vec::new();
        }
        let n = self.send(out)?;
        if n < out.len() {
            // The time for a stall begins with it: an answer may have been in work for longer.
            self.since.set(self.hall.clock.get());
            unsent.extend_from_slice(&out[n..]);
        }
        Ok(())
    }
}

impl Hall {
    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if buffer.capacity() > 0 && buffer.capacity() <= SCRATCH && spare.len() < SPARE_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

/// What hyper reads from and writes to.
pub(super) struct Io<V>(pub(super) Rc<Desk<V>>);

impl<V> Io<V> {
    /// Bytes of the head that is passed on, or of its body; `None` where the socket has to say more.
    fn next(&self, mut buffer: ReadBufCursor<'_>) -> io::Result<Option<()>> {
        let desk = &*self.0;
        if desk.head_left.get() > 0 {
            let mut inbox = desk.inbox.borrow_mut();
            let n = desk.head_left.get().min(buffer.remaining());
            buffer.put_slice(&inbox.rest()[..n]);
            inbox.at += n;
            desk.head_left.set(desk.head_left.get() - n);
            return Ok(Some(()));
        }
        let mut left = desk.body_left.get();
        if left.is_done() {
            return Ok(None);
        }
        if desk.inbox.borrow().rest().is_empty() {
            if !desk.readable.get() {
                return Ok(None);
            }
            match desk.fill() {
                Ok(0) => return Ok(Some(())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let mut inbox = desk.inbox.borrow_mut();
        let room = inbox.rest().len().min(buffer.remaining());
        let part = wire::within(&mut left, &inbox.rest()[..room]).map_err(|refusal| {
            desk.refusal.set(Some(refusal));
            io::Error::new(ErrorKind::InvalidData, refusal.reason)
        })?;
        buffer.put_slice(&inbox.rest()[part.clone()]);
        inbox.at += part.end;
        desk.body_left.set(left);
        Ok(Some(()))
    }
}

impl<V> Read for Io<V> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.next(buffer) {
            Ok(Some(())) => Poll::Ready(Ok(())),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<V> Write for Io<V> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let desk = &*self.0;
        let is_full = desk.hall.out.borrow().len() >= OUT_MAX;
        if is_full && !desk.flush()? || desk.is_stalled() {
            // Polled again when the socket takes more.
            return Poll::Pending;
        }
        let mut out = desk.hall.out.borrow_mut();
        let n = bytes.len().min(OUT_MAX - out.len());
        out.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    /// hyper comes here when its own buffers are empty.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let desk = &*self.0;
        if desk.is_stalled() {
            return Poll::Pending;
        }
        if desk.body_given.get() {
            desk.answered.set(true);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.0.flush()? {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}
