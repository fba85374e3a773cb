//! Kafka as a client sees it: logs with holes that grow and expire, and a consumer that may deliver stale records and
//! records twice.

#![allow(dead_code, reason = "the simulator and the comparison use different parts")]

use std::collections::{BTreeMap, VecDeque};

use rowmill_faults::random::Random;

use crate::database::Key;
use crate::records::Shape;
use rowmill::promise::gate;
use rowmill::promise::offsets::Partition;
use rowmill::promise::topics::Topic;

pub(crate) const TOPIC_ID: &str = "id";

/// Partitions of each topic.
pub(crate) const PARTITIONS: [i32; 2] = [2, 1];

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Every record that ever was, also those that expired.
    pub(crate) history: BTreeMap<i64, Shape>,
}

pub(crate) struct Cluster {
    pub(crate) logs: BTreeMap<Partition, Log>,
    /// For each topic, its tables.
    tables: Vec<Vec<usize>>,
}

impl Cluster {
    pub(crate) fn new(topics: &[Topic], random: &mut Random) -> Cluster {
        let partitions =
            (0..topics.len()).flat_map(|topic| (0..PARTITIONS[topic]).map(move |id| Partition { topic, id }));
        let mut cluster = Cluster {
            logs: partitions.map(|p| (p, Log::default())).collect(),
            tables: topics.iter().map(|t| t.tables.clone()).collect(),
        };
        for log in cluster.logs.values_mut() {
            log.start = random.below(3) as i64;
            log.end = log.start;
        }
        cluster
    }

    /// The ledger's keys of a partition, home table first.
    pub(crate) fn keys(&self, partition: Partition) -> Vec<Key> {
        self.tables[partition.topic].iter().map(|table| (partition, *table)).collect()
    }

    pub(crate) fn partitions(&self, topic: usize) -> Vec<Partition> {
        self.logs.keys().filter(|p| p.topic == topic).copied().collect()
    }

    /// The place of a key's table among those of its topic.
    pub(crate) fn lane(&self, key: Key) -> usize {
        self.tables[key.0.topic].iter().position(|t| *t == key.1).expect("the topic feeds it")
    }

    /// A producer at work: records, and offsets that hold none.
    pub(crate) fn produce(&mut self, random: &mut Random) {
        let chosen = random.below(self.logs.len());
        let log = self.logs.values_mut().nth(chosen).expect("below the count");
        for _ in 0..=random.below(8) {
            if !random.one_in(6) {
                log.history.insert(log.end, Shape::any(random));
            }
            log.end += 1;
        }
    }

    /// Retention, which takes only what every table has.
    pub(crate) fn expire(&mut self, partition: Partition, up_to: i64) {
        let log = self.logs.get_mut(&partition).expect("it exists");
        log.start = log.start.max(up_to.min(log.end));
    }

    pub(crate) fn look(&self, partition: Partition) -> gate::LogState {
        let log = &self.logs[&partition];
        gate::LogState {
            name: String::new(),
            topic_id: TOPIC_ID.into(),
            start: log.start,
            end: log.end,
            compacted: false,
        }
    }
}

/// What a poll brought.
pub(crate) enum Polled {
    Record(i64, Shape),
    OutOfRange,
    Nothing,
}

/// One consumer with its partitions.
#[derive(Default)]
pub(crate) struct Handle {
    /// Next offset to fetch, and records of an earlier assignment that come first.
    streams: BTreeMap<Partition, (i64, VecDeque<i64>)>,
    /// The highest offset that was fetched, for partitions that this handle has read.
    fetched: BTreeMap<Partition, i64>,
}

impl Handle {
    pub(crate) fn assign(&mut self, partition: Partition, at: i64, random: &mut Random) {
        let stale = match self.fetched.get(&partition) {
            // Consecutive ones, from anywhere below what was fetched.
            Some(fetched) if random.one_in(3) => {
                let first = fetched - random.below(12) as i64;
                (first.max(0)..=*fetched).collect()
            }
            _ => VecDeque::new(),
        };
        self.fetched.entry(partition).or_insert(at - 1);
        self.streams.insert(partition, (at, stale));
    }

    pub(crate) fn unassign(&mut self, partition: Partition) {
        self.streams.remove(&partition);
    }

    pub(crate) fn poll(
        &mut self,
        partition: Partition,
        log: &Log,
        random: &mut Random,
        faults: bool,
    ) -> Polled {
        let Some((position, stale)) = self.streams.get_mut(&partition) else { return Polled::Nothing };
        while let Some(offset) = stale.pop_front() {
            if let Some(shape) = log.history.get(&offset) {
                return Polled::Record(offset, *shape);
            }
        }
        if faults && random.one_in(20) {
            // The same again.
            *position = (*position - random.below(6) as i64).max(log.start);
        }
        if *position < log.start {
            return Polled::OutOfRange;
        }
        let Some((offset, shape)) = log.history.range(*position..).next() else { return Polled::Nothing };
        *position = offset + 1;
        let fetched = self.fetched.get_mut(&partition).expect("it is assigned");
        *fetched = (*fetched).max(*offset);
        Polled::Record(*offset, *shape)
    }
}
