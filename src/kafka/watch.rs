//! watch: what Kafka has. It finds partitions and topic ids, decides where a claimed partition starts, and
//! commits offsets to the group for Kafka's own lag tools.
//!
//! Place in the flow: beside it, with a Kafka client of its own, so that a broker that does not answer holds up neither
//! heartbeats nor records.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::Sender;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::ask::Asker;
use super::native::Named;
use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::config::{self, StartPosition};
use crate::promise::claim::{Claim, Ownership, Start, Wake};
use crate::promise::gate::{LogState, Opening, opening};
use crate::promise::offsets::Partition;
use crate::promise::reach::Contact;
use crate::promise::topics::{NewPartition, Seen, Topic};

/// A re-created topic must be noticed within 10 s.
const LOOK: Duration = Duration::from_secs(3);

/// Between two questions that only ask whether Kafka is there.
const PING: Duration = Duration::from_secs(1);

/// Between two looks for claims that need a start.
const OPEN_LOOK: Duration = Duration::from_millis(20);

/// Kafka's lag tools need no more.
const COMMIT: Duration = Duration::from_secs(5);

/// After a failed step.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

pub struct Watch {
    pub kafka: config::Kafka,
    pub topics: Arc<[Topic]>,
    pub ownership: Arc<Ownership>,
    pub contact: Arc<Contact>,
    pub wake: Sender<Wake>,
    pub pulse: Arc<Pulse>,
}

/// A topic that Kafka has, its id, and how many partitions it has.
struct There<'t> {
    topic: &'t Topic,
    id: &'t str,
    partitions: i32,
}

fn keep_first(problem: &mut Option<anyhow::Error>, result: Result<()>) {
    if let Err(error) = result {
        problem.get_or_insert(error);
    }
}

impl Watch {
    /// Runs until the ownership closes. Kafka's absence is waited out and said once; what is wrong with one topic or partition
    /// holds up no other.
    pub fn run(self, asker: Asker) -> Result<()> {
        let mut next_look = Instant::now();
        let (mut next_measure, mut measured) = (Instant::now() + LOOK, BTreeMap::new());
        let mut next_ping = Instant::now();
        let mut next_commit = Instant::now() + COMMIT;
        let mut looked_at: Option<u64> = None;
        let mut trouble = Episode::default();
        while !self.ownership.is_closing() {
            let mut problem = None;
            let mut has_looked = false;
            // Where nothing changed since nobody wanted a start, nobody does: with thousands of partitions each look costs.
            let version = self.ownership.version();
            let mut claims: Vec<Arc<Claim>> = Vec::new();
            if looked_at != Some(version) {
                claims = self.ownership.all().into_iter().filter(|c| c.wants_start()).collect();
                looked_at = Some(version).filter(|_| claims.is_empty());
            }
            // A start is decided on what Kafka says now: the topic may just have been created again.
            if Instant::now() >= next_look || !claims.is_empty() {
                next_look = Instant::now() + LOOK;
                has_looked = true;
                keep_first(&mut problem, self.look(&asker));
            }
            if Instant::now() >= next_measure {
                next_measure = Instant::now() + LOOK;
                keep_first(&mut problem, self.measure(&asker, &mut measured));
            }
            if Instant::now() >= next_ping {
                next_ping = Instant::now() + PING;
                keep_first(&mut problem, self.ping(&asker));
            }
            keep_first(&mut problem, self.open(&asker, &claims));
            if Instant::now() >= next_commit {
                next_commit = Instant::now() + COMMIT;
                keep_first(&mut problem, self.commit(&asker));
            }
            asker.serve_events();
            let Some(error) = problem else {
                // Between two looks there is nothing that could have a problem.
                if has_looked && trouble.ends() {
                    log::info!("Kafka answers again");
                }
                std::thread::sleep(OPEN_LOOK);
                continue;
            };
            if trouble.begins() {
                log::warn!("{error:#}; trying again every second");
            }
            std::thread::sleep(FAILED_PAUSE);
        }
        // The last positions, so that the lag tools show the truth while the service is down.
        self.commit(&asker).unwrap_or_else(|error| log::debug!("{error:#}"));
        Ok(())
    }

