//! The transaction: `BEGIN; COPY rows; COPY dead letters; SELECT advance; COMMIT`, the last two in one message. Tried until
//! everything in hand is committed, or dropped because it is not ours any more.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::hand::Hand;
use super::isolate::{Records, isolate};
use super::{State, Writer, account, survey};
use crate::base::failure::{Class, Failure};
use crate::base::fault::{Point, fault};
use crate::base::mutant::{Bug, planted};
use crate::base::retry::BackOff;
use crate::figures::instruments::Wait;
use crate::promise::batch::{Rows, TableBatch};
use crate::promise::claim::Wake;
use crate::promise::dead_letter;
use crate::promise::decide::{FollowUp, Resolved, after_failure};
use crate::promise::guard::Objection;
use crate::promise::ledger::{self, Target};
use crate::promise::session::{Lent, Session};
use crate::promise::span::{Span, moves};
use crate::store::postgres::sink::stored_all;

/// Between two tries while PostgreSQL is away: from the first to the last value, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A search for bad rows is committed as far as it came then: its locks, and whoever ends the process, wait for it.
const SEARCH_MAX: Duration = Duration::from_secs(2);

/// How a try to write everything ended.
enum Attempt {
    Done,
    /// The server refuses one of the rows, or all of them.
    Refused,
    Failed(Failure),
}

impl Writer {
    /// Writes until everything in hand is committed, or dropped because it is not ours any more.
    ///
    /// # Errors
    /// What only a person can mend.
    pub(super) fn commit(&self, state: &mut State) -> Result<()> {
        let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
        loop {
            state.hand.drop_void();
            self.fit_sink(state);
            if self.guard_stops(state.hand.load()) {
                continue;
            }
            let spans = state.hand.spans();
            if spans.is_empty() {
                state.session = None;
                self.lender.leave(self.borrower);
                self.end_trouble(state);
                return Ok(());
            }
            let result = match self.transaction(state, &spans) {
                Attempt::Done => {
                    state.took = state.began_at.elapsed();
                    self.metrics.transaction_seconds.observe(state.took.as_secs_f64());
                    state.size.took(state.hand.rows(), state.begun, state.copied, state.committed);
                    if spans.iter().any(|span| span.counts.rows > 0) {
                        state.streak.end();
                    }
                    self.account(state, &spans, state.hand.load().len());
                    state.hand.committed(&spans);
                    Ok(())
                }
                Attempt::Refused => {
                    // Not the server's words: they quote the row.
                    log::debug!("table {} refuses a row; looking for it", &self.name);
                    state.session = None;
                    self.without_bad_rows(state)
                }
                Attempt::Failed(failure) => Err((failure, spans)),
            };
            let Err((failure, attempted)) = result else {
                // The server said so: others may have the session.
                state.session.take().into_iter().for_each(Lent::give_back);
                self.end_trouble(state);
                return Ok(());
            };
            let place = place(&attempted);
            let Some(failure) = self.after(state, failure, attempted)? else { continue };
            self.metrics.retried(failure.class);
            if failure.cut_off {
                self.send_less(state, &place);
                continue;
            }
            self.begin_trouble(state, &failure, &place);
            // Whoever waits for its turn goes on waiting.
            if !(failure.starved && failure.class == Class::World) {
                self.pause(&mut back_off);
            }
            if failure.class == Class::Table {
                // One that came meanwhile may go in, and then it was the others' fault.
                state.hand.more(|| self.inlet.try_recv().ok());
            }
        }
    }

    /// The last transaction lasted too long, and the server ended it: less of it at once.
    fn send_less(&self, state: &mut State, place: &str) {
        let rows = state.hand.rows();
        let within = self.statement_timeout(state);
        state.size.cut_off(rows);
        let words = format!("it did not take {rows} rows within {:.0} s", within.as_secs_f64());
        if state.hand.cut(state.room()) {
            log::warn!("table {}: {words}; sending {} at once", &self.name, state.hand.rows());
            return;
        }
        state.size.wait_longer();
        if within == self.statement_max {
            // A single record, and all the time that there is: somebody has to look.
            self.begin_trouble(state, &Failure::new(Class::Table, words), place);
        }
    }

