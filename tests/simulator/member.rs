//! One process: the engine's own decisions, decoder and batches, with loops around them that can be stopped anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rowmill_faults::random::Random;

use crate::database::{Added, Ended, Key, Server, Stored};
use crate::kafka::{Cluster, Handle, Polled, TOPIC_ID};
use crate::network::{Message, Network, Reply};
use crate::records::{self, Outcome, Shape};
use rowmill::base::budget::Budget;
use rowmill::base::failure::{Class, Refusal};
use rowmill::base::mutant::{Bug, planted};
use rowmill::base::thread::Pulse;
use rowmill::decode::lookup::LookupCache;
use rowmill::decode::record::Limits;
use rowmill::decode::{BatchDecoder, Outlet};
use rowmill::figures::instruments::Waits;
use rowmill::kafka::readings::Readings;
use rowmill::model::editions::{Edition, Editions};
use rowmill::model::plan::{Plan, TablePlan};
use rowmill::promise::batch::{Headers, RawBatch, Record, Segment, TableBatch};
use rowmill::promise::claim::{Claim, Lane, Ownership, Start};
use rowmill::promise::decide::{FollowUp, Resolved, after_failure};
use rowmill::promise::duties::{Entry, Held, Viewer};
use rowmill::promise::gate::{Opening, Verdict, opening};
use rowmill::promise::loans::{Loan, Loans, Number};
use rowmill::promise::offsets::Partition;
use rowmill::promise::reach::Reach;
use rowmill::promise::span::{Span, moves};
use rowmill::promise::topics::Topic;
use rowmill::store::postgres::fold::fold;
use rowmill::write::hand::{Hand, Room};
use rowmill::write::isolate::{Records, isolate};
use rowmill::write::size::Size;

/// The simulated pipeline's name.
const PIPELINE: &str = "p";

/// What an encoded row of the simulated tables takes: a field count, a length, a bigint.
const ROW_BYTES: usize = 14;

/// In ticks: for how long one that was cut off from Kafka counts as just back.
const BACK: u64 = 40;

/// What surrounds the processes.
pub(crate) struct Outside {
    pub(crate) random: Random,
    pub(crate) server: Server,
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
    /// Off while everything settles.
    pub(crate) faults: bool,
    pub(crate) seen: crate::Seen,
}

impl Outside {
    /// A fault that comes once in `times`, while there are any.
    fn fault(&mut self, times: usize) -> bool {
        self.faults && self.random.one_in(times)
    }
}

pub(crate) struct Member {
    pub(crate) name: String,
    /// It does nothing until then.
    pub(crate) frozen_until: u64,
    /// It does not reach Kafka until then, and counts as just back for [`BACK`] after it.
    pub(crate) cut_until: u64,
    pub(crate) session: u64,
    topics: Arc<[Topic]>,
    ownership: Arc<Ownership>,
    budget: Arc<Budget>,
    lease: Lease,
    draining: BTreeSet<Partition>,
    handle: Handle,
    readings: Readings,
    raw: VecDeque<RawBatch>,
    editions: Arc<Editions>,
    decoder: BatchDecoder,
    outlets: Vec<Outlet>,
    writers: Vec<Writer>,
    /// The sessions that the writers take turns with.
    loans: Loans,
    began: Instant,
    /// Where this process was in a partition that it lost; only the planted bug looks.
    was_at: BTreeMap<Key, i64>,
    /// Claims that the guard stopped: nothing of them may be sent any more.
    halted: Vec<Arc<Claim>>,
}

/// How far a tick is.
enum Lease {
    Idle,
    /// The heartbeat is committed; what memory held before the ledger is asked.
    Beaten(Held),
    Claiming(Vec<Partition>),
}

/// One table's writer.
#[derive(Default)]
struct Writer {
    inlet: VecDeque<TableBatch>,
    hand: Hand,
    size: Size,
    state: Sending,
}

/// How much of the hand a transaction holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Everything,
    /// The first batch, after the rows that the server refuses were set aside.
    First,
}

#[derive(Default)]
enum Sending {
    #[default]
    Ready,
    /// The message with the COMMIT is on its way.
    Sent(u64, Vec<Span>, Holds, Number),
    /// Its outcome is unknown, or it was fenced: the ledger must be asked.
    Unknown(Vec<Span>),
}

