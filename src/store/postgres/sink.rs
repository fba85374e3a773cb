//! The one way into a table. It sends when it is told: it retries nothing, waits for nothing, knows no offset and moves no
//! ledger row.
//!
//! Rows that are appended go straight into the table. Rows with a key are folded and go to a stage, a temporary table of the
//! session; the statements that bring them into the table belong into the last message of the transaction, so that nobody's rows
//! are locked while the server waits for us.

use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use postgres::error::{DbError, SqlState};
use postgres::types::{ToSql, Type};

use crate::base::failure::{Class, Failure, Refusal};
use crate::base::fault::{Point, fault};
use crate::base::hash;
use crate::base::mutant::{Bug, planted};
use crate::client::binary::{self, HEADER, TRAILER};
use crate::client::pg;
use crate::model::editions::{Edition, Editions};
use crate::model::plan::TablePlan;
use crate::promise::batch::{Rows, Shape, TableBatch};
use crate::promise::ledger::Target;
use crate::promise::session::Session;
use crate::store::postgres::copy;
use crate::store::postgres::fold::{self, Folded, TooMuch};
use crate::store::postgres::merge::Merge;

/// Bytes handed to the connection at once. It copies them, so a larger piece costs memory and overlaps less.
const WRITE_BYTES: usize = 64 << 10;

/// What `rowmill.stored` raises where rows vanished, and the reason that a dead letter has then.
const NOT_STORED: (&str, &str) = ("RM004", "not_stored");

/// One table's sinks, one for each edition of its definition.
pub struct Sinks {
    pub editions: Arc<Editions>,
    /// Index of the table in the plans.
    pub table: usize,
}

impl Sinks {
    /// The sink for rows of this edition; `None` where it is forgotten.
    pub fn of(&self, edition: u64) -> Option<Sink> {
        Some(self.sink(&self.editions.get(edition)?))
    }

    pub fn newest(&self) -> Sink {
        self.sink(&self.editions.newest())
    }

    fn sink(&self, edition: &Edition) -> Sink {
        Sink { edition: edition.number, ..Sink::new(&edition.plan.tables[self.table]) }
    }
}

/// One table, as rows of one edition were encoded for it.
pub struct Sink {
    pub edition: u64,
    /// As the ledger moves it.
    pub target: Target,
    table: TablePlan,
    /// Where the table has keys.
    merge: Option<Merge>,
}

/// What was sent.
#[derive(Debug)]
pub struct Sent {
    /// What the transaction has to say in its last message, before it moves the ledger, so that the rows are in the table.
    pub rest: Option<String>,
    /// How many rows the server was given: as many as there were, or one for each key.
    pub rows: usize,
}

impl Sink {
    pub fn new(table: &TablePlan) -> Sink {
        let target = Target {
            name: table.name.clone(),
            sql_name: table.sql_name.clone(),
            fingerprint: table.fingerprint.clone(),
        };
        let merge = table.keyed.as_ref().map(|keyed| Merge::of(table, keyed));
        Sink { edition: 0, target, table: table.clone(), merge }
    }

    /// True where rows of one key become one: a transaction may then take more of them.
    pub fn folds(&self) -> bool {
        self.merge.is_some()
    }

    /// Sends all rows, clocks stamped just before: one COPY for each shape, which is one where no column has a default.
    ///
    /// # Errors
    /// Unless the server has taken every one of them.
    pub fn send(&self, session: &mut Session, rows: &mut Rows<'_>) -> Result<Sent, Failure> {
        if let Some(merge) = &self.merge {
            return self.send_folded(session, rows, merge);
        }
        for shape in rows.shapes() {
            self.send_shape(session, rows, shape).map_err(|failure| among_all(failure, rows, shape))?;
        }
        Ok(Sent { rest: None, rows: rows.len() })
    }

