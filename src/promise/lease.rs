//! The lease thread: keeps this process alive in the ledger, and decides every second what to claim and what to give up.
//!
//! Place in the flow: beside it. It is the only writer of [`Ownership`]; it never touches Kafka, so an outage there
//! cannot cost a lease. What it believes can be wrong at any moment: only the ledger's compare-and-swap decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::base::failure::Class;
use crate::base::fault::{Point, fault};
use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::client::pg::{self, Client, Server};
use crate::figures::instruments::Heartbeat;
use crate::promise::claim::{Claim, Lane, Ownership, Wake};
use crate::promise::decide::Peer;
use crate::promise::duties::{Entry, Held, Hold, Seen, Viewer, new_tables};
use crate::promise::lane::LaneRegister;
use crate::promise::ledger::{self, Claimed, Member, Registration, Stop};
use crate::promise::looks::{Look, Looks};
use crate::promise::offsets::Partition;
use crate::promise::reach::{Contact, Reach};
use crate::promise::topics::Topic;

/// Between two heartbeats. A lease lasts several of them.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks at partitions that are about to be released.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Ledger rows of one statement: many enough that the way to a distant server does not count, few enough that it ends well
/// within a heartbeat. Partitions that are told of as stopped have as many rows as tables each.
const ROWS_AT_ONCE: usize = 1000;
const STOPS_AT_ONCE: usize = 100;

/// What is in hand of a partition that another member should have is dropped after this; it is read again there.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// What the lease thread needs.
pub struct Lease {
    pub server: Server,
    pub me: Member,
    pub topics: Arc<[Topic]>,
    pub ownership: Arc<Ownership>,
    pub contact: Arc<Contact>,
    /// False where a pooler shares sessions, so that a session lock would say nothing.
    pub session_lock: bool,
    pub wake: Receiver<Wake>,
    pub pulse: Arc<Pulse>,
    pub lanes: Arc<LaneRegister>,
    pub heartbeat: Arc<Heartbeat>,
}

/// A connection, and the number of the session lock that it holds.
struct LeaseSession {
    client: Client,
    number: Option<i32>,
}

#[derive(Default)]
struct State {
    session: Option<LeaseSession>,
    /// Claims that are to be released, since when.
    draining: BTreeMap<Partition, Instant>,
    /// Stopped partitions whose reason the ledger has.
    reported: BTreeSet<Partition>,
    /// Which table each target was when it was last looked at.
    tables: BTreeMap<Arc<str>, Seen>,
    looks: Looks,
    /// Of the ownership at the last tick.
    version: u64,
    /// When the last heartbeat that was committed was sent.
    beaten_at: Option<Instant>,
    /// Ticks that fail.
    trouble: Episode,
}

