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
use crate::promise::duties::{Entry, Held, Seen, Viewer, new_tables};
use crate::promise::lane::LaneRegister;
use crate::promise::ledger::{self, Member, Registration};
use crate::promise::offsets::Partition;
use crate::promise::reach::{Contact, Reach};
use crate::promise::topics::Topic;

/// Between two heartbeats. A lease lasts several of them.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks at partitions that are about to be released.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

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
    tables: BTreeMap<String, Seen>,
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
                Ok(Wake::Look) => next_tick = Instant::now(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let was_connected = state.session.is_some();
            let result = self.pulse.during("a heartbeat", || {
                self.release_drained(&mut state)?;
                if Instant::now() >= next_tick {
                    next_tick = Instant::now() + TICK;
                    self.tick(&mut state)?;
                    self.heartbeat.beat();
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
        let class = pg::class_of(&error);
        let error = ledger::context(error, "keep the lease");
        match class {
            Class::World | Class::Lost => {
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
        let names: Vec<String> = self.topics.iter().map(|t| t.name.to_string()).collect();
        let LeaseSession { client, number } = self.session(state)?;
        let reach = self.contact.look(Instant::now());
        ledger::heartbeat(client, &self.me, *number, reach)?;

        let held = Held::note(&self.ownership);
        let (members, mut entries) = ledger::snapshot(client, &self.me.pipeline, &names)?;
        if self.register_new(client, &entries)? {
            (_, entries) = ledger::snapshot(client, &self.me.pipeline, &names)?;
        }
        for target in new_tables(&mut state.tables, &entries) {
            log::info!("table {target} is another one than before: rows go there now");
        }
        let viewer = Viewer { me: &self.me.name, reach, pipeline: &self.me.pipeline, topics: &self.topics };
        let duties = viewer.duties(&held, &members, &entries);
        for (claim, reason) in &duties.lost {
            log::warn!("partition {}/{} was lost: {reason}", claim.topic, claim.partition.id);
            self.ownership.remove(claim);
            state.draining.remove(&claim.partition);
        }
        self.report_stopped(state)?;
        if self.ownership.is_closing() {
            return Ok(());
        }
        for entry in duties.give_up {
            let client = &mut self.session(state)?.client;
            let Entry { topic, partition, target, epoch, .. } = entry;
            ledger::release(client, &self.me.name, topic, *partition, target, *epoch)?;
        }
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
        for partition in partitions {
            state.reported.remove(&partition);
            // A claim that ended while it was drained must not have its successor released.
            state.draining.remove(&partition);
            self.claim(&mut self.session(state)?.client, partition)?;
            if began.elapsed() > TICK {
                // The heartbeat comes first; the rest is claimed after it.
                break;
            }
        }
        Ok(())
    }

    /// Inserts ledger rows for partitions that Kafka has and the ledger has not. True if there were any.
    fn register_new(&self, client: &mut Client, entries: &[Entry]) -> Result<bool> {
        let mut any = false;
        for topic in self.topics.iter() {
            let Some(seen) = topic.seen() else { continue };
            let Some(topic_id) = &seen.topic_id else { continue };
            let here: Vec<&Entry> = entries.iter().filter(|e| *e.topic == *topic.name).collect();
            if let Some(other) =
                here.iter().find(|e| e.pipeline != self.me.pipeline && topic.targets.contains(&e.target))
            {
                bail!(
                    "topic {:?} already feeds table {} in pipeline {:?}: two pipelines may not fill the same table from the same \
                     topic; use that name, or `rowmill init --take-over {}`",
                    topic.name,
                    other.target,
                    other.pipeline,
                    other.pipeline
                );
            }
            if let Some(other) = here.iter().find(|e| e.cluster_id != seen.cluster_id) {
                bail!(
                    "the ledger's offsets of topic {:?} belong to Kafka cluster {} and this is cluster {}: with another cluster the \
                     same offsets mean other records; bring the old brokers back, or use another pipeline in another \
                     database",
                    topic.name,
                    other.cluster_id,
                    seen.cluster_id
                );
            }
            let complete = |id: i32| {
                topic.targets.iter().all(|t| here.iter().any(|e| e.partition == id && e.target == *t))
            };
            let known: Vec<i32> = (0..seen.partition_count).filter(|id| complete(*id)).collect();
            let new: Vec<_> = seen.new.iter().filter(|n| !known.contains(&n.partition)).copied().collect();
            topic.set_registered(known);
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
            self.say_beginnings(topic, &here);
            any = true;
        }
        Ok(any)
    }

    /// Where tables begin that the ledger had not, and why.
    fn say_beginnings(&self, topic: &Topic, before: &[&Entry]) {
        let had =
            |target: &String| before.iter().any(|e| e.target == *target && e.pipeline == self.me.pipeline);
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

    fn claim(&self, client: &mut Client, partition: Partition) -> Result<()> {
        let topic = &self.topics[partition.topic];
        let claimed =
            ledger::claim(client, &self.me, &topic.name, partition.id, topic.routing_hash, &topic.targets)?;
        if claimed.is_empty() {
            return Ok(());
        }
        fault(Point::InClaim);
        let topic_id = claimed[0].topic_id.clone();
        let lanes = topic
            .tables
            .iter()
            .zip(&topic.targets)
            .map(|(table, target)| {
                let got =
                    claimed.iter().find(|c| c.target == *target).expect("all targets or none were claimed");
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
        Ok(())
    }

    /// Releases the partitions whose data in hand is committed, or whose time is up.
    fn release_drained(&self, state: &mut State) -> Result<()> {
        let ready: Vec<Partition> = state
            .draining
            .iter()
            .filter(|(partition, since)| {
                self.ownership.get(**partition).is_none_or(|c| c.is_drained()) || since.elapsed() > DRAIN_MAX
            })
            .map(|(partition, _)| *partition)
            .collect();
        for partition in ready {
            state.draining.remove(&partition);
            if let Some(claim) = self.ownership.get(partition) {
                self.ownership.remove(&claim);
                self.release(&mut self.session(state)?.client, &claim)?;
            }
        }
        Ok(())
    }

    fn release(&self, client: &mut Client, claim: &Claim) -> Result<()> {
        fault(Point::InRelease);
        for (lane, target) in claim.lanes.iter().zip(&self.topics[claim.partition.topic].targets) {
            ledger::release(client, &self.me.name, &claim.topic, claim.partition.id, target, lane.epoch())?;
        }
        Ok(())
    }

    fn report_stopped(&self, state: &mut State) -> Result<()> {
        for claim in self.ownership.all() {
            let why = claim.why_still();
            let is_news = match &why {
                Some(_) => state.reported.insert(claim.partition),
                None => state.reported.remove(&claim.partition),
            };
            if is_news {
                let client = &mut self.session(state)?.client;
                ledger::mark_stopped(
                    client,
                    &self.me.name,
                    &claim.topic,
                    claim.partition.id,
                    why.as_deref(),
                )?;
            }
        }
        Ok(())
    }

    /// The orderly end. What cannot be released now is taken over when the lease runs out, so errors are only said.
    fn finish(&self, state: &mut State) {
        let mut all = || -> Result<()> {
            for claim in self.ownership.all() {
                self.ownership.remove(&claim);
                self.release(&mut self.session(state)?.client, &claim)?;
            }
            ledger::leave(&mut self.session(state)?.client, &self.me)
        };
        if let Err(error) = all() {
            let error = ledger::context(error, "release all partitions");
            log::warn!("{error:#}; others wait for the lease to run out");
        }
    }
}