    /// One row for each key, to the stage.
    fn send_folded(&self, session: &mut Session, rows: &Rows<'_>, merge: &Merge) -> Result<Sent, Failure> {
        let keyed = self.table.keyed.as_ref().expect("a table with keys says how they meet");
        let folded = fold::fold(&self.table, keyed, rows.tuples(), binary::now())
            .map_err(|too_much| self.too_much(&too_much))?;
        session.stage(&merge.stage, &merge.definition).map_err(|error| self.failed(error))?;
        self.copy(session, &merge.copy, &folded)?;
        Ok(Sent { rest: Some(merge.statements(&folded)), rows: folded.groups })
    }

    fn copy(&self, session: &mut Session, sql: &str, folded: &Folded) -> Result<(), Failure> {
        let mut copy = session.copy_in(sql).map_err(|error| self.failed(error))?;
        let pieces = std::iter::once(&HEADER[..])
            .chain(folded.bytes.chunks(WRITE_BYTES))
            .chain(std::iter::once(&TRAILER[..]));
        for piece in pieces {
            copy.write_all(piece).map_err(|error| match pg::copy_error(error) {
                Ok(error) => self.failed(error),
                Err(failure) => failure,
            })?;
            fault(Point::MidCopy);
        }
        let stored = copy.finish().map_err(|error| self.failed(error))?;
        stored_all(stored, folded.groups, &self.table.name).map_err(swallowed)
    }

    /// A sum that the server would refuse as well, so it is refused in the same words.
    fn too_much(&self, too_much: &TooMuch) -> Failure {
        let column = &self.table.columns[too_much.column];
        let message = format!("the sum in column {:?} is out of range for type {}", column.name, column.ty);
        let words = format!("{message} (SQLSTATE 22003)");
        let refusal = Refusal {
            row: None,
            code: "sqlstate_22003".into(),
            kind: format!("SQLSTATE 22003 {}", column.name),
            message,
            words: words.clone(),
        };
        Failure { refusal: Some(Box::new(refusal)), ..Failure::new(Class::Row, words) }
    }

    fn send_shape(&self, session: &mut Session, rows: &mut Rows<'_>, shape: Shape) -> Result<(), Failure> {
        let mut sent = 0;
        let sql = copy::statement(&self.table, shape);
        let mut copy = session.copy_in(&sql).map_err(|error| self.failed(error))?;
        let mut write = |bytes: &[u8]| {
            copy.write_all(bytes).map_err(|error| match pg::copy_error(error) {
                Ok(error) => self.failed(error),
                Err(failure) => failure,
            })
        };
        write(&HEADER)?;
        for (batch, stretches) in rows.parts(shape) {
            for stretch in stretches {
                sent += stretch.len();
                self.stamp(batch, stretch.clone());
                batch.bytes[batch.rows_bytes(stretch)].chunks(WRITE_BYTES).try_for_each(&mut write)?;
            }
            fault(Point::MidCopy);
        }
        write(&TRAILER)?;
        let stored = copy.finish().map_err(|error| self.failed(error))?;
        stored_all(stored, sent, &self.table.name).map_err(swallowed)
    }

    /// Asks whether the table takes rows at all, by a COPY without any: a privilege, a policy or a missing table refuses it,
    /// and no row can be the cause. `Some`: it does not; the transaction is of no use any more.
    pub fn refuses_all(&self, session: &mut Session) -> Result<Option<Refusal>, Failure> {
        let nothing = &mut Rows::none();
        let sent = match &self.merge {
            None => self.send_shape(session, nothing, Shape::WHOLE),
            Some(_) => self.send_whole(session, nothing),
        };
        match sent {
            Ok(()) => Ok(None),
            Err(Failure { class: Class::Row, refusal: Some(refusal), .. }) => Ok(Some(*refusal)),
            Err(failure) => Err(failure),
        }
    }

    /// The same, and all the way into the table, for whoever has no last message to put the rest into.
    ///
    /// # Errors
    /// As [`Sink::send`].
    pub fn send_whole(&self, session: &mut Session, rows: &mut Rows<'_>) -> Result<(), Failure> {
        let sent = self.send(session, rows)?;
        sent.rest.map_or(Ok(()), |rest| session.execute(&rest).map_err(|error| self.failed(error)))
    }