impl Member {
    pub(crate) fn new(name: String, topics: &Arc<[Topic]>, server: &mut Server) -> Member {
        let pulse = Arc::new(Pulse::new("simulated"));
        let lookups = LookupCache::new(None, &[], pulse, Waits::new("simulated")).expect("no Redis to reach");
        let budget = Budget::new(usize::MAX >> 1, topics.len());
        let session = server.open_session();
        let editions = Arc::new(Editions::begin(Arc::new(plan_now(server))));
        Member {
            name,
            frozen_until: 0,
            cut_until: 0,
            session,
            topics: topics.clone(),
            ownership: Arc::default(),
            lease: Lease::Idle,
            draining: BTreeSet::new(),
            handle: Handle::default(),
            readings: Readings::default(),
            raw: VecDeque::new(),
            decoder: BatchDecoder::new(editions.clone(), topics, Limits::default(), lookups, budget.clone()),
            editions,
            budget,
            outlets: (0..records::TABLES).map(|table| Outlet::new(table, 0, 1)).collect(),
            writers: (0..records::TABLES).map(|_| Writer::default()).collect(),
            // Enough for all tables, or one of them less.
            loans: Loans::new(records::TABLES - usize::from(session.is_multiple_of(4))),
            began: Instant::now(),
            was_at: BTreeMap::new(),
            halted: Vec::new(),
        }
    }

    /// One step of one of its threads.
    pub(crate) fn step(&mut self, out: &mut Outside) {
        match out.random.below(12) {
            0..3 => self.tick(out),
            3 => self.open(out),
            4..7 => self.poll(out),
            7..9 => self.decode(),
            _ => self.write(out.random.below(records::TABLES), out),
        }
    }

    /// Everything once, in order: what a healthy process does again and again.
    pub(crate) fn round(&mut self, out: &mut Outside) {
        self.tick(out);
        self.open(out);
        self.poll(out);
        self.decode();
        (0..records::TABLES).for_each(|table| self.write(table, out));
    }

    /// Where it stands, for a schedule that does not settle.
    pub(crate) fn describe(&self) -> String {
        let lease = match &self.lease {
            Lease::Idle => "idle".to_owned(),
            Lease::Beaten(_) => "beaten".to_owned(),
            Lease::Claiming(partitions) => format!("claiming {partitions:?}"),
        };
        let claims = self.ownership.all();
        format!(
            "{}: frozen {}, lease {lease}\n  claims {claims:#?}\n  readings {:?}",
            self.name, self.frozen_until, self.readings
        )
    }

    /// True where only a new start goes on: the guard stopped a topic.
    pub(crate) fn is_halted(&self) -> bool {
        self.ownership.all().iter().any(|claim| claim.stop_reason().is_some())
    }

    pub(crate) fn stop_reason(&self) -> Option<String> {
        self.ownership.all().iter().find_map(|claim| claim.stop_reason())
    }

    // ---- lease ----

    fn tick(&mut self, out: &mut Outside) {
        self.release_drained(out);
        if out.fault(30) {
            // The connection breaks; the old session may be seen for a while.
            self.lease = Lease::Idle;
            if out.random.one_in(2) {
                out.server.end_session(self.session);
            }
            return;
        }
        self.lease = match std::mem::replace(&mut self.lease, Lease::Idle) {
            Lease::Idle => {
                if !out.server.has_session(self.session) {
                    self.session = out.server.open_session();
                }
                out.server.heartbeat(&self.name, self.session, self.reach(out.server.now));
                Lease::Beaten(Held::note(&self.ownership))
            }
            Lease::Beaten(held) => Lease::Claiming(self.look(&held, out)),
            Lease::Claiming(mut partitions) => {
                if let Some(partition) = partitions.pop() {
                    self.claim(partition, out);
                    Lease::Claiming(partitions)
                } else {
                    Lease::Idle
                }
            }
        };
    }

