//! The decisions of the protocol, as plain functions: who has a partition ([`holder`]) and who should ([`share`]), whether
//! a claim still holds ([`lost`]), where to start reading ([`opening`]), which record to take ([`Gate`]), what follows
//! from a transaction that failed ([`after_failure`]), and what became of a commit whose reply was lost ([`resolve`]).
//!
//! Nothing here does input or output, reads a clock or holds a lock. The loops that do ask here first, and so does the
//! simulator in tests/simulator.

use std::collections::{BTreeMap, VecDeque};

use crate::base::failure::Class;
use crate::base::mutant::{Bug, planted};
use crate::promise::offsets::{Anchor, Place};

// ---- share: who should own what ------------------------------------------------------------------------------

/// One partition as the ledger showed it: `None` is free, or owned by a member that is no longer alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding<P> {
    pub partition: P,
    pub owner: Option<String>,
}

/// What a member should do at this tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves<P> {
    pub release: Vec<P>,
    pub claim: Vec<P>,
}

/// Shares the partitions among the living members: sticky, fair, without a leader. Every member computes the same
/// from the same snapshot, and where snapshots differ the ledger's compare-and-swap decides.
///
/// Each member claims free partitions up to its quota, and gives partitions away only when it has more than the ceiling,
/// or another one is below the floor and the free ones do not suffice: two members never take turns at outbidding each
/// other.
pub fn share<P: Clone + Ord>(me: &str, members: &[String], holdings: &[Holding<P>]) -> Moves<P> {
    let mut ranked: Vec<&str> = members.iter().map(String::as_str).collect();
    if !ranked.contains(&me) {
        ranked.push(me);
    }
    ranked.sort_unstable();
    ranked.dedup();
    let floor = holdings.len() / ranked.len();
    let remainder = holdings.len() % ranked.len();

    let mut owned: BTreeMap<&str, Vec<&P>> = ranked.iter().map(|m| (*m, Vec::new())).collect();
    let mut free: Vec<&P> = Vec::new();
    for holding in holdings {
        match holding.owner.as_deref().and_then(|owner| owned.get_mut(owner)) {
            Some(list) => list.push(&holding.partition),
            None => free.push(&holding.partition),
        }
    }
    free.sort_unstable();

    let rank = ranked.iter().position(|m| *m == me).expect("me is among the ranked");
    let quota = floor + usize::from(rank < remainder);
    let wanted = quota.saturating_sub(owned[me].len());
    // Each member starts at another place of the free list, so that two that tick together rarely ask for the same.
    let start = if free.is_empty() { 0 } else { rank * free.len() / ranked.len() };
    let claim = free.iter().cycle().skip(start).take(wanted.min(free.len())).map(|p| (*p).clone()).collect();

    let missing: usize = owned.values().map(|list| floor.saturating_sub(list.len())).sum();
    let ceiling = holdings.len().div_ceil(ranked.len());
    let excess: usize = owned.values().map(|list| list.len().saturating_sub(ceiling)).sum();
    let mut to_give = missing.saturating_sub(free.len()).max(excess);
    let mut counts: BTreeMap<&str, usize> = owned.iter().map(|(m, list)| (*m, list.len())).collect();
    let mut mine_to_give = 0;
    while to_give > 0 {
        let Some((donor, _)) = counts
            .iter()
            .filter(|(_, count)| **count > floor)
            .max_by_key(|(m, count)| (**count, std::cmp::Reverse(**m)))
        else {
            break;
        };
        let donor = *donor;
        *counts.get_mut(donor).expect("the donor is counted") -= 1;
        mine_to_give += usize::from(donor == me);
        to_give -= 1;
    }
    let mut mine = owned[me].clone();
    mine.sort_unstable();
    let release = mine.iter().rev().take(mine_to_give).map(|p| (*p).clone()).collect();
    Moves { release, claim }
}

// ---- holder, lost: what a look at the ledger says -----------------------------------------------------------

/// Who counts as the owner of a ledger row when partitions are shared out. `held`: our own memory has the partition.
pub fn holder(me: &str, owner: Option<&str>, owner_alive: bool, held: bool) -> Option<String> {
    match owner {
        // Ours, but nobody reads it: what a lost reply to a claim leaves behind.
        Some(owner) if owner == me => held.then(|| owner.to_owned()),
        Some(owner) if owner_alive => Some(owner.to_owned()),
        _ => None,
    }
}

