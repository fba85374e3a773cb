//! A writer's connection to the database that has the ledger: one transaction at a time, from BEGIN to the message that
//! moves the ledger and commits. After any error it is dropped, and what was prepared on it with it. [`Lender`] lends each for
//! one transaction, since there may be more writers than the server has room for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres::{CopyInWriter, Statement};

use crate::base::failure::{Class, Failure};
use crate::base::lock::lock;
use crate::client::pg::{self, Client, Server};
use crate::promise::batch::Record;
use crate::promise::dead_letter::{self, About};
use crate::promise::decide::Standing;
use crate::promise::ledger::{self, Member, Target};
use crate::promise::loans::{Borrower, Loan, Loans, Number};
use crate::promise::span::{Span, moves};

/// Prepared COPYs that one session keeps: a few columns with defaults, present or not, and the tables that it is lent to. Each
/// costs the server some kB.
const COPIES_MAX: usize = 64;

/// Stages that one session keeps: each COMMIT empties all of them, whichever was used.
const STAGES_MAX: usize = 8;

/// Whoever waits longer for a session is told so, and says so.
const LOAN_MAX: Duration = Duration::from_secs(5);

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
        let failed = |error: anyhow::Error| Failure {
            starved: pg::has_no_room(&error),
            ..Failure::new(pg::class_of(&error), format!("{error:#}"))
        };
        let client = self.server.connect(&self.me.application_name()).map_err(failed)?;
        // SET LOCAL, not session settings: a pooler in transaction mode may stand in between. The search_path stays the role's
        // own: the tables' triggers, defaults and checks find what they name by it.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL statement_timeout = ",
            self.lock_timeout.as_millis(),
            self.me.lease.as_millis()
        );
        Ok(Session {
            client,
            me: self.me.name.clone(),
            begin,
            prepare: self.prepare,
            copies: BTreeMap::new(),
            stages: BTreeSet::new(),
        })
    }
}

/// One open session.
pub struct Session {
    client: Client,
    me: String,
    /// But for how long a statement may last.
    begin: String,
    prepare: bool,
    /// The COPYs that were sent last, prepared: else each transaction would ask the server what its statement means.
    copies: BTreeMap<String, Statement>,
    /// The stages that are known to be there: until the session ends, or behind a pooler the transaction.
    stages: BTreeSet<String>,
}