    /// Reads the ledger, and does what follows: what was lost, what to give away, what to claim.
    fn look(&mut self, held: &Held, out: &mut Outside) -> Vec<Partition> {
        let members = out.server.living();
        let entries = self.entries(&out.server);
        let topics = self.topics.clone();
        let reach = self.reach(out.server.now);
        let viewer = Viewer { me: &self.name.clone(), reach, pipeline: PIPELINE, topics: &topics };
        let duties = viewer.duties(held, &members, &entries);
        for (claim, _) in &duties.lost {
            self.forget(claim);
            self.draining.remove(&claim.partition);
        }
        for entry in duties.give_up {
            let topic = self.topics.iter().position(|t| *t.name == *entry.topic).expect("one of ours");
            let place = self.topics[topic].targets.iter().position(|t| **t == *entry.target);
            let table = self.topics[topic].tables[place.expect("one of the topic's")];
            let key = (Partition { topic, id: entry.partition }, table);
            out.server.release(&self.name, key, entry.epoch);
        }
        for claim in duties.give_away {
            claim.drain();
            self.draining.insert(claim.partition);
        }
        if !duties.claim.is_empty() {
            out.server.end_dead_members(&self.name);
        }
        duties.claim
    }

    /// The ledger as a snapshot shows it.
    fn entries(&self, server: &Server) -> Vec<Entry> {
        let entry = |(&(partition, table), row): (&Key, &crate::database::Row)| {
            let topic = &self.topics[partition.topic];
            let place = topic.tables.iter().position(|t| *t == table).expect("the topic feeds it");
            Entry {
                topic: topic.name.clone(),
                partition: partition.id,
                target: topic.targets[place].as_str().into(),
                owner: row.owner.as_deref().map(Into::into),
                owner_alive: row.owner.as_deref().is_some_and(|owner| server.alive(owner)),
                epoch: row.epoch,
                next_offset: row.next,
                anchor: row.anchor,
                routing_hash: topic.routing_hash,
                pipeline: PIPELINE.into(),
                topic_id: TOPIC_ID.into(),
                cluster_id: "".into(),
                table: None,
            }
        };
        server.database.ledger.iter().map(entry).collect()
    }

    fn claim(&mut self, partition: Partition, out: &mut Outside) {
        let keys = out.cluster.keys(partition);
        self.draining.remove(&partition);
        let Some(rows) = out.server.claim(&self.name, &keys) else { return };
        out.seen.claims += 1;
        if out.fault(15) {
            // The reply is lost: the ledger says that it is ours, memory does not.
            return;
        }
        let lane = |(key, row): (&Key, &crate::database::Row)| {
            let next = match self.was_at.get(key) {
                Some(was_at) if planted(Bug::StaleStart) => *was_at,
                _ => row.next,
            };
            Lane::new(key.1, row.epoch, next, row.anchor, Arc::default())
        };
        let lanes = keys.iter().zip(&rows).map(lane).collect();
        let name = self.topics[partition.topic].name.clone();
        self.ownership.insert(Arc::new(Claim::new(partition, name, TOPIC_ID.into(), lanes)));
    }

    fn forget(&mut self, claim: &Arc<Claim>) {
        for lane in &claim.lanes {
            self.was_at.insert((claim.partition, lane.table), lane.committed());
        }
        self.ownership.remove(claim);
    }

    fn release_drained(&mut self, out: &mut Outside) {
        for partition in self.draining.clone() {
            let Some(claim) = self.ownership.get(partition) else {
                self.draining.remove(&partition);
                continue;
            };
            // Or its time is up.
            if claim.is_drained() || out.random.one_in(6) {
                self.draining.remove(&partition);
                self.release(&claim, out);
            }
        }
    }

    fn release(&mut self, claim: &Arc<Claim>, out: &mut Outside) {
        self.forget(claim);
        if !out.fault(10) {
            for (key, lane) in out.cluster.keys(claim.partition).into_iter().zip(&claim.lanes) {
                out.server.release(&self.name, key, lane.epoch());
            }
        }
    }

    /// The end by SIGTERM; a COMMIT may still be on its way.
    pub(crate) fn finish(&mut self, out: &mut Outside) {
        for claim in self.ownership.all() {
            self.release(&claim, out);
        }
    }

    // ---- watch and poll ----

