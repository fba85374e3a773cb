//! The loop: one thread, one `epoll`, its connections.
//!
//! The first loop accepts for all of them and deals the sockets out in turn: left to the kernel, a few connections would all
//! meet one loop.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use hyper::server::conn::http1::Builder;
pub use mio::Waker;
use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::conn::{Conn, Turn};
use super::desk::{Desk, Hall, Stage};
use super::exchange::Ticket;
use super::limits::Limits;
use super::service::Service;
use super::tls::{Identity, Link};
use crate::base::queue;

const WAKE: Token = Token(usize::MAX);
/// Listeners count down from here.
const LISTENER: usize = usize::MAX - 1;
const LISTENERS_MAX: usize = 64;
/// Sockets of the service's own count up from here.
const SOURCES: usize = usize::MAX / 2;

/// Between two looks at the deadlines.
const TICK: Duration = Duration::from_secs(1);

/// hyper's buffer grows up to this for a body.
const BUFFER_MAX: usize = 64 << 10;

/// Verdicts make work for connections, whose work makes verdicts: so often in a turn, before the sockets are looked at again.
const ROUNDS_MAX: usize = 4;

/// Sockets on their way from the first loop to another one.
const DEALT_MAX: usize = 1024;

/// What other threads may ask of a loop, and see of it.
#[derive(Debug, Default)]
pub struct Shared {
    /// No new connections; each answer announces the end of its own.
    pub draining: AtomicBool,
    /// Idle connections end now; the others with their answer.
    pub closing: AtomicBool,
    /// Everybody is gone, or it is time.
    pub ended: AtomicBool,
    pub connections: AtomicUsize,
    /// Those with a request in work.
    pub busy: AtomicUsize,
    pub accepted: AtomicUsize,
    /// Connections that a full house did not take.
    pub turned_away: AtomicUsize,
}

/// A loop before its thread runs.
pub struct EventLoop {
    poll: Poll,
    waker: Arc<Waker>,
    listeners: Vec<mio::net::TcpListener>,
    dealt: Receiver<Dealt>,
    /// The other loops, for the one that accepts.
    hands: Vec<(Sender<Dealt>, Arc<Waker>)>,
    identity: Option<Identity>,
    limits: Limits,
    pub shared: Arc<Shared>,
}

type Dealt = (TcpStream, SocketAddr);

/// So many loops that share these listeners.
///
/// # Errors
/// Where the system has no `epoll` or `eventfd` left.
pub fn loops(
    count: usize,
    listeners: Vec<TcpListener>,
    identity: Option<&Identity>,
    limits: &Limits,
) -> Result<Vec<EventLoop>> {
    anyhow::ensure!(listeners.len() <= LISTENERS_MAX, "more than {LISTENERS_MAX} sockets to listen on");
    let mut loops = Vec::with_capacity(count);
    let mut hands = Vec::new();
    for _ in 0..count {
        let poll = Poll::new().context("cannot create an epoll instance")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).context("cannot create an eventfd")?);
        let (sender, dealt) = queue::bounded(DEALT_MAX);
        hands.push((sender, waker.clone()));
        loops.push(EventLoop {
            poll,
            waker,
            listeners: Vec::new(),
            dealt,
            hands: Vec::new(),
            identity: identity.cloned(),
            limits: limits.clone(),
            shared: Arc::default(),
        });
    }
    let Some(first) = loops.first_mut() else { return Ok(loops) };
    first.hands = hands;
    for (number, listener) in listeners.into_iter().enumerate() {
        let mut listener = mio::net::TcpListener::from_std(listener);
        first
            .poll
            .registry()
            .register(&mut listener, Token(LISTENER - number), Interest::READABLE)
            .context("cannot watch a listening socket")?;
        first.listeners.push(listener);
    }
    Ok(loops)
}

/// Where a service has sockets of its own watched.
pub struct Sources(mio::Registry);

