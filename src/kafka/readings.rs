//! Which partitions a poller reads, and where it is in each. Pure: it says what the Kafka client has to be told. The
//! simulator drives it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::promise::batch::RawBatch;
use crate::promise::claim::{Claim, Ownership, Start};
use crate::promise::gate::Gate;
use crate::promise::offsets::{Anchor, Partition};

/// One partition that is read, or that is parked for a while.
#[derive(Debug)]
pub struct Reading {
    pub claim: Arc<Claim>,
    /// Judges each record of it.
    pub gate: Gate,
    /// How the claim began; still true while nothing was passed on.
    start: Start,
    /// The last record that was passed on.
    last: Option<Anchor>,
    /// Not assigned at the moment, because its topic is stuck, or because it waits for its turn.
    is_parked: bool,
    /// Until a large batch of another partition is unpacked.
    waits_for_turn: bool,
    /// Since when later records came while the one that proves the log did not.
    unproven_since: Option<Instant>,
}

impl Reading {
    fn new(claim: Arc<Claim>, start: Start) -> Reading {
        let gate = start.gate.clone();
        Reading {
            claim,
            gate,
            start,
            last: None,
            is_parked: true,
            waits_for_turn: false,
            unproven_since: None,
        }
    }

    /// True when the record that proves the log did not come within `limit` of a later one.
    pub fn waited_in_vain(&mut self, now: Instant, limit: Duration) -> bool {
        if !self.gate.is_waiting_in_vain() {
            self.unproven_since = None;
            return false;
        }
        now.duration_since(*self.unproven_since.get_or_insert(now)) >= limit
    }
}

/// What the Kafka client has to be told before partitions are read.
#[derive(Debug)]
pub struct Assignment {
    /// Nothing else proves the first record of one of them, and the present client may hold stale ones of it.
    pub needs_new_client: bool,
    /// Where to read; with a new client, everything else that is read as well.
    pub places: Vec<(Arc<Claim>, i64)>,
}

/// Where the partitions of a topic stand: each poll looks at each topic, so it must not pass by all the others.
fn all_of(topic: usize) -> RangeInclusive<Partition> {
    Partition { topic, id: i32::MIN }..=Partition { topic, id: i32::MAX }
}

/// All partitions of one poller.
#[derive(Debug, Default)]
pub struct Readings {
    all: BTreeMap<Partition, Reading>,
    /// Partitions that the present client has read: stale records of theirs may still be inside it.
    touched: BTreeSet<Partition>,
}

impl Readings {
    /// Drops what must not be read any more. Returns what of it the client has to be rid of.
    pub fn leave(&mut self, ownership: &Ownership) -> Vec<Arc<Claim>> {
        let mut assigned = Vec::new();
        self.all.retain(|partition, reading| {
            let is_held = ownership.get(*partition).is_some_and(|held| Arc::ptr_eq(&held, &reading.claim));
            let stays = is_held && reading.claim.is_read();
            if !stays && !reading.is_parked {
                assigned.push(reading.claim.clone());
            }
            stays
        });
        assigned
    }

    /// Takes a claim whose start is known; it is parked until it is resumed. False where there is nothing to begin with.
    pub fn enter(&mut self, claim: &Arc<Claim>) -> bool {
        let Some(start) = claim.take_start() else { return false };
        self.all.insert(claim.partition, Reading::new(claim.clone(), start));
        true
    }