    fn reach(&self, now: u64) -> Reach {
        match self.cut_until {
            0 => Reach::Well,
            until if now < until => Reach::Cut,
            until if now - until < BACK => Reach::Back,
            _ => Reach::Well,
        }
    }

    fn open(&mut self, out: &mut Outside) {
        if self.reach(out.server.now) == Reach::Cut {
            return;
        }
        for claim in self.ownership.all().into_iter().filter(|c| c.wants_start()) {
            match opening(&claim.topic_id, &out.cluster.look(claim.partition), &claim.places()) {
                Opening::Read { at, gate, fresh } => claim.open(Start { at, gate, fresh }),
                Opening::Stop(reason) => claim.stop(reason),
            }
        }
    }

    fn follow_ownership(&mut self, out: &mut Outside) {
        for claim in self.readings.leave(&self.ownership) {
            self.handle.unassign(claim.partition);
        }
        for claim in self.ownership.all().into_iter().filter(|c| c.is_read()) {
            if self.readings.enter(&claim) {
                self.resume(&[claim.partition], out);
            }
        }
    }

    fn resume(&mut self, partitions: &[Partition], out: &mut Outside) {
        let assignment = self.readings.resume(partitions);
        if assignment.needs_new_client {
            self.handle = Handle::default();
            out.seen.fresh_handles += 1;
        }
        for (claim, at) in assignment.places {
            self.handle.assign(claim.partition, at, &mut out.random);
        }
    }

    fn poll(&mut self, out: &mut Outside) {
        self.follow_ownership(out);
        if self.reach(out.server.now) == Reach::Cut {
            return;
        }
        for topic in 0..self.topics.len() {
            if out.fault(20) {
                // It is stuck: parked now, resumed at a later poll.
                for claim in self.readings.park(topic) {
                    self.handle.unassign(claim.partition);
                }
            }
            let parked = self.readings.parked(topic);
            if !parked.is_empty() && (!out.faults || out.random.one_in(3)) {
                self.resume(&parked, out);
            }
            let batch = self.poll_topic(topic, out);
            if !batch.is_empty() {
                self.raw.push_back(batch);
            }
        }
    }

    fn poll_topic(&mut self, topic: usize, out: &mut Outside) -> RawBatch {
        let mut batch = RawBatch::new(topic, 0, 0);
        let partitions = out.cluster.partitions(topic);
        for partition in partitions {
            let Some(reading) = self.readings.of_record(partition) else { continue };
            for _ in 0..=out.random.below(12) {
                let log = &out.cluster.logs[&partition];
                let (offset, shape) = match self.handle.poll(partition, log, &mut out.random, out.faults) {
                    Polled::Record(offset, shape) => (offset, shape),
                    Polled::OutOfRange => {
                        self.ownership.remove(&reading.claim);
                        break;
                    }
                    Polled::Nothing => break,
                };
                let record = Record {
                    topic: &reading.claim.topic,
                    partition: partition.id,
                    offset,
                    timestamp_ms: Some(offset),
                    key: None,
                    value: shape.value(),
                    headers: Headers::default(),
                };
                let first = reading.gate.expected();
                match reading.gate.see(offset, || record.hash()) {
                    Verdict::Take => batch.push(&reading.claim, first, &record),
                    Verdict::Drop => out.seen.dropped += 1,
                    Verdict::Stop(reason) => reading.claim.stop(reason),
                }
            }
        }
        batch.note_anchors();
        self.readings.passed_on(&batch);
        if !batch.is_empty() {
            batch.set_charge(self.budget.charge(topic, batch.cost_bytes()));
        }
        batch
    }

    // ---- decode ----

    fn decode(&mut self) {
        let Some(batch) = self.raw.pop_front() else { return };
        assert!(self.decoder.decode(&Arc::new(batch), &mut self.outlets, || false), "there are no lookups");
        for (outlet, writer) in self.outlets.iter_mut().zip(&mut self.writers) {
            writer.inlet.extend(std::iter::from_fn(|| outlet.take()));
        }
    }

    // ---- write ----

