//! write-TABLE-N: rows of one table, in one transaction with the move of the ledger.
//!
//! Place in the flow: last. It takes all that is there, however little, and writes it: no flush timer, so batches grow with
//! the load. [`hand`] is what it has in hand, [`commit`](Writer::commit) writes it, [`survey`] tells whether rows or their table are
//! at fault where the server refuses, [`isolate`] finds the rows.
//!
//! What it never does: believe a COMMIT whose reply it did not see, use a connection after an error, or go on with a span
//! that somebody else owns.

mod account;
mod commit;
pub mod hand;
pub mod isolate;
pub mod size;
pub mod survey;
pub mod told;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use hand::{Hand, Room};
use size::Size;
use survey::Streak;
use told::Told;

use crate::base::failure::Failure;
use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::figures::instruments::{TableMetrics, Wait, Waits};
use crate::promise::batch::TableBatch;
use crate::promise::claim::{Ownership, Wake};
use crate::promise::guard::Guard;
use crate::promise::loans::Borrower;
use crate::promise::session::{Lender, Lent};
use crate::promise::span::Span;
use crate::promise::topics::Topic;
use crate::store::postgres::sink::{Sink, Sinks};

/// Rows of one transaction, in bytes: beyond this, a larger batch gains nothing, and a bad row costs more. [`size`] says how many
/// rows, where the server is slow, and how many times as many bytes, where rows of one key become one.
const GATHER_BYTES_MAX: usize = 2 << 20;

/// Dead letters of one transaction. What they take from the budget is given back when they are committed: hundreds of thousands at
/// once would leave the topic without credit for seconds, and those that share the poller with it as well.
const LETTERS_MAX: usize = 8192;

/// Between two BEGINs of a writer with little to write: four times what a transaction takes, within these bounds. Most of
/// what a small transaction costs the server does not depend on its rows, and one that takes long shows a server that is
/// short of time. Not a flush timer: a row that comes after a pause goes at once. With 20,000 rows/s into five tables on two
/// cores: 500 transactions/s, where 5 ms made 850 (measured).
const PACE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));
const PACE_TIMES: u32 = 4;

/// Where a transaction moves more ledger rows than this, the pace is the slower one.
const MANY_PARTITIONS: usize = 64;

/// A batch of this size is worth a transaction of its own and waits for nothing.
const PACE_BYTES_MAX: usize = 128 << 10;

/// Positions that move without rows are committed this often: it bounds what is read again after a crash.
const IDLE_COMMIT: Duration = Duration::from_secs(1);

/// What a writer needs.
pub struct Writer {
    pub lender: Arc<Lender>,
    /// The number by which it borrows.
    pub borrower: Borrower,
    /// The table, as the ledger and people call it.
    pub name: String,
    pub sinks: Sinks,
    /// Reads the table's definition again; the plan has a new edition then, if it changed.
    pub renew: Renew,
    pub ownership: Arc<Ownership>,
    pub inlet: Receiver<TableBatch>,
    pub wake: Sender<Wake>,
    pub metrics: Arc<TableMetrics>,
    pub topics: Arc<[Topic]>,
    /// `None` where dead letters stop nothing.
    pub guard: Option<Arc<Guard>>,
    pub waits: Arc<Waits>,
    pub pulse: Arc<Pulse>,
    /// A statement never lasts longer: below what the watchdog takes for a hang.
    pub statement_max: Duration,
}

/// Asks for a new edition of the plan.
///
/// # Errors
/// Where the table cannot be read, or is none that the models could fill.
pub type Renew = Box<dyn Fn() -> Result<(), Failure> + Send>;

