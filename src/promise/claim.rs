//! Who owns what, as one shared table: the lease thread writes it, every stage reads it.
//!
//! Data carries the [`Claim`] under which it was read. When a claim ends, its data is recognized everywhere at once and
//! dropped, so nothing ever has to be sent through a full queue to stop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;
use crate::base::mutant::{Bug, planted};
use crate::figures::lag::Lag;
use crate::promise::gate::Gate;
use crate::promise::lane::LaneMetrics;
use crate::promise::offsets::{Anchor, Partition, Place};

/// One stretch of ownership of one partition, from a CLAIM to its end. A partition that is claimed again gets a new one.
#[derive(Debug)]
pub struct Claim {
    pub partition: Partition,
    /// The topic's name, for SQL and for people.
    pub topic: Arc<str>,
    /// The topic's id as the ledger has it.
    pub topic_id: String,
    /// One lane for each table that the topic feeds, in the plan's order.
    pub lanes: Vec<Lane>,
    state: AtomicU8,
    /// True until the watch thread has found out where to start.
    wants_start: AtomicBool,
    /// Set by the watch thread, taken by the poller.
    start: Mutex<Option<Start>>,
    is_stopped: AtomicBool,
    /// What is in hand must not be committed, although the claim is ours.
    is_halted: AtomicBool,
    stop_reason: Mutex<Option<String>>,
    /// The offset after the last record that the poller passed on.
    polled: AtomicI64,
    /// For people only: nothing is decided by it.
    lag: Lag,
}

/// Where the poller begins with a claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    pub at: i64,
    pub gate: Gate,
    /// See [`crate::promise::gate::Opening::Read`].
    pub fresh: bool,
}

impl Start {
    /// Where to read, and the gate for it: from the last record that was passed on, which must come again to prove the
    /// log, or, before the first, as the claim began.
    pub fn place(&self, gate: &Gate, last: Option<Anchor>) -> (Gate, i64) {
        match last {
            Some(last) => (Gate::resume(gate.expected(), last), last.offset),
            None => (self.gate.clone(), self.at),
        }
    }

    /// True where only a new Kafka client can prove the first record: none was passed on yet, and the present client
    /// has already read the partition, maybe from an older log.
    pub fn needs_new_client(&self, last: Option<Anchor>, was_assigned: bool) -> bool {
        self.fresh && last.is_none() && was_assigned
    }
}

/// One table's progress in a claimed partition.
#[derive(Debug)]
pub struct Lane {
    /// Index of the table in the plan.
    pub table: usize,
    /// The place that the claim found; records below are not for this table any more.
    pub first: i64,
    /// The last committed record at the claim.
    pub anchor: Option<Anchor>,
    epoch: AtomicI64,
    committed: AtomicI64,
    /// The timestamp of the last record that this claim committed, in milliseconds since 1970 UTC; 0 before.
    record_ms: AtomicI64,
    /// Why the table takes nothing at the moment.
    trouble: Mutex<Option<String>>,
    pub metrics: Arc<LaneMetrics>,
}

/// Order matters: a claim only ever moves forward.
const LIVE: u8 = 0;
const DRAINING: u8 = 1;
const ENDED: u8 = 2;

impl Claim {
    pub fn new(partition: Partition, topic: Arc<str>, topic_id: String, lanes: Vec<Lane>) -> Claim {
        let first = lanes.iter().map(|lane| lane.first).min().expect("a topic feeds at least one table");
        Claim {
            partition,
            topic,
            topic_id,
            lanes,
            state: AtomicU8::new(LIVE),
            wants_start: AtomicBool::new(true),
            start: Mutex::new(None),
            is_stopped: AtomicBool::new(false),
            is_halted: AtomicBool::new(false),
            stop_reason: Mutex::new(None),
            polled: AtomicI64::new(first),
            lag: Lag::begin(),
        }
    }

    /// The ledger's places at the claim, for the decision where to start.
    pub fn places(&self) -> Vec<Place> {
        self.lanes
            .iter()
            .map(|lane| Place { next: lane.committed().max(lane.first), anchor: lane.anchor })
            .collect()
    }

    /// True until the claim is fenced or released.
    pub fn is_current(&self) -> bool {
        self.state.load(SeqCst) < ENDED || planted(Bug::GateIsOff)
    }

    /// True while its data may be written: it is ours, and the guard did not object.
    pub fn may_write(&self) -> bool {
        self.is_current() && !self.is_halted()
    }