    /// Goes on with parked partitions, each from the last record that was passed on, which must come again to prove the log,
    /// or as its claim began. The position is given anew, so that nothing depends on what a pause would keep.
    pub fn resume(&mut self, partitions: &[Partition]) -> Assignment {
        let needs_new_client = partitions.iter().any(|partition| {
            let reading = &self.all[partition];
            reading.start.needs_new_client(reading.last, self.touched.contains(partition))
        });
        let mut resumed: Vec<Partition> = Vec::new();
        if needs_new_client {
            self.touched.clear();
            resumed.extend(self.all.iter().filter(|(_, r)| !r.is_parked).map(|(p, _)| *p));
        }
        resumed.extend(partitions);
        let place = |partition: Partition| {
            let reading = self.all.get_mut(&partition).expect("only partitions that are read are resumed");
            let (gate, at) = reading.start.place(&reading.gate, reading.last);
            reading.gate = gate;
            reading.is_parked = false;
            reading.waits_for_turn = false;
            self.touched.insert(partition);
            (reading.claim.clone(), at)
        };
        Assignment { needs_new_client, places: resumed.into_iter().map(place).collect() }
    }

    /// Stops reading a topic for a while. Returns what the client has to be rid of: one that was never assigned would make
    /// its whole call fail.
    pub fn park(&mut self, topic: usize) -> Vec<Arc<Claim>> {
        let readings = self.all.range_mut(all_of(topic));
        let parked = |(_, reading): (_, &mut Reading)| {
            let was_assigned = !std::mem::replace(&mut reading.is_parked, true);
            was_assigned.then(|| reading.claim.clone())
        };
        readings.filter_map(parked).collect()
    }

    /// What is parked of a topic, and may go on with it.
    pub fn parked(&self, topic: usize) -> Vec<Partition> {
        let is_parked = |r: &Reading| r.is_parked && !r.waits_for_turn;
        self.all.range(all_of(topic)).filter(|(_, r)| is_parked(r)).map(|(p, _)| *p).collect()
    }

    /// Stops reading a partition until it has its turn. Returns what the client has to be rid of.
    pub fn park_for_turn(&mut self, partition: Partition) -> Option<Arc<Claim>> {
        let reading = self.all.get_mut(&partition)?;
        reading.waits_for_turn = true;
        let was_assigned = !std::mem::replace(&mut reading.is_parked, true);
        was_assigned.then(|| reading.claim.clone())
    }

    /// True if it waits for its turn, which nobody else ends.
    pub fn waits_for_turn(&self, partition: Partition) -> bool {
        self.get(partition).is_some_and(|reading| reading.waits_for_turn && reading.claim.is_read())
    }

    /// The reading of data that was taken from the client before, if it is still of the same claim; parked or not.
    pub fn of_claim(&mut self, claim: &Arc<Claim>) -> Option<&mut Reading> {
        let reading = self.all.get_mut(&claim.partition)?;
        (Arc::ptr_eq(&reading.claim, claim) && claim.is_read()).then_some(reading)
    }

    pub fn has(&self, topic: usize) -> bool {
        self.all.range(all_of(topic)).next().is_some()
    }

    pub fn get(&self, partition: Partition) -> Option<&Reading> {
        self.all.get(&partition)
    }

