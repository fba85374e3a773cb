//! One process: the engine's own decisions, decoder and batches, with loops around them that can be stopped anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rowmill::batch::{Headers, RawBatch, Record, Segment, TableBatch, spans};
use rowmill::budget::Budget;
use rowmill::cpu::Pulse;
use rowmill::decode::{Decoder, Outlet};
use rowmill::failure::Class;
use rowmill::ledger::moves;
use rowmill::lookup::LookupCache;
use rowmill::metrics::Waits;
use rowmill::mutant::{Bug, planted};
use rowmill::offsets::Anchor;
use rowmill::offsets::Partition;
use rowmill::ownership::{Claim, Lane, Ownership, Start};
use rowmill::protocol::{
    FollowUp, Gate, Holding, Opening, Resolved, Verdict, after_failure, holder, lost, opening, plan, resolve,
};
use rowmill::row::Limits;
use rowmill::topics::Topic;

use crate::database::{Key, Move, Server, Stored};
use crate::kafka::{Cluster, Handle, Polled, TOPIC_ID};
use crate::network::{Message, Network, Reply};
use crate::records::{self, Outcome};
use rowmill_faults::random::Random;

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
    pub(crate) session: u64,
    topics: Arc<[Topic]>,
    ownership: Arc<Ownership>,
    budget: Arc<Budget>,
    lease: Lease,
    draining: BTreeSet<Partition>,
    handle: Handle,
    readings: BTreeMap<Partition, Reading>,
    raw: VecDeque<RawBatch>,
    decoder: Decoder,
    outlets: Vec<Outlet>,
    writers: Vec<Writer>,
    /// Where this process was in a partition that it lost; only the planted bug looks.
    was_at: BTreeMap<Key, i64>,
}

/// How far a tick is.
enum Lease {
    Idle,
    /// The heartbeat is committed; what memory held before the ledger is asked.
    Beaten(Vec<(Arc<Claim>, Vec<i64>)>),
    Claiming(Vec<Partition>),
}

struct Reading {
    claim: Arc<Claim>,
    gate: Gate,
    start: Start,
    last: Option<Anchor>,
    aside: bool,
}

/// One table's writer.
#[derive(Default)]
struct Writer {
    inlet: VecDeque<TableBatch>,
    idle: Vec<Segment>,
    load: Vec<TableBatch>,
    state: Sending,
}

#[derive(Default)]
enum Sending {
    #[default]
    Ready,
    /// The message with the COMMIT is on its way.
    Sent(u64, Vec<Segment>),
    /// Its outcome is unknown, or it was fenced: the ledger must be asked.
    Unknown(Vec<Segment>),
}