    /// How long a statement may last now, its waits for locks included.
    fn statement_timeout(&self, state: &State) -> Duration {
        (self.lender.sessions.lock_timeout + state.size.patience()).min(self.statement_max)
    }

    /// The sink for what is in hand. Where its edition is forgotten, that data is void.
    fn fit_sink(&self, state: &mut State) {
        let Some(edition) = state.hand.edition() else {
            if state.sink.edition != self.sinks.editions.number() {
                state.sink = self.sinks.newest();
            }
            return;
        };
        if state.sink.edition == edition {
            return;
        }
        match self.sinks.of(edition) {
            Some(sink) => state.sink = sink,
            None => {
                self.give_back(state);
                state.hand.drop_void();
            }
        }
    }

    /// Says once that the table takes nothing, and shows it for as long as it is so.
    fn begin_trouble(&self, state: &mut State, failure: &Failure, place: &str) {
        let name = &self.name;
        let sentence = match failure.class {
            Class::Table => format!(
                "table {name} takes no rows ({place}): {}; waiting until it is mended, nothing is set aside",
                failure.words
            ),
            _ => format!(
                "cannot write to table {name} ({place}): {}; trying again until it works",
                failure.words
            ),
        };
        let is_new = (failure.class == Class::Table || failure.starved) && state.troubled.is_empty();
        if state.trouble.begins() || is_new {
            log::warn!("{sentence}");
        }
        if is_new {
            state.troubled = state.hand.spans();
            state.troubled.iter().for_each(|span| span.lane().set_trouble(Some(sentence.clone())));
        }
    }

    fn end_trouble(&self, state: &mut State) {
        state.troubled.drain(..).for_each(|span| span.lane().set_trouble(None));
        if state.trouble.ends() {
            log::info!("table {} takes rows again", &self.name);
        }
    }

    fn pause(&self, back_off: &mut BackOff) {
        self.waits.during(Wait::Retry, || std::thread::sleep(back_off.pause()));
    }

    /// Asks the guard about the letters in a load that is about to be committed. True if it stopped a topic: nothing of that
    /// one may be.
    fn guard_stops(&self, load: &[TableBatch]) -> bool {
        let Some(guard) = self.guard.as_ref().filter(|_| load.iter().any(|b| !b.dead.is_empty())) else {
            return false;
        };
        let mut any = false;
        for (topic, now) in account::tallies(load, |_| true) {
            let objection = guard.objection(topic, now, || account::most_common_reason(load, topic));
            let Some(Objection { why, is_new }) = objection else { continue };
            if is_new {
                log::error!("topic {:?} stopped: {why}", self.topic_name(topic));
            }
            self.ownership.halt(topic, &why);
            any = true;
        }
        any
    }

    /// BEGIN to COMMIT of everything in hand, once.
    fn transaction(&self, state: &mut State, spans: &[Span]) -> Attempt {
        match self.try_all(state, spans) {
            Ok(()) => Attempt::Done,
            Err(Failure { class: Class::Row, .. }) => Attempt::Refused,
            Err(failure) => Attempt::Failed(failure),
        }
    }

