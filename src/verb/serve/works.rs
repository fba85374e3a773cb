//! The questions of one loop, their flights, and the sessions that fly them.
//!
//! A **flight** is one run of a statement, and whoever waits for it: the **leader**, who asked first and is sent rows as they come,
//! and **passengers**, who asked the same meanwhile and are given the whole. Who may join, who may leave, what may be reused:
//!
//! - Only plain questions share. Who looks at the ledger for itself (If-None-Match, Rowmill-After) flies alone, so nobody is given an
//!   answer that began before its write. A flight from before a write of this process is joined by nobody either.
//! - The leader may leave: the flight goes on while there are passengers. The last who leaves ends it: its statement is canceled, or
//!   left out if it has not begun. What writes is never canceled.
//! - A session whose cancel request is under way is lent to nobody: see [`super::session`].
//! - The status goes out when the answer is whole, or larger than [`HELD`]; so an error among the first rows still has its own
//!   status. What writes is held whole, until the server has ended the transaction.
//! - A reader who is slow is waited for: the session is not read while [`AHEAD`] bytes wait for it, and the server stops by
//!   itself. Passengers wait for no slow leader: the whole is kept for them up to [`SHARED_MAX`]. Beyond that it is nobody's, and
//!   they fly on their own.
//!
//! Nothing here waits. [`Works::turn`] does what can be done, and says whom it has something for.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use slab::Slab;

use super::describe::Description;
use super::endpoint::Endpoint;
use super::errand::{Done, Errand};
use super::failure::Failure;
use super::house::House;
use super::look::{self, Look, Place, Reached};
use super::parameter::Value;
use super::render::{Renderer, Unfit};
use super::session::{Ends, Profile, Session, State, Statement};
use crate::base::retry::BackOff;
use crate::client::wire::{self, Said, Unreadable};
use crate::config::{Etag, Format};
use crate::http::event_loop::Sources;
use crate::http::exchange::Ticket;

/// Bytes of an answer before its status goes out.
pub const HELD: usize = 64 << 10;

/// Bytes that wait for a reader, before the session is not read any more; and those at which it is read again.
const AHEAD: usize = 256 << 10;
const BEHIND: usize = 64 << 10;

/// Bytes of an answer that is kept whole for passengers.
const SHARED_MAX: usize = 1 << 20;

/// Bytes of an answer to what writes, which is held whole.
const WRITTEN_MAX: usize = 8 << 20;

/// One row, or one message of the server's.
const ROW_MAX: usize = 8 << 20;

/// Reads from one session before others have their turn.
const READS_MAX: usize = 8;

/// What the server says to a statement that takes too long comes a little later than that.
const GRACE: Duration = Duration::from_secs(2);

/// A cancel request that is not over by then: the session is closed.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// One that came before its statement strikes nothing, and the statement goes on: after this time it is asked for again.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);

/// Between two looks for Rowmill-After: rows come every few milliseconds at best.
const LOOK_FIRST: Duration = Duration::from_millis(4);
const LOOK_LONGEST: Duration = Duration::from_millis(64);

/// Questions that wait for a place in the ledger, beside those that wait for a session.
const PAUSING_MAX: usize = 1000;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug)]
pub struct Question {
    pub endpoint: usize,
    pub format: Format,
    pub values: Vec<Value>,
    /// The client has an answer with such a tag.
    pub none_match: Option<String>,
    /// Records that have to be in the tables.
    pub after: Vec<Place>,
}

/// What somebody who waits is told.
pub enum Told {
    Whole {
        body: Bytes,
        tag: Option<String>,
    },
    /// More than is held back: the rest flows.
    Begun {
        pipe: Rc<Pipe>,
        tag: Option<String>,
    },
    NotModified {
        tag: String,
    },
    Failed(Failure),
    /// There is more in the pipe.
    More,
}

/// Bytes between a session and the leader.
#[derive(Default)]
pub struct Pipe {
    chunks: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    end: Cell<Option<End>>,
    /// The session is not read until there is room.
    is_full: Cell<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    Broken,
}

/// What a reader finds in a pipe.
pub enum Drawn {
    Bytes(Bytes),
    End(End),
    /// Nothing yet.
    Dry,
}

impl Pipe {
    fn push(&self, bytes: Bytes) {
        self.bytes.set(self.bytes.get() + bytes.len());
        self.chunks.borrow_mut().push_back(bytes);
    }

    /// The next bytes; and true if the session may be read again.
    pub fn draw(&self) -> (Drawn, bool) {
        let Some(bytes) = self.chunks.borrow_mut().pop_front() else {
            return (self.end.get().map_or(Drawn::Dry, Drawn::End), false);
        };
        self.bytes.set(self.bytes.get() - bytes.len());
        let again = self.is_full.get() && self.bytes.get() <= BEHIND;
        if again {
            self.is_full.set(false);
        }
        (Drawn::Bytes(bytes), again)
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    endpoint: usize,
    format: Format,
    values: Vec<Value>,
}

/// Where a flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    /// Looks at the ledger again at this time.
    Pausing(Instant),
    /// A session's, by its place.
    Looking(usize),
    Asking(usize),
}

