//! A writer's connection to the database that has the ledger: one transaction at a time, from BEGIN to the message that
//! moves the ledger and commits. After any error it is dropped, and what was prepared on it with it.

use std::collections::BTreeMap;
use std::time::Duration;

use postgres::{CopyInWriter, Statement};

use crate::base::failure::Failure;
use crate::client::pg::{self, Client, Server};
use crate::promise::batch::Record;
use crate::promise::dead_letter::{self, About};
use crate::promise::decide::Standing;
use crate::promise::ledger::{self, Member, Target};
use crate::promise::span::{Span, moves};

/// Prepared COPYs that one session keeps: a few columns with defaults, present or not. Each costs the server some kB.
const COPIES_MAX: usize = 16;

/// How sessions are opened, as often as one is needed.
#[derive(Clone)]
pub struct Sessions {
    pub server: Server,
    pub me: Member,
    /// Bounds every wait for a lock.
    pub lock_timeout: Duration,
    /// False where a pooler stands in between: its servers do not know what another one prepared.
    pub prepare: bool,
}

impl Sessions {
    pub fn open(&self) -> Result<Session, Failure> {
        let client = self
            .server
            .connect(&self.me.application_name())
            .map_err(|error| Failure::new(pg::class_of(&error), format!("{error:#}")))?;
        // SET LOCAL, not session settings: a pooler in transaction mode may stand in between. The search_path stays the role's
        // own: the tables' triggers, defaults and checks find what they name by it.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL statement_timeout = 0",
            self.lock_timeout.as_millis(),
            self.me.lease.as_millis()
        );
        Ok(Session {
            client,
            me: self.me.name.clone(),
            begin,
            prepare: self.prepare,
            copies: BTreeMap::new(),
        })
    }
}

/// One open session.
pub struct Session {
    client: Client,
    me: String,
    begin: String,
    prepare: bool,
    /// The COPYs that were sent last, prepared: else each transaction would ask the server what its statement means.
    copies: BTreeMap<String, Statement>,
}

impl Session {
    pub fn begin(&mut self) -> Result<(), Failure> {
        Ok(self.client.by_role_path().batch_execute(&self.begin)?)
    }

    /// For what a verb does in the same transaction, with every name in its schema.
    pub fn client(&mut self) -> &mut postgres::Client {
        self.client.by_role_path()
    }

    /// Statements without an answer.
    pub fn execute(&mut self, sql: &str) -> Result<(), postgres::Error> {
        self.client.by_role_path().batch_execute(sql)
    }

    /// Begins a COPY. Each statement is prepared once; a session sends one kind of rows nearly always.
    pub fn copy_in(&mut self, sql: &str) -> Result<CopyInWriter<'_>, postgres::Error> {
        if !self.prepare {
            return self.client.by_role_path().copy_in(sql);
        }
        if !self.copies.contains_key(sql) {
            if self.copies.len() == COPIES_MAX {
                self.copies.clear();
            }
            self.copies.insert(sql.to_owned(), self.client.by_role_path().prepare(sql)?);
        }
        self.client.by_role_path().copy_in(&self.copies[sql])
    }

    /// Writes dead letters; how many the server stored.
    pub fn letters<'a>(
        &mut self,
        letters: impl Iterator<Item = (About<'a>, Record<'a>)>,
    ) -> Result<u64, Failure> {
        dead_letter::copy(self.client.by_role_path(), letters)
    }

    /// The move of the ledger and the COMMIT in one message, which says of its failure that it was at the COMMIT.
    pub fn advance_and_commit(&mut self, target: &Target, spans: &[Span]) -> Result<(), Failure> {
        self.commit_with(&ledger::advance_and_commit(&self.me, target, &moves(spans)))
    }

    /// Sends a message that ends in COMMIT.
    pub fn commit_with(&mut self, sql: &str) -> Result<(), Failure> {
        self.client
            .by_role_path()
            .batch_execute(sql)
            .map_err(|error| Failure { at_commit: true, ..error.into() })
    }

    /// RESOLVE, outside of a transaction: waits for the old backend, fences it, and tells where the ledger stands for each
    /// span. `None`: not ours any more.
    pub fn resolve(&mut self, target: &str, spans: &[Span]) -> Result<Vec<Option<Standing>>, Failure> {
        Ok(ledger::resolve(&mut self.client, &self.me, target, &moves(spans))?)
    }
}