impl Sources {
    /// From now on [`Service::source`] hears of it. A descriptor that is closed is forgotten.
    ///
    /// # Errors
    /// Where the system has no room for it.
    pub fn watch(&self, socket: BorrowedFd<'_>, key: usize) -> std::io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.0.register(&mut SourceFd(&socket.as_raw_fd()), Token(SOURCES + key), interest)
    }
}

impl EventLoop {
    /// For a service that has sockets of its own.
    ///
    /// # Errors
    /// Where the system has no descriptor left.
    pub fn sources(&self) -> Result<Sources> {
        self.poll.registry().try_clone().map(Sources).context("cannot share an epoll instance")
    }

    /// Wakes the loop from any thread: the service's [`Service::woken`] is asked then.
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Rings the loop like its waker, for those who can write to a descriptor only. It must stay open while the loop runs.
    ///
    /// # Errors
    /// Where the descriptor cannot be watched.
    pub fn watch(&self, ring: BorrowedFd<'_>) -> Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&ring.as_raw_fd()), WAKE, Interest::READABLE)
            .context("cannot watch a descriptor")
    }

    /// Runs until [`Shared::ended`]. `make` builds the service on this thread.
    ///
    /// # Errors
    /// Where `epoll` fails, or the service cannot be built.
    pub fn run<S: Service>(self, make: impl FnOnce() -> Result<Rc<S>>) -> Result<()> {
        let service = make()?;
        let mut http = Builder::new();
        // A client that has sent its last request may close its half and wait for the answer.
        http.half_close(true).header_read_timeout(None).max_buf_size(BUFFER_MAX);
        let hall = Rc::new(Hall::new(self.limits.clone()));
        let mut house = House {
            poll: self.poll,
            listeners: self.listeners,
            dealt: self.dealt,
            hands: self.hands,
            next_hand: 0,
            identity: self.identity,
            shared: self.shared,
            http,
            service,
            connections: Slab::new(),
            again: Vec::new(),
            verdicts: Vec::new(),
            handshakes: 0,
            places: HashMap::new(),
            hall,
        };
        house.run()
    }
}

struct House<S: Service> {
    poll: Poll,
    listeners: Vec<mio::net::TcpListener>,
    dealt: Receiver<Dealt>,
    hands: Vec<(Sender<Dealt>, Arc<Waker>)>,
    next_hand: usize,
    identity: Option<Identity>,
    shared: Arc<Shared>,
    http: Builder,
    service: Rc<S>,
    connections: Slab<Conn<S>>,
    /// Those that can go on without waiting.
    again: Vec<usize>,
    verdicts: Vec<(Ticket, S::Verdict)>,
    handshakes: usize,
    /// Connections by address, where one may have only so many.
    places: HashMap<IpAddr, usize>,
    hall: Rc<Hall>,
}