/// Why a claim that memory holds is not ours any more, if so. `committed` is what memory knew to be committed before the
/// ledger was asked; `row` is what it answered: owner and next offset.
pub fn lost(me: &str, committed: i64, row: Option<(Option<&str>, i64)>) -> Option<String> {
    match row {
        None => Some("its ledger row is gone".to_owned()),
        Some((owner, _)) if owner != Some(me) => Some(format!("it belongs to {}", owner.unwrap_or("nobody"))),
        Some((_, next)) if next < committed => {
            Some(format!("the ledger went back from offset {committed} to {next}: a failover or a restore"))
        }
        Some(_) => None,
    }
}

// ---- opening: where to start reading ------------------------------------------------------------------------

/// What Kafka says of a partition's log at the moment of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    pub topic_id: String,
    pub start: i64,
    /// The offset that the next record will get.
    pub end: i64,
    pub compacted: bool,
}

/// How to begin with a claimed partition.
#[derive(Clone, Debug, PartialEq)]
pub enum Opening {
    /// Assign at this offset; the gate knows what to expect. `fresh`: nothing will prove that the first record is not
    /// a stale one, so a consumer that has read this partition before must not be used.
    Read { at: i64, gate: Gate, fresh: bool },
    /// The partition must not be read; a sentence says why.
    Stop(String),
}

/// Decides where a claimed partition starts, or why it may not.
pub fn opening(ledger_topic_id: &str, log: &LogState, places: &[Place]) -> Opening {
    let next = places.iter().map(|p| p.next).min().expect("a topic has at least one table");
    if log.topic_id != ledger_topic_id {
        return Opening::Stop(format!(
            "the topic was deleted and created again (its id was {ledger_topic_id} and is {}): offsets from {next} on mean \
             other records now; start a new pipeline or reset the ledger for this topic",
            log.topic_id
        ));
    }
    if next > log.end {
        return Opening::Stop(format!(
            "the log ends at offset {} but {next} was reached before: it was truncated or created again",
            log.end
        ));
    }
    if next < log.start {
        return Opening::Stop(format!(
            "Kafka no longer has offsets [{next}, {start}): retention or deletion was faster than this pipeline; to go on \
             without them, run `rowmill init --accept-gap TOPIC/PARTITION:{next}-{start}`",
            start = log.start
        ));
    }
    let mut anchors: Vec<Anchor> =
        places.iter().filter_map(|p| p.anchor).filter(|a| a.offset >= log.start).collect();
    anchors.sort_unstable_by_key(|a| a.offset);
    anchors.dedup();
    if let Some(anchor) = anchors.iter().find(|a| a.offset >= log.end) {
        return Opening::Stop(format!(
            "the record at offset {} was committed but the log ends at {}: it was truncated or created again",
            anchor.offset, log.end
        ));
    }
    if log.compacted {
        anchors.clear();
    }
    let proof = anchors.first().filter(|a| a.offset < next).copied();
    let at = proof.map_or(next, |a| a.offset);
    Opening::Read { at, fresh: proof.is_none(), gate: Gate::new(next, anchors, proof.is_some()) }
}

// ---- gate: which record to take -----------------------------------------------------------------------------

/// What to do with a record that the poller got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Take,
    /// Below what is expected, or before the proof: not ours any more.
    Drop,
    /// This is not the log that was read before.
    Stop(String),
}

/// One partition's guard against records of the wrong log, stale records, and records that come twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    expected: i64,
    /// Records to recognize on the way, ascending.
    anchors: VecDeque<Anchor>,
    /// Everything is dropped until the first anchor has been seen.
    proving: bool,
    /// Records beyond the anchor that were dropped while waiting for it.
    beyond: u32,
}

/// A consumer holds at most `queued.min.messages` (100,000) prefetched records of a partition: more than that beyond
/// the anchor, and the anchor will not come.
const BEYOND_MAX: u32 = 200_000;

impl Gate {
    fn new(expected: i64, anchors: Vec<Anchor>, proving: bool) -> Gate {
        Gate { expected, anchors: anchors.into(), proving, beyond: 0 }
    }

    /// The gate of a partition that is read again from `anchor`, which this process delivered itself.
    pub fn resume(expected: i64, anchor: Anchor) -> Gate {
        Gate::new(expected, vec![anchor], true)
    }

    /// The next offset that would be taken.
    pub fn expected(&self) -> i64 {
        self.expected
    }