struct Flight {
    number: u64,
    endpoint: usize,
    format: Format,
    key: Option<Rc<Key>>,
    values: Vec<Value>,
    none_match: Option<String>,
    after: Vec<Place>,
    leader: Option<Ticket>,
    passengers: Vec<Ticket>,
    stage: Stage,
    asked: Instant,
    /// Since when it has been in the queue.
    queued: Instant,
    /// When its statement went to the server.
    sent: Instant,
    /// What it is at by then at the latest.
    deadline: Instant,
    pauses: BackOff,
    description: Option<(Arc<Description>, u64)>,
    look: Look,
    tag: Option<String>,
    renderer: Option<Renderer>,
    /// What is held back, and for a flight with passengers or room for them, everything so far.
    whole: Vec<u8>,
    /// Of `whole`, what is in the pipe.
    piped: usize,
    pipe: Option<Rc<Pipe>>,
    failure: Option<Failure>,
    was_retried: bool,
    writes: u64,
}

/// Sessions with one server, and who waits for them.
struct Pool {
    target: usize,
    /// Open, or being opened.
    count: usize,
    idle: Vec<usize>,
    queue: VecDeque<(usize, u64)>,
    errands: Sender<Errand>,
    back_off: BackOff,
    retry_at: Option<Instant>,
}

/// See above.
pub struct Works {
    house: Arc<House>,
    /// Which loop this is.
    number: usize,
    sources: Sources,
    done: Receiver<Done>,
    pools: Vec<Pool>,
    sessions: Slab<(usize, Session)>,
    flights: Slab<Flight>,
    shared: HashMap<Rc<Key>, usize>,
    /// The flight of each who waits, or reads.
    seats: HashMap<Ticket, usize>,
    told: Vec<(Ticket, Told)>,
    /// Sessions that can be read without waiting for their sockets.
    again: Vec<usize>,
    last_flight: u64,
    last_session: u64,
    /// When something is due, at the earliest.
    due: Option<Instant>,
    scratch: Vec<u8>,
}

/// One server as a loop sees it.
pub struct Way {
    pub sessions: usize,
    pub errands: Sender<Errand>,
}

impl Works {
    pub fn new(
        house: Arc<House>,
        number: usize,
        sources: Sources,
        done: Receiver<Done>,
        ways: Vec<Way>,
    ) -> Works {
        let pool = |way: Way| Pool {
            target: way.sessions,
            count: 0,
            idle: Vec::new(),
            queue: VecDeque::new(),
            errands: way.errands,
            back_off: BackOff::new(RETRY_FIRST, RETRY_LONGEST),
            retry_at: None,
        };
        Works {
            house,
            number,
            sources,
            done,
            pools: ways.into_iter().map(pool).collect(),
            sessions: Slab::new(),
            flights: Slab::new(),
            shared: HashMap::new(),
            seats: HashMap::new(),
            told: Vec::new(),
            again: Vec::new(),
            last_flight: 0,
            last_session: 0,
            // At once: the sessions are opened.
            due: Some(Instant::now()),
            scratch: vec![0; HELD],
        }
    }

    /// Takes a question; the ticket is told what becomes of it.
    ///
    /// # Errors
    /// Where as many wait as may.
    pub fn ask(&mut self, question: Question, ticket: Ticket, now: Instant) -> Result<(), Failure> {
        let Question { endpoint, format, values, none_match, after } = question;
        let is_plain = none_match.is_none() && after.is_empty();
        let may_share = is_plain && self.house.endpoints[endpoint].share;
        let key = may_share.then(|| Rc::new(Key { endpoint, format, values: values.clone() }));
        let writes = self.house.writes.load(Relaxed);
        if let Some(flight) = key.as_ref().and_then(|key| self.shared.get(key)).copied()
            && self.flights[flight].writes == writes
        {
            self.house.figures.of(endpoint).joined.fetch_add(1, Relaxed);
            self.flights[flight].passengers.push(ticket);
            self.seats.insert(ticket, flight);
            // A leader who is slow is waited for no longer.
            if let Stage::Asking(session) = self.flights[flight].stage {
                self.again.push(session);
            }
            return Ok(());
        }
        let mut flight = self.new_flight(endpoint, format, values, ticket, now);
        (flight.key, flight.none_match, flight.after, flight.writes) = (key, none_match, after, writes);
        self.queue(flight)
    }

    fn new_flight(
        &self,
        endpoint: usize,
        format: Format,
        values: Vec<Value>,
        leader: Ticket,
        now: Instant,
    ) -> Flight {
        Flight {
            number: 0,
            endpoint,
            format,
            key: None,
            values,
            none_match: None,
            after: Vec::new(),
            leader: Some(leader),
            passengers: Vec::new(),
            stage: Stage::Queued,
            asked: now,
            queued: now,
            sent: now,
            deadline: now + self.house.config.queue_wait,
            pauses: BackOff::new(LOOK_FIRST, LOOK_LONGEST),
            description: None,
            look: Look::default(),
            tag: None,
            renderer: None,
            whole: Vec::new(),
            piped: 0,
            pipe: None,
            failure: None,
            was_retried: false,
            writes: 0,
        }
    }

    fn queue(&mut self, mut flight: Flight) -> Result<(), Failure> {
        let pool = self.pool_of(flight.endpoint);
        // One that a session takes at once is in nobody's way.
        if self.pools[pool].queue.len() >= self.pools[pool].idle.len() + self.house.config.queue_max {
            return Err(Failure::QueueFull);
        }
        self.last_flight += 1;
        flight.number = self.last_flight;
        let (number, key, deadline) = (flight.number, flight.key.clone(), flight.deadline);
        let leader = flight.leader;
        let place = self.flights.insert(flight);
        self.seats.extend(leader.map(|leader| (leader, place)));
        if let Some(key) = key {
            self.shared.insert(key, place);
        }
        self.pools[pool].queue.push_back((place, number));
        self.wake_by(deadline);
        Ok(())
    }