    fn try_all(&self, state: &mut State, spans: &[Span]) -> Result<(), Failure> {
        self.begin(state)?;
        let session = state.session.as_mut().expect("begin has connected");
        if planted(Bug::AdvanceFirst) {
            let advance =
                ledger::advance_and_commit(&self.lender.sessions.me.name, &state.sink.target, &moves(spans));
            session.execute(&format!("{advance}; BEGIN"))?;
        }
        fault(Point::BeforeCopy);
        let mut rows = Rows::of(state.hand.load_mut());
        let no_rows = rows.is_empty();
        let copy_at = Instant::now();
        let mut rest = None;
        if !no_rows {
            let sent = self.pulse.during("COPY of rows", || state.sink.send(session, &mut rows))?;
            if state.sink.folds() {
                state.size.folded(sent.rows);
            }
            rest = sent.rest.filter(|_| !(planted(Bug::FoldLostOnRetry) && state.trouble.lasts()));
        }
        state.copied = copy_at.elapsed();
        fault(Point::AfterCopy);
        let finish_at = Instant::now();
        let result = self.finish(session, &state.sink.target, state.hand.load(), spans, rest.as_deref());
        state.committed = finish_at.elapsed();
        // Without rows, none of them can be at fault: our schema is.
        result.map_err(|failure| if no_rows { failure.not_of_a_row() } else { failure })
    }

    fn begin(&self, state: &mut State) -> Result<(), Failure> {
        state.began_at = Instant::now();
        let within = self.statement_timeout(state);
        let begun = self.pulse.during("BEGIN", || {
            if state.session.is_none() {
                state.session = Some(self.lender.borrow(self.borrower)?);
                // Waiting for it is no work of this table's.
                state.began_at = Instant::now();
            }
            state.session.as_mut().expect("just borrowed").begin_within(within)
        });
        state.begun = state.began_at.elapsed();
        begun.map_err(Failure::not_of_a_row)
    }

    /// Dead letters, then what the sink left for the end, the move of the ledger and the COMMIT in one message.
    fn finish(
        &self,
        session: &mut Session,
        target: &Target,
        load: &[TableBatch],
        spans: &[Span],
        rest: Option<&str>,
    ) -> Result<(), Failure> {
        if load.iter().any(|batch| !batch.dead.is_empty()) {
            self.pulse
                .during("COPY of dead letters", || self.letters(session, load))
                // Nothing that a record holds can be wrong for this table: our schema is.
                .map_err(|failure| Failure {
                    words: format!("the dead-letter table refused: {}", failure.words),
                    ..failure.not_of_a_row()
                })?;
        }
        if planted(Bug::AdvanceLater) {
            session.execute("COMMIT; BEGIN")?;
        }
        fault(Point::BeforeCommit);
        let sent_at = Instant::now();
        let result = self.pulse.during("COMMIT", || match planted(Bug::AdvanceFirst) {
            true => session.commit_with("COMMIT"),
            false => session.advance_and_commit(target, spans, rest),
        });
        if result.is_ok() {
            self.metrics.commit_seconds.observe(sent_at.elapsed().as_secs_f64());
        }
        fault(Point::AfterCommit);
        result
    }

    fn letters(&self, session: &mut Session, load: &[TableBatch]) -> Result<(), Failure> {
        let letters = dead_letter::of(load, &self.lender.sessions.me.pipeline, &self.name);
        let sent = load.iter().map(|batch| batch.dead.len()).sum();
        let stored = match planted(Bug::LettersOutside) {
            true => self.lender.sessions.open()?.letters(letters)?,
            false => session.letters(letters)?,
        };
        stored_all(stored, sent, "rowmill.dead_letter")
    }

    /// Finds the rows that the server refuses, sets them aside, and commits everything else, a batch at a time. After an
    /// error the hand holds what is not committed, and the spans of the commit that failed come with it.
    fn without_bad_rows(&self, state: &mut State) -> Result<(), (Failure, Vec<Span>)> {
        // A few rows say little of a table: what waits behind them is heard as well.
        let are_few = state.hand.rows() < survey::ENOUGH;
        if are_few {
            state.hand.more(|| self.inlet.try_recv().ok());
        }
        let surveyed = self.survey(state);
        if are_few {
            state.hand.cut(state.room());
        }
        if let Err(failure) = surveyed {
            state.session = None;
            return Err((failure, state.hand.spans()));
        }
        while !state.hand.load().is_empty() {
            if let Err(failure) = self.set_bad_rows_aside(state) {
                return Err((failure, state.hand.spans()));
            }
            if self.guard_stops(&state.hand.load()[..1]) {
                // The transaction ends with its connection. What other topics had in it is tried again.
                state.session = None;
                state.hand.drop_void();
                continue;
            }
            let spans = state.hand.spans_of_first();
            let session = state.session.as_mut().expect("begin has connected");
            let first = &state.hand.load()[..1];
            let finish_at = Instant::now();
            // The search has brought the rows into the table.
            if let Err(failure) = self.finish(session, &state.sink.target, first, &spans, None) {
                // Each row was tried, deferred constraints included.
                return Err((failure.not_of_a_row(), spans));
            }
            state.size.took(state.judged, state.begun, state.copied, finish_at.elapsed());
            self.account(state, &spans, 1);
            state.hand.committed_first(&spans);
        }
        Ok(())
    }

