//! The lease thread: keeps this process alive in the ledger, and decides every second what to claim and what to give up.
//!
//! Place in the flow: beside it. It is the only writer of [`Ownership`]; it never touches Kafka, so an outage there
//! cannot cost a lease. What it believes can be wrong at any moment: only the ledger's compare-and-swap decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use postgres::Client;

use crate::cpu::Pulse;
use crate::failure::Class;
use crate::fault::fault;
use crate::lane::LaneRegister;
use crate::ledger::{self, Entry, Member, Registration};
use crate::metrics::Heartbeat;
use crate::offsets::Partition;
use crate::ownership::{Claim, Lane, Ownership, Wake};
use crate::pg::{self, Server};
use crate::protocol::{self, Holding, plan};
use crate::topics::Topic;

/// Between two heartbeats. A lease lasts several of them.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks at partitions that are about to be released.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// What is in hand of a partition that another member should have is dropped after this; it is read again there.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// The thread's state.
pub struct Lease {
    pub server: Server,
    pub me: Member,
    pub topics: Arc<[Topic]>,
    pub ownership: Arc<Ownership>,
    /// False where a pooler shares sessions, so that a session lock would say nothing.
    pub session_lock: bool,
    pub wake: Receiver<Wake>,
    pub pulse: Arc<Pulse>,
    pub lanes: Arc<LaneRegister>,
    pub heartbeat: Arc<Heartbeat>,
}

/// A connection, and the number of the session lock that it holds.
struct Session {
    client: Client,
    number: Option<i32>,
}

/// Runs until [`Wake::Finish`].
///
/// # Errors
/// Only what waiting cannot mend: a schema that is newer than this program, a missing privilege, another pipeline's rows.
pub fn run(lease: Lease) -> Result<()> {
    let mut state =
        State { session: None, draining: BTreeMap::new(), reported: BTreeSet::new(), failing: false };
    let mut next_tick = Instant::now();
    loop {
        let pause = if state.draining.is_empty() { next_tick - Instant::now() } else { DRAIN_LOOK };
        match lease.wake.recv_timeout(pause) {
            Ok(Wake::Finish) | Err(RecvTimeoutError::Disconnected) => {
                lease.pulse.during("releasing all partitions", || finish(&lease, &mut state));
                return Ok(());
            }
            Ok(Wake::Look) => next_tick = Instant::now(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let was_connected = state.session.is_some();
        let result = lease.pulse.during("a heartbeat", || {
            release_drained(&lease, &mut state)?;
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                tick(&lease, &mut state)?;
                lease.heartbeat.beat();
            }
            Ok(())
        });
        if result.is_err() && was_connected {
            // Without its session this process looks dead to the others: come back at once.
            next_tick = Instant::now();
        }
        settle(&lease, &mut state, result)?;
    }
}

struct State {
    session: Option<Session>,
    /// Claims that are to be released, since when.
    draining: BTreeMap<Partition, Instant>,
    /// Stopped partitions whose reason the ledger has.
    reported: BTreeSet<Partition>,
    /// The last tick failed; said once.
    failing: bool,
}

/// Sorts out what a failed tick means. The connection is never used again after an error.
fn settle(lease: &Lease, state: &mut State, result: Result<()>) -> Result<()> {
    let Err(error) = result else {
        if std::mem::take(&mut state.failing) {
            log::info!("the lease connection to PostgreSQL works again");
        }
        return Ok(());
    };
    state.session = None;
    let class = error.downcast_ref::<postgres::Error>().map_or(Class::Setup, pg::classify);
    let error = ledger::context(error, "keep the lease");
    match class {
        Class::World | Class::Lost => {
            if !std::mem::replace(&mut state.failing, true) {
                log::warn!(
                    "{error:#}; partitions may pass to another process after {} s; trying again every second",
                    lease.me.lease.as_secs()
                );
            }
            Ok(())
        }
        _ => Err(error),
    }
}

fn session<'a>(lease: &Lease, state: &'a mut State) -> Result<&'a mut Client> {
    if state.session.is_none() {
        let mut client = lease.server.connect(&lease.me.application_name())?;
        if lease.session_lock {
            // A tick must not hang on a lock: the next one tries again. Shared sessions must not be changed.
            client.batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '4s'")?;
        }
        let number = lease.session_lock.then(|| ledger::begin_session(&mut client)).transpose()?;
        state.session = Some(Session { client, number });
    }
    Ok(&mut state.session.as_mut().expect("just made").client)
}