impl Session {
    /// Begins a transaction whose statements may last as long as they do.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.begin_within(Duration::ZERO)
    }

    /// Begins a transaction of which the server ends a statement that lasts longer; never where that is zero.
    pub fn begin_within(&mut self, statement_timeout: Duration) -> Result<(), Failure> {
        let sql = format!("{}{}", self.begin, statement_timeout.as_millis());
        if !self.prepare {
            self.stages.clear();
        }
        Ok(self.client.by_role_path().batch_execute(&sql)?)
    }

    /// For what a verb does in the same transaction, with every name in its schema.
    pub fn client(&mut self) -> &mut postgres::Client {
        self.client.by_role_path()
    }

    /// Statements without an answer.
    pub fn execute(&mut self, sql: &str) -> Result<(), postgres::Error> {
        self.client.by_role_path().batch_execute(sql)
    }

    /// Sees to it that a stage is there, and empty, in the transaction under way: a temporary table, by its name in SQL, with the
    /// columns of a query. It stays with the session, which spares the server most of what a small transaction costs; behind a
    /// pooler it ends with the transaction, since the next one may run on another session.
    pub fn stage(&mut self, name: &str, definition: &str) -> Result<(), postgres::Error> {
        if self.stages.contains(name) {
            return Ok(());
        }
        if self.stages.len() >= STAGES_MAX {
            let names: Vec<String> = std::mem::take(&mut self.stages).into_iter().collect();
            self.execute(&format!("DROP TABLE IF EXISTS {}", names.join(", ")))?;
        }
        let until = if self.prepare { "DELETE ROWS" } else { "DROP" };
        self.execute(&format!(
            "CREATE TEMPORARY TABLE IF NOT EXISTS {name} ON COMMIT {until} AS {definition} WITH NO DATA"
        ))?;
        self.stages.insert(name.to_owned());
        Ok(())
    }

    /// Takes back the transaction under way, and with it the stages that it may have made.
    pub fn rollback(&mut self) -> Result<(), postgres::Error> {
        self.stages.clear();
        self.execute("ROLLBACK")
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

    /// What a sink left for the end, the move of the ledger and the COMMIT in one message, which says of its failure that it was
    /// at the COMMIT.
    pub fn advance_and_commit(
        &mut self,
        target: &Target,
        spans: &[Span],
        rest: Option<&str>,
    ) -> Result<(), Failure> {
        let advance = ledger::advance_and_commit(&self.me, target, &moves(spans));
        match rest {
            None => self.commit_with(&advance),
            Some(rest) => self.commit_with(&format!("{rest}; {advance}")),
        }
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

/// The sessions of all writers of a process.
pub struct Lender {
    pub sessions: Sessions,
    most: usize,
    pool: Mutex<Pool>,
    changed: Condvar,
}

struct Pool {
    loans: Loans,
    idle: BTreeMap<Number, Session>,
}

impl Lender {
    /// `most` sessions at once.
    pub fn new(sessions: Sessions, most: usize) -> Lender {
        let pool = Pool { loans: Loans::new(most), idle: BTreeMap::new() };
        Lender { sessions, most, pool: Mutex::new(pool), changed: Condvar::new() }
    }

    /// A session for one transaction, for as long as it takes until it is this one's turn.
    ///
    /// # Errors
    /// Where PostgreSQL cannot be reached, and where others had all sessions for a while; whoever asks again has kept its place.
    pub fn borrow(self: &Arc<Lender>, borrower: Borrower) -> Result<Lent, Failure> {
        let since = Instant::now();
        let mut pool = lock(&self.pool);
        let mut refusal = None;
        while since.elapsed() < LOAN_MAX {
            match pool.loans.ask(borrower, Instant::now()) {
                Loan::Take(number) => {
                    if let Some(session) = pool.idle.remove(&number) {
                        return Ok(Lent { session: Some(session), number, borrower, lender: self.clone() });
                    }
                    pool.loans.lose(number, borrower);
                }
                Loan::Open(number) => {
                    drop(pool);
                    let opened = self.sessions.open();
                    pool = lock(&self.pool);
                    let failure = match opened {
                        Ok(session) => {
                            let session = Some(session);
                            return Ok(Lent { session, number, borrower, lender: self.clone() });
                        }
                        Err(failure) => failure,
                    };
                    self.changed.notify_all();
                    if !failure.starved {
                        pool.loans.lose(number, borrower);
                        return Err(failure);
                    }
                    pool.loans.refuse(number, Instant::now());
                    let is_alone = refusal.replace(failure).is_some();
                    if is_alone {
                        // Nobody else has one either: the server is asked again after a pause.
                        break;
                    }
                }
                Loan::Wait => {
                    let rest = LOAN_MAX.saturating_sub(since.elapsed());
                    let woken = self.changed.wait_timeout(pool, rest);
                    pool = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        drop(pool);
        Err(refusal.unwrap_or_else(|| self.starved()))
    }

    fn starved(&self) -> Failure {
        let words = format!(
            "all of the {} sessions were busy for {} s; more of them (sessions in [postgres]) help if the server allows it, and so \
             does whatever makes the other tables quicker",
            self.most,
            LOAN_MAX.as_secs()
        );
        Failure { starved: true, ..Failure::new(Class::World, words) }
    }

    /// Whoever waited for a session has nothing to send any more.
    pub fn leave(&self, borrower: Borrower) {
        lock(&self.pool).loans.leave(borrower);
        self.changed.notify_all();
    }

    /// A connection broke: the others that rest are hardly better.
    pub fn forget_idle(&self) {
        let mut pool = lock(&self.pool);
        for number in pool.loans.forget_idle() {
            pool.idle.remove(&number);
        }
        self.changed.notify_all();
    }
}

/// A session that is lent. Dropped, it is closed: whoever has no word of the server's that its transaction ended must not give
/// it back.
pub struct Lent {
    /// `None` only while it is given back.
    session: Option<Session>,
    number: Number,
    borrower: Borrower,
    lender: Arc<Lender>,
}

impl Lent {
    /// Its transaction ended, by the server's word.
    pub fn give_back(mut self) {
        if let Some(session) = self.session.take() {
            let mut pool = lock(&self.lender.pool);
            pool.idle.insert(self.number, session);
            pool.loans.give_back(self.number, self.borrower);
            self.lender.changed.notify_all();
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.session.take().is_some() {
            lock(&self.lender.pool).loans.lose(self.number, self.borrower);
            self.lender.changed.notify_all();
        }
    }
}

impl Deref for Lent {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("it is lent")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("it is lent")
    }
}