    /// Sends the first batch's rows within a transaction that stays open, as far as one transaction should go; the batch ends
    /// there, and its bad rows are dead letters.
    fn set_bad_rows_aside(&self, state: &mut State) -> Result<(), Failure> {
        self.begin(state)?;
        let session = state.session.as_mut().expect("begin has connected");
        let batch = &mut state.hand.load_mut()[0];
        let records = Records::of(batch);
        let search_at = Instant::now();
        let send = |range| {
            let mut rows = Rows::part(batch, records.rows(&range));
            let refusal = self.pulse.during("COPY of a chunk", || state.sink.try_send(session, &mut rows))?;
            self.metrics.tried.fetch_add(1, Relaxed);
            Ok::<_, Failure>(refusal.map(|refusal| records.refused(batch, &range, refusal)))
        };
        let found = isolate(records.len(), send, || search_at.elapsed() > SEARCH_MAX)?;
        let none_went_in = found.bad.len() == found.judged;
        if !none_went_in {
            state.streak.end();
        }
        found.bad.iter().filter(|_| none_went_in).for_each(|(_, refusal)| state.streak.add(refusal));
        state.judged = records.rows_of_first(found.judged);
        state.copied = search_at.elapsed();
        state.hand.cut_first(state.judged);
        let bad = found.bad.into_iter().map(|(record, refusal)| {
            (records.rows(&(record..record + 1)).start, refusal.code, refusal.message)
        });
        state.hand.load_mut()[0].set_aside(bad.collect());
        Ok(())
    }

    /// Makes the hand fit what became true: asks about a commit whose outcome is unknown, drops what is fenced, gives back what
    /// was encoded for another table. What is left of the failure is to be waited out.
    fn after(&self, state: &mut State, failure: Failure, spans: Vec<Span>) -> Result<Option<Failure>> {
        state.session = None;
        if failure.class == Class::Lost && !failure.starved {
            self.lender.forget_idle();
        }
        match after_failure(failure.class, failure.at_commit) {
            FollowUp::SendAgain => Ok(Some(failure)),
            FollowUp::Stop => Err(self.stopped(&failure, &spans)),
            FollowUp::Ask => {
                self.resolve(state, spans);
                Ok(Some(failure).filter(|failure| failure.class != Class::Fenced))
            }
            FollowUp::Reopen => Ok(self.reopen(state, failure).err()),
        }
    }

    /// Reads the table's definition again, and gives back what was encoded for an older one: its records are read, and decoded,
    /// once more.
    ///
    /// # Errors
    /// What is to be waited out: the definition fits no model, or it is the old one again.
    fn reopen(&self, state: &mut State, failure: Failure) -> Result<(), Failure> {
        self.pulse.during("reading the table's definition", || (self.renew)())?;
        let newest = self.sinks.newest();
        let is_old = newest.target.fingerprint != state.sink.target.fingerprint;
        let (old, new) = (state.hand.edition(), newest.edition);
        state.sink = newest;
        match old {
            Some(old) if old != new && is_old => {
                self.give_back(state);
                Ok(())
            }
            // Positions alone are of no edition.
            None if is_old => Ok(()),
            _ => Err(failure),
        }
    }

