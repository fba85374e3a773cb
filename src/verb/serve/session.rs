//! One session with the server, driven by the loop: what is to be sent, what has come, and whose it is.
//!
//! A session is lent to one flight at a time. PostgreSQL cancels a session and not a statement, so one whose cancel request is under
//! way belongs to nobody: it is lent again when both ends are seen, the server's answer to the statement, and the close of the
//! connection that carried the request. Until then the request could still strike, and would strike whoever came next.

use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::client::login::{self, Key, Line};
use crate::client::wire::Letter;
use crate::config::PlanMode;

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    /// A flight's, by its place.
    Lent(usize),
    /// Its statement is being canceled.
    Canceling {
        replied: bool,
        closed: bool,
        since: Instant,
    },
}

/// What a [`Said::Ready`](crate::client::wire::Said::Ready) ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Settings,
    Statement,
    /// Of a transaction that was begun by name.
    Transaction,
}

/// Settings under which a statement runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub timeout: Duration,
    pub plan: PlanMode,
    pub write: bool,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// On the server; the same for the same text.
    pub name: &'a str,
    pub sql: &'a str,
    pub types: &'a [u32],
    pub values: &'a [Option<Vec<u8>>],
    pub wants_columns: bool,
}

pub struct Session {
    /// Of all that the loop ever had.
    pub number: u64,
    pub key: Key,
    pub state: State,
    line: Line,
    /// What came and was not read yet.
    pub inbox: Vec<u8>,
    pub at: usize,
    outbox: Vec<u8>,
    readable: bool,
    writable: bool,
    /// Names of statements that the server has.
    prepared: HashSet<String>,
    profile: Option<Profile>,
    pub expects: VecDeque<Ends>,
    /// It is closed when it is given back.
    pub is_unusable: bool,
}

/// Every session begins with these: answers must not depend on the server's configuration or the role's.
pub const SETTINGS: &str = "SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'iso_8601'; \
SET bytea_output = 'hex'; SET extra_float_digits = 1; SET standard_conforming_strings = on; SET client_min_messages = 'error'";

/// Room for what came, kept for the next answer; a large row gives its own back.
const KEPT_MAX: usize = 256 << 10;

impl Session {
    pub fn new(number: u64, opened: login::Session) -> Session {
        Session {
            number,
            key: opened.key,
            state: State::Idle,
            line: opened.line,
            inbox: Vec::new(),
            at: 0,
            outbox: Vec::new(),
            readable: true,
            writable: true,
            prepared: HashSet::new(),
            profile: None,
            expects: VecDeque::new(),
            is_unusable: false,
        }
    }

    pub fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.line)
    }

    /// The socket changed.
    ///
    /// # Errors
    /// The session is lost.
    pub fn woken(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        self.readable |= readable;
        self.writable |= writable;
        self.flush()
    }

    /// Sends a statement. With `prepare`, it stays on the server, and settings are those of the session; without, all of it is one
    /// transaction, for whoever sits in between.
    ///
    /// # Errors
    /// The session is lost.
    pub fn ask(&mut self, statement: &Statement<'_>, profile: Profile, prepare: bool) -> io::Result<()> {
        let mut letter = Letter::default();
        if prepare {
            if self.profile != Some(profile) {
                letter.query(&settings(profile, "SET", ""))?;
                self.expects.push_back(Ends::Settings);
                self.profile = Some(profile);
            }
            if !self.prepared.contains(statement.name) {
                letter.prepare(statement.name, statement.sql, statement.types)?;
                self.prepared.insert(statement.name.to_owned());
            }
            letter.run(statement.name, statement.values, statement.wants_columns)?;
            self.expects.push_back(Ends::Statement);
        } else {
            let mode = if profile.write { "READ WRITE" } else { "READ ONLY" };
            let local = SETTINGS.replace("SET ", "SET LOCAL ");
            letter.query(&format!("BEGIN {mode}; {local}; {}", settings(profile, "SET LOCAL", mode)))?;
            letter.prepare("", statement.sql, statement.types)?;
            letter.run("", statement.values, statement.wants_columns)?;
            letter.query("COMMIT")?;
            self.expects.extend([Ends::Settings, Ends::Statement, Ends::Transaction]);
        }
        self.outbox.extend_from_slice(letter.bytes());
        self.flush()
    }

    /// True if the server had the statement before; it has to be sent anew.
    pub fn forgets(&mut self, name: &str) -> bool {
        self.prepared.remove(name)
    }

    /// Closes a statement of an old text.
    ///
    /// # Errors
    /// The session is lost.
    pub fn drop_statement(&mut self, name: &str) -> io::Result<()> {
        let mut letter = Letter::default();
        letter.forget(name)?;
        self.outbox.extend_from_slice(letter.bytes());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.outbox.len() && self.writable {
            match self.line.write(&self.outbox[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outbox.drain(..sent);
        Ok(())
    }

    /// Reads once; how many bytes that was, 0 for none now.
    ///
    /// # Errors
    /// The session is lost.
    pub fn fill(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        self.inbox.drain(..self.at);
        self.at = 0;
        if self.inbox.is_empty() && self.inbox.capacity() > KEPT_MAX {
            self.inbox = Vec::new();
        }
        while self.readable {
            match self.line.read(scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.inbox.extend_from_slice(&scratch[..n]);
                    return Ok(n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }
}

fn settings(profile: Profile, set: &str, begun_as: &str) -> String {
    let plan = match profile.plan {
        PlanMode::Custom => "force_custom_plan",
        PlanMode::Generic => "force_generic_plan",
        PlanMode::Auto | PlanMode::Choose => "auto",
    };
    let timeout = profile.timeout.as_millis();
    let mut text = format!("{set} statement_timeout = {timeout}; {set} plan_cache_mode = '{plan}'");
    if begun_as.is_empty() {
        let read_only = if profile.write { "off" } else { "on" };
        text.push_str(&format!("; {set} default_transaction_read_only = {read_only}"));
    }
    text
}