/// What a writer keeps between transactions.
struct State {
    /// For the transaction under way.
    session: Option<Lent>,
    hand: Hand,
    /// For the edition in hand.
    sink: Sink,
    /// What was said of dead letters.
    told: Told,
    /// The refusals of late that nothing went in between.
    streak: Streak,
    /// Transactions that fail.
    trouble: Episode,
    /// Where it shows that the table takes nothing.
    troubled: Vec<Span>,
    /// When the oldest of the positions without rows came.
    idle_since: Instant,
    began_at: Instant,
    /// What its BEGIN took.
    begun: Duration,
    /// What the last transaction took.
    took: Duration,
    /// How much the next one takes.
    size: Size,
    /// What the COPY of the rows took, or the search for bad ones among them, and what came after it up to the COMMIT's reply.
    copied: Duration,
    committed: Duration,
    /// How many rows a search has judged.
    judged: usize,
}

impl Writer {
    /// Runs until the decoders are gone and everything is committed or dropped.
    ///
    /// # Errors
    /// What only a person can mend: a missing table or privilege, a table that changed.
    pub fn run(self) -> Result<()> {
        let mut state = State {
            session: None,
            hand: Hand::default(),
            sink: self.sinks.newest(),
            told: Told::default(),
            streak: Streak::default(),
            trouble: Episode::default(),
            troubled: Vec::new(),
            idle_since: Instant::now(),
            began_at: Instant::now() - PACE.1,
            begun: Duration::ZERO,
            took: Duration::ZERO,
            size: Size::default(),
            copied: Duration::ZERO,
            committed: Duration::ZERO,
            judged: 0,
        };
        loop {
            let next = match state.hand.take_rest() {
                Some(rest) => Ok(rest),
                None => self.waits.during(Wait::Input, || receive(&self.inlet, state.wait())),
            };
            let ended = matches!(next, Err(RecvTimeoutError::Disconnected));
            if let Ok(batch) = next {
                self.take(&mut state, batch);
            }
            if !state.hand.load().is_empty() || ended || state.idle_since.elapsed() >= IDLE_COMMIT {
                self.commit(&mut state)?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    fn topic_name(&self, topic: usize) -> &str {
        &self.topics[topic].name
    }

    /// Takes a batch in hand, and what else is there.
    fn take(&self, state: &mut State, batch: TableBatch) {
        if batch.bytes.len() < PACE_BYTES_MAX {
            self.waits.during(Wait::Pace, || std::thread::sleep(state.rest()));
        }
        let had_none = state.hand.idle().is_empty();
        state.hand.gather(batch, state.room(), || self.inlet.try_recv().ok());
        if had_none {
            state.idle_since = Instant::now();
        }
    }
}

impl State {
    /// For how long the next batch may be waited for.
    fn wait(&self) -> Duration {
        match self.hand.idle() {
            [] => Duration::MAX,
            _ => IDLE_COMMIT.saturating_sub(self.idle_since.elapsed()),
        }
    }

    /// What one transaction takes.
    fn room(&self) -> Room {
        let bytes = GATHER_BYTES_MAX * self.size.width();
        Room { bytes, rows: self.size.rows(), letters: LETTERS_MAX }
    }

    /// Until the next transaction may begin.
    fn rest(&self) -> Duration {
        pace(self.took, self.hand.idle().len()).saturating_sub(self.began_at.elapsed())
    }
}

fn receive(inlet: &Receiver<TableBatch>, wait: Duration) -> Result<TableBatch, RecvTimeoutError> {
    if wait == Duration::MAX {
        return inlet.recv().map_err(|_| RecvTimeoutError::Disconnected);
    }
    inlet.recv_timeout(wait)
}

/// From one BEGIN to the next at least, after a transaction that took this long.
fn pace(took: Duration, partitions: usize) -> Duration {
    match partitions {
        0..=MANY_PARTITIONS => (took * PACE_TIMES).clamp(PACE.0, PACE.1),
        _ => PACE.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_transactions_leave_the_server_most_of_its_time() {
        let ms = Duration::from_millis;
        assert_eq!(pace(ms(0), 0), ms(5));
        assert_eq!(pace(ms(1), 6), ms(5));
        assert_eq!(pace(ms(3), 6), ms(12));
        assert_eq!(pace(ms(100), 6), ms(20), "a slow server is no reason to let rows wait for long");
        assert_eq!(pace(ms(1), 65), ms(20));
    }
}
