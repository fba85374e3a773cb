//! The topics of a plan: what the configuration says of them, and what Kafka was last seen to have.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::base::hash;
use crate::base::lock::lock;

/// One topic and the tables that it feeds.
#[derive(Debug)]
pub struct Topic {
    pub name: Arc<str>,
    /// Indexes of the tables in the plan; the first is the topic's home table, where undecodable records are set aside.
    pub tables: Vec<usize>,
    /// The same tables as the ledger names them.
    pub targets: Vec<String>,
    /// A hash of which table takes what; the ledger refuses a changed one while tables are not level.
    pub routing_hash: i64,
    seen: Mutex<Option<Seen>>,
    registered: Mutex<BTreeSet<i32>>,
}

/// What Kafka says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub cluster_id: String,
    /// `None` while the last look could not tell.
    pub topic_id: Option<String>,
    pub partition_count: i32,
    /// Partitions that the ledger does not have yet.
    pub new: Vec<NewPartition>,
    /// Whether compaction may take records away; `None` where it cannot be asked.
    pub compacted: Option<bool>,
}

impl Topic {
    pub fn new(name: &str, tables: Vec<usize>, targets: Vec<String>, routing: &str) -> Topic {
        Topic {
            name: name.into(),
            tables,
            targets,
            routing_hash: hash::of(routing),
            seen: Mutex::default(),
            registered: Mutex::default(),
        }
    }

    pub fn seen(&self) -> Option<Seen> {
        lock(&self.seen).clone()
    }

    pub fn set_seen(&self, seen: Seen) {
        *lock(&self.seen) = Some(seen);
    }

    /// The topic's id must be seen again before it decides anything.
    pub fn forget_id(&self) {
        if let Some(seen) = lock(&self.seen).as_mut() {
            seen.topic_id = None;
        }
    }

    pub fn is_registered(&self, partition: i32) -> bool {
        lock(&self.registered).contains(&partition)
    }

    pub fn set_registered(&self, partitions: impl IntoIterator<Item = i32>) {
        lock(&self.registered).extend(partitions);
    }
}

/// Where a new partition could start.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct NewPartition {
    pub partition: i32,
    /// The log's first offset.
    pub log_start: i64,
    /// Where the configuration wants a topic to begin that the ledger does not know.
    pub start: i64,
}