    fn pool_of(&self, endpoint: usize) -> usize {
        // What writes is asked of the primary, which is the last; where there is one server, it is both.
        if self.house.endpoints[endpoint].write { self.pools.len() - 1 } else { 0 }
    }

    fn wake_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub fn due(&self) -> Option<Instant> {
        if self.again.is_empty() && self.told.is_empty() { self.due } else { Some(Instant::now()) }
    }

    /// Once a second.
    pub fn tick(&self) {
        self.house.figures.turned(self.number);
    }

    /// Somebody is gone, or has what it wanted.
    pub fn leave(&mut self, ticket: Ticket, now: Instant) {
        let Some(place) = self.seats.remove(&ticket) else { return };
        let Some(flight) = self.flights.get_mut(place) else { return };
        if flight.leader == Some(ticket) {
            flight.leader = None;
            flight.pipe = None;
        }
        flight.passengers.retain(|other| *other != ticket);
        let stage = flight.stage;
        if flight.leader.is_some() || !flight.passengers.is_empty() {
            // The session may have waited for the one who left.
            if let Stage::Asking(session) = stage {
                self.again.push(session);
            }
            return;
        }
        match stage {
            Stage::Queued | Stage::Pausing(_) => drop(self.land(place)),
            Stage::Asking(_) if self.house.endpoints[flight.endpoint].write => {}
            Stage::Looking(session) | Stage::Asking(session) => {
                drop(self.land(place));
                self.cancel(session, now);
            }
        }
    }

    /// The reader of a pipe has room again.
    pub fn go_on(&mut self, ticket: Ticket) {
        if let Some(flight) = self.seats.get(&ticket).and_then(|place| self.flights.get(*place))
            && let Stage::Asking(session) = flight.stage
        {
            self.again.push(session);
        }
    }

    /// A flight is over.
    fn land(&mut self, place: usize) -> Flight {
        let flight = self.flights.remove(place);
        self.unlist(&flight.key, place);
        if flight.stage == Stage::Queued {
            // Whoever gave up takes no room from others.
            let pool = self.pool_of(flight.endpoint);
            self.pools[pool].queue.retain(|(_, number)| *number != flight.number);
        }
        for ticket in flight.leader.iter().chain(&flight.passengers) {
            self.seats.remove(ticket);
        }
        flight
    }

    fn unlist(&mut self, key: &Option<Rc<Key>>, place: usize) {
        if let Some(key) = key
            && self.shared.get(key) == Some(&place)
        {
            self.shared.remove(key);
        }
    }

    // ---- sessions ----

    /// A session's socket changed.
    pub fn source(&mut self, place: usize, readable: bool, writable: bool) {
        let Some((_, session)) = self.sessions.get_mut(place) else { return };
        match session.woken(readable, writable) {
            Ok(()) => self.again.push(place),
            Err(error) => self.lose(place, &error.to_string()),
        }
    }

    /// The session is gone, and whoever flew with it is told.
    fn lose(&mut self, place: usize, why: &str) {
        let state = self.sessions[place].1.state;
        log::debug!("a session is lost: {why}");
        self.close(place);
        if let State::Lent(flight) = state {
            let write = self.house.endpoints[self.flights[flight].endpoint].write
                && matches!(self.flights[flight].stage, Stage::Asking(_));
            self.fail(flight, Failure::Lost { write });
        }
    }

    fn close(&mut self, place: usize) {
        let (pool, session) = self.sessions.remove(place);
        let figures = &self.house.figures.pools[pool];
        figures.open.fetch_sub(1, Relaxed);
        if session.state != State::Idle {
            figures.lent.fetch_sub(1, Relaxed);
        }
        self.pools[pool].count -= 1;
        self.pools[pool].idle.retain(|other| *other != place);
        self.wake_by(Instant::now());
    }

    /// It is nobody's any more; the server's answer was read to its end.
    fn give_back(&mut self, place: usize) {
        let (pool, session) = &mut self.sessions[place];
        if session.is_unusable {
            session.state = State::Idle;
            self.house.figures.pools[*pool].lent.fetch_sub(1, Relaxed);
            return self.close(place);
        }
        session.state = State::Idle;
        let pool = *pool;
        self.house.figures.pools[pool].lent.fetch_sub(1, Relaxed);
        self.pools[pool].idle.push(place);
    }

    /// Ends a statement that nobody waits for. See the head of [`super::session`].
    fn cancel(&mut self, place: usize, now: Instant) {
        let (pool, session) = &mut self.sessions[place];
        session.state = State::Canceling { replied: false, closed: false, since: now };
        let errand = Errand::Cancel {
            to: self.number,
            session: place,
            number: session.number,
            key: session.key.clone(),
        };
        self.house.figures.cancels.fetch_add(1, Relaxed);
        if self.pools[*pool].errands.try_send(errand).is_err() {
            self.house.figures.replaced.fetch_add(1, Relaxed);
            return self.close(place);
        }
        self.again.push(place);
        self.wake_by(now + CANCEL_MAX);
    }