/// One heartbeat and what follows from it. Nothing is claimed in a tick whose heartbeat did not commit.
fn tick(lease: &Lease, state: &mut State) -> Result<()> {
    let names: Vec<String> = lease.topics.iter().map(|t| t.name.to_string()).collect();
    session(lease, state)?;
    let Session { client, number } = state.session.as_mut().expect("just opened");
    ledger::heartbeat(client, &lease.me, *number)?;

    // Read what memory holds before the query: a ledger that is behind it was taken back by a failover.
    let held = lease.ownership.all();
    let committed: Vec<Vec<i64>> =
        held.iter().map(|c| c.lanes.iter().map(Lane::committed).collect()).collect();
    let (members, mut entries) = ledger::snapshot(client, &lease.me.pipeline, &names)?;
    if register_new(lease, client, &entries)? {
        (_, entries) = ledger::snapshot(client, &lease.me.pipeline, &names)?;
    }
    for (claim, committed) in held.iter().zip(committed) {
        if let Some(reason) = lost(lease, claim, &committed, &entries) {
            log::warn!("partition {}/{} was lost: {reason}", claim.topic, claim.partition.id);
            lease.ownership.remove(claim);
            state.draining.remove(&claim.partition);
        }
    }
    report_stopped(lease, state)?;
    if lease.ownership.is_closing() {
        return Ok(());
    }

    let holdings = holdings(lease, &entries);
    let moves = plan(&lease.me.name, &members, &holdings);
    release_forgotten(lease, state, &entries, &moves.claim)?;
    for partition in moves.release {
        if let Some(claim) = lease.ownership.get(partition)
            && !claim.is_draining()
        {
            log::info!("giving partition {}/{} to another member", claim.topic, partition.id);
            claim.drain();
            state.draining.insert(partition, Instant::now());
            lease.ownership.touch();
        }
    }
    if moves.claim.is_empty() {
        return Ok(());
    }
    let ended = ledger::end_dead_members(session(lease, state)?, &lease.me)?;
    if ended > 0 {
        log::info!("ended {ended} database sessions of members whose lease ran out");
    }
    let began = Instant::now();
    for partition in moves.claim {
        state.reported.remove(&partition);
        // A claim that ended while it was drained must not have its successor released.
        state.draining.remove(&partition);
        claim(lease, session(lease, state)?, partition)?;
        if began.elapsed() > TICK {
            // The heartbeat comes first; the rest is claimed after it.
            break;
        }
    }
    Ok(())
}

/// Gives up what the ledger says is ours, memory does not hold, and this tick will not claim: the reply to a claim was lost,
/// or a release failed. Nobody else could take it while we live.
fn release_forgotten(
    lease: &Lease,
    state: &mut State,
    entries: &[Entry],
    claims: &[Partition],
) -> Result<()> {
    for entry in entries.iter().filter(|e| e.owner.as_deref() == Some(&lease.me.name)) {
        let Some(topic) = lease.topics.iter().position(|t| *t.name == *entry.topic) else { continue };
        let partition = Partition { topic, id: entry.partition };
        if lease.ownership.get(partition).is_none() && !claims.contains(&partition) {
            let client = session(lease, state)?;
            ledger::release(
                client,
                &lease.me.name,
                &entry.topic,
                entry.partition,
                &entry.target,
                entry.epoch,
            )?;
        }
    }
    Ok(())
}

/// Inserts ledger rows for partitions that Kafka has and the ledger has not. True if there were any.
fn register_new(lease: &Lease, client: &mut Client, entries: &[Entry]) -> Result<bool> {
    let mut any = false;
    for topic in lease.topics.iter() {
        let Some(seen) = topic.seen() else { continue };
        let Some(topic_id) = &seen.topic_id else { continue };
        let here: Vec<&Entry> = entries.iter().filter(|e| *e.topic == *topic.name).collect();
        if let Some(other) =
            here.iter().find(|e| e.pipeline != lease.me.pipeline && topic.targets.contains(&e.target))
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
        let complete =
            |id: i32| topic.targets.iter().all(|t| here.iter().any(|e| e.partition == id && e.target == *t));
        let known: Vec<i32> = (0..seen.partition_count).filter(|id| complete(*id)).collect();
        let new: Vec<_> = seen.new.iter().filter(|n| !known.contains(&n.partition)).copied().collect();
        topic.set_registered(known);
        if new.is_empty() {
            continue;
        }
        let what = Registration {
            pipeline: &lease.me.pipeline,
            cluster_id: &seen.cluster_id,
            topic_id,
            routing_hash: topic.routing_hash,
            topic: &topic.name,
            targets: &topic.targets,
        };
        let inserted = ledger::register(client, &what, &new)?;
        topic.set_registered(new.iter().map(|n| n.partition));
        log::info!("topic {:?}: {} new partitions, {inserted} new rows in the ledger", topic.name, new.len());
        any = true;
    }
    Ok(any)
}