    /// One request, watched: each is bounded by itself, however many there are.
    fn ask<T>(&self, call: impl FnOnce() -> T) -> T {
        self.pulse.during("a request to Kafka", call)
    }

    /// Where a look has just been answered this costs one small request more.
    fn ping(&self, asker: &Asker) -> Result<()> {
        self.ask(|| asker.ping()).context("Kafka does not answer")?;
        self.contact.answered(Instant::now());
        Ok(())
    }

    /// How far the logs go of topics that stand still: the poller, which hears of it by reading, may be what waits. `before` has how
    /// far each partition was at the last look.
    fn measure(&self, asker: &Asker, before: &mut BTreeMap<Partition, i64>) -> Result<()> {
        let claims = self.ownership.all();
        let stands = |claim: &&Arc<Claim>| {
            !claim.is_drained() && before.get(&claim.partition) == Some(&claim.committed())
        };
        let topics: BTreeSet<usize> =
            claims.iter().filter(stands).map(|claim| claim.partition.topic).collect();
        *before = claims.iter().map(|claim| (claim.partition, claim.committed())).collect();
        let still: Vec<&Arc<Claim>> = claims.iter().filter(|c| topics.contains(&c.partition.topic)).collect();
        let places: Vec<Named<'_>> = still.iter().map(|c| (&*c.topic, c.partition.id)).collect();
        if places.is_empty() {
            return Ok(());
        }
        let logs = self.ask(|| asker.all_ends(&places));
        for (claim, log) in still.into_iter().zip(logs) {
            claim.raise_log_end(log?.end);
        }
        Ok(())
    }

    /// Reads partition counts, topic ids, and the offsets of partitions that are new: a few questions, however many there are.
    fn look(&self, asker: &Asker) -> Result<()> {
        // What is not seen now must not decide anything.
        self.topics.iter().for_each(Topic::forget_id);
        let names: Vec<&str> = self.topics.iter().map(|t| &*t.name).collect();
        let cluster_id =
            self.ask(|| asker.cluster_id()).context("the brokers do not tell their cluster id")?;
        let described = self.ask(|| asker.describe(&names))?;
        self.contact.answered(Instant::now());
        let mut problem = None;
        let mut there: Vec<There<'_>> = Vec::new();
        for topic in self.topics.iter() {
            let Some(description) = described.iter().find(|d| *d.name == *topic.name) else { continue };
            if let Some(sentence) = description.unreadable() {
                keep_first(&mut problem, Err(anyhow!(sentence)));
            }
            match &description.id {
                Ok(id) => {
                    self.stop_recreated(topic, id);
                    there.push(There { topic, id, partitions: description.partitions });
                }
                Err(reason) => {
                    let error = anyhow!(
                        "topic {:?} cannot be described: {}; does it exist?",
                        topic.name,
                        reason.trim()
                    );
                    keep_first(&mut problem, Err(error));
                }
            }
        }
        let mut new = self.new_partitions(asker, &there, &mut problem);
        let compacted = self.compacted(asker, &there);
        let news = !new.is_empty();
        for (There { topic, id, partitions }, compacted) in there.iter().zip(compacted) {
            topic.set_seen(Seen {
                cluster_id: cluster_id.clone(),
                topic_id: Some((*id).to_owned()),
                partition_count: *partitions,
                new: new.remove(&*topic.name).unwrap_or_default(),
                compacted,
            });
        }
        if news {
            // A full channel already holds a wake-up.
            self.wake.try_send(Wake::Look).ok();
        }
        problem.map_or(Ok(()), Err)
    }

    fn stop_recreated(&self, topic: &Topic, topic_id: &str) {
        for claim in
            self.ownership.all().iter().filter(|c| *c.topic == *topic.name && c.topic_id != *topic_id)
        {
            claim.stop(format!(
                "the topic was deleted and created again (its id was {} and is {topic_id}): offsets from {} on mean other \
                 records now",
                claim.topic_id,
                claim.committed()
            ));
            self.ownership.touch();
        }
    }