    /// One of the two ends of a cancel was seen.
    fn canceled(&mut self, place: usize, by_reply: bool) {
        let Some((_, session)) = self.sessions.get_mut(place) else { return };
        let State::Canceling { replied, closed, since } = session.state else { return };
        let (replied, closed) = (replied || by_reply, closed || !by_reply);
        session.state = State::Canceling { replied, closed, since };
        if replied && closed {
            self.give_back(place);
        } else if closed {
            self.wake_by(Instant::now() + CANCEL_AGAIN);
        }
    }

    /// Asks once more for the end of statements that a request came too early for. Until this one is over as well, the session
    /// is nobody's.
    fn cancel_again(&mut self) {
        for (place, (pool, session)) in &mut self.sessions {
            let State::Canceling { replied: false, closed: true, since } = session.state else { continue };
            let errand = Errand::Cancel {
                to: self.number,
                session: place,
                number: session.number,
                key: session.key.clone(),
            };
            if self.pools[*pool].errands.try_send(errand).is_ok() {
                session.state = State::Canceling { replied: false, closed: false, since };
            }
        }
    }

    fn errands_done(&mut self, now: Instant) {
        while let Ok(done) = self.done.try_recv() {
            match done {
                Done::Opened { pool, result: Ok(opened) } => self.opened(pool, opened),
                Done::Opened { pool, result: Err(error) } => {
                    self.pools[pool].count -= 1;
                    let at = now + self.pools[pool].back_off.pause();
                    self.pools[pool].retry_at = Some(at);
                    self.wake_by(at);
                    self.house.figures.pools[pool].refused(format!("{error:#}"));
                }
                Done::Canceled { session, number, is_over } => {
                    if self.sessions.get(session).is_none_or(|(_, other)| other.number != number) {
                        continue;
                    }
                    if is_over {
                        self.canceled(session, false);
                    } else {
                        self.house.figures.replaced.fetch_add(1, Relaxed);
                        self.close(session);
                    }
                }
            }
        }
    }

    fn opened(&mut self, pool: usize, opened: crate::client::login::Session) {
        self.last_session += 1;
        let session = Session::new(self.last_session, opened);
        let place = self.sessions.vacant_key();
        if let Err(error) = self.sources.watch(session.socket(), place) {
            self.pools[pool].count -= 1;
            return self.house.figures.pools[pool].refused(format!("its socket cannot be watched: {error}"));
        }
        self.sessions.insert((pool, session));
        self.pools[pool].idle.push(place);
        self.pools[pool].back_off = BackOff::new(RETRY_FIRST, RETRY_LONGEST);
        self.pools[pool].retry_at = None;
        self.house.figures.pools[pool].opened();
    }

    /// Asks for the sessions that are missing.
    fn fill_pools(&mut self, now: Instant) {
        for pool in &mut self.pools {
            while pool.count < pool.target && pool.retry_at.is_none_or(|at| at <= now) {
                if pool.errands.try_send(Errand::Open { to: self.number }).is_err() {
                    pool.retry_at = Some(now + RETRY_FIRST);
                    break;
                }
                pool.count += 1;
                if pool.retry_at.is_some() {
                    // One at a time while the server gives none.
                    pool.retry_at = Some(now + RETRY_LONGEST);
                }
            }
        }
    }

    // ---- flights ----

    /// Does what can be done now.
    pub fn turn(&mut self, now: Instant) -> Vec<(Ticket, Told)> {
        self.errands_done(now);
        for place in std::mem::take(&mut self.again) {
            self.read(place, now);
        }
        if self.due.is_some_and(|due| due <= now) {
            self.look_at_clock(now);
        }
        self.fill_pools(now);
        for pool in 0..self.pools.len() {
            self.dispatch(pool, now);
        }
        std::mem::take(&mut self.told)
    }

    fn dispatch(&mut self, pool: usize, now: Instant) {
        while let Some(session) = self.pools[pool].idle.last().copied() {
            let Some((place, number)) = self.pools[pool].queue.pop_front() else { return };
            let is_there = |flight: &Flight| flight.number == number && flight.stage == Stage::Queued;
            if !self.flights.get(place).is_some_and(is_there) {
                continue;
            }
            self.pools[pool].idle.pop();
            self.house.figures.pools[pool].lent.fetch_add(1, Relaxed);
            self.sessions[session].1.state = State::Lent(place);
            self.start(place, session, now);
        }
    }

    fn start(&mut self, place: usize, session: usize, now: Instant) {
        let flight = &mut self.flights[place];
        let endpoint = &self.house.endpoints[flight.endpoint];
        self.house.figures.of(flight.endpoint).queue_seconds.observe((now - flight.queued).as_secs_f64());
        let (description, version) = match self.house.description(flight.endpoint) {
            (Ok(description), version) => (description, version),
            (Err(_), _) => {
                let gone = crate::client::wire::Complaint {
                    code: "42000".to_owned(),
                    message: "the statement fits no tables".to_owned(),
                    is_fatal: false,
                };
                self.describe_again(place);
                self.fail(place, Failure::Server(gone));
                return self.give_back(session);
            }
        };
        flight.sent = now;
        flight.deadline = now + endpoint.timeout + GRACE;
        let deadline = flight.deadline;
        let by_ledger = endpoint.etag == Some(Etag::Ledger) && description.untagged.is_empty();
        let looks = self.house.has_ledger && (by_ledger || !flight.after.is_empty());
        flight.description = Some((description.clone(), version));
        self.wake_by(deadline);
        if looks {
            self.send_look(place, session, &description)
        } else {
            self.send_question(place, session, now)
        }
    }