    /// True while its records should be read: neither ending nor stopped.
    pub fn is_read(&self) -> bool {
        self.state.load(SeqCst) == LIVE && !self.is_stopped.load(SeqCst)
    }

    pub fn is_draining(&self) -> bool {
        self.state.load(SeqCst) == DRAINING
    }

    /// Stops reading; what is in hand may still be committed.
    pub fn drain(&self) {
        self.state.fetch_max(DRAINING, SeqCst);
    }

    /// Everything that was read under this claim is void from now on.
    pub fn end(&self) {
        self.state.fetch_max(ENDED, SeqCst);
    }

    /// Fails closed: the partition is not read any more, and a person must act. Said once.
    pub fn stop(&self, reason: String) {
        if !self.is_stopped.swap(true, SeqCst) {
            log::error!("partition {}/{} stopped: {reason}", self.topic, self.partition.id);
            *lock(&self.stop_reason) = Some(reason);
        }
    }

    /// Like [`Claim::stop`], and what is in hand is void too.
    fn halt(&self, reason: &str) {
        if !self.is_stopped.swap(true, SeqCst) {
            *lock(&self.stop_reason) = Some(reason.to_owned());
        }
        self.is_halted.store(true, SeqCst);
    }

    /// True where the guard stopped it.
    pub fn is_halted(&self) -> bool {
        self.is_halted.load(SeqCst)
    }

    pub fn stop_reason(&self) -> Option<String> {
        lock(&self.stop_reason).clone()
    }

    /// Why nothing of it goes on, if so: it is stopped, or one of its tables takes nothing.
    pub fn why_still(&self) -> Option<String> {
        self.stop_reason().or_else(|| self.lanes.iter().find_map(|lane| lock(&lane.trouble).clone()))
    }

    /// Says where to begin; the next look of the poller takes it.
    pub fn open(&self, start: Start) {
        *lock(&self.start) = Some(start);
        self.wants_start.store(false, SeqCst);
    }

    pub fn wants_start(&self) -> bool {
        self.wants_start.load(SeqCst) && self.is_read()
    }

    pub fn take_start(&self) -> Option<Start> {
        lock(&self.start).take()
    }

    /// Notes how far the poller is, and when the first record of what it passed on was stamped.
    pub fn set_polled(&self, next: i64, first_ms: Option<i64>) {
        self.polled.store(next, SeqCst);
        self.lag.note_first(first_ms);
    }

    /// True when every table committed all that was read.
    pub fn is_drained(&self) -> bool {
        let polled = self.polled.load(SeqCst);
        self.lanes.iter().all(|lane| lane.committed() >= polled)
    }

    /// Notes where the log ends.
    pub fn set_log_end(&self, end: i64) {
        self.lag.set_log_end(end, self.committed());
    }

    /// Notes that the log goes so far at least.
    pub fn raise_log_end(&self, end: i64) {
        self.lag.raise_log_end(end, self.committed());
    }

    /// Records between the slowest table and the log's end; `None` until the end is known.
    pub fn lag(&self) -> Option<i64> {
        self.lag.records(self.committed())
    }

    /// The same for one table.
    pub fn lane_lag(&self, lane: &Lane) -> Option<i64> {
        self.lag.records(lane.committed())
    }

    /// For how long the oldest record that one table lacks has waited, in seconds.
    pub fn lane_lag_seconds(&self, lane: &Lane) -> Option<f64> {
        self.lag.seconds(lane.committed(), lane.record_ms.load(Relaxed))
    }

    /// The slowest table's next offset.
    pub fn committed(&self) -> i64 {
        self.lanes.iter().map(Lane::committed).min().expect("a topic feeds at least one table")
    }
}

impl Lane {
    pub fn new(
        table: usize,
        epoch: i64,
        next: i64,
        anchor: Option<Anchor>,
        metrics: Arc<LaneMetrics>,
    ) -> Lane {
        let (epoch, committed) = (AtomicI64::new(epoch), AtomicI64::new(next));
        Lane {
            table,
            first: next,
            anchor,
            epoch,
            committed,
            record_ms: AtomicI64::new(0),
            trouble: Mutex::new(None),
            metrics,
        }
    }

    /// Says why the table takes nothing, or that it does again.
    pub fn set_trouble(&self, why: Option<String>) {
        *lock(&self.trouble) = why;
    }

    /// Notes when the last committed record was stamped.
    pub fn set_record_ms(&self, ms: i64) {
        self.record_ms.store(ms, Relaxed);
    }