    fn stamp(&self, batch: &mut TableBatch, rows: Range<usize>) {
        if self.table.clock_columns > 0 {
            let now = binary::now();
            for row in rows {
                let place = batch.row_bytes(row);
                copy::patch_clocks(&mut batch.bytes[place], self.table.clock_columns, now);
            }
        }
    }

    /// The same for rows among which some may be bad. `Some`: one is refused, and none of these is stored; the transaction
    /// goes on.
    pub fn try_send(&self, session: &mut Session, rows: &mut Rows<'_>) -> Result<Option<Refusal>, Failure> {
        let (before, after) = match &self.merge {
            None => (String::new(), String::new()),
            Some(merge) => {
                session.stage(&merge.stage, &merge.definition)?;
                // From one chunk to the next the keys begin anew, so here the turn is kept until the end.
                (format!("{}; ", merge.lock), format!("{}; ", merge.clear))
            }
        };
        let mut attempt = || {
            session.execute(&format!("{before}SAVEPOINT chunk"))?;
            self.send_whole(session, rows)?;
            if planted(Bug::IsolatedTwice) && self.folds() {
                session.execute(after.trim_end_matches("; "))?;
                self.send_whole(session, rows)?;
            }
            // Deferred constraints fail here instead of at the COMMIT, where no row could be named.
            session
                .execute(&format!("SET CONSTRAINTS ALL IMMEDIATE; {after}RELEASE SAVEPOINT chunk"))
                .map_err(|error| self.failed(error))
        };
        match attempt() {
            Ok(()) => Ok(None),
            Err(Failure { class: Class::Row, refusal: Some(refusal), .. }) => {
                session.execute("ROLLBACK TO SAVEPOINT chunk; RELEASE SAVEPOINT chunk")?;
                Ok(Some(*refusal))
            }
            Err(failure) => Err(failure),
        }
    }

    /// For a transaction that does not move the ledger, which compares it by itself: that the table is still the one that the
    /// rows were encoded for. The COPY's lock holds a change off until the end.
    pub fn check_definition(&self, session: &mut Session) -> Result<(), Failure> {
        // By its name, by which the rows went there.
        let sql = "SELECT rowmill.fingerprint(pg_catalog.to_regclass($1)::pg_catalog.oid)";
        let name = (&self.table.sql_name as &(dyn ToSql + Sync), Type::TEXT);
        let found: Option<String> = session.client().query_typed_one(sql, &[name])?.get(0);
        if found.as_ref() == Some(&self.table.fingerprint) {
            return Ok(());
        }
        let words = format!("the definition of table {} changed meanwhile", self.table.name);
        Err(Failure::new(Class::TableChanged, words))
    }

    /// An error of the server's, with its account of a bad row where that is what it is.
    fn failed(&self, error: postgres::Error) -> Failure {
        if self.table.retention.is_some() && error.as_db_error().is_some_and(has_no_partition) {
            // A row that will never have one was not sent: the partition is being made, or somebody has to let us make it.
            let words = format!("{}; rows of that time wait until it is made", pg::describe(&error));
            return Failure::new(Class::World, words);
        }
        let refusal = error.as_db_error().map(|error| Box::new(refusal(error, &self.table.sql_name)));
        Failure { refusal, ..error.into() }
    }
}

/// The server counts the rows of one COPY; whoever sent them counts all.
fn among_all(mut failure: Failure, rows: &Rows<'_>, shape: Shape) -> Failure {
    if let Some(refusal) = &mut failure.refusal {
        refusal.row = refusal.row.and_then(|nth| rows.place_of(shape, nth));
    }
    failure
}