    /// Ends the claims of what is in hand: all that was read under them is void, and the partitions are claimed anew.
    fn give_back(&self, state: &State) {
        let claims = state.hand.load().iter().flat_map(|batch| &batch.segments).map(|s| &s.span.claim);
        claims.filter(|claim| claim.is_current()).for_each(|claim| self.ownership.remove(claim));
        // A full channel already holds a wake-up.
        self.wake.try_send(Wake::Look).ok();
    }

    /// Finds out whether the rows are at fault, or their table: it may be another one than they were encoded for, take none at
    /// all, or refuse each of many.
    fn survey(&self, state: &mut State) -> Result<(), Failure> {
        self.begin(state)?;
        let session = state.session.as_mut().expect("begin has connected");
        self.pulse.during("a look at the table's definition", || state.sink.check_definition(session))?;
        let asked = self.pulse.during("COPY of nothing", || state.sink.refuses_all(session))?;
        if let Some(refusal) = asked {
            return Err(Failure::new(Class::Table, refusal.words));
        }
        let mut streak = state.streak.clone();
        let rows: usize = state.hand.load().iter().map(|batch| batch.rows.len()).sum();
        for place in survey::sample(rows) {
            let mut row = Rows::nth(state.hand.load_mut(), place);
            match self.pulse.during("COPY of a row", || state.sink.try_send(session, &mut row))? {
                Some(refusal) => streak.add(&refusal),
                None => {
                    streak.end();
                    break;
                }
            }
        }
        // What went in is sent again with its neighbors.
        session.rollback()?;
        match streak.against_the_table() {
            Some(why) => Err(Failure::new(Class::Table, why)),
            None => Ok(()),
        }
    }

    /// RESOLVE: asks the ledger until it answers. What turned out to be committed leaves the hand; claims that are not ours
    /// any more are ended.
    fn resolve(&self, state: &mut State, spans: Vec<Span>) {
        self.metrics.resolved.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
        let standings = loop {
            let asked = self.pulse.during("asking what became of a COMMIT", || {
                state.session.insert(self.lender.borrow(self.borrower)?).resolve(&self.name, &spans)
            });
            match asked {
                Ok(standings) => break standings,
                Err(failure) => {
                    log::debug!("cannot ask the ledger yet: {}", failure.words);
                    state.session = None;
                    self.metrics.retried(failure.class);
                    self.pause(&mut back_off);
                }
            }
        };
        let mut done = Vec::new();
        for (span, resolved) in Hand::judge(spans, standings) {
            match resolved {
                Resolved::Committed => {
                    self.account(state, std::slice::from_ref(&span), state.hand.load().len());
                    done.push(span);
                }
                Resolved::NotCommitted => {}
                Resolved::Fenced => self.fenced(&span),
            }
        }
        state.hand.settle(&done);
    }

    fn fenced(&self, Span { claim, .. }: &Span) {
        self.metrics.fenced.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if claim.is_current() {
            log::warn!(
                "fenced: partition {}/{} has another owner; its data in hand is dropped",
                claim.topic,
                claim.partition.id
            );
        }
        self.ownership.remove(claim);
        // A full channel already holds a wake-up.
        self.wake.try_send(Wake::Look).ok();
    }

    /// What only a person can mend, in words.
    fn stopped(&self, failure: &Failure, spans: &[Span]) -> anyhow::Error {
        anyhow!(
            "cannot write to table {} ({}): {}; run `rowmill check` for what is missing",
            &self.name,
            place(spans),
            failure.words
        )
    }
}

/// A transaction in words, for errors: which offsets of which partitions.
fn place(spans: &[Span]) -> String {
    let shown: Vec<String> = spans
        .iter()
        .take(3)
        .map(|s| format!("{}/{} offsets [{}, {})", s.claim.topic, s.claim.partition.id, s.first, s.next))
        .collect();
    let more = spans.len().saturating_sub(3);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