    /// True if records beyond the anchor came, and the anchor did not.
    pub fn is_waiting_in_vain(&self) -> bool {
        self.proving && self.beyond > 0
    }

    /// Why a gate that waited in vain must stop.
    pub fn missing_anchor(&self) -> Option<String> {
        self.anchors.front().map(|anchor| anchor_gone(*anchor))
    }

    /// Judges one record; `hash` is asked only at an anchor.
    pub fn see(&mut self, offset: i64, hash: impl FnOnce() -> i64) -> Verdict {
        if let Some(anchor) = self.anchors.front().copied() {
            if offset == anchor.offset {
                if hash() != anchor.hash {
                    return Verdict::Stop(format!(
                        "the record at offset {offset} is not the one that was committed: the topic was created again or \
                         its log was truncated"
                    ));
                }
                self.anchors.pop_front();
                self.proving = false;
            } else if offset > anchor.offset {
                if !self.proving {
                    return Verdict::Stop(anchor_gone(anchor));
                }
                self.beyond += 1;
                if self.beyond > BEYOND_MAX {
                    return Verdict::Stop(anchor_gone(anchor));
                }
            }
        }
        if (self.proving || offset < self.expected) && !planted(Bug::GateIsOff) {
            return Verdict::Drop;
        }
        self.expected = offset + 1;
        Verdict::Take
    }
}

fn anchor_gone(anchor: Anchor) -> String {
    format!(
        "the record at offset {} was committed and Kafka does not serve it any more, though the log begins before it: the \
         log is not the one that was read",
        anchor.offset
    )
}

// ---- after_failure: what follows from a transaction that failed ---------------------------------------------

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    /// It was rolled back: the same again.
    SendAgain,
    /// Ask the ledger ([`resolve`]) before anything else.
    Ask,
    /// Waiting cannot mend it: a person must act.
    Stop,
}

/// `at_commit`: the message with the COMMIT was under way.
pub fn after_failure(class: Class, at_commit: bool) -> FollowUp {
    match class {
        Class::World | Class::Row => FollowUp::SendAgain,
        Class::Lost if !at_commit => FollowUp::SendAgain,
        Class::Lost | Class::Fenced => FollowUp::Ask,
        Class::TableChanged | Class::Setup => FollowUp::Stop,
    }
}

// ---- resolve: what became of a commit -----------------------------------------------------------------------

/// What a commit with an unknown outcome turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The ledger stands at the span's end.
    Committed,
    /// The ledger stands at the span's start: send it again.
    NotCommitted,
    /// Somebody else owns it, or the ledger stands elsewhere (after a failover): drop it and claim anew.
    Fenced,
}

/// `found` is the ledger's next offset if the row was still ours, `None` if it was not.
pub fn resolve(first: i64, next: i64, found: Option<i64>) -> Resolved {
    match found {
        None if planted(Bug::FailureIsTrusted) => Resolved::Committed,
        Some(_) if planted(Bug::UnknownIsDone) => Resolved::Committed,
        Some(_) if planted(Bug::UnknownIsNotDone) => Resolved::NotCommitted,
        Some(offset) if offset == next => Resolved::Committed,
        Some(offset) if offset == first => Resolved::NotCommitted,
        _ => Resolved::Fenced,
    }
}

