//! Planted bugs, to prove that the tests find them: each breaks one thing that the protocol needs. Compiled to nothing
//! without the feature `mutants`, and refused in a release build.
//!
//! `PLANTED_BUGS="7,3"` plants the seventh and the third. `make mutants` shows which test finds which.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` plants bugs: it must not be in a release build");

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The ledger moves in a transaction of its own, before the rows.
    AdvanceFirst = 1,
    /// The ledger moves in a transaction of its own, after the rows.
    AdvanceLater = 2,
    /// The ledger moves without comparing owner, epoch and position.
    BlindAdvance = 3,
    /// A transaction whose advance failed counts as committed.
    FailureIsTrusted = 4,
    /// The ledger moves one offset too far.
    OffByOne = 5,
    /// A commit with an unknown outcome counts as done.
    UnknownIsDone = 6,
    /// A commit with an unknown outcome counts as not done. Harmless alone: the advance compares the position.
    UnknownIsNotDone = 7,
    /// The number of rows that COPY stored is not compared.
    CountIsIgnored = 8,
    /// Dead letters are committed before the rest.
    LettersOutside = 9,
    /// Records below the position are taken, and data of a claim that ended is written.
    GateIsOff = 10,
    /// A claim starts where this process was before, not where the ledger is. Harmless alone, as above.
    StaleStart = 11,
    /// What Kafka says of a record that cannot be read is ignored.
    ErrorIsSwallowed = 12,
    /// A position that is not in the log is replaced by the log's end.
    ResetToLatest = 13,
    /// Records without a value vanish from the counts.
    TombstonesUncounted = 14,
    /// The ledger moves without comparing the position.
    EpochOnly = 15,
    /// A claim takes what a living member owns.
    LivingAreRobbed = 16,
    /// A member that does not reach Kafka keeps its partitions.
    CutIsKept = 17,
    /// What the guard stopped is written all the same.
    HaltedIsWritten = 18,
    /// A session whose transaction has an unknown outcome is lent again.
    UnknownIsLent = 19,
    /// What was folded goes into its table twice.
    FoldedTwice = 20,
    /// A transaction that is tried again moves the ledger without what was folded.
    FoldLostOnRetry = 21,
    /// The order of arrival decides what is newest, whatever time the model names.
    LastByArrival = 22,
    /// How many rows with a key a table took is not compared.
    GroupsUncounted = 23,
    /// Writers of one table with keys do not take turns.
    LockLeftOut = 24,
    /// The search for bad records adds the good ones twice.
    IsolatedTwice = 25,
}

/// True if this build has the bug, which only a test build can.
#[inline]
pub fn planted(bug: Bug) -> bool {
    cfg!(feature = "mutants") && chosen() >> (bug as u32) & 1 == 1
}

#[cfg(not(feature = "mutants"))]
fn chosen() -> u32 {
    0
}

/// The chosen bugs, one bit each.
#[cfg(feature = "mutants")]
fn chosen() -> u32 {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<u32> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let numbers = std::env::var("PLANTED_BUGS").unwrap_or_default();
        let numbers = numbers.split(',').map(str::trim).filter(|n| !n.is_empty());
        numbers.map(|n| 1 << n.parse::<u32>().expect("PLANTED_BUGS is a list of numbers")).sum()
    })
}