    /// The fence that an advance must show. Moved only by the lane's writer, when it resolves an unknown commit.
    pub fn epoch(&self) -> i64 {
        self.epoch.load(SeqCst)
    }

    pub fn set_epoch(&self, epoch: i64) {
        self.epoch.store(epoch, SeqCst);
    }

    /// The next offset, as the database has it for certain.
    pub fn committed(&self) -> i64 {
        self.committed.load(SeqCst)
    }

    pub fn set_committed(&self, next: i64) {
        self.committed.store(next, SeqCst);
    }
}

/// The claims that this process holds.
#[derive(Debug, Default)]
pub struct Ownership {
    /// Moves with every change, so that a poller need not take the lock to see that nothing happened.
    version: AtomicU64,
    claims: Mutex<BTreeMap<Partition, Arc<Claim>>>,
    /// No more claims are taken, and pollers return.
    closing: AtomicBool,
}

impl Ownership {
    pub fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// Says that a claim changed its state.
    pub fn touch(&self) {
        self.version.fetch_add(1, SeqCst);
    }

    pub fn insert(&self, claim: Arc<Claim>) {
        lock(&self.claims).insert(claim.partition, claim);
        self.touch();
    }

    /// Ends the claim everywhere.
    pub fn remove(&self, claim: &Arc<Claim>) {
        claim.end();
        let mut claims = lock(&self.claims);
        if claims.get(&claim.partition).is_some_and(|held| Arc::ptr_eq(held, claim)) {
            claims.remove(&claim.partition);
        }
        drop(claims);
        self.touch();
    }

    /// Fails closed for a topic: its partitions are not read any more, and nothing of them that is in hand is committed.
    pub fn halt(&self, topic: usize, reason: &str) {
        let claims = self.all().into_iter().filter(|c| c.partition.topic == topic);
        claims.for_each(|claim| claim.halt(reason));
        self.touch();
    }

    pub fn get(&self, partition: Partition) -> Option<Arc<Claim>> {
        lock(&self.claims).get(&partition).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Claim>> {
        lock(&self.claims).values().cloned().collect()
    }

    /// The first step of an orderly end: pollers return, nothing new is claimed.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        self.touch();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }
}

/// Why the lease thread should look before its next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something changed: a topic was seen, a partition was fenced.
    Look,
    /// All writers have ended: release everything and return.
    Finish,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        claim_of(0)
    }

    fn claim_of(topic: usize) -> Claim {
        let lanes =
            vec![Lane::new(0, 1, 10, None, Arc::default()), Lane::new(1, 1, 20, None, Arc::default())];
        Claim::new(Partition { topic, id: 3 }, "t".into(), "id".into(), lanes)
    }

    #[test]
    fn a_claim_only_moves_forward() {
        let claim = claim();
        assert!(claim.is_read() && claim.is_current());
        claim.drain();
        assert!(!claim.is_read() && claim.is_current());
        claim.end();
        claim.drain();
        assert!(!claim.is_current());
    }

    #[test]
    fn drained_means_that_the_slowest_table_has_all() {
        let claim = claim();
        assert!(claim.is_drained(), "nothing was read");
        claim.set_polled(30, None);
        claim.lanes[1].set_committed(30);
        assert!(!claim.is_drained());
        claim.lanes[0].set_committed(30);
        assert!(claim.is_drained());
        claim.set_log_end(35);
        assert_eq!(claim.lag(), Some(5));
    }

    #[test]
    fn a_halted_topic_is_neither_read_nor_written() {
        let ownership = Ownership::default();
        let (claim, other) = (Arc::new(claim()), Arc::new(claim_of(1)));
        ownership.insert(claim.clone());
        ownership.insert(other.clone());
        ownership.halt(0, "too bad");
        assert!(claim.is_current() && !claim.is_read() && !claim.may_write());
        assert_eq!(claim.stop_reason().as_deref(), Some("too bad"));
        assert!(other.is_read() && other.may_write());
    }

    #[test]
    fn removing_an_old_claim_leaves_its_successor() {
        let ownership = Ownership::default();
        let (old, new) = (Arc::new(claim()), Arc::new(claim()));
        ownership.insert(old.clone());
        ownership.insert(new.clone());
        ownership.remove(&old);
        assert!(!old.is_current() && new.is_current());
        assert_eq!(ownership.all().len(), 1);
    }
}