/// Where the ledger stands for one span that is still ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub epoch: i64,
    pub next_offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn holdings(owners: &[&str]) -> Vec<Holding<usize>> {
        owners
            .iter()
            .enumerate()
            .map(|(partition, owner)| Holding {
                partition,
                owner: (!owner.is_empty()).then(|| (*owner).to_owned()),
            })
            .collect()
    }

    #[test]
    fn share_is_fair_and_sticky() {
        #[track_caller]
        fn check(me: &str, alive: &[&str], owners: &[&str], release: &[usize], claim: &[usize]) {
            let moves = share(me, &members(alive), &holdings(owners));
            assert_eq!(moves, Moves { release: release.to_vec(), claim: claim.to_vec() });
        }
        check("a", &["a"], &[], &[], &[]);
        check("a", &["a"], &["", "", ""], &[], &[0, 1, 2]);
        check("a", &["a"], &["a", "a", ""], &[], &[2]);
        // An owner that is not among the living counts as free.
        check("a", &["a"], &["dead", "a"], &[], &[0]);
        // A member that is not yet listed counts itself.
        check("b", &["a"], &["", ""], &[], &[1]);
        // Two members tick together on a free topic: different partitions.
        check("a", &["a", "b"], &["", "", "", ""], &[], &[0, 1]);
        check("b", &["a", "b"], &["", "", "", ""], &[], &[2, 3]);
        // A newcomer: the owner of everything gives half away, from the end.
        check("a", &["a", "b"], &["a", "a", "a", "a"], &[3, 2], &[]);
        check("b", &["a", "b"], &["a", "a", "a", "a"], &[], &[]);
        // An odd one stays where it is, whatever the rank.
        check("b", &["a", "b"], &["b", "b", "a"], &[], &[]);
        check("a", &["a", "b"], &["b", "b", "a"], &[], &[]);
        // More members than partitions: nobody is robbed.
        check("a", &["a", "b", "c"], &["a", "b"], &[], &[]);
        check("c", &["a", "b", "c"], &["a", "b"], &[], &[]);
        // Three members, one below the floor: exactly one donor gives one.
        check("a", &["a", "b", "c"], &["a", "a", "b", "b"], &[1], &[]);
        check("b", &["a", "b", "c"], &["a", "a", "b", "b"], &[], &[]);
    }

    /// Members tick in any order, each on the true state, until nothing moves: everything is owned, evenly.
    #[test]
    fn share_settles() {
        for partitions in 0..14 {
            for count in 1..5 {
                let names: Vec<String> = (0..count).map(|i| format!("m{i}")).collect();
                // The worst start: one member owns all.
                let mut state: Vec<Holding<usize>> = (0..partitions)
                    .map(|partition| Holding { partition, owner: Some("m0".into()) })
                    .collect();
                let mut moved = usize::MAX;
                for _ in 0..20 {
                    moved = 0;
                    for me in &names {
                        let moves = share(me, &names, &state);
                        moved += moves.release.len() + moves.claim.len();
                        moves.release.iter().for_each(|p| state[*p].owner = None);
                        moves.claim.iter().for_each(|p| state[*p].owner = Some(me.clone()));
                    }
                    if moved == 0 {
                        break;
                    }
                }
                assert_eq!(moved, 0, "{partitions} partitions, {count} members do not settle");
                for me in &names {
                    let own = state.iter().filter(|h| h.owner.as_ref() == Some(me)).count();
                    assert!(own >= partitions / count && own <= partitions.div_ceil(count), "{me} has {own}");
                }
            }
        }
    }

    const ID: &str = "id-1";

    fn log(start: i64, end: i64) -> LogState {
        LogState { topic_id: ID.into(), start, end, compacted: false }
    }

    fn place(next: i64, anchor: Option<(i64, i64)>) -> Place {
        Place { next, anchor: anchor.map(|(offset, hash)| Anchor { offset, hash }) }
    }

    #[test]
    fn opening_starts_or_says_why_not() {
        #[track_caller]
        fn stops(id: &str, log: LogState, places: &[Place], because: &str) {
            match opening(id, &log, places) {
                Opening::Stop(reason) => assert!(reason.contains(because), "{reason}"),
                other => panic!("expected a stop, got {other:?}"),
            }
        }
        stops("id-0", log(0, 100), &[place(50, None)], "created again");
        stops(ID, log(0, 40), &[place(50, None)], "ends at offset 40");
        stops(ID, log(60, 100), &[place(50, None)], "[50, 60)");
        stops(ID, log(0, 60), &[place(40, None), place(80, Some((79, 7)))], "offset 79 was committed");
    }

    #[test]
    fn opening_reads_from_the_anchor() {
        #[track_caller]
        fn check(log: LogState, places: &[Place], expected_at: i64, expected_fresh: bool) {
            match opening(ID, &log, places) {
                Opening::Read { at, fresh, .. } => assert_eq!((at, fresh), (expected_at, expected_fresh)),
                Opening::Stop(reason) => panic!("stopped: {reason}"),
            }
        }
        check(log(0, 100), &[place(0, None)], 0, true);
        check(log(0, 100), &[place(50, Some((49, 7)))], 49, false);
        // Offsets 48 and 49 were transaction markers.
        check(log(0, 100), &[place(50, Some((47, 7)))], 47, false);
        // Retention took the anchor but nothing that is still needed.
        check(log(50, 100), &[place(50, Some((49, 7)))], 50, true);
        // The table that is furthest behind decides.
        check(log(0, 100), &[place(80, Some((79, 7))), place(50, Some((49, 8)))], 49, false);
        check(LogState { compacted: true, ..log(0, 100) }, &[place(50, Some((49, 7)))], 50, true);
    }

    #[test]
    fn gate_takes_each_record_once_and_only_of_the_proven_log() {
        let mut gate = Gate::new(50, vec![Anchor { offset: 49, hash: 7 }], true);
        assert_eq!(gate.see(60, || 0), Verdict::Drop, "a stale prefetched record");
        assert_eq!(gate.see(49, || 7), Verdict::Drop, "the proof itself is committed");
        assert_eq!(gate.see(50, || 0), Verdict::Take);
        assert_eq!(gate.see(50, || 0), Verdict::Drop, "the same again");
        assert_eq!(gate.see(53, || 0), Verdict::Take, "a hole is legal");
        assert_eq!(gate.see(52, || 0), Verdict::Drop, "back inside the hole");
        assert_eq!(gate.expected(), 54);

        let mut other_log = Gate::new(50, vec![Anchor { offset: 49, hash: 7 }], true);
        assert!(matches!(other_log.see(49, || 8), Verdict::Stop(_)));

        // The second anchor belongs to a table that is ahead.
        let mut two =
            Gate::new(50, vec![Anchor { offset: 49, hash: 7 }, Anchor { offset: 51, hash: 9 }], true);
        assert_eq!(two.see(49, || 7), Verdict::Drop);
        assert_eq!(two.see(50, || 0), Verdict::Take);
        let mut gone = two.clone();
        assert_eq!(two.see(51, || 9), Verdict::Take);
        assert!(matches!(gone.see(52, || 0), Verdict::Stop(_)));
    }

    #[test]
    fn gate_does_not_wait_for_ever_for_an_anchor_that_is_gone() {
        let mut gate = Gate::new(50, vec![Anchor { offset: 49, hash: 7 }], true);
        for offset in 0..i64::from(BEYOND_MAX) {
            assert_eq!(gate.see(50 + offset, || 0), Verdict::Drop);
        }
        assert!(matches!(gate.see(300_000, || 0), Verdict::Stop(_)));
    }

    #[test]
    fn a_claim_is_lost_to_others_and_to_the_past() {
        assert_eq!(lost("a", 10, Some((Some("a"), 10))), None);
        assert_eq!(lost("a", 10, Some((Some("a"), 20))), None, "committed a moment ago");
        for row in [None, Some((None, 10)), Some((Some("b"), 10)), Some((Some("a"), 9))] {
            assert!(lost("a", 10, row).is_some(), "{row:?}");
        }
    }

    #[test]
    fn only_the_living_hold_anything() {
        assert_eq!(holder("a", Some("a"), true, true).as_deref(), Some("a"));
        assert_eq!(holder("a", Some("a"), true, false), None, "ours, but memory has lost it");
        assert_eq!(holder("a", Some("b"), true, false).as_deref(), Some("b"));
        assert_eq!(holder("a", Some("b"), false, false), None);
        assert_eq!(holder("a", None, false, false), None);
    }

    #[test]
    fn only_what_was_rolled_back_for_certain_is_sent_again() {
        // Class, after a statement before the COMMIT, after the COMMIT.
        let table = [
            (Class::World, FollowUp::SendAgain, FollowUp::SendAgain),
            (Class::Row, FollowUp::SendAgain, FollowUp::SendAgain),
            // No answer: only at the COMMIT may it have been done.
            (Class::Lost, FollowUp::SendAgain, FollowUp::Ask),
            (Class::Fenced, FollowUp::Ask, FollowUp::Ask),
            (Class::TableChanged, FollowUp::Stop, FollowUp::Stop),
            (Class::Setup, FollowUp::Stop, FollowUp::Stop),
        ];
        assert_eq!(table.len(), Class::ALL.len());
        for (class, before, at_commit) in table {
            assert_eq!(after_failure(class, false), before, "{class:?}");
            assert_eq!(after_failure(class, true), at_commit, "{class:?} at the COMMIT");
        }
    }

    #[test]
    fn resolve_compares_with_the_ledger() {
        assert_eq!(resolve(10, 20, Some(20)), Resolved::Committed);
        assert_eq!(resolve(10, 20, Some(10)), Resolved::NotCommitted);
        assert_eq!(resolve(10, 20, Some(15)), Resolved::Fenced);
        assert_eq!(resolve(10, 20, None), Resolved::Fenced);
    }
}