    fn write(&mut self, table: usize, out: &mut Outside) {
        match std::mem::take(&mut self.writers[table].state) {
            Sending::Ready => self.send(table, out),
            Sending::Sent(id, spans, holds, session) => {
                self.await_reply(table, id, spans, holds, session, out)
            }
            Sending::Unknown(spans) => self.ask(table, spans, out),
        }
    }

    /// Gathers, and sends a whole transaction; or, where the server refuses a row, one without the bad rows of a batch.
    fn send(&mut self, table: usize, out: &mut Outside) {
        let writer = &mut self.writers[table];
        if writer.hand.load().is_empty() {
            writer.gather(&mut out.random);
        }
        let may_move_idle = !out.faults || out.random.one_in(4);
        self.writers[table].hand.drop_void();
        if out.fault(150) {
            self.halt(table, out);
            self.writers[table].hand.drop_void();
        }
        let hand = &mut self.writers[table].hand;
        if hand.load().is_empty() && !may_move_idle {
            self.loans.leave(table);
            return;
        }
        if out.fault(20) {
            // A lock, a full disk, a connection that broke before the COMMIT.
            assert_eq!(after_failure(Class::World, false), FollowUp::SendAgain);
            return;
        }
        if out.fault(20) {
            // The server ended it because it lasted too long: what one transaction takes next is less.
            self.writers[table].send_less();
            out.seen.cut_off += 1;
            return;
        }
        let refused =
            |batch: &TableBatch| (0..batch.rows.len()).any(|row| is_refused(batch, row, &out.cluster));
        let holds = if hand.load().iter().any(refused) { Holds::First } else { Holds::Everything };
        let (spans, batches) = match holds {
            Holds::Everything => (hand.spans(), hand.load()),
            Holds::First => {
                set_bad_rows_aside(hand, &out.cluster);
                out.seen.isolated += 1;
                (hand.spans_of_first(), &hand.load()[..1])
            }
        };
        if spans.is_empty() {
            self.loans.leave(table);
            return;
        }
        let is_halted = |span: &Span| self.halted.iter().any(|claim| Arc::ptr_eq(claim, &span.claim));
        assert!(!spans.iter().any(is_halted), "{} sends what the guard stopped", self.name);
        // Positions alone are of no edition.
        let edition = hand.edition().unwrap_or_else(|| self.editions.number());
        assert!(batches.iter().all(|batch| batch.edition == edition), "one transaction is of one edition");
        let Some(Edition { plan, .. }) = self.editions.get(edition) else {
            self.give_back(table);
            return;
        };
        let fingerprint = plan.tables[table].fingerprint.clone();
        let session = match self.loans.ask(table, self.began) {
            Loan::Take(number) | Loan::Open(number) => number,
            Loan::Wait => {
                // Others have them all; what is in hand is for its turn.
                out.seen.waited += 1;
                return;
            }
        };
        let stored = batches.iter().flat_map(|b| stored(b, table)).collect();
        let added = added(batches, &plan.tables[table]);
        let message = Message::new(&self.name, session, table, stored, added, moves(&spans), fingerprint);
        let id = out.network.send(message);
        self.writers[table].state = Sending::Sent(id, spans, holds, session);
    }

    /// The guard objects to one of the topics in a writer's hand.
    fn halt(&mut self, table: usize, out: &mut Outside) {
        let spans = self.writers[table].hand.spans();
        if let Some(span) = spans.first() {
            let topic = span.claim.partition.topic;
            self.ownership.halt(topic, "too many dead letters");
            let claims = self.ownership.all().into_iter().filter(|c| c.partition.topic == topic);
            self.halted.extend(claims);
            out.seen.halts += 1;
        }
    }