    /// The reading that a record belongs to. A record of a partition that was unassigned a moment ago must not move its gate.
    pub fn of_record(&mut self, partition: Partition) -> Option<&mut Reading> {
        self.all.get_mut(&partition).filter(|r| !r.is_parked && r.claim.is_read())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Reading> {
        self.all.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Reading> {
        self.all.values_mut()
    }

    /// Notes what a batch passes on, once its anchors are known.
    pub fn passed_on(&mut self, batch: &RawBatch) {
        for run in &batch.runs {
            run.claim.set_polled(run.next, run.times.first_ms);
            if let Some(reading) = self.all.get_mut(&run.claim.partition) {
                reading.last = Some(run.anchor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::batch::{Headers, Record};
    use crate::promise::claim::Lane;
    use crate::promise::gate::{LogState, Opening, Verdict, opening};

    fn claim(id: i32, next: i64, anchor: Option<Anchor>) -> Arc<Claim> {
        let lanes = vec![Lane::new(0, 1, next, anchor, Arc::default())];
        let claim = Arc::new(Claim::new(Partition { topic: 0, id }, "t".into(), "id".into(), lanes));
        let log =
            LogState { name: "t/0".into(), topic_id: "id".into(), start: 0, end: 100, compacted: false };
        match opening("id", &log, &claim.places()) {
            Opening::Read { at, gate, fresh } => claim.open(Start { at, gate, fresh }),
            Opening::Stop(reason) => panic!("{reason}"),
        }
        claim
    }

    fn places(assignment: &Assignment) -> Vec<(i32, i64)> {
        assignment.places.iter().map(|(claim, at)| (claim.partition.id, *at)).collect()
    }

    fn record(offset: i64) -> Record<'static> {
        Record {
            topic: "t",
            partition: 0,
            offset,
            timestamp_ms: Some(offset),
            key: None,
            value: None,
            headers: Headers::default(),
        }
    }

    fn see(reading: &mut Reading, offset: i64) -> Verdict {
        reading.gate.see(offset, || record(offset).hash())
    }

    #[test]
    fn a_parked_partition_is_proven_again_by_its_last_record() {
        let (ownership, mut readings) = (Ownership::default(), Readings::default());
        let claim = claim(0, 10, Some(Anchor { offset: 9, hash: record(9).hash() }));
        ownership.insert(claim.clone());
        assert!(readings.enter(&claim) && !readings.enter(&claim), "a start is taken once");
        assert!(readings.of_record(claim.partition).is_none(), "parked until it is resumed");
        assert_eq!(places(&readings.resume(&[claim.partition])), [(0, 9)]);

        let mut batch = RawBatch::new(0, 0, 0);
        for offset in 9..12 {
            let reading = readings.of_record(claim.partition).expect("it is read");
            let first = reading.gate.expected();
            if see(reading, offset) == Verdict::Take {
                batch.push(&claim, first, &record(offset));
            }
        }
        batch.note_anchors();
        readings.passed_on(&batch);
        assert_eq!(readings.park(0).len(), 1);
        assert!(readings.park(0).is_empty(), "the client is rid of it already");
        assert!(readings.of_record(claim.partition).is_none());
        let again = readings.resume(&readings.parked(0));
        assert_eq!((places(&again), again.needs_new_client), (vec![(0, 11)], false));
        let reading = readings.of_record(claim.partition).expect("it is read");
        assert_eq!(see(reading, 11), Verdict::Drop, "it was passed on before");
        assert_eq!(see(reading, 12), Verdict::Take);
    }

    #[test]
    fn only_a_new_client_proves_what_no_record_does() {
        let (ownership, mut readings) = (Ownership::default(), Readings::default());
        let (unproven, other) = (claim(0, 0, None), claim(1, 10, Some(Anchor { offset: 9, hash: 1 })));
        for claim in [&unproven, &other] {
            ownership.insert(claim.clone());
            readings.enter(claim);
        }
        let first = readings.resume(&[unproven.partition, other.partition]);
        assert_eq!((places(&first), first.needs_new_client), (vec![(0, 0), (1, 9)], false));
        // Nothing was passed on, and the client has read it: what it holds may be of an older log.
        ownership.remove(&unproven);
        assert_eq!(readings.leave(&ownership).len(), 1);
        let unproven = claim(0, 0, None);
        ownership.insert(unproven.clone());
        readings.enter(&unproven);
        let again = readings.resume(&[unproven.partition]);
        assert_eq!((places(&again), again.needs_new_client), (vec![(1, 9), (0, 0)], true));
    }

    #[test]
    fn what_is_not_ours_is_left_once() {
        let (ownership, mut readings) = (Ownership::default(), Readings::default());
        let old = claim(0, 0, None);
        ownership.insert(old.clone());
        readings.enter(&old);
        readings.resume(&[old.partition]);
        ownership.insert(claim(0, 0, None));
        assert_eq!(readings.leave(&ownership).len(), 1, "its successor must be begun anew");
        assert!(readings.leave(&ownership).is_empty() && !readings.has(0));
    }
}