impl Member {
    pub(crate) fn new(name: String, topics: &Arc<[Topic]>, server: &mut Server) -> Member {
        let pulse = Arc::new(Pulse::new("simulated"));
        let lookups = LookupCache::new(None, &[], pulse, Waits::new("simulated")).expect("no Redis to reach");
        let budget = Budget::new(usize::MAX >> 1, topics.len());
        Member {
            name,
            frozen_until: 0,
            session: server.open_session(),
            topics: topics.clone(),
            ownership: Arc::default(),
            lease: Lease::Idle,
            draining: BTreeSet::new(),
            handle: Handle::default(),
            readings: BTreeMap::new(),
            raw: VecDeque::new(),
            decoder: Decoder::new(records::plan(), topics, Limits::default(), lookups, budget.clone()),
            budget,
            outlets: (0..records::TABLES).map(|table| Outlet::new(table, 0, 1)).collect(),
            writers: (0..records::TABLES).map(|_| Writer::default()).collect(),
            was_at: BTreeMap::new(),
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
        let readings: Vec<_> = self.readings.iter().map(|(p, r)| (p, r.aside, &r.gate, r.last)).collect();
        format!(
            "{}: frozen {}, lease {lease}\n  claims {claims:#?}\n  readings {readings:?}",
            self.name, self.frozen_until
        )
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
                out.server.heartbeat(&self.name, self.session);
                let committed = |c: &Arc<Claim>| (c.clone(), c.lanes.iter().map(Lane::committed).collect());
                Lease::Beaten(self.ownership.all().iter().map(committed).collect())
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

    /// Reads the ledger and decides: what was lost, what to give away, what to claim.
    fn look(&mut self, held: &[(Arc<Claim>, Vec<i64>)], out: &mut Outside) -> Vec<Partition> {
        let members = out.server.living();
        let entries = out.server.database.ledger.clone();
        for (claim, committed) in held {
            let keys = out.cluster.keys(claim.partition);
            let gone = |(key, committed): (&Key, &i64)| {
                let row = &entries[key];
                lost(&self.name, *committed, Some((row.owner.as_deref(), row.next)))
            };
            if !claim.is_current() || keys.iter().zip(committed).any(|place| gone(place).is_some()) {
                self.forget(claim);
                self.draining.remove(&claim.partition);
            }
        }
        let mut holdings: BTreeMap<Partition, Option<String>> = BTreeMap::new();
        for ((partition, _), row) in &entries {
            let alive = row.owner.as_deref().is_some_and(|o| out.server.alive(o));
            let held = self.ownership.get(*partition).is_some();
            let known = holdings.entry(*partition).or_default();
            *known = known.take().or(holder(&self.name, row.owner.as_deref(), alive, held));
        }
        let holdings: Vec<Holding<Partition>> =
            holdings.into_iter().map(|(partition, owner)| Holding { partition, owner }).collect();
        let moves = plan(&self.name, &members, &holdings);
        for (key, row) in &entries {
            let ours = row.owner.as_deref() == Some(&self.name);
            if ours && self.ownership.get(key.0).is_none() && !moves.claim.contains(&key.0) {
                out.server.release(&self.name, *key, row.epoch);
            }
        }
        for partition in moves.release {
            if let Some(claim) = self.ownership.get(partition) {
                claim.drain();
                self.draining.insert(partition);
            }
        }
        if !moves.claim.is_empty() {
            out.server.end_dead_members(&self.name);
        }
        moves.claim
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

    fn open(&mut self, out: &mut Outside) {
        for claim in self.ownership.all().into_iter().filter(|c| c.wants_start()) {
            match opening(&claim.topic_id, &out.cluster.look(claim.partition), &claim.places()) {
                Opening::Read { at, gate, fresh } => claim.open(Start { at, gate, fresh }),
                Opening::Stop(reason) => claim.stop(reason),
            }
        }
    }

    fn follow_ownership(&mut self, out: &mut Outside) {
        let gone = |(p, r): (&Partition, &Reading)| {
            let held = self.ownership.get(*p).is_some_and(|held| Arc::ptr_eq(&held, &r.claim));
            (!held || !r.claim.is_read()).then_some(*p)
        };
        for partition in self.readings.iter().filter_map(gone).collect::<Vec<_>>() {
            self.handle.unassign(partition);
            self.readings.remove(&partition);
        }
        for claim in self.ownership.all().into_iter().filter(|c| c.is_read()) {
            let Some(start) = claim.take_start() else { continue };
            let partition = claim.partition;
            let reading = Reading { claim, gate: start.gate.clone(), start, last: None, aside: true };
            self.readings.insert(partition, reading);
            self.resume(partition, out);
        }
    }

    fn resume(&mut self, partition: Partition, out: &mut Outside) {
        let reading = &self.readings[&partition];
        if reading.start.needs_new_client(reading.last, self.handle.touched().contains(&partition)) {
            self.handle = Handle::default();
            out.seen.fresh_handles += 1;
            let all: Vec<Partition> =
                self.readings.iter().filter(|(_, r)| !r.aside).map(|(p, _)| *p).collect();
            all.into_iter().for_each(|p| self.assign(p, out));
        }
        self.assign(partition, out);
    }

    fn assign(&mut self, partition: Partition, out: &mut Outside) {
        let reading = self.readings.get_mut(&partition).expect("it is read");
        let (gate, at) = reading.start.place(&reading.gate, reading.last);
        reading.gate = gate;
        reading.aside = false;
        self.handle.assign(partition, at, &mut out.random);
    }

    fn poll(&mut self, out: &mut Outside) {
        self.follow_ownership(out);
        if out.fault(12) {
            // A topic that is stuck: set aside now, taken back at a later poll.
            if let Some((partition, reading)) = self.readings.iter_mut().next() {
                reading.aside = true;
                self.handle.unassign(*partition);
            }
        }
        let aside: Vec<Partition> = self.readings.iter().filter(|(_, r)| r.aside).map(|(p, _)| *p).collect();
        if !out.faults || out.random.one_in(3) {
            aside.into_iter().for_each(|p| self.resume(p, out));
        }
        for topic in 0..self.topics.len() {
            let batch = self.poll_topic(topic, out);
            if !batch.is_empty() {
                self.raw.push_back(batch);
            }
        }
    }

    fn poll_topic(&mut self, topic: usize, out: &mut Outside) -> RawBatch {
        let mut batch = RawBatch::new(topic, 0, 0);
        for (partition, reading) in self.readings.iter_mut().filter(|(p, r)| p.topic == topic && !r.aside) {
            for _ in 0..=out.random.below(12) {
                let log = &out.cluster.logs[partition];
                let (offset, shape) = match self.handle.poll(*partition, log, &mut out.random, out.faults) {
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
        for run in &batch.runs {
            run.claim.set_polled(run.next, run.times.first_ms);
            if let Some(reading) = self.readings.get_mut(&run.claim.partition) {
                reading.last = Some(run.anchor);
            }
        }
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
            writer.inlet.extend(outlet.take());
        }
    }

    // ---- write ----

    fn write(&mut self, table: usize, out: &mut Outside) {
        match std::mem::take(&mut self.writers[table].state) {
            Sending::Ready => self.send(table, out),
            Sending::Sent(id, spans) => self.await_reply(table, id, spans, out),
            Sending::Unknown(spans) => self.ask(table, spans, out),
        }
    }

    /// Gathers, and sends a whole transaction.
    fn send(&mut self, table: usize, out: &mut Outside) {
        let writer = &mut self.writers[table];
        if writer.load.is_empty() {
            writer.gather(&mut out.random);
        }
        let may_move_idle = !out.faults || out.random.one_in(4);
        writer.idle.retain(|s| s.claim.is_current());
        writer.load.iter_mut().for_each(|b| b.retain_segments(|s| s.claim.is_current()));
        writer.load.retain(|b| !b.segments.is_empty());
        if writer.load.is_empty() && !may_move_idle {
            return;
        }
        let spans = spans(&writer.idle, &writer.load);
        if spans.is_empty() {
            return;
        }
        if out.fault(20) {
            // A lock, a full disk, a connection that broke before the COMMIT.
            assert_eq!(after_failure(Class::World, false), FollowUp::SendAgain);
            return;
        }
        let id = out.network.send(Message::new(
            &self.name,
            writer.load.iter().flat_map(|b| stored(b, table)).collect(),
            moves(&spans)
                .iter()
                .zip(&spans)
                .map(|(m, s)| Move::new(s.claim.partition.topic, table, m))
                .collect(),
        ));
        writer.state = Sending::Sent(id, spans);
    }

    fn await_reply(&mut self, table: usize, id: u64, spans: Vec<Segment>, out: &mut Outside) {
        let class = match out.network.reply(id) {
            Reply::NotYet => {
                self.writers[table].state = Sending::Sent(id, spans);
                return;
            }
            Reply::Committed => {
                committed(&spans, table, &out.server);
                let writer = &mut self.writers[table];
                writer.load.clear();
                writer.idle.clear();
                return;
            }
            Reply::Fenced => Class::Fenced,
            Reply::Broken => Class::Lost,
        };
        assert_eq!(after_failure(class, true), FollowUp::Ask);
        self.writers[table].state = Sending::Unknown(spans);
    }

    /// RESOLVE.
    fn ask(&mut self, table: usize, spans: Vec<Segment>, out: &mut Outside) {
        let asked: Vec<Move> = moves(&spans)
            .iter()
            .zip(&spans)
            .map(|(m, s)| Move::new(s.claim.partition.topic, table, m))
            .collect();
        if out.fault(6) {
            self.writers[table].state = Sending::Unknown(spans);
            return;
        }
        let standings = out.server.resolve(&self.name, table, &asked);
        if out.fault(8) {
            // Answered, but the answer is lost.
            self.writers[table].state = Sending::Unknown(spans);
            return;
        }
        let mut done: Vec<(Arc<Claim>, i64)> = Vec::new();
        for (span, standing) in spans.iter().zip(standings) {
            if let Some(standing) = standing {
                span.claim.lanes[span.lane].set_epoch(standing.epoch);
            }
            match resolve(span.first, span.next, standing.map(|s| s.next_offset)) {
                Resolved::Committed => {
                    out.seen.resolved_committed += 1;
                    committed(std::slice::from_ref(span), table, &out.server);
                    done.push((span.claim.clone(), span.next));
                }
                Resolved::NotCommitted => out.seen.resolved_not += 1,
                Resolved::Fenced => {
                    out.seen.fenced += 1;
                    self.forget(&span.claim);
                }
            }
        }
        let is_done = |s: &Segment| done.iter().any(|(c, next)| Arc::ptr_eq(c, &s.claim) && s.next <= *next);
        let writer = &mut self.writers[table];
        writer.idle.retain(|s| !is_done(s));
        writer.load.iter_mut().for_each(|b| b.retain_segments(|s| !is_done(s)));
    }
}

/// What a process takes for committed must be.
fn committed(spans: &[Segment], table: usize, server: &Server) {
    for span in spans {
        let next = server.database.ledger[&(span.claim.partition, table)].next;
        assert!(
            next >= span.next,
            "{} is taken for committed up to {}, the ledger has {next}",
            span.claim.topic,
            span.next
        );
        span.claim.lanes[span.lane].set_committed(span.next);
    }
}

/// What a batch's COPY stores: rows and dead letters with the offsets they came from.
fn stored(batch: &TableBatch, table: usize) -> Vec<Stored> {
    let offset = |segment: &Segment, record: u32| {
        segment.raw.as_ref().expect("kept for rows and letters").offset(record as usize)
    };
    let rows = batch.segments.iter().flat_map(|segment| {
        segment.rows.clone().map(move |row| {
            ((segment.claim.partition, table), offset(segment, batch.rows[row].record), Outcome::Row)
        })
    });
    let dead = batch.dead.iter().map(|letter| {
        let segment = &batch.segments[letter.segment];
        ((segment.claim.partition, table), offset(segment, letter.record), Outcome::Dead)
    });
    rows.chain(dead).collect()
}

impl Writer {
    /// Takes some of what is there; what one transaction has no room for waits for the next.
    fn gather(&mut self, random: &mut Random) {
        while let Some(mut batch) = self.inlet.pop_front() {
            let is_last = random.one_in(2);
            if is_last && batch.rows.len() > 1 && random.one_in(3) {
                let tail = batch.split_off(1 + random.below(batch.rows.len() - 1));
                self.inlet.push_front(tail);
            }
            self.load.push(batch);
            if is_last {
                break;
            }
        }
        self.load.retain(|batch| !batch.segments.is_empty());
        if self.load.iter().all(TableBatch::is_positions_only) {
            for segment in self.load.drain(..).flat_map(|b| b.segments) {
                match self.idle.iter_mut().find(|s| Arc::ptr_eq(&s.claim, &segment.claim)) {
                    Some(known) => known.join(&segment),
                    None => self.idle.push(segment),
                }
            }
        }
    }
}