    /// Where the partitions that the ledger does not know begin, by their topics' names.
    fn new_partitions<'t>(
        &self,
        asker: &Asker,
        there: &[There<'t>],
        problem: &mut Option<anyhow::Error>,
    ) -> BTreeMap<&'t str, Vec<NewPartition>> {
        let unknown = |there: &There<'t>| {
            let topic = there.topic;
            (0..there.partitions).filter(|p| !topic.is_registered(*p)).map(|p| (&*topic.name, p))
        };
        let places: Vec<Named<'t>> = there.iter().flat_map(unknown).collect();
        let mut new: BTreeMap<&str, Vec<NewPartition>> = BTreeMap::new();
        if places.is_empty() {
            return new;
        }
        let logs = self.ask(|| asker.all_ends(&places));
        self.contact.answered(Instant::now());
        let at = match self.kafka.start {
            StartPosition::At(ms) => self.ask(|| asker.all_at(&places, ms)),
            StartPosition::Earliest | StartPosition::Latest => places.iter().map(|_| Ok(None)).collect(),
        };
        for (((topic, partition), log), at) in places.into_iter().zip(logs).zip(at) {
            let begin = |log: Range<i64>, at: Option<i64>| {
                let start = match self.kafka.start {
                    StartPosition::Earliest => log.start,
                    StartPosition::Latest => log.end,
                    StartPosition::At(_) => at.unwrap_or(log.end),
                };
                NewPartition { partition, log_start: log.start, start }
            };
            match log.and_then(|log| Ok(begin(log, at?))) {
                Ok(found) => new.entry(topic).or_default().push(found),
                Err(error) => keep_first(problem, Err(error)),
            }
        }
        new
    }

    /// Of each topic, whether compaction may take records away. Asked once; without the right to ask, a record that compaction
    /// took stops the partition: the safe side.
    fn compacted(&self, asker: &Asker, there: &[There<'_>]) -> Vec<Option<bool>> {
        let mut known: Vec<Option<bool>> =
            there.iter().map(|there| there.topic.seen().and_then(|seen| seen.compacted)).collect();
        let unknown: Vec<usize> = (0..there.len()).filter(|at| known[*at].is_none()).collect();
        let names: Vec<&str> = unknown.iter().map(|at| &*there[*at].topic.name).collect();
        if names.is_empty() {
            return known;
        }
        let answers = self.ask(|| asker.are_compacted(&names)).unwrap_or_default();
        for (at, answer) in unknown.into_iter().zip(answers) {
            known[at] = answer.ok();
        }
        known
    }

    /// Decides where claims start, and tells the poller.
    fn open(&self, asker: &Asker, claims: &[Arc<Claim>]) -> Result<()> {
        let topic_id = |claim: &Claim| {
            let seen = self.topics[claim.partition.topic].seen()?;
            Some((seen.topic_id?, seen.compacted.unwrap_or(false)))
        };
        let known: Vec<(&Arc<Claim>, (String, bool))> =
            claims.iter().filter_map(|claim| Some((claim, topic_id(claim)?))).collect();
        let places: Vec<Named<'_>> = known.iter().map(|(c, _)| (&*c.topic, c.partition.id)).collect();
        if places.is_empty() {
            return Ok(());
        }
        let logs = self.ask(|| asker.all_ends(&places));
        let mut problem = None;
        for ((claim, (topic_id, compacted)), log) in known.into_iter().zip(logs) {
            match log {
                Ok(Range { start, end }) => {
                    claim.set_log_end(end);
                    let name = format!("{}/{}", claim.topic, claim.partition.id);
                    let log = LogState { name, topic_id, start, end, compacted };
                    match opening(&claim.topic_id, &log, &claim.places()) {
                        Opening::Read { at, gate, fresh } => claim.open(Start { at, gate, fresh }),
                        Opening::Stop(reason) => claim.stop(reason),
                    }
                }
                Err(error) => keep_first(&mut problem, Err(error)),
            }
        }
        self.ownership.touch();
        problem.map_or(Ok(()), Err)
    }

    fn commit(&self, asker: &Asker) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        for claim in self.ownership.all() {
            offsets.add_partition_offset(
                &claim.topic,
                claim.partition.id,
                Offset::Offset(claim.committed()),
            )?;
        }
        if offsets.count() == 0 {
            return Ok(());
        }
        // Not waited for: without a coordinator the client would wait for most of a minute, and these are for people only.
        asker
            .consumer()
            .commit(&offsets, CommitMode::Async)
            .context("cannot commit offsets for Kafka's lag tools")
    }
}