impl<S: Service> House<S> {
    fn run(&mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut looked = Instant::now();
        while !self.shared.ended.load(Relaxed) {
            let wait = self.wait();
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(error).context("epoll_wait failed");
                }
                _ => self.hall.clock.set(Instant::now()),
            }
            for event in &events {
                match event.token() {
                    WAKE => self.woken(),
                    Token(token) if token > usize::MAX - 1 - LISTENERS_MAX => self.accept(LISTENER - token),
                    Token(token) if token >= SOURCES => self.service.source(
                        token - SOURCES,
                        event.is_readable() || event.is_read_closed() || event.is_error(),
                        event.is_writable() || event.is_write_closed(),
                    ),
                    Token(slot) => self.ready(slot, event),
                }
            }
            for slot in std::mem::take(&mut self.again) {
                self.drive(slot);
            }
            self.turn();
            if self.hall.clock.get() - looked >= TICK {
                looked = self.hall.clock.get();
                self.tick();
            }
        }
        Ok(())
    }

    /// Sockets from the first loop, and verdicts.
    fn woken(&mut self) {
        while let Ok((socket, peer)) = self.dealt.try_recv() {
            self.let_in(socket, peer);
        }
        if self.shared.draining.load(Relaxed) {
            self.drain();
        }
        if self.shared.closing.load(Relaxed) {
            self.close();
        }
        let mut verdicts = std::mem::take(&mut self.verdicts);
        self.service.woken(&mut verdicts);
        self.tell_all(verdicts);
    }

    fn wait(&self) -> Duration {
        if !self.again.is_empty() {
            return Duration::ZERO;
        }
        self.service.due().map_or(TICK, |due| due.saturating_duration_since(Instant::now()).min(TICK))
    }

    fn turn(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut verdicts = std::mem::take(&mut self.verdicts);
            self.service.turn(self.hall.clock.get(), &mut verdicts);
            let is_quiet = verdicts.is_empty();
            self.tell_all(verdicts);
            if is_quiet {
                return;
            }
        }
    }

    fn tell_all(&mut self, mut verdicts: Vec<(Ticket, S::Verdict)>) {
        // In the order of the connections, whose states are then near each other.
        verdicts.sort_by_key(|(ticket, _)| ticket.slot);
        for (ticket, verdict) in verdicts.drain(..) {
            self.tell(ticket, verdict);
        }
        self.verdicts = verdicts;
    }

    /// The ticket's connection may be gone, or at another request.
    fn tell(&mut self, ticket: Ticket, verdict: S::Verdict) {
        let slot = ticket.slot as usize;
        match self.connections.get(slot) {
            Some(conn)
                if conn.desk.number.get() == ticket.number && conn.desk.stage.get() == Stage::Waiting =>
            {
                conn.desk.verdict.set(Some(verdict));
                self.drive(slot);
            }
            Some(conn)
                if conn.desk.number.get() == ticket.number && conn.desk.stage.get() == Stage::Writing =>
            {
                // There is more of the answer.
                drop(verdict);
                self.drive(slot);
            }
            _ => self.service.nobody_waits(verdict),
        }
    }

    fn accept(&mut self, number: usize) {
        loop {
            let Some(listener) = self.listeners.get(number) else { return };
            match listener.accept() {
                Ok(dealt) => self.deal(dealt),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        // Out of descriptors, as a rule. There is no event for those that wait: the next tick tries again.
                        log::warn!("cannot accept a connection: {error}");
                    }
                    return;
                }
            }
        }
    }

    fn deal(&mut self, (socket, peer): Dealt) {
        self.shared.accepted.fetch_add(1, Relaxed);
        self.next_hand = (self.next_hand + 1) % self.hands.len().max(1);
        if self.next_hand == 0 {
            return self.let_in(socket, peer);
        }
        let (sender, waker) = &self.hands[self.next_hand];
        // One that is full has not run for long; then the socket is better here.
        match sender.try_send((socket, peer)) {
            Ok(()) => drop(waker.wake()),
            Err(full) => {
                let (socket, peer) = full.into_inner();
                self.let_in(socket, peer);
            }
        }
    }

    fn let_in(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        if !self.has_room_for(peer) {
            self.shared.turned_away.fetch_add(1, Relaxed);
            return;
        }
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        // A socket that cannot be watched is closed by being dropped.
        if socket.set_nodelay(true).is_err()
            || self.poll.registry().register(&mut socket, Token(slot), interest).is_err()
        {
            return;
        }
        let Ok(link) = Link::new(socket, self.identity.as_ref()) else { return };
        self.handshakes += usize::from(!link.is_plain());
        entry.insert(Conn::new(Desk::new(&self.hall, slot as u32, link), peer));
        if self.hall.limits.per_address.is_some() {
            *self.places.entry(peer.ip()).or_default() += 1;
        }
        self.shared.connections.store(self.connections.len(), Relaxed);
    }

    fn has_room_for(&self, peer: SocketAddr) -> bool {
        let limits = &self.hall.limits;
        let taken = self.places.get(&peer.ip()).copied().unwrap_or(0);
        self.connections.len() < limits.connections
            && limits.per_address.is_none_or(|places| taken < places)
            && (self.identity.is_none() || self.handshakes < limits.handshakes)
    }

    fn ready(&mut self, slot: usize, event: &Event) {
        let Some(conn) = self.connections.get(slot) else { return };
        let desk = &conn.desk;
        let is_closed = event.is_read_closed() || event.is_error();
        desk.peer_closed.set(desk.peer_closed.get() || is_closed);
        desk.readable.set(desk.readable.get() || event.is_readable() || is_closed);
        desk.writable.set(desk.writable.get() || event.is_writable() || event.is_write_closed());
        if self.has_left(slot) {
            return self.follow(slot, Turn::Gone);
        }
        self.drive(slot);
    }

    /// Nobody waits for the answer that is in work any more.
    fn has_left(&self, slot: usize) -> bool {
        self.service.leaves_with_its_half()
            && self
                .connections
                .get(slot)
                .is_some_and(|conn| conn.desk.peer_closed.get() && waits_for_service(&conn.desk))
    }

    fn drive(&mut self, slot: usize) {
        let Some(conn) = self.connections.get_mut(slot) else { return };
        let greeted = conn.desk.stage.get() == Stage::Handshake;
        let turn = conn.drive(&self.http, &self.service);
        if greeted && (turn == Turn::Gone || conn.desk.stage.get() != Stage::Handshake) {
            self.handshakes -= 1;
        }
        // The end may have come with the request: there is no other event for it.
        let turn = if turn != Turn::Gone && self.has_left(slot) { Turn::Gone } else { turn };
        self.follow(slot, turn);
    }

    fn follow(&mut self, slot: usize, turn: Turn) {
        match turn {
            Turn::Waits => {}
            Turn::Again => self.again.push(slot),
            Turn::Gone => {
                let conn = self.connections.remove(slot);
                conn.desk.close();
                self.leave(conn.peer);
                self.shared.connections.store(self.connections.len(), Relaxed);
            }
        }
    }

    fn leave(&mut self, peer: SocketAddr) {
        if let Some(taken) = self.places.get_mut(&peer.ip()) {
            *taken -= 1;
            if *taken == 0 {
                self.places.remove(&peer.ip());
            }
        }
    }

    /// Deadlines: 10,000 connections are a few hundred microseconds.
    fn tick(&mut self) {
        self.service.tick();
        let now = self.hall.clock.get();
        let slots: Vec<usize> = self.connections.iter().map(|(slot, _)| slot).collect();
        let mut busy = 0;
        for slot in slots {
            let conn = &mut self.connections[slot];
            let is_greeting = conn.desk.stage.get() == Stage::Handshake;
            busy += usize::from(is_busy(conn.desk.stage.get()));
            let turn = conn.look_at_clock(now, &self.service);
            self.handshakes -= usize::from(is_greeting && turn == Turn::Gone);
            self.follow(slot, turn);
        }
        self.shared.busy.store(busy, Relaxed);
        if self.shared.draining.load(Relaxed) {
            self.drain();
            return;
        }
        // Those that came while nothing could be accepted.
        (0..self.listeners.len()).for_each(|number| self.accept(number));
    }

    /// Nobody new. Whoever is here hears of the end with the next answer.
    fn drain(&mut self) {
        self.hall.is_draining.set(true);
        for mut listener in self.listeners.drain(..) {
            // Closed here; a socket of systemd's goes on listening for the next process.
            drop(self.poll.registry().deregister(&mut listener));
        }
    }
}

impl<S: Service> House<S> {
    /// Connections on which nothing is under way.
    fn close(&mut self) {
        let idle = |(slot, conn): (usize, &Conn<S>)| (conn.desk.stage.get() == Stage::Idle).then_some(slot);
        let slots: Vec<usize> = self.connections.iter().filter_map(idle).collect();
        for slot in slots {
            let turn = self.connections[slot].part();
            self.follow(slot, turn);
        }
    }
}

/// The answer is in work with the service, the whole of it or the rest.
fn waits_for_service<V>(desk: &Desk<V>) -> bool {
    desk.stage.get() == Stage::Waiting || (desk.stage.get() == Stage::Writing && desk.flows.get())
}

/// Somebody waits for an answer, or a request is coming in.
fn is_busy(stage: Stage) -> bool {
    matches!(stage, Stage::Head | Stage::Body | Stage::Waiting | Stage::Writing)
}