    fn await_reply(
        &mut self,
        table: usize,
        id: u64,
        spans: Vec<Span>,
        holds: Holds,
        session: Number,
        out: &mut Outside,
    ) {
        let class = match out.network.reply(id) {
            Reply::NotYet => {
                self.writers[table].state = Sending::Sent(id, spans, holds, session);
                return;
            }
            Reply::Ended(Ended::Committed) => {
                self.loans.give_back(session, table);
                must_be_committed(&spans, table, &out.server);
                let Writer { hand, size, .. } = &mut self.writers[table];
                let rows = match holds {
                    Holds::Everything => hand.rows(),
                    Holds::First => hand.load()[0].rows.len(),
                };
                // Without faults rows are cheap again: how dear they are decides how long it takes until all are stored.
                let mut took =
                    || Duration::from_millis(if out.faults { out.random.below(3000) as u64 } else { 1 });
                size.took(rows, took(), took(), took());
                match holds {
                    Holds::Everything => hand.committed(&spans),
                    Holds::First => hand.committed_first(&spans),
                }
                return;
            }
            Reply::Ended(Ended::TableChanged) => {
                self.loans.lose(session, table);
                assert_eq!(after_failure(Class::TableChanged, true), FollowUp::Reopen);
                self.reopen(table, out);
                return;
            }
            Reply::Ended(Ended::Fenced) => Class::Fenced,
            Reply::Broken => Class::Lost,
        };
        self.loans.lose(session, table);
        assert_eq!(after_failure(class, true), FollowUp::Ask);
        self.writers[table].state = Sending::Unknown(spans);
    }

    /// Reads the definitions again, and gives back what was encoded for another one than there is now.
    fn reopen(&mut self, table: usize, out: &mut Outside) {
        if out.fault(4) {
            // The definition fits no model for a while: the same rows are tried again.
            return;
        }
        let fingerprint = |edition: &Edition| edition.plan.tables[table].fingerprint.clone();
        let now = plan_now(&out.server);
        if now.tables[table].fingerprint != fingerprint(&self.editions.newest()) {
            self.editions.publish(now);
        }
        let newest = fingerprint(&self.editions.newest());
        let hand = &self.writers[table].hand;
        let old = hand.edition().and_then(|edition| self.editions.get(edition));
        if old.is_none_or(|old| fingerprint(&old) != newest) {
            self.give_back(table);
        }
        out.seen.reopened += 1;
    }

    fn give_back(&mut self, table: usize) {
        let load = self.writers[table].hand.load();
        let claims: Vec<Arc<Claim>> =
            load.iter().flat_map(|batch| &batch.segments).map(|s| s.span.claim.clone()).collect();
        claims.iter().for_each(|claim| self.ownership.remove(claim));
        self.writers[table].hand.drop_void();
    }

    /// RESOLVE.
    fn ask(&mut self, table: usize, spans: Vec<Span>, out: &mut Outside) {
        if out.fault(6) {
            self.writers[table].state = Sending::Unknown(spans);
            return;
        }
        let standings = out.server.resolve(&self.name, table, &moves(&spans));
        if out.fault(8) {
            // Answered, but the answer is lost.
            self.writers[table].state = Sending::Unknown(spans);
            return;
        }
        let mut done = Vec::new();
        for (span, resolved) in Hand::judge(spans, standings) {
            match resolved {
                Resolved::Committed => {
                    out.seen.resolved_committed += 1;
                    must_be_committed(std::slice::from_ref(&span), table, &out.server);
                    done.push(span);
                }
                Resolved::NotCommitted => out.seen.resolved_not += 1,
                Resolved::Fenced => {
                    out.seen.fenced += 1;
                    self.forget(&span.claim);
                }
            }
        }
        self.writers[table].hand.settle(&done);
    }
}

/// The plan with the definitions that the tables have now.
fn plan_now(server: &Server) -> Plan {
    let mut plan = (*records::plan()).clone();
    for (index, table) in plan.tables.iter_mut().enumerate() {
        table.fingerprint = server.fingerprint(index);
    }
    plan
}

/// What a process takes for committed must be.
fn must_be_committed(spans: &[Span], table: usize, server: &Server) {
    for span in spans {
        let next = server.database.ledger[&(span.claim.partition, table)].next;
        assert!(
            next >= span.next,
            "{} is taken for committed up to {}, the ledger has {next}",
            span.claim.topic,
            span.next
        );
    }
}

/// Where a row of a batch came from.
fn origin(batch: &TableBatch, row: usize) -> (Partition, i64) {
    let holds = |segment: &&Segment| segment.rows.contains(&row);
    let segment = batch.segments.iter().find(holds).expect("every row belongs to a segment");
    let raw = segment.raw.as_ref().expect("kept for rows and letters");
    (segment.span.claim.partition, raw.offset(batch.rows[row].record as usize))
}