fn refusal(error: &DbError, sql_name: &str) -> Refusal {
    let mut message = error.message().to_owned();
    if let Some(detail) = error.detail() {
        message.push_str(": ");
        message.push_str(detail);
    }
    let line = error.where_().and_then(|context| bad_line(context, sql_name));
    let code = error.code().code();
    let words = format!("{} (SQLSTATE {code})", error.message());
    Refusal {
        row: line.and_then(|line| line.checked_sub(1)),
        code: if code == NOT_STORED.0 { NOT_STORED.1.into() } else { format!("sqlstate_{code}").into() },
        message,
        kind: kind(error),
        words,
    }
}

/// What an error has in common with others for the same reason. Duplicates of different keys are different records' faults,
/// and the detail names the key; where it is the same key for all, the index is at fault.
fn kind(error: &DbError) -> String {
    let mut kind = format!("SQLSTATE {}", error.code().code());
    for part in [error.schema(), error.table(), error.column(), error.constraint()].into_iter().flatten() {
        kind.push(' ');
        kind.push_str(part);
    }
    if [SqlState::UNIQUE_VIOLATION, SqlState::EXCLUSION_VIOLATION].contains(error.code()) {
        // Kept short and unreadable: a key is what a record holds.
        kind.push_str(&format!(" key {:x}", hash::of(error.detail().unwrap_or_default())));
    }
    kind
}

/// A row for which there is no partition has the code of a violated CHECK, and no constraint's name.
fn has_no_partition(error: &DbError) -> bool {
    *error.code() == SqlState::CHECK_VIOLATION && error.constraint().is_none() && error.table().is_some()
}

/// Rows that vanished: each is refused like one of which the server says so.
fn swallowed(failure: Failure) -> Failure {
    let code = NOT_STORED.1;
    let message = "the server took the row and stored none: a trigger or a rule drops it".to_owned();
    let refusal =
        Refusal { row: None, code: code.into(), kind: code.into(), words: message.clone(), message };
    Failure { class: Class::Row, refusal: Some(Box::new(refusal)), ..failure }
}

/// The row, counted from 1, that a COPY error's context names. The words around it are translated, so it is the first
/// number after our table's name in the last line that has COPY and that name.
fn bad_line(context: &str, sql_name: &str) -> Option<usize> {
    let name = sql_name.rsplit("\".\"").next()?.trim_matches('"').replace("\"\"", "\"");
    let (_, after) = context.lines().rev().find_map(|line| line.strip_prefix("COPY ")?.split_once(&name))?;
    let digits = after.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A trigger or a rule may drop rows without a word; the ledger must never count those as stored.
pub fn stored_all(stored: u64, sent: usize, table: &str) -> Result<(), Failure> {
    if stored == sent as u64 || planted(Bug::CountIsIgnored) {
        return Ok(());
    }
    let words = format!("{table} stored {stored} of {sent} rows: a trigger or a rule on it drops rows");
    Err(Failure::new(Class::Setup, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bad_line_is_read_from_the_last_copy_context() {
        #[track_caller]
        fn check(context: &str, expected: Option<usize>) {
            assert_eq!(bad_line(context, "\"public\".\"metric\""), expected, "{context}");
        }
        check("", None);
        check("PL/pgSQL function f() line 3 at RAISE", None);
        check("COPY metric, line 17", Some(17));
        check("COPY metric, line 17, column value", Some(17));
        // A trigger's own lines come first; ours is the last.
        check("PL/pgSQL function f() line 3 at RAISE\nCOPY metric, line 5", Some(5));
        check("COPY other, line 5", None);
        check("COPY metric, Zeile 4", Some(4));
        // The table's own digits are part of its name.
        assert_eq!(bad_line("COPY t12, line 7", "\"s\".\"t12\""), Some(7));
    }

    #[test]
    fn rows_that_a_trigger_swallowed_are_never_counted() {
        assert!(stored_all(3, 3, "t").is_ok());
        let failure = stored_all(2, 3, "t").expect_err("one row is missing");
        assert_eq!(failure.class, Class::Setup);
    }
}