    fn profile(endpoint: &Endpoint, description: &Description) -> Profile {
        Profile { timeout: endpoint.timeout, plan: description.plan(endpoint), write: endpoint.write }
    }

    fn send_look(&mut self, place: usize, session: usize, description: &Description) {
        let flight = &mut self.flights[place];
        flight.stage = Stage::Looking(session);
        flight.look = Look::default();
        let endpoint = &self.house.endpoints[flight.endpoint];
        let targets = description.targets();
        let mut list = String::from("{");
        for (number, target) in targets.iter().enumerate() {
            let escaped = target.replace('\\', "\\\\").replace('"', "\\\"");
            list.push_str(&format!("{}\"{escaped}\"", if number > 0 { "," } else { "" }));
        }
        list.push('}');
        let statement = Statement {
            name: "look",
            sql: look::SQL,
            types: &[postgres::types::Type::TEXT_ARRAY.oid()],
            values: &[Some(list.into_bytes())],
            wants_columns: false,
        };
        let profile = Works::profile(endpoint, description);
        let sent = self.sessions[session].1.ask(&statement, profile, self.house.config.prepare);
        if let Err(error) = sent {
            self.lose(session, &error.to_string());
        }
    }

    fn send_question(&mut self, place: usize, session: usize, now: Instant) {
        let flight = &mut self.flights[place];
        flight.stage = Stage::Asking(session);
        flight.sent = now;
        flight.failure = None;
        flight.whole.clear();
        let endpoint = &self.house.endpoints[flight.endpoint];
        let Some((description, version)) = flight.description.clone() else { return };
        flight.renderer = Some(Renderer::new(endpoint, flight.format, &flight.values, &mut flight.whole));
        let name = statement_name(flight.endpoint, flight.format, version);
        let statement = Statement {
            name: &name,
            sql: description.sql_for(endpoint, flight.format),
            types: &endpoint.types(),
            values: &endpoint.arguments(&flight.values),
            wants_columns: Endpoint::wants_columns(flight.format),
        };
        let profile = Works::profile(endpoint, &description);
        let sent = self.sessions[session].1.ask(&statement, profile, self.house.config.prepare);
        if let Err(error) = sent {
            self.lose(session, &error.to_string());
        }
    }