impl Lease {
    /// Runs until [`Wake::Finish`].
    ///
    /// # Errors
    /// Only what waiting cannot mend: a schema that is newer than this program, a missing privilege, another pipeline's rows.
    pub fn run(self) -> Result<()> {
        let mut state = State::default();
        let mut next_tick = Instant::now();
        loop {
            let pause = if state.draining.is_empty() { next_tick - Instant::now() } else { DRAIN_LOOK };
            match self.wake.recv_timeout(pause) {
                Ok(Wake::Finish) | Err(RecvTimeoutError::Disconnected) => {
                    self.pulse.during("releasing all partitions", || self.finish(&mut state));
                    return Ok(());
                }
                Ok(Wake::Look) => {
                    next_tick = Instant::now();
                    state.looks.forget();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let was_connected = state.session.is_some();
            let result = self.pulse.during("a heartbeat", || {
                self.release_drained(&mut state)?;
                if Instant::now() >= next_tick {
                    next_tick = Instant::now() + TICK;
                    self.tick(&mut state)?;
                }
                Ok(())
            });
            if result.is_err() && was_connected {
                // Without its session this process looks dead to the others: come back at once.
                next_tick = Instant::now();
            }
            self.settle(&mut state, result)?;
        }
    }

    /// Sorts out what a failed tick means. The connection is never used again after an error.
    fn settle(&self, state: &mut State, result: Result<()>) -> Result<()> {
        let Err(error) = result else {
            if state.trouble.ends() {
                log::info!("the lease connection to PostgreSQL works again");
            }
            return Ok(());
        };
        state.session = None;
        state.looks.forget();
        let class = pg::class_of(&error);
        let error = ledger::context(error, "keep the lease");
        match class {
            Class::World | Class::Lost => {
                self.heartbeat.trouble.is(&format!("{error:#}"));
                if state.trouble.begins() {
                    log::warn!(
                        "{error:#}; partitions may pass to another process after {} s; trying again every second",
                        self.me.lease.as_secs()
                    );
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn session<'a>(&self, state: &'a mut State) -> Result<&'a mut LeaseSession> {
        if state.session.is_none() {
            let mut client = self.server.connect(&self.me.application_name())?;
            if self.session_lock {
                // A tick must not hang on a lock: the next one tries again. Shared sessions must not be changed.
                client.fix_session()?;
                client
                    .by_role_path()
                    .batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '4s'")?;
            }
            let number = self.session_lock.then(|| ledger::begin_session(&mut client)).transpose()?;
            state.session = Some(LeaseSession { client, number });
        }
        Ok(state.session.as_mut().expect("just made"))
    }

    /// One heartbeat and what follows from it. Nothing is claimed in a tick whose heartbeat did not commit.
    fn tick(&self, state: &mut State) -> Result<()> {
        self.beat(state)?;
        self.report_stopped(state)?;
        let client = &mut self.session(state)?.client;
        let living = ledger::living(client, &self.me.pipeline)?;
        // Others end claims, too: what they gave up is claimed anew.
        let version = self.ownership.version();
        if std::mem::replace(&mut state.version, version) != version {
            state.looks.forget();
        }
        if state.looks.is_due(Instant::now(), &living) {
            self.look(state, living)?;
        }
        Ok(())
    }

    fn beat(&self, state: &mut State) -> Result<()> {
        let reach = self.contact.look(Instant::now());
        let began = Instant::now();
        let LeaseSession { client, number } = self.session(state)?;
        ledger::heartbeat(client, &self.me, *number, reach)?;
        state.beaten_at = Some(began);
        self.heartbeat.beat();
        Ok(())
    }

    /// Between statements of many rows: whatever there is to do, the lease comes first.
    fn beat_in_time(&self, state: &mut State) -> Result<()> {
        if state.beaten_at.is_none_or(|at| at.elapsed() >= TICK) { self.beat(state) } else { Ok(()) }
    }

    /// Reads all that the ledger has of our topics, and does what it calls for. Where many rows come to the same as before, nothing
    /// does.
    fn look(&self, state: &mut State, living: Vec<Peer>) -> Result<()> {
        let names: Vec<String> = self.topics.iter().map(|t| t.name.to_string()).collect();
        let (began_at, reach) = (Instant::now(), self.contact.look(Instant::now()));
        let held = Held::note(&self.ownership);
        let mut sum = None;
        if state.looks.are_many() {
            let client = &mut self.session(state)?.client;
            let (rows, next) = ledger::sum(client, &self.me.name, &names)?;
            if next >= held.committed() && state.looks.would_find_nothing(began_at, &living, &rows) {
                state.looks.note_sum(began_at, Instant::now());
                return Ok(());
            }
            sum = Some(rows);
        }
        let client = &mut self.session(state)?.client;
        let mut entries = ledger::entries(client, &self.me.pipeline, &living, &names)?;
        if self.register_new(client, &entries)? {
            entries = ledger::entries(client, &self.me.pipeline, &living, &names)?;
        }
        for target in new_tables(&mut state.tables, &entries) {
            log::info!("table {target} is another one than before: rows go there now");
        }
        let viewer = Viewer { me: &self.me.name, reach, pipeline: &self.me.pipeline, topics: &self.topics };
        let duties = viewer.duties(&held, &living, &entries);
        for (claim, reason) in &duties.lost {
            log::warn!("partition {}/{} was lost: {reason}", claim.topic, claim.partition.id);
            self.ownership.remove(claim);
            state.draining.remove(&claim.partition);
        }
        let (rows, is_settled) = (entries.len(), duties.is_settled);
        state.looks.note(Look { began_at, rows, living, is_settled, sum }, Instant::now());
        if self.ownership.is_closing() {
            return Ok(());
        }
        let holds: Vec<Hold<'_>> = duties.give_up.iter().map(|entry| entry.hold()).collect();
        self.release(state, &holds)?;
        let why = if reach == Reach::Cut { ", since Kafka is out of reach here" } else { "" };
        for claim in duties.give_away {
            log::info!("giving partition {}/{} to another member{why}", claim.topic, claim.partition.id);
            claim.drain();
            state.draining.insert(claim.partition, Instant::now());
            self.ownership.touch();
        }
        self.claim_all(state, duties.claim)
    }

    fn claim_all(&self, state: &mut State, partitions: Vec<Partition>) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let ended = ledger::end_dead_members(&mut self.session(state)?.client, &self.me)?;
        if ended > 0 {
            log::info!("ended {ended} database sessions of members whose lease ran out");
        }
        let began = Instant::now();
        for of_topic in partitions.chunk_by(|one, next| one.topic == next.topic) {
            let tables = self.topics[of_topic[0].topic].targets.len();
            for some in of_topic.chunks((ROWS_AT_ONCE / tables).max(1)) {
                if began.elapsed() > TICK {
                    // What is free may be another's by now: the rest is claimed after another look.
                    return Ok(());
                }
                self.beat_in_time(state)?;
                self.claim(state, some)?;
            }
        }
        Ok(())
    }

    /// Inserts ledger rows for partitions that Kafka has and the ledger has not. True if there were any.
    fn register_new(&self, client: &mut Client, entries: &[Entry]) -> Result<bool> {
        let mut any = false;
        let mut by_topic: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in entries {
            by_topic.entry(&entry.topic).or_default().push(entry);
        }
        for topic in self.topics.iter() {
            let Some(seen) = topic.seen() else { continue };
            let Some(topic_id) = &seen.topic_id else { continue };
            let here = by_topic.get(&*topic.name).map_or(&[][..], Vec::as_slice);
            let is_foreign = |e: &&&Entry| {
                *e.pipeline != *self.me.pipeline && topic.targets.iter().any(|target| **target == *e.target)
            };
            if let Some(other) = here.iter().find(is_foreign) {
                bail!(
                    "topic {:?} already feeds table {} in pipeline {:?}: two pipelines may not fill the same table from the same \
                     topic; use that name, or `rowmill init --take-over {}`",
                    topic.name,
                    other.target,
                    other.pipeline,
                    other.pipeline
                );
            }
            if let Some(other) = here.iter().find(|e| *e.cluster_id != *seen.cluster_id) {
                bail!(
                    "the ledger's offsets of topic {:?} belong to Kafka cluster {} and this is cluster {}: with another cluster the \
                     same offsets mean other records; bring the old brokers back, or use another pipeline in another \
                     database",
                    topic.name,
                    other.cluster_id,
                    seen.cluster_id
                );
            }
            let targets: BTreeSet<&str> = topic.targets.iter().map(|target| &**target).collect();
            let mut tables: BTreeMap<i32, usize> = BTreeMap::new();
            for entry in here.iter().filter(|e| targets.contains(&*e.target)) {
                *tables.entry(entry.partition).or_default() += 1;
            }
            let is_complete = |id: &i32| tables.get(id) == Some(&targets.len());
            let known: BTreeSet<i32> = (0..seen.partition_count).filter(is_complete).collect();
            let new: Vec<_> = seen.new.iter().filter(|n| !known.contains(&n.partition)).copied().collect();
            topic.set_registered(known.iter().copied());
            if new.is_empty() {
                continue;
            }
            let what = Registration {
                pipeline: &self.me.pipeline,
                cluster_id: &seen.cluster_id,
                topic_id,
                routing_hash: topic.routing_hash,
                topic: &topic.name,
                targets: &topic.targets,
            };
            let inserted = ledger::register(client, &what, &new)?;
            topic.set_registered(new.iter().map(|n| n.partition));
            log::info!(
                "topic {:?}: {} new partitions, {inserted} new rows in the ledger",
                topic.name,
                new.len()
            );
            self.say_beginnings(topic, here);
            any = true;
        }
        Ok(any)
    }

    /// Where tables begin that the ledger had not, and why.
    fn say_beginnings(&self, topic: &Topic, before: &[&Entry]) {
        let ours = before.iter().filter(|e| *e.pipeline == *self.me.pipeline);
        let filled: BTreeSet<&str> = ours.map(|e| &*e.target).collect();
        let had = |target: &String| filled.contains(target.as_str());
        let is_known = topic.targets.iter().any(had);
        for target in topic.targets.iter().filter(|target| !had(target)) {
            if is_known {
                log::info!(
                    "table {target} begins where the other tables of topic {:?} are; `rowmill backfill --table {target}` fills \
                     it with what was before",
                    topic.name
                );
            } else {
                log::info!("table {target} begins with topic {:?} where kafka.start says", topic.name);
            }
        }
    }

    /// Claims partitions of one topic, those that are free.
    fn claim(&self, state: &mut State, partitions: &[Partition]) -> Result<()> {
        let topic = &self.topics[partitions[0].topic];
        let ids: Vec<i32> = partitions.iter().map(|partition| partition.id).collect();
        let client = &mut self.session(state)?.client;
        let claimed = ledger::claim(client, &self.me, &topic.name, &ids, topic.routing_hash, &topic.targets)?;
        for partition in partitions {
            state.reported.remove(partition);
            // A claim that ended while it was drained must not have its successor released.
            state.draining.remove(partition);
            if let Some(rows) = claimed.get(&partition.id) {
                fault(Point::InClaim);
                self.begin(topic, *partition, rows);
            }
        }
        Ok(())
    }

    /// The partition is ours, with these rows.
    fn begin(&self, topic: &Topic, partition: Partition, claimed: &[Claimed]) {
        let topic_id = claimed[0].topic_id.clone();
        let by_target: BTreeMap<&str, &Claimed> = claimed.iter().map(|row| (&*row.target, row)).collect();
        let lanes = topic
            .tables
            .iter()
            .zip(&topic.targets)
            .map(|(table, target)| {
                let got = by_target.get(target.as_str()).expect("all targets or none were claimed");
                let metrics = self.lanes.lane(partition, *table);
                Lane::new(*table, got.epoch, got.next_offset, got.anchor, metrics)
            })
            .collect();
        let claim = Claim::new(partition, topic.name.clone(), topic_id, lanes);
        log::info!("claimed partition {}/{} at offset {}", claim.topic, partition.id, claim.committed());
        if claimed.iter().any(|c| c.topic_id != claim.topic_id) {
            claim.stop(
                "its tables were filled from topics with different ids: the topic was created again in between"
                    .to_owned(),
            );
        }
        self.ownership.insert(Arc::new(claim));
    }

    /// Releases the partitions whose data in hand is committed, or whose time is up.
    fn release_drained(&self, state: &mut State) -> Result<()> {
        let ready: BTreeSet<Partition> = state
            .draining
            .iter()
            .filter(|(partition, since)| {
                self.ownership.get(**partition).is_none_or(|c| c.is_drained()) || since.elapsed() > DRAIN_MAX
            })
            .map(|(partition, _)| *partition)
            .collect();
        state.draining.retain(|partition, _| !ready.contains(partition));
        self.release_claims(state, ready.iter().filter_map(|partition| self.ownership.get(*partition)))
    }

    /// Ends claims, and gives their rows up.
    fn release_claims(&self, state: &mut State, claims: impl Iterator<Item = Arc<Claim>>) -> Result<()> {
        let claims: Vec<Arc<Claim>> = claims.collect();
        claims.iter().for_each(|claim| self.ownership.remove(claim));
        let holds: Vec<Hold<'_>> = claims.iter().flat_map(|claim| self.holds(claim)).collect();
        self.release(state, &holds)
    }

    fn holds<'a>(&'a self, claim: &'a Claim) -> impl Iterator<Item = Hold<'a>> {
        let targets = &self.topics[claim.partition.topic].targets;
        claim.lanes.iter().zip(targets).map(|(lane, target)| Hold {
            topic: &claim.topic,
            partition: claim.partition.id,
            target,
            epoch: lane.epoch(),
        })
    }

    fn release(&self, state: &mut State, holds: &[Hold<'_>]) -> Result<()> {
        for some in holds.chunks(ROWS_AT_ONCE) {
            fault(Point::InRelease);
            self.beat_in_time(state)?;
            ledger::release(&mut self.session(state)?.client, &self.me.name, some)?;
        }
        Ok(())
    }

    fn report_stopped(&self, state: &mut State) -> Result<()> {
        let mut news: Vec<(Partition, Stop)> = Vec::new();
        for claim in self.ownership.all() {
            let reason = claim.why_still();
            if reason.is_some() != state.reported.contains(&claim.partition) {
                let (topic, partition) = (claim.topic.clone(), claim.partition.id);
                news.push((claim.partition, Stop { topic, partition, reason }));
            }
        }
        for some in news.chunks(STOPS_AT_ONCE) {
            self.beat_in_time(state)?;
            let (partitions, stops): (Vec<Partition>, Vec<Stop>) = some.iter().cloned().unzip();
            ledger::mark_stopped(&mut self.session(state)?.client, &self.me.name, &stops)?;
            for (partition, stop) in partitions.into_iter().zip(stops) {
                match stop.reason {
                    Some(_) => state.reported.insert(partition),
                    None => state.reported.remove(&partition),
                };
            }
        }
        Ok(())
    }

    /// The orderly end. What cannot be released now is taken over when the lease runs out, so errors are only said.
    fn finish(&self, state: &mut State) {
        let mut all = || -> Result<()> {
            // A writer that did not end in time has given its rows up: it must send nothing more, and its statement must not go
            // on without it.
            let claims = self.ownership.all();
            claims.iter().for_each(|claim| self.ownership.remove(claim));
            let ended = ledger::end_my_work(&mut self.session(state)?.client, &self.me)?;
            if ended > 0 {
                log::info!("ended {ended} database sessions that were still at work");
            }
            self.release_claims(state, claims.into_iter())?;
            ledger::leave(&mut self.session(state)?.client, &self.me)
        };
        if let Err(error) = all() {
            let error = ledger::context(error, "release all partitions");
            log::warn!("{error:#}; others wait for the lease to run out");
        }
    }
}
