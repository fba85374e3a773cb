//! Where reading begins with a claimed partition, or why it may not ([`opening`]), and which record to take ([`Gate`]).
//! Pure: no input or output, no clock, no lock.

use std::collections::VecDeque;

use crate::base::mutant::{Bug, planted};
use crate::promise::offsets::{Anchor, Place};

/// What Kafka says of a partition's log at the moment of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    /// As a person names it: `metric/3`.
    pub name: String,
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
             without them, run `rowmill init --accept-gap {name}:{next}-{start}`",
            start = log.start,
            name = log.name
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "id-1";

    fn log(start: i64, end: i64) -> LogState {
        LogState { name: "t/0".into(), topic_id: ID.into(), start, end, compacted: false }
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
}