    /// Reads what a session has for its flight, until there is no more, or no room for it.
    fn read(&mut self, place: usize, now: Instant) {
        for _ in 0..READS_MAX {
            if self.messages(place, now) == Read::Stop {
                return;
            }
            let Some((_, session)) = self.sessions.get_mut(place) else { return };
            match session.fill(&mut self.scratch) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => return self.lose(place, &error.to_string()),
            }
        }
        // Others first.
        self.again.push(place);
    }

    /// True if the leader has enough to read, and nobody else waits.
    fn is_full(&self, flight: usize) -> bool {
        let Some(flight) = self.flights.get(flight) else { return false };
        let Some(pipe) = flight.pipe.as_ref().filter(|pipe| pipe.bytes.get() > AHEAD) else { return false };
        let is_full = flight.passengers.is_empty();
        pipe.is_full.set(is_full);
        is_full
    }

    /// Takes the messages that are there whole.
    fn messages(&mut self, place: usize, now: Instant) -> Read {
        loop {
            let Some((_, session)) = self.sessions.get_mut(place) else { return Read::Stop };
            let (said, length) = match wire::next(&session.inbox[session.at..], ROW_MAX) {
                Ok(None) => {
                    if let State::Lent(flight) = session.state {
                        self.pass_on(flight);
                        return if self.is_full(flight) { Read::Stop } else { Read::More };
                    }
                    return Read::More;
                }
                Ok(Some(found)) => found,
                Err(unreadable) => {
                    self.unreadable(place, &unreadable);
                    return Read::Stop;
                }
            };
            session.at += length;
            match (session.state, said) {
                (State::Lent(flight), Said::Row(row)) => {
                    let flight = &mut self.flights[flight];
                    flight.take(row);
                }
                (State::Lent(flight), Said::Columns(columns)) => {
                    let flight = &mut self.flights[flight];
                    if let (Some(renderer), None) = (&mut flight.renderer, &flight.failure)
                        && let Err(unfit) = renderer.columns(&columns, &mut flight.whole)
                    {
                        flight.failure = Some(Failure::Unfit(unfit));
                    }
                }
                // A transaction that was to be committed, and was not.
                (State::Lent(flight), Said::Complete(tag))
                    if session.expects.front() == Some(&Ends::Transaction) && tag == b"ROLLBACK" =>
                {
                    let flight = &mut self.flights[flight];
                    flight.failure.get_or_insert(Failure::Lost { write: false });
                }
                // The session's last words. Its connection may stay open for long, where something stands in between.
                (_, Said::Error(complaint)) if complaint.is_fatal => {
                    self.lose(place, &format!("{} (SQLSTATE {})", complaint.message, complaint.code));
                    return Read::Stop;
                }
                (state, Said::Error(complaint)) => {
                    session.is_unusable |= session.expects.front() == Some(&Ends::Settings);
                    if let State::Lent(flight) = state {
                        self.flights[flight].failure.get_or_insert(Failure::Server(complaint));
                    }
                }
                (state, Said::Ready { is_idle }) => {
                    session.expects.pop_front();
                    if session.expects.is_empty() {
                        // A cancel or a timeout that struck the COMMIT itself has ended no transaction.
                        session.is_unusable |= !is_idle;
                        match state {
                            State::Lent(flight) => self.ready(flight, place, now),
                            State::Canceling { .. } => self.canceled(place, true),
                            State::Idle => {}
                        }
                    }
                }
                _ => {}
            }
            // Rows that make no answer: the rest is not waited for.
            if let Some((_, session)) = self.sessions.get(place)
                && let State::Lent(flight) = session.state
                && self.ends_early(flight)
            {
                let flight = self.land(flight);
                self.tell_failure(flight);
                self.cancel(place, now);
            }
        }
    }

    fn ends_early(&self, flight: usize) -> bool {
        let flight = &self.flights[flight];
        matches!(flight.failure, Some(Failure::Unfit(_))) && !self.house.endpoints[flight.endpoint].write
    }

    fn unreadable(&mut self, place: usize, unreadable: &Unreadable) {
        let state = self.sessions[place].1.state;
        self.close(place);
        if let State::Lent(flight) = state {
            let failure = match unreadable {
                Unreadable::TooLarge(bytes) => Failure::RowTooLarge(*bytes),
                Unreadable::Malformed => {
                    log::error!("PostgreSQL sent what is no message of its protocol; the session was closed");
                    Failure::Lost { write: self.house.endpoints[self.flights[flight].endpoint].write }
                }
            };
            self.fail(flight, failure);
        }
    }

    /// Bytes of an answer on their way to those who wait.
    fn pass_on(&mut self, place: usize) {
        let Some(flight) = self.flights.get_mut(place) else { return };
        let write = self.house.endpoints[flight.endpoint].write;
        if write && flight.whole.len() > WRITTEN_MAX {
            flight.whole.clear();
            flight.failure.get_or_insert(Failure::WrittenTooLarge(WRITTEN_MAX));
        }
        if write || flight.failure.is_some() || flight.renderer.is_none() {
            return;
        }
        if flight.pipe.is_none() && flight.whole.len() > HELD && flight.leader.is_some() && flight.piped == 0
        {
            self.begin(place);
        }
        self.pour(place);
    }

    /// The leader's status goes out.
    fn begin(&mut self, place: usize) {
        let flight = &mut self.flights[place];
        let Some(leader) = flight.leader else { return };
        let pipe = Rc::new(Pipe::default());
        flight.pipe = Some(pipe.clone());
        self.told.push((leader, Told::Begun { pipe, tag: flight.tag.clone() }));
    }

    fn pour(&mut self, place: usize) {
        let flight = &mut self.flights[place];
        let fresh = flight.whole.len() - flight.piped;
        if let (Some(pipe), Some(leader)) = (&flight.pipe, flight.leader)
            && fresh > 0
        {
            self.house.figures.of(flight.endpoint).bytes.fetch_add(fresh as u64, Relaxed);
            pipe.push(Bytes::copy_from_slice(&flight.whole[flight.piped..]));
            flight.piped = flight.whole.len();
            self.told.push((leader, Told::More));
        }
        let is_shared = flight.key.is_some() || !flight.passengers.is_empty();
        if flight.pipe.is_some() && !is_shared {
            flight.whole.clear();
            flight.piped = 0;
        } else if flight.whole.len() > SHARED_MAX {
            self.unshare(place);
        }
    }

    /// The answer is too large to be kept for others: passengers fly on their own, and nobody joins any more.
    fn unshare(&mut self, place: usize) {
        let key = self.flights[place].key.take();
        self.unlist(&key, place);
        let flight = &mut self.flights[place];
        if flight.leader.is_none() && !flight.passengers.is_empty() {
            // The one who led is gone: the first of the others is sent what there is.
            flight.leader = Some(flight.passengers.remove(0));
            flight.piped = 0;
            self.begin(place);
        }
        let flight = &mut self.flights[place];
        let passengers = std::mem::take(&mut flight.passengers);
        let (endpoint, format, values) = (flight.endpoint, flight.format, flight.values.clone());
        for ticket in passengers {
            let alone = self.new_flight(endpoint, format, values.clone(), ticket, Instant::now());
            if let Err(failure) = self.queue(alone) {
                self.seats.remove(&ticket);
                self.told.push((ticket, Told::Failed(failure)));
            }
        }
        self.pour(place);
    }

    /// The server waits for the next question: this one is over, or goes on.
    fn ready(&mut self, place: usize, session: usize, now: Instant) {
        if matches!(self.flights[place].stage, Stage::Looking(_)) {
            return self.looked(place, session, now);
        }
        if self.is_stale(place, session) {
            self.flights[place].was_retried = true;
            // A session that does not have the statement says nothing of its tables.
            if self.flights[place].sqlstate() == Some("0A000") {
                self.describe_again(place);
            }
            return self.send_question(place, session, now);
        }
        let flight = &mut self.flights[place];
        let endpoint = &self.house.endpoints[flight.endpoint];
        let figures = self.house.figures.of(flight.endpoint);
        figures.query_seconds.observe((now - flight.sent).as_secs_f64());
        figures.rows.fetch_add(flight.renderer.as_ref().map_or(0, |renderer| renderer.rows), Relaxed);
        if endpoint.write {
            self.house.writes.fetch_add(1, Relaxed);
        }
        if let (None, Some(renderer)) = (&flight.failure, &mut flight.renderer)
            && let Err(unfit) = renderer.end(&mut flight.whole)
        {
            flight.failure = Some(Failure::Unfit(unfit));
        }
        if self.flights[place].failure.as_ref().is_some_and(is_unfitting) {
            self.describe_again(place);
        }
        self.judge_time(place, now);
        let flight = self.land(place);
        self.give_back(session);
        if flight.failure.is_some() { self.tell_failure(flight) } else { self.tell_whole(flight) }
    }

    /// The server ends what takes too long with the same word as what somebody canceled.
    fn judge_time(&mut self, place: usize, now: Instant) {
        let flight = &mut self.flights[place];
        let timeout = self.house.endpoints[flight.endpoint].timeout;
        if let Some(Failure::Server(complaint)) = &flight.failure
            && complaint.code == "57014"
            && now - flight.sent + Duration::from_millis(10) >= timeout
        {
            flight.failure = Some(Failure::Time(timeout));
        }
    }

    /// True for a statement that was prepared for other tables: it is sent once more, prepared anew.
    fn is_stale(&mut self, place: usize, session: usize) -> bool {
        let flight = &self.flights[place];
        let is_known = matches!(flight.sqlstate(), Some("0A000" | "26000" | "42P05"));
        let has_rows = flight.renderer.as_ref().is_some_and(|renderer| renderer.rows > 0);
        if !is_known || has_rows || flight.was_retried || flight.pipe.is_some() || !self.house.config.prepare
        {
            return false;
        }
        let Some((_, version)) = &flight.description else { return false };
        let name = statement_name(flight.endpoint, flight.format, *version);
        let session = &mut self.sessions[session].1;
        session.forgets(&name) && session.drop_statement(&name).is_ok()
    }

    fn describe_again(&mut self, place: usize) {
        let endpoint = self.flights[place].endpoint;
        if self.house.wants_description(endpoint) {
            let pool = self.pool_of(endpoint);
            // Where there is no room, the next request asks again.
            drop(self.pools[pool].errands.try_send(Errand::Describe { endpoint }));
        }
    }

    /// The ledger has said how far the tables are.
    fn looked(&mut self, place: usize, session: usize, now: Instant) {
        let after_wait = self.house.config.after_wait;
        let flight = &mut self.flights[place];
        if flight.failure.is_some() {
            self.judge_time(place, now);
            let flight = self.land(place);
            self.give_back(session);
            return self.tell_failure(flight);
        }
        match flight.look.has_reached(&flight.after) {
            Reached::All => {}
            Reached::Never(topic) => {
                flight.failure = Some(Failure::NeverReached(topic));
            }
            Reached::NotYet if now >= flight.asked + after_wait => {
                flight.failure = Some(Failure::NotReached(after_wait));
            }
            Reached::NotYet => {
                // Held by nobody while it waits, the session serves others.
                let until = (now + flight.pauses.pause()).min(flight.asked + after_wait);
                flight.stage = Stage::Pausing(until);
                flight.deadline = until;
                self.wake_by(until);
                return self.give_back(session);
            }
        }
        let flight = &mut self.flights[place];
        let endpoint = &self.house.endpoints[flight.endpoint];
        if let Some((description, _)) = flight.description.as_ref().filter(|_| flight.failure.is_none())
            && endpoint.etag == Some(Etag::Ledger)
            && description.untagged.is_empty()
        {
            let targets = description.targets();
            let question = format!("{} {:?} {}", endpoint.name, flight.format, endpoint.statement.text);
            flight.tag = flight.look.tag(&targets, &question, &flight.values);
        }
        let matched = flight.tag.as_ref().zip(flight.none_match.as_ref());
        let is_known = matched.is_some_and(|(tag, header)| look::matches(header, tag));
        if flight.failure.is_none() && !is_known {
            return self.send_question(place, session, now);
        }
        let flight = self.land(place);
        self.give_back(session);
        if flight.failure.is_some() {
            return self.tell_failure(flight);
        }
        self.house.figures.of(flight.endpoint).spared.fetch_add(1, Relaxed);
        let tag = flight.tag.unwrap_or_default();
        let members = flight.leader.into_iter().chain(flight.passengers);
        self.told.extend(members.map(|ticket| (ticket, Told::NotModified { tag: tag.clone() })));
    }

    fn fail(&mut self, place: usize, failure: Failure) {
        let mut flight = self.land(place);
        flight.failure = Some(failure);
        self.tell_failure(flight);
    }

    fn tell_failure(&mut self, flight: Flight) {
        let failure = flight.failure.unwrap_or(Failure::Lost { write: false });
        if let (Some(pipe), Some(leader)) = (&flight.pipe, flight.leader) {
            pipe.end.set(Some(End::Broken));
            self.told.push((leader, Told::More));
            log::warn!(
                "an answer of endpoint {:?} was broken off in its middle, so that it looks like no whole one: {}",
                self.house.endpoints[flight.endpoint].name,
                failure.words()
            );
        } else {
            self.told.extend(flight.leader.map(|leader| (leader, Told::Failed(failure.clone()))));
        }
        let passengers = flight.passengers.into_iter();
        self.told.extend(passengers.map(|ticket| (ticket, Told::Failed(failure.clone()))));
    }

    fn tell_whole(&mut self, mut flight: Flight) {
        let figures = self.house.figures.of(flight.endpoint);
        let fresh = std::mem::take(&mut flight.whole);
        if let (Some(pipe), Some(leader)) = (&flight.pipe, flight.leader) {
            // It has the beginning already.
            flight.leader = None;
            let rest = &fresh[flight.piped..];
            figures.bytes.fetch_add(rest.len() as u64, Relaxed);
            if !rest.is_empty() {
                pipe.push(Bytes::copy_from_slice(rest));
            }
            pipe.end.set(Some(End::Whole));
            self.told.push((leader, Told::More));
        }
        let body = Bytes::from(fresh);
        let members: Vec<Ticket> = flight.leader.into_iter().chain(flight.passengers).collect();
        figures.bytes.fetch_add((body.len() * members.len()) as u64, Relaxed);
        let whole = |ticket| (ticket, Told::Whole { body: body.clone(), tag: flight.tag.clone() });
        self.told.extend(members.into_iter().map(whole));
    }

    // ---- time ----

    fn look_at_clock(&mut self, now: Instant) {
        self.due = None;
        let places: Vec<usize> = self.flights.iter().map(|(place, _)| place).collect();
        for place in places {
            let flight = &mut self.flights[place];
            if flight.deadline > now {
                let deadline = flight.deadline;
                self.wake_by(deadline);
                continue;
            }
            match flight.stage {
                Stage::Pausing(_) => self.look_again(place, now),
                Stage::Queued => {
                    let pool = self.pool_of(self.flights[place].endpoint);
                    let has_none = self.house.figures.pools[pool].open.load(Relaxed) == 0;
                    let waited = self.house.config.queue_wait;
                    self.fail(place, if has_none { Failure::NoServer } else { Failure::QueueTime(waited) });
                }
                Stage::Looking(session) | Stage::Asking(session) => self.overdue(place, session, now),
            }
        }
        let canceling: Vec<usize> = self
            .sessions
            .iter()
            .filter(|(_, (_, session))| {
                matches!(session.state, State::Canceling { since, .. } if now >= since + CANCEL_MAX)
            })
            .map(|(place, _)| place)
            .collect();
        for place in canceling {
            self.house.figures.replaced.fetch_add(1, Relaxed);
            self.close(place);
        }
        self.cancel_again();
        if self.sessions.iter().any(|(_, (_, session))| matches!(session.state, State::Canceling { .. })) {
            self.wake_by(now + CANCEL_AGAIN);
        }
        let retries: Vec<Instant> = self.pools.iter().filter_map(|pool| pool.retry_at).collect();
        retries.into_iter().filter(|at| *at > now).for_each(|at| self.wake_by(at));
    }

    /// Before everybody who came later.
    fn look_again(&mut self, place: usize, now: Instant) {
        let pool = self.pool_of(self.flights[place].endpoint);
        let flight = &mut self.flights[place];
        flight.stage = Stage::Queued;
        flight.queued = now;
        flight.deadline = now + self.house.config.queue_wait;
        let (number, deadline) = (flight.number, flight.deadline);
        self.pools[pool].queue.push_front((place, number));
        self.wake_by(deadline);
    }

    /// The server did not even say that it took too long: it is frozen, or the way to it is.
    fn overdue(&mut self, place: usize, session: usize, _: Instant) {
        let endpoint = &self.house.endpoints[self.flights[place].endpoint];
        let (timeout, write) = (endpoint.timeout, endpoint.write);
        let (pool, lent) = &self.sessions[session];
        let errand = Errand::Cancel { to: self.number, session, number: lent.number, key: lent.key.clone() };
        // Should it go on with it later, it is told that nobody waits. The session is closed in any case.
        drop(self.pools[*pool].errands.try_send(errand));
        self.close(session);
        self.fail(place, if write { Failure::Lost { write } } else { Failure::Time(timeout) });
    }

    /// So many that wait for a place in the ledger.
    pub fn is_crowded(&self) -> bool {
        self.flights.iter().filter(|(_, flight)| matches!(flight.stage, Stage::Pausing(_))).count()
            >= PAUSING_MAX
    }
}

impl Flight {
    /// Of the server's complaint, if there is one.
    fn sqlstate(&self) -> Option<&str> {
        match &self.failure {
            Some(Failure::Server(complaint)) => Some(&complaint.code),
            _ => None,
        }
    }

    fn take(&mut self, row: wire::Row<'_>) {
        if matches!(self.stage, Stage::Looking(_)) {
            return self.look.take(row);
        }
        let (Some(renderer), None) = (&mut self.renderer, &self.failure) else { return };
        if let Err(unfit) = renderer.row(row, &mut self.whole) {
            self.failure = Some(Failure::Unfit(unfit));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// More could be done with more bytes.
    More,
    Stop,
}

fn statement_name(endpoint: usize, format: Format, version: u64) -> String {
    format!("{endpoint}_{format:?}_{version}")
}

fn is_unfitting(failure: &Failure) -> bool {
    match failure {
        Failure::Server(complaint) => matches!(complaint.code.get(..2), Some("42" | "0A" | "3F")),
        Failure::Unfit(Unfit::NoChart(_)) => true,
        _ => false,
    }
}