/// True for a row that the server does not take.
fn is_refused(batch: &TableBatch, row: usize, cluster: &Cluster) -> bool {
    let (partition, offset) = origin(batch, row);
    cluster.logs[&partition].history[&offset] == Shape::Refused
}

/// The search for the bad rows of the first batch; the server names them sometimes, rightly or not.
fn set_bad_rows_aside(hand: &mut Hand, cluster: &Cluster) {
    let batch = &hand.load()[0];
    let records = Records::of(batch);
    let send = |range: std::ops::Range<usize>| {
        let rows = records.rows(&range);
        let first = rows.clone().find(|row| is_refused(batch, *row, cluster));
        let named = |row: usize| (!row.is_multiple_of(3)).then_some(row - rows.start);
        let refusal = |row| Refusal { row: named(row), code: "refused".into(), ..Refusal::default() };
        let refused = |row| records.refused(batch, &range, refusal(row));
        Ok::<_, std::convert::Infallible>(first.map(refused))
    };
    let found = isolate(records.len(), send, || false);
    let Ok(found) = found;
    hand.cut_first(records.rows_of_first(found.judged));
    let first_row = |record: usize| records.rows(&(record..record + 1)).start;
    let bad =
        found.bad.into_iter().map(|(record, refusal)| (first_row(record), refusal.code, refusal.message));
    hand.load_mut()[0].set_aside(bad.collect());
}

/// What a batch's COPY stores: rows and dead letters with the offsets they came from.
fn stored(batch: &TableBatch, table: usize) -> Vec<Stored> {
    let rows = (0..batch.rows.len()).map(|row| {
        let (partition, offset) = origin(batch, row);
        ((partition, table), offset, Outcome::Row)
    });
    let dead = batch.dead.iter().map(|letter| {
        let segment = &batch.segments[letter.segment];
        let raw = segment.raw.as_ref().expect("kept for rows and letters");
        ((segment.span.claim.partition, table), raw.offset(letter.record as usize), Outcome::Dead)
    });
    rows.chain(dead).collect()
}

/// What the engine makes of a transaction's rows where the table has keys: the kind, how many, and their sum.
fn added(batches: &[TableBatch], table: &TablePlan) -> Vec<Added> {
    let Some(keyed) = &table.keyed else { return Vec::new() };
    let rows = batches.iter().flat_map(|batch| {
        (0..batch.rows.len()).map(|row| (&batch.bytes[batch.row_bytes(row)], batch.rows[row].deletes))
    });
    let folded = fold(table, keyed, rows, 0).expect("small sums");
    let mut rest = folded.bytes.as_slice();
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        head
    };
    let mut groups = Vec::new();
    for _ in 0..folded.groups {
        assert_eq!(take(2), 3i16.to_be_bytes(), "three columns");
        let length = u32::from_be_bytes(take(4).try_into().expect("a length"));
        let kind = String::from_utf8(take(length as usize).to_vec()).expect("a kind");
        let mut number = || i64::from_be_bytes(take(12)[4..].try_into().expect("eight bytes"));
        groups.push((kind, number(), number()));
    }
    assert!(rest.is_empty(), "nothing else is sent");
    groups
}

impl Writer {
    /// Takes some of what is there; what one transaction has no room for waits for the next.
    fn gather(&mut self, random: &mut Random) {
        let Some(first) = self.hand.take_rest().or_else(|| self.inlet.pop_front()) else { return };
        let room = Room {
            bytes: ROW_BYTES * (1 + random.below(30)),
            rows: self.size.rows(),
            letters: 1 + random.below(4),
        };
        self.hand.gather(first, room, || {
            let comes = random.one_in(2);
            comes.then(|| self.inlet.pop_front()).flatten()
        });
    }

    fn send_less(&mut self) {
        let before = self.hand.rows();
        self.size.cut_off(before);
        let room = Room { bytes: usize::MAX, rows: self.size.rows(), letters: usize::MAX };
        if self.hand.cut(room) {
            assert!(self.hand.rows() <= before && !self.hand.load().is_empty(), "something is left to send");
        } else {
            self.size.wait_longer();
        }
    }
}