/// Why a claim that memory holds is not ours any more, if so.
fn lost(lease: &Lease, claim: &Claim, committed: &[i64], entries: &[Entry]) -> Option<String> {
    if !claim.is_current() {
        return Some("a writer was fenced".to_owned());
    }
    let targets = &lease.topics[claim.partition.topic].targets;
    for (target, committed) in targets.iter().zip(committed) {
        let row = entries
            .iter()
            .find(|e| *e.topic == *claim.topic && e.partition == claim.partition.id && e.target == *target)
            .map(|entry| (entry.owner.as_deref(), entry.next_offset));
        if let Some(reason) = protocol::lost(&lease.me.name, *committed, row) {
            return Some(reason);
        }
    }
    None
}

/// The partitions that may be shared out, and who has them now.
fn holdings(lease: &Lease, entries: &[Entry]) -> Vec<Holding<Partition>> {
    let mut holdings: BTreeMap<Partition, Option<String>> = BTreeMap::new();
    for entry in entries.iter().filter(|e| e.pipeline == lease.me.pipeline) {
        let Some(topic) = lease.topics.iter().position(|t| *t.name == *entry.topic) else { continue };
        if entry.routing_hash != lease.topics[topic].routing_hash {
            continue;
        }
        let partition = Partition { topic, id: entry.partition };
        let held = lease.ownership.get(partition).is_some();
        let owner = protocol::holder(&lease.me.name, entry.owner.as_deref(), entry.owner_alive, held);
        let known = holdings.entry(partition).or_default();
        *known = known.take().or(owner);
    }
    holdings.into_iter().map(|(partition, owner)| Holding { partition, owner }).collect()
}

fn claim(lease: &Lease, client: &mut Client, partition: Partition) -> Result<()> {
    let topic = &lease.topics[partition.topic];
    let claimed =
        ledger::claim(client, &lease.me, &topic.name, partition.id, topic.routing_hash, &topic.targets)?;
    if claimed.is_empty() {
        return Ok(());
    }
    fault("in-claim");
    let topic_id = claimed[0].topic_id.clone();
    let lanes = topic
        .tables
        .iter()
        .zip(&topic.targets)
        .map(|(table, target)| {
            let got = claimed.iter().find(|c| c.target == *target).expect("all targets or none were claimed");
            let metrics = lease.lanes.lane(partition, *table);
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
    lease.ownership.insert(Arc::new(claim));
    Ok(())
}

/// Releases the partitions whose data in hand is committed, or whose time is up.
fn release_drained(lease: &Lease, state: &mut State) -> Result<()> {
    let ready: Vec<Partition> = state
        .draining
        .iter()
        .filter(|(partition, since)| {
            lease.ownership.get(**partition).is_none_or(|c| c.is_drained()) || since.elapsed() > DRAIN_MAX
        })
        .map(|(partition, _)| *partition)
        .collect();
    for partition in ready {
        state.draining.remove(&partition);
        if let Some(claim) = lease.ownership.get(partition) {
            lease.ownership.remove(&claim);
            release(lease, session(lease, state)?, &claim)?;
        }
    }
    Ok(())
}

fn release(lease: &Lease, client: &mut Client, claim: &Claim) -> Result<()> {
    fault("in-release");
    for (lane, target) in claim.lanes.iter().zip(&lease.topics[claim.partition.topic].targets) {
        ledger::release(client, &lease.me.name, &claim.topic, claim.partition.id, target, lane.epoch())?;
    }
    Ok(())
}

fn report_stopped(lease: &Lease, state: &mut State) -> Result<()> {
    for claim in lease.ownership.all() {
        match claim.stop_reason() {
            Some(reason) if state.reported.insert(claim.partition) => {
                let client = session(lease, state)?;
                ledger::mark_stopped(client, &lease.me.name, &claim.topic, claim.partition.id, &reason)?;
            }
            Some(_) => {}
            None => drop(state.reported.remove(&claim.partition)),
        }
    }
    Ok(())
}

/// The orderly end. What cannot be released now is taken over when the lease runs out, so errors are only said.
fn finish(lease: &Lease, state: &mut State) {
    let mut all = || -> Result<()> {
        for claim in lease.ownership.all() {
            lease.ownership.remove(&claim);
            release(lease, session(lease, state)?, &claim)?;
        }
        ledger::leave(session(lease, state)?, &lease.me)
    };
    if let Err(error) = all() {
        let error = ledger::context(error, "release all partitions");
        log::warn!("{error:#}; others wait for the lease to run out");
    }
}
