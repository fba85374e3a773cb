//! One session, and what names mean in it.
//!
//! Whoever may create a function or an operator in a schema of our role's search_path could have it called with our rights:
//! `format(text, text)` is a better match for two texts than the server's own. So statements run where a name without a
//! schema is the server's own, in a transaction that says so for itself: a pooler in transaction mode may stand in between,
//! where a setting of the session would reach some servers and stay on them for strangers.

use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::{ToSql, Type};
use postgres::{Error, IsolationLevel, Row, Transaction};

/// Names without a schema are the server's own, until the transaction ends. Temporary tables last: named or not, they would
/// else be looked into first.
pub const FIXED_PATH: &str = "SET LOCAL search_path = pg_catalog, pg_temp";

/// A statement's parameters with their types. With types, it needs no name on the server and no second message.
pub type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// One session. What is asked of it is asked under [`FIXED_PATH`], with one exception that says why.
pub struct Client {
    client: postgres::Client,
    /// The path is the session's own, too, so that a single statement needs no transaction around it.
    fixed: bool,
}

impl Client {
    pub(super) fn new(client: postgres::Client) -> Client {
        Client { client, fixed: false }
    }

    /// Fixes the path for the whole session, which saves a frequent question two round trips. Only where nobody shares it.
    pub fn fix_session(&mut self) -> Result<(), Error> {
        self.client.batch_execute("SET search_path = pg_catalog, pg_temp")?;
        self.fixed = true;
        Ok(())
    }

    /// A transaction under the fixed path.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        let mut transaction = self.client.transaction()?;
        transaction.batch_execute(FIXED_PATH)?;
        Ok(transaction)
    }

    /// One snapshot of the database under the fixed path, for reading, as long as the transaction lives.
    pub fn snapshot(&mut self) -> Result<Transaction<'_>, Error> {
        self.begin_snapshot(true)
    }

    /// The same, in which temporary tables can be made.
    pub fn writable_snapshot(&mut self) -> Result<Transaction<'_>, Error> {
        self.begin_snapshot(false)
    }

    fn begin_snapshot(&mut self, read_only: bool) -> Result<Transaction<'_>, Error> {
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
        let mut transaction = begin.read_only(read_only).start()?;
        transaction.batch_execute(FIXED_PATH)?;
        Ok(transaction)
    }

    /// The rows of one statement, in a transaction of its own.
    pub fn query_typed(&mut self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, Error> {
        self.alone(|client| client.query_typed(sql, parameters))
    }

    /// How many rows one statement touched, in a transaction of its own.
    pub fn execute_typed(&mut self, sql: &str, parameters: Parameters<'_>) -> Result<u64, Error> {
        self.alone(|client| client.execute_typed(sql, parameters))
    }

    /// The session as the role has it. For rows on their way into a table, whose triggers, defaults and checks find what
    /// they name by the role's own search_path, and for the question where that path finds a table. What is sent here names
    /// everything with its schema, operators and types included.
    pub fn by_role_path(&mut self) -> &mut postgres::Client {
        &mut self.client
    }

    /// Hears of what is notified on this channel from now on. Only where nobody shares the session: a pooler in transaction mode would
    /// give it to others.
    pub fn listen(&mut self, channel: &str) -> Result<(), Error> {
        self.client.batch_execute(&format!("LISTEN \"{}\"", channel.replace('"', "\"\"")))
    }

    /// The next notification, its channel and its payload; `None` where none comes for so long.
    pub fn notice(&mut self, wait: Duration) -> Result<Option<(String, String)>, Error> {
        let mut notices = self.client.notifications();
        let next = notices.timeout_iter(wait).next()?;
        Ok(next.map(|notice| (notice.channel().to_owned(), notice.payload().to_owned())))
    }

    fn alone<T>(
        &mut self,
        statement: impl FnOnce(&mut postgres::Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.fixed {
            return statement(&mut self.client);
        }
        self.client.batch_execute(&format!("BEGIN; {FIXED_PATH}"))?;
        let answer = statement(&mut self.client);
        // After an error COMMIT rolls back; where that fails, too, the first error is the one to tell.
        let ended = self.client.batch_execute("COMMIT");
        let answer = answer?;
        ended?;
        Ok(answer)
    }
}
